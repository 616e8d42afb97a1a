"""What the events mean: a pure fold, event after event, into the state of each order.

Delivery is at least once and the order of arrival is not the order of life (protocol.md 0.5), so
everything here is a maximum, a minimum or a set: the same events in any order, any of them
repeated, give the same state. What decides between two events is the AMQP property ``timestamp``
and, within one second, the rank of the status; never which arrived first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
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


class OrderKey(NamedTuple):
    """What identifies an order before it has a number."""

    tenant: str | None
    correlation_id: str


class FileState(StrEnum):
    """How far one file of an order has come on this side."""

    #: In the manifest; not fetched yet.
    LISTED = "LISTED"
    #: In the workspace under its final name, size and checksum as in the manifest.
    VERIFIED = "VERIFIED"
    #: In the workspace; the manifest gives no checksum, so only size and CRC were checked.
    UNVERIFIED = "UNVERIFIED"
    #: Could not be had; ``error`` says why.
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of an order: what the manifest says (protocol.md 1.4), and where it is now."""

    order_id: int
    #: The server's id: the way to fetch the file alone, also after the zip (protocol.md 1.0, 7).
    file_id: int
    name: str
    size_bytes: int | None = None
    md5: str | None = None
    product_id: str | None = None
    #: Absolute path under its final name, once it is there.
    path: str | None = None
    state: FileState = FileState.LISTED
    error: str | None = None


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

    def add(self, row_id: int, event: OrderEvent) -> OrderKey:
        """Fold in one event, journalled as row *row_id*; return the order that changed."""
        key = self._key(event)
        life = self._lives.setdefault(key, {}).setdefault(event.order_id, _Life())
        life.add(row_id, event)
        return self._owner.get((key.tenant, event.order_id or -1), key)

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
        life = _Life()
        for number in {None, newest} & lives.keys():
            life.join(lives[number])
        if newest is not None and self._owner.get((key.tenant, newest)) == key:
            for other in self._lives.get(_nameless(key.tenant, newest), {}).values():
                life.join(other)
        return life.state(key, newest)

    def _key(self, event: OrderEvent) -> OrderKey:
        if event.correlation_id is None:
            assert event.order_id is not None  # noqa: S101 - events.decode sees to it
            return _nameless(event.tenant, event.order_id)
        key = OrderKey(event.tenant, event.correlation_id)
        if event.order_id is not None:
            number = (event.tenant, event.order_id)
            self._owner[number] = min(key, self._owner.get(number, key))
        return key


def _nameless(tenant: str | None, order_id: int) -> OrderKey:
    """Return the key of an order of which only the number is known."""
    return OrderKey(tenant, f"#{order_id}")


#: Which of two events is the later one: (AMQP timestamp, rank of the status).
_When = tuple[int, int]
_NEVER: _When = (-1, -1)


class _Life:
    """Everything the events of one order number say; each field only ever grows."""

    __slots__ = (
        "decisive", "errors", "first_us", "last_us", "link", "ready_end", "ready_part",
        "sub_order_ids", "sub_orders_asked_for", "sub_orders_unnamed", "total",
    )  # fmt: skip

    def __init__(self) -> None:
        #: (finality, when) and what that event says
        self.decisive: tuple[int, _When, str, str, str] = (0, _NEVER, "", "", "")
        self.errors: tuple[_When, int | None] = (_NEVER, None)
        self.link: tuple[_When, str | None] = (_NEVER, None)
        self.sub_order_ids: set[int] = set()
        #: Older servers do not number their sub-orders: there each event counts (protocol.md 0.7).
        self.sub_orders_unnamed: set[int] = set()
        #: Over REST one only learns that something is ready: counted where no message counts.
        self.sub_orders_asked_for: set[int] = set()
        self.total = -1
        self.ready_part = 0
        self.ready_end = 0
        self.first_us: int | None = None
        self.last_us: int | None = None

    def add(self, row_id: int, event: OrderEvent) -> None:
        """Take in one event."""
        timestamp_s = 0 if event.timestamp_s is None else event.timestamp_s
        when = (timestamp_s, _RANK.get(event.status, _UNKNOWN_RANK))  # type: ignore[call-overload]
        self.decisive = max(
            self.decisive,
            (
                FINALITY.get(event.status, 0),  # type: ignore[call-overload]
                when,
                event.status,
                event.error_type or "",
                event.message or "",
            ),
        )
        if event.errors is not None:
            self.errors = max(self.errors, (when, event.errors))
        if event.download_link:
            self.link = max(self.link, (when, event.download_link))
        if event.total_sub_orders is not None:
            self.total = max(self.total, event.total_sub_orders)
        if event.status == OrderStatus.SUBORDER_DONE:
            self.ready_part = max(self.ready_part, row_id)
            if event.app_id == REST_APP_ID:
                self.sub_orders_asked_for.add(row_id)
            elif event.sub_order_id is None:
                self.sub_orders_unnamed.add(row_id)
            else:
                self.sub_order_ids.add(event.sub_order_id)
        elif event.status in _ENDS_WITH_LINK and event.download_link:
            self.ready_end = max(self.ready_end, row_id)
            if event.app_id == REST_APP_ID:
                # The server was asked and has files, whatever announced itself before.
                self.ready_part = max(self.ready_part, row_id)
        us = event.received_at_us if event.timestamp_s is None else event.timestamp_s * 1_000_000
        self.first_us = us if self.first_us is None else min(self.first_us, us)
        self.last_us = us if self.last_us is None else max(self.last_us, us)

    def join(self, other: _Life) -> None:
        """Take in all that another life has taken in."""
        self.decisive = max(self.decisive, other.decisive)
        self.errors = max(self.errors, other.errors)
        self.link = max(self.link, other.link)
        self.sub_order_ids |= other.sub_order_ids
        self.sub_orders_unnamed |= other.sub_orders_unnamed
        self.sub_orders_asked_for |= other.sub_orders_asked_for
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
        done = len(self.sub_order_ids) + len(self.sub_orders_unnamed)
        done = done or len(self.sub_orders_asked_for)
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
