"""The threads of this package: daemons, so that Python can exit while they run."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec

from regards_nb.errors import TrackingError
from regards_nb.waits import ended_by, fulfil, joined, stopped_by_user

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_Job = tuple[Future[Any], "Callable[[], Any]"]


def begin(
    name: str, work: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs
) -> threading.Thread:
    """Start a thread that calls a function."""
    thread = threading.Thread(
        target=work, args=args, kwargs=kwargs, name=f"regards-nb-{name}", daemon=True
    )
    thread.start()
    return thread


class OwnThread(threading.Thread):
    """A thread that ends when *work* returns; *died* is called in it if an exception ends it.

    Other code of the process can throw any exception into a thread. The error says what the thread
    *does*, and what the user can do *then*. The work ends when *stop* is set: by `end`, which waits
    for *awaits*, or when the *owner* is collected; so do its requests to REGARDS. *obstacle*
    returns what its journal waits for.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        does: str,
        then: str = "Call tracker.start()",
        died: Callable[[TrackingError], object],
        stop: threading.Event | None = None,
        owner: object = None,
        awaits: str = "",
        obstacle: Callable[[], str] = str,
    ) -> None:
        super().__init__(target=work, name=f"regards-nb-{name}", daemon=True)
        self._text = f"the thread that {does} has ended{{}}. {then}"
        self._stop_event = stop or threading.Event()
        self._awaits, self._obstacle = awaits, obstacle
        if owner is not None:
            weakref.finalize(owner, self._stop_event.set).atexit = False
        self._died = died
        self._error: TrackingError | None = None
        self._has_returned = False

    @property
    def death(self) -> TrackingError | None:
        """Why it has ended by itself; None before the start, while it runs, and after its work."""
        if self._error is None and self.ident is not None and not self.is_alive():
            # After a fork, the child process has no such thread.
            return None if self._has_returned else TrackingError(self._text.format(""))
        return self._error

    def end(self, timeout_s: float) -> bool:
        """Have it end; return whether it did within *timeout_s*. After a second it is said."""
        self._stop_event.set()

        def text(limit: str) -> str:
            if obstacle := self._obstacle():
                return f"stop() waits for the journal, {limit}; {obstacle}"
            return f"stop() waits for {self._awaits}, {limit}"

        return self.ident is None or joined([self], timeout_s, text)

    def run(self) -> None:
        """Work, and tell what has ended the work."""
        try:
            with ended_by(self._stop_event):
                super().run()
            self._has_returned = True
        except BaseException as exc:  # noqa: BLE001 - see above
            cause = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
            self._error = TrackingError(self._text.format(f" ({cause})"))
            self._error.__cause__ = exc
            self._died(self._error)


class JobThreads:
    """Up to *count* daemon threads for jobs, which end when no job waits.

    `concurrent.futures` keeps Python from exiting until its jobs are done; a download must not.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._jobs: deque[_Job] = deque()
        self._threads: set[threading.Thread] = set()
        # Several threads may submit, and a thread that ends must not miss a job.
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Run *job* in one of the threads."""
        future: Future[Any] = Future()
        with self._lock:
            self._jobs.append((future, job))
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            if len(self._threads) < self._count:
                self._threads.add(begin(self._name, self._work))
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads.discard(threading.current_thread())
                    return
                future, job = self._jobs.popleft()
            if future.set_running_or_notify_cancel():
                fulfil(future, job)
            del future, job

    def stop(self, timeout_s: float, job: Callable[[], str]) -> str:
        """Drop the jobs that wait, and `finish` the running ones."""
        self._drop_waiting()
        return self.finish(timeout_s, job)

    def finish(self, timeout_s: float, job: Callable[[], str], *, then: str = "") -> str:
        """Return when all jobs have ended; drop those that still wait after *timeout_s*.

        *job* returns what runs now; after a second it is said that this is waited for.
        The result is empty, or says which job has not ended, and what comes *then*.
        """
        with self._lock:
            others = list(self._threads - {threading.current_thread()})
        with stopped_by_user(lambda: f"stop() was stopped: {job()} still runs{then}"):
            if joined(
                others, timeout_s, lambda limit: f"stop() waits until {job()} has ended, {limit}"
            ):
                return ""
        running = job()
        self._drop_waiting()
        with self._lock:
            self._threads.difference_update(others)  # later jobs do not wait for these
        return f"{running} did not end within {timeout_s:g} s, and still runs{then}"

    def _drop_waiting(self) -> None:
        with self._lock:
            jobs, self._jobs = self._jobs, deque()
        for future, _ in jobs:
            future.cancel()
