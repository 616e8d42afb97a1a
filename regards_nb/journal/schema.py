"""The tables of a journal, and how an older journal becomes a newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from regards_nb.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA_VERSION = 2

metadata = sa.MetaData()

meta = sa.Table(
    "regards_nb_meta",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

#: One life of a connection to a queue. RabbitMQ hands a session's messages over in order, and
#: whatever it hands over a second time it hands over in that order too.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
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
    sa.Column("stream_offset", sa.BigInteger),
    sqlite_autoincrement=True,
)

files = sa.Table(
    "files",
    metadata,
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
fetched = sa.Table(
    "fetched",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("row_id", sa.BigInteger, nullable=False),
)

#: What was asked for, written before it is sent: REGARDS has no look-up by correlation id
#: (protocol.md 0.8).
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("correlation_id", sa.Text, primary_key=True),
    sa.Column("label", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sent_at_us", sa.BigInteger, nullable=False),
)

#: Where to go on reading a stream queue, which keeps its messages and shows them to everybody.
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)


def prepare(connection: sa.Connection, location: str) -> None:
    """Make the tables in an empty database, bring older ones up to date, refuse foreign ones.

    Raises
    ------
    JournalError
        The database is of something else, or was written by a newer version.
    """
    names = set(sa.inspect(connection).get_table_names())
    if not names:
        metadata.create_all(connection)
        connection.execute(sa.insert(meta).values(key="schema", value=str(SCHEMA_VERSION)))
        return
    if meta.name not in names:
        raise JournalError(
            f"{location} is a database of something else (tables {', '.join(sorted(names))}). "
            "Give another place with journal=..."
        )
    version = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema"))
    if version is None or int(version) > SCHEMA_VERSION:
        raise JournalError(
            f"{location} was written by a newer regards_nb (schema {version}; this one knows "
            f"{SCHEMA_VERSION}). Upgrade with: pip install --upgrade regards-nb"
        )
    for step in range(int(version), SCHEMA_VERSION):
        _MIGRATIONS[step](connection)
    connection.execute(sa.update(meta).where(meta.c.key == "schema").values(value=SCHEMA_VERSION))


def _from_1(connection: sa.Connection) -> None:
    """Learn to read stream queues."""
    connection.exec_driver_sql("ALTER TABLE deliveries ADD COLUMN stream_offset BIGINT")
    streams.create(connection)


#: Each step leads from a version to the next one.
_MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {1: _from_1}


def upsert(table: sa.Table, dialect: str) -> Any:
    """Insert rows; where one with the same key is there already, replace what it says."""
    keys = [column.name for column in table.primary_key]
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys},
    )
