"""What is known of the files of one order, in one small file beside them: one line per change.

For downloads without a tracker. The folder may well be on a network file system of a computing
centre, where databases cannot lock: a file that only grows needs no lock. A line that was cut by a
kill or mixed up by two writers is passed over; what it said is found out again.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from regards_nb.download.wholes import write_all
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_encode = json.JSONEncoder().encode

#: Below the folder of the files.
STATE_FOLDER = ".regards"


class StateFile:
    """Records the files of one order in ``<directory>/.regards/order_<id>.jsonl``.

    Parameters
    ----------
    directory : pathlib.Path
        The folder of the files. It can be moved: paths are kept relative to it.
    order_id : int
        The order.
    durable : bool
        Whether :meth:`save` waits for the disk.
    """

    def __init__(self, directory: Path, order_id: int, *, durable: bool = True) -> None:
        self._directory = directory
        self._order_id = order_id
        self._durable = durable
        self.path = directory / STATE_FOLDER / f"order_{order_id}.jsonl"

    def files(self, order_id: int) -> list[FileRecord]:
        """Return what is known of the files, by file id."""
        if order_id != self._order_id or not self.path.exists():
            return []
        found: dict[int, FileRecord] = {}
        with self.path.open("rb") as file:
            for line in file:
                record = self._parsed(line)
                if record is not None:
                    found[record.file_id] = record
        return [found[file_id] for file_id in sorted(found)]

    def save(self, files: Iterable[FileRecord]) -> None:
        """Add records; each replaces an earlier one of the same file.

        Raises
        ------
        WorkspaceError
            They cannot be written.
        """
        lines = "".join(self._lines(files))
        if not lines:
            return
        try:
            self._append(lines.encode())
        except OSError as exc:
            raise WorkspaceError(f"cannot write to {self.path}: {exc.strerror}") from exc

    def _append(self, lines: bytes) -> None:
        if not self.path.parent.exists():
            self.path.parent.mkdir(exist_ok=True)
            # the history of one person's downloads does not belong into a repository
            (self.path.parent / ".gitignore").write_text("*\n", encoding="utf-8")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o666)
        try:
            # The line end comes first: it closes what a killed process may have left open.
            write_all(descriptor, b"\n" + lines)
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _lines(self, files: Iterable[FileRecord]) -> Iterator[str]:
        folder = f"{self._directory}{os.sep}"
        for r in files:
            path = r.path.removeprefix(folder) if r.path else None
            values = (r.file_id, r.name, r.size_bytes, r.md5, r.product_id, path, r.state, r.error)
            yield _encode(values) + "\n"

    def _parsed(self, line: bytes) -> FileRecord | None:
        """Read one line; None where it is not whole."""
        try:
            file_id, name, size_bytes, md5, product_id, path, state, error = json.loads(line)
            return FileRecord(
                order_id=self._order_id,
                file_id=int(file_id),
                name=str(name),
                size_bytes=size_bytes,
                md5=md5,
                product_id=product_id,
                path=None if path is None else os.path.join(self._directory, path),  # noqa: PTH118
                state=FileState(state),
                error=error,
            )
        except (ValueError, TypeError):
            return None
