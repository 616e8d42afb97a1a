"""What a cell shows while it waits, and what it leaves behind."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from regards_nb.display.console import LogWatch, ScreenWatch, is_screen
from regards_nb.display.live import panel_of
from regards_nb.display.repaint import painter_of
from regards_nb.display.surroundings import Surroundings, live_obstacle, surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from regards_nb.display.repaint import Painter
    from regards_nb.display.sources import TrackerView, Wanted
    from regards_nb.orders import OrderKey

STILL_TRACKED = "the orders go on and are still tracked"
#: Which kernels handle clicks during a blocking cell differs from version to version.
BLOCKING_NOTE = (
    "This cell waits. The buttons may answer only when it ends; ■ stops the waiting, "
    "not the orders."
)


class View(Protocol):
    """A view that lasts as long as a wait. Called on the waiting thread only."""

    def open(self) -> None:
        """Show how things stand."""

    def refresh(self, *, note: str = "") -> None:
        """Bring the view up to date."""

    def close(self, note: str = "") -> None:
        """Leave the last state standing, with a last word."""


class Watch:
    """What :func:`watching` yields: refreshed by the wait, and never in its way."""

    def __init__(self, view: View | None, painter: Painter) -> None:
        self._view = view
        self._painter = painter

    def refresh(self, *, note: str = "") -> None:
        """Bring the view up to date; to be called now and then by the waiting thread.

        Parameters
        ----------
        note : str
            A whole sentence on what is waited for. No countdown: a log file gets each new note
            as a line.
        """
        if self._view is not None:
            with self._painter.recording():
                self._view.refresh(note=note)


@contextmanager
def watching(
    tracker: TrackerView,
    keys: Iterable[OrderKey] | Callable[[], Iterable[OrderKey]] | None = None,
    *,
    blocking: bool = True,
    record: Callable[[Exception], object] | None = None,
) -> Iterator[Watch]:
    """Show these orders while the caller waits; leave their last state standing at the end.

    Parameters
    ----------
    tracker : OrderTracker
        The tracker that waits.
    keys : iterable of OrderKey, or callable, optional
        The orders waited for, or what returns those of them that have shown up; None means all.
    blocking : bool
        Whether the kernel can do nothing else meanwhile: the view then says what that means for
        its buttons.
    record : callable, optional
        Gets errors of the display, which are never raised.

    Yields
    ------
    Watch
        To be refreshed.
    """
    painter = painter_of(tracker, record)
    view: View | None = None
    note = ""
    try:
        with painter.recording():
            view = _view(painter, tracker, _asking(keys), blocking=blocking)
            # From here on there is something to close, also if the stop button is pressed now.
            view.open()
        yield Watch(view, painter)
    except BaseException as exc:
        note = _farewell(exc)
        raise
    finally:
        if view is not None:
            with painter.recording():
                view.close(note)


class PanelView:
    """A wait seen in a notebook. The repaint thread paints, or, where it cannot, the waiter."""

    def __init__(self, painter: Painter, tracker: TrackerView, panel: Any, note: str) -> None:
        self._painter = painter
        self._tracker = tracker
        self._panel = panel
        self._standing_note = note
        self._by_waiter = bool(live_obstacle())

    def open(self) -> None:
        """Put the view below the cell, and have it painted."""
        self._panel.say(self._standing_note)
        self._panel.show(self._tracker.snapshot(self._panel.wanted()))
        if not self._by_waiter:
            self._painter.run()

    def refresh(self, *, note: str = "") -> None:
        """Hand over the note; paint if nobody else can."""
        self._panel.say(" · ".join(filter(None, (note, self._standing_note))))
        if self._by_waiter:
            self._painter.paint(self._panel, self._tracker)

    def close(self, note: str = "") -> None:
        """Replace the live view by a picture of the last state."""
        keys = self._panel.wanted()
        # The panel outlives the wait, and what the wait asked with may hold the tracker.
        self._panel.wanted = _asking(keys)
        self._panel.freeze(self._tracker.snapshot(keys), note)


def _view(painter: Painter, tracker: TrackerView, wanted: Wanted, *, blocking: bool) -> View:
    where = surroundings()
    if where is Surroundings.TEXT:
        kind = ScreenWatch if is_screen(sys.stdout) else LogWatch
        return kind(tracker, wanted, sys.stdout)
    note = BLOCKING_NOTE if blocking and where is Surroundings.WIDGETS else ""
    return PanelView(painter, tracker, panel_of(painter, "watch", wanted, where), note)


def _asking(keys: Iterable[OrderKey] | Callable[[], Iterable[OrderKey]] | None) -> Wanted:
    if keys is None:
        return lambda: None
    if callable(keys):
        return keys
    fixed = tuple(keys)
    return lambda: fixed


def _farewell(exc: BaseException) -> str:
    """Say how the wait ended, when it did not end by itself."""
    # Both the interrupt of a cell and the cancelling of a task mean: the user pressed stop.
    if isinstance(exc, KeyboardInterrupt) or type(exc).__name__ == "CancelledError":
        return f"You stopped waiting; {STILL_TRACKED}."
    if isinstance(exc, TimeoutError):
        return f"The time limit is reached; {STILL_TRACKED}."
    return f"Waiting ended with {type(exc).__name__}; {STILL_TRACKED}."
