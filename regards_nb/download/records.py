"""The records of the files of one order: read once from the log, and kept in step with it.

The log is the journal, or for downloads without a tracker a :class:`StateLog` beside the files.
"""

# Paths are strings here: a Path object for each of 10,000 files takes as long as its system call.

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from regards_nb.client import pausing
from regards_nb.download.disk import STATE_FOLDER
from regards_nb.download.names import safe_name, unnumbered
from regards_nb.download.places import files_in, root_and_name
from regards_nb.files import FileRecord, FileState, is_url
from regards_nb.waits import said_meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from regards_nb.download.bucket import BucketFiles
    from regards_nb.download.disk import FolderFiles
    from regards_nb.download.places import Place

Check = Literal["none", "size", "checksum"]


class FileLog(Protocol):
    """Records the files of orders: the journal for one tenant, or a state file."""

    def files(self, order_id: int) -> Iterable[FileRecord]:
        """Return the records of one order."""

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id); they are on disk on return."""


class OrderRecords:
    """The records of one order; *check*, *again* and *originals* are those of `DownloadOptions`."""

    def __init__(
        self,
        log: FileLog,
        order_id: int,
        directory: Place,
        *,
        check: Check = "none",
        again: bool = False,
        originals: Callable[[], Place] | None = None,
    ) -> None:
        self._log = log
        self._order_id = order_id
        self._what = f"order {order_id}"
        self._start = _start_of(directory)
        self._check = check
        self._originals = originals
        #: All of them, by file id.
        self.known: dict[int, FileRecord] = {}
        #: Ids of the files that the last manifest names.
        self.listed: set[int] = set()
        #: Ids of the files that got their final name since the last manifest.
        self.placed: set[int] = set()
        #: Paths of recorded files that failed the check, or that are fetched once more.
        self.suspect: set[str] = set()
        self.read()
        if again:
            self.suspect.update(record.path for record in self.in_place if record.path)
            self.known = {file_id: _missing(record) for file_id, record in self.known.items()}

    def read(self) -> None:
        """Read what the log has now; other processes may have written to it."""
        records = list(self._log.files(self._order_id))
        self.known.update((record.file_id, record) for record in records)
        if self._check == "none":
            return
        wrong = compare_files(records, checksum=self._check == "checksum", what=self._what)
        self.suspect.update(record.path or "" for record in wrong)
        self.known.update((record.file_id, _missing(record)) for record in wrong)
        self._use_originals([record for record in wrong if record.md5])

    def _use_originals(self, wrong: list[FileRecord]) -> None:
        """Record the verified files of the workspace whose recorded copies elsewhere are gone."""
        if not wrong or self._originals is None:
            return
        start = _start_of(self._originals())
        here = [each._replace(path=start + os.path.basename(each.path or "")) for each in wrong]  # noqa: PTH119
        others = [record for record in here if record.path not in self.suspect]
        gone = compare_files(others, checksum=True, what=self._what)
        self._save([record for record in others if record not in gone])

    def of(self, file_ids: Iterable[int]) -> list[FileRecord]:
        """Return the records of some files, by file id."""
        return [self.known[file_id] for file_id in sorted(file_ids)]

    @property
    def in_place(self) -> list[FileRecord]:
        """The files that are under their final names, by file id."""
        return [record for record in self.of(self.known) if record.in_place]

    def is_in_other_place(self, record: FileRecord) -> bool:
        """Return whether a file that is in place is in another folder."""
        rest = (record.path or "").removeprefix(self._start)
        return "/" in rest or os.sep in rest

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
        self.placed = set()

    def mark_missing(self, records: Iterable[FileRecord]) -> list[FileRecord]:
        """Record that files differ from the verified ones; return their new records."""
        missing = [_missing(record) for record in records]
        self._save(missing)
        return missing

    def save(self, records: list[FileRecord]) -> None:
        """Record where files are now."""
        self._save(records)
        self.placed.update(record.file_id for record in records if record.path is not None)

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


class FileProblem(NamedTuple):
    """The reason why a file differs from the verified one."""

    #: ``missing``, ``cut`` (too short) or ``changed``.
    problem: str
    #: Its size now; None if it is missing.
    found_bytes: int | None


def compare_files(
    records: Iterable[FileRecord], *, checksum: bool, what: str = ""
) -> dict[FileRecord, FileProblem]:
    """Return which of the files that are in place differ from their records.

    With *checksum* their MD5 is compared, too, where the manifest gave one: that may take minutes,
    and is told. *what* is what the files belong to, such as ``order 12``, for this and for errors
    of a bucket.
    """
    found: dict[FileRecord, FileProblem] = {}
    #: Each prefix of a bucket is listed once.
    roots: dict[str, FolderFiles | BucketFiles] = {}
    with ExitStack() as told:
        if checksum:
            text = f"comparing the files in place{what and f' of {what}'} with their MD5"
            told.enter_context(said_meanwhile(text))
            told.enter_context(pausing(text))
        for record in records:
            if not record.in_place:
                continue
            root, name = root_and_name(record.path or "")
            files = roots[root] = roots.get(root) or files_in(root, what)
            if problem := _problem(record, files, name, checksum=checksum):
                found[record] = problem
    return found


def _problem(
    record: FileRecord, files: FolderFiles | BucketFiles, name: str, *, checksum: bool
) -> FileProblem | None:
    size_bytes, is_file = files.size_of(name)
    if size_bytes is None:
        return FileProblem("missing", None)
    if not is_file:
        return FileProblem("changed", size_bytes)
    # of a file in a kept zip only the zip is looked for
    if is_in_zip(record) or record.size_bytes is None:
        return None
    if size_bytes != record.size_bytes:
        is_cut = size_bytes < record.size_bytes
        return FileProblem("cut" if is_cut else "changed", size_bytes)
    is_read = checksum and record.md5 is not None
    if is_read and not files.has(name, size_bytes, record.md5 or "", reads=True):
        return FileProblem("changed", size_bytes)
    return None


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


def _start_of(directory: Place) -> str:
    return f"{directory}{'/' if is_url(str(directory)) else os.sep}"


def _missing(record: FileRecord) -> FileRecord:
    return record._replace(state=FileState.LISTED, path=None, error=None, fetched_at_us=None)


#: One file in a `StateLog`: id, name, size, MD5, path, state and error.
_Row = tuple[int, str, int | None, str | None, str | None, FileState, str | None]


class StateLog:
    """Records the files of one order beside them, in ``.regards/order_<id>-<archive>``.

    Each line is a JSON array of files; what a later line says of a file replaces an earlier one.
    The folder may be on a network file system, where databases cannot lock: a file that only grows
    needs no lock. A line that a kill cut off, or that two writers mixed up, is ignored: the server
    or a look at the folder tells the same again. The folder can be moved: paths are kept relative
    to it. *archive* tells this archive from others whose orders are in the same folder.
    """

    def __init__(
        self, directory: Place, order_id: int, *, archive: str = "", durable: bool = True
    ) -> None:
        self._durable = durable
        self._beside = files_in(str(directory), f"order {order_id}" if order_id else "")
        digest = hashlib.sha256(archive.encode()).hexdigest()[:8]
        self._name = f"{STATE_FOLDER}/order_{order_id}-{digest}"

    def files(self, order_id: int) -> list[FileRecord]:
        """Return the records of the files, by file id."""
        if not (lines := self._beside.lines(self._name)):
            return []
        import msgspec  # imported here: it takes 30 ms, and a first download reads no lines

        decode = msgspec.json.Decoder(list[_Row]).decode
        found: dict[int, _Row] = {}
        for line in lines:
            with suppress(msgspec.DecodeError):
                found.update((row[0], row) for row in decode(line))
        return [
            FileRecord(order_id, at, name, size, md5, None, path and self._full(path), state, why)
            for at, (_, name, size, md5, path, state, why) in sorted(found.items())
        ]

    def save(self, files: Iterable[FileRecord]) -> None:
        """Add records; each replaces an earlier one of the same file."""
        start = self._beside.join("")
        rows: list[_Row] = [
            (file_id, name, size_bytes, md5, path and path.removeprefix(start), state, why)
            for _, file_id, name, size_bytes, md5, _, path, state, why, _ in files
        ]
        if rows:
            line = json.dumps(rows, separators=(",", ":")).encode() + b"\n"
            self._beside.add_lines(self._name, line, durable=self._durable)

    def _full(self, path: str) -> str:
        return path if os.path.isabs(path) else self._beside.join(path)  # noqa: PTH117
