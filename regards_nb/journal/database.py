"""The database of a journal: opening, locking, changed files, errors in plain words."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
import weakref
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.journal import schema
from regards_nb.journal.batches import DamagedBatchError
from regards_nb.journal.changes import CHANNEL, ChangeDetector, Listener, for_one_statement
from regards_nb.journal.connections import ConnectionUseLock, Outage, Server, uninterrupted
from regards_nb.journal.location import (
    cannot,
    holder,
    make_folder,
    sqlite_path,
    url_of,
    without_secrets,
    written,
    wrong_url,
)
from regards_nb.journal.rescue import Rescued, written_text
from regards_nb.journal.sqlite_file import (
    Change,
    SqliteFile,
    check_before_opening,
    copy_database,
    inode,
    is_copy_without_wal,
    is_read_only,
    make_file,
    signature,
    still_open,
    warn_of_network,
)
from regards_nb.waits import growing, idle, time_left_s, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regards_nb.journal.changes import Look

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_LOCK_RETRY_S = 0.002
#: The first and the longest time that a server waits for the lock before it answers.
_SERVER_TURNS_S = (0.25, 2.0)
_WAITING = "waiting for the server of the journal {}"
_LOCKED = "{} holds the journal {}: writing waits for it"

#: The first statement of a transaction that writes: it waits for all others that write.
LOCK_WRITERS = {
    "sqlite": "BEGIN IMMEDIATE",
    # An arbitrary number identifies this lock among the advisory locks of the database. With
    # synchronous_commit off, a server that is killed loses the commits of its last moments, which
    # are acknowledged to RabbitMQ by then; its other values flush the commit to the disk.
    "postgresql": (
        "SELECT set_config('lock_timeout', '{}', true), pg_advisory_xact_lock(7234734), "
        "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), "
        "'off', 'on'), true)"
    ),
}
#: Has PostgreSQL tell other processes of the commit, when it is done.
_TELL = ", pg_notify('{}', '{}')"

#: What happened to the files, where the open ones saved everything.
_SAVED = {
    Change.DELETED: "the journal {} was deleted or moved while it was open. It was written again "
    "from the open file; nothing is lost. Stop the tracker before you delete or move a journal",
    Change.WAL_DELETED: "the -wal file of the journal {} was deleted while it was open. Its "
    "content was saved in the journal; nothing is lost",
}

#: What happened to the files, where what they lacked was written to those at the path.
_REPLACED = dict.fromkeys(
    Change,
    "the journal {} or its -wal was replaced by another program while it was open.",
) | {Change.OVERWRITTEN: "another program has copied a file over the journal {} while it was open."}

_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()
#: one thread at a time opens files again
_recovery = threading.RLock()


class JournalReplacedError(JournalError):
    """The file was replaced or its -wal was deleted; the journal has opened the new file.

    Messages that were not acknowledged may be missing in it: receive them again.
    """


class _FilesChangedError(sqlite3.OperationalError):
    """The files at the path changed while a connection to them was opened."""


class _ChangedMeanwhileError(JournalError):
    """As `_FilesChangedError`, raised by `using`: the caller opens the files and tries again."""


class Database:
    """The connections to the database of a journal; *location* is a path or a URL."""

    #: How long a commit waits for the lock of another process.
    busy_timeout_s = 10.0
    #: How long a read waits for a database server that restarts.
    restart_patience_s = 5.0
    #: How long the journal waits for its readers before it opens replaced files again.
    reopen_timeout_s = 10.0
    #: Linux's list of mounted file systems. Other systems have none, and then nothing is checked.
    mounts = Path("/proc/mounts")

    def __init__(self, location: str | Path) -> None:
        url = url_of(location)
        self.location = without_secrets(url)
        #: of the file; None where a server keeps the journal
        self.path = sqlite_path(url)
        #: grows when other rows can stand under the ids that a reader has seen
        self.generation = 0
        #: why the generation has grown, in words
        self.replaced = ""
        #: called with each text about files that were changed while the journal was open
        self.on_notice: Callable[[str], None] | None = None
        self.read_only = False
        #: of the server that does not answer
        self._unanswered = Outage()
        self.server_is_away = self._unanswered.is_on
        self._server = Server(self._unanswered, _WAITING.format(self.location))
        #: of the lock, which another program holds
        self._locked = Outage()
        #: how often `close` was called: it ends the waits for that lock
        self._closings = 0
        self._is_new = self._was_copied = False
        if self.path is not None:
            make_folder(self.path.parent)
            warn_of_network(self.path, self.mounts)
            self.read_only = is_read_only(self.path)
            self._was_copied = is_copy_without_wal(self.path)
        self.engine = self._create_engine(url)
        self._changes = ChangeDetector(self.engine)
        self._listener = Listener(self.engine, self._server.connect, self._changes)
        self._gate = ConnectionUseLock()
        # Of the threads of this process one writes at a time, with a connection to the file that
        # stays open: taking one from the pool costs as much as writing a message.
        self._writing = threading.Lock()
        self._writer: sa.Connection | None = None
        #: whether it has the tables; False before `open`
        self.has_tables = False
        #: what the next transaction that writes does first
        self.first_writes: list[Callable[[sa.Connection], None]] = []
        self._file: SqliteFile | None = None
        self._file_guard = threading.RLock()
        #: taken from replaced files, and not yet written to those at the path
        self._rescued: list[Rescued] = []
        #: why these files were left, in words
        self._left = ""
        #: descriptors that other code of this process must close before the files are opened again
        self._left_open: list[tuple[str, str]] = []
        #: what a file that is only read looked like when it was opened
        self._snapshot: tuple[object, ...] | None = None
        _open_databases.add(self)

    def _create_engine(self, url: sa.URL) -> sa.Engine:
        options: dict[str, Any] = {}
        if self.path is not None:
            options["creator"] = self._connect_sqlite
        elif url.drivername == "postgresql+psycopg":
            # pgbouncer in transaction mode gives each transaction another connection of the
            # server, where the name of a prepared statement means something else.
            # A database in SQL_ASCII, which initdb makes without a locale, would return bytes.
            options["connect_args"] = {"prepare_threshold": None, "client_encoding": "utf8"}
        try:
            engine = sa.create_engine(url, **options)
        except (sa.exc.ArgumentError, ImportError, ValueError) as exc:
            raise wrong_url(exc) from exc
        if engine.dialect.name not in LOCK_WRITERS:
            raise JournalError(
                f"the journal can be kept in {' or '.join(LOCK_WRITERS)}, not in "
                f"{engine.dialect.name}. Choose another place with journal=..."
            )
        if self.path is None:
            self._server.serve(engine)
        return engine

    def _connect_sqlite(self) -> sqlite3.Connection:
        """Open a connection of the engine to the file."""
        assert self.path is not None  # noqa: S101 - of an engine for a path
        if left := still_open(self._left_open):
            # SQLite shares its view of the -wal among all connections of a process. A new
            # connection would look for messages of the deleted -wal in the new one.
            raise sqlite3.OperationalError(
                f"other code in this Python process still has {' and '.join(left)} open. "
                "Close it there, or restart the kernel"
            )
        self._left_open = []
        with self._file_guard:
            if self._file is None:
                check_before_opening(self.path)
            if self.read_only:
                # Without a -wal nobody writes, and SQLite need not create one to read.
                self._snapshot = signature(self.path)
                return self._connect("mode=ro" if self._snapshot[1] else "mode=ro&immutable=1")
            return self._connect_to_write()

    def _connect(self, options: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?{options}", uri=True, check_same_thread=False
        )
        _limit(connection, self.busy_timeout_s)
        return connection

    def _connect_to_write(self) -> sqlite3.Connection:
        """Connect to the files that the other connections use, or to those at the path."""
        assert self.path is not None  # noqa: S101 - of an engine for a path
        if self._is_new:  # a file that was deleted is restored instead
            make_file(self.path)
        before = inode(self.path)
        connection = self._connect("mode=rw")
        try:
            self._use_wal(connection)
            file = self._file or SqliteFile(self.path)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, FileNotFoundError):
                raise _FilesChangedError from exc
            raise
        if file.main_inode != before or not file.is_in_place():
            with nullcontext() if file is self._file else file.released(keep_files=True):
                connection.close()
            raise _FilesChangedError
        self._file = file
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Set up a connection: readers do not block the writer, a commit reaches the disk."""
        # Before the first read: it opens the -wal at the path, and SQLite would write the pages of
        # a -wal into a main file that it does not belong to.
        if not self._is_in_place():
            raise _FilesChangedError
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"this file system allows no -wal (only {mode})")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA schema_version").fetchone()

    def open(self) -> None:
        """Check the tables, or create them in an empty database.

        Nothing is written to a journal that exists: it may be on a read-only file system, belong to
        another user, be a copy on a standby server, or be locked by another writer.
        """
        tell = partial(self._tell, self.busy_timeout_s)
        self._in_place(lambda: uninterrupted(self._open, tell))

    def _in_place(self, attempt: Callable[[], _T]) -> _T:
        """Return what *attempt* does with the files at the path."""
        while True:
            self._reopen_if_needed()
            with suppress(_ChangedMeanwhileError):
                return attempt()

    def _open(self) -> None:
        # A file that is deleted while it is open is restored, and not made anew.
        self._is_new = self._file is None and self.path is not None and not self.path.exists()
        look = partial(schema.has_tables, location=self.location)
        self.has_tables = self._read(lambda: self._run(look), "open")
        if not self.has_tables:
            self._write(lambda _: None, 0, verb="open")
        self._is_new = False

    def close(self) -> None:
        """Close the connections. The next use opens them again.

        Writes that wait for the lock of another program end with an error.
        """
        self.watch(None)
        self._closings += 1
        with suppress(JournalError), self._gate.exclusive(1.0):
            self._dispose(keep_files=not self._is_in_place())
            return
        self._dispose(keep_files=True)  # some code has not read to the end; it gets an error

    def _dispose(self, *, keep_files: bool) -> None:
        self._changes.close()
        file, self._file = self._file, None
        with nullcontext() if file is None else file.released(keep_files=keep_files):
            self._release_writer()
            self.engine.dispose()

    def read(self, work: Callable[[sa.Connection], _T], verb: str = "read") -> _T:
        """Run *work* in a transaction that reads. A server that restarts is waited for."""
        return self._in_place(lambda: self._read(lambda: self._run(work), verb))

    def _read(self, attempt: Callable[[], _T], verb: str = "read") -> _T:
        with self.using(verb):
            return self._retry_while_restarting(attempt)

    def _run(self, work: Callable[[sa.Connection], _T]) -> _T:
        with self.engine.connect() as connection:
            return work(connection)

    def rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Return what one query finds. A server answers in one round trip, without BEGIN."""
        return self.read(lambda connection: for_one_statement(connection).execute(query).all())

    def _retry_while_restarting(
        self, attempt: Callable[[], _T], patience_s: float | None = None
    ) -> _T:
        """Repeat an attempt that changes nothing while a database server restarts."""
        if self.path is not None:
            return attempt()  # no server
        if patience_s is None:
            patience_s = self.restart_patience_s
        return self._server.retry(attempt, patience_s if self.has_tables else None)

    def write(
        self,
        work: Callable[[sa.Connection], _T],
        *,
        again: bool = False,
        patience_s: float | None = None,
        silent: bool = False,
    ) -> _T:
        """Run *work* in a transaction that waits for all other writers; return after the commit.

        Only one transaction writes at a time, from its first statement on. So ids and revisions are
        in the order of commits, and a reader that continues after the newest one it saw misses
        nothing.

        *again*: if the files were replaced meanwhile, run *work* on the new ones instead of raising
        JournalReplacedError. *patience_s* is how long to wait for a database server that restarts.
        *silent*: no process waits for this change, and a server tells no other process of it.
        """
        write = partial(self._write, work, patience_s, silent=silent)
        while True:
            self._reopen_if_needed()
            generation = self.generation
            limit_s = self._locked.end_s(self.busy_timeout_s) - time.monotonic()
            with suppress(_ChangedMeanwhileError):
                result = uninterrupted(write, partial(self._tell, limit_s))
                self._reopen_if_needed()
                if self.generation == generation:
                    return result
                if not again:
                    raise self.replaced_error()

    def _write(
        self,
        work: Callable[[sa.Connection], _T],
        patience_s: float | None,
        *,
        silent: bool = False,
        verb: str = "write",
    ) -> _T:
        with self.using(verb):
            pool, connection = self.engine.pool, self._begin(patience_s, silent=silent)
            written.append(self.location)
            try:
                if not self.has_tables:
                    schema.prepare(connection, self.location, was_copied=self._was_copied)
                first_writes = list(self.first_writes)
                for write_first in first_writes:
                    write_first(connection)
                result = work(connection)
                if self._file is not None:
                    driver: Any = connection.connection.dbapi_connection
                    self._file.number_content(driver)
                    self._file.lengthen_wal()
                # That of SQLAlchemy, if it has run a statement.
                (connection.get_transaction() or connection.connection).commit()
                if self.path is not None and pool is self.engine.pool:
                    self._writer = connection
            finally:
                written.remove(self.location)
                if self._writer is not connection:
                    self._release(connection)
                if self.path is not None:
                    self._writing.release()
        del self.first_writes[: len(first_writes)]
        self.has_tables = True
        self._changes.notify()
        return result

    def _begin(self, patience_s: float | None, *, silent: bool) -> sa.Connection:
        """Return a connection that has the lock of all writers."""
        if self.path is not None:  # nearly always free, and a wait needs more code
            with suppress(sqlite3.OperationalError):
                connection = self._lock(0.0, silent=silent)
                self._locked.over()
                return connection
        end_s, closings = self._locked.end_s(self.busy_timeout_s), self._closings
        # A server must answer now and then: it says that the lock is held.
        turns = growing(*(_SERVER_TURNS_S if self.path is None else (math.inf, math.inf)))
        with nullcontext() if self.path is None else self._locked.awaited():
            while True:
                turn_end_s = min(end_s, time.monotonic() + next(turns))
                lock = partial(self._lock, turn_end_s, silent=silent)
                try:
                    connection = self._retry_while_restarting(lock, patience_s)
                except (sa.exc.OperationalError, sqlite3.OperationalError) as exc:
                    if "lock" not in str(getattr(exc, "orig", exc)):
                        raise
                    self._locked.met()
                    if closings != self._closings or time.monotonic() > end_s:
                        raise
                else:
                    self._locked.over()
                    return connection
                idle.wait(_LOCK_RETRY_S)

    def _lock(self, end_s: float, *, silent: bool) -> sa.Connection:
        """Wait until *end_s*: for a server, or for the thread of this process that writes."""
        left_s = max(end_s - time.monotonic(), 0)
        if self.path is None:
            statement = LOCK_WRITERS[self.engine.dialect.name].format(max(int(left_s * 1000), 1))
            tell = "" if silent else _TELL.format(CHANNEL, self._listener.token)
            connection = self.engine.connect()
            try:
                connection.exec_driver_sql(statement + tell)
            except BaseException:
                connection.close()
                raise
            return connection
        if not self._writing.acquire(timeout=left_s):
            raise sqlite3.OperationalError("database is locked")
        try:
            if self._writer is None:
                self._writer = self.engine.connect()
                _limit(self._writer.connection, 0)
            self._writer.connection.cursor().execute(LOCK_WRITERS["sqlite"])
        except BaseException:
            self._writing.release()
            raise
        connection, self._writer = self._writer, None
        return connection

    def obstacle(self) -> str:
        """Return what calls have waited for, longer than a second; else an empty text."""
        if self._locked.lasts():  # a server that says so is silent between two answers
            return _LOCKED.format(holder(self.location), self.location)
        return _WAITING.format(self.location) if self._unanswered.lasts() else ""

    def _tell(self, limit_s: float) -> None:
        """Say what the main thread waits for; *limit_s* is how long for the lock."""
        if text := self.obstacle():
            limit_s = limit_s if self._locked.lasts() else self._server.patience_s
            told(text, math.inf, limit_s=min(limit_s, time_left_s()))

    def _release_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._release(writer)

    def _release(self, writer: sa.Connection) -> None:
        """Give a connection back, which rolls back what was not committed."""
        if self.path is not None:
            _limit(writer.connection, self.busy_timeout_s)
        writer.close()

    def verify(self) -> None:
        """Check that the files of the connections are those at the path. If not, mend it.

        JournalReplacedError: they were not, and the journal now uses those at the path. Another
        JournalError: they are not, and a person must put them in order.
        """
        generation = self.generation
        self._reopen_if_needed()
        if self.generation != generation:
            raise self.replaced_error()

    def _reopen_if_needed(self) -> None:
        """Use the files at the path, if they are not those of the connections.

        A reader sees other rows by the new generation, and a writer has a session of the old one.
        """
        if not self._is_in_place() or self._rescued:
            uninterrupted(self._recover)

    def _is_in_place(self) -> bool:
        return self._file is None or self._file.is_in_place()

    def replaced_error(self) -> JournalReplacedError:
        """Return the error of a call that began before the generation has grown."""
        return JournalReplacedError(
            f"{self.replaced} RabbitMQ delivers again what was not acknowledged"
        )

    def save_before_closing(self) -> None:
        """Write what only the open files hold to those at the path, unless these were deleted."""
        if self._is_in_place() or self.path is None or not self.path.exists():
            return
        try:
            self._reopen_if_needed()
        except JournalError as exc:
            _log.warning("%s. The journal was closed", exc)

    def position(self, *, exact: bool) -> Look:
        """Return the position of the journal and new rows; see `ChangeDetector.position`."""
        if self._snapshot is not None and self._snapshot != signature(self.path):
            # The owner of a journal that is only read here has opened or closed it.
            with self._gate.exclusive(self.reopen_timeout_s):
                self._dispose(keep_files=False)

        # A server that does not answer tells of no change: waits end as where it is stopped.
        is_away = self._unanswered.lasts()
        look = partial(self._changes.position, exact=exact or is_away)
        found = self._in_place(lambda: self._read(look))
        if self._changes.is_shrunk:
            self.note_removed_rows()
        return found

    def look_for_removed_rows(self) -> None:
        """Compare the newest row with that of the last look; a server that is away is not asked."""
        with suppress(JournalError), self.using("read"):
            self._changes.look(exact=True)
        if self._changes.is_shrunk:
            self.note_removed_rows()

    def note_removed_rows(self) -> None:
        """Have all read again, because ids of rows that are gone are given to new messages."""
        text = (
            f"another program has removed the newest messages from the journal {self.location} "
            "while it was open. tracker.sync() asks REGARDS for the orders."
        )
        self._changes.forget()
        self.replaced = text
        self.generation += 1
        _log.warning("%s", text)
        if self.on_notice is not None:
            self.on_notice(text)

    def watch(self, callback: Callable[[], object] | None) -> None:
        """Call *callback* after each commit of another process; None ends that.

        SQLite sends no notification: threads that wait for changes ask for the position, which is
        cheap.
        """
        self._listener.end()
        if callback is not None and self.path is None:
            self._listener.begin(callback)

    def why_not_told(self) -> str | None:
        """Try whether a server tells of changes; return why not, or None."""
        return self._listener.why_not() if self.path is None else None

    @contextmanager
    def using(self, verb: str) -> Iterator[None]:
        """Use the connections: no thread closes them meanwhile. Translate the errors."""
        use = self._gate.enter()
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, DamagedBatchError) as exc:
            error = getattr(exc, "orig", exc)
            if isinstance(error, _FilesChangedError):
                raise _ChangedMeanwhileError from exc
            raise cannot(verb, self.location, error) from exc
        finally:
            del use

    # -- files that were changed while they were open

    def _recover(self) -> None:
        """Open the files at the path, and write to them what only the old files hold.

        One thread does all of it while no other one uses the connections: none reads or writes
        the new files before they are complete, and the generation changes together with them.
        The rescued messages are kept until they are written, also if that fails at first.
        """
        texts = []
        with _recovery, ExitStack() as stack:
            # SQLite shares its view of the -wal among the connections of a process.
            databases = [each for each in _open_databases if each.path == self.path]
            if self._is_in_place() and not self._rescued:
                return  # another thread has done it
            for each in databases:
                stack.enter_context(each._gate.exclusive(self.reopen_timeout_s))  # noqa: SLF001 - a Database too
            written, is_done = 0, False
            while not is_done:
                if not self._is_in_place():
                    texts.append(self._leave_files(databases))
                with suppress(_ChangedMeanwhileError):
                    self._open()
                    written = self._write(self._write_rescued, None) if self._rescued else 0
                    is_done = self._is_in_place()
            if self._rescued:
                text = self._left + written_text(self._rescued, written)
                texts = [*texts[:-1], text]
                self._rescued.clear()
                for each in databases:
                    each.generation += 1
                    each.replaced = text
        for text in texts:
            _log.warning("%s", text)
            for each in databases:
                if each.on_notice is not None:
                    each.on_notice(text)

    def _write_rescued(self, connection: sa.Connection) -> int:
        return sum(rescued.write(connection) for rescued in self._rescued)

    def _leave_files(self, databases: list[Database]) -> str:
        """Save or rescue what only the open files hold, and close them; return what happened."""
        file = self._file
        assert file is not None  # noqa: S101 - the caller has asked
        change = file.change()
        if change is Change.EMPTIED:
            raise JournalError(
                f"another program has emptied the journal {self.path} (0 bytes). Nothing is "
                "acknowledged any more; RabbitMQ keeps the new messages. Move the file and its "
                "-wal and -shm away: the journal then begins anew. Or put a backup there"
            )
        newest_id = self._changes.newest_id
        # Their connections are used below: the pool could not open another one to these files.
        for each in databases:
            each._changes.close()  # noqa: SLF001
            each._release_writer()  # noqa: SLF001
        is_saved = self._save_from_open_files(change)
        if not is_saved:
            rescued = Rescued()
            with suppress(sa.exc.DBAPIError, sqlite3.Error), self.engine.connect() as reader:
                rescued.read(reader, newest_id)
            self._rescued.append(rescued)
        for each in databases:
            each._dispose(keep_files=True)  # noqa: SLF001
        left_open = file.left_open()
        for each in databases:
            each._left_open = left_open  # noqa: SLF001
        file.remove_old_wal(rename=not is_saved and not self._rescued[-1].is_complete)
        self._left = (_SAVED if is_saved else _REPLACED)[change].format(self.path)
        return self._left

    def _save_from_open_files(self, change: Change) -> bool:
        """Write the content of the open files to those at the path; return whether that is done."""
        assert self.path is not None  # noqa: S101 - it has files
        try:
            with closing(self.engine.raw_connection()) as raw:
                connection = cast("sqlite3.Connection", raw.driver_connection)
                if change is Change.DELETED:
                    make_folder(self.path.parent)
                    copy_database(connection, self.path)
                    return True
                if change is Change.WAL_DELETED:
                    # the first column says whether other processes prevented it
                    done = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    return bool(done[0] == 0)
        except FileExistsError:
            pass  # somebody has put another file there meanwhile
        except (sqlite3.Error, OSError) as exc:
            raise JournalError(
                f"the journal {self.path} or its -wal was deleted while it was open, and cannot be "
                f"written again ({exc}). Nothing is acknowledged until it can be"
            ) from exc
        return False

    @contextmanager
    def driver_connection(self, verb: str) -> Iterator[sqlite3.Connection]:
        """Use a connection of the sqlite3 module."""
        self._reopen_if_needed()
        with self.using(verb), closing(self.engine.raw_connection()) as raw:
            yield cast("sqlite3.Connection", raw.driver_connection)


def _limit(connection: sqlite3.Connection | sa.PoolProxiedConnection, wait_s: float) -> None:
    """Have a connection wait so long for the lock of another one."""
    connection.cursor().execute(f"PRAGMA busy_timeout = {int(wait_s * 1000)}")
