"""Read a zip forward while it arrives: no seeking, bounded memory, every field checked.

The reader accepts what a REGARDS server writes (protocol.md 1.3) and harmless variants of it. It
raises :class:`ArchiveError` for everything else. The last piece of an entry is delivered only after
the data descriptor agreed with the bytes. The archive is proven when the iteration ends: then the
central directory listed the same entries, all of them plain files.

A reader that trusts the central directory and a reader that trusts the local headers see two
different archives where the two differ. Hostile zips hide links, duplicates and bombs that way.
Here both must agree, one to one.
"""

from __future__ import annotations

import stat
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Bytes = bytes | bytearray | memoryview

#: The reader inflates at most this much at a time, whatever the input says.
MAX_PIECE_BYTES = 1 << 20
#: The reader joins pieces that are smaller.
_SMALL_BYTES = 1 << 16
# What the inflater leaves unused is copied: the first chunks are small, so that a small entry does
# not copy the whole block behind it.
_FIRST_CHUNK_BYTES = 1 << 10
_LARGEST_CHUNK_BYTES = 1 << 19

_LOCAL_MARK: Final = b"PK\3\4"
_DESCRIPTOR_MARK: Final = b"PK\7\x08"
_CENTRAL_MARK: Final = b"PK\1\2"
_END_MARK: Final = b"PK\5\6"
_END64_MARK: Final = b"PK\6\6"
_LOCATOR64_MARK: Final = b"PK\6\7"
#: What may follow an entry: another one, the directory, or the end of a zip without entries.
_NEXT_MARKS: Final = frozenset({_LOCAL_MARK, _CENTRAL_MARK, _END_MARK, _END64_MARK})

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64: Final = struct.Struct("<4sIQI")
_DESCRIPTOR_32: Final = struct.Struct("<3I")
_DESCRIPTOR_64: Final = struct.Struct("<I2Q")
#: The longest form and the mark of what follows. The shortest form and the end of a zip are longer.
_LONGEST_DESCRIPTOR_BYTES = 4 + _DESCRIPTOR_64.size + 4

_ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13
_HAS_DESCRIPTOR: Final = 1 << 3
_UTF8_NAME: Final = 1 << 11
_STORED, _DEFLATED = 0, 8
_LIMIT_16: Final = 0xFFFF
_LIMIT_32: Final = 0xFFFFFFFF
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075
_UNIX = 3
_PLAIN_MODES: Final = frozenset({0, stat.S_IFREG, stat.S_IFDIR})


_inflater: Callable[[], Any] = partial(zlib.decompressobj, -zlib.MAX_WBITS)
crc32: Callable[[Bytes, int], int] = zlib.crc32
_InflateError: type[Exception] = zlib.error

try:  # the extra ``fast``
    from isal import isal_zlib
except ImportError:
    pass
else:
    _inflater = partial(isal_zlib.decompressobj, -zlib.MAX_WBITS)
    crc32 = isal_zlib.crc32
    # isal's own type hints take the class for an instance
    _InflateError = cast("type[Exception]", isal_zlib.error)


class _Copier:
    """Reads an entry that is not compressed, in the way of an object of `zlib.decompressobj`."""

    unconsumed_tail = b""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self.unused_data: Bytes = b""

    @property
    def eof(self) -> bool:
        return not self._left_bytes

    def decompress(self, data: Bytes, max_length: int, /) -> bytes:
        piece = bytes(data[: min(self._left_bytes, max_length)])
        # A part of a memoryview is no copy.
        self.unused_data = data[len(piece) :]
        self._left_bytes -= len(piece)
        return piece


class EntryBytes(NamedTuple):
    """Some bytes of an entry."""

    #: The name of the entry as the server meant it. It is data and not a path.
    name: str
    data: bytes
    #: This is the last piece of the entry, and its sizes agreed.
    last: bool
    #: In the last piece: why the bytes are wrong, although the zip goes on.
    damage: str | None


#: Name, raw name, extra field 0x7075, flags, method; CRC-32, compressed size and size, which are 0
#: where a data descriptor follows the entry.
_Header = tuple[str, bytes, bytes, int, int, tuple[int, int, int]]
#: Raw name, extra field 0x7075, method, CRC-32, compressed size and size of an entry, from its
#: local header and its bytes, to compare with the directory. A zip may have 10,000: plain tuples of
#: such values are not looked at by Python's garbage collection.
_Facts = tuple[bytes, bytes, int, int, int, int]
#: By offset in the zip; None once the directory listed the entry.
_LocalEntries = dict[int, _Facts | None]


def read_zip(blocks: Iterable[bytes]) -> Iterator[EntryBytes]:
    """Yield the content of a zip, entry by entry, while its bytes arrive in blocks of any size.

    A piece has at most ``MAX_PIECE_BYTES``; an empty entry has one empty piece. ArchiveError: the
    stream is not a zip, is cut, or differs from what a REGARDS server writes. Entries whose last
    piece came before are complete.
    """
    stream = _ByteStream(blocks)
    entries: _LocalEntries = {}
    if not stream.has(4) or stream.data[:4] not in _NEXT_MARKS:
        raise ArchiveError(
            f"the server sent something that is not a zip: it starts with {stream.data[:20]!r}"
        )
    while stream.data.startswith(_LOCAL_MARK, stream.at):
        offset = stream.position
        name, raw_name, path, flags, method, stated = _read_header(stream)
        if method == _DEFLATED:
            inflater, chunk_bytes = _inflater(), _FIRST_CHUNK_BYTES
        else:
            inflater, chunk_bytes = _Copier(stated[2]), MAX_PIECE_BYTES
        crc = compressed_bytes = size_bytes = 0
        # The last piece waits until the descriptor behind it was read.
        held = b""
        while not inflater.eof:
            chunk = stream.some(chunk_bytes)
            try:
                piece = inflater.decompress(chunk, MAX_PIECE_BYTES)
            except _InflateError as exc:
                raise ArchiveError(f"entry {name!r} is damaged: {exc}") from exc
            # At the end zlib may give what it did not read a second time, as `unconsumed_tail`.
            rest = inflater.unused_data or inflater.unconsumed_tail
            used_bytes = len(chunk) - len(rest)
            compressed_bytes += used_bytes
            stream.at += used_bytes
            if stream.at < 0:
                stream.go_back(rest)
            if chunk_bytes < _LARGEST_CHUNK_BYTES:
                chunk_bytes *= 8
            if held and piece and len(held) + len(piece) > _SMALL_BYTES:
                yield EntryBytes(name, held, last=False, damage=None)
                held = b""
            held = held + piece if held else piece
            crc = crc32(piece, crc)
            size_bytes += len(piece)
        stated_crc = _stated_crc(stream, name, flags, stated, (compressed_bytes, size_bytes))
        entries[offset] = (raw_name, path, method, stated_crc, compressed_bytes, size_bytes)
        damage = None
        if stated_crc != crc:
            damage = f"the CRC-32 is {crc:08x}, the zip states {stated_crc:08x}"
        yield EntryBytes(name, held, True, damage)  # noqa: FBT003 - faster by position
    _check_directory(stream, entries)


class _ByteStream:
    """Blocks of bytes as they arrive, and a position in them that only moves forward.

    ``data`` is the current block and ``at`` the position in it. Readers of many small fields use
    both directly, after :meth:`need` has made sure that enough bytes are there.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._passed_bytes = 0
        self.data = b""
        self.at = 0

    @property
    def position(self) -> int:
        """The number of bytes read of the whole stream."""
        return self._passed_bytes + self.at

    def need(self, count: int) -> None:
        """Make sure that *count* bytes lie ahead in ``data``; raise where the stream ends."""
        if len(self.data) - self.at < count and not self.has(count):
            end = self.position + len(self.data) - self.at
            raise ArchiveError(f"the zip is cut: it ends after {end} bytes, inside a record")

    def has(self, count: int) -> bool:
        """Fetch blocks until *count* bytes lie ahead; return whether the stream had them."""
        # join() does not copy where there is only one block
        ahead = [self.data[self.at :]] if self.at < len(self.data) else []
        ahead_bytes = len(self.data) - self.at
        while ahead_bytes < count:
            block = next(self._blocks, None)
            if block is None:
                break
            ahead.append(block)
            ahead_bytes += len(block)
        self._passed_bytes += self.at
        self.data, self.at = b"".join(ahead), 0
        return ahead_bytes >= count

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes and move behind them."""
        self.need(count)
        start = self.at
        self.at = start + count
        return self.data[start : self.at]

    def some(self, limit: int) -> Bytes:
        """Return what lies ahead, 1 to *limit* bytes, without moving."""
        self.need(1)
        # copying a small chunk takes less time than making a view
        data = self.data if limit == _FIRST_CHUNK_BYTES else memoryview(self.data)
        return data[self.at : self.at + limit]

    def go_back(self, rest: Bytes) -> None:
        """Put the first bytes of *rest*, which are before ``data``, in front of it again.

        isal reads a few bytes ahead, and gives them back when the stream ends in the next block.
        """
        self.data = bytes(rest[: -self.at]) + self.data
        self._passed_bytes += self.at
        self.at = 0


def _read_header(stream: _ByteStream) -> _Header:
    """Read a local header. A zip may have 10,000 of them: each statement here counts."""
    stream.need(_LOCAL.size)
    fields = _LOCAL.unpack_from(stream.data, stream.at)
    _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = fields
    stream.need(_LOCAL.size + name_length + extra_length)
    data, name_at = stream.data, stream.at + _LOCAL.size
    extra_at = name_at + name_length
    stream.at = extra_at + extra_length
    raw_name = data[name_at:extra_at]
    path = b""
    if extra_length:
        extra = data[extra_at : stream.at]
        path = _extra_field(extra, _UNICODE_PATH_EXTRA)
        size, compressed = _with_zip64(extra, size, compressed)
    name = _entry_name(raw_name, path, flags)
    if flags & _ENCRYPTED:
        raise ArchiveError(f"entry {name!r} is encrypted: REGARDS does not encrypt")
    if method not in (_STORED, _DEFLATED):
        raise ArchiveError(f"entry {name!r} is compressed by method {method}: REGARDS uses 8")
    return name, raw_name, path, flags, method, (crc, compressed, size)


def _stated_crc(
    stream: _ByteStream, name: str, flags: int, stated: tuple[int, int, int], exact: tuple[int, int]
) -> int:
    """Return the CRC-32 of the header or the data descriptor, if the sizes there are *exact*.

    A descriptor stands behind the entry. It has one of four forms: with or without its mark, with
    sizes of 32 or 64 bits. The right form is the one whose sizes agree and behind which a known
    record starts. Sizes of 32 bits are those modulo 4 GiB: the server writes them for a file
    whose size it did not know (protocol.md 1.3).
    """
    if not flags & _HAS_DESCRIPTOR:
        if stated[1:] != exact:
            raise ArchiveError(f"entry {name!r} does not have the size that its header states")
        stream.need(4)
        return stated[0]
    stream.need(_LONGEST_DESCRIPTOR_BYTES)
    data = stream.data
    low = (exact[0] & _LIMIT_32, exact[1] & _LIMIT_32)
    for mark in (_DESCRIPTOR_MARK, b""):
        if not data.startswith(mark, stream.at):
            continue
        at = stream.at + len(mark)
        for form, sizes in ((_DESCRIPTOR_32, low), (_DESCRIPTOR_64, exact)):
            crc, compressed, size = form.unpack_from(data, at)
            end = at + form.size
            if (compressed, size) == sizes and data[end : end + 4] in _NEXT_MARKS:
                stream.at = end
                return int(crc)
    raise ArchiveError(f"entry {name!r} does not have the size that follows it")


def _check_directory(stream: _ByteStream, entries: _LocalEntries) -> None:
    """Read the rest of a zip, from its directory on, and compare it with the entries."""
    start = stream.position
    count = 0
    while stream.data.startswith(_CENTRAL_MARK, stream.at):
        _check_directory_line(stream, entries)
        count += 1
    if count != len(entries):
        raise ArchiveError(f"the zip has {len(entries)} entries and lists {count}")
    _check_end(stream, count=count, start=start, size=stream.position - start)
    if stream.has(1):
        raise ArchiveError("there are bytes behind the end of the zip")


def _check_directory_line(stream: _ByteStream, entries: _LocalEntries) -> None:
    stream.need(_CENTRAL.size)
    fields = _CENTRAL.unpack_from(stream.data, stream.at)
    _, made_by, _, flags, method, _, _, crc, compressed, size = fields[:10]
    name_length, extra_length, comment_length, _, _, attributes, offset = fields[10:]
    # with the mark of what follows
    stream.need(_CENTRAL.size + name_length + extra_length + comment_length + 4)
    name_at = stream.at + _CENTRAL.size
    extra_at = name_at + name_length
    raw_name = stream.data[name_at:extra_at]
    path = b""
    if extra_length:
        extra = stream.data[extra_at : extra_at + extra_length]
        path = _extra_field(extra, _UNICODE_PATH_EXTRA)
        size, compressed, offset = _with_zip64(extra, size, compressed, offset)
    stream.at = extra_at + extra_length + comment_length
    listed = (raw_name, path, method, crc, compressed, size)
    problem = None
    if made_by >> 8 == _UNIX and stat.S_IFMT(attributes >> 16) not in _PLAIN_MODES:
        problem = f"it is no plain file ({stat.filemode(attributes >> 16)})"
    elif entries.get(offset) != listed:
        problem = _difference(entries, offset, listed)
    if problem:
        name = _entry_name(raw_name, path, flags)
        raise ArchiveError(f"the directory of the zip and its entries differ: {name!r}: {problem}")
    entries[offset] = None


def _difference(entries: _LocalEntries, offset: int, listed: _Facts) -> str | None:
    """Compare one line of the directory with its entry; return what differs."""
    if offset not in entries:
        return "no entry starts there"
    local = entries[offset]
    if local is None:
        return "its entry is listed twice"
    *identity, crc, compressed, size = local
    if listed[:3] != tuple(identity):
        return "its entry has another name or method"
    # Of a file above 4 GiB whose size it did not know, the server writes the low 32 bits.
    if listed[3:] != (crc, compressed & _LIMIT_32, size & _LIMIT_32):
        return "its entry has another CRC-32 or size"
    return None


def _check_end(stream: _ByteStream, *, count: int, start: int, size: int) -> None:
    has_64 = stream.data.startswith(_END64_MARK, stream.at)
    stated_64 = _read_end64(stream) if has_64 else None
    end = _END.unpack(stream.take(_END.size))
    mark, _, _, _, stated_count, stated_size, stated_start, comment_length = end
    stream.take(comment_length)
    stated: tuple[int, ...] = (stated_count, stated_size, stated_start)
    exact = (count, size, start)
    if stated_64 is not None:
        # a value that is all ones is in the Zip64 record, however small it is
        ones = (_LIMIT_16, _LIMIT_32, _LIMIT_32)
        stated = tuple(
            wide if value == limit else value
            for value, limit, wide in zip(stated, ones, stated_64, strict=True)
        )
    if mark != _END_MARK or stated != exact or stated_64 not in (None, exact):
        raise ArchiveError("the end record of the zip does not agree with its entries")


def _read_end64(stream: _ByteStream) -> tuple[int, int, int]:
    """Read the Zip64 end record and its locator; return the count, size and start it states."""
    at = stream.position
    _, length, *_, count, size, start = _END64.unpack(stream.take(_END64.size))
    stream.take(max(length - (_END64.size - 12), 0))
    mark, _, stated_at, _ = _LOCATOR64.unpack(stream.take(_LOCATOR64.size))
    if mark != _LOCATOR64_MARK or stated_at != at:
        raise ArchiveError("the Zip64 end record does not agree with the zip")
    return count, size, start


def _entry_name(raw_name: bytes, path: bytes, flags: int) -> str:
    """Return the name of an entry: *path*, its extra field 0x7075, where that is valid.

    >>> _entry_name(b"a.nc", b"", 0)
    'a.nc'
    """
    # version 1, the CRC of the name that it replaces, the name in UTF-8
    if path and path[:5] == struct.pack("<BI", 1, zlib.crc32(raw_name)):
        return path[5:].decode("utf-8", "replace")
    try:
        return raw_name.decode("utf-8")
    except UnicodeDecodeError:
        return raw_name.decode(*(("utf-8", "replace") if flags & _UTF8_NAME else ("cp437",)))


def _with_zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace each value that is all ones by the next one of the Zip64 extra field.

    >>> _with_zip64(b"", 1, 2)
    (1, 2)
    >>> _with_zip64(struct.pack("<2HQ", 1, 8, 1 << 40), 0xFFFFFFFF, 2)
    (1099511627776, 2)
    """
    if _LIMIT_32 not in values:
        return values
    field = _extra_field(extra, _ZIP64_EXTRA)
    wide = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
    return tuple(next(wide, value) if value == _LIMIT_32 else value for value in values)


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """Return the content of one extra field; empty where it is missing or the fields are broken."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""
