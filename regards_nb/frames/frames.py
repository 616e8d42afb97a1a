"""Journal rows → typed DataFrames, reading only what is new. The one room that imports pandas.

Dtypes are those of `EVENT_DTYPES` and its sisters whatever the number of rows, zero included.
Frames handed out may be changed freely: pandas copies on write.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from regards_nb.errors import SettingsError
from regards_nb.events import OrderEvent, OrderStatus, decode
from regards_nb.orders import GONE, FileState, OrderBook, OrderKey, OrderState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from regards_nb.client import RemoteOrder
    from regards_nb.journal import Journal
    from regards_nb.orders import FileRecord

_TIME = "datetime64[us, UTC]"

#: Columns of `Frames.events`. ``status`` is categorical, with the unknown ones added as they come.
EVENT_DTYPES = {
    "received_at": _TIME,
    "timestamp": _TIME,
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
    "first_event": _TIME,
    "last_event": _TIME,
    "waits_for_download": "bool",
    "expires_at": _TIME,
}
FILE_DTYPES = {
    "order": "Int64",
    "name": "str",
    "path": "str",
    "size": "Int64",
    "md5": "str",
    "state": "category",
    "error": "str",
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
    "created_at": _TIME,
    "status_at": _TIME,
    "expires_at": _TIME,
}
REJECTED_DTYPES = {"body": "object", "reason": "str", "received_at": _TIME}

_IN_PLACE = frozenset({FileState.VERIFIED, FileState.UNVERIFIED})


class Frames:
    """The journal of one tenant as DataFrames, kept up to date by `refresh`.

    Parameters
    ----------
    journal : Journal
    tenant : str or None
        Keep this tenant's rows, and those that name none; None keeps all.

    Notes
    -----
    Safe to use from several threads: each call holds one lock.
    """

    def __init__(self, journal: Journal, tenant: str | None) -> None:
        self._journal = journal
        self._tenant = tenant
        self._lock = threading.RLock()
        self._last_id = 0
        self._revision = 0
        self._book = OrderBook()
        self._new_events: list[OrderEvent] = []
        self._statuses = [str(status) for status in OrderStatus]
        self._events = _frame(EVENT_DTYPES, [], self._statuses)
        #: (row id, reason, arrival in µs); the bodies stay in the journal until asked for
        self._rejections: list[tuple[int, str, int]] = []
        self._files: dict[tuple[int, int], FileRecord] = {}
        self._fetched: dict[tuple[str | None, int], int] = {}
        self._labels: dict[tuple[str | None, str], str] = {}
        self._remote: dict[OrderKey, RemoteOrder] = {}
        self._feeds: list[deque[tuple[OrderKey, OrderEvent]]] = []

    def follow(self) -> deque[tuple[OrderKey, OrderEvent]]:
        """Return a queue that receives each event taken in from now on, with its order."""
        with self._lock:
            self.refresh()
            feed: deque[tuple[OrderKey, OrderEvent]] = deque()
            self._feeds.append(feed)
            return feed

    def unfollow(self, feed: deque[tuple[OrderKey, OrderEvent]]) -> None:
        """End what `follow` began."""
        with self._lock:
            self._feeds = [other for other in self._feeds if other is not feed]

    def refresh(self) -> None:
        """Take in what was journalled since the last call, by whichever process."""
        with self._lock:
            fresh = []
            for row in self._journal.read(self._last_id, tenant=self._tenant):
                self._last_id = row.id
                event = decode(row.delivery)
                if isinstance(event, OrderEvent):
                    self._new_events.append(event)
                    fresh.append((self._book.add(row.id, event), event))
                else:
                    self._rejections.append((row.id, event.reason, row.delivery.received_at_us))
            self._refresh_files()
            for feed in self._feeds:
                feed.extend(fresh)

    def heard(self, key: OrderKey, remote: RemoteOrder) -> None:
        """Take what the server last said of an order over REST: percentage, expiry, label.

        Kept in memory only: it is out of date soon, and asked for again at the next start.
        """
        with self._lock:
            self._remote[key] = remote

    def _refresh_files(self) -> None:
        self._revision, changed = self._journal.files_after(self._revision, tenant=self._tenant)
        self._files.update(((record.order_id, record.file_id), record) for record in changed)
        self._fetched = self._journal.fetched()
        self._labels = self._journal.labels()

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in journal order; columns and dtypes of `EVENT_DTYPES`."""
        with self._lock:
            self.refresh()
            if self._new_events:
                self._append(self._new_events)
                self._new_events = []
            return self._events.copy(deep=False)

    def _append(self, events: Sequence[OrderEvent]) -> None:
        unknown = sorted({event.status for event in events} - set(self._statuses))
        if unknown:
            self._statuses += unknown
            known = self._events["status"].cat.set_categories(self._statuses)
            self._events = self._events.assign(status=known)
        rows = [
            (event.received_at_us, event.timestamp_s, *event[2 : len(EVENT_DTYPES)])
            for event in events
        ]
        frame = _frame(EVENT_DTYPES, rows, self._statuses, time_units=["us", "s"])
        self._events = pd.concat([self._events, frame], ignore_index=True)

    @property
    def orders(self) -> pd.DataFrame:
        """One row per order; index (tenant, correlation_id), columns of `ORDER_DTYPES`."""
        states = self.states()
        rows = [tuple(getattr(state, name) for name in ORDER_DTYPES) for state in states]
        frame = _frame(ORDER_DTYPES, rows, self._statuses_of(states))
        index = pd.MultiIndex.from_arrays(
            [
                pd.array([state.tenant for state in states], dtype="str"),
                pd.array([state.correlation_id for state in states], dtype="str"),
            ],
            names=["tenant", "correlation_id"],
        )
        return frame.set_index(index)

    @property
    def files(self) -> pd.DataFrame:
        """One row per file that a manifest listed; columns of `FILE_DTYPES`, sizes in bytes."""
        with self._lock:
            self.refresh()
            rows = [
                (f.order_id, f.name, f.path, f.size_bytes, f.md5, str(f.state), f.error)
                for f in self._files.values()
            ]
        return _frame(FILE_DTYPES, rows, [str(state) for state in FileState])

    @property
    def rejected(self) -> pd.DataFrame:
        """One row per message that could not be understood; columns of `REJECTED_DTYPES`."""
        with self._lock:
            self.refresh()
            bodies = self._journal.bodies([row_id for row_id, _, _ in self._rejections])
            rows = [(bodies[row_id], why, us) for row_id, why, us in self._rejections]
        return _frame(REJECTED_DTYPES, rows, [], time_units=["us"])

    @property
    def rejections(self) -> int:
        """How many messages could not be understood."""
        with self._lock:
            return len(self._rejections)

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return the state of some orders, or of all, in the order of their first event."""
        with self._lock:
            self.refresh()
            tallies = self._tallies()
            wanted = self._book if keys is None else map(self._book.resolved, keys)
            return [self._completed(key, tallies) for key in wanted if key in self._book]

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

    def key_of(self, key: str | int) -> OrderKey | None:
        """Find an order by correlation id (text) or order id (number); the latest if several."""
        with self._lock:
            self.refresh()
            for known in reversed(list(self._book)):
                if isinstance(key, str) and known.correlation_id == key:
                    return known
                if not isinstance(key, str) and self._book.state(known).order_id == key:
                    return known
        if isinstance(key, str) and key.startswith("#") and key[1:].isdecimal():
            return self.key_of(int(key[1:]))  # known by its number at first, by its name now
        return None

    def files_of(self, order_id: int) -> list[FileRecord]:
        """Return what is known of the files of one order."""
        with self._lock:
            self.refresh()
            return [record for record in self._files.values() if record.order_id == order_id]

    def _tallies(self) -> dict[int, list[FileRecord]]:
        tallies: dict[int, list[FileRecord]] = {}
        for record in self._files.values():
            tallies.setdefault(record.order_id, []).append(record)
        return tallies

    def _completed(self, key: OrderKey, files_of: dict[int, list[FileRecord]]) -> OrderState:
        """Add to what the events say what is known on this side."""
        state = self._book.state(key)
        files = files_of.get(state.order_id, []) if state.order_id is not None else []
        in_place = [record for record in files if record.state in _IN_PLACE]
        fetched_row = self._fetched.get((key.tenant, state.order_id or -1), 0)
        remote = self._remote.get(key)
        if remote is not None and remote.order_id == state.order_id:
            state = _with_remote(state, remote)
        return replace(
            state,
            label=self._labels.get(key) or state.label,
            downloaded_files=len(in_place),
            downloaded_bytes=sum(record.size_bytes or 0 for record in in_place),
            files_total=len(files) or None,
            bytes_total=sum(record.size_bytes or 0 for record in files) or None,
            waits_for_download=state.ready_row > fetched_row and state.status not in GONE,
        )

    def _statuses_of(self, states: Iterable[OrderState]) -> list[str]:
        known = [str(status) for status in OrderStatus]
        return known + sorted({state.status for state in states} - set(known))


def _with_remote(state: OrderState, remote: RemoteOrder) -> OrderState:
    """Add what only REST tells; where events count sub-orders, their progress stands."""
    percent = remote.percent_completed
    progress = state.progress
    if progress is None and percent is not None:
        progress = min(percent / 100, 1.0)
    return replace(state, label=remote.label, expires_at=remote.expires_at, progress=progress)


def orders_frame(orders: Iterable[RemoteOrder]) -> pd.DataFrame:
    """Return orders as the server sees them, one row each; index and columns never change."""
    rows = [tuple(getattr(order, name) for name in REMOTE_DTYPES) for order in orders]
    statuses = sorted({str(status) for status in OrderStatus} | {order[1] for order in rows})
    return _frame(REMOTE_DTYPES, rows, statuses).set_index("order_id")


def _frame(
    dtypes: dict[str, Any],
    rows: Sequence[tuple[Any, ...]],
    categories: Any,
    *,
    time_units: Sequence[str] = (),
) -> pd.DataFrame:
    """Build a frame whose dtypes do not depend on its rows.

    *time_units* are those of the time columns that are given as whole numbers since 1970.
    """
    columns = zip(*rows, strict=True) if rows else ((),) * len(dtypes)
    units = iter(time_units)
    data: dict[str, Any] = {}
    for (name, dtype), values in zip(dtypes.items(), columns, strict=True):
        if dtype == _TIME:
            data[name] = _times(values, next(units, None))
        elif dtype == "category":
            data[name] = pd.Categorical(values, categories=categories)
        elif dtype in {"object", "bool"}:
            column = np.empty(len(values), dtype=dtype)
            column[:] = values
            data[name] = column
        else:
            data[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(data)


def _times(values: Sequence[Any], unit: str | None) -> pd.DatetimeIndex:
    if unit is None:
        return pd.DatetimeIndex(pd.to_datetime(list(values), utc=True)).as_unit("us")
    numbers = np.array([np.iinfo(np.int64).min if v is None else v for v in values], dtype="int64")
    return pd.DatetimeIndex(numbers.view(f"datetime64[{unit}]")).as_unit("us").tz_localize("UTC")
