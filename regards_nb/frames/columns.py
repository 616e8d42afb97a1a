"""The columns of each frame, and the growing memory behind them.

A column is memory with room for more rows, held twice: as pandas shows it and as numpy writes to
it. New values are written behind every row that was ever handed out, so a frame that a user holds
does not change, and showing a frame copies nothing. When a user writes into a frame, pandas copies
the memory first. Arrow's memory cannot be written to: text columns kept by Arrow are lists of
pieces.
"""

from __future__ import annotations

import importlib
import operator
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

TIME = "datetime64[us, UTC]"

#: Columns of `Frames.events`. Statuses that we do not know become further categories.
EVENT_DTYPES = {
    "received_at": TIME,
    "timestamp": TIME,
    "tenant": "str",
    "correlation_id": "str",
    "order_id": "Int64",
    "status": "category",
    "message": "str",
    "download_link": "str",
    "error_type": "str",
    "errors": "Int64",
    "total_sub_orders": "Int64",
    "sub_order_id": "Int64",
    "app_id": "str",
    "redelivered": "bool",
}
ORDER_DTYPES = {
    "order_id": "Int64",
    "status": "category",
    "finished": "bool",
    "progress": "Float64",
    "suborders_done": "Int64",
    "suborders_total": "Int64",
    "errors": "Int64",
    "error_type": "str",
    "message": "str",
    "download_link": "str",
    "downloaded_files": "Int64",
    "downloaded_bytes": "Int64",
    "label": "str",
    "first_event": TIME,
    "last_event": TIME,
    "waits_for_download": "bool",
    "expires_at": TIME,
}
FILE_DTYPES = {
    "order_id": "Int64",
    "correlation_id": "str",
    "name": "str",
    "path": "str",
    "size_bytes": "Int64",
    "md5": "str",
    "state": "category",
    "error": "str",
    "fetched_at": TIME,
}
#: Columns of `RegardsClient.orders`; ``order_id`` is the index.
REMOTE_DTYPES = {
    "order_id": "int64",
    "status": "category",
    "label": "str",
    "owner": "str",
    "percent_completed": "Int64",
    "waiting_for_user": "bool",
    "available_files": "Int64",
    "files_in_error": "Int64",
    "files_total": "Int64",
    "bytes_total": "Int64",
    "created_at": TIME,
    "status_at": TIME,
    "expires_at": TIME,
}
REJECTED_DTYPES = {"body": "object", "reason": "str", "received_at": TIME}

_NAT = np.iinfo(np.int64).min
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)

#: Merge this many Arrow pieces of similar length into one, so that each text is copied rarely.
_PIECES_TO_MERGE = 8

#: Length of the one Arrow array of missing texts that fills the unused capacity.
_MISSING = 4096

_FIRST_CAPACITY = 256

#: The rows to write: those at the end, or some in between.
Rows: TypeAlias = "slice | np.ndarray[Any, Any]"


class Column:
    """A column of bool, int64 or another dtype of numpy; new memory holds False or 0.

    Attributes
    ----------
    shown : array or pandas.api.extensions.ExtensionArray
        The memory as pandas sees it.
    memory : list of numpy.ndarray
        The same memory as it is written to.
    is_unseen : bool
        Whether a frame must fetch `shown` again: it never did, or `shown` is another object now.
    """

    shown: Any
    memory: list[np.ndarray[Any, Any]]
    is_unseen = True

    def __init__(self, capacity: int, dtype: str) -> None:
        self.shown = np.zeros(capacity, dtype=dtype)
        self.memory = [self.shown]

    def show(self) -> Any:
        """Return `shown` for a frame that keeps it."""
        self.is_unseen = False
        return self.shown

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write values into rows; None means missing."""
        self.memory[0][rows] = values

    def take(self, rows: Rows, other: Column) -> None:
        """Copy all values of another column of this kind into rows."""
        for mine, theirs in zip(self.memory, other.memory, strict=True):
            mine[rows] = theirs

    def has(self, rows: Rows, other: Column) -> bool:
        """Tell whether the rows hold the values of another column of this kind."""
        return all(
            np.array_equal(mine[rows], theirs)
            for mine, theirs in zip(self.memory, other.memory, strict=True)
        )

    def moved(self, to: Column) -> Column:
        """Copy everything into another column of this kind with at least this capacity."""
        for mine, theirs in zip(self.memory, to.memory, strict=True):
            theirs[: len(mine)] = mine
        return to


class Objects(Column):
    """A column of Python objects."""

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write objects into rows, one by one: numpy would unpack those that have a length."""
        objects = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            objects[row] = value
        self.memory[0][rows] = objects


class Texts(Column):
    """A column of Python strings, which pandas uses where Arrow is not installed.

    Each order repeats its own texts in every event, so equal texts are kept once: *known* maps
    each text of the column to the one object that is kept.
    """

    def __init__(self, capacity: int, dtype: pd.StringDtype, known: dict[str, str]) -> None:
        self.memory = [np.full(capacity, np.nan, dtype=object)]
        as_pandas: Any = pd.arrays.StringArray
        self.shown = as_pandas(self.memory[0], dtype=dtype)
        self._known = known

    def has(self, rows: Rows, other: Column) -> bool:
        """Tell whether the rows hold these texts; equal texts and NaN are the same objects."""
        return all(map(operator.is_, self.memory[0][rows], other.memory[0]))

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write texts into rows."""
        once = self._known.setdefault
        if None in values:
            super().write(rows, [np.nan if v is None else once(v, v) for v in values])
        else:
            super().write(rows, list(map(once, values, values)))


class ArrowTexts(Column):
    """A column of texts in Arrow's memory, as a list of pieces."""

    def __init__(self, capacity: int, dtype: pd.StringDtype) -> None:
        # Here pyarrow is installed: pandas chose it. Without it `Texts` is used.
        self._arrow: Any = importlib.import_module("pyarrow")
        self._type = self._arrow.large_string()
        self._missing = self._arrow.nulls(_MISSING, self._type)
        self._capacity = capacity
        self._dtype = dtype
        self.pieces: list[Any] = []

    @property
    def shown(self) -> Any:
        """The pieces one after the other, then missing values up to the capacity."""
        missing = self._capacity - sum(map(len, self.pieces))
        # One array of missing values is repeated, so that they take no memory of their own.
        repeats, rest = divmod(missing, len(self._missing))
        pieces = [*self.pieces, *[self._missing] * repeats, self._missing.slice(0, rest)]
        chunked = self._arrow.chunked_array(pieces)
        as_pandas: Any = pd.arrays.ArrowStringArray
        return as_pandas(chunked, dtype=self._dtype)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:  # noqa: ARG002 - at the end
        """Append texts; merge the last pieces when there are several of similar length."""
        piece = self._arrow.array(values, self._type)
        self.pieces.append(piece)
        # A frame already shows missing values in these rows.
        self.is_unseen |= piece.null_count < len(piece)
        n = _PIECES_TO_MERGE
        while len(self.pieces) >= n and len(self.pieces[-n]) < 2 * len(self.pieces[-1]):
            self.pieces[-n:] = [self._arrow.concat_arrays(self.pieces[-n:])]

    def take(self, rows: Rows, other: Column) -> None:
        """Copy all texts of another column of this kind into rows."""
        assert isinstance(other, ArrowTexts)  # noqa: S101 - a column keeps its kind
        all_of_both = self._arrow.concat_arrays(self.pieces + other.pieces)
        places = np.arange(sum(map(len, self.pieces)))
        places[rows] = np.arange(len(places), len(all_of_both))
        self.pieces = [all_of_both.take(self._arrow.array(places))]

    def has(self, rows: Rows, other: Column) -> bool:
        """Tell whether the rows hold the texts of another column of this kind."""
        assert isinstance(other, ArrowTexts)  # noqa: S101 - a column keeps its kind
        # Compared one by one: Arrow's take() would first copy all pieces into one.
        mine, theirs = map(self._arrow.chunked_array, (self.pieces, other.pieces))
        places = np.asarray(rows).tolist()
        return all(mine[place].as_py() == theirs[n].as_py() for n, place in enumerate(places))

    def moved(self, to: Column) -> Column:
        """Share the pieces with another column of this kind."""
        assert isinstance(to, ArrowTexts)  # noqa: S101 - a column keeps its kind
        to.pieces = list(self.pieces)
        return to


_SHOWN_AS: dict[str, Callable[..., Any]] = {
    "Int64": pd.arrays.IntegerArray,
    "Float64": pd.arrays.FloatingArray,
}


class Numbers(Column):
    """A column of numbers that may be missing."""

    def __init__(self, capacity: int, dtype: str) -> None:
        self.memory = [np.zeros(capacity, dtype=dtype.lower()), np.ones(capacity, dtype=bool)]
        self.shown = _SHOWN_AS[dtype](*self.memory)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write numbers into rows."""
        if None in values:
            self.memory[1][rows] = [value is None for value in values]
            values = [value or 0 for value in values]
        else:
            self.memory[1][rows] = False
        super().write(rows, values)


class Times(Column):
    """A column of times (UTC), written as `datetime` or as microseconds since 1970."""

    def __init__(self, capacity: int, dtype: str) -> None:  # noqa: ARG002 - there is one kind
        missing = np.full(capacity, _NAT).view("M8[us]")
        self.shown = pd.DatetimeIndex(missing).tz_localize("UTC")
        self.memory = [self.shown.view("i8")]

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write times into rows."""
        super().write(rows, [v if type(v) is int else _microseconds(v) for v in values])


def _microseconds(time: datetime | None) -> int:
    return _NAT if time is None else (time - _EPOCH) // _MICROSECOND


class Categories(Column):
    """A column of few different texts; each must be among *names*."""

    def __init__(self, capacity: int, names: Sequence[str]) -> None:
        self._code_of = {name: code for code, name in enumerate(names)}
        # pandas copies codes whose integer type is not the one it would choose itself.
        dtype = pd.Categorical([], categories=pd.Index(names)).codes.dtype
        self.memory = [np.full(capacity, -1, dtype=dtype)]
        self.shown = pd.Categorical.from_codes(self.memory[0], pd.Index(names), validate=False)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Write texts into rows."""
        code_of = self._code_of
        super().write(rows, [code_of[value] for value in values])


#: The columns that need only their dtype.
_KINDS: dict[str, type[Column]] = {
    TIME: Times,
    "Int64": Numbers,
    "Float64": Numbers,
    "bool": Column,
    "int64": Column,
    "object": Objects,
}


class GrowingFrame:
    """A DataFrame to which rows are appended, and which is shown without a copy.

    Parameters
    ----------
    dtypes : dict
        The dtype of each column by its name; at most one is ``"category"``.
    categories : iterable of str
        Categories of that column. New ones are added when a row has them.
    """

    def __init__(self, dtypes: dict[str, str], categories: Iterable[str] = ()) -> None:
        self._dtypes = dtypes
        self._categories = list(categories)
        #: The texts of each column that Python keeps.
        self._texts: dict[str, dict[str, str]] = {name: {} for name in dtypes}
        self._rows = 0
        self._capacity = _FIRST_CAPACITY
        self._columns = {name: self._column(name, self._capacity) for name in dtypes}
        #: All rows up to the capacity.
        self._full = pd.DataFrame({n: c.show() for n, c in self._columns.items()}, copy=False)

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Iterable[Sequence[Any]], count: int) -> None:
        """Add *count* rows, given column by column; the cost depends on *count* alone."""
        values_of = self._by_name(columns)
        first, self._rows = self._rows, self._rows + count
        if self._rows > self._capacity:
            # A quarter more: copies stay rare, and at most a fifth of the memory is unused.
            self._capacity = max(self._rows, self._capacity * 5 // 4)
            for name in self._columns:
                self._move(name)
        for name, values in values_of.items():
            self._columns[name].write(slice(first, self._rows), values)

    def replace(self, rows: Sequence[int], columns: Iterable[Sequence[Any]]) -> None:
        """Write other values into some rows; frames handed out before keep the old values."""
        where = np.array(rows)
        for name, values in self._by_name(columns).items():
            update = self._column(name, len(rows))
            update.write(slice(None), values)
            if not self._columns[name].has(where, update):
                self._move(name)
                self._columns[name].take(where, update)

    def update(self, places: Sequence[int], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows at ascending places; places behind the last row are appended."""
        known = bisect_left(places, self._rows)
        if known:
            self.replace(places[:known], zip(*rows[:known], strict=True))
        if known < len(rows):
            self.append(zip(*rows[known:], strict=True), len(rows) - known)

    def frame(self) -> pd.DataFrame:
        """Return all rows; the index counts them."""
        unseen = [name for name, column in self._columns.items() if column.is_unseen]
        if unseen:
            if len(self._full) != self._capacity:
                self._full = pd.DataFrame(index=range(self._capacity))
            # assign() and not a new DataFrame: pandas keeps track of which other columns share
            # their memory with frames handed out, and copies them before a user writes.
            self._full = self._full.assign(
                **{name: pd.Series(self._columns[name].show(), copy=False) for name in unseen}
            )
        return self._full.iloc[: self._rows]

    def _by_name(self, columns: Iterable[Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Return the values by column name; add new categories."""
        values_of = dict(zip(self._dtypes, columns, strict=True))
        for name, dtype in self._dtypes.items():
            if dtype == "category" and (new := set(values_of[name]).difference(self._categories)):
                self._categories += sorted(new)
                self._move(name)
        return values_of

    def _move(self, name: str) -> None:
        """Copy a column into new memory; frames handed out keep the old memory."""
        self._columns[name] = self._columns[name].moved(self._column(name, self._capacity))

    def _column(self, name: str, capacity: int) -> Column:
        dtype = self._dtypes[name]
        if dtype == "category":
            return Categories(capacity, self._categories)
        if dtype == "str":
            text = pd.StringDtype(na_value=np.nan)
            if text.storage == "pyarrow":
                return ArrowTexts(capacity, text)
            return Texts(capacity, text, self._texts[name])
        return _KINDS[dtype](capacity, dtype)
