"""Each call says what it waits for while REGARDS does not answer, and what Ctrl-C has stopped."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pika
import pytest
from children import Child
from conftest import client_of, interrupted_after, limit_tells, over_rest, until
from test_journal_team import HOLDER

from regards_nb import OrderTracker, display, errors, waits
from regards_nb.client import LastByte, RegardsClient, watched
from regards_nb.consumer import HealthState
from regards_nb.journal import Database, Journal
from regards_nb.simulator import ExpiredToken, OrderPlan, Reply, Route, Simulator, Slow
from regards_nb.threads import begin
from regards_nb.waits import ended_by, in_thread, joined, limited

pytestmark = pytest.mark.usefixtures("_says_at_once")

TABLE = pd.DataFrame({"provider_id": ["SWOT_SSH_007_012"]})


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    """Return a tracker over REST with one order that has not ended."""
    with over_rest(simulator, tmp_path, [OrderPlan(n_files=8, files_per_suborder=1)]) as alone:
        yield alone


#: A call, what does not answer, and what Ctrl-C says.
CASES: list[tuple[Callable[[Any], object], Route, str]] = [
    (lambda t: t.submit("dataset:SWOT_PASS_012", label="x"), Route.BASKET,
     "nothing was ordered for 'x'"),
    (lambda t: t.submit("dataset:SWOT_PASS_012", label="x"), Route.APPLY,
     "open whether REGARDS has made an order for 'x'.*correlation_id='nb-.*nothing twice"),
    (lambda t: t.submit_each(pd.DataFrame({"provider_id": ["p"]}), estimate=False),
     Route.APPLY, "0 of 1 order made. Perhaps made: p, the next call asks REGARDS. submit_each"),
    (lambda t: t.cancel(1), Route.ACTION, "open whether REGARDS did cancel order 1, .*sync"),
    (lambda t: t.pause(1), Route.ORDER, "open whether REGARDS did pause order 1, .*sync"),
    (lambda t: t.retry(1), Route.TOKEN, "retry.. was stopped: no request was sent for order 1"),
    (lambda t: t.sync(), Route.ORDERS, r"sync\(\) was stopped: call it again"),
    (lambda t: t.client.search("p"), Route.CATALOGUE, r"search\(\) was stopped, and has changed"),
    (lambda t: t.client.resume(1), Route.ACTION, "may carry out PUT .*resume/1"),
    (lambda t: t.doctor(), Route.ORDERS, r"doctor\(\) was stopped.*changed nothing"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case[1]}" for n, case in enumerate(CASES)])
def test_a_call_that_gets_no_answer(
    simulator: Simulator,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[Callable[[Any], object], Route, str],
) -> None:
    """It names REGARDS and the time limit, and Ctrl-C says whether something was done."""
    call, route, outcome = case
    if route is Route.TOKEN:
        simulator.faults.add(ExpiredToken())
    slow = simulator.faults.add(Slow(route=route, delay_s=60))
    line = f"waiting for REGARDS at {simulator.base_url}, at most 130 s\n"
    with (
        interrupted_after(
            lambda text: line in text and not simulator.faults.is_armed(slow), monkeypatch
        ) as written,
        pytest.raises(errors.StoppedWaiting, match=outcome) as stopped,
    ):
        call(tracker)
    assert written.getvalue().count(line) == 1
    assert "\n" not in str(stopped.value)


def test_each_call_says_what_it_waits_for(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a call before it, of any method of the client, has said the same."""
    client = client_of(simulator)
    plan = OrderPlan(n_files=8, files_per_suborder=1)
    order_id = simulator.order(plan, over_amqp=False)
    client.login()
    calls: list[Callable[[], object]] = [
        client.clock_skew_s,
        client.clock_skew_s,
        lambda: client.order(order_id),
        lambda: client.available_files(order_id),
        lambda: client.dataset_files(order_id, 1),
        lambda: client.pause(order_id),
    ]
    for call in calls:
        simulator.faults.add(Slow(delay_s=0.5))
        call()
        assert capsys.readouterr().out.count("waiting for REGARDS at") == 1, call


def test_a_stopped_download_of_products_says_how_far_it_came(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line; the same call goes on."""
    client = client_of(simulator)
    found = client.search(dataset="SWOT_CYCLE_008", **{"pass": (1, 3)})
    simulator.faults.add(Slow(route=Route.CATALOGUE_FILE, skip=2, stall_after_bytes=0))
    with (
        interrupted_after(lambda text: "products: verified 2/3" in text, monkeypatch),
        pytest.raises(errors.StoppedWaiting, match=r"^stopped; 2 of 3 files saved .* goes on"),
    ):
        client.download_products(found, tmp_path / "files")
    assert len(client.download_products(found, tmp_path / "files", show=False)) == 3


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda t: t.submit("dataset:SWOT_PASS_012", label="x"), "nothing was ordered for 'x'"),
        (lambda t: t.submit_each(TABLE), "0 of 1 order made"),
        (lambda t: t.journal_prune(before="2026-01-01"), r"journal_prune\(\) was stopped"),
    ],
    ids=["submit", "submit_each", "journal_prune"],
)
def test_ctrl_c_does_not_wait_for_the_lock_of_another_program(
    tracker: OrderTracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[OrderTracker], object],
    outcome: str,
) -> None:
    """What the call must still write is written when the journal is free again."""
    monkeypatch.setattr(Database, "busy_timeout_s", 600)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with (
            interrupted_after(lambda told: "another program holds" in told, monkeypatch),
            pytest.raises(errors.StoppedWaiting, match=outcome),
        ):
            call(tracker)
        other.execute("ROLLBACK")
    with Journal(tmp_path / "journal.sqlite") as another_kernel:
        for name in (f"submit {tracker.tenant}", "prune"):
            until(lambda: another_kernel.leases.take(name) is None)  # noqa: B023 - called at once


def test_a_suspended_process_is_named_and_how_long_it_is_waited_for(
    tracker: OrderTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not renew its lease, which then ends."""
    with Child(HOLDER, tmp_path / "journal.sqlite", f"submit {tracker.tenant}") as other:
        assert other.stdout.readline().strip() == "None"
        other.send_signal(signal.SIGSTOP)
        told = rf"process {other.pid} on .* \(suspended\), which is .*, at most 30 s\n"
        with (
            interrupted_after(lambda written: bool(re.search(told, written)), monkeypatch),
            pytest.raises(errors.StoppedWaiting, match="nothing was ordered"),
        ):
            tracker.submit("dataset:SWOT_PASS_012")
        other.kill()


def test_stop_names_the_journal_for_which_a_thread_waits(
    tracker: OrderTracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not REGARDS, which answers; and the thread may begin to wait for it later than stop()."""
    monkeypatch.setattr(Database, "busy_timeout_s", 600)
    asked, goes_on = threading.Event(), threading.Event()
    sync = tracker._sync
    assert sync is not None

    def ask() -> bool:
        asked.set()
        goes_on.wait()
        sync.open_session()
        return True

    monkeypatch.setattr(sync, "ask_round", ask)
    sync.ask_soon(0.0)
    assert asked.wait(60)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        stopping = in_thread(partial(tracker.stop, timeout_s=90))
        written = ""

        def says(text: str) -> bool:
            nonlocal written
            return text in (written := written + capsys.readouterr().out)

        until(lambda: says("stop() waits for REGARDS at"))
        goes_on.set()
        until(lambda: says("stop() waits for the journal, at most 90 s; another program holds"))
        other.execute("ROLLBACK")
    stopping.result(60)


#: A call with a time limit, what does not answer, and what the error says.
#: Where the limit passes before the request is sent, nothing was ordered, and the error says that.
LIMITED: list[tuple[Callable[[Any, float], object], Route, str]] = [
    (lambda t, s: t.wait(4444, timeout_s=2.4 + s), Route.ORDER, "no event of order 4444"),
    (lambda t, s: t.submit_each(TABLE, timeout_s=s), Route.CATALOGUE, "0 of 1 order made"),
    (lambda t, s: t.submit_each(TABLE, estimate=False, timeout_s=s), Route.APPLY, "not confirmed"),
]


@pytest.mark.parametrize("case", LIMITED, ids=[case[2] for case in LIMITED])
def test_a_call_keeps_its_time_limit(
    simulator: Simulator,
    tmp_path: Path,
    case: tuple[Callable[[Any, float], object], Route, str],
) -> None:
    """Also where REGARDS accepts the connection and does not answer: the error says so."""
    call, route, told = case
    told = f"after .* s, .*{told}.* {simulator.base_url}(:| does) no.? answer"
    with OrderTracker(client=client_of(simulator), journal=tmp_path / "journal.sqlite") as tracker:
        simulator.faults.add(Slow(route=route, delay_s=60, times=None))
        limit_tells(told, partial(call, tracker))
        simulator.stop()


def test_a_look_for_an_unknown_order_does_not_wait_for_long(
    simulator: Simulator, tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a KeyError that says that REGARDS did not answer; a wait without a limit says so."""
    monkeypatch.setattr(type(tracker._shared), "look_up_s", 0.3)
    slow = simulator.faults.add(Slow(route=Route.ORDERS, delay_s=60, times=None))
    with pytest.raises(KeyError, match=r"name 'typo': .* could not be asked .* no answer within"):
        tracker["typo"]
    simulator.faults.remove(slow)
    monkeypatch.undo()
    slow = simulator.faults.add(Slow(route=Route.ORDERS, delay_s=60))
    with (
        interrupted_after(lambda _: not simulator.faults.is_armed(slow), monkeypatch),
        pytest.raises(errors.StoppedWaiting, match="the name 'typo', so nothing was done; the sam"),
    ):
        tracker.download("typo")
    simulator.faults.add(Reply(route=Route.ORDER, status=503, times=None))
    with pytest.raises(errors.ServiceUnreachableError, match=r"^the order 77 is not known here"):
        tracker.wait(77)
    simulator.stop()


def test_the_next_part_keeps_its_time_limit(simulator: Simulator, tracker: OrderTracker) -> None:
    """Also where REGARDS does not answer the download."""
    tracker.wait(1, until="part", timeout_s=60)
    simulator.faults.add(Slow(route=Route.AVAILABLE, delay_s=60))
    with pytest.raises(errors.WaitTimeoutError, match=r"no byte of order 1 .* 0.5 s.*goes on"):
        next(tracker[1].iter_parts(timeout_s=0.5))
    simulator.stop()


def test_ctrl_c_while_a_view_is_made_is_one_line(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as the value of a cell: the tracker itself, or one of its orders."""
    tracker = OrderTracker(client=client_of(simulator), journal=tmp_path / "journal.sqlite")
    with tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        for name in ("show", "mimebundle"):
            monkeypatch.setattr(display, name, lambda *_: signal.raise_signal(signal.SIGINT))
        for shown in (tracker.show, tracker._ipython_display_, order._repr_mimebundle_):
            with pytest.raises(errors.StoppedWaiting, match="tracking continues"):
                shown()


def test_a_call_logs_in_itself_while_the_login_of_another_thread_hangs(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says since when the other login lasts; a time limit, and Ctrl-C, end that wait as any."""
    slow = simulator.faults.add(Slow(route=Route.TOKEN, delay_s=60))
    client = client_of(simulator)
    in_thread(client.orders)
    until(lambda: not simulator.faults.is_armed(slow))
    line = (
        f"waiting for the login to REGARDS at {simulator.base_url} that another thread began at "
        r"\d\d:\d\d:\d\d UTC, at most 5 s\n"
    )
    with (
        interrupted_after(lambda text: bool(re.search(line, text)), monkeypatch),
        pytest.raises(errors.StoppedWaiting, match="was stopped, and has changed nothing"),
    ):
        client.orders()
    with (
        limited(time.monotonic() + 0.1),
        pytest.raises(errors.ServiceUnreachableError, match="within the time limit"),
    ):
        client.orders()
    monkeypatch.setattr(client._tokens, "_hangs_after_s", 0.3)
    assert client.orders().empty
    simulator.stop()


def test_the_first_token_ends_all_logins(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two threads that log in, the one whose login hangs goes on with the token of the other."""
    client = client_of(simulator)
    monkeypatch.setattr(client._tokens, "_hangs_after_s", 0.1)
    late = simulator.faults.add(Slow(route=Route.TOKEN, delay_s=2))
    first = in_thread(client.orders)
    until(lambda: not simulator.faults.is_armed(late))
    hung = simulator.faults.add(Slow(route=Route.TOKEN, delay_s=600))
    second = in_thread(client.orders)
    until(lambda: not simulator.faults.is_armed(hung))
    assert second.result(60).empty
    assert first.result(60).empty
    simulator.stop()


@pytest.mark.parametrize("route", [Route.TOKEN, Route.AVAILABLE, Route.ZIP])
def test_a_download_waits_for_no_request_of_a_stopped_wait(
    simulator: Simulator, tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch, route: Route
) -> None:
    """Ctrl-C ends the request of wait(download=True), the login too; the next call makes its own.

    After a time limit the request goes on; a download ends it if no byte came for long.
    """
    tracker.wait(1, until="part", timeout_s=60)
    if route is Route.TOKEN:
        simulator.faults.add(ExpiredToken())
    slow = simulator.faults.add(Slow(route=route, delay_s=600))
    with (
        interrupted_after(lambda _: not simulator.faults.is_armed(slow), monkeypatch),
        pytest.raises(errors.StoppedWaiting, match=r"^stopped waiting.*; tracking continues$"),
    ):
        tracker.wait(1, download=True)
    assert tracker.download(1)
    tracker.wait(1, until="part", timeout_s=60)
    slow = simulator.faults.add(Slow(route=route, delay_s=600))

    async def cancel() -> None:
        task = asyncio.ensure_future(tracker.wait_async(1, download=True))
        await asyncio.to_thread(until, lambda: not simulator.faults.is_armed(slow))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    if route is Route.ZIP:
        asyncio.run(cancel())
        until(lambda: not tracker[1].state.downloading)
        slow = simulator.faults.add(Slow(route=route, delay_s=600))
    if route is not Route.TOKEN:
        with pytest.raises(errors.WaitTimeoutError):
            tracker.wait(1, download=True, timeout_s=1)
        assert not simulator.faults.is_armed(slow)
        monkeypatch.setattr(LastByte, "hangs_after_s", 0.1)
        assert len(tracker.download(1)) > 1
    simulator.stop()


def test_a_wait_tells_no_silence_of_a_request_that_was_stopped(
    simulator: Simulator,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first line after Ctrl-C told since when the request before it had got no byte."""
    tracker.wait(1, until="part", timeout_s=60)
    slow = [simulator.faults.add(Slow(route=Route.ZIP, delay_s=600)) for _ in range(2)]
    silence = r"no byte of order 1 from \S+ since [\d:]+ UTC"
    with (
        interrupted_after(lambda told: "no byte of order 1" in told, monkeypatch) as written,
        pytest.raises(errors.StoppedWaiting, match="downloading order 1"),
    ):
        tracker.wait(1, download=True)
    (before,) = set(re.findall(silence, written.getvalue()))
    capsys.readouterr()
    with pytest.raises(errors.WaitTimeoutError) as limit:
        tracker.wait(1, download=True, timeout_s=1)
    assert before not in capsys.readouterr().out + str(limit.value)
    until(lambda: not simulator.faults.is_armed(slow[1]))
    simulator.stop()


def test_a_cause_of_a_wait_that_comes_back_is_said_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it lasts it is said once, however often it is looked at."""
    with waits.user_call():
        for n_lines, gap_s in enumerate((600, 600, 0, 0)):
            monkeypatch.setattr(waits, "AGAIN_S", gap_s)
            waits.told("waiting for another kernel", math.inf)
            assert capsys.readouterr().out.count("\n") == (n_lines != 1)


def test_an_awaited_wait_for_an_unknown_order_can_be_stopped(
    simulator: Simulator, tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that REGARDS does not answer; the end of the loop does not wait for the request."""
    monkeypatch.setattr(LastByte, "told_after_s", 0.1)
    simulator.faults.add(Slow(route=Route.ORDER, delay_s=600, times=None))
    with (
        interrupted_after(lambda told: "no byte of the list of orders" in told, monkeypatch),
        pytest.raises(KeyboardInterrupt),
    ):
        asyncio.run(tracker.wait_async(4444))
    simulator.stop()


def test_pauses_of_one_request_are_told_together(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each alone is too short to be told; the request takes long."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.06)
    client = client_of(simulator)
    client.login()
    simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=3))
    client.orders()
    assert "HTTP 503, attempt 3 of 4" in capsys.readouterr().out


def test_all_attempts_of_a_request_have_one_time_limit(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line of each call names it; a server that is mute for so long is not asked again."""
    simulator.faults.add(Slow(route=Route.ORDERS, delay_s=60, times=2))
    client = client_of(simulator, connect_timeout_s=0.3, read_timeout_s=1.5)
    for _ in range(2):
        with pytest.raises(errors.ServiceUnreachableError, match=r"no byte for 1.\d+ s"):
            client.orders()
        line = rf"waiting for REGARDS at {simulator.base_url}, at most 1.\d+ s\n"
        assert re.fullmatch(line, capsys.readouterr().out)
    simulator.stop()


@pytest.mark.parametrize("call", ["login", "search", "doctor", "start"])
def test_a_mute_proxy_is_named(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line and the error name the proxy, and the variable that it is from."""
    at_most = r", at most [12](\.\d+)? s"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        proxy = f"127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        client = RegardsClient(
            "https://regards.example",
            tenant="t",
            username="john",
            password="s",
            connect_timeout_s=0.2,
            read_timeout_s=2.0,
        )
        tracker = OrderTracker(client=client, journal=tmp_path / "journal.sqlite")
        named = (
            f"REGARDS at https://regards.example through the proxy http://{proxy} (of HTTPS_PROXY)"
        )
        if call == "doctor":
            amqp = pika.URLParameters(f"amqp://{proxy}/?stack_timeout=0.5")
            OrderTracker(amqp, "q", journal=tmp_path / "q.sqlite").doctor()
            assert f"waiting for RabbitMQ at {proxy}, at most 0.5 s" in capsys.readouterr().out
            assert named.removeprefix("REGARDS at ") in str(tracker.doctor())
        else:
            with pytest.raises(errors.ServiceUnreachableError, match=re.escape(named[11:])):
                getattr(client if call in ("login", "search") else tracker, call)()
        assert re.search(re.escape(f"waiting for {named}") + at_most, capsys.readouterr().out)


def let_the_poll_wait(simulator: Simulator, tracker: OrderTracker) -> None:
    """Return once the thread that polls has sent a request that gets no answer."""
    simulator.order(OrderPlan(n_files=8, files_per_suborder=1), over_amqp=False)
    tracker.sync()
    slow = simulator.faults.add(Slow(route=Route.ORDERS, delay_s=60))
    until(lambda: not simulator.faults.is_armed(slow))


def test_a_call_does_not_wait_for_the_request_of_another_thread(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the poll waits for an answer, a call asks REGARDS itself; a wait names the poll's."""
    with OrderTracker(
        client=client_of(simulator), journal=tmp_path / "journal.sqlite", poll_s=0.01
    ) as tracker:
        let_the_poll_wait(simulator, tracker)
        simulator.order(OrderPlan(n_files=1), over_amqp=False)
        assert len(tracker.sync()) == 1
        monkeypatch.setattr(LastByte, "told_after_s", 0.1)
        silent = f"no byte of the list of orders from {simulator.base_url} since .* UTC"
        with pytest.raises(errors.WaitTimeoutError, match=silent):
            tracker.wait(timeout_s=0.2)
        simulator.stop()


def test_a_wait_asks_beside_a_poll_that_hangs(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer ends the request of the poll, which goes on and has not failed."""
    monkeypatch.setattr(LastByte, "hangs_after_s", 0.1)
    with OrderTracker(
        client=client_of(simulator), journal=tmp_path / "journal.sqlite", poll_s=0.01
    ) as tracker:
        let_the_poll_wait(simulator, tracker)
        tracker.wait(1, until="part", timeout_s=30)
        before = len(simulator.requests)
        until(lambda: len(simulator.requests) > before + 5)
        assert tracker.health.state is HealthState.POLLING
        assert not tracker.snapshot().background_errors


def test_a_failure_beside_a_request_that_hangs_is_no_byte_of_it(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells since when and for how long still; health tells the failure, and no stop as one."""
    monkeypatch.setattr(LastByte, "told_after_s", 0.0)
    with OrderTracker(
        client=client_of(simulator), journal=tmp_path / "journal.sqlite", poll_s=0.01
    ) as tracker:
        let_the_poll_wait(simulator, tracker)
        sync, (told,) = tracker._sync, tracker._shared.obstacles()
        assert sync is not None
        slow = simulator.faults.add(Slow(route=Route.ORDERS, delay_s=60))
        with ended_by(end := threading.Event()):
            stopped = in_thread(sync.ask_round)
        until(lambda: not simulator.faults.is_armed(slow))
        end.set()
        assert not stopped.result(60)
        assert tracker.health.state is HealthState.POLLING
        since = re.findall(r"since (\S+) UTC", told)
        until(lambda: [f"{datetime.now(UTC):%H:%M:%S}"] != since)
        busy = simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=None))
        sync.ask_round()
        assert tracker._shared.obstacles() == [told]
        assert tracker.health.state is HealthState.RECONNECTING
        assert "HTTP 503" in (tracker.health.reason or "")
        simulator.faults.remove(busy)
        sync.ask_round()
        assert tracker.health.state is HealthState.POLLING
        simulator.stop()


def test_a_second_request_does_not_shorten_a_silence(simulator: Simulator) -> None:
    """A request that is sent beside one that hangs is no byte; an answer to it is one."""
    client, last_byte = client_of(simulator), LastByte()
    client.login()

    def ask() -> int:
        with watched(last_byte):
            return len(client.orders())

    def hanging() -> int:
        slow = simulator.faults.add(Slow(route=Route.ORDERS, delay_s=600))
        in_thread(ask)
        until(lambda: not simulator.faults.is_armed(slow))
        return len(last_byte.waits)

    assert hanging() == 1
    until(lambda: last_byte.age_s > 1)
    assert hanging() == 2
    assert last_byte.age_s > 1
    silent_s = last_byte.age_s
    with watched(last_byte), limited(time.monotonic() + 600):
        client.orders()  # the answer is read in another thread
    assert last_byte.age_s < silent_s
    simulator.stop()


def test_after_ctrl_c_no_request_is_waited_for(simulator: Simulator, tmp_path: Path) -> None:
    """A block ends with the Ctrl-C itself, although a request of the background has no answer."""
    journal = tmp_path / "journal.sqlite"

    def press_in_block() -> None:
        with OrderTracker(client=client_of(simulator), journal=journal, poll_s=0.01) as tracker:
            let_the_poll_wait(simulator, tracker)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        press_in_block()
    simulator.stop()


def test_a_stop_waits_for_no_answer_of_regards(simulator: Simulator, tmp_path: Path) -> None:
    """It ends the request of the background."""
    tracker = OrderTracker(
        client=client_of(simulator), journal=tmp_path / "journal.sqlite", poll_s=0.01
    ).start()
    let_the_poll_wait(simulator, tracker)
    tracker.stop()
    with pytest.raises(errors.SettingsError, match="the tracker is stopped"):
        tracker.wait(1)
    simulator.stop()


def test_a_look_is_stopped_in_one_line(
    tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Ctrl-C comes between two requests, or where none is made."""
    client: Any = tracker.client

    def press(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(client, "_labels", press)
    with pytest.raises(errors.StoppedWaiting, match=r"^search\(\) was stopped, .*nothing$"):
        client.search("SWOT_PASS_012")
    monkeypatch.setattr(tracker._shared.journal, "position", press)
    for name in ("events", "orders", "files", "rejected"):
        with pytest.raises(errors.StoppedWaiting, match=f"^the look at {name} was stopped$"):
            getattr(tracker, name)
    monkeypatch.undo()


def press_in(_: object = None) -> Iterator[str]:
    """Press Ctrl-C when a call reads what it was given."""
    signal.raise_signal(signal.SIGINT)
    yield ""


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda t: t.wait(press_in()), "stopped waiting; tracking continues"),
        (lambda t: t.submit(press_in()), "submit.. was stopped: tracker.orders shows whether"),
        (lambda t: t.submit_each(TABLE, products=press_in), "stopped. The same call goes on"),
        (lambda t: t.download(press_in()), "stopped. The same call goes on"),
        (lambda t: t.cancel(press_in()), r"stopped: tracker.sync\(\) asks REGARDS"),
    ],
    ids=["wait", "submit", "submit_each", "download", "cancel"],
)
def test_a_call_is_stopped_in_one_line_at_its_beginning(
    tracker: OrderTracker, call: Callable[[OrderTracker], object], outcome: str
) -> None:
    """Ctrl-C comes before the call has asked REGARDS for anything."""
    with pytest.raises(errors.StoppedWaiting, match=outcome):
        call(tracker)


@pytest.mark.parametrize("is_written", [False, True], ids=["taken", "written"])
def test_a_stopped_submission_gives_its_lease_back(
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    is_written: bool,
) -> None:
    """Ctrl-C just after it was taken, or written to the journal: the next one does not wait."""
    leases = tracker._shared.journal.leases
    write = leases._database.write

    def pressed(*arguments: Any, **options: Any) -> None:
        patched.undo()
        write(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        if is_written:
            patched.setattr(leases._database, "write", pressed)
        else:
            patched.setattr(leases, "_renew_in_background", press_in().__next__)
        with pytest.raises(errors.StoppedWaiting, match="nothing was ordered"):
            tracker.submit("dataset:SWOT_PASS_012")
    until(lambda: leases.holder(f"submit {tracker.tenant}") is None)
    tracker.submit("dataset:SWOT_PASS_012")
    assert "waiting" not in capsys.readouterr().out


def test_an_export_is_stopped_in_one_line(
    tracker: OrderTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that it has written by then are complete."""
    folder = tmp_path / "export"
    folder.mkdir()
    pipe = folder / ".orders.csv.part"  # nobody reads it
    os.mkfifo(pipe)

    def open_other_end() -> None:
        # A signal that comes just before open() does not end it.
        with suppress(FileNotFoundError):
            os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))

    before = len(tracker.events)
    unblock = threading.Timer(10, open_other_end)
    unblock.start()
    with (
        interrupted_after(lambda _: (folder / "events.csv").exists(), monkeypatch),
        pytest.raises(errors.StoppedWaiting, match=r"export\(\) was stopped: each file .* call it"),
    ):
        tracker.export(folder, kind="csv")
    unblock.cancel()
    # the next round of REST sync may have told of more
    assert before <= len(pd.read_csv(folder / "events.csv")) <= len(tracker.events)


def test_a_start_keeps_its_time_limit(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """REGARDS that accepts a connection and does not answer: the client waits for longer."""
    simulator.faults.add(Slow(route=Route.TOKEN, delay_s=60))
    tracker = OrderTracker(client=client_of(simulator), journal=tmp_path / "journal.sqlite")
    with pytest.raises(errors.ServiceUnreachableError, match="no answer within the time limit"):
        tracker.start(timeout_s=0.3)
    line = f"waiting for REGARDS at {simulator.base_url}, at most 0\\.\\d+ s\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    simulator.stop()


def test_a_view_says_what_regards_is_asked_to_do(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """While an action has no answer; not that nothing moves."""
    slow = simulator.faults.add(Slow(route=Route.ACTION, delay_s=600))
    cancelling = in_thread(lambda: tracker.cancel(1))
    until(lambda: not simulator.faults.is_armed(slow))
    assert "asking REGARDS to cancel order 1" in tracker._repr_html_()
    simulator.stop()
    until(cancelling.done)
    assert "asking REGARDS to" not in tracker._repr_html_()


def test_a_request_that_is_repeated_says_why(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """An overloaded REGARDS names a time: the line has it, and the attempt."""
    busy = Reply(route=Route.ORDERS, status=503, headers=(("Retry-After", "1"),))
    simulator.faults.add(busy)
    assert client_of(simulator).orders().empty
    told = (
        rf"asking again at [\d:]+ UTC: REGARDS at {simulator.base_url}: HTTP 503, attempt 2 of 4\n"
    )
    assert re.fullmatch(told, capsys.readouterr().out)


def test_a_thread_runs_also_after_ctrl_c_in_the_wait_for_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second stop() waits for the rest of its time, and a start() begins no other one."""
    end = threading.Event()
    thread = begin("example", end.wait)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come at once
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            joined([thread], 30, str)
        assert not joined([thread], 0.05, str)
        with limited(time.monotonic() + 0.5):
            assert not joined([thread], 30, "stop() waits, {}".format)
        assert re.fullmatch(r"stop\(\) waits, at most 0.\d+ s\n", capsys.readouterr().out)
    finally:
        signal.signal(signal.SIGALRM, before)
        end.set()
    assert joined([thread], 30, str)
