"""A journal in a real PostgreSQL: the main road, and what only a server on its own can do."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from conftest import client_of, interrupted_after, until
from postgresql import PrivatePostgreSQL
from strategies import delivery
from test_consumer import LIMIT_S, nothing, numbers, publish

from regards_nb import OrderTracker
from regards_nb.consumer import Consumer, HealthState, parameters_from
from regards_nb.errors import JournalError, StoppedWaiting, WaitTimeoutError
from regards_nb.journal import Database, Journal, Server
from regards_nb.waits import limited, user_call

if TYPE_CHECKING:
    from conftest import Admin

    from regards_nb.simulator import PrivateBroker, Simulator


def demo(broker: PrivateBroker, journal: str, folder: Path, **options: Any) -> OrderTracker:
    """Start a tracker of a demo with a journal on the server."""
    options = {"suborder_pause_s": 0.01, "workspace": folder / "orders"} | options
    return OrderTracker.demo(broker=broker, journal=journal, **options)


def test_an_order_from_the_message_to_the_file(
    broker: PrivateBroker, postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """What one kernel followed and fetched, the next one shows, with the same frames."""
    url = postgresql.new_database()
    with demo(broker, url, tmp_path) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
        paths = order.wait(timeout_s=60).download()
        # REST alone tells when the order expires, and no journal holds it.
        before = [tracker.events, tracker.orders.drop(columns="expires_at"), tracker.files]
    assert len(before[2]) == len(paths) == 3
    again = OrderTracker(
        "amqp://nowhere.invalid", tracker.queue, journal=url, workspace=tmp_path / "orders"
    )
    after = [again.events, again.orders.drop(columns="expires_at"), again.files]
    for old, new in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(old, new)
    again.stop()


def test_nothing_is_lost_or_twice_when_the_database_is_killed(
    admin: Admin, postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 while messages flow, again and again: each message is journalled once."""
    monkeypatch.setattr(Database, "restart_patience_s", 0.1)
    with Journal(postgresql.new_database()) as journal:
        consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
        consumer.start(LIMIT_S)
        for kills in range(1, 4):
            publish(admin, 1000 * (kills - 1), 1000 * kills)
            until(lambda kills=kills: journal.last_id() > 1000 * (kills - 1))
            postgresql.kill()
            until(lambda: not is_there(journal))
            with pytest.raises(JournalError, match="cannot check"):
                journal.check()
            postgresql.start()
        until(lambda: journal.last_id() >= 3000)
        until(lambda: admin.messages_left() == 0)
        assert journal.check() == []
        until(lambda: consumer.health.state is HealthState.CONSUMING)
        consumer.stop(LIMIT_S)
        assert numbers(journal) == list(range(3000))


def test_a_commit_is_on_the_disk_whatever_the_database_is_set_to(
    postgresql: PrivatePostgreSQL,
) -> None:
    """With synchronous_commit off, a killed server has the rows whose commit it confirmed."""
    url = postgresql.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    postgresql.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    # by default it writes the commits after 0.2 s
    postgresql.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    postgresql.restart()
    with Journal(url) as journal:
        journal.append(journal.open_session("q"), [delivery(b"%d" % n) for n in range(5)])
        postgresql.kill()
        postgresql.start()
        assert journal.last_id() == 5
    postgresql.execute("ALTER SYSTEM RESET wal_writer_delay")


def is_there(journal: Journal) -> bool:
    try:
        journal.last_id()
    except JournalError:
        return False
    return True


@pytest.mark.usefixtures("_says_at_once")
def test_a_server_that_went_away_is_no_sound_journal(
    postgresql: PrivatePostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also while a connection that was made before looks as if it were open; the wait is told."""
    monkeypatch.setattr(Database, "restart_patience_s", 0.5)
    with Journal(postgresql.new_database()) as journal:
        assert journal.check() == []
        postgresql.kill()
        try:
            with pytest.raises(JournalError, match="cannot check"):
                journal.check()
            told = capsys.readouterr().out
            assert told.startswith("waiting for the server of the journal postgresql+psycopg://")
        finally:
            postgresql.start()
        assert journal.check() == []


@pytest.mark.usefixtures("_says_at_once")
def test_a_server_that_does_not_answer_is_told_and_given_up(
    postgresql: PrivatePostgreSQL, capsys: pytest.CaptureFixture[str]
) -> None:
    """Suspended, as when the network is lost: reads and writes end, and go on when it does."""
    with Journal(postgresql.new_database()) as journal:
        session = journal.open_session("q")
        messages = [delivery(b"%d" % n) for n in range(5)]
        with postgresql.suspended():
            with pytest.raises(
                JournalError, match="cannot read.*connection.*Check that the server"
            ):
                journal.last_id()
            told, *_ = capsys.readouterr().out.splitlines()  # a slow machine says it again
            assert told.startswith("waiting for the server of the journal postgresql+psycopg://")
            assert told.endswith(", at most 5 s")
            assert journal.obstacle().startswith("waiting for the server of the journal")
            with pytest.raises(
                JournalError, match="cannot write.*connection.*Check that the server"
            ):
                journal.append(session, messages)
        journal.append(session, messages)
        assert journal.last_id() == 5
        assert journal.obstacle() == ""
        assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_says_at_once")
@pytest.mark.parametrize("work", ["read", "write"])
def test_ctrl_c_ends_the_wait_for_a_server_that_does_not_answer(
    postgresql: PrivatePostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    work: str,
) -> None:
    """psycopg does not ask the server to cancel the statement, which it does not answer either."""
    monkeypatch.setattr(Server, "silence_s", 60.0)
    with Journal(postgresql.new_database()) as journal:
        call = {"read": journal.last_id, "write": lambda: journal.open_session("q")}[work]
        call()
        with (
            postgresql.suspended(),
            interrupted_after(lambda written: "waiting for" in written, monkeypatch),
            pytest.raises(KeyboardInterrupt),
        ):
            call()
        call()
        assert not [record for record in caplog.records if record.name.startswith("psycopg")]


@pytest.mark.usefixtures("_says_at_once")
@pytest.mark.parametrize(
    "stopped",
    [
        (lambda tracker: tracker.submit("dataset:SWOT_PASS_012"), "nothing was ordered for"),
        (lambda tracker: tracker.pause(1), "sync"),
        (lambda tracker: tracker.download(1, again=True), "stopped"),
    ],
)
def test_ctrl_c_ends_each_call_whose_journal_does_not_answer(
    broker: PrivateBroker,
    postgresql: PrivatePostgreSQL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: tuple[Callable[[OrderTracker], object], str],
) -> None:
    """As one that the user has stopped, although it cannot read what was done; it waits no more."""
    with demo(broker, postgresql.new_database(), tmp_path) as tracker:
        tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=60).download()
        with (
            postgresql.suspended(),
            interrupted_after(lambda written: "of the journal" in written, monkeypatch),
            pytest.raises(StoppedWaiting, match=stopped[1]),
        ):
            stopped[0](tracker)


@pytest.mark.usefixtures("_says_at_once")
def test_after_ctrl_c_a_call_asks_a_server_once(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what it reads at its end; it does not ask again while the server restarts."""
    with Journal(postgresql.new_database()) as journal:
        journal.last_id()
        monkeypatch.setattr(Database, "restart_patience_s", 10 * LIMIT_S)
        with user_call(), postgresql.suspended():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                with pytest.raises(JournalError):
                    journal.last_id()


@pytest.mark.usefixtures("_says_at_once")
def test_ctrl_c_ends_a_wait_whose_journal_does_not_answer(
    broker: PrivateBroker,
    postgresql: PrivatePostgreSQL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it shows at its end is not read again and again."""
    with demo(broker, postgresql.new_database(), tmp_path, suborder_pause_s=60) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        monkeypatch.setattr(Database, "restart_patience_s", 10 * LIMIT_S)
        with (
            postgresql.suspended(),
            interrupted_after(lambda written: "of the journal" in written, monkeypatch),
            pytest.raises(StoppedWaiting, match="stopped waiting"),
        ):
            order.wait()


@pytest.mark.usefixtures("_says_at_once")
def test_an_awaited_wait_leaves_its_loop_free_while_a_server_does_not_answer(
    broker: PrivateBroker,
    postgresql: PrivatePostgreSQL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other tasks go on, and its task can be cancelled."""

    async def cancel() -> None:
        waiting = asyncio.create_task(tracker.wait_async(order))
        await asyncio.sleep(0.1)
        with postgresql.suspended():
            await asyncio.to_thread(until, tracker._shared.journal.obstacle)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    with demo(broker, postgresql.new_database(), tmp_path, suborder_pause_s=60) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        monkeypatch.setattr(Database, "restart_patience_s", 10 * LIMIT_S)
        asyncio.run(cancel())
        monkeypatch.undo()


@pytest.mark.usefixtures("_says_at_once")
def test_a_call_waits_for_no_other_thread_that_asks_a_server(
    postgresql: PrivatePostgreSQL,
) -> None:
    """It asks the server itself, ends with its own time limit, and says what it waits for."""
    tracker = OrderTracker("amqp://nowhere.invalid", "q", journal=postgresql.new_database())
    assert tracker.events.empty
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "silence_s", 10 * LIMIT_S)
        patch.setattr(Database, "restart_patience_s", 10 * LIMIT_S)
        with postgresql.suspended():
            reading = pool.submit(lambda: tracker.orders)
            until(tracker._shared.journal.obstacle)
            with limited(time.monotonic() + 0.5), pytest.raises(JournalError):
                _ = tracker.events
            assert not reading.done()
        reading.result(LIMIT_S)
    tracker.stop()


@pytest.mark.usefixtures("_says_at_once")
def test_a_tracker_whose_server_does_not_answer_is_not_made(
    postgresql: PrivatePostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The wait is told, and Ctrl-C ends it in one line."""
    monkeypatch.setattr(Server, "connect_s", 2)
    url = postgresql.new_database()
    with postgresql.suspended():
        with pytest.raises(JournalError, match="cannot open.*Check that the server"):
            OrderTracker.reader(url)
        told = capsys.readouterr().out
        assert told.startswith("waiting for the server of the journal postgresql+psycopg://")
        assert told.endswith(", at most 5 s\n")
    is_over = threading.Event()

    def refused(server: Server, *_: object, **__: object) -> None:
        with server.outage.awaited():
            is_over.wait()
            raise psycopg.OperationalError("connection timeout expired")

    monkeypatch.setattr(Server, "connect", refused)
    with (
        interrupted_after(lambda written: "waiting for" in written, monkeypatch),
        pytest.raises(StoppedWaiting, match="no tracker was made"),
    ):
        OrderTracker("amqp://nowhere.invalid", "q", journal=url)
    is_over.set()


@pytest.mark.usefixtures("_says_at_once")
def test_a_call_gives_a_server_up_once(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later parts fail at once; another call asks the server."""
    asked: list[object] = []
    connect = Server.connect

    def counted(server: Server, *arguments: object, **options: object) -> object:
        asked.append(arguments)
        return connect(server, *arguments, **options)

    monkeypatch.setattr(Server, "connect", counted)
    with Journal(postgresql.new_database()) as journal:
        with user_call(), postgresql.suspended():
            with pytest.raises(JournalError, match="cannot read"):
                journal.last_id()
            asked.clear()
            with pytest.raises(JournalError, match="cannot read.*connection.*Check that"):
                journal.last_id()
            with pytest.raises(JournalError, match="cannot write.*connection.*Check that"):
                journal.open_session("q")
            assert not asked
            with ThreadPoolExecutor(1) as pool, pytest.raises(JournalError):
                pool.submit(journal.last_id).result()
            assert asked
        with user_call():
            journal.open_session("q")
        assert journal.last_id() == 0


@pytest.mark.usefixtures("_says_at_once")
def test_a_call_without_time_left_does_not_ask_a_server_that_is_away(
    postgresql: PrivatePostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """So stop() ends at its time limit; and no line names a limit that has passed."""
    asked: list[object] = []
    with Journal(postgresql.new_database()) as journal:
        journal.open_session("q")
        with postgresql.suspended(), limited(time.monotonic() + 0.01):
            with pytest.raises(JournalError, match="cannot write.*connection.*Check that"):
                journal.open_session("q")
            told = capsys.readouterr().out
            assert "waiting for the server of the journal" in told
            assert "at most -" not in told
            connect = Server.connect
            monkeypatch.setattr(
                Server, "connect", lambda *a, **b: [asked.append(a), connect(*a, **b)][1]
            )
            with pytest.raises(JournalError, match="cannot write.*connection.*Check that"):
                journal.open_session("q")
        assert not asked


@pytest.mark.usefixtures("_says_at_once")
def test_a_background_thread_waits_no_longer_for_a_server_than_a_call(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds locks for which a call waits, too."""
    with Journal(postgresql.new_database()) as journal, postgresql.suspended():
        with pytest.raises(JournalError, match="cannot read"):
            journal.last_id()
        monkeypatch.setattr(Server, "reconnect_s", 2 * int(LIMIT_S))
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(journal.last_id)
            with pytest.raises(JournalError, match="cannot read.*connection"):
                reading.result(LIMIT_S)


@pytest.mark.usefixtures("_says_at_once")
def test_submit_gives_a_server_up_that_does_not_answer(
    broker: PrivateBroker,
    postgresql: PrivatePostgreSQL,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It tells one limit, and no part of it begins to wait anew."""
    with demo(broker, postgresql.new_database(), tmp_path) as tracker:
        tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=60)
        capsys.readouterr()
        with postgresql.suspended(), pytest.raises(JournalError, match="Check that the server"):
            tracker.submit("dataset:SWOT_PASS_012")
        told = [line for line in capsys.readouterr().out.splitlines() if "journal" in line]
        assert len(told) == 1
        assert told[0].endswith(", at most 5 s")


def test_the_time_limit_of_submit_each_ends_its_look_for_earlier_orders(
    postgresql: PrivatePostgreSQL, simulator: Simulator, tmp_path: Path
) -> None:
    """It asks the journal which rows were ordered before, and the server does not answer."""
    with (
        OrderTracker(
            client=client_of(simulator),
            journal=postgresql.new_database(),
            workspace=tmp_path / "orders",
        ) as tracker,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert tracker.client is not None
        table = tracker.client.search("dataset:SWOT_PASS_012")
        patch.setattr(Server, "silence_s", 10 * LIMIT_S)
        patch.setattr(Database, "restart_patience_s", 10 * LIMIT_S)
        with ThreadPoolExecutor(1) as pool, postgresql.suspended():
            waiting = pool.submit(tracker.submit_each, table, timeout_s=1.0)
            with pytest.raises(JournalError, match="Check that the server runs"):
                waiting.result(LIMIT_S)
        patch.undo()


def test_the_consumer_goes_on_after_a_server_that_did_not_answer(
    admin: Admin, postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so meanwhile; each message is journalled once, and then acknowledged."""
    monkeypatch.setattr(Server, "silence_s", 0.5)
    with Journal(postgresql.new_database()) as journal:
        consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
        consumer.start(LIMIT_S)
        publish(admin, 0, 1000)
        until(lambda: journal.last_id() == 1000)
        with postgresql.suspended():
            publish(admin, 1000, 2000)
            until(lambda: "cannot write the journal" in (consumer.health.reason or ""))
        until(lambda: admin.messages_left() == 0)
        until(lambda: consumer.health.state is HealthState.CONSUMING)
        consumer.stop(LIMIT_S)
        assert numbers(journal) == list(range(2000))


def test_a_server_that_cannot_be_reached_is_named_without_the_password() -> None:
    """The error says what to check."""
    with pytest.raises(JournalError, match="Connection refused.*Check that the server") as caught:
        Journal("postgresql+psycopg://john:geheim@127.0.0.1:1/orders")
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_of_something_else_is_left_alone(postgresql: PrivatePostgreSQL) -> None:
    """It keeps its tables and gets no more; a database that does not exist is not made."""
    url = sa.make_url(postgresql.new_database())
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE invoices (id int)")
    engine.dispose()
    with pytest.raises(JournalError, match="something else.*invoices"):
        Journal(url.render_as_string())
    with pytest.raises(JournalError, match='database "nothing" does not exist'):
        Journal(url.set(database="nothing").render_as_string())


def test_a_restart_of_the_server_ends_no_wait(
    broker: PrivateBroker, postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """The user sees no error: wait() goes on, and the files of the order are recorded."""
    with demo(
        broker, postgresql.new_database(), tmp_path, suborder_pause_s=0.3, auto_download=True
    ) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(order.wait, timeout_s=60)
            until(lambda: order.status is not None)
            postgresql.restart()
            waiting.result()
        until(lambda: (tracker.files["state"] == "VERIFIED").sum() == 3)
        assert tracker.snapshot().background_errors == ()


@pytest.fixture
def _gives_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call wait for a server that restarts for a moment only."""
    monkeypatch.setattr(Database, "restart_patience_s", 0.1)


@pytest.mark.usefixtures("_gives_up_at_once")
@pytest.mark.parametrize("waits", ["wait", "wait_async", "submit_each"])
def test_a_call_that_waits_outlasts_a_server_that_is_away_for_long(
    waits: str,
    broker: PrivateBroker,
    postgresql: PrivatePostgreSQL,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It says what it cannot read, as other calls do with an error, and ends with its order."""
    with demo(broker, postgresql.new_database(), tmp_path, suborder_pause_s=3.0) as tracker:
        table = tracker.client.search("dataset:SWOT_PASS_012").head(1)
        said: list[str] = []

        def is_said(text: str) -> bool:
            said.extend(capfd.readouterr())
            return text in "".join(said)

        called = {
            "wait": lambda: order.wait(timeout_s=60),
            "wait_async": lambda: asyncio.run(tracker.wait_async(order, timeout_s=60)),
            "submit_each": lambda: tracker.submit_each(table, download=True, timeout_s=60),
        }

        def outage() -> None:
            until(lambda: is_said("running"))  # the wait has begun
            postgresql.kill()
            try:
                until(lambda: is_said("The wait goes on"))
            finally:
                postgresql.start()

        with ThreadPoolExecutor(1) as pool:
            order = None if waits == "submit_each" else tracker.submit("dataset:SWOT_PASS_012")
            away = pool.submit(outage)
            called[waits]()
            away.result(LIMIT_S)
        assert list(tracker.orders["status"]) == ["DONE"]


@pytest.mark.usefixtures("_gives_up_at_once")
def test_the_time_limit_of_a_wait_ends_it_while_the_server_is_away(
    broker: PrivateBroker,
    postgresql: PrivatePostgreSQL,
    tmp_path: Path,
) -> None:
    """The error is that of the limit, and says why the orders could not be read."""
    with demo(broker, postgresql.new_database(), tmp_path, suborder_pause_s=60) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(order.wait, timeout_s=2)
            until(lambda: order.status is not None)
            postgresql.kill()
            with pytest.raises(WaitTimeoutError, match="after 2 s, cannot read.*Check that"):
                waiting.result(LIMIT_S)
            postgresql.start()


def test_sessions_that_the_server_ended_are_made_again(postgresql: PrivatePostgreSQL) -> None:
    """The next read and the next write succeed at once, as after idle_session_timeout."""
    with Journal(postgresql.new_database()) as journal:
        session_id = journal.open_session("q")
        journal.append(session_id, [delivery(b"one")])
        for use in (
            journal.last_id,
            lambda: list(journal.read(0)),
            lambda: journal.files_after(0, tenant=None),
            lambda: journal.append(session_id, [delivery(b"two")]),
            lambda: journal.save_fetched("t", 1, 2),
            lambda: journal.next_offset("s"),
        ):
            postgresql.end_sessions()
            use()
        assert journal.last_id() == 2


def test_a_role_that_may_only_read_can_follow_a_journal(postgresql: PrivatePostgreSQL) -> None:
    """Opening writes nothing; an attempt to write says what is missing."""
    url = postgresql.new_database()
    with Journal(url) as journal:
        session_id = journal.open_session("q")
        with Journal(postgresql.reader(url)) as reader:
            journal.append(session_id, [delivery(b"one")])
            assert [each.body for each in next(reader.read()).deliveries] == [b"one"]
            with pytest.raises(JournalError, match="permission denied.*right to write"):
                reader.open_session("q")
            journal.append(session_id, [delivery(b"two")])
            assert reader.last_id() == 2


def test_a_standby_can_be_followed(postgresql: PrivatePostgreSQL) -> None:
    """A reader may take its load off the primary server."""
    url = postgresql.new_database()
    with Journal(url) as journal:
        session_id = journal.open_session("q")
        with postgresql.standby(url) as standby, Journal(standby) as reader:
            journal.append(session_id, [delivery(b"one")])
            until(lambda: reader.last_id() == 1)
            assert "during recovery" in str(reader.why_not_told())
            with pytest.raises(JournalError, match="during recovery.*primary server"):
                reader.open_session("q")


def test_pgbouncer_in_transaction_mode_mixes_nothing_up(
    broker: PrivateBroker, postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """Each transaction may run on another connection of the server, with other statements."""
    with postgresql.pgbouncer(postgresql.new_database()) as url:
        with demo(broker, url, tmp_path, auto_download=True) as tracker:
            for _ in range(3):
                tracker.submit("dataset:SWOT_PASS_012")
            tracker.wait(timeout_s=60)
            until(lambda: (tracker.files["state"] == "VERIFIED").sum() == 9)
            assert tracker.snapshot().background_errors == ()
            events = len(tracker.events)
        with Journal(url) as journals, ThreadPoolExecutor(4) as pool:
            session_ids = [journals.open_session(f"q{n}") for n in range(4)]
            for _ in range(20):
                list(pool.map(lambda s: journals.append(s, [delivery(b"x")]), session_ids))
                assert sum(len(batch.deliveries) for batch in journals.read()) > events
            assert journals.last_id() == events + 80


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://john@localhost:54x2/orders?password=geheim",
        "postgresql+psycopg://john@127.0.0.1:1/orders?password=geheim",
        "postgresql+psycopg://john:geheim@127.0.0.1:port/orders",
    ],
)
def test_a_url_that_does_not_work_is_refused_without_its_password(url: str) -> None:
    """libpq takes the password from the query, too."""
    with pytest.raises(JournalError) as caught:
        Journal(url)
    assert "geheim" not in str(caught.value)


def test_a_database_without_an_encoding_keeps_text(postgresql: PrivatePostgreSQL) -> None:
    """SQL_ASCII, which a server without a locale has, keeps bytes as they are."""
    postgresql.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    url = postgresql.new_database()
    with Journal(url.replace(url.partition("@/")[2].partition("?")[0], "ascii")) as journal:
        journal.append(journal.open_session("données"), [delivery("é".encode())])
        assert journal.queues() == {"données"}
        assert [each.body for batch in journal.read() for each in batch.deliveries] == [b"\xc3\xa9"]


def test_the_password_in_the_query_is_not_in_the_location(postgresql: PrivatePostgreSQL) -> None:
    """repr, errors and the display name the database without it."""
    url = f"{postgresql.new_database()}&password=geheim"
    with Journal(url) as journal:
        assert "geheim" not in repr(journal)
        assert "password=" in journal.location


def test_removed_rows_hide_no_later_message(admin: Admin, postgresql: PrivatePostgreSQL) -> None:
    """TRUNCATE while it runs: it is said, the numbers begin anew, and later events are there."""
    url = postgresql.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    tracker = OrderTracker(admin.url, admin.queue, journal=url)
    reader = OrderTracker.reader(url, queue=admin.queue)

    def have(first: int) -> bool:
        shown = (set(each.events["sub_order_id"]) for each in (tracker, reader))
        return all(each >= set(range(first, first + 10)) for each in shown)

    with tracker, reader:
        publish(admin, 0, 10)
        until(lambda: have(0))
        for tables, first in (("batches", 10), ("batches, sessions, streams", 20)):
            postgresql.execute(f"TRUNCATE {tables}", database=name)
            publish(admin, first, first + 10)
            until(lambda first=first: have(first))
        assert "removed the newest messages" in "".join(tracker.snapshot().background_errors)
        assert journal_of(url) == set(tracker.events["sub_order_id"])


def journal_of(url: str) -> set[int | None]:
    """Return the numbers of the messages that the next kernel finds."""
    with Journal(url) as journal:
        return set(numbers(journal))
