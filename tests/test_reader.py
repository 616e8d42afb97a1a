"""A reader: frames, waits, views and callbacks of a journal that another kernel writes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from conftest import client_of, limit_tells, tracker_of, until
from strategies import delivery
from test_journal_team import counted_statements
from test_team import kernel

from regards_nb import OrderTracker, cli, events
from regards_nb.consumer import HealthState
from regards_nb.display import text
from regards_nb.errors import JournalError, QueueNotFoundError, SettingsError, WaitTimeoutError
from regards_nb.journal import ChangeDetector, Journal
from regards_nb.simulator import OrderPlan, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postgresql import PrivatePostgreSQL


class Writer:
    """A kernel that journals the events of one queue."""

    def __init__(self, journal: Journal, queue: str = "q") -> None:
        self._journal = journal
        self._session_id = journal.open_session(queue)

    def write(self, status: str, name: str = "a", tenant: str = "tenant", **fields: Any) -> None:
        body = {"status": status, "correlationId": name, "orderId": 7, **fields}
        sent = delivery(json.dumps(body).encode(), tenant=tenant)
        self._journal.append(self._session_id, [sent])


@contextmanager
def written(place: str | Path) -> Iterator[Writer]:
    with Journal(place) as journal:
        yield Writer(journal)


def test_a_reader_shows_waits_and_calls_back(place: str | Path, tmp_path: Path) -> None:
    """What another kernel journals reaches frames, wait(), await and callbacks of a reader."""
    with written(place) as writer:
        writer.write("GRANTED")
        with OrderTracker.reader(place, workspace=tmp_path) as reader:
            assert reader.health.state is HealthState.READING
            assert "reads" in repr(reader)
            called: list[str] = []
            reader.on(None, lambda event: called.append(event.status))
            with ThreadPoolExecutor(2) as pool:
                waiting = pool.submit(reader.wait, "a", timeout_s=60)
                also = pool.submit(lambda: asyncio.run(reader.wait_async("a", timeout_s=60)))
                writer.write("SUBORDER_DONE", subOrderId=1, downloadLink="/x")
                writer.write("DONE", downloadLink="/x")
                assert list(waiting.result()["status"]) == ["DONE"]
                assert list(also.result()["status"]) == ["DONE"]
            until(lambda: called == ["SUBORDER_DONE", "DONE"])
            assert len(reader.events) == 3
        assert reader.health.state is HealthState.STOPPED


def test_an_idle_reader_costs_no_statement(
    postgresql: PrivatePostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wait, a callback and a view, a kernel asks the server once in each pause."""
    monkeypatch.setattr(ChangeDetector, "look_every_s", 1.0)
    url = postgresql.new_database()
    with (
        written(url) as writer,
        OrderTracker.reader(url, workspace=tmp_path) as reader,
        ThreadPoolExecutor(2) as pool,
    ):
        writer.write("GRANTED")
        reader.on(None, print)
        until(lambda: reader._shared.journal._database._changes.told_by is not None)
        waiting = pool.submit(reader.wait, "a", timeout_s=60)
        also = pool.submit(lambda: asyncio.run(reader.wait_async("a", timeout_s=60)))
        until(lambda: len(reader.events) == 1)
        reader.snapshot()

        def is_idle() -> bool:
            with counted_statements() as statements:
                turns = 0

                def turned() -> bool:
                    nonlocal turns
                    turns += 1
                    reader.snapshot()
                    return len(statements) >= 3

                until(turned)
            return turns > 20 and all("max(batches.last_id)" in each for each in statements)

        until(is_idle)  # the threads may still read the first event
        writer.write("DENIED")
        waiting.result()
        also.result()


def test_what_a_reader_cannot_do_it_says_in_one_line(place: str | Path, tmp_path: Path) -> None:
    """Without a client it downloads, submits and pauses nothing; it never was to have a queue."""
    with written(place) as writer:
        writer.write("GRANTED")
        reader = OrderTracker.reader(place, workspace=tmp_path)
        for attempt in (
            lambda: reader.download("a"),
            lambda: reader.submit("dataset:X"),
            lambda: reader.pause("a"),
            reader.sync,
            lambda: reader.submit("dataset:X", user="jane"),
            lambda: reader.create_queue("x"),
        ):
            with pytest.raises(SettingsError, match=r"^[^\n]*needs? [^\n]*$") as caught:
                attempt()
            assert "OrderTracker(..., client" not in str(caught.value)
        assert re.search(
            r"1 of \d checks failed: events\. Fix that first\.$", repr(reader.doctor())
        )
        assert "another kernel" in reader.doctor()["broker"].text
        reader.start()
        with pytest.raises(WaitTimeoutError) as late:
            reader.wait("typo", "a", timeout_s=0.1)
        assert "no order is called 'typo'" in str(late.value)
        assert "Only REST" not in str(late.value), "the other kernel asks REGARDS"
        reader.stop()


def test_a_reader_advises_no_download_that_it_refuses(
    place: str | Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a client, its waits and views name a kernel that has one."""
    with written(place) as writer, OrderTracker.reader(place, workspace=tmp_path) as reader:
        reader._blocking.quiet_s = 0.0
        writer.write("SUBORDER_DONE", subOrderId=1, downloadLink="/x")
        late = limit_tells("has a client", lambda limit_s: reader.wait(7, timeout_s=limit_s))
        told = [str(late), text(reader.snapshot())]
        writer.write("DONE", downloadLink="/x")
        capsys.readouterr()
        reader.wait()
        told.append(capsys.readouterr().out)
    for each in told:
        assert "download in a kernel that has a client, or make this tracker with client=" in each
        assert "tracker.download(" not in each
        assert "wait(download=True)" not in each


def test_a_place_without_a_journal_is_refused(tmp_path: Path) -> None:
    """A slip in the path makes no empty journal."""
    with pytest.raises(JournalError, match=r"no journal .*typo\.sqlite"):
        OrderTracker.reader(tmp_path / "typo.sqlite")
    assert not list(tmp_path.iterdir())


def test_a_role_that_may_only_select_is_enough(
    postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """It is told of commits like any other, and doctor() says so."""
    url = postgresql.new_database()
    with (
        written(url) as writer,
        OrderTracker.reader(postgresql.reader(url), workspace=tmp_path) as reader,
    ):
        called = threading.Event()
        reader.on("GRANTED", lambda _: called.set())
        assert "NOTIFY" in reader.doctor()["journal, other kernels"].text
        until(lambda: reader._shared.journal._database._changes.told_by is not None)
        writer.write("GRANTED")
        assert called.wait(60)


def test_orders_of_another_tenant_block_none(path: Path) -> None:
    """A journal may hold several projects: a text says of which one the orders are that wait."""
    with written(path) as writer, OrderTracker.reader(path) as reader:
        for number in (1, 2):
            writer.write("DONE", f"b{number}", "other", orderId=number, downloadLink="/x")
        writer.write("GRANTED", "a1", "own", orderId=1)
        assert not reader.snapshot().blocking
        said = "1 of 1 order is still running"
        assert "for a download" not in str(limit_tells(said, partial(waited, reader, "a1")))
        writer.write("GRANTED", "b3", "other", orderId=3)
        assert [state.key.tenant for state in reader.snapshot().blocking] == ["other"] * 2
        waits = "orders 1, 2 of tenant 'other' wait for a download"
        assert waits in text(reader.snapshot())
        limit_tells(waits, partial(waited, reader, "b3"))
        assert "for a download" not in str(limit_tells(said, partial(waited, reader, "a1")))


def waited(reader: OrderTracker, name: str, limit_s: float) -> None:
    reader.wait(name, timeout_s=limit_s)


@pytest.mark.simulator(with_broker=True)
def test_a_tracker_with_a_client_has_the_orders_of_its_tenant(
    simulator: Simulator, tmp_path: Path
) -> None:
    """It would fetch, pause or cancel the order of its tenant with the number of another one."""
    with written(tmp_path / "journal.sqlite") as writer:
        writer.write("DONE", "other", "another", orderId=1, downloadLink="/x")
        writer.write("DONE", "own", simulator.tenant, orderId=2, downloadLink="/x")
        tracker = tracker_of(simulator, tmp_path, amqp=None, queue=None, tenant=None)
        reader = OrderTracker.reader(tmp_path / "journal.sqlite", client=client_of(simulator))
        assert [list(each.orders["order_id"]) for each in (tracker, reader)] == [[2], [2]]
        with pytest.raises(SettingsError, match="the client is of the tenant"):
            OrderTracker.reader(
                tmp_path / "journal.sqlite", tenant="other", client=client_of(simulator)
            )


def assert_no_receiver_told(
    reader: OrderTracker,
    capsys: pytest.CaptureFixture[str],
    told: str = "no kernel receives the messages of this journal now: start the tracker that does",
) -> None:
    """Health, header, wait, its limit and doctor() say it, that also before a start."""
    until(lambda: told in (reader.health.reason or ""))
    assert f"▲ reading the journal of another kernel since {reader.health.since:%Y}" in (
        shown := text(reader.snapshot())
    )
    assert told in shown
    capsys.readouterr()
    limit_tells(told[1:], lambda limit_s: reader.wait(timeout_s=limit_s))
    assert told in capsys.readouterr().out
    for each in (reader, OrderTracker.reader(reader._shared.journal.location)):
        report = each.doctor()
        assert told in report["events"].text
        assert not report.ok


@pytest.mark.simulator(with_broker=True)
def test_a_reader_says_that_no_kernel_receives_messages(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As soon as the process of the kernel has ended, and until there is another one."""
    place, files = tmp_path / "journal.sqlite", tmp_path / "orders"
    started = partial(kernel, simulator, place, files)
    with started() as writer:
        simulator.order(OrderPlan(suborder_pause_s=3600))
        reader = OrderTracker.reader(place, workspace=tmp_path).start()
        until(lambda: len(reader.orders))
        assert "reading the journal of another kernel" in text(reader.snapshot())
        assert reader.health.reason is None
        until(lambda: reader.health.last_event)
        writer.kill()
        writer.wait()
        assert_no_receiver_told(reader, capsys)
    with started():
        reader._shared.signal.send()  # as an event does
        reader._life.look()
        assert reader.health.reason is None
    reader.stop()


def test_a_reader_that_stops_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may still ask the journal which kernels receive messages."""
    with written(tmp_path / "journal.sqlite"):
        reader = OrderTracker.reader(tmp_path / "journal.sqlite", workspace=tmp_path).start()

    def stop_meanwhile(queues: object) -> set[object]:
        reader._consumer.stop(0.0)
        return set()

    monkeypatch.setattr(reader._shared.journal, "processes", stop_meanwhile)
    reader._shared.signal.send()  # as an event does
    reader._life.look()
    assert reader.health.state is HealthState.STOPPED
    assert reader.health.reason is None
    reader.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_reader_says_that_the_kernel_is_suspended(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until it goes on."""
    place = tmp_path / "journal.sqlite"
    with kernel(simulator, place, tmp_path / "orders") as writer:
        simulator.order(OrderPlan(suborder_pause_s=3600))
        reader = OrderTracker.reader(place, workspace=tmp_path).start()
        until(lambda: len(reader.orders))
        writer.send_signal(signal.SIGSTOP)
        told = "no kernel receives the messages of this journal now: the process that does is "
        told += f"suspended, and goes on after: kill -CONT {writer.pid}"
        assert_no_receiver_told(reader, capsys, told)
        writer.send_signal(signal.SIGCONT)
        until(lambda: reader.health.reason is None)
    reader.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_kernel_that_polls_receives_for_a_reader(simulator: Simulator, tmp_path: Path) -> None:
    """Also before REGARDS has told anything."""
    place = tmp_path / "journal.sqlite"
    with kernel(simulator, place, tmp_path / "orders", has_broker=False) as writer:
        reader = OrderTracker.reader(place, workspace=tmp_path).start()
        assert reader.health.reason is None
        writer.kill()
        writer.wait()
        until(lambda: reader.health.reason)
    reader.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_reader_beside_a_stopped_tracker_says_so(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process runs, and its tracker receives nothing; with a client, another call helps."""
    with tracker_of(simulator, tmp_path) as tracker:
        order_id = simulator.order(OrderPlan(suborder_pause_s=3600))
        until(lambda: order_id in set(tracker.orders["order_id"]))
        reader = OrderTracker.reader(tmp_path / "journal.sqlite", client=tracker.client).start()
        assert reader.health.reason is None
    assert_no_receiver_told(reader, capsys)
    assert "; tracker.sync() asks REGARDS meanwhile" in (reader.health.reason or "")
    with tracker:
        until(lambda: reader.health.reason is None)
    reader.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_client_lets_a_reader_download(simulator: Simulator, tmp_path: Path) -> None:
    """Where the journal can be written, the files go to the workspace of the reader."""
    with tracker_of(simulator, tmp_path) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        order.wait(timeout_s=60)
        reader = OrderTracker.reader(
            tmp_path / "journal.sqlite", client=tracker.client, workspace=tmp_path / "mine"
        )
        paths = reader.download(order.order_id)
        assert len(paths) == 3
        assert all(path.is_relative_to(tmp_path / "mine") for path in paths)
        reader.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_reader_asks_what_no_kernel_receives(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not say of an order that REGARDS has finished that it has not."""
    with tracker_of(simulator, tmp_path) as tracker:
        order_id = simulator.order(OrderPlan(suborder_pause_s=0.1))
        until(lambda: order_id in set(tracker.orders["order_id"]))
    client = client_of(simulator)
    until(lambda: client.order(order_id).status == "DONE")
    reader = OrderTracker.reader(tmp_path / "journal.sqlite", client=client, workspace=tmp_path)
    with reader.start():
        assert reader.download(order_id)
        assert "has not finished" not in capsys.readouterr().out
        assert list(reader.orders["status"]) == ["DONE"]


def test_two_queues_in_one_journal_are_kept_apart(place: str | Path, tmp_path: Path) -> None:
    """Two queues of one exchange hold the same events; each kernel shows those of its own."""
    with Journal(place) as journal:
        for queue in ("orders.jane", "orders.john"):
            Writer(journal, queue).write("GRANTED")
        with pytest.raises(SettingsError, match=r"'orders\.jane' and 'orders\.john'.*queue="):
            OrderTracker.reader(place)
        with pytest.raises(SettingsError, match=r"'orders\.jim'.*'orders\.jane'"):
            OrderTracker.reader(place, queue="orders.jim")
        john = OrderTracker.reader(place, queue="orders.john", workspace=tmp_path)
        assert len(john.events) == 1
        Writer(journal, "orders.jane").write("DONE")
        assert len(john.events) == 1
        Writer(journal, "REST answers").write("RUNNING")
        Writer(journal, "orders.john").write("DONE")
        assert list(john.events["status"]) == ["GRANTED", "RUNNING", "DONE"]
        john.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_kernel_says_which_queues_it_does_not_show(simulator: Simulator, tmp_path: Path) -> None:
    """The warning at the start names both queues."""
    with written(tmp_path / "journal.sqlite") as writer:
        writer.write("GRANTED", name="of another queue")
        with (
            pytest.warns(UserWarning, match=f"queue 'q'.*{simulator.queue!r} only"),
            tracker_of(simulator, tmp_path) as tracker,
        ):
            assert tracker.events.empty


@pytest.mark.simulator(with_broker=True)
def test_a_queue_that_was_never_read_is_no_queue_of_the_journal(
    simulator: Simulator, tmp_path: Path
) -> None:
    """After a failed start with a slip in its name, no start and no reader speaks of it."""
    with pytest.raises(QueueNotFoundError):
        tracker_of(simulator, tmp_path, queue="orders.slip").start()
    with tracker_of(simulator, tmp_path) as tracker:  # a warning would be an error
        tracker.submit("dataset:SWOT_PASS_012")
        OrderTracker.reader(tmp_path / "journal.sqlite").stop()


def test_the_command_line_reads_a_journal_without_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``orders``, ``events`` and ``wait`` take ``--journal``."""
    monkeypatch.setenv("REGARDS_CONFIG", str(tmp_path / "none.toml"))
    place = tmp_path / "journal.sqlite"
    with written(place) as writer:
        writer.write("GRANTED")
        writer.write("DONE")
        for command in (["orders"], ["events"], ["wait", "a"]):
            assert cli.main([*command, "--json", "--journal", str(place)]) == 0
            output = capsys.readouterr().out
            assert {row["correlation_id"] for row in json.loads(output)} == {"a"}
    assert events.OrderStatus.DONE in output
