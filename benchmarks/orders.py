"""The orders of the download benchmark, made once and kept on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from order_server import framed

from regards_nb.simulator import ZipWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
_FIELD_BYTES = 1 << 18


class File(NamedTuple):
    """One file of an order, not made yet."""

    name: str
    make: Callable[[], bytes]


def netcdf_like(seed: int, size_bytes: int) -> bytes:
    """Return data like those of gridded products: smooth fields of two decimals, and some noise.

    They compress to a third, and inflate at 400 MB/s with zlib and at 1000 MB/s with isal.
    """
    source = np.random.default_rng(seed)
    walk = np.cumsum(source.normal(0, 0.02, -(-size_bytes // 4)))
    field = bytearray(np.round(walk, 2).astype(np.float32).tobytes()[:size_bytes])
    for start in range(0, size_bytes, _FIELD_BYTES):
        end = min(start + _FIELD_BYTES * 3 // 20, size_bytes)
        field[start:end] = source.bytes(end - start)
    return bytes(field)


def large_files() -> Iterator[File]:
    """Yield 4 files of 256 MiB that compress to a third: 1.07 GB."""
    for number in range(4):
        yield File(f"grid_{number}.nc", partial(netcdf_like, number, 256 * MIB))


def typical_files() -> Iterator[File]:
    """Yield 200 files of 50 kB to 4 MB, one in three incompressible: 421 MB."""
    source = random.Random(1)
    for number in range(200):
        size = source.randrange(50_000, 4_160_000)
        if number % 3:
            yield File(f"product_{number:03}.nc", partial(netcdf_like, number, size))
        else:
            yield File(f"product_{number:03}.tif", partial(_noise, number, size))


def small_files(count: int) -> Iterator[File]:
    """Yield *count* files of 20 bytes."""
    for number in range(count):
        yield File(f"station_{number:05}.csv", partial(b"%019d\n".__mod__, number))


def separate_files() -> Iterator[File]:
    """Yield 500 files of 1 to 5 MB that do not compress: 1.5 GB."""
    source = random.Random(2)
    for number in range(500):
        size = source.randrange(1_000_000, 5_000_000)
        yield File(f"tile_{number:03}.tif", partial(_noise, number, size))


def object_files() -> Iterator[File]:
    """Yield 500 files of 20 kB and 5 of 40 MiB that do not compress: 10 MB and 210 MB."""
    for number in range(505):
        size = 40 * MIB if number % 101 == 100 else 20_000
        yield File(f"object_{number:03}.nc", partial(_noise, number, size))


def _noise(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


ORDERS: dict[str, Callable[[], Iterator[File]]] = {
    "large": large_files,
    "typical": typical_files,
    "small-10000": lambda: small_files(10_000),
    "separate": separate_files,
    "objects": object_files,
}


def prepare(name: str, cache: Path) -> Path:
    """Make an order, unless it exists, and return its folder."""
    folder = cache / name
    if (folder / "manifest.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    writer = ZipWriter(made_at=datetime(2026, 1, 1, tzinfo=UTC))
    rows, sums, size_bytes = [], [], 0
    with (folder / "order.zip").open("wb") as archive:
        for number, file in enumerate(ORDERS[name](), 1):
            data = file.make()
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            rows.append(
                {"id": number, "filename": file.name, "filesize": len(data), "checksum": md5}
            )
            sums.append(f"{md5}  {file.name}\n")
            size_bytes += len(data)
            if name == "separate":
                (folder / "files" / str(number)).write_bytes(data)
            archive.write(writer.begin(file.name, declared_bytes=len(data)))
            archive.write(writer.data(data))
            archive.write(writer.end())
        archive.writelines(writer.finish())
    framed(folder / "order.zip", folder / "zip.chunked")
    (folder / "order.zip").unlink()
    (folder / "MD5SUMS").write_text("".join(sums))
    (folder / "order.json").write_text(json.dumps({"bytes": size_bytes}))
    # Written last: prepare() takes it as the sign of a complete order.
    (folder / "manifest.json").write_text(json.dumps(rows))
    return folder


def stored_bytes(folder: Path) -> int:
    """Return the disk space of an order's files, in whole blocks."""
    rows = json.loads((folder / "manifest.json").read_text())
    block_bytes = os.statvfs(folder).f_frsize
    return sum(-(-row["filesize"] // block_bytes) * block_bytes for row in rows)


if __name__ == "__main__":
    print(stored_bytes(prepare(sys.argv[1], Path(sys.argv[2]))))
