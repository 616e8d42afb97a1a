"""Checkpoints: the orders and events up to one row of the journal, read instead of folded again.

A checkpoint is never the truth. It names the version of the code that made it, and the journal and
the row that it stands for. If one of them differs, if a byte of it differs, or if there is none,
the journal is read from its first row. The columns of the events are read when they are asked for.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
import uuid
import weakref
import zlib
from contextlib import suppress
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

import regards_nb
from regards_nb.errors import RegardsError
from regards_nb.events import OrderStatus, utc
from regards_nb.frames.columns import (
    EVENT_DTYPES,
    ORDER_DTYPES,
    GrowingFrame,
    PackedColumn,
    columns_of,
)
from regards_nb.journal import CHECKPOINT_HEAD
from regards_nb.orders import GONE, FoldedOrders, OrderKey, OrderReducer, OrderState, replaced
from regards_nb.threads import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from regards_nb.journal import Journal

#: Change it when the same messages give other events, states, columns or bytes than before.
_FORMAT = 6

#: See `Checkpoints.min_events`.
_MIN_EVENTS_PER_ORDER = 0.1
#: Maximum time that the exit of Python waits for a checkpoint that is being written.
_EXIT_TIMEOUT_S = 60.0
_ROWS_PER_PIECE = 250_000

#: What is stored of an `OrderState`: all that events tell.
_ORDER_DTYPES = {
    "tenant": "str",
    "correlation_id": "str",
    **ORDER_DTYPES,
    "ready_row": "int64",
    "errors_row": "int64",
    "decided_at_s": "int64",
    "ready_s": "int64",
}
_row = attrgetter(*_ORDER_DTYPES)
#: The columns that make the rest of an `OrderState`, behind its key: its first fields.
_STATE_COLUMNS = (
    "order_id", "status", "finished", "progress", "suborders_done", "suborders_total", "errors",
    "error_type", "message", "download_link", "ready_row", "errors_row", "first_event",
    "last_event", "waits_for_download", "decided_at_s", "ready_s",
)  # fmt: skip
_KEY_COLUMNS = ("tenant", "correlation_id")

_pack = msgspec.msgpack.Encoder().encode


# -- columns as bytes
# They depend neither on the version of pandas nor on whether Arrow is installed.

_ARRAY, _DTYPE_BYTES = 1, 8


def _encoded(array: np.ndarray[Any, Any]) -> msgspec.msgpack.Ext:
    """Return the dtype and the little-endian bytes of an array."""
    if array.dtype.kind == "i" and len(array):
        # The signed type that holds the largest and the smallest number.
        array = array.astype(np.min_scalar_type(-1 - max(int(array.max()), -1 - int(array.min()))))
    array = array.astype(array.dtype.newbyteorder("<"))
    dtype = array.dtype.str.encode().ljust(_DTYPE_BYTES)
    return msgspec.msgpack.Ext(_ARRAY, dtype + array.tobytes())


def _decoded(_: int, data: memoryview) -> np.ndarray[Any, Any]:
    return np.frombuffer(data[_DTYPE_BYTES:], str(data[:_DTYPE_BYTES], "ascii").strip())


#: Columns to bytes, and back.
_pack_columns = msgspec.msgpack.Encoder(enc_hook=_encoded).encode
_unpack_columns = msgspec.msgpack.Decoder(dict[str, PackedColumn], ext_hook=_decoded).decode


# -- what is stored


class Head(msgspec.Struct, array_like=True):
    """The rows of the journal that a checkpoint stands for."""

    version: str
    last_id: int
    #: the arrival of the newest message, in µs
    newest_us: int
    #: row id, reason and arrival (µs) of each message that could not be decoded
    rejections: list[tuple[int, str, int]]
    n_events: int
    #: of the journal up to the row, see `Journal.stamp`
    stamp: bytes = b""
    #: the name of the stored events, of which the first belong to this checkpoint
    events: str = ""


_head_from = msgspec.msgpack.Decoder(Head).decode
_folded_from = msgspec.msgpack.Decoder(FoldedOrders).decode


class StoredOrders:
    """The orders of a checkpoint, as far as events tell them."""

    def __init__(self, columns: dict[str, PackedColumn], folds: bytes) -> None:
        self.columns = {name: columns[name] for name in _ORDER_DTYPES}
        # Events list no files, so no order lacks their names.
        self.columns["to_download"] = columns["waits_for_download"]
        self.n_orders = len(columns["order_id"].data)
        self._folds = folds

    @cached_property
    def keys(self) -> list[OrderKey]:
        """The order of each row."""
        return list(map(OrderKey, *(self.columns[name].to_list() for name in _KEY_COLUMNS)))

    @cached_property
    def folded(self) -> FoldedOrders:
        """The state from which a reducer goes on."""
        stored = _folded_from(zlib.decompress(self._folds))
        return msgspec.structs.replace(
            stored,
            keys=self.keys + stored.keys,
            order_ids=self.columns["order_id"].to_list() + stored.order_ids,
        )

    def states(self, rows: np.ndarray[Any, Any]) -> list[OrderState]:
        """Make the states of some rows."""
        taken = {n: self.columns[n].take(rows).to_list() for n in (*_KEY_COLUMNS, *_STATE_COLUMNS)}
        for name in ("first_event", "last_event"):
            taken[name] = list(map(utc, taken[name]))
        keys = map(OrderKey, *(taken.pop(name) for name in _KEY_COLUMNS))
        # By position: names take ten times as long, and there may be a million.
        return list(map(OrderState, keys, *taken.values()))


class Checkpoint(NamedTuple):
    """The frames up to a row of the journal."""

    head: Head
    orders: StoredOrders
    #: Yields the columns of the events in several pieces; ends early if they are damaged.
    read_events: Callable[[], Iterator[dict[str, PackedColumn]]]


class Capture(NamedTuple):
    """The content of a checkpoint. Later changes of the frames do not change it."""

    #: of the journal, see `Journal.generation`
    generation: int
    head: Head
    #: The orders at their positions.
    keys: list[OrderKey]
    folded: FoldedOrders
    #: The orders that the frames began with, if they still have the same positions, and those that
    #: may differ from them.
    stored: StoredOrders | None
    changed: list[OrderKey]
    #: Returns the events from a row on.
    events_from: Callable[[int], pd.DataFrame]


class Checkpoints:
    """Reads the checkpoint of some frames; writes later ones in the background, and at the end.

    The frames show one *tenant* and some *queues*. Their method *capture*, which is held weakly,
    returns what to store.
    """

    #: A checkpoint of another version is not read.
    version = f"{regards_nb.__version__}/{_FORMAT}"
    #: Fewer new events than this, or than a tenth of the orders, are not worth a checkpoint: to
    #: fold them again takes milliseconds.
    min_events = 2000
    #: The part of one processor that checkpoints may take while messages arrive.
    max_share = 0.02
    #: A checkpoint is written after this time without an event, or after the longest delay: to
    #: write a large one keeps the interpreter busy for seconds, and rows would appear later.
    delay_s = 1.0
    longest_delay_s = 60.0

    def __init__(
        self,
        journal: Journal,
        tenant: str | None,
        queues: list[str] | None,
        capture: Callable[[], Capture],
    ) -> None:
        self._journal = journal
        self._store = journal.checkpoints
        self._owner = json.dumps([tenant, queues])
        #: The id of the journal when the frames began: a new one says that rows were removed.
        self._journal_id: str | None = None
        self._capture = weakref.WeakMethod(capture)
        self._thread: threading.Thread | None = None
        self._is_ending = threading.Event()
        #: One thread at a time writes.
        self._lock = threading.Lock()
        self._unsaved = 0
        self._n_orders = 0
        self._not_before_s = self._newest_at_s = 0.0
        _all.add(self)

    def begin_anew(self) -> None:
        """Begin with the journal as it is, because the frames read all of it again."""
        self._journal_id = None

    def read(self) -> Checkpoint | None:
        """Return the checkpoint of this journal; None if there is none that is right."""
        self._journal_id = self._journal.id()
        values = self._store.read(self._owner, CHECKPOINT_HEAD, "orders", "folds")
        head = self._valid_head(values[CHECKPOINT_HEAD])
        if head is None or not values["orders"] or not values["folds"]:
            return None
        orders = StoredOrders(_unpack_columns(values["orders"][0]), values["folds"][0])
        return Checkpoint(head, orders, lambda: self._events(head))

    def _valid_head(self, packed: list[bytes]) -> Head | None:
        """Return a head of this version and of this journal."""
        with suppress(msgspec.MsgspecError):
            for head in map(_head_from, packed):
                if head.version == self.version:
                    return head if head.stamp == self._journal.stamp(head.last_id) else None
        return None

    def _events(self, head: Head) -> Iterator[dict[str, PackedColumn]]:
        count = 0
        for piece in self._store.read(self._owner, head.events)[head.events]:
            if count == head.n_events:
                break  # another kernel has stored later ones
            columns = _unpack_columns(piece)
            count += len(columns["redelivered"].data)
            yield columns

    def _write(self, capture: Capture) -> None:
        """Store a checkpoint, unless there is one of a later row."""
        journal_id = self._journal.id()
        self._journal_id = self._journal_id or journal_id
        if self._journal_id != journal_id:
            return  # other processes have removed events that these frames show
        stamp = self._journal.stamp(capture.head.last_id)
        if self._journal.generation != capture.generation:
            return  # the journal was replaced: the stamp is that of other messages
        before = self._store.read(self._owner, CHECKPOINT_HEAD)[CHECKPOINT_HEAD]
        there = self._valid_head(before)
        if stamp is None or (there is not None and there.last_id >= capture.head.last_id):
            return
        events, n_stored = (
            (uuid.uuid4().hex, 0) if there is None else (there.events, there.n_events)
        )
        head = msgspec.structs.replace(capture.head, stamp=stamp, events=events)
        values = {
            (CHECKPOINT_HEAD, 0): _pack(head),
            ("orders", 0): _pack_columns(_order_columns(capture)),
            # Seldom read, and many texts are alike.
            ("folds", 0): zlib.compress(_pack(_folds(capture)), level=1),
        }
        new = capture.events_from(n_stored)
        for first in range(0, len(new), _ROWS_PER_PIECE):
            piece = columns_of(new.iloc[first : first + _ROWS_PER_PIECE], EVENT_DTYPES)
            values[events, n_stored + first] = _pack_columns(piece)
        self._store.write(self._owner, values, before=before, keeps_others=there is not None)

    @property
    def is_due(self) -> bool:
        """Whether so many events are new that a checkpoint saves time."""
        return self._unsaved >= max(self.min_events, self._n_orders * _MIN_EVENTS_PER_ORDER)

    def note(self, new_events: int, n_orders: int) -> None:
        """Count new events; begin to write a checkpoint if one is due."""
        if new_events:
            self._unsaved += new_events
            self._newest_at_s = time.monotonic()
        self._n_orders = n_orders
        is_idle = self._thread is None or not self._thread.is_alive()
        if self.is_due and is_idle and time.monotonic() >= self._not_before_s:
            self._thread = begin("checkpoint", self._save_soon)

    def _save_soon(self) -> None:
        latest_s = time.monotonic() + self.longest_delay_s
        while not self._is_ending.wait(self.delay_s):
            now_s = time.monotonic()
            if now_s >= min(self._newest_at_s + self.delay_s, latest_s):
                break
        self.save()

    def save(self) -> None:
        """Write a checkpoint if one is due."""
        with self._lock:
            capture_of = self._capture()
            if not self.is_due or capture_of is None:
                return
            began_s = time.thread_time()
            unsaved = self._unsaved
            # If the journal cannot be read just now, the next checkpoint comes later.
            with suppress(RegardsError):
                self._write(capture_of())
            self._unsaved -= unsaved
            self._not_before_s = time.monotonic() + (time.thread_time() - began_s) / self.max_share

    def finish(self, timeout_s: float) -> None:
        """Wait at most *timeout_s* for the thread, then write a checkpoint if one is due."""
        thread = self._thread
        if thread is not None:
            self._is_ending.set()
            thread.join(timeout_s)
            self._is_ending.clear()
        if thread is None or not thread.is_alive():
            self.save()


def _order_columns(capture: Capture) -> dict[str, PackedColumn]:
    """Return the columns of the orders; only changed ones are computed."""
    rows = GrowingFrame(_ORDER_DTYPES, map(str, OrderStatus))
    reducer = OrderReducer(capture.folded)
    positions = {key: position for position, key in enumerate(capture.keys)}
    if capture.stored is None:
        changed = capture.keys
    else:
        n_stored = capture.stored.n_orders
        rows.load(capture.stored.columns, n_stored)
        old = {key for key in capture.changed if key in positions and positions[key] < n_stored}
        changed = [*sorted(old, key=positions.__getitem__), *capture.keys[n_stored:]]
    states = [reducer.state(key) for key in changed]
    rows.update(
        [positions[key] for key in changed],
        [
            _row(replaced(s, waits_for_download=s.ready_row > 0 and s.status not in GONE))
            for s in states
        ],
    )
    return columns_of(rows.frame(), _ORDER_DTYPES)


def _folds(capture: Capture) -> FoldedOrders:
    """Return all that was folded, without the keys and numbers that the columns have.

    The hidden orders are no rows, because they are known under another key.
    """
    folded = capture.folded
    position_of = {key: position for position, key in enumerate(folded.keys)}
    shown = set(capture.keys)
    hidden = [key for key in folded.keys if key not in shown]
    return msgspec.structs.replace(
        folded,
        keys=hidden,
        order_ids=[folded.order_ids[position_of[key]] for key in hidden],
        folds=[folded.folds[position_of[key]] for key in (*capture.keys, *hidden)],
    )


_all: weakref.WeakSet[Checkpoints] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    for checkpoints in list(_all):
        checkpoints.finish(_EXIT_TIMEOUT_S)
