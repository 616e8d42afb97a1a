"""The central directory at the end of a zip: it must list exactly the entries that came before.

A reader that trusts the directory and one that trusts the local headers see two different archives
where the two differ; that is how hostile zips hide links, doubles and bombs. Here both must agree,
one to one, so there is only one archive to see.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from regards_nb.download.ziprecords import (
    CENTRAL,
    CENTRAL_MARK,
    END,
    END64,
    END64_MARK,
    END_MARK,
    LIMIT_16,
    LIMIT_32,
    LOCATOR64,
    LOCATOR64_MARK,
    entry_name,
    unicode_path,
    with_zip64,
)
from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from regards_nb.download.bytestream import ByteStream

_UNIX = 3
#: What the identity of an entry becomes once it was listed; no hash of Python's is this.
_LISTED = -1


class LocalEntries:
    """What the local headers said, in 36 bytes for each entry: a zip may hold very many."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._identities = array("q")
        self._crcs = array("L")
        self._compressed = array("Q")
        self._sizes = array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(  # noqa: PLR0917 - called for every entry of very many
        self,
        offset: int,
        raw_name: bytes,
        extra: bytes,
        method: int,
        crc: int,
        compressed_bytes: int,
        size_bytes: int,
    ) -> None:
        """Note an entry that was read."""
        self._offsets.append(offset)
        self._identities.append(_identity(raw_name, extra, method))
        self._crcs.append(crc)
        self._compressed.append(compressed_bytes)
        self._sizes.append(size_bytes)

    def problem_of(
        self, *, offset: int, identity: int, crc: int, compressed: int, size: int
    ) -> str | None:
        """Compare one line of the directory with its entry; return what is wrong with it."""
        index = bisect_left(self._offsets, offset)
        if index == len(self._offsets) or self._offsets[index] != offset:
            return "no entry starts there"
        if self._identities[index] == _LISTED:
            return "its entry is listed twice"
        if self._identities[index] != identity:
            return "its entry has another name or packing"
        exact = (self._crcs[index], self._compressed[index], self._sizes[index])
        # Of a file beyond 4 GiB whose size it did not know, the server writes the low 32 bits.
        low = (exact[0], exact[1] & LIMIT_32, exact[2] & LIMIT_32)
        if (crc, compressed, size) not in (exact, low):
            return "its entry has another CRC-32 or size"
        self._identities[index] = _LISTED
        return None


def check_directory(stream: ByteStream, entries: LocalEntries) -> None:
    """Read the rest of a zip, from its directory on, and compare it with the entries.

    Raises
    ------
    ArchiveError
        The directory is cut, differs from the entries, lists something that is no plain file, or
        something follows it.
    """
    start = stream.position
    count = 0
    while _mark(stream) == CENTRAL_MARK:
        _check_line(stream, entries)
        count += 1
    if count != len(entries):
        raise ArchiveError(f"the zip has {len(entries)} entries and lists {count}")
    _check_end(stream, count=count, start=start, size=stream.position - start)
    if stream.has(1):
        raise ArchiveError("the zip goes on after its end")


def _mark(stream: ByteStream) -> bytes:
    stream.need(4)
    return stream.data[stream.at : stream.at + 4]


def _check_line(stream: ByteStream, entries: LocalEntries) -> None:
    stream.need(CENTRAL.size)
    fields = CENTRAL.unpack_from(stream.data, stream.at)
    _, made_by, _, flags, method, _, _, crc, compressed, size = fields[:10]
    name_length, extra_length, comment_length, _, _, attributes, offset = fields[10:]
    stream.need(CENTRAL.size + name_length + extra_length + comment_length)
    name_at = stream.at + CENTRAL.size
    extra_at = name_at + name_length
    raw_name = stream.data[name_at:extra_at]
    extra = stream.data[extra_at : extra_at + extra_length]
    stream.at = extra_at + extra_length + comment_length
    size, compressed, offset = with_zip64(extra, size, compressed, offset)
    problem = _not_a_plain_file(made_by, attributes) or entries.problem_of(
        offset=offset,
        identity=_identity(raw_name, extra, method),
        crc=crc,
        compressed=compressed,
        size=size,
    )
    if problem:
        name = entry_name(raw_name, extra, flags)
        raise ArchiveError(f"the zip's directory and its entries differ: {name!r}: {problem}")


def _identity(raw_name: bytes, extra: bytes, method: int) -> int:
    # Python's own hash is keyed anew in each process: nobody can prepare two names that share it.
    return hash((raw_name, unicode_path(extra) if extra else b"", method))


def _not_a_plain_file(made_by: int, attributes: int) -> str | None:
    """Say what an entry is when it is a link, a device or the like."""
    mode = attributes >> 16
    if made_by >> 8 == _UNIX and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"it is no plain file ({stat.filemode(mode)})"
    return None


def _check_end(stream: ByteStream, *, count: int, start: int, size: int) -> None:
    said_64 = _read_end64(stream) if _mark(stream) == END64_MARK else None
    mark, _, _, _, said_count, said_size, said_start, comment_length = END.unpack(
        stream.take(END.size)
    )
    stream.take(comment_length)
    small = (min(count, LIMIT_16), min(size, LIMIT_32), min(start, LIMIT_32))
    exact = (count, size, start)
    if (
        mark != END_MARK
        or (said_count, said_size, said_start) not in (small, exact)
        or (said_64 is None and small != exact)
        or (said_64 is not None and said_64 != exact)
    ):
        raise ArchiveError("the zip's end does not agree with what came before")


def _read_end64(stream: ByteStream) -> tuple[int, int, int]:
    """Read the Zip64 end record and its locator; return count, size and start it gives."""
    at = stream.position
    _, length, *_, count, size, start = END64.unpack(stream.take(END64.size))
    stream.take(max(length - (END64.size - 12), 0))
    mark, _, said_at, _ = LOCATOR64.unpack(stream.take(LOCATOR64.size))
    if mark != LOCATOR64_MARK or said_at != at:
        raise ArchiveError("the zip's Zip64 end does not agree with what came before")
    return count, size, start
