"""The files of a folder, and system calls: links that replace nothing, locks, flushes."""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH103, PTH104, PTH108

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.errors import DownloadError, WorkspaceError
from regards_nb.waits import is_stopped

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: The folder for what is recorded beside the files, in the folder of the files.
STATE_FOLDER = ".regards"

_BLOCK_BYTES = 1 << 20
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
#: The kernel or the file system does not have this call.
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


class FolderFiles:
    """The files of a folder on a disk. Safe in any thread. `BucketFiles` does the same."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def join(self, name: str) -> str:
        """Return the path of a file."""
        return f"{self._folder}{os.sep}{name}"

    def size_of(self, name: str) -> tuple[int | None, bool]:
        """Return the size of a file, None where there is none, and whether it is a plain file.

        A link to a file is none.
        """
        try:
            found = os.lstat(self.join(name))
        except OSError:
            return None, False
        return found.st_size, stat.S_ISREG(found.st_mode)

    def has(self, name: str, size_bytes: int, md5: str, *, reads: bool) -> bool:
        """Return whether a plain file has this size and MD5; a link to one does not count."""
        del reads  # no MD5 is recorded beside a file: it is always read
        try:
            return self.size_of(name) == (size_bytes, True) and md5_of(self.blocks(name)) == md5
        except OSError:  # it cannot be read, or was removed meanwhile
            return False

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file; DownloadError: the download was stopped meanwhile."""
        path = self.join(name)
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a string
            while block := file.read(_BLOCK_BYTES):
                if is_stopped():
                    raise DownloadError(f"the download was stopped while {path} was read")
                yield block

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None where there is none."""
        try:
            return b"".join(self.blocks(name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create_small(self, name: str, data: bytes) -> bool:
        """Create a file in one step; return False, and do nothing, where it exists."""
        self._make_state_folder()
        draft = self.join(f"{name}.{secrets.token_hex(6)}")
        write_new(draft, data)
        if link_without_replacing(draft, self.join(name)):
            return True
        os.unlink(draft)
        return False

    def lines(self, name: str) -> Sequence[bytes]:
        """Return the lines that were added under a name."""
        return (self.read(f"{name}.jsonl") or b"").splitlines()

    def add_lines(self, name: str, lines: bytes, *, durable: bool) -> None:
        """Write lines at the end of a file; *durable*: they are on the disk on return."""
        path = self.join(f"{name}.jsonl")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self._make_state_folder()
            descriptor = os.open(path, flags, 0o666)
            try:
                # the line end comes first: it closes a line that a killed process left open
                write_all(descriptor, b"\n" + lines)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise WorkspaceError(f"cannot write to {path}: {exc.strerror}") from exc

    def _make_state_folder(self) -> None:
        """Make the folder for the log, the markers and the kept zips beside the files."""
        state = self.join(STATE_FOLDER)
        if not os.path.exists(state):  # noqa: PTH110 - a string
            os.makedirs(state, exist_ok=True)
            # the history of one person's downloads does not belong into a repository
            Path(state, ".gitignore").write_text("*\n", encoding="utf-8")


def md5_of(blocks: Iterable[bytes]) -> str:
    """Return the MD5 of content."""
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all bytes, however many the system takes at a time."""
    view = memoryview(data)
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
