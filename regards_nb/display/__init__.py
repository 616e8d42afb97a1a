"""The views of a tracker: live in notebooks, saved as HTML, as text in terminals, as a plot.

All of them pull snapshots; see :mod:`regards_nb.display.sources` for what they read. ipywidgets,
IPython and matplotlib are imported when a view first needs them.
"""

from regards_nb.display.live import mimebundle, show
from regards_nb.display.markup import html
from regards_nb.display.plain import text
from regards_nb.display.repaint import close_views
from regards_nb.display.throughput import plot_throughput
from regards_nb.display.timeline import plot_timeline
from regards_nb.display.watch import Watch, watching

__all__ = [
    "Watch",
    "close_views",
    "html",
    "mimebundle",
    "plot_throughput",
    "plot_timeline",
    "show",
    "text",
    "watching",
]
