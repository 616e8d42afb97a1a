r"""Decides by name and MD5 which file a zip entry is, and that one with a wrong MD5 is none. Pure.

A file is recognised by name and MD5, never by position (protocol.md 1.3). The server renames
files of the same name (``a (1).nc``), and a file may really have such a name. It writes a file
that the order holds twice only once. So a name proposes files, and the MD5 decides, or the size
where the manifest has no MD5. Nothing else of a manifest is trusted: a name is no path (`names`).

An entry whose MD5 differs never gets a final name: `pipeline` discards it, `after_zip` fetches the
file alone, and one that differs twice there (`parallel_files`) is FAILED.
"""

from __future__ import annotations

import re
from collections import defaultdict
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.names import unnumbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from regards_nb.files import FileRecord

#: The last entry of a zip that lacks files or holds truncated ones (protocol.md 1.3).
NOTICE_NAME = "NOTICE.txt"
#: A notice names at most the files of an order; a larger entry of that name is data.
MAX_NOTICE_BYTES = 1 << 20

_NOTICE_LINE = re.compile(r"Failed to download file \((.*)\): (.*?)\.?", re.DOTALL)
_NOTICE_START = re.compile(r"^(?=Failed to download file \()", re.MULTILINE)


class MatchKind(Enum):
    """The proof that the content of an entry gives."""

    #: It is the file: it has the MD5 of the manifest.
    VERIFIED = auto()
    #: The manifest has no MD5; the size, if known, is right. It is the file if the zip is sound.
    SIZE_ONLY = auto()
    #: It may be one of several files: they have no MD5 and no distinct sizes.
    AMBIGUOUS = auto()
    #: It has the name of a file and other content.
    WRONG = auto()
    #: No file of the manifest has such a name.
    UNKNOWN = auto()


class Match(NamedTuple):
    """The file of the manifest that an entry is, and the proof."""

    kind: MatchKind
    #: VERIFIED, SIZE_ONLY: the missing files that it is. Else: the files that it may stand for.
    records: Sequence[FileRecord]


class Manifest:
    """The files that are expected, and which of them are still missing."""

    def __init__(self, records: Iterable[FileRecord] = ()) -> None:
        self._by_name: defaultdict[str, list[FileRecord]] = defaultdict(list)
        self._missing: dict[int, FileRecord] = {}
        #: Of all files, found or not.
        self._ids: set[int] = set()
        self.add(records)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, record: FileRecord) -> bool:
        """Whether a file is one of these, found or not."""
        return record.file_id in self._ids

    def add(self, records: Iterable[FileRecord]) -> None:
        """Expect more files."""
        for record in records:
            self._by_name[entry_form(record.name)].append(record)
            self._missing[record.file_id] = record
            self._ids.add(record.file_id)

    @property
    def missing(self) -> list[FileRecord]:
        """The files that were not found yet, by file id."""
        return [self._missing[file_id] for file_id in sorted(self._missing)]

    def close(self, records: Iterable[FileRecord]) -> None:
        """Mark files as found."""
        for record in records:
            self._missing.pop(record.file_id, None)

    def reopen(self, records: Iterable[FileRecord]) -> None:
        """Mark files as missing again."""
        self._missing.update((record.file_id, record) for record in records)

    def limit_bytes(self, entry: str) -> int | None:
        """Return the largest size that an entry can have; None if that is not known."""
        sizes = [record.size_bytes for record in self.named(entry)]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    def match(self, entry: str, size_bytes: int, md5: str) -> Match:
        """Return what an entry is, and mark the files that were found."""
        same_name = self.named(entry)
        exact = [record for record in same_name if record.md5 == md5]
        if exact:
            # of several rows with this name and content the server sends one entry
            wanted = [record for record in exact if record.file_id in self._missing]
            same = [record for record in wanted if record.name == wanted[0].name]
            self.close(same)
            return Match(MatchKind.VERIFIED, same)
        possible = [
            record
            for record in same_name
            if record.file_id in self._missing
            and record.md5 is None
            and record.size_bytes in (None, size_bytes)
        ]
        if len(possible) > 1:
            # Of external files of one name the server sends one, and marks all of them as
            # downloaded: the entry does not tell which one it is.
            return Match(MatchKind.AMBIGUOUS, possible)
        if possible:
            self.close(possible)
            return Match(MatchKind.SIZE_ONLY, possible)
        return Match(MatchKind.WRONG if same_name else MatchKind.UNKNOWN, same_name)

    def match_contents(self, md5s: Sequence[str]) -> list[FileRecord | None]:
        """Find missing files by their MD5 alone, for entries with names that no file has."""
        found: defaultdict[str | None, list[FileRecord]] = defaultdict(list)
        for record in reversed(self.missing if md5s else ()):
            found[record.md5].append(record)
        matched = [found[md5].pop() if found[md5] else None for md5 in md5s]
        self.close(record for record in matched if record is not None)
        return matched

    def named(self, entry: str) -> Sequence[FileRecord]:
        """Return the files that the server may have put under this entry name."""
        found, original = self._by_name.get(entry, []), unnumbered(entry)
        return found if original == entry else [*found, *self._by_name.get(original, ())]


def entry_form(name: str) -> str:
    r"""Return the entry name that the server gives a file (protocol.md 1.3).

    >>> entry_form("a\\b.nc"), entry_form("a/b\\c.nc")
    ('a/b.nc', 'a/b\\c.nc')
    """
    return name if "/" in name else name.replace("\\", "/")


def parse_notice(content: bytes) -> dict[str, str] | None:
    r"""Return what the notice says of each file; None where the content is no notice.

    *content* is that of the last entry of a zip, if it is called NOTICE.txt. A file of the order
    may have the same name; the text tells them apart.

    >>> parse_notice(b"Failed to download file (a.nc): Server returned no content.\n")
    {'a.nc': 'Server returned no content'}
    >>> parse_notice(b"This product was made in 2026.") is None
    True
    """
    if len(content) > MAX_NOTICE_BYTES:
        return None
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").strip()
    # A name may hold a line end: a line lasts until the next one starts.
    lines = [line.strip() for line in _NOTICE_START.split(text) if line.strip()]
    found = [_NOTICE_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        return None
    return {match[1]: match[2] for match in found if match}
