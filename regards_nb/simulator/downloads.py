"""The bodies that carry files: the zip of an order and single files (protocol.md 1.3, 1.5)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.simulator.answers import Answer, error
from regards_nb.simulator.archive import Archive, corrupted
from regards_nb.simulator.content import of_bytes, of_path
from regards_nb.simulator.faults import (
    CorruptFile,
    CutFile,
    CutZip,
    LateSave,
    RawZip,
    StorageRefuses,
)
from regards_nb.simulator.lifecycle import FileState
from regards_nb.simulator.zipping import in_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.lifecycle import Order, OrderFile
    from regards_nb.simulator.service import Service


class Downloads:
    """Answers downloads, and marks what went through.

    Parameters
    ----------
    service : Service
        Whose files they are.
    faults : Faults
        What is to go wrong.
    zip_level : int
        Deflate level.
    """

    def __init__(self, service: Service, faults: Faults, *, zip_level: int) -> None:
        self._service = service
        self._faults = faults
        self._zip_level = zip_level

    def zip(self, order: Order) -> Answer:
        """Return a zip of all that is available now; 204 where nothing is."""
        now = datetime.now(UTC).astimezone()
        headers = [
            ("Content-Type", "application/octet-stream"),
            # Unquoted and with colons, as the real one (protocol.md 1.3).
            (
                "Content-Disposition",
                f"attachment;filename=order_{order.order_id}_{now.isoformat()}.zip",
            ),
        ]
        with self._service.changing():
            files = order.available()
        raw = self._faults.take(RawZip, order_id=order.order_id)
        if raw is not None:
            return self._raw_zip(raw, files, order.order_id, headers)
        if not files:
            return Answer(status=204, headers=headers)
        archive = Archive(files, self._faults, made_at=now, level=self._zip_level)
        save = self._saving(order.order_id, files, archive.problems)
        answer = Answer(
            status=200,
            headers=headers,
            stream=in_blocks(archive.pieces()),
            served=save if archive.saves_states else None,
        )
        return self._cut(answer, order.order_id, archive.pieces)

    def _raw_zip(
        self, raw: RawZip, files: list[OrderFile], order_id: int, headers: list[tuple[str, str]]
    ) -> Answer:
        content = of_path(raw.source) if isinstance(raw.source, Path) else of_bytes(raw.source)
        answer = Answer(
            status=200,
            headers=headers,
            stream=in_blocks(content.chunks()),
            served=self._saving(order_id, files, {}) if raw.saves_states else None,
        )
        return self._cut(answer, order_id, content.chunks)

    def _cut(self, answer: Answer, order_id: int, pieces: Callable[[], Iterator[bytes]]) -> Answer:
        fault = self._faults.take(CutZip, order_id=order_id)
        if fault is not None:
            answer.ending = fault.ending
            answer.limit_bytes = fault.after_bytes
            if fault.after_bytes is None:
                # a first making, only to know how long it is
                answer.limit_bytes = int(sum(map(len, pieces())) * fault.after_fraction)
        return answer

    def _saving(
        self, order_id: int, files: list[OrderFile], problems: dict[int, str]
    ) -> Callable[[], None]:
        """Return what marks the files, for the moment after the last byte (protocol.md 1.0, 5)."""

        def save() -> None:
            late = self._faults.take(LateSave, order_id=order_id)
            self._service.downloaded(files, problems, late_s=late.delay_s if late else 0)

        return save

    def file(self, file: OrderFile) -> Answer:
        """Return one file, whatever has been downloaded before (protocol.md 1.0, 7)."""
        if file.state is FileState.PENDING:
            return error(202, "File not available yet")
        if file.state is FileState.ERROR:
            return error(422, file.error or "File in error")
        order_id, name = file.order_id, file.spec.name
        refusal = self._faults.take(StorageRefuses, order_id=order_id, name=name)
        if refusal is not None:
            self._service.downloaded([file], {file.file_id: f"HTTP {refusal.status}"})
            content_type = [("Content-Type", refusal.content_type)]
            return Answer(status=refusal.status, body=refusal.body, headers=content_type)
        return self._whole_file(file)

    def _whole_file(self, file: OrderFile) -> Answer:
        spec = file.spec
        chunks = spec.source.chunks()
        if self._faults.take(CorruptFile, order_id=file.order_id, name=spec.name):
            chunks = corrupted(chunks)
        answer = Answer(
            status=200,
            headers=[
                ("Content-Type", spec.mime_type),
                ("Content-Disposition", f'attachment;filename="{_header_text(spec.name)}"'),
            ],
            stream=in_blocks(chunks),
            length_bytes=None if spec.reference else spec.source.size_bytes,
            # An external file fetched alone never becomes DOWNLOADED (protocol.md 1.5).
            served=None if spec.reference else self._saving(file.order_id, [file], {}),
        )
        cut = self._faults.take(CutFile, order_id=file.order_id, name=spec.name)
        if cut is not None:
            answer.limit_bytes, answer.ending = cut.after_bytes, cut.ending
        return answer


def _header_text(name: str) -> str:
    """Return a name without what would end the header it stands in."""
    return "".join(c if c.isprintable() and c != '"' else "_" for c in name)
