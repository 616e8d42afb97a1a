"""What is known of the files of one order, in one small file beside them: one line per change.

For downloads without a tracker. The folder may well be on a network file system of a computing
centre, where databases cannot lock: a file that only grows needs no lock. A line that was cut by a
kill or mixed up by two writers is passed over; what it said is found out again.

There may be very many files, each smaller than what can be said of it, so the lines are short. The
first one about a file, ``[7,"a.nc",20,"<MD5 in base64>"]``, says what is needed to fetch it after a
kill; the next, ``["V",7,20]``, that it is there, with its size. Where a file has another name than
on the server, or could not be had, that follows.
"""

from __future__ import annotations

import json
import os
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING

from regards_nb.download.table import Files, FileTable
from regards_nb.download.wholes import write_all
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    _Value = str | int | None

_encode = json.JSONEncoder().encode

#: Below the folder of the files.
STATE_FOLDER = ".regards"

#: How a state is written: by its first letter.
_STATES = {state[0]: state for state in FileState}
_LISTED = FileState.LISTED[0]
#: Lines were longer once, and said all of a file each time.
_FORMER_LENGTH = 8


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
        self._prefix = f"{directory}{os.sep}"
        self._order_id = order_id
        self._durable = durable
        self.path = directory / STATE_FOLDER / f"order_{order_id}.jsonl"

    def files(self, order_id: int) -> Files:
        """Return what is known of the files, by file id."""
        found = FileTable(self._order_id, folder=str(self._directory))
        if order_id == self._order_id and self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    self._read(line, found)
        return Files(found)

    def save(self, files: Iterable[FileRecord]) -> None:
        """Add records; each replaces an earlier one of the same file.

        Raises
        ------
        WorkspaceError
            They cannot be written.
        """
        self._write([self._full(record) for record in files])

    def update(self, files: Iterable[FileRecord]) -> None:
        """Add where files are now that were saved before: path, size, state and error.

        Raises
        ------
        WorkspaceError
            That cannot be written.
        """
        self._write([(r.state[0], r.file_id, r.size_bytes, *self._outcome(r)) for r in files])

    def _write(self, rows: list[tuple[_Value, ...]]) -> None:
        if not rows:
            return
        lines = "".join(map(_line, rows))
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

    def _full(self, record: FileRecord) -> tuple[_Value, ...]:
        """Return all that is needed of a file; no more, so its product is not in it."""
        known = (record.file_id, record.name, record.size_bytes, _packed(record.md5))
        letter = None if record.state is FileState.LISTED else record.state[0]
        return (*known, letter, *self._outcome(record))

    def _outcome(self, record: FileRecord) -> tuple[str | None, str | None]:
        """Return the final name of a file unless it goes without saying, and its error."""
        if record.path is None:
            return None, record.error
        place = record.path.removeprefix(self._prefix)
        is_usual = record.state.is_here and place == record.name
        return None if is_usual else place, record.error

    def _read(self, line: bytes, found: FileTable) -> None:
        """Take in one line, unless it is not whole."""
        try:
            values = json.loads(line)
            if isinstance(values[0], str):
                record = self._updated(found, *values)
            elif len(values) == _FORMER_LENGTH:
                record = self._former(*values)
            else:
                record = self._first(*values)
            found.put(record)
        except (ValueError, TypeError, LookupError, OverflowError):
            return

    def _first(
        self,
        file_id: int,
        name: str,
        size_bytes: int | None = None,
        md5: str | None = None,
        *outcome: str | None,
    ) -> FileRecord:
        return self._record(file_id, name, size_bytes, _unpacked(md5), *outcome)

    def _updated(
        self,
        found: FileTable,
        letter: str,
        file_id: int,
        size_bytes: int | None = None,
        *outcome: str | None,
    ) -> FileRecord:
        known = found[file_id]
        return self._record(file_id, known.name, size_bytes, known.md5, letter, *outcome)

    def _former(  # noqa: PLR0917 - as the line has them
        self,
        file_id: int,
        name: str,
        size_bytes: int | None,
        md5: str | None,
        _product_id: str | None,
        place: str | None,
        state: str,
        error: str | None,
    ) -> FileRecord:
        return self._record(file_id, name, size_bytes, md5, state[0], place, error)

    def _record(  # noqa: PLR0917 - as the line has them
        self,
        file_id: int,
        name: str,
        size_bytes: int | None,
        md5: str | None,
        letter: str | None = None,
        place: str | None = None,
        error: str | None = None,
    ) -> FileRecord:
        state = _STATES[letter or _LISTED]
        if place is None and state.is_here:
            place = name
        return FileRecord(
            order_id=self._order_id,
            file_id=int(file_id),
            name=str(name),
            size_bytes=size_bytes,
            md5=md5,
            path=None if place is None else os.path.join(self._directory, place),  # noqa: PTH118
            state=state,
            error=error,
        )


def _line(row: tuple[_Value, ...]) -> str:
    """Return a line that says this; what is not known at its end is left out."""
    length = len(row)
    while row[length - 1] is None:
        length -= 1
    return f"[{','.join(map(_json, row[:length]))}]\n"


def _json(value: _Value) -> str:
    # a line costs twice as much when it is encoded as a list
    return _encode(value) if isinstance(value, str) else "null" if value is None else str(value)


def _packed(md5: str | None) -> str | None:
    # 16 bytes are 22 letters and two "="
    return None if md5 is None else b2a_base64(bytes.fromhex(md5))[:22].decode()


def _unpacked(md5: str | None) -> str | None:
    return None if md5 is None else a2b_base64(f"{md5}==").hex()
