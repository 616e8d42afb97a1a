"""The connections of psycopg, which end when the server is silent for too long, and at Ctrl-C.

psycopg is optional: `connections` imports this file when it connects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import waiting
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: How often psycopg wakes up and looks whether the wait is over.
_TURN_S = 0.1


class WatchedConnection(psycopg.Connection[Any]):
    """A connection that knows how long it may wait for its server."""

    #: Begins a `Silence` of the server; `Server.connect` sets it.
    silence: Callable[..., Any]
    #: Whether the server has just answered, in this use of the connection.
    has_answered = True

    def rollback(self) -> None:
        """Roll back; SQLAlchemy does so, too, when it gets the connection back."""
        super().rollback()
        self.has_answered = False

    # psycopg 3.2 has other parameters than 3.3
    def wait(self, gen: Any, interval: float = _TURN_S, **limits: Any) -> Any:  # type: ignore[override]
        """Run the steps of a statement, which wait for the server."""
        try:
            steps = self._watched(gen, self.silence(has_answered=self.has_answered))
            return waiting.wait(steps, self.pgconn.socket, interval, **limits)
        except (KeyboardInterrupt, SystemExit):
            self.pgconn.finish()
            raise

    def _watched(self, steps: Any, silence: Any) -> Generator[Any, Any, Any]:
        with silence:
            try:
                state = next(steps)
                while True:
                    ready = yield state
                    if ready:
                        silence.over()
                    # A connection that listens is silent without being asked.
                    elif self.pgconn.transaction_status == TransactionStatus.ACTIVE and (
                        error := silence.why_given_up()
                    ):
                        self.pgconn.finish()
                        raise psycopg.OperationalError(error)
                    state = steps.send(ready)
            except StopIteration as end:
                is_open = self.pgconn.transaction_status == TransactionStatus.INTRANS
                self.has_answered = self.has_answered or is_open
                return end.value
