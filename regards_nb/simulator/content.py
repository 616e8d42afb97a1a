"""The bytes of the files: made anew at each reading, always the same for the same seed."""

from __future__ import annotations

import hashlib
import math
import random
import struct
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: How much is made or read at a time; nothing larger is ever held.
BLOCK_BYTES = 1 << 16

_ROWS_PER_BLOCK = 512
_QUICKLOOK_PIXELS = 64


class Digest(NamedTuple):
    """What one reading of a content gave."""

    size_bytes: int
    md5: str


class Content:
    """A file's bytes, as something that can be read again and again.

    Parameters
    ----------
    make : callable
        Called for each reading; returns an iterator over blocks of bytes.
    size_bytes : int, optional
        The size where it is known without reading.
    """

    def __init__(
        self, make: Callable[[], Iterator[bytes]], *, size_bytes: int | None = None
    ) -> None:
        self._make = make
        self._size_bytes = size_bytes

    def chunks(self) -> Iterator[bytes]:
        """Read from the start."""
        return self._make()

    @cached_property
    def digest(self) -> Digest:
        """Size and MD5, found by one reading, at the first question."""
        md5 = hashlib.md5(usedforsecurity=False)
        size_bytes = 0
        for chunk in self.chunks():
            md5.update(chunk)
            size_bytes += len(chunk)
        return Digest(size_bytes, md5.hexdigest())

    @property
    def size_bytes(self) -> int:
        """Number of bytes."""
        return self.digest.size_bytes if self._size_bytes is None else self._size_bytes

    @property
    def md5(self) -> str:
        """MD5 as 32 hexadecimal digits."""
        return self.digest.md5


def of_bytes(data: bytes) -> Content:
    """Return these very bytes as a content."""
    return Content(lambda: iter([data] if data else []), size_bytes=len(data))


def of_path(path: Path) -> Content:
    """Return what the file at *path* holds, read each time in blocks."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    return Content(read, size_bytes=path.stat().st_size)


def noise(*, seed: str, size_bytes: int) -> Content:
    """Return bytes that cannot be compressed."""

    def make() -> Iterator[bytes]:
        source = random.Random(seed)
        for start in range(0, size_bytes, BLOCK_BYTES):
            yield source.randbytes(min(BLOCK_BYTES, size_bytes - start))

    return Content(make, size_bytes=size_bytes)


def sea_level(*, seed: str, rows: int) -> Content:
    """Return a CSV table: sea level along one pass of an altimetry satellite."""
    return Content(lambda: _sea_level_blocks(seed, rows))


def _sea_level_blocks(seed: str, rows: int) -> Iterator[bytes]:
    source = random.Random(seed)
    node_longitude, phase = source.uniform(0, 360), source.uniform(0, 6.28)
    yield b"time,latitude,longitude,sea_level_anomaly_m,wave_height_m\n"
    for first in range(0, rows, _ROWS_PER_BLOCK):
        lines = []
        for row in range(first, min(first + _ROWS_PER_BLOCK, rows)):
            along = row / max(rows - 1, 1)
            latitude = -77.6 + 155.2 * along
            longitude = (node_longitude + 170 * along) % 360
            anomaly = 0.12 * math.sin(9 * along + phase) + source.gauss(0, 0.02)
            waves = 2 + math.cos(5 * along + phase) + abs(source.gauss(0, 0.1))
            lines.append(
                f"{_time_of_row(row)},{latitude:.5f},{longitude:.5f},{anomaly:.4f},{waves:.3f}\n"
            )
        yield "".join(lines).encode()


def _time_of_row(row: int) -> str:
    """Return the time of a row, one per second from a fixed midnight on."""
    minutes, seconds = divmod(row, 60)
    hours, minutes = divmod(minutes, 60)
    return f"2026-01-{1 + hours // 24:02}T{hours % 24:02}:{minutes:02}:{seconds:02}Z"


def quicklook(*, seed: str) -> Content:
    """Return a small grey PNG picture."""
    source = random.Random(seed)
    tilt, phase = source.uniform(0.1, 0.4), source.uniform(0, 6.28)
    side = range(_QUICKLOOK_PIXELS)
    rows = b"".join(
        # every row of a PNG starts with its filter: 0, none
        b"\0" + bytes(int(127 + 120 * math.sin(tilt * x + y / 9 + phase)) for x in side)
        for y in side
    )
    shape = struct.pack(">2I5B", _QUICKLOOK_PIXELS, _QUICKLOOK_PIXELS, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", shape), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return of_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_png_part(*part) for part in parts))


def _png_part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
