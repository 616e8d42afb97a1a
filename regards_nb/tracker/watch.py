"""The thread that answers new events: with the user's callbacks, and with downloads."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from regards_nb.errors import IncompleteDownloadError, RegardsError, SettingsError
from regards_nb.events import OrderStatus
from regards_nb.tracker.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from regards_nb.events import OrderEvent
    from regards_nb.frames import EventQueue, Frames
    from regards_nb.orders import OrderKey
    from regards_nb.tracker.bell import Bell
    from regards_nb.tracker.downloads import Downloads
    from regards_nb.tracker.problems import Problems

#: How often the journal is looked at when no bell rings: another kernel may write to it.
POLL_S = 0.5
#: What arrives within so long is answered together: reading costs more for each time than for
#: each event. And whoever looks at the frames at once does not have to wait for this thread.
TOGETHER_S = 0.02
FIRST_RETRY_S = 15.0
LONGEST_RETRY_S = 900.0


class Watch:
    """Follows the events of one tracker while it is started."""

    def __init__(
        self, frames: Frames, bell: Bell, downloads: Downloads | None, problems: Problems
    ) -> None:
        self.callbacks: list[tuple[str, Callable[[OrderEvent], object]]] = []
        self._stop = threading.Event()
        self._runner = Workers("regards-nb-callback", 1)
        self._thread = threading.Thread(
            target=_follow,
            args=(
                frames,
                bell,
                self._stop,
                _Callbacks(self.callbacks, self._runner, problems),
                _AutoDownload(frames, downloads, problems) if downloads is not None else None,
            ),
            name="regards-nb-watch",
            daemon=True,
        )
        self._bell = bell
        weakref.finalize(self, self._stop.set).atexit = False
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._bell.ring()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        self._runner.stop(timeout_s)


def checked_callback(
    status: str, callback: Callable[[OrderEvent], object]
) -> tuple[str, Callable[[OrderEvent], object]]:
    """Return both, as they are kept; what can only be a slip is said to the user's own line."""
    if not callable(callback):
        raise SettingsError(f"callback must be a function of an OrderEvent, not {callback!r}")
    if status not in OrderStatus.__members__:
        # no error: a server may grow others, and their events are kept, too
        known = ", ".join(OrderStatus)
        warnings.warn(f"no event is known to have the status {status!r}: {known}", stacklevel=3)
    return str(status), callback


def _follow(
    frames: Frames,
    bell: Bell,
    stop: threading.Event,
    callbacks: _Callbacks,
    downloads: _AutoDownload | None,
) -> None:
    feed = frames.follow()
    try:
        seen = -1
        while not stop.is_set():
            seen = bell.wait(seen, POLL_S)
            stop.wait(TOGETHER_S)
            if _step(frames, feed, callbacks, downloads):
                # Another kernel may have written it; whoever waits here wants to know.
                bell.ring()
    finally:
        frames.unfollow(feed)


def _step(
    frames: Frames,
    feed: EventQueue,
    callbacks: _Callbacks,
    downloads: _AutoDownload | None,
) -> bool:
    """Answer what is new; tell whether there was anything."""
    try:
        frames.refresh()
    except RegardsError as exc:
        callbacks.problems.record("reading the journal", exc)
        return False
    news = [feed.popleft() for _ in range(len(feed))]
    callbacks.call([event for _, events in news for event in events])
    changed = dict.fromkeys(key for keys, _ in news for key in keys)
    if downloads is not None:
        downloads.fetch(list(changed))
    return bool(changed)


class _Callbacks:
    """Runs the user's callbacks one after the other, apart from everything else."""

    def __init__(
        self,
        registered: list[tuple[str, Callable[[OrderEvent], object]]],
        runner: Workers,
        problems: Problems,
    ) -> None:
        self._registered = registered
        self._runner = weakref.ref(runner)
        self.problems = problems

    def call(self, events: list[OrderEvent]) -> None:
        runner = self._runner()
        registered = list(self._registered)
        if runner is None or not registered:
            return
        for event in events:
            for status, callback in registered:
                if status == event.status:
                    runner.submit(partial(self._guarded, callback, event))

    def _guarded(self, callback: Callable[[OrderEvent], object], event: OrderEvent) -> None:
        try:
            callback(event)
        except Exception as exc:  # noqa: BLE001 - the user's code must not stop the tracking
            name = getattr(callback, "__name__", repr(callback))
            self.problems.record(f"callback {name} on {event.status}", exc)


class _AutoDownload:
    """Fetches each part when it is announced; what failed is tried again later."""

    def __init__(self, frames: Frames, downloads: Downloads, problems: Problems) -> None:
        self._frames = frames
        self._downloads = downloads
        self._problems = problems
        #: order → (not before, failures so far); at first, all orders there are
        self._due: dict[OrderKey, tuple[float, int]] = {
            state.key: (0.0, 0) for state in frames.states() if state.waits_for_download
        }

    def fetch(self, changed: list[OrderKey]) -> None:
        for key in changed:
            self._due.setdefault(key, (0.0, 0))
        now = time.monotonic()
        due = [key for key, (not_before, _) in self._due.items() if not_before <= now]
        for state in self._frames.states(due):
            if not state.waits_for_download or state.order_id is None:
                self._due.pop(state.key, None)
            elif not self._downloads.is_running(state.order_id):
                self._begin(state.key, state.order_id)

    def _begin(self, key: OrderKey, order_id: int) -> None:
        (state,) = self._frames.states([key])
        future = self._downloads.begin(state)
        future.add_done_callback(lambda done: self._ended(key, order_id, done))

    def _ended(self, key: OrderKey, order_id: int, done: Future[Any]) -> None:
        if done.cancelled() or (error := done.exception()) is None:
            return
        self._problems.record(f"downloading order {order_id}", error)
        if isinstance(error, IncompleteDownloadError):
            return
        _, failures = self._due.get(key, (0.0, 0))
        wait_s = min(FIRST_RETRY_S * 2**failures, LONGEST_RETRY_S)
        self._due[key] = (time.monotonic() + wait_s, failures + 1)
