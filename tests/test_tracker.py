"""OrderTracker on the simulator: real RabbitMQ, real HTTP, real files."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from children import Child
from conftest import tracker_of, until
from strategies import delivery

from regards_nb import OrderEvent, OrderStatus, OrderTracker, RegardsClient, errors
from regards_nb.consumer import HealthState
from regards_nb.journal import Journal
from regards_nb.simulator import MissingEntry, OrderPlan, Outcome, Simulator, StorageRefuses

pytestmark = pytest.mark.simulator(with_broker=True)


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    with tracker_of(simulator, tmp_path) as tracker:
        yield tracker


def test_an_order_from_submit_to_the_file(tracker: OrderTracker) -> None:
    """Submit, wait, download, open: the main road."""
    order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
    # the order may have gone on by now, and its first message may come before the answer over REST
    assert "GRANTED" in set(order.events["status"])
    orders = tracker.wait(order.correlation_id, timeout_s=60)
    assert list(orders["status"]) == ["DONE"]
    paths = order.download()
    assert {path.suffix for path in paths} == {".csv", ".png", ".bin"}
    assert len(pd.read_csv(next(path for path in paths if path.suffix == ".csv"))) > 100
    assert (order.files["state"] == "VERIFIED").all()
    for _, file in order.files.iterrows():
        assert hashlib.md5(Path(file["path"]).read_bytes()).hexdigest() == file["md5"]
    assert sorted(order.events["status"]) == ["DONE", "GRANTED", "SUBORDER_DONE"]
    row = tracker.orders.iloc[0]
    assert (row["label"], row["downloaded_files"]) == ("one pass", 3)
    assert tracker[order.order_id or 0].correlation_id == order.correlation_id
    assert order.download() == paths, "a second call has nothing new, and is no error"


def test_all_five_ends_of_an_order(tracker: OrderTracker) -> None:
    """Done, several parts, denied, partly failed, failed: the right last rows, the right files."""
    names = ["SWOT_PASS_012", "SWOT_CYCLE_007", "FORBIDDEN", "TAPE_ARCHIVE", "BROKEN_STORAGE"]
    with pytest.warns(UserWarning, match="at most 2 sub-orders per user"):
        one, many, denied, partly, failed = (tracker.submit(f"dataset:{name}") for name in names)
    one.wait(timeout_s=60).download()
    assert sum(len(part) for part in many.iter_parts(timeout_s=60)) == 20
    assert (many.status, many.suborders_done, many.suborders_total) == ("DONE", 5, 5)
    assert (denied.status, denied.order_id) == ("DENIED", None)
    with pytest.raises(errors.SettingsError, match="has no number.*DENIED"):
        denied.download()
    partly.wait(timeout_s=60)
    assert (partly.status, partly.error_type) == ("FAILED", "INTERNAL_ERROR")
    with pytest.raises(errors.IncompleteDownloadError) as caught:
        partly.download()
    assert len(caught.value.missing) == 2
    assert tracker.orders["downloaded_files"].tolist() == [3, 20, 0, 6, 0]
    failed.wait(timeout_s=60)
    assert (failed.status, failed.progress) == ("FAILED", 0.0)
    assert tracker.orders["finished"].all()


def test_a_large_order_runs_through_by_itself(simulator: Simulator, tmp_path: Path) -> None:
    """With auto_download an order of forty parts needs nobody; REGARDS never waits for long."""
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        number = simulator.order(OrderPlan(n_files=40, files_per_suborder=1, file_bytes=1000))
        tracker.wait(number, timeout_s=120)
        until(lambda: tracker.orders["downloaded_files"].item() == 40)
        assert (tracker.files["state"] == "VERIFIED").all()
    assert len(list((tmp_path / "orders" / str(number)).glob("file_*"))) == 40


def test_wait_says_that_regards_waits(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody downloads, a wait does not hang in silence: it says why, and what to do."""
    number = simulator.order(OrderPlan(n_files=3, files_per_suborder=1))
    with pytest.raises(errors.WaitTimeoutError, match="order 1 waits for a download"):
        tracker.wait(number, timeout_s=2)
    assert "REGARDS waits for you" in capsys.readouterr().out
    tracker.wait(number, until="part", timeout_s=30)
    tracker.download(number)
    tracker.wait(number, timeout_s=30)


def test_an_order_that_is_not_known_yet_can_be_waited_for(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """A wait for a correlation id begins before its first message."""
    with pytest.raises(errors.OrderNotFoundError, match="no order with the name 'later'"):
        _ = tracker["later"]
    timer = threading.Timer(0.2, lambda: simulator.order(OrderPlan(), correlation_id="later"))
    timer.start()
    orders = tracker.wait("later", until="part", timeout_s=60)
    assert list(orders.index) == [("demo", "later")]
    timer.join()


def test_nothing_to_wait_for_returns_at_once(tracker: OrderTracker) -> None:
    """No orders, or all finished: there is nothing to wait for."""
    assert len(tracker.wait()) == 0
    with pytest.raises(errors.SettingsError, match="until must be"):
        tracker.wait(until="never")


def test_a_wait_for_parts_says_which_orders_have_some(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is finished, and the wait for any part is over at once."""
    number = simulator.order(OrderPlan(n_files=4, files_per_suborder=1))
    tracker.wait(number, until="part", timeout_s=60)
    capsys.readouterr()
    tracker.wait(until="part", timeout_s=60)
    told = capsys.readouterr().out
    assert f"nothing to wait for: files of order {number} are ready" in told
    assert "finished" not in told


def test_a_wait_in_asyncio_leaves_the_loop_free(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """`await order` and wait_async let other tasks run."""
    number = simulator.order(OrderPlan(n_files=1, suborder_pause_s=1), correlation_id="c")

    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        orders = await tracker.wait_async(number, timeout_s=60)
        assert (await tracker["c"]).status == "DONE"
        counting.cancel()
        assert list(orders["status"]) == ["DONE"]
        return turns

    assert asyncio.run(main()) > 10


def test_events_without_a_callback_begin_no_thread(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of callbacks begins when one is called, and not for each new event."""
    begun = list[str]()
    start = threading.Thread.start

    def noting(thread: threading.Thread) -> None:
        begun.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noting)
    with tracker_of(simulator, tmp_path) as tracker:
        tracker.on("DENIED", list[OrderEvent]().append)
        tracker.wait(simulator.order(OrderPlan()), timeout_s=60)
        tracker.stop()  # all events are handled then
    assert "regards-nb-dispatch" in begun
    assert "regards-nb-callback" not in begun


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_callbacks_get_their_events_and_their_errors_stop_nothing(
    simulator: Simulator, tracker: OrderTracker, kind: type[BaseException]
) -> None:
    """Each event of the status once, in a thread of its own; errors come with the next call."""
    seen: list[OrderEvent] = []

    def broken(_event: OrderEvent) -> None:
        raise kind("my mistake")

    tracker.on(OrderStatus.SUBORDER_DONE, seen.append)
    tracker.on("SUBORDER_DONE", broken)
    number = simulator.order(OrderPlan(n_files=2, files_per_suborder=1))
    until(lambda: len(seen) == 2)
    assert {event.order_id for event in seen} == {number}
    until(lambda: any("my mistake" in text for text in tracker.snapshot().background_errors))
    tracker.download(number)
    another = simulator.order(OrderPlan(n_files=1))
    until(lambda: f"{number}, {another}" in str(tracker.snapshot().background_errors))
    told = rf"callback broken on SUBORDER_DONE: {kind.__name__}: my mistake .*, for orders 1, 2"
    with pytest.raises(errors.TrackingError, match=told) as caught:
        tracker.wait(number, timeout_s=30)
    tracker.wait(number, timeout_s=30)
    _, _, by_hand = str(caught.value).partition("By hand: ")
    again: list[Any] = []
    eval(by_hand, {"broken": again.append, "tracker": tracker})  # noqa: S307 - our own text
    assert [event.order_id for event in again] == [number, number, another]


def test_a_restart_shows_the_same_frames(simulator: Simulator, tmp_path: Path) -> None:
    """The journal is the truth: a new tracker on it has the same rows, and goes on."""
    with tracker_of(simulator, tmp_path) as tracker:
        number = simulator.order(OrderPlan(n_files=2))
        tracker.wait(number, timeout_s=60)
        tracker.download(number)
        simulator.publish_raw(b"poison")
        until(lambda: len(tracker.rejected) == 1)
        before = [tracker.events, tracker.orders, tracker.files, tracker.rejected]
    with tracker_of(simulator, tmp_path) as again:
        after = [again.events, again.orders, again.files, again.rejected]
        for old, new in zip(before, after, strict=True):
            pd.testing.assert_frame_equal(old, new)
        another = simulator.order(OrderPlan(n_files=1))
        again.wait(another, timeout_s=60)
        assert len(again.orders) == 2


def test_what_waited_in_the_queue_reaches_callbacks_and_downloads(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A new process handles the messages that waited, also if it reads the frames at once."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        history = [delivery({"status": "ON_TAPE", "orderId": 1}, tenant="demo")] * 30_000
        journal.append(journal.open_session(simulator.queue), history)
    for number in [simulator.order(OrderPlan(n_files=1)) for _ in range(2)]:
        simulator.wait_for(number, "DONE")
    for _ in range(3):
        simulator.order(OrderPlan(outcome=Outcome.FAILED))
    simulator.flush()
    seen: list[OrderEvent] = []
    tracker = tracker_of(simulator, tmp_path, auto_download=True)
    for status in ("SUBORDER_DONE", "FAILED"):
        tracker.on(status, seen.append)
    with tracker:
        while len(tracker.orders) < 5:
            pass
        until(lambda: len(seen) == 5)
        until(lambda: (tracker.orders["downloaded_files"] > 0).sum() == 2)
    assert sorted(event.status for event in seen) == ["FAILED"] * 3 + ["SUBORDER_DONE"] * 2


def test_no_event_misses_its_callback_between_two_processes(
    simulator: Simulator, tmp_path: Path
) -> None:
    """What one process journals it also hands to its callbacks; the next gets the rest."""
    for _ in range(300):
        simulator.publish_raw(b'{"status": "RUNNING", "orderId": 1}')
    simulator.flush()
    seen: list[OrderEvent] = []
    trackers = [tracker_of(simulator, tmp_path) for _ in range(2)]
    for tracker in trackers:
        tracker.on("RUNNING", seen.append)
    with trackers[0]:
        until(lambda: len(trackers[0].events))
    assert len(seen) == len(trackers[0].events)
    with trackers[1]:
        until(lambda: len(trackers[1].events) >= 300)
    assert len(seen) == len(trackers[1].events) == 300


def test_an_incomplete_automatic_download_is_repeated(simulator: Simulator, tmp_path: Path) -> None:
    """A file that the storage refuses for a while is downloaded later, without any call."""
    faults = (
        MissingEntry(name="file_00000.bin"),
        StorageRefuses(name="file_00000.bin", status=500, times=6),
    )
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        simulator.order(OrderPlan(n_files=2, faults=faults))
        until(lambda: "FAILED" in set(tracker.files["state"]))
        until(lambda: list(tracker.files["state"]) == ["VERIFIED"] * 2)


KILLED = """
import sys
from regards_nb import OrderTracker
tracker = OrderTracker(sys.argv[1], sys.argv[2], journal=sys.argv[3]).start()
print("consuming", flush=True)
sys.stdin.read()
"""


def test_killing_the_process_in_the_middle_ends_with_the_same_frames(
    simulator: Simulator, tmp_path: Path
) -> None:
    """kill -9, start again: each event is in the frame once."""
    for _ in range(5):
        simulator.order(OrderPlan(outcome=Outcome.FAILED))
    path = tmp_path / "journal.sqlite"
    with Child(KILLED, simulator.amqp_url, simulator.queue, path) as process:
        process.stdout.readline()
        for _ in range(200):
            simulator.publish_raw(b'{"status": "ON_TAPE", "orderId": 1}')
        process.kill()
    with tracker_of(simulator, tmp_path) as tracker:
        until(lambda: (tracker.events["status"] == "ON_TAPE").sum() == 200)
        until(lambda: (tracker.events["status"] == "FAILED").sum() >= 5)
        # The server, asked what "ON_TAPE" came to, says it once more; that is no message.
        assert len(tracker.events.query("status == 'FAILED' and app_id != 'REST'")) == 5
        assert tracker.health.state is HealthState.CONSUMING
        assert not tracker.events.drop(columns="received_at").query("status == 'FAILED'").empty


DIES_IN_A_CALLBACK = """
import os, signal, sys
from regards_nb import OrderTracker
tracker = OrderTracker(sys.argv[1], sys.argv[2], journal=sys.argv[3])
def die(event):
    print(event.order_id, flush=True)
    if event.order_id == 3:
        os.kill(os.getpid(), signal.SIGKILL)
tracker.on("RUNNING", die)
tracker.start()
sys.stdin.read()
"""


def test_events_of_a_killed_process_reach_the_callbacks_of_the_next(
    simulator: Simulator, tmp_path: Path
) -> None:
    """It died in its third callback: the next one begins there or before, the third one is done."""
    path = tmp_path / "journal.sqlite"
    with Child(DIES_IN_A_CALLBACK, simulator.amqp_url, simulator.queue, path) as process:
        for number in range(1, 6):
            simulator.publish_raw(b'{"status": "RUNNING", "orderId": %d}' % number)
        simulator.flush()
        assert process.stdout.read().split() == ["1", "2", "3"]
    seen: list[OrderEvent] = []
    tracker = tracker_of(simulator, tmp_path, tenant=None, client=None)
    tracker.on("RUNNING", seen.append)
    with tracker:
        until(lambda: {event.order_id for event in seen} >= {3, 4, 5})
    seen.clear()
    again = tracker_of(simulator, tmp_path, tenant=None, client=None)
    again.on("RUNNING", seen.append)
    with again:
        simulator.publish_raw(b'{"status": "RUNNING", "orderId": 6}')
        until(lambda: bool(seen))
    assert [event.order_id for event in seen] == [6]


def test_two_trackers_on_one_queue_and_journal_both_see_everything(
    simulator: Simulator, tmp_path: Path
) -> None:
    """RabbitMQ shares the messages out; the journal brings them together."""
    with tracker_of(simulator, tmp_path) as one, tracker_of(simulator, tmp_path) as two:
        numbers = [simulator.order(OrderPlan(outcome=Outcome.FAILED)) for _ in range(10)]
        for tracker in (one, two):
            tracker.wait(*numbers, timeout_s=60)
            assert sorted(tracker.orders["order_id"]) == numbers


def test_background_errors_reach_the_next_call(simulator: Simulator, tmp_path: Path) -> None:
    """A download that fails in the background is shown, and raised once."""
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        (tmp_path / "orders").write_text("a file where the folder should be")
        number = simulator.order(OrderPlan(n_files=1))
        until(lambda: tracker.snapshot().background_errors)
        with pytest.raises(errors.TrackingError, match=f"downloading order {number}"):
            tracker.wait(number, timeout_s=60)
        assert not tracker.snapshot().background_errors


def test_downloading_needs_a_client(simulator: Simulator, tmp_path: Path) -> None:
    """Without the REST side the error says what to add."""
    tracker = OrderTracker(simulator.amqp_url, simulator.queue, journal=tmp_path / "j.sqlite")
    for call in (tracker.download, lambda: tracker.submit("x")):
        with pytest.raises(errors.SettingsError, match="client=RegardsClient"):
            call()


def test_the_tracker_has_a_short_repr_without_secrets(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """One line, the address and the state; no password anywhere in it."""
    text = repr(tracker)
    assert simulator.queue in text
    assert "CONSUMING" in text
    password = simulator.amqp_url.split(":")[2].split("@")[0]
    assert password not in text
    assert password not in str(vars(tracker))
    page = tracker._repr_html_()
    assert "No orders" in page
    assert password not in page


def test_a_forgotten_tracker_leaves_no_thread(simulator: Simulator, tmp_path: Path) -> None:
    """A tracker that nobody holds is collected, and its threads end."""
    tracker = tracker_of(simulator, tmp_path, auto_download=True).start()
    tracker.on("DONE", print)
    threads = [t for t in threading.enumerate() if t.name.startswith("regards-nb")]
    assert threads
    gone = weakref.ref(tracker)
    del tracker
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), thread.name


def test_an_empty_queue_name_is_refused(tmp_path: Path) -> None:
    """The name of the queue is the administrator's, and must be given."""
    with pytest.raises(errors.SettingsError, match="administrator"):
        OrderTracker("amqp://u:p@h/v", "", journal=tmp_path / "j.sqlite")


def test_the_demo_is_one_line(tmp_path: Path) -> None:
    """Simulator, broker, client and tracker, started and ended together."""
    with OrderTracker.demo(workspace=tmp_path, suborder_pause_s=0.01) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=60)
        assert len(order.download()) == 3
        url = tracker.simulator.base_url
    with pytest.raises(errors.ServiceUnreachableError):
        RegardsClient(url, tenant="demo", token="x").order(1)
