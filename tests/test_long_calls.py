"""A call of many short steps says how far it is, in whichever thread of the user it runs."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import client_of, over_rest, until

from regards_nb import OrderTracker, waits
from regards_nb.errors import JournalError, StoppedWaiting
from regards_nb.journal import Database, Journal
from regards_nb.simulator import OrderPlan, Route, Simulator, Slow
from regards_nb.threads import begin
from regards_nb.waits import in_thread

LARGE = OrderPlan(n_files=8, files_per_suborder=1)


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    """Return a tracker over REST with three orders that have not ended."""
    with over_rest(simulator, tmp_path, [LARGE] * 3) as alone:
        yield alone


@pytest.fixture
def _always_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each call seem to last for long, and each of its lines to be long ago."""
    monkeypatch.setattr(waits, "SAID_AFTER_S", -1.0)
    monkeypatch.setattr(waits, "AGAIN_S", -1.0)


@pytest.mark.usefixtures("_always_late")
@pytest.mark.parametrize(
    ("action", "doing"),
    [("pause", "pausing"), ("cancel", "cancelling")],
)
def test_an_action_on_many_orders_says_how_many_are_done(
    tracker: OrderTracker, capsys: pytest.CaptureFixture[str], action: str, doing: str
) -> None:
    """Although each of its requests is answered at once."""
    getattr(tracker, action)([1, 2, 3])
    told = capsys.readouterr().out
    for done in range(3):
        assert f"{doing}: {done} of 3 orders" in told


@pytest.mark.usefixtures("_always_late")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda tracker: tracker.sync(), "the list of orders: 100 of 101"),
        (lambda tracker: tracker.client.orders(), "the list of orders: 100 of 101"),
        (lambda tracker: tracker.client.search(), "products: 10 of 62"),
    ],
)
def test_a_list_of_several_pages_says_how_much_has_come(
    simulator: Simulator,
    tracker: OrderTracker,
    capsys: pytest.CaptureFixture[str],
    call: Callable[[Any], object],
    told: str,
) -> None:
    """Each page is one request, which is answered at once."""
    assert tracker.client is not None
    tracker.client._catalogue.page_size = 10
    for _ in range(98):
        simulator.order(OrderPlan(n_files=1), over_amqp=False)
    call(tracker)
    assert told in capsys.readouterr().out


def test_a_call_is_as_old_as_its_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of its steps lasts long enough to be told."""
    monkeypatch.setattr(waits, "SAID_AFTER_S", 0.5)

    def step() -> str:
        waits.awaited(partial(threading.Event().wait, 0.2), "waiting for a step")
        return capsys.readouterr().out

    with waits.user_call():
        assert until(step) == "waiting for a step\n"


def test_where_something_else_says_how_far_a_call_is_a_short_step_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code of the user in it is told of like any other."""
    monkeypatch.setattr(waits, "SAID_AFTER_S", -1.0)

    def step() -> str:
        with waits.user_call(), waits.progress("1 of 2"):
            return capsys.readouterr().out

    with waits.user_call(), waits.shown_meanwhile():
        assert not step()
        with waits.users_code():
            assert step() == "1 of 2\n"
        assert not step()


def by_thread(call: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(call).result()


def by_to_thread(call: Callable[[], object]) -> None:
    async def run() -> None:
        await asyncio.to_thread(call)

    asyncio.run(run())


@pytest.mark.usefixtures("_says_at_once")
@pytest.mark.filterwarnings("ignore:REGARDS prepares:UserWarning")
@pytest.mark.parametrize("run", [by_thread, by_to_thread])
@pytest.mark.parametrize("call", ["sync", "doctor", "pause", "submit", "login"])
def test_a_call_in_a_thread_of_the_user_says_what_it_waits_for(
    simulator: Simulator,
    tracker: OrderTracker,
    capsys: pytest.CaptureFixture[str],
    run: Callable[[Callable[[], object]], None],
    call: str,
) -> None:
    """As in the main thread: it is the call of a user."""
    assert tracker.client is not None
    calls: dict[str, Callable[[], object]] = {
        "sync": tracker.sync,
        "doctor": tracker.doctor,
        "pause": lambda: tracker.pause(1),
        "submit": lambda: tracker.submit("dataset:SWOT_PASS_012"),
        "login": client_of(simulator).login,
    }
    simulator.faults.add(Slow(delay_s=0.5, times=None))
    run(calls[call])
    assert f"waiting for REGARDS at {simulator.base_url}, at most 130 s" in capsys.readouterr().out


@pytest.mark.usefixtures("_says_at_once")
def test_a_thread_of_the_user_says_that_the_journal_is_locked(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the main thread."""
    simulator.order(LARGE, over_amqp=False)
    with (
        ThreadPoolExecutor(1) as threads,
        closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        syncing = threads.submit(tracker.sync)
        until(lambda: "another program holds the journal" in capsys.readouterr().out)
        other.rollback()
        with suppress(JournalError):  # it may have waited for long
            syncing.result()


def test_what_a_call_does_is_not_said_over_what_it_waits_for(
    path: Path,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The reason of a wait stays the last line until it ends; then the call says what it does."""
    journal.open_session("q")
    monkeypatch.setattr(Database, "busy_timeout_s", 1.0)
    monkeypatch.setattr(waits, "SAID_AFTER_S", 0.3)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="close that program"):
            journal.pruning.run(1, dry_run=False)
    assert "another program holds the journal" in capsys.readouterr().out.splitlines()[-1]
    lines: list[str] = []
    with waits.said_meanwhile("looking"):
        waits.told("the server does not answer", 0.5)
        until(lambda: lines.extend(capsys.readouterr().out.splitlines()) or "looking" in lines)
    assert lines == ["the server does not answer", "looking"]


@pytest.mark.usefixtures("_says_at_once")
def test_a_thread_of_the_package_says_nothing(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its line would appear in the cell that runs then: of a request, a callback, a download."""
    client = tracker.client
    assert client is not None
    simulator.faults.add(Slow(route=Route.ORDERS, delay_s=0.5, times=3))
    with waits.user_call():
        requested = in_thread(client.orders)
    begun = begin("test", client.orders)
    called = threading.Event()

    def callback(_: object) -> None:
        client.orders()
        called.set()

    tracker.on("PAUSED", callback)
    tracker.pause(1)
    capsys.readouterr()
    until(called.is_set)
    requested.result()
    begun.join()
    simulator.faults.add(Slow(route=Route.AVAILABLE, delay_s=0.5))
    with ThreadPoolExecutor(1) as threads:
        tracker.download(1, executor=threads)
    assert "waiting for REGARDS" not in capsys.readouterr().out


def test_a_call_after_ctrl_c_has_all_its_time_and_its_own_errors() -> None:
    """That the call before it was stopped limits only what that one does at its end."""

    @waits.stopped_by_user()
    def call() -> None:
        raise JournalError(f"{waits.time_left_s():.1f} s left")

    @waits.stopped_by_user(lambda: f"stopped, with {waits.time_left_s():.1f} s left")
    def stopped_call() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        with pytest.raises(JournalError, match="inf s left"):
            call()
        with pytest.raises(StoppedWaiting, match=r"with 0\.1 s left"):
            stopped_call()
