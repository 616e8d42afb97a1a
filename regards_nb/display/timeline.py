"""The orders as swim lanes over time. matplotlib is imported by the first plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from regards_nb.display.arrivals import arrivals
from regards_nb.display.drawing import drawable, dress, pyplot, say_nothing_yet
from regards_nb.events import OrderStatus
from regards_nb.orders import FINISHED
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

#: More lanes are thinner than a pixel each; the youngest are shown.
MAX_LANES = 400
MAX_LABELS = 40
LABEL_CHARS = 30
#: A message that came later than this after it was sent had been waiting in the queue.
PROMPT = timedelta(seconds=5)

_RUNNING, _GOOD, _PARTLY, _BAD, _FETCHED = "#1976d2", "#2e8b45", "#c77700", "#d9363e", "#6a51a3"
_GREY = "#777777"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How one kind of moment is drawn."""

    label: str
    marker: str
    colour: str
    area: float


_MARKS: dict[str, Mark] = {
    OrderStatus.GRANTED: Mark(label="granted", marker="|", colour=_RUNNING, area=90),
    OrderStatus.SUBORDER_DONE: Mark(label="part ready", marker="o", colour=_RUNNING, area=26),
    OrderStatus.DONE: Mark(label="done", marker="s", colour=_GOOD, area=48),
    OrderStatus.DONE_WITH_WARNING: Mark(label="incomplete", marker="^", colour=_PARTLY, area=56),
    OrderStatus.FAILED: Mark(label="failed", marker="X", colour=_BAD, area=60),
    OrderStatus.DENIED: Mark(label="denied", marker="x", colour=_BAD, area=48),
    OrderStatus.RUNNING: Mark(label="running", marker=".", colour=_RUNNING, area=26),
    OrderStatus.PAUSED: Mark(label="paused", marker="s", colour=_GREY, area=30),
    OrderStatus.EXPIRED: Mark(label="expired", marker="1", colour=_GREY, area=60),
    OrderStatus.DELETED: Mark(label="deleted", marker="x", colour=_GREY, area=48),
}
_OTHER = Mark(label="other status", marker="D", colour=_GREY, area=26)
_DOWNLOAD = Mark(label="files fetched", marker="2", colour=_FETCHED, area=60)


@dataclass(slots=True)
class Lane:
    """The moments of one order."""

    name: str
    number: int | None = None
    moments: list[tuple[datetime, str]] = field(default_factory=list)
    fetched: list[datetime] = field(default_factory=list)

    @property
    def first(self) -> datetime:
        """When the order was first heard of."""
        return min(when for when, _ in self.moments)

    @property
    def label(self) -> str:
        """Number and name."""
        return clean(f"{'' if self.number is None else f'#{self.number} '}{self.name}", LABEL_CHARS)


def plot_timeline(source: Any, *, ax: Any = None) -> Any:
    """Plot when each order was granted, had parts ready, and ended.

    Parameters
    ----------
    source : OrderTracker or pandas.DataFrame
        A tracker, or its ``events`` or some rows of them.
    ax : matplotlib.axes.Axes, optional
        Where to plot; None makes a figure as high as the orders need.

    Returns
    -------
    matplotlib.axes.Axes
        One lane per order, the oldest on top, times in UTC.

    Raises
    ------
    SettingsError
        If matplotlib is not installed.
    """
    plt = pyplot()
    every_lane = sorted(_lanes(source), key=lambda lane: lane.first)
    lanes = every_lane[-MAX_LANES:]
    if ax is None:
        height_inches = min(max(0.34 * len(lanes) + 1.4, 2.2), 12)
        _, ax = plt.subplots(figsize=(10, height_inches), layout="constrained")
    if lanes:
        _draw(ax, lanes)
    else:
        say_nothing_yet(ax, "no events yet")
    _name_lanes(ax, lanes)
    hidden = len(every_lane) - len(lanes)
    remark = f"{hidden} older orders not shown" if hidden else ""
    dress(ax, remark=remark, has_times=bool(lanes))
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(axis="y", length=0)
    return ax


def _lanes(source: Any) -> Iterable[Lane]:
    """Gather the moments of each order from a tracker or from a frame of events."""
    is_tracker = hasattr(source, "snapshot")
    lanes: dict[tuple[str | None, str], Lane] = {}
    for tenant, correlation_id, number, status, when in _events(
        source.events if is_tracker else source
    ):
        name = correlation_id or f"order {number}"
        lane = lanes.setdefault((tenant, name), Lane(name))
        lane.number = lane.number if number is None else number
        lane.moments.append((when, status))
    if is_tracker:
        for order in source.snapshot().orders:
            if order.label and order.key in lanes:
                lanes[order.key].name = order.label
        _add_downloads(source.files, lanes.values())
    return lanes.values()


def _events(frame: Any) -> Iterator[tuple[str | None, str | None, int | None, str, datetime]]:
    """Yield what matters of each event.

    REGARDS' own time stamp has whole seconds only. The time of arrival is finer, and the same
    but for messages that waited in the queue while nobody listened.
    """
    prompt = frame["received_at"] - frame["timestamp"] < PROMPT
    when = frame["received_at"].where(prompt | frame["timestamp"].isna(), frame["timestamp"])
    columns = [
        frame[name].astype(object).where(frame[name].notna(), None)
        for name in ("tenant", "correlation_id", "order_id", "status", "download_link")
    ]
    for tenant, name, number, status, link, moment in zip(*columns, when, strict=True):
        # FAILED with a link is a partial success (protocol.md 0.4)
        partly = status == OrderStatus.FAILED and link
        yield tenant, name, number, OrderStatus.DONE_WITH_WARNING if partly else status, moment


def _add_downloads(files: Any, lanes: Iterable[Lane]) -> None:
    """Add when files came in; those of one second are one mark."""
    by_number = {lane.number: lane for lane in lanes if lane.number is not None}
    seconds = {(came.order_id, came.when.replace(microsecond=0)) for came in arrivals(files)}
    for number, when in sorted(seconds):
        if lane := by_number.get(number):
            lane.fetched.append(when)


def _draw(ax: Any, lanes: list[Lane]) -> None:
    moments = [
        (when, row, status) for row, lane in enumerate(lanes) for when, status in lane.moments
    ]
    last = max(when for when, _, _ in moments)
    scale = _scale(len(lanes))
    for row, lane in enumerate(lanes):
        statuses = {status for _, status in lane.moments}
        ended = statuses & FINISHED
        end = max(when for when, _ in lane.moments) if ended else last
        ax.hlines(row, lane.first, end, colors=_colour(statuses), linewidth=3 * scale, alpha=0.35)
    fetched = [(when, row) for row, lane in enumerate(lanes) for when in lane.fetched]
    # first, and so below the others: there are many of them
    _scatter(ax, fetched, _DOWNLOAD, scale**2)
    kinds = {**_MARKS, **{status: _OTHER for _, _, status in moments if status not in _MARKS}}
    for mark in dict.fromkeys(kinds.values()):
        points = [(when, row) for when, row, status in moments if kinds[status] is mark]
        _scatter(ax, points, mark, scale)


def _scatter(ax: Any, points: list[tuple[datetime, int]], mark: Mark, scale: float) -> None:
    if points:
        ax.scatter(
            *zip(*points, strict=True),
            marker=mark.marker,
            color=mark.colour,
            s=mark.area * scale,
            label=mark.label,
            zorder=3,
        )


def _name_lanes(ax: Any, lanes: list[Lane]) -> None:
    """Label the lanes as far as they can be read."""
    step = max(1, -(-len(lanes) // MAX_LABELS))
    ticks = range(0, len(lanes), step)
    # parse_math: a dollar sign in an order's name is no formula.
    names = [drawable(lanes[row].label) for row in ticks]
    ax.set_yticks(list(ticks), names, parse_math=False)
    ax.set_ylim(max(len(lanes), 1) - 0.4, -0.6)


def _colour(statuses: set[str]) -> str:
    """Return the colour of a lane: how the order stands."""
    if OrderStatus.DONE in statuses:
        return _GOOD
    if statuses & {OrderStatus.FAILED, OrderStatus.DENIED}:
        return _BAD
    return _PARTLY if OrderStatus.DONE_WITH_WARNING in statuses else _RUNNING


def _scale(n_lanes: int) -> float:
    """Return how much smaller marks must be for so many lanes."""
    return min(1.0, max(0.25, 30 / n_lanes))
