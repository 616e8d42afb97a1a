"""The time of the last byte received, for the line that a waiting call prints."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from regards_nb.waits import having

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class _Wait:
    """A request that waits for bytes: its thread does, or one that reads for it."""

    def __init__(self, store: str, ending: str) -> None:
        #: When it began to wait, or got its last byte.
        self.since_s = time.monotonic()
        #: Which store of files it asks instead of REGARDS, and how that ends.
        self.store, self.ending = store, ending


class LastByte:
    """When the last byte came to the threads that run in `watched` with this object.

    They fetch the same: a byte that comes to one of them restarts the timer of all.
    """

    #: A shorter time without a byte is not told.
    told_after_s = 2.0
    #: A request without a byte for so long may be on a dead connection.
    hangs_after_s = 5.0

    def __init__(self) -> None:
        self.waits: list[_Wait] = []
        #: When the last byte came to any of them, or the first one began to wait.
        self.silent_since_s, self.silent_since = 0.0, datetime.now(UTC)
        #: What each thread says that pauses before it asks again.
        self.pauses: dict[int, str | Callable[[], str]] = {}
        #: Why the last request failed that is repeated; empty before.
        self.failure = ""
        #: Who is waited for, and after how long a request is given up; 0: the thread that logs in
        #: has that limit, or the user's function for the token.
        self.origin, self.limit_s = "", 0.0

    @property
    def age_s(self) -> float:
        """Time since the last byte; 0 while no request waits for one."""
        return time.monotonic() - self.silent_since_s if self.waits else 0.0

    @property
    def hangs(self) -> bool:
        """Whether a new request may be answered earlier than the newest of those that wait."""
        now_s, waits = time.monotonic(), list(self.waits)
        return bool(waits) and all(now_s - w.since_s >= self.hangs_after_s for w in waits)

    def begin_silence(self) -> None:
        """Count from now on the time without a byte."""
        self.silent_since_s, self.silent_since = time.monotonic(), datetime.now(UTC)

    def forget_requests(self) -> None:
        """Say nothing of the requests so far, which were stopped; a thread may still wait."""
        self.pauses.clear()
        self.begin_silence()

    def lacking(self, what: str) -> tuple[str, str]:
        """Say what does not come, and how the request ends: a byte of *what*, or of a store."""
        waits = list(self.waits)
        if waits and all(each.store for each in waits):
            return f"no answer of {waits[0].store}", waits[0].ending
        if not self.limit_s:
            return f"no byte of {what}", f": it waits for {self.origin}"
        ending = f"; the request is given up after {self.limit_s:.0f} s, and tried again"
        return f"no byte of {what} from {self.origin}", ending

    def text(self, what: str) -> str:
        """Say that no byte of *what* came for long, or why a request is repeated; else empty.

        The time since when it tells one silence from the next; a log writes each of them once.
        """
        pause = next(iter(list(self.pauses.values())), "")
        does = pause() if callable(pause) else pause
        if (does and isinstance(pause, str)) or self.age_s < self.told_after_s:
            return does
        lacking, ending = self.lacking(what)
        silence = f"{lacking} since {self.silent_since:%H:%M:%S} UTC{ending}"
        return "; ".join(filter(None, (does, silence)))


class Calls:
    """The calls that ask for the same at one time, each with its own `LastByte`.

    A response to one of them, such as an error, is no byte of another.
    """

    def __init__(self) -> None:
        #: Those that run, the oldest first.
        self._running: list[LastByte] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the bytes that come to this thread during the block, which is one call."""
        own = LastByte()
        self._running.append(own)
        try:
            with watched(own):
                yield
        finally:
            self._running.remove(own)

    @property
    def hangs(self) -> bool:
        """Whether a new call may be answered earlier than each that runs."""
        running = list(self._running)
        return bool(running) and all(each.hangs for each in running)

    def text(self, what: str) -> str:
        """Say why a call that pauses asks again, else since when the oldest one is silent."""
        running = list(self._running)
        running.sort(key=lambda each: not each.pauses)
        return next(filter(None, (each.text(what) for each in running)), "")


#: Of what is not `watched`: nobody reads it.
_not_read = LastByte()
_watched: ContextVar[LastByte] = ContextVar("watched", default=_not_read)
#: What a thread that reads for a request has from the one that sent it.
_waiting: ContextVar[_Wait | None] = ContextVar("waiting", default=None)


def watched(last_byte: LastByte) -> AbstractContextManager[None]:
    """Note in *last_byte* the bytes that come to this thread during the block."""
    return having(_watched, last_byte)


@contextmanager
def waiting(
    origin: str = "", limit_s: float = 0.0, *, store: str = "", ending: str = ""
) -> Iterator[None]:
    """Wait for bytes in the block; *origin* names the server at the start of a request.

    Where it waits for a *store* of files, and for no byte of REGARDS, *ending* says how that ends.
    """
    last_byte, own = _watched.get(), _Wait(store, ending)
    if origin:
        last_byte.origin, last_byte.limit_s = origin, limit_s
    if not last_byte.waits:  # a second request does not restart the timer
        last_byte.begin_silence()
    last_byte.waits.append(own)
    try:
        with having(_waiting, own):
            yield
    finally:
        last_byte.waits.remove(own)


@contextmanager
def pausing(text: str | Callable[[], str], failure: str = "") -> Iterator[None]:
    """Ask for nothing in the block, as in a pause before a request is repeated; *text* says why.

    A function returns how far work on this computer is; that a store does not answer is told, too.
    *failure* is why the last request failed, which `LastByte.failure` keeps.
    """
    last_byte = _watched.get()
    last_byte.failure = failure
    last_byte.pauses[threading.get_ident()] = text
    try:
        yield
    finally:
        last_byte.pauses.pop(threading.get_ident(), None)


def byte_came() -> None:
    """Note in a `waiting` block that its request waits from now on for the next byte."""
    last_byte, wait = _watched.get(), _waiting.get()
    if wait is not None and wait in last_byte.waits:
        last_byte.begin_silence()
        wait.since_s = last_byte.silent_since_s


def asking_again(pause_s: float, reason: str) -> str:
    """Say when a request is repeated, and why; no countdown, because the text is shown for long."""
    at = datetime.now(UTC) + timedelta(seconds=pause_s)
    return f"asking again at {at:%H:%M:%S} UTC: {reason}"
