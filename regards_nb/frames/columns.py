"""The columns of each frame, and the growing memory behind them.

A column is memory with room for more rows, held twice: as pandas shows it and as numpy writes to
it. New values are written behind every row that was ever handed out, so a frame that a user holds
does not change, and showing a frame copies nothing. When a user writes into a frame, pandas copies
the memory first.
"""

from __future__ import annotations

import importlib
import inspect
import operator
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from regards_nb.events import OrderStatus
from regards_nb.waits import stopped_by_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from regards_nb.client import RemoteOrder

_Function = TypeVar("_Function", bound="Callable[..., Any]")

TIME = "datetime64[us, UTC]"


class ColumnInfo(NamedTuple):
    """The dtype and the meaning of a column."""

    dtype: str
    meaning: str


#: Columns of `OrderTracker.events`. Statuses that we do not know become further categories.
EVENT_COLUMNS = {
    "received_at": ColumnInfo(TIME, "when the message arrived here"),
    "timestamp": ColumnInfo(TIME, "when REGARDS sent it, in whole seconds"),
    "tenant": ColumnInfo("str", "the project; missing if the message names none"),
    "correlation_id": ColumnInfo("str", "the name that the request gave to the order"),
    "order_id": ColumnInfo("Int64", "the number that REGARDS gave to the order"),
    "status": ColumnInfo("category", "what happened: GRANTED, SUBORDER_DONE, DONE, ..."),
    "message": ColumnInfo("str", "what REGARDS says about it"),
    "download_link": ColumnInfo("str", "the address of the zip with the files that are ready"),
    "error_type": ColumnInfo("str", "the kind of error, in the words of REGARDS"),
    "errors": ColumnInfo("Int64", "number of files in error"),
    "total_sub_orders": ColumnInfo("Int64", "number of sub-orders of the order"),
    "sub_order_id": ColumnInfo("Int64", "the sub-order that the message is about"),
    "app_id": ColumnInfo("str", "who sent it; REST means that we asked REGARDS over REST"),
    "redelivered": ColumnInfo(
        "bool", "whether RabbitMQ delivered it again after a lost connection"
    ),
}
#: Columns of `OrderTracker.orders`; the index is (tenant, correlation_id).
ORDER_COLUMNS = {
    "label": ColumnInfo("str", "the name that you gave to the order"),
    "order_id": ColumnInfo("Int64", "the number that REGARDS gave; missing until it accepts"),
    "status": ColumnInfo("category", "the status of the deciding event"),
    "finished": ColumnInfo("bool", "whether no further event is expected"),
    "progress": ColumnInfo("Float64", "0 to 1; missing if REGARDS does not tell"),
    "suborders_done": ColumnInfo("Int64", "number of sub-orders that REGARDS has made ready"),
    "suborders_total": ColumnInfo("Int64", "number of all sub-orders"),
    "errors": ColumnInfo("Int64", "number of files in error"),
    "error_type": ColumnInfo("str", "the kind of error, in the words of REGARDS"),
    "message": ColumnInfo("str", "what REGARDS said last"),
    "downloaded_files": ColumnInfo("Int64", "number of files in the workspace"),
    "downloaded_bytes": ColumnInfo("Int64", "their size in bytes"),
    "first_event": ColumnInfo(TIME, "time of the first event"),
    "last_event": ColumnInfo(TIME, "time of the last event"),
    "waits_for_download": ColumnInfo("bool", "whether REGARDS may wait for you to download"),
    "expires_at": ColumnInfo(TIME, "when REGARDS deletes the files; only REST has it"),
    "download_link": ColumnInfo("str", "the address of the zip with the files that are ready"),
}
#: Columns of `OrderTracker.files`.
FILE_COLUMNS = {
    "order_id": ColumnInfo("Int64", "the number of the order"),
    "correlation_id": ColumnInfo("str", "the order's name in the index of `orders`"),
    "name": ColumnInfo("str", "the name in the manifest"),
    "path": ColumnInfo("str", "where the file is in the workspace"),
    "size_bytes": ColumnInfo("Int64", "size in bytes"),
    "md5": ColumnInfo("str", "MD5 in the manifest; missing if it gives none"),
    "state": ColumnInfo("category", "LISTED, VERIFIED, UNVERIFIED (no MD5 given), FAILED, REMOVED"),
    "error": ColumnInfo("str", "why the download failed"),
    "fetched_at": ColumnInfo(TIME, "when it was downloaded; missing if it was there already"),
}
#: Columns of `OrderTracker.verify`.
PROBLEM_COLUMNS = {
    "order_id": ColumnInfo("Int64", "the number of the order"),
    "correlation_id": ColumnInfo("str", "the order's name in the index of `orders`"),
    "name": ColumnInfo("str", "the name in the manifest"),
    "path": ColumnInfo("str", "where the file was put"),
    "size_bytes": ColumnInfo("Int64", "its size when it was verified"),
    "found_bytes": ColumnInfo("Int64", "its size now; missing if it is not there"),
    "problem": ColumnInfo("str", "missing, cut (too short) or changed"),
}
#: Columns of `OrderTracker.rejected`.
REJECTED_COLUMNS = {
    "body": ColumnInfo("object", "the message as it came (bytes)"),
    "reason": ColumnInfo("str", "why it could not be decoded"),
    "received_at": ColumnInfo(TIME, "when it arrived here"),
}
#: Columns of `RegardsClient.orders`; the index is ``order_id``.
REMOTE_COLUMNS = {
    "order_id": ColumnInfo("int64", "the number that REGARDS gave to the order"),
    "status": ColumnInfo("category", "the status on the server"),
    "label": ColumnInfo("str", "the name on the web page of REGARDS"),
    "owner": ColumnInfo("str", "the account that made the order"),
    "percent_completed": ColumnInfo("Int64", "0 to 100"),
    "waiting_for_user": ColumnInfo("bool", "whether the order stops until you download"),
    "available_files": ColumnInfo("Int64", "number of files that can be fetched now"),
    "files_in_error": ColumnInfo("Int64", "number of files in error"),
    "files_total": ColumnInfo("Int64", "number of files of the order"),
    "bytes_total": ColumnInfo("Int64", "their size in bytes"),
    "created_at": ColumnInfo(TIME, "when the order was made"),
    "status_at": ColumnInfo(TIME, "when the status last changed"),
    "expires_at": ColumnInfo(TIME, "when REGARDS deletes the files"),
}

EVENT_DTYPES, ORDER_DTYPES, FILE_DTYPES, PROBLEM_DTYPES, REJECTED_DTYPES, REMOTE_DTYPES = (
    {name: column.dtype for name, column in columns.items()}
    for columns in (
        EVENT_COLUMNS,
        ORDER_COLUMNS,
        FILE_COLUMNS,
        PROBLEM_COLUMNS,
        REJECTED_COLUMNS,
        REMOTE_COLUMNS,
    )
)


_COLUMNS_OF = {
    "events": EVENT_COLUMNS,
    "orders": ORDER_COLUMNS,
    "files": FILE_COLUMNS,
    "rejected": REJECTED_COLUMNS,
}


def with_columns(function: _Function) -> _Function:
    """Add a section on the columns to the docstring of the method with the frame's name.

    Ctrl-C ends the look at the frame with one line.
    """
    columns = _COLUMNS_OF[function.__name__]
    lines = [f"{name} : {info.dtype}\n    {info.meaning}" for name, info in columns.items()]
    text = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = "\n".join([text, "", "Columns", "-------", *lines])
    return stopped_by_user(f"the look at {function.__name__} was stopped")(function)


_NAT = np.iinfo(np.int64).min
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)

_FIRST_CAPACITY = 256

_FEW_TEXTS = 8

#: The rows to write: those at the end, or some in between.
Rows: TypeAlias = "slice | np.ndarray[Any, Any]"


@dataclass(frozen=True)
class PackedTexts:
    """Texts as UTF-8, one after the other; *sizes* are their bytes, as uint32."""

    sizes: np.ndarray[Any, Any]
    joined: memoryview

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Pack texts."""
        encoded = [text.encode() for text in texts]
        return cls(np.array(list(map(len, encoded)), "<u4"), memoryview(b"".join(encoded)))

    @cached_property
    def ends(self) -> np.ndarray[Any, Any]:
        """The position behind the last byte of each text."""
        return np.cumsum(self.sizes, dtype=np.int64)

    def at(self, positions: np.ndarray[Any, Any]) -> list[str]:
        """Return the texts at some positions."""
        ends = self.ends[positions]
        limits = zip((ends - self.sizes[positions]).tolist(), ends.tolist(), strict=True)
        return [str(self.joined[begin:end], "utf-8") for begin, end in limits]


class PackedColumn(NamedTuple):
    """The values of one column.

    *data* are numbers (times: microseconds since 1970); of a column of texts, positions in *texts*,
    -1 for a missing one. *missing* says where values are missing; None if none is.
    """

    data: np.ndarray[Any, Any]
    missing: np.ndarray[Any, Any] | None = None
    texts: PackedTexts | None = None

    def take(self, rows: np.ndarray[Any, Any]) -> PackedColumn:
        """Return the values of some rows."""
        missing = None if self.missing is None else self.missing[rows]
        return PackedColumn(self.data[rows], missing, self.texts)

    def to_list(self) -> list[Any]:
        """Return the values as Python objects, None where they are missing."""
        if self.texts is not None:
            # Some rows need few of the texts, and each of them once.
            positions, rows = np.unique(self.data, return_inverse=True)
            n_missing = int((positions < 0).sum())
            texts = [*[None] * n_missing, *self.texts.at(positions[n_missing:])]
            values = np.array(texts, dtype=object)[rows]
        elif self.missing is None:
            values = self.data
        else:
            values = self.data.astype(object)
            values[self.missing] = None
        found: list[Any] = values.tolist()
        return found


class _Column:
    """A column of bool, int64, objects or another dtype of numpy; new memory holds False or 0.

    *shown* is the *memory* as pandas sees it. *is_unseen*: a frame must fetch *shown* again,
    because it never did, or because *shown* is another object now.
    """

    shown: Any
    memory: list[np.ndarray[Any, Any]]
    is_unseen = True

    def __init__(self, capacity: int, dtype: str) -> None:
        self.shown = np.zeros(capacity, dtype=dtype)
        self.memory = [self.shown]

    def show(self) -> Any:
        """Return `shown` as a frame takes it without a copy."""
        self.is_unseen = False
        return pd.Series(self.shown, copy=False)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write values into rows; None means missing."""
        self.memory[0][rows] = values

    def load(self, rows: Rows, packed: PackedColumn) -> None:
        """Write the values of a stored column into rows."""
        self.memory[0][rows] = packed.data

    def take(self, rows: Rows, other: Self) -> None:
        """Copy all values of another column of this kind into rows."""
        for mine, theirs in zip(self.memory, other.memory, strict=True):
            mine[rows] = theirs

    def has(self, rows: Rows, other: Self) -> bool:
        """Tell whether the rows hold the values of another column of this kind."""
        return all(
            np.array_equal(mine[rows], theirs)
            for mine, theirs in zip(self.memory, other.memory, strict=True)
        )

    def moved(self, to: Self) -> Self:
        """Copy everything into another column of this kind with at least this capacity."""
        for mine, theirs in zip(self.memory, to.memory, strict=True):
            theirs[: len(mine)] = mine
        return to


class _Texts(_Column):
    """A column of Python strings, which pandas uses where Arrow is not installed.

    Each order repeats its own texts in every event, so equal texts are kept once: *known* maps
    each text of the column to the one object that is kept.
    """

    def __init__(self, capacity: int, dtype: pd.StringDtype, known: dict[str, str]) -> None:
        self.memory = [np.full(capacity, np.nan, dtype=object)]
        as_pandas: Any = pd.arrays.StringArray
        self.shown = as_pandas(self.memory[0], dtype=dtype)
        self._known = known

    def has(self, rows: Rows, other: Self) -> bool:
        """Tell whether the rows hold these texts; equal texts and NaN are the same objects."""
        return all(map(operator.is_, self.memory[0][rows], other.memory[0]))

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        once = self._known.setdefault
        if None in values:
            super().write(rows, [np.nan if v is None else once(v, v) for v in values])
        else:
            super().write(rows, list(map(once, values, values)))

    def load(self, rows: Rows, packed: PackedColumn) -> None:
        once = self._known.setdefault
        texts = [once(text, text) for text in _texts_of(packed)]
        self.memory[0][rows] = np.array([*texts, np.nan], dtype=object)[packed.data]


class _ArrowTexts(_Column):
    """A column of texts in memory that Arrow reads: the end of each text, and all texts joined.

    A bit of each row says whether it has a text. Arrow counts the missing texts of an array once,
    and those of a slice anew, unless it has counted all texts of the array as missing. So *shown*
    is another array after the first text, and a frame is always shorter than its columns.
    """

    def __init__(self, capacity: int, dtype: pd.StringDtype) -> None:
        # Here pyarrow is installed: pandas chose it. Without it `_Texts` is used.
        self._arrow: Any = importlib.import_module("pyarrow")
        self._type = self._arrow.large_string()
        self._dtype = dtype
        self._offsets = np.zeros(capacity + 1, dtype=np.int64)
        self._has_text = np.zeros(capacity // 8 + 1, dtype=np.uint8)
        self.memory = [self._offsets, self._has_text]
        self.joined = np.zeros(0, dtype=np.uint8)
        self.n_rows = 0

    @property
    def shown(self) -> Any:
        """All rows up to the capacity; those that are not written are missing."""
        as_pandas: Any = pd.arrays.ArrowStringArray
        array = self._array(len(self._offsets) - 1)
        return as_pandas(self._arrow.chunked_array([array]), dtype=self._dtype)

    def written(self) -> Any:
        """Return the rows that were written, as Arrow has them."""
        return self._array(self.n_rows)

    def _array(self, count: int) -> Any:
        offsets, has_text, joined = map(self._arrow.py_buffer, (*self.memory, self.joined))
        return self._arrow.LargeStringArray.from_buffers(count, offsets, joined, has_text)

    def show(self) -> Any:
        """Return `shown` itself: pandas never writes to Arrow's memory, and copies none."""
        self.is_unseen = False
        return self.shown

    def write(self, rows: Rows, values: Sequence[Any]) -> None:  # noqa: ARG002 - at the end
        """Append texts: few one by one, which takes a tenth of the time of an array for each."""
        if len(values) > _FEW_TEXTS:
            # from_pandas: None is missing, and nothing looks for NaN.
            self._append(self._arrow.array(values, self._type, from_pandas=False))
            return
        for row, value in enumerate(values, self.n_rows):
            begin = end = int(self._offsets[row])
            if value is not None:
                text = value.encode()
                end += len(text)
                self._make_room(begin, end)
                self.joined.data[begin:end] = text
                self._has_text[row // 8] |= 1 << row % 8
            self._offsets[row + 1] = end
        self.n_rows += len(values)

    def load(self, rows: Rows, packed: PackedColumn) -> None:  # noqa: ARG002 - at the end
        assert packed.texts is not None  # noqa: S101 - a column keeps its kind
        ends, joined = packed.texts.ends, packed.texts.joined
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        buffers = map(self._arrow.py_buffer, (offsets, joined))
        texts = self._arrow.LargeStringArray.from_buffers(len(ends), *buffers)
        texts.validate(full=True)
        positions = self._arrow.array(packed.data, mask=packed.data < 0)
        self._append(texts.take(positions))

    def _append(self, texts: Any) -> None:
        """Append an array of Arrow."""
        first, self.n_rows = self.n_rows, self.n_rows + len(texts)
        begin = self._offsets[first]
        if texts.null_count == len(texts):
            self._offsets[first + 1 : self.n_rows + 1] = begin
            return
        _, offsets, joined = texts.buffers()
        offsets = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
        end = begin + offsets[-1] - offsets[0]
        self._make_room(begin, end)
        if end > begin:  # empty texts have no buffer
            self.joined[begin:end] = np.frombuffer(joined, np.uint8)[offsets[0] : offsets[-1]]
        self._offsets[first + 1 : self.n_rows + 1] = offsets[1:] + (begin - offsets[0])
        octets = self._has_text[first // 8 : self.n_rows // 8 + 1]
        bits = np.unpackbits(octets, bitorder="little")
        bits[first % 8 :][: len(texts)] = texts.is_valid()
        octets[:] = np.packbits(bits, bitorder="little")

    def _make_room(self, begin: int, end: int) -> None:
        """Make room for texts. The first one needs some even if it is empty: see the class."""
        if end >= len(self.joined):
            joined, self.joined = self.joined, np.zeros(end * 5 // 4 + 1, dtype=np.uint8)
            self.joined[:begin] = joined[:begin]
            self.is_unseen = True

    def take(self, rows: Rows, other: Self) -> None:
        both = self._arrow.concat_arrays([self.written(), other.written()])
        positions = np.arange(self.n_rows)
        positions[rows] = np.arange(self.n_rows, len(both))
        self.n_rows, self.joined = 0, np.zeros(0, dtype=np.uint8)
        self._has_text[:] = 0
        self._append(both.take(self._arrow.array(positions)))

    def has(self, rows: Rows, other: Self) -> bool:
        mine, theirs = self.written(), other.written()
        positions = np.asarray(rows).tolist()
        return all(mine[at].as_py() == theirs[n].as_py() for n, at in enumerate(positions))

    def moved(self, to: Self) -> Self:
        """Copy the rows into another column of this kind, and share the texts."""
        to.joined, to.n_rows = self.joined, self.n_rows
        return super().moved(to)


def _texts_of(packed: PackedColumn) -> list[str]:
    return [] if packed.texts is None else packed.texts.at(np.arange(len(packed.texts.sizes)))


_SHOWN_AS: dict[str, Callable[..., Any]] = {
    "Int64": pd.arrays.IntegerArray,
    "Float64": pd.arrays.FloatingArray,
}


class _Numbers(_Column):
    """A column of numbers that may be missing."""

    def __init__(self, capacity: int, dtype: str) -> None:
        self.memory = [np.zeros(capacity, dtype=dtype.lower()), np.ones(capacity, dtype=bool)]
        self.shown = _SHOWN_AS[dtype](*self.memory)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        if None in values:
            self.memory[1][rows] = [value is None for value in values]
            values = [value or 0 for value in values]
        else:
            self.memory[1][rows] = False
        super().write(rows, values)

    def load(self, rows: Rows, packed: PackedColumn) -> None:
        super().load(rows, packed)
        self.memory[1][rows] = False if packed.missing is None else packed.missing


class _Times(_Column):
    """A column of times (UTC), written as `datetime` or as microseconds since 1970."""

    def __init__(self, capacity: int, dtype: str) -> None:  # noqa: ARG002 - there is one kind
        missing = np.full(capacity, _NAT).view("M8[us]")
        self.shown = pd.DatetimeIndex(missing).tz_localize("UTC")
        self.memory = [self.shown.view("i8")]

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        super().write(rows, [v if type(v) is int else _microseconds(v) for v in values])

    def load(self, rows: Rows, packed: PackedColumn) -> None:
        super().load(rows, packed)
        if packed.missing is not None:
            # np.where(...) would compute _NAT in the small type of the stored numbers.
            self.memory[0][rows][packed.missing] = _NAT


def _microseconds(time: datetime | None) -> int:
    return _NAT if time is None else (time - _EPOCH) // _MICROSECOND


class _Categories(_Column):
    """A column of few different texts; each must be among *names*."""

    def __init__(self, capacity: int, names: Sequence[str]) -> None:
        self._code_of = {name: code for code, name in enumerate(names)}
        # pandas copies codes whose integer type is not the one it would choose itself.
        dtype = pd.Categorical([], categories=pd.Index(names)).codes.dtype
        self.memory = [np.full(capacity, -1, dtype=dtype)]
        self.shown = pd.Categorical.from_codes(self.memory[0], pd.Index(names), validate=False)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        code_of = self._code_of
        super().write(rows, [code_of[value] for value in values])

    def load(self, rows: Rows, packed: PackedColumn) -> None:
        # The last one is for the position -1.
        codes = np.array([*(self._code_of[text] for text in _texts_of(packed)), -1])
        self.memory[0][rows] = codes[packed.data]


#: The columns that need only their dtype.
_KINDS: dict[str, type[_Column]] = {
    TIME: _Times,
    "Int64": _Numbers,
    "Float64": _Numbers,
    "bool": _Column,
    "int64": _Column,
    "object": _Column,
}


class GrowingFrame:
    """A DataFrame to which rows are appended, and which is shown without a copy.

    At most one of the *dtypes* is ``"category"``; its *categories* grow with the rows.
    """

    def __init__(self, dtypes: dict[str, str], categories: Iterable[str] = ()) -> None:
        self._dtypes = dtypes
        self._categories = list(categories)
        #: The texts of each column that Python keeps.
        self._texts: dict[str, dict[str, str]] = {name: {} for name in dtypes}
        self._rows = 0
        self._capacity = _FIRST_CAPACITY

    @cached_property
    def _columns(self) -> dict[str, _Column]:
        """The columns; pandas takes milliseconds to make them, and many frames stay empty."""
        return {name: self._column(name, self._capacity) for name in self._dtypes}

    @cached_property
    def _full(self) -> pd.DataFrame:
        """All rows up to the capacity."""
        return pd.DataFrame({n: c.show() for n, c in self._columns.items()}, copy=False)

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Iterable[Sequence[Any]], count: int) -> None:
        """Add *count* rows, given column by column; the cost depends on *count* alone."""
        values_of = self._by_name(columns)
        rows = self._add_rows(count)
        for name, values in values_of.items():
            self._columns[name].write(rows, values)

    def load(self, columns: Mapping[str, PackedColumn], count: int) -> None:
        """Add *count* rows that were stored."""
        for name, dtype in self._dtypes.items():
            if dtype == "category":
                self._add_categories(name, _texts_of(columns[name]))
        rows = self._add_rows(count)
        for name, column in self._columns.items():
            column.load(rows, columns[name])

    def _add_rows(self, count: int) -> slice:
        """Make room for rows at the end; return their positions."""
        columns = self._columns
        first, self._rows = self._rows, self._rows + count
        if self._rows >= self._capacity:
            # A quarter more: copies stay rare, and at most a fifth of the memory is unused.
            self._capacity = max(self._rows + 1, self._capacity * 5 // 4)
            for name in columns:
                self._move(name)
        return slice(first, self._rows)

    def replace(self, rows: Sequence[int], columns: Iterable[Sequence[Any]]) -> None:
        """Write other values into some rows; frames handed out before keep the old values."""
        where = np.array(rows)
        for name, values in self._by_name(columns).items():
            update = self._column(name, len(rows))
            update.write(slice(None), values)
            if not self._columns[name].has(where, update):
                self._move(name)
                self._columns[name].take(where, update)

    def update(self, positions: Sequence[int], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows at ascending positions; positions behind the last row are appended."""
        known = bisect_left(positions, self._rows)
        if known:
            self.replace(positions[:known], zip(*rows[:known], strict=True))
        if known < len(rows):
            self.append(zip(*rows[known:], strict=True), len(rows) - known)

    def frame(self) -> pd.DataFrame:
        """Return all rows; the index counts them."""
        full = self._full
        unseen = [name for name, column in self._columns.items() if column.is_unseen]
        if unseen:
            if len(full) != self._capacity:
                self._full = pd.DataFrame(index=range(self._capacity))
            # Not a new DataFrame: pandas keeps track of which other columns share their memory with
            # frames handed out, and copies them before a user writes. Those frames keep the column
            # that is replaced here.
            for name in unseen:
                self._full[name] = self._columns[name].show()
        return self._full.iloc[: self._rows]

    def _by_name(self, columns: Iterable[Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Return the values by column name; add new categories."""
        values_of = dict(zip(self._dtypes, columns, strict=True))
        for name, dtype in self._dtypes.items():
            if dtype == "category":
                self._add_categories(name, sorted(set(values_of[name])))
        return values_of

    def _add_categories(self, name: str, texts: Iterable[str]) -> None:
        if new := [text for text in texts if text not in self._categories]:
            self._categories += new
            self._move(name)

    def _move(self, name: str) -> None:
        """Copy a column into new memory; frames handed out keep the old memory."""
        self._columns[name] = self._columns[name].moved(self._column(name, self._capacity))

    def _column(self, name: str, capacity: int) -> _Column:
        dtype = self._dtypes[name]
        if dtype == "category":
            return _Categories(capacity, self._categories)
        if dtype == "str":
            text = pd.StringDtype(na_value=np.nan)
            if text.storage == "pyarrow":
                return _ArrowTexts(capacity, text)
            return _Texts(capacity, text, self._texts[name])
        return _KINDS[dtype](capacity, dtype)


def columns_of(frame: pd.DataFrame, dtypes: Mapping[str, str]) -> dict[str, PackedColumn]:
    """Return the columns of a frame."""
    return {name: _column_of(frame[name], dtype) for name, dtype in dtypes.items()}


def _column_of(column: pd.Series[Any], dtype: str) -> PackedColumn:
    if dtype == "str":
        positions, texts = pd.factorize(column)
        return PackedColumn(positions, None, PackedTexts.of(list(texts)))
    if dtype == "category":
        names = PackedTexts.of(list(column.cat.categories))
        return PackedColumn(column.cat.codes.to_numpy(), None, names)
    missing = column.isna().to_numpy()
    if dtype.startswith("datetime64"):
        values = column.dt.tz_localize(None).to_numpy().view("i8").copy()
        values[missing] = 0
    else:
        values = column.to_numpy(dtype=dtype.lower(), na_value=0)
    return PackedColumn(values, missing if missing.any() else None)


def orders_frame(orders: Iterable[RemoteOrder]) -> pd.DataFrame:
    """Return orders as the server describes them, one row each; columns of `REMOTE_DTYPES`."""
    rows = [tuple(getattr(order, name) for name in REMOTE_DTYPES) for order in orders]
    frame = GrowingFrame(REMOTE_DTYPES, map(str, OrderStatus))
    frame.update(range(len(rows)), rows)
    return frame.frame().set_index("order_id")
