"""`Journal`: append messages, read on from a position, keep the file records."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from regards_nb.arguments import check_local_paths
from regards_nb.errors import JournalError
from regards_nb.files import FileRecord, FileState, is_url
from regards_nb.journal import schema
from regards_nb.journal.batches import (
    SELECT_BATCHES,
    Attempt,
    Batch,
    DamagedBatchError,
    NewestBatches,
    RowReader,
    committed_before,
    insert,
    insert_session,
    is_sound,
    read_batch,
    unseen_offsets,
)
from regards_nb.journal.changes import read_position
from regards_nb.journal.checkpoints import CheckpointStore
from regards_nb.journal.database import Database, JournalReplacedError
from regards_nb.journal.location import DEFAULT_PATH, remedy
from regards_nb.journal.processes import Cursors, Holder, Leases
from regards_nb.journal.prune import Pruning
from regards_nb.journal.sqlite_file import copy_database
from regards_nb.text import clean
from regards_nb.waits import said_meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from regards_nb.events import Delivery
    from regards_nb.journal.changes import Position

    #: see `Journal.append`
    Choose = Callable[[RowReader, Sequence[Delivery]], Sequence[Delivery]]

_batches = schema.batches
_files = schema.files
_pruned = schema.pruned_orders
_sessions = schema.sessions
_streams = schema.streams

_FILE_COLUMNS = [_files.c[name] for name in FileRecord._fields]

#: Made once: `start` needs them, and making one takes longer than asking.
_NEXT_OFFSET = sa.text("SELECT next_offset FROM streams WHERE queue = :queue")
_QUEUES = sa.text("SELECT DISTINCT queue FROM sessions")
_HAS_MESSAGES = [
    sa.select(found.limit(1).exists())
    for found in (
        sa.select(_batches.c.last_id).where(
            _batches.c.session_id.in_(
                sa.select(_sessions.c.id).where(_sessions.c.queue == sa.bindparam("queue"))
            )
        ),
        sa.select(_pruned.c.id).where(_pruned.c.queue == sa.bindparam("queue")),
    )
]

#: Number of rows, of up to 1 MiB each, that are read together.
_ROWS_AT_ONCE = 16

#: A server was asked less long ago: it is not asked before an acknowledgement.
_LOOK_EVERY_S = 0.2


class _UndoneError(Exception):
    """Ends a transaction that shall change nothing."""


class _RowsRemovedError(Exception):
    """A new message got the id of one that was there before."""


class Journal:
    """The durable log of messages, and the file records.

    *location* is a path, or a database URL of SQLAlchemy (``"postgresql+psycopg://..."``). By
    default it is ``.regards/journal.sqlite`` in the current folder, which is that of the notebook.

    Threads may share a journal object, and processes on one machine may share a journal. A commit
    returns after the rows are on disk (SQLite: WAL, ``synchronous=FULL``).
    """

    def __init__(self, location: str | Path | None = None) -> None:
        self._database = Database(DEFAULT_PATH if location is None else location)
        self.location = self._database.location
        #: runs a query
        self.rows: Callable[[sa.Select[Any]], Sequence[Any]] = self._database.rows
        #: whether a database server keeps the journal
        self.is_on_server = self._database.path is None
        #: returns what calls wait for; tries whether a server tells of commits, and returns why not
        self.obstacle, self.why_not_told = self._database.obstacle, self._database.why_not_told
        self.server_is_away = self._database.server_is_away
        #: which process does what; see `Leases`
        self.leases = Leases(self._database)
        #: row ids that processes keep for others; calls of ``download`` that were stopped
        self.cursors = Cursors(self._database)
        self.checkpoints = CheckpointStore(self._database)
        #: A reader in this process gets the newest batches without reading and unpacking rows.
        self._newest_batches = NewestBatches()
        #: removes the events of orders that ended long ago
        self.pruning = Pruning(self._database, self.leases, self._newest_batches.clear)
        #: the newest row of each session, and what append() has tried to write after it: a commit
        #: whose answer was lost may have succeeded
        self._newest_of: dict[int, int] = {}
        self._attempts: dict[int, list[Attempt]] = {}
        #: the newest row that was appended here, with the generation in which its id is right
        self._newest = (0, 0)
        #: when a transaction last saw that no row was removed, by the clock of `time.monotonic`
        self._looked_at_s = 0.0
        #: in which generation of the files each session was opened
        self._generation_of: dict[int, int] = {}
        # A cell that is run again drops its tracker. The connections must close with it.
        weakref.finalize(self, self._database.close).atexit = False
        try:
            self._database.open()
        except BaseException:
            # An open connection keeps a -wal beside the file, which would look complete.
            self._database.close()
            raise

    def __repr__(self) -> str:
        return f"Journal({self.location!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the database. The journal can be opened again at any time."""
        self._database.save_before_closing()
        self._database.close()

    def open_session(self, queue: str) -> int:
        """Register a connection to *queue*; return the session id for its messages."""
        values = {
            "queue": queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at_us": time.time_ns() // 1000,
        }
        generation = 0

        def open_here(connection: sa.Connection) -> int:
            nonlocal generation
            generation = self._database.generation
            return insert_session(connection, values)

        session_id = self._database.write(open_here, again=True)
        self._generation_of[session_id] = generation
        # The files may have been replaced, and a session of the old ones may have had this id.
        self._newest_of.pop(session_id, None)
        self._attempts.pop(session_id, None)
        return session_id

    def processes(self, queues: Iterable[str] | None) -> set[Holder]:
        """Return the processes that have connected this journal to one of *queues*.

        None stands for any queue.
        """
        columns = _sessions.c
        query = sa.select(columns.host, columns.pid).distinct()
        if queues is not None:
            query = query.where(columns.queue.in_(queues))
        return self._database.read(lambda c: {Holder(*row) for row in c.execute(query)})

    def queues(self) -> set[str]:
        """Return the names of the queues that kernels have tried to connect this journal to.

        A kernel opens a session before RabbitMQ says whether there is such a queue.
        """
        return self._database.read(lambda c: {name for (name,) in schema.execute(c, _QUEUES, {})})

    def having_messages(self, queues: Iterable[str]) -> list[str]:
        """Return those of some queues whose messages the journal holds, or held before a prune."""
        return self._database.read(
            lambda c: [
                name
                for name in queues
                if any(c.scalar(found, {"queue": name}) for found in _HAS_MESSAGES)
            ]
        )

    def queues_of_sessions(self, *, after_id: int) -> dict[int, str]:
        """Return the queue of each session, of those after a session id."""
        query = sa.select(_sessions.c.id, _sessions.c.queue).where(_sessions.c.id > after_id)
        return {row[0]: row[1] for row in self.rows(query)}

    def append(
        self,
        session_id: int,
        deliveries: Sequence[Delivery],
        *,
        stream: str | None = None,
        choose: Choose | None = None,
    ) -> None:
        """Write *deliveries* and return when they are on disk. Acknowledge them after that.

        They are in the order of their arrival, *session_id* is from `open_session`. *stream* is the
        name of the stream queue they come from. Its messages are written once, even if several
        kernels read the stream: their offset is the key.

        ``choose(rows, deliveries)`` returns the deliveries to write. It is called inside the
        transaction, which waits for all other writers: no kernel can write between the look-up in
        *rows* and the insert. After a failed commit it is called again.

        JournalReplacedError: the files were replaced, see `verify`. Open a new session. Another
        JournalError: the messages may be on disk or not, because a database server may have
        committed and the answer was lost. Call again in the same session, with the same messages or
        with more behind them: each message is written once.
        """
        generation = 0
        attempts = self._attempts.setdefault(session_id, [])

        def insert_new(connection: sa.Connection) -> list[Batch]:
            nonlocal generation
            # Here, because the files cannot be replaced by others during the transaction.
            self._check_session(session_id)
            generation = self._database.generation
            rows, committed = RowReader(connection), list[Batch]()
            new = deliveries
            if stream is not None:
                new = unseen_offsets(connection, stream, deliveries)
            else:
                if attempts:
                    last_id = self._newest_of.get(session_id, 0)
                    committed, covered = committed_before(connection, session_id, last_id, attempts)
                    new = deliveries[covered:]
                if choose is not None:
                    new = choose(rows, new)
                # a copy: the caller may add messages to its list before it calls again
                attempts.append(Attempt(len(deliveries), committed, tuple(new)))
            inserted = insert(connection, session_id, new, rows.last_id)
            if inserted and (generation, inserted[0].first_id) <= self._newest:
                raise _RowsRemovedError
            return committed + inserted

        try:
            written = self._database.write(insert_new, patience_s=0)
        except _RowsRemovedError:
            self._database.note_removed_rows()
            raise self._database.replaced_error() from None
        del self._attempts[session_id]
        if written:
            self._newest_of[session_id] = written[-1].last_id
            self._newest = max(self._newest, (generation, written[-1].last_id))
            self._looked_at_s = time.monotonic()
        for batch in written:
            self._newest_batches.add(generation, batch)

    def verify(self, session_id: int | None = None) -> None:
        """Check before an acknowledgement that a session's messages are in the files at the path.

        Costs two calls of ``stat``. A database server is asked for its newest row, unless a message
        was just written.

        JournalReplacedError: another program has deleted or replaced the files. The journal has
        opened those at the path. Do not acknowledge; close the connection, so that the broker
        delivers again what was not acknowledged. Another JournalError: the files must be put in
        order by a person. Do not acknowledge.
        """
        if time.monotonic() - self._looked_at_s > _LOOK_EVERY_S:
            self._database.look_for_removed_rows()
            self._looked_at_s = time.monotonic()
        self._database.verify()
        self._check_session(session_id)

    def _check_session(self, session_id: int | None) -> None:
        generation = self._database.generation
        if session_id is not None and self._generation_of.get(session_id, generation) != generation:
            raise JournalReplacedError(
                f"{self._database.replaced} No message is added to a session of the former files. "
                "Open a new session"
            )

    @property
    def generation(self) -> int:
        """Grows when the ids that a reader has seen may belong to other messages: read again."""
        return self._database.generation

    def on_notice(self, callback: Callable[[str], None]) -> None:
        """Call *callback* with a text when the files were changed while the journal was open."""
        self._database.on_notice = callback

    def backup(self, path: str | Path) -> Path:
        """Write a copy of the journal to one new file, also while kernels write to the journal.

        It is a journal, too, and needs no other file beside it. A journal on a server is refused.
        """
        check_local_paths(path=path)
        target = Path(path).expanduser().absolute()
        if self._database.path is None:
            raise JournalError(
                f"the journal {self.location} is on a database server: back it up with pg_dump"
            )
        with said_meanwhile(f"copying the journal {self.location} to {target}"):
            if damage := self.check():
                raise JournalError(
                    f"the journal {self.location} is damaged, and was not backed up: "
                    f"{clean(damage[0], 200)}. {remedy('damaged')}"
                )
            try:
                with self._database.driver_connection("back up") as connection:
                    copy_database(connection, target)
            except FileExistsError:
                raise JournalError(f"{target} exists already: choose another name") from None
            except OSError as exc:
                raise JournalError(
                    f"cannot write the backup {target}: {exc.strerror}. Give the name of a new "
                    "file in a folder that exists, that you may write, and that has room"
                ) from exc
        return target

    def next_offset(self, stream: str) -> int | None:
        """Return the offset at which to continue a stream queue; None is its first message."""
        return self._database.read(lambda c: _next_offset(c, stream))

    def last_of_stream(self, stream: str) -> Delivery | None:
        """Return the journalled message before `next_offset`; None if the newest row is another.

        A stream that was deleted and made anew has another message at that offset.
        """
        return self._database.read(lambda c: _last_of_stream(c, stream))

    def of_stream(self, stream: str) -> Iterator[Delivery]:
        """Yield all messages of a stream queue, oldest first, a few rows at a time."""
        query = SELECT_BATCHES.join(_sessions, _sessions.c.id == _batches.c.session_id).where(
            _sessions.c.queue == stream
        )
        for batch in self._batches(query, 0):
            for delivery in batch.deliveries:
                if delivery.stream_offset is not None:
                    yield delivery

    def rewind_stream(
        self, stream: str, *, next_offset: int, last: Delivery | None, to: int
    ) -> bool:
        """Continue a stream queue at an earlier offset, because it was made anew.

        *next_offset* was found wrong; *last* is what `last_of_stream` returned then. If another
        kernel has written since, the journal keeps its offset, and the result is False. *to* is the
        offset of the first message that is not in the journal.
        """
        statement = (
            sa.update(_streams)
            .where(_streams.c.queue == stream, _streams.c.next_offset == next_offset)
            .values(next_offset=to)
        )

        def rewind(connection: sa.Connection) -> bool:
            is_same = _last_of_stream(connection, stream) == last
            return is_same and connection.execute(statement).rowcount > 0

        return self._database.write(rewind)

    def check(self) -> list[str]:
        """Look for damage; return a line for each kind, an empty list for a sound journal.

        Reads all messages and compares them with their checksums.
        """
        return self._database.read(_damage, "check")

    def try_to_write(self) -> None:
        """Begin a transaction that writes, and change nothing. JournalError: it cannot write."""

        def undone(connection: sa.Connection) -> None:
            connection.execute(sa.update(_sessions).values(pid=0).where(sa.false()))
            raise _UndoneError

        with suppress(_UndoneError):
            self._database.write(undone, silent=True)

    def read(self, after_id: int = 0) -> Iterator[Batch]:
        """Yield the messages after row *after_id*, in journal order.

        Rows are fetched a few at a time, so a long journal does not fill the memory. A caller that
        stops at the last id (see `position`) gets the newest batches without a query.
        """
        while batch := self._newest_batches.after(after_id, self._database.generation):
            yield batch
            after_id = batch.last_id
        yield from self._batches(SELECT_BATCHES, after_id)

    def _batches(self, query: sa.Select[Any], after_id: int) -> Iterator[Batch]:
        """Yield the batches of a query after row *after_id*, some of them from each reading."""
        query = query.order_by(_batches.c.last_id).limit(_ROWS_AT_ONCE)
        is_end = False
        while not is_end:
            rows = self.rows(query.where(_batches.c.last_id > after_id))
            is_end = len(rows) < _ROWS_AT_ONCE
            for row in rows:
                with self._database.using("read"):
                    batch = read_batch(row, after_id)
                yield batch
                after_id = batch.last_id

    def position(self, *, exact: bool = True) -> Position:
        """Return how far the journal has grown.

        Not *exact* is for threads that ask again and again between `watch` and ``watch(None)``. A
        journal on a server is then read only after a commit that the server told of, and every 30
        s; where it cannot tell, every 0.5 to 5 s. SQLite is asked each time, at next to no cost.
        """
        generation = self._database.generation
        position, rows = self._database.position(exact=exact)
        with suppress(DamagedBatchError):  # `read` says so
            for row in rows:
                self._newest_batches.add(generation, read_batch(row, 0))
        return position

    def watch(self, callback: Callable[[], object] | None) -> None:
        """Call *callback* after each commit of another process to a journal on a server.

        It is called in a thread of its own, until ``watch(None)`` or `close`. After a lost
        connection it is called once, too.
        """
        self._database.watch(callback)

    def last_id(self) -> int:
        """Return the id of the newest row; 0 for an empty journal."""
        return self.position().last_id

    def id(self) -> str | None:
        """Return the random id of the journal, which removed rows change."""
        return self._database.read(schema.read_id)

    def stamp(self, last_id: int) -> bytes | None:
        """Return a digest that stands for this journal up to a row.

        None if the journal has no such row at the end of a batch. Another journal, or a copy that
        went on otherwise, has other bytes in that row.
        """
        query = SELECT_BATCHES.where(_batches.c.last_id == last_id)

        def read(connection: sa.Connection) -> bytes | None:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            digest = hashlib.blake2b(row.messages, digest_size=16)
            digest.update(f"{schema.read_id(connection)} {row.first_id} {row.session_id}".encode())
            return digest.digest()

        return self._database.read(read)

    def file_log(self, tenant: str | None, workspace: object = None) -> TenantFiles:
        """Return the file records of one tenant, to read and to write.

        The paths of files below *workspace*, an absolute path or a URL, are kept relative to it.
        """
        return TenantFiles(self, tenant, workspace)

    def bodies(self, row_ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bodies of some rows."""
        found: dict[int, bytes] = {}
        batch = Batch(0, 0, [])
        for row_id in sorted(row_ids):
            if row_id > batch.last_id:
                batch = next(self.read(row_id - 1))
            found[row_id] = batch.deliveries[row_id - batch.first_id].body
        return found

    def files_after(
        self, revision: int, *, tenant: str | None, workspace: str | None = None
    ) -> list[tuple[str | None, FileRecord]]:
        """Return the records that changed after *revision*, as they are now, with their tenants.

        Only those of *tenant*; None returns those of all tenants. *workspace* as in `file_log`.
        """
        query = sa.select(_files.c.tenant, *_FILE_COLUMNS).where(_files.c.revision > revision)
        if tenant is not None:
            query = query.where(_files.c.tenant == tenant)
        rows = self.rows(query.order_by(_files.c.revision, _files.c.file_id))
        return [(tenant or None, _file_record(values, workspace)) for tenant, *values in rows]

    def save_fetched(self, tenant: str | None, order_id: int, row_id: int) -> None:
        """Record that the sub-orders announced up to row *row_id* were downloaded."""
        row = {"tenant": tenant or "", "order_id": order_id, "row_id": row_id}
        self.change(schema.fetched, [row])

    def fetched_row(self, tenant: str | None, order_id: int) -> int:
        """Return up to which row the sub-orders of an order were downloaded; 0 for none."""
        table = schema.fetched.c
        query = sa.select(table.row_id).where(
            table.tenant == (tenant or ""), table.order_id == order_id
        )
        rows = self.rows(query)
        return int(rows[0][0]) if rows else 0

    def save_answers(self, answers: Mapping[tuple[str | None, int], bytes]) -> None:
        """Record the last answers of REGARDS, by tenant and order id."""
        self.change(
            schema.fetched,
            [
                {"tenant": tenant or "", "order_id": order_id, "answer": answer}
                for (tenant, order_id), answer in answers.items()
            ],
        )

    def refused_to(self, account: str) -> set[int]:
        """Return the numbers of the orders that REGARDS refuses to an account: of other users."""
        value = self._database.read(lambda c: schema.read_meta(c, _refused_key(account)))
        return set() if value is None else set(json.loads(value))

    def save_refused(self, account: str, order_ids: Collection[int]) -> None:
        """Record these numbers. Another account, which may share the journal, has its own."""
        value = json.dumps(sorted(order_ids))
        self._database.write(
            lambda c: schema.write_meta(c, _refused_key(account), value), again=True
        )

    def fetched_after(
        self, revision: int
    ) -> dict[tuple[str | None, int], tuple[int, bytes | None]]:
        """Return, by tenant and order id, what `save_fetched` and `save_answers` have recorded.

        Only orders that changed after *revision*.
        """
        table = schema.fetched.c
        query = sa.select(table.tenant, table.order_id, table.row_id, table.answer)
        rows = self.rows(query.where(table.revision > revision))
        return {(tenant or None, order_id): (row, answer) for tenant, order_id, row, answer in rows}

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
        self.change(schema.requests, [row])

    def request(self, tenant: str | None, correlation_id: str) -> tuple[str, int] | None:
        """Return the body of a request and when it was saved, in µs; None if it is not there."""
        table = schema.requests.c
        query = sa.select(table.body, table.sent_at_us).where(
            table.tenant == (tenant or ""), table.correlation_id == correlation_id
        )
        rows = self.rows(query)
        return (rows[0][0], rows[0][1]) if rows else None

    def labels_after(self, revision: int) -> dict[tuple[str | None, str], str]:
        """Return the labels of requested orders, by tenant and correlation id.

        Only requests that changed after *revision*.
        """
        table = schema.requests.c
        query = sa.select(table.tenant, table.correlation_id, table.label)
        query = query.where(table.revision > revision, table.label.is_not(None))
        rows = self.rows(query)
        return {(tenant or None, correlation_id): label for tenant, correlation_id, label in rows}

    def change(self, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        """Insert rows of a table that has revisions, or replace the columns that they name."""
        if not rows:
            return

        def change(connection: sa.Connection) -> None:
            revision = read_position(connection).revision + 1
            changed = [row | {"revision": revision} for row in rows]
            connection.execute(schema.upsert(table, connection.dialect.name, changed[0]), changed)

        self._database.write(change, again=True)


def _refused_key(account: str) -> str:
    return f"refused {hashlib.blake2b(account.encode(), digest_size=16).hexdigest()}"


def _next_offset(connection: sa.Connection, stream: str) -> int | None:
    row = schema.execute(connection, _NEXT_OFFSET, {"queue": stream}).fetchone()
    return None if row is None else int(row[0])


def _last_of_stream(connection: sa.Connection, stream: str) -> Delivery | None:
    next_offset = _next_offset(connection, stream)
    for row in RowReader(connection).recent(stream, after_id=0, limit=1):
        if next_offset is not None and row.delivery.stream_offset == next_offset - 1:
            return row.delivery
    return None


def _damage(connection: sa.Connection) -> list[str]:
    if connection.dialect.name != "sqlite":
        read_position(connection)  # fails if the server has gone, before a cursor is opened
    else:
        found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        if found != ["ok"]:
            return [str(line) for line in found]
    with connection.execution_options(yield_per=16).execute(SELECT_BATCHES) as rows:
        return [
            f"the messages {first_id} to {last_id} are damaged"
            for first_id, last_id, session_id, packed in rows
            if not is_sound(session_id, packed)
        ]


class TenantFiles:
    """The file records of one tenant, as the downloads read and write them.

    The journal keeps the paths of files below the workspace relative to it: a workspace that is
    moved together with its journal still has its files.
    """

    def __init__(self, journal: Journal, tenant: str | None, workspace: object) -> None:
        self._journal = journal
        self._tenant = tenant or ""
        self._workspace = None if workspace is None else str(workspace)

    def files(self, order_id: int) -> list[FileRecord]:
        """Return the records of one order, by file id."""
        query = (
            sa.select(*_FILE_COLUMNS)
            .where(_files.c.tenant == self._tenant, _files.c.order_id == order_id)
            .order_by(_files.c.file_id)
        )
        return [_file_record(values, self._workspace) for values in self._journal.rows(query)]

    def save(self, files: Iterable[FileRecord]) -> None:
        """Insert or replace records by (order id, file id). They are on disk when it returns."""
        if self._workspace is not None:
            files = [_with_relative_path(record, self._workspace) for record in files]
        rows = [record._asdict() | {"tenant": self._tenant} for record in files]
        self._journal.change(_files, rows)


def _file_record(values: Iterable[Any], workspace: str | None) -> FileRecord:
    """Return a record; with *workspace*, its path is absolute: the journal keeps relative ones."""
    record = FileRecord(*values)
    path, state = record.path, FileState(record.state)
    if path is None or workspace is None or is_url(path):
        return record._replace(state=state)
    if is_url(workspace) and not os.path.isabs(path):  # noqa: PTH117
        return record._replace(state=state, path=f"{workspace}/{path}")
    full = os.path.normpath(os.path.join(workspace, path))  # noqa: PTH118
    return record._replace(state=state, path=full)


def _with_relative_path(record: FileRecord, workspace: str) -> FileRecord:
    prefix = workspace + ("/" if is_url(workspace) else os.sep)
    if record.path is None or not record.path.startswith(prefix):
        return record
    return record._replace(path=record.path[len(prefix) :].replace(os.sep, "/"))
