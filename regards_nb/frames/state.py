"""The state of each order, computed again only for orders of which something new is known."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from regards_nb.orders import GONE, OrderKey, OrderReducer, OrderState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.client import RemoteOrder
    from regards_nb.events import OrderEvent
    from regards_nb.files import FileRecord

_T = TypeVar("_T")


class ChangeTracker(Generic[_T]):
    """A list of values and the places that changed since its one reader last asked.

    Attributes
    ----------
    values : list
    """

    def __init__(self) -> None:
        self.values: list[_T] = []
        #: How many values the reader has taken, and the places among them that changed since.
        self._taken = 0
        self._replaced: set[int] = set()

    def put(self, place: int, value: _T) -> None:
        """Set the value at a place; the place behind the last value appends."""
        if place == len(self.values):
            self.values.append(value)
            return
        self.values[place] = value
        if place < self._taken:
            self._replaced.add(place)

    def take_changed(self) -> tuple[list[int], list[_T]]:
        """Return the places that changed, ascending, and their values."""
        places = [*sorted(self._replaced), *range(self._taken, len(self.values))]
        self._replaced.clear()
        self._taken = len(self.values)
        return places, [self.values[place] for place in places]


class _FilesOfOrder:
    """The places of one order's files, and their sums."""

    __slots__ = ("bytes", "in_place", "in_place_bytes", "places")

    def __init__(self) -> None:
        #: by file id
        self.places: dict[int, int] = {}
        self.bytes = self.in_place = self.in_place_bytes = 0

    def count(self, record: FileRecord, sign: int) -> None:
        """Add a file (sign 1) to the sums or subtract it (sign -1)."""
        size_bytes = (record.size_bytes or 0) * sign
        self.bytes += size_bytes
        if record.state.is_here:
            self.in_place += sign
            self.in_place_bytes += size_bytes


_NO_FILES = _FilesOfOrder()


class OrderStates:
    """Joins events, files, labels and answers over REST into one `OrderState` per order.

    Attributes
    ----------
    keys : dict
        The place of each order, in the order of their first events.
    files : ChangeTracker
        All files, in the order in which a manifest first listed them.
    regrouped : int
        Grows when an order disappears because an event shows that it is the same as another.
    """

    def __init__(self) -> None:
        self.keys: dict[OrderKey, int] = {}
        self.files: ChangeTracker[FileRecord] = ChangeTracker()
        self.regrouped = 0
        #: at the places of `keys`
        self._states: ChangeTracker[OrderState] = ChangeTracker()
        self._reducer = OrderReducer()
        #: Orders whose state was never computed, and those whose state must be computed again.
        self._new: list[OrderKey] = []
        self._stale: set[OrderKey] = set()
        self._files_of: defaultdict[int, _FilesOfOrder] = defaultdict(_FilesOfOrder)
        self._fetched: dict[tuple[str | None, int], int] = {}
        self._labels: dict[OrderKey, str] = {}
        self._remote: dict[OrderKey, RemoteOrder] = {}

    # -- input --

    def add(self, row_ids: Iterable[int], events: Iterable[OrderEvent]) -> list[OrderKey]:
        """Add events with their journal rows; return the order of each event."""
        keys = list(map(self._reducer.add, row_ids, events))
        for key in dict.fromkeys(keys):
            if key in self.keys:
                self._mark_stale(key)
            else:
                self.keys[key] = len(self.keys)
                self._new.append(key)
        if self._reducer.regrouped != self.regrouped:
            self._regroup()
        return keys

    def add_files(self, records: Iterable[FileRecord]) -> None:
        """Add files, or replace what is known of them."""
        changed = set()
        for record in records:
            files = self._files_of[record.order_id]
            place = files.places.setdefault(record.file_id, len(self.files.values))
            if place < len(self.files.values):
                files.count(self.files.values[place], -1)
            files.count(record, 1)
            self.files.put(place, record)
            changed.add(record.order_id)
        for order_id in changed:
            self._mark_stale_by_id(order_id)

    def add_fetched(self, fetched: dict[tuple[str | None, int], int]) -> None:
        """Set the journal row up to which the sub-orders of some orders were fetched."""
        self._fetched |= fetched
        for _, order_id in fetched:
            self._mark_stale_by_id(order_id)

    def add_labels(self, labels: dict[tuple[str | None, str], str]) -> None:
        """Set the labels of some orders."""
        for names, label in labels.items():
            key = OrderKey(*names)
            self._labels[key] = label
            self._mark_stale(key)

    def set_remote(self, key: OrderKey, remote: RemoteOrder) -> None:
        """Set what the server last answered about an order."""
        key = self._reducer.resolved(key)
        self._remote[key] = remote
        self._mark_stale(key)

    def _mark_stale_by_id(self, order_id: int) -> None:
        for key in self._reducer.numbered(order_id):
            self._mark_stale(key)

    def _mark_stale(self, key: OrderKey) -> None:
        """Have the state of an order computed again, if it was computed before."""
        place = self.keys.get(key)
        if place is not None and place < len(self._states.values):
            self._stale.add(key)

    def _regroup(self) -> None:
        """Begin anew: an order disappeared, so the places of later orders changed."""
        self.regrouped = self._reducer.regrouped
        self.keys = {key: place for place, key in enumerate(self._reducer)}
        self._remote = {self._reducer.resolved(key): said for key, said in self._remote.items()}
        self._states = ChangeTracker()
        self._stale.clear()
        self._new = list(self.keys)

    # -- output --

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return the state of some orders, or of all, in the order of their first events."""
        self._compute()
        if keys is None:
            return self._states.values.copy()
        places = (self.keys.get(self._reducer.resolved(key)) for key in keys)
        return [self._states.values[place] for place in places if place is not None]

    def key_of(self, name: str | int | OrderKey) -> OrderKey | None:
        """Find an order by correlation id (str) or order id (int); the latest if several."""
        if isinstance(name, OrderKey):
            key = self._reducer.resolved(name)
            return key if key in self.keys else None
        if isinstance(name, int):
            return self._latest(self._reducer.numbered(name))
        known = self._latest(self._reducer.named(name))
        if known is None and name.startswith("#") and name[1:].isdecimal():
            # "#12" named order 12 until an event told its correlation id.
            return self.key_of(int(name[1:]))
        return known

    def _latest(self, keys: Iterable[OrderKey]) -> OrderKey | None:
        return max(
            (key for key in keys if key in self.keys), key=self.keys.__getitem__, default=None
        )

    def files_of(self, order_id: int) -> list[FileRecord]:
        """Return the files of one order."""
        files = self._files_of.get(order_id, _NO_FILES)
        return [self.files.values[place] for place in files.places.values()]

    def take_changed(self) -> tuple[list[int], list[OrderState]]:
        """Return the places and states that changed since the last call."""
        self._compute()
        return self._states.take_changed()

    def _compute(self) -> None:
        stale, self._stale = self._stale, set()
        for key in stale:
            self._states.put(self.keys[key], self._joined(key))
        new, self._new = self._new, []
        for key in new:
            self._states.put(len(self._states.values), self._joined(key))

    def _joined(self, key: OrderKey) -> OrderState:
        """Return the state from events, completed with files, label and the answer over REST."""
        state = self._reducer.state(key)
        files = self._files_of.get(state.order_id or -1, _NO_FILES)
        fetched_row = self._fetched.get((key.tenant, state.order_id or -1), 0)
        remote = self._remote.get(key)
        if remote is not None and remote.order_id == state.order_id:
            state = _with_remote(state, remote)
        return replace(
            state,
            label=self._labels.get(key) or state.label,
            downloaded_files=files.in_place,
            downloaded_bytes=files.in_place_bytes,
            files_total=len(files.places) or None,
            bytes_total=files.bytes or None,
            waits_for_download=state.ready_row > fetched_row and state.status not in GONE,
        )


def _with_remote(state: OrderState, remote: RemoteOrder) -> OrderState:
    """Add what only REST tells; progress counted from events takes precedence."""
    percent = remote.percent_completed
    progress = state.progress
    if progress is None and percent is not None:
        progress = min(percent / 100, 1.0)
    return replace(state, label=remote.label, expires_at=remote.expires_at, progress=progress)
