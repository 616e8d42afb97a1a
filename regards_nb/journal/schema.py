"""The tables of a journal, their version, and the values of `meta`; another version is refused."""

from __future__ import annotations

import importlib
import uuid
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from regards_nb.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEMA_VERSION = "6"

#: the key of the journal's random id in `meta`
_ID = "id"
#: the keys of cursors begin with it
_CURSOR = "cursor "
_READ_META = sa.text("SELECT value FROM regards_nb_meta WHERE key = :key")
_WRITE_META = sa.text(
    "INSERT INTO regards_nb_meta (key, value) VALUES (:key, :value) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


class _Utf8(sa.types.TypeDecorator[str]):
    """Text that is stored as UTF-8 bytes."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:  # noqa: ARG002
        """Encode a value on its way into the database."""
        return None if value is None else value.encode()

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Decode a value on its way out."""
        return None if value is None else value.decode()


#: Text of the server. It may contain NUL, which PostgreSQL does not store in a text column.
_FOREIGN_TEXT = sa.Text().with_variant(_Utf8(), "postgresql")

metadata = sa.MetaData()

meta = sa.Table(
    "regards_nb_meta",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

#: One row for each connection to a queue. RabbitMQ delivers the messages of a session in order, and
#: delivers them again in the same order.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
)

#: The messages in the order of their ids. Each row holds the messages of one session with the ids
#: from `first_id` to `last_id`, see `batches.py`. No row is deleted and no id is used twice, so a
#: reader that asks for everything after id n misses nothing.
batches = sa.Table(
    "batches",
    metadata,
    # SQLite keeps its rows in the order of an INTEGER primary key
    sa.Column(
        "last_id",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("first_id", sa.BigInteger, nullable=False),
    sa.Column("session_id", sa.Integer, nullable=False),
    sa.Column("messages", sa.LargeBinary, nullable=False),
)

files = sa.Table(
    "files",
    metadata,
    # "" means no tenant: in a primary key no NULL equals another
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("file_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", _FOREIGN_TEXT, nullable=False),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("md5", sa.Text),
    sa.Column("product_id", _FOREIGN_TEXT),
    sa.Column("path", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("error", _FOREIGN_TEXT),
    sa.Column("fetched_at_us", sa.BigInteger),
    # grows with each change in any table that has this column: readers ask for later revisions
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

#: What no message tells of an order: up to which journal row its sub-orders were downloaded, and
#: the last answer of REGARDS about it, packed by `frames`.
fetched = sa.Table(
    "fetched",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("row_id", sa.BigInteger, nullable=False, default=0),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    sa.Column("answer", sa.LargeBinary),
)

#: The order requests. Each is written before it is sent, because REGARDS has no look-up by
#: correlation id (protocol.md 0.8).
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("correlation_id", sa.Text, primary_key=True),
    sa.Column("label", _FOREIGN_TEXT),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sent_at_us", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

#: The offset at which to continue reading a stream queue. A stream keeps its messages for all
#: readers.
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)

#: Which process does a piece of work, such as the download of an order; see `processes.py`.
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # of one `Journal` object
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    # tells processes with the same host and pid apart; empty where the system cannot tell
    sa.Column("process", sa.Text, nullable=False),
    # by the clock of the database
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
)


#: The folded state of all orders at the time when events were last removed. Each row holds those of
#: one queue, packed as messages are. It cannot be computed again.
pruned_orders = sa.Table(
    "pruned_orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("orders", sa.LargeBinary, nullable=False),
)


def has_tables(connection: sa.Connection, location: str) -> bool:
    """Return whether the database has the tables; False for an empty one.

    JournalError: it belongs to another program, or has the schema of another version.
    """
    names = set(sa.inspect(connection).get_table_names())
    if not names:
        return False
    if meta.name not in names:
        raise JournalError(
            f"{location} is a database of something else (tables {', '.join(sorted(names))}). "
            "Choose another place with journal=..."
        )
    found = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema"))
    if found != _SCHEMA_VERSION:
        raise JournalError(
            f"{location} was written by another version of regards_nb (schema {found}; this "
            f"version reads schema {_SCHEMA_VERSION}). A newer one: pip install --upgrade "
            "regards-nb. An unreleased one: choose another place with journal=..."
        )
    return True


def create(connection: sa.Connection) -> None:
    """Create the tables in an empty database."""
    metadata.create_all(connection)
    connection.execute(sa.insert(meta).values(key="schema", value=_SCHEMA_VERSION))
    renew_id(connection)


def execute(connection: sa.Connection, statement: sa.TextClause, values: dict[str, Any]) -> Any:
    """Run a statement of each commit or start.

    In SQLite by the driver's own call: SQLAlchemy's takes ten times as long, and this is on the
    way of each message to its row.
    """
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, values)
    driver: Any = connection.connection.dbapi_connection
    return driver.execute(statement.text, values)


def read_meta(connection: sa.Connection, key: str) -> str | None:
    """Return the value under a key; None if there is none."""
    row = execute(connection, _READ_META, {"key": key}).fetchone()
    return None if row is None else str(row[0])


def write_meta(connection: sa.Connection, key: str, value: str) -> None:
    """Insert or replace the value under a key."""
    execute(connection, _WRITE_META, {"key": key, "value": value})


def renew_id(connection: sa.Connection) -> None:
    """Give the journal a random id, or another one: its rows are not those of before.

    Results computed from the rows before, such as checkpoints, are not used any more.
    """
    write_meta(connection, _ID, uuid.uuid4().hex)


def read_id(connection: sa.Connection) -> str | None:
    """Return the random id of the journal."""
    return read_meta(connection, _ID)


def read_cursors(connection: sa.Connection) -> dict[str, int]:
    """Return the row ids that processes keep for others, by name."""
    rows = connection.execute(sa.select(meta).where(meta.c.key.startswith(_CURSOR)))
    return {key.removeprefix(_CURSOR): int(value) for key, value in rows}


def read_cursor(connection: sa.Connection, name: str) -> int | None:
    """Return one of them; None if there is none."""
    value = read_meta(connection, f"{_CURSOR}{name}")
    return None if value is None else int(value)


def write_cursor(connection: sa.Connection, name: str, row_id: int) -> None:
    """Insert or replace a row id; *name* has at most 32 characters."""
    write_meta(connection, f"{_CURSOR}{name}", str(row_id))


def prepare(connection: sa.Connection, location: str, *, was_copied: bool) -> None:
    """Create the tables, unless another kernel has done so meanwhile.

    JournalError: there are none, because the file *was_copied*.
    """
    if has_tables(connection, location):
        return
    if was_copied:
        raise JournalError(
            f"{location} is a copy of a new journal without its -wal file, which held all "
            "messages. Copy a journal that is in use with tracker.backup(path) or regards-nb "
            "backup; or delete this file to start a new journal"
        )
    create(connection)


def upsert(table: sa.Table, dialect: str, names: Iterable[str] | None = None) -> Any:
    """Return a statement that inserts a row, or replaces the row that has the same key.

    With *names*, only these of its columns are replaced.
    """
    keys = [column.name for column in table.primary_key]
    changed = set(table.columns.keys() if names is None else names).difference(keys)
    # Import the dialect of this database only: the other one takes as long to import as all of
    # SQLAlchemy's core.
    statement = importlib.import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={name: statement.excluded[name] for name in changed},
    )
