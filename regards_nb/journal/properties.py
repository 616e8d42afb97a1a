"""Properties that processes leave in a journal for each other: cursors, and stopped downloads."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa

from regards_nb.journal import schema

if TYPE_CHECKING:
    from regards_nb.journal.database import Database

_meta = schema.meta
#: Before the id of a call, as a key of the table of the journal's properties.
_PREFIX = "stop-"
#: Longer than any worker needs to notice it, in µs.
_KEPT_US = 7 * 24 * 3600 * 1_000_000


class Cursors:
    """The cursors of a journal. A name has at most 32 characters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, name: str) -> int | None:
        """Return the row id under a name; None if there is none."""
        return self._database.read(schema.read_cursors).get(name)

    def begin(self, name: str, row_id: int, *, generation: int) -> None:
        """Have the next transaction that writes to the journal write a first cursor.

        No row comes into the journal before it, and it costs no commit.
        """
        self._database.write_with_next(partial(self._write, name, row_id, generation))

    def advance(self, name: str, row_id: int, *, generation: int) -> None:
        """Write a row id, unless a later one is there.

        Nothing is written if the ids of *generation* are not those of the present file.
        """
        write = partial(self._write, name, row_id, generation)
        self._database.write(write, again=True, silent=True)

    def _write(self, name: str, row_id: int, generation: int, connection: sa.Connection) -> None:
        is_later = row_id > schema.read_cursors(connection).get(name, -1)
        if is_later and generation == self._database.generation:
            schema.write_cursor(connection, name, row_id)


class Stops:
    """The calls of ``download`` that the user stopped, each by an id of 32 characters.

    Their workers, wherever they are, read it here.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def stop(self, call: str) -> None:
        """Record that a call was stopped; forget those that were stopped long ago."""
        now_us = time.time_ns() // 1000

        def stop(connection: sa.Connection) -> None:
            stopped = sa.select(_meta.c.key, _meta.c.value).where(_meta.c.key.startswith(_PREFIX))
            for key, since_us in connection.execute(stopped).all():
                if now_us - int(since_us) > _KEPT_US:
                    connection.execute(sa.delete(_meta).where(_meta.c.key == key))
            row = {"key": f"{_PREFIX}{call}", "value": str(now_us)}
            connection.execute(schema.upsert(_meta, connection.dialect.name), row)

        self._database.write(stop, again=True)

    def is_stopped(self, call: str) -> bool:
        """Return whether a call was stopped."""
        query = sa.select(_meta.c.value).where(_meta.c.key == f"{_PREFIX}{call}")
        return self._database.read(lambda connection: connection.scalar(query)) is not None
