"""What the table says: snapshot in, finished words out. HTML and text only lay them out.

Every string that came over the network is cleaned here, once: control and bidirectional
characters could rewrite the terminal or the neighbouring cells.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING

from regards_nb.display.possible import possible
from regards_nb.events import OrderStatus
from regards_nb.orders import GONE
from regards_nb.text import LIMIT_CHARS, clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from regards_nb.consumer import Health
    from regards_nb.display.possible import Action
    from regards_nb.display.sources import SnapshotView
    from regards_nb.orders import OrderKey, OrderState

#: More rows cost browser time at every repaint, and nobody reads them.
MAX_ROWS = 50
MAX_PROBLEMS = 5
NAME_CHARS = 48
TOOLTIP_CHARS = 1000
WAITS = "REGARDS waits for you to download"


class Tone(StrEnum):
    """What a row asks of the reader, the most urgent first."""

    #: The order stands still until the user acts.
    WAITS = "waits"
    #: Ended without anything to fetch.
    FAILED = "failed"
    #: Ended with some of the files.
    PARTLY = "partly"
    RUNNING = "running"
    DONE = "done"
    #: Deleted or expired: nothing is left of it.
    GONE = "gone"


SIGN = {
    Tone.WAITS: "▼",
    Tone.FAILED: "✕",
    Tone.PARTLY: "▲",
    Tone.RUNNING: "●",
    Tone.DONE: "✓",
    Tone.GONE: "○",
}
_URGENCY = {tone: rank for rank, tone in enumerate(Tone)}

_HEALTH = {
    "CONNECTING": (Tone.RUNNING, "connecting to RabbitMQ"),
    "CONSUMING": (Tone.DONE, "listening"),
    "POLLING": (Tone.DONE, "without RabbitMQ: REGARDS is asked now and then,"),
    "RECONNECTING": (Tone.PARTLY, "reconnecting to RabbitMQ"),
    "STOPPED": (Tone.PARTLY, "stopped, no new events"),
    "FAILED": (Tone.FAILED, "failed, no new events"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One order in words."""

    key: OrderKey
    #: The user's label, else the correlation id.
    name: str
    full_name: str
    #: ``#1234``, with the tenant where several are shown; empty before the order has a number.
    number: str
    tone: Tone
    status: str
    #: Between 0 and 1; None: unknown.
    fraction: float | None
    #: ``3/10``; done may exceed the total, which the server gives late.
    parts: str
    files: str
    #: Of the bytes of a running download; None: there is none, or its size is unknown.
    fetched: float | None
    remarks: tuple[str, ...]
    tooltip: str
    #: What makes sense now.
    actions: frozenset[Action]

    @property
    def title(self) -> str:
        """Number and name in one string."""
        return f"{self.number} {self.name}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Everything on the screen, in words."""

    #: The most urgent orders, most urgent first, at most ``MAX_ROWS``.
    rows: tuple[Row, ...]
    headline: str
    #: The counts worth a colour, the most urgent first.
    counts: tuple[tuple[Tone, str], ...]
    health: str
    health_tone: Tone
    #: Counts what the table leaves out, by the filter or by its length; empty if nothing.
    more: str
    problems: tuple[str, ...]


def board(snapshot: SnapshotView, *, only: str = "") -> Board:
    """Put a snapshot into words.

    Headline and counts are about all orders; *only* limits the rows to those that have all its
    words in their name, number, status or message.
    """
    orders = sorted(snapshot.orders, key=_rank)
    words = only.casefold().split()
    shown = [order for order in orders if _has(order, words)] if words else orders
    several_tenants = len({order.tenant for order in orders}) > 1
    finished = sum(order.finished for order in orders)
    noun = "order" if len(orders) == 1 else "orders"
    health_tone, health = _health(snapshot.health, snapshot.token_ends_at)
    return Board(
        rows=tuple(row(order, with_tenant=several_tenants) for order in shown[:MAX_ROWS]),
        headline=f"{finished} of {len(orders)} {noun} finished" if orders else "No orders to show",
        counts=tuple(_counts(orders)),
        health=health,
        health_tone=health_tone,
        more=" · ".join(filter(None, (_matches(shown, orders, only), _more(shown[MAX_ROWS:])))),
        problems=tuple(_problems(snapshot)),
    )


def row(order: OrderState, *, with_tenant: bool = False) -> Row:
    """Put one order into words."""
    name = order.label or order.correlation_id
    number = "" if order.order_id is None else f"#{order.order_id}"
    if with_tenant and order.tenant:
        number = f"{number} {clean(order.tenant, NAME_CHARS)}".strip()
    return Row(
        key=order.key,
        name=clean(name, NAME_CHARS),
        full_name=clean(name, TOOLTIP_CHARS),
        number=number,
        tone=tone(order),
        status=clean(order.status, NAME_CHARS),
        fraction=_fraction(order),
        parts=_parts(order),
        files=_files(order),
        fetched=_fetched(order),
        remarks=tuple(_remarks(order)),
        tooltip=clean(order.message or "", TOOLTIP_CHARS),
        actions=possible(order),
    )


def tone(order: OrderState) -> Tone:
    """Return what the order asks of the reader."""
    if order.waits_for_download:
        return Tone.WAITS
    if not order.finished:
        return Tone.RUNNING
    if order.status in GONE:
        return Tone.GONE
    if order.status == OrderStatus.DONE:
        return Tone.DONE
    # FAILED with a link is a partial success (protocol.md 0.4)
    return Tone.PARTLY if order.download_link else Tone.FAILED


def size(n_bytes: int) -> str:
    """Return a number of bytes as people say it.

    >>> size(0), size(999), size(1_500_000), size(2 * 10**12)
    ('0 B', '999 B', '1.5 MB', '2.0 TB')
    """
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # 999.95 would be printed as 1000.0
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{n_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def clock(moment: datetime, *, after: datetime | None = None) -> str:
    """Return the time, with the day if that is another than that of *after*.

    Kernel and browser may be in different zones, so it is UTC, and says so.
    """
    moment = moment.astimezone(UTC)
    day = f"{moment:%Y-%m-%d} " if after is not None and moment.date() != after.date() else ""
    return f"{day}{moment:%H:%M:%S} UTC"


def _rank(order: OrderState) -> tuple[int, float, bool, int, str]:
    """Sort by urgency; then what ended last first, and what runs by number.

    Not by the last event of running orders: rows must not jump about while one reads them.
    """
    number = order.order_id
    ended = -order.last_event.timestamp() if order.finished else 0.0
    return _URGENCY[tone(order)], ended, number is None, number or 0, order.correlation_id


def _fraction(order: OrderState) -> float | None:
    """Follow the counts shown beside the bar where there are any, so that both say the same."""
    if order.suborders_total:
        value = order.suborders_done / order.suborders_total
    elif order.status == OrderStatus.DONE:
        value = 1.0
    elif order.progress is not None:
        value = order.progress
    else:
        return None
    # Written so that a NaN ends at 0.
    return min(1.0, value) if value > 0 else 0.0


def _parts(order: OrderState) -> str:
    if order.suborders_total:
        return f"{order.suborders_done}/{order.suborders_total}"
    if order.finished:
        return str(order.suborders_done) if order.suborders_done else ""
    return f"{order.suborders_done}/?"


def _files(order: OrderState) -> str:
    if not order.downloaded_files and not order.files_total:
        return ""
    files, n_bytes = str(order.downloaded_files), size(order.downloaded_bytes)
    if order.files_total is not None:
        files = f"{files}/{order.files_total}"
    # a download that repairs may count only what it still has to fetch
    if order.bytes_total is not None and order.bytes_total > order.downloaded_bytes:
        n_bytes = f"{n_bytes} of {size(order.bytes_total)}"
    noun = "file" if files in {"1", "1/1", "0/1"} else "files"
    return f"{files} {noun}, {n_bytes}"


def _fetched(order: OrderState) -> float | None:
    if not order.downloading or not order.bytes_total:
        return None
    return min(order.downloaded_bytes / order.bytes_total, 1.0)


def _remarks(order: OrderState) -> Iterator[str]:
    if order.waits_for_download:
        yield WAITS
    if order.downloading:
        yield "downloading"
    if order.error_type:
        yield clean(order.error_type, NAME_CHARS)
    if order.errors:
        yield f"{order.errors} error{'' if order.errors == 1 else 's'}"
    if order.message and (message := clean(order.message)):
        yield message
    if order.expires_at and (order.waits_for_download or not order.finished):
        yield f"kept until {order.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _health(health: Health, token_ends_at: datetime | None) -> tuple[Tone, str]:
    state = health.state.value
    health_tone, words = _HEALTH.get(state, (Tone.PARTLY, clean(state, NAME_CHARS)))
    since = health.since.astimezone(UTC)
    parts = [f"{words} since {since:%Y-%m-%d %H:%M} UTC"]
    if health.reason and state != "CONSUMING":
        parts = [f"{parts[0]}: {clean(health.reason)}"]
    if health.last_event:
        parts.append(f"last event {clock(health.last_event, after=since)}")
    if health.queue_depth:
        parts.append(f"{health.queue_depth} in the queue")
    if token_ends_at:
        parts.append(f"REST token until {clock(token_ends_at, after=since)}")
    return health_tone, " · ".join(parts)


def _counts(orders: Sequence[OrderState]) -> Iterator[tuple[Tone, str]]:
    tones = Counter(tone(order) for order in orders)
    downloading = sum(order.downloading for order in orders)
    for which, words in (
        (Tone.WAITS, "REGARDS waits for you: {} to download"),
        (Tone.FAILED, "{} failed"),
        (Tone.PARTLY, "{} incomplete"),
        (Tone.RUNNING, "{} running"),
    ):
        if tones[which]:
            yield which, words.format(tones[which])
    if downloading:
        yield Tone.RUNNING, f"{downloading} downloading"


def _has(order: OrderState, words: Sequence[str]) -> bool:
    # Not in a correlation id behind a label: made-up ones would match by chance.
    name = order.correlation_id.casefold()
    seen = (
        order.label or name,
        f"#{order.order_id}",
        order.tenant,
        order.status,
        tone(order),
        order.error_type,
        order.message,
    )
    text = " ".join(filter(None, seen)).casefold()
    return all(word in text or word == name for word in words)


def _matches(shown: Sequence[OrderState], orders: Sequence[OrderState], only: str) -> str:
    if not only.strip():
        return ""
    found = f"{len(shown)} of {len(orders)}" if shown else f"none of {len(orders)}"
    return f"{found} orders match \u201c{clean(only, NAME_CHARS)}\u201d"


def _more(hidden: Sequence[OrderState]) -> str:
    if not hidden:
        return ""
    by_status = Counter(clean(order.status, NAME_CHARS) for order in hidden).most_common(6)
    statuses = ", ".join(f"{count} {status}" for status, count in by_status)
    return f"… and {len(hidden)} more order{'' if len(hidden) == 1 else 's'} ({statuses})"


def _problems(snapshot: SnapshotView) -> Iterator[str]:
    if snapshot.rejected:
        noun = "message was" if snapshot.rejected == 1 else "messages were"
        yield f"{snapshot.rejected} {noun} not understood; see tracker.rejected"
    often = Counter(snapshot.background_errors)
    for problem in list(often)[-MAX_PROBLEMS:]:
        times = f" ({often[problem]} times)" if often[problem] > 1 else ""
        yield clean(problem, 2 * LIMIT_CHARS) + times
