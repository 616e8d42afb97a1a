"""What to do about an error of the database, found by a word of its text."""

from __future__ import annotations

_HELD = "Another program holds it: close that program, or choose another place with journal=..."
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


def remedy(cause: str) -> str:
    """Return what to do about a database error."""
    for symptom, words in _REMEDIES.items():
        if symptom in cause:
            return words
    return "Mend the cause named above, or choose another place with journal=..."
