"""A DataFrame that grows, and that is never copied to be shown."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from regards_nb.frames.columns import KINDS, ArrowTexts, Categories, Column, Texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FIRST_CAPACITY = 256


class Table:
    """Rows of one set of columns.

    Parameters
    ----------
    dtypes : dict
        The dtype of each column, by its name; at most one is ``"category"``.
    categories : sequence of str
        Of that column. Others are added as they come.
    """

    def __init__(self, dtypes: dict[str, str], categories: Iterable[str] = ()) -> None:
        self._dtypes = dtypes
        self._categories = list(categories)
        #: the texts of each column, where Python keeps them
        self._texts: dict[str, dict[str, str]] = {name: {} for name in dtypes}
        self._rows = 0
        self._capacity = _FIRST_CAPACITY
        self._columns = {name: self._column(name, self._capacity) for name in dtypes}
        self._whole = pd.DataFrame({n: c.show() for n, c in self._columns.items()}, copy=False)

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Iterable[Sequence[Any]], count: int) -> None:
        """Add *count* rows, given column by column. Costs what is added, whatever is there."""
        values_of = self._named(columns)
        first, self._rows = self._rows, self._rows + count
        if self._rows > self._capacity:
            # By a quarter: a copy now and then, and no more memory for nothing than that.
            self._capacity = max(self._rows, self._capacity * 5 // 4)
            for name in self._columns:
                self._move(name)
        for name, values in values_of.items():
            self._columns[name].write(slice(first, self._rows), values)

    def replace(self, rows: Sequence[int], columns: Iterable[Sequence[Any]]) -> None:
        """Write other values into some rows; frames that were handed out keep the old ones."""
        where = np.array(rows)
        for name, values in self._named(columns).items():
            update = self._column(name, len(rows))
            update.write(slice(None), values)
            if not self._columns[name].has(where, update):
                self._move(name)
                self._columns[name].take(where, update)

    def update(self, places: Sequence[int], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows at their places, which grow: those behind the last row are added."""
        known = bisect_left(places, self._rows)
        if known:
            self.replace(places[:known], zip(*rows[:known], strict=True))
        if known < len(rows):
            self.append(zip(*rows[known:], strict=True), len(rows) - known)

    def frame(self) -> pd.DataFrame:
        """Return all rows; the index counts them."""
        unseen = [name for name, column in self._columns.items() if column.is_unseen]
        if unseen:
            if len(self._whole) != self._capacity:
                self._whole = pd.DataFrame(index=range(self._capacity))
            # Into the same frame, and not into a new one: pandas then goes on knowing which
            # memory of the other columns is shared, and copies it before somebody writes to it.
            self._whole = self._whole.assign(
                **{name: pd.Series(self._columns[name].show(), copy=False) for name in unseen}
            )
        return self._whole.iloc[: self._rows]

    def _named(self, columns: Iterable[Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Tell the columns apart, and announce categories that are new."""
        values_of = dict(zip(self._dtypes, columns, strict=True))
        for name, dtype in self._dtypes.items():
            if dtype == "category" and (new := set(values_of[name]).difference(self._categories)):
                self._categories += sorted(new)
                self._move(name)
        return values_of

    def _move(self, name: str) -> None:
        """Go on in new memory: the old belongs to the frames that were handed out."""
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
        return KINDS[dtype](capacity, dtype)
