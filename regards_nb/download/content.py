"""The bytes of one file on their way to a final name: in memory while small, else staged."""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH108

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from regards_nb.download.disk import write_all
from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from regards_nb.files import FileRecord, FileState

#: Content up to this size stays in memory until it is verified.
MAX_HELD_BYTES = 1 << 16
#: An entry may be so much longer than the manifest says before the zip counts as a bomb.
_SLACK_BYTES = 1 << 20
_RESERVE_CHECK_BYTES = 16 << 20


class Staging(Protocol):
    """Where content is staged: the workspace."""

    def new_staged(self) -> tuple[int, str]:
        """Make an empty file in the staging folder; return its descriptor and its path."""

    def require_reserve(self) -> None:
        """Make sure that a file of unknown size leaves one per cent of the disk free."""

    def errors(self) -> AbstractContextManager[None]:
        """Turn an OSError into a WorkspaceError that says what to do."""


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

    @classmethod
    def damaged(cls, name: str) -> Content:
        """Return a placeholder for an entry that arrived damaged: it matches no MD5."""
        return cls(name, 0, "", b"", None)

    def staged(self, staging: Staging) -> Content:
        """Return the content as a staged file, after writing it where it is in memory."""
        if self.path is not None:
            return self
        descriptor, path = staging.new_staged()
        try:
            write_all(descriptor, self.data)
        finally:
            os.close(descriptor)
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
        _remove(self.path)


class VerifiedFile(NamedTuple):
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

    Parameters
    ----------
    name : str
        Its name in the zip or the manifest.
    limit_bytes : int, optional
        The largest size that the manifest allows; None if that is not known.
    staging : Staging, optional
        Where larger content is staged; None: content is only measured.
    max_held_bytes : int
        Content up to this size stays in memory.
    """

    def __init__(
        self,
        name: str,
        limit_bytes: int | None,
        staging: Staging | None,
        *,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.name = name
        self._limit_bytes = limit_bytes
        self._staging = staging
        self._max_held_bytes = max_held_bytes
        self._held = bytearray()
        self._digest = hashlib.md5(usedforsecurity=False)
        self._descriptor: int | None = None
        self._path: str | None = None
        self._size_bytes = 0
        self._next_check_bytes = _RESERVE_CHECK_BYTES

    def add(self, data: bytes) -> None:
        """Add the next bytes.

        Raises
        ------
        ArchiveError
            The content is much longer than the manifest says.
        WorkspaceError
            It cannot be written.
        """
        self._size_bytes += len(data)
        self._check_size()
        self._digest.update(data)
        if self._descriptor is None and self._size_bytes <= self._max_held_bytes:
            self._held += data
            return
        if self._staging is None:
            return
        with self._staging.errors():
            if self._descriptor is None:
                self._descriptor, self._path = self._staging.new_staged()
                write_all(self._descriptor, self._held)
                self._held.clear()
            write_all(self._descriptor, data)

    def finish(self) -> Content:
        """Return the complete content."""
        self._close()
        return Content(
            self.name, self._size_bytes, self._digest.hexdigest(), bytes(self._held), self._path
        )

    def discard(self) -> None:
        """Forget the content and remove its staged file."""
        self._close()
        _remove(self._path)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _check_size(self) -> None:
        if self._limit_bytes is None:
            if self._size_bytes >= self._next_check_bytes:
                self._next_check_bytes += _RESERVE_CHECK_BYTES
                if self._staging is not None:
                    self._staging.require_reserve()
        elif self._size_bytes > self._limit_bytes + _SLACK_BYTES:
            raise ArchiveError(
                f"{self.name!r} is longer than the {self._limit_bytes} bytes that the manifest "
                "states: it was not read further"
            )


def _remove(path: str | None) -> None:
    if path is not None:
        with suppress(FileNotFoundError):
            os.unlink(path)
