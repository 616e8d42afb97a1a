"""A tracker shown without waiting: by ``show()``, or as the value of a cell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from regards_nb.display.console import write_lines
from regards_nb.display.markup import html
from regards_nb.display.plain import text
from regards_nb.display.repaint import painter_of
from regards_nb.display.surroundings import Surroundings, live_obstacle, surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from regards_nb.display.repaint import Painter
    from regards_nb.display.sources import TrackerView, Wanted
    from regards_nb.orders import OrderKey


def show(tracker: TrackerView, *, record: Callable[[Exception], object] | None = None) -> None:
    """Show the tracker's orders, live where that is possible. Returns at once.

    Parameters
    ----------
    tracker : OrderTracker
        Held weakly; any number of outputs may show it.
    record : callable, optional
        Gets errors of the display, which are never raised.
    """
    # An error of the tracker itself is for the caller; one of the display is recorded.
    snapshot = tracker.snapshot()
    painter = painter_of(tracker, record)
    with painter.recording():
        where = surroundings()
        if where is not Surroundings.TEXT:
            panel_of(painter, "show", lambda: None, where).show(snapshot, with_spare=True)
            if not live_obstacle():
                painter.run()
            return
    with painter.recording():
        write_lines(sys.stdout, text(snapshot).splitlines())


def mimebundle(
    tracker: TrackerView,
    keys: Iterable[OrderKey] | None = None,
    include: Container[str] | None = None,
    exclude: Container[str] | None = None,
    *,
    record: Callable[[Exception], object] | None = None,
) -> dict[str, Any]:
    """Describe the tracker to Jupyter: the live view, with HTML and text of the same moment.

    Parameters
    ----------
    tracker : OrderTracker
        Held weakly.
    keys : iterable of OrderKey, optional
        The orders to show; None shows all.
    include, exclude : container of str, optional
        MIME types wanted and not wanted, as IPython passes them.
    record : callable, optional
        Gets errors of the display, which are never raised.

    Returns
    -------
    dict of str to Any
        A value per MIME type.
    """
    chosen = None if keys is None else tuple(keys)
    snapshot = tracker.snapshot(chosen)
    bundle: dict[str, Any] = {"text/html": html(snapshot), "text/plain": text(snapshot)}
    painter = painter_of(tracker, record)
    with painter.recording():
        if surroundings() is Surroundings.WIDGETS:
            bundle = panel_of(painter, "show", lambda: chosen, Surroundings.WIDGETS).bundle(
                snapshot
            )
            painter.run()
    return {
        mime: value
        for mime, value in bundle.items()
        if (not include or mime in include) and not (exclude and mime in exclude)
    }


def panel_of(painter: Painter, purpose: str, wanted: Wanted, where: Surroundings) -> Any:
    """Return the panel for that purpose: showing once more costs no more widgets."""
    keys = wanted()
    name: object = (purpose, None if keys is None else tuple(keys))
    if purpose == "watch" and painter.is_visible(name):
        # Two tasks wait for the same orders.
        name = object()
    panel: Any = painter.panel(name, lambda: _new_panel(painter, purpose, wanted, where))
    if purpose == "watch":
        panel.begin(wanted)
    return panel


def _new_panel(painter: Painter, purpose: str, wanted: Wanted, where: Surroundings) -> Any:
    # Loaded only where a notebook is there to see them.
    if where is Surroundings.HTML:
        from regards_nb.display.handles import HtmlPanel

        # Whoever waits paints the table itself, so that it does not stand still.
        return HtmlPanel(wanted, live_obstacle() if purpose == "show" else "")
    from regards_nb.display.panels import WidgetPanel

    return WidgetPanel(painter.tracker, wanted)
