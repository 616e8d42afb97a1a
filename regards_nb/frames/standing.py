"""What is known of each order, worked out again only where something new was said of it."""

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
    """Values that one reader follows: it takes what changed since it last did.

    Attributes
    ----------
    values : list
    """

    def __init__(self) -> None:
        self.values: list[_T] = []
        #: The reader has taken so many; of these, others than it took are in these places now.
        self._taken = 0
        self._replaced: set[int] = set()

    def put(self, place: int, value: _T) -> None:
        """Set the value of a place, which may be the one behind the last."""
        if place == len(self.values):
            self.values.append(value)
            return
        self.values[place] = value
        if place < self._taken:
            self._replaced.add(place)

    def take_changed(self) -> tuple[list[int], list[_T]]:
        """Return the places of the values that are new, in order, and the values."""
        places = [*sorted(self._replaced), *range(self._taken, len(self.values))]
        self._replaced.clear()
        self._taken = len(self.values)
        return places, [self.values[place] for place in places]


class _FilesOf:
    """The places of one order's files, and what they come to."""

    __slots__ = ("bytes", "in_place", "in_place_bytes", "places")

    def __init__(self) -> None:
        #: by file id
        self.places: dict[int, int] = {}
        self.bytes = self.in_place = self.in_place_bytes = 0

    def count(self, record: FileRecord, times: int) -> None:
        """Add a file, or take it away again."""
        size_bytes = (record.size_bytes or 0) * times
        self.bytes += size_bytes
        if record.state.is_here:
            self.in_place += times
            self.in_place_bytes += size_bytes


_NO_FILES = _FilesOf()


class OrderStates:
    """Joins events, files, labels and answers over REST into one `OrderState` for each order.

    Attributes
    ----------
    keys : dict
        The orders in the order of their first events, each with its place.
    files : ChangeTracker
        All files.
    rearranged : int
        Grows when an order disappears, because it turned out to be another one's.
    """

    def __init__(self) -> None:
        self.keys: dict[OrderKey, int] = {}
        #: in the order of `keys`
        self._known: ChangeTracker[OrderState] = ChangeTracker()
        #: in the order in which they were listed
        self.files: ChangeTracker[FileRecord] = ChangeTracker()
        self.rearranged = 0
        self._book = OrderReducer()
        #: orders whose state was never worked out, and those where it is to be worked out again
        self._new: list[OrderKey] = []
        self._stale: set[OrderKey] = set()
        self._files_of: defaultdict[int, _FilesOf] = defaultdict(_FilesOf)
        self._fetched: dict[tuple[str | None, int], int] = {}
        self._labels: dict[OrderKey, str] = {}
        self._remote: dict[OrderKey, RemoteOrder] = {}

    # -- what is new --

    def add(self, row_ids: Iterable[int], events: Iterable[OrderEvent]) -> list[OrderKey]:
        """Take in events, journalled as these rows; return the order that each is about."""
        keys = list(map(self._book.add, row_ids, events))
        for key in dict.fromkeys(keys):
            if key in self.keys:
                self._outdate(key)
            else:
                self.keys[key] = len(self.keys)
                self._new.append(key)
        if self._book.regrouped != self.rearranged:
            self._rearrange()
        return keys

    def add_files(self, records: Iterable[FileRecord]) -> None:
        """Take in files as they are now."""
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
            self._outdate_numbered(order_id)

    def add_fetched(self, fetched: dict[tuple[str | None, int], int]) -> None:
        """Take in up to which row the parts of some orders were fetched."""
        self._fetched |= fetched
        for _, order_id in fetched:
            self._outdate_numbered(order_id)

    def add_labels(self, labels: dict[tuple[str | None, str], str]) -> None:
        """Take in what some orders are called."""
        for names, label in labels.items():
            key = OrderKey(*names)
            self._labels[key] = label
            self._outdate(key)

    def set_remote(self, key: OrderKey, remote: RemoteOrder) -> None:
        """Take in what the server last said of an order."""
        key = self._book.resolved(key)
        self._remote[key] = remote
        self._outdate(key)

    def _outdate_numbered(self, order_id: int) -> None:
        for key in self._book.numbered(order_id):
            self._outdate(key)

    def _outdate(self, key: OrderKey) -> None:
        """Have the state of an order worked out again, if it has been worked out already."""
        place = self.keys.get(key)
        if place is not None and place < len(self._known.values):
            self._stale.add(key)

    def _rearrange(self) -> None:
        self.rearranged = self._book.regrouped
        self.keys = {key: place for place, key in enumerate(self._book)}
        self._remote = {self._book.resolved(key): said for key, said in self._remote.items()}
        self._known = ChangeTracker()
        self._stale.clear()
        self._new = list(self.keys)

    # -- what is known --

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return the state of some orders, or of all, in the order of their first event."""
        self._work_out()
        if keys is None:
            return self._known.values.copy()
        places = (self.keys.get(self._book.resolved(key)) for key in keys)
        return [self._known.values[place] for place in places if place is not None]

    def key_of(self, name: str | int | OrderKey) -> OrderKey | None:
        """Find an order by correlation id (text) or order id (number); the latest if several."""
        if isinstance(name, OrderKey):
            key = self._book.resolved(name)
            return key if key in self.keys else None
        if isinstance(name, int):
            return self._latest(self._book.numbered(name))
        known = self._latest(self._book.named(name))
        if known is None and name.startswith("#") and name[1:].isdecimal():
            return self.key_of(int(name[1:]))  # known by its number at first, by its name now
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
        """Return the states that changed since this was last called, after their places."""
        self._work_out()
        return self._known.take_changed()

    def _work_out(self) -> None:
        stale, self._stale = self._stale, set()
        for key in stale:
            self._known.put(self.keys[key], self._completed(key))
        new, self._new = self._new, []
        for key in new:
            self._known.put(len(self._known.values), self._completed(key))

    def _completed(self, key: OrderKey) -> OrderState:
        """Add to what the events say what is known on this side."""
        state = self._book.state(key)
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
    """Add what only REST tells; where events count sub-orders, their progress stands."""
    percent = remote.percent_completed
    progress = state.progress
    if progress is None and percent is not None:
        progress = min(percent / 100, 1.0)
    return replace(state, label=remote.label, expires_at=remote.expires_at, progress=progress)
