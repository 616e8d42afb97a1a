"""Where the files of a download get their final names, and the staging folder for unfinished ones.

A file gets its final name in a folder in one way only: write it in the staging folder, flush it,
link it to its final name without replacing anything, unlink the staged name. The staging folder,
``.regards-<order>-<random>.part``, is beside the final names and so on the same file system. A
later download removes it if the process that made it has died.
"""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from regards_nb.download.bucket import Bucket, is_url, split_url
from regards_nb.download.disk import (
    NEW_FILE,
    UNSUPPORTED,
    blocks_of,
    file_system_of,
    flush_filesystem,
    has_content,
    is_alive,
    is_plain_file,
    link_without_replacing,
    lock_if_free,
)
from regards_nb.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from regards_nb.download.content import Content

_PREFIX, _SUFFIX = ".regards-", ".part"
_OWNER = "owner.json"
#: A process of another computer cannot be looked up: its staging folder is kept for so long.
_FOREIGN_AGE_S = 24 * 3600.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: From so many files on, one flush of the whole file system takes less time than one for each.
_MANY_FILES = 32

#: syncfs flushes the files of these kinds. FUSE forwards no syncfs to most of its file systems
#: (sshfs, rclone): files under final names were incomplete there after a power cut.
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "bcachefs", "tmpfs", "overlay"}
)


class Workspace(ABC):
    """Where the files of one download get their final names. Safe in any thread.

    Unfinished files are in a staging folder of this computer. The final names are in a folder
    (`FolderWorkspace`) or in a bucket (`BucketWorkspace`); `open_workspace` chooses.

    Parameters
    ----------
    staging_in : pathlib.Path
        The folder for the staging folder.
    order_id : int
        For the name of the staging folder.
    """

    #: How many files are given their final names at the same time, and how many in one batch.
    parallel, batch_files = 1, 1000
    #: How many bytes of staged files may wait for their final names; 0: any number, because they
    #: are on the disk where they stay.
    waiting_bytes = 0
    #: What to do where the disk is full.
    other_folder = "give another directory"

    def __init__(self, staging_in: Path, order_id: int) -> None:
        self._staging_in = staging_in
        self.staging = staging_in / f"{_PREFIX}{order_id}-{secrets.token_hex(6)}{_SUFFIX}"
        self._staged_prefix = f"{self.staging}{os.sep}"
        self._numbers = itertools.count(1)
        with self.errors():
            staging_in.mkdir(parents=True, exist_ok=True)
            for orphan in _orphans(staging_in):
                self._remove_orphan(orphan)
            # the scratch folder of a bucket is in a folder of all users
            self.staging.mkdir(mode=0o700)
            self._owner = self._write_owner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._owner)
        shutil.rmtree(self.staging, ignore_errors=True)

    @abstractmethod
    def path_of(self, name: str) -> str:
        """Return the path, or the URL, of a file with this final name."""

    @abstractmethod
    def prepare(self, contents: Sequence[Content]) -> Sequence[Content]:
        """Return verified contents that can get their final names: those of one batch."""

    @abstractmethod
    def create(self, name: str, content: Content) -> bool:
        """Give a prepared content its final name; return False where the name is in use."""

    @abstractmethod
    def has(self, name: str, content: Content, *, is_suspect: bool) -> bool:
        """Return whether the file with this final name has this content.

        A file that failed a check is read, whatever is recorded beside it.
        """

    @abstractmethod
    def replace_cut(self, name: str, content: Content) -> bool:
        """Replace a file of ours that holds only the beginning of this content.

        Return False, and do nothing, where it holds anything else: that may be the user's.
        """

    @abstractmethod
    def complete_batch(self) -> None:
        """Return when the names that were given are durable."""

    def needed_bytes(self, sizes: Sequence[int], *, keeps_zip: bool) -> int:
        """Return how much room files of these sizes need on this computer."""
        del keeps_zip
        return sum(sizes)

    def require_space(self, sizes: Sequence[int], *, keeps_zip: bool = False) -> None:
        """Make sure that files of these sizes fit, with two per cent more.

        Raises
        ------
        WorkspaceError
            They do not.
        """
        size_bytes = self.needed_bytes(sizes, keeps_zip=keeps_zip)
        with self.errors():
            free_bytes = shutil.disk_usage(self._staging_in).free
        needed_bytes = size_bytes + size_bytes // 50
        if needed_bytes > free_bytes:
            raise WorkspaceError(
                f"{self._staging_in} is too full: {needed_bytes:,} bytes are needed, "
                f"{free_bytes:,} are free. Nothing was fetched: make room, or "
                f"{self.other_folder}"
            )

    def require_reserve(self) -> None:
        """Make sure that a file of unknown size leaves one per cent of the disk free.

        Raises
        ------
        WorkspaceError
            It does not.
        """
        with self.errors():
            usage = shutil.disk_usage(self._staging_in)
            if usage.free < usage.total // 100:
                raise OSError(errno.ENOSPC, "a file of unknown size would fill the disk")

    def new_staged(self) -> tuple[int, str]:
        """Make an empty file in the staging folder; return its descriptor and its path."""
        path = f"{self._staged_prefix}{next(self._numbers)}"
        return os.open(path, NEW_FILE, 0o666), path

    def stage_existing(self, path: str) -> str:
        """Link a file of another place into the staging folder, or copy it; return its path."""
        staged = f"{self._staged_prefix}{next(self._numbers)}"
        if is_url(path):
            name, key = split_url(path)
            with open(staged, "xb") as file:  # noqa: PTH123 - a string
                file.writelines(Bucket(name).blocks(key))
            return staged
        try:
            os.link(path, staged)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, staged)
        return staged

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
            return WorkspaceError(f"cannot write to {self._staging_in}: {reason}")
        free = "unknown"
        with suppress(OSError):
            free = f"{shutil.disk_usage(self._staging_in).free:,} bytes"
        return WorkspaceError(
            f"{self._staging_in} is full ({reason}; free: {free}). Verified files stay: make room "
            "and download again, only the missing files are fetched"
        )


class FolderWorkspace(Workspace):
    """One folder, for the time of one download into it.

    Parameters
    ----------
    directory : pathlib.Path
        Where the files go; made if it is missing.
    order_id : int
        For the name of the staging folder.
    durable : bool
        Whether a file is on the disk before it gets its final name.

    Raises
    ------
    WorkspaceError
        The folder cannot be made or written to. This is known before anything is fetched.
    """

    #: Linux's list of mounted file systems.
    mounts = Path("/proc/mounts")

    def __init__(self, directory: Path, order_id: int, *, durable: bool = True) -> None:
        self.directory = directory.absolute()
        self._folder = f"{self.directory}{os.sep}"
        self.durable = durable
        super().__init__(self.directory, order_id)
        #: Whether one call flushes all files of the file system.
        self.flushes_together = file_system_of(self.directory, self.mounts) in _LOCAL

    def path_of(self, name: str) -> str:
        """Return the path of a file with this final name."""
        return self._folder + name

    def prepare(self, contents: Sequence[Content]) -> Sequence[Content]:
        """Write contents that are in memory to staged files, and flush all of them."""
        staged = [content.staged(self) for content in contents]
        self._flush([content.path for content in staged if content.path])
        return staged

    def create(self, name: str, content: Content) -> bool:
        """Link a staged file to its final name; return False where the name is in use."""
        assert content.path is not None  # noqa: S101 - prepare() has staged it
        return link_without_replacing(content.path, self._folder + name)

    def has(self, name: str, content: Content, *, is_suspect: bool) -> bool:
        """Return whether the file with this final name has this content."""
        del is_suspect  # nothing is recorded beside a file: it is always read
        return has_content(self._folder + name, content.size_bytes, content.md5)

    def replace_cut(self, name: str, content: Content) -> bool:
        """Replace a file of ours that holds only the beginning of this content."""
        assert content.path is not None  # noqa: S101 - prepare() has staged it
        path = self._folder + name
        if not is_plain_file(path) or not content.begins_with(blocks_of(path)):
            return False
        os.replace(content.path, path)  # noqa: PTH105 - strings
        return True

    def complete_batch(self) -> None:
        """Return when the final names are on the disk, where a folder can be opened for that."""
        if not self.durable or sys.platform == "win32":
            return
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    def _flush(self, paths: Sequence[str]) -> None:
        """Return when these staged files are on the disk.

        After a power cut a final name must not belong to an incomplete file.
        """
        if not self.durable:
            return
        if (
            self.flushes_together
            and len(paths) >= _MANY_FILES
            and flush_filesystem(str(self.staging))
        ):
            return
        for path in paths:
            # opened for writing because Windows flushes nothing else
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _orphans(directory: Path) -> Iterator[Path]:
    """Yield the staging folders of processes that have died."""
    for folder in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        # another download may remove them at the same time
        with suppress(OSError):
            if not folder.is_symlink() and _is_orphan(folder):
                yield folder


def _is_orphan(folder: Path) -> bool:
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
