"""What protects the connections of a journal from other threads and from Ctrl-C."""

from __future__ import annotations

import math
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from regards_nb.errors import JournalError
from regards_nb.waits import SAID_AFTER_S, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

_LOOK_EVERY_S = 0.1


def uninterrupted(work: Callable[[], _T], obstacle: Callable[[], str] = str) -> _T:
    """Return the result of *work*, which ends also if Ctrl-C or a signal ends this call.

    *obstacle* returns what is said after a second; the main thread alone speaks.

    Python raises the exceptions of signal handlers in the main thread, between any two steps of
    it: also after a transaction was opened, and before a variable holds it. A thread does the work
    of the main thread, and the exception ends the wait for it.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    job = _Job(work, obstacle)
    try:
        threading.Thread(target=job.run, name="regards-nb-transaction", daemon=True).start()
    except RuntimeError:  # Python ends, and starts no thread any more
        job.run()
    return job.result()


class _Job(Generic[_T]):
    """A piece of work that is done once."""

    def __init__(self, work: Callable[[], _T], obstacle: Callable[[], str]) -> None:
        self._work = work
        self._obstacle = obstacle
        self._outcome: Future[_T] = Future()
        self._first = threading.Lock()
        # Not the condition of the future: an exception of a signal handler can break its wait.
        self._unfinished = threading.Lock()
        self._unfinished.acquire()

    def run(self) -> None:
        """Do the work; a second call does nothing."""
        if not self._first.acquire(blocking=False):
            return
        try:
            self._outcome.set_result(self._work())
        except BaseException as exc:  # noqa: BLE001 - raised by `result`
            self._outcome.set_exception(exc)
        finally:
            self._unfinished.release()

    def result(self) -> _T:
        """Wait for the end of the work; return its result, or raise its exception."""
        while not self._unfinished.acquire(timeout=SAID_AFTER_S):
            if text := self._obstacle():
                told(text, math.inf)
        self._unfinished.release()
        return self._outcome.result()


class _Use:
    """One use of the connections. It ends with `leave`, or with the frame that holds it."""

    __slots__ = ("__weakref__",)


class ConnectionUseLock:
    """Many threads use the connections, or one closes them and opens others."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        # Weak: Ctrl-C can end a use before the code that ends it is reached.
        self._uses: weakref.WeakSet[_Use] = weakref.WeakSet()
        #: the thread that is inside of `exclusive`; it may use the connections there
        self._owner: int | None = None

    def enter(self) -> _Use:
        """Begin to use the connections. The caller holds the result."""
        use = _Use()
        with self._condition:
            while self._owner not in {None, threading.get_ident()}:
                self._condition.wait()
            self._uses.add(use)
        return use

    def leave(self, use: _Use) -> None:
        """End what `enter` began."""
        with self._condition:
            self._uses.discard(use)
            if not self._uses:
                self._condition.notify_all()

    @contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[None]:
        """Wait until no thread uses the connections, and let no other thread begin.

        JournalError: they are still used after *timeout_s*.
        """
        deadline = time.monotonic() + timeout_s
        with self._condition:
            while self._uses or self._owner is not None:
                if time.monotonic() < deadline:
                    self._condition.wait(_LOOK_EVERY_S)
                    continue
                raise JournalError(
                    "the files of the journal were changed, and other threads still read the old "
                    f"ones after {timeout_s:g} s. This is tried again"
                )
            self._owner = threading.get_ident()
        try:
            yield
        finally:
            with self._condition:
                self._owner = None
                self._condition.notify_all()
