"""The folder that files are downloaded to, and the staging folder in it for unfinished files.

A file gets its final name in one way only: write it in the staging folder, flush it, link it to
its final name without replacing anything, unlink the staged name. The staging folder,
``.regards-<order>-<random>.part``, is beside the final names and so on the same file system. A
later download removes it if the process that made it has died.
"""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH104, PTH108

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import json
import os
import secrets
import shutil
import socket
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from regards_nb.download.names import safe_name
from regards_nb.errors import WorkspaceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The folder for what is recorded beside the files, in the folder of the files.
STATE_FOLDER = ".regards"

_PREFIX, _SUFFIX = ".regards-", ".part"
_OWNER = "owner.json"
#: A process of another computer cannot be looked up: its staging folder is kept for so long.
_FOREIGN_AGE_S = 24 * 3600.0

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: The kernel or the file system does not have this call.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})
#: From so many files on, one flush of the whole file system takes less time than one for each.
_MANY_FILES = 32

_libc = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
_syncfs = getattr(_libc, "syncfs", None)


#: syncfs flushes the files of these kinds. FUSE forwards no syncfs to most of its file systems
#: (sshfs, rclone): files under final names were incomplete there after a power cut.
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "bcachefs", "tmpfs", "overlay"}
)


class Workspace:
    """One folder, for the time of one download into it. Safe in any thread.

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
        self.durable = durable
        name = f"{_PREFIX}{order_id}-{secrets.token_hex(6)}{_SUFFIX}"
        self.staging = self.directory / name
        self._staged_prefix = f"{self.staging}{os.sep}"
        self._numbers = itertools.count(1)
        with self.errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            #: Whether one call flushes all files of the file system.
            self.flushes_together = file_system_of(self.directory, self.mounts) in _LOCAL
            _remove_orphans(self.directory)
            self.staging.mkdir()
            self._owner = self._write_owner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._owner)
        shutil.rmtree(self.staging, ignore_errors=True)

    def require_space(self, size_bytes: int) -> None:
        """Make sure that so many bytes and two per cent more fit.

        Raises
        ------
        WorkspaceError
            They do not.
        """
        with self.errors():
            free_bytes = shutil.disk_usage(self.directory).free
        needed_bytes = size_bytes + size_bytes // 50
        if needed_bytes > free_bytes:
            raise WorkspaceError(
                f"{self.directory} is too full: {needed_bytes:,} bytes are needed, "
                f"{free_bytes:,} are free. Nothing was fetched: make room, or give another "
                "directory"
            )

    def require_reserve(self) -> None:
        """Make sure that a file of unknown size leaves one per cent of the disk free.

        Raises
        ------
        WorkspaceError
            It does not.
        """
        with self.errors():
            usage = shutil.disk_usage(self.directory)
            if usage.free < usage.total // 100:
                raise OSError(errno.ENOSPC, "a file of unknown size would fill the disk")

    def new_staged(self) -> tuple[int, str]:
        """Make an empty file in the staging folder; return its descriptor and its path."""
        path = f"{self._staged_prefix}{next(self._numbers)}"
        return os.open(path, _NEW_FILE, 0o666), path

    def stage_existing(self, path: str) -> str:
        """Link a file of another folder into the staging folder, or copy it; return its path."""
        staged = f"{self._staged_prefix}{next(self._numbers)}"
        try:
            os.link(path, staged)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, staged)
        return staged

    def flush(self, paths: Sequence[str]) -> None:
        """Return when these staged files are on the disk.

        After a power cut a final name must not belong to an incomplete file.
        """
        if not self.durable:
            return
        if (
            self.flushes_together
            and len(paths) >= _MANY_FILES
            and _flush_filesystem(str(self.staging))
        ):
            return
        for path in paths:
            # opened for writing because Windows flushes nothing else
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def flush_names(self) -> None:
        """Return when the final names are on the disk, where a folder can be opened for that."""
        if not self.durable or sys.platform == "win32":
            return
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as exc:
            if exc.errno not in _UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn an OSError into a WorkspaceError that says what to do."""
        try:
            yield
        except OSError as exc:
            raise self._explained(exc) from exc

    def _write_owner(self) -> int:
        """Write which process made the staging folder, and keep the file locked."""
        descriptor = os.open(self.staging / _OWNER, _NEW_FILE, 0o666)
        lock_if_free(descriptor)
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        os.write(descriptor, json.dumps(owner).encode())
        return descriptor

    def _explained(self, exc: OSError) -> WorkspaceError:
        reason = exc.strerror or str(exc)
        if exc.errno not in _FULL:
            return WorkspaceError(f"cannot write to {self.directory}: {reason}")
        free = "unknown"
        with suppress(OSError):
            free = f"{shutil.disk_usage(self.directory).free:,} bytes"
        return WorkspaceError(
            f"{self.directory} is full ({reason}; free: {free}). Verified files stay: make room "
            "and download again, only the missing files are fetched"
        )


def archive_of(base_url: str, tenant: str) -> str:
    """Return what tells two archives or two tenants apart.

    The port counts for other computers only: a simulator gets another one at each start.
    """
    parts = urlsplit(base_url)
    is_here = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    return f"{parts.hostname if is_here else parts.netloc}{parts.path.rstrip('/')} {tenant}"


def order_folder(workspace: Path, order_id: int, archive: str) -> Path:
    """Return the folder of an order in a workspace that several archives may share.

    It is ``<workspace>/<order id>``, or ``<workspace>/<order id>-<tenant>`` if that folder has the
    order of another archive. A small file in ``<workspace>/.regards`` says whose each folder is.
    """
    tenant = safe_name(archive.rpartition(" ")[2])
    names = itertools.chain(
        [f"{order_id}", f"{order_id}-{tenant}"],
        (f"{order_id}-{tenant}-{number}" for number in itertools.count(2)),
    )
    for name in names:
        if _claim(workspace, f"{name}.archive", archive):
            return workspace / name
    raise AssertionError  # the names never end


def _claim(workspace: Path, name: str, archive: str) -> bool:
    """Return whether a folder is this archive's, after claiming it if it is nobody's."""
    marker = workspace / STATE_FOLDER / name
    with suppress(FileNotFoundError):
        return marker.read_text(encoding="utf-8") == archive
    with suppress(OSError):  # the download itself will say what is wrong with the folder
        make_state_folder(workspace)
        draft = marker.with_name(f"{name}.{secrets.token_hex(6)}")
        draft.write_text(archive, encoding="utf-8")
        if not link_without_replacing(str(draft), str(marker)):
            draft.unlink()
            return _claim(workspace, name, archive)
    return True


def make_state_folder(folder: Path) -> None:
    """Make the folder for what is recorded beside the files of an order."""
    state = folder / STATE_FOLDER
    if not state.exists():
        state.mkdir(parents=True, exist_ok=True)
        # the history of one person's downloads does not belong into a repository
        (state / ".gitignore").write_text("*\n", encoding="utf-8")


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all bytes, however many the system takes at a time."""
    written = os.write(descriptor, data)
    if written < len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[os.write(descriptor, view) :]


def link_without_replacing(source: str, target: str) -> bool:
    """Move a file to its final name; return False, and do nothing, where *target* exists.

    Raises
    ------
    OSError
        It failed for another reason.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise
        # vfat, exFAT and some network file systems have no links. Between this check and the
        # rename another program could make the file; there is no call without that gap.
        if os.path.lexists(target):
            return False
        os.rename(source, target)
        return True
    os.unlink(source)
    return True


def file_md5(path: str) -> str:
    """Return the MD5 of a file, in hexadecimal."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a string
        return hashlib.file_digest(file, _md5).hexdigest()


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def has_content(path: str, size_bytes: int, md5: str) -> bool:
    """Return whether a plain file has this size and MD5; a link to such a file does not count."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        descriptor = os.open(path, flags)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if os.fstat(descriptor).st_size != size_bytes:
            return False
        return hashlib.file_digest(file, _md5).hexdigest() == md5


def lock_if_free(descriptor: int) -> bool:
    """Lock an open file until it is closed; return False where another process has locked it.

    Some network file systems grant every lock, some cannot lock: True is a hint only.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # Windows has no fcntl
        return True
    return True


def is_alive(pid: int) -> bool:
    """Return whether a process of this computer is running, whoever owns it."""
    if sys.platform == "win32":
        return True  # os.kill would end the process; its folder is removed when it is old
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def file_system_of(folder: Path, mounts: Path) -> str:
    """Return the kind of file system of a folder; empty where the system has no list of mounts."""
    try:
        fields = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    path = folder.resolve()
    # the innermost mount point above the path, and there the last mount; a space is \\040
    points = ((Path(field[1].replace("\\040", " ")), field[2]) for field in fields)
    above = [(len(point.parts), at, kind) for at, (point, kind) in enumerate(points)
             if path.is_relative_to(point)]  # fmt: skip
    return max(above)[2] if above else ""


def _flush_filesystem(folder: str) -> bool:
    """Flush the file system of a folder; return False where there is no such call."""
    if _syncfs is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return bool(_syncfs(descriptor) == 0)
    finally:
        os.close(descriptor)


def _remove_orphans(directory: Path) -> None:
    """Remove the staging folders of processes that have died."""
    for folder in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        # another download may remove them at the same time
        with suppress(OSError):
            if not folder.is_symlink() and _is_orphan(folder):
                shutil.rmtree(folder, ignore_errors=True)


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
