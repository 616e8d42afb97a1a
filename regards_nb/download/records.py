"""The records of the files of one order: read once from the log, and kept in step with it.

The log is the journal, or for downloads without a tracker a :class:`StateFile` beside the files.
"""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH118

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from regards_nb.download.names import safe_name, unnumbered
from regards_nb.download.workspace import STATE_FOLDER, has_content, make_state_folder, write_all
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Check = Literal["none", "size", "checksum"]


class FileLog(Protocol):
    """Records the files of orders: the journal for one tenant, or a state file."""

    def files(self, order_id: int) -> Iterable[FileRecord]:
        """Return the records of one order."""

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id); they are on disk on return."""


class OrderRecords:
    """The records of one order.

    Parameters
    ----------
    log : FileLog
        Where they are kept.
    order_id : int
        The order.
    directory : pathlib.Path
        Where its files go.
    check : {"none", "size", "checksum"}
        Recorded files that fail this check count as missing. ``none``: files that are missing are
        assumed to have been moved by the user.
    again : bool
        All recorded files count as missing.

    Attributes
    ----------
    known : dict of int to FileRecord
        All of them, by file id.
    listed : set of int
        Ids of the files that the last manifest names.
    arrived : set of int
        Ids of the files that got their final name since the last manifest.
    """

    def __init__(
        self,
        log: FileLog,
        order_id: int,
        directory: Path,
        *,
        check: Check = "none",
        again: bool = False,
    ) -> None:
        self._log = log
        self._order_id = order_id
        self._folder = str(directory)
        self._check = check
        self.known: dict[int, FileRecord] = {}
        self.listed: set[int] = set()
        self.arrived: set[int] = set()
        self.read()
        if again:
            self.known = {file_id: _missing(record) for file_id, record in self.known.items()}

    def read(self) -> None:
        """Read what the log has now; other processes may have written to it."""
        for record in self._log.files(self._order_id):
            self.known[record.file_id] = self._as_found(record)

    def of(self, file_ids: Iterable[int]) -> list[FileRecord]:
        """Return the records of some files, by file id."""
        return [self.known[file_id] for file_id in sorted(file_ids)]

    @property
    def in_place(self) -> list[FileRecord]:
        """The files that are under their final names, by file id."""
        return [record for record in self.of(self.known) if record.in_place]

    @property
    def elsewhere(self) -> list[FileRecord]:
        """The files that are under their final names in another folder, by file id."""
        return [record for record in self.in_place if _folder_of(record) != self._folder]

    def expect(self, rows: Iterable[FileRecord]) -> int:
        """Record files that are not known yet; return how many there were."""
        new = {row.file_id: row for row in rows if row.file_id not in self.known}
        self._save(list(new.values()))
        return len(new)

    def relist(self, rows: Iterable[FileRecord]) -> None:
        """Record what a new manifest says of the files that are not in place."""
        listed = {row.file_id: row for row in rows}
        self._save([row for row in listed.values() if self._is_news(row)])
        self.listed = set(listed)
        self.arrived = set()

    def mark_missing(self, records: Iterable[FileRecord]) -> list[FileRecord]:
        """Record that files are not what was verified; return their new records."""
        missing = [_missing(record) for record in records]
        self._save(missing)
        return missing

    def save(self, records: list[FileRecord]) -> None:
        """Record where files are now."""
        self._save(records)
        self.arrived.update(record.file_id for record in records if record.path is not None)

    def _save(self, records: list[FileRecord]) -> None:
        if records:
            self._log.save(records)
            self.known.update((record.file_id, record) for record in records)

    def _is_news(self, row: FileRecord) -> bool:
        known = self.known.get(row.file_id)
        if known is None:
            return True
        same = (known.name, known.size_bytes, known.md5) == (row.name, row.size_bytes, row.md5)
        return not same and not known.in_place

    def _as_found(self, record: FileRecord) -> FileRecord:
        """Return a record, or that of a missing file where its file fails the check."""
        if self._check == "none" or not record.in_place:
            return record
        problem = find_problem(record, checksum=self._check == "checksum")
        return record if problem is None else _missing(record)


class FileProblem(NamedTuple):
    """Why a file is not any more what was verified."""

    #: ``missing``, ``cut`` (too short) or ``changed``.
    problem: str
    #: Its size now; None if it is missing.
    found_bytes: int | None


def find_problem(record: FileRecord, *, checksum: bool) -> FileProblem | None:
    """Look at a recorded file; return what is wrong with it, or None.

    Parameters
    ----------
    record : FileRecord
        A file that is in place. A file in a kept zip is right if the zip is there.
    checksum : bool
        Also read the file and compare its MD5, if the manifest gave one.
    """
    assert record.path is not None  # noqa: S101 - a file that is in place has a path
    try:
        found = os.lstat(record.path)
    except OSError:
        return FileProblem("missing", None)
    if not stat.S_ISREG(found.st_mode):
        return FileProblem("changed", found.st_size)
    if is_in_zip(record) or record.size_bytes is None:
        return None
    if found.st_size != record.size_bytes:
        is_cut = found.st_size < record.size_bytes
        return FileProblem("cut" if is_cut else "changed", found.st_size)
    if checksum and record.md5 and not has_content(record.path, record.size_bytes, record.md5):
        return FileProblem("changed", found.st_size)
    return None


def zip_name(order_id: int) -> str:
    """Return the name of a kept zip; the name that the server gives is illegal on Windows."""
    return f"order_{order_id}.zip"


def is_in_zip(record: FileRecord) -> bool:
    """Return whether a file that is in place is inside a kept zip."""
    name = os.path.basename(record.path or "")  # noqa: PTH119
    return name != safe_name(record.name) and unnumbered(name) == zip_name(record.order_id)


def _missing(record: FileRecord) -> FileRecord:
    return replace(record, state=FileState.LISTED, path=None, error=None, fetched_at_us=None)


def _folder_of(record: FileRecord) -> str:
    return os.path.dirname(record.path or "")  # noqa: PTH120


class StateFile:
    """Records the files of one order in ``<directory>/.regards/order_<id>-<archive>.jsonl``.

    Each line is a JSON object that says all of one file; a later line replaces an earlier one. The
    folder may be on a network file system, where databases cannot lock: a file that only grows
    needs no lock. A line that a kill cut off, or that two writers mixed up, is ignored: the server
    or a look at the folder tells the same again.

    Parameters
    ----------
    directory : pathlib.Path
        The folder of the files. It can be moved: paths are kept relative to it.
    order_id : int
        The order.
    archive : str
        What tells this archive from others whose orders are in the same folder.
    durable : bool
        Whether :meth:`save` waits for the disk.
    """

    def __init__(
        self, directory: Path, order_id: int, *, archive: str = "", durable: bool = True
    ) -> None:
        self._directory = str(directory)
        self._order_id = order_id
        self._durable = durable
        digest = hashlib.sha256(archive.encode()).hexdigest()[:8]
        self.path = directory / STATE_FOLDER / f"order_{order_id}-{digest}.jsonl"

    def files(self, order_id: int) -> list[FileRecord]:
        """Return what is known of the files, by file id."""
        found: dict[int, FileRecord] = {}
        if order_id == self._order_id and self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    record = self._read(line)
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
        lines = "".join(f"{json.dumps(self._fields(record))}\n" for record in files)
        if not lines:
            return
        try:
            self._append(lines.encode())
        except OSError as exc:
            raise WorkspaceError(f"cannot write to {self.path}: {exc.strerror}") from exc

    def _append(self, lines: bytes) -> None:
        make_state_folder(self.path.parent.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o666)
        try:
            # the line end comes first: it closes a line that a killed process left open
            write_all(descriptor, b"\n" + lines)
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _fields(self, record: FileRecord) -> dict[str, Any]:
        path = record.path
        fields = {
            "file_id": record.file_id,
            "name": record.name,
            "size_bytes": record.size_bytes,
            "md5": record.md5,
            "state": record.state,
            "path": None if path is None else path.removeprefix(f"{self._directory}{os.sep}"),
            "error": record.error,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _read(self, line: bytes) -> FileRecord | None:
        """Read one line; return None where it is not complete."""
        try:
            fields = json.loads(line)
            path = _value(fields, "path", str)
            return FileRecord(
                order_id=self._order_id,
                file_id=_needed(fields, "file_id", int),
                name=_needed(fields, "name", str),
                size_bytes=_value(fields, "size_bytes", int),
                md5=_value(fields, "md5", str),
                path=None if path is None else os.path.join(self._directory, path),
                state=FileState(_needed(fields, "state", str)),
                error=_value(fields, "error", str),
            )
        except (ValueError, TypeError):
            return None


def _needed(fields: Any, name: str, kind: type) -> Any:
    value = _value(fields, name, kind)
    if value is None:
        raise ValueError(name)
    return value


def _value(fields: Any, name: str, kind: type) -> Any:
    value = fields.get(name) if isinstance(fields, dict) else None
    if value is not None and type(value) is not kind:
        raise TypeError(name)
    return value
