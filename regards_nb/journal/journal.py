"""`Journal`: append messages, read on from a position, keep the file records."""

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

from regards_nb.files import FileRecord, FileState
from regards_nb.journal import schema
from regards_nb.journal.batches import (
    MAX_BATCH_BYTES,
    SELECT_BATCHES,
    Attempt,
    Batch,
    RowReader,
    committed_before,
    insert,
    read_batch,
    unseen_offsets,
)
from regards_nb.journal.database import (
    DEFAULT_PATH,
    LOCK_WRITERS,
    ChangeDetector,
    Position,
    open_engine,
    read_position,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from regards_nb.events import Delivery
    from regards_nb.journal.batches import Row

    #: see `Journal.append`
    Choose = Callable[[RowReader, Sequence[Delivery]], Sequence[Delivery]]

_batches = schema.batches
_files = schema.files
_sessions = schema.sessions
_streams = schema.streams

_FILE_COLUMNS = [_files.c[name] for name in FileRecord.__dataclass_fields__]

#: Made once: it is needed between connecting and consuming, and making it took longer than asking.
_NEXT_OFFSET = sa.select(_streams.c.next_offset).where(_streams.c.queue == sa.bindparam("queue"))

#: How many of the newest batches stay in memory. A reader in this process gets them without reading
#: and unpacking rows.
_REMEMBERED_BATCHES = 16


class Journal:
    """The durable log of messages, and the file records.

    Parameters
    ----------
    location : str or pathlib.Path, optional
        A path, or a database URL of SQLAlchemy (``"postgresql+psycopg://..."``). By default
        ``.regards/journal.sqlite`` in the current folder, which is that of the notebook.

    Raises
    ------
    JournalError
        The file cannot be created or opened, is not a journal, or has the schema of another
        version.

    Notes
    -----
    Threads may share a journal object, and processes on one machine may share a journal. A commit
    returns after the rows are on disk (SQLite: WAL, ``synchronous=FULL``).
    """

    def __init__(self, location: str | Path | None = None) -> None:
        self._engine = open_engine(DEFAULT_PATH if location is None else location)
        self.location = self._engine.url.render_as_string(hide_password=True)
        self._remembered: deque[Batch] = deque(maxlen=_REMEMBERED_BATCHES)
        self._changes = ChangeDetector(self._engine)
        #: the newest row of each session, and what append() has tried to write after it: a commit
        #: whose answer was lost may have succeeded
        self._newest_of: dict[int, int] = {}
        self._attempts: dict[int, list[Attempt]] = {}
        # A cell that is run again drops its tracker. The connections must close with it.
        weakref.finalize(self, _close, self._changes, self._engine).atexit = False
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
        _close(self._changes, self._engine)

    def open_session(self, queue: str) -> int:
        """Register a connection to *queue*; return the session id for its messages."""
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
        self,
        session_id: int,
        deliveries: Sequence[Delivery],
        *,
        stream: str | None = None,
        choose: Choose | None = None,
    ) -> None:
        """Write *deliveries* and return when they are on disk. Acknowledge them after that.

        Parameters
        ----------
        session_id : int
            From `open_session`.
        deliveries : sequence of Delivery
            In the order of their arrival.
        stream : str, optional
            The name of the stream queue they come from. Its messages are written once, even if
            several kernels read the stream: their offset is the key.
        choose : callable, optional
            ``choose(rows, deliveries)`` returns the deliveries to write. It is called inside the
            transaction, which waits for all other writers: no kernel can write between the
            look-up in *rows* and the insert. After a failed commit it is called again.

        Raises
        ------
        JournalError
            The messages may be on disk or not: a database server may have committed and the
            answer was lost. Call again in the same session, with the same messages or with more
            behind them: each message is written once.
        """
        attempts = self._attempts.setdefault(session_id, [])
        there: list[Batch] = []
        new = deliveries
        with self._writing() as connection:
            if stream is not None:
                new = unseen_offsets(connection, stream, deliveries)
            else:
                if attempts:
                    known_id = self._newest_of.get(session_id, 0)
                    there, covered = committed_before(connection, session_id, known_id, attempts)
                    new = deliveries[covered:]
                if choose is not None:
                    new = choose(RowReader(connection), new)
                attempts.append(Attempt(len(deliveries), there, new))
            written = there + insert(connection, session_id, new)
        del self._attempts[session_id]
        if written:
            self._newest_of[session_id] = written[-1].last_id
        self._remembered += [b for b in written if len(b.deliveries[0].body) <= MAX_BATCH_BYTES]

    def next_offset(self, stream: str) -> int | None:
        """Return the offset at which to continue a stream queue; None is its first message."""
        with self._translated("read"), self._engine.connect() as connection:
            return connection.scalar(_NEXT_OFFSET, {"queue": stream})

    def last_of_stream(self, stream: str) -> Delivery | None:
        """Return the journalled message before `next_offset`; None if no message is journalled.

        A stream that was deleted and made anew has another message at that offset.
        """
        next_offset = self.next_offset(stream)
        if next_offset is None:
            return None
        for row in reversed(self.recent(stream, after_id=0, limit=1)):
            if row.delivery.stream_offset == next_offset - 1:
                return row.delivery
        return None

    def forget_stream(self, stream: str, *, next_offset: int) -> bool:
        """Continue a stream queue at its first message, because it was made anew.

        Parameters
        ----------
        stream : str
            The name of the queue.
        next_offset : int
            The offset that was found wrong. If another kernel has changed the offset since, the
            journal keeps that one.

        Returns
        -------
        bool
            Whether the offset was forgotten here.
        """
        statement = sa.delete(_streams).where(
            _streams.c.queue == stream, _streams.c.next_offset == next_offset
        )
        with self._writing() as connection:
            return connection.execute(statement).rowcount > 0

    def check(self) -> list[str]:
        """Look for damage; return a line for each kind, an empty list for a sound journal.

        A database server checks its own disk: of such a journal only the position is read.
        """
        with self._translated("check"), self._engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                read_position(connection)
                return []
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return [] if found == ["ok"] else [str(line) for line in found]

    def read(self, after_id: int = 0) -> Iterator[Batch]:
        """Yield the messages after row *after_id*, in journal order.

        Rows are fetched a few at a time, so a long journal does not fill the memory. A caller that
        stops at the last id (see `position`) gets the newest batches without a query.
        """
        for batch in list(self._remembered):
            if batch.first_id == after_id + 1:
                yield batch
                after_id += len(batch.deliveries)
        query = SELECT_BATCHES.where(_batches.c.last_id > after_id).order_by(_batches.c.last_id)
        with self._translated("read"), self._streamed(query) as rows:
            for row in rows:
                yield read_batch(row, after_id)

    def position(self) -> Position:
        """Return how far the journal has grown. Nearly free while no process commits."""
        with self._translated("read"):
            return self._changes.position()

    def last_id(self) -> int:
        """Return the id of the newest row; 0 for an empty journal."""
        return self.position().last_id

    def recent(
        self, queue: str, *, after_id: int, not_of: int | None = None, limit: int
    ) -> list[Row]:
        """Return the newest *limit* rows of *queue* after *after_id*, oldest first.

        Rows of the session *not_of* are left out.
        """
        with self._translated("read"), self._engine.connect() as connection:
            return RowReader(connection).recent(
                queue, after_id=after_id, not_of=not_of, limit=limit
            )

    def file_log(self, tenant: str | None) -> TenantFiles:
        """Return the file records of one tenant, to read and to write."""
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

    def files_after(
        self, revision: int, *, tenant: str | None
    ) -> list[tuple[str | None, FileRecord]]:
        """Return the records that changed after *revision*, as they are now, with their tenants.

        Only those of *tenant*; None returns those of all tenants.
        """
        query = sa.select(_files.c.tenant, *_FILE_COLUMNS).where(_files.c.revision > revision)
        if tenant is not None:
            query = query.where(_files.c.tenant == tenant)
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_files.c.revision, _files.c.file_id)).all()
        return [(tenant or None, _file_record(values)) for tenant, *values in rows]

    def save_fetched(self, tenant: str | None, order_id: int, row_id: int) -> None:
        """Record that the sub-orders announced up to row *row_id* were downloaded."""
        row = {"tenant": tenant or "", "order_id": order_id, "row_id": row_id}
        self._change(schema.fetched, [row])

    def fetched_after(self, revision: int) -> dict[tuple[str | None, int], int]:
        """Return, by tenant and order id, up to which row the sub-orders were downloaded.

        Only orders that changed after *revision*.
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
        """Return the body of a request and when it was saved, in µs; None if it is not there."""
        table = schema.requests.c
        query = sa.select(table.body, table.sent_at_us).where(
            table.tenant == (tenant or ""), table.correlation_id == correlation_id
        )
        with self._translated("read"), self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else (row[0], row[1])

    def labels_after(self, revision: int) -> dict[tuple[str | None, str], str]:
        """Return the labels of requested orders, by tenant and correlation id.

        Only requests that changed after *revision*.
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
        """Insert or replace rows of a table that has revisions."""
        if not rows:
            return
        with self._writing() as connection:
            revision = read_position(connection).revision + 1
            connection.execute(
                schema.upsert(table, connection.dialect.name),
                [row | {"revision": revision} for row in rows],
            )

    @contextmanager
    def _streamed(self, query: sa.Select[Any]) -> Iterator[Iterable[sa.Row[Any]]]:
        """Run a query and fetch its rows a few at a time. The caller may stop early."""
        with (
            self._engine.connect() as connection,
            connection.execution_options(yield_per=16).execute(query) as rows,
        ):
            yield rows

    @contextmanager
    def _writing(self, verb: str = "write") -> Iterator[sa.Connection]:
        """Open a transaction that waits for all other writers, and commit it at the end.

        Only one transaction writes at a time, from its first statement on. So ids and revisions
        are in the order of commits, and a reader that continues after the newest one it saw
        misses nothing.
        """
        with self._translated(verb), self._engine.begin() as connection:
            connection.exec_driver_sql(LOCK_WRITERS[connection.dialect.name])
            yield connection

    def _translated(self, verb: str) -> AbstractContextManager[None]:
        return translated(verb, self.location)


def _close(changes: ChangeDetector, engine: sa.Engine) -> None:
    changes.close()
    engine.dispose()


class TenantFiles:
    """The file records of one tenant, as the downloads read and write them."""

    def __init__(self, journal: Journal, tenant: str | None) -> None:
        self._journal = journal
        self._tenant = tenant or ""

    def files(self, order_id: int) -> list[FileRecord]:
        """Return the records of one order, by file id."""
        return self._journal._files_of(self._tenant, order_id)  # noqa: SLF001 - one room

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id). They are on disk when it returns."""
        self._journal._save_files(self._tenant, files)  # noqa: SLF001 - one room

    def update(self, files: Iterable[FileRecord]) -> None:
        """Replace records that are there already. Each record holds all fields of a file."""
        self.save(files)


def _file_record(values: Iterable[Any]) -> FileRecord:
    fields = dict(zip(FileRecord.__dataclass_fields__, values, strict=True))
    return FileRecord(**fields | {"state": FileState(fields["state"])})
