"""How fast files came in, as bars over time. matplotlib is imported by the first plot."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.display.arrivals import arrivals
from regards_nb.display.board import size
from regards_nb.display.drawing import drawable, dress, pyplot, say_nothing_yet
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from regards_nb.display.arrivals import Arrival

MAX_BARS = 60
#: More colours cannot be told apart; then all orders are one.
MAX_COLOURS = 8
LABEL_CHARS = 24
_COLOUR = "#1976d2"
#: Widths of a bar that people can read off a clock, in seconds.
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400)
_UNITS = ((10**9, "GB/s"), (10**6, "MB/s"), (10**3, "kB/s"), (1, "B/s"))


class Bars(NamedTuple):
    """Bytes that came in, by order, in each of some spans of the same width."""

    start: datetime
    width_s: int
    bytes_of: dict[int, list[int]]

    @property
    def lefts(self) -> list[datetime]:
        """Where each span begins."""
        count = len(next(iter(self.bytes_of.values())))
        return [self.start + timedelta(seconds=n * self.width_s) for n in range(count)]


def plot_throughput(source: Any, *, ax: Any = None) -> Any:
    """Plot how fast files came in.

    Parameters
    ----------
    source : OrderTracker or pandas.DataFrame
        A tracker, or its ``files`` or some rows of them.
    ax : matplotlib.axes.Axes, optional
        Where to plot; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        Bytes per second over time (UTC), by order where these are few. The times are those of the
        files in the workspace; what was moved away is left out.

    Raises
    ------
    SettingsError
        If matplotlib is not installed.
    """
    plt = pyplot()
    is_tracker = hasattr(source, "snapshot")
    came = arrivals(source.files if is_tracker else source)
    if ax is None:
        _, ax = plt.subplots(figsize=(10, 3), layout="constrained")
    if came:
        _draw(ax, bars(came), _names(source) if is_tracker else {})
    else:
        say_nothing_yet(ax, "no files yet")
    total = size(sum(arrival.size_bytes for arrival in came))
    noun = "file" if len(came) == 1 else "files"
    dress(ax, remark=f"{len(came)} {noun}, {total}" if came else "", has_times=bool(came))
    return ax


def bars(came: Sequence[Arrival]) -> Bars:
    """Add up arrivals, the earliest first, in at most ``MAX_BARS`` spans of a readable width."""
    first, last = came[0].when, came[-1].when
    duration_s = (last - first).total_seconds()
    fitting = (width_s for width_s in _WIDTHS_S if duration_s / width_s < MAX_BARS - 1)
    days = int(duration_s / _WIDTHS_S[-1] / (MAX_BARS - 1)) + 1
    width_s = next(fitting, days * _WIDTHS_S[-1])
    # On the clock: bars of ten minutes begin at 12:10 and not at 12:07.
    start_s = int(first.timestamp()) // width_s * width_s
    count = int((last.timestamp() - start_s) // width_s) + 1
    bytes_of: dict[int, list[int]] = defaultdict(lambda: [0] * count)
    for arrival in came:
        place = int((arrival.when.timestamp() - start_s) // width_s)
        bytes_of[arrival.order_id][place] += arrival.size_bytes
    return Bars(first + timedelta(seconds=start_s - first.timestamp()), width_s, dict(bytes_of))


def _names(tracker: Any) -> dict[int, str]:
    """Return what the user calls the orders."""
    return {
        order.order_id: clean(f"#{order.order_id} {order.label}", LABEL_CHARS)
        for order in tracker.snapshot().orders
        if order.order_id is not None and order.label
    }


def _draw(ax: Any, shown: Bars, names: dict[int, str]) -> None:
    together = [sum(each) for each in zip(*shown.bytes_of.values(), strict=True)]
    factor, unit = _unit(max(together) / shown.width_s)
    few = len(shown.bytes_of) <= MAX_COLOURS
    layers = shown.bytes_of if few else {None: together}
    bottom = [0.0] * len(together)
    for order_id, n_bytes in layers.items():
        rates = [each / shown.width_s / factor for each in n_bytes]
        name = f"{len(shown.bytes_of)} orders" if order_id is None else f"#{order_id}"
        ax.bar(
            shown.lefts,
            rates,
            # a bar's width is said in days
            width=0.92 * shown.width_s / 86_400,
            align="edge",
            bottom=bottom,
            # a leading underscore would hide a name from the legend, a dollar make it a formula
            label=drawable(names.get(order_id or 0, name)).replace("$", r"\$"),
            **({} if few else {"color": _COLOUR}),
        )
        bottom = [below + rate for below, rate in zip(bottom, rates, strict=True)]
    ax.set_ylabel(f"{unit}, mean of {_span(shown.width_s)}")
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)


def _unit(bytes_per_s: float) -> tuple[int, str]:
    return next(((factor, unit) for factor, unit in _UNITS if bytes_per_s >= factor), _UNITS[-1])


def _span(width_s: int) -> str:
    """Return a width in words.

    >>> _span(30), _span(600), _span(7200), _span(86400)
    ('30 s', '10 min', '2 h', '1 d')
    """
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if width_s >= unit_s:
            return f"{width_s // unit_s} {unit}"
    return f"{width_s} s"
