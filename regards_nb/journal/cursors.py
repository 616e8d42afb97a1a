"""Row ids that a process keeps for the next one, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regards_nb.journal import schema

if TYPE_CHECKING:
    import sqlalchemy as sa

    from regards_nb.journal.database import Database


class Cursors:
    """The cursors of a journal. A name has at most 32 characters.

    Parameters
    ----------
    database : Database
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, name: str) -> int | None:
        """Return the row id under a name; None if there is none."""
        return self._database.read(schema.read_cursors).get(name)

    def advance(self, name: str, row_id: int, *, generation: int) -> None:
        """Write a row id, unless a later one is there.

        Nothing is written if the ids of *generation* are not those of the present file.

        Raises
        ------
        JournalError
            The journal cannot be written.
        """

        def write(connection: sa.Connection) -> None:
            is_later = row_id > schema.read_cursors(connection).get(name, -1)
            if is_later and generation == self._database.generation:
                schema.write_cursor(connection, name, row_id)

        self._database.write(write, again=True, silent=True)
