"""What operating systems offer and Python does not, each with a way to do without it."""

# Paths are texts here: for very many files, Path objects are what costs.
# ruff: noqa: PTH104, PTH108
from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1  # Linux
_RENAME_EXCL = 4  # macOS
_SYNC_FILE_RANGE_WRITE = 2

#: The kernel or the file system does not know the call; the next best way is taken.
_UNKNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})

_libc = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)


def _find(name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(_libc, name, None)
    return found


_renameat2 = _find("renameat2")
_renamex_np = _find("renamex_np")
_syncfs = _find("syncfs")
_sync_file_range = _find("sync_file_range")


def rename_without_replacing(source: str, target: str) -> bool:
    """Rename within one file system; False, and nothing done, where *target* exists.

    Raises
    ------
    OSError
        It failed for another reason.
    """
    if sys.platform == "win32":  # there a rename never replaces
        return _rename_on_windows(source, target)
    failure = _rename_exclusively(os.fsencode(source), os.fsencode(target))
    if failure == 0:
        return True
    if failure == errno.EEXIST:
        return False
    if failure not in _UNKNOWN:
        raise OSError(failure, os.strerror(failure), target)
    return _link_and_unlink(source, target)


def _rename_exclusively(source: bytes, target: bytes) -> int:
    """Rename by one system call that refuses to replace; return the error number."""
    if _renameat2 is not None:
        failed = _renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
    elif _renamex_np is not None:
        failed = _renamex_np(source, target, _RENAME_EXCL)
    else:
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0


def _link_and_unlink(source: str, target: str) -> bool:
    """Give the file its second name, which fails where that exists, and take the first away."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _UNKNOWN:
            raise
        # Neither call exists here (vfat, some network shares): what remains has a gap between
        # the look and the rename, too short for a person and only open to another download.
        if os.path.lexists(target):
            return False
        os.rename(source, target)
        return True
    os.unlink(source)
    return True


def _rename_on_windows(source: str, target: str) -> bool:
    try:
        os.rename(source, target)
    except FileExistsError:
        return False
    return True


def name_unnamed(descriptor: int, path: str) -> bool:
    """Give a file that was made without a name its first; False where something is there.

    Raises
    ------
    OSError
        It failed for another reason.
    """
    try:
        # With a descriptor given, though it is not looked at, Python follows the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
    except FileExistsError:
        return False
    return True


def flush_filesystem(descriptor: int) -> bool:
    """Write everything of one file system to its disk; False where that call does not exist."""
    return _syncfs is not None and _syncfs(descriptor) == 0


def begin_flush(descriptor: int, start: int, length: int) -> None:
    """Let the disk begin to take a part of a file, so that a later flush has less to wait for."""
    if _sync_file_range is not None:
        # only a hint: whatever comes of it, the flush in the end is what counts
        _sync_file_range(
            descriptor, ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE
        )


def flush_directory(path: str) -> None:
    """Write the names in a directory to disk, where a directory can be opened for that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)


def lock_if_free(descriptor: int) -> bool:
    """Lock an open file until it is closed; False where another process has it locked.

    Some network file systems say yes to everybody, some cannot lock at all: a yes is a hint only.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # Windows has no fcntl
        return True
    return True


def is_alive(pid: int) -> bool:
    """Whether a process of this computer lives, whoever owns it."""
    if sys.platform == "win32":
        return True  # os.kill would end it; its folder is left until it is old
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
