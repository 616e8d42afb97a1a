"""What processes leave in a journal for each other: leases and cursors.

A lease is a row in the journal. It ends when its owner releases it, when its owner has not renewed
it in time, by the clock of the database, or when its owner is a process of this machine that has
ended. Advisory locks of PostgreSQL are no substitute: they belong to a session, and PgBouncer in
transaction mode gives each transaction another session.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import weakref
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from regards_nb.computer import has_ended, identity, is_suspended
from regards_nb.errors import JournalError
from regards_nb.journal import schema
from regards_nb.threads import begin
from regards_nb.waits import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regards_nb.journal.database import Database

_log = logging.getLogger(__name__)
_leases = schema.leases

#: After Ctrl-C a call gives its lease back within this time, or leaves that to a thread.
_MOMENT_S = 0.5

#: The time of the database in ms. In PostgreSQL, now() is the begin of the transaction, which may
#: have waited for other writers.
_NOW_MS: dict[str, sa.ColumnElement[int]] = {
    "sqlite": sa.literal_column("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"),
    "postgresql": sa.literal_column("CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"),
}


class Holder(NamedTuple):
    """The process that holds a lease."""

    host: str
    pid: int

    def __str__(self) -> str:
        note = " (suspended)" if self.is_suspended else ""
        return f"process {self.pid} on {self.host}{note}"

    @property
    def is_suspended(self) -> bool:
        """Whether it is a process of this computer that is suspended."""
        return self.host == socket.gethostname() and is_suspended(self.pid)


#: The names of the leases for downloads begin with it.
_DOWNLOADS = "download "


def order_lease(tenant: str | None, order_id: int) -> str:
    """Return the name of the lease for the download of an order."""
    return f"{_DOWNLOADS}{tenant or ''} {order_id}"


class Leases:
    """The leases of one `Journal` object. Safe in any thread."""

    #: A lease that is not renewed ends after this time.
    duration_s = 30.0
    #: Time between two renewals of the leases by their thread.
    renewal_s = 10.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._token = secrets.token_hex(8)
        #: The names of the leases that are held, and the threads that took them.
        self._names: dict[str, int] = {}
        # Threads take and release; the renewing thread must not renew what was released.
        self._lock = threading.Lock()
        #: Ends the thread that renews; it does so, too, when this object is collected.
        self._end_renewal: weakref.finalize[..., Leases] | None = None

    @property
    def _owner(self) -> str:
        # a forked process has the same token
        return f"{self._token} {os.getpid()}"

    def take(self, name: str) -> Holder | None:
        """Take a lease; return who holds it if it cannot be taken, else None.

        After Ctrl-C it may be taken: `released_after` gives it back. After a JournalError it is
        not; where a server has taken it and its answer was lost, the lease ends by itself.
        """
        with self._lock:
            if name in self._names:
                return Holder(socket.gethostname(), os.getpid())
            self._names[name] = threading.get_ident()
            try:
                holder = self._database.write(
                    lambda connection: self._take(connection, name), again=True, silent=True
                )
            except JournalError:
                del self._names[name]  # to give it back would wait for the same obstacle
                raise
            if holder is None:
                self._renew_in_background()
            else:
                del self._names[name]
        return holder

    def _take(self, connection: sa.Connection, name: str) -> Holder | None:
        if name not in self._names:
            return None  # the call that wants it was stopped while this waited for the lock
        is_other = (_leases.c.name == name) & (_leases.c.owner != self._owner)
        if others := _valid(connection, is_other):
            return others[name]
        now = _NOW_MS[connection.dialect.name]
        row = {
            "name": name,
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": identity(os.getpid()),
            "expires_at_ms": connection.execute(
                sa.select(now + int(self.duration_s * 1000))
            ).scalar_one(),
        }
        connection.execute(schema.upsert(_leases, connection.dialect.name), row)
        return None

    @contextmanager
    def released_after(self, name: str) -> Iterator[None]:
        """Release a lease after the block; after Ctrl-C, wait for that only a moment."""
        wait_s = math.inf
        try:
            yield
        except KeyboardInterrupt:
            wait_s = _MOMENT_S  # another program may hold the journal
            raise
        finally:
            self.release(name, wait_s=wait_s)

    def release(self, name: str, *, wait_s: float = math.inf) -> None:
        """Give a lease back, if this thread has taken it. Other kernels are told at once.

        If the journal is locked for longer than *wait_s*, a thread waits until it is free.
        """
        with self._lock:
            if self._names.get(name) != threading.get_ident():
                return
            del self._names[name]
            if not self._names and self._end_renewal is not None:
                self._end_renewal()
                self._end_renewal = None
        if wait_s == math.inf:
            self._delete(name)
        else:
            wait_for([in_thread(partial(self._delete, name))], wait_s)

    def _delete(self, name: str) -> None:
        statement = sa.delete(_leases).where(_leases.c.name == name, _leases.c.owner == self._owner)
        try:
            self._database.write(lambda c: c.execute(statement), again=True)
        except JournalError as exc:
            _log.warning("the lease %r was not given back, it ends by itself: %s", name, exc)

    def holder(self, name: str) -> Holder | None:
        """Return who holds a lease; None if it can be taken. Nothing is written."""
        is_held = _leases.c.name == name
        if name not in self._names:  # one that could not be given back is still there
            is_held &= _leases.c.owner != self._owner
        return self._database.read(lambda c: _valid(c, is_held)).get(name)

    def downloads_of_others(self) -> dict[str, Holder]:
        """Return who else downloads orders, by the name of the lease. Nothing is written."""
        is_other = _leases.c.name.startswith(_DOWNLOADS) & (_leases.c.owner != self._owner)
        return self._database.read(lambda c: _valid(c, is_other))

    def _renew_in_background(self) -> None:
        if self._end_renewal is not None:
            return
        stop = threading.Event()
        self._end_renewal = weakref.finalize(self, stop.set)
        self._end_renewal.atexit = False
        # The thread holds this object while it renews and no longer, so that it can be collected.
        begin("lease", _renew, weakref.ref(self), stop, self.renewal_s)

    def renew(self, stop: threading.Event) -> None:
        """Renew the leases that are held, unless *stop* is set."""
        with self._lock:
            if stop.is_set():
                return
            now = _NOW_MS[self._database.engine.dialect.name]
            renewed = (
                sa.update(_leases)
                .values(expires_at_ms=now + int(self.duration_s * 1000))
                .where(_leases.c.owner == self._owner, _leases.c.name.in_(self._names))
            )
            try:
                self._database.write(lambda c: c.execute(renewed), again=True, silent=True)
            except JournalError as exc:
                _log.warning("leases were not renewed, this is tried again: %s", exc)


def _renew(leases_of: weakref.ref[Leases], stop: threading.Event, pause_s: float) -> None:
    while not stop.wait(pause_s):
        if (leases := leases_of()) is not None:
            leases.renew(stop)
        del leases


def _valid(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> dict[str, Holder]:
    """Return who holds leases that have not ended, by their names."""
    is_valid = _leases.c.expires_at_ms > _NOW_MS[connection.dialect.name]
    return {
        row.name: Holder(row.host, row.pid)
        for row in connection.execute(sa.select(_leases).where(condition, is_valid))
        if not has_ended(row.pid, row.process)
    }


class Cursors:
    """The cursors of a journal. A name has at most 32 characters.

    That a call of ``download`` was stopped is a cursor, too, with the id of the call: its workers,
    wherever they are, read it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, name: str) -> int | None:
        """Return the row id under a name; None if there is none."""
        return self._database.read(lambda c: schema.read_cursor(c, name))

    def begin(self, name: str, row_id: int, *, generation: int) -> None:
        """Have the next transaction that writes to the journal write a first cursor.

        No row comes into the journal before it, and it costs no commit.
        """
        self._database.first_writes.append(partial(self._write, name, row_id, generation))

    def advance(self, name: str, row_id: int, *, generation: int) -> None:
        """Write a row id, unless a later one is there.

        Nothing is written if the ids of *generation* are not those of the present file.
        """
        write = partial(self._write, name, row_id, generation)
        self._database.write(write, again=True, silent=True)

    def _write(self, name: str, row_id: int, generation: int, connection: sa.Connection) -> None:
        known = schema.read_cursor(connection, name)
        if (known is None or row_id > known) and generation == self._database.generation:
            schema.write_cursor(connection, name, row_id)
