"""How far a journal has grown, and when to look; PostgreSQL notifies of commits (LISTEN, NOTIFY).

Each commit to the journal sends a notification, which the server delivers after the commit. One
thread and one connection for each journal object wait for them. A pooler in transaction mode takes
the connection away after each transaction, and a hot standby knows no LISTEN: there the journal
is looked at again and again, see `ChangeDetector`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from regards_nb.journal import schema
from regards_nb.journal.batches import MAX_BATCH_BYTES, SELECT_BATCHES
from regards_nb.threads import begin
from regards_nb.waits import growing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import PoolProxiedConnection

_log = logging.getLogger(__name__)

CHANNEL = "regards_nb"
#: Time after which psycopg ends a wait, and the thread checks whether it must end.
_WAIT_S = 0.5
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
#: Firewalls forget connections on which nothing is sent, and NOTIFY then reaches nobody.
_KEEPALIVE = {"keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}


class Position(NamedTuple):
    """How far a journal has grown.

    ``revision`` grows with each change of file records, of downloaded sub-orders, of answers
    over REST and of requests.
    """

    last_id: int
    revision: int


#: The position, and a few of the newest rows, as `read_batch` takes them.
Look: TypeAlias = "tuple[Position, Sequence[Sequence[Any]]]"

_WITH_REVISION = (schema.files, schema.fetched, schema.requests)
_POSITION = sa.select(
    sa.select(sa.func.max(schema.batches.c.last_id)).scalar_subquery(),
    *(sa.select(sa.func.max(table.c.revision)).scalar_subquery() for table in _WITH_REVISION),
)


#: The listening thread reads the position and the newest rows in one round trip. At first there are
#: no newest.
_FEW_ROWS = 4
_after_id = sa.bindparam("after_id", type_=sa.BigInteger)
_where = _POSITION.subquery()
_new = (
    SELECT_BATCHES.where(
        _after_id > 0,
        schema.batches.c.last_id > _after_id,
        sa.func.length(schema.batches.c.messages) <= MAX_BATCH_BYTES,
    )
    .order_by(schema.batches.c.last_id)
    .limit(_FEW_ROWS)
    .subquery()
)
_POSITION_AND_ROWS = (
    sa.select(*_where.c, *_new.c)
    .select_from(_where.outerjoin(_new, sa.true()))
    .order_by(_new.c.last_id)
)


def read_position(connection: sa.Connection) -> Position:
    """Return the position of the journal as a transaction sees it."""
    return _position(connection.execute(_POSITION).one())


def for_one_statement(connection: sa.Connection) -> sa.Connection:
    """Return a connection to a server without BEGIN, which costs a round trip of its own."""
    if connection.dialect.name == "sqlite":
        return connection
    return connection.execution_options(isolation_level="AUTOCOMMIT")


class ChangeDetector:
    """Returns the position of the journal; of one on a server only if it may have changed.

    Frames ask at each access, which in SQLite takes some microseconds. The threads of a tracker ask
    a server again and again, and get the position that was read last: by `on_notification`, which
    `Listener` calls after a commit of another process, or after `notify`, which a commit of this
    process calls.
    """

    #: Time between two reads of the position while the server notifies of changes.
    look_every_s = 30.0
    #: The same while it does not: the pauses grow as long as nothing changes.
    first_pause_s = 0.5
    longest_pause_s = 5.0

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._query = str(_POSITION.compile(engine))
        self._lock = threading.Lock()
        #: the rows that `on_notification` has read; None once a caller of `position` has taken them
        self._read_ahead: Sequence[Sequence[Any]] | None = None
        #: to a file; it stays open
        self._connection: PoolProxiedConnection | None = None
        self._position, self._n_stored = Position(0, 0), 0
        #: another program has removed the newest rows
        self.is_shrunk = False
        #: Whether threads ask for the position again and again.
        self.is_polled = False
        #: The stop of the thread that hears of each commit; None while there is none.
        self.told_by: object = None
        self._notifications = 0
        #: The number of notifications before the position was read last.
        self._seen_notifications = -1
        self._next_look_s = 0.0
        self._pause_s = self.first_pause_s

    def position(self, *, exact: bool) -> Look:
        """Return the position of the journal, and the rows that `on_notification` has read.

        *exact* reads it from a server in any case.
        """
        position = self.look(exact=exact or not self.is_polled)
        with self._lock:
            rows, self._read_ahead = self._read_ahead or (), None
            return position, rows

    def look(self, *, exact: bool) -> Position:
        """Return the position; *exact* as in `position`. `is_shrunk` is right after that."""
        if self._engine.dialect.name != "sqlite":
            return self._of_server(exact=exact)
        with self._lock:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            # This is on the way of each message to its row. The driver's own call takes a fifth of
            # the time of SQLAlchemy's.
            driver: Any = self._connection.driver_connection
            return self._store(_position(driver.execute(self._query).fetchone()), self._n_stored)

    def _of_server(self, *, exact: bool) -> Position:
        notifications, now_s, n_stored = self._notifications, time.monotonic(), self._n_stored
        if not exact and notifications == self._seen_notifications and now_s < self._next_look_s:
            return self._position
        # Without the lock: a server may not answer, and each thread says what it waits for.
        with self._engine.connect() as connection:
            position = read_position(for_one_statement(connection))
        with self._lock:
            if position != self._position or notifications != self._seen_notifications:
                self._pause_s = self.first_pause_s
            elif not exact:
                self._pause_s = min(1.5 * self._pause_s, self.longest_pause_s)
            self._next_look_s = now_s + (
                self.look_every_s if self.told_by is not None else self._pause_s
            )
            self._seen_notifications = max(notifications, self._seen_notifications)
            return self._store(position, n_stored)

    def on_notification(self, connection: Any) -> None:
        """Read the position and the newest rows with the connection of the driver that listens.

        It belongs to one session of the server, because LISTEN works on it. So the statement can be
        prepared there, which takes a tenth of the time of the same one through the pool. While
        commits follow each other faster than the threads look, nothing is read here: they read
        many rows at once.
        """
        text, constants = self._statement
        if self._read_ahead is not None:
            self.notify()
            return
        notifications, n_stored = self._notifications, self._n_stored
        values = constants | {"after_id": self._position.last_id}
        found = connection.execute(text, values, prepare=True).fetchall()
        width = len(_where.c)
        with self._lock:
            self._store(_position(found[0][:width]), n_stored)
            self._seen_notifications = max(notifications, self._seen_notifications)
            self._next_look_s = time.monotonic() + self.look_every_s
            self._read_ahead = [row[width:] for row in found if row[width] is not None]

    @cached_property
    def _statement(self) -> tuple[str, dict[str, Any]]:
        compiled = _POSITION_AND_ROWS.compile(self._engine)
        return str(compiled), dict(compiled.params)

    def _store(self, position: Position, n_stored: int) -> Position:
        """Store a position; *n_stored* were stored before it was read. Return the newest one.

        No id is used twice: where one position was read after the other, the ids have not shrunk.
        """
        if n_stored == self._n_stored:
            self.is_shrunk |= position.last_id < self._position.last_id
            self._position = position
        else:
            self._position = Position(*map(max, position, self._position))
        self._n_stored += 1
        return self._position

    @property
    def newest_id(self) -> int:
        """The id of the newest row at the last look."""
        return self._position.last_id

    def forget(self) -> None:
        """Have the next call of `position` read it, and compare it with none before."""
        with self._lock:
            self._position, self.is_shrunk = Position(0, 0), False
            self._n_stored += 1
            self._read_ahead = None
            self.notify()

    def notify(self) -> None:
        """Have the next call of `position` read it."""
        self._notifications += 1

    def close(self) -> None:
        """Close the connection. The next call of `position` opens another one."""
        self.forget()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _position(row: Any) -> Position:
    last_id, *revisions = (number or 0 for number in row)
    return Position(last_id, max(revisions))


class CannotListenError(Exception):
    """The server or what stands before it has no LISTEN; the text says why."""


class Listener:
    """Hears of commits to a journal on a server, in a thread between `begin` and `end`.

    After each commit of another process, *changes* reads what is new, and a callback is called.
    *connect* makes a connection of the driver. Notifications with the *token* of this journal
    object are ignored.
    """

    #: A notification to oneself takes a millisecond. After this time without one, none will come.
    probe_s = 5.0

    def __init__(
        self, engine: sa.Engine, connect: Callable[..., Any], changes: ChangeDetector
    ) -> None:
        self._engine, self._connect_with, self._changes = engine, connect, changes
        self.token = secrets.token_hex(8)
        self._stop = threading.Event()

    def begin(self, callback: Callable[[], object]) -> None:
        """Start the thread, if the driver can wait for notifications without polling."""
        self._changes.is_polled = True
        self._stop = threading.Event()
        if self._is_possible():
            begin("listen", self._run, callback, self._stop)

    def end(self) -> None:
        """End the thread and its connection, at the latest after half a second."""
        self._stop.set()
        self._changes.is_polled = False

    def _is_possible(self) -> bool:
        return self._engine.url.drivername == "postgresql+psycopg"

    def why_not(self) -> str | None:
        """Try it; return why commits cannot be heard of, or None if they can."""
        if not self._is_possible():
            driver = self._engine.url.drivername
            return f"the driver {driver} cannot wait for NOTIFY; postgresql+psycopg can"
        try:
            with self._listening():
                return None
        except (CannotListenError, self._engine.dialect.loaded_dbapi.Error) as exc:
            return str(exc).splitlines()[0]

    def _run(self, callback: Callable[[], object], stop: threading.Event) -> None:
        error: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        changes, pauses = self._changes, growing(FIRST_RETRY_S, LONGEST_RETRY_S)
        while not stop.is_set():
            try:
                with self._listening() as connection:
                    connection.has_answered = False  # it waits a short time for later answers
                    pauses = growing(FIRST_RETRY_S, LONGEST_RETRY_S)
                    changes.told_by = stop
                    # Something may have been committed before the server began to tell.
                    changes.notify()
                    callback()
                    while not stop.is_set():
                        # Once for several commits at the same moment.
                        heard = list(connection.notifies(timeout=_WAIT_S, stop_after=1))
                        if any(notification.payload != self.token for notification in heard):
                            changes.on_notification(connection)
                            callback()
            except CannotListenError as exc:
                _log.info("no NOTIFY from the journal: %s", exc)
                return
            except error as exc:
                _log.info("no NOTIFY from the journal for a while: %s", exc)
            finally:
                if changes.told_by is stop:  # no later thread listens already
                    changes.told_by = None
                changes.notify()
            stop.wait(next(pauses))

    def _connect(self) -> Any:
        arguments, options = self._engine.dialect.create_connect_args(self._engine.url)
        # Options of a URL are text; psycopg compares this one with numbers.
        options.pop("prepare_threshold", None)
        return self._connect_with(*arguments, **{**_KEEPALIVE, **options}, autocommit=True)

    @contextmanager
    def _listening(self) -> Iterator[Any]:
        """Listen in the block, after a notification from another connection has arrived.

        CannotListenError: none arrived, or LISTEN is refused.
        """
        # Not the channel of all: a pooler would leave LISTEN on a connection that others get.
        channel = f"{CHANNEL}_{secrets.token_hex(8)}"
        with closing(self._connect()) as connection:
            try:
                connection.execute(f"LISTEN {channel}")
            except self._engine.dialect.loaded_dbapi.InternalError as exc:
                raise CannotListenError(str(exc).splitlines()[0]) from exc
            with closing(self._connect()) as other:
                other.execute(f"SELECT pg_notify('{channel}', '')")
            if not any(True for _ in connection.notifies(timeout=self.probe_s, stop_after=1)):
                raise CannotListenError(
                    "a pooler in transaction mode, such as PgBouncer, stands before the server and "
                    "passes no NOTIFY on"
                )
            connection.execute(f"LISTEN {CHANNEL}")
            connection.execute(f"UNLISTEN {channel}")
            yield connection
