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
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import sqlalchemy as sa

from regards_nb.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from regards_nb.journal.database import Database

_T = TypeVar("_T")

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

    def read(self, owner: str, *names: str) -> dict[str, bytes]:
        """Return the first value of each name, all of one moment; those that are damaged not."""
        query = sa.select(_columns.name, _columns.value, _columns.checksum).where(
            _columns.owner == owner, _columns.name.in_(names), _columns.number == 0
        )
        with suppress(sa.exc.SQLAlchemyError, JournalError, OSError):
            rows = self._read(lambda c: c.execute(query).all())
            return {name: value for name, value, sum_ in rows if zlib.crc32(value) == sum_}
        return {}

    def pieces(self, owner: str, name: str) -> list[bytes]:
        """Return all values of a name by number, up to the first damaged one."""
        query = sa.select(_columns.value, _columns.checksum).where(
            _columns.owner == owner, _columns.name == name
        )
        found: list[bytes] = []
        with suppress(sa.exc.SQLAlchemyError, JournalError, OSError):
            for value, checksum in self._read(
                lambda c: c.execute(query.order_by(_columns.number)).all()
            ):
                if zlib.crc32(value) != checksum:
                    break
                found.append(value)
        return found

    def write(
        self,
        owner: str,
        values: Mapping[tuple[str, int], bytes],
        *,
        before: bytes | None,
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
        mine = sa.delete(_checkpoints).where(_columns.owner == owner)
        rows = [
            {"owner": owner, "name": name, "number": number, "value": value}
            | {"checksum": zlib.crc32(value)}
            for (name, number), value in values.items()
        ]
        with suppress(sa.exc.SQLAlchemyError, OSError), self._writing() as connection:
            _metadata.create_all(connection)
            found = connection.execute(head.with_for_update()).scalar()
            if found != before:
                return
            if not keeps_others:
                connection.execute(mine)
            for name, number in values if keeps_others else ():
                connection.execute(mine.where(_columns.name == name, _columns.number == number))
            connection.execute(sa.insert(_checkpoints), rows)
            connection.commit()

    @contextmanager
    def _connected(self, path: Path, mode: str) -> Iterator[sa.Connection]:
        """Connect to the file; delete one that is no database, so that another can be written."""
        url = f"file:{quote(str(path))}?mode={mode}"
        engine = sa.create_engine(
            "sqlite://", creator=lambda: sqlite3.connect(url, uri=True), poolclass=sa.pool.NullPool
        )
        try:
            with engine.connect() as connection:
                yield connection
        except sa.exc.OperationalError:
            raise  # a lock, the disk, the rights
        except sa.exc.DatabaseError:
            for each in (path, Path(f"{path}-journal")):
                with suppress(OSError):
                    each.unlink()
            raise
        finally:
            engine.dispose()

    def _read(self, work: Callable[[sa.Connection], _T]) -> _T:
        if self._path is None:
            return self._database.read(work)
        # "ro" creates no file. A reader of the journal may have no right to write here.
        with self._connected(self._path, "ro") as connection:
            return work(connection)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if self._path is None:
            with self._database.engine.connect() as connection:
                yield connection
            return
        # The messages may be those of other users, too: see docs/security.md.
        os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
        with self._connected(self._path, "rw") as connection:
            # Two kernels that write must not read the head at the same time.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
