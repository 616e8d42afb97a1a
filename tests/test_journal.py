"""The durable log: what was appended is there, in order, for whoever opens it."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from children import Child
from conftest import DEADLINE_S, until
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from small_disk import own_mounts
from strategies import delivery

from regards_nb.errors import JournalError
from regards_nb.events import Delivery
from regards_nb.files import FileRecord, FileState
from regards_nb.journal import Database, Journal, NetworkFileSystemWarning, RowReader
from regards_nb.waits import limited

#: for what is said of one file
SQLITE = pytest.mark.parametrize("place", ["sqlite"], indirect=True)


def deliveries_of(journal: Journal, after_id: int = 0) -> list[Delivery]:
    return [delivery for batch in journal.read(after_id) for delivery in batch.deliveries]


def bodies(journal: Journal, after_id: int = 0) -> list[bytes]:
    return [delivery.body for delivery in deliveries_of(journal, after_id)]


@pytest.fixture
def journal(place: str | Path) -> Iterator[Journal]:
    with Journal(place) as journal:
        yield journal


@pytest.fixture
def other(place: str | Path) -> Iterator[Journal]:
    """The same journal, as another kernel has it."""
    with Journal(place) as journal:
        yield journal


def test_a_write_is_done_once_where_a_signal_breaks_the_start_of_its_thread(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in Thread.start() of Python 3.11 can raise RuntimeError, and the thread runs."""
    start = threading.Thread.start
    session_id = journal.open_session("q")

    def broken(thread: threading.Thread) -> None:
        start(thread)
        raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(threading.Thread, "start", broken)
    written = [b"%d" % number for number in range(50)]
    for body in written:
        journal.append(session_id, [delivery(body)])
    assert bodies(journal) == written


def test_an_interrupt_at_any_moment_of_a_write_leaves_nothing_locked(
    place: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the main thread: the next write of any thread goes through, none is half done."""
    monkeypatch.setattr(Database, "busy_timeout_s", 2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def living() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.is_alive()}

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Journal(place) as journal, ThreadPoolExecutor(1) as thread:
            for number in range(1, 150):
                with suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, number * 3e-5)
                    journal.save_fetched("t", 1, number)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                thread.submit(journal.save_fetched, "t", 2, number).result()
                assert journal.fetched_row("t", 2) == number
            until(lambda: "regards-nb-transaction" not in living())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            Delivery,
            body=st.binary(max_size=50),
            received_at_us=st.integers(0, 2**60),
            redelivered=st.booleans(),
            timestamp_s=st.one_of(st.none(), st.integers(0, 2**33)),
            correlation_id=st.one_of(st.none(), st.text(max_size=9).filter(str.isprintable)),
            tenant=st.one_of(st.none(), st.just("t")),
            app_id=st.one_of(st.none(), st.just("rs-order")),
            properties=st.just("{}"),
            stream_offset=st.one_of(st.none(), st.integers(0, 2**62)),
        ),
        max_size=20,
    )
)
def test_what_is_appended_is_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, deliveries: list[Delivery]
) -> None:
    """Any message survives the journal byte for byte, in order."""
    with Journal(tmp_path_factory.mktemp("j") / "journal.sqlite") as journal:
        session_id = journal.open_session("q")
        journal.append(session_id, deliveries)
        assert deliveries_of(journal) == deliveries


def test_a_second_journal_object_sees_the_same(journal: Journal, other: Journal) -> None:
    """Two kernels share one file: each sees what the other wrote."""
    journal.append(journal.open_session("q"), [delivery(b"one")])
    other.append(other.open_session("q"), [delivery(b"two")])
    assert bodies(journal) == bodies(other) == [b"one", b"two"]
    assert bodies(journal, after_id=1) == [b"two"]


def test_how_far_it_is_counts_what_others_wrote(journal: Journal, other: Journal) -> None:
    """It is known without reading as long as nobody commits, and never out of date."""
    session_id = other.open_session("q")
    assert journal.position() == other.position() == (0, 0)
    for number in range(1, 4):
        other.append(session_id, [delivery(b"one")])
        other.save_fetched("t", 1, number)
        assert journal.position() == journal.position() == other.position() == (number, number)
    journal.close()
    other.append(session_id, [delivery(b"while it was closed")])
    assert journal.position() == (4, 3)


def test_a_first_cursor_comes_with_the_next_write(journal: Journal, other: Journal) -> None:
    """No row stands before it, it costs no commit, and it replaces none that is later."""
    journal.cursors.begin("mine", 0, generation=journal.generation)
    journal.cursors.begin("ours", 1, generation=journal.generation)
    other.cursors.advance("ours", 2, generation=other.generation)
    assert other.cursors.read("mine") is None
    journal.open_session("q")
    assert (other.cursors.read("mine"), other.cursors.read("ours")) == (0, 2)


def test_reading_goes_on_within_what_was_written_together(journal: Journal) -> None:
    """Each message has an id of its own, whatever row it is stored in, and no body is too large."""
    large = [bytes([number]) * 700_000 for number in range(5)]
    session_id = journal.open_session("q")
    journal.append(session_id, [delivery(body) for body in large])
    journal.append(session_id, [delivery(b"last")])
    assert journal.last_id() == 6
    for known in range(7):
        assert bodies(journal, after_id=known) == [*large, b"last"][known:]
        ids = [row.id for batch in journal.read(known) for row in batch.rows()]
        assert ids == list(range(known + 1, 7))
    assert journal.bodies([6, 2, 3]) == {2: large[1], 3: large[2], 6: b"last"}


def test_recent_rows_are_those_of_the_queue_and_of_other_sessions(journal: Journal) -> None:
    """Only what can come again on this queue is in doubt."""
    mine, earlier, elsewhere = (journal.open_session(q) for q in ("q", "q", "other"))
    journal.append(earlier, [delivery(b"a"), delivery(b"b"), delivery(b"c")])
    journal.append(elsewhere, [delivery(b"d")])
    journal.append(mine, [delivery(b"e")])
    recent = journal._database.read(
        lambda c: RowReader(c).recent("q", after_id=0, not_of=mine, limit=2)
    )
    assert [row.delivery.body for row in recent] == [b"b", b"c"]


def test_files_are_replaced_by_their_id_and_seen_once_per_change(journal: Journal) -> None:
    """The newest word on a file counts, and a reader gets only what changed."""
    log = journal.file_log("t")
    record = FileRecord(order_id=1, file_id=2, name="a\0é\u202e.nc", size_bytes=3)
    log.save([record])
    revision = journal.position().revision
    assert journal.files_after(0, tenant="t") == [("t", record)]
    done = FileRecord(
        order_id=1, file_id=2, name="a.nc", path="/x", state=FileState.VERIFIED, error="\0"
    )
    log.save([done])
    assert journal.files_after(revision, tenant="t") == [("t", done)]
    assert journal.files_after(journal.position().revision, tenant="t") == []
    assert log.files(1) == [done]
    assert journal.file_log("other").files(1) == []


def test_each_reader_sees_all_that_several_write(place: str | Path, journal: Journal) -> None:
    """Ids are given in the order of commits: whoever goes on behind the newest misses nothing."""
    writers, each = 4, 30
    seen: list[int] = []

    def write(number: int) -> None:
        with Journal(place) as mine:
            session_id = mine.open_session("q")
            for count in range(each):
                mine.append(session_id, [delivery(f"{number} {count}".encode())] * 2)

    with ThreadPoolExecutor(writers) as pool:
        pending = [pool.submit(write, number) for number in range(writers)]
        while pending or journal.last_id() > len(seen):
            seen += [row.id for batch in journal.read(len(seen)) for row in batch.rows()]
            pending = [future for future in pending if not future.done()]
    assert seen == list(range(1, writers * each * 2 + 1))
    written = [f"{number} {count}".encode() for number in range(writers) for count in range(each)]
    assert sorted(bodies(journal)) == sorted(written * 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["committed", "answer lost", "refused"]),
            st.lists(st.sampled_from([b"one", b"two"]), min_size=1, max_size=3),
        ),
        max_size=8,
    )
)
def test_an_append_whose_answer_is_lost_is_written_once(
    tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[str, list[bytes]]]
) -> None:
    """The server may have committed when the line broke; equal messages stay as many as came.

    The caller adds to the list that it has given, as the consumer does.
    """
    came: list[bytes] = []
    waiting: list[Delivery] = []
    with Journal(tmp_path_factory.mktemp("j") / "journal.sqlite") as journal:
        session_id = journal.open_session("q")
        dialect = journal._database.engine.dialect
        commit = dialect.do_commit
        for outcome, new in [*tries, ("committed", [b"last"])]:
            came += new
            waiting += map(delivery, new)

            def answer(connection: Any, outcome: str = outcome) -> None:
                if outcome != "refused":
                    commit(connection)
                if outcome != "committed":
                    raise sqlite3.OperationalError("the line broke")

            with mock.patch.object(dialect, "do_commit", answer), suppress(JournalError):
                journal.append(session_id, waiting)
                waiting.clear()
        assert bodies(journal) == came


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["committed", "answer lost", "refused"]),
            st.lists(st.sampled_from([b"new", b"known"]), min_size=1, max_size=3),
        ),
        max_size=8,
    )
)
def test_what_is_chosen_inside_the_transaction_is_written_once(
    tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[str, list[bytes]]]
) -> None:
    """Messages that the caller leaves out do not confuse the search for a lost commit."""
    came: list[bytes] = []
    waiting: list[bytes] = []

    def choose(rows: RowReader, deliveries: Sequence[Delivery]) -> list[Delivery]:
        assert rows.last_id == sum(len(batch.deliveries) for batch in journal.read())
        return [each for each in deliveries if each.body == b"new"]

    with Journal(tmp_path_factory.mktemp("j") / "journal.sqlite") as journal:
        session_id = journal.open_session("q")
        dialect = journal._database.engine.dialect
        commit = dialect.do_commit
        for outcome, new in [*tries, ("committed", [b"new"])]:
            came += new
            waiting += new

            def answer(connection: Any, outcome: str = outcome) -> None:
                if outcome != "refused":
                    commit(connection)
                if outcome != "committed":
                    raise sqlite3.OperationalError("the line broke")

            with mock.patch.object(dialect, "do_commit", answer), suppress(JournalError):
                messages = [delivery(body) for body in waiting]
                journal.append(session_id, messages, choose=choose)
                waiting.clear()
        assert bodies(journal) == [body for body in came if body == b"new"]


def test_the_look_up_and_the_insert_are_one_transaction(
    place: str | Path, journal: Journal
) -> None:
    """A second kernel that writes at the same moment waits, and then sees what was written."""
    seen: list[list[bytes]] = []

    def choose(rows: RowReader, deliveries: Sequence[Delivery]) -> list[Delivery]:
        there = [row.delivery.body for row in rows.recent("q", after_id=0, limit=100)]
        seen.append(there)
        return [each for each in deliveries if each.body not in there]

    def write() -> None:
        with Journal(place) as mine:
            mine.append(mine.open_session("q"), [delivery(b"once")], choose=choose)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write) for _ in range(8)]:
            future.result()
    assert bodies(journal) == [b"once"]
    assert sorted(map(len, seen)) == [0] + [1] * 7


@SQLITE
def test_a_journal_that_nobody_holds_any_more_is_closed(place: Path) -> None:
    """A cell that is run again drops its tracker, and must not keep the file open for ever."""

    def opened() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(os.path.realpath(link).startswith(str(place)) for link in links)

    journal = Journal(place)
    journal.append(journal.open_session("q"), [delivery(b"one")])
    assert journal.last_id() == 1
    reading = journal.read()
    next(reading)
    assert opened()
    engine = (
        journal._database.engine
    )  # else Python before 3.13 would close what is in its pool by itself
    del journal, reading
    gc.collect()
    assert not opened()
    engine.dispose()


KILLED_WRITER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from strategies import delivery
from regards_nb.journal import Journal
journal = Journal(sys.argv[1])
session_id = journal.open_session("q")
for number in range(10_000):
    journal.append(session_id, [delivery(str(number).encode())])
    print(number, flush=True)
"""


def test_what_was_committed_survives_kill_9(place: str | Path) -> None:
    """A process killed while it writes loses nothing that append() returned from."""
    with Child(KILLED_WRITER, place, Path(__file__).parent) as writer:
        for _ in range(50):
            last = int(writer.stdout.readline())
        writer.kill()
        last = max([last, *map(int, writer.stdout.read().split())])
    with Journal(place) as journal:
        kept = [int(body) for body in bodies(journal)]
    assert kept[: last + 1] == list(range(last + 1))
    assert len(kept) <= last + 2  # one may have been committed and not reported


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Somebody's text file is not overwritten, and the error names it."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 500)
    with pytest.raises(JournalError, match=r"notes\.txt.*not a journal"):
        Journal(path)
    with pytest.raises(JournalError, match="unable to open.*Check that the folder exists"):
        Journal(path / "journal.sqlite")
    assert path.read_text().startswith("my notes")


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    """A foreign SQLite file keeps its tables and gets no more."""
    path = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(JournalError, match="something else.*recipes"):
        Journal(path)


def test_answers_and_downloads_of_an_order_are_kept_together(place: str | Path) -> None:
    """Saving one of them leaves the other as it is, also in another kernel."""
    with Journal(place) as journal, Journal(place) as other:
        journal.save_fetched("t", 1, 1)
        assert other.fetched_after(0) == {("t", 1): (1, None)}
        other.save_answers({("t", 1): b"\0", (None, 2): b"answer"})
        journal.save_fetched("t", 1, 2)
        assert other.fetched_after(0) == {("t", 1): (2, b"\0"), (None, 2): (0, b"answer")}
        assert journal.fetched_after(2) == {("t", 1): (2, b"\0")}


@pytest.mark.parametrize("version", [99, 5])
def test_a_journal_of_another_version_is_refused(tmp_path: Path, version: int) -> None:
    """A newer schema, or one that was never released, is neither read nor changed."""
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE regards_nb_meta SET value = ?", (version,))
    said = rf"journal\.sqlite was written by another version.*schema {version}.*pip install"
    with pytest.raises(JournalError, match=said):
        Journal(path)


def test_a_stream_is_written_once_whoever_reads_it(journal: Journal, other: Journal) -> None:
    """Two kernels read the same stream: the offset tells what is there already."""
    messages = [replace(delivery(str(n).encode()), stream_offset=n) for n in range(6)]
    assert journal.next_offset("s") is None
    journal.append(journal.open_session("s"), messages[:4], stream="s")
    other.append(other.open_session("s"), messages[2:], stream="s")
    journal.append(journal.open_session("s"), messages[3:5], stream="s")
    assert bodies(journal) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert other.next_offset("s") == 6
    assert journal.last_of_stream("s") == messages[-1]


def test_a_stream_that_was_made_anew_is_rewound_by_one_kernel_only(
    journal: Journal, other: Journal
) -> None:
    """A kernel that was told late does not undo what the other has read since."""
    assert journal.last_of_stream("s") is None
    first = replace(delivery(b"old"), stream_offset=41)
    journal.append(journal.open_session("s"), [first], stream="s")
    assert journal.rewind_stream("s", next_offset=42, last=first, to=0)
    assert journal.next_offset("s") == 0
    assert journal.last_of_stream("s") is None
    new = replace(delivery(b"new"), stream_offset=0)
    journal.append(journal.open_session("s"), [new], stream="s")
    assert not other.rewind_stream("s", next_offset=42, last=first, to=0)
    assert not other.rewind_stream("s", next_offset=1, last=first, to=0)
    assert other.next_offset("s") == 1
    assert other.last_of_stream("s") == new
    assert bodies(journal) == [b"old", b"new"]
    assert list(journal.of_stream("s")) == [first, new]


@SQLITE
def test_damage_is_found_and_told(tmp_path: Path, journal: Journal) -> None:
    """check() is silent on a sound file, and a file with holes ends in an error of ours."""
    session_id = journal.open_session("q")
    journal.append(session_id, [delivery(os.urandom(2000)) for _ in range(500)])
    assert journal.check() == []
    journal.close()
    path = tmp_path / "journal.sqlite"
    raw = bytearray(path.read_bytes())
    raw[20_000:400_000] = os.urandom(380_000)
    path.write_bytes(raw)
    damaged = Journal(path)
    with pytest.raises(JournalError, match="damaged"):
        list(damaged.read())
    assert damaged.check()
    with pytest.raises(
        JournalError, match="is damaged, and was not backed up: .* regards-nb repair"
    ):
        damaged.backup(tmp_path / "backup.sqlite")


def test_a_network_file_system_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The innermost mount point above the journal decides."""
    mounts = tmp_path / "mounts"
    with_space = str(tmp_path / "my data").replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {with_space} nfs4 rw 0 0\n")
    monkeypatch.setattr(Database, "mounts", mounts)
    Journal(tmp_path / "local.sqlite").close()
    with pytest.warns(NetworkFileSystemWarning, match="nfs4 file system"):
        Journal(tmp_path / "my data" / "journal.sqlite").close()


ON_A_SMALL_DISK = """
import sys
sys.path.insert(0, sys.argv[2])
from strategies import delivery
from regards_nb.errors import JournalError
from regards_nb.journal import Journal
journal = Journal(sys.argv[1] + "/journal.sqlite")
session_id = journal.open_session("q")
kept = 0
try:
    while True:
        journal.append(session_id, [delivery(b"x" * 1000)] * 50)
        kept += 50
except JournalError as error:
    assert "Free some disk space" in str(error), error
assert journal.last_id() == kept > 100
assert sum(len(batch.deliveries) for batch in journal.read()) == kept
assert journal.check() == []
try:
    journal.backup(sys.argv[1] + "/backup.sqlite")
except JournalError as error:
    assert "cannot write the backup" in str(error) and "No space left" in str(error), error
else:
    raise AssertionError("a backup on a full disk")
import os
os.remove(sys.argv[1] + "/ballast")
journal.append(session_id, [delivery(b"after")])
assert journal.last_id() == kept + 1
"""

READ_ONLY = """
import sys
from regards_nb.errors import JournalError
from regards_nb.journal import Journal
try:
    Journal(sys.argv[1] + "/journal.sqlite")
except JournalError as error:
    assert "writable" in str(error), error
else:
    raise AssertionError("opened for writing")
"""


def on_tmpfs(folder: Path, mount: str, code: str) -> None:
    """Run Python on a small file system that only it sees; needs no root."""
    folder.mkdir()
    here = Path(__file__).parent
    script = f'{mount} && exec "$0" -c "$1" "$2" "$3"'
    subprocess.run(
        [
            *[*own_mounts(), "sh", "-ec", script],
            *[sys.executable, code, str(folder), str(here)],
        ],
        cwd=folder.parent,
        check=True,
        env={**os.environ, "DISK": str(folder)},
    )


def test_a_full_disk_loses_nothing_and_passes(tmp_path: Path) -> None:
    """What was committed stays, the error says what to do, and afterwards it goes on."""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$DISK" && head -c 300000 /dev/zero > "$DISK/ballast"'
    on_tmpfs(tmp_path / "disk", mount, ON_A_SMALL_DISK)


def test_a_read_only_place_says_so(tmp_path: Path) -> None:
    """A new journal needs a place that can be written."""
    on_tmpfs(tmp_path / "empty", 'mount -t tmpfs -o ro tmpfs "$DISK"', READ_ONLY)


ONLY_READ = """
import sys
sys.path.insert(0, sys.argv[2])
from strategies import delivery
from regards_nb.errors import JournalError
from regards_nb.journal import Journal
with Journal(sys.argv[1] + "/journal.sqlite") as journal:
    assert [each.body for batch in journal.read() for each in batch.deliveries] == [b"one"]
    assert journal._database.read_only
    assert journal.check() == []
    assert journal.last_id() == 1
    try:
        journal.open_session("q")
    except JournalError as error:
        assert "writable" in str(error), error
    else:
        raise AssertionError("written")
"""


def test_a_journal_in_a_read_only_place_can_be_read(tmp_path: Path) -> None:
    """A colleague's finished journal opens; only to write it is an error."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.append(journal.open_session("q"), [delivery(b"one")])
    mount = (
        'mount -t tmpfs tmpfs "$DISK" && cp journal.sqlite "$DISK" && mount -o remount,ro "$DISK"'
    )
    on_tmpfs(tmp_path / "old", mount, ONLY_READ)


@SQLITE
@pytest.mark.usefixtures("_says_at_once")
def test_a_locked_journal_says_so(
    tmp_path: Path,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another program that holds the file is named after a second, and as the cause."""
    session_id = journal.open_session("q")
    journal.close()
    monkeypatch.setattr(Database, "busy_timeout_s", 0.5)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection, connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match="locked.*close that program"):
            journal.append(session_id, [delivery(b"x")])
    told = capsys.readouterr().out
    assert "journal.sqlite: writing waits for it, at most 0.5 s" in told
    assert told.count("another program holds the journal") == 1


@contextmanager
def another_program_holds(place: str | Path) -> Iterator[None]:
    """Hold the lock of all writers."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
    else:
        engine = sa.create_engine(place)
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7234734)"))
            yield
        engine.dispose()


def test_a_journal_is_tried_and_not_changed(place: str | Path, journal: Journal) -> None:
    """The next content of a file has another number also after that."""
    journal.open_session("q")
    before = journal.processes({"q"})
    if isinstance(place, Path):
        journal.close()
        numbers = content_number(place)
        journal.try_to_write()
        assert content_number(place) == numbers
        journal.open_session("q")
        assert content_number(place) == numbers + 1
    journal.try_to_write()
    assert journal.processes({"q"}) == before


def content_number(place: Path) -> int:
    with closing(sqlite3.connect(place)) as other:
        return int(other.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.usefixtures("_says_at_once")
def test_one_limit_of_time_holds_for_all_waits_of_a_call(
    place: str | Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the lock of another program, and for a thread of this process that waits for it."""
    session_id = journal.open_session("q")
    monkeypatch.setattr(Database, "busy_timeout_s", 600)
    with ThreadPoolExecutor(1) as thread:
        with another_program_holds(place):
            background = thread.submit(journal.append, session_id, [delivery(b"x")])
            until(journal.obstacle)
            with limited(time.monotonic() + 0.2):
                for number in range(20):
                    with pytest.raises(JournalError, match="cannot write.*close that program"):
                        journal.save_fetched("t", number, 1)
            assert "another program holds the journal" in journal.obstacle()
        background.result()
    journal.save_fetched("t", 1, 1)
    assert not journal.obstacle()


@pytest.mark.usefixtures("_says_at_once")
def test_a_thread_of_this_process_that_writes_is_no_other_program(
    place: str | Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiting writer is told who holds the journal, also if that uses another `Journal`."""
    monkeypatch.setattr(Database, "busy_timeout_s", 1)
    begun, ends = threading.Event(), threading.Event()

    def write(_: sa.Connection) -> None:
        begun.set()
        assert ends.wait(DEADLINE_S)

    with ThreadPoolExecutor(2) as thread, Journal(place) as another:
        writing = thread.submit(another._database.write, write)
        assert begun.wait(DEADLINE_S)
        waiting = thread.submit(journal.save_fetched, "t", 1, 1)
        until(lambda: "holds" in journal.obstacle())
        obstacle, error = journal.obstacle(), str(waiting.exception(DEADLINE_S))
        ends.set()
        writing.result(DEADLINE_S)
    assert obstacle.startswith("another thread of this process holds the journal")
    assert "Another thread of this process holds it" in error
    assert "close that program" not in error


def test_a_lease_that_a_locked_journal_refused_is_not_given_back(
    place: str | Path,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That would wait for the lock once more, and longer than the limit that was told."""
    monkeypatch.setattr(Database, "busy_timeout_s", 0.1)
    with (
        another_program_holds(place),
        pytest.raises(JournalError, match="lock"),
        journal.leases.released_after("name"),
    ):
        journal.leases.take("name")
    assert "was not given back" not in caplog.text


@SQLITE
def test_close_ends_a_write_that_waits_for_another_program(
    place: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that has lost its tracker would wait for that write at its end."""
    session_id = journal.open_session("q")
    monkeypatch.setattr(Database, "busy_timeout_s", 600)
    with ThreadPoolExecutor(1) as thread, another_program_holds(place):
        background = thread.submit(journal.append, session_id, [delivery(b"x")])
        until(journal.obstacle)
        journal.close()
        error = background.exception(20)
        monkeypatch.undo()
    assert isinstance(error, JournalError)
    journal.append(session_id, [delivery(b"x")])


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A path below a file cannot be a folder; the error says which."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot make the folder .*file"):
        Journal(tmp_path / "file" / "sub" / "journal.sqlite")
    with pytest.raises(JournalError, match=f"{tmp_path} is a folder: name a file"):
        Journal(tmp_path)


def test_the_default_place_is_beside_the_notebook_and_out_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.regards/journal.sqlite` in the current folder, which a repository ignores."""
    monkeypatch.chdir(tmp_path)
    Journal().close()
    assert (tmp_path / ".regards" / "journal.sqlite").exists()
    assert (tmp_path / ".regards" / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("url", ["nonsense://x", "mysql+nodriver://u:secret@h/d", "://"])
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    """The error says what is expected and repeats no secret."""
    with pytest.raises(JournalError) as caught:
        Journal(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """Each thread would write to a database of its own."""
    with pytest.raises(JournalError, match="several threads cannot share"):
        Journal(url)


def test_the_password_of_a_database_is_not_in_the_location(tmp_path: Path) -> None:
    """repr and errors name the database without the password."""
    journal = Journal(f"sqlite:///{tmp_path}/j.sqlite")
    assert str(tmp_path) in repr(journal)
    assert os.path.exists(tmp_path / "j.sqlite")  # noqa: PTH110 - as the URL spells it
