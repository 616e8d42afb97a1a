"""From verified content to a file with its final name; the staging folder for unfinished files.

Content is in memory while it is small, else it is staged.

A file gets its final name in a folder by a link that replaces nothing, after all of it was written
and flushed in the staging folder; then the staged name is unlinked. The staging folder,
``.regards-<order>-<random>.part``, is beside the final names and so on the same file system. A
later download removes it if the process that made it has died.

Files for a bucket are staged and verified in a scratch folder of this computer. Each is then
created in the bucket by one conditional request, and its staged file is removed: no object is ever
incomplete, and none is replaced but a cut one of ours.
"""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH108

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from regards_nb.computer import file_system_of, is_alive
from regards_nb.download.bucket import BucketFiles
from regards_nb.download.disk import (
    NEW_FILE,
    UNSUPPORTED,
    FolderFiles,
    flush,
    flush_filesystem,
    link_without_replacing,
    lock_if_free,
    write_all,
    write_new,
)
from regards_nb.errors import ArchiveError, WorkspaceError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Sequence

    from regards_nb.download.places import Place
    from regards_nb.files import FileRecord, FileState

_PREFIX, _SUFFIX = ".regards-", ".part"
_OWNER, _HELD = "owner.json", "held"
#: The URLs of the objects that a process is uploading in parts, one a line.
_UPLOADS = "uploads"
#: Content up to this size stays in memory until it is verified.
MAX_HELD_BYTES = 1 << 16
#: Length beyond that of the manifest at which an entry makes the zip count as a bomb.
_SLACK_BYTES = 1 << 20
_RESERVE_CHECK_BYTES = 16 << 20
#: What a file takes in memory beside its content.
_FILE_BYTES = 1000
#: Time for which the staging folder of another computer is kept: its process cannot be checked.
_FOREIGN_AGE_S = 24 * 3600.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Of a place to which no later attempt can write, either.
_UNUSABLE = frozenset(
    {errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
)
#: Number of files from which one flush of the whole file system is faster than one for each.
_MANY_FILES = 32

#: syncfs flushes the files of these kinds. FUSE forwards no syncfs to most of its file systems
#: (sshfs, rclone): files under final names were incomplete there after a power cut.
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "bcachefs", "tmpfs", "overlay"}
)


class Content(NamedTuple):
    """All bytes of one file, in memory or staged."""

    #: Its name in the zip or the manifest.
    name: str
    size_bytes: int
    #: Empty where the bytes arrived damaged.
    md5: str
    data: bytes
    #: The staged file; None while the bytes are in memory only.
    path: str | None

    @classmethod
    def of(cls, name: str, data: bytes) -> Content:
        """Return content that arrived in one piece."""
        return cls(
            name, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), data, None
        )

    def staged(self, workspace: Workspace) -> Content:
        """Return the content as a staged file, after writing it where it is in memory."""
        if self.path is not None:
            return self
        path = workspace.new_path()
        write_new(path, self.data)
        return self._replace(data=b"", path=path)

    def begins_with(self, blocks: Iterable[bytes]) -> bool:
        """Return whether these blocks are the beginning of the content, and not all of it."""
        n_bytes = 0
        with io.BytesIO(self.data) if self.path is None else open(self.path, "rb") as whole:  # noqa: PTH123 - a string
            for block in blocks:
                if block != whole.read(len(block)):
                    return False
                n_bytes += len(block)
        return n_bytes < self.size_bytes

    def discard(self) -> None:
        """Remove the staged file."""
        if self.path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.path)


class CheckedFile(NamedTuple):
    """Content that was found right and waits for its final name."""

    content: Content
    #: The files of the order that it is, or that it holds.
    records: Sequence[FileRecord]
    #: Their state; None where the records have it already.
    state: FileState | None
    #: Its final name, where that is not the one of its first record.
    name: str | None = None
    #: False: it was on this computer already.
    is_fetched: bool = True


class ContentWriter:
    """Collects the bytes of one file while they arrive.

    *limit_bytes* is the largest size that the manifest allows, None if that is not known. Content
    above *max_held_bytes* is staged in the workspace; without one it is only measured.
    """

    def __init__(
        self,
        name: str,
        limit_bytes: int | None,
        workspace: Workspace | None,
        *,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.name = name
        self._limit_bytes = limit_bytes
        self._workspace = workspace
        self._max_held_bytes = max_held_bytes
        self._held = bytearray()
        self._digest = hashlib.md5(usedforsecurity=False)
        self._descriptor: int | None = None
        self._path: str | None = None
        self._size_bytes = 0
        self._next_check_bytes = _RESERVE_CHECK_BYTES

    def add(self, data: bytes) -> None:
        """Add the next bytes; raise ArchiveError where the manifest states far fewer."""
        self._size_bytes += len(data)
        self._check_size()
        self._digest.update(data)
        if self._descriptor is None and self._size_bytes <= self._max_held_bytes:
            self._held += data
            return
        if self._workspace is None:
            return
        with self._workspace.errors():
            if self._descriptor is None:
                self._path = self._workspace.new_path()
                self._descriptor = os.open(self._path, NEW_FILE, 0o666)
                write_all(self._descriptor, self._held)
                self._held.clear()
            write_all(self._descriptor, data)

    def finish(self) -> Content:
        """Return the complete content."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return Content(
            self.name, self._size_bytes, self._digest.hexdigest(), bytes(self._held), self._path
        )

    def discard(self) -> None:
        """Forget the content and remove its staged file."""
        self.finish().discard()

    def _check_size(self) -> None:
        if self._limit_bytes is None:
            if self._size_bytes >= self._next_check_bytes:
                self._next_check_bytes += _RESERVE_CHECK_BYTES
                if self._workspace is not None:
                    self._workspace.require_reserve()
        elif self._size_bytes > self._limit_bytes + _SLACK_BYTES:
            raise ArchiveError(
                f"{self.name!r} is longer than the {self._limit_bytes} bytes that the manifest "
                "states: it was not read further"
            )


class Workspace:
    """A folder, for the time of one download into it. Safe in any thread.

    It is made if it is missing. WorkspaceError, before anything is fetched: it cannot be made or
    written to. *durable*: a file is on the disk before it gets its final name.

    Files of a bucket get their final names there (`BucketWorkspace`): then this is the scratch
    folder.
    """

    #: How many files are given their final names at the same time, and how many in one batch.
    parallel, batch_files = 1, 1000
    #: Whether a final name is the end of an upload, which may take long.
    uploads = False
    #: How much may wait for final names, as `held_bytes` counts it.
    waiting_bytes = 8 << 20
    #: What to do where the disk is full.
    other_folder = "give another directory"
    #: Linux's list of mounted file systems.
    mounts = Path("/proc/mounts")

    def __init__(self, directory: Path, order_id: int, *, durable: bool = True) -> None:
        self.directory = directory.absolute()
        #: Where the files get their final names.
        self.files: FolderFiles | BucketFiles = FolderFiles(str(self.directory))
        self.durable = durable
        self.staging = self.directory / f"{_PREFIX}{order_id}-{secrets.token_hex(6)}{_SUFFIX}"
        self._staged_prefix = f"{self.staging}{os.sep}"
        # One name for one file after the other: Linux finds it in its cache.
        self._held = self._staged_prefix + _HELD
        self._numbers = itertools.count(1)
        with self.errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            for folder in self.directory.glob(f"{_PREFIX}*{_SUFFIX}"):
                # another download may remove them at the same time
                with suppress(OSError):
                    if not folder.is_symlink() and _is_orphan(folder):
                        self._remove_orphan(folder)
            # the scratch folder of a bucket is in a folder of all users
            self.staging.mkdir(mode=0o700)
            self._owner = self._write_owner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._owner)
        shutil.rmtree(self.staging, ignore_errors=True)

    @cached_property
    def flushes_together(self) -> bool:
        """Whether one call flushes all files of the file system."""
        return file_system_of(self.directory, self.mounts) in _LOCAL

    def prepare(self, contents: Sequence[Content]) -> Sequence[Content]:
        """Return verified contents that can get their final names: those of one batch.

        They are flushed, because after a power cut a final name must not belong to an incomplete
        file; those that are in memory are written to staged files before.
        """
        if not self.durable:
            return contents
        staged = [content.staged(self) for content in contents]
        together = len(staged) >= _MANY_FILES and self.flushes_together
        if not (together and flush_filesystem(str(self.staging))):
            for content in staged:
                # opened for writing because Windows flushes nothing else
                flush(content.path or "", os.O_RDWR)
        return staged

    def create(self, name: str, content: Content) -> bool:
        """Give a prepared content its final name; return False where the name is in use."""
        path = self.files.join(name)
        if content.path is not None:
            return link_without_replacing(content.path, path)
        write_new(self._held, content.data)
        is_done = link_without_replacing(self._held, path)
        if not is_done:
            os.unlink(self._held)
        return is_done

    def replace_cut(self, name: str, content: Content) -> bool:
        """Replace a file of ours that holds only the beginning of this content.

        Return False, and do nothing, where it holds anything else: that may be the user's.
        """
        if not self.files.size_of(name)[1] or not content.begins_with(self.files.blocks(name)):
            return False
        os.replace(content.staged(self).path or "", self.files.join(name))  # noqa: PTH105 - strings
        return True

    def complete_batch(self) -> None:
        """Return when the names that were given are durable.

        Not every system and file system can open a folder for that.
        """
        if not self.durable or sys.platform == "win32":
            return
        try:
            flush(str(self.directory), os.O_RDONLY)
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise

    def held_bytes(self, files: Sequence[CheckedFile]) -> int:
        """Return how much these files count while they wait for their final names.

        Staged files count nothing: they are on the disk where they stay.
        """
        return sum(len(file.content.data) for file in files) + _FILE_BYTES * len(files)

    def needed_bytes(self, sizes: Sequence[int]) -> int:
        """Return how much room files of these sizes need on this computer."""
        return sum(sizes)

    def require_space(self, sizes: Sequence[int]) -> None:
        """Raise WorkspaceError where files of these sizes, and two per cent more, do not fit."""
        size_bytes = self.needed_bytes(sizes)
        with self.errors():
            free_bytes = shutil.disk_usage(self.directory).free
        needed_bytes = size_bytes + size_bytes // 50
        if needed_bytes > free_bytes:
            raise WorkspaceError(
                f"{self.directory} is too full: {needed_bytes:,} bytes are needed, "
                f"{free_bytes:,} are free. Nothing was fetched: make room, or "
                f"{self.other_folder}"
            )

    def require_reserve(self) -> None:
        """Raise WorkspaceError where less than one per cent of the disk is free.

        It is for files of unknown size.
        """
        with self.errors():
            usage = shutil.disk_usage(self.directory)
            if usage.free < usage.total // 100:
                raise OSError(errno.ENOSPC, "a file of unknown size would fill the disk")

    def new_path(self) -> str:
        """Return a path in the staging folder that no file has."""
        return f"{self._staged_prefix}{next(self._numbers)}"

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn an OSError into a WorkspaceError that says what to do."""
        try:
            yield
        except OSError as exc:
            raise self._explained(exc) from exc

    def _remove_orphan(self, folder: Path) -> None:
        """Remove the staging folder of a process that has died."""
        shutil.rmtree(folder, ignore_errors=True)

    def _write_owner(self) -> int:
        """Write which process made the staging folder, and keep the file locked."""
        descriptor = os.open(self.staging / _OWNER, NEW_FILE, 0o666)
        lock_if_free(descriptor)
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        os.write(descriptor, json.dumps(owner).encode())
        return descriptor

    def _explained(self, exc: OSError) -> WorkspaceError:
        reason = exc.strerror or str(exc)
        if exc.errno not in _FULL:
            return WorkspaceError(
                f"cannot write to {self.directory}: {reason}. Choose another place with "
                "workspace=... or directory=..."
            )
        free = "unknown"
        with suppress(OSError):
            free = f"{shutil.disk_usage(self.directory).free:,} bytes"
        return WorkspaceError(
            f"{self.directory} is full ({reason}; free: {free}). Verified files stay: make room "
            "and download again, only the missing files are fetched"
        )


class BucketWorkspace(Workspace):
    """A prefix of a bucket, for the time of one download into it.

    That the bucket cannot be listed is known, as WorkspaceError, before anything is fetched.
    """

    parallel, batch_files, uploads = 8, 1, True
    #: Maximum size on the scratch disk of staged files that wait or are uploaded, plus one file.
    waiting_bytes = 256 << 20
    #: Small files arrive faster than a store answers, and the network does not wait for them: 32
    #: MiB of them may wait in memory.
    _memory_factor = 8
    other_folder = "name another scratch folder in the variable TMPDIR"

    def __init__(self, url: str, order_id: int, *, stop: threading.Event | None = None) -> None:
        self._bucket = BucketFiles(url, f"order {order_id}" if order_id else "", stop)
        # A name that is in use is known without sending the file. It also keeps such names where
        # the server ignores the condition of a creation.
        self._names = set(self._bucket.list())
        # an object is durable when it is created
        super().__init__(Path(tempfile.gettempdir()), order_id, durable=False)
        self.files = self._bucket

    def create(self, name: str, content: Content) -> bool:
        """Create an object with a content; return False where the name is in use."""
        return name not in self._names and self._upload(name, content)

    def _upload(self, name: str, content: Content, *, replaces: str | None = None) -> bool:
        source = content.data if content.path is None else content.path
        if content.size_bytes > self._bucket.largest_put_bytes:
            # a later download aborts it if this process dies
            with (self.staging / _UPLOADS).open("a", encoding="utf-8") as file:
                file.write(f"{self.files.join(name)}\n")
            self._bucket.abort_uploads(name, is_ours=False)
        is_done = self._bucket.create(
            name, source, content.size_bytes, content.md5, replaces=replaces
        )
        self._names.add(name)
        if is_done:
            content.discard()
        return is_done

    def replace_cut(self, name: str, content: Content) -> bool:
        """Replace an object of ours that holds only the beginning of this content."""
        found = self._bucket.look(name)
        if found is None or found.size_bytes >= content.size_bytes:
            return False
        if not content.begins_with(self._bucket.blocks(name)):
            return False
        # After a lost answer the object is the new one, and is no more the one to be replaced.
        return self._upload(name, content, replaces=found.e_tag) or self._bucket.has(
            name, content.size_bytes, content.md5, reads=False
        )

    def held_bytes(self, files: Sequence[CheckedFile]) -> int:
        """Return how much these files count while they wait or are uploaded."""
        staged = sum(file.content.size_bytes for file in files if file.content.path is not None)
        return staged + self._memory_factor * super().held_bytes(files)

    def needed_bytes(self, sizes: Sequence[int]) -> int:
        """Return how much room files of these sizes need in the scratch folder."""
        # one file may wait beyond the limit, and one is being written
        return min(sum(sizes), self.waiting_bytes + 2 * max(sizes, default=0))

    def _remove_orphan(self, folder: Path) -> None:
        """Remove the staging folder of a process that has died, and abort its uploads to here."""
        with suppress(OSError):
            start = self._bucket.join("")
            for url in (folder / _UPLOADS).read_text(encoding="utf-8").splitlines():
                if url.startswith(start):
                    self._bucket.abort_uploads(url.removeprefix(start), is_ours=True)
        super()._remove_orphan(folder)


def is_unusable(error: BaseException | None) -> bool:
    """Return whether a download failed because files cannot be written to its place at all."""
    cause = error.__cause__ if isinstance(error, WorkspaceError) else None
    return isinstance(cause, OSError) and cause.errno in _UNUSABLE


def open_workspace(
    place: Place, order_id: int, *, durable: bool = True, stop: threading.Event | None = None
) -> Workspace:
    """Return the workspace of one download into a place.

    That nothing can be written there is known, as WorkspaceError, before anything is fetched.
    """
    if isinstance(place, Path):
        return Workspace(place, order_id, durable=durable)
    return BucketWorkspace(str(place), order_id, stop=stop)


def _is_orphan(folder: Path) -> bool:
    """Return whether a staging folder is that of a process that has died."""
    age_s = time.time() - folder.stat().st_mtime
    try:
        owner = json.loads((folder / _OWNER).read_bytes())
        host, pid = owner["host"], int(owner["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        # its owner has not written this file yet, or another program made the folder
        return age_s > _FOREIGN_AGE_S
    if host != socket.gethostname() or is_alive(pid):
        return age_s > _FOREIGN_AGE_S and pid != os.getpid()
    descriptor = os.open(folder / _OWNER, os.O_RDWR)
    try:
        return lock_if_free(descriptor)
    finally:
        os.close(descriptor)
