"""The file of an SQLite journal: read, copied, deleted, replaced or damaged by others."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from children import Child
from strategies import delivery

from regards_nb.errors import JournalError
from regards_nb.journal import Journal, JournalReplacedError, SqliteFile, repair

OPENS_AND_CLOSES = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute("SELECT count(*) FROM batches").fetchone()[0])
connection.close()
"""

WRITES = """
import sys
sys.path.insert(0, sys.argv[2])
from strategies import delivery
from regards_nb.journal import Journal
with Journal(sys.argv[1]) as journal:
    session_id = journal.open_session("other")
    for number in range(10):
        journal.append(session_id, [delivery(b"other %d" % number)])
"""


def run(code: str, path: Path) -> str:
    """Run Python in another process."""
    with Child(code, path, Path(__file__).parent) as kernel:
        return kernel.output()


def write(journal: Journal, session_id: int, *numbers: int) -> None:
    for number in numbers:
        journal.append(session_id, [delivery(b"%d" % number)])


def bodies(journal: Journal) -> list[bytes]:
    return [each.body for batch in journal.read() for each in batch.deliveries]


def numbers(path: Path) -> list[int]:
    """Return what another kernel finds in the journal."""
    with Journal(path) as journal:
        return [int(body) for body in bodies(journal) if body.isdigit()]


def read_files(path: Path) -> None:
    """Open and close each file of the journal, as shutil.copy or a checksum does."""
    for each in path.parent.glob(f"{path.name}*"):
        each.read_bytes()


def copy_main(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))


@pytest.mark.parametrize("look", [read_files, copy_main])
def test_a_file_that_is_read_inside_the_kernel_loses_nothing(
    path: Path, journal: Journal, look: object
) -> None:
    """POSIX locks end when any descriptor closes; another process then must not delete the -wal."""
    assert callable(look)
    session_id = journal.open_session("q")
    write(journal, session_id, *range(10))
    look(path)
    assert run(OPENS_AND_CLOSES, path) == "10\n"
    write(journal, session_id, *range(10, 20))
    assert numbers(path) == list(range(20))


def test_a_second_notebook_that_writes_meanwhile_destroys_nothing(
    path: Path, journal: Journal
) -> None:
    """The file stays a sound database, with the messages of both."""
    session_id = journal.open_session("q")
    for begin in range(0, 40, 10):
        write(journal, session_id, *range(begin, begin + 10))
        read_files(path)
        run(WRITES, path)
        run(OPENS_AND_CLOSES, path)
    assert numbers(path) == list(range(40))
    with Journal(path) as again:
        assert again.last_id() == 80
        assert again.check() == []


def test_a_closed_journal_is_one_file(path: Path) -> None:
    """The locks do not keep SQLite from removing the -wal when the last kernel closes."""
    with Journal(path) as first, Journal(path) as second:
        write(first, first.open_session("q"), 1)
        write(second, second.open_session("q"), 2)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert numbers(path) == [1, 2]


def test_kernels_that_create_the_journal_at_the_same_time_share_it(path: Path) -> None:
    """None takes the unfinished file of another one for an emptied or a copied journal."""
    kernels = [Child(WRITES, path, Path(__file__).parent) for _ in range(6)]
    for kernel in kernels:
        with kernel:
            kernel.output()
    with Journal(path) as journal:
        assert journal.last_id() == 60


def test_few_commits_make_the_wal_longer(path: Path, journal: Journal) -> None:
    """Each that does flushes the disk twice; the zeros behind the last commit are not read."""
    session_id = journal.open_session("q")
    sizes_bytes = set()
    for number in range(60):
        write(journal, session_id, number)
        sizes_bytes.add(Path(f"{path}-wal").stat().st_size)
    assert len(sizes_bytes) < 5
    run(WRITES, path)
    write(journal, session_id, 60)
    # as a kernel finds the files after a power cut
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{path}.copy{suffix}")
    assert numbers(Path(f"{path}.copy")) == list(range(61))
    with Journal(f"{path}.copy") as again:
        assert again.last_id() == 71
        assert again.check() == []


# -- the second line: the files are no longer those at the path


@pytest.fixture
def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system or file system without locks that belong to the open file."""
    monkeypatch.setattr(SqliteFile, "has_open_file_locks", False)


@pytest.mark.usefixtures("_without_locks")
def test_a_wal_that_another_process_deleted_is_noticed_before_acknowledging(
    path: Path, journal: Journal
) -> None:
    """append() raises, and from then on the journal writes where other kernels read."""
    notices: list[str] = []
    journal.on_notice(notices.append)
    session_id = journal.open_session("q")
    write(journal, session_id, *range(10))
    read_files(path)
    run(OPENS_AND_CLOSES, path)
    with pytest.raises(JournalReplacedError, match="replaced by another program"):
        write(journal, session_id, 10)
    with pytest.raises(JournalReplacedError, match="Open a new session"):
        write(journal, session_id, 10)
    write(journal, journal.open_session("q"), 11)
    assert numbers(path) == [*range(10), 11] == [int(body) for body in bodies(journal)]
    assert journal.generation == 1
    assert len(notices) == 1
    assert journal.check() == []


@pytest.mark.usefixtures("_without_locks")
def test_a_file_record_is_written_again_where_the_wal_was_deleted(
    path: Path, journal: Journal
) -> None:
    """What comes from no broker does not come again: the journal repeats the write."""
    read_files(path)
    run(OPENS_AND_CLOSES, path)
    journal.save_request("t", "c", label="mine", body="{}")
    with Journal(path) as again:
        assert again.labels_after(0) == {("t", "c"): "mine"}


@pytest.mark.usefixtures("_without_locks")
def test_a_connection_of_other_code_to_the_deleted_files_is_named(
    path: Path, journal: Journal
) -> None:
    """SQLite would mix the old and the new files; the journal goes on when that one is closed."""
    session_id = journal.open_session("q")
    write(journal, session_id, 1)
    with closing(sqlite3.connect(path)) as mine:
        mine.execute("SELECT count(*) FROM batches").fetchone()
        read_files(path)
        run(OPENS_AND_CLOSES, path)
        with pytest.raises(JournalError, match="other code in this Python process"):
            write(journal, session_id, 2)
    write(journal, journal.open_session("q"), 3)
    assert {1, 3} <= set(numbers(path))


def test_a_journal_that_is_deleted_while_it_is_open_is_written_again(tmp_path: Path) -> None:
    """The open file still has everything, and a restarted kernel finds it."""
    path = tmp_path / "folder" / "journal.sqlite"
    notices: list[str] = []
    with Journal(path) as journal, Journal(path) as second:
        journal.on_notice(notices.append)
        session_id = journal.open_session("q")
        write(journal, session_id, *range(10))
        shutil.rmtree(path.parent)
        write(journal, session_id, *range(10, 20))
        assert numbers(path) == list(range(20))
        write(second, second.open_session("q"), 20)
        write(journal, session_id, 21)
        assert journal.generation == 0
    assert "nothing is lost" in notices[0]
    assert numbers(path) == list(range(22))


def test_a_deleted_wal_is_saved_from_the_open_file(path: Path, journal: Journal) -> None:
    """All messages since the last checkpoint are in the -wal alone."""
    session_id = journal.open_session("q")
    write(journal, session_id, *range(10))
    path.with_name(f"{path.name}-wal").unlink()
    journal.verify(session_id)
    write(journal, session_id, *range(10, 20))
    assert numbers(path) == list(range(20))


def test_a_backup_put_in_place_of_an_open_journal_gets_what_it_lacks(
    path: Path, journal: Journal
) -> None:
    """The messages of this kernel since the backup are written to it again."""
    session_id = journal.open_session("q")
    write(journal, session_id, *range(10))
    backup = journal.backup(path.with_name("backup.sqlite"))
    write(journal, session_id, *range(10, 20))
    backup.replace(path)
    assert bodies(journal) == [b"%d" % number for number in range(20)]  # a reader noticed it first
    with pytest.raises(JournalReplacedError):
        journal.verify(session_id)
    write(journal, journal.open_session("q"), 20)
    assert numbers(path) == list(range(21))


def test_an_emptied_journal_is_named_and_nothing_is_acknowledged(
    path: Path, journal: Journal
) -> None:
    """As long as nobody puts it in order each write fails; after that it goes on."""
    session_id = journal.open_session("q")
    write(journal, session_id, 1)
    with path.open("w"):
        pass
    for _ in range(2):
        with pytest.raises(JournalError, match="emptied the journal"):
            write(journal, session_id, 2)
    with pytest.raises(JournalError, match="0 bytes"):
        Journal(path)
    for each in path.parent.glob(f"{path.name}*"):
        each.rename(each.with_name(f"old-{each.name}"))
    with suppress(JournalReplacedError):
        write(journal, session_id, 2)
    write(journal, journal.open_session("q"), 3)
    assert 3 in numbers(path)


# -- files that are not in order when they are opened


@pytest.mark.parametrize("content", ["", "x"])
def test_an_empty_file_is_not_taken_for_a_new_journal(path: Path, content: str) -> None:
    """Somebody's history was there; for SQLite a file of 1 byte is empty, too."""
    path.write_text(content)
    with pytest.raises(JournalError, match=rf"has {len(content)} bytes?: it was emptied.*backup"):
        Journal(path)
    assert path.read_text() == content


def test_a_wal_without_its_journal_is_kept(path: Path, journal: Journal) -> None:
    """SQLite would delete it and the messages in it."""
    write(journal, journal.open_session("q"), 1)
    other = path.with_name("other.sqlite")
    shutil.copy(f"{path}-wal", f"{other}-wal")
    with pytest.raises(JournalError, match="missing.*other.sqlite-wal"):
        Journal(other)
    assert Path(f"{other}-wal").stat().st_size > 0


def test_a_copy_of_a_young_journal_without_its_wal_is_named(path: Path, journal: Journal) -> None:
    """`cp journal.sqlite` takes none of the messages that are in the -wal."""
    write(journal, journal.open_session("q"), 1)
    copy = shutil.copy(path, path.with_name("copy.sqlite"))
    for _ in range(2):
        with pytest.raises(JournalError, match="copy.sqlite is a copy.*regards-nb backup") as held:
            Journal(copy)
        # The first error keeps its frames, as a notebook does.
        assert held.tb


@pytest.mark.parametrize("statement", ["PRAGMA journal_mode = WAL", "PRAGMA schema_version"])
def test_a_journal_can_be_opened_while_another_kernel_makes_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Its file is never one of 0 bytes, nor one that looks like a copy without its -wal."""
    others: list[Journal] = []

    class Maker(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == statement and not others:
                monkeypatch.undo()
                others.append(Journal(path))
            return super().execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Maker))
    with Journal(path) as journal:
        (other,) = others
        write(other, other.open_session("q"), 1)
        assert bodies(journal) == [b"1"]
        other.close()


def test_a_backup_beside_the_wal_of_another_journal_is_not_mixed_with_it(path: Path) -> None:
    """SQLite would write the pages of the old -wal into the backup."""
    with Journal(path) as journal:
        session_id = journal.open_session("q")
        write(journal, session_id, 1)
        backup = journal.backup(path.with_name("backup.sqlite"))
        write(journal, session_id, 2)
        stale = Path(f"{path}-wal").read_bytes()
    shutil.copy(backup, path)
    Path(f"{path}-wal").write_bytes(stale)
    with pytest.raises(JournalError, match="is a backup.*-wal.*away"):
        Journal(path)
    Path(f"{path}-wal").unlink()
    assert numbers(path) == [1]


def test_a_backup_is_one_file_and_replaces_none(path: Path, journal: Journal) -> None:
    """It holds what was written before it, and is a journal itself."""
    write(journal, journal.open_session("q"), 1, 2)
    backup = journal.backup(path.with_name("backup.sqlite"))
    write(journal, journal.open_session("q"), 3)
    assert numbers(backup) == [1, 2]
    assert backup.stat().st_mode & 0o777 == 0o600
    with pytest.raises(JournalError, match="exists already"):
        journal.backup(backup)
    assert {each.name for each in path.parent.iterdir()} >= {path.name, backup.name}
    assert not list(path.parent.glob(".*"))


# -- other users


def without_rights() -> list[str]:
    """Return the beginning of a command line under which file modes count, for root as well."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


FOLLOWS = """
import sys
from regards_nb.errors import JournalError
from regards_nb.journal import Journal
journal = Journal(sys.argv[1])
for line in sys.stdin:
    rows = journal.last_id()
    print(rows, sum(len(batch.deliveries) for batch in journal.read()), flush=True)
try:
    journal.open_session("q")
except JournalError as error:
    print(error)
"""


@pytest.mark.parametrize("is_open", [True, False], ids=["in use", "closed"])
def test_the_journal_of_somebody_else_can_be_followed(path: Path, *, is_open: bool) -> None:
    """In a folder that this user may only read: while its owner writes, closes and opens it."""
    folder = path.parent / "folder"
    folder.mkdir()
    path = folder / path.name
    journal = Journal(path)
    session_id = journal.open_session("q")
    write(journal, session_id, 1)
    if not is_open:
        journal.close()
    for each in folder.iterdir():
        each.chmod(0o444)
    folder.chmod(0o555)
    command = [*without_rights(), sys.executable, "-c", FOLLOWS, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def seen() -> list[int]:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
            return [int(word) for word in reader.stdout.readline().split()]

        assert seen() == [1, 1]
        folder.chmod(0o755)
        path.chmod(0o644)
        write(journal, session_id, 2)
        assert seen() == [2, 2]
        journal.close()
        assert seen() == [2, 2]
        write(journal, session_id, 3)
        assert seen() == [3, 3]
        journal.close()
        reader.stdin.close()
        assert "writable" in reader.stdout.read()


def test_a_wal_of_another_user_is_named(path: Path, journal: Journal) -> None:
    """The error says whose it is, and does not advise to delete it."""
    write(journal, journal.open_session("q"), 1)
    wal = Path(f"{path}-wal")
    wal.chmod(0o400)
    code = "import sys; from regards_nb.journal import Journal; Journal(sys.argv[1])"
    command = [*without_rights(), sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert f"{wal.name} belongs to another user ({wal.owner()})" in said
    assert "do not delete it" in said


def test_a_journal_under_a_write_lock_can_be_read(path: Path, journal: Journal) -> None:
    """Opening and reading wait for nobody."""
    write(journal, journal.open_session("q"), 1)
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert numbers(path) == [1]


def test_a_new_journal_is_readable_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold messages of other users."""
    monkeypatch.chdir(tmp_path)
    with Journal() as journal:
        write(journal, journal.open_session("q"), 1)
        files = list(Path(".regards").glob("journal*"))
        assert len(files) == 3
        assert {each.stat().st_mode & 0o777 for each in files} == {0o600}
    assert Path(".regards").stat().st_mode & 0o777 == 0o700


# -- damage


def damage(path: Path, position: int, *, size_bytes: int = 1) -> None:
    """Change some bytes of a closed journal."""
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(size_bytes)
        file.seek(position)
        file.write(bytes(byte ^ 0x20 for byte in old))


def find(path: Path, text: bytes) -> int:
    """Return where a text is in the file."""
    position = path.read_bytes().find(text)
    assert position > 0
    return position


def test_a_flipped_byte_in_a_message_is_found_and_named(path: Path) -> None:
    """SQLite's own check does not see it; the checksum of the row does."""
    with Journal(path) as journal:
        session_id = journal.open_session("q")
        journal.append(session_id, [delivery(b"message %d" % number) for number in range(10)])
        write(journal, session_id, 10)
    damage(path, find(path, b"message 7"))
    with Journal(path) as damaged:
        assert damaged.check() == ["the messages 1 to 10 are damaged"]
        with pytest.raises(JournalError, match="messages 1 to 10 are damaged.*regards-nb repair"):
            bodies(damaged)
    report = repair(path)
    assert report.messages == 11
    assert report.doubtful == [(1, 10)]
    assert "the messages 1 to 10 have a wrong checksum" in str(report)
    with Journal(path) as repaired:
        assert len(bodies(repaired)) == 11
        assert repaired.check() == []
    assert [each.exists() for each in report.kept] == [True]


def test_a_message_that_cannot_be_read_is_left_out_alone(path: Path) -> None:
    """The others of its row are saved under their ids."""
    with Journal(path) as journal:
        messages = [delivery(b"m%d" % n, correlation_id=f"name-{n}") for n in range(5)]
        journal.append(journal.open_session("q"), messages)
    position = find(path, b"name-2")
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"\xff")
    with pytest.raises(JournalError, match="damaged"), Journal(path) as damaged:
        bodies(damaged)
    report = repair(path)
    assert report.lost == [(3, 3)]
    with Journal(path) as repaired:
        rows = [row for batch in repaired.read() for row in batch.rows()]
    assert [(row.id, row.delivery.body) for row in rows] == [
        (number + 1, b"m%d" % number) for number in (0, 1, 3, 4)
    ]


def test_a_damaged_page_costs_only_what_is_on_it(path: Path) -> None:
    """The rows before and behind it are saved, and the lost ids are named."""
    with Journal(path) as journal:
        session_id = journal.open_session("q")
        for number in range(300):
            journal.append(session_id, [delivery(b"m%03d " % number + b"x" * 300)])
        journal.save_request("t", "c", label="mine", body="{}")
    page = find(path, b"m150 ") // 4096 * 4096
    damage(path, page, size_bytes=200)
    report = repair(path)
    lost = sum(last - first + 1 for first, last in report.lost if last)
    assert 0 < lost < 20
    assert report.messages == 300 - lost
    with Journal(path) as repaired:
        assert repaired.check() == []
        assert repaired.labels_after(0) == {("t", "c"): "mine"}
        session_id = repaired.open_session("q")
        repaired.append(session_id, [delivery(b"new")])
        assert bodies(repaired)[-1] == b"new"
        assert repaired.last_id() == 301


def test_a_sound_journal_is_not_changed_by_a_repair(path: Path) -> None:
    """Nothing is renamed, and the report says so."""
    with Journal(path) as journal:
        write(journal, journal.open_session("q"), 1, 2)
    before = path.read_bytes()
    assert str(repair(path)) == f"{path} is sound: 2 messages. Nothing was changed."
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_journal_in_use_is_not_repaired(path: Path, journal: Journal) -> None:
    """A kernel would go on writing to the damaged file."""
    write(journal, journal.open_session("q"), 1)
    with pytest.raises(JournalError, match="a kernel uses the journal"):
        repair(path)
    with pytest.raises(JournalError, match="there is no journal"):
        repair(path.with_name("none"))
