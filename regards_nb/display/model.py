"""The table as values: a snapshot of the tracker goes in, finished texts come out.

HTML, text, widgets and terminal lay out the same `TableModel`, so they agree. Every string from
the network is cleaned here once; HTML escapes it after that.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from regards_nb.consumer import HealthState
from regards_nb.display.facts import (
    RANK,
    OrderFacts,
    Severity,
    fraction_of,
    had_files,
    severity_of,
)
from regards_nb.events import OrderStatus
from regards_nb.orders import GONE
from regards_nb.text import LINE_CHARS, clean, counted, size
from regards_nb.tracker import HOW_WITHOUT_CLIENT, advice_for, behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from regards_nb.consumer import Health
    from regards_nb.frames import States
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker import Snapshot

    #: Returns the orders that a view shows; None means all. It is called for each repaint,
    #: because an order that is waited for may appear later.
    KeysOf = Callable[[], Iterable[OrderKey] | None]

#: More rows would cost browser time at every repaint.
MAX_ROWS = 50
#: From this number of orders on there is a filter.
MIN_TO_FILTER = 6
MAX_PROBLEMS = 5
NAME_CHARS = 48
TOOLTIP_CHARS = 1000
#: Elapsed times are repainted this often when nothing else changes.
TICK_S = 5.0
WAITS = "REGARDS waits for you to download"
NO_MATCH = "no file matches its filters (data_types, filename_regexp)"


# -- the texts of the display


SIGN = {
    Severity.WAITS: "▼",
    Severity.FAILED: "✕",
    Severity.INCOMPLETE: "▲",
    Severity.RUNNING: "●",
    Severity.DONE: "✓",
    Severity.GONE: "○",
}


class Action(StrEnum):
    """The requests that buttons make."""

    DOWNLOAD = "download"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The texts of one order."""

    key: OrderKey
    #: The user's label, else the correlation id.
    name: str
    #: The whole name and the whole message of REGARDS, where they are shown cut; else empty.
    full_name: str
    full_message: str
    #: ``#1234``, with the tenant where several are shown; empty before the order has a number.
    number: str
    severity: Severity
    status: str
    #: Between 0 and 1; None: unknown.
    fraction: float | None
    #: ``3/10``; done may exceed the total, because the server gives the total late.
    parts: str
    files: str
    #: How long the order runs or ran, and how long it probably still takes.
    timing: str
    #: Fraction of the bytes of a running download; None: no download, or its size is unknown.
    fetched: float | None
    remarks: tuple[str, ...]
    #: The actions that are allowed now.
    actions: frozenset[Action]

    @property
    def title(self) -> str:
        """Number and name in one string."""
        return f"{self.number} {self.name}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableModel:
    """All texts of one view."""

    #: The most urgent orders, most urgent first, at most ``MAX_ROWS``.
    rows: tuple[Row, ...]
    #: Whether there are enough orders for a filter.
    has_filter: bool
    headline: str
    #: Of all orders that are unfinished, and those that ran beside them; None: unknown.
    fraction: float | None
    #: Parts, elapsed time, rate and remaining time of the same orders.
    overall: str
    #: Says why nothing moves, and what to do; empty while something moves.
    standstill: str
    #: The counts that are shown in colour, the most urgent first.
    counts: tuple[tuple[Severity, str], ...]
    health: str
    health_severity: Severity
    #: Counts the orders that the filter or the length of the table hides; empty if none.
    more: str
    problems: tuple[str, ...]


def table_model(
    snapshot: Snapshot,
    *,
    only: str = "",
    rates: DownloadRates | None = None,
    facts: OrderFacts | None = None,
    now: datetime | None = None,
) -> TableModel:
    """Return the texts of a snapshot.

    *only* limits the rows to the orders that have all its words in their name, number, status or
    message; the texts above the table are about all orders. A picture that is drawn once has no
    *rates* and no *facts*.
    """
    now = now or datetime.now(UTC)
    rates = rates or DownloadRates()
    facts = facts or OrderFacts()
    orders = snapshot.orders
    known = facts.of(orders)
    # By severity; then ended orders by their end, latest first, and others by number: rows must not
    # move while a user reads them.
    ended = np.where(known["is_finished"], -known["last_event"], 0.0)
    ranked = np.lexsort([known["number"], ended, known["severity"]])
    words = only.casefold().split()
    shown = ranked[facts.match(words)[ranked]] if words else ranked
    is_mixed = bool(np.ptp(known["tenant"])) if orders else False
    own = known.compress(~known["is_refused"])
    health_severity, health = _health(snapshot.health, snapshot.obstacle)
    current = _current_orders(own)
    fraction = _mean(current["fraction"])
    standstill = "; ".join(snapshot.acting) or _standstill(own, snapshot, now)
    over = None if standstill else fraction
    hidden = facts.statuses(known["status"][shown[MAX_ROWS:]])
    return TableModel(
        rows=tuple(
            row_of(
                order,
                with_tenant=is_mixed,
                can_download=snapshot.can_download,
                rate=rates.of(order.key),
                now=now,
                line=snapshot.line,
            )
            for order in orders.take(shown[:MAX_ROWS])
        ),
        has_filter=len(orders) >= MIN_TO_FILTER,
        headline=_headline(own, snapshot),
        fraction=fraction,
        overall=_overall(current, orders.where("downloading"), over, rates, now),
        standstill=standstill,
        counts=tuple(_counts(own)),
        health=health,
        health_severity=health_severity,
        more=" · ".join(filter(None, (_found(len(shown), len(orders), only), _hidden(hidden)))),
        problems=tuple(_problems(snapshot)),
    )


def row_of(
    order: OrderState,
    *,
    with_tenant: bool = False,
    can_download: bool = True,
    rate: float | None = None,
    now: datetime | None = None,
    line: Sequence[OrderState] = (),
) -> Row:
    """Return the texts of one order; *rate* is that of its download, in bytes per second."""
    remarks = (behind([order], line), *_remarks(order, can_download=can_download))
    name = order.label or order.correlation_id
    number = "" if order.order_id is None else f"#{order.order_id}"
    if with_tenant and order.tenant:
        number = f"{number} {clean(order.tenant, NAME_CHARS)}".strip()
    return Row(
        key=order.key,
        name=clean(name, NAME_CHARS),
        full_name=_uncut(name, clean(name, NAME_CHARS)),
        full_message=_uncut(order.message or "", clean(order.message or "")),
        number=number,
        severity=severity_of(order),
        status=clean(order.status, NAME_CHARS),
        fraction=fraction_of(order),
        parts=_parts(order),
        files=_files(order, rate),
        timing=_timing(order, rate, now or datetime.now(UTC)),
        fetched=_fetched(order),
        remarks=tuple(filter(None, remarks)),
        actions=allowed_actions(order),
    )


def _uncut(whole: str, shown: str) -> str:
    """Return a text that is shown cut; empty if all of it is shown."""
    text = clean(whole, TOOLTIP_CHARS)
    return "" if text == shown else text


def allowed_actions(order: OrderState) -> frozenset[Action]:
    """Return the actions that REGARDS allows in this status (protocol.md 1.2).

    The server may still refuse: it can know of a pause or a running job of which no message told.
    """
    if order.order_id is None or order.is_refused:
        # A denied order has no number, and the server addresses orders by number.
        return frozenset()
    is_paused = order.status == OrderStatus.PAUSED
    has_files = order.waits_for_download or had_files(order)
    allowed = {
        Action.DOWNLOAD: has_files and not order.downloading and order.status not in GONE,
        Action.PAUSE: not order.finished and not is_paused,
        Action.RESUME: is_paused,
        Action.RETRY: order.status in {OrderStatus.FAILED, OrderStatus.DONE_WITH_WARNING},
        Action.CANCEL: not order.finished,
    }
    return frozenset(action for action, is_allowed in allowed.items() if is_allowed)


def duration(seconds: float) -> str:
    """Return a time span in its two largest units; only the largest below an hour.

    >>> duration(7.6), duration(200), duration(7500), duration(100 * 3600)
    ('7 s', '3 min', '2 h 5 min', '4 d 4 h')
    """
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"


def clock(moment: datetime, *, after: datetime | None = None) -> str:
    """Return the time in UTC, with the date if *after* has another date.

    Kernel and browser may be in different time zones, so the text names the zone.
    """
    moment = moment.astimezone(UTC)
    day = f"{moment:%Y-%m-%d} " if after is not None and moment.date() != after.date() else ""
    return f"{day}{moment:%H:%M:%S} UTC"


# -- one order


def _parts(order: OrderState) -> str:
    if order.suborders_total:
        return f"{order.suborders_done}/{order.suborders_total}"
    # Over REST fewer may have been seen than there were.
    return "" if order.finished else f"{order.suborders_done}/?"


def _files(order: OrderState, rate: float | None) -> str:
    if not order.downloaded_files and not order.files_total:
        return ""
    files, n_bytes = str(order.downloaded_files), size(order.downloaded_bytes)
    if order.files_total is not None:
        files = f"{files}/{order.files_total}"
    # A later download may count only the files that it still has to fetch.
    if order.bytes_total is not None and order.bytes_total > order.downloaded_bytes:
        n_bytes = f"{n_bytes} of {size(order.bytes_total)}"
    at = f", {size(int(rate))}/s" if rate is not None else ""
    return f"{counted(files, 'file')}, {n_bytes}{at}"


def _timing(order: OrderState, rate: float | None, now: datetime) -> str:
    """Return elapsed and remaining time; nothing for an order without any event."""
    if order.finished and not order.downloading:
        took_s = (order.last_event - order.first_event).total_seconds()
        return f"took {duration(took_s)}" if took_s >= 1 else ""
    elapsed = duration((now - order.first_event).total_seconds())
    remaining_s = _remaining_s(order, rate, now)
    return elapsed if remaining_s is None else f"{elapsed}, about {duration(remaining_s)} left"


def _remaining_s(order: OrderState, rate: float | None, now: datetime) -> float | None:
    """Return how long the order will take, by its download or by its sub-orders so far."""
    if order.downloading:
        if not rate or order.bytes_total is None:
            return None
        return max(order.bytes_total - order.downloaded_bytes, 0) / rate
    does_wait = order.waits_for_download or order.is_refused or order.status == OrderStatus.PAUSED
    if does_wait or order.finished:
        return None
    return _extrapolated_s((now - order.first_event).total_seconds(), fraction_of(order))


def _extrapolated_s(elapsed_s: float, fraction: float | None) -> float | None:
    if not fraction or fraction >= 1 or elapsed_s <= 0:
        return None
    return elapsed_s * (1 - fraction) / fraction


def _fetched(order: OrderState) -> float | None:
    if not order.downloading or not order.bytes_total:
        return None
    return min(order.downloaded_bytes / order.bytes_total, 1.0)


def _missing(order: OrderState, *, can_download: bool) -> str:
    if not (order.lacks_names or order.lacks_files):
        return ""
    if not can_download:
        return f"files are missing: {HOW_WITHOUT_CLIENT}"
    does = "names the missing files" if order.lacks_names else "tries the missing files again"
    return f"tracker.download({order.order_id}) {does}"


def _remarks(order: OrderState, *, can_download: bool) -> Iterator[str]:
    if order.is_refused:
        yield "belongs to another user"
    if order.waits_for_download:
        yield clean(order.download_note, LINE_CHARS) or WAITS
    yield _missing(order, can_download=can_download)
    if order.held_by:
        yield f"{order.held_by} is downloading it"
    elif order.downloading:
        yield clean(order.download_note) or "downloading"
    if order.elsewhere:
        yield f"{order.elsewhere}; download(again=True) fetches them"
    if order.error_type:
        is_empty = order.download_link and not had_files(order)
        yield NO_MATCH if is_empty else clean(order.error_type, NAME_CHARS)
    if order.errors:
        yield counted(order.errors, "error")
    if order.message and (message := clean(order.message)):
        yield message
    if order.expires_at and (order.waits_for_download or not order.finished):
        yield f"kept until {order.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


# -- all orders


def _headline(own: np.ndarray[Any, Any], snapshot: Snapshot) -> str:
    """Return how many of the user's *own* orders have ended."""
    n_orders, n_finished = len(snapshot.orders), own["is_finished"].sum()
    n_wanted = max(n_orders, snapshot.n_wanted) - (n_orders - len(own))
    if n_wanted:
        return f"{counted(f'{n_finished} of {n_wanted}', 'order')} finished"
    if n_orders:
        return "No orders of yours"
    return "No event of these orders so far" if snapshot.n_known else "No orders"


_HEALTH = {
    HealthState.CONNECTING: (Severity.RUNNING, "connecting to RabbitMQ"),
    HealthState.CONSUMING: (Severity.DONE, "listening"),
    # Its reason says how often REGARDS is asked.
    HealthState.POLLING: (Severity.DONE, ""),
    HealthState.READING: (Severity.DONE, "reading the journal of another kernel"),
    HealthState.RECONNECTING: (Severity.INCOMPLETE, "reconnecting to RabbitMQ"),
    # The user's own stop() is no warning.
    HealthState.STOPPED: (Severity.GONE, "not listening"),
    HealthState.FAILED: (Severity.FAILED, "failed, no new events"),
}


def _health(health: Health, obstacle: str) -> tuple[Severity, str]:
    state, since = health.state, health.since.astimezone(UTC)
    severity, words = _HEALTH[state]
    if state is HealthState.READING and health.reason:
        severity = Severity.INCOMPLETE
    reason = clean(health.reason or "", LINE_CHARS)
    if state is HealthState.RECONNECTING and health.address is None:
        words = "REGARDS does not answer, and is asked again,"  # there is no RabbitMQ
    if state is HealthState.POLLING:
        words = reason
    parts = [f"{words} since {since:%Y-%m-%d %H:%M} UTC"]
    if obstacle and severity is Severity.DONE:
        severity, parts = Severity.INCOMPLETE, [clean(obstacle, LINE_CHARS)]
    elif reason and state not in {HealthState.CONSUMING, HealthState.POLLING}:
        parts = [f"{parts[0]}: {reason}"]
    elif state is HealthState.STOPPED:
        parts.append("tracker.start() listens")
    if health.last_event:
        parts.append(f"last event {clock(health.last_event, after=since)}")
    if health.queue_depth:
        parts.append(f"{health.queue_depth} in the queue")
    return severity, " · ".join(parts)


def _current_orders(facts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the unfinished orders, and those that ended after the first of them began.

    Orders of earlier weeks would fill the bar. When all have ended, all are current.
    """
    is_open = _is_open(facts)
    if not is_open.any():
        return facts
    began_s = facts["first_event"][is_open].min()
    # Of whole rows, compress() takes a tenth of the time of facts[...].
    return facts.compress(is_open | (facts["last_event"] > began_s))


def _is_open(facts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return whether the orders go on, at REGARDS or with their download."""
    is_open: np.ndarray[Any, Any] = ~facts["is_finished"] | facts["is_downloading"]
    return is_open


def _mean(fractions: np.ndarray[Any, Any]) -> float | None:
    """Return the mean, with 0 for an unknown fraction; None if all are unknown."""
    if np.isnan(fractions).all():
        return None
    return float(np.nansum(fractions) / len(fractions))


def _overall(
    current: np.ndarray[Any, Any],
    downloads: States,
    fraction: float | None,
    rates: DownloadRates,
    now: datetime,
) -> str:
    """Return parts, elapsed time, rate and remaining time of the current orders.

    Without the *fraction* that is over, no remaining time is given.
    """
    if not len(current):
        return ""
    n_open = int(_is_open(current).sum())
    n_total = current["total"].sum()
    ended_s = now.timestamp() if n_open else current["last_event"].max()
    elapsed_s = float(ended_s - current["first_event"].min())
    words = [
        counted(f"{current['done'].sum()}/{n_total}", "part") if n_total else "",
        duration(elapsed_s) if elapsed_s >= 1 else "",
    ]
    if rate := rates.total():
        words.append(f"{size(int(rate))}/s")
    if downloads and len(downloads) == n_open:
        remaining = [_remaining_s(order, rates.of(order.key), now) for order in downloads]
        remaining_s = None if None in remaining else max(filter(None, remaining), default=None)
    else:
        is_running = current["severity"] == RANK[Severity.RUNNING]
        runs = (is_running & ~current["is_paused"]).any()
        # How long the user takes to download is not known.
        waits = (current["severity"] == RANK[Severity.WAITS]).any()
        remaining_s = _extrapolated_s(elapsed_s, fraction) if runs and not waits else None
    if remaining_s is not None:
        words.append(f"about {duration(remaining_s)} left")
    return " · ".join(filter(None, words))


#: After this time without an event, the view says so.
QUIET_S = 600.0


def _standstill(facts: np.ndarray[Any, Any], snapshot: Snapshot, now: datetime) -> str:
    """Say why nothing moves, and what to do; nothing while something moves."""
    unfinished = facts.compress(~facts["is_finished"])
    if not len(unfinished) or facts["is_downloading"].any():
        return ""
    if unfinished["is_paused"].all():
        paused = _named(snapshot.orders.without("finished").without("is_refused"))
        return f"Nothing moves: paused {paused}; tracker.resume() continues"
    if snapshot.blocking:
        call = "tracker.wait(download=True)" if snapshot.can_download else ""
        return advice_for(snapshot.blocking, call, with_tenant=bool(np.ptp(facts["tenant"])))
    if snapshot.health.state is HealthState.STOPPED:
        if snapshot.health.reason:
            return f"Nothing moves here: {clean(snapshot.health.reason, LINE_CHARS)}"
        return "Nothing moves here: the tracker is stopped; tracker.start() continues"
    quiet_s = now.timestamp() - unfinished["last_event"].max()
    return f"No event from REGARDS for {duration(quiet_s)}" if quiet_s >= QUIET_S else ""


def _named(orders: Sequence[OrderState]) -> str:
    """Name up to three orders, and count the others."""
    names = [
        clean(f"#{order.order_id} {order.label or ''}", NAME_CHARS)
        if order.order_id is not None
        else clean(order.correlation_id, NAME_CHARS)
        for order in orders[:3]
    ]
    more = f" and {len(orders) - 3} more" if len(orders) > 3 else ""
    return f"order{'' if len(orders) == 1 else 's'} {', '.join(names)}{more}"


def _counts(facts: np.ndarray[Any, Any]) -> Iterator[tuple[Severity, str]]:
    counts = np.bincount(facts["severity"], minlength=len(RANK))
    # Of an order with files that wait, the first text counts.
    n_paused = (facts["is_paused"] & (facts["severity"] == RANK[Severity.RUNNING])).sum()
    counts[RANK[Severity.RUNNING]] -= n_paused
    n_downloading = facts["is_downloading"].sum()
    for severity, words in (
        (Severity.WAITS, "REGARDS waits for you: {} to download"),
        (Severity.FAILED, "{} failed"),
        (Severity.INCOMPLETE, "{} incomplete"),
        (Severity.RUNNING, "{} running"),
    ):
        if n := counts[RANK[severity]]:
            yield severity, words.format(n)
    if n_paused:
        yield Severity.RUNNING, f"{n_paused} paused"
    if n_downloading:
        yield Severity.RUNNING, f"{n_downloading} downloading"


def _found(n_shown: int, n_orders: int, only: str) -> str:
    if not only.strip():
        return ""
    found = f"{n_shown} of {n_orders}" if n_shown else f"none of {n_orders}"
    return f"{counted(found, 'order')} match \u201c{clean(only, NAME_CHARS)}\u201d"


def _hidden(statuses: Counter[str]) -> str:
    if not statuses:
        return ""
    of_each = (f"{n} {clean(status, NAME_CHARS)}" for status, n in statuses.most_common(6))
    return f"… and {counted(statuses.total(), 'more order')} ({', '.join(of_each)})"


def _problems(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.rejected:
        yield f"{counted(snapshot.rejected, 'message')} could not be decoded; see tracker.rejected"
    counts = Counter(snapshot.background_errors)
    for problem in list(counts)[-MAX_PROBLEMS:]:
        times = f" ({counts[problem]} times)" if counts[problem] > 1 else ""
        yield clean(problem, LINE_CHARS) + times


class DownloadRates:
    """Measures how fast downloads are, from the snapshots that one view shows."""

    #: The rate is the mean over this time, and 0 when no byte has come for the shorter time.
    WINDOW_S, STILL_S = 15.0, 2.0

    def __init__(self) -> None:
        self._samples: dict[OrderKey, deque[tuple[float, int]]] = {}

    def update(self, orders: Iterable[OrderState], now_s: float) -> None:
        """Take a sample of each running download, at a time of a monotonic clock."""
        own = (order for order in orders if order.downloading and not order.held_by)
        running = {order.key: order.downloaded_bytes for order in own}
        self._samples = {key: self._samples.get(key, deque()) for key in running}
        for key, samples in self._samples.items():
            samples.append((now_s, running[key]))
            while len(samples) > 2 and now_s - samples[1][0] >= self.WINDOW_S:
                samples.popleft()

    def of(self, key: OrderKey) -> float | None:
        """Return the bytes per second of a download; None until there are two samples."""
        samples = self._samples.get(key)
        if samples is None or len(samples) < 2 or samples[-1][0] - samples[0][0] < 0.5:
            return None
        (begin_s, before), (end_s, after) = samples[0], samples[-1]
        grew_s = next(at_s for at_s, n_bytes in samples if n_bytes >= after)
        if end_s - grew_s > self.STILL_S:
            return 0.0
        return max(after - before, 0) / (end_s - begin_s)

    def total(self) -> float:
        """Return the bytes per second of all downloads."""
        return sum(filter(None, map(self.of, self._samples)))
