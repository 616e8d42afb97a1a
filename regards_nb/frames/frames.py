"""`Frames`: the journal of one tenant as DataFrames; each call reads only new rows."""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_right
from collections import deque
from contextlib import suppress
from functools import cache, cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from regards_nb.download import compare_files
from regards_nb.errors import JournalError
from regards_nb.events import OrderEvent, OrderStatus, decode, utc
from regards_nb.files import FileState, is_url
from regards_nb.frames.checkpoint import Capture, Checkpoints, Head
from regards_nb.frames.columns import (
    EVENT_DTYPES,
    FILE_DTYPES,
    ORDER_DTYPES,
    PROBLEM_DTYPES,
    REJECTED_DTYPES,
    GrowingFrame,
    PackedColumn,
    columns_of,
)
from regards_nb.frames.export import write_frames
from regards_nb.frames.state import OrderFile, OrderStates
from regards_nb.journal import name_of
from regards_nb.waits import is_unasked, within

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from regards_nb.download import Place
    from regards_nb.files import FileRecord
    from regards_nb.frames.checkpoint import Checkpoint, StoredOrders
    from regards_nb.frames.state import Answer, States
    from regards_nb.journal import Batch, Journal, Position
    from regards_nb.orders import OrderKey, OrderState

    _ReadAgain = Callable[[], Iterable[Sequence[OrderEvent]]]
    #: The generation of the ids, and how far the journal has grown; None: it is not asked.
    _Look = tuple[int, Position] | None

_T = TypeVar("_T")

#: Maximum number of events without rows: the frame of the orders needs no rows of events.
_MAX_WAITING = 1000
#: The values of the columns after the two times.
_FIELDS = [attrgetter(name) for name in list(EVENT_DTYPES)[2:]]

_row = attrgetter(*ORDER_DTYPES)

#: Events that one refresh added, each with its order.
EventQueue: TypeAlias = "deque[tuple[list[OrderKey], list[OrderEvent]]]"


class _Whole:
    """Notes that Ctrl-C has ended a block in the middle: what it changes may be half done."""

    def __init__(self) -> None:
        self.is_broken = False

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the block."""
        if kind is not None and not issubclass(kind, Exception):
            self.is_broken = True


class Frames:
    """The journal of one tenant as DataFrames, kept up to date by `refresh`.

    Rows without a tenant are kept, too; with the tenant None, all are. The paths of the journal are
    relative to *workspace*; with it, `files` shows which files were removed. *queues* limits the
    messages to those of some queues. The journal keeps the *refused* orders of an *account*.

    Threads may share an object: each call holds one lock. A user may write into a returned frame:
    pandas copies the memory first.
    """

    def __init__(
        self,
        journal: Journal,
        tenant: str | None,
        workspace: Place | None = None,
        *,
        queues: Collection[str] | None = None,
        account: str | None = None,
    ) -> None:
        self._journal = journal
        self._shown_queues = queues
        self._tenant = tenant
        self._workspace = None if workspace is None else str(workspace)
        # of C: an exception that another thread or a signal raises leaves it free
        self._lock = threading.RLock()
        #: In each block that changes what is kept.
        self._whole = _Whole()
        self._account = account
        #: The numbers of orders that REGARDS refuses to the account of the client.
        self.refused = set() if account is None else journal.refused_to(account)
        self._generation = journal.generation
        #: Each queue, and the last row that the journal had when it was made.
        self._queues: list[tuple[int, EventQueue]] = []
        #: The newest arrival of a message that was read, in µs.
        self._newest_us = 0
        shown = None if queues is None else sorted(queues)
        #: stores the rows folded since the last checkpoint, if they are many
        self.checkpoints = Checkpoints(journal, tenant, shown, self._capture)
        self._clear()

    def _clear(self, checkpoint: Checkpoint | None = None) -> None:
        """Forget all rows, or begin with those of a checkpoint."""
        self._last_id = 0
        #: of each session, by its id
        self._queue_of: dict[int, str] = {}
        #: The last row of the checkpoint.
        self._stored_last_id = 0
        if checkpoint is None:
            self.checkpoints.begin_anew()
        else:
            self._last_id = self._stored_last_id = checkpoint.head.last_id
            self._newest_us = max(self._newest_us, checkpoint.head.newest_us)
        self._revision = 0
        #: The orders of the checkpoint.
        self._stored = None if checkpoint is None else checkpoint.orders
        self._states = OrderStates(self._tenant, self._stored, self.refused)
        self._orders = OrdersFrame(self._states, self._stored)
        self._events = EventsFrame(checkpoint)
        self._files = GrowingFrame(FILE_DTYPES, map(str, FileState))
        #: The positions of the files that the frame shows as removed.
        self._removed: set[int] = set()
        #: The files that were missing when `problems` looked: a bucket is not asked at each look.
        self._missing: set[FileRecord] = set()
        self._rejected = GrowingFrame(REJECTED_DTYPES)
        #: Row id, reason and arrival (µs) of each rejected message. The bodies may be large and are
        #: read from the journal when `rejected` is called.
        self._rejections = [] if checkpoint is None else checkpoint.head.rejections

    def follow(self, after_id: int) -> EventQueue:
        """Return a queue that receives events with their orders.

        It begins with the first event after the row *after_id*. Older rows are not read: a long
        history costs nothing here.
        """
        queue: EventQueue = deque()
        with self._lock:
            newest_id = self._journal.position().last_id
            for batch in self._journal.read(after_id) if after_id < newest_id else ():
                newest_id = max(newest_id, batch.last_id)
                if self._is_shown(batch.session_id):
                    _, events = events_of(batch, self._tenant, [])
                    queue.append((list(map(name_of, events)), events))
            self._queues.append((newest_id, queue))
        return queue

    @property
    def read_up_to(self) -> tuple[int, int]:
        """The generation and the newest row that was read; queues have all events up to it."""
        with self._lock:
            return self._generation, self._last_id

    def unfollow(self, queue: EventQueue) -> None:
        """Stop filling a queue that `follow` returned."""
        with self._lock:
            self._queues = [each for each in self._queues if each[1] is not queue]

    def refresh(self, *, exact: bool = True, answer_s: float = math.inf) -> None:
        """Read what is new; `Journal.position`, *exact* or not, waits for a server *answer_s*."""
        with within(answer_s):
            look = self._look(exact=exact)
        with self._lock, self._whole:
            self._read(look)

    def _fresh(self, find: Callable[[], _T], *, exact: bool = False) -> _T:
        """Read what is new, and return what a function finds then, under the same lock."""
        look = self._look(exact=exact)
        with self._lock, self._whole:
            self._read(look)
            return find()

    def _look(self, *, exact: bool = False) -> _Look:
        """Ask how far the journal has grown: without the lock, because a server may not answer."""
        journal = self._journal
        return None if is_unasked() else (journal.generation, journal.position(exact=exact))

    def _read(self, look: _Look) -> None:
        """Read the rows and file records up to a position, and later ones after a replacement."""
        if look is not None and self._whole.is_broken:
            self.read_again()
            self._whole.is_broken = False
        while look is not None:
            generation, position = look
            if self._journal.generation == generation:
                if self._generation != generation:
                    self._start_again(generation)
                self._read_on(generation, position)
                if self._journal.generation == generation:
                    return
            look = self._look()

    def _capture(self) -> Capture:
        """Return the content of a checkpoint."""
        with self._lock, self._whole:
            keys, folded, changed = self._states.folded()
            events, n_events = self._events, len(self._events)

            def events_from(first: int) -> pd.DataFrame:
                with self._lock, self._whole:
                    return events.since(first, self._read_again).iloc[: n_events - first]

            return Capture(
                generation=self._generation,
                head=Head(
                    Checkpoints.version,
                    self._last_id,
                    self._newest_us,
                    self._rejections.copy(),
                    n_events,
                ),
                keys=keys,
                folded=folded,
                stored=None if self._states.regrouped else self._stored,
                changed=changed,
                events_from=events_from,
            )

    def _read_on(self, generation: int, position: Position) -> None:
        """Read the new rows; stop if the ids get another meaning meanwhile."""
        if not self._last_id and position.last_id >= Checkpoints.min_events:
            # Begin with the rows of the checkpoint, if that hides no event from a queue.
            checkpoint = self.checkpoints.read()
            limit = min([position.last_id, *(after_id for after_id, _ in self._queues)])
            if checkpoint is not None and checkpoint.head.last_id <= limit:
                self._clear(checkpoint)
        known = len(self._events)
        if position.last_id > self._last_id:
            for batch in self._journal.read(self._last_id):
                if self._journal.generation != generation:
                    return
                if batch.first_id > self._last_id + 1:
                    # Another process may have removed rows after the last call.
                    self._states.restore(self._journal.pruning.orders(self._shown_queues))
                self._add(batch)
                self._last_id = batch.last_id
                if self._last_id >= position.last_id:
                    break
        if position.revision > self._revision and self._journal.generation == generation:
            self._refresh_files(position.revision)
        self.checkpoints.note(len(self._events) - known, len(self._states))

    def read_again(self) -> None:
        """Read all rows again, because some were removed. Queues of `follow` get no event twice."""
        with self._lock, self._whole:
            self._queues = [
                (max(after_id, self._last_id), queue) for after_id, queue in self._queues
            ]
            self._clear()

    def _start_again(self, generation: int) -> None:
        """Forget all rows: the journal was replaced, and its ids may mean other messages."""
        self._clear()
        # Callbacks were called for the messages that arrived before, which may have other ids now.
        seen_us = self._newest_us
        rows = (row for batch in self._journal.read() for row in batch.rows())
        seen_id = max((r.id for r in rows if r.delivery.received_at_us <= seen_us), default=0)
        self._queues = [(seen_id, queue) for _, queue in self._queues]
        self._generation = generation  # last, so that a call after Ctrl-C repeats this

    def _is_shown(self, session_id: int) -> bool:
        """Return whether the messages of a session are of a queue that is shown."""
        if self._shown_queues is None:
            return True
        if session_id not in self._queue_of:
            newest_id = max(self._queue_of, default=0)
            self._queue_of |= self._journal.queues_of_sessions(after_id=newest_id)
        queue = self._queue_of.get(session_id)
        return queue is None or queue in self._shown_queues

    @property
    def newest_at(self) -> datetime | None:
        """When the newest message that was read arrived."""
        return utc(self._newest_us) if self._newest_us else None

    def _add(self, batch: Batch) -> None:
        if not self._is_shown(batch.session_id):
            return
        self._newest_us = max(self._newest_us, batch.deliveries[-1].received_at_us)
        row_ids, events = events_of(batch, self._tenant, self._rejections)
        if events:
            keys = self._states.add(row_ids, events)
            self._events.append(events)
            for after_id, queue in self._queues:
                new = bisect_right(row_ids, after_id)
                if new < len(events):
                    queue.append((keys[new:], events[new:]))

    def _read_again(self) -> Iterator[list[OrderEvent]]:
        """Yield the events of the checkpoint from the journal, as far as it still has them."""
        for batch in self._journal.read():
            if batch.first_id > self._stored_last_id:
                return
            if self._is_shown(batch.session_id):
                _, events = events_of(batch, self._tenant, [])
                yield events

    def _refresh_files(self, newest: int) -> None:
        seen = self._revision
        self._states.add_files(
            self._journal.files_after(seen, tenant=self._tenant, workspace=self._workspace)
        )
        self._states.add_fetched(self._journal.fetched_after(seen))
        self._states.add_labels(self._journal.labels_after(seen))
        self._revision = newest  # last, so that a failed read is repeated by the next call

    def keep_answers(self, answers: Mapping[tuple[str | None, int], Answer]) -> None:
        """Journal the last answers of the server, by tenant and order id, that say something new.

        All frames of the journal have them from then on, also those of the next kernel.
        """
        self._journal.save_answers(self._fresh(lambda: self._states.new_answers(answers)))

    def set_refused(self, order_ids: Iterable[int], *, is_refused: bool) -> None:
        """Note whether orders belong to other users: nothing of these waits for this one.

        Those of the user may have been refused to another role before.
        """
        with self._lock, self._whole:
            told = set(order_ids)
            changed = told - self.refused if is_refused else told & self.refused
            self.refused ^= changed
            for order_id in changed:
                self._states.compute_again(order_id)
            refused = self.refused.copy()
        if changed and self._account is not None:
            with suppress(JournalError):  # REGARDS tells the next kernel again
                self._journal.save_refused(self._account, refused)

    # -- the frames --

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in journal order; columns and dtypes of `EVENT_DTYPES`."""
        return self._fresh(lambda: self._events.frame(self._read_again), exact=True)

    @property
    def orders(self) -> pd.DataFrame:
        """One row per order; index (tenant, correlation_id), columns of `ORDER_DTYPES`."""
        # The object can be another one after the read.
        return self._fresh(lambda: self._orders.frame(), exact=True)  # noqa: PLW0108

    def orders_of(self, names: Iterable[str | int | OrderKey]) -> pd.DataFrame:
        """Return the rows of `orders` for some orders, as `key_of` finds them.

        Names and rows are looked up under one lock, because an order known by its number becomes
        another row when a message tells its correlation id.
        """

        def rows() -> pd.DataFrame:
            orders = self._orders.frame()
            keys = map(self._states.key_of, names)
            return orders[orders.index.isin([key for key in keys if key is not None])]

        return self._fresh(rows, exact=True)

    @property
    def files(self) -> pd.DataFrame:
        """One row per file that a manifest listed; columns of `FILE_DTYPES`, sizes in bytes."""
        return self._fresh(self._files_frame, exact=True)

    def _files_frame(self) -> pd.DataFrame:
        files = self._states.files
        removed = set() if self._workspace is None else self._find_removed(files)
        positions = sorted({*self._states.take_changed_files(), *(removed ^ self._removed)})
        self._removed = removed
        rows = [_file_row(files[at], is_removed=at in removed) for at in positions]
        self._files.update(positions, rows)
        return self._files.frame()

    def _find_removed(self, files: Sequence[OrderFile]) -> set[int]:
        """Return the positions of the files that are not in their folders any more.

        Each folder is listed once: on a network file system a look at each file would take long.
        A bucket is not asked each time that a frame is shown; what `problems` found is kept.
        """
        names_in = cache(_names_in)

        def is_removed(record: FileRecord) -> bool:
            if record.path is None or not record.in_place:
                return False
            if is_url(record.path):
                return record in self._missing
            folder, name = os.path.split(record.path)
            return name not in names_in(folder)

        return {position for position, (record, _) in enumerate(files) if is_removed(record)}

    @property
    def rejected(self) -> pd.DataFrame:
        """One row per message that could not be decoded; columns of `REJECTED_DTYPES`."""
        return self._fresh(self._rejected_frame, exact=True)

    def _rejected_frame(self) -> pd.DataFrame:
        known = len(self._rejected)
        new = self._rejections[known:]
        bodies = self._journal.bodies(row_id for row_id, _, _ in new)
        rows = [(bodies[row_id], why, us) for row_id, why, us in new]
        self._rejected.update(range(known, known + len(rows)), rows)
        return self._rejected.frame()

    def export(self, folder: Path, kind: str) -> list[Path]:
        """Write each frame to its own file; see `OrderTracker.export`."""
        names = ("events", "orders", "files", "rejected")
        return write_frames({name: getattr(self, name) for name in names}, folder, kind)

    # -- single orders --

    @property
    def rejections(self) -> int:
        """Number of messages that could not be decoded."""
        with self._lock:
            return len(self._rejections)

    def states(self, keys: Iterable[OrderKey] | None = None) -> States:
        """Return the state of some orders, or of all, in the order of their first events."""
        return self._fresh(lambda: self._states.states(keys))

    def is_mixed(self) -> bool:
        """Return whether the orders are those of several projects."""
        with self._lock:
            return self._tenant is None and len(self._states.tenants - {None}) > 1

    def labelled(self, label: str) -> list[OrderState]:
        """Return the orders with this label."""
        return self._fresh(lambda: self._states.labelled(label))

    def key_of(self, name: str | int | OrderKey) -> OrderKey | None:
        """Find an order by correlation id (str) or order id (int); the latest if several."""
        return self._fresh(lambda: self._states.key_of(name))

    def problems(self, order_ids: Collection[int] | None, *, checksum: bool) -> pd.DataFrame:
        """Return the files, of some orders or of all, that changed since their download.

        The columns are those of `PROBLEM_DTYPES`. `files` then shows which objects of a bucket are
        missing.
        """
        in_place = self._fresh(
            lambda: [file for file in self._states.files if file.record.in_place], exact=True
        )
        files = [f for f in in_place if order_ids is None or f.record.order_id in order_ids]
        wrong = compare_files([file.record for file in files], checksum=checksum)
        found = [(file, wrong[file.record]) for file in files if file.record in wrong]
        with self._lock, self._whole:
            self._missing.difference_update(file.record for file in files)
            self._missing.update(file.record for file, each in found if each.problem == "missing")
        rows = [
            (file.record.order_id, file.correlation_id, file.record.name, file.record.path,
             file.record.size_bytes, each.found_bytes, each.problem)
            for file, each in found
        ]  # fmt: skip
        frame = GrowingFrame(PROBLEM_DTYPES)
        frame.update(range(len(rows)), rows)
        return frame.frame()

    def files_of(self, order_id: int) -> list[FileRecord]:
        """Return the files of one order."""
        return self._fresh(lambda: self._states.files_of(order_id), exact=True)


def _names_in(folder: str) -> set[str]:
    with suppress(OSError):
        return set(os.listdir(folder))  # noqa: PTH208 - names only
    return set()


def _file_row(file: OrderFile, *, is_removed: bool) -> tuple[object, ...]:
    record = file.record
    state = FileState.REMOVED if is_removed else record.state
    return (
        record.order_id, file.correlation_id, record.name, record.path, record.size_bytes,
        record.md5, str(state), record.error, record.fetched_at_us,
    )  # fmt: skip


# -- the rows


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

        *read_again* yields the events of the checkpoint, if they are no longer stored.
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
        positions, states = self._states.take_changed()
        if self._states.regrouped != self._regrouped:
            self._regrouped = self._states.regrouped
            self._begin()
        if self._stored is not None:
            self._rows.load(self._stored.columns, self._stored.n_orders)
            self._index.load(self._stored.columns, self._stored.n_orders)
            self._stored = None
        known = len(self._rows)
        self._rows.update(positions, list(map(_row, states)))
        new = (state.key for at, state in zip(positions, states, strict=True) if at >= known)
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
        """The position of each name in its level; made when an order is added."""
        found: list[dict[str | None, int]] = []
        for level in self._levels:
            names = level.frame()["name"].tolist()
            found.append({None: -1} | {name: position for position, name in enumerate(names)})
        return found

    def load(self, columns: Mapping[str, PackedColumn], count: int) -> None:
        """Begin with the orders of a checkpoint, which stores each name once."""
        for name, level in zip(("tenant", "correlation_id"), self._levels, strict=True):
            texts = columns[name].texts
            assert texts is not None  # noqa: S101 - they are texts
            positions = np.arange(len(texts.sizes))
            level.load({"name": PackedColumn(positions, None, texts)}, len(positions))
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
