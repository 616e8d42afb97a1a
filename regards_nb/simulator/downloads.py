"""The bodies with files: the zip of an order and single files (protocol.md 1.3, 1.5).

A zip has byte for byte the structure of Apache commons-compress 1.26: sizes unknown in advance
(flag 0x0008 and a data descriptor after each entry), names in ASCII with ``%U00E9`` escapes and the
real name in extra field 0x7075, Zip64 only where it is required. Nothing larger than a block is
held in memory.
"""

from __future__ import annotations

import posixpath
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.simulator.faults import (
    CorruptEntry,
    CorruptFile,
    CutFile,
    CutZip,
    IncompleteZip,
    LateSave,
    MissingEntry,
    RawZip,
    StorageRefuses,
    TruncatedEntry,
    WrongCrc,
)
from regards_nb.simulator.plans import of_bytes, of_path
from regards_nb.simulator.server import Response, error, limited
from regards_nb.simulator.service import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.plans import FileSpec
    from regards_nb.simulator.service import Order, OrderFile, Service

NOTICE_NAME = "NOTICE.txt"
_REFERENCE_LIMIT_BYTES = 0xFFFFFFFF

_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_DESCRIPTOR_FLAG = 0x0008
_DEFLATED = 8
_VERSION, _VERSION_ZIP64 = 20, 45
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075


@dataclass(slots=True, kw_only=True, eq=False)
class Downloads:
    """Responds to downloads and updates the states of the files."""

    service: Service
    zip_level: int
    #: Whether a second zip of an order may start while one runs. REGARDS has refused that since
    #: 2.1; its answer is not documented, 409 is a guess.
    parallel_zips: bool
    #: Ids of the orders of which a zip is being sent; changed under the service's lock.
    sending: list[int] = field(default_factory=list)
    #: Files that were sent so far, for the quota.
    served_files: int = 0

    def zip(self, order: Order) -> Response:
        """Return a zip of all available files, or 204 if there is none."""
        now = datetime.now(UTC).astimezone()
        # REGARDS does not quote the name, which contains colons (protocol.md 1.3).
        disposition = f"attachment;filename=order_{order.order_id}_{now.isoformat()}.zip"
        headers = [
            ("Content-Type", "application/octet-stream"),
            ("Content-Disposition", disposition),
        ]
        with self.service.changing():
            files = order.available()
        raw = self.service.faults.take(RawZip, order_id=order.order_id)
        if raw is None and not files:
            return Response(status=204, headers=headers)
        with self.service.changing():
            if order.order_id in self.sending and not self.parallel_zips:
                return error(409, f"Order {order.order_id} is already being downloaded")
            self.sending.append(order.order_id)
        problems: dict[int, str] = {}
        if raw is not None:
            content = of_path(raw.source) if isinstance(raw.source, Path) else of_bytes(raw.source)
            pieces, saves_states = content.chunks, raw.saves_states
        else:
            archive = Archive(files, self.service.faults, made_at=now, level=self.zip_level)
            pieces, saves_states, problems = archive.pieces, archive.saves_states, archive.problems
        response = Response(
            status=200,
            headers=headers,
            stream=in_blocks(pieces()),
            served=self._saving(order.order_id, files, problems) if saves_states else None,
            finished=lambda: self._sent(order.order_id),
        )
        if (fault := self.service.faults.take(CutZip, order_id=order.order_id)) is not None:
            response.ending = fault.ending
            response.limit_bytes = fault.after_bytes
            if fault.after_bytes is None:
                # The zip is made once only to learn its length.
                response.limit_bytes = int(sum(map(len, pieces())) * fault.after_fraction)
        return response

    def _sent(self, order_id: int) -> None:
        with self.service.changing():
            self.sending.remove(order_id)

    def _saving(
        self, order_id: int, files: list[OrderFile], problems: dict[int, str]
    ) -> Callable[[], None]:
        """Return a function that saves the states after the last byte (protocol.md 1.0, 5)."""

        def save() -> None:
            self.served_files += len(files)
            late = self.service.faults.take(LateSave, order_id=order_id)
            self.service.downloaded(files, problems, late_s=late.delay_s if late else 0)

        return save

    def order_file(self, file: OrderFile) -> Response:
        """Return one file, also after it was downloaded (protocol.md 1.0, 7)."""
        if file.state is FileState.PENDING:
            return error(202, "File not available yet")
        if file.state is FileState.ERROR:
            return error(422, file.error or "File in error")
        response = self._file(file.spec, file.order_id)
        if response.status != 200:
            self.service.downloaded([file], {file.file_id: f"HTTP {response.status}"})
        elif not file.spec.reference:
            # A single external file never becomes DOWNLOADED (protocol.md 1.5).
            response.served = self._saving(file.order_id, [file], {})
        return response

    def catalogue_file(self, spec: FileSpec) -> Response:
        """Return one file of a product that was not ordered."""
        response = self._file(spec, None)
        self.served_files += response.status == 200
        return response

    def _file(self, spec: FileSpec, order_id: int | None) -> Response:
        refusal = self.service.faults.take(StorageRefuses, order_id=order_id, name=spec.name)
        if refusal is not None:
            content_type = [("Content-Type", refusal.content_type)]
            return Response(status=refusal.status, body=refusal.body, headers=content_type)
        chunks = spec.source.chunks()
        if self.service.faults.take(CorruptFile, order_id=order_id, name=spec.name):
            chunks = _corrupted(chunks)
        # Without characters that would end the header.
        name = "".join(c if c.isprintable() and c != '"' else "_" for c in spec.name)
        response = Response(
            status=200,
            headers=[
                ("Content-Type", spec.mime_type),
                ("Content-Disposition", f'attachment;filename="{name}"'),
            ],
            stream=in_blocks(chunks),
            length_bytes=None if spec.reference else spec.source.size_bytes,
        )
        cut = self.service.faults.take(CutFile, order_id=order_id, name=spec.name)
        if cut is not None:
            response.limit_bytes, response.ending = cut.after_bytes, cut.ending
        return response


class Archive:
    """The zip of one request. The constructor takes the faults that apply to it.

    *problems* are the reasons of the incomplete files, by id, for NOTICE.txt. *saves_states*: the
    server saves the states of the files after the last byte.
    """

    def __init__(
        self, files: Sequence[OrderFile], faults: Faults, *, made_at: datetime, level: int
    ) -> None:
        incomplete = faults.take(IncompleteZip, order_id=files[0].order_id)
        self.saves_states = incomplete is None
        kept = files if incomplete is None else files[: incomplete.keep_files]
        self._entries = [_Entry(file, name, faults) for file, name in _entry_names(kept)]
        self.problems = {each.file.file_id: each.problem for each in self._entries if each.problem}
        self._made_at = made_at
        self._level = level

    def pieces(self) -> Iterator[bytes]:
        """Make the bytes of the zip, anew at each call."""
        writer = ZipWriter(made_at=self._made_at, level=self._level)
        for entry in self._entries:
            if not entry.is_missing:
                yield from entry.pieces(writer)
        if self.problems:
            notices = (
                f"Failed to download file ({each.file.spec.name}): {each.problem}."
                for each in self._entries
                if each.problem
            )
            yield writer.begin(NOTICE_NAME, declared_bytes=None)
            yield writer.data("\n".join(notices).encode("utf-8", "replace"))
            yield writer.end()
        yield from writer.finish()


class _Entry:
    """One file as a zip entry."""

    def __init__(self, file: OrderFile, name: str, faults: Faults) -> None:
        self.file = file
        self._name = name
        spec, order_id = file.spec, file.order_id
        missing = faults.take(MissingEntry, order_id=order_id, name=spec.name)
        truncated = faults.take(TruncatedEntry, order_id=order_id, name=spec.name)
        self._corrupt = faults.take(CorruptEntry, order_id=order_id, name=spec.name)
        self._wrong_crc = faults.take(WrongCrc, order_id=order_id, name=spec.name)
        self.is_missing = missing is not None
        self.problem = ""
        self._kept_bytes: int | None = None
        if missing:
            self.problem = missing.reason
        elif truncated:
            size_bytes = spec.source.size_bytes
            self._kept_bytes = int(size_bytes * truncated.keep_fraction)
            if truncated.announced:
                what = "Cannot completely download data file from storage"
                self.problem = f"{what}, only {self._kept_bytes}/{size_bytes} bytes"
        elif spec.reference and spec.source.size_bytes >= _REFERENCE_LIMIT_BYTES:
            # Zip64RequiredException: the bytes are complete, NOTICE.txt names the file all the
            # same (protocol.md 1.3).
            self.problem = "Error during file download"

    def pieces(self, writer: ZipWriter) -> Iterator[bytes]:
        spec = self.file.spec
        chunks = spec.source.chunks()
        if self._corrupt:
            chunks = _corrupted(chunks)
        if self._kept_bytes is not None:
            chunks = limited(chunks, self._kept_bytes)
        declared_bytes = None if spec.reference else spec.source.size_bytes
        yield writer.begin(self._name, declared_bytes=declared_bytes)
        for chunk in chunks:
            yield writer.data(chunk)
        yield writer.end(crc=0x0BADC0DE if self._wrong_crc else None)


def _corrupted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Change the first byte."""
    first = next(chunks, b"")
    yield bytes(byte ^ 0xFF for byte in first[:1]) + first[1:]
    yield from chunks


def _entry_names(files: Sequence[OrderFile]) -> Iterator[tuple[OrderFile, str]]:
    """Give each file its entry name: the n-th file of one name becomes ``name (n).ext``.

    A file of the same checksum and name is written once. After an external file, which has no
    checksum, REGARDS takes every later file of that name for the same one and leaves it out. A
    generated name can be the real name of another file: the zip then has two entries of one name,
    as in REGARDS.
    """
    seen: Counter[str] = Counter()
    written = set()
    counts = Counter(file.spec.name for file in files)
    for file in files:
        name = file.spec.name
        if counts[name] > 1:
            key = (name, None if file.spec.reference else file.spec.source.md5)
            if key in written or (name, None) in written:
                continue
            written.add(key)
        number = seen[name]
        seen[name] += 1
        stem, extension = posixpath.splitext(name)
        yield file, f"{stem} ({number}){extension}" if number else name


@dataclass(slots=True)
class _Written:
    """One entry, for its descriptor and the central directory."""

    name: bytes
    unicode_extra: bytes
    zip64_header: bool
    offset: int
    crc: int = 0
    compressed_bytes: int = 0
    size_bytes: int = 0


class ZipWriter:
    """Converts entries to the bytes of a zip: ``begin``, ``data`` ..., ``end``; last ``finish``."""

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
        """Open an entry. It has the Zip64 form if *declared_bytes* requires it."""
        is_large = declared_bytes is not None and declared_bytes >= _LIMIT_32
        self._zip64_used |= is_large
        entry = _Written(*encoded_name(name), is_large, self._position)
        self._written.append(entry)
        self._deflate = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS)
        sizes, extra, version = 0, entry.unicode_extra, _VERSION
        if is_large:
            # Placeholders: the descriptor contains the sizes.
            sizes, version = _LIMIT_32, _VERSION_ZIP64
            extra = struct.pack("<2H2Q", _ZIP64_EXTRA, 16, 0, 0) + extra
        fixed = struct.pack("<4s3H", b"PK\3\4", version, _DESCRIPTOR_FLAG, _DEFLATED)
        rest = struct.pack("<3I2H", 0, sizes, sizes, len(entry.name), len(extra))
        header = self._count(fixed + self._dos_time + rest + entry.name + extra)
        self._data_start = self._position
        return header

    def data(self, chunk: bytes) -> bytes:
        """Add bytes to the open entry."""
        entry = self._written[-1]
        entry.crc = zlib.crc32(chunk, entry.crc)
        entry.size_bytes += len(chunk)
        return self._count(self._deflate.compress(chunk))

    def end(self, *, crc: int | None = None) -> bytes:
        """Close the open entry; *crc* replaces the correct CRC."""
        tail = self._count(self._deflate.flush())
        entry = self._written[-1]
        entry.crc = entry.crc if crc is None else crc
        entry.compressed_bytes = self._position - self._data_start
        sizes = struct.pack("<2Q", entry.compressed_bytes, entry.size_bytes)
        if not entry.zip64_header:
            # commons-compress writes the low 32 bits of an undeclared size above 4 GiB.
            sizes = sizes[:4] + sizes[8:12]
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
        sizes = min(size, _LIMIT_32), min(start, _LIMIT_32)
        yield struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, shown, shown, *sizes, 0)

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
    r"""Return the name of the zip header, and extra field 0x7075 for a name outside of ASCII.

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
    # UTF-8 has no lone surrogates; Java writes a question mark.
    path = name.encode("utf-8", "replace")
    crc = zlib.crc32(ascii_name)
    return ascii_name, struct.pack("<2HBI", _UNICODE_PATH_EXTRA, 5 + len(path), 1, crc) + path


def _escaped(character: str) -> str:
    """Escape a character as Java does: one ``%Uxxxx`` for each UTF-16 unit."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"%U{unit:04X}" for (unit,) in struct.iter_unpack(">H", units))


def in_blocks(pieces: Iterable[bytes], *, block_bytes: int = 1 << 15) -> Iterator[bytes]:
    """Join small pieces, so that each block but the last has at least *block_bytes*."""
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
