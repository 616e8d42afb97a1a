"""Rescue the messages of files that were replaced while they were open, or that are damaged.

A file that is put over an open journal is mostly an earlier state of it: a backup. Messages that
were acknowledged after that state exist only in the old files. They are compared row by row with
the new file, by session and content, and the missing ones are written to it: under the same
session, so that a second replacement compares them in the same way. File records and requests come
from no broker either: the newer of two records is kept.

`repair` copies the readable rows of a damaged file to a new one.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.journal import schema
from regards_nb.journal.batches import (
    SELECT_BATCHES,
    Batch,
    DamagedBatchError,
    RowReader,
    content_digest,
    insert,
    insert_session,
    read_batch,
    readable_messages,
    unseen_offsets,
)
from regards_nb.journal.changes import read_position
from regards_nb.journal.location import DEFAULT_PATH
from regards_nb.journal.sqlite_file import is_in_use, unused_name
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_sessions = schema.sessions
_batches = schema.batches

#: What identifies a session in two states of a journal. The id can belong to another one there.
_IDENTITY = ("queue", "host", "pid", "started_at_us")
#: The tables whose rows are kept by their key, in their newest state.
_RECORDS = (schema.files, schema.fetched, schema.requests)

_Identity: TypeAlias = tuple[Any, ...]

#: How many rows are looked up one by one behind the last one that a scan has found.
_MAX_LOOKUPS = 10_000

#: What is lost with rows of a table, where a user notices it.
_TABLES = {
    "requests": "labels of orders, and what was asked for: use the numbers of these orders",
    "files": "records of files: download() with the number of an order finds those in place",
}


# -- files that were replaced


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
    #: first id, last id, session id and value of each row, newest first
    rows: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    #: the queues that are streams: their messages are compared by offset, of whatever process
    streams: set[str] = field(default_factory=set)
    records: dict[sa.Table, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    #: whether everything could be read
    is_complete: bool = False

    def read(self, connection: sa.Connection, newest_id: int) -> None:
        """Read the messages of this process and all records; leave out damaged messages.

        After an error of the database, what was read stays. *newest_id* is the newest known row.
        """
        is_sound = self._read_messages(connection)
        for table in _RECORDS:
            rows = connection.execute(sa.select(table)).mappings()
            self.records[table] = [dict(row) for row in rows]
        self.cursors = schema.read_cursors(connection)
        # A file that was copied over the main one can have replaced the rows.
        self.is_complete = is_sound and RowReader(connection).last_id >= newest_id

    def _read_messages(self, connection: sa.Connection) -> bool:
        """Return whether no message is damaged."""
        self.streams = set(connection.execute(sa.select(schema.streams.c.queue)).scalars())
        is_mine = sa.and_(_sessions.c.host == socket.gethostname(), _sessions.c.pid == os.getpid())
        query = sa.select(_sessions).where(is_mine | _sessions.c.queue.in_(self.streams))
        self.sessions = {each["id"]: dict(each) for each in connection.execute(query).mappings()}
        of_sessions = _batches.c.session_id.in_(self.sessions)
        # The newest first: a backup lacks these, and damage may end the reading.
        query = SELECT_BATCHES.where(of_sessions).order_by(_batches.c.last_id.desc())
        is_sound = True
        for row in connection.execute(query):
            try:
                read_batch(row, 0)
            except DamagedBatchError:
                is_sound = False
            else:
                self.rows.append(tuple(row))
        return is_sound

    def write(self, connection: sa.Connection) -> int:
        """Write what another file lacks; return how many messages that were."""
        newest_id = after_id = RowReader(connection).last_id
        session_ids = _session_ids(connection)
        known: dict[int, Counter[bytes]] = {}
        moves: list[_Move] = []
        written = 0
        for row in reversed(self.rows):
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


# -- a damaged file


@dataclass
class Repair:
    """The result of `repair`; prints as lines."""

    path: Path
    #: The files that the repaired journal has replaced; empty for a sound journal.
    kept: list[Path] = field(default_factory=list)
    messages: int = 0
    #: The first and last id of each run of messages that could not be read; None for the last id
    #: if nothing behind the first one could be read.
    lost: list[tuple[int, int | None]] = field(default_factory=list)
    #: The same for messages that could be read, and whose checksum is wrong.
    doubtful: list[tuple[int, int]] = field(default_factory=list)
    #: The other tables with rows that could not be read.
    lost_rows: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.lost or self.doubtful or self.lost_rows)

    def __str__(self) -> str:
        if self.is_sound:
            return (
                f"{self.path} is sound: {counted(self.messages, 'message')}. Nothing was changed."
            )
        lines = [f"{self.path} was written anew with {counted(self.messages, 'message')}."]
        lines += [f"lost: the messages {first} to {last or 'the end'}" for first, last in self.lost]
        lines += [
            f"doubtful: the messages {first} to {last} have a wrong checksum; some text in them "
            "may be wrong"
            for first, last in self.doubtful
        ]
        lines += [
            f"lost: {_TABLES.get(name, f'rows of the table {name}')}" for name in self.lost_rows
        ]
        lines.append(f"The damaged files are kept: {', '.join(map(str, self.kept))}")
        if self.lost:
            lines.append("Orders whose messages are lost: tracker.sync() asks REGARDS for them.")
        return "\n".join(lines)


def repair(location: str | Path | None = None) -> Repair:
    """Copy the readable rows of a damaged journal to a new file, and put that in its place.

    The default is ``.regards/journal.sqlite``. Close all kernels that use it first. The damaged
    files are kept under other names. JournalError: there is no such file, a kernel uses it, or
    nothing in it can be read.
    """
    path = Path(DEFAULT_PATH if location is None else location).expanduser().absolute()
    if not path.is_file():
        raise JournalError(f"there is no journal {path}. Name the file: regards-nb repair PATH")
    if is_in_use(path):
        raise JournalError(f"a kernel uses the journal {path}. Close it, then repair the journal")
    report = Repair(path)
    repaired = path.with_name(f".{path.name}.repaired")
    repaired.unlink(missing_ok=True)
    try:
        _copy(path, repaired, report)
        if not report.is_sound:
            report.kept = _put_in_place(path, repaired)
    except sqlite3.Error as exc:
        raise JournalError(
            f"nothing in {path} can be read ({exc}). Move the file and its -wal and -shm away, and "
            "put a backup there if you have one"
        ) from exc
    finally:
        repaired.unlink(missing_ok=True)
    return report


def _copy(path: Path, repaired: Path, report: Repair) -> None:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(repaired)))
    try:
        with closing(sqlite3.connect(path)) as source, engine.begin() as target:
            repaired.chmod(0o600)
            schema.create(target)
            for table in schema.metadata.sorted_tables:
                # no kernel is open, so nobody holds a lease
                if table not in {schema.batches, schema.meta, schema.leases}:
                    _copy_table(source, target, table, report)
            _copy_messages(source, target, report)
    finally:
        engine.dispose()


def _copy_table(
    source: sqlite3.Connection, target: sa.Connection, table: sa.Table, report: Repair
) -> None:
    names = table.columns.keys()
    for _, values in _rows(source, table.name, names):
        with suppress(sa.exc.SQLAlchemyError, UnicodeError):
            if values is not None:
                with target.begin_nested():
                    target.execute(sa.insert(table).values(dict(zip(names, values, strict=True))))
                continue
        if table.name not in report.lost_rows:
            report.lost_rows.append(table.name)


def _copy_messages(source: sqlite3.Connection, target: sa.Connection, report: Repair) -> None:
    next_id = 1
    reaches_end = True
    for last_id, values in _rows(source, "batches", ["first_id", "session_id", "messages"]):
        match values:
            case [int(first_id), int(session_id), bytes(packed)] if next_id <= first_id <= last_id:
                messages, is_sound = readable_messages(first_id, last_id, session_id, packed)
            case _:
                reaches_end = False
                continue  # a later row shows where the gap ends
        reaches_end = True
        if first_id > next_id:
            report.lost.append((next_id, first_id - 1))
        next_id = last_id + 1
        numbered = enumerate(messages, first_id)
        for is_lost, run in groupby(numbered, lambda item: item[1] is None):
            found = list(run)
            first, last = found[0][0], found[-1][0]
            if is_lost:
                report.lost.append((first, last))
                continue
            readable = [message for _, message in found if message is not None]
            target.execute(sa.insert(schema.batches), Batch(first, session_id, readable).stored())
            report.messages += len(found)
            if not is_sound:
                report.doubtful.append((first, last))
    if not reaches_end:
        report.lost.append((next_id, None))


def _rows(
    source: sqlite3.Connection, table: str, names: Sequence[str]
) -> Iterator[tuple[int, Sequence[Any] | None]]:
    """Yield the row ids of a table with the values, or with None where they cannot be read.

    SQLite stops a scan at a damaged page. The rows behind it are read from the end, and those
    between one by one.
    """
    query = f"SELECT rowid, {', '.join(names)} FROM {table} WHERE rowid"  # noqa: S608 - our own names
    last = 0
    try:
        for row_id, *values in source.execute(f"{query} > 0 ORDER BY rowid"):
            last = row_id
            yield row_id, values
    except sqlite3.DatabaseError:
        pass
    else:
        return
    behind: list[tuple[int, Sequence[Any]]] = []
    with suppress(sqlite3.DatabaseError):
        for row_id, *values in source.execute(f"{query} > {last} ORDER BY rowid DESC"):
            behind.append((row_id, values))
    end = behind[-1][0] if behind else last + 1 + _MAX_LOOKUPS
    for row_id in range(last + 1, end):
        try:
            found = source.execute(f"{query} = {row_id}").fetchone()
        except sqlite3.DatabaseError:
            yield row_id, None
        else:
            if found is not None:
                yield row_id, found[1:]
    yield from reversed(behind)


def _put_in_place(path: Path, repaired: Path) -> list[Path]:
    """Keep the damaged files under other names, and put the repaired one in their place."""
    aside, moved = unused_name(path, "damaged"), []
    for suffix in ("-wal", "-shm", ""):
        damaged = Path(f"{path}{suffix}")
        if damaged.exists():
            moved.append(damaged.rename(f"{aside}{suffix}"))
    repaired.rename(path)
    return moved
