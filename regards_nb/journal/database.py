"""The database of a journal: opening, locking, changed files, errors in plain words."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.journal import schema
from regards_nb.journal.batches import DamagedBatchError, Rescued, rescue
from regards_nb.journal.changes import ChangeDetector
from regards_nb.journal.listener import CHANNEL, Listener, why_not
from regards_nb.journal.sqlite_file import (
    Change,
    SqliteFile,
    check_before_opening,
    copy_database,
    is_copy_without_wal,
    is_read_only,
    signature,
    still_open,
    warn_of_network,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from regards_nb.journal.changes import Position

_log = logging.getLogger(__name__)
_pause = threading.Event()
_T = TypeVar("_T")

DEFAULT_PATH = Path(".regards") / "journal.sqlite"

_RESTART_RETRY_S = 0.1

#: The first statement of a transaction that writes: it waits for all others that write.
LOCK_WRITERS = {
    "sqlite": "BEGIN IMMEDIATE",
    # an arbitrary number that identifies this lock among the advisory locks of the database
    "postgresql": "SELECT pg_advisory_xact_lock(7234734)",
}
#: Has PostgreSQL tell other processes of the commit, when it is done.
_TELL = ", pg_notify('{}', '{}')"

#: What happened to the files, where the open ones saved everything.
_SAVED = {
    Change.DELETED: "the journal {} was deleted while it was open. It was written again from the "
    "open file; nothing is lost. To begin a new journal, stop the tracker before you delete it",
    Change.WAL_DELETED: "the -wal file of the journal {} was deleted while it was open. Its "
    "content was saved in the journal; nothing is lost",
}

_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()
#: one thread at a time opens files again
_recovery = threading.RLock()


class JournalReplacedError(JournalError):
    """The file was replaced or its -wal was deleted; the journal has opened the new file.

    Messages that were not acknowledged may be missing in it: receive them again.
    """


class Database:
    """The connections to the database of a journal.

    Parameters
    ----------
    location : str or pathlib.Path
        A path or a URL.

    Raises
    ------
    JournalError
        The location is neither a path nor a URL of a supported database, or the files at the path
        are not in order.
    """

    #: How long a commit waits for the commit of another process.
    busy_timeout_s = 10.0
    #: How long a read waits for a database server that restarts.
    restart_patience_s = 5.0
    #: How long the journal waits for its readers before it opens replaced files again.
    reopen_timeout_s = 10.0
    #: Linux's list of mounted file systems. Other systems have none, and then nothing is checked.
    mounts = Path("/proc/mounts")

    def __init__(self, location: str | Path) -> None:
        url = _url(location)
        self.location = _without_secrets(url)
        #: of the SQLite file; None for a server or a database in memory
        self.path = _sqlite_path(url)
        #: grows when other rows can stand under the ids that a reader has seen
        self.generation = 0
        #: called with each text about files that were changed while the journal was open
        self.on_notice: Callable[[str], None] | None = None
        self.read_only = False
        self._is_new = self._was_copied = False
        if self.path is not None:
            _make_folder(self.path.parent)
            warn_of_network(self.path, self.mounts)
            self.read_only = is_read_only(self.path)
            self._is_new = not self.path.exists()
            self._was_copied = is_copy_without_wal(self.path)
            check_before_opening(self.path)
        self.engine = self._create_engine(url)
        self._changes = ChangeDetector(self.engine)
        #: in the notifications of this object, which its own `Listener` ignores
        self._token = secrets.token_hex(8)
        self._listener: Listener | None = None
        self._gate = _ConnectionUseLock()
        #: of the schema; None before `open`
        self.version: int | None = None
        self._was_connected = False
        self._file: SqliteFile | None = None
        self._file_guard = threading.RLock()
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
            options["connect_args"] = {"prepare_threshold": None}
        try:
            engine = sa.create_engine(url, **options)
        except (sa.exc.ArgumentError, ImportError, ValueError) as exc:
            raise _wrong_url(exc) from exc
        if engine.dialect.name not in LOCK_WRITERS:
            raise JournalError(
                f"the journal can be kept in {' or '.join(LOCK_WRITERS)}, not in "
                f"{engine.dialect.name}. Choose another place with journal=..."
            )
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", self._configure_sqlite)
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
        # Only a new journal may create the file. A file that was deleted is restored instead.
        options = "mode=rwc" if self._is_new else "mode=rw"
        if self.read_only:
            # Without a -wal nobody writes, and SQLite need not create one to read.
            self._snapshot = signature(self.path)
            options = "mode=ro" if self._snapshot[1] else "mode=ro&immutable=1"
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?{options}", uri=True, check_same_thread=False
        )
        if self._is_new:
            # The messages may be those of other users, too: see docs/security.md.
            self.path.chmod(0o600)
        return connection

    def _configure_sqlite(self, connection: Any, _record: object) -> None:
        """Set up a new connection: readers do not block the writer, a commit reaches the disk."""
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self.busy_timeout_s * 1000)}")
        if not self.read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            # the first read opens the -wal
            cursor.execute("PRAGMA schema_version").fetchone()
        cursor.close()
        if self.path is not None and not self.read_only:
            with self._file_guard:
                if self._file is None:
                    self._file = SqliteFile(self.path)
                elif not self._file.is_in_place():
                    connection.close()
                    raise sqlite3.OperationalError("the files at this path have just been changed")

    def open(self) -> None:
        """Check the tables, or create them in an empty database.

        Nothing is written to a journal that exists: it may be on a read-only file system, belong
        to another user, be a copy on a standby server, or be locked by another writer.

        Raises
        ------
        JournalError
            The database cannot be opened, or is not a journal of this version.
        """
        self.version = self.read(lambda c: schema.check(c, self.location), "open")
        if self.version is None:
            self._create_tables()
        self._is_new = False
        self._was_connected = True

    def _create_tables(self) -> None:
        with self._using("open"), self._locked(0) as connection:
            if schema.check(connection, self.location) is None:  # no other kernel was faster
                if self._was_copied:
                    raise JournalError(
                        f"{self.path} is a copy of a new journal without its -wal file, which held "
                        "all messages. Copy a journal that is in use with tracker.backup(path) or "
                        "regards-nb backup; or delete this file to start a new journal"
                    )
                schema.create(connection)
        self.version = schema.SCHEMA_VERSION

    def close(self) -> None:
        """Close the connections. The next use opens them again."""
        self.watch(None)
        with suppress(JournalError), self._gate.exclusive(1.0):
            self._dispose()
            return
        self._dispose()  # some code has not read to the end; it gets an error

    def _dispose(self) -> None:
        self._changes.close()
        file, self._file = self._file, None
        with nullcontext() if file is None else file.released():
            self.engine.dispose()

    def read(self, work: Callable[[sa.Connection], _T], verb: str = "read") -> _T:
        """Run *work* in a transaction that reads. A server that restarts is waited for."""
        self._heal()
        with self._using(verb):
            return self._retry_while_restarting(lambda: self._run(work))

    def _run(self, work: Callable[[sa.Connection], _T]) -> _T:
        with self.engine.connect() as connection:
            return work(connection)

    def _retry_while_restarting(
        self, attempt: Callable[[], _T], patience_s: float | None = None
    ) -> _T:
        """Repeat an attempt that changes nothing while a database server restarts.

        At least once: the server or a proxy may have ended a connection that was not in use.
        """
        if self.path is not None:
            return attempt()  # no server
        if patience_s is None:
            patience_s = self.restart_patience_s
        deadline = time.monotonic() + patience_s
        again = self._was_connected
        while True:
            try:
                return attempt()
            except sa.exc.OperationalError as exc:
                if not again or not _is_lost(exc):
                    raise
            again = time.monotonic() < deadline
            if patience_s:
                _pause.wait(_RESTART_RETRY_S)

    @contextmanager
    def streamed(self, query: sa.Select[Any]) -> Iterator[Iterable[sa.Row[Any]]]:
        """Run a query and fetch its rows a few at a time. The caller may stop early."""
        self._heal()
        with self._using("read"):
            connection = self._retry_while_restarting(lambda: self._begin("SELECT 1"))
            with (
                connection,
                connection.execution_options(yield_per=16).execute(query) as rows,
            ):
                yield rows

    def write(
        self,
        work: Callable[[sa.Connection], _T],
        *,
        again: bool = False,
        patience_s: float | None = None,
        silent: bool = False,
    ) -> _T:
        """Run *work* in a transaction that waits for all other writers; return after the commit.

        Only one transaction writes at a time, from its first statement on. So ids and revisions
        are in the order of commits, and a reader that continues after the newest one it saw
        misses nothing.

        Parameters
        ----------
        work : callable
            Gets the connection; what it returns is returned.
        again : bool
            If the files were replaced meanwhile: run *work* on the new ones instead of raising.
        patience_s : float, optional
            How long to wait for a database server that restarts.
        silent : bool
            Nobody waits for this change: a server tells no other process of it.

        Raises
        ------
        JournalReplacedError
            The commit went to files that are no longer at the path.
        """
        with self._using("write"), self._locked(patience_s, silent=silent) as connection:
            if self.version != schema.SCHEMA_VERSION:
                schema.upgrade(connection)
            result = work(connection)
        self.version = schema.SCHEMA_VERSION
        self._changes.tell()
        try:
            self.verify()
        except JournalReplacedError:
            if not again:
                raise
            return self.write(work)
        return result

    @contextmanager
    def _locked(self, patience_s: float | None, *, silent: bool = False) -> Iterator[sa.Connection]:
        """Open a transaction that waits for all other writers, and commit it at the end."""
        statement = LOCK_WRITERS[self.engine.dialect.name]
        if self.is_server and not silent:
            statement += _TELL.format(CHANNEL, self._token)
        with self._retry_while_restarting(lambda: self._begin(statement), patience_s) as connection:
            begun = connection.get_transaction()
            assert begun is not None  # noqa: S101 - the statement has begun it
            with begun:  # rolls back also when the commit fails
                yield connection

    def _begin(self, statement: str) -> sa.Connection:
        """Return a connection after its first statement, which shows whether it is alive."""
        connection = self.engine.connect()
        try:
            if self.path is None:
                connection.exec_driver_sql(statement)
            else:
                # The driver's own call takes a tenth of the time of SQLAlchemy's.
                connection.begin()
                cast("Any", connection.connection.driver_connection).execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def verify(self) -> None:
        """Check that the files of the connections are those at the path. If not, mend it.

        Raises
        ------
        JournalReplacedError
            They were not, and the journal now uses those at the path.
        JournalError
            They are not, and a person must put them in order.
        """
        if self._file is not None and not self._file.is_in_place():
            self._recover()

    def _heal(self) -> None:
        """Open the files at the path before reading, if they are not those of the connections."""
        # A reader needs no session: it sees the new rows by the new generation.
        with suppress(JournalReplacedError):
            self.verify()

    def position(self, *, exact: bool = True) -> Position:
        """Return the position of the journal; see `ChangeDetector.position`."""
        if self._snapshot is not None and self._snapshot != signature(self.path):
            # The owner of a journal that is only read here has opened or closed it.
            with self._gate.exclusive(self.reopen_timeout_s):
                self._dispose()
        with self._using("read"):
            return self._retry_while_restarting(lambda: self._changes.position(exact=exact))

    def watch(self, callback: Callable[[], object] | None) -> None:
        """Call *callback* after each commit of another process; None ends that.

        SQLite tells nobody: threads that wait for changes ask for the position, which is cheap.
        """
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        if callback is not None and self.is_server:
            self._listener = Listener(self.engine, self._changes, self._token, callback)

    def why_not_told(self) -> str | None:
        """Try whether a server tells of changes; return why not, or None."""
        return why_not(self.engine) if self.is_server else None

    @property
    def is_server(self) -> bool:
        """Whether a server keeps the journal."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def _using(self, verb: str) -> Iterator[None]:
        """Use the connections: nobody closes them meanwhile. Translate the errors."""
        self._gate.enter()
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, DamagedBatchError) as exc:
            cause = " ".join(str(getattr(exc, "orig", exc)).split())
            raise JournalError(
                f"cannot {verb} the journal {self.location}: {cause.rstrip('.')}. {_remedy(cause)}"
            ) from exc
        finally:
            self._gate.leave()

    # -- files that were changed while they were open

    def _recover(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(_recovery)
            file = self._file
            if file is None or file.is_in_place():  # another thread has done it
                return
            change = file.change()
            if change is Change.EMPTIED:
                raise JournalError(
                    f"another program has emptied the journal {self.path} (0 bytes). Nothing is "
                    "acknowledged any more; RabbitMQ keeps the new messages. Move the file and its "
                    "-wal and -shm away: the journal then begins anew. Or put a backup there"
                )
            # SQLite shares its view of the -wal among the connections of a process.
            databases = [each for each in _open_databases if each.path == self.path]
            for each in databases:
                stack.enter_context(each._gate.exclusive(self.reopen_timeout_s))  # noqa: SLF001 - a Database too
            rescued = self._save_from_open_files(change, Path(file.path))
            for each in databases:
                each._dispose()  # noqa: SLF001
            left_open = file.left_open()
            for each in databases:
                each._left_open = left_open  # noqa: SLF001
            file.set_aside_old_wal()
            self._is_new = not os.path.exists(file.path)  # noqa: PTH110
            if rescued is None:
                self._notice(_SAVED[change].format(self.path))
                return
        # The gates are open again: the following uses the new files like any other code.
        self.open()
        written = self.write(rescued.write)
        for each in databases:
            each.generation += 1
        text = (
            f"the journal {self.path} or its -wal was replaced by another program while it was "
            f"open. It was opened again; {written} messages of this kernel were missing in it and "
            "were written again."
        )
        self._notice(text)
        raise JournalReplacedError(f"{text} RabbitMQ delivers again what was not acknowledged")

    def _save_from_open_files(self, change: Change, path: Path) -> Rescued | None:
        """Save what only the open files hold; None if the files at the path hold it now."""
        with suppress(sa.exc.DBAPIError, sqlite3.Error, OSError):
            with suppress(FileExistsError), contextmanager(self._driver_connection)() as connection:
                if change is Change.DELETED:
                    _make_folder(path.parent)
                    copy_database(connection, path)
                    return None
                if change is Change.WAL_DELETED:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    return None
            with self.engine.connect() as reader:
                return rescue(reader)
        return Rescued([])

    @contextmanager
    def driver_connection(self, verb: str) -> Iterator[sqlite3.Connection]:
        """Use a connection of the sqlite3 module."""
        self._heal()
        with self._using(verb):
            yield from self._driver_connection()

    def _driver_connection(self) -> Iterator[sqlite3.Connection]:
        raw = self.engine.raw_connection()
        try:
            yield cast("sqlite3.Connection", raw.driver_connection)
        finally:
            raw.close()

    def _notice(self, text: str) -> None:
        _log.warning("%s", text)
        if self.on_notice is not None:
            self.on_notice(text)


class _ConnectionUseLock:
    """Many threads use the connections, or one closes them."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._users = 0
        self._is_closed = False

    def enter(self) -> None:
        """Begin to use the connections."""
        with self._condition:
            while self._is_closed:
                self._condition.wait()
            self._users += 1

    def leave(self) -> None:
        """End what `enter` began."""
        with self._condition:
            self._users -= 1
            if not self._users:
                self._condition.notify_all()

    @contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[None]:
        """Wait until nobody uses the connections, and let nobody begin.

        Raises
        ------
        JournalError
            They are still used after *timeout_s*.
        """
        with self._condition:
            if not self._condition.wait_for(
                lambda: not self._users and not self._is_closed, timeout_s
            ):
                raise JournalError(
                    "the files of the journal were changed, and other threads still read the old "
                    f"ones after {timeout_s:g} s. This is tried again"
                )
            self._is_closed = True
        try:
            yield
        finally:
            with self._condition:
                self._is_closed = False
                self._condition.notify_all()


def _url(location: str | Path) -> sa.URL:
    if isinstance(location, str) and "://" in location:
        try:
            return sa.make_url(location)
        except (sa.exc.ArgumentError, ValueError) as exc:
            raise _wrong_url(exc) from None
    return sa.URL.create("sqlite", database=str(Path(location).expanduser().absolute()))


def _wrong_url(cause: Exception) -> JournalError:
    # The text of the cause can repeat the URL, which holds the password.
    return JournalError(
        "the journal must be a path, or a database URL of SQLAlchemy with a number as its port, "
        f"whose driver is installed ({type(cause).__name__}). Install the driver of PostgreSQL "
        'with: pip install "regards_nb[postgresql]"'
    )


def _without_secrets(url: sa.URL) -> str:
    """Return the URL without passwords: libpq also reads them from the query."""
    hidden = {name: "***" for name in url.query if "password" in name.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def _sqlite_path(url: sa.URL) -> Path | None:
    is_file = url.get_backend_name() == "sqlite" and url.database not in {None, "", ":memory:"}
    return Path(url.database or "").absolute() if is_file else None


def _is_lost(error: sa.exc.OperationalError) -> bool:
    """Return whether a server ended the connection, or does not accept one at this moment."""
    return error.connection_invalidated or "connection" in str(error.orig)


def _make_folder(folder: Path) -> None:
    """Create the folder of the journal for this user alone."""
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            if folder.name == DEFAULT_PATH.parent.name:
                # git must not add the history of a user's orders to a repository
                (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as exc:
        raise JournalError(
            f"cannot make the folder {folder} for the journal: {exc.strerror}. "
            "Choose another place with journal=..."
        ) from exc


def _remedy(cause: str) -> str:
    """Return what to do about a database error."""
    for symptom, remedy in _REMEDIES.items():
        if symptom in cause:
            return remedy
    return "Mend the cause named above, or choose another place with journal=..."


#: What to do, by a word of the database's error text.
_REMEDIES = {
    "locked": "Another program holds it: close that program, or choose another place with "
    "journal=...",
    "readonly": "Make the file and its folder writable, or choose another place with journal=...",
    "during recovery": "This database is a standby and can be read only. Write to the primary "
    "server, or choose another place with journal=...",
    "read-only": "This database can be read only. Write to the primary server, or choose another "
    "place with journal=...",
    "permission denied": "This user may only read it. Ask for the right to write, or choose "
    "another place with journal=...",
    "unable to open": "Check that the folder exists and is writable, or choose another place with "
    "journal=...",
    "full": "Free some disk space. Journalled messages are safe; RabbitMQ keeps the others in the "
    "queue.",
    "damaged": "Close the kernels that use it, then save what can be read with: "
    "regards-nb repair PATH",
    "malformed": "The file is damaged. If you have just put a backup there, move the -wal and -shm "
    "files beside it away: they belong to the former journal. Otherwise close the kernels that "
    "use it, then save what can be read with: regards-nb repair PATH",
    "other code in this": "The journal goes on after that.",
    "not a database": "The file is not a journal. Choose another place with journal=...",
    "disk I/O": "Check the disk and its free space.",
    # a word in PostgreSQL's texts for: no server, a refused user, an unknown database, a lost line
    "connection": "Check that the server runs, and the address, the user and the database in "
    "journal=...; RabbitMQ keeps what was not journalled in the queue.",
}
