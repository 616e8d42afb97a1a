"""Stores checkpoints: results computed from a journal, which can be computed again.

In SQLite they are in a file of their own, beside the journal: writing a checkpoint never keeps the
consumer from writing messages. In PostgreSQL they are in a table beside those of the journal, and
its lock for writers is not taken. A checkpoint can be deleted at any time.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import sqlalchemy as sa

from regards_nb.journal.schema import upsert

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from regards_nb.journal.database import Database

_metadata = sa.MetaData()

_checkpoints = sa.Table(
    "checkpoints",
    _metadata,
    # whose frames these are: a tracker sees the orders of one tenant or of all
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column(
        "number",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
_columns = _checkpoints.c

#: The value that says what the others are; it is replaced with each change of them.
CHECKPOINT_HEAD = "head"


class CheckpointStore:
    """The stored values of one journal, by owner, name and number.

    Every failure means that there is no checkpoint, because nothing is lost without one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._path = None if database.path is None else Path(f"{database.path}.checkpoint")

    def read(self, owner: str, *names: str) -> dict[str, list[bytes]]:
        """Return the values of each name by number, up to the first damaged one, of one moment."""
        query = sa.select(_columns.name, _columns.value, _columns.checksum).where(
            _columns.owner == owner, _columns.name.in_(names)
        )
        found: dict[str, list[bytes]] = {name: [] for name in names}
        damaged = set()
        with suppress(sa.exc.SQLAlchemyError, OSError), self._connected("ro") as connection:
            for name, value, checksum in connection.execute(
                query.order_by(_columns.name, _columns.number)
            ):
                if zlib.crc32(value) != checksum:
                    damaged.add(name)
                elif name not in damaged:
                    found[name].append(value)
        return found

    def write(
        self,
        owner: str,
        values: Mapping[tuple[str, int], bytes],
        *,
        before: list[bytes],
        keeps_others: bool,
    ) -> None:
        """Replace values in one transaction.

        *values* are by name and number, among them (`CHECKPOINT_HEAD`, 0). If the head is not
        *before*, another process was faster and nothing is written. *keeps_others*: the owner's
        other values stay.
        """
        head = sa.select(_columns.value).where(
            _columns.owner == owner, _columns.name == CHECKPOINT_HEAD, _columns.number == 0
        )
        rows = [
            {"owner": owner, "name": name, "number": number, "value": value}
            | {"checksum": zlib.crc32(value)}
            for (name, number), value in values.items()
        ]
        with suppress(sa.exc.SQLAlchemyError, OSError), self._connected("rw") as connection:
            _metadata.create_all(connection)
            if connection.execute(head.with_for_update()).scalars().all() != before:
                return
            if not keeps_others:
                connection.execute(sa.delete(_checkpoints).where(_columns.owner == owner))
            connection.execute(upsert(_checkpoints, connection.dialect.name), rows)
            connection.commit()

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sa.Connection]:
        """Connect; delete a file that is no database, so that another can be written."""
        if self._path is None:
            with self._database.engine.connect() as connection:
                yield connection
            return
        if mode == "rw":
            # The messages may be those of other users, too: see docs/security.md.
            os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
        # "ro" creates no file. A reader of the journal may have no right to write here.
        url = f"file:{quote(str(self._path))}?mode={mode}"
        engine = sa.create_engine(
            "sqlite://", creator=lambda: sqlite3.connect(url, uri=True), poolclass=sa.pool.NullPool
        )
        try:
            with engine.connect() as connection:
                if mode == "rw":
                    # Two kernels that write must not read the head at the same time.
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
        except sa.exc.OperationalError:
            raise  # a lock, the disk, the rights
        except sa.exc.DatabaseError:
            for each in (self._path, Path(f"{self._path}-journal")):
                with suppress(OSError):
                    each.unlink()
            raise
        finally:
            engine.dispose()
