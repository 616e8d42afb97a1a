"""The views of a tracker: live in notebooks, saved as HTML, as text in terminals, as plots.

All views pull snapshots of the tracker; `model` says what they read and what they show.
ipywidgets, IPython, rich's live display and matplotlib are imported when a view first needs them.
"""

from regards_nb.display.console import MAX_LINES, LogView, ScreenView
from regards_nb.display.html import html
from regards_nb.display.model import MAX_ROWS, NAME_CHARS, WAITS, Severity, size, table_model
from regards_nb.display.plots import plot_throughput, plot_timeline
from regards_nb.display.refresh import (
    TRACKER_DELETED,
    RefreshThread,
    close_views,
    refresh_thread_of,
)
from regards_nb.display.show import STILL_TRACKED, Watch, mimebundle, show, watching
from regards_nb.display.text import text

__all__ = [
    "MAX_LINES",
    "MAX_ROWS",
    "NAME_CHARS",
    "STILL_TRACKED",
    "TRACKER_DELETED",
    "WAITS",
    "LogView",
    "RefreshThread",
    "ScreenView",
    "Severity",
    "Watch",
    "close_views",
    "html",
    "mimebundle",
    "plot_throughput",
    "plot_timeline",
    "refresh_thread_of",
    "show",
    "size",
    "table_model",
    "text",
    "watching",
]
