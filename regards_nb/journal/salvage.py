"""Save the readable rows of a damaged SQLite journal."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from regards_nb.errors import JournalError
from regards_nb.journal import schema
from regards_nb.journal.batches import Batch, readable_messages
from regards_nb.journal.location import DEFAULT_PATH
from regards_nb.journal.sqlite_file import is_in_use
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: How many rows are looked up one by one behind the last one that a scan has found.
_MAX_LOOKUPS = 10_000

#: What is lost with rows of a table, where a user notices it.
_TABLES = {
    "requests": "labels of orders, and what was asked for: use the numbers of these orders",
    "files": "records of files: download() with the number of an order finds those in place",
}


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
    there = {row[1] for row in source.execute(f"PRAGMA table_info({table.name})")}
    if not there:  # since a later schema
        return
    names = [column.name for column in table.columns if column.name in there]
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
    number = 1
    while path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    kept = []
    for suffix in ("-wal", "-shm", ""):
        damaged = Path(f"{path}{suffix}")
        if damaged.exists():
            kept.append(damaged.rename(path.with_name(f"{path.name}.damaged-{number}{suffix}")))
    repaired.rename(path)
    return kept
