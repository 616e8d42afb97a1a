"""The log itself: append, read on from where one was, and the few tables beside it."""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.files import FileRecord, FileState
from regards_nb.journal import schema
from regards_nb.journal.batches import (
    SELECT_BATCHES,
    Batch,
    already_there,
    beyond,
    insert,
    read_batch,
)
from regards_nb.journal.database import DEFAULT_PATH, LOCK_WRITERS, open_engine, translated
from regards_nb.journal.onlooker import Heads, Onlooker, read_heads
from regards_nb.journal.packing import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from regards_nb.events import Delivery
    from regards_nb.journal.batches import Row

_batches = schema.batches
_files = schema.files
_sessions = schema.sessions
_streams = schema.streams

_FILE_COLUMNS = [_files.c[name] for name in FileRecord.__dataclass_fields__]

#: Made once: it is asked between connecting and consuming, where making it took longer than asking.
_NEXT_OFFSET = sa.select(_streams.c.next_offset).where(_streams.c.queue == sa.bindparam("queue"))

#: So many of the batches that were written last are kept: whoever follows the log in this process
#: gets them without reading and unpacking them.
_REMEMBERED = 16


class Journal:
    """The durable log of messages and files.

    Parameters
    ----------
    location : str or pathlib.Path, optional
        A path, or a database URL as SQLAlchemy understands it
        (``"postgresql+psycopg://..."``). By default ``.regards/journal.sqlite`` in the current
        folder, which is the notebook's.

    Raises
    ------
    JournalError
        The file cannot be made or opened, is not a journal, or was written by a newer version.

    Notes
    -----
    Safe to share between threads and between processes on one machine. A commit returns only
    once the rows are on disk (SQLite: WAL, ``synchronous=FULL``).
    """

    def __init__(self, location: str | Path | None = None) -> None:
        self._engine = open_engine(DEFAULT_PATH if location is None else location)
        self.location = self._engine.url.render_as_string(hide_password=True)
        self._remembered: deque[Batch] = deque(maxlen=_REMEMBERED)
        self._onlooker = Onlooker(self._engine)
        #: the newest row of each session, and the sessions where there may be one more
        self._newest_of: dict[int, int] = {}
        self._unsure: set[int] = set()
        # A cell that is run again drops its tracker: the connections go with it.
        weakref.finalize(self, _close, self._onlooker, self._engine).atexit = False
        with self._writing("open") as connection:
            schema.prepare(connection, self.location)

    def __repr__(self) -> str:
        return f"Journal({self.location!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the database. The journal can be opened again at any time."""
        _close(self._onlooker, self._engine)

    def open_session(self, queue: str) -> int:
        """Register one life of a connection to *queue*; its id goes with what it delivers."""
        values = {
            "queue": queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at_us": time.time_ns() // 1000,
        }
        with self._writing() as connection:
            key = connection.execute(sa.insert(_sessions).values(values)).inserted_primary_key
        assert key is not None  # noqa: S101 - one row inserted has one key
        return int(key[0])

    def append(
        self, session_id: int, deliveries: Sequence[Delivery], *, stream: str | None = None
    ) -> None:
        """Write *deliveries* and return once they are on disk; acknowledge them after that.

        Those of a *stream* queue are written once, whoever reads it: the offset is their key.

        Raises
        ------
        JournalError
            Nobody knows whether they are on disk: a database on another machine may have
            committed, and its answer was lost. Try again in the same session, with the same
            messages or with more behind them: each is written once.
        """
        known_id = self._newest_of.get(session_id, 0)
        there: list[Batch] = []
        try:
            with self._writing() as connection:
                if stream is not None:
                    deliveries = beyond(connection, stream, deliveries)
                elif session_id in self._unsure:
                    there = already_there(connection, session_id, known_id, deliveries)
                    deliveries = deliveries[sum(len(batch.deliveries) for batch in there) :]
                written = there + insert(connection, session_id, deliveries)
        except JournalError:
            self._unsure.add(session_id)
            raise
        # committed: only now is it in the log
        self._unsure.discard(session_id)
        if written:
            self._newest_of[session_id] = written[-1].last_id
        self._remembered += [b for b in written if len(b.deliveries[0].body) <= MOST_BYTES]

    def next_offset(self, stream: str) -> int | None:
        """Return where to go on reading a stream queue; None means from its first message."""
        with self._translated("read"), self._engine.connect() as connection:
            return connection.scalar(_NEXT_OFFSET, {"queue": stream})

    def forget_stream(self, stream: str) -> None:
        """Read a stream queue from its first message again: it was made anew."""
        with self._writing() as connection:
            connection.execute(sa.delete(_streams).where(_streams.c.queue == stream))

    def check(self) -> list[str]:
        """Look for damage; return what is wrong, nothing when all is well.

        A server sees to its own disk: there it is only read.
        """
        with self._translated("check"), self._engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                read_heads(connection)
                return []
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return [] if found == ["ok"] else [str(line) for line in found]

    def read(self, after_id: int = 0) -> Iterator[Batch]:
        """Yield what was journalled after row *after_id*, in journal order.

        Fetched in pieces, so that a long journal does not fill the memory. Whoever knows where it
        ends (`heads`) and stops there has the newest without asking the database.
        """
        for batch in list(self._remembered):
            if batch.first_id == after_id + 1:
                yield batch
                after_id += len(batch.deliveries)
        query = SELECT_BATCHES.where(_batches.c.last_id > after_id).order_by(_batches.c.last_id)
        with self._translated("read"), self._streamed(query) as rows:
            for row in rows:
                yield read_batch(row, after_id)

    def heads(self) -> Heads:
        """Return how far everything has come; next to free while nobody has committed."""
        with self._translated("read"):
            return self._onlooker.heads()

    def last_id(self) -> int:
        """Return the id of the newest row, 0 in an empty journal."""
        return self.heads().last_id

    def recent(self, queue: str, *, after_id: int, not_of: int, limit: int) -> list[Row]:
        """Return the newest *limit* rows of *queue* after *after_id*, oldest first.

        Rows of the session *not_of* are left out: what is being delivered now is not delivered
        again on the same connection.
        """
        query = (
            SELECT_BATCHES.join(_sessions, _sessions.c.id == _batches.c.session_id)
            .where(_sessions.c.queue == queue, _batches.c.last_id > after_id)
            .where(_batches.c.session_id != not_of)
            .order_by(_batches.c.last_id.desc())
        )
        newest_first: list[Row] = []
        with self._translated("read"), self._streamed(query) as rows:
            for row in rows:
                newest_first += reversed(read_batch(row, after_id).rows())
                if len(newest_first) >= limit:
                    break
        return newest_first[:limit][::-1]

    def file_log(self, tenant: str | None) -> TenantFiles:
        """Return the files of one tenant's orders, to read and to write."""
        return TenantFiles(self, tenant)

    def bodies(self, row_ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bodies of some rows."""
        found: dict[int, bytes] = {}
        batch = Batch(0, 0, [])
        for row_id in sorted(row_ids):
            if row_id >= batch.first_id + len(batch.deliveries):
                batch = next(self.read(row_id - 1))
            found[row_id] = batch.deliveries[row_id - batch.first_id].body
        return found

    def files_after(self, revision: int, *, tenant: str | None) -> list[FileRecord]:
        """Return the files of *tenant* changed after *revision*, as they are now."""
        query = sa.select(*_FILE_COLUMNS).where(_files.c.revision > revision)
        if tenant is not None:
            query = query.where(_files.c.tenant == tenant)
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_files.c.revision, _files.c.file_id)).all()
        return [_file_record(values) for values in rows]

    def save_fetched(self, tenant: str | None, order_id: int, row_id: int) -> None:
        """Record that the parts announced up to *row_id* were fetched."""
        row = {"tenant": tenant or "", "order_id": order_id, "row_id": row_id}
        self._change(schema.fetched, [row])

    def fetched_after(self, revision: int) -> dict[tuple[str | None, int], int]:
        """Return, by tenant and order id, up to which row the parts were fetched.

        Only what changed after *revision*.
        """
        table = schema.fetched.c
        query = sa.select(table.tenant, table.order_id, table.row_id)
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query.where(table.revision > revision)).all()
        return {(tenant or None, order_id): row_id for tenant, order_id, row_id in rows}

    def save_request(
        self, tenant: str | None, correlation_id: str, *, label: str | None, body: str
    ) -> None:
        """Record a request before it is sent."""
        row = {
            "tenant": tenant or "",
            "correlation_id": correlation_id,
            "label": label,
            "body": body,
            "sent_at_us": time.time_ns() // 1000,
        }
        self._change(schema.requests, [row])

    def request(self, tenant: str | None, correlation_id: str) -> tuple[str, int] | None:
        """Return the body of a request and when it was saved, in microseconds; None without."""
        table = schema.requests.c
        query = sa.select(table.body, table.sent_at_us).where(
            table.tenant == (tenant or ""), table.correlation_id == correlation_id
        )
        with self._translated("read"), self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else (row[0], row[1])

    def labels_after(self, revision: int) -> dict[tuple[str | None, str], str]:
        """Return the labels of the orders that were requested here, by tenant and correlation.

        Only what changed after *revision*.
        """
        table = schema.requests.c
        query = sa.select(table.tenant, table.correlation_id, table.label)
        query = query.where(table.revision > revision, table.label.is_not(None))
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {(tenant or None, correlation_id): label for tenant, correlation_id, label in rows}

    def _files_of(self, tenant: str, order_id: int) -> list[FileRecord]:
        query = (
            sa.select(*_FILE_COLUMNS)
            .where(_files.c.tenant == tenant, _files.c.order_id == order_id)
            .order_by(_files.c.file_id)
        )
        with self._translated("read"), self._engine.connect() as connection:
            return [_file_record(values) for values in connection.execute(query)]

    def _save_files(self, tenant: str, files: Iterable[FileRecord]) -> None:
        self._change(_files, [asdict(record) | {"tenant": tenant} for record in files])

    def _change(self, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        """Insert or replace rows of a table whose changes readers follow."""
        if not rows:
            return
        with self._writing() as connection:
            revision = read_heads(connection).revision + 1
            connection.execute(
                schema.upsert(table, connection.dialect.name),
                [row | {"revision": revision} for row in rows],
            )

    @contextmanager
    def _streamed(self, query: sa.Select[Any]) -> Iterator[Iterable[sa.Row[Any]]]:
        """Ask, and have the rows as they are wanted; who asked may stop before the last."""
        with (
            self._engine.connect() as connection,
            connection.execution_options(yield_per=16).execute(query) as rows,
        ):
            yield rows

    @contextmanager
    def _writing(self, verb: str = "write") -> Iterator[sa.Connection]:
        """Open a transaction that is the only writing one, and commit it at the end.

        One writer at a time, from its first statement on: ids and revisions are then in the order
        of commits, and a reader that continues after the newest it saw misses nothing.
        """
        with self._translated(verb), self._engine.begin() as connection:
            connection.exec_driver_sql(LOCK_WRITERS[connection.dialect.name])
            yield connection

    def _translated(self, verb: str) -> AbstractContextManager[None]:
        return translated(verb, self.location)


def _close(onlooker: Onlooker, engine: sa.Engine) -> None:
    onlooker.close()
    engine.dispose()


class TenantFiles:
    """The files of one tenant's orders, as the download room reads and records them."""

    def __init__(self, journal: Journal, tenant: str | None) -> None:
        self._journal = journal
        self._tenant = tenant or ""

    def files(self, order_id: int) -> list[FileRecord]:
        """Return what is known of the files of one order, by file id."""
        return self._journal._files_of(self._tenant, order_id)  # noqa: SLF001 - one room

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id); on disk when it returns."""
        self._journal._save_files(self._tenant, files)  # noqa: SLF001 - one room

    def update(self, files: Iterable[FileRecord]) -> None:
        """Replace records that are there: a row says all of a file, whatever is new."""
        self.save(files)


def _file_record(values: Iterable[Any]) -> FileRecord:
    fields = dict(zip(FileRecord.__dataclass_fields__, values, strict=True))
    return FileRecord(**fields | {"state": FileState(fields["state"])})
