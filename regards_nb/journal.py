"""The durable log: every message as it came, and every file of an order, in one database.

The log is append-only and holds the raw deliveries; events, orders and rejected messages are
derived from it (`events.decode`, `orders.fold`) and never stored, so that a later version of
regards_nb understands more of an old journal and nothing has to be kept in step. SQLite by
default; any database of SQLAlchemy by URL.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from regards_nb.errors import JournalError
from regards_nb.events import Delivery
from regards_nb.orders import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SCHEMA_VERSION = 1
DEFAULT_PATH = Path(".regards") / "journal.sqlite"

#: How long a commit waits for another process to finish its own.
BUSY_TIMEOUT_S = 10.0

_metadata = sa.MetaData()

_meta = sa.Table(
    "regards_nb_meta",
    _metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

#: One life of a connection to a queue. RabbitMQ hands a session's messages over in order, and
#: whatever it hands over a second time it hands over in that order too.
_sessions = sa.Table(
    "sessions",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
)

_deliveries = sa.Table(
    "deliveries",
    _metadata,
    # AUTOINCREMENT: an id is never given twice, so "everything after id n" misses nothing.
    sa.Column("id", sa.Integer().with_variant(sa.BigInteger, "postgresql"), primary_key=True),
    sa.Column("session_id", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at_us", sa.BigInteger, nullable=False),
    sa.Column("redelivered", sa.Boolean, nullable=False),
    sa.Column("timestamp_s", sa.BigInteger),
    sa.Column("correlation_id", sa.Text),
    sa.Column("tenant", sa.Text),
    sa.Column("app_id", sa.Text),
    sa.Column("properties", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

_files = sa.Table(
    "files",
    _metadata,
    # "" where there is no tenant: NULLs are all different in a primary key
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("file_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("md5", sa.Text),
    sa.Column("product_id", sa.Text),
    sa.Column("path", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("error", sa.Text),
    # grows with each change, so that readers take only what is new
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

#: Up to which journal row the parts of an order were fetched.
_fetched = sa.Table(
    "fetched",
    _metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("row_id", sa.BigInteger, nullable=False),
)

#: What was asked for, written before it is sent: REGARDS has no look-up by correlation id
#: (protocol.md 0.8).
_requests = sa.Table(
    "requests",
    _metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("correlation_id", sa.Text, primary_key=True),
    sa.Column("label", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sent_at_us", sa.BigInteger, nullable=False),
)

#: How a database is told that this transaction is going to write.
_LOCK_WRITERS = {
    "sqlite": "BEGIN IMMEDIATE",
    # any number: it names our lock among the advisory locks of the database
    "postgresql": "SELECT pg_advisory_xact_lock(7234734)",
}

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
        self._engine = _engine(DEFAULT_PATH if location is None else location)
        self.location = self._engine.url.render_as_string(hide_password=True)
        with self._writing("open") as connection:
            _prepare(connection, self.location)

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

    def append(self, session_id: int, deliveries: Sequence[Delivery]) -> None:
        """Write *deliveries* and return once they are on disk; acknowledge them after that."""
        if not deliveries:
            return
        rows = [{**delivery._asdict(), "session_id": session_id} for delivery in deliveries]
        with self._writing() as connection:
            connection.execute(sa.insert(_deliveries), rows)

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
            connection.execute(_upsert(_fetched, connection.dialect.name), row)

    def fetched(self) -> dict[tuple[str | None, int], int]:
        """Return, by tenant and order id, up to which row the parts were fetched."""
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(sa.select(_fetched)).all()
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
            connection.execute(_upsert(_requests, connection.dialect.name), row)

    def labels(self) -> dict[tuple[str | None, str], str]:
        """Return the labels of the orders that were requested here, by tenant and correlation."""
        query = sa.select(_requests.c.tenant, _requests.c.correlation_id, _requests.c.label)
        with self._translated("read"), self._engine.connect() as connection:
            rows = connection.execute(query.where(_requests.c.label.is_not(None))).all()
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
            connection.execute(_upsert(_files, connection.dialect.name), rows)

    @contextmanager
    def _writing(self, verb: str = "write") -> Iterator[sa.Connection]:
        """Open a transaction that is the only writing one, and commit it at the end.

        One writer at a time, from its first statement on: ids and revisions are then in the order
        of commits, and a reader that continues after the newest it saw misses nothing.
        """
        with self._translated(verb), self._engine.begin() as connection:
            connection.exec_driver_sql(_LOCK_WRITERS[connection.dialect.name])
            yield connection

    @contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Turn a database error into one that says which journal and what to do."""
        try:
            yield
        except sa.exc.DBAPIError as exc:
            cause = str(exc.orig)
            raise JournalError(
                f"cannot {verb} the journal {self.location}: {cause}. {_remedy(cause)}"
            ) from exc


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


def _engine(location: str | Path) -> sa.Engine:
    if isinstance(location, str) and "://" in location:
        try:
            url = sa.make_url(location)
            engine = sa.create_engine(url)
        except (sa.exc.ArgumentError, ImportError) as exc:
            raise JournalError(
                "the journal must be a path or a database URL that SQLAlchemy understands, with "
                f"its driver installed: {type(exc).__name__}"
            ) from exc
    else:
        path = Path(location).expanduser().absolute()
        _make_folder(path.parent)
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    if engine.dialect.name not in _LOCK_WRITERS:
        raise JournalError(
            f"the journal can be kept in {' or '.join(_LOCK_WRITERS)}, not in {engine.dialect.name}"
        )
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            if folder.name == DEFAULT_PATH.parent.name:
                # the history of one person's orders does not belong into a repository
                (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as exc:
        raise JournalError(
            f"cannot make the folder {folder} for the journal: {exc.strerror}. "
            "Give another place with journal=..."
        ) from exc


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Set up each new connection: readers never block the writer, a commit is on the disk."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _prepare(connection: sa.Connection, location: str) -> None:
    """Make the tables in an empty database; refuse one that is not ours."""
    names = set(sa.inspect(connection).get_table_names())
    if _meta.name not in names:
        if names:
            raise JournalError(
                f"{location} is a database of something else (tables {', '.join(sorted(names))}). "
                "Give another place with journal=..."
            )
        _metadata.create_all(connection)
        connection.execute(sa.insert(_meta).values(key="schema", value=str(SCHEMA_VERSION)))
        return
    version = connection.scalar(sa.select(_meta.c.value).where(_meta.c.key == "schema"))
    if version is None or int(version) > SCHEMA_VERSION:
        raise JournalError(
            f"{location} was written by a newer regards_nb (schema {version}; this one knows "
            f"{SCHEMA_VERSION}). Upgrade with: pip install --upgrade regards-nb"
        )


def _upsert(table: sa.Table, dialect: str) -> Any:
    """Insert rows; where one with the same key is there already, replace what it says."""
    keys = [column.name for column in table.primary_key]
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys},
    )


def _file_record(values: Iterable[Any]) -> FileRecord:
    fields = dict(zip(FileRecord.__dataclass_fields__, values, strict=True))
    return FileRecord(**fields | {"state": FileState(fields["state"])})


def _remedy(cause: str) -> str:
    """Say what to do about a database error."""
    for symptom, remedy in _REMEDIES.items():
        if symptom in cause:
            return remedy
    return "See the cause above; another place can be given with journal=..."


_REMEDIES = {
    "locked": "Another program holds it: close that program, or give another place with "
    "journal=...",
    "readonly": "Make the file and its folder writable, or give another place with journal=...",
    "unable to open": "Check that the folder exists and is writable, or give another place with "
    "journal=...",
    "full": "Free some disk space; nothing that was journalled is lost, and what was not is still "
    "in the queue.",
    "malformed": "The file is damaged. Move it away together with its -wal and -shm files; "
    "tracking then starts a new one.",
    "not a database": "The file is not a journal. Give another place with journal=...",
    "disk I/O": "Check the disk and its free space.",
}
