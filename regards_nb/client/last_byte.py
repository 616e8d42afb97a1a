"""When the last byte of REGARDS came, for the threads of a download: a wait tells it its user."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LastByte:
    """When the last byte came to the threads that run in `watched` with this object."""

    #: A shorter time without a byte is not told.
    told_after_s = 2.0
    #: A request without a byte for so long may be on a dead connection.
    hangs_after_s = 5.0

    def __init__(self) -> None:
        #: When each thread that waits now began to, or got its last byte.
        self.since_s: dict[int, float] = {}
        #: When the last byte came to any of them, or the first one began to wait.
        self.silent_since_s, self.silent_since = 0.0, datetime.now(UTC)
        #: What each thread says that pauses before it asks again.
        self.pauses: dict[int, str] = {}
        #: Why the last request failed that is repeated; empty before.
        self.failure = ""
        #: Who is waited for, and after how long a request is given up; 0: another thread knows.
        self.origin, self.limit_s = "", 0.0

    @property
    def age_s(self) -> float:
        """Time since the last byte; 0 while no thread waits for one."""
        return time.monotonic() - self.silent_since_s if self.since_s else 0.0

    @property
    def hangs(self) -> bool:
        """Whether a new request may be answered earlier than the newest of those that wait."""
        newest_s = max(list(self.since_s.values()), default=math.inf)
        return time.monotonic() - newest_s >= self.hangs_after_s

    def begin_silence(self) -> None:
        """Count from now on the time without a byte."""
        self.silent_since_s, self.silent_since = time.monotonic(), datetime.now(UTC)

    def forget_requests(self) -> None:
        """Say nothing of the requests so far, which were stopped; a thread may still wait."""
        self.pauses.clear()
        self.begin_silence()

    def text(self, what: str) -> str:
        """Say that no byte of *what* came for long, or why a request is repeated; else empty.

        The time since when it tells one silence from the next; a log writes each of them once.
        """
        if pauses := list(self.pauses.values()):
            return pauses[0]
        if self.age_s < self.told_after_s:
            return ""
        since = f"since {self.silent_since:%H:%M:%S} UTC"
        if not self.limit_s:
            return f"no byte of {what} {since}: it waits for {self.origin}"
        return (
            f"no byte of {what} from {self.origin} {since}; the request is given up after "
            f"{self.limit_s:.0f} s, and tried again"
        )


class _OfThread(threading.local):
    def __init__(self) -> None:
        #: of a thread outside of `watched`, nobody reads it
        self.last_byte = LastByte()


_of_thread = _OfThread()


@contextmanager
def watched(last_byte: LastByte) -> Iterator[None]:
    """Note in *last_byte* the bytes that come to this thread during the block."""
    before, _of_thread.last_byte = _of_thread.last_byte, last_byte
    try:
        yield
    finally:
        _of_thread.last_byte = before


@contextmanager
def waiting(origin: str = "", limit_s: float = 0.0) -> Iterator[None]:
    """Wait for bytes in the block; *origin* names the server at the start of a request."""
    last_byte = _of_thread.last_byte
    if origin:
        last_byte.origin, last_byte.limit_s = origin, limit_s
    if not last_byte.since_s:  # a request beside another one is no byte
        last_byte.begin_silence()
    last_byte.since_s[threading.get_ident()] = time.monotonic()
    try:
        yield
    finally:
        last_byte.since_s.pop(threading.get_ident(), None)


@contextmanager
def pausing(text: str, failure: str = "") -> Iterator[None]:
    """Ask for nothing in the block, as in a pause before a request is repeated; *text* says why.

    *failure*: the same without the time of the next attempt.
    """
    last_byte = _of_thread.last_byte
    last_byte.failure = failure
    last_byte.pauses[threading.get_ident()] = text
    try:
        yield
    finally:
        last_byte.pauses.pop(threading.get_ident(), None)


def byte_came() -> None:
    """Note in a `waiting` block that this thread waits from now on for the next byte."""
    last_byte, thread = _of_thread.last_byte, threading.get_ident()
    if thread in last_byte.since_s:
        last_byte.begin_silence()
        last_byte.since_s[thread] = last_byte.silent_since_s


def asking_again(pause_s: float, reason: str) -> str:
    """Say when a request is repeated, and why; no countdown, because the text is shown for long."""
    at = datetime.now(UTC) + timedelta(seconds=pause_s)
    return f"asking again at {at:%H:%M:%S} UTC: {reason}"
