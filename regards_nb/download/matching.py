"""Which file of the manifest is this? By name and MD5, never by position (protocol.md 1.3). Pure.

The server renames homonyms (``a (1).nc``), and a file may really have such a name; it writes a
file that the order holds twice only once. So a name only proposes, and the MD5 decides.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.names import unnumbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from regards_nb.files import FileRecord


class Verdict(Enum):
    """What the content of an entry proves."""

    #: It is the file: MD5 as in the manifest.
    VERIFIED = auto()
    #: The manifest has no MD5; the size, if known, is right. It is the file if the zip is sound.
    PLAUSIBLE = auto()
    #: It has the name of a file and not its content.
    WRONG = auto()
    #: No file of the manifest has such a name.
    UNKNOWN = auto()


class Match(NamedTuple):
    """What an entry is."""

    verdict: Verdict
    #: VERIFIED, PLAUSIBLE: which wanted files it is. WRONG: which it may have been meant to be.
    records: Sequence[FileRecord]


class Manifest:
    """The files that are expected, and which of them were found.

    Parameters
    ----------
    records : iterable of FileRecord
        The files of the manifest.
    """

    def __init__(self, records: Iterable[FileRecord]) -> None:
        # tuples: most names belong to one file, and there may be very many
        self._by_name: dict[str, tuple[FileRecord, ...]] = {}
        self._open: dict[int, FileRecord] = {}
        self._length = 0
        self.add(records)

    def __len__(self) -> int:
        return self._length

    @property
    def file_ids(self) -> set[int]:
        """The ids of all files, found or not."""
        return {record.file_id for records in self._by_name.values() for record in records}

    def add(self, records: Iterable[FileRecord]) -> None:
        """Expect more files."""
        for record in records:
            form = entry_form(record.name)
            self._by_name[form] = (*self._by_name.get(form, ()), record)
            self._open[record.file_id] = record
            self._length += 1

    @property
    def open(self) -> list[FileRecord]:
        """The files that were not found yet, by file id."""
        return [self._open[file_id] for file_id in sorted(self._open)]

    def close(self, records: Iterable[FileRecord]) -> None:
        """Note files that are there already, however they came."""
        for record in records:
            self._open.pop(record.file_id, None)

    def limit_bytes(self, entry: str) -> int | None:
        """Return how many bytes an entry can have at most; None if nobody knows."""
        sizes = [record.size_bytes for record in self.named(entry)]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    def match(self, entry: str, size_bytes: int, md5: str) -> Match:
        """Find out what an entry is, and note what was found for certain."""
        namesakes = self._by_name.get(entry, ())
        if len(namesakes) == 1 and namesakes[0].md5 == md5:
            # nearly always, and perhaps very often
            new = self._open.pop(namesakes[0].file_id, None) is not None
            return Match(Verdict.VERIFIED, namesakes if new else ())
        namesakes = self.named(entry)
        exact = [record for record in namesakes if record.md5 == md5]
        if exact:
            wanted = self._open_ones(exact)
            # of several rows with this name and content the server sends one entry
            same = [record for record in wanted if record.name == wanted[0].name]
            self.close(same)
            return Match(Verdict.VERIFIED, same)
        plausible = [r for r in self._open_ones(namesakes) if _may_be(r, size_bytes)][:1]
        if plausible:
            self.close(plausible)
            return Match(Verdict.PLAUSIBLE, plausible)
        return Match(Verdict.WRONG if namesakes else Verdict.UNKNOWN, namesakes)

    def match_content(self, md5: str) -> FileRecord | None:
        """Find a file by its MD5 alone: what is left in the end may have lost its name."""
        for record in self._open.values():
            if record.md5 == md5:
                self.close([record])
                return record
        return None

    def reopen(self, records: Iterable[FileRecord]) -> None:
        """Note that files were not found after all."""
        self._open.update((record.file_id, record) for record in records)

    def named(self, entry: str) -> tuple[FileRecord, ...]:
        """Return the files that the server may have put under this entry name."""
        found = self._by_name.get(entry, ())
        original = unnumbered(entry)
        return found if original == entry else found + self._by_name.get(original, ())

    def _open_ones(self, records: Iterable[FileRecord]) -> list[FileRecord]:
        return [record for record in records if record.file_id in self._open]


def entry_form(name: str) -> str:
    r"""Return the entry name that the server gives a file (protocol.md 1.3).

    Examples
    --------
    >>> entry_form("a\\b.nc"), entry_form("a/b\\c.nc")
    ('a/b.nc', 'a/b\\c.nc')
    """
    return name if "/" in name else name.replace("\\", "/")


def _may_be(record: FileRecord, size_bytes: int) -> bool:
    return record.md5 is None and record.size_bytes in (None, size_bytes)
