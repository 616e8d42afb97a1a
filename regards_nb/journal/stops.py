"""Calls of ``download`` that the user stopped: their workers, wherever they are, read it here."""

from __future__ import annotations

import time
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


class Stops:
    """The calls of ``download`` that the user stopped, each by an id of 32 characters.

    Parameters
    ----------
    database : Database
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
