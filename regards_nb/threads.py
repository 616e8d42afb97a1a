"""Threads that work until they are stopped: any other end is told."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from regards_nb.errors import TrackingError

if TYPE_CHECKING:
    from collections.abc import Callable


class OwnThread(threading.Thread):
    """A thread that ends when *work* returns; *died* is called in it if an exception ends it.

    Other code of the process can throw any exception into a thread. The error says what the thread
    *does*, and what the user can do *then*.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        does: str,
        then: str = "Call tracker.start()",
        died: Callable[[TrackingError], object],
    ) -> None:
        # A daemon: a kernel that restarts must not wait for a broker or a server.
        super().__init__(target=work, name=f"regards-nb-{name}", daemon=True)
        self._text = f"the thread that {does} has ended{{}}. {then}"
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

    def run(self) -> None:
        """Work, and tell what has ended the work."""
        try:
            super().run()
            self._has_returned = True
        except BaseException as exc:  # noqa: BLE001 - see above
            cause = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
            self._error = TrackingError(self._text.format(f" ({cause})"))
            self._error.__cause__ = exc
            self._died(self._error)
