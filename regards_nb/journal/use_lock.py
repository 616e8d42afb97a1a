"""A lock for the connections of a journal: many threads use them, or one closes them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from regards_nb.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator


class ConnectionUseLock:
    """Many threads use the connections, or one closes them and opens others."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._users = 0
        #: the thread that is inside of `exclusive`; it may use the connections there
        self._owner: int | None = None

    def enter(self) -> None:
        """Begin to use the connections."""
        with self._condition:
            while self._owner not in {None, threading.get_ident()}:
                self._condition.wait()
            self._users += 1

    def leave(self) -> None:
        """End what `enter` began."""
        with self._condition:
            self._users -= 1
            if not self._users:
                self._condition.notify_all()

    @contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[None]:
        """Wait until no thread uses the connections, and let no other thread begin.

        JournalError: they are still used after *timeout_s*.
        """
        with self._condition:
            if not self._condition.wait_for(
                lambda: not self._users and self._owner is None, timeout_s
            ):
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
