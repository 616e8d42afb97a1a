"""What is known on this side of the files of one order: the log, read once and kept in step."""

# Paths are texts here: for very many files, Path objects are what costs.
# ruff: noqa: PTH116
from __future__ import annotations

import os
from array import array
from dataclasses import replace
from itertools import compress, islice
from operator import not_
from typing import TYPE_CHECKING, Protocol

from regards_nb.download.table import Files, FileTable, Mark
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from regards_nb.files import FileRecord

#: So many records are written at a time: an order may have very many.
_BATCH = 2000


class FileLog(Protocol):
    """Where the files of orders are recorded: the journal, bound to a tenant."""

    def files(self, order_id: int) -> Iterable[FileRecord]:
        """Return what is known of the files of one order."""

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id); on disk when it returns."""

    def update(self, files: Iterable[FileRecord]) -> None:
        """Record where files that were saved before are now: path, size, state and error."""


class Records:
    """The records of one order.

    Parameters
    ----------
    log : FileLog
        Where they are kept.
    order_id : int
        The order.
    directory : pathlib.Path
        Where its files go.
    restore_removed : bool
        Files that are recorded but not in the directory any more count as missing. False: who
        moved them away had his reasons.
    """

    def __init__(
        self, log: FileLog, order_id: int, directory: Path, *, restore_removed: bool
    ) -> None:
        self._log = log
        self._order_id = order_id
        self._folder = str(directory)
        self._restore_removed = restore_removed
        self.table = FileTable(order_id, folder=self._folder)
        self.read()

    def read(self) -> None:
        """Read what the log has now; other processes may have written to it."""
        self._note(map(self._as_found, self._log.files(self._order_id)))

    @property
    def files(self) -> Files:
        """All of them, by file id."""
        return Files(self.table)

    @property
    def came(self) -> Files:
        """Those that have come since the manifest was read."""
        return Files(self.table, self.table.marked(Mark.CAME))

    def expect(self, rows: Iterable[FileRecord]) -> int:
        """Record files that are not known yet; return how many there were."""
        before = len(self.table)
        self._introduce(row for row in rows if row.file_id not in self.table)
        return len(self.table) - before

    def relist(self, rows: Iterable[FileRecord]) -> None:
        """Record what the manifest says now of files that are not here; mark all that it names."""
        listed = array("q")

        def news() -> Iterator[FileRecord]:
            for row in rows:
                listed.append(row.file_id)
                if self._is_news(row):
                    yield row

        self._introduce(news())
        for mark in (Mark.LISTED, Mark.CAME):
            self.table.unmark(mark, self.table.ids)
        self.table.mark(Mark.LISTED, listed)

    def save(self, records: Sequence[FileRecord]) -> None:
        """Record where files are now."""
        is_new = [self.table.put(record) for record in records]
        self._log.save(compress(records, is_new))
        self._log.update(compress(records, map(not_, is_new)))
        self.table.mark(Mark.CAME, array("q", [r.file_id for r in records if r.path is not None]))

    def _introduce(self, records: Iterable[FileRecord]) -> None:
        remaining = iter(records)
        while batch := list(islice(remaining, _BATCH)):
            self._log.save(batch)
            self._note(batch)

    def _note(self, records: Iterable[FileRecord]) -> None:
        for record in records:
            self.table.put(record)

    def _is_news(self, row: FileRecord) -> bool:
        if row.file_id not in self.table:
            return True
        known = self.table[row.file_id]
        same = (known.name, known.size_bytes, known.md5) == (row.name, row.size_bytes, row.md5)
        return not same and not known.in_place

    def _as_found(self, record: FileRecord) -> FileRecord:
        """Return a record; as that of a missing file where its file is gone."""
        if not self._restore_removed or record.path is None or not record.in_place:
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
