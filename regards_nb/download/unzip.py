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
MAX_PIECE_BYTES = 1 << 18

#: Pieces smaller than this are joined.
_SMALL_BYTES = 1 << 16
# A small entry must not cost a copy of the whole block behind it: the first bites are small.
_FIRST_BITE_BYTES = 1 << 10
_LARGEST_BITE_BYTES = 1 << 16

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
    while stream.data.startswith(LOCAL_MARK, stream.at):
        yield from _read_entry(stream, entries)
        stream.need(4)
    check_directory(stream, entries)


def _read_entry(stream: ByteStream, entries: LocalEntries) -> Iterator[Piece]:
    """Read one entry. There may be very many: what is done here once is done 70,000 times."""
    offset = stream.position
    stream.need(LOCAL.size)
    header = LOCAL.unpack_from(stream.data, stream.at)
    _, _, flags, method, _, _, said_crc, compressed, size, name_length, extra_length = header
    stream.need(LOCAL.size + name_length + extra_length)
    name_at = stream.at + LOCAL.size
    stream.at = name_at + name_length + extra_length
    raw_name = stream.data[name_at : name_at + name_length]
    extra = stream.data[name_at + name_length : stream.at]
    name = entry_name(raw_name, extra, flags)
    _refuse_foreign(name, flags, method)
    size, compressed = with_zip64(extra, size, compressed)
    entry = Entry(len(entries), name)
    start = stream.position
    pieces = _inflated(stream, name) if method == DEFLATED else _stored(stream, size)
    crc = size_bytes = 0
    held = b""
    # The last piece is held back until the descriptor behind it has been seen.
    for piece in pieces:
        if held and len(held) + len(piece) > _SMALL_BYTES:
            yield Piece(entry, held, last=False, damage=None)
            held = b""
        held = held + piece if held else piece
        crc = crc32(piece, crc)
        size_bytes += len(piece)
    sizes = (stream.position - start, size_bytes)
    if flags & HAS_DESCRIPTOR:
        said_crc = _read_descriptor(stream, name, *sizes)
    elif (compressed, size) != sizes:
        raise ArchiveError(f"entry {name!r} does not have the size that its header says")
    entries.add(offset, raw_name, extra, method, said_crc, *sizes)
    damage = None if said_crc == crc else f"CRC-32 is {crc:08x}, the zip says {said_crc:08x}"
    yield Piece(entry, held, last=True, damage=damage)


def _refuse_foreign(name: str, flags: int, method: int) -> None:
    """Raise for what no REGARDS server would send and nothing here can read."""
    if flags & ENCRYPTED:
        raise ArchiveError(f"entry {name!r} is encrypted: REGARDS does not send that")
    if method != DEFLATED and (method != STORED or flags & HAS_DESCRIPTOR):
        raise ArchiveError(f"entry {name!r} is packed by method {method}: REGARDS does not do that")


def _inflated(stream: ByteStream, name: str) -> Iterator[bytes]:
    inflate = inflater()
    bite_bytes = _FIRST_BITE_BYTES
    while not inflate.eof:
        bite = stream.some(bite_bytes)
        try:
            piece = inflate.decompress(bite, MAX_PIECE_BYTES)
        except DeflateError as exc:
            raise ArchiveError(f"entry {name!r} is damaged: {exc}") from exc
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


def _read_descriptor(stream: ByteStream, name: str, compressed_bytes: int, size_bytes: int) -> int:
    """Read what follows an entry of unknown size, and return the CRC-32 it gives.

    It has one of four forms: the mark may be missing, and the sizes have 32 or 64 bits. Which it
    is shows in that the sizes agree and something that can follow does. Sizes of 32 bits are those
    modulo 4 GiB: the server cannot do better for a file whose size it did not know (protocol.md
    1.3).
    """
    stream.need(_LONGEST_DESCRIPTOR_BYTES)
    exact = (compressed_bytes, size_bytes)
    low = (compressed_bytes & LIMIT_32, size_bytes & LIMIT_32)
    for mark in (DESCRIPTOR_MARK, b""):
        if not stream.data.startswith(mark, stream.at):
            continue
        for form, sizes in ((_DESCRIPTOR_32, low), (_DESCRIPTOR_64, exact)):
            crc, compressed, size = form.unpack_from(stream.data, stream.at + len(mark))
            end = stream.at + len(mark) + form.size
            if (compressed, size) == sizes and stream.data[end : end + 4] in NEXT_MARKS:
                stream.at = end
                return int(crc)
    raise ArchiveError(f"entry {name!r} does not have the size that follows it")
