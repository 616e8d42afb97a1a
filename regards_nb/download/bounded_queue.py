"""A queue between two threads that is bounded in bytes and can be closed from either side."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_T = TypeVar("_T")

#: A waiting thread wakes up this often: on Windows, Ctrl-C does not interrupt a wait.
_WAKE_S = 0.25


class QueueClosed(Exception):  # noqa: N818 - a signal between two threads, not an error
    """The other thread does not use the queue any more."""


class BoundedQueue(Generic[_T]):
    """A queue between two threads that holds a limited number of bytes.

    :meth:`put` waits while the queue holds *limit_bytes*; one item may be larger. With
    *held_until_done* an item that was taken still counts, until :meth:`done` is called for it.
    """

    def __init__(self, limit_bytes: int, *, held_until_done: bool = False) -> None:
        self._limit_bytes = limit_bytes
        self._held_until_done = held_until_done
        self._held_bytes = 0
        self._items: deque[tuple[_T, int]] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False

    def put(self, item: _T, size_bytes: int) -> None:
        """Add an item as soon as there is room; QueueClosed: the other thread takes no more."""
        with self._changed:
            while self._held_bytes >= self._limit_bytes and not self._closed:
                self._changed.wait(_WAKE_S)
            if self._closed:
                raise QueueClosed
            self._items.append((item, size_bytes))
            self._held_bytes += size_bytes
            self._changed.notify_all()

    def end(self) -> None:
        """Say that nothing more will be added; the items in the queue can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Close the queue at once for both threads and drop its items."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    @property
    def is_empty(self) -> bool:
        """Whether the next :meth:`take` would have to wait."""
        return not self._items

    def take(self, timeout_s: float = _WAKE_S) -> _T | None:
        """Return the next item, or None if none comes in time; QueueClosed: no more will come."""
        with self._changed:
            if not self._items and not self._ended and not self._closed:
                self._changed.wait(timeout_s)
            if self._items:
                item, size_bytes = self._items.popleft()
                if not self._held_until_done:
                    self._held_bytes -= size_bytes
                    self._changed.notify_all()
                return item
            if self._ended or self._closed:
                raise QueueClosed
            return None

    def done(self, size_bytes: int) -> None:
        """Count bytes of items that were taken no longer; for *held_until_done*."""
        with self._changed:
            self._held_bytes -= size_bytes
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_T]:
        """Yield all items until the queue ends."""
        while True:
            try:
                item = self.take()
            except QueueClosed:
                return
            if item is not None:
                yield item
