"""The frame of orders: one row per order; only changed rows are written again."""

from __future__ import annotations

from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from regards_nb.events import OrderStatus
from regards_nb.frames.columns import ORDER_DTYPES, GrowingFrame
from regards_nb.frames.packed import PackedColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from regards_nb.frames.checkpoint import StoredOrders
    from regards_nb.frames.state import OrderStates
    from regards_nb.orders import OrderKey

_row = attrgetter(*ORDER_DTYPES)


class OrdersFrame:
    """Keeps `OrderTracker.orders` up to date.

    Only this object may call `OrderStates.take_changed` of *states*. *stored* are the orders of the
    checkpoint that *states* began with.
    """

    def __init__(self, states: OrderStates, stored: StoredOrders | None = None) -> None:
        self._states = states
        self._regrouped = states.regrouped
        self._begin(stored)

    def _begin(self, stored: StoredOrders | None = None) -> None:
        self._rows = GrowingFrame(ORDER_DTYPES, map(str, OrderStatus))
        self._index = _Index()
        if stored is not None:
            self._rows.load(stored.columns, stored.n_orders)
            self._index.load(stored.columns, stored.n_orders)
        self._frame = self._with_index()

    def frame(self) -> pd.DataFrame:
        """Return one row per order; index (tenant, correlation_id)."""
        if self._write_changed():
            self._frame = self._with_index()
        return self._frame.copy(deep=False)

    def _write_changed(self) -> bool:
        """Write the orders that changed; tell whether any did."""
        places, states = self._states.take_changed()
        if self._states.regrouped != self._regrouped:
            self._regrouped = self._states.regrouped
            self._begin()
        known = len(self._rows)
        self._rows.update(places, list(map(_row, states)))
        new = (state.key for place, state in zip(places, states, strict=True) if place >= known)
        self._index.append(list(new))
        return bool(states)

    def _with_index(self) -> pd.DataFrame:
        return self._rows.frame().set_axis(self._index.index(), axis="index")


class _Index:
    """The index (tenant, correlation_id) of the orders.

    pandas would look at all names each time an index is made; here each name is looked at once.
    """

    def __init__(self) -> None:
        self._levels = [GrowingFrame({"name": "str"}), GrowingFrame({"name": "str"})]
        self._rows = GrowingFrame({"tenant": "int64", "correlation_id": "int64"})
        self._index: pd.MultiIndex | None = None

    @cached_property
    def _codes(self) -> list[dict[str | None, int]]:
        """The place of each name in its level; made when an order is added."""
        found: list[dict[str | None, int]] = []
        for level in self._levels:
            names = level.frame()["name"].tolist()
            found.append({None: -1} | {name: place for place, name in enumerate(names)})
        return found

    def load(self, columns: Mapping[str, PackedColumn], count: int) -> None:
        """Begin with the orders of a checkpoint, which stores each name once."""
        for name, level in zip(("tenant", "correlation_id"), self._levels, strict=True):
            texts = columns[name].texts
            assert texts is not None  # noqa: S101 - they are texts
            places = np.arange(len(texts.sizes))
            level.load({"name": PackedColumn(places, None, texts)}, len(places))
        self._rows.load(columns, count)

    def append(self, keys: Sequence[OrderKey]) -> None:
        """Add orders."""
        if not keys:
            return
        self._index = None
        columns = []
        for names, codes, level in zip(
            zip(*keys, strict=True), self._codes, self._levels, strict=True
        ):
            # dict.fromkeys() keeps the order and removes repetitions.
            new = [name for name in dict.fromkeys(names) if name not in codes]
            codes.update({name: len(level) + n for n, name in enumerate(new)})
            level.append([new], len(new))
            columns.append([codes[name] for name in names])
        self._rows.append(columns, len(keys))

    def index(self) -> pd.MultiIndex:
        """Return the index of all orders."""
        if self._index is None:
            codes: Any = self._rows.frame()
            self._index = pd.MultiIndex(
                levels=[pd.Index(level.frame()["name"]) for level in self._levels],
                codes=[codes[name].to_numpy() for name in codes],
                names=list(codes),
                verify_integrity=False,
            )
        return self._index
