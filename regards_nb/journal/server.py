"""Connections to PostgreSQL that are given up once the server does not answer.

A server that was suspended, or whose network is lost, ends no connection, and psycopg would wait
for ever. After Ctrl-C it would ask such a server for 10 s to cancel the statement.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from regards_nb import waits
from regards_nb.waits import AGAIN_S, awaited, idle, is_after_stop, time_left_s, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.journal.use_lock import Outage

_T = TypeVar("_T")

_RESTART_RETRY_S = 0.1
#: How long a call waits at least for a server that did not answer the call before.
_LATER_S = 1.0


class Server:
    """The server of a journal: makes connections, and limits how long they wait for it."""

    #: How long a connection that was not in use just now may be silent. It can be one that a
    #: firewall has forgotten: the call then makes a new one.
    silence_s = 3.0
    #: How long the server may take to accept a connection: at first, and while it does not answer.
    connect_s = 5
    reconnect_s = 2
    #: How long a statement may take after the server has just answered.
    statement_s = 30.0

    def __init__(self, outage: Outage, text: str) -> None:
        self.outage = outage
        self.text = text
        #: How long a call waits for a server that does not answer.
        self.patience_s = self.silence_s + self.reconnect_s
        #: Why the last attempt has failed.
        self._reason = ""

    def serve(self, engine: sa.Engine) -> None:
        """Note when an engine reaches the server; make the connections of psycopg here."""

        def make(_: object, __: object, arguments: list[Any], options: dict[str, Any]) -> Any:
            return self.connect(*arguments, **options)

        sa.event.listen(engine, "connect", lambda *_: self.outage.over())
        if engine.url.drivername == "postgresql+psycopg":
            sa.event.listen(engine, "do_connect", make)

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """Return a new connection of psycopg."""
        import psycopg

        from regards_nb.journal.watched import WatchedConnection

        is_known = self.outage.lasts()
        options.setdefault("connect_timeout", self.reconnect_s if is_known else self.connect_s)
        connect = partial(WatchedConnection.connect, *arguments, **options)
        with self.outage.awaited():
            try:
                connection = awaited(
                    connect,
                    self.text,
                    timeout_s=self._connect_limit_s(),
                    ends_after_s=float(options["connect_timeout"]),
                    unwanted=self._came_late,
                )
            except TimeoutError:
                raise psycopg.OperationalError("connection timeout expired") from None
        connection.silence = partial(Silence, self)
        return connection

    def _came_late(self, unused: Any) -> None:
        self.outage.over()  # the next one gets more time
        unused.close()

    def _connect_limit_s(self) -> float:
        """Return how long this thread waits for a connection."""
        if not self.outage.lasts():
            return math.inf
        # The rest of the time of the call; the calls of a cell do not wait one after the other.
        return max(self.outage.end_s(self.patience_s) - time.monotonic(), _LATER_S)

    def retry(self, attempt: Callable[[], _T], patience_s: float | None) -> _T:
        """Repeat an attempt that changes nothing while the server restarts; None: do not.

        At least once where a connection was lost that was not in use: the server, a proxy or a
        firewall may have ended it.
        """
        if self.outage.is_given_up():
            raise sa.exc.OperationalError(None, None, ConnectionError(self._reason))
        patience_s, is_first = patience_s or 0.0, patience_s is not None
        began_s = time.monotonic()
        while True:
            try:
                result = attempt()
            except sa.exc.OperationalError as exc:
                # The server ended the connection, or does not accept one at this moment.
                if not (exc.connection_invalidated or "connection" in str(exc.orig)):
                    raise
                self.outage.met()
                self._reason = str(exc.orig)
                end_s, now_s = self.outage.end_s(patience_s, began_s), time.monotonic()
                is_over = now_s >= end_s or is_after_stop(exc)
                if is_over and not (is_first and exc.connection_invalidated):
                    self.outage.give_up()
                    raise
            else:
                return result
            is_first = False
            if now_s - began_s > patience_s / 5:
                told(self.text, patience_s, again_s=AGAIN_S, limit_s=patience_s)
            if patience_s:
                idle.wait(_RESTART_RETRY_S)

    def end_s(self, began_s: float, *, has_answered: bool) -> float:
        """Return until when a connection may be silent, of which no byte has come since a time."""
        if has_answered:
            return began_s + min(self.statement_s, max(time_left_s(), _LATER_S))
        # The calls of a cell do not wait one after the other.
        return max(self.outage.end_s(self.silence_s), began_s + _LATER_S)


class Silence(ExitStack):
    """One statement, while no byte of the server comes. The end of the block ends the wait."""

    def __init__(self, server: Server, *, has_answered: bool) -> None:
        super().__init__()
        self._server, self._has_answered = server, has_answered
        self._since_s, self._end_s = time.monotonic(), math.inf

    def why_given_up(self) -> str:
        """Return why the connection is given up, or an empty text; say what the call waits for."""
        if self._end_s == math.inf:
            self._end_s = self._server.end_s(self._since_s, has_answered=self._has_answered)
            self.enter_context(self._server.outage.awaited(self._since_s))
        now_s, limit_s = time.monotonic(), self._end_s - self._since_s
        if now_s - self._since_s >= waits.SAID_AFTER_S:
            limit_s = max(limit_s, self._server.patience_s)
            told(self._server.text, math.inf, again_s=AGAIN_S, limit_s=limit_s)
        if now_s < self._end_s:
            return ""
        self._server.outage.met()
        return f"no answer over this connection for {now_s - self._since_s:.2g} s"

    def over(self) -> None:
        """Note that the server has sent something."""
        self.close()
        self._server.outage.over()
        self._since_s, self._end_s = time.monotonic(), math.inf
