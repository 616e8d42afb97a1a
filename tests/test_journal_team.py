"""Several processes on one journal: who hears of a commit, and who does a piece of work."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from children import Child
from conftest import until
from strategies import delivery

from regards_nb.journal import ChangeDetector, Journal, Leases, Listener, order_lease

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postgresql import PrivatePostgreSQL

NAME = order_lease("tenant", 14)

#: Takes a lease and holds it until it is killed.
HOLDER = """
import sys
from regards_nb.journal import Journal
print(Journal(sys.argv[1]).leases.take(sys.argv[2]), flush=True)
sys.stdin.read()
"""


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Collect what the engines of this process send to their databases."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


# -- leases


def test_a_lease_has_one_holder_until_it_is_released(place: str | Path) -> None:
    """The second owner is told who the first is, and gets the lease when that one gives it back."""
    with Journal(place) as one, Journal(place) as two:
        assert one.leases.take(NAME) is None
        assert two.leases.take(order_lease("tenant", 15)) is None
        holder = two.leases.take(NAME)
        assert holder is not None
        assert holder == two.leases.holder(NAME)
        assert str(holder).startswith("process ")
        assert one.leases.take(NAME) == holder
        two.leases.release(NAME)
        assert two.leases.take(NAME) == holder
        one.leases.release(NAME)
        assert two.leases.holder(NAME) is None
        assert two.leases.take(NAME) is None
        two.leases.release(NAME)
        two.leases.release(order_lease("tenant", 15))


def test_a_lease_that_is_renewed_does_not_end(
    place: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download may take hours; a lease that nobody renews ends by the clock of the database."""
    monkeypatch.setattr(Leases, "duration_s", 2.0)
    monkeypatch.setattr(Leases, "renewal_s", 0.1)
    with Journal(place) as one, Journal(place) as two:
        assert one.leases.take(NAME) is None
        first = expires_at_ms(two)
        until(lambda: expires_at_ms(two) > first + 2000)
        assert two.leases.holder(NAME) is not None
        one.leases._end_renewal()  # as if the process were suspended
        until(lambda: two.leases.take(NAME) is None)
        two.leases.release(NAME)


def expires_at_ms(journal: Journal) -> int:
    query = "SELECT expires_at_ms FROM leases"
    return journal._database.read(lambda c: int(c.exec_driver_sql(query).scalar_one()))


def test_the_lease_of_a_killed_process_ends_with_it(place: str | Path) -> None:
    """Another process of the machine needs not wait for the lease to expire."""
    with Journal(place) as journal:
        with Child(HOLDER, place, NAME) as process:
            assert process.stdout.readline().strip() == "None"
            holder = journal.leases.take(NAME)
            assert holder is not None
            assert holder.pid == process.pid
            assert str(holder) == f"process {holder.pid} on {holder.host}"
            os.kill(holder.pid, signal.SIGSTOP)
            until(lambda: str(holder) == f"process {holder.pid} on {holder.host} (suspended)")
            process.kill()
        assert journal.leases.take(NAME) is None
        journal.leases.release(NAME)


def test_a_process_of_another_machine_is_waited_for(place: str | Path) -> None:
    """Its pid means nothing here, so its lease ends by the clock alone."""
    with Journal(place) as journal:
        assert journal.leases.take(NAME) is None
        journal._database.write(
            lambda c: c.exec_driver_sql(
                "UPDATE leases SET owner = 'x', host = 'far', pid = 1, process = 'boot pid:[1] 7'"
            )
        )
        journal.leases.release(NAME)  # it was taken over: this releases nothing
        holder = journal.leases.take(NAME)
        assert holder is not None
        assert holder.host == "far"
        journal._database.write(lambda c: c.exec_driver_sql("UPDATE leases SET expires_at_ms = 1"))
        assert journal.leases.holder(NAME) is None
        assert journal.leases.take(NAME) is None
        journal.leases.release(NAME)


def test_a_lease_that_could_not_be_given_back_can_be_taken_again(tmp_path: Path) -> None:
    """Its process holds it no longer, and waits for nobody."""
    place = tmp_path / "journal.sqlite"
    with Journal(place) as journal, closing(sqlite3.connect(place)) as other:
        assert journal.leases.take(NAME) is None
        other.execute(
            "CREATE TRIGGER full BEFORE DELETE ON leases BEGIN "
            "SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
        journal.leases.release(NAME)
        assert journal.leases.holder(NAME) is None
        assert journal.leases.take(NAME) is None
        other.execute("DROP TRIGGER full")
        journal.leases.release(NAME)


# -- commits of others


def test_a_commit_of_another_process_is_told_and_no_other(postgresql: PrivatePostgreSQL) -> None:
    """The callback is called after the commit; an own commit and a rolled-back one are silent."""
    url = postgresql.new_database()
    with Journal(url) as one, Journal(url) as two:
        told = threading.Semaphore(0)
        two.watch(told.release)
        assert told.acquire(timeout=60)  # it listens now
        session_id = one.open_session("q")
        assert told.acquire(timeout=60)
        two.save_fetched("t", 1, 1)
        with pytest.raises(ZeroDivisionError):
            one._database.write(lambda _: 1 / 0)
        one.append(session_id, [delivery(b"one")])
        assert told.acquire(timeout=60)
        assert two.position(exact=False).last_id == 1
        assert not told.acquire(blocking=False)
        two.watch(None)


def test_an_idle_journal_on_a_server_is_left_alone(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred questions cost no statement; the net finds a commit that nobody told of."""
    url = postgresql.new_database()
    with Journal(url) as one, Journal(url) as two:
        told = threading.Semaphore(0)
        two.watch(told.release)
        assert told.acquire(timeout=60)
        until(lambda: two._database._changes.told_by is not None)
        two.position(exact=False)
        with counted_statements() as statements:
            for _ in range(100):
                assert two.position(exact=False).last_id == 0
            assert statements == []
            assert two.position().last_id == 0
            assert len(statements) == 1
        monkeypatch.setattr(ChangeDetector, "look_every_s", 0.5)
        two.position()  # the next look is due by the shorter pause
        one._database.write(
            lambda c: c.exec_driver_sql(
                "INSERT INTO fetched VALUES ('t', 1, 1, 5)"  # as if the notification were lost
            ),
            silent=True,
        )
        until(lambda: two.position(exact=False).revision == 5)
        two.watch(None)


def test_the_thread_that_listens_reads_the_rows_of_other_kernels(
    postgresql: PrivatePostgreSQL,
) -> None:
    """The next look at the position and the row needs no statement; a long row is fetched.

    An option of the driver in the URL, which is text there, changes nothing.
    """
    url = postgresql.new_database()
    with Journal(url) as one, Journal(f"{url}&prepare_threshold=0") as two:
        session_id = one.open_session("queue")
        one.append(session_id, [delivery(b"{}")])
        told = threading.Semaphore(0)
        two.watch(told.release)
        assert told.acquire(timeout=60)  # it listens now
        until(lambda: two._database._changes.told_by is not None)
        assert two.position(exact=False).last_id == 1
        for body, n_statements in ((b"{}", 0), (b" " * (2 << 20), 1)):
            sent = delivery(body)
            before = two.position(exact=False).last_id
            one.append(session_id, [sent])
            assert told.acquire(timeout=60)
            with counted_statements() as statements:
                assert two.position(exact=False).last_id == before + 1
                assert next(two.read(before)).deliveries == [sent]
            assert len(statements) == n_statements
        two.watch(None)


def test_a_reader_gets_the_events_of_its_last_second_from_memory(tmp_path: Path) -> None:
    """A hundred commits, read together, need no statement; what is long ago is fetched."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        session_id = journal.open_session("queue")
        sent = [delivery(str(number).encode()) for number in range(100)]
        for each in sent:
            journal.append(session_id, [each])
        with counted_statements() as statements:
            batches = journal.read()
            assert [next(batches).deliveries for _ in sent] == [[each] for each in sent]
            assert statements == []
        for number in range(40):
            journal.append(session_id, [delivery(bytes([number]) * (1 << 20))])
        with counted_statements() as statements:
            found = [each for batch in journal.read() for each in batch.deliveries]
            assert found[:100] == sent
            assert len(found) == 140
            assert statements


def test_listening_goes_on_after_a_restart_of_the_server(postgresql: PrivatePostgreSQL) -> None:
    """What was committed in between is told, too, and the connection is gone after close()."""
    url = postgresql.new_database()
    told = threading.Semaphore(0)
    with Journal(url) as one, Journal(url) as two:
        two.watch(told.release)
        assert told.acquire(timeout=60)
        postgresql.restart()
        assert told.acquire(timeout=60)
        session_id = one.open_session("q")
        one.append(session_id, [delivery(b"one")])
        until(lambda: told.acquire(blocking=False) and two.position(exact=False).last_id == 1)
        two.position()
        assert others(one) == 2  # one listens, one asks
        two.close()
        until(lambda: others(one) == 0)


def others(journal: Journal) -> int:
    """Return the number of other connections to the database of a journal."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    return journal._database.read(lambda c: int(c.execute(query).scalar_one()))


def test_where_nothing_is_told_the_journal_is_looked_at(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The looks become rarer while nothing changes, a change is found, and a text says why."""
    monkeypatch.setattr(Listener, "probe_s", 0.5)
    monkeypatch.setattr(ChangeDetector, "first_pause_s", 0.02)
    monkeypatch.setattr(ChangeDetector, "longest_pause_s", 0.2)
    url = postgresql.new_database()
    with Journal(url) as writer:
        session_id = writer.open_session("q")
        with postgresql.pgbouncer(url) as pooled, Journal(pooled) as reader:
            assert "PgBouncer" in str(reader.why_not_told())
            reader.watch(lambda: None)
            until(lambda: not [t for t in threading.enumerate() if t.name == "regards-nb-listen"])
            changes = reader._database._changes
            until(lambda: reader.position(exact=False) and changes._pause_s == 0.2)
            writer.append(session_id, [delivery(b"one")])
            until(lambda: reader.position(exact=False).last_id == 1)
            assert changes._pause_s < 0.2
            reader.watch(None)
        assert writer.why_not_told() is None
