"""The one thread that repaints the views of a tracker, at most five times a second.

It pulls: it looks at the tracker's version number and renders a snapshot when that grew. However
fast events come, the page gets five updates a second (above a thousand messages a second, Jupyter
servers drop updates without a word), and a slow or broken page never reaches the consumer.

The thread holds the tracker weakly and ends with it, with its last view, or with ``close``.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from regards_nb.display.sources import SnapshotView, TrackerView, Wanted

INTERVAL_S = 0.2
#: Ticks are not exact.
TOLERANCE_S = 0.05
#: Thousands of orders take longer to look through: then paintings are rarer, so that this part of
#: one processor is enough.
MAX_SHARE = 0.03
#: After an error the next attempt comes later and later, up to this.
MAX_PAUSE_S = 10.0
#: Views that ended are kept for clicks that are still on their way, but not for ever.
MAX_HIDDEN = 8
JOIN_TIMEOUT_S = 2.0
FAREWELL = "This tracker is gone; this is the last it showed."
STOPPED = "STOPPED"

_log = logging.getLogger(__name__)
# Without any handler Python would write warnings to stderr: into whatever cell runs.
_log.addHandler(logging.NullHandler())


class Panel(Protocol):
    """A view that can be painted."""

    visible: bool

    @property
    def interval_s(self) -> float:
        """The least time between two paintings."""

    @property
    def wanted(self) -> Wanted:
        """Which orders it shows."""

    @property
    def last(self) -> SnapshotView | None:
        """What it showed last."""

    @property
    def changed(self) -> bool:
        """Whether there is something to paint even if the tracker did not change."""

    def paint(self, snapshot: SnapshotView) -> None:
        """Bring the view up to date."""

    def freeze(self, snapshot: SnapshotView, note: str = "") -> None:
        """Leave the last state standing."""

    def close(self) -> None:
        """Give back what the view holds."""


class Painter:
    """The panels of one tracker and the thread that paints them.

    Parameters
    ----------
    tracker : OrderTracker
        Held weakly.
    record : callable, optional
        Gets each new error of the display; a bound method is held weakly.
    """

    def __init__(
        self, tracker: TrackerView, record: Callable[[Exception], object] | None = None
    ) -> None:
        self.tracker: weakref.ref[TrackerView] = weakref.ref(tracker)
        self._record: Callable[[], Callable[[Exception], object] | None] = _weakly(record)
        self._last_error = ""
        # Guards _panels and _thread; never held while painting.
        self._lock = threading.Lock()
        self._panels: dict[Hashable, Panel] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._painted: weakref.WeakKeyDictionary[Panel, tuple[int, float]] = (
            weakref.WeakKeyDictionary()
        )
        self._was_running = self._has_stopped = False

    @property
    def thread(self) -> threading.Thread | None:
        """The repaint thread, while there is something to paint."""
        return self._thread

    def is_visible(self, name: Hashable) -> bool:
        """Return whether a panel of that name is being shown."""
        with self._lock:
            panel = self._panels.get(name)
        return panel is not None and panel.visible

    def panel(self, name: Hashable, make: Callable[[], Panel]) -> Panel:
        """Return the panel of that name, making it if need be."""
        with self._lock:
            found = self._panels.pop(name, None) or make()
            # Last is youngest.
            self._panels[name] = found
            hidden = [key for key, panel in self._panels.items() if not panel.visible]
            old = [self._panels.pop(key) for key in hidden[:-MAX_HIDDEN]]
        for panel in old:
            with self.recording():
                panel.close()
        return found

    def paint(self, panel: Panel, tracker: TrackerView) -> bool:
        """Paint one panel if there is news; return whether that went well."""
        try:
            # Read before the snapshot: at worst the same state is painted twice.
            version = tracker.version
            painted, not_before = self._painted.get(panel, (-1, 0.0))
            now, began = time.monotonic(), time.thread_time()
            if (version == painted and not panel.changed) or now < not_before:
                return True
            snapshot = tracker.snapshot(panel.wanted())
            self._look_at_health(snapshot)
            panel.paint(snapshot)
            pause_s = min((time.thread_time() - began) / MAX_SHARE, MAX_PAUSE_S)
            self._painted[panel] = (version, now + max(pause_s, panel.interval_s) - TOLERANCE_S)
        except Exception as exc:  # noqa: BLE001 - recorded, tried again, never passed on
            self._painted.pop(panel, None)
            self._note_error(exc)
            return False
        return True

    def run(self) -> None:
        """Start the thread unless it runs."""
        with self._lock:
            if (self._thread is None or not self._thread.is_alive()) and not self._closed.is_set():
                # A daemon, because a kernel that restarts must not wait for a picture.
                self._thread = threading.Thread(
                    target=self._repaint, name="regards-nb-display", daemon=True
                )
                self._thread.start()

    def close(self, note: str = "") -> None:
        """Freeze every view, give back the widgets, and end the thread."""
        self._closed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT_S)
        self._freeze_all(note)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Let no error of the display through: record it, each once."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - a broken page must not stop the tracking
            self._note_error(exc)

    def _note_error(self, exc: Exception) -> None:
        said = f"{type(exc).__name__}: {exc}"
        if said == self._last_error:
            return
        self._last_error = said
        _log.warning("the display could not be updated: %s", said)
        record = self._record()
        if record is not None:
            try:
                record(exc)
            except Exception:  # noqa: BLE001 - nor may the recording of it
                _log.exception("the display error could not be recorded")

    def _repaint(self) -> None:
        pause_s = INTERVAL_S
        while not self._closed.wait(pause_s):
            going, well = self._tick()
            if not going:
                return
            pause_s = INTERVAL_S if well else min(2 * pause_s, MAX_PAUSE_S)

    def _tick(self) -> tuple[bool, bool]:
        """Paint what changed. Return whether to go on, and whether all went well."""
        tracker = self.tracker()
        if tracker is None:
            self._freeze_all(FAREWELL)
            return False, True
        with self._lock:
            panels = [panel for panel in self._panels.values() if panel.visible]
            if not panels:
                self._thread = None
                return False, True
        results = [self.paint(panel, tracker) for panel in panels]
        if self._has_stopped:
            self._freeze_all()
            return False, True
        return True, all(results)

    def _look_at_health(self, snapshot: SnapshotView) -> None:
        """Notice that the tracker ran and was stopped. One not started yet may still start."""
        running = snapshot.health.state.value != STOPPED
        self._was_running |= running
        self._has_stopped = self._was_running and not running

    def _freeze_all(self, note: str = "") -> None:
        with self._lock:
            panels, self._panels, self._thread = list(self._panels.values()), {}, None
            self._was_running = self._has_stopped = False
        tracker = self.tracker()
        for panel in panels:
            with self.recording():
                last = panel.last
                if tracker is not None:
                    with self.recording():
                        last = tracker.snapshot(panel.wanted())
                if panel.visible and last is not None:
                    panel.freeze(last, note)
                panel.close()


_PAINTERS: weakref.WeakKeyDictionary[TrackerView, Painter] = weakref.WeakKeyDictionary()
_PAINTERS_LOCK = threading.Lock()


def painter_of(
    tracker: TrackerView, record: Callable[[Exception], object] | None = None
) -> Painter:
    """Return the painter of a tracker, the same one every time."""
    with _PAINTERS_LOCK:
        painter = _PAINTERS.get(tracker)
        if painter is None:
            painter = _PAINTERS[tracker] = Painter(tracker, record)
        return painter


def close_views(tracker: TrackerView, *, note: str = "") -> None:
    """Replace every live view of a tracker by the last state, and end its repaint thread.

    Parameters
    ----------
    tracker : OrderTracker
        The tracker that stops; ``show()`` opens new views later, if wanted.
    note : str
        A sentence to stand below the headline.
    """
    with _PAINTERS_LOCK:
        painter = _PAINTERS.pop(tracker, None)
    if painter is not None:
        painter.close(note)


def _weakly(
    record: Callable[[Exception], object] | None,
) -> Callable[[], Callable[[Exception], object] | None]:
    """Hold a bound method weakly: it would keep its tracker alive."""
    if inspect.ismethod(record):
        return weakref.WeakMethod(record)
    return lambda: record
