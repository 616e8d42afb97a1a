"""How often a view is repainted: at most five times a second, and only if something changed.

That holds for notebooks and terminals (`INTERVAL_S`), however fast events arrive: Jupyter servers
silently drop updates above a thousand messages a second. Two repaints come at once: of a filter
that the user types (`LiveView.on_filter`), and of a note with new words in a terminal
(`ScreenView.refresh`). In notebooks, repaints are rarer

- where one takes long: those of a view take 1.5 % of a processor (`MAX_SHARE`);
- where there are more orders than rows: once a second (`CROWDED_INTERVAL_S`);
- where only elapsed times change: every 5 s (``TICK_S`` of `model`).

In a notebook one thread repaints all views of a tracker: it renders a snapshot when the tracker's
version number grew, so a slow or broken page cannot delay the consumer. The thread holds the
tracker weakly. It ends with the tracker, with its last visible view, or with ``close``. In a
terminal the thread of the user repaints while it waits (`terminal`).
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from regards_nb.display.model import MAX_ROWS, TICK_S
from regards_nb.threads import OwnThread

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from regards_nb.display.live import LiveView
    from regards_nb.tracker import OrderTracker

INTERVAL_S = 0.2
#: The same where not all orders fit into the table.
CROWDED_INTERVAL_S = 1.0
#: Thread wake-ups come early by up to this.
TOLERANCE_S = 0.05
#: The part of one processor that repaints may take: with thousands of orders they become rarer.
MAX_SHARE = 0.015
#: The longest pause that the cost of a repaint makes.
MAX_PAUSE_S = 10.0
#: A view that could not be painted is tried again after this.
RETRY_S = 1.0
#: Views that ended are kept for clicks that are still on their way, up to this number.
MAX_HIDDEN = 8
JOIN_TIMEOUT_S = 2.0
TRACKER_DELETED = "This tracker no longer exists; this is its last state."

_log = logging.getLogger(__name__)


class RefreshThread:
    """The views of one tracker, which is held weakly, and the thread that paints them.

    *record* is called with each new error of the display, instead of ``record_background_error`` of
    the tracker. A bound method is held weakly.
    """

    def __init__(
        self, tracker: OrderTracker, record: Callable[[Exception], object] | None = None
    ) -> None:
        self.tracker: weakref.ref[OrderTracker] = weakref.ref(tracker)
        self._record: Callable[[], Callable[[Exception], object] | None] = (
            weakref.WeakMethod(record) if inspect.ismethod(record) else lambda: record
        )
        #: The last error, until what it has ended succeeds: a view (its id), or a `showing`.
        self._last_error, self._failing = "", 0
        # Guards _views and thread; not held while painting.
        self._lock = threading.Lock()
        self._views: dict[Hashable, LiveView] = {}
        #: While a view is visible.
        self.thread: threading.Thread | None = None
        self._closed = threading.Event()
        #: Of each view what it shows, and when it may and when it must be repainted.
        self._painted: weakref.WeakKeyDictionary[LiveView, tuple[object, float, float]] = (
            weakref.WeakKeyDictionary()
        )

    def is_visible(self, name: Hashable) -> bool:
        """Return whether a view of that name is visible."""
        with self._lock:
            view = self._views.get(name)
        return view is not None and view.visible

    def view(self, name: Hashable, make: Callable[[], LiveView]) -> LiveView:
        """Return the view of that name; *make* it if there is none."""
        with self._lock:
            unreachable = self._take_unreachable()
            # The dict is in the order of use.
            self._views[name] = found = self._views.pop(name, None) or make()
            hidden = [key for key, view in self._views.items() if not view.visible]
            old = [self._views.pop(key) for key in hidden[:-MAX_HIDDEN]]
        _discard(unreachable)
        for view in old:
            with self.recording():
                view.close()
        return found

    def _take_unreachable(self) -> list[LiveView]:
        """Take out the views whose page has ended. The caller holds the lock."""
        names = [name for name, view in self._views.items() if not view.is_alive]
        return [self._views.pop(name) for name in names]

    def paint(self, view: LiveView, tracker: OrderTracker) -> None:
        """Paint one view if something changed."""
        try:
            # Read before the snapshot: at worst the same state is painted twice. The version does
            # not tell that a journal has waited for long.
            state = tracker.version, tracker.health.reason
            painted, not_before, tick = self._painted.get(view, (None, 0.0, 0.0))
            now, began = time.monotonic(), time.thread_time()
            # times of running orders change by themselves
            is_due = now >= tick and view.last is not None and view.last.is_moving
            if (state == painted and not view.changed and not is_due) or now < not_before:
                return
            snapshot = tracker.snapshot(view.keys_of)
            view.paint(snapshot)
            pause_s = min((time.thread_time() - began) / MAX_SHARE, MAX_PAUSE_S)
            is_crowded = len(snapshot.orders) > MAX_ROWS
            interval_s = CROWDED_INTERVAL_S if is_crowded else INTERVAL_S
            not_before = now + max(pause_s, interval_s) - TOLERANCE_S
            self._painted[view] = (state, not_before, now + TICK_S)
            self._note_success(id(view))
        except Exception as exc:  # noqa: BLE001 - recorded, and tried again
            self._painted[view] = (None, time.monotonic() + RETRY_S, 0.0)
            if view.is_alive:  # else the page has ended meanwhile
                self._record_error(exc, id(view))

    def run(self) -> None:
        """Start the thread unless it runs."""
        with self._lock:
            if (self.thread is None or not self.thread.is_alive()) and not self._closed.is_set():
                self.thread = OwnThread(
                    "display",
                    self._run,
                    does="repaints the views",
                    then="Call tracker.show()",
                    died=self._record_error,
                )
                self.thread.start()

    def close(self, note: str = "") -> None:
        """Freeze every view, close the widgets, and end the thread."""
        self._closed.set()
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT_S)
        self._freeze_all(note)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record an error of the display instead of raising it; one that lasts only once."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - a broken page must not stop the tracking
            self._record_error(exc)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Do the same while a state is shown: after a success the same error is a new one."""
        with self.recording():
            yield
            self._note_success(0)

    def _note_success(self, view: int) -> None:
        if view == self._failing:
            self._last_error = ""

    def _record_error(self, exc: Exception, view: int = 0) -> None:
        words = f"{type(exc).__name__}: {exc}"
        if words == self._last_error:
            return
        self._last_error, self._failing = words, view
        _log.warning("the display could not be updated: %s", words)
        record, tracker = self._record(), self.tracker()
        try:
            if record is not None:
                record(exc)
            elif tracker is not None:
                tracker.record_background_error("updating the display", exc)
        except Exception:  # noqa: BLE001 - an error of the recorder is logged only
            _log.exception("the display error could not be recorded")

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL_S):
            if not self._tick():
                return

    def _tick(self) -> bool:
        """Paint the views that changed; return whether to go on."""
        tracker = self.tracker()
        if tracker is None:
            self._freeze_all(TRACKER_DELETED)
            return False
        with self._lock:
            unreachable = self._take_unreachable()
            views = [view for view in self._views.values() if view.visible]
            if not views:
                self.thread = None
        _discard(unreachable)
        for view in views:
            self.paint(view, tracker)
        return bool(views)

    def _freeze_all(self, note: str = "") -> None:
        with self._lock:
            views, self._views, self.thread = list(self._views.values()), {}, None
        tracker = self.tracker()
        for view in views:
            with self.recording():
                last = view.last
                if tracker is not None:
                    with self.recording():
                        last = tracker.snapshot(view.keys_of)
                if view.visible and last is not None:
                    view.freeze(last, note)
                view.close()


def _discard(views: Iterable[LiveView]) -> None:
    """Remove the widgets of views whose page has ended from memory: the page cannot be told."""
    for view in views:
        with suppress(Exception):
            view.discard(keep_table=False)


_THREADS: weakref.WeakKeyDictionary[OrderTracker, RefreshThread] = weakref.WeakKeyDictionary()
_THREADS_LOCK = threading.Lock()


def refresh_thread_of(
    tracker: OrderTracker, record: Callable[[Exception], object] | None = None
) -> RefreshThread:
    """Return the refresh thread of a tracker; each tracker has one."""
    with _THREADS_LOCK:
        found = _THREADS.get(tracker)
        if found is None:
            found = _THREADS[tracker] = RefreshThread(tracker, record)
        return found


def close_views(tracker: OrderTracker, *, note: str = "") -> None:
    """Replace every live view of a tracker by its last state, and end the refresh thread.

    Parameters
    ----------
    tracker : OrderTracker
        The tracker; ``show()`` opens new views later.
    note : str
        A sentence below the headline.
    """
    with _THREADS_LOCK:
        found = _THREADS.pop(tracker, None)
    if found is not None:
        found.close(note)
