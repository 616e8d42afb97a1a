"""What the file system offers: links that replace nothing, locks, flushes, checks of content."""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH104, PTH108

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The folder for what is recorded beside the files, in the folder of the files.
STATE_FOLDER = ".regards"

_BLOCK_BYTES = 1 << 20
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
#: The kernel or the file system does not have this call.
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


def make_state_folder(folder: Path) -> None:
    """Make the folder for the records beside the files of an order."""
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


def write_new(path: str, data: bytes) -> None:
    """Write a file that was not there."""
    descriptor = os.open(path, NEW_FILE, 0o666)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def link_without_replacing(source: str, target: str) -> bool:
    """Move a file to its final name; return False, and do nothing, where *target* exists."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in UNSUPPORTED:
            raise
        # vfat, exFAT and some network file systems have no links. Between this check and the
        # rename another program could make the file; there is no call without that gap.
        if os.path.lexists(target):
            return False
        os.rename(source, target)
        return True
    os.unlink(source)
    return True


def blocks_of(path: str) -> Iterator[bytes]:
    """Yield the content of a file."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a string
        while block := file.read(_BLOCK_BYTES):
            yield block


def file_md5(path: str) -> str:
    """Return the MD5 of a file, in hexadecimal."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a string
        return hashlib.file_digest(file, _md5).hexdigest()


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def size_of(path: str) -> tuple[int | None, bool]:
    """Return the size of a file, None where there is none, and whether it is a plain file.

    A link to a file is none.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return None, False
    return found.st_size, stat.S_ISREG(found.st_mode)


def has_content(path: str, size_bytes: int, md5: str) -> bool:
    """Return whether a plain file has this size and MD5; a link to such a file does not count."""
    try:
        return size_of(path) == (size_bytes, True) and file_md5(path) == md5
    except OSError:  # it cannot be read, or was removed meanwhile
        return False


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
    """Return whether a process of this computer is running, also one of another user."""
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


def flush(path: str, flags: int) -> None:
    """Return when a file or a folder, opened with these flags, is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_filesystem(folder: str) -> bool:
    """Flush the Linux file system of a folder; return False where it refuses."""
    import ctypes  # imported here: only this calls a C library

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return bool(ctypes.CDLL(None).syncfs(descriptor) == 0)
    finally:
        os.close(descriptor)
