"""What is to be fetched, and by which way: decided from the manifest and the records. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from regards_nb.download.records import is_in_place

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from regards_nb.files import FileRecord

Way = Literal["auto", "zip", "files"]

#: The server counts in 32 bits: a larger file may fail in the zip (protocol.md 1.5).
_MAX_ZIP_FILE_BYTES = 2 << 30
#: So few files so large: several at a time beat the zip, and one that is cut costs only itself.
_FEW_FILES, _LARGE_BYTES = 8, 512 << 20

#: From so many files on, of so few bytes on average.
_MANY_TINY, _TINY_BYTES = 100, 16 << 10


class Plan(NamedTuple):
    """The files of an order, by what is to be done with them."""

    #: Available on the server, not here yet.
    wanted: list[FileRecord]
    #: Recorded earlier, not here, and no longer in the manifest: they can be had one by one.
    repairs: list[FileRecord]
    #: Here already, but the server does not know: it keeps waiting for their download.
    unreleased: list[FileRecord]

    @property
    def missing(self) -> list[FileRecord]:
        """All that has to come."""
        return self.wanted + self.repairs

    @property
    def bytes_total(self) -> int | None:
        """What that has together; None where a size is not known."""
        sizes = [record.size_bytes for record in self.missing]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def known_bytes(self) -> int:
        """What that has at least."""
        return sum(record.size_bytes or 0 for record in self.missing)


def make_plan(
    listed: Iterable[FileRecord],
    known: Mapping[int, FileRecord],
    *,
    given_up: Container[int] = (),
) -> Plan:
    """Compare the manifest with what was recorded.

    Parameters
    ----------
    listed : iterable of FileRecord
        The manifest.
    known : mapping of int to FileRecord
        The records of the order, by file id.
    given_up : container of int
        Ids of files that are not to be repaired.
    """
    wanted: list[FileRecord] = []
    unreleased: list[FileRecord] = []
    ids: set[int] = set()
    for row in listed:
        ids.add(row.file_id)
        here = is_in_place(known.get(row.file_id))
        (unreleased if here else wanted).append(row)
    repairs = [
        replace(record, path=None)
        for file_id, record in known.items()
        if file_id not in ids and file_id not in given_up and not is_in_place(record)
    ]
    return Plan(wanted, repairs, unreleased)


def is_external(record: FileRecord) -> bool:
    """Whether only a zip makes the server count this file as downloaded (protocol.md 1.5)."""
    return record.size_bytes is None


def takes_zip(records: Iterable[FileRecord], way: Way) -> bool:
    """Whether these files of a manifest are fetched as a zip."""
    rows = list(records)
    if not rows:
        return False
    if way != "auto":
        return way == "zip"
    sizes = [row.size_bytes for row in rows]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return True
    if max(known) > _MAX_ZIP_FILE_BYTES:
        return False
    return len(rows) > _FEW_FILES or sum(known) < _LARGE_BYTES * len(rows)


def are_tiny(records: Iterable[FileRecord]) -> bool:
    """Whether there are many files and so small that changing threads costs more than it gains."""
    sizes = [record.size_bytes for record in records]
    known = [size for size in sizes if size is not None]
    return _MANY_TINY <= len(sizes) == len(known) and sum(known) < _TINY_BYTES * len(known)
