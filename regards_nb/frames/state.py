"""The state of each order, computed again only for orders of which something new is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import compress
from operator import attrgetter, is_not
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeAlias, TypeVar, overload

import msgspec
import numpy as np

from regards_nb.journal import restore
from regards_nb.orders import GONE, OrderKey, OrderReducer, OrderState, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from regards_nb.client import RemoteOrder
    from regards_nb.events import OrderEvent
    from regards_nb.files import FileRecord
    from regards_nb.frames.checkpoint import StoredOrders
    from regards_nb.journal import KeptOrder
    from regards_nb.orders import FoldedOrders

_T = TypeVar("_T")
#: Number of states of a checkpoint that are made together when all are read.
_AT_ONCE = 4096
_TRUE = (1,)
#: REGARDS counts the files of unfinished orders every 10 s, one tenant after the other, and later
#: if that fails. A status of the end is set together with the count (protocol.md 1.2).
_COUNTED_AFTER_S = 60
#: The server's date, which an answer's time is made of, has whole seconds.
_DATE = timedelta(seconds=1)
#: Tenant and order id.
_Id: TypeAlias = tuple[str | None, int]


class Answer(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What REGARDS told over REST of an order, and no message tells.

    The journal keeps the last one of each order: the sequence of the fields is part of its schema.
    """

    asked_at: datetime
    #: By the clock of the server: what was ready earlier does not wait for a download. 0: it may.
    #: Messages carry whole seconds. One of this very second may have come before or after the
    #: answer: its files wait, and a download that is not needed finds an empty list.
    downloaded_before_s: int = 0
    label: str | None = None
    expires_at: datetime | None = None
    progress: float | None = None
    files_total: int | None = None
    bytes_total: int | None = None
    #: Of an ended order: number of files that REGARDS has handed out.
    handed_out: int | None = None

    def is_new(self, before: Answer | None) -> bool:
        """Return whether it says something else than the one *before*, and not earlier.

        The times alone change with each answer.
        """
        if before is None:
            return True
        before_s = self.downloaded_before_s and before.downloaded_before_s
        alike = msgspec.structs.replace(
            self, asked_at=before.asked_at, downloaded_before_s=before_s or self.downloaded_before_s
        )
        return self.asked_at + _DATE > before.asked_at and alike != before

    @classmethod
    def of(cls, remote: RemoteOrder, *, waits: bool, counts_sent: bool = True) -> Self:
        """Return what an answer tells; *waits*: files of the order wait, whatever it counts.

        Without *counts_sent*, REGARDS has not counted files that it has sent.
        """
        percent, total = remote.percent_completed, remote.files_total
        asked_at, before_s = remote.asked_at, 0
        if remote.available_files == 0 and not waits and asked_at is not None:
            before_s = int(asked_at.timestamp()) - (0 if remote.finished else _COUNTED_AFTER_S)
        left = (remote.available_files or 0) + (remote.files_in_error or 0)
        has_counted = remote.finished and counts_sent
        return cls(
            asked_at=asked_at or datetime.now(UTC),
            downloaded_before_s=before_s,
            label=remote.label,
            expires_at=remote.expires_at,
            progress=None if percent is None else min(percent / 100, 1.0),
            files_total=total,
            bytes_total=remote.bytes_total,
            handed_out=None if total is None or not has_counted else total - left,
        )


_pack_answer = msgspec.msgpack.Encoder().encode
_unpack_answer = msgspec.msgpack.Decoder(Answer).decode


class OrderFile(NamedTuple):
    """A file record and the correlation id of its order; None while no event tells it."""

    record: FileRecord
    correlation_id: str | None


class States(Sequence[OrderState]):
    """The states of some orders; later changes do not alter it.

    A state in *made* is None while its order is only in the checkpoint *stored*; *rows* has its row
    there, by default the same number. It is made at each access and not kept: a journal may have
    a hundred thousand orders of which a table draws fifty.
    """

    def __init__(
        self,
        made: Sequence[OrderState | None] = (),
        stored: StoredOrders | None = None,
        rows: np.ndarray[Any, Any] | None = None,
        numbers: dict[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self._made = made
        self._stored = stored
        self._rows = np.arange(len(made)) if rows is None else rows
        #: What `numbers` has returned, here or of the states that these were made from.
        self._numbers = {} if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> OrderState: ...
    @overload
    def __getitem__(self, index: slice) -> States: ...
    def __getitem__(self, index: int | slice) -> OrderState | States:
        if isinstance(index, slice):
            return States(self._made[index], self._stored, self._rows[index])
        return self._made[index] or self._all_made([None], self._rows[[index]])[0]

    def __iter__(self) -> Iterator[OrderState]:
        for first in range(0, len(self), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            yield from self._all_made(self._made[part], self._rows[part])

    def _all_made(
        self, made: Sequence[OrderState | None], rows: np.ndarray[Any, Any]
    ) -> list[OrderState]:
        missing = [n for n, state in enumerate(made) if state is None]
        made = list(made)
        if missing and self._stored is not None:
            for n, state in zip(missing, self._stored.states(rows[missing]), strict=True):
                made[n] = state
        return [state for state in made if state is not None]

    def __add__(self, more: Sequence[OrderState]) -> States:
        made = [*self._made, *more]
        return self.updated(made, range(len(self), len(made)))

    def take(self, positions: Iterable[int]) -> States:
        """Return the states at some positions."""
        where = np.fromiter(positions, dtype=np.int64)
        if np.array_equal(where, np.arange(len(self))):
            return self
        made = [self._made[position] for position in where.tolist()]
        # a copy: another thread may ask for one more
        numbers = {name: known[where] for name, known in self._numbers.copy().items()}
        return States(made, self._stored, self._rows[where], numbers)

    def updated(self, made: Sequence[OrderState | None], changed: Iterable[int]) -> States:
        """Return the states *made*; they differ from these at *changed* positions, all made."""
        where, more = list(changed), len(made) - len(self)
        new = [made[position] for position in where]
        numbers = {}
        for name, known in self._numbers.copy().items():
            numbers[name] = np.append(known, np.zeros(more, dtype=np.int64))
            numbers[name][where] = _numbers_of(name, new)
        rows = np.append(self._rows, np.zeros(more, dtype=np.int64))
        return States(made, self._stored, rows, numbers)

    def where(self, name: str, values: Collection[int] = _TRUE) -> States:
        """Return the states with one of these numbers in an attribute; a flag is a number."""
        return self.take(self._positions(name, values))

    def without(self, name: str, values: Collection[int] = _TRUE) -> States:
        """Return the states that `where` would not return."""
        return self.take(self._positions(name, values, invert=True)) if values else self

    def changed(
        self,
        change: Callable[[OrderState], OrderState],
        name: str,
        values: Collection[int] = _TRUE,
    ) -> States:
        """Return all states, with a *change* of those that `where` would return."""
        if not values:
            return self
        made, positions = list(self._made), self._positions(name, values)
        for position in positions:
            made[position] = change(self[position])
        return self.updated(made, positions)

    def sorted(self, name: str) -> States:
        """Return the states, sorted by a number."""
        return self.take(np.argsort(self.numbers(name), kind="stable"))

    def new_since(self, before: States) -> Sequence[int]:
        """Return the positions at which *before* may have had another state, or none."""
        n = min(len(self), len(before))
        is_same = self._stored is before._stored
        if not is_same or not np.array_equal(self._rows[:n], before._rows[:n]):
            return range(len(self))
        is_new = map(is_not, self._made, before._made)
        return [*compress(range(n), is_new), *range(n, len(self))]

    def _positions(self, name: str, values: Collection[int], *, invert: bool = False) -> Any:
        is_in = np.isin(self.numbers(name), list(values), invert=invert)
        return np.flatnonzero(is_in).tolist()

    def numbers(self, name: str) -> np.ndarray[Any, Any]:
        """Return a number or flag of each state; 0 where it is missing. No state is made."""
        if name in self._numbers:
            return self._numbers[name]
        numbers = np.array(_numbers_of(name, self._made), dtype=np.int64)
        if self._stored is not None and name in self._stored.columns:
            is_stored = np.array([state is None for state in self._made], dtype=bool)
            numbers[is_stored] = self._stored.columns[name].data[self._rows[is_stored]]
        self._numbers[name] = numbers
        return numbers


def _numbers_of(name: str, states: Iterable[OrderState | None]) -> list[int]:
    of = attrgetter(name)
    return [0 if state is None else of(state) or 0 for state in states]


class ChangeTracker(Generic[_T]):
    """A list of values and the positions that changed since its one reader last asked.

    The reader has the first *values* already.
    """

    def __init__(self, values: list[_T] | None = None) -> None:
        self.values = [] if values is None else values
        #: How many values the reader has taken, and the positions among them that changed since.
        self._taken = len(self.values)
        self._replaced: set[int] = set()

    def put(self, position: int, value: _T) -> None:
        """Set the value at a position; the position behind the last value appends."""
        if position == len(self.values):
            self.values.append(value)
            return
        self.values[position] = value
        if position < self._taken:
            self._replaced.add(position)

    def take_changed(self) -> tuple[list[int], list[_T]]:
        """Return the positions that changed, ascending, and their values."""
        positions = [*sorted(self._replaced), *range(self._taken, len(self.values))]
        self._replaced.clear()
        self._taken = len(self.values)
        return positions, [self.values[position] for position in positions]


class _FilesOfOrder:
    """The positions of one order's files, the correlation id they show, and their sums."""

    __slots__ = ("bytes", "correlation_id", "in_place", "in_place_bytes", "positions")

    def __init__(self) -> None:
        self.correlation_id: str | None = None
        #: by file id
        self.positions: dict[int, int] = {}
        self.bytes = self.in_place = self.in_place_bytes = 0

    def count(self, record: FileRecord, sign: int) -> None:
        """Add a file (sign 1) to the sums or subtract it (sign -1)."""
        size_bytes = (record.size_bytes or 0) * sign
        self.bytes += size_bytes
        if record.in_place:
            self.in_place += sign
            self.in_place_bytes += size_bytes


_NO_FILES = _FilesOfOrder()


class OrderStates:
    """Joins events, files, labels and answers over REST into one `OrderState` per order.

    *tenant* is that of the files of orders whose events name none; *stored* are the orders of a
    checkpoint; *refused* are the numbers of those of other users. *regrouped* grows when an order
    disappears because an event shows that it is the same as another.
    """

    def __init__(
        self,
        tenant: str | None,
        stored: StoredOrders | None = None,
        refused: Collection[int] = (),
    ) -> None:
        self._tenant = tenant
        self._stored = stored
        self._refused = refused
        self.regrouped = 0
        #: All files, in the order in which a manifest first listed them.
        self._files: ChangeTracker[OrderFile] = ChangeTracker()
        #: At the positions of `keys`; None for an order of the checkpoint until it is read.
        n_stored = 0 if stored is None else stored.n_orders
        self._states: ChangeTracker[OrderState | None] = ChangeTracker([None] * n_stored)
        #: All states when they were last asked for, and the positions that changed since.
        self._all: States | None = None
        self._changed: set[int] = set()
        #: Orders whose state was never computed, and those whose state must be computed again.
        self._new: list[OrderKey] = []
        self._stale: set[OrderKey] = set()
        self._files_of: defaultdict[_Id, _FilesOfOrder] = defaultdict(_FilesOfOrder)
        #: The tenants that have files; a dict, because it keeps their order.
        self._file_tenants: dict[str | None, None] = {}
        #: Orders whose files may have to show another correlation id.
        self._to_name: set[_Id] = set()
        self._fetched: dict[_Id, int] = {}
        self._labels: dict[OrderKey, str] = {}
        #: Packed: most are of orders that no view draws.
        self._answers: dict[_Id, bytes] = {}
        for order_id in refused:
            self.compute_again(order_id)

    # Made at their first use: a look at the orders of a checkpoint needs neither.

    @cached_property
    def keys(self) -> dict[OrderKey, int]:
        """The position of each order, in the order of their first events."""
        keys = [] if self._stored is None else self._stored.keys
        return {key: position for position, key in enumerate(keys)}

    @cached_property
    def tenants(self) -> set[str | None]:
        """The projects that events have named; None where one has named none."""
        return {key.tenant for key in self.keys}

    @cached_property
    def _reducer(self) -> OrderReducer:
        return OrderReducer(None if self._stored is None else self._stored.folded)

    def __len__(self) -> int:
        return len(self._states.values) + len(self._new)

    # -- input --

    def add(self, row_ids: Iterable[int], events: Iterable[OrderEvent]) -> list[OrderKey]:
        """Add events with their journal rows; return the order of each event."""
        keys = list(map(self._reducer.add, row_ids, events))
        for key in dict.fromkeys(keys):
            if key in self.keys:
                self._mark_stale(key)
            else:
                self.keys[key] = len(self.keys)
                self.tenants.add(key.tenant)
                self._new.append(key)
        if self._reducer.regrouped != self.regrouped:
            self._regroup()
        return keys

    def restore(self, kept: Iterable[KeptOrder]) -> None:
        """Add what events said that were removed from the journal; some may be known already."""
        tenants = {None, self._tenant}
        shown = (order for order in kept if self._tenant is None or order.tenant in tenants)
        restore(self._reducer, shown)
        self._regroup()

    def add_files(self, records: Iterable[tuple[str | None, FileRecord]]) -> None:
        """Add files with their tenants, or replace their records."""
        changed = set()
        for tenant, record in records:
            self._file_tenants.setdefault(tenant)
            files = self._files_of[tenant, record.order_id]
            position = files.positions.setdefault(record.file_id, len(self._files.values))
            if position < len(self._files.values):
                files.count(self._files.values[position].record, -1)
            files.count(record, 1)
            self._files.put(position, OrderFile(record, files.correlation_id))
            changed.add((tenant, record.order_id))
        self._to_name.update(each for each in changed if not self._files_of[each].correlation_id)
        for _, order_id in changed:
            self.compute_again(order_id)

    def add_fetched(self, fetched: Mapping[_Id, tuple[int, bytes | None]]) -> None:
        """Set up to which journal row some orders were fetched, and their last answers."""
        for of_order, (row_id, answer) in fetched.items():
            self._fetched[of_order] = row_id
            if answer is not None:
                self._answers[of_order] = answer
            self.compute_again(of_order[1])

    def add_labels(self, labels: dict[tuple[str | None, str], str]) -> None:
        """Set the labels of some orders."""
        for names, label in labels.items():
            key = OrderKey(*names)
            self._labels[key] = label
            self._mark_stale(key)

    def new_answers(self, answers: Mapping[_Id, Answer]) -> dict[_Id, bytes]:
        """Return those that say something new, packed for the journal."""
        return {
            of_order: _pack_answer(answer)
            for of_order, answer in answers.items()
            if answer.is_new(self._answer(of_order))
        }

    def _answer(self, of_order: _Id) -> Answer | None:
        packed = self._answers.get(of_order)
        if packed is not None:
            with suppress(msgspec.MsgspecError):  # damaged: REGARDS is asked again
                return _unpack_answer(packed)
        return None

    def compute_again(self, order_id: int) -> None:
        """Have the states of the orders with a number computed again."""
        for key in self._reducer.numbered(order_id):
            self._mark_stale(key)

    def _mark_stale(self, key: OrderKey) -> None:
        """Have the state of an order computed again, if it was computed before."""
        position = self.keys.get(key)
        if position is not None and position < len(self._states.values):
            self._stale.add(key)

    def _regroup(self) -> None:
        """Begin anew: an order disappeared, so the positions of later orders changed."""
        self.regrouped = self._reducer.regrouped
        self.keys = {key: position for position, key in enumerate(self._reducer)}
        self._stored = None
        self._states, self._all = ChangeTracker(), None
        self._to_name.update(self._files_of)
        self._stale.clear()
        self._new = list(self.keys)

    # -- output --

    def labelled(self, label: str) -> list[OrderState]:
        """Return the orders with this label."""
        keys = [key for key, each in self._labels.items() if each == label]
        for of_order in self._answers:
            if (answer := self._answer(of_order)) is not None and answer.label == label:
                keys += self._reducer.numbered(of_order[1])
        found = {state.key: state for state in self.states(keys)}
        return [state for state in found.values() if state.label == label]

    def states(self, keys: Iterable[OrderKey] | None = None) -> States:
        """Return the state of some orders, or of all, in the order of their first events."""
        self._compute()
        values = self._states.values
        if keys is None:
            if self._all is None:
                self._all = States(list(values), self._stored)
            elif self._changed:
                self._all = self._all.updated(list(values), self._changed)
            self._changed = set()
            return self._all
        found = (self.keys.get(self._reducer.resolved(key)) for key in keys)
        positions = [position for position in found if position is not None]
        rows = np.array(positions, dtype=np.int64)
        return States([values[position] for position in positions], self._stored, rows)

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
        files = (self._files_of.get((tenant, order_id), _NO_FILES) for tenant in self._file_tenants)
        positions = (position for each in files for position in each.positions.values())
        return [self._files.values[position].record for position in positions]

    @property
    def files(self) -> list[OrderFile]:
        """All files, at their positions."""
        for tenant, order_id in list(self._to_name):
            self._name_files(tenant, order_id)
        return self._files.values

    def take_changed_files(self) -> list[int]:
        """Return the positions of the `files` that changed since the last call."""
        positions, _ = self._files.take_changed()
        return positions

    def _name_files(self, tenant: str | None, order_id: int) -> None:
        """Set the correlation id of the files of one order."""
        by_id = OrderKey(tenant, f"#{order_id}")
        key = self._reducer.resolved(by_id)
        if key != by_id or key in self._reducer:
            self._to_name.discard((tenant, order_id))
        elif tenant == self._tenant:
            # Its events name no tenant. One that names the tenant may still come and decides.
            key = self._reducer.resolved(by_id._replace(tenant=None))
        is_known = key.correlation_id != by_id.correlation_id or key in self._reducer
        name = key.correlation_id if is_known else None
        files = self._files_of[tenant, order_id]
        if files.correlation_id != name:
            files.correlation_id = name
            for position in files.positions.values():
                self._files.put(
                    position, self._files.values[position]._replace(correlation_id=name)
                )

    def take_changed(self) -> tuple[list[int], list[OrderState]]:
        """Return the positions and states that changed since the last call."""
        self._compute()
        # All of them were computed: only those of the checkpoint are None.
        positions, states = self._states.take_changed()
        return positions, [state for state in states if state is not None]

    def folded(self) -> tuple[list[OrderKey], FoldedOrders, list[OrderKey]]:
        """Return the content of a checkpoint.

        The orders at their positions, all that was folded, and the orders that may differ from
        those that the states began with.
        """
        return list(self.keys), self._reducer.folded(), self._reducer.changed()

    def _compute(self) -> None:
        stale, self._stale = list(self._stale), set()
        for key, told in zip(stale, self._told(stale), strict=True):
            self._put(self.keys[key], self._joined(key, told))
        new, self._new = self._new, []
        for key in new:
            self._put(len(self._states.values), self._joined(key, self._reducer.state(key)))

    def _put(self, position: int, state: OrderState) -> None:
        self._states.put(position, state)
        self._changed.add(position)

    def _told(self, keys: Collection[OrderKey]) -> list[OrderState]:
        """Return what events tell of some orders.

        A long history may have a hundred thousand orders in the checkpoint with an answer: their
        states are made together, in a quarter of the time.
        """
        if self._stored is None:
            return list(map(self._reducer.state, keys))
        rows = {key: self.keys[key] for key in keys if self._reducer.is_unchanged(key)}
        states = self._stored.states(np.fromiter(rows.values(), dtype=np.int64))
        made = dict(zip(rows, states, strict=True))
        return [made.get(key) or self._reducer.state(key) for key in keys]

    def _joined(self, key: OrderKey, state: OrderState) -> OrderState:
        """Complete what events tell with files, label and the answer over REST."""
        order_id = state.order_id or -1
        files = self._files_of.get((key.tenant or self._tenant, order_id), _NO_FILES)
        fetched_row = self._fetched.get((key.tenant, order_id), 0)
        answer = self._answer((key.tenant, order_id))
        is_refused = order_id in self._refused
        waits = state.ready_row > fetched_row and state.status not in GONE and not is_refused
        if answer is not None:
            # Messages that come late from the queue do not take back what the server has said.
            # At the end REGARDS knows the number of its files, external ones included.
            total = answer.files_total if answer.handed_out is not None else None
            is_all_here = total is not None and files.in_place >= total
            waits = waits and state.ready_s >= answer.downloaded_before_s and not is_all_here
        lacks_names = state.errors_row > fetched_row and bool(files.positions) and not waits
        n_files = len(files.positions)
        if answer is not None:
            state = _with_answer(state, answer)
            if state.status in GONE:
                # No manifest will list the others any more.
                n_files = max(n_files, answer.files_total or 0)
            elif not (waits or is_refused):
                state = _with_files_elsewhere(state, answer, files)
        return replaced(
            state,
            label=self._labels.get(key) or state.label,
            downloaded_files=files.in_place,
            downloaded_bytes=files.in_place_bytes,
            files_total=n_files or None,
            bytes_total=files.bytes or None,
            waits_for_download=waits,
            lacks_names=lacks_names and not (state.elsewhere_files or is_refused),
            is_refused=is_refused,
        )


def _with_answer(state: OrderState, answer: Answer) -> OrderState:
    """Add what only REST tells; progress counted from events takes precedence."""
    progress = answer.progress if state.progress is None else state.progress
    return replaced(state, label=answer.label, expires_at=answer.expires_at, progress=progress)


def _with_files_elsewhere(state: OrderState, answer: Answer, files: _FilesOfOrder) -> OrderState:
    """Add how many files of an ended order were downloaded, but not with this journal."""
    if answer.files_total is None or answer.handed_out is None:
        return state
    # The answer may be older than a download of this journal.
    unknown = answer.files_total - len(files.positions)
    n_files = min(unknown, answer.handed_out - files.in_place)
    if n_files <= 0:
        return state
    is_size_known = n_files == unknown and answer.bytes_total is not None
    return replaced(
        state,
        elsewhere_files=n_files,
        elsewhere_bytes=(answer.bytes_total or 0) - files.bytes if is_size_known else None,
    )
