"""What is to be fetched, and by which way: decided from the manifest and the records. Pure."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Literal, NamedTuple

from regards_nb.download.table import Files, Mark

if TYPE_CHECKING:
    from collections.abc import Container

    from regards_nb.download.table import FileTable
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
    wanted: Files
    #: Recorded earlier, not here, and no longer in the manifest: they can be had one by one.
    repairs: Files
    #: Both of these, by file id: all that has to come.
    missing: Files
    #: Here already, but the server does not know: it keeps waiting for their download.
    unreleased: Files

    @property
    def bytes_total(self) -> int | None:
        """What that has together; None where a size is not known."""
        sizes = self.missing.sizes
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def known_bytes(self) -> int:
        """What that has at least."""
        return sum(size or 0 for size in self.missing.sizes)


def make_plan(known: FileTable, *, given_up: Container[int] = ()) -> Plan:
    """Compare the manifest with what was recorded.

    Parameters
    ----------
    known : FileTable
        The files of the order; those of the manifest are marked as listed.
    given_up : container of int
        Ids of files that are not to be repaired.
    """
    wanted, repairs, missing, unreleased = (array("q") for _ in range(4))
    ids = known.ids
    here, listed = known.are_in_place(ids), known.are_marked(Mark.LISTED, ids)
    for file_id, is_here, is_listed in zip(ids, here, listed, strict=True):
        if is_here:
            if is_listed:
                unreleased.append(file_id)
        elif is_listed or file_id not in given_up:
            (wanted if is_listed else repairs).append(file_id)
            missing.append(file_id)
    return Plan(*(Files(known, some) for some in (wanted, repairs, missing, unreleased)))


def is_external(record: FileRecord) -> bool:
    """Whether only a zip makes the server count this file as downloaded (protocol.md 1.5)."""
    return record.size_bytes is None


def has_external(files: Files) -> bool:
    """Whether any of these files is external."""
    return None in files.sizes


def takes_zip(files: Files, way: Way) -> bool:
    """Whether these files of a manifest are fetched as a zip."""
    if not files:
        return False
    if way != "auto":
        return way == "zip"
    if has_external(files):
        return True
    sizes = [size or 0 for size in files.sizes]
    if max(sizes) > _MAX_ZIP_FILE_BYTES:
        return False
    return len(sizes) > _FEW_FILES or sum(sizes) < _LARGE_BYTES * len(sizes)


def are_tiny(files: Files) -> bool:
    """Whether there are many files and so small that changing threads costs more than it gains."""
    sizes = files.sizes
    known = [size for size in sizes if size is not None]
    return _MANY_TINY <= len(sizes) == len(known) and sum(known) < _TINY_BYTES * len(known)
