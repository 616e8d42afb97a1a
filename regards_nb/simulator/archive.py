"""The zip of an order: which entries, under which names, with which accidents (protocol.md 1.3)."""

from __future__ import annotations

import posixpath
from collections import Counter
from typing import TYPE_CHECKING

from regards_nb.simulator.faults import (
    CorruptEntry,
    Faults,
    IncompleteZip,
    MissingEntry,
    TruncatedEntry,
    WrongCrc,
)
from regards_nb.simulator.zipping import ZipWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from regards_nb.simulator.lifecycle import OrderFile
    from regards_nb.simulator.plans import FileSpec

NOTICE_NAME = "NOTICE.txt"
_REFERENCE_LIMIT_BYTES = 0xFFFFFFFF


class Archive:
    """The zip that one request gets. Its accidents are decided here, once.

    Attributes
    ----------
    problems : dict of int to str
        Id and reason of each file that did not get through whole, and is said so in NOTICE.txt.
    saves_states : bool
        Whether the server marks the files once the last byte has gone.
    """

    def __init__(
        self,
        files: Sequence[OrderFile],
        faults: Faults,
        *,
        made_at: datetime,
        level: int = -1,
    ) -> None:
        self.files = files
        self.problems: dict[int, str] = {}
        order_id = files[0].order_id if files else None
        incomplete = faults.take(IncompleteZip, order_id=order_id)
        self.saves_states = incomplete is None
        kept = files if incomplete is None else files[: incomplete.keep_files]
        self._entries = [_Entry(file, name, faults) for file, name in _named(kept)]
        self._made_at = made_at
        self._level = level

    def pieces(self) -> Iterator[bytes]:
        """Make the bytes of the zip, anew at each call."""
        writer = ZipWriter(made_at=self._made_at, level=self._level)
        notices = []
        for entry in self._entries:
            yield from entry.pieces(writer)
            if entry.problem:
                self.problems[entry.file.file_id] = entry.problem
                notices.append(
                    f"Failed to download file ({entry.file.spec.name}): {entry.problem}."
                )
        if notices:
            yield writer.begin(NOTICE_NAME, declared_bytes=None)
            yield writer.data("\n".join(notices).encode("utf-8", "replace"))
            yield writer.end()
        yield from writer.finish()


class _Entry:
    """One file on its way into the zip."""

    def __init__(self, file: OrderFile, name: str, faults: Faults) -> None:
        self.file = file
        self._name = name
        order_id, real_name = file.order_id, file.spec.name
        self._missing = faults.take(MissingEntry, order_id=order_id, name=real_name)
        self._truncated = faults.take(TruncatedEntry, order_id=order_id, name=real_name)
        self._corrupt = faults.take(CorruptEntry, order_id=order_id, name=real_name)
        self._wrong_crc = faults.take(WrongCrc, order_id=order_id, name=real_name)
        self.problem = self._missing.reason if self._missing else ""

    def pieces(self, writer: ZipWriter) -> Iterator[bytes]:
        if self._missing:
            return
        spec = self.file.spec
        declared_bytes = None if spec.reference else spec.source.size_bytes
        yield writer.begin(self._name, declared_bytes=declared_bytes)
        sent_bytes = 0
        for chunk in self._chunks(spec):
            sent_bytes += len(chunk)
            yield writer.data(chunk)
        yield writer.end(crc=0x0BADC0DE if self._wrong_crc else None)
        if spec.reference and sent_bytes >= _REFERENCE_LIMIT_BYTES:
            # Zip64RequiredException: complete, and nevertheless named (protocol.md 1.3).
            self.problem = "Error during file download"

    def _chunks(self, spec: FileSpec) -> Iterator[bytes]:
        chunks = spec.source.chunks()
        if self._corrupt:
            chunks = corrupted(chunks)
        if self._truncated:
            whole = spec.source.size_bytes
            kept = int(whole * self._truncated.keep_fraction)
            if self._truncated.announced:
                self.problem = (
                    f"Cannot completely download data file from storage, only {kept}/{whole} bytes"
                )
            chunks = shortened(chunks, kept)
        return chunks


def corrupted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Change the first byte."""
    first = next(chunks, b"")
    yield bytes(byte ^ 0xFF for byte in first[:1]) + first[1:]
    yield from chunks


def shortened(chunks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Stop after so many bytes."""
    for chunk in chunks:
        if len(chunk) >= limit_bytes:
            yield chunk[:limit_bytes]
            return
        limit_bytes -= len(chunk)
        yield chunk


def _named(files: Sequence[OrderFile]) -> Iterator[tuple[OrderFile, str]]:
    """Give each file its entry name: the n-th homonym becomes ``name (n).ext``.

    Files of equal checksum and name are written once. A made name can meet a real one: the zip
    then has two entries of one name, as REGARDS' has.
    """
    seen: Counter[str] = Counter()
    once = set()
    counts = Counter(file.spec.name for file in files)
    for file in files:
        name = file.spec.name
        if counts[name] > 1 and not file.spec.reference:
            key = (name, file.spec.source.md5)
            if key in once:
                continue
            once.add(key)
        yield file, _homonym(name, seen[name])
        seen[name] += 1


def _homonym(name: str, number: int) -> str:
    if not number:
        return name
    stem, extension = posixpath.splitext(name)
    return f"{stem} ({number}){extension}"
