"""A zip read forward only, while it arrives: no seeking, bounded memory, nothing believed.

Accepted is what a REGARDS server writes (protocol.md 1.3) and what differs from it without harm;
everything else ends in one :class:`ArchiveError`. An entry is delivered with its last piece only
after its descriptor agreed with its bytes; the archive is proven when the iteration ends by itself,
after the central directory listed the same entries, all of them plain files.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.bytestream import ByteStream
from regards_nb.download.directory import LocalEntries, check_directory
from regards_nb.download.inflate import DeflateError, crc32, inflater
from regards_nb.download.ziprecords import (
    DEFLATED,
    DESCRIPTOR_MARK,
    ENCRYPTED,
    HAS_DESCRIPTOR,
    LIMIT_32,
    LOCAL,
    LOCAL_MARK,
    NEXT_MARKS,
    STORED,
    entry_name,
    with_zip64,
)
from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: No more than this is inflated at a time, whatever the input says.
MAX_PIECE_BYTES = 1 << 19

#: Pieces smaller than this are joined.
_SMALL_BYTES = 1 << 16
# A small entry must not cost a copy of the whole block behind it: the first bites are small.
_FIRST_BITE_BYTES = 1 << 10
_LARGEST_BITE_BYTES = 1 << 18

_DESCRIPTOR_32 = struct.Struct("<3I")
_DESCRIPTOR_64 = struct.Struct("<I2Q")
#: The longest form and the mark of what follows. The shortest form and the end of a zip are longer.
_LONGEST_DESCRIPTOR_BYTES = 4 + _DESCRIPTOR_64.size + 4


class Entry(NamedTuple):
    """One entry of the zip, as its local header announces it."""

    #: Its place in the zip, from 0.
    number: int
    #: Its name as the server meant it. Data, not a path.
    name: str


class Piece(NamedTuple):
    """Some bytes of an entry."""

    entry: Entry
    data: bytes
    #: Nothing more follows of this entry, and its sizes agreed.
    last: bool
    #: With the last piece: why the bytes cannot be right, though the zip goes on.
    damage: str | None


class _Header(NamedTuple):
    """A local header, as far as it matters for reading on."""

    entry: Entry
    method: int
    has_descriptor: bool
    crc: int
    compressed_bytes: int
    size_bytes: int


def read_zip(blocks: Iterable[bytes]) -> Iterator[Piece]:
    """Yield the content of a zip, entry by entry, while its bytes arrive.

    Parameters
    ----------
    blocks : iterable of bytes
        The zip from its first byte on, in blocks of any size.

    Yields
    ------
    Piece
        At most ``MAX_PIECE_BYTES`` of one entry; an empty entry has one empty piece.

    Raises
    ------
    ArchiveError
        The stream is no zip, is cut, or is not what a REGARDS server would make. Entries whose
        last piece came before are whole.
    """
    stream = ByteStream(blocks)
    entries = LocalEntries()
    if not stream.has(4) or stream.data[:4] not in NEXT_MARKS:
        raise ArchiveError(
            f"what the server sent is not a zip: it starts with {stream.data[:20]!r}"
        )
    while stream.data[stream.at : stream.at + 4] == LOCAL_MARK:
        yield from _read_entry(stream, entries)
    check_directory(stream, entries)


def _read_entry(stream: ByteStream, entries: LocalEntries) -> Iterator[Piece]:
    header = _read_header(stream, entries)
    start = stream.position
    crc = size_bytes = 0
    held = b""
    # The last piece is held back until the descriptor behind it has been seen.
    for piece in _bytes_of(stream, header):
        if len(held) + len(piece) <= _SMALL_BYTES:
            held += piece
        else:
            if held:
                yield Piece(header.entry, held, last=False, damage=None)
            held = piece
        crc = crc32(piece, crc)
        size_bytes += len(piece)
    compressed_bytes = stream.position - start
    said = _crc_said(stream, header, compressed_bytes, size_bytes)
    entries.end(crc=said, compressed_bytes=compressed_bytes, size_bytes=size_bytes)
    damage = None if said == crc else f"CRC-32 is {crc:08x}, the zip says {said:08x}"
    yield Piece(header.entry, held, last=True, damage=damage)
    stream.need(4)


def _read_header(stream: ByteStream, entries: LocalEntries) -> _Header:
    offset = stream.position
    stream.need(LOCAL.size)
    fields = LOCAL.unpack_from(stream.data, stream.at)
    _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = fields
    stream.at += LOCAL.size
    raw_name = stream.take(name_length)
    extra = stream.take(extra_length) if extra_length else b""
    name = entry_name(raw_name, extra, flags)
    has_descriptor = bool(flags & HAS_DESCRIPTOR)
    if flags & ENCRYPTED:
        raise ArchiveError(f"entry {name!r} is encrypted: REGARDS does not send that")
    if method != DEFLATED and (method != STORED or has_descriptor):
        raise ArchiveError(f"entry {name!r} is packed by method {method}: REGARDS does not do that")
    size, compressed = with_zip64(extra, size, compressed)
    number = entries.begin(offset=offset, raw_name=raw_name, extra=extra, method=method)
    return _Header(Entry(number, name), method, has_descriptor, crc, compressed, size)


def _bytes_of(stream: ByteStream, header: _Header) -> Iterator[bytes]:
    if header.method == DEFLATED:
        return _inflated(stream, header.entry)
    return _stored(stream, header.size_bytes)


def _inflated(stream: ByteStream, entry: Entry) -> Iterator[bytes]:
    inflate = inflater()
    bite_bytes = _FIRST_BITE_BYTES
    while not inflate.eof:
        bite = stream.some(bite_bytes)
        try:
            piece = inflate.decompress(bite, MAX_PIECE_BYTES)
        except DeflateError as exc:
            raise ArchiveError(f"entry {entry.name!r} is damaged: {exc}") from exc
        stream.at += len(bite) - len(inflate.unused_data) - len(inflate.unconsumed_tail)
        bite_bytes = min(bite_bytes * 8, _LARGEST_BITE_BYTES)
        if piece:
            yield piece


def _stored(stream: ByteStream, size_bytes: int) -> Iterator[bytes]:
    while size_bytes:
        piece = bytes(stream.some(min(size_bytes, MAX_PIECE_BYTES)))
        stream.at += len(piece)
        size_bytes -= len(piece)
        yield piece


def _crc_said(stream: ByteStream, header: _Header, compressed_bytes: int, size_bytes: int) -> int:
    """Check the sizes that were announced against those that came; return the CRC announced."""
    if header.has_descriptor:
        return _read_descriptor(stream, header.entry, compressed_bytes, size_bytes)
    if (header.compressed_bytes, header.size_bytes) != (compressed_bytes, size_bytes):
        raise ArchiveError(f"entry {header.entry.name!r} does not have the size its header says")
    return header.crc


def _read_descriptor(
    stream: ByteStream, entry: Entry, compressed_bytes: int, size_bytes: int
) -> int:
    """Read what follows an entry of unknown size: its CRC and sizes, in one of four forms.

    The mark may be missing and the sizes have 32 or 64 bits; which it is shows in that the sizes
    agree and something that can follow does. Sizes of 32 bits are those modulo 4 GiB: the server
    cannot do better for a file whose size it did not know (protocol.md 1.3).
    """
    stream.need(_LONGEST_DESCRIPTOR_BYTES)
    exact = (compressed_bytes, size_bytes)
    low = (compressed_bytes & LIMIT_32, size_bytes & LIMIT_32)
    for mark in (DESCRIPTOR_MARK, b""):
        if not stream.data.startswith(mark, stream.at):
            continue
        for form, sizes in ((_DESCRIPTOR_32, low), (_DESCRIPTOR_64, exact)):
            crc, *said = form.unpack_from(stream.data, stream.at + len(mark))
            end = stream.at + len(mark) + form.size
            if tuple(said) == sizes and stream.data[end : end + 4] in NEXT_MARKS:
                stream.at = end
                return int(crc)
    raise ArchiveError(f"entry {entry.name!r} does not have the size that follows it")
