"""Stores and reads messages: many in one row of the table, each with its own id.

The messages of one commit are packed together as one msgpack value. A burst of messages becomes a
few large rows, a single message a row of its own. This makes a commit cheap: the cost of SQLite
and SQLAlchemy is paid per row and not per message.

Each value begins with a checksum. SQLite notices damage to its own structure and not to the bytes
of a value.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa

from regards_nb.events import Delivery
from regards_nb.journal.schema import batches, execute, sessions, streams, upsert

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Maximum size of the bodies in a row. Only a single larger message exceeds it.
MAX_BATCH_BYTES = 1 << 20

#: How much the newest batches may take in memory: more than arrives between two reads of a reader.
#: A message takes about `_OBJECT_BYTES` besides its body.
_KEPT_BYTES = 16 << 20
_OBJECT_BYTES = 500

#: Each message is an array: the fields of `Delivery` in their order, which is therefore part of the
#: schema.
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Delivery]).decode

#: The first byte of a value: no msgpack value begins with it.
_CHECKED = 0xC1
_CHECKED_PREFIX = struct.Struct("<BI")

#: The columns that `read_batch` takes.
SELECT_BATCHES = sa.select(
    batches.c.first_id, batches.c.last_id, batches.c.session_id, batches.c.messages
)

_NEWEST = sa.text("SELECT coalesce(max(last_id), 0) FROM batches")
_INSERT = sa.text(
    "INSERT INTO batches (first_id, last_id, session_id, messages) "
    "VALUES (:first_id, :last_id, :session_id, :messages)"
)
_INSERT_SESSION = sa.text(
    "INSERT INTO sessions (queue, host, pid, started_at_us) "
    "VALUES (:queue, :host, :pid, :started_at_us) RETURNING id"
)


class DamagedBatchError(Exception):
    """The bytes of a row are not those that were written."""


def pack(session_id: int, deliveries: Sequence[Delivery]) -> bytes:
    """Return the value of a row: a checksum, and the messages."""
    encoded = _encode(deliveries)
    return _CHECKED_PREFIX.pack(_CHECKED, zlib.crc32(encoded, session_id)) + encoded


def is_sound(session_id: int, packed: bytes) -> bool:
    """Return whether the checksum of a value is right."""
    checksum = zlib.crc32(_content(packed), session_id)
    return packed[: _CHECKED_PREFIX.size] == _CHECKED_PREFIX.pack(_CHECKED, checksum)


def _content(packed: bytes) -> memoryview:
    """Return the messages of a value, which stand behind the checksum."""
    return memoryview(packed)[_CHECKED_PREFIX.size :]


def content_digest(packed: bytes) -> bytes:
    """Return a digest of the messages of a value; the session does not count."""
    return hashlib.blake2b(_content(packed), digest_size=16).digest()


def _unpack(first_id: int, last_id: int, session_id: int, packed: bytes) -> list[Delivery]:
    if is_sound(session_id, packed):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            deliveries = _decode(_content(packed))
            if len(deliveries) == last_id - first_id + 1:
                return deliveries
    raise DamagedBatchError(f"the messages {first_id} to {last_id} are damaged")


def readable_messages(
    first_id: int, last_id: int, session_id: int, packed: bytes
) -> tuple[list[Delivery | None], bool]:
    """Return the messages of a row, None for each that cannot be read; and whether it is sound."""
    with suppress(DamagedBatchError):
        return list(_unpack(first_id, last_id, session_id, packed)), True
    missing: list[Delivery | None] = [None] * (last_id - first_id + 1)
    try:
        single = msgspec.msgpack.decode(_content(packed), type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return missing, False
    return ([_readable(each) for each in single] + missing)[: len(missing)], False


def _readable(encoded: msgspec.Raw) -> Delivery | None:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.msgpack.decode(encoded, type=Delivery)
    return None


class Batch(NamedTuple):
    """Messages of one session with consecutive ids, and the id of the first one."""

    first_id: int
    session_id: int
    deliveries: list[Delivery]

    @property
    def last_id(self) -> int:
        """The id of the last message."""
        return self.first_id + len(self.deliveries) - 1

    def rows(self) -> list[Row]:
        """Return the messages with their ids."""
        numbered = enumerate(self.deliveries, self.first_id)
        return [Row(row_id, self.session_id, delivery) for row_id, delivery in numbered]

    def stored(self) -> dict[str, Any]:
        """Return the values of a row of the table that holds the messages under their ids."""
        return {
            "first_id": self.first_id,
            "last_id": self.last_id,
            "session_id": self.session_id,
            "messages": pack(self.session_id, self.deliveries),
        }


class NewestBatches:
    """Keeps the newest batches in memory, up to a size. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: With their sizes; by the generation in which the ids are right, and the first id.
        self._batches: dict[tuple[int, int], tuple[Batch, int]] = {}
        self._size_bytes = 0

    def add(self, generation: int, batch: Batch) -> None:
        """Keep a batch, and forget the oldest ones."""
        size_bytes = sum(_OBJECT_BYTES + len(message.body) for message in batch.deliveries)
        key = generation, batch.first_id
        with self._lock:
            _, replaced_bytes = self._batches.pop(key, (None, 0))
            self._batches[key] = batch, size_bytes
            self._size_bytes += size_bytes - replaced_bytes
            while self._size_bytes > _KEPT_BYTES:
                _, oldest_bytes = self._batches.pop(next(iter(self._batches)))
                self._size_bytes -= oldest_bytes

    def after(self, row_id: int, generation: int) -> Batch | None:
        """Return the batch whose first message follows *row_id*; None if it is not kept."""
        batch, _ = self._batches.get((generation, row_id + 1), (None, 0))
        return batch

    def clear(self) -> None:
        """Forget all batches."""
        with self._lock:
            self._batches.clear()
            self._size_bytes = 0


class Row(NamedTuple):
    """One journalled message: its id, the session that received it, the message."""

    id: int
    session_id: int
    delivery: Delivery


def split(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """Cut messages into runs that each fit into one row."""
    start = size_bytes = 0
    for end, delivery in enumerate(deliveries):
        size_bytes += len(delivery.body)
        if size_bytes > MAX_BATCH_BYTES and end > start:
            yield deliveries[start:end]
            start, size_bytes = end, len(delivery.body)
    if start < len(deliveries):
        yield deliveries[start:]


def read_batch(row: Iterable[Any], after_id: int) -> Batch:
    """Unpack a row, without the messages up to *after_id*; DamagedBatchError if it differs."""
    first_id, last_id, session_id, packed = row
    known = max(after_id + 1 - first_id, 0)
    return Batch(
        first_id + known, session_id, _unpack(first_id, last_id, session_id, packed)[known:]
    )


def insert(
    connection: sa.Connection, session_id: int, deliveries: Sequence[Delivery], after_id: int
) -> list[Batch]:
    """Write messages after the newest row; return them with the ids that a commit gives them."""
    written = []
    for run in split(deliveries):
        batch = Batch(after_id + 1, session_id, list(run))
        after_id = batch.last_id
        execute(connection, _INSERT, batch.stored())
        written.append(batch)
    return written


class Attempt(NamedTuple):
    """One try to write messages of a session."""

    #: How many messages append() was given.
    covered: int
    #: Of these, the batches that an earlier try had committed, and the messages to write.
    committed: list[Batch]
    new: Sequence[Delivery]


def committed_before(
    connection: sa.Connection, session_id: int, after_id: int, attempts: Sequence[Attempt]
) -> tuple[list[Batch], int]:
    """Return the batches of a session after *after_id*, and how many messages they cover.

    There are such batches if an earlier commit succeeded and its answer was lost: they hold
    exactly what one of the attempts wrote.
    """
    query = SELECT_BATCHES.where(batches.c.session_id == session_id, batches.c.last_id > after_id)
    rows = connection.execute(query.order_by(batches.c.last_id))
    committed = [read_batch(row, after_id) for row in rows]
    messages = _messages(committed)
    for attempt in attempts:
        if messages and messages == [*_messages(attempt.committed), *attempt.new]:
            return committed, attempt.covered
    return [], 0


def _messages(of: Iterable[Batch]) -> list[Delivery]:
    return [message for batch in of for message in batch.deliveries]


def unseen_offsets(
    connection: sa.Connection, stream: str, deliveries: Sequence[Delivery]
) -> list[Delivery]:
    """Return the messages of a stream that no kernel has written yet, and advance its offset."""
    query = sa.select(streams.c.next_offset).where(streams.c.queue == stream)
    next_offset = connection.scalar(query) or 0
    new = [d for d in deliveries if d.stream_offset is not None and d.stream_offset >= next_offset]
    if new:
        offset = new[-1].stream_offset
        row = {"queue": stream, "next_offset": (offset or 0) + 1}
        connection.execute(upsert(streams, connection.dialect.name), row)
    return new


class RowReader:
    """Reads rows inside a transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    @cached_property
    def last_id(self) -> int:
        """The id of the newest row when it was first asked for; 0 for an empty journal."""
        (newest_id,) = execute(self._connection, _NEWEST, {}).fetchone()
        return int(newest_id)

    def recent(
        self, queue: str, *, after_id: int, not_of: int | None = None, limit: int
    ) -> list[Row]:
        """Return the newest *limit* rows of *queue* after *after_id*, oldest first.

        Rows of the session *not_of* are left out.
        """
        query = (
            SELECT_BATCHES.join(sessions, sessions.c.id == batches.c.session_id)
            .where(sessions.c.queue == queue, batches.c.last_id > after_id)
            .order_by(batches.c.last_id.desc())
            .execution_options(yield_per=16)
        )
        if not_of is not None:
            query = query.where(batches.c.session_id != not_of)
        newest_first: list[Row] = []
        with self._connection.execute(query) as rows:
            for row in rows:
                newest_first += reversed(read_batch(row, after_id).rows())
                if len(newest_first) >= limit:
                    break
        return newest_first[:limit][::-1]


def insert_session(connection: sa.Connection, values: dict[str, Any]) -> int:
    """Write a session; return its id."""
    (session_id,) = execute(connection, _INSERT_SESSION, values).fetchone()
    return int(session_id)
