"""The files of one order, very many perhaps, in little memory. Pure values, safe in any thread."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING, overload

from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Mark(IntEnum):
    """What one increment notes of files; it is nowhere recorded."""

    #: The manifest names it.
    LISTED = 0x10
    #: It has to be found yet.
    OPEN = 0x20
    #: It has come.
    CAME = 0x40


_STATES = tuple(FileState)
_NUMBER_OF = {state: number for number, state in enumerate(_STATES)}
#: What the flags of a file say besides its marks and the number of its state.
_STATE, _HAS_MD5, _HAS_PATH = 0b11, 0b100, 0b1000
_MARKS = sum(Mark)
_NO_MARKS = 0xFF ^ _MARKS
#: Flags of a file that is where its path says.
_IN_PLACE = frozenset(
    _HAS_PATH | md5 | _NUMBER_OF[here]
    for md5 in (0, _HAS_MD5)
    for here in FileState
    if here.is_here
)
_MD5_BYTES = 16
_NO_MD5 = bytes(_MD5_BYTES)
_UNKNOWN_SIZE = -1


class FileTable(Mapping[int, FileRecord]):
    """The files of one order, by file id: in some 50 bytes each, and their names.

    An order may have very many files. A :class:`FileRecord` of each takes five times as much: here
    it is made when somebody asks for one. Safe in any thread.

    Parameters
    ----------
    order_id : int
        The order.
    records : iterable of FileRecord
        The first files.
    folder : str
        Where most files are or will be, under their own names: such paths take no memory.

    Examples
    --------
    >>> table = FileTable(1, [FileRecord(order_id=1, file_id=7, name="a.nc")], folder="orders")
    >>> table[7].name, len(table), 8 in table
    ('a.nc', 1, False)
    """

    def __init__(
        self, order_id: int, records: Iterable[FileRecord] = (), *, folder: str = ""
    ) -> None:
        self._order_id = order_id
        self._prefix = f"{folder}{os.sep}"
        self._lock = threading.Lock()
        # One place for each file in each of these, in the order of the ids.
        self._ids = array("q")
        self._names: list[str] = []
        self._sizes = array("q")
        self._md5s = bytearray()
        self._product_ids: list[str | None] = []
        self._flags = bytearray()
        # What few files have, by file id.
        self._paths: dict[int, str] = {}
        self._errors: dict[int, str] = {}
        for record in records:
            self.put(record)

    def put(self, record: FileRecord) -> bool:
        """Add a file, or replace what was known of it; tell whether nothing was."""
        file_id, path = record.file_id, record.path
        size_bytes = _UNKNOWN_SIZE if record.size_bytes is None else record.size_bytes
        md5 = _NO_MD5 if record.md5 is None else bytes.fromhex(record.md5)
        if len(md5) != _MD5_BYTES:
            raise ValueError(f"{record.md5!r} is no MD5")
        flags = _NUMBER_OF[record.state]
        flags |= (record.md5 is not None and _HAS_MD5) | (path is not None and _HAS_PATH)
        is_usual = path is None or path == self._prefix + record.name
        with self._lock:
            row, is_new = self._row(file_id)
            if is_new:
                self._make_room(row, file_id, size_bytes)
            self._sizes[row] = size_bytes
            self._names[row] = record.name
            self._md5s[row * _MD5_BYTES : (row + 1) * _MD5_BYTES] = md5
            self._product_ids[row] = record.product_id
            self._flags[row] = self._flags[row] & _MARKS | flags
            if self._paths or not is_usual:
                _note(self._paths, file_id, None if is_usual else path)
            if self._errors or record.error is not None:
                _note(self._errors, file_id, record.error)
        return is_new

    def __getitem__(self, file_id: int) -> FileRecord:
        with self._lock:
            row = bisect_left(self._ids, file_id)
            if row == len(self._ids) or self._ids[row] != file_id:
                raise KeyError(file_id)
            name, flags, size_bytes = self._names[row], self._flags[row], self._sizes[row]
            md5 = self._md5s[row * _MD5_BYTES : (row + 1) * _MD5_BYTES]
            return FileRecord(
                order_id=self._order_id,
                file_id=file_id,
                name=name,
                size_bytes=None if size_bytes == _UNKNOWN_SIZE else size_bytes,
                md5=md5.hex() if flags & _HAS_MD5 else None,
                product_id=self._product_ids[row],
                path=self._paths.get(file_id, self._prefix + name) if flags & _HAS_PATH else None,
                state=_STATES[flags & _STATE],
                error=self._errors.get(file_id),
            )

    def __contains__(self, file_id: object) -> bool:
        with self._lock:
            return isinstance(file_id, int) and not self._row(file_id)[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> array[int]:
        """The ids of all files, as they are now."""
        return self._ids[:]

    def names(self, ids: array[int]) -> list[str]:
        """Return the names of some files."""
        with self._lock:
            return [self._names[row] for row in self._rows(ids)]

    def sizes(self, ids: array[int]) -> list[int | None]:
        """Return the sizes of some files."""
        with self._lock:
            sizes = [self._sizes[row] for row in self._rows(ids)]
        return [None if size == _UNKNOWN_SIZE else size for size in sizes]

    def final_names(self, ids: array[int]) -> list[str]:
        """Return the last parts of the paths of some files that have one."""
        paths = self._paths
        return [
            os.path.basename(paths[file_id]) if file_id in paths else name  # noqa: PTH119
            for file_id, name in zip(ids, self.names(ids), strict=True)
        ]

    def are_in_place(self, ids: array[int]) -> list[bool]:
        """Return for each of some files whether it is where its path says."""
        with self._lock:
            return [self._flags[row] & _NO_MARKS in _IN_PLACE for row in self._rows(ids)]

    def mark(self, mark: Mark, ids: array[int]) -> None:
        """Give some files a mark."""
        with self._lock:
            for row in self._rows(ids):
                self._flags[row] |= mark

    def unmark(self, mark: Mark, ids: array[int]) -> None:
        """Take a mark from some files."""
        others = 0xFF ^ mark
        with self._lock:
            for row in self._rows(ids):
                self._flags[row] &= others

    def take_mark(self, mark: Mark, file_id: int) -> bool:
        """Take a mark from one file; tell whether it had it."""
        with self._lock:
            row = bisect_left(self._ids, file_id)
            flags = self._flags[row]
            self._flags[row] = flags & (0xFF ^ mark)
        return bool(flags & mark)

    def are_marked(self, mark: Mark, ids: array[int]) -> list[bool]:
        """Return for each of some files whether it has a mark."""
        with self._lock:
            return [self._flags[row] & mark != 0 for row in self._rows(ids)]

    def marked(self, mark: Mark) -> array[int]:
        """Return the ids of the files with a mark."""
        ids = self.ids
        return array("q", compress(ids, self.are_marked(mark, ids)))

    def _row(self, file_id: int) -> tuple[int, bool]:
        """Return where a file is or belongs, and whether it is missing."""
        ids = self._ids
        # new ones come in the order of their ids, mostly
        if not ids or file_id > ids[-1]:
            return len(ids), True
        row = bisect_left(ids, file_id)
        return row, ids[row] != file_id

    def _make_room(self, row: int, file_id: int, size_bytes: int) -> None:
        # what does not fit is refused before anything is changed
        numbers = array("q", (file_id, size_bytes))
        self._ids.insert(row, numbers[0])
        self._names.insert(row, "")
        self._sizes.insert(row, numbers[1])
        self._md5s[row * _MD5_BYTES : row * _MD5_BYTES] = _NO_MD5
        self._product_ids.insert(row, None)
        self._flags.insert(row, 0)

    def _rows(self, ids: array[int]) -> Iterable[int]:
        if ids == self._ids:
            return range(len(ids))
        return (bisect_left(self._ids, file_id) for file_id in ids)


def _note(texts: dict[int, str], file_id: int, text: str | None) -> None:
    if text is not None:
        texts[file_id] = text
    else:
        texts.pop(file_id, None)


class Files(Sequence[FileRecord]):
    """Some files of a table, in an order of their own. Records are made as they are asked for.

    Parameters
    ----------
    table : FileTable
        Where they are.
    ids : iterable of int, optional
        Which; by default all that are in it now, by file id.

    Examples
    --------
    >>> files = Files(FileTable(1, [FileRecord(order_id=1, file_id=7, name="a.nc")]))
    >>> [record.name for record in files], files[0].size_bytes
    (['a.nc'], None)
    """

    def __init__(self, table: FileTable, ids: Iterable[int] | None = None) -> None:
        self.table = table
        self.ids = table.ids if ids is None else array("q", ids)

    def __repr__(self) -> str:
        return f"<{len(self)} files>"

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> FileRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Files: ...

    def __getitem__(self, index: int | slice) -> FileRecord | Files:
        if isinstance(index, slice):
            return Files(self.table, self.ids[index])
        return self.table[self.ids[index]]

    def __iter__(self) -> Iterator[FileRecord]:
        return map(self.table.__getitem__, self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Files):
            return NotImplemented
        return len(self) == len(other) and all(map(FileRecord.__eq__, self, other))

    # what they say may change
    __hash__ = None  # type: ignore[assignment]

    @property
    def names(self) -> list[str]:
        """Their names, as the server has them."""
        return self.table.names(self.ids)

    @property
    def sizes(self) -> list[int | None]:
        """Their sizes in bytes; None where the server does not know."""
        return self.table.sizes(self.ids)

    @property
    def in_place(self) -> Files:
        """Those that are where their paths say."""
        return Files(self.table, compress(self.ids, self.table.are_in_place(self.ids)))

    @property
    def missing(self) -> Files:
        """The others."""
        here = self.table.are_in_place(self.ids)
        return Files(self.table, compress(self.ids, map(not_, here)))

    @property
    def final_names(self) -> list[str]:
        """The last parts of their paths, where they are in place."""
        return self.table.final_names(self.ids)
