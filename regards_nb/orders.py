"""Fold events, one after the other, into the state of each order. Pure.

RabbitMQ delivers at least once, and not in the order in which things happened (protocol.md 0.5).
So each field is a maximum, a minimum or a set: the same events in any sequence, any of them
repeated, give the same state. Between two events the AMQP property ``timestamp`` decides and,
within one second, the rank of the status; the sequence of arrival never does.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from datetime import datetime  # noqa: TC003 - msgspec may look at the types of the fields
from functools import cached_property
from operator import attrgetter
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from regards_nb.events import REST_APP_ID, OrderStatus, utc
from regards_nb.text import clean, counted, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from regards_nb.events import OrderEvent

#: Which of two statuses within one second is the later one, by plain text, as events carry it.
#: Unknown statuses have rank 2.
_RANK = {
    OrderStatus.GRANTED.value: 0,
    OrderStatus.RUNNING.value: 1,
    OrderStatus.SUBORDER_DONE.value: 2,
    OrderStatus.PAUSED.value: 3,
    OrderStatus.DENIED.value: 4,
    OrderStatus.FAILED.value: 5,
    OrderStatus.DONE_WITH_WARNING.value: 6,
    OrderStatus.DONE.value: 7,
    OrderStatus.EXPIRED.value: 8,
    OrderStatus.DELETED.value: 9,
}
_UNKNOWN_RANK = 2

#: No later event undoes these statuses, and of two the one with the higher number stands.
_PRECEDENCE = {"DONE": 1, "EXPIRED": 2, "DELETED": 3}

#: After these the server has no files any more.
GONE = frozenset({OrderStatus.EXPIRED, OrderStatus.DELETED})

#: After these some files may be missing, and a retry may bring them.
ENDS_WITH_ERRORS = frozenset({OrderStatus.FAILED, OrderStatus.DONE_WITH_WARNING})

#: After these no further event is expected. A later event can re-open FAILED and DENIED.
FINISHED = GONE | ENDS_WITH_ERRORS | {OrderStatus.DENIED, OrderStatus.DONE}

#: After these files can be downloaded if there is a link (protocol.md 0.4).
_ENDS_WITH_LINK = FINISHED - GONE - {OrderStatus.DENIED}

_SUBORDER_DONE = OrderStatus.SUBORDER_DONE.value


def precedence(status: str) -> int:
    """Return the rank of a status: of two, the higher one is valid, whatever their times are."""
    return _PRECEDENCE.get(status, 0)


class OrderKey(NamedTuple):
    """The tenant and the client's own name for an order; known before its number is."""

    tenant: str | None
    correlation_id: str


class OrderState(msgspec.Struct, frozen=True, gc=False):
    """All that is known of one order.

    A struct of msgspec: there may be a million, and a dataclass takes ten times as long to make.

    Attributes
    ----------
    key : OrderKey
    order_id : int or None
        None until REGARDS has given a number; a denied order never gets one.
    status : str
        That of the event that decides: DONE if there was one, else the latest.
    finished : bool
        Whether no further event is expected. FAILED may come with files (protocol.md 0.4).
    progress : float or None
        Finished sub-orders over all, 0 to 1; None where the server does not tell their number.
    ready_row : int
        Journal row of the newest event that means "files can be downloaded"; 0 before.
    errors_row : int
        Journal row of an end with files in error; 0 without such an end.
    first_event, last_event : datetime.datetime
        By the AMQP timestamp where there is one, else by arrival (UTC).
    files_total, bytes_total : int or None
        Of the files listed so far; the server lists the files of a sub-order when it is ready.
    waits_for_download : bool
        A sub-order is ready and was not downloaded. REGARDS may prepare nothing more before it is
        (protocol.md 0.2).
    lacks_names : bool
        It has ended with files in error, which only the next download names.
    downloading : bool
        A download of this order runs in this process.
    download_note : str
        Why its files do not come: others are downloaded first, no byte came for a while, or a
        download failed, and when the next try comes.
    held_by : str
        The other process that downloads it, in what a view shows; empty without one.
    decided_at_s : int
        AMQP timestamp of the event that decides the status; 0 where it has none.
    ready_s : int
        The latest AMQP timestamp of the events that mean "files can be downloaded".
    elsewhere_files : int
        Files of an ended order that were downloaded, but not with this journal; only REST tells.
    elsewhere_bytes : int or None
        Their size; None where it is not known.
    is_refused : bool
        REGARDS refuses it to the user of the client: it belongs to another user.
    """

    key: OrderKey
    order_id: int | None
    status: str
    finished: bool
    progress: float | None
    suborders_done: int
    suborders_total: int | None
    errors: int | None
    error_type: str | None
    message: str | None
    download_link: str | None
    ready_row: int
    errors_row: int
    first_event: datetime
    last_event: datetime
    waits_for_download: bool = False
    decided_at_s: int = 0
    ready_s: int = 0
    label: str | None = None
    downloaded_files: int = 0
    downloaded_bytes: int = 0
    files_total: int | None = None
    bytes_total: int | None = None
    lacks_names: bool = False
    downloading: bool = False
    download_note: str = ""
    held_by: str = ""
    expires_at: datetime | None = None
    elsewhere_files: int = 0
    elsewhere_bytes: int | None = None
    is_refused: bool = False

    @property
    def tenant(self) -> str | None:
        """Tenant (project) of REGARDS."""
        return self.key.tenant

    @property
    def correlation_id(self) -> str:
        """The client's own name for the order."""
        return self.key.correlation_id

    @property
    def to_download(self) -> bool:
        """Whether a download has something to fetch, or missing files to name."""
        return self.waits_for_download or self.lacks_names

    @property
    def lacks_files(self) -> bool:
        """Whether files of an ended order failed in a download, and a new call would try again."""
        if self.downloaded_files >= (self.files_total or 0):
            return False  # first: a view asks this of all orders
        is_over = self.finished and self.status not in GONE and not self.is_refused
        return is_over and not (self.to_download or self.downloading or self.held_by)

    @property
    def name(self) -> str:
        """What an error calls the order: its number, else its label or correlation id."""
        if self.order_id is not None:
            return f"order {self.order_id}"
        return f"order {clean(self.label or self.correlation_id)!r}"

    @property
    def reason(self) -> str:
        """The message of REGARDS, ready to be shown behind the status; may be empty."""
        return f" ({clean(self.message)})" if self.message else ""

    @property
    def elsewhere(self) -> str:
        """A remark on files that were downloaded with another journal; empty without any."""
        if not self.elsewhere_files:
            return ""
        of_size = "" if self.elsewhere_bytes is None else f", {size(self.elsewhere_bytes)}"
        return f"already downloaded elsewhere ({counted(self.elsewhere_files, 'file')}{of_size})"


def replaced(state: OrderState, **changes: Any) -> OrderState:
    """Return a copy of a state with some other values."""
    return msgspec.structs.replace(state, **changes)


class FoldedOrders(msgspec.Struct, frozen=True, kw_only=True):
    """All that an `OrderReducer` has folded, to go on from there.

    *keys* and *tenants* are in the order of their first events; *order_ids* and *folds*
    (`OrderAccumulator.packed`) belong to the keys. *owners* has the orders that own an order id,
    only where these are not the orders that have it; *claims* has the others that claim it.
    """

    keys: list[OrderKey] = msgspec.field(default_factory=list)
    order_ids: list[int | None] = msgspec.field(default_factory=list)
    folds: list[bytes] = msgspec.field(default_factory=list)
    owners: dict[int, list[OrderKey]] = msgspec.field(default_factory=dict)
    claims: dict[int, list[OrderKey]] = msgspec.field(default_factory=dict)
    tenants: list[str | None] = msgspec.field(default_factory=list)


def _owners_by_number(
    keys: Iterable[OrderKey], order_ids: Iterable[int | None]
) -> dict[int, tuple[OrderKey, ...]]:
    """Return the orders of each number, as if no order claimed the number of another."""
    owners: dict[int, tuple[OrderKey, ...]] = {}
    for key, order_id in zip(keys, order_ids, strict=True):
        if order_id is not None:
            owners[order_id] = (*owners[order_id], key) if order_id in owners else (key,)
    return owners


class OrderReducer:
    """Folds events into orders, one at a time.

    Events name their order by correlation id. A few have only the order id: they count for the
    order that another event ties to that id, whichever comes first. When a correlation id is used
    for a second order, the state is that of the order with the higher number, and the events of the
    other no longer count.

    *folded* is what `folded` of another reducer returned. Each order of it is unpacked when it is
    needed.
    """

    def __init__(self, folded: FoldedOrders | None = None) -> None:
        self._folded = folded = folded or FoldedOrders()
        #: By order, in the sequence of their first events; or its place among the folded orders.
        self._accumulators: dict[OrderKey, OrderAccumulator | int] = {
            key: place for place, key in enumerate(folded.keys)
        }
        #: Other orders that claim the same id, which no server should send. The name that is
        #: first in the alphabet owns it.
        self._conflicting_claims: defaultdict[int, set[OrderKey]] = defaultdict(set)
        for order_id, keys in folded.claims.items():
            self._conflicting_claims[order_id].update(keys)
        #: One text object for each tenant, however many events repeat it.
        self._tenants: dict[str | None, str | None] = {each: each for each in folded.tenants}
        #: Grows when events that were folded already turn out to belong to another order.
        self.regrouped = 0

    @cached_property
    def _owners(self) -> dict[int, tuple[OrderKey, ...]]:
        """By order id, the order of each tenant that has it.

        There may be a million, of one tenant, and the frame of orders needs none of them.
        """
        folded = self._folded
        owners = _owners_by_number(folded.keys, folded.order_ids)
        owners |= {order_id: tuple(keys) for order_id, keys in folded.owners.items()}
        return owners

    def folded(self) -> FoldedOrders:
        """Return all that was folded so far. Later events do not change it."""
        keys = list(self._accumulators)
        found = list(self._accumulators.values())
        before = self._folded
        order_ids = list(map(self._order_id, keys))
        by_number = _owners_by_number(keys, order_ids)
        owners = self._owners
        return FoldedOrders(
            keys=keys,
            order_ids=order_ids,
            folds=[
                before.folds[each] if isinstance(each, int) else each.packed() for each in found
            ],
            owners={
                order_id: list(owners.get(order_id, ()))
                for order_id in owners.keys() | by_number.keys()
                if owners.get(order_id) != by_number.get(order_id)
            },
            claims={order_id: list(keys) for order_id, keys in self._conflicting_claims.items()},
            tenants=list(self._tenants),
        )

    def changed(self) -> list[OrderKey]:
        """Return the orders that may differ from the folded ones that this reducer began with."""
        found = [key for key, each in self._accumulators.items() if not isinstance(each, int)]
        owners = (self._owner(key.tenant, each) for key in found if (each := _number_of(key)))
        return list(dict.fromkeys([*found, *filter(None, owners)]))

    def is_unchanged(self, key: OrderKey) -> bool:
        """Return whether an order is as it was among the folded ones. Nothing is unpacked."""
        names = (key, _nameless(key.tenant, self._order_id(key) or 0))
        return all(isinstance(self._accumulators.get(name, 0), int) for name in names)

    def add(self, row_id: int, event: OrderEvent) -> OrderKey:
        """Fold in one event, journalled as row *row_id*; return the order that changed."""
        order_id = event.order_id
        # Most orders are known by both names, and a plain tuple finds one as its key does.
        found = self._accumulators.get((event.tenant, event.correlation_id))  # type: ignore[call-overload]
        if (
            type(found) is not OrderAccumulator
            or order_id is None
            or found.order_id != order_id
            or found.is_nameless
        ):
            found, changed = self._find(event.tenant, event.correlation_id, order_id)
        else:
            changed = found.key
        found.add(row_id, event)
        return changed

    def folds(self) -> Iterator[tuple[OrderKey, OrderAccumulator, list[int]]]:
        """Yield each name with what its events say, and all numbers that they name."""
        claims: defaultdict[OrderKey, list[int]] = defaultdict(list)
        for order_id, owners in self._owners.items():
            for key in {*owners, *self._conflicting_claims.get(order_id, ())}:
                claims[key].append(order_id)
        for key in list(self._accumulators):
            if (found := self._unpacked(key)) is not None:
                yield key, found, claims[key]

    def join(self, key: OrderKey, other: OrderAccumulator, claims: Iterable[int]) -> None:
        """Fold in what `folds` of another reducer yielded for a name; all orders may change."""
        self._tenants.setdefault(key.tenant, key.tenant)
        known = self._unpacked(key)
        self._accumulators[key] = other if known is None else _newest_of(key, known, other)
        for order_id in claims:
            self._claim(key, order_id)
        self.regrouped += 1

    def __iter__(self) -> Iterator[OrderKey]:
        owned = {_nameless(key.tenant, n) for n, keys in self._owners.items() for key in keys}
        return (key for key in self._accumulators if key not in owned)

    def __contains__(self, key: OrderKey) -> bool:
        return key in self._accumulators

    def named(self, correlation_id: str) -> list[OrderKey]:
        """Return the orders with this correlation id; several tenants may have one each."""
        keys = (OrderKey(tenant, correlation_id) for tenant in self._tenants)
        return [key for key in keys if key in self._accumulators]

    def numbered(self, order_id: int) -> list[OrderKey]:
        """Return the orders whose state has this number."""
        by_number_only = self.named(_nameless(None, order_id).correlation_id)
        conflicting = self._conflicting_claims.get(order_id, ())
        keys = [*self._owners.get(order_id, ()), *conflicting, *by_number_only]
        return [key for key in dict.fromkeys(keys) if self._order_id(key) == order_id]

    def resolved(self, key: OrderKey) -> OrderKey:
        """Return the present key of an order that was known only by its number before."""
        number = _number_of(key)
        return key if number is None else self._owner(key.tenant, number) or key

    def state(self, key: OrderKey) -> OrderState:
        """Return the state of one order; KeyError if no event named it."""
        own = self._unpacked(key)
        if own is None:
            raise KeyError(key)
        all_of_it = [own, own.by_name]
        if own.order_id is not None and self._owner(key.tenant, own.order_id) == key:
            nameless = self._unpacked(_nameless(key.tenant, own.order_id))
            if nameless is not None:
                all_of_it += nameless, nameless.by_name
        accumulators = [each for each in all_of_it if each is not None]
        if len(accumulators) == 1:
            return own.state()
        joined = OrderAccumulator(key, own.order_id)
        for each in accumulators:
            joined.join(each)
        return joined.state()

    def _find(
        self, tenant: str | None, correlation_id: str | None, order_id: int | None
    ) -> tuple[OrderAccumulator, OrderKey]:
        """Return the accumulator of events with these names, and the order that they change."""
        tenant = self._tenants.setdefault(tenant, tenant)
        if correlation_id is None:
            assert order_id is not None  # noqa: S101 - events.decode rejects an event without both
            key = _nameless(tenant, order_id)
            nameless = self._accumulator(key, order_id)
            nameless.is_nameless = True
            return nameless, self._owner(tenant, order_id) or key
        key = OrderKey(tenant, correlation_id)
        if order_id is not None:
            self._claim(key, order_id)
        return self._accumulator(key, order_id), key

    def _accumulator(self, key: OrderKey, order_id: int | None) -> OrderAccumulator:
        """Return the accumulator of one order; a number higher than before starts a new one."""
        newest = self._unpacked(key)
        if newest is None:
            new = OrderAccumulator(key, order_id)
        elif order_id is None:
            return newest.without_number()
        elif newest.order_id is None:
            new = OrderAccumulator(key, order_id, by_name=newest)
        elif order_id > newest.order_id:
            new = OrderAccumulator(key, order_id, by_name=newest.by_name)
        elif order_id == newest.order_id:
            return newest
        else:
            # An event of an older order under the same name changes no state.
            return OrderAccumulator(key, order_id)
        self._accumulators[key] = new
        return new

    def _unpacked(self, key: OrderKey) -> OrderAccumulator | None:
        """Return the accumulator of an order; None if no event named it."""
        found = self._accumulators.get(key)
        if isinstance(found, int):
            found = OrderAccumulator.unpacked(key, self._folded.folds[found])
            self._accumulators[key] = found
        return found

    def _order_id(self, key: OrderKey) -> int | None:
        found = self._accumulators[key]
        return self._folded.order_ids[found] if isinstance(found, int) else found.order_id

    def _claim(self, key: OrderKey, order_id: int) -> None:
        """Let an order own a number, unless an order first in the alphabet owns it."""
        before = self._owner(key.tenant, order_id)
        if key == before:
            return
        if before is not None:
            self._conflicting_claims[order_id].add(max(key, before))
            if before < key:
                return
        others = (owner for owner in self._owners.get(order_id, ()) if owner != before)
        self._owners[order_id] = (*others, key)
        if before or _nameless(key.tenant, order_id) in self._accumulators:
            self.regrouped += 1

    def _owner(self, tenant: str | None, order_id: int) -> OrderKey | None:
        """Return the order of a tenant that has this number."""
        return next((key for key in self._owners.get(order_id, ()) if key.tenant == tenant), None)


def _newest_of(key: OrderKey, *found: OrderAccumulator) -> OrderAccumulator:
    """Join what belongs to the highest number of a name, and what belongs to none."""
    folds = [part for each in found for part in (each, each.by_name) if part is not None]
    newest = max((each.order_id for each in folds if each.order_id is not None), default=None)
    joined, by_name = OrderAccumulator(key, newest), OrderAccumulator(key, None)
    for each in folds:
        if each.order_id is None:
            by_name.join(each)
        elif each.order_id == newest:
            joined.join(each)
    if newest is None:
        joined = by_name
    elif any(each.order_id is None for each in folds):
        joined.by_name = by_name
    joined.is_nameless = any(each.is_nameless for each in found)
    return joined


def _nameless(tenant: str | None, order_id: int) -> OrderKey:
    """Return the key of an order of which only the number is known."""
    return OrderKey(tenant, f"#{order_id}")


def _number_of(key: OrderKey) -> int | None:
    """Return the number in the key of an order of which only the number is known."""
    number = key.correlation_id.removeprefix("#")
    return int(number) if number != key.correlation_id and number.isdecimal() else None


#: Which of two events is the later one: by the AMQP timestamp, then by the rank of the status.
_When = int
_RANKS = max(_RANK.values()) + 1
_NEVER: _When = -1

#: Later than every event; its negative is earlier than every event.
_MOST_US = 1 << 63

#: Sorted ids, each once. There may be a million orders: a set would take ten times the memory.
_Ids = array  # of "q"
_NO_IDS: _Ids[int] = array("q")


def _with(ids: _Ids[int], new: int) -> _Ids[int]:
    """Add an id; the ids of one order mostly grow."""
    if not ids:
        return array("q", (new,))
    if new > ids[-1]:
        ids.append(new)
    elif ids[place := bisect_left(ids, new)] != new:
        ids.insert(place, new)
    return ids


def _is_empty(event: OrderEvent) -> bool:
    """Return whether the filters of an order matched no file: FAILED, no error, 0 sub-orders."""
    is_failed = event.status == OrderStatus.FAILED
    return is_failed and event.total_sub_orders == 0 and event.errors is None


class OrderAccumulator(msgspec.Struct, gc=False):
    """All that the events of one order number say; each field only ever grows.

    There may be a million. Hence it holds no tuples, and equal texts of many orders are one object.
    Journals keep the values of orders whose events were removed, and nothing else can tell them
    again: the sequence of the fields and the numbers in ``when`` are part of the schema.
    """

    key: OrderKey
    order_id: int | None
    #: The events that name the order without its number.
    by_name: OrderAccumulator | None = None
    #: Of the event that decides, and its fields.
    precedence: int = 0
    when: _When = _NEVER
    status: str = ""
    error_type: str = ""
    message: str = ""
    #: Of the last run; after a good retry there are none.
    errors_when: _When = _NEVER
    errors: int = 0
    link_when: _When = _NEVER
    link: str = ""
    #: Finished sub-orders by their number.
    numbered: _Ids[int] = _NO_IDS
    #: Older servers do not number their sub-orders: there each event counts (protocol.md 0.7).
    unnumbered: _Ids[int] = _NO_IDS
    #: REST tells only that files are ready: counted for an order without such a message.
    over_rest: _Ids[int] = _NO_IDS
    total: int = -1
    ready_suborder: int = 0
    ready_at_end: int = 0
    first_us: int = _MOST_US
    last_us: int = -_MOST_US
    #: Whether events came without a correlation id: they may change another order.
    is_nameless: bool = False
    #: The time of the newest event of either kind.
    ready_suborder_s: int = 0
    ready_at_end_s: int = 0

    def _values(self) -> list[Any]:
        return [list(v) if isinstance(v, array) else v for v in _stored_values(self)]

    @classmethod
    def _of_values(cls, key: OrderKey, values: Sequence[Any]) -> Self:
        new = cls(key, None)
        for name, value in zip(_STORED, values, strict=True):
            setattr(new, name, _of_value(value))
        return new

    def packed(self) -> bytes:
        """Return all but the key as one msgpack value."""
        return _pack([self._values(), self.by_name and self.by_name._values()])  # noqa: SLF001

    @classmethod
    def unpacked(cls, key: OrderKey, packed: bytes) -> Self:
        """Return what `packed` was made of."""
        values, by_name = _unpack(packed)
        new = cls._of_values(key, values)
        new.by_name = by_name and cls._of_values(key, by_name)
        return new

    def without_number(self) -> OrderAccumulator:
        """Return the accumulator of events that name the order without its number."""
        if self.order_id is None:
            return self
        self.by_name = self.by_name or OrderAccumulator(self.key, None)
        return self.by_name

    def add(self, row_id: int, event: OrderEvent) -> None:
        """Fold in one event."""
        status, timestamp_s, link = event.status, event.timestamp_s, event.download_link
        errors, total = event.errors, event.total_sub_orders
        errors = 0 if errors is None and status == OrderStatus.DONE else errors
        when = (timestamp_s or 0) * _RANKS + _RANK.get(status, _UNKNOWN_RANK)
        precedence = _PRECEDENCE.get(status, 0)
        if precedence >= self.precedence:
            self._decide(precedence, when, status, event.error_type or "", event.message or "")
        if errors is not None and (when, errors) > (self.errors_when, self.errors):
            self.errors_when, self.errors = when, errors
        if link and (when, link) > (self.link_when, self.link):
            self.link_when, self.link = when, link
        if total is not None and total > self.total:
            self.total = total
        # REST tells no time: the files may have become ready after any answer.
        is_asked = event.app_id == REST_APP_ID
        ready_s = _MOST_US >> 1 if timestamp_s is None or is_asked else timestamp_s
        if status == _SUBORDER_DONE:
            self.ready_suborder = max(self.ready_suborder, row_id)
            self.ready_suborder_s = max(self.ready_suborder_s, ready_s)
            if is_asked:
                self.over_rest = _with(self.over_rest, row_id)
            elif (number := event.sub_order_id) is None:
                self.unnumbered = _with(self.unnumbered, row_id)
            else:
                self.numbered = _with(self.numbered, number)
        elif (link or errors) and status in _ENDS_WITH_LINK and not _is_empty(event):
            self.ready_at_end = max(self.ready_at_end, row_id)
            self.ready_at_end_s = max(self.ready_at_end_s, ready_s)
            if link and is_asked:
                # The server says that it has files now, whatever sub-orders came before.
                self.ready_suborder = max(self.ready_suborder, row_id)
        us = event.received_at_us if timestamp_s is None else timestamp_s * 1_000_000
        self.first_us = min(self.first_us, us)
        self.last_us = max(self.last_us, us)

    def _decide(
        self, precedence: int, when: _When, status: str, error_type: str, message: str
    ) -> None:
        """Take the status of an event and its texts, unless a later event has set them."""
        new = (precedence, when, status, error_type, message)
        if new > (self.precedence, self.when, self.status, self.error_type, self.message):
            self.precedence = precedence
            self.when = when
            self.status = intern(status)
            self.error_type = intern(error_type)
            self.message = intern(message)

    def join(self, other: OrderAccumulator) -> None:
        """Fold in all that another accumulator has folded in."""
        self._decide(other.precedence, other.when, other.status, other.error_type, other.message)
        self.errors_when, self.errors = max(
            (self.errors_when, self.errors), (other.errors_when, other.errors)
        )
        self.link_when, self.link = max((self.link_when, self.link), (other.link_when, other.link))
        for ids in ("numbered", "unnumbered", "over_rest"):
            of_both = {*getattr(self, ids), *getattr(other, ids)}
            setattr(self, ids, array("q", sorted(of_both)))
        for name in _GROWING:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.first_us = min(self.first_us, other.first_us)

    def state(self) -> OrderState:
        """Return the state of the order."""
        done = len(self.numbered) + len(self.unnumbered) or len(self.over_rest)
        total = self.total if self.total >= 0 else None
        if self.status == OrderStatus.DONE:
            done = max(done, self.total)  # also of sub-orders whose messages were lost
        progress = min(done / total, 1.0) if total else None
        has_link = bool(self.link) and total != 0
        return OrderState(
            key=self.key,
            order_id=self.order_id,
            status=self.status,
            finished=self.status in FINISHED,
            progress=1.0 if self.status == OrderStatus.DONE else progress,
            suborders_done=done,
            suborders_total=total,
            errors=self.errors or None,
            error_type=self.error_type or None,
            message=self.message or None,
            download_link=self.link or None,
            # Each sub-order announces its files. An end announces files only without any of them,
            # and not with a total of 0: then the filters have left no file.
            ready_row=self.ready_suborder or (self.ready_at_end if has_link else 0),
            errors_row=self.ready_at_end if self.errors and self.status in ENDS_WITH_ERRORS else 0,
            first_event=utc(self.first_us),
            last_event=utc(self.last_us),
            decided_at_s=max(self.when // _RANKS, 0),
            ready_s=self.ready_suborder_s if self.ready_suborder else self.ready_at_end_s,
        )


_GROWING = ("total", "last_us", *(n for n in OrderAccumulator.__struct_fields__ if "ready" in n))
_STORED = OrderAccumulator.__struct_fields__[1:2] + OrderAccumulator.__struct_fields__[3:]
_stored_values = attrgetter(*_STORED)
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Any]).decode


def _of_value(value: Any) -> Any:
    """Return a stored value as accumulators have it: ids in an array, equal texts as one object."""
    if isinstance(value, list):
        return array("q", value) if value else _NO_IDS
    return intern(value) if isinstance(value, str) else value
