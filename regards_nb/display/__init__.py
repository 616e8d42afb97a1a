"""The views of a tracker: live in notebooks, saved as HTML, as text in terminals, as plots.

All views pull snapshots of the tracker; `model` makes the texts that they show. Heavy libraries
(ipywidgets, anywidget, IPython, matplotlib) are imported when a view needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regards_nb.display.console import MAX_LINES, LogView, ScreenView, rewording
from regards_nb.display.html import html
from regards_nb.display.live import LiveView
from regards_nb.display.model import (
    MAX_ROWS,
    NAME_CHARS,
    WAITS,
    OrderFacts,
    Severity,
    TableModel,
    table_model,
)
from regards_nb.display.plots import plot_throughput, plot_timeline
from regards_nb.display.rates import DownloadRates
from regards_nb.display.refresh import (
    TRACKER_DELETED,
    RefreshThread,
    close_views,
    refresh_thread_of,
)
from regards_nb.display.show import (
    STILL_TRACKED,
    Watch,
    marimo_value,
    mimebundle,
    say,
    show,
    use,
    watching,
    widget,
)
from regards_nb.display.text import text

if TYPE_CHECKING:
    from regards_nb.display.anywidgets import AnyWidgetView
    from regards_nb.display.widgets import MAX_CHOICES, ActionBar, WidgetView

__all__ = [
    "MAX_CHOICES",
    "MAX_LINES",
    "MAX_ROWS",
    "NAME_CHARS",
    "STILL_TRACKED",
    "TRACKER_DELETED",
    "WAITS",
    "ActionBar",
    "AnyWidgetView",
    "DownloadRates",
    "LiveView",
    "LogView",
    "OrderFacts",
    "RefreshThread",
    "ScreenView",
    "Severity",
    "TableModel",
    "Watch",
    "WidgetView",
    "close_views",
    "html",
    "marimo_value",
    "mimebundle",
    "plot_throughput",
    "plot_timeline",
    "refresh_thread_of",
    "rewording",
    "say",
    "show",
    "table_model",
    "text",
    "use",
    "watching",
    "widget",
]

_MODULE_OF = {
    "ActionBar": "widgets",
    "AnyWidgetView": "anywidgets",
    "MAX_CHOICES": "widgets",
    "WidgetView": "widgets",
}


def __getattr__(name: str) -> Any:
    """Import the widgets when they are first used: a script needs no ipywidgets."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
