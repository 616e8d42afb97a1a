"""The database of a journal: opening, locking, errors in plain words, detection of changes."""

from __future__ import annotations

import sqlite3
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.journal import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import PoolProxiedConnection

DEFAULT_PATH = Path(".regards") / "journal.sqlite"

#: How long a commit waits for the commit of another process.
BUSY_TIMEOUT_S = 10.0

#: The first statement of a transaction that writes: it waits for all others that write.
LOCK_WRITERS = {
    "sqlite": "BEGIN IMMEDIATE",
    # an arbitrary number that identifies this lock among the advisory locks of the database
    "postgresql": "SELECT pg_advisory_xact_lock(7234734)",
}

#: Linux's list of mounted file systems. Other systems have none, and then nothing is checked.
MOUNTS = Path("/proc/mounts")

#: File systems on which the locks and the shared memory of SQLite do not work reliably.
_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4",
        "smb3", "smbfs",
    }
)  # fmt: skip


class NetworkFileSystemWarning(UserWarning):
    """The journal is on a network file system: a crash or a second kernel can damage it."""


def open_engine(location: str | Path) -> sa.Engine:
    """Return an engine for a path or a URL.

    Raises
    ------
    JournalError
        The location is neither a path nor a URL of a supported database, or the folder of the
        file cannot be created.
    """
    if isinstance(location, str) and "://" in location:
        try:
            url = sa.make_url(location)
            engine = sa.create_engine(url)
        except (sa.exc.ArgumentError, ImportError) as exc:
            raise JournalError(
                "the journal must be a path, or a database URL of SQLAlchemy whose driver is "
                f"installed ({type(exc).__name__}). Install the driver of PostgreSQL with: "
                'pip install "regards_nb[postgresql]"'
            ) from exc
    else:
        path = Path(location).expanduser().absolute()
        _make_folder(path.parent)
        _warn_of_network(path)
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    if engine.dialect.name not in LOCK_WRITERS:
        raise JournalError(
            f"the journal can be kept in {' or '.join(LOCK_WRITERS)}, not in "
            f"{engine.dialect.name}. Choose another place with journal=..."
        )
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            if folder.name == DEFAULT_PATH.parent.name:
                # git must not add the history of a user's orders to a repository
                (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as exc:
        raise JournalError(
            f"cannot make the folder {folder} for the journal: {exc.strerror}. "
            "Choose another place with journal=..."
        ) from exc


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Set up a new connection: readers do not block the writer, and a commit reaches the disk."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _warn_of_network(path: Path) -> None:
    """Warn if the journal is on a network file system. Systems without `MOUNTS` get no warning."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    fields = [line.split() for line in lines]
    # The innermost mount point above the path counts. A space is written as \\040.
    above = [
        (Path(point.replace("\\040", " ")), kind)
        for _, point, kind, *_ in fields
        if path.is_relative_to(point.replace("\\040", " "))
    ]
    kind = max(above, key=lambda mount: len(mount[0].parts), default=(path, ""))[1]
    if kind in _NETWORK:
        warnings.warn(
            f"the journal {path} is on a {kind} file system, where a crash or a second kernel can "
            "damage an SQLite file. Choose a local place with journal=..., or a PostgreSQL URL",
            NetworkFileSystemWarning,
            stacklevel=6,
        )


@contextmanager
def translated(verb: str, location: str) -> Iterator[None]:
    """Turn a database error into a JournalError that names the journal and the remedy."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as exc:
        cause = " ".join(str(getattr(exc, "orig", exc)).split())
        raise JournalError(
            f"cannot {verb} the journal {location}: {cause.rstrip('.')}. {_remedy(cause)}"
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
    "unable to open": "Check that the folder exists and is writable, or choose another place with "
    "journal=...",
    "full": "Free some disk space. Journalled messages are safe; RabbitMQ keeps the others in the "
    "queue.",
    "malformed": "The file is damaged. Move it away together with its -wal and -shm files; "
    "tracking then starts a new one.",
    "not a database": "The file is not a journal. Choose another place with journal=...",
    "disk I/O": "Check the disk and its free space.",
    # a word in PostgreSQL's texts for: no server, a refused user, an unknown database, a lost line
    "connection": "Check that the server runs, and the address, the user and the database in "
    "journal=...; RabbitMQ keeps what was not journalled in the queue.",
}


class Position(NamedTuple):
    """How far a journal has grown.

    ``revision`` grows with each change of file records, of downloaded sub-orders and of requests.
    """

    last_id: int
    revision: int


_WITH_REVISION = (schema.files, schema.fetched, schema.requests)
_POSITION = sa.select(
    sa.select(sa.func.max(schema.batches.c.last_id)).scalar_subquery(),
    *(sa.select(sa.func.max(table.c.revision)).scalar_subquery() for table in _WITH_REVISION),
)


def read_position(connection: sa.Connection) -> Position:
    """Return the position of the journal as a transaction sees it."""
    return _position(connection.execute(_POSITION).one())


class ChangeDetector:
    """Returns the position of the journal, and reads it only after a commit.

    The position is needed for each row that somebody looks at, so the question must be cheap.
    SQLite's ``data_version`` changes when another connection, in any process, has committed; this
    class asks with a connection that never writes. PostgreSQL has no such number, so there the
    position is read each time.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._has_version = engine.dialect.name == "sqlite"
        self._query = str(_POSITION.compile(engine))
        self._lock = threading.Lock()
        #: stays open: each connection has its own data_version
        self._connection: PoolProxiedConnection | None = None
        self._version: int | None = None
        self._position = Position(0, 0)

    def position(self) -> Position:
        """Return the position of the journal."""
        if not self._has_version:
            with self._engine.connect() as connection:
                return read_position(connection)
        with self._lock:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            # This is on the way of each message to its row. The driver's own call takes a fifth
            # of the time of SQLAlchemy's.
            driver: Any = self._connection.driver_connection
            (version,) = driver.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                # Read first and keep the version after: a read that fails is then repeated.
                self._position = _position(driver.execute(self._query).fetchone())
                self._version = version
            return self._position

    def close(self) -> None:
        """Close the connection. The next call of `position` opens another one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = self._version = None


def _position(row: Any) -> Position:
    last_id, *revisions = (number or 0 for number in row)
    return Position(last_id, max(revisions))
