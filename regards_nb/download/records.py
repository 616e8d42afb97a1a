"""What is known on this side of the files of one order: the log, read once and kept in step."""

# Paths are texts here: for very many files, Path objects are what costs.
# ruff: noqa: PTH116
from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from regards_nb.download.publisher import FileLog

IN_PLACE = frozenset({FileState.VERIFIED, FileState.UNVERIFIED})

#: So many records are written at a time: an order may have very many.
_BATCH = 2000


def is_in_place(record: FileRecord | None) -> bool:
    """Whether a file is where its record says."""
    return record is not None and record.state in IN_PLACE and record.path is not None


class Records:
    """The records of one order, by file id.

    Parameters
    ----------
    log : FileLog
        Where they are kept.
    order_id : int
        The order.
    directory : pathlib.Path, optional
        Files that are recorded but not in this directory any more count as missing. None: who
        moved them away had his reasons.
    """

    def __init__(self, log: FileLog, order_id: int, directory: Path | None) -> None:
        self._log = log
        self._order_id = order_id
        self._folder = None if directory is None else str(directory)
        self.by_id: dict[int, FileRecord] = {}
        self.read()

    def read(self) -> None:
        """Read what the log has now; other processes may have written to it."""
        self.by_id = {
            record.file_id: self._as_found(record) for record in self._log.files(self._order_id)
        }

    def expect(self, rows: Iterable[FileRecord]) -> int:
        """Record files that are not known yet; return how many there were."""
        new = [row for row in rows if row.file_id not in self.by_id]
        self.save(new)
        return len(new)

    def save(self, records: Iterable[FileRecord]) -> None:
        """Record files as they are now."""
        remaining = iter(records)
        while batch := list(islice(remaining, _BATCH)):
            self._log.save(batch)
            self.note(batch)

    def note(self, records: Iterable[FileRecord]) -> None:
        """Take in what somebody else has saved."""
        self.by_id.update((record.file_id, record) for record in records)

    @property
    def in_place(self) -> Iterator[FileRecord]:
        """The files that are there, by file id."""
        return (record for _, record in sorted(self.by_id.items()) if is_in_place(record))

    def _as_found(self, record: FileRecord) -> FileRecord:
        """Return a record; as that of a missing file where its file is gone."""
        if self._folder is None or record.path is None or not is_in_place(record):
            return record
        folder, name = os.path.split(record.path)
        try:
            size_bytes = os.stat(record.path).st_size
        except OSError:
            size_bytes = -1
        # what is kept in a zip has another size than the zip
        right = size_bytes >= 0 and (
            record.size_bytes in (None, size_bytes) or name.endswith(".zip")
        )
        if right and folder == self._folder:
            return record
        return replace(record, state=FileState.LISTED, path=None)
