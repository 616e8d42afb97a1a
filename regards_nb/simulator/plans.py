"""What an order contains and how it ends: plain data, and the bytes of the files.

Contents are made anew at each reading and are the same for the same seed.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
import zlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from regards_nb.simulator.faults import Fault

#: Contents are made and read in blocks of this size; nothing larger is held in memory.
BLOCK_BYTES = 1 << 16

_ROWS_PER_BLOCK = 512
_QUICKLOOK_PIXELS = 64
_MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


class Content:
    """The bytes of a file, which *make* returns for each reading as an iterator over blocks."""

    def __init__(
        self, make: Callable[[], Iterator[bytes]], *, size_bytes: int | None = None
    ) -> None:
        self._make = make
        self._size_bytes = size_bytes

    def chunks(self) -> Iterator[bytes]:
        """Read from the start."""
        return self._make()

    @cached_property
    def _digest(self) -> tuple[int, str]:
        """Size and MD5, computed by one reading at the first use."""
        md5 = hashlib.md5(usedforsecurity=False)
        size_bytes = 0
        for chunk in self.chunks():
            md5.update(chunk)
            size_bytes += len(chunk)
        return size_bytes, md5.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Number of bytes."""
        return self._digest[0] if self._size_bytes is None else self._size_bytes

    @property
    def md5(self) -> str:
        """MD5 as 32 hexadecimal digits."""
        return self._digest[1]


def of_bytes(data: bytes) -> Content:
    """Return *data* as a content."""
    return Content(lambda: iter([data] if data else []), size_bytes=len(data))


def of_path(path: Path) -> Content:
    """Return the content of the file at *path*, read in blocks each time."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    return Content(read, size_bytes=path.stat().st_size)


def noise(*, seed: str, size_bytes: int) -> Content:
    """Return random bytes, which do not compress."""

    def make() -> Iterator[bytes]:
        source = random.Random(seed)
        for start in range(0, size_bytes, BLOCK_BYTES):
            yield source.randbytes(min(BLOCK_BYTES, size_bytes - start))

    return Content(make, size_bytes=size_bytes)


@lru_cache(1024)
def sea_level(*, seed: str, rows: int) -> Content:
    """Return a CSV table: sea level along one pass of an altimetry satellite.

    The archives of one process share it, and with it its size and MD5.
    """
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
            at = _MIDNIGHT + timedelta(seconds=row)
            lines.append(
                f"{at:%Y-%m-%dT%H:%M:%SZ},{latitude:.5f},{longitude:.5f},{anomaly:.4f},{waves:.3f}\n"
            )
        yield "".join(lines).encode()


@lru_cache(1024)
def quicklook(*, seed: str) -> Content:
    """Return a small grey PNG picture, which archives share as they do tables."""
    return Content(lambda: iter([_quicklook_png(seed)]))


def _quicklook_png(seed: str) -> bytes:
    source = random.Random(seed)
    tilt, phase = source.uniform(0.1, 0.4), source.uniform(0, 6.28)
    side = range(_QUICKLOOK_PIXELS)
    rows = b"".join(
        # Every row of a PNG starts with the number of its filter; 0 is none.
        b"\0" + bytes(int(127 + 120 * math.sin(tilt * x + y / 9 + phase)) for x in side)
        for y in side
    )
    shape = struct.pack(">2I5B", _QUICKLOOK_PIXELS, _QUICKLOOK_PIXELS, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for part in (b"IHDR" + shape, b"IDAT" + zlib.compress(rows), b"IEND"):
        png += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    return png


class Outcome(Enum):
    """How an order ends."""

    #: Every file is staged.
    DONE = "DONE"
    #: The last file cannot be staged: FAILED with a link (protocol.md 1.6).
    PARTIAL = "PARTIAL"
    #: No file can be staged: FAILED without a link.
    FAILED = "FAILED"
    #: The filters exclude every file: GRANTED, then FAILED with a link and without a file.
    NO_FILES = "NO_FILES"
    #: The selection contains no product: FAILED, EMPTY_ORDER, no order id.
    EMPTY = "EMPTY"
    #: The request is invalid: DENIED.
    DENIED = "DENIED"
    #: The user is unknown: DENIED, FORBIDDEN.
    FORBIDDEN = "FORBIDDEN"
    #: More files than one order may have: DENIED, ORDER_LIMIT_REACHED.
    TOO_BIG = "TOO_BIG"


#: Outcomes without an order, hence without an order id.
REFUSED = frozenset({Outcome.EMPTY, Outcome.DENIED, Outcome.FORBIDDEN, Outcome.TOO_BIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """One file of an order.

    Attributes
    ----------
    name : str
        Any text, also names that no file system accepts.
    content : Content or bytes
        The bytes of the file.
    data_type : str
        ``RAWDATA`` or ``QUICKLOOK``.
    reference : bool
        An external file: the server has neither size nor checksum, and a download of the single
        file does not make it DOWNLOADED (protocol.md 1.5).
    has_checksum : bool
        Whether the manifest contains the MD5.
    """

    name: str
    content: Content | bytes
    data_type: str = "RAWDATA"
    mime_type: str = "application/octet-stream"
    product_id: str | None = None
    reference: bool = False
    has_checksum: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.content, bytes):
            # Converted once, so that size and MD5 are computed once.
            object.__setattr__(self, "content", of_bytes(self.content))

    @property
    def source(self) -> Content:
        """The content as a :class:`Content`."""
        return self.content if isinstance(self.content, Content) else of_bytes(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPlan:
    """One order: its files, their sub-orders, and how it ends.

    Attributes
    ----------
    files : sequence of FileSpec
        The files. Empty: ``n_files`` files of ``file_bytes`` random bytes.
    files_per_suborder : int
        Number of files in each sub-order but the last.
    outcome : Outcome
        How the order ends.
    faults : sequence of Fault
        Faults that apply to this order only.
    suborder_pause_s : float, optional
        Duration of the staging of one sub-order; default: the simulator's.
    """

    files: Sequence[FileSpec] = ()
    n_files: int = 4
    file_bytes: int = 10_000
    files_per_suborder: int = 2
    outcome: Outcome = Outcome.DONE
    faults: Sequence[Fault] = field(default=())
    suborder_pause_s: float | None = None
    dataset: str = "PLANNED"
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.files and self.n_files < 1:
            raise ValueError("n_files must be at least 1; use Outcome.EMPTY for an empty order")
        if self.files_per_suborder < 1:
            raise ValueError("files_per_suborder must be at least 1")

    def with_files(self, *, seed: str) -> OrderPlan:
        """Return the plan with explicit files."""
        if self.files or self.outcome is Outcome.NO_FILES:
            return self
        made = tuple(
            FileSpec(
                name=f"file_{index:05}.bin",
                content=noise(seed=f"{seed}/{index}", size_bytes=self.file_bytes),
            )
            for index in range(self.n_files)
        )
        return replace(self, files=made)

    @property
    def size_bytes(self) -> int:
        """Number of bytes of all files with a known size."""
        return sum(file.source.size_bytes for file in self.files if not file.reference)

    def suborders(self) -> list[Sequence[FileSpec]]:
        """Return the files of each sub-order."""
        step = self.files_per_suborder
        return [self.files[start : start + step] for start in range(0, len(self.files), step)]
