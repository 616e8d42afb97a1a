"""Columns that grow at their end, and show themselves to pandas without being copied.

A column is a piece of memory with room for more, held twice: as pandas sees it, and as numpy
writes to it. What is written lies behind every row that was ever handed out, so no frame changes
in anybody's hands; and what somebody writes into a frame pandas copies first. Arrow's memory
cannot be written to: there, pieces are put in a row.
"""

from __future__ import annotations

import importlib
import operator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from regards_nb.frames.dtypes import TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAT = np.iinfo(np.int64).min
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)

#: So many pieces about as long as each other become one: each text is copied a few times only.
_FEW = 8

#: How many missing texts are shown from the same memory.
_MISSING = 4096

#: Which rows are written: those at the end, or some.
Rows: TypeAlias = "slice | np.ndarray[Any, Any]"


class Column:
    """Memory for values; False or zero where nothing was written, or missing where that can be.

    Attributes
    ----------
    shown : array or pandas.api.extensions.ExtensionArray
        The memory as pandas sees it.
    memory : list of numpy.ndarray
        The same memory as it is written to.
    """

    shown: Any

    memory: list[np.ndarray[Any, Any]]
    #: Whether the frame has to ask what is shown: it never did, or that does not show all there is.
    is_unseen = True

    def __init__(self, capacity: int, dtype: str) -> None:
        self.shown = np.zeros(capacity, dtype=dtype)
        self.memory = [self.shown]

    def show(self) -> Any:
        """Return what is shown, for a frame that goes on showing it."""
        self.is_unseen = False
        return self.shown

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Put values into rows; None is a missing one."""
        self.memory[0][rows] = values

    def take(self, rows: Rows, other: Column) -> None:
        """Put what is in another column of this kind into rows."""
        for mine, theirs in zip(self.memory, other.memory, strict=True):
            mine[rows] = theirs

    def has(self, rows: Rows, other: Column) -> bool:
        """Tell whether that is in these rows already."""
        return all(
            np.array_equal(mine[rows], theirs)
            for mine, theirs in zip(self.memory, other.memory, strict=True)
        )

    def moved(self, to: Column) -> Column:
        """Copy everything to another column of this kind, which is as large or larger."""
        for mine, theirs in zip(self.memory, to.memory, strict=True):
            theirs[: len(mine)] = mine
        return to


class Objects(Column):
    """Anything at all."""

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Put objects into rows, one by one: numpy would look into those that have a length."""
        objects = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            objects[row] = value
        self.memory[0][rows] = objects


class Texts(Column):
    """Texts as Python objects, which is what pandas uses where Arrow is not installed.

    Those that are equal are kept once, since each order repeats its own in every event; *known*
    are those that other memory of the same column holds.
    """

    def __init__(self, capacity: int, dtype: pd.StringDtype, known: dict[str, str]) -> None:
        self.memory = [np.full(capacity, np.nan, dtype=object)]
        as_pandas: Any = pd.arrays.StringArray
        self.shown = as_pandas(self.memory[0], dtype=dtype)
        self._known = known

    def has(self, rows: Rows, other: Column) -> bool:
        """Tell whether these texts are in these rows already; each is one object, so is NaN."""
        return all(map(operator.is_, self.memory[0][rows], other.memory[0]))

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Put texts into rows."""
        once = self._known.setdefault
        if None in values:
            super().write(rows, [np.nan if v is None else once(v, v) for v in values])
        else:
            super().write(rows, list(map(once, values, values)))


class ArrowTexts(Column):
    """Texts as Arrow keeps them: in pieces, of which eight that are about as long become one."""

    def __init__(self, capacity: int, dtype: pd.StringDtype) -> None:
        # pandas has found it; without it there is `Texts`
        self._arrow: Any = importlib.import_module("pyarrow")
        self._type = self._arrow.large_string()
        self._missing = self._arrow.nulls(_MISSING, self._type)
        self._capacity = capacity
        self._dtype = dtype
        self.pieces: list[Any] = []

    @property
    def shown(self) -> Any:
        """The pieces one after the other, and missing values up to the capacity."""
        missing = self._capacity - sum(map(len, self.pieces))
        # one piece of them, again and again: they need no memory of their own
        whole, rest = divmod(missing, len(self._missing))
        pieces = [*self.pieces, *[self._missing] * whole, self._missing.slice(0, rest)]
        chunked = self._arrow.chunked_array(pieces)
        as_pandas: Any = pd.arrays.ArrowStringArray
        return as_pandas(chunked, dtype=self._dtype)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:  # noqa: ARG002 - at the end
        """Add texts behind those that are there."""
        piece = self._arrow.array(values, self._type)
        self.pieces.append(piece)
        # missing ones are shown there already
        self.is_unseen |= piece.null_count < len(piece)
        while len(self.pieces) >= _FEW and len(self.pieces[-_FEW]) < 2 * len(self.pieces[-1]):
            self.pieces[-_FEW:] = [self._arrow.concat_arrays(self.pieces[-_FEW:])]

    def take(self, rows: Rows, other: Column) -> None:
        """Put what is in another column of this kind into rows."""
        assert isinstance(other, ArrowTexts)  # noqa: S101 - a table's column keeps its kind
        all_of_both = self._arrow.concat_arrays(self.pieces + other.pieces)
        places = np.arange(sum(map(len, self.pieces)))
        places[rows] = np.arange(len(places), len(all_of_both))
        self.pieces = [all_of_both.take(self._arrow.array(places))]

    def has(self, rows: Rows, other: Column) -> bool:
        """Tell whether these texts are in these rows already."""
        assert isinstance(other, ArrowTexts)  # noqa: S101 - a table's column keeps its kind
        # one by one: to take some, Arrow would first put all pieces together
        mine, theirs = map(self._arrow.chunked_array, (self.pieces, other.pieces))
        places = np.asarray(rows).tolist()
        return all(mine[place].as_py() == theirs[n].as_py() for n, place in enumerate(places))

    def moved(self, to: Column) -> Column:
        """Put the same pieces into another column of this kind."""
        assert isinstance(to, ArrowTexts)  # noqa: S101 - a table's column keeps its kind
        to.pieces = list(self.pieces)
        return to


_SHOWN_AS: dict[str, Callable[..., Any]] = {
    "Int64": pd.arrays.IntegerArray,
    "Float64": pd.arrays.FloatingArray,
}


class Numbers(Column):
    """Numbers that may be missing."""

    def __init__(self, capacity: int, dtype: str) -> None:
        self.memory = [np.zeros(capacity, dtype=dtype.lower()), np.ones(capacity, dtype=bool)]
        self.shown = _SHOWN_AS[dtype](*self.memory)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Put numbers into rows."""
        if None in values:
            self.memory[1][rows] = [value is None for value in values]
            values = [value or 0 for value in values]
        else:
            self.memory[1][rows] = False
        super().write(rows, values)


class Times(Column):
    """Moments (UTC), given as `datetime` or as microseconds since 1970."""

    def __init__(self, capacity: int, dtype: str) -> None:  # noqa: ARG002 - there is one kind
        missing = np.full(capacity, _NAT).view("M8[us]")
        self.shown = pd.DatetimeIndex(missing).tz_localize("UTC")
        self.memory = [self.shown.view("i8")]

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Put moments into rows."""
        super().write(rows, [v if type(v) is int else _microseconds(v) for v in values])


def _microseconds(moment: datetime | None) -> int:
    return _NAT if moment is None else (moment - _EPOCH) // _MICROSECOND


class Categories(Column):
    """Texts of which there are few, each of which must have been announced."""

    def __init__(self, capacity: int, names: Sequence[str]) -> None:
        self._code_of = {name: code for code, name in enumerate(names)}
        # pandas makes another array of codes that are not of the size it would choose
        size = pd.Categorical([], categories=pd.Index(names)).codes.dtype
        self.memory = [np.full(capacity, -1, dtype=size)]
        self.shown = pd.Categorical.from_codes(self.memory[0], pd.Index(names), validate=False)

    def write(self, rows: Rows, values: Sequence[Any]) -> None:
        """Put texts into rows."""
        code_of = self._code_of
        super().write(rows, [code_of[value] for value in values])


#: The columns that need to know nothing but their dtype.
KINDS: dict[str, type[Column]] = {
    TIME: Times,
    "Int64": Numbers,
    "Float64": Numbers,
    "bool": Column,
    "int64": Column,
    "object": Objects,
}
