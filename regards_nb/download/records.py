"""The records of the files of one order: read once from the log, and kept in step with it.

The log is the journal, or for downloads without a tracker a :class:`StateFile` beside the files.
"""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.
# ruff: noqa: PTH118

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NotRequired, Protocol, TypedDict

from regards_nb.download.bucket import Bucket, is_url, split_url
from regards_nb.download.disk import (
    STATE_FOLDER,
    has_content,
    make_state_folder,
    size_of,
    write_all,
)
from regards_nb.download.names import safe_name, unnumbered
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.download.places import Place

#: From this size on another object is begun, so that little is written again and few are read.
_STATE_BYTES = 1 << 16

Check = Literal["none", "size", "checksum"]


class FileLog(Protocol):
    """Records the files of orders: the journal for one tenant, or a state file."""

    def files(self, order_id: int) -> Iterable[FileRecord]:
        """Return the records of one order."""

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id); they are on disk on return."""


class OrderRecords:
    """The records of one order; *check* and *again* are those of `DownloadOptions`."""

    def __init__(
        self,
        log: FileLog,
        order_id: int,
        directory: Place,
        *,
        check: Check = "none",
        again: bool = False,
    ) -> None:
        self._log = log
        self._order_id = order_id
        self._folder = str(directory)
        self._separator = _separator(self._folder)
        self._check = check
        #: All of them, by file id.
        self.known: dict[int, FileRecord] = {}
        #: Ids of the files that the last manifest names.
        self.listed: set[int] = set()
        #: Ids of the files that got their final name since the last manifest.
        self.arrived: set[int] = set()
        #: Paths of recorded files that failed the check, or that are fetched once more.
        self.suspect: set[str] = set()
        self.read()
        if again:
            self.suspect.update(record.path for record in self.in_place if record.path)
            self.known = {file_id: _missing(record) for file_id, record in self.known.items()}

    def read(self) -> None:
        """Read what the log has now; other processes may have written to it."""
        checker = FileChecker(checksum=self._check == "checksum", what=f"order {self._order_id}")
        for record in self._log.files(self._order_id):
            self.known[record.file_id] = self._as_found(record, checker)

    def of(self, file_ids: Iterable[int]) -> list[FileRecord]:
        """Return the records of some files, by file id."""
        return [self.known[file_id] for file_id in sorted(file_ids)]

    @property
    def in_place(self) -> list[FileRecord]:
        """The files that are under their final names, by file id."""
        return [record for record in self.of(self.known) if record.in_place]

    def is_elsewhere(self, record: FileRecord) -> bool:
        """Return whether a file that is in place is in another folder."""
        return (record.path or "").rpartition(self._separator)[0] != self._folder

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
        """Record that files differ from the verified ones; return their new records."""
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

    def _as_found(self, record: FileRecord, checker: FileChecker) -> FileRecord:
        """Return a record, or that of a missing file where its file fails the check."""
        if self._check == "none" or not record.in_place:
            return record
        if checker.problem(record) is None:
            return record
        self.suspect.add(record.path or "")
        return _missing(record)


class FileProblem(NamedTuple):
    """The reason why a file differs from the verified one."""

    #: ``missing``, ``cut`` (too short) or ``changed``.
    problem: str
    #: Its size now; None if it is missing.
    found_bytes: int | None


class FileChecker:
    """Compares files with their records; each folder of a bucket is listed once.

    With *checksum* also reads the files and compares their MD5, where the manifest gave one. *what*
    is what the files belong to, such as ``order 12``, for error texts of a bucket.
    """

    def __init__(self, *, checksum: bool, what: str = "") -> None:
        self._what = what
        self._checksum = checksum
        self._buckets: dict[str, Bucket] = {}
        #: The names and sizes of the objects of each folder in a bucket.
        self._listed: dict[str, dict[str, int]] = {}

    def problem(self, record: FileRecord) -> FileProblem | None:
        """Return the fault of a file that is in place, or None.

        A file in a kept zip is right if the zip is there.
        """
        path = record.path
        assert path is not None  # noqa: S101 - a file that is in place has a path
        if is_url(path):
            size_bytes, is_file = self._object_bytes(path), True
        else:
            size_bytes, is_file = size_of(path)
        if size_bytes is None:
            return FileProblem("missing", None)
        if not is_file:
            return FileProblem("changed", size_bytes)
        if is_in_zip(record) or record.size_bytes is None:
            return None
        if size_bytes != record.size_bytes:
            is_cut = size_bytes < record.size_bytes
            return FileProblem("cut" if is_cut else "changed", size_bytes)
        if self._checksum and record.md5 and not self._has_content(record):
            return FileProblem("changed", size_bytes)
        return None

    def _object_bytes(self, url: str) -> int | None:
        folder, _, name = url.rpartition("/")
        if folder not in self._listed:
            bucket, prefix = split_url(folder)
            if bucket not in self._buckets:
                self._buckets[bucket] = Bucket(bucket, self._what)
            self._listed[folder] = self._buckets[bucket].list(prefix)
        return self._listed[folder].get(name)

    def _has_content(self, record: FileRecord) -> bool:
        path, size_bytes, md5 = record.path or "", record.size_bytes or 0, record.md5 or ""
        if not is_url(path):
            return has_content(path, size_bytes, md5)
        bucket, key = split_url(path)
        return self._buckets[bucket].md5(key) == md5


def zip_name(order_id: int) -> str:
    """Return the name of a kept zip; the name that the server gives is illegal on Windows."""
    return f"order_{order_id}.zip"


def is_in_zip(record: FileRecord) -> bool:
    """Return whether a file that is in place is inside a kept zip."""
    path = record.path or ""
    if not path.endswith(".zip"):
        return False
    name = os.path.basename(path)  # noqa: PTH119
    return name != safe_name(record.name) and unnumbered(name) == zip_name(record.order_id)


def _missing(record: FileRecord) -> FileRecord:
    return record._replace(state=FileState.LISTED, path=None, error=None, fetched_at_us=None)


def state_log(
    place: Place, order_id: int, *, archive: str = "", durable: bool = True
) -> StateFile | StateObjects:
    """Return the records of an order that are kept beside its files, not in a journal."""
    if isinstance(place, Path):
        return StateFile(place, order_id, archive=archive, durable=durable)
    return StateObjects(str(place), order_id, archive=archive)


def _state_name(order_id: int, archive: str) -> str:
    digest = hashlib.sha256(archive.encode()).hexdigest()[:8]
    return f"order_{order_id}-{digest}"


class StateFile:
    """Records the files of one order in ``<directory>/.regards/order_<id>-<archive>.jsonl``.

    Each line is a JSON object that says all of one file; a later line replaces an earlier one. The
    folder may be on a network file system, where databases cannot lock: a file that only grows
    needs no lock. A line that a kill cut off, or that two writers mixed up, is ignored: the server
    or a look at the folder tells the same again. The folder can be moved: paths are kept relative
    to it. *archive* tells this archive from others whose orders are in the same folder.
    """

    def __init__(
        self, directory: Path, order_id: int, *, archive: str = "", durable: bool = True
    ) -> None:
        self._directory = str(directory)
        self._order_id = order_id
        self._durable = durable
        self.path = directory / STATE_FOLDER / f"{_state_name(order_id, archive)}.jsonl"

    def files(self, order_id: int) -> list[FileRecord]:
        """Return the records of the files, by file id."""
        if order_id != self._order_id or not self.path.exists():
            return []
        with self.path.open("rb") as file:
            return _records_in(file, order_id, self._directory)

    def save(self, files: Iterable[FileRecord]) -> None:
        """Add records; each replaces an earlier one of the same file."""
        lines = _as_lines(files, self._directory)
        if not lines:
            return
        try:
            self._append(lines)
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


class StateObjects:
    """Records the files of one order in ``<place>/.regards/order_<id>-<archive>/`` of a bucket.

    The lines are those of a `StateFile`. Nothing can be added to an object: each `save` writes the
    whole of it once more, until it is large and another one begins. Their names sort by time, and
    no two processes write the same one.
    """

    def __init__(self, place: str, order_id: int, *, archive: str = "") -> None:
        self._place = place
        self._order_id = order_id
        bucket, prefix = split_url(place)
        self._bucket = Bucket(bucket, f"order {order_id}" if order_id else "")
        parts = (prefix, STATE_FOLDER, _state_name(order_id, archive))
        self._prefix = "/".join(filter(None, parts))
        self._name, self._lines = "", b""
        self._lock = threading.Lock()

    def files(self, order_id: int) -> list[FileRecord]:
        """Return the records of the files, by file id."""
        if order_id != self._order_id:
            return []
        names = sorted(self._bucket.list(self._prefix))
        texts = (self._bucket.read(f"{self._prefix}/{name}") or b"" for name in names)
        lines = (line for text in texts for line in text.splitlines())
        return _records_in(lines, order_id, self._place)

    def save(self, files: Iterable[FileRecord]) -> None:
        """Add records; each replaces an earlier one of the same file."""
        lines = _as_lines(files, self._place)
        if not lines:
            return
        with self._lock:
            if not self._name or len(self._lines) > _STATE_BYTES:
                self._name, self._lines = f"{time.time_ns():020}-{secrets.token_hex(4)}.jsonl", b""
            self._lines += lines
            self._bucket.write(f"{self._prefix}/{self._name}", self._lines)


class _Line(TypedDict):
    """One line: all of one file. The path is relative where the file is in the folder."""

    file_id: int
    name: str
    state: FileState
    size_bytes: NotRequired[int]
    md5: NotRequired[str]
    path: NotRequired[str]
    error: NotRequired[str]


def _as_lines(files: Iterable[FileRecord], directory: str) -> bytes:
    folder = directory + _separator(directory)
    # Six times as fast as dumps() of a dict, which makes an encoder each time.
    encode = json.JSONEncoder().encode
    lines = []
    for record in files:
        name = encode(record.name)
        line = f'{{"file_id": {record.file_id}, "name": {name}, "state": "{record.state}"'
        if record.size_bytes is not None:
            line += f', "size_bytes": {record.size_bytes}'
        if record.md5 is not None:
            line += f', "md5": "{record.md5}"'
        if record.path is not None:
            path = record.path.removeprefix(folder)
            line += f', "path": {name if path == record.name else encode(path)}'
        if record.error is not None:
            line += f', "error": {encode(record.error)}'
        lines.append(line + "}\n")
    return "".join(lines).encode()


def _records_in(lines: Iterable[bytes], order_id: int, directory: str) -> list[FileRecord]:
    """Return the last record of each file, by file id; a line that is not complete is ignored."""
    import msgspec  # imported here: it takes 30 ms, and a first download reads no lines

    decode = msgspec.json.Decoder(_Line).decode
    found: dict[int, _Line] = {}
    for text in lines:
        with suppress(msgspec.DecodeError):
            line = decode(text)
            found[line["file_id"]] = line
    return [
        FileRecord(
            order_id=order_id,
            file_id=line["file_id"],
            name=line["name"],
            size_bytes=line.get("size_bytes"),
            md5=line.get("md5"),
            path=_joined(directory, line.get("path")),
            state=line["state"],
            error=line.get("error"),
        )
        for _, line in sorted(found.items())
    ]


def _joined(directory: str, path: str | None) -> str | None:
    if path is None:
        return None
    # a URL is joined by a slash, on Windows too
    return f"{directory}/{path}" if is_url(directory) else os.path.join(directory, path)


def _separator(directory: str) -> str:
    return "/" if is_url(directory) else os.sep
