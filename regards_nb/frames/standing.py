"""What is known of each order, worked out again only where something new was said of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from regards_nb.files import FileRecord, FileState
from regards_nb.orders import GONE, OrderBook, OrderKey, OrderState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.client import RemoteOrder
    from regards_nb.events import OrderEvent

_IN_PLACE = frozenset({FileState.VERIFIED, FileState.UNVERIFIED})


class Standing:
    """Joins events, files, labels and answers over REST into one `OrderState` for each order.

    Attributes
    ----------
    keys : dict
        The orders in the order of their first events, each with its place.
    rearranged : int
        Grows when an order disappears, because it turned out to be another one's.
    """

    def __init__(self) -> None:
        self.keys: dict[OrderKey, int] = {}
        self._changed: set[int] = set()
        self.rearranged = 0
        self._book = OrderBook()
        #: in the order of `keys`
        self._states: list[OrderState] = []
        #: orders whose state is to be worked out again
        self._stale: set[OrderKey] = set()
        self._by_correlation_id: dict[str, OrderKey] = {}
        #: one as a rule, and there may be very many orders
        self._by_number: dict[int, tuple[OrderKey, ...]] = {}
        self._files: defaultdict[int, dict[int, FileRecord]] = defaultdict(dict)
        self._fetched: dict[tuple[str | None, int], int] = {}
        self._labels: dict[OrderKey, str] = {}
        self._remote: dict[OrderKey, RemoteOrder] = {}

    # -- what is new --

    def add(self, row_ids: Iterable[int], events: Iterable[OrderEvent]) -> list[OrderKey]:
        """Take in events, journalled as these rows; return the order that each is about."""
        keys = list(map(self._book.add, row_ids, events))
        for key in dict.fromkeys(keys):
            self._stale.add(key)
            if key not in self.keys:
                self.keys[key] = len(self.keys)
                self._by_correlation_id[key.correlation_id] = key
        if self._book.regrouped != self.rearranged:
            self._rearrange()
        return keys

    def add_files(self, records: Iterable[FileRecord]) -> None:
        """Take in files as they are now."""
        for record in records:
            self._files[record.order_id][record.file_id] = record
            self._stale.update(self._by_number.get(record.order_id, ()))

    def add_fetched(self, fetched: dict[tuple[str | None, int], int]) -> None:
        """Take in up to which row the parts of some orders were fetched."""
        self._fetched |= fetched
        for _, order_id in fetched:
            self._stale.update(self._by_number.get(order_id, ()))

    def add_labels(self, labels: dict[tuple[str | None, str], str]) -> None:
        """Take in what some orders are called."""
        named = {OrderKey(*names): label for names, label in labels.items()}
        self._labels |= named
        self._stale.update(named.keys() & self.keys.keys())

    def add_remote(self, key: OrderKey, remote: RemoteOrder) -> None:
        """Take in what the server last said of an order."""
        self._remote[key] = remote
        if key in self.keys:
            self._stale.add(key)

    def _rearrange(self) -> None:
        self.rearranged = self._book.regrouped
        self.keys = {key: place for place, key in enumerate(self._book)}
        self._by_correlation_id = {key.correlation_id: key for key in self.keys}
        self._by_number.clear()
        self._states.clear()
        self._changed.clear()
        self._stale = set(self.keys)

    # -- what is known --

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return the state of some orders, or of all, in the order of their first event."""
        self._work_out()
        if keys is None:
            return self._states.copy()
        places = (self.keys.get(self._book.resolved(key)) for key in keys)
        return [self._states[place] for place in places if place is not None]

    def key_of(self, name: str | int) -> OrderKey | None:
        """Find an order by correlation id (text) or order id (number); the latest if several."""
        if isinstance(name, str):
            known = self._by_correlation_id.get(name)
            if known is None and name.startswith("#") and name[1:].isdecimal():
                return self.key_of(int(name[1:]))  # known by its number at first, by its name now
            return known
        self._work_out()
        return max(self._by_number.get(name, ()), key=self.keys.__getitem__, default=None)

    def files(self) -> list[FileRecord]:
        """Return all files."""
        return [record for records in self._files.values() for record in records.values()]

    def files_of(self, order_id: int) -> list[FileRecord]:
        """Return the files of one order."""
        return list(self._files.get(order_id, {}).values())

    def _work_out(self) -> None:
        stale, self._stale = self._stale, set()
        # in the order of their places: what is new then comes behind what is there
        for place, key in sorted((self.keys[key], key) for key in stale):
            state = self._completed(key)
            if place == len(self._states):
                self._states.append(state)
                self._number(key, None, state.order_id)
            else:
                before, self._states[place] = self._states[place], state
                self._number(key, before.order_id, state.order_id)
            self._changed.add(place)

    def _number(self, key: OrderKey, before: int | None, now: int | None) -> None:
        """Note that an order goes by another number than before."""
        if before == now:
            return
        if before is not None:
            others = self._by_number[before]
            self._by_number[before] = tuple(other for other in others if other != key)
        if now is not None:
            self._by_number[now] = (*self._by_number.get(now, ()), key)

    def take_changed(self) -> list[tuple[int, OrderState]]:
        """Return the states that changed since this was last called, with their places in order."""
        self._work_out()
        changed, self._changed = sorted(self._changed), set()
        return [(place, self._states[place]) for place in changed]

    def _completed(self, key: OrderKey) -> OrderState:
        """Add to what the events say what is known on this side."""
        state = self._book.state(key)
        files = self._files.get(state.order_id or -1, {}).values()
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


def _with_remote(state: OrderState, remote: RemoteOrder) -> OrderState:
    """Add what only REST tells; where events count sub-orders, their progress stands."""
    percent = remote.percent_completed
    progress = state.progress
    if progress is None and percent is not None:
        progress = min(percent / 100, 1.0)
    return replace(state, label=remote.label, expires_at=remote.expires_at, progress=progress)
