"""The orders as swim lanes over time. matplotlib is imported by the first plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from regards_nb.display.board import clean
from regards_nb.errors import SettingsError
from regards_nb.events import OrderStatus
from regards_nb.orders import FINISHED

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
}
_OTHER = Mark(label="other status", marker="D", colour="#777777", area=26)
_DOWNLOAD = Mark(label="file fetched", marker="2", colour=_FETCHED, area=60)


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
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ImportError as exc:
        raise SettingsError(
            'plotting needs matplotlib: pip install "regards_nb[plot]", then restart the kernel'
        ) from exc
    every_lane = sorted(_lanes(source), key=lambda lane: lane.first)
    lanes = every_lane[-MAX_LANES:]
    if ax is None:
        height_inches = min(max(0.34 * len(lanes) + 1.4, 2.2), 12)
        _, ax = pyplot.subplots(figsize=(10, height_inches), layout="constrained")
    if lanes:
        _draw(ax, lanes)
    else:
        ax.text(0.5, 0.5, "no events yet", ha="center", va="center", transform=ax.transAxes)
        ax.set_xticks([])
    _dress(ax, lanes, hidden=len(every_lane) - len(lanes))
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
    """Add the times of downloads, where the journal knows them."""
    if not {"order", "downloaded_at"} <= set(files.columns):
        return
    by_number = {lane.number: lane for lane in lanes if lane.number is not None}
    known = files[files["downloaded_at"].notna() & files["order"].notna()]
    for number, when in zip(known["order"], known["downloaded_at"], strict=True):
        if lane := by_number.get(int(number)):
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
    kinds = {**_MARKS, **{status: _OTHER for _, _, status in moments if status not in _MARKS}}
    for mark in dict.fromkeys(kinds.values()):
        points = [(when, row) for when, row, status in moments if kinds[status] is mark]
        _scatter(ax, points, mark, scale)
    fetched = [(when, row) for row, lane in enumerate(lanes) for when in lane.fetched]
    _scatter(ax, fetched, _DOWNLOAD, scale)


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


def _dress(ax: Any, lanes: list[Lane], *, hidden: int) -> None:
    """Label the lanes as far as they can be read, and the times."""
    dates = import_module("matplotlib.dates")
    step = max(1, -(-len(lanes) // MAX_LABELS))
    ticks = range(0, len(lanes), step)
    # parse_math: a dollar sign in an order's name is no formula.
    names = [_drawable(lanes[row].label) for row in ticks]
    ax.set_yticks(list(ticks), names, parse_math=False)
    ax.set_ylim(max(len(lanes), 1) - 0.4, -0.6)
    if lanes:
        locator = dates.AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=8, frameon=False, fontsize="small")
    ax.set_xlabel(f"UTC; {hidden} older orders not shown" if hidden else "UTC")
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _drawable(label: str) -> str:
    """Replace what the font cannot draw: matplotlib would warn at every draw."""
    fonts = import_module("matplotlib.font_manager")
    font = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    return "".join(char if font.get_char_index(ord(char)) else "□" for char in label)


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
