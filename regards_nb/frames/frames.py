"""`Frames`: the journal of one tenant as DataFrames, reading only what is new."""

from __future__ import annotations

import importlib.util
import threading
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from regards_nb.errors import SettingsError
from regards_nb.events import OrderEvent, OrderStatus, decode
from regards_nb.files import FileState
from regards_nb.frames.dtypes import EVENT_DTYPES, FILE_DTYPES, REJECTED_DTYPES, REMOTE_DTYPES
from regards_nb.frames.orders import OrdersFrame
from regards_nb.frames.standing import OrderStates
from regards_nb.frames.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pandas as pd

    from regards_nb.client import RemoteOrder
    from regards_nb.files import FileRecord
    from regards_nb.journal import Batch, Journal
    from regards_nb.orders import OrderKey, OrderState

#: Events that were taken in together, each with its order.
EventQueue: TypeAlias = "deque[tuple[list[OrderKey], list[OrderEvent]]]"

#: What stands in the columns behind the two times.
_FIELDS = [attrgetter(name) for name in list(EVENT_DTYPES)[2:]]


class Frames:
    """The journal of one tenant as DataFrames, kept up to date by `refresh`.

    Parameters
    ----------
    journal : Journal
    tenant : str or None
        Keep this tenant's rows, and those that name none; None keeps all.

    Notes
    -----
    Safe to use from several threads: each call holds one lock. Frames handed out may be changed
    freely: pandas copies on write.
    """

    def __init__(self, journal: Journal, tenant: str | None) -> None:
        self._journal = journal
        self._tenant = tenant
        self._lock = threading.RLock()
        self._last_id = 0
        self._revision = 0
        self._standing = OrderStates()
        self._events = Table(EVENT_DTYPES, map(str, OrderStatus))
        self._orders = OrdersFrame(self._standing)
        self._files = Table(FILE_DTYPES, map(str, FileState))
        self._rejected = Table(REJECTED_DTYPES)
        #: (row id, reason, arrival in µs); the bodies stay in the journal until asked for
        self._rejections: list[tuple[int, str, int]] = []
        self._feeds: list[EventQueue] = []

    def follow(self) -> EventQueue:
        """Return a queue that receives all events taken in from now on, with their orders."""
        with self._lock:
            self.refresh()
            feed: EventQueue = deque()
            self._feeds.append(feed)
            return feed

    def unfollow(self, feed: EventQueue) -> None:
        """End what `follow` began."""
        with self._lock:
            self._feeds = [other for other in self._feeds if other is not feed]

    def refresh(self) -> None:
        """Take in what was journalled since the last call, by whichever process."""
        with self._lock:
            position = self._journal.position()
            if position.last_id > self._last_id:
                for batch in self._journal.read(self._last_id):
                    self._take_in(batch)
                    self._last_id = batch.first_id + len(batch.deliveries) - 1
                    if self._last_id >= position.last_id:
                        break
            if position.revision > self._revision:
                self._refresh_files(position.revision)

    def _take_in(self, batch: Batch) -> None:
        row_ids, events = [], []
        for row_id, delivery in enumerate(batch.deliveries, batch.first_id):
            if self._tenant is not None and delivery.tenant not in {None, self._tenant}:
                continue
            event = decode(delivery)
            if isinstance(event, OrderEvent):
                row_ids.append(row_id)
                events.append(event)
            else:
                self._rejections.append((row_id, event.reason, delivery.received_at_us))
        if events:
            keys = self._standing.add(row_ids, events)
            self._events.append(_event_columns(events), len(events))
            for feed in self._feeds:
                feed.append((keys, events))

    def _refresh_files(self, newest: int) -> None:
        seen = self._revision
        self._standing.add_files(self._journal.files_after(seen, tenant=self._tenant))
        self._standing.add_fetched(self._journal.fetched_after(seen))
        self._standing.add_labels(self._journal.labels_after(seen))
        self._revision = newest  # only now: what could not be read is read the next time

    def set_remote(self, key: OrderKey, remote: RemoteOrder) -> None:
        """Take what the server last said of an order over REST: percentage, expiry, label.

        Kept in memory only: it is out of date soon, and asked for again at the next start.
        """
        with self._lock:
            self._standing.set_remote(key, remote)

    # -- the frames --

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in journal order; columns and dtypes of `EVENT_DTYPES`."""
        with self._lock:
            self.refresh()
            return self._events.frame()

    @property
    def orders(self) -> pd.DataFrame:
        """One row per order; index (tenant, correlation_id), columns of `ORDER_DTYPES`."""
        with self._lock:
            self.refresh()
            return self._orders.frame()

    def orders_of(self, names: Iterable[str | int | OrderKey]) -> pd.DataFrame:
        """Return the rows of `orders` for some orders, as `key_of` finds them.

        At one moment: an order that is known by its number is another row once a message names it.
        """
        with self._lock:
            orders = self.orders
            keys = map(self._standing.key_of, names)
            return orders[orders.index.isin([key for key in keys if key is not None])]

    @property
    def files(self) -> pd.DataFrame:
        """One row per file that a manifest listed; columns of `FILE_DTYPES`, sizes in bytes."""
        with self._lock:
            self.refresh()
            places, records = self._standing.files.take_changed()
            self._files.update(places, list(map(_file_row, records)))
            return self._files.frame()

    @property
    def rejected(self) -> pd.DataFrame:
        """One row per message that could not be understood; columns of `REJECTED_DTYPES`."""
        with self._lock:
            self.refresh()
            bodies = self._journal.bodies(row_id for row_id, _, _ in self._rejections)
            rows = [(bodies[row_id], why, us) for row_id, why, us in self._rejections]
            known = len(self._rejected)
            self._rejected.update(range(known, known + len(rows)), rows)
            self._rejections.clear()
            return self._rejected.frame()

    def export(self, folder: Path, kind: str) -> list[Path]:
        """Write each frame to a file of its own; see `OrderTracker.export`."""
        if kind not in {"csv", "parquet"}:
            raise SettingsError(f'an export is "csv" or "parquet", not {kind!r}')
        if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
            raise SettingsError('Parquet needs pyarrow: pip install "regards-nb[parquet]"')
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in ("events", "orders", "files", "rejected"):
            path, frame = folder / f"{name}.{kind}", getattr(self, name)
            # An export that is cut short leaves the earlier one as it was.
            part = path.with_name(f".{path.name}.part")
            frame.to_csv(part) if kind == "csv" else frame.to_parquet(part)
            paths.append(part.replace(path))
        return paths

    # -- single orders --

    @property
    def rejections(self) -> int:
        """How many messages could not be understood."""
        with self._lock:
            return len(self._rejected) + len(self._rejections)

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return the state of some orders, or of all, in the order of their first event."""
        with self._lock:
            self.refresh()
            return self._standing.states(keys)

    def key_of(self, name: str | int | OrderKey) -> OrderKey | None:
        """Find an order by correlation id (text) or order id (number); the latest if several."""
        with self._lock:
            self.refresh()
            return self._standing.key_of(name)

    def files_of(self, order_id: int) -> list[FileRecord]:
        """Return what is known of the files of one order."""
        with self._lock:
            self.refresh()
            return self._standing.files_of(order_id)


def _event_columns(events: Sequence[OrderEvent]) -> list[Sequence[object]]:
    # one by one: a tuple for each event would have the garbage collector look at them all
    received_at_us = [event.received_at_us for event in events]
    timestamp_us = [None if (s := e.timestamp_s) is None else s * 1_000_000 for e in events]
    return [received_at_us, timestamp_us, *(list(map(field, events)) for field in _FIELDS)]


def _file_row(record: FileRecord) -> tuple[object, ...]:
    return (
        record.order_id, record.name, record.path, record.size_bytes, record.md5,
        str(record.state), record.error,
    )  # fmt: skip


def orders_frame(orders: Iterable[RemoteOrder]) -> pd.DataFrame:
    """Return orders as the server sees them, one row each; index and columns never change."""
    rows = [tuple(getattr(order, name) for name in REMOTE_DTYPES) for order in orders]
    table = Table(REMOTE_DTYPES, map(str, OrderStatus))
    table.update(range(len(rows)), rows)
    return table.frame().set_index("order_id")
