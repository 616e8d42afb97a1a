"""Which file of the manifest is this? By name and MD5, never by position (protocol.md 1.3). Pure.

The server renames homonyms (``a (1).nc``), and a file may really have such a name; it writes a
file that the order holds twice only once. So a name only proposes, and the MD5 decides.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from enum import Enum, auto
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.names import unnumbered
from regards_nb.download.table import Files, Mark

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
    files : Files
        The files of the manifest.
    """

    def __init__(self, files: Files) -> None:
        self._table = files.table
        # most names belong to one file, and there may be very many: only several are a tuple
        self._by_name: dict[str, int | tuple[int, ...]] = {}
        self._table.unmark(Mark.OPEN, self._table.ids)
        self._length = 0
        self.add(files)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, record: FileRecord) -> bool:
        """Whether a file is one of these, found or not."""
        return record.file_id in self._ids(entry_form(record.name))

    def add(self, files: Files) -> None:
        """Expect more files, of the same table."""
        for file_id, name in zip(files.ids, files.names, strict=True):
            form = entry_form(name)
            namesakes = self._ids(form)
            self._by_name[form] = (*namesakes, file_id) if namesakes else file_id
        self._table.mark(Mark.OPEN, files.ids)
        self._length += len(files)

    @property
    def open(self) -> Files:
        """The files that were not found yet, by file id."""
        return Files(self._table, self._table.marked(Mark.OPEN))

    def close(self, records: Iterable[FileRecord]) -> None:
        """Note files that are there already, however they came."""
        self._table.unmark(Mark.OPEN, _ids_of(records))

    def limit_bytes(self, entry: str) -> int | None:
        """Return how many bytes an entry can have at most; None if nobody knows."""
        sizes = [record.size_bytes for record in self.named(entry)]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    def match(self, entry: str, size_bytes: int, md5: str) -> Match:
        """Find out what an entry is, and note what was found for certain."""
        file_id = self._by_name.get(entry)
        if isinstance(file_id, int) and (record := self._table[file_id]).md5 == md5:
            # nearly always, and perhaps very often
            is_new = self._table.take_mark(Mark.OPEN, file_id)
            return Match(Verdict.VERIFIED, (record,) if is_new else ())
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

    def match_contents(self, md5s: Sequence[str]) -> list[FileRecord | None]:
        """Find files by their MD5 alone: what is left in the end may have lost its name."""
        wanted = set(md5s)
        found: defaultdict[str | None, list[FileRecord]] = defaultdict(list)
        for record in reversed(self.open if wanted else ()):
            if record.md5 in wanted:
                found[record.md5].append(record)
        matched = [found[md5].pop() if found[md5] else None for md5 in md5s]
        self.close(record for record in matched if record is not None)
        return matched

    def reopen(self, records: Iterable[FileRecord]) -> None:
        """Note that files were not found after all."""
        self._table.mark(Mark.OPEN, _ids_of(records))

    def named(self, entry: str) -> list[FileRecord]:
        """Return the files that the server may have put under this entry name."""
        found, original = self._ids(entry), unnumbered(entry)
        if original != entry:
            found += self._ids(original)
        return [self._table[file_id] for file_id in found]

    def _ids(self, form: str) -> tuple[int, ...]:
        ids = self._by_name.get(form, ())
        return ids if isinstance(ids, tuple) else (ids,)

    def _open_ones(self, records: Sequence[FileRecord]) -> list[FileRecord]:
        return list(compress(records, self._table.are_marked(Mark.OPEN, _ids_of(records))))


def entry_form(name: str) -> str:
    r"""Return the entry name that the server gives a file (protocol.md 1.3).

    Examples
    --------
    >>> entry_form("a\\b.nc"), entry_form("a/b\\c.nc")
    ('a/b.nc', 'a/b\\c.nc')
    """
    return name if "/" in name else name.replace("\\", "/")


def _ids_of(records: Iterable[FileRecord]) -> array[int]:
    return array("q", (record.file_id for record in records))


def _may_be(record: FileRecord, size_bytes: int) -> bool:
    return record.md5 is None and record.size_bytes in (None, size_bytes)
