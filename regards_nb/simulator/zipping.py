"""A zip stream as REGARDS sends it: byte for byte the structure of Apache commons-compress 1.26.

The format is that of protocol.md 1.3: sizes unknown in advance (flag 0x0008 and a data descriptor
after each entry), names in ASCII with ``%U00E9`` escapes and the real name in extra field 0x7075,
Zip64 only where it cannot be avoided. Pure: events in, bytes out, nothing larger than a block held.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_DESCRIPTOR_FLAG = 0x0008
_DEFLATED = 8
_VERSION, _VERSION_ZIP64 = 20, 45
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075


class _Written(NamedTuple):
    """One entry that is closed, as the central directory will list it."""

    name: bytes
    unicode_extra: bytes
    zip64_header: bool
    crc: int
    compressed_bytes: int
    size_bytes: int
    offset: int


class ZipWriter:
    """Turns entries into the bytes of a zip: ``begin``, ``data`` ..., ``end``; at last ``finish``.

    Parameters
    ----------
    made_at : datetime
        The time that all entries carry, in steps of two seconds.
    level : int
        Deflate level; -1 is the default, which is REGARDS' too.
    """

    def __init__(self, *, made_at: datetime, level: int = -1) -> None:
        self._dos_time = struct.pack(
            "<2H",
            made_at.hour << 11 | made_at.minute << 5 | made_at.second // 2,
            (made_at.year - 1980) << 9 | made_at.month << 5 | made_at.day,
        )
        self._level = level
        self._position = 0
        self._written: list[_Written] = []
        self._zip64_used = False

    def begin(self, name: str, *, declared_bytes: int | None) -> bytes:
        """Open an entry. Its Zip64 form depends on the size declared here, not on the real one."""
        self._name, self._unicode_extra = encoded_name(name)
        self._zip64_header = declared_bytes is not None and declared_bytes >= _LIMIT_32
        self._zip64_used |= self._zip64_header
        self._offset = self._position
        self._crc = self._size_bytes = 0
        self._deflate = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS)
        sizes, extra, version = 0, self._unicode_extra, _VERSION
        if self._zip64_header:
            # placeholders: the sizes follow in the descriptor
            sizes, version = _LIMIT_32, _VERSION_ZIP64
            extra = struct.pack("<2H2Q", _ZIP64_EXTRA, 16, 0, 0) + extra
        fixed = struct.pack("<4s3H", b"PK\3\4", version, _DESCRIPTOR_FLAG, _DEFLATED)
        rest = struct.pack("<3I2H", 0, sizes, sizes, len(self._name), len(extra))
        header = self._count(fixed + self._dos_time + rest + self._name + extra)
        self._data_start = self._position
        return header

    def data(self, chunk: bytes) -> bytes:
        """Add bytes to the open entry."""
        self._crc = zlib.crc32(chunk, self._crc)
        self._size_bytes += len(chunk)
        return self._count(self._deflate.compress(chunk))

    def end(self, *, crc: int | None = None) -> bytes:
        """Close the open entry, with a *crc* that may be a lie."""
        tail = self._count(self._deflate.flush())
        entry = _Written(
            self._name,
            self._unicode_extra,
            self._zip64_header,
            self._crc if crc is None else crc,
            self._position - self._data_start,
            self._size_bytes,
            self._offset,
        )
        self._written.append(entry)
        if entry.zip64_header:
            sizes = struct.pack("<2Q", entry.compressed_bytes, entry.size_bytes)
        else:
            # An entry of undeclared size beyond 4 GiB: commons-compress writes the low 32 bits.
            sizes = struct.pack(
                "<2I", entry.compressed_bytes & _LIMIT_32, entry.size_bytes & _LIMIT_32
            )
        return tail + self._count(struct.pack("<4sI", b"PK\7\x08", entry.crc) + sizes)

    def finish(self) -> Iterator[bytes]:
        """Write the central directory and the end records."""
        start = self._position
        for entry in self._written:
            yield self._count(self._central_header(entry))
        size = self._position - start
        count = len(self._written)
        if self._zip64_used or count >= _LIMIT_16 or max(start, size) >= _LIMIT_32:
            yield _zip64_end(count, size, start, self._position)
        shown = min(count, _LIMIT_16)
        yield struct.pack(
            "<4s4H2IH",
            b"PK\5\6",
            0,
            0,
            shown,
            shown,
            min(size, _LIMIT_32),
            min(start, _LIMIT_32),
            0,
        )

    def _central_header(self, entry: _Written) -> bytes:
        compressed, size, zip64 = entry.compressed_bytes, entry.size_bytes, b""
        if max(compressed, size) >= _LIMIT_32:
            zip64 = struct.pack("<2Q", size, compressed)
            compressed = size = _LIMIT_32
        if entry.offset >= _LIMIT_32:
            zip64 += struct.pack("<Q", entry.offset)
        extra, version = entry.unicode_extra, _VERSION
        if zip64 or entry.zip64_header:
            self._zip64_used = True
            version = _VERSION_ZIP64
            extra = struct.pack("<2H", _ZIP64_EXTRA, len(zip64)) + zip64 + extra
        made_by = _VERSION_ZIP64 if self._zip64_used else _VERSION
        fixed = struct.pack("<4s4H", b"PK\1\2", made_by, version, _DESCRIPTOR_FLAG, _DEFLATED)
        sizes = struct.pack("<3I2H", entry.crc, compressed, size, len(entry.name), len(extra))
        rest = struct.pack("<3H2I", 0, 0, 0, 0, min(entry.offset, _LIMIT_32))
        return fixed + self._dos_time + sizes + rest + entry.name + extra

    def _count(self, data: bytes) -> bytes:
        self._position += len(data)
        return data


def _zip64_end(count: int, size: int, start: int, position: int) -> bytes:
    """Return the Zip64 end record and its locator."""
    version = _VERSION_ZIP64
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, version, version, 0, 0, count, count, size, start
    )
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, position, 1)


def encoded_name(name: str) -> tuple[bytes, bytes]:
    r"""Return the name as its header holds it, and extra field 0x7075 where ASCII is not enough.

    Examples
    --------
    >>> encoded_name("a.nc")
    (b'a.nc', b'')
    >>> encoded_name("été.nc")[0]
    b'%U00E9t%U00E9.nc'
    """
    if "/" not in name:
        name = name.replace("\\", "/")
    if name.isascii():
        return name.encode(), b""
    ascii_name = "".join(c if c.isascii() else _escaped(c) for c in name).encode()
    # A lone surrogate cannot be spelled in UTF-8; Java writes a question mark.
    path = name.encode("utf-8", "replace")
    crc = zlib.crc32(ascii_name)
    return ascii_name, struct.pack("<2HBI", _UNICODE_PATH_EXTRA, 5 + len(path), 1, crc) + path


def _escaped(character: str) -> str:
    """Write a character as Java does: one ``%Uxxxx`` for each UTF-16 unit."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"%U{unit:04X}" for (unit,) in struct.iter_unpack(">H", units))


def in_blocks(pieces: Iterable[bytes], *, block_bytes: int = 1 << 15) -> Iterator[bytes]:
    """Gather small pieces, so that each block but the last has at least *block_bytes*."""
    held: list[bytes] = []
    held_bytes = 0
    for piece in pieces:
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes >= block_bytes:
            yield b"".join(held)
            held, held_bytes = [], 0
    if held_bytes:
        yield b"".join(held)
