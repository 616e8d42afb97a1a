"""Sees how far a journal has come, and looks only when somebody has committed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from regards_nb.journal import schema

if TYPE_CHECKING:
    from sqlalchemy import PoolProxiedConnection

_CHANGING = (schema.files, schema.fetched, schema.requests)
_HEADS = sa.select(
    sa.select(sa.func.max(schema.batches.c.last_id)).scalar_subquery(),
    *(sa.select(sa.func.max(table.c.revision)).scalar_subquery() for table in _CHANGING),
)


class Heads(NamedTuple):
    """How far everything has come.

    ``revision`` grows with each change of files, fetched parts and requests.
    """

    last_id: int
    revision: int


def read_heads(connection: sa.Connection) -> Heads:
    """Return how far everything has come, as a transaction sees it."""
    return _heads(connection.execute(_HEADS).one())


class Onlooker:
    """Asked for every row that somebody looks at, so that it must cost next to nothing.

    SQLite's ``data_version`` is another number once anybody else, in whichever process, has
    committed; nothing is written with the connection that asks for it. Where the database has no
    such number everything is read each time.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._has_version = engine.dialect.name == "sqlite"
        self._query = str(_HEADS.compile(engine))
        self._lock = threading.Lock()
        #: kept open: another connection would count from elsewhere
        self._connection: PoolProxiedConnection | None = None
        self._version: int | None = None
        self._heads = Heads(0, 0)

    def heads(self) -> Heads:
        """Return how far everything has come."""
        if not self._has_version:
            with self._engine.connect() as connection:
                return read_heads(connection)
        with self._lock:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            # By the driver itself: this stands between a message and the row that shows it, and
            # takes a fifth of the time so.
            driver: Any = self._connection.driver_connection
            (version,) = driver.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                # before it is remembered, so that what fails is asked for again
                self._heads = _heads(driver.execute(self._query).fetchone())
                self._version = version
            return self._heads

    def close(self) -> None:
        """Close the connection; it is opened again where it is needed."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = self._version = None


def _heads(row: Any) -> Heads:
    last_id, *revisions = (number or 0 for number in row)
    return Heads(last_id, max(revisions))
