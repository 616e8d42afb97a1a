"""The folder that is downloaded to, and the hidden one in it for what is not finished.

Everything unfinished is in one folder per download, ``.regards-<order>-<random>.part``, beside
the final names and so on the same file system. Who comes later removes it if its owner has died.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from regards_nb.download.syscalls import begin_flush, is_alive, lock_if_free, name_unnamed
from regards_nb.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PREFIX, _SUFFIX = ".regards-", ".part"
_OWNER = "owner.json"
#: A staging folder whose owner cannot be asked, being of another computer, is kept for so long.
_FOREIGN_AGE_S = 24 * 3600.0

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
#: What Linux says where a file system knows no files without a name.
_NO_UNNAMED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Workspace:
    """One folder, for the time of one download into it. Safe in any thread.

    Parameters
    ----------
    directory : pathlib.Path
        Where the files go; made if it is missing.
    order_id : int
        For the name of the staging folder.
    durable : bool
        Whether a file is on the disk before it gets its name.

    Raises
    ------
    WorkspaceError
        It cannot be made or written to: found out by doing it, before anything is fetched.
    """

    def __init__(self, directory: Path, order_id: int, *, durable: bool = True) -> None:
        self.directory = directory.absolute()
        self.durable = durable
        name = f"{_PREFIX}{order_id}-{secrets.token_hex(6)}{_SUFFIX}"
        self.staging = self.directory / name
        self._staged_prefix = f"{self.staging}{os.sep}"
        self._numbers = itertools.count(1)
        self._has_unnamed = hasattr(os, "O_TMPFILE")
        with self.errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            _sweep(self.directory)
            self.staging.mkdir()
            self._owner = self._write_owner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._owner)
        shutil.rmtree(self.staging, ignore_errors=True)

    def require_space(self, size_bytes: int) -> None:
        """Make sure that so much more fits, with a little to spare.

        Raises
        ------
        WorkspaceError
            It does not.
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
        """Make sure that a file of unknown size leaves the last hundredth of the disk free.

        Raises
        ------
        WorkspaceError
            It does not.
        """
        with self.errors():
            usage = shutil.disk_usage(self.directory)
            if usage.free < usage.total // 100:
                raise OSError(errno.ENOSPC, "a file of unknown size would take the last of it")

    def new_staged(self) -> tuple[int, str]:
        """Make an empty file for unfinished content; return its descriptor and its path."""
        path = f"{self._staged_prefix}{next(self._numbers)}"
        return os.open(path, _NEW_FILE, 0o666), path

    def new_unnamed(self) -> int | None:
        """Make a file without a name; None where the system or the file system cannot."""
        if not self._has_unnamed:
            return None
        try:
            return os.open(self.directory, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except OSError as exc:
            if exc.errno not in _NO_UNNAMED:
                raise
            self._has_unnamed = False
            return None

    def begin_flush(self, descriptor: int, start: int, end: int) -> None:
        """Let the disk begin with a part of a staged file that will have to be on it."""
        if self.durable:
            begin_flush(descriptor, start, end - start)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the operating system says into something to act upon."""
        try:
            yield
        except OSError as exc:
            raise self._explained(exc) from exc

    def _write_owner(self) -> int:
        """Say whose folder this is, and keep that file locked; return its descriptor.

        It is made without a name first: so it is known whether that works here.
        """
        path = self.staging / _OWNER
        descriptor = self.new_unnamed()
        if descriptor is not None:
            try:
                name_unnamed(descriptor, str(path))
            except OSError:
                self._has_unnamed = False
                os.close(descriptor)
        if not self._has_unnamed or descriptor is None:
            descriptor = os.open(path, _NEW_FILE, 0o666)
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
            "and download again, only what is missing is fetched"
        )


def _sweep(directory: Path) -> None:
    """Remove the staging folders of downloads that died."""
    for folder in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
        # another download may sweep at the same time
        with suppress(OSError):
            if not folder.is_symlink() and _is_orphan(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(folder: Path) -> bool:
    age_s = time.time() - folder.stat().st_mtime
    try:
        owner = json.loads((folder / _OWNER).read_bytes())
        host, pid = owner["host"], int(owner["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        # not written yet, or not by us
        return age_s > _FOREIGN_AGE_S
    if host != socket.gethostname() or is_alive(pid):
        return age_s > _FOREIGN_AGE_S and pid != os.getpid()
    descriptor = os.open(folder / _OWNER, os.O_RDWR)
    try:
        return lock_if_free(descriptor)
    finally:
        os.close(descriptor)
