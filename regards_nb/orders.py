"""What the events mean: a pure fold, event after event, into the state of each order.

Delivery is at least once and the order of arrival is not the order of life (protocol.md 0.5), so
everything here is a maximum, a minimum or a set: the same events in any order, any of them
repeated, give the same state. What decides between two events is the AMQP property ``timestamp``
and, within one second, the rank of the status; never which arrived first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
FINALITY = {OrderStatus.DONE: 1, OrderStatus.EXPIRED: 2, OrderStatus.DELETED: 3}

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
_FINALITY_OF: dict[str, int] = {str(status): rank for status, rank in FINALITY.items()}


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


class OrderBook:
    """Folds events into orders, one at a time.

    Events name their order by correlation id; a few only by order id, and those are added to the
    order that another event ties to that id, whichever comes first. When a correlation id is used
    for a second order, the state is that of the order with the higher number.
    """

    def __init__(self) -> None:
        self._lives: dict[OrderKey, dict[int | None, _Life]] = {}
        #: which order has a number; if several claim it, the alphabet decides, not the arrival
        self._owner: dict[tuple[str | None, int], OrderKey] = {}
        #: where the next event of the same kind goes; for a while, since the next is seldom far
        self._places: dict[_Names, tuple[_Life, OrderKey]] = {}
        #: Grows when what is known already comes to belong to another order than before.
        self.regrouped = 0

    def add(self, row_id: int, event: OrderEvent) -> OrderKey:
        """Fold in one event, journalled as row *row_id*; return the order that changed."""
        names = (event.tenant, event.correlation_id, event.order_id)
        place = self._places.get(names)
        if place is None:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            place = self._places[names] = self._place(*names)
        life, changed = place
        life.add(row_id, event)
        return changed

    def __iter__(self) -> Iterator[OrderKey]:
        owned = {_nameless(*number) for number in self._owner}
        return (key for key in self._lives if key not in owned)

    def __contains__(self, key: OrderKey) -> bool:
        return key in self._lives

    def resolved(self, key: OrderKey) -> OrderKey:
        """Return the name of an order that was known by its number only, if it has one now."""
        number = key.correlation_id.removeprefix("#")
        is_number = number != key.correlation_id and number.isdecimal()
        return self._owner.get((key.tenant, int(number)), key) if is_number else key

    def state(self, key: OrderKey) -> OrderState:
        """Return what is known of one order; KeyError if nothing is."""
        lives = self._lives[key]
        newest = max((number for number in lives if number is not None), default=None)
        said = [lives[number] for number in {None, newest} & lives.keys()]
        if newest is not None and self._owner.get((key.tenant, newest)) == key:
            said += self._lives.get(_nameless(key.tenant, newest), {}).values()
        if len(said) == 1:
            return said[0].state(key, newest)
        together = _Life()
        for life in said:
            together.join(life)
        return together.state(key, newest)

    def _place(
        self, tenant: str | None, correlation_id: str | None, order_id: int | None
    ) -> tuple[_Life, OrderKey]:
        """Return where events with these names are folded, and the order that they change."""
        if correlation_id is None:
            assert order_id is not None  # noqa: S101 - events.decode sees to it
            key = _nameless(tenant, order_id)
            changed = self._owner.get((tenant, order_id), key)
        else:
            changed = key = OrderKey(tenant, correlation_id)
            if order_id is not None:
                self._claim(key, order_id)
        return self._lives.setdefault(key, {}).setdefault(order_id, _Life()), changed

    def _claim(self, key: OrderKey, order_id: int) -> None:
        """Note that an order has this number, unless another has the older right to it."""
        number = (key.tenant, order_id)
        before = self._owner.get(number)
        self._owner[number] = key if before is None else min(key, before)
        if self._owner[number] != before and (before or _nameless(*number) in self._lives):
            self.regrouped += 1
            self._places.clear()


def _nameless(tenant: str | None, order_id: int) -> OrderKey:
    """Return the key of an order of which only the number is known."""
    return OrderKey(tenant, f"#{order_id}")


_MOST_PLACES = 10_000

#: What an event calls its order: tenant, correlation id, order id.
_Names = tuple[str | None, str | None, int | None]

#: Which of two events is the later one: (AMQP timestamp, rank of the status).
_When = tuple[int, int]
_NEVER: _When = (-1, -1)


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


class _Life:
    """Everything the events of one order number say; each field only ever grows."""

    __slots__ = (
        "asked_for", "decisive", "errors", "first_us", "last_us", "link", "numbered", "ready_end",
        "ready_part", "total", "unnumbered",
    )  # fmt: skip

    def __init__(self) -> None:
        #: (finality, when) and what that event says
        self.decisive: tuple[int, _When, str, str, str] = (0, _NEVER, "", "", "")
        self.errors: tuple[_When, int | None] = (_NEVER, None)
        self.link: tuple[_When, str | None] = (_NEVER, None)
        #: finished sub-orders by their number
        self.numbered = _NO_IDS
        #: Older servers do not number their sub-orders: there each event counts (protocol.md 0.7).
        self.unnumbered = _NO_IDS
        #: Over REST one only learns that something is ready: counted where no message counts.
        self.asked_for = _NO_IDS
        self.total = -1
        self.ready_part = 0
        self.ready_end = 0
        self.first_us: int | None = None
        self.last_us: int | None = None

    def add(self, row_id: int, event: OrderEvent) -> None:
        """Take in one event."""
        # taken apart at once: one by one, the fields would cost as much as everything else here
        (
            received_at_us, timestamp_s, _, _, _, status, message, link, error_type, errors, total,
            sub_order_id, app_id, _, _,
        ) = event  # fmt: skip
        when = (timestamp_s or 0, _RANK_OF.get(status, _UNKNOWN_RANK))
        finality = _FINALITY_OF.get(status, 0)
        if finality >= self.decisive[0]:
            decisive = (finality, when, status, error_type or "", message or "")
            self.decisive = max(self.decisive, decisive)
        if errors is not None:
            self.errors = max(self.errors, (when, errors))
        if link:
            self.link = max(self.link, (when, link))
        if total is not None and total > self.total:
            self.total = total
        if status == _PART:
            self._add_part(row_id, app_id, sub_order_id)
        elif link and status in _ENDS_WITH_LINK:
            self.ready_end = max(self.ready_end, row_id)
            if app_id == REST_APP_ID:
                # The server was asked and has files, whatever announced itself before.
                self.ready_part = max(self.ready_part, row_id)
        us = received_at_us if timestamp_s is None else timestamp_s * 1_000_000
        if self.first_us is None or us < self.first_us:
            self.first_us = us
        if self.last_us is None or us > self.last_us:
            self.last_us = us

    def _add_part(self, row_id: int, app_id: str | None, sub_order_id: int | None) -> None:
        self.ready_part = max(self.ready_part, row_id)
        if app_id == REST_APP_ID:
            self.asked_for = _with(self.asked_for, row_id)
        elif sub_order_id is None:
            self.unnumbered = _with(self.unnumbered, row_id)
        else:
            self.numbered = _with(self.numbered, sub_order_id)

    def join(self, other: _Life) -> None:
        """Take in all that another life has taken in."""
        self.decisive = max(self.decisive, other.decisive)
        self.errors = max(self.errors, other.errors)
        self.link = max(self.link, other.link)
        self.numbered = _of_both(self.numbered, other.numbered)
        self.unnumbered = _of_both(self.unnumbered, other.unnumbered)
        self.asked_for = _of_both(self.asked_for, other.asked_for)
        self.total = max(self.total, other.total)
        self.ready_part = max(self.ready_part, other.ready_part)
        self.ready_end = max(self.ready_end, other.ready_end)
        known = [us for us in (self.first_us, other.first_us) if us is not None]
        self.first_us = min(known, default=None)
        known = [us for us in (self.last_us, other.last_us) if us is not None]
        self.last_us = max(known, default=None)

    def state(self, key: OrderKey, order_id: int | None) -> OrderState:
        """Say what it amounts to."""
        _, when, status, error_type, message = self.decisive
        done = len(self.numbered) + len(self.unnumbered) or len(self.asked_for)
        total = self.total if self.total >= 0 else None
        progress = min(done / total, 1.0) if total else None
        return OrderState(
            key=key,
            order_id=order_id,
            status=status,
            finished=status in FINISHED,
            progress=1.0 if status == OrderStatus.DONE else progress,
            suborders_done=done,
            suborders_total=total,
            errors=self.errors[1],
            error_type=error_type or None,
            message=message or None,
            download_link=self.link[1],
            # Each sub-order announces itself; only where none did is the end the announcement.
            ready_row=self.ready_part or self.ready_end,
            first_event=_utc(self.first_us),
            last_event=_utc(self.last_us),
            decided_at_s=max(when[0], 0),
        )


def _utc(us: int | None) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us or 0)
