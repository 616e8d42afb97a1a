"""The log itself: append, read on from where one was, and the few tables beside it."""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import sqlalchemy as sa

from regards_nb.events import Delivery
from regards_nb.journal import schema
from regards_nb.journal.database import DEFAULT_PATH, LOCK_WRITERS, open_engine, translated
from regards_nb.orders import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

_deliveries = schema.deliveries
_files = schema.files
_sessions = schema.sessions
_streams = schema.streams

_DELIVERY_COLUMNS = [_deliveries.c[name] for name in Delivery._fields]
_FILE_COLUMNS = [_files.c[name] for name in FileRecord.__dataclass_fields__]


class Row(NamedTuple):
    """One journalled message: its place in the log, the session that took it, the message."""

    id: int
    session_id: int
    delivery: Delivery


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
        self._engine.dispose()

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
        """
        with self._writing() as connection:
            if stream is not None:
                deliveries = _beyond(connection, stream, deliveries)
            rows = [{**delivery._asdict(), "session_id": session_id} for delivery in deliveries]
            if rows:
                connection.execute(sa.insert(_deliveries), rows)

    def next_offset(self, stream: str) -> int | None:
        """Return where to go on reading a stream queue; None means from its first message."""
        query = sa.select(_streams.c.next_offset).where(_streams.c.queue == stream)
        with self._translated("read"), self._engine.connect() as connection:
            return connection.scalar(query)

    def forget_stream(self, stream: str) -> None:
        """Read a stream queue from its first message again: it was made anew."""
        with self._writing() as connection:
            connection.execute(sa.delete(_streams).where(_streams.c.queue == stream))

    def check(self) -> list[str]:
        """Look for damage; return what is wrong, nothing when all is well."""
        if self._engine.dialect.name != "sqlite":
            return []
        with self._translated("check"), self._engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return [] if found == ["ok"] else [str(line) for line in found]

    def read(self, after_id: int = 0, *, tenant: str | None = None) -> Iterator[Row]:
        """Yield what was journalled after row *after_id*, in journal order.

        With *tenant*, rows that name another tenant are left out. Rows are fetched in pieces, so
        that a long journal does not fill the memory.
        """
        query = sa.select(_deliveries.c.id, _deliveries.c.session_id, *_DELIVERY_COLUMNS).where(
            _deliveries.c.id > after_id
        )
        if tenant is not None:
            mine = (_deliveries.c.tenant == tenant) | _deliveries.c.tenant.is_(None)
            query = query.where(mine)
        with self._translated("read"), self._engine.connect() as connection:
            streamed = connection.execution_options(yield_per=1000)
            for row_id, session_id, *values in streamed.execute(query.order_by(_deliveries.c.id)):
                yield Row(row_id, session_id, Delivery(*values))

    def last_id(self) -> int:
        """Return the id of the newest row, 0 in an empty journal."""
        with self._translated("read"), self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.max(_deliveries.c.id))) or 0

    def recent(self, queue: str, *, after_id: int, not_of: int, limit: int) -> list[Row]:
        """Return the newest *limit* rows of *queue* after *after_id*, oldest first.

        Rows of the session *not_of* are left out: what is being delivered now is not delivered
        again on the same connection.
        """
        query = (
            sa.select(_deliveries.c.id, _deliveries.c.session_id, *_DELIVERY_COLUMNS)
            .join(_sessions, _sessions.c.id == _deliveries.c.session_id)
            .where(_sessions.c.queue == queue, _deliveries.c.id > after_id)
            .where(_deliveries.c.session_id != not_of)
            .order_by(_deliveries.c.id.desc())
            .limit(limit)
        )
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Row(row_id, session_id, Delivery(*v)) for row_id, session_id, *v in rows[::-1]]

    def file_log(self, tenant: str | None) -> TenantFiles:
        """Return the files of one tenant's orders, to read and to write."""
        return TenantFiles(self, tenant)

    def files_after(self, revision: int, *, tenant: str | None) -> tuple[int, list[FileRecord]]:
        """Return the files of *tenant* changed after *revision*, and the newest revision."""
        query = sa.select(_files.c.revision, *_FILE_COLUMNS).where(_files.c.revision > revision)
        if tenant is not None:
            query = query.where(_files.c.tenant == tenant)
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_files.c.revision)).all()
        newest = rows[-1][0] if rows else revision
        return newest, [_file_record(values) for _, *values in rows]

    def bodies(self, row_ids: Sequence[int]) -> dict[int, bytes]:
        """Return the bodies of some rows."""
        found: dict[int, bytes] = {}
        query = sa.select(_deliveries.c.id, _deliveries.c.body)
        with self._translated("read"), self._engine.connect() as connection:
            for start in range(0, len(row_ids), 500):
                wanted = query.where(_deliveries.c.id.in_(row_ids[start : start + 500]))
                found.update((row_id, body) for row_id, body in connection.execute(wanted))
        return found

    def save_fetched(self, tenant: str | None, order_id: int, row_id: int) -> None:
        """Record that the parts announced up to *row_id* were fetched."""
        row = {"tenant": tenant or "", "order_id": order_id, "row_id": row_id}
        with self._writing() as connection:
            connection.execute(schema.upsert(schema.fetched, connection.dialect.name), row)

    def fetched(self) -> dict[tuple[str | None, int], int]:
        """Return, by tenant and order id, up to which row the parts were fetched."""
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(sa.select(schema.fetched)).all()
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
        with self._writing() as connection:
            connection.execute(schema.upsert(schema.requests, connection.dialect.name), row)

    def request(self, tenant: str | None, correlation_id: str) -> tuple[str, int] | None:
        """Return the body of a request and when it was saved, in microseconds; None without."""
        table = schema.requests.c
        query = sa.select(table.body, table.sent_at_us).where(
            table.tenant == (tenant or ""), table.correlation_id == correlation_id
        )
        with self._translated("read"), self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else (row[0], row[1])

    def labels(self) -> dict[tuple[str | None, str], str]:
        """Return the labels of the orders that were requested here, by tenant and correlation."""
        query = sa.select(
            schema.requests.c.tenant, schema.requests.c.correlation_id, schema.requests.c.label
        )
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query.where(schema.requests.c.label.is_not(None))).all()
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
        rows = [asdict(record) | {"tenant": tenant} for record in files]
        if not rows:
            return
        with self._writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(_files.c.revision))) or 0
            for row in rows:
                row["revision"] = newest + 1
            connection.execute(schema.upsert(_files, connection.dialect.name), rows)

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


def _file_record(values: Iterable[Any]) -> FileRecord:
    fields = dict(zip(FileRecord.__dataclass_fields__, values, strict=True))
    return FileRecord(**fields | {"state": FileState(fields["state"])})


def _beyond(
    connection: sa.Connection, stream: str, deliveries: Sequence[Delivery]
) -> list[Delivery]:
    """Return the messages of a stream that nobody has written yet, and count them as written."""
    query = sa.select(_streams.c.next_offset).where(_streams.c.queue == stream)
    next_offset = connection.scalar(query) or 0
    new = [d for d in deliveries if d.stream_offset is not None and d.stream_offset >= next_offset]
    if new:
        offset = new[-1].stream_offset
        row = {"queue": stream, "next_offset": (offset or 0) + 1}
        connection.execute(schema.upsert(_streams, connection.dialect.name), row)
    return new
