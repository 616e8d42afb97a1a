"""The frames of events and of orders: rows are appended, those of changed orders written again."""

from __future__ import annotations

from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from regards_nb.events import OrderEvent, OrderStatus, decode
from regards_nb.frames.columns import EVENT_DTYPES, ORDER_DTYPES, GrowingFrame
from regards_nb.frames.packed import PackedColumn, columns_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from regards_nb.frames.checkpoint import Checkpoint, StoredOrders
    from regards_nb.frames.state import OrderStates
    from regards_nb.journal import Batch
    from regards_nb.orders import OrderKey

    _ReadAgain = Callable[[], Iterable[Sequence[OrderEvent]]]

#: Maximum number of events without rows: the frame of the orders needs no rows of events.
_MAX_WAITING = 1000
#: The values of the columns after the two times.
_FIELDS = [attrgetter(name) for name in list(EVENT_DTYPES)[2:]]

_row = attrgetter(*ORDER_DTYPES)


def events_of(
    batch: Batch, tenant: str | None, rejections: list[tuple[int, str, int]]
) -> tuple[list[int], list[OrderEvent]]:
    """Return the events of a tenant in a batch, with their rows; append to *rejections*."""
    row_ids, events = [], []
    for row_id, delivery in enumerate(batch.deliveries, batch.first_id):
        if tenant is not None and delivery.tenant not in {None, tenant}:
            continue
        event = decode(delivery)
        if isinstance(event, OrderEvent):
            row_ids.append(row_id)
            events.append(event)
        else:
            rejections.append((row_id, event.reason, delivery.received_at_us))
    return row_ids, events


class EventsFrame:
    """Keeps `OrderTracker.events`; *stored* is the checkpoint that the frames began with."""

    def __init__(self, stored: Checkpoint | None = None) -> None:
        self._stored = stored
        #: How many events are stored and not read.
        self._unread = 0 if stored is None else stored.head.n_events
        self._rows = GrowingFrame(EVENT_DTYPES, map(str, OrderStatus))
        #: The newest events, whose rows are not written.
        self._waiting: list[OrderEvent] = []

    def __len__(self) -> int:
        return self._unread + len(self._rows) + len(self._waiting)

    def append(self, events: Sequence[OrderEvent]) -> None:
        """Add new events."""
        self._waiting += events
        if len(self._waiting) >= _MAX_WAITING:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._waiting:
            self._rows.append(_columns(self._waiting), len(self._waiting))
            self._waiting = []

    def frame(self, read_again: _ReadAgain) -> pd.DataFrame:
        """Return all events, in journal order.

        *read_again* yields the events of the checkpoint, if they are stored no more.
        """
        self._write_waiting()
        if self._stored is not None:
            new = self._rows.frame()
            rows = GrowingFrame(EVENT_DTYPES, map(str, OrderStatus))
            for columns in self._stored.read_events():
                rows.load(columns, len(columns["redelivered"].data))
            if len(rows) != self._stored.head.n_events:  # they cannot be read
                rows = GrowingFrame(EVENT_DTYPES, map(str, OrderStatus))
                for events in read_again():
                    rows.append(_columns(events), len(events))
            rows.load(columns_of(new, EVENT_DTYPES), len(new))
            self._rows, self._stored, self._unread = rows, None, 0
        return self._rows.frame()

    def since(self, first: int, read_again: _ReadAgain) -> pd.DataFrame:
        """Return the events from a row on; nothing is read if they are not stored."""
        self._write_waiting()
        frame = self._rows.frame() if first >= self._unread else self.frame(read_again)
        return frame.iloc[first - self._unread :]


def _columns(events: Sequence[OrderEvent]) -> list[Sequence[object]]:
    # One list per column: a tuple per event would be tracked by the garbage collector.
    received_at_us = [event.received_at_us for event in events]
    timestamp_us = [None if (s := e.timestamp_s) is None else s * 1_000_000 for e in events]
    return [received_at_us, timestamp_us, *(list(map(field, events)) for field in _FIELDS)]


class OrdersFrame:
    """Keeps `OrderTracker.orders` up to date.

    Only this object may call `OrderStates.take_changed` of *states*. *stored* are the orders of the
    checkpoint that *states* began with; their rows are made when the frame is asked for.
    """

    def __init__(self, states: OrderStates, stored: StoredOrders | None = None) -> None:
        self._states = states
        self._regrouped = states.regrouped
        self._begin(stored)

    def _begin(self, stored: StoredOrders | None = None) -> None:
        self._stored = stored
        self._rows = GrowingFrame(ORDER_DTYPES, map(str, OrderStatus))
        self._index = _Index()
        self._frame: pd.DataFrame | None = None

    def frame(self) -> pd.DataFrame:
        """Return one row per order; index (tenant, correlation_id)."""
        is_changed = self._write_changed()
        if is_changed or self._frame is None:
            self._frame = self._rows.frame().set_axis(self._index.index(), axis="index")
        return self._frame.copy(deep=False)

    def _write_changed(self) -> bool:
        """Write the orders that changed; tell whether any did."""
        places, states = self._states.take_changed()
        if self._states.regrouped != self._regrouped:
            self._regrouped = self._states.regrouped
            self._begin()
        if self._stored is not None:
            self._rows.load(self._stored.columns, self._stored.n_orders)
            self._index.load(self._stored.columns, self._stored.n_orders)
            self._stored = None
        known = len(self._rows)
        self._rows.update(places, list(map(_row, states)))
        new = (state.key for place, state in zip(places, states, strict=True) if place >= known)
        self._index.append(list(new))
        return bool(states)


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
