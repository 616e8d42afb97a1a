"""The record of one file of an order: what the manifest says, and where the file is. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

#: The start of the URL of a file in a bucket.
SCHEME = "s3://"


class FileState(StrEnum):
    """The state of one file of an order in the workspace."""

    #: In the manifest; not downloaded yet.
    LISTED = "LISTED"
    #: In the workspace under its final name, with the MD5 of the manifest.
    VERIFIED = "VERIFIED"
    #: In the workspace. The manifest gives no checksum, so only size and CRC were checked.
    UNVERIFIED = "UNVERIFIED"
    #: The download failed; ``error`` says why.
    FAILED = "FAILED"
    #: It was in the workspace, and is not any more. Shown by ``tracker.files``, never recorded.
    REMOVED = "REMOVED"


_HERE = frozenset({FileState.VERIFIED, FileState.UNVERIFIED})


class FileRecord(NamedTuple):
    """One file of an order: its manifest entry (protocol.md 1.4) and its path."""

    order_id: int
    #: The id on the server. It can fetch the file alone, also after the zip (protocol.md 1.0, 7).
    file_id: int
    name: str
    size_bytes: int | None = None
    md5: str | None = None
    product_id: str | None = None
    #: The path with the final name, as soon as the file is there: absolute, except in a journal.
    path: str | None = None
    state: FileState = FileState.LISTED
    error: str | None = None
    #: When a download gave the file its final name (UTC, microseconds since 1970). None: the file
    #: was there already, or is not there.
    fetched_at_us: int | None = None

    @property
    def in_place(self) -> bool:
        """Whether the file is where its path says."""
        return self.path is not None and self.state in _HERE


def is_url(path: str) -> bool:
    """Return whether a path is the URL of a file in a bucket.

    >>> is_url("s3://bucket/orders/12/a.nc"), is_url("/data/orders/12/a.nc")
    (True, False)
    """
    return path.startswith(SCHEME)
