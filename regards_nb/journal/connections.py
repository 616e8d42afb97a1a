"""The connections of a journal: their use by threads, Ctrl-C, and a server that does not answer.

A server that was suspended, or whose network is lost, ends no connection, and psycopg would wait
for ever. After Ctrl-C it would ask such a server for 10 s to cancel the statement.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from regards_nb import waits
from regards_nb.errors import JournalError
from regards_nb.threads import begin
from regards_nb.waits import (
    AGAIN_S,
    awaited,
    fulfil,
    idle,
    in_main_thread,
    is_after_stop,
    limited,
    speaks,
    this_call,
    time_left_s,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

_LOOK_EVERY_S = 0.1
_USED_LOOK_S = 0.01
_RESTART_RETRY_S = 0.1
#: How long a call waits at least after others have waited in vain.
_LATER_S = 1.0
#: Time until a call tries again and learns whether the outage goes on.
_TRIED_EVERY_S = 5.0


def uninterrupted(work: Callable[[], _T], tell: Callable[[], object] = lambda: None) -> _T:
    """Return the result of *work*, which ends also if Ctrl-C or a signal ends this call.

    *tell* is called again and again meanwhile, and says what the thread of the user waits for.

    Python raises the exceptions of signal handlers in the main thread, between any two steps of
    it: also after a transaction was opened, and before a variable holds it. A thread does the work
    of the main thread, and the exception ends the wait for it.
    """
    if not (in_main_thread() or speaks()):
        return work()
    with limited(time.monotonic() + time_left_s()):  # after Ctrl-C only this thread knows it
        context, outcome = copy_context(), Future[_T]()
    # Not the condition of the future: an exception of a signal handler can break its wait.
    unfinished = threading.Lock()
    unfinished.acquire()
    first = threading.Lock()

    def run() -> None:
        if first.acquire(blocking=False):
            fulfil(outcome, partial(context.run, work))
            unfinished.release()

    try:
        begin("transaction", run)
    except RuntimeError:
        # Python ends, and starts no thread any more. Or a signal came while the thread started, and
        # broke a lock (Python 3.11): then it may run, and the work is done once.
        run()
    while not unfinished.acquire(timeout=_LOOK_EVERY_S):
        tell()
    return outcome.result()


class _Use:
    """One use of the connections. It ends with the last reference to it."""

    __slots__ = ("__weakref__",)


class ConnectionUseLock:
    """Many threads use the connections, or one closes them and opens others.

    A use takes no lock, to be fast: each message on its way to a row needs several uses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Weak: Ctrl-C can end a use before the code that ends it is reached.
        self._uses: set[weakref.ref[_Use]] = set()
        #: the thread that is inside of `exclusive`; it may use the connections there
        self._owner: int | None = None

    def enter(self) -> _Use:
        """Begin to use the connections, as long as the caller holds the result."""
        while True:
            use = _Use()
            self._uses.add(weakref.ref(use, self._uses.discard))
            # Looked at after that, because `_take` sets it before it looks at the uses.
            if self._owner in {None, threading.get_ident()}:
                return use
            del use
            idle.wait(_USED_LOOK_S)

    @contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[None]:
        """Wait until no thread uses the connections, and let no other thread begin.

        JournalError: they are still used after *timeout_s*.
        """
        deadline = time.monotonic() + timeout_s
        while not self._take():
            if time.monotonic() >= deadline:
                raise JournalError(
                    "the files of the journal were changed, and other threads still read the old "
                    f"ones after {timeout_s:g} s. This is tried again"
                )
            idle.wait(_USED_LOOK_S)
        try:
            yield
        finally:
            self._owner = None

    def _take(self) -> bool:
        with self._lock:
            if self._owner is None:
                self._owner = threading.get_ident()
                if not self._uses:
                    return True
                self._owner = None
        return False


class Outage:
    """What all calls of a journal wait for: a server, or the lock of another program.

    They share one time limit, so that the parts of a call, and the calls of a cell, do not wait one
    after the other. Threads in the background have it, too: they hold locks for which a call waits.
    """

    def __init__(self) -> None:
        #: Since when calls wait in vain, and when the last one gave up.
        self._since_s, self._met_s = math.inf, -math.inf
        #: When the waits began that go on.
        self._begun: list[float] = []
        #: The call of the user that has waited in vain.
        self._given_up_in: object | None = None

    @contextmanager
    def awaited(self, began_s: float | None = None) -> Iterator[None]:
        """Wait in the block. It calls `met` if that is in vain."""
        began_s = time.monotonic() if began_s is None else began_s
        self._begun.append(began_s)
        try:
            yield
        finally:
            self._begun.remove(began_s)
        self.over()

    def over(self) -> None:
        """Note that the server answers again, or that the lock is free."""
        self._since_s = math.inf
        self._given_up_in = None

    def met(self) -> None:
        """Note that the server does not answer, or that another program has the lock."""
        self._met_s = time.monotonic()
        self._since_s = min([self._since_s, self._met_s, *self._begun])

    def give_up(self) -> None:
        """Note that a call has waited in vain: its next uses of the journal fail without a wait."""
        self._given_up_in = this_call() or self._given_up_in

    def is_given_up(self) -> bool:
        """Return whether this call of the user has waited in vain just now, or has no time left."""
        call = this_call()
        if call is not None and call is self._given_up_in:
            return self.is_on()
        return self.is_on() and time_left_s() <= 0

    def end_s(self, patience_s: float, began_s: float | None = None) -> float:
        """Return when a wait ends that begins now, or began, also by the caller's time limit."""
        now_s = time.monotonic()
        began_s = now_s if began_s is None else began_s
        later_s = began_s + min(patience_s, _LATER_S)
        end_s = max(min(self._since_s, began_s) + patience_s, later_s)
        return min(end_s, now_s + max(time_left_s(), 0.0))

    def is_on(self) -> bool:
        """Return whether the last attempt was in vain, just now."""
        return self._since_s < math.inf and time.monotonic() - self._met_s < _TRIED_EVERY_S

    def lasts(self) -> bool:
        """Return whether calls wait for long: it is the cause of a silence of a second."""
        now_s = time.monotonic()
        since_s = min([self._since_s if self.is_on() else math.inf, *self._begun])
        return now_s - since_s >= waits.SAID_AFTER_S / 2


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
