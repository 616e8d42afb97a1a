"""The tables of a journal, and how an older journal becomes a newer one."""

from __future__ import annotations

import importlib
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.events import Delivery
from regards_nb.journal.packing import pack, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

SCHEMA_VERSION = 3


class _Utf8(sa.types.TypeDecorator[str]):
    """Text as bytes."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:  # noqa: ARG002
        """Encode a value on its way into the database."""
        return None if value is None else value.encode()

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Decode a value on its way out."""
        return None if value is None else value.decode()


#: What a server may say: it can have NUL in it, which PostgreSQL's text cannot.
_FOREIGN_TEXT = sa.Text().with_variant(_Utf8(), "postgresql")

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

#: The messages, in the order of their ids: each row holds those of one session with the ids from
#: `first_id` to `last_id`, see `packing`. Nothing is ever deleted or given the id of another, so
#: "everything after id n" misses nothing.
batches = sa.Table(
    "batches",
    metadata,
    # INTEGER is what SQLite keeps its rows in the order of
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
    # "" where there is no tenant: NULLs are all different in a primary key
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
    # grows with each change in any table that has it, so that readers take only what is new
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

#: Up to which journal row the parts of an order were fetched.
fetched = sa.Table(
    "fetched",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("row_id", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)

#: What was asked for, written before it is sent: REGARDS has no look-up by correlation id
#: (protocol.md 0.8).
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


def _from_2(connection: sa.Connection) -> None:
    """Store many messages in a row, and number the changes of the other tables."""
    batches.create(connection)
    columns = ", ".join(["id", "session_id", *Delivery.__struct_fields__])
    rows = connection.exec_driver_sql(f"SELECT {columns} FROM deliveries ORDER BY id")  # noqa: S608 - no value in it
    found = ((row[0], row[1], _delivery(*row[2:])) for row in rows.yield_per(1000))
    # Ids that follow one another, of one session: that is what a row can hold.
    runs = groupby(enumerate(found), lambda item: (item[1][0] - item[0], item[1][1]))
    for (_, session_id), run in runs:
        for messages in _at_most(500, ((row_id, message) for _, (row_id, _, message) in run)):
            _store(connection, session_id, messages)
    connection.exec_driver_sql("DROP TABLE deliveries")
    for table in (fetched, requests):
        connection.exec_driver_sql(
            f"ALTER TABLE {table.name} ADD COLUMN revision BIGINT NOT NULL DEFAULT 1"
        )
        for index in table.indexes:
            index.create(connection)


def _delivery(body: bytes, received_at_us: int, redelivered: object, *others: Any) -> Delivery:
    # SQLite has no truth values, only 0 and 1
    return Delivery(body, received_at_us, bool(redelivered), *others)


def _at_most(count: int, things: Iterator[_T]) -> Iterator[list[_T]]:
    while piece := list(islice(things, count)):
        yield piece


def _store(
    connection: sa.Connection, session_id: int, messages: list[tuple[int, Delivery]]
) -> None:
    next_id = messages[0][0]
    for piece in pieces([message for _, message in messages]):
        values = {"first_id": next_id, "last_id": next_id + len(piece) - 1}
        next_id += len(piece)
        connection.execute(
            sa.insert(batches).values(**values, session_id=session_id, messages=pack(piece))
        )


#: Each step leads from a version to the next one.
_MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {1: _from_1, 2: _from_2}


def upsert(table: sa.Table, dialect: str) -> Any:
    """Insert rows; where one with the same key is there already, replace what it says."""
    keys = [column.name for column in table.primary_key]
    # only that of this database: the other takes as long to load as all of SQLAlchemy's core
    statement = importlib.import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys},
    )
