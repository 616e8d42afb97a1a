"""Plots of a tracker: orders over time, and download rates. matplotlib is imported on first use."""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.display.model import duration
from regards_nb.errors import SettingsError
from regards_nb.events import OrderStatus
from regards_nb.orders import FINISHED
from regards_nb.text import clean, counted, size

if TYPE_CHECKING:
    from datetime import datetime

#: More lanes are thinner than a pixel each; the latest orders are shown.
MAX_LANES = 400
MAX_LANE_LABELS = 40
LANE_LABEL_CHARS = 30
#: A message that arrived later than this after it was sent had waited in the queue.
PROMPT = timedelta(seconds=5)
MAX_BARS = 60
#: More colours cannot be told apart: the bars then show the sum of all orders.
MAX_COLOURS = 8
BAR_LABEL_CHARS = 24

_RUNNING, _GOOD, _INCOMPLETE, _BAD, _FETCHED = "#1976d2", "#2e8b45", "#c77700", "#d9363e", "#6a51a3"
_GREY = "#777777"
#: Two greys that look alike; see `_new_axes`.
_LIGHT_SIDE, _DARK_SIDE = "#818181", "#7e7e7e"
#: Widths of a bar in seconds that are round numbers on a clock.
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400)
_UNITS = ((10**9, "GB/s"), (10**6, "MB/s"), (10**3, "kB/s"), (1, "B/s"))


# -- timeline


class Mark(NamedTuple):
    """The marker of one kind of event."""

    label: str
    marker: str
    colour: str
    area: float


_MARKS: dict[str, Mark] = {
    OrderStatus.GRANTED: Mark("granted", "|", _RUNNING, 90),
    OrderStatus.SUBORDER_DONE: Mark("part ready", "o", _RUNNING, 26),
    OrderStatus.DONE: Mark("done", "s", _GOOD, 48),
    OrderStatus.DONE_WITH_WARNING: Mark("incomplete", "^", _INCOMPLETE, 56),
    OrderStatus.FAILED: Mark("failed", "X", _BAD, 60),
    OrderStatus.DENIED: Mark("denied", "x", _BAD, 48),
    OrderStatus.RUNNING: Mark("running", ".", _RUNNING, 26),
    OrderStatus.PAUSED: Mark("paused", "s", _GREY, 30),
    OrderStatus.EXPIRED: Mark("expired", "1", _GREY, 60),
    OrderStatus.DELETED: Mark("deleted", "x", _GREY, 48),
}
_OTHER_MARK = Mark("other status", "D", _GREY, 26)
_DOWNLOAD_MARK = Mark("files fetched", "2", _FETCHED, 60)


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
        matplotlib is not installed, or the rows are of another frame.
    """
    _pyplot()
    marks = _marks(_rows(source, "events", "received_at"))
    orders = marks.groupby(["tenant", "name"], sort=False)
    begins = orders["when"].min().sort_values(kind="stable")
    n_hidden = max(len(begins) - MAX_LANES, 0)
    # One row per lane: number, beginning and name of its order.
    lanes = begins.iloc[n_hidden:].to_frame().join(orders["order_id"].last()).reset_index()
    marks = marks.merge(lanes.reset_index(names="row")[["tenant", "name", "row"]])
    fetched: set[tuple[datetime, int]] = set()
    if hasattr(source, "snapshot"):
        labels = {(o.tenant or "", o.correlation_id): o.label for o in source.snapshot().orders}
        keys = zip(lanes["tenant"], lanes["name"], strict=True)
        lanes["name"] = [labels.get(key) or key[1] for key in keys]
        fetched = _downloads(source.files, lanes)
    if ax is None:
        height_inches = min(max(0.34 * len(lanes) + 1.4, 2.2), 12)
        ax = _new_axes(height_inches)
    if len(lanes):
        _draw_lanes(ax, lanes, marks, fetched)
    else:
        _draw_sentence(ax, "no events yet")
    # As many lanes are labelled as can be read.
    labelled = lanes.iloc[:: max(1, -(-len(lanes) // MAX_LANE_LABELS))]
    numbers = ("#" + labelled["order_id"].astype("string") + " ").fillna("")
    texts = [_drawable(clean(each, LANE_LABEL_CHARS)) for each in numbers + labelled["name"]]
    # parse_math: a dollar sign in the name of an order is no formula.
    ax.set_yticks(labelled.index.to_list(), texts, parse_math=False)
    ax.set_ylim(max(len(lanes), 1) - 0.4, -0.6)
    remark = f"{n_hidden} older orders not shown" if n_hidden else ""
    _finish_axes(ax, remark=remark, has_times=bool(len(lanes)))
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(axis="y", length=0)
    return ax


def _rows(source: Any, kind: str, needed: str) -> Any:
    """Return the frame of a tracker, or the user's own rows if they have the column *needed*."""
    rows = getattr(source, kind) if hasattr(source, "snapshot") else source
    if needed not in getattr(rows, "columns", ()):
        raise SettingsError(f"this plot needs a tracker or rows of tracker.{kind}")
    return rows


def _marks(events: Any) -> Any:
    """Return tenant, name, number, status and time of each event.

    The time stamp of REGARDS has whole seconds only. The time of arrival is finer, and the same
    except for messages that waited in the queue while no tracker ran.
    """
    is_prompt = events["received_at"] - events["timestamp"] < PROMPT
    is_timed = ~is_prompt & events["timestamp"].notna()
    # FAILED with a link is a partial success (protocol.md 0.4)
    is_partial = (events["status"] == OrderStatus.FAILED) & (
        events["download_link"].fillna("") != ""
    )
    names = events["correlation_id"].fillna("")
    return events.assign(
        tenant=events["tenant"].fillna(""),
        name=names.mask(names == "", "order " + events["order_id"].astype(str)),
        status=events["status"].astype(str).mask(is_partial, str(OrderStatus.DONE_WITH_WARNING)),
        when=events["received_at"].mask(is_timed, events["timestamp"]),
    )[["tenant", "name", "order_id", "status", "when"]]


def _downloads(files: Any, lanes: Any) -> set[tuple[datetime, int]]:
    """Return times and rows of the files of the orders; those of one second are one mark."""
    rows = lanes.dropna(subset="order_id").reset_index(names="row")
    rows = rows.drop_duplicates("order_id", keep="last")
    found = _fetched(files)[["order_id", "fetched_at"]].merge(rows, on="order_id")
    # An older file belongs to another order: archives count from 1, and journals are reused.
    seconds = found["fetched_at"].dt.floor("s")
    is_later = seconds >= found["when"].dt.floor("s")
    return set(zip(seconds[is_later], found.loc[is_later, "row"], strict=True))


def _draw_lanes(ax: Any, lanes: Any, marks: Any, fetched: set[tuple[datetime, int]]) -> None:
    # The more lanes there are, the smaller are the marks.
    scale = min(1.0, max(0.25, 30 / len(lanes)))
    for row, lane in marks.groupby("row"):
        statuses = set(lane["status"])
        end = (lane if statuses & FINISHED else marks)["when"].max()
        colour = _lane_colour(statuses)
        ax.hlines(row, lane["when"].min(), end, colors=colour, linewidth=3 * scale, alpha=0.35)
    # Downloads are drawn first, below the others, because there are many.
    if fetched:
        times, rows = zip(*sorted(fetched), strict=True)
        _scatter(ax, times, rows, _DOWNLOAD_MARK, scale**2)
    kinds = marks["status"].map(lambda status: _MARKS.get(status, _OTHER_MARK).label)
    for mark in (*_MARKS.values(), _OTHER_MARK):
        if len(part := marks[kinds == mark.label]):
            _scatter(ax, part["when"], part["row"], mark, scale)


def _scatter(ax: Any, times: Any, rows: Any, mark: Mark, scale: float) -> None:
    ax.scatter(
        times,
        rows,
        marker=mark.marker,
        color=mark.colour,
        s=mark.area * scale,
        label=mark.label,
        zorder=3,
    )


def _lane_colour(statuses: set[str]) -> str:
    if OrderStatus.DONE in statuses:
        return _GOOD
    if statuses & {OrderStatus.FAILED, OrderStatus.DENIED}:
        return _BAD
    return _INCOMPLETE if OrderStatus.DONE_WITH_WARNING in statuses else _RUNNING


# -- throughput


def _fetched(files: Any) -> Any:
    """Return the rows of the files that were fetched; one that was there has no ``fetched_at``."""
    return files[files["fetched_at"].notna() & files["size_bytes"].notna()]


def plot_throughput(source: Any, *, ax: Any = None) -> Any:
    """Plot how fast files were downloaded.

    Parameters
    ----------
    source : OrderTracker or pandas.DataFrame
        A tracker, or its ``files`` or some rows of them.
    ax : matplotlib.axes.Axes, optional
        Where to plot; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        Bytes per second over time (UTC), by order for up to eight orders. Only fetched files
        count, by their ``fetched_at``.

    Raises
    ------
    SettingsError
        matplotlib is not installed, or the rows are of another frame.
    """
    _pyplot()
    is_tracker = hasattr(source, "snapshot")
    files = _fetched(_rows(source, "files", "fetched_at"))
    if ax is None:
        ax = _new_axes(3)
    if files.empty:
        _draw_sentence(ax, "no files yet")
        remark = ""
    else:
        _draw_bars(ax, files, _labels(source) if is_tracker else {})
        remark = f"{counted(len(files), 'file')}, {size(int(files['size_bytes'].sum()))}"
    _finish_axes(ax, remark=remark, has_times=not files.empty)
    return ax


def _labels(tracker: Any) -> dict[int, str]:
    """Return number and label of the orders that have a label."""
    return {
        order.order_id: clean(f"#{order.order_id} {order.label}", BAR_LABEL_CHARS)
        for order in tracker.snapshot().orders
        if order.order_id is not None and order.label
    }


def _draw_bars(ax: Any, files: Any, labels: dict[int, str]) -> None:
    width_s = _width_s((files["fetched_at"].max() - files["fetched_at"].min()).total_seconds())
    # Bars of ten minutes begin at 12:10 and not at 12:07.
    begins = files["fetched_at"].dt.floor(f"{width_s}s")
    sizes = files["size_bytes"].astype("int64")
    rates = sizes.groupby([begins, files["order_id"]]).sum().unstack(fill_value=0) / width_s
    total, n_orders = rates.sum(axis=1), len(rates.columns)
    factor, unit = next((each for each in _UNITS if total.max() >= each[0]), _UNITS[-1])
    by_order = n_orders <= MAX_COLOURS
    layers = rates.items() if by_order else [(None, total)]
    bottom = 0 * total
    for order_id, rate in layers:
        name = counted(n_orders, "order") if order_id is None else f"#{order_id}"
        ax.bar(
            rates.index,
            rate / factor,
            # matplotlib measures the width of a bar in days.
            width=0.92 * width_s / 86_400,
            align="edge",
            bottom=bottom,
            # A leading underscore would hide a name from the legend, a dollar make it a formula.
            label=_drawable(labels.get(order_id or 0, name)).replace("$", r"\$"),
            **({} if by_order else {"color": _RUNNING}),
        )
        bottom += rate / factor
    ax.set_ylabel(f"{unit}, mean of {duration(width_s)}")
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)


def _width_s(duration_s: float) -> int:
    """Return a round width, with which there are at most ``MAX_BARS`` bars."""
    fitting = (width_s for width_s in _WIDTHS_S if duration_s / width_s < MAX_BARS - 1)
    days = int(duration_s / _WIDTHS_S[-1] / (MAX_BARS - 1)) + 1
    return next(fitting, days * _WIDTHS_S[-1])


# -- axes


def _pyplot() -> Any:
    """Return matplotlib.pyplot; SettingsError if matplotlib is not installed."""
    try:
        return import_module("matplotlib.pyplot")
    except ImportError as exc:
        raise SettingsError(
            'plotting needs matplotlib: pip install "regards_nb[plot]", then restart the kernel'
        ) from exc


def _new_axes(height_inches: float) -> Any:
    """Return axes on a transparent figure with grey texts, for light and for dark pages.

    matplotlib-inline has the notebook lay a white or black plate under a transparent figure if
    all tick labels are light or all are dark. Its limit is between the two greys.
    """
    _, ax = _pyplot().subplots(figsize=(10, height_inches), layout="constrained")
    ax.figure.patch.set_alpha(0)
    ax.patch.set_alpha(0)
    ax.tick_params(axis="x", colors=_LIGHT_SIDE)
    ax.tick_params(axis="y", colors=_DARK_SIDE)
    ax.xaxis.label.set_color(_LIGHT_SIDE)
    ax.yaxis.label.set_color(_LIGHT_SIDE)
    ax.xaxis.get_offset_text().set_color(_LIGHT_SIDE)
    ax.spines[:].set_color(_LIGHT_SIDE)
    return ax


def _finish_axes(ax: Any, *, remark: str, has_times: bool) -> None:
    """Format the time axis in UTC, place the legend, and remove needless lines."""
    if has_times:
        dates = import_module("matplotlib.dates")
        locator = dates.AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        if ax.get_legend_handles_labels()[1]:
            legend = {"ncols": 8, "frameon": False, "fontsize": "small"}
            made = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), **legend)
            for words in made.get_texts():
                words.set_color(ax.xaxis.label.get_color())
    ax.set_xlabel(f"UTC; {remark}" if remark else "UTC")
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_sentence(ax: Any, sentence: str) -> None:
    """Draw a sentence instead of an empty plot."""
    colour = ax.xaxis.label.get_color()
    ax.text(0.5, 0.5, sentence, ha="center", va="center", color=colour, transform=ax.transAxes)
    ax.set_xticks([])


def _drawable(label: str) -> str:
    """Replace the characters that the font lacks: matplotlib warns about each at every draw."""
    fonts = import_module("matplotlib.font_manager")
    font = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    return "".join(char if font.get_char_index(ord(char)) else "□" for char in label)
