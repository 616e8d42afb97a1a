"""Messages on their way into the log and out of it: many in a row of the table, each with an id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from regards_nb.journal.packing import pack, pieces, unpack
from regards_nb.journal.schema import batches, streams, upsert

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from regards_nb.events import Delivery

#: What `read_batch` reads.
SELECT_BATCHES = sa.select(batches.c.first_id, batches.c.session_id, batches.c.messages)

_last_id = sa.func.coalesce(sa.func.max(batches.c.last_id), 0)
#: Written in one statement with the ids it is given, while nobody else may write.
_INSERT = (
    sa.insert(batches)
    .from_select(
        ["first_id", "last_id", "session_id", "messages"],
        sa.select(
            _last_id + 1,
            _last_id + sa.bindparam("count", type_=sa.BigInteger),
            sa.bindparam("session", type_=sa.Integer),
            sa.bindparam("packed", type_=sa.LargeBinary),
        ),
    )
    .returning(batches.c.first_id)
)


class Batch(NamedTuple):
    """Messages that one session took in, and the id of the first; the others follow it."""

    first_id: int
    session_id: int
    deliveries: list[Delivery]

    @property
    def last_id(self) -> int:
        """The id of the last one."""
        return self.first_id + len(self.deliveries) - 1

    def rows(self) -> list[Row]:
        """Return the messages with their ids."""
        numbered = enumerate(self.deliveries, self.first_id)
        return [Row(row_id, self.session_id, delivery) for row_id, delivery in numbered]


class Row(NamedTuple):
    """One journalled message: its place in the log, the session that took it, the message."""

    id: int
    session_id: int
    delivery: Delivery


def read_batch(row: Iterable[Any], after_id: int) -> Batch:
    """Unpack a row, leaving out what comes before the message after *after_id*."""
    first_id, session_id, messages = row
    known = max(after_id + 1 - first_id, 0)
    return Batch(first_id + known, session_id, unpack(messages)[known:])


def insert(
    connection: sa.Connection, session_id: int, deliveries: Sequence[Delivery]
) -> list[Batch]:
    """Write messages; return them as they are in the log once that is committed."""
    written = []
    for piece in pieces(deliveries):
        values = {"count": len(piece), "session": session_id, "packed": pack(piece)}
        first_id = connection.execute(_INSERT, values).scalar_one()
        written.append(Batch(first_id, session_id, list(piece)))
    return written


def already_there(
    connection: sa.Connection, session_id: int, after_id: int, deliveries: Sequence[Delivery]
) -> list[Batch]:
    """Return what a session wrote after the newest row that it knows of.

    That is the beginning of *deliveries*, if writing them seemed to fail and did not: nothing else
    is written in a session. Anything else is an empty list.
    """
    query = SELECT_BATCHES.where(batches.c.session_id == session_id, batches.c.last_id > after_id)
    rows = connection.execute(query.order_by(batches.c.last_id))
    there = [read_batch(row, after_id) for row in rows]
    messages = [message for batch in there for message in batch.deliveries]
    return there if messages == list(deliveries[: len(messages)]) else []


def beyond(
    connection: sa.Connection, stream: str, deliveries: Sequence[Delivery]
) -> list[Delivery]:
    """Return the messages of a stream that nobody has written yet, and count them as written."""
    query = sa.select(streams.c.next_offset).where(streams.c.queue == stream)
    next_offset = connection.scalar(query) or 0
    new = [d for d in deliveries if d.stream_offset is not None and d.stream_offset >= next_offset]
    if new:
        offset = new[-1].stream_offset
        row = {"queue": stream, "next_offset": (offset or 0) + 1}
        connection.execute(upsert(streams, connection.dialect.name), row)
    return new
