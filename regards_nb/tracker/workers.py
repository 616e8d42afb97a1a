"""Daemon threads that take jobs from a queue.

`concurrent.futures` keeps Python from exiting until its jobs are done; a download must not.
"""

from __future__ import annotations

import queue
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_Job = tuple["Future[Any]", "Callable[[], Any]"]


class Workers:
    """Up to *count* threads, started when there is something to do."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._jobs, count).atexit = False

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Run *job* in one of the threads."""
        future: Future[Any] = Future()
        with self._lock:
            self._jobs.put((future, job))
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) < self._count:
                thread = threading.Thread(
                    target=_work, args=(self._jobs,), name=self._name, daemon=True
                )
                self._threads.append(thread)
                thread.start()
        return future

    def stop(self, timeout_s: float) -> None:
        """Drop the waiting jobs, let the running ones end, and wait for that."""
        with self._lock:
            threads, self._threads = self._threads, []
            while not self._jobs.empty():
                job = self._jobs.get()
                if job is not None:
                    job[0].cancel()
            _end(self._jobs, len(threads))
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout_s)


def _end(jobs: queue.SimpleQueue[_Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    # Given the queue and not the owner, which can then be collected.
    while (item := jobs.get()) is not None:
        future, job = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as exc:  # noqa: BLE001 - whoever asked for the result gets it
                future.set_exception(exc)
        del item, future, job
