"""Zips for tests: as REGARDS makes them, and as nobody should."""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from regards_nb.simulator import ZipWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MADE_AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def regards_zip(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip as a REGARDS server writes it."""
    return b"".join(regards_zip_blocks(entries))


def regards_zip_blocks(entries: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """Make such a zip piece by piece."""
    writer = ZipWriter(made_at=MADE_AT)
    for name, data in entries:
        yield writer.begin(name, declared_bytes=len(data)) + writer.data(data) + writer.end()
    yield from writer.finish()


def in_steps(data: bytes, step: int) -> Iterator[bytes]:
    """Cut bytes into blocks of one length."""
    return (data[start : start + step] for start in range(0, len(data), step))


def local_entry(
    name: bytes,
    data: bytes,
    *,
    flags: int = 0,
    method: int = 0,
    crc: int | None = None,
    extra: bytes = b"",
    packed: bytes | None = None,
    descriptor: bytes = b"",
) -> bytes:
    """Return one entry by hand: header, content and descriptor."""
    crc = zlib.crc32(data) if crc is None else crc
    packed = data if packed is None else packed
    in_header = (0, 0, 0) if flags & 8 else (crc, len(packed), len(data))
    head = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 0, *in_header, len(name), len(extra)
    )
    return head + name + extra + packed + descriptor


def central_line(
    name: bytes,
    data: bytes,
    offset: int,
    *,
    flags: int = 0,
    method: int = 0,
    packed_bytes: int | None = None,
    extra: bytes = b"",
    made_by: int = 20,
    attributes: int = 0,
) -> bytes:
    """Return one line of a central directory by hand."""
    packed_bytes = len(data) if packed_bytes is None else packed_bytes
    fields = (made_by, 20, flags, method, 0, 0, zlib.crc32(data), packed_bytes, len(data))
    rest = (len(name), len(extra), 0, 0, 0, attributes, offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields, *rest) + name + extra


def end_record(count: int, size: int, start: int) -> bytes:
    """Return the end of a zip by hand."""
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)


def by_hand(entries: list[bytes], lines: list[bytes]) -> bytes:
    """Put a zip together."""
    body, directory = b"".join(entries), b"".join(lines)
    return body + directory + end_record(len(lines), len(directory), len(body))


def deflated(data: bytes) -> bytes:
    """Return raw deflate."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()
