"""Hear of the commits of other processes to a journal in PostgreSQL, by LISTEN and NOTIFY.

Each commit to the journal sends a notification, which the server delivers after the commit. One
thread and one connection for each journal object wait for them. A pooler in transaction mode takes
the connection away after each transaction, and a hot standby knows no LISTEN: there the journal
is looked at again and again, see `ChangeDetector`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

from regards_nb.threads import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa

    from regards_nb.journal.changes import ChangeDetector

_log = logging.getLogger(__name__)

CHANNEL = "regards_nb"
#: psycopg ends a wait after so long, and the thread looks whether it shall end.
_WAIT_S = 0.5
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
#: Firewalls forget connections on which nothing is sent, and NOTIFY then reaches nobody.
_KEEPALIVE = {"keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}


class CannotListenError(Exception):
    """The server or what stands before it has no LISTEN; the text says why."""


class Listener:
    """The thread that hears of commits, for one journal object.

    After each commit of another process, *changes* reads what is new, and *callback* is called.
    *token* is that of the notifications of this journal object, which are ignored.
    """

    #: A notification to oneself takes a millisecond. Without one after so long there will be none.
    probe_s = 5.0

    def __init__(
        self, engine: sa.Engine, changes: ChangeDetector, token: str, callback: Callable[[], object]
    ) -> None:
        self._stop = threading.Event()
        changes.is_polled = True
        self._changes = changes
        if is_possible(engine):
            begin("listen", _run, engine, changes, token, callback, self._stop)
        weakref.finalize(self, self._stop.set).atexit = False

    def stop(self) -> None:
        """End the thread and its connection, at the latest after half a second."""
        self._stop.set()
        self._changes.is_polled = False


def is_possible(engine: sa.Engine) -> bool:
    """Return whether the driver can wait for notifications without polling."""
    return engine.url.drivername == "postgresql+psycopg"


def why_not(engine: sa.Engine) -> str | None:
    """Try it; return why commits cannot be heard of, or None if they can."""
    if not is_possible(engine):
        return f"the driver {engine.url.drivername} cannot wait for NOTIFY; postgresql+psycopg can"
    error: type[Exception] = engine.dialect.loaded_dbapi.Error
    try:
        with closing(_connect(engine)) as connection:
            _listen(engine, connection)
    except (CannotListenError, error) as exc:
        return str(exc).splitlines()[0]
    return None


def _run(
    engine: sa.Engine,
    changes: ChangeDetector,
    token: str,
    callback: Callable[[], object],
    stop: threading.Event,
) -> None:
    error: type[Exception] = engine.dialect.loaded_dbapi.Error
    pause_s = FIRST_RETRY_S
    while not stop.is_set():
        try:
            with closing(_connect(engine)) as connection:
                _listen(engine, connection)
                pause_s = FIRST_RETRY_S
                changes.told_by = stop
                # Something may have been committed before the server began to tell.
                changes.tell()
                callback()
                for _ in _commits(connection, token, stop):
                    changes.hear(connection)
                    callback()
        except CannotListenError as exc:
            _log.info("no NOTIFY from the journal: %s", exc)
            return
        except error as exc:
            _log.info("no NOTIFY from the journal for a while: %s", exc)
        finally:
            if changes.told_by is stop:  # no later thread listens already
                changes.told_by = None
            changes.tell()
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, LONGEST_RETRY_S)


def _connect(engine: sa.Engine) -> Any:
    arguments, options = engine.dialect.create_connect_args(engine.url)
    # Options of a URL are text; psycopg compares this one with numbers.
    options.pop("prepare_threshold", None)
    return engine.dialect.loaded_dbapi.connect(
        *arguments, **{**_KEEPALIVE, **options}, autocommit=True
    )


def _listen(engine: sa.Engine, connection: Any) -> None:
    """Begin to listen, after a notification from another connection has arrived.

    CannotListenError: none arrived, or LISTEN is refused.
    """
    # Not the channel of all: a pooler would leave LISTEN on a connection that others get.
    channel = f"{CHANNEL}_{secrets.token_hex(8)}"
    try:
        connection.execute(f"LISTEN {channel}")
    except engine.dialect.loaded_dbapi.InternalError as exc:
        raise CannotListenError(str(exc).splitlines()[0]) from exc
    with closing(_connect(engine)) as other:
        other.execute(f"SELECT pg_notify('{channel}', '')")
    if not any(True for _ in connection.notifies(timeout=Listener.probe_s, stop_after=1)):
        raise CannotListenError(
            "a pooler in transaction mode, such as PgBouncer, stands before the server and passes "
            "no NOTIFY on"
        )
    connection.execute(f"LISTEN {CHANNEL}")
    connection.execute(f"UNLISTEN {channel}")


def _commits(connection: Any, token: str, stop: threading.Event) -> Iterator[None]:
    """Yield after each commit of another process, once for several at the same moment."""
    while not stop.is_set():
        heard = list(connection.notifies(timeout=_WAIT_S, stop_after=1))
        if any(notification.payload != token for notification in heard):
            yield
