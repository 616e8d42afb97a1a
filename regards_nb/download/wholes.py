"""One entry of a zip on its way to being whole: in memory while small, else in a staged file."""

# Paths are texts here: for very many files, Path objects are what costs.
# ruff: noqa: PTH108
from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.notice import MAX_NOTICE_BYTES, NOTICE_NAME
from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from regards_nb.download.staging import Workspace

#: Smaller entries never see a staged file before they are checked.
_MAX_HELD_BYTES = 1 << 16
#: An entry may be so much longer than the manifest says before the zip counts as a bomb.
_SLACK_BYTES = 1 << 20
_RESERVE_CHECK_BYTES = 16 << 20
#: The disk begins to take a file in parts of this size, while the rest is still arriving.
_FLUSH_BYTES = 8 << 20


class Whole(NamedTuple):
    """All bytes of one entry, in memory or staged."""

    name: str
    size_bytes: int
    #: Empty where it arrived damaged.
    md5: str
    data: bytes
    #: None while it is in memory only.
    path: str | None

    def staged(self, workspace: Workspace) -> str:
        """Return it as a staged file."""
        if self.path is not None:
            return self.path
        descriptor, path = workspace.new_staged()
        try:
            write_all(descriptor, self.data)
        finally:
            os.close(descriptor)
        return path

    def discard(self) -> None:
        """Remove what is staged of it."""
        _remove(self.path)


def whole_in_memory(name: str, data: bytes) -> Whole:
    """Return an entry that came in one piece."""
    return Whole(name, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), data, None)


def damaged(name: str) -> Whole:
    """Return what stands for an entry that arrived damaged: no content has this MD5."""
    return Whole(name, 0, "", b"", None)


class Growing:
    """An entry that is not whole yet.

    Parameters
    ----------
    name : str
        Its name in the zip.
    limit_bytes : int, optional
        How long it can be at most by the manifest; None if nobody knows.
    workspace : Workspace, optional
        Where it is staged when it grows; None: it is only looked at.
    """

    def __init__(self, name: str, limit_bytes: int | None, workspace: Workspace | None) -> None:
        self.name = name
        self._limit_bytes = limit_bytes
        self._workspace = workspace
        # a notice is read, wherever it goes afterwards
        is_notice = name == NOTICE_NAME
        self._max_held_bytes = MAX_NOTICE_BYTES if is_notice else _MAX_HELD_BYTES
        self._held = bytearray()
        self._digest = hashlib.md5(usedforsecurity=False)
        self._descriptor: int | None = None
        self._path: str | None = None
        self._size_bytes = 0
        self._flushing_bytes = 0
        self._next_check_bytes = _RESERVE_CHECK_BYTES

    def add(self, data: bytes) -> None:
        """Add the next bytes.

        Raises
        ------
        ArchiveError
            It has become much longer than the manifest says.
        WorkspaceError
            It cannot be written.
        """
        self._size_bytes += len(data)
        self._refuse_bomb()
        self._digest.update(data)
        if self._descriptor is None and self._size_bytes <= self._max_held_bytes:
            self._held += data
            return
        if self._workspace is None:
            return
        with self._workspace.errors():
            if self._descriptor is None:
                self._descriptor, self._path = self._workspace.new_staged()
                write_all(self._descriptor, self._held)
                self._held.clear()
            write_all(self._descriptor, data)
        if self._size_bytes - self._flushing_bytes >= _FLUSH_BYTES:
            self._workspace.begin_flush(self._descriptor, self._flushing_bytes, self._size_bytes)
            self._flushing_bytes = self._size_bytes

    def end(self) -> Whole:
        """Return it as a whole."""
        self.close()
        return Whole(
            self.name, self._size_bytes, self._digest.hexdigest(), bytes(self._held), self._path
        )

    def discard(self) -> None:
        """Forget it, with what is staged of it."""
        self.close()
        _remove(self._path)

    def close(self) -> None:
        """Close its staged file, whole or not."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _refuse_bomb(self) -> None:
        if self._limit_bytes is None:
            if self._size_bytes >= self._next_check_bytes:
                self._next_check_bytes += _RESERVE_CHECK_BYTES
                if self._workspace is not None:
                    self._workspace.require_reserve()
        elif self._size_bytes > self._limit_bytes + _SLACK_BYTES:
            raise ArchiveError(
                f"{self.name!r} is longer than the {self._limit_bytes} bytes that the manifest "
                "gives: it was not read further"
            )


def _remove(path: str | None) -> None:
    if path is not None:
        with suppress(FileNotFoundError):
            os.unlink(path)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all bytes, however many the system takes at a time."""
    written = os.write(descriptor, data)
    if written < len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[os.write(descriptor, view) :]
