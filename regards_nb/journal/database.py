"""The database of a journal: opening it, locking it, and saying what is wrong with it."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from regards_nb.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_PATH = Path(".regards") / "journal.sqlite"

#: How long a commit waits for another process to finish its own.
BUSY_TIMEOUT_S = 10.0

#: How a database is told that this transaction is going to write.
LOCK_WRITERS = {
    "sqlite": "BEGIN IMMEDIATE",
    # any number: it names our lock among the advisory locks of the database
    "postgresql": "SELECT pg_advisory_xact_lock(7234734)",
}

#: Linux's own list of mounted file systems; where there is none, nothing is known.
MOUNTS = Path("/proc/mounts")

#: File systems on which the locks and the shared memory that SQLite needs cannot be relied on.
_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4",
        "smb3", "smbfs",
    }
)  # fmt: skip


class NetworkFileSystemWarning(UserWarning):
    """The journal lies where SQLite cannot promise to survive a crash or a second kernel."""


def open_engine(location: str | Path) -> sa.Engine:
    """Connect to a path or a URL.

    Raises
    ------
    JournalError
        It cannot be one, or its folder cannot be made.
    """
    if isinstance(location, str) and "://" in location:
        try:
            url = sa.make_url(location)
            engine = sa.create_engine(url)
        except (sa.exc.ArgumentError, ImportError) as exc:
            raise JournalError(
                "the journal must be a path or a database URL that SQLAlchemy understands, with "
                f"its driver installed ({type(exc).__name__}). That of PostgreSQL comes with: "
                'pip install "regards_nb[postgresql]"'
            ) from exc
    else:
        path = Path(location).expanduser().absolute()
        _make_folder(path.parent)
        _warn_of_network(path)
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    if engine.dialect.name not in LOCK_WRITERS:
        raise JournalError(
            f"the journal can be kept in {' or '.join(LOCK_WRITERS)}, not in {engine.dialect.name}"
        )
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            if folder.name == DEFAULT_PATH.parent.name:
                # the history of one person's orders does not belong into a repository
                (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as exc:
        raise JournalError(
            f"cannot make the folder {folder} for the journal: {exc.strerror}. "
            "Give another place with journal=..."
        ) from exc


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Set up each new connection: readers never block the writer, a commit is on the disk."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _warn_of_network(path: Path) -> None:
    """Warn where the journal is on a network file system; silent where that cannot be known."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    fields = [line.split() for line in lines]
    # Of all mount points above the path the innermost counts. Spaces are written as \\040.
    above = [
        (Path(point.replace("\\040", " ")), kind)
        for _, point, kind, *_ in fields
        if path.is_relative_to(point.replace("\\040", " "))
    ]
    kind = max(above, key=lambda mount: len(mount[0].parts), default=(path, ""))[1]
    if kind in _NETWORK:
        warnings.warn(
            f"the journal {path} is on a {kind} file system, where SQLite cannot promise to "
            "survive a crash or a second kernel. Give a local place with journal=..., or a "
            "PostgreSQL URL",
            NetworkFileSystemWarning,
            stacklevel=6,
        )


@contextmanager
def translated(verb: str, location: str) -> Iterator[None]:
    """Turn a database error into one that says which journal and what to do."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as exc:
        cause = " ".join(str(getattr(exc, "orig", exc)).split())
        raise JournalError(
            f"cannot {verb} the journal {location}: {cause.rstrip('.')}. {_remedy(cause)}"
        ) from exc


def _remedy(cause: str) -> str:
    """Say what to do about a database error."""
    for symptom, remedy in _REMEDIES.items():
        if symptom in cause:
            return remedy
    return "See the cause above; another place can be given with journal=..."


_REMEDIES = {
    "locked": "Another program holds it: close that program, or give another place with "
    "journal=...",
    "readonly": "Make the file and its folder writable, or give another place with journal=...",
    "unable to open": "Check that the folder exists and is writable, or give another place with "
    "journal=...",
    "full": "Free some disk space; nothing that was journalled is lost, and what was not is still "
    "in the queue.",
    "malformed": "The file is damaged. Move it away together with its -wal and -shm files; "
    "tracking then starts a new one.",
    "not a database": "The file is not a journal. Give another place with journal=...",
    "disk I/O": "Check the disk and its free space.",
    # PostgreSQL's words: for no server, a refused user, an unknown database, an end in between
    "connection": "Check that the server runs, and the address, the user and the database in "
    "journal=...; what was not journalled is still in the queue.",
}
