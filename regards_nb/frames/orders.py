"""The frame of orders: a row for each, written again only where it changed."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pandas as pd

from regards_nb.events import OrderStatus
from regards_nb.frames.dtypes import ORDER_DTYPES
from regards_nb.frames.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.frames.standing import OrderStates
    from regards_nb.orders import OrderKey

_row = attrgetter(*ORDER_DTYPES)


class OrdersFrame:
    """Keeps `OrderTracker.orders` in step with what is known.

    Parameters
    ----------
    standing : OrderStates
        Nobody else takes what changed of it.
    """

    def __init__(self, standing: OrderStates) -> None:
        self._standing = standing
        self._rearranged = standing.rearranged
        self._begin()

    def _begin(self) -> None:
        self._table = Table(ORDER_DTYPES, map(str, OrderStatus))
        self._index = _Index()
        self._frame = self._shown()

    def frame(self) -> pd.DataFrame:
        """Return one row per order; index (tenant, correlation_id)."""
        if self._take_in():
            self._frame = self._shown()
        return self._frame.copy(deep=False)

    def _take_in(self) -> bool:
        """Write what changed; tell whether anything did."""
        places, states = self._standing.take_changed()
        if self._standing.rearranged != self._rearranged:
            self._rearranged = self._standing.rearranged
            self._begin()
        rows = len(self._table)
        self._table.update(places, list(map(_row, states)))
        new = (state.key for place, state in zip(places, states, strict=True) if place >= rows)
        self._index.append(list(new))
        return bool(states)

    def _shown(self) -> pd.DataFrame:
        return self._table.frame().set_axis(self._index.index(), axis="index")


class _Index:
    """The names of the orders, added to at the end.

    pandas would look through all names each time; here each is looked at once, when it is new.
    """

    def __init__(self) -> None:
        self._levels = [Table({"name": "str"}), Table({"name": "str"})]
        self._codes: list[dict[str | None, int]] = [{None: -1}, {None: -1}]
        self._table = Table({"tenant": "int64", "correlation_id": "int64"})
        self._shown: pd.MultiIndex | None = None

    def append(self, keys: Sequence[OrderKey]) -> None:
        """Add orders."""
        if not keys:
            return
        self._shown = None
        columns = []
        for names, codes, level in zip(
            zip(*keys, strict=True), self._codes, self._levels, strict=True
        ):
            # dict.fromkeys: each once, in their order
            new = [name for name in dict.fromkeys(names) if name not in codes]
            codes.update({name: len(level) + n for n, name in enumerate(new)})
            level.append([new], len(new))
            columns.append([codes[name] for name in names])
        self._table.append(columns, len(keys))

    def index(self) -> pd.MultiIndex:
        """Return the index of all orders."""
        if self._shown is None:
            self._shown = self._made()
        return self._shown

    def _made(self) -> pd.MultiIndex:
        places: Any = self._table.frame()
        return pd.MultiIndex(
            levels=[pd.Index(level.frame()["name"]) for level in self._levels],
            codes=[places[name].to_numpy() for name in places],
            names=list(places),
            verify_integrity=False,
        )
