"""Nobody waits for nothing: what a wait says, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
import sqlite3
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from children import Child
from conftest import client_of, interrupted_after, limit_tells, purge_queue, tracker_of, until
from tcp_proxy import TcpProxy

from regards_nb import OrderEvent, OrderTracker, errors
from regards_nb.client import LastByte
from regards_nb.consumer import Connection
from regards_nb.journal import Database, Journal, order_lease
from regards_nb.simulator import (
    LateSave,
    MissingEntry,
    OrderPlan,
    PrivateBroker,
    Reply,
    Route,
    Simulator,
    Slow,
    StagingError,
    StorageRefuses,
    html_page,
)
from regards_nb.tracker import (
    SHOWN_S,
    AutoDownload,
    BackgroundErrors,
    ChangeSignal,
    EventDispatcher,
)
from regards_nb.waits import in_thread

pytestmark = pytest.mark.simulator(with_broker=True)

ONE_FILE = OrderPlan(n_files=1)


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    with tracker_of(simulator, tmp_path) as tracker:
        yield tracker


def test_a_change_hides_no_cancellation() -> None:
    """The stop button cancels a wait also in the step of the event loop in which a change comes."""

    async def cell() -> bool:
        signal = ChangeSignal()
        waiting = asyncio.create_task(signal.wait_async(0, 60))
        await asyncio.sleep(0)
        signal.send()
        await asyncio.sleep(0)  # the change is on its way through the loop
        waiting.cancel()
        await asyncio.wait([waiting])
        return waiting.cancelled()

    assert asyncio.run(cell())


@pytest.mark.parametrize(
    "slow", [Slow(route=Route.ZIP, delay_s=4), Slow(route=Route.ZIP, stall_after_bytes=90_000)]
)
def test_a_download_of_which_no_byte_comes_is_named(
    slow: Slow,
    simulator: Simulator,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first byte and after some: view, wait and time limit say since when."""
    monkeypatch.setattr(LastByte, "told_after_s", 0.2)
    told = f"no byte of order 1 from {simulator.base_url} since .* UTC; .*after 120 s"
    number = simulator.order(OrderPlan(n_files=1, file_bytes=200_000))
    tracker.wait(number, timeout_s=60)
    simulator.faults.add(slow)
    tracker.download_soon(number)
    until(lambda: re.search(told, tracker._repr_html_()) is not None)
    with pytest.raises(errors.WaitTimeoutError, match=told) as limit:
        tracker.wait(number, download=True, timeout_s=0.3)
    assert re.search(r"order 1: verified 0/1, [\d.]+ k?B of 200\.0 kB", str(limit.value))
    assert re.search(told, capsys.readouterr().out)
    tracker.stop()
    assert "no byte" not in tracker._repr_html_()


RATE = b'{"messages": ["rate exceeded"]}'


@pytest.mark.parametrize(
    ("refusals", "told"),
    [
        (
            [Reply(route=Route.AVAILABLE, status=503, headers=(("Retry-After", "3"),))],
            r"asking again at [\d:]+ UTC: REGARDS at \S+: HTTP 503, attempt 2 of 4",
        ),
        (
            [Reply(route=Route.ZIP, status=429, body=RATE, headers=(("Retry-After", "3"),))],
            "asking again at .*: HTTP 429, rate exceeded, attempt 2 of 4",
        ),
        (
            [
                Reply(route=Route.ZIP, status=503, times=4),
                Reply(route=Route.FILE, status=429, body=RATE, times=9),
            ],
            r"asking again at [\d:]+ UTC: file_\d+.bin: GET \S+: HTTP 429 \(rate exceeded\)",
        ),
    ],
    ids=["503", "rate of a zip", "rate of a file"],
)
def test_a_download_that_asks_again_says_why(
    refusals: list[Reply],
    told: str,
    simulator: Simulator,
    tracker: OrderTracker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The view says why and when, and so does a call that waits for the end of that download."""
    number = simulator.order(ONE_FILE)
    tracker.wait(number, timeout_s=60)
    for each in refusals:
        simulator.faults.add(each)
    tracker.download_soon(number)
    until(lambda: re.search(told, tracker._repr_html_()))
    tracker.download(number)
    has_pause_of_3_s = len(refusals) == 1
    assert not has_pause_of_3_s or re.search(f"downloading; {told}", capsys.readouterr().out)


def test_a_download_that_waits_until_regards_has_saved_says_so(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """It sent the files before, and lists them still."""
    number = simulator.order(ONE_FILE)
    tracker.wait(number, timeout_s=60)
    simulator.faults.add(LateSave(delay_s=600))
    tracker.download(number)
    tracker.download_soon(number)
    until(lambda: "may not have saved yet that it sent them" in tracker._repr_html_())
    tracker.stop()


@pytest.mark.parametrize("source", ["catchup", "poll"])
def test_a_journal_that_cannot_be_read_for_a_while_ends_no_thread(
    source: str, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that asks REGARDS goes on, and no later wait raises what has healed."""
    alone: dict[str, Any] = {"amqp": None, "queue": None, "poll_s": 0.05}
    with tracker_of(simulator, tmp_path, **(alone if source == "poll" else {})) as tracker:
        number = simulator.order(OrderPlan(n_files=1))
        tracker.wait(number, timeout_s=60)
        journal = tracker._shared.journal
        position, failed = journal.position, Counter[str]()

        def fail(**_: Any) -> None:
            failed[threading.current_thread().name] += 1
            raise errors.JournalError("cannot read the journal")

        monkeypatch.setattr(journal, "position", fail)
        assert tracker._sync is not None
        tracker._sync.ask_soon(0.0)
        until(lambda: failed[f"regards-nb-{source}"] and failed["regards-nb-dispatch"])
        until(lambda: tracker._sync.failures)
        monkeypatch.setattr(journal, "position", position)
        later = simulator.order(OrderPlan(n_files=1))
        tracker.wait(later, timeout_s=60)
        assert "has ended" not in str(tracker.health.reason)


def test_sync_asks_again_where_a_message_came_meanwhile(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """The state after it is that of REGARDS: no message tells that an order has expired."""
    number = simulator.order(OrderPlan(n_files=4, files_per_suborder=1))
    tracker.wait(number, until="part", timeout_s=60)
    simulator.wait_available(number, files=2)
    simulator.flush()
    until(lambda: tracker[number].suborders_done == 2)
    simulator.expire(number)
    slow = simulator.faults.add(Slow(route=Route.ORDERS, delay_s=2))
    syncing = in_thread(tracker.sync)
    until(lambda: not simulator.faults.is_armed(slow))
    late = {"status": "SUBORDER_DONE", "orderId": number, "subOrderId": 99, "downloadLink": "x"}
    simulator.publish_raw(json.dumps(late).encode())
    until(lambda: tracker[number].suborders_done == 3)
    assert not syncing.done(), "REGARDS has not answered yet"
    syncing.result(60)
    assert tracker[number].status == "EXPIRED"


# -- names that mean no order


def test_a_wait_for_an_unknown_order_is_an_error(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error, and seconds taken for a number, are told at once; with near names."""
    tracker.submit("dataset:SWOT_CYCLE_007", correlation_id="swath-a", label="first pass")
    with pytest.raises(errors.OrderNotFoundError, match="'swat-a'.*Did you mean 'swath-a'"):
        tracker.wait("swat-a", timeout_s=30)
    with pytest.raises(errors.OrderNotFoundError, match="number 60.*timeout_s=60"):
        tracker.wait(60, timeout_s=30)
    told = capsys.readouterr().out
    assert "no order is called 'swat-a' so far (Did you mean 'swath-a'?)" in told
    assert "No event of these orders so far" in told
    assert "No orders" not in told
    assert "running" not in told
    tracker.submit("dataset:FORBIDDEN", correlation_id="FORBIDDEN", label="Summer 2026")
    near = {
        "NOPE": "tracker.orders lists all",
        "SWATH-A": "'swath-a'",
        "Frist Pass": "'first pass'",
        "sumer 2026": "'Summer 2026'",
    }
    for name, words in near.items():
        with pytest.raises(errors.OrderNotFoundError, match=re.escape(words)):
            tracker.wait(name, timeout_s=30)
    simulator.faults.add(replace(html_page(Route.ORDERS), times=None))
    told = "^the order 'NOPE' is not known here, and REGARDS could not be asked: .*page"
    with pytest.raises(errors.UnexpectedAnswerError, match=told):
        tracker.wait("NOPE", timeout_s=30)


@pytest.mark.parametrize("has_messages", [False, True])
@pytest.mark.parametrize("label", [None, "made elsewhere"])
def test_a_wait_for_a_name_that_rest_knows_is_none(
    label: str | None,
    simulator: Simulator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    has_messages: bool,
) -> None:
    """An order that only REST knows, by its number or label, is looked up, and waited for."""
    number = simulator.order(OrderPlan(n_files=1, label=label))
    simulator.wait_for(number, "DONE")
    simulator.flush()
    if not has_messages:
        purge_queue(simulator)
    with tracker_of(simulator, tmp_path) as tracker:
        assert list(tracker.wait(label or number, timeout_s=30)["status"]) == ["DONE"]
        assert "1 order has ended" not in capsys.readouterr().out
    if not has_messages:
        tracker = tracker_of(simulator, tmp_path, journal=tmp_path / "other.sqlite")
        assert tracker[label or number].order_id == number


def test_a_tracker_that_is_not_started_does_not_wait(simulator: Simulator, tmp_path: Path) -> None:
    """No event can arrive, so a wait would have no end."""
    tracker = tracker_of(simulator, tmp_path)
    refused = r"not started.*tracker\.start\(\)"
    with pytest.raises(errors.SettingsError, match=refused):
        tracker.wait()
    tracker.submit("dataset:SWOT_CYCLE_007", correlation_id="c")
    for names in (("c",), ()):
        with pytest.raises(errors.SettingsError, match=refused):
            tracker.wait(*names, timeout_s=30)


def test_a_label_names_an_order(tracker: OrderTracker) -> None:
    """Where only one order bears it; otherwise the text names them."""
    one = tracker.submit("dataset:SWOT_PASS_012", correlation_id="a", label="pass")
    assert tracker["pass"].key == one.key
    assert tracker[str(one.order_id)].key == one.key
    tracker.submit("dataset:SWOT_PASS_012", correlation_id="b", label="pass")
    for use in (tracker.__getitem__, tracker.wait, tracker.pause):
        with pytest.raises(errors.SettingsError, match="2 orders.*'pass'.*'a' .*'b'"):
            use("pass")
    assert not tracker.snapshot().background_errors, "the call has told it"
    # No view was opened that asks for the label again.
    tracker.wait(timeout_s=60)


def test_a_label_of_several_orders_is_told_by_one_call(
    simulator: Simulator, tmp_path: Path
) -> None:
    """REGARDS tells during a wait that two orders bear it; no later call raises that again."""
    numbers = [simulator.order(OrderPlan(n_files=1, label="two")) for _ in range(2)]
    for number in numbers:
        simulator.wait_for(number, "DONE")
    simulator.flush()
    purge_queue(simulator)
    with tracker_of(simulator, tmp_path) as tracker:
        with pytest.raises(errors.SettingsError, match="2 orders bear the label 'two'"):
            tracker.wait("two", timeout_s=30)
        assert not tracker.snapshot().background_errors
        assert len(tracker.wait(*numbers, timeout_s=30)) == 2


def test_a_stopped_tracker_says_so(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After stop() a wait is refused at once; what REST alone can do still works."""
    with tracker_of(simulator, tmp_path) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=60)
    stopped = re.escape("the tracker is stopped; call start() again")
    other = tracker.submit("dataset:SWOT_PASS_012")
    for call in (other.wait, lambda: list(other.iter_parts())):
        with pytest.raises(errors.SettingsError, match=f"^{stopped}"):
            call()
    assert order.wait().finished, "nothing is waited for"
    assert len(order.download()) == 3
    simulator.wait_for(other.order_id or 0, "DONE")
    assert not tracker.sync()
    assert other.finished
    tracker.pause(tracker.orders.head(0))
    with tracker.start():
        other.wait(timeout_s=60)
    in_notebook = errors.SettingsError("x")._render_traceback_()
    assert in_notebook == ["SettingsError: x"], "no traceback"


@pytest.mark.usefixtures("_says_at_once")
def test_a_stop_says_which_callback_it_waits_for(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line after a second, an error at the limit or Ctrl-C; the next start calls it again."""
    began, may_end = threading.Event(), threading.Event()

    def slow(_event: OrderEvent) -> None:
        began.set()
        may_end.wait(60)

    tracker = tracker_of(simulator, tmp_path)
    tracker.on("GRANTED", slow)
    tracker.start()
    simulator.order(ONE_FILE)
    until(began.is_set)
    told = "callback slow on GRANTED of order 1"
    again = "still runs; the next start\\(\\) makes the calls left out$"
    with (
        interrupted_after(lambda text: told in text, pytest.MonkeyPatch()),
        pytest.raises(errors.StoppedWaiting, match=rf"^stop\(\) was stopped: {told} {again}"),
    ):
        tracker.stop()
    began.clear()
    tracker.start()
    until(began.is_set)

    def said_by_stop() -> bool:
        with pytest.raises(errors.TrackingError, match=f"^{told} did not .* 0.3 s, and {again}"):
            tracker.stop(timeout_s=0.3)
        return f"stop() waits until {told} has ended, at most 0." in capsys.readouterr().out

    until(said_by_stop)
    may_end.set()
    began.clear()
    with tracker:
        until(began.is_set)


def test_a_slow_callback_is_named(
    simulator: Simulator,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """View, health and the time limit of a wait say which call holds up how many, until it ends."""
    may_end = threading.Event()

    def slow(_event: OrderEvent) -> None:
        may_end.wait(60)

    tracker.stop()
    monkeypatch.setattr(EventDispatcher, "slow_s", 0.1)
    tracker.on(None, slow)
    tracker.start()
    number = simulator.order(ONE_FILE)
    told = r"callback slow on GRANTED of order 1 runs since \d+ s, and holds up [1-9] other calls?"
    try:
        until(lambda: re.search(told, "".join(tracker.snapshot().background_errors)))
        assert re.search(told, tracker.health.reason or "")
        assert re.search(told, tracker._repr_html_())
        tracker.wait(number, timeout_s=60)
        with pytest.raises(errors.WaitTimeoutError, match=told):
            tracker.wait(1000, timeout_s=0.1)
    finally:
        may_end.set()
    until(lambda: not tracker.snapshot().background_errors)


def test_without_rest_a_stopped_tracker_orders_nothing(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The answer of REGARDS is a message, and no message arrives."""
    tracker = OrderTracker(
        simulator.amqp_url,
        simulator.queue,
        tenant=simulator.tenant,
        journal=tmp_path / "journal.sqlite",
    )
    with pytest.raises(errors.SettingsError, match=r"not started.*call tracker\.start\(\)"):
        tracker.submit("dataset:X", user=simulator.username, cart="include")
    with tracker:
        pass
    with pytest.raises(errors.SettingsError, match=r"the tracker is stopped; call start\(\) again"):
        tracker.submit("dataset:X", user=simulator.username, cart="include")


def test_a_demo_that_has_ended_says_so(broker: PrivateBroker, tmp_path: Path) -> None:
    """Its archive ends with it: nothing is asked of a server that is gone."""
    with OrderTracker.demo(broker=broker, workspace=tmp_path, suborder_pause_s=0.01) as tracker:
        order = tracker.submit("dataset:SWOT_CYCLE_007")
    ended = re.escape("this demo has ended with stop(): OrderTracker.demo() starts a new one")
    calls = [
        tracker.start,
        tracker.sync,
        lambda: tracker.submit("dataset:SWOT_PASS_012"),
        lambda: tracker.submit("dataset:SWOT_PASS_013").wait(),
        order.download,
        order.wait,
        lambda: tracker.wait(order, download=True),
        order.cancel,
        tracker.client.search,  # type: ignore[union-attr]
    ]
    for call in calls:
        with pytest.raises(errors.SettingsError, match=ended):
            call()
    assert "has ended" in tracker._repr_html_()


def test_a_wait_for_nothing_says_so(
    tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any order, and where all have ended, wait() tells which of both it is."""
    assert len(tracker.wait()) == 0
    assert "no orders so far" in capsys.readouterr().out
    for name in "ab":
        tracker.submit("dataset:FORBIDDEN", correlation_id=name)
    assert len(tracker.wait()) == 0
    told = capsys.readouterr().out
    assert "all 2 orders are finished" in told
    assert "No orders" not in told
    assert tracker.download() == []
    # No message has come that would tell of others.
    assert capsys.readouterr().out == (
        "nothing to download: no order has files that wait for it; tracker.sync() asks REGARDS for "
        "orders made elsewhere\n"
    )
    none = tracker.orders.query("errors > 99")
    for call, verb in ((tracker.download, "download"), (tracker.retry, "retry")):
        assert call(none) == []
        assert capsys.readouterr().out == f"nothing to {verb}: no order is selected\n"


# -- errors in the background


def test_errors_that_were_told_vanish_from_the_views(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the end of a call the view shows them, later views do not; the next wait raises them."""

    def broken(_event: OrderEvent) -> None:
        raise ValueError("my mistake")

    tracker.on("DONE", broken)
    number = simulator.order(ONE_FILE)
    until(lambda: tracker.snapshot().background_errors)
    tracker.download(number)
    assert "my mistake" in capsys.readouterr().out
    assert not tracker.snapshot().background_errors
    with pytest.raises(errors.TrackingError, match="my mistake"):
        tracker.wait(number)
    another = simulator.order(ONE_FILE)
    until(lambda: tracker.snapshot().background_errors)
    tracker.off(broken)
    assert not tracker.snapshot().background_errors
    tracker.wait(another, download=True, timeout_s=60)


def test_errors_that_nobody_asks_for_leave_the_views_later() -> None:
    """A live view shows an error for ten minutes; the next wait still raises it."""
    now_s = 0.0
    kept = BackgroundErrors(lambda: None, clock=lambda: now_s)
    kept.record("callback f on DONE", ValueError("my mistake"))
    kept.note("the journal was mended")
    now_s = SHOWN_S - 1
    assert [text.partition(":")[0] for text in kept.shown] == [
        "callback f on DONE", "the journal was mended"
    ]  # fmt: skip
    now_s = SHOWN_S + 1
    assert kept.shown == ()
    with pytest.raises(errors.TrackingError, match="my mistake"):
        kept.raise_new()


def test_missing_files_are_told_once(simulator: Simulator, tmp_path: Path) -> None:
    """Automatic attempts that find nothing new are no news for the next wait."""
    lost = StagingError(name="file_00001.bin", times=None)
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        assert tracker._blocking.automatic is not None
        tracker._blocking.automatic.first_retry_s = 0.05
        number = simulator.order(OrderPlan(n_files=2, faults=[lost]))
        with pytest.raises(errors.TrackingError, match="file_00001"):
            tracker.wait(number, timeout_s=60)
        until(lambda: sum("/orders/files/" in seen.path for seen in simulator.requests) >= 4)
        until(lambda: not tracker._shared.downloads)
        tracker.wait(simulator.order(ONE_FILE), timeout_s=60)


def test_an_automatic_download_that_failed_does_not_look_done(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Also after its error was raised the view says that the order waits, until it is here."""
    away = simulator.faults.add(Reply(route=Route.AVAILABLE, status=503, times=None))
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        number = simulator.order(ONE_FILE)
        with pytest.raises(errors.TrackingError, match="HTTP 503"):
            tracker.wait(number, timeout_s=60)
        tracker.wait(number, timeout_s=60)
        # between two attempts
        until(lambda: "REGARDS waits for you: 1 to download" in tracker._repr_html_())
        simulator.faults.remove(away)
        assert len(tracker.download(number)) == 1
        assert "waits for you:" not in tracker._repr_html_()


def test_an_error_in_the_background_that_has_healed_ends_no_call(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """A maintenance page was shown instead of REGARDS; a call asks again before it says so."""
    page = Reply(
        route=Route.ORDERS, status=200, body=b"<html>", content_type="text/html", times=None
    )
    simulator.faults.add(page)
    number = simulator.order(ONE_FILE)
    assert tracker._sync is not None
    tracker._sync.ask_soon(0.0)
    until(lambda: "asking for unfinished orders" in tracker._repr_html_())
    simulator.wait_for(number, "DONE")
    with pytest.raises(errors.TrackingError, match="asking for unfinished orders.*HTTP 200"):
        tracker.wait(number, timeout_s=60)
    tracker._sync.error = ""
    tracker._sync.ask_round()
    simulator.faults.remove(page)
    tracker.download(number)  # then no round asks for anything any more
    tracker.wait(number, timeout_s=60)


def test_errors_of_other_orders_do_not_end_a_wait(simulator: Simulator, tmp_path: Path) -> None:
    """A missing file and a broken callback are told once, when the wait is over."""
    lost = MissingEntry(name="file_00000.bin"), StorageRefuses(name="file_00000.bin", times=None)

    def broken(event: OrderEvent) -> None:
        # not for the second order: its callback may be called after the wait has told the errors
        if event.order_id == 1:
            raise KeyError(event.order_id)

    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        tracker.on("DONE", broken)
        first = simulator.order(OrderPlan(n_files=2, faults=lost))
        until(lambda: len(tracker.snapshot().background_errors) >= 2)
        shown = tracker.snapshot().background_errors
        assert f"callback broken on DONE: KeyError: {first} (test_waiting.py, line " in str(shown)
        assert "order 1: order 1" not in str(shown)
        number = simulator.order(OrderPlan(n_files=6, files_per_suborder=1))
        with pytest.raises(errors.TrackingError) as caught:
            tracker.wait(number, timeout_s=60)
        assert tracker[number].status == "DONE"
        assert isinstance(caught.value, ExceptionGroup)
        causes = {type(each.__cause__): each for each in caught.value.exceptions}
        assert set(causes) == {KeyError, errors.IncompleteDownloadError}
        # IPython prints the whole traceback of each: only what the user wrote is left in it.
        frames = traceback.extract_tb(causes[KeyError].__cause__.__traceback__)  # type: ignore[union-attr]
        assert [frame.name for frame in frames] == ["broken"]
        cause = causes[errors.IncompleteDownloadError].__cause__
        assert cause is not None
        assert cause.__traceback__ is None
        assert not tracker.snapshot().background_errors, "what was told is not shown again"
        tracker.wait(number, timeout_s=60)


def test_an_error_that_a_wait_has_shown_is_not_shown_again(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Also where that wait has ended with a time limit; the next one that ends raises it."""

    def fails(_event: OrderEvent) -> None:
        raise ValueError("mine")

    tracker.on("DONE", fails)
    done, slow = simulator.order(ONE_FILE), simulator.order(OrderPlan(suborder_pause_s=3600))
    until(lambda: tracker.snapshot().background_errors and len(tracker.orders) == 2)
    with pytest.raises(errors.WaitTimeoutError):
        tracker.wait(slow, timeout_s=0.1)
    assert not tracker.snapshot().background_errors
    with pytest.raises(errors.TrackingError, match="mine"):
        tracker.wait(done, timeout_s=60)


def test_a_failure_is_not_told_once_a_call_has_fetched_the_files(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The automatic download looks later whether the missing file is here, and fetches nothing."""
    refused = simulator.faults.add(StorageRefuses(name="file_00000.bin", times=None))
    missing = (MissingEntry(name="file_00000.bin"),)
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        automatic = tracker._blocking.automatic
        assert automatic is not None
        automatic.first_retry_s = 600.0
        number = simulator.order(OrderPlan(n_files=2, faults=missing))
        until(lambda: automatic.failure(tracker._shared.states()))
        simulator.faults.remove(refused)
        tracker.download(number)
        assert not automatic.failure(tracker._shared.states())
        n_lists = _lists_of_files(simulator)
        automatic.try_now()
        key = tracker[number].key
        until(lambda: not automatic.tries_of(key).error)
        assert _lists_of_files(simulator) == n_lists


def _lists_of_files(simulator: Simulator) -> int:
    return sum(seen.path.endswith("/files/available") for seen in simulator.requests)


def test_an_order_whose_download_failed_in_part_does_not_look_done(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its row, wait(download=True) and download() say what is missing and what tries again."""
    refused = simulator.faults.add(StorageRefuses(name="file_00000.bin", times=None))
    missing = (MissingEntry(name="file_00000.bin"),)
    number = simulator.order(OrderPlan(n_files=2, faults=missing))
    with pytest.raises(errors.TrackingError, match="1 of 2 files"):
        tracker.wait(number, download=True, timeout_s=60)
    again = f"tracker.download({number}) tries "
    told = f"1 of 2 files of order {number} could not be downloaded: {again}again"
    assert f"{again}the missing files again" in tracker._repr_html_()
    assert "1 incomplete" in tracker._repr_html_()
    for call in (lambda: tracker.wait(number, download=True, timeout_s=60), tracker.download):
        capsys.readouterr()
        call()
        assert told in capsys.readouterr().out
    simulator.faults.remove(refused)
    assert len(tracker.download(number)) == 2
    assert "incomplete" not in tracker._repr_html_().rpartition("</style>")[2]


def test_a_second_wait_says_why_files_are_not_downloaded(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of an automatic download is raised once, and its reason is said by each wait."""
    refused = simulator.faults.add(Reply(route=Route.AVAILABLE, status=403, times=None))
    told = r"finished; 1 to download: .*the download of order 1 failed: .*your role"
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        simulator.order(ONE_FILE)
        until(lambda: tracker.snapshot().background_errors)
        with pytest.raises(errors.TrackingError, match="downloading order 1"):
            tracker.wait(timeout_s=60)
        for _ in range(2):
            capsys.readouterr()
            tracker.wait(timeout_s=60)
            assert re.search(told, capsys.readouterr().out)
        tracker.wait(1, timeout_s=60)
        assert "the download of order 1 failed: " in capsys.readouterr().out
        shown = tracker._repr_html_()
        assert "the download of order 1 failed: " in shown
        assert "auto_download=True" not in shown
        simulator.faults.remove(refused)
        tracker.download()
        tracker.wait()
        assert "finished\n" in capsys.readouterr().out


def test_a_wait_ends_when_the_files_are_there(simulator: Simulator, tmp_path: Path) -> None:
    """With auto_download: the last part is fetched after DONE, and a stop() ends nothing."""
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        for n_files in (12, 10, 8):
            plan = OrderPlan(n_files=n_files, files_per_suborder=2, file_bytes=200_000)
            orders = tracker.wait(simulator.order(plan), timeout_s=60)
            assert orders["downloaded_files"].item() == n_files


def test_an_error_that_was_mended_is_not_told(simulator: Simulator, tmp_path: Path) -> None:
    """A download that failed first and succeeded later is no error at the end of a wait."""
    workspace = tmp_path / "orders"
    workspace.write_text("a file where the folder should be")
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        number = simulator.order(ONE_FILE)
        until(lambda: tracker.snapshot().background_errors)
        workspace.unlink()
        until(lambda: tracker.orders["downloaded_files"].item() == 1)
        until(lambda: not tracker.snapshot().background_errors)
        tracker.wait(number, timeout_s=60)


def test_a_download_that_no_retry_can_mend_ends_the_wait(
    simulator: Simulator, tmp_path: Path, tracker: OrderTracker
) -> None:
    """It raises what to do; once that is done, the next call fetches the files."""
    (tmp_path / "orders").write_text("a file where the folder should be")
    number = simulator.order(ONE_FILE)
    with pytest.raises(errors.TrackingError, match="Choose another place with workspace="):
        tracker.wait(number, download=True, timeout_s=60)
    (tmp_path / "orders").unlink()
    assert len(tracker.download(number)) == 1
    tracker.wait(number, timeout_s=60)


# -- ends without a message


def test_without_rest_the_unknown_end_is_said(simulator: Simulator, tmp_path: Path) -> None:
    """Orders that expire or are cancelled on the web page send no message: only REST tells."""
    simulator.order(OrderPlan(n_files=4, files_per_suborder=1), correlation_id="c")
    tracker = OrderTracker(
        simulator.amqp_url, simulator.queue, journal=tmp_path / "j.sqlite", silence_s=0.5
    )
    silent = "no message came for a while. .* expires.*client=RegardsClient"
    with tracker:
        until(lambda: tracker.orders["suborders_done"].eq(2).any())
        limit_tells(silent, lambda limit_s: tracker.wait("c", timeout_s=limit_s))


def test_a_time_limit_tells_that_the_broker_is_away(simulator: Simulator, tmp_path: Path) -> None:
    """Otherwise the order would seem to be slow."""
    simulator.order(OrderPlan(n_files=4, files_per_suborder=1), correlation_id="c")
    port = urlsplit(simulator.amqp_url).port
    assert port is not None
    with TcpProxy(("127.0.0.1", port)) as proxy:
        url = proxy.url(simulator.amqp_url)
        tracker = OrderTracker(url, simulator.queue, journal=tmp_path / "j.sqlite").start()
        until(lambda: tracker.orders["suborders_done"].eq(2).any())
        port = proxy.port
    silent = r"1 of 1 order is still running; no event of order 1( \(.*\))? for \d+ s"
    told = rf"{silent}.*amqp://.*:{port}/"
    limit_tells(told, lambda limit_s: tracker.wait("c", timeout_s=limit_s))
    tracker.stop()


def test_a_download_while_the_broker_is_away_asks_regards(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No message tells what is ready and what has ended, but REGARDS does."""
    port = urlsplit(simulator.amqp_url).port
    assert port is not None
    with TcpProxy(("127.0.0.1", port)) as proxy:
        tracker = tracker_of(simulator, tmp_path, amqp=proxy.url(simulator.amqp_url)).start()
        number = simulator.order(OrderPlan(n_files=3, files_per_suborder=1))
        until(lambda: tracker.orders["suborders_done"].eq(2).any())
    until(lambda: tracker.health.state == "RECONNECTING")
    assert len(tracker.download()) == 2
    tracker.wait(number, timeout_s=60)
    assert len(tracker.download()) == 3
    tracker.wait()
    assert "the only order is finished; no event has arrived since" in capsys.readouterr().out
    with pytest.raises(errors.OrderNotFoundError, match="label 'typo'"):
        tracker.wait("typo", timeout_s=60)
    elsewhere = simulator.order(OrderPlan(n_files=1, label="made elsewhere"))
    simulator.wait_for(elsewhere, "DONE")
    tracker.wait("made elsewhere", timeout_s=60, download=True)
    busy = simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=None))
    with pytest.raises(errors.ServiceUnreachableError, match=r"order 'other' .*not be asked.*503"):
        tracker.wait("other", timeout_s=60)
    simulator.faults.remove(busy)
    tracker.stop()
    with tracker_of(simulator, tmp_path) as back:
        # The messages come now, and their files are here.
        until(lambda: back[number].suborders_done == 3 and back.health.queue_depth == 0)
        until(lambda: not back.orders["waits_for_download"].any())


def test_the_time_limit_of_a_table_tells_that_the_broker_is_away(
    simulator: Simulator, tmp_path: Path
) -> None:
    """REGARDS is asked meanwhile, and the orders go on more slowly."""
    port = urlsplit(simulator.amqp_url).port
    assert port is not None
    with TcpProxy(("127.0.0.1", port)) as proxy:
        tracker = tracker_of(simulator, tmp_path, amqp=proxy.url(simulator.amqp_url)).start()
    until(lambda: tracker.health.state == "RECONNECTING" and tracker.health.reason)
    assert tracker.client is not None
    table = tracker.client.search(dataset="SWOT_CYCLE_007", limit=2)
    with pytest.raises(errors.WaitTimeoutError, match=r"no event has arrived since \d.*amqp://"):
        tracker.submit_each(table, timeout_s=0)
    tracker.stop()


@pytest.mark.usefixtures("_says_at_once")
def test_a_journal_that_another_program_holds_is_named(
    simulator: Simulator,
    tracker: OrderTracker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By each call that waits for a message, and by one that has nothing to wait for."""
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        number = simulator.order(ONE_FILE)
        until(tracker._shared.journal.obstacle)
        told = "another program holds the journal sqlite:"
        for call in (tracker.wait, tracker.download):
            assert len(call()) == 0
            assert told in capsys.readouterr().out
        # The name may stand in a message that is not written yet.
        for name, limit_s in ((number, 0.2), ("elsewhere", 2.5)):
            with pytest.raises(errors.WaitTimeoutError, match=told):
                tracker.wait(name, timeout_s=limit_s)
        with pytest.raises(errors.TrackingError, match=f"within 0.2 s; {told}.*RabbitMQ keeps"):
            tracker.stop(timeout_s=0.2)
        other.rollback()
    tracker.start()
    assert len(tracker.wait(number, timeout_s=30)) == 1


@pytest.mark.usefixtures("_says_at_once")
def test_one_time_limit_holds_for_a_call_while_another_program_holds_the_journal(
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For wait(), stop() and start(), in whichever thread they wait for it, and they name it."""
    monkeypatch.setattr(Database, "busy_timeout_s", 600)
    tracker = tracker_of(simulator, tmp_path)
    tracker.on("GRANTED", bool)
    tracker.start()
    told = "another program holds the journal sqlite:"
    number = simulator.order(ONE_FILE)
    assert len(tracker.wait(number, timeout_s=30)) == 1
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.WaitTimeoutError, match=f"after 2.5 s, .*{told}"):
            tracker.wait(simulator.order(ONE_FILE), timeout_s=2.5)
        capsys.readouterr()

        def said_by_stop() -> bool:
            with pytest.raises(errors.TrackingError, match=f"within 0.5 s; {told}.*RabbitMQ keeps"):
                tracker.stop(timeout_s=0.5)
            return f"at most 0.5 s; {told}" in capsys.readouterr().out

        until(said_by_stop)
        other.rollback()
        until(lambda: len(tracker.events) > 4)
        other.execute("BEGIN IMMEDIATE")
        capsys.readouterr()
        with pytest.raises(errors.JournalError, match=f"within 1.3 s: {told}"):
            tracker.start(timeout_s=1.3)
        assert told in capsys.readouterr().out


@pytest.mark.usefixtures("_says_at_once")
def test_a_start_waits_while_another_program_holds_the_journal(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its time limit, although each try to write has a shorter one; health says why."""
    monkeypatch.setattr(Database, "busy_timeout_s", 0.1)
    tracker = tracker_of(simulator, tmp_path)
    with (
        closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        other.execute("BEGIN IMMEDIATE")
        started = thread.submit(tracker.start, timeout_s=120)
        until(lambda: "another program holds" in (tracker.health.reason or ""))
        until(lambda: "No message is acknowledged" in (tracker.health.reason or ""))
        other.rollback()
        started.result()
    tracker.stop()


def test_two_trackers_with_two_journals_are_warned_of(simulator: Simulator, tmp_path: Path) -> None:
    """RabbitMQ shares the messages of one queue out, so each journal would miss some."""
    (tmp_path / "two").mkdir()
    with tracker_of(simulator, tmp_path) as one:
        assert not one.snapshot().background_errors
        two = tracker_of(simulator, tmp_path / "two", client=None)
        with pytest.warns(UserWarning, match="1 other consumer reads queue.*another journal"):
            two.start()
        with two:
            until(lambda: "other consumer" in str(one.snapshot().background_errors))
            until(lambda: "other consumer" in str(two.snapshot().background_errors))
            # without REST it cannot know whether there is one
            told = r"order 1 .*1 other consumer reads"
            limit_tells(told, lambda limit_s: two.wait(1, timeout_s=limit_s))
            number = simulator.order(OrderPlan(n_files=3, files_per_suborder=1))
            told = "1 other consumer reads queue"
            limit_tells(told, lambda limit_s: one.wait(number, timeout_s=limit_s))
    with tracker_of(simulator, tmp_path), tracker_of(simulator, tmp_path):
        pass  # one journal: no warning


CHANGES_ITS_JOURNAL = """
import sys
from regards_nb import OrderTracker
amqp, queue, *journals = sys.argv[1:]
for journal in journals:
    with OrderTracker(amqp, queue, journal=journal):
        print("consuming", flush=True)
        sys.stdin.readline()
"""


def test_a_kernel_that_takes_the_same_journal_after_another_one_is_no_other_consumer(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two answers of RabbitMQ: the count of consumers is the same."""
    monkeypatch.setattr(Connection, "depth_period_s", 600)
    journals = tmp_path / "other.sqlite", tmp_path / "journal.sqlite"
    with Child(CHANGES_ITS_JOURNAL, simulator.amqp_url, simulator.queue, *journals) as other:
        other.stdout.readline()
        tracker = tracker_of(simulator, tmp_path)
        with pytest.warns(UserWarning, match="1 other consumer reads queue.*another journal"):
            tracker.start()
        with tracker:
            drawn: dict[int, str] = {}  # a view draws a version once

            def is_warned() -> bool:
                errors = tracker.snapshot().background_errors
                return "other consumer" in drawn.setdefault(tracker.version, str(errors))

            assert is_warned()
            other.tell()
            other.stdout.readline()
            # The count stays 1, unless RabbitMQ was asked just between the two.
            until(lambda: not is_warned())


def test_a_dropped_tracker_with_the_same_journal_is_no_other_consumer(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A cell that is run again drops its tracker: RabbitMQ may still count the one before."""
    before = [tracker_of(simulator, tmp_path).start()]
    counted: list[int] = []

    def has_counted_both() -> bool:
        connection = again._consumer._run._connection  # type: ignore[union-attr]
        return connection is not None and connection._consumers_before == 0

    def token() -> str:
        # start() warns after this login
        until(has_counted_both)
        counted.append(again.health.other_consumers)
        before.clear()
        gc.collect()
        return simulator.foreign_token

    again = tracker_of(
        simulator, tmp_path, client=client_of(simulator, username=None, password=None, token=token)
    )
    with again:  # a warning is an error
        assert counted == [1]
        assert "other consumer" not in str(again.snapshot().background_errors)


def test_the_former_connection_of_a_tracker_is_no_other_consumer(
    simulator: Simulator, tmp_path: Path
) -> None:
    """RabbitMQ may count it until its heartbeat ends. It counts consumers only."""
    tracker = tracker_of(simulator, tmp_path)
    with tracker:
        assert not tracker.health.other_consumers
    with pika.BlockingConnection(pika.URLParameters(simulator.amqp_url)) as former:
        former.channel().basic_consume(simulator.queue, lambda *_: None)
        with tracker:  # a warning is an error
            until(lambda: tracker.health.other_consumers)
            assert "other consumer" not in str(tracker.snapshot().background_errors)


def test_the_time_limit_names_why_the_files_are_not_there(
    tracker: OrderTracker, simulator: Simulator
) -> None:
    """The reason of the last attempt, that there will be another one, and how to try at once."""
    simulator.faults.add(Reply(route=Route.AVAILABLE, status=403, times=None))
    simulator.order(ONE_FILE)
    told = r"download of order 1 failed: .*; the next try comes at \d.*download\(1\) tries at once"
    limit_tells(told, lambda limit_s: tracker.wait(1, download=True, timeout_s=limit_s))


def test_a_download_that_is_tried_again_names_no_time_that_has_passed(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The time of the next try is told until it begins."""
    refusal = simulator.faults.add(Reply(route=Route.AVAILABLE, status=403, times=None))
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        assert tracker._blocking.automatic is not None
        tracker._blocking.automatic.first_retry_s = 1.0
        simulator.order(ONE_FILE)
        until(lambda: "the next try comes at" in tracker._repr_html_())
        simulator.faults.remove(refusal)
        slow = simulator.faults.add(Slow(route=Route.AVAILABLE, delay_s=60))
        until(lambda: not simulator.faults.is_armed(slow))
        told = tracker._blocking.automatic.failure([tracker[1].state])
        assert "HTTP 403" in told
        assert "the next try comes at" not in told
        tracker.stop()


def test_an_order_that_another_kernel_downloads_meanwhile_has_no_next_try(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The time of the try that found the other kernel has passed."""
    simulator.faults.add(Reply(route=Route.AVAILABLE, status=403, times=None))
    journal = tmp_path / "journal.sqlite"
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker, Journal(journal) as other:
        automatic = tracker._blocking.automatic
        assert automatic is not None
        automatic.first_retry_s = 1.0
        simulator.order(ONE_FILE)
        until(lambda: "the next try comes at" in tracker._repr_html_())
        until(lambda: other.leases.take(order_lease(simulator.tenant, 1)) is None)
        until(lambda: automatic.is_held(tracker[1].state))
        assert "the next try comes at" not in automatic.failure([tracker[1].state])
        other.leases.release(order_lease(simulator.tenant, 1))


def test_a_wait_ends_with_the_download_of_another_kernel(
    simulator: Simulator, tmp_path: Path
) -> None:
    """It looks at the order at once, not at the time of its next try."""
    journal = tmp_path / "journal.sqlite"
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker, Journal(journal) as other:
        assert other.leases.take(order_lease(simulator.tenant, 1)) is None
        automatic = tracker._blocking.automatic
        assert automatic is not None
        simulator.order(ONE_FILE)
        until(lambda: list(tracker.orders["order_id"]) == [1])
        until(lambda: automatic.is_held(tracker[1].state))
        automatic.tries_of(tracker[1].state.key).next_s = math.inf
        other.leases.release(order_lease(simulator.tenant, 1))
        tracker.download(1)
        tracker.wait(1, timeout_s=60)


def test_two_automatic_downloads_name_one_next_try(simulator: Simulator, tmp_path: Path) -> None:
    """auto_download and wait(download=True) have their own pauses: the earlier try is the next."""
    simulator.faults.add(Reply(route=Route.AVAILABLE, status=403, times=None))
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        automatic = tracker._blocking.automatic
        assert automatic is not None
        automatic.first_retry_s = 1000.0
        simulator.order(ONE_FILE)
        until(lambda: "the next try comes at" in tracker._repr_html_())
        state = tracker[1].state

        def next_try(download: AutoDownload) -> str:
            return download.failure([state]).partition("the next try comes at ")[2]

        alone = next_try(automatic)
        asked = tracker._new_download()
        asked.first_retry_s = 600.0
        asked.begin([state.key])
        until(lambda: next_try(asked) != alone and asked.failure([state]))
        assert next_try(automatic) == next_try(asked)
        asked.leave(is_stopped=False)
        assert next_try(automatic) == alone


def test_a_callback_that_was_removed_is_not_called_for_events_that_wait(
    tracker: OrderTracker, simulator: Simulator
) -> None:
    """The first call holds up the others; off() drops them."""
    calls: list[str] = []
    may_end = threading.Event()

    def slow(event: OrderEvent) -> None:
        calls.append(event.status)
        may_end.wait(60)

    tracker.on(None, slow)
    simulator.order(ONE_FILE)
    until(lambda: calls and len(tracker.events) >= 3)
    tracker.off(slow)
    ended: list[str] = []
    tracker.on("DONE", lambda event: ended.append(event.status))
    simulator.order(ONE_FILE)
    may_end.set()
    until(lambda: ended)
    assert len(calls) == 1
