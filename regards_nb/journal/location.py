"""Where a journal is: a path or a URL, the folder of the path; what to do about an error there."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from regards_nb.errors import JournalError

DEFAULT_PATH = Path(".regards") / "journal.sqlite"
#: The journals to which a thread of this process writes.
written: list[str] = []

_HELD = "Another program holds it: close that program, or choose another place with journal=..."
_HELD_HERE = "Another thread of this process holds it: try again when that has written"
#: What to do, by a word of the database's error text.
_REMEDIES = {
    "locked": _HELD,
    "lock timeout": _HELD,
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


def url_of(location: str | Path) -> sa.URL:
    """Return the URL of a journal."""
    if isinstance(location, str) and "://" in location:
        try:
            url = sa.make_url(location)
        except (sa.exc.ArgumentError, ValueError) as exc:
            raise wrong_url(exc) from None
        if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
            # Each thread would have a database of its own.
            raise JournalError(
                f"{location} is a database in memory, which several threads cannot share. Choose "
                "another place with journal=...: a path"
            )
        return url
    return sa.URL.create("sqlite", database=str(Path(location).expanduser().absolute()))


def wrong_url(cause: Exception) -> JournalError:
    """Return the error for a URL that cannot be used."""
    # The text of the cause can repeat the URL, which holds the password.
    return JournalError(
        "the journal must be a path, or a URL such as "
        "postgresql+psycopg://user@host.example:5432/database, whose driver is installed "
        f'({type(cause).__name__}). Install it with: pip install "regards_nb[postgresql]"'
    )


def location_of(place: str | Path) -> str:
    """Return the place of a journal as a URL without passwords; a path becomes absolute."""
    return without_secrets(url_of(place))


def without_secrets(url: sa.URL) -> str:
    """Return the URL without passwords: libpq also reads them from the query."""
    hidden = {name: "***" for name in url.query if "password" in name.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def sqlite_path(url: sa.URL) -> Path | None:
    """Return the file of a journal; None for a server."""
    if url.get_backend_name() != "sqlite":
        return None
    path = Path(url.database or "").absolute()
    if path.is_dir():
        raise JournalError(f"{path} is a folder: name a file in it with journal=...")
    return path


def make_folder(folder: Path) -> None:
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


def holder(location: str) -> str:
    """Return whether a thread of this process or another program writes to a locked journal."""
    return "another thread of this process" if location in written else "another program"


def cannot(verb: str, location: str, error: object) -> JournalError:
    """Return what a use of a journal raises for an *error* of the database."""
    cause = " ".join(str(error).split()).rstrip(".")
    words = remedy(cause)
    words = _HELD_HERE if words is _HELD and location in written else words
    return JournalError(f"cannot {verb} the journal {location}: {cause}. {words}")


def remedy(cause: str) -> str:
    """Return what to do about a database error."""
    for symptom, words in _REMEDIES.items():
        if symptom in cause:
            return words
    return "Mend the cause named above, or choose another place with journal=..."
