"""What carries work from one thread to the next: bounded in bytes, and stopped by either end."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_T = TypeVar("_T")

#: How often a waiting side looks up, to notice what no notification tells: Ctrl-C on Windows.
_GLANCE_S = 0.25


class BeltStopped(Exception):  # noqa: N818 - not an error: a signal between two threads
    """The other end does not take part any more."""


class Belt(Generic[_T]):
    """A queue between two threads that holds a limited number of bytes.

    Parameters
    ----------
    limit_bytes : int
        More than this is not laid on; a single thing may be larger.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._load_bytes = 0
        self._things: deque[tuple[_T, int]] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False

    def put(self, thing: _T, size_bytes: int) -> None:
        """Lay something on, when there is room.

        Raises
        ------
        BeltStopped
            Nobody takes from the belt any more.
        """
        with self._changed:
            while self._load_bytes >= self._limit_bytes and not self._stopped:
                self._changed.wait(_GLANCE_S)
            if self._stopped:
                raise BeltStopped
            self._things.append((thing, size_bytes))
            self._load_bytes += size_bytes
            self._changed.notify_all()

    def end(self) -> None:
        """Say that nothing more comes; what lies on the belt can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop at once, for both sides; what lies on the belt is lost."""
        with self._changed:
            self._stopped = True
            self._things.clear()
            self._changed.notify_all()

    @property
    def is_empty(self) -> bool:
        """Whether the next :meth:`take` would have to wait."""
        return not self._things

    def take(self, timeout_s: float = _GLANCE_S) -> _T | None:
        """Return the next thing, or None if none comes in time.

        Raises
        ------
        BeltStopped
            Nothing more will come.
        """
        with self._changed:
            if not self._things and not self._ended and not self._stopped:
                self._changed.wait(timeout_s)
            if self._things:
                thing, size_bytes = self._things.popleft()
                self._load_bytes -= size_bytes
                self._changed.notify_all()
                return thing
            if self._ended or self._stopped:
                raise BeltStopped
            return None

    def __iter__(self) -> Iterator[_T]:
        """Yield everything until the belt ends."""
        while True:
            try:
                thing = self.take()
            except BeltStopped:
                return
            if thing is not None:
                yield thing
