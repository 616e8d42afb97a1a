"""Show a tracker in the place where the code runs: at once, as a cell's value, or while waiting."""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from regards_nb.display.html import as_of, html, in_marimo, publish, static_bundle
from regards_nb.display.model import table_model
from regards_nb.display.refresh import INTERVAL_S, refresh_thread_of
from regards_nb.display.terminal import LogView, ScreenView, is_screen, last_line, text
from regards_nb.errors import SettingsError
from regards_nb.output import write_lines
from regards_nb.waits import in_kernel, shown_meanwhile, unasked

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from regards_nb.display.live import LiveView
    from regards_nb.display.model import KeysOf
    from regards_nb.display.refresh import RefreshThread
    from regards_nb.orders import OrderKey
    from regards_nb.tracker import OrderTracker

STILL_TRACKED = "tracking continues in the background"
#: Whether a kernel handles clicks during a blocking cell differs from version to version.
BLOCKING_NOTE = (
    "This cell is waiting. The buttons may react only after the cell ends; ■ stops the wait, "
    "not the orders."
)
#: ipykernel 7.0.0 and 7.0.1 raise LookupError in every thread that updates a widget or an output.
BROKEN_IPYKERNEL = "7.0."
BROKEN_IPYKERNEL_NOTE = (
    "ipykernel {version} cannot update this table from the background: run "
    "pip install -U ipykernel and restart the kernel; tracking works meanwhile."
)


NO_ANYWIDGET_NOTE = 'To see it move: pip install "regards_nb[marimo]", and restart.'


# -- where the code runs


#: Chooses the widgets of all views, as `use` does.
WIDGETS_VARIABLE = "REGARDS_NB_WIDGETS"
_chosen: list[str] = []


def use(widgets: Literal["ipywidgets", "anywidget"]) -> None:
    """Choose the widgets of all new views in notebooks.

    ipywidgets is the default in Jupyter, because it is installed there nearly always. anywidget
    keeps selected text selected and sends less, but JupyterLab shows nothing if it is installed in
    the kernel's environment and not in the server's. marimo uses anywidget by itself. The
    environment variable ``REGARDS_NB_WIDGETS`` does the same.

    Parameters
    ----------
    widgets : {"ipywidgets", "anywidget"}

    Raises
    ------
    SettingsError
        The library is not installed, or there is no such choice.
    """
    _check_choice(widgets, "use()")
    _chosen[:] = [widgets]


def _check_choice(widgets: str, source: str) -> None:
    if widgets not in {"ipywidgets", "anywidget"}:
        raise SettingsError(f'{source} must be "ipywidgets" or "anywidget", not {widgets!r}')
    if widgets == "anywidget" and not _has_anywidget():
        raise SettingsError('anywidget is not installed: pip install "regards_nb[marimo]"')


def _choice() -> str:
    chosen = os.environ.get(WIDGETS_VARIABLE) or "ipywidgets"
    if in_marimo():
        chosen = "anywidget"
    elif _chosen:
        chosen = _chosen[0]
    _check_choice(chosen, WIDGETS_VARIABLE)
    return chosen


def live_library() -> str:
    """Return the library that draws live views here; "" where no view can move, as in a script.

    Nothing is imported to find out.
    """
    if in_marimo():
        return "anywidget" if _has_anywidget() else ""
    return _choice() if in_kernel() and not broken_kernel() else ""


def _has_anywidget() -> bool:
    """Return whether anywidget is installed, which the package does not depend on."""
    # None in sys.modules means "cannot be imported".
    if "anywidget" in sys.modules:
        return sys.modules["anywidget"] is not None
    return find_spec("anywidget") is not None


def broken_kernel() -> str:
    """Return a sentence if threads cannot update outputs in this kernel, else an empty string."""
    version = str(getattr(sys.modules.get("ipykernel"), "__version__", ""))
    if version.startswith(BROKEN_IPYKERNEL):
        return BROKEN_IPYKERNEL_NOTE.format(version=version)
    return ""


def _page() -> tuple[object, Callable[[], bool]]:
    """Return what identifies the page that runs this code, and what tells whether it still exists.

    One process may serve several pages, and the widgets of one cannot be shown on another.
    """
    solara: Any = sys.modules.get("solara.server.kernel_context")
    if solara is not None and solara.has_current_context():
        # Solara closes the widgets of a page that has ended.
        return solara.get_current_context().id, lambda: True
    panel: Any = sys.modules.get("panel")
    document = None if panel is None else panel.state.curdoc
    # Panel closes none, and an update then raises AttributeError. Bokeh takes the session from the
    # document of a page that has ended.
    return document, lambda: document is None or document.session_context is not None


# -- without waiting


def show(tracker: OrderTracker, *, record: Callable[[Exception], object] | None = None) -> None:
    """Show the orders of a tracker, live where possible, and return at once.

    Parameters
    ----------
    tracker : OrderTracker
        Held weakly; any number of outputs may show it.
    record : callable, optional
        Called with errors of the display, which are never raised here. By default the tracker
        shows them, and its next call raises them once.
    """
    # An error of the tracker itself is raised; an error of the display is recorded.
    snapshot = tracker.snapshot()
    refresh = refresh_thread_of(tracker, record)
    with refresh.showing():
        if library := live_library():
            view_of(refresh, "show", lambda: None, library).show(snapshot, with_fallback=True)
            refresh.run()
        elif in_marimo():
            sys.modules["marimo"].output.append(marimo_value(tracker))
        elif in_kernel():
            note = " · ".join(filter(None, (broken_kernel(), as_of())))
            publish(static_bundle(table_model(snapshot), note), deque())
        else:
            write_lines(sys.stdout, text(snapshot).splitlines())


def mimebundle(
    tracker: OrderTracker,
    keys: Iterable[OrderKey] | None = None,
    include: Container[str] | None = None,
    exclude: Container[str] | None = None,
) -> dict[str, Any]:
    """Return the value of a cell: the live view, with HTML and text of the same moment.

    *include* and *exclude* are MIME types, as IPython passes them.
    """
    keys_of = _as_callable(keys)
    snapshot = tracker.snapshot(keys_of)
    bundle: dict[str, Any] = {}
    refresh = refresh_thread_of(tracker)
    with refresh.showing():
        if (library := live_library()) and not in_marimo():
            bundle = view_of(refresh, "show", keys_of, library).bundle(snapshot)
            refresh.run()
    bundle = bundle or static_bundle(table_model(snapshot), as_of())
    return {
        mime: value
        for mime, value in bundle.items()
        if (not include or mime in include) and not (exclude and mime in exclude)
    }


def widget(tracker: OrderTracker, keys: Iterable[OrderKey] | None = None) -> Any:
    """Return the live view as a widget, for Panel, Solara, Voila and layouts of your own.

    Parameters
    ----------
    tracker : OrderTracker
        Held weakly. The widget moves as long as the tracker runs.
    keys : iterable of OrderKey, optional
        The orders to show; None shows all.

    Returns
    -------
    ipywidgets.Widget
        Made of ipywidgets or, in marimo and after ``use("anywidget")``, an anywidget. The same
        page gets the same widget again; each page has its own.

    Raises
    ------
    SettingsError
        The library of the widgets is not installed.
    """
    keys_of = _as_callable(keys)
    snapshot = tracker.snapshot(keys_of)
    refresh = refresh_thread_of(tracker)
    made = view_of(refresh, "widget", keys_of, _choice()).widget(snapshot)
    refresh.run()
    return made


def marimo_value(tracker: OrderTracker, keys: Iterable[OrderKey] | None = None) -> Any:
    """Return what marimo shows as the value of a cell."""
    if _has_anywidget():
        return widget(tracker, keys)
    return sys.modules["marimo"].Html(html(tracker.snapshot(keys), note=NO_ANYWIDGET_NOTE))


def view_of(refresh: RefreshThread, purpose: str, keys_of: KeysOf, library: str) -> LiveView:
    """Return the view of a page for that purpose; a second output reuses its widgets."""
    keys, (page, exists) = keys_of(), _page()
    name: object = (purpose, library, page, None if keys is None else tuple(keys))
    if purpose == "wait" and refresh.is_visible(name):
        # Two tasks wait for the same orders.
        name = object()
    view = refresh.view(name, lambda: _new_view(refresh, keys_of, library))
    view.page_exists = exists
    if purpose == "wait":
        view.detach_outputs(keys_of)
    return view


def _new_view(refresh: RefreshThread, keys_of: KeysOf, library: str) -> LiveView:
    # The widgets are imported only where they are shown.
    if library == "ipywidgets":
        from regards_nb.display.widgets import WidgetView

        return WidgetView(refresh.tracker, keys_of)
    from regards_nb.display.anywidgets import AnyWidgetView

    return AnyWidgetView(refresh.tracker, keys_of)


# -- while waiting


class Watch:
    """The value of :func:`watching`: the wait calls it, and it never raises into the wait."""

    def __init__(self, view: WaitView | None, refresh: RefreshThread) -> None:
        self._view = view
        self._refresh = refresh

    def refresh(self, *, note: str = "") -> None:
        """Update the view; the waiting thread calls this several times a second.

        *note* says what the wait is for, without a countdown: a log file gets each new note as a
        line.
        """
        if self._view is not None:
            with self._refresh.recording():
                self._view.refresh(note=note)


@contextmanager
def watching(
    tracker: OrderTracker,
    keys: Iterable[OrderKey] | Callable[[], Iterable[OrderKey]] | None = None,
    *,
    blocking: bool = True,
    record: Callable[[Exception], object] | None = None,
) -> Iterator[Watch]:
    """Show these orders while the caller waits; show their last state at the end.

    Parameters
    ----------
    tracker : OrderTracker
        The tracker that waits.
    keys : iterable of OrderKey, or callable, optional
        The orders waited for, or a callable that returns those known so far; None means all.
    blocking : bool
        Whether the cell blocks the kernel: the view then says what that means for its buttons.
    record : callable, optional
        Called with errors of the display, which are never raised here. By default the tracker
        shows them, and its next call raises them once.

    Yields
    ------
    Watch
        The wait calls its ``refresh``.
    """
    refresh = refresh_thread_of(tracker, record)
    view: WaitView | None = None
    note = ""
    try:
        with refresh.showing():
            view = _wait_view(refresh, tracker, _as_callable(keys), blocking=blocking)
            # A view that was opened is closed below, also if the stop button is pressed now.
            view.open()
        with shown_meanwhile():
            yield Watch(view, refresh)
    except BaseException as exc:
        note = _last_note(exc)
        raise
    finally:
        if view is not None:
            with refresh.showing():
                view.close(note)


class NotebookWaitView:
    """A wait in a notebook: the refresh thread paints."""

    def __init__(
        self, refresh: RefreshThread, tracker: OrderTracker, view: LiveView, note: str
    ) -> None:
        self._refresh = refresh
        self._tracker = tracker
        self._view = view
        self._standing_note = note

    def open(self) -> None:
        """Put the view below the cell, and start the refresh thread."""
        self._view.say(self._standing_note)
        self._view.show(self._tracker.snapshot(self._view.keys_of))
        self._refresh.run()

    def refresh(self, *, note: str = "") -> None:
        """Change the note; the refresh thread shows it."""
        self._view.say(" · ".join(filter(None, (note, self._standing_note))))

    def close(self, note: str = "") -> None:
        """Replace the live view by the last state."""
        snapshot = self._tracker.snapshot(self._view.keys_of)
        with unasked():
            # The view outlives the wait, and the callable of the wait may hold the tracker.
            self._view.keys_of = _as_callable(self._view.keys_of())
        self._view.freeze(snapshot, note)
        if not in_marimo():
            # jupyter-console cannot replace an output, and would leave the state at the beginning.
            publish({"text/html": "", "text/plain": last_line(snapshot)}, deque())


#: Views that last as long as a wait. They are called on the waiting thread only.
WaitView = LogView | ScreenView | NotebookWaitView


def _wait_view(
    refresh: RefreshThread, tracker: OrderTracker, keys_of: KeysOf, *, blocking: bool
) -> WaitView:
    library = live_library()
    if not library:
        if reason := broken_kernel():
            write_lines(sys.stdout, [reason])
        if is_screen(sys.stdout):
            return ScreenView(tracker, keys_of, sys.stdout, interval_s=INTERVAL_S)
        return LogView(tracker, keys_of, sys.stdout)
    view = view_of(refresh, "wait", keys_of, library)
    return NotebookWaitView(refresh, tracker, view, BLOCKING_NOTE if blocking else "")


def _as_callable(keys: Iterable[OrderKey] | Callable[[], Iterable[OrderKey]] | None) -> KeysOf:
    if keys is None:
        return lambda: None
    if callable(keys):
        return keys
    fixed = tuple(keys)
    return lambda: fixed


def _last_note(exc: BaseException) -> str:
    """Return a sentence on how the wait ended, if it ended by an exception."""
    # The interrupt of a cell and the cancelling of a task both mean: the user pressed stop.
    if isinstance(exc, KeyboardInterrupt) or type(exc).__name__ == "CancelledError":
        return f"You stopped waiting; {STILL_TRACKED}."
    if isinstance(exc, TimeoutError):
        return f"The time limit is reached; {STILL_TRACKED}."
    if not isinstance(exc, Exception):
        return "The call was stopped."  # by SIGTERM, or at the end of Python
    # the tracker may have stopped: nothing is said of the background
    return f"The call ended with {type(exc).__name__}."
