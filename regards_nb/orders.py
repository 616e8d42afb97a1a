"""What the events mean: a pure fold, event after event, into the state of each order.

Delivery is at least once and the order of arrival is not the order of life (protocol.md 0.5), so
everything here is a maximum, a minimum or a set: the same events in any order, any of them
repeated, give the same state. What decides between two events is the AMQP property ``timestamp``
and, within one second, the rank of the status; never which arrived first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from sys import intern
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.events import REST_APP_ID, OrderStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regards_nb.events import OrderEvent

#: How far each status stands in the life of an order. Statuses we do not know stand at 2.
_RANK = {
    OrderStatus.GRANTED: 0,
    OrderStatus.RUNNING: 1,
    OrderStatus.SUBORDER_DONE: 2,
    OrderStatus.PAUSED: 3,
    OrderStatus.DENIED: 4,
    OrderStatus.FAILED: 5,
    OrderStatus.DONE_WITH_WARNING: 6,
    OrderStatus.DONE: 7,
    OrderStatus.EXPIRED: 8,
    OrderStatus.DELETED: 9,
}
_UNKNOWN_RANK = 2

#: What no later event undoes, the most final last.
PRECEDENCE = {OrderStatus.DONE: 1, OrderStatus.EXPIRED: 2, OrderStatus.DELETED: 3}

#: The files are gone from the server.
GONE = frozenset({OrderStatus.EXPIRED, OrderStatus.DELETED})

#: After these no further event is expected. FAILED and DENIED can be re-opened by a later one.
FINISHED = GONE | {
    OrderStatus.DENIED,
    OrderStatus.FAILED,
    OrderStatus.DONE_WITH_WARNING,
    OrderStatus.DONE,
}

#: Statuses after which files can be fetched, provided there is a link (protocol.md 0.4).
_ENDS_WITH_LINK = FINISHED - GONE - {OrderStatus.DENIED}


# By plain text, as events carry it.
_RANK_OF: dict[str, int] = {str(status): rank for status, rank in _RANK.items()}
_PART = str(OrderStatus.SUBORDER_DONE)
_PRECEDENCE_OF: dict[str, int] = {str(status): rank for status, rank in PRECEDENCE.items()}


class OrderKey(NamedTuple):
    """What identifies an order before it has a number."""

    tenant: str | None
    correlation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderState:
    """What is known of one order.

    Attributes
    ----------
    key : OrderKey
    order_id : int or None
        None until REGARDS has given a number; a denied order never gets one.
    status : str
        Of the event that decides: DONE if there was one, else the latest.
    finished : bool
        Whether no further event is expected. FAILED may come with files (protocol.md 0.4).
    progress : float or None
        Finished sub-orders over all, 0 to 1; None where the server does not tell how many.
    ready_row : int
        Journal row of the newest event that means "files can be fetched"; 0 before.
    first_event, last_event : datetime.datetime
        By the AMQP timestamp where there is one, else by arrival (UTC).
    files_total, bytes_total : int or None
        Of the files listed so far; the server lists a part when it is ready.
    waits_for_download : bool
        A part is ready and was not fetched: REGARDS may be waiting for it (protocol.md 0.2).
    downloading : bool
        A download of this order runs in this process.
    decided_at_s : int
        AMQP timestamp of the event that decides the status; 0 where it has none.
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
    first_event: datetime
    last_event: datetime
    label: str | None = None
    downloaded_files: int = 0
    downloaded_bytes: int = 0
    files_total: int | None = None
    bytes_total: int | None = None
    waits_for_download: bool = False
    downloading: bool = False
    expires_at: datetime | None = None
    decided_at_s: int = 0

    @property
    def tenant(self) -> str | None:
        """Tenant (project) of REGARDS."""
        return self.key.tenant

    @property
    def correlation_id(self) -> str:
        """The client's own name for the order."""
        return self.key.correlation_id


class OrderReducer:
    """Folds events into orders, one at a time.

    Events name their order by correlation id; a few only by order id, and those are added to the
    order that another event ties to that id, whichever comes first. When a correlation id is used
    for a second order, the state is that of the order with the higher number, and what was said of
    the other is forgotten.
    """

    def __init__(self) -> None:
        #: what was said of each order, in the order of their first events
        self._accumulators: dict[OrderKey, OrderAccumulator] = {}
        #: which order has a number, one of each tenant; there may be very many, of one tenant
        self._owners: dict[int, tuple[OrderKey, ...]] = {}
        #: others that have it too, which no server should say: the alphabet decides
        self._conflicting_claims: defaultdict[int, set[OrderKey]] = defaultdict(set)
        #: each tenant's name once, whatever number of events repeat it
        self._tenants: dict[str | None, str | None] = {}
        #: Grows when what is known already comes to belong to another order than before.
        self.regrouped = 0

    def add(self, row_id: int, event: OrderEvent) -> OrderKey:
        """Fold in one event, journalled as row *row_id*; return the order that changed."""
        order_id = event.order_id
        # Mostly it is known by both its names, and a plain tuple finds it as its key does.
        life = self._accumulators.get((event.tenant, event.correlation_id))  # type: ignore[call-overload]
        if life is None or order_id is None or life.order_id != order_id or life.is_nameless:
            life, changed = self._place(event.tenant, event.correlation_id, order_id)
        else:
            changed = life.key
        life.add(row_id, event)
        return changed

    def __iter__(self) -> Iterator[OrderKey]:
        owned = {_nameless(key.tenant, n) for n, keys in self._owners.items() for key in keys}
        return (key for key in self._accumulators if key not in owned)

    def __contains__(self, key: OrderKey) -> bool:
        return key in self._accumulators

    def named(self, correlation_id: str) -> list[OrderKey]:
        """Return the orders with this correlation id; those of several tenants may have it."""
        keys = (OrderKey(tenant, correlation_id) for tenant in self._tenants)
        return [key for key in keys if key in self._accumulators]

    def numbered(self, order_id: int) -> list[OrderKey]:
        """Return the orders whose state has this number."""
        by_number_only = self.named(_nameless(None, order_id).correlation_id)
        conflicting = self._conflicting_claims.get(order_id, ())
        keys = [*self._owners.get(order_id, ()), *conflicting, *by_number_only]
        return [key for key in dict.fromkeys(keys) if self._accumulators[key].order_id == order_id]

    def resolved(self, key: OrderKey) -> OrderKey:
        """Return the name of an order that was known by its number only, if it has one now."""
        number = key.correlation_id.removeprefix("#")
        is_number = number != key.correlation_id and number.isdecimal()
        return self._owner(key.tenant, int(number)) or key if is_number else key

    def state(self, key: OrderKey) -> OrderState:
        """Return what is known of one order; KeyError if nothing is."""
        life = self._accumulators[key]
        said = [life, life.by_name]
        if life.order_id is not None and self._owner(key.tenant, life.order_id) == key:
            nameless = self._accumulators.get(_nameless(key.tenant, life.order_id))
            if nameless is not None:
                said += nameless, nameless.by_name
        known = [one for one in said if one is not None]
        if len(known) == 1:
            return life.state()
        together = OrderAccumulator(key, life.order_id)
        for one in known:
            together.join(one)
        return together.state()

    def _place(
        self, tenant: str | None, correlation_id: str | None, order_id: int | None
    ) -> tuple[OrderAccumulator, OrderKey]:
        """Return where events with these names are folded, and the order that they change."""
        tenant = self._tenants.setdefault(tenant, tenant)
        if correlation_id is None:
            assert order_id is not None  # noqa: S101 - events.decode sees to it
            key = _nameless(tenant, order_id)
            life = self._life(key, order_id)
            life.is_nameless = True
            return life, self._owner(tenant, order_id) or key
        key = OrderKey(tenant, correlation_id)
        if order_id is not None:
            self._claim(key, order_id)
        return self._life(key, order_id), key

    def _life(self, key: OrderKey, order_id: int | None) -> OrderAccumulator:
        """Return what was said of an order; with a higher number than before it is a new one."""
        newest = self._accumulators.get(key)
        if newest is None:
            life = OrderAccumulator(key, order_id)
        elif order_id is None:
            return newest.without_number()
        elif newest.order_id is None:
            life = OrderAccumulator(key, order_id, by_name=newest)
        elif order_id > newest.order_id:
            life = OrderAccumulator(key, order_id, by_name=newest.by_name)
        elif order_id == newest.order_id:
            return newest
        else:
            return OrderAccumulator(
                key, order_id
            )  # of an older order, which nothing shows any more
        self._accumulators[key] = life
        return life

    def _claim(self, key: OrderKey, order_id: int) -> None:
        """Note that an order has this number, unless another has the older right to it."""
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
        """Return which order of a tenant has a number."""
        for key in self._owners.get(order_id, ()):
            if key.tenant == tenant:
                return key
        return None


def _nameless(tenant: str | None, order_id: int) -> OrderKey:
    """Return the key of an order of which only the number is known."""
    return OrderKey(tenant, f"#{order_id}")


#: Which of two events is the later one: the AMQP timestamp, and within it the rank of the status.
_When = int
_RANKS = max(_RANK.values()) + 1
_NEVER: _When = -1

#: Later than every event; and no event is as long before 1970.
_MOST_US = 1 << 63

#: Ids in their order, each once. There may be a million: a set would take ten times the memory.
_Ids = array  # of "q"
_NO_IDS: _Ids[int] = array("q")


def _with(ids: _Ids[int], new: int) -> _Ids[int]:
    """Add an id; those of one order mostly grow."""
    if not ids:
        return array("q", (new,))
    if new > ids[-1]:
        ids.append(new)
    elif ids[place := bisect_left(ids, new)] != new:
        ids.insert(place, new)
    return ids


def _of_both(some: _Ids[int], others: _Ids[int]) -> _Ids[int]:
    return array("q", sorted({*some, *others}))


class OrderAccumulator:
    """Everything the events of one order number say; each field only ever grows.

    There may be very many. Hence no tuples in it, and what many orders say alike is one text.
    """

    __slots__ = (
        "asked_for",
        "by_name",
        "error_type",
        "errors",
        "errors_when",
        "first_us",
        "is_nameless",
        "key",
        "last_us",
        "link",
        "link_when",
        "message",
        "numbered",
        "order_id",
        "precedence",
        "ready_end",
        "ready_part",
        "status",
        "total",
        "unnumbered",
        "when",
    )  # fmt: skip

    def __init__(
        self, key: OrderKey, order_id: int | None, by_name: OrderAccumulator | None = None
    ) -> None:
        self.key = key
        self.order_id = order_id
        #: whether events came that do not name it: what they change may be another one's
        self.is_nameless = False
        #: what was said of the order by its name only, without its number
        self.by_name = by_name
        #: of the event that decides, and what it says
        self.precedence = 0
        self.when = _NEVER
        self.status = self.error_type = self.message = ""
        self.errors_when = _NEVER
        self.errors = 0
        self.link_when = _NEVER
        self.link = ""
        #: finished sub-orders by their number
        self.numbered = _NO_IDS
        #: Older servers do not number their sub-orders: there each event counts (protocol.md 0.7).
        self.unnumbered = _NO_IDS
        #: Over REST one only learns that something is ready: counted where no message counts.
        self.asked_for = _NO_IDS
        self.total = -1
        self.ready_part = 0
        self.ready_end = 0
        self.first_us = _MOST_US
        self.last_us = -_MOST_US

    def without_number(self) -> OrderAccumulator:
        """Return the life of what is said by name, without a number."""
        if self.order_id is None:
            return self
        self.by_name = self.by_name or OrderAccumulator(self.key, None)
        return self.by_name

    def add(self, row_id: int, event: OrderEvent) -> None:
        """Take in one event."""
        status, timestamp_s, link = event.status, event.timestamp_s, event.download_link
        errors, total = event.errors, event.total_sub_orders
        when = (timestamp_s or 0) * _RANKS + _RANK_OF.get(status, _UNKNOWN_RANK)
        precedence = _PRECEDENCE_OF.get(status, 0)
        if precedence >= self.precedence:
            self._decide(precedence, when, status, event.error_type or "", event.message or "")
        if errors is not None and (when, errors) > (self.errors_when, self.errors):
            self.errors_when, self.errors = when, errors
        if link and (when, link) > (self.link_when, self.link):
            self.link_when, self.link = when, link
        if total is not None and total > self.total:
            self.total = total
        if status == _PART:
            self._add_part(row_id, event.app_id, event.sub_order_id)
        elif link and status in _ENDS_WITH_LINK:
            self.ready_end = max(self.ready_end, row_id)
            if event.app_id == REST_APP_ID:
                # The server was asked and has files, whatever announced itself before.
                self.ready_part = max(self.ready_part, row_id)
        us = event.received_at_us if timestamp_s is None else timestamp_s * 1_000_000
        self.first_us = min(self.first_us, us)
        self.last_us = max(self.last_us, us)

    def _decide(
        self, precedence: int, when: _When, status: str, error_type: str, message: str
    ) -> None:
        """Take in what an event says of the order as a whole, unless a later one said so."""
        said = (precedence, when, status, error_type, message)
        if said > (self.precedence, self.when, self.status, self.error_type, self.message):
            self.precedence = precedence
            self.when = when
            self.status = intern(status)
            self.error_type = intern(error_type)
            self.message = intern(message)

    def _add_part(self, row_id: int, app_id: str | None, sub_order_id: int | None) -> None:
        self.ready_part = max(self.ready_part, row_id)
        if app_id == REST_APP_ID:
            self.asked_for = _with(self.asked_for, row_id)
        elif sub_order_id is None:
            self.unnumbered = _with(self.unnumbered, row_id)
        else:
            self.numbered = _with(self.numbered, sub_order_id)

    def join(self, other: OrderAccumulator) -> None:
        """Take in all that another life has taken in."""
        self._decide(other.precedence, other.when, other.status, other.error_type, other.message)
        self.errors_when, self.errors = max(
            (self.errors_when, self.errors), (other.errors_when, other.errors)
        )
        self.link_when, self.link = max((self.link_when, self.link), (other.link_when, other.link))
        self.numbered = _of_both(self.numbered, other.numbered)
        self.unnumbered = _of_both(self.unnumbered, other.unnumbered)
        self.asked_for = _of_both(self.asked_for, other.asked_for)
        self.total = max(self.total, other.total)
        self.ready_part = max(self.ready_part, other.ready_part)
        self.ready_end = max(self.ready_end, other.ready_end)
        self.first_us = min(self.first_us, other.first_us)
        self.last_us = max(self.last_us, other.last_us)

    def state(self) -> OrderState:
        """Say what it amounts to."""
        done = len(self.numbered) + len(self.unnumbered) or len(self.asked_for)
        total = self.total if self.total >= 0 else None
        progress = min(done / total, 1.0) if total else None
        return OrderState(
            key=self.key,
            order_id=self.order_id,
            status=self.status,
            finished=self.status in FINISHED,
            progress=1.0 if self.status == OrderStatus.DONE else progress,
            suborders_done=done,
            suborders_total=total,
            errors=None if self.errors_when == _NEVER else self.errors,
            error_type=self.error_type or None,
            message=self.message or None,
            download_link=self.link or None,
            # Each sub-order announces itself; only where none did is the end the announcement.
            ready_row=self.ready_part or self.ready_end,
            first_event=_utc(self.first_us),
            last_event=_utc(self.last_us),
            decided_at_s=max(self.when // _RANKS, 0),
        )


def _utc(us: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)
