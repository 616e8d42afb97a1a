"""Another file is put in the place of an open journal, at each moment of the way of a message."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from children import Child
from msgspec.structs import replace
from strategies import delivery

from regards_nb.consumer import RedeliveryMatcher
from regards_nb.errors import JournalError
from regards_nb.events import Delivery
from regards_nb.files import FileRecord, FileState
from regards_nb.frames import Frames
from regards_nb.journal import Journal, JournalReplacedError, RowReader, SqliteFile


def message(number: int) -> Delivery:
    event = delivery({"status": "RUNNING", "orderId": number})
    return replace(event, received_at_us=1_700_000_000_000_000 + number)


def numbers(journal: Journal) -> list[int]:
    messages = [each for batch in journal.read() for each in batch.deliveries]
    return [int(json.loads(each.body)["orderId"]) for each in messages]


def in_the_file(path: Path) -> list[int]:
    """Return what the next kernel finds."""
    with Journal(path) as journal:
        return numbers(journal)


class Queue:
    """A queue of RabbitMQ and its consumer: journal, look at the files, acknowledge.

    What is not acknowledged comes again, marked, in the same order.
    """

    def __init__(self, journal: Journal, messages: int) -> None:
        self.journal = journal
        self.waiting = [message(number) for number in range(messages)]
        self.acknowledged = 0
        #: called before the insert, after the commit, and after the look at the files
        self.before_insert: Callable[[], None] = lambda: None
        self.after_commit: Callable[[], None] = lambda: None
        self.after_check: Callable[[], None] = lambda: None
        self.connect()

    def connect(self) -> None:
        self.session_id = self.journal.open_session("q")
        self.matcher = RedeliveryMatcher()
        self.compared_up_to_id = 0

    def choose(self, rows: RowReader, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        self.matcher.revert_uncommitted(deliveries)
        recent = rows.recent("q", after_id=self.compared_up_to_id, limit=100_000)
        self.matcher.add(row for row in recent if row.session_id != self.session_id)
        self.compared_up_to_id = rows.last_id
        new = self.matcher.new(deliveries)
        self.before_insert()
        return new

    def step(self, count: int = 1) -> None:
        """Journal and acknowledge the next messages; connect again if the journal says so."""
        received = self.waiting[:count]
        try:
            self.journal.append(self.session_id, received, choose=self.choose)
            self.matcher.confirm()
            self.after_commit()
            self.journal.verify(self.session_id)
        except JournalReplacedError:
            # RabbitMQ marks all that it had delivered
            self.waiting[:count] = [replace(each, redelivered=True) for each in received]
            self.connect()
            return
        self.after_check()
        del self.waiting[: len(received)]
        self.acknowledged += len(received)

    def drain(self) -> None:
        for _ in range(1000):
            if not self.waiting:
                return
            self.step(3)
        raise AssertionError("no progress")


MOMENTS = ["before_insert", "after_commit", "after_check"]


def once(action: Callable[[], object], at: int) -> Callable[[], None]:
    """Return a function that calls *action* at its call number *at* only."""
    calls = iter(range(1_000_000))

    def call() -> None:
        if next(calls) == at:
            action()

    return call


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_backup_put_in_place_at_any_step_costs_nothing(
    path: Path, journal: Journal, moment: str
) -> None:
    """Before the insert, before the acknowledgement and after it: each message is there once."""
    queue = Queue(journal, 30)
    queue.step(5)
    backup = journal.backup(path.with_name("backup.sqlite"))
    queue.step(5)
    setattr(queue, moment, once(lambda: backup.replace(path), at=1))
    queue.drain()
    assert numbers(journal) == list(range(30))
    journal.close()
    assert in_the_file(path) == list(range(30))


def test_a_damaged_row_of_a_replaced_file_is_left_out(path: Path, journal: Journal) -> None:
    """The other messages are written again, and a text says that some are lost."""
    notices: list[str] = []
    journal.on_notice(notices.append)
    session_id = journal.open_session("q")
    backup = journal.backup(path.with_name("backup.sqlite"))
    for number in range(3):
        journal.append(session_id, [message(number)])
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE batches SET messages = x'00' WHERE last_id = 2")
    backup.replace(path)
    with pytest.raises(JournalReplacedError, match="2 messages of this kernel"):
        journal.verify()
    assert numbers(journal) == [0, 2]
    assert "could not be read any more" in notices[-1]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_older_backup_after_a_newer_one_costs_nothing(
    path: Path, journal: Journal, moment: str
) -> None:
    """What was written again into the first one is not written twice into the second."""
    queue = Queue(journal, 40)
    queue.step(5)
    first = journal.backup(path.with_name("first.sqlite"))
    queue.step(5)
    second = journal.backup(path.with_name("second.sqlite"))
    queue.step(5)
    second.replace(path)
    queue.step(5)
    setattr(queue, moment, once(lambda: first.replace(path), at=1))
    queue.drain()
    assert sorted(numbers(journal)) == list(range(40))
    journal.close()
    assert sorted(in_the_file(path)) == list(range(40))


def test_a_backup_put_in_place_after_the_last_message_is_completed_at_the_end(
    path: Path, journal: Journal
) -> None:
    """Nothing is written after it, and what was acknowledged is in the file all the same."""
    queue = Queue(journal, 10)
    queue.step(5)
    backup = journal.backup(path.with_name("backup.sqlite"))
    queue.drain()
    backup.replace(path)
    journal.close()
    assert in_the_file(path) == list(range(10))


def test_readers_and_a_writer_find_a_replaced_file_at_the_same_time(
    path: Path, journal: Journal
) -> None:
    """Whoever finds it first opens and completes it alone; the frames tell the same as the file."""
    queue = Queue(journal, 200)
    frames = Frames(journal, None)
    over = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        while not over.is_set():
            try:
                frames.refresh()
                numbers(journal)
            except BaseException as exc:  # noqa: BLE001 - told by the test
                errors.append(exc)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(4):
        for _ in range(8):
            queue.step(2)
        backup = journal.backup(path.with_name(f"backup-{number}.sqlite"))
        for _ in range(number):
            queue.step(2)
        backup.replace(path)
        queue.step(2)
    queue.drain()
    over.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert sorted(numbers(journal)) == list(range(200))
    assert sorted(frames.events["order_id"]) == list(range(200))


def test_a_thread_that_opens_a_connection_never_mixes_the_old_wal_with_the_new_file(
    path: Path, journal: Journal
) -> None:
    """The only connection is in use elsewhere; what it wrote is found nevertheless."""
    session_id = journal.open_session("q")
    journal.append(session_id, [message(0)])
    backup = journal.backup(path.with_name("backup.sqlite"))
    journal.append(session_id, [message(1)])
    journal.close()
    with Journal(path) as alone:
        session_id = alone.open_session("q")
        alone.append(session_id, [message(2)])
        alone.position()  # keeps a connection for itself
        backup.replace(path)
        assert numbers(alone) == [0, 1, 2]
        assert alone.check() == []
    assert in_the_file(path) == [0, 1, 2]


def test_messages_are_kept_until_the_file_at_the_path_takes_them(
    path: Path, journal: Journal
) -> None:
    """What is put there is no journal at first; when a backup is, it gets what it lacks."""
    session_id = journal.open_session("q")
    journal.append(session_id, [message(0)])
    backup = journal.backup(path.with_name("backup.sqlite"))
    journal.append(session_id, [message(1)])
    other = path.with_name("other")
    other.write_text("no database at all\n" * 100)
    other.replace(path)
    for _ in range(2):
        with pytest.raises(JournalError, match="not a database"):
            journal.verify(session_id)
        with pytest.raises(JournalError, match="not a database"):
            numbers(journal)
    backup.replace(path)
    assert numbers(journal) == [0, 1]
    with pytest.raises(JournalReplacedError):
        journal.verify(session_id)
    assert in_the_file(path) == [0, 1]


# -- what comes from no queue


def test_an_empty_file_that_is_deleted_makes_way_for_a_new_journal(
    path: Path, journal: Journal
) -> None:
    """An emptied journal that was moved away begins anew, also after an empty file in its place."""
    queue = Queue(journal, 2)
    queue.step()
    os.truncate(path, 0)
    with pytest.raises(JournalError, match="emptied"):
        numbers(journal)
    path.rename(path.with_name("aside.sqlite"))
    path.touch()
    with pytest.raises(JournalError, match="0 bytes"):
        numbers(journal)
    path.unlink()
    numbers(journal)
    queue.drain()
    assert numbers(journal) == in_the_file(path) == [0, 1]


def record(number: int, state: FileState = FileState.VERIFIED) -> FileRecord:
    return FileRecord(
        order_id=1, file_id=number, name=f"f{number}", size_bytes=1, md5=None, product_id=None,
        path=f"f{number}", state=state, error=None,
    )  # fmt: skip


OPENS_AND_CLOSES = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM batches").fetchone()
connection.close()
"""


def test_records_of_a_deleted_wal_are_rescued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, requests and what was fetched come from no broker, which could deliver them again."""
    monkeypatch.setattr(SqliteFile, "has_open_file_locks", False)
    with Journal(path) as journal:
        journal.file_log("t", None).save([record(1)])
        for each in path.parent.glob(f"{path.name}*"):
            each.read_bytes()  # ends the locks of SQLite
        subprocess.run([sys.executable, "-c", OPENS_AND_CLOSES, str(path)], check=True)
        # into the -wal that is deleted already, as a commit at the same moment would be
        journal._database._release_writer()  # to the pool, which can open no other one now
        with closing(journal._database.engine.raw_connection()) as raw:
            driver: Any = raw.driver_connection
            driver.execute("UPDATE files SET state = 'FAILED', revision = 7 WHERE file_id = 1")
            driver.commit()
        assert [each.state for each in journal.file_log("t", None).files(1)] == [FileState.FAILED]
    with Journal(path) as again:
        assert [each.state for each in again.file_log("t", None).files(1)] == [FileState.FAILED]


def test_a_backup_gets_the_records_that_it_lacks(path: Path, journal: Journal) -> None:
    """And the fetched sub-orders are those of the same messages, whose ids have changed."""
    own = journal.open_session("q")
    journal.append(own, [message(0)])
    log = journal.file_log("t", None)
    log.save([record(1, FileState.FAILED), record(2)])
    backup = journal.backup(path.with_name("backup.sqlite"))
    other = "import sys; from regards_nb.journal import Journal\n"
    other += "sys.path.insert(0, sys.argv[2]); from strategies import delivery\n"
    other += "j = Journal(sys.argv[1]); j.append(j.open_session('q'), [delivery(b'99')]); j.close()"
    with Child(other, path, Path(__file__).parent) as kernel:
        kernel.output()
    journal.append(own, [message(1)])  # id 3
    log.save([record(1), record(3)])
    journal.save_fetched("t", 1, 3)
    journal.save_answers({("t", 1): b"answer"})
    journal.save_request("t", "c", label="mine", body="{}")
    backup.replace(path)
    assert numbers(journal) == [0, 1]
    assert journal.fetched_after(0) == {("t", 1): (2, b"answer")}
    assert journal.labels_after(0) == {("t", "c"): "mine"}
    states = {each.file_id: each.state for each in log.files(1)}
    assert states == dict.fromkeys([1, 2, 3], FileState.VERIFIED)


def test_a_stream_goes_on_behind_what_was_rescued(path: Path, journal: Journal) -> None:
    """Its offset is that of the messages in the file, also of those of another kernel."""
    deliveries = [replace(message(number), stream_offset=number) for number in range(10)]
    session_id = journal.open_session("s")
    journal.append(session_id, deliveries[:4], stream="s")
    backup = journal.backup(path.with_name("backup.sqlite"))
    journal.append(session_id, deliveries[4:7], stream="s")
    backup.replace(path)
    assert journal.next_offset("s") == 7
    journal.append(journal.open_session("s"), deliveries[5:], stream="s")
    assert in_the_file(path) == list(range(10))


# -- the same file, with another content


def checkpoint(journal: Journal) -> None:
    """Move the -wal into the main file."""
    with journal._database.driver_connection("check") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_backup_that_is_copied_over_the_open_journal_is_noticed(
    path: Path, journal: Journal, moment: str
) -> None:
    """The inode is the same. Nothing is acknowledged into it, and what can be read is saved."""
    notices: list[str] = []
    journal.on_notice(notices.append)
    queue = Queue(journal, 30)
    queue.step(5)
    backup = journal.backup(path.with_name("backup.sqlite"))
    queue.step(5)
    setattr(queue, moment, once(lambda: shutil.copyfile(backup, path), at=1))
    queue.drain()
    assert numbers(journal) == list(range(30))
    assert "copied a file over the journal" in notices[0]
    assert journal.check() == []
    journal.close()
    assert in_the_file(path) == list(range(30))


def test_an_earlier_copy_of_the_file_itself_is_noticed(path: Path, journal: Journal) -> None:
    """`cp` of a journal in use, and later back again: its header counts fewer pages."""
    queue = Queue(journal, 700)
    queue.step(100)
    checkpoint(journal)
    queue.step(100)
    early = shutil.copyfile(path, path.with_name("early"))
    for _ in range(40):
        queue.step(10)
    checkpoint(journal)
    journal.verify(queue.session_id)
    shutil.copyfile(early, path)
    with pytest.raises(JournalReplacedError, match="copied a file over"):
        journal.verify(queue.session_id)


def test_an_incomplete_copy_is_not_opened(path: Path, journal: Journal) -> None:
    """A copy that is still being written gets no messages; when it is complete, it does."""
    queue = Queue(journal, 100)
    queue.step(60)
    backup = journal.backup(path.with_name("backup.sqlite"))
    content = backup.read_bytes()
    queue.step(10)
    path.write_bytes(content[:-4096])
    for _ in range(2):
        with pytest.raises(JournalError, match="incomplete copy"):
            journal.verify(queue.session_id)
    path.write_bytes(content)
    queue.drain()
    assert in_the_file(path) == list(range(100))


@pytest.mark.parametrize("looks", [1, 0])
def test_an_earlier_copy_with_as_many_pages_is_noticed(
    path: Path, journal: Journal, looks: int
) -> None:
    """It is copied over the same file, before or after a look at the later content."""
    told: list[str] = []
    journal.on_notice(told.append)

    def with_the_wal() -> bytes:
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()

    queue = Queue(journal, 8)
    for _ in range(2):
        queue.step()
    early = with_the_wal()
    for _ in range(2):
        queue.step()
    late = with_the_wal()
    assert len(early) == len(late)
    for _ in range(looks):
        assert journal.last_id() == 4
    path.write_bytes(early)
    queue.drain()
    assert ("has copied a file over" if looks else "has removed the newest") in "".join(told)
    there = numbers(journal)
    assert there[-4:] == list(range(4, 8))
    assert set(there) == set(range(8)) or "tracker.sync()" in "".join(told)
    journal.close()
    assert in_the_file(path) == there
