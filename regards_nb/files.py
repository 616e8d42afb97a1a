"""One file of an order, as the server lists it and as it is in the workspace. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FileState(StrEnum):
    """How far one file of an order has come on this side."""

    #: In the manifest; not fetched yet.
    LISTED = "LISTED"
    #: In the workspace under its final name, size and checksum as in the manifest.
    VERIFIED = "VERIFIED"
    #: In the workspace; the manifest gives no checksum, so only size and CRC were checked.
    UNVERIFIED = "UNVERIFIED"
    #: Could not be had; ``error`` says why.
    FAILED = "FAILED"

    @property
    def is_here(self) -> bool:
        """Whether a file in this state is in the workspace."""
        return self in _HERE


_HERE = frozenset({FileState.VERIFIED, FileState.UNVERIFIED})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of an order: what the manifest says (protocol.md 1.4), and where it is now."""

    order_id: int
    #: The server's id: the way to fetch the file alone, also after the zip (protocol.md 1.0, 7).
    file_id: int
    name: str
    size_bytes: int | None = None
    md5: str | None = None
    product_id: str | None = None
    #: Absolute path under its final name, once it is there.
    path: str | None = None
    state: FileState = FileState.LISTED
    error: str | None = None

    @property
    def in_place(self) -> bool:
        """Whether the file is where its path says."""
        return self.state.is_here and self.path is not None
