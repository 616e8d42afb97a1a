"""Read messages and records from replaced files, and write the missing ones to the new files.

A file that is put over an open journal is mostly an earlier state of it: a backup. Messages that
were acknowledged after that state exist only in the old files. They are compared row by row with
the new file, by session and content, and the missing ones are written to it: under the same
session, so that a second replacement compares them in the same way.

File records and requests come from no broker either: the newer of two records is kept.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from regards_nb.journal import schema
from regards_nb.journal.batches import (
    SELECT_BATCHES,
    DamagedBatchError,
    RowReader,
    content_digest,
    insert,
    insert_session,
    read_batch,
    unseen_offsets,
)
from regards_nb.journal.changes import read_position
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_sessions = schema.sessions
_batches = schema.batches

#: What identifies a session in two states of a journal. The id can belong to another one there.
_IDENTITY = ("queue", "host", "pid", "started_at_us")
#: The tables whose rows are kept by their key, in their newest state.
_RECORDS = (schema.files, schema.fetched, schema.requests)

_Identity: TypeAlias = tuple[Any, ...]


class _Move(NamedTuple):
    """Messages that have other ids in the new file."""

    first_id: int
    last_id: int
    new_last_id: int


@dataclass
class Rescued:
    """The content of the old files: messages of this process and of streams, and all records."""

    #: by id in the old files
    sessions: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    #: first id, last id, session id and value of each row, oldest first
    rows: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    #: the queues that are streams: their messages are compared by offset, of whatever process
    streams: set[str] = field(default_factory=set)
    records: dict[sa.Table, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    #: whether everything could be read
    is_complete: bool = True

    def write(self, connection: sa.Connection) -> int:
        """Write what another file lacks; return how many messages that were."""
        newest_id = after_id = RowReader(connection).last_id
        session_ids = _session_ids(connection)
        known: dict[int, Counter[bytes]] = {}
        moves: list[_Move] = []
        written = 0
        for row in self.rows:
            first_id, last_id, old_session_id, packed = row
            session = self.sessions[old_session_id]
            session_id = session_ids.get(_identity(session))
            deliveries: Sequence[Any] = read_batch(row, 0).deliveries
            if session["queue"] in self.streams:
                deliveries = unseen_offsets(connection, session["queue"], deliveries)
            elif session_id is not None:
                if session_id not in known:
                    known[session_id] = _contents(connection, session_id)
                digest = content_digest(packed)
                if known[session_id][digest]:
                    known[session_id][digest] -= 1
                    continue
            if not deliveries:
                continue
            if session_id is None:
                values = {name: session[name] for name in _IDENTITY}
                session_id = session_ids[_identity(session)] = insert_session(connection, values)
                known[session_id] = Counter()
            after_id = insert(connection, session_id, deliveries, after_id)[-1].last_id
            moves.append(_Move(first_id, last_id, after_id))
            written += len(deliveries)
        for table, records in self.records.items():
            _write_records(connection, table, [_moved(each, moves, newest_id) for each in records])
        for name, row_id in self.cursors.items():
            schema.write_cursor(connection, name, _moved_id(row_id, moves, newest_id))
        # Whatever was computed from the former files is wrong for this one.
        schema.renew_id(connection)
        return written


def rescue(connection: sa.Connection) -> Rescued:
    """Read the messages of this process and all records; leave out unreadable ones."""
    found = Rescued()
    try:
        _read_messages(connection, found)
        for table in _RECORDS:
            rows = connection.execute(sa.select(table)).mappings()
            found.records[table] = [dict(row) for row in rows]
        found.cursors = schema.read_cursors(connection)
    except sa.exc.DBAPIError:
        found.is_complete = False
    found.rows.reverse()
    return found


def _read_messages(connection: sa.Connection, found: Rescued) -> None:
    found.streams = set(connection.execute(sa.select(schema.streams.c.queue)).scalars())
    is_mine = sa.and_(_sessions.c.host == socket.gethostname(), _sessions.c.pid == os.getpid())
    query = sa.select(_sessions).where(is_mine | _sessions.c.queue.in_(found.streams))
    found.sessions = {each["id"]: dict(each) for each in connection.execute(query).mappings()}
    of_sessions = _batches.c.session_id.in_(found.sessions)
    # The newest first: a backup lacks these, and damage may end the reading.
    query = SELECT_BATCHES.where(of_sessions).order_by(_batches.c.last_id.desc())
    for row in connection.execute(query):
        try:
            read_batch(row, 0)
        except DamagedBatchError:
            found.is_complete = False
        else:
            found.rows.append(tuple(row))


def _identity(session: Mapping[str, Any]) -> _Identity:
    return tuple(session[name] for name in _IDENTITY)


def _session_ids(connection: sa.Connection) -> dict[_Identity, int]:
    rows = connection.execute(sa.select(_sessions)).mappings()
    return {_identity(dict(each)): each["id"] for each in rows}


def _contents(connection: sa.Connection, session_id: int) -> Counter[bytes]:
    query = sa.select(_batches.c.messages).where(_batches.c.session_id == session_id)
    return Counter(map(content_digest, connection.execute(query).scalars()))


def _moved(record: Mapping[str, Any], moves: Sequence[_Move], newest_id: int) -> Mapping[str, Any]:
    """Return a record whose row id is that of the same message in the new file."""
    if "row_id" not in record:
        return record
    return {**record, "row_id": _moved_id(record["row_id"], moves, newest_id)}


def _moved_id(old_id: int, moves: Sequence[_Move], newest_id: int) -> int:
    """Return the id of a message in the new file.

    The rows that the new file had before have their ids in both files: it is an earlier state.
    """
    row_id = min(old_id, newest_id)
    for first_id, last_id, new_last_id in moves:
        if first_id <= old_id:
            row_id = new_last_id - max(last_id - old_id, 0)
    return row_id


def _write_records(
    connection: sa.Connection, table: sa.Table, records: Sequence[Mapping[str, Any]]
) -> None:
    """Write the records that a table lacks, or has in an earlier state."""
    keys = [column.name for column in table.primary_key]
    query = sa.select(*table.primary_key, table.c.revision)
    there = {tuple(key): revision for *key, revision in connection.execute(query)}
    revision = read_position(connection).revision + 1
    newer = [
        {**record, "revision": revision}
        for record in records
        if there.get(tuple(record[name] for name in keys), -1) < record["revision"]
    ]
    if newer:
        connection.execute(schema.upsert(table, connection.dialect.name), newer)


def written_text(rescued: Sequence[Rescued], written: int) -> str:
    """Say that files that were replaced are open again, and what was written to them."""
    text = (
        f" It was opened again; {counted(written, 'message')} of this kernel that it lacked "
        "were written again."
    )
    if not all(each.is_complete for each in rescued):
        text += (
            " Other messages of the former files could not be read any more; tracker.sync() asks "
            "REGARDS for the orders."
        )
    return text
