"""The views of a tracker: live in notebooks, saved as HTML, as text in terminals, as plots.

All views pull snapshots of the tracker; `facts` says how urgent each order is, `model` makes the
texts that they show. Heavy libraries (ipywidgets, anywidget, IPython, matplotlib) are imported when
a view needs them.

- ``model``: the texts of a table; ``facts``: how urgent an order is, and what a table needs of it;
- ``html``, ``terminal``: the table as HTML, and as text in terminals and log files;
- ``live``: the views of a notebook, and clicks; ``widgets``, ``anywidgets``: made of which library;
- ``refresh``: how often a view is repainted; ``show``: what can be shown where the code runs;
- ``plots``: orders over time, and download rates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regards_nb.display.facts import OrderFacts as OrderFacts
from regards_nb.display.facts import Severity as Severity
from regards_nb.display.html import html as html
from regards_nb.display.live import MAX_CHOICES as MAX_CHOICES
from regards_nb.display.live import LiveView as LiveView
from regards_nb.display.model import MAX_ROWS as MAX_ROWS
from regards_nb.display.model import NAME_CHARS as NAME_CHARS
from regards_nb.display.model import WAITS as WAITS
from regards_nb.display.model import DownloadRates as DownloadRates
from regards_nb.display.model import TableModel as TableModel
from regards_nb.display.model import table_model as table_model
from regards_nb.display.plots import plot_throughput as plot_throughput
from regards_nb.display.plots import plot_timeline as plot_timeline
from regards_nb.display.refresh import TRACKER_DELETED as TRACKER_DELETED
from regards_nb.display.refresh import RefreshThread as RefreshThread
from regards_nb.display.refresh import close_views as close_views
from regards_nb.display.refresh import refresh_thread_of as refresh_thread_of
from regards_nb.display.show import STILL_TRACKED as STILL_TRACKED
from regards_nb.display.show import marimo_value as marimo_value
from regards_nb.display.show import mimebundle as mimebundle
from regards_nb.display.show import show as show
from regards_nb.display.show import use as use
from regards_nb.display.show import watching as watching
from regards_nb.display.show import widget as widget
from regards_nb.display.terminal import MAX_LINES as MAX_LINES
from regards_nb.display.terminal import LogView as LogView
from regards_nb.display.terminal import ScreenView as ScreenView
from regards_nb.display.terminal import text as text

if TYPE_CHECKING:
    from regards_nb.display.anywidgets import AnyWidgetView as AnyWidgetView
    from regards_nb.display.widgets import ActionBar as ActionBar
    from regards_nb.display.widgets import WidgetView as WidgetView


_MODULE_OF = {
    "ActionBar": "widgets",
    "AnyWidgetView": "anywidgets",
    "WidgetView": "widgets",
}


def __getattr__(name: str) -> Any:
    """Import the widgets when they are first used: a script needs no ipywidgets."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
