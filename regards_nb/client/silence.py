"""How long the threads of a download have waited for a byte of REGARDS."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Silence:
    """How long no byte has come, for all threads that run in `watched` with this object."""

    #: A shorter silence is not told.
    told_after_s = 5.0

    def __init__(self) -> None:
        #: When each thread that waits now began to, or got its last byte.
        self._since_s: dict[int, float] = {}
        #: What each thread says that pauses before it asks again.
        self._pauses: dict[int, str] = {}
        #: Who is waited for, and after how long a request is given up; 0: another thread knows.
        self._origin = ""
        self._limit_s = 0.0

    @property
    def duration_s(self) -> float:
        """Time since the last byte; 0 while no thread waits for one."""
        since_s = max(list(self._since_s.values()), default=None)
        return 0.0 if since_s is None else time.monotonic() - since_s

    def text(self, what: str) -> str:
        """Say that no byte of *what* came for long, or why a request is repeated; else empty.

        The time doubles from one text to the next, because a log gets a line for each.
        """
        if pauses := list(self._pauses.values()):
            return pauses[0]
        duration_s, told_s = self.duration_s, self.told_after_s
        if duration_s < told_s:
            return ""
        while 2 * told_s <= duration_s:
            told_s *= 2
        if not self._limit_s:
            return f"no byte of {what} for more than {told_s:g} s: it waits for {self._origin}"
        return (
            f"no byte of {what} from {self._origin} for more than {told_s:g} s; the request is "
            f"given up after {self._limit_s:.0f} s, and tried again"
        )

    def begin(self) -> None:
        """Note that this thread waits from now on for the next byte."""
        self._since_s[threading.get_ident()] = time.monotonic()

    def end(self) -> None:
        """Note that this thread does not wait."""
        self._since_s.pop(threading.get_ident(), None)

    @contextmanager
    def pause(self, text: str) -> Iterator[None]:
        """Say *text* while this thread pauses in the block."""
        self._pauses[threading.get_ident()] = text
        try:
            yield
        finally:
            del self._pauses[threading.get_ident()]

    def ask(self, origin: str, limit_s: float) -> None:
        """Note whom this thread asks, and `begin`."""
        self._origin, self._limit_s = origin, limit_s
        self.begin()


class _Watch(threading.local):
    silence: Silence | None = None


_watch = _Watch()


@contextmanager
def watched(silence: Silence) -> Iterator[None]:
    """Note in *silence* how long this thread waits for bytes during the block."""
    before, _watch.silence = _watch.silence, silence
    try:
        yield
    finally:
        _watch.silence = before


@contextmanager
def waiting(origin: str = "", limit_s: float = 0.0) -> Iterator[None]:
    """Wait for bytes in the block; *origin* names the server at the start of a request."""
    silence = _watch.silence
    if silence is None:
        yield
        return
    if origin:
        silence.ask(origin, limit_s)
    else:
        silence.begin()
    try:
        yield
    finally:
        silence.end()


def pausing(text: str) -> AbstractContextManager[None]:
    """Pause in the block before a request is repeated; *text* says why."""
    silence = _watch.silence
    return nullcontext() if silence is None else silence.pause(text)


def asking_again(pause_s: float, reason: str) -> str:
    """Say when a request is repeated, and why; no countdown, because the text is shown for long."""
    at = datetime.now(UTC) + timedelta(seconds=pause_s)
    return f"asking again at {at:%H:%M:%S} UTC: {reason}"


def byte_came() -> None:
    """Note that bytes came for this thread, which may wait for more."""
    if _watch.silence is not None:
        _watch.silence.begin()
