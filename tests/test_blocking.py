"""Why REGARDS does not prepare an order: each wait says it, and says nothing that is not so."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import interrupted_after, limit_tells, purge_queue, tracker_of, until

from regards_nb import Order, OrderTracker, errors
from regards_nb.display import text
from regards_nb.simulator import IncompleteZip, OrderPlan, Outcome, Reply, Route, Simulator, Slow

pytestmark = pytest.mark.simulator(with_broker=True)

ONE_FILE = OrderPlan(n_files=1)
#: It takes both places of the user.
LONG = OrderPlan(n_files=4, files_per_suborder=1, suborder_pause_s=3600)


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    with tracker_of(simulator, tmp_path) as tracker:
        yield tracker


def assert_told(
    told: str, order: Order, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait for an order says it, and so do its time limit and the row."""
    limit_tells(re.escape(told), lambda limit_s: order.wait(timeout_s=limit_s))
    assert told in capsys.readouterr().out
    assert told in re.sub("<[^>]*>", " ", tracker._repr_html_())


def test_a_wait_names_the_orders_that_block_it(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two finished orders that nobody downloaded stop the other four; all texts say which."""
    numbers = [simulator.order(ONE_FILE) for _ in range(6)]
    until(lambda: tracker.orders["waits_for_download"].sum() == 2)
    blocking = [state.order_id for state in tracker.snapshot().blocking]
    assert blocking == numbers[:2]
    with pytest.raises(errors.WaitTimeoutError) as caught:
        tracker.wait(*numbers[2:], timeout_s=0.5)
    advice = "tracker.download(1, 2), or wait(download=True)"
    assert f"orders 1, 2 wait for a download: {advice}" in str(caught.value)
    assert "go on" not in str(caught.value)
    assert advice in capsys.readouterr().out
    assert list(tracker.snapshot(keys=[]).blocking) == list(tracker.snapshot().blocking)


def test_an_order_that_was_downloaded_blocks_no_more(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """The next snapshot knows it."""
    numbers = [simulator.order(ONE_FILE) for _ in range(3)]
    until(lambda: tracker.orders["waits_for_download"].sum() == 2)
    until(lambda: [state.order_id for state in tracker.snapshot().blocking] == numbers[:2])
    tracker.download(*numbers[:2])
    assert not {state.order_id for state in tracker.snapshot().blocking} & set(numbers[:2])


def test_an_order_whose_download_has_not_begun_says_so(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Three are downloaded at a time; the others wait, perhaps for hours."""
    numbers = [simulator.order(ONE_FILE) for _ in range(4)]
    until(lambda: tracker.orders["order_id"].isin(numbers).sum() == 4)
    hangs = simulator.faults.add(Slow(route=Route.AVAILABLE, delay_s=3600, times=None))
    for number in numbers:
        tracker.download_soon(number)
    waits = "waits for its turn to be downloaded"
    until(
        lambda: (
            [s.download_note == waits for s in tracker.snapshot().orders] == [False] * 3 + [True]
        )
    )
    assert f"  {waits}" in text(tracker.snapshot())
    simulator.faults.remove(hangs)


def test_a_wait_can_download_what_blocks_it(simulator: Simulator, tracker: OrderTracker) -> None:
    """wait(download=True) downloads the orders waited for, and the others that block them."""
    numbers = [simulator.order(ONE_FILE) for _ in range(6)]
    until(lambda: tracker.orders["waits_for_download"].sum() == 2)
    orders = tracker.wait(*numbers[2:], download=True, timeout_s=60)
    assert list(orders["status"]) == ["DONE"] * 4
    assert (tracker.orders["downloaded_files"] == 1).all()
    assert not tracker.snapshot().blocking


def test_a_wait_names_the_failure_of_a_download_that_is_tried_again(
    simulator: Simulator, tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the next try runs; of an order that is deleted then, only the download is left."""
    monkeypatch.setattr(type(tracker._new_download()), "first_retry_s", 0.1)
    plan = OrderPlan(n_files=4, files_per_suborder=1)
    first, second = simulator.order(plan), simulator.order(ONE_FILE)
    until(lambda: tracker.orders["suborders_done"].sum() == 2)
    simulator.faults.add(Reply(route=Route.AVAILABLE, status=403, times=2))
    simulator.faults.add(Slow(route=Route.AVAILABLE, skip=2, delay_s=60))
    told = "the download of order 1 failed: .*403.*; downloading order 1 first"
    with pytest.raises(errors.WaitTimeoutError, match=told):
        tracker.wait(second, download=True, timeout_s=1)
    tracker.cancel(first)
    with pytest.raises(errors.WaitTimeoutError, match="order 1 is DELETED, and its download still"):
        tracker.wait(first, download=True, timeout_s=0.1)
    simulator.stop()


def test_a_wait_downloads_orders_that_ended_before(
    tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a wait without it, wait() names them, and wait(download=True) fetches their files."""
    order = tracker.submit("dataset:SWOT_PASS_012")
    order.wait(timeout_s=60)
    tracker.wait()
    assert "finished; 1 to download: tracker.download()" in capsys.readouterr().out
    tracker.wait(download=True, timeout_s=60)
    assert order.state.downloaded_files == 3
    tracker.wait(download=True, timeout_s=60)


def test_an_order_that_only_rest_knows_can_block(
    simulator: Simulator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their messages went elsewhere: after the first round of REST sync they are named, too."""
    others = [simulator.order(ONE_FILE) for _ in range(2)]
    for number in others:
        simulator.wait_for(number, "DONE")
    simulator.flush()
    purge_queue(simulator)
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        # Nor does auto_download take them in.
        other = tracker.submit("dataset:SWOT_PASS_012")
        until(lambda: tracker.snapshot().blocking)
        with pytest.raises(errors.WaitTimeoutError, match="orders 1, 2 wait for a download"):
            other.wait(timeout_s=0.1)
        other.cancel()
    with tracker_of(simulator, tmp_path) as tracker:
        mine = tracker.submit("dataset:SWOT_PASS_012")
        until(lambda: [state.order_id for state in tracker.snapshot().blocking] == others)
        with pytest.raises(errors.WaitTimeoutError, match="orders 1, 2 wait for a download"):
            mine.wait(timeout_s=0.1)
        assert len(tracker.orders) == 2, "they are shown, and not taken in without being asked"
        assert tracker.download() == []
        assert "orders 1, 2 wait for a download: tracker.download(1, 2)" in capsys.readouterr().out
        assert len(tracker.download(1)) == 1
        tracker.wait(mine, download=True, timeout_s=60)
        assert mine.status == "DONE"


def test_an_order_made_elsewhere_that_has_ended_keeps_its_places(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """REST does not tell how many sub-orders wait, so it is named as one that may block."""
    other = simulator.order(OrderPlan(n_files=2, files_per_suborder=1))
    simulator.wait_for(other, "DONE")
    simulator.flush()
    purge_queue(simulator)
    with tracker_of(simulator, tmp_path) as tracker:
        mine = tracker.submit("dataset:SWOT_PASS_012")
        told = (
            f"order {mine.order_id} may have to wait for order {other}; order {other} waits for a "
            f"download: tracker.download({other})"
        )
        assert_told(told, mine, tracker, capsys)


def test_an_order_made_elsewhere_is_found_behind_many_newer_ones(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named and downloaded, and nothing is said of pending orders that stand before mine."""
    before = [simulator.order(OrderPlan(outcome=Outcome.FAILED)) for _ in range(110)]
    simulator.wait_for(before[-1], "FAILED")
    other = simulator.order(OrderPlan(n_files=4, files_per_suborder=1))
    simulator.wait_available(other, files=2)
    for _ in range(105):
        simulator.order(ONE_FILE)
    with tracker_of(simulator, tmp_path, amqp=None, queue=None, poll_s=0.05) as tracker:
        mine = tracker.submit("dataset:SWOT_PASS_012")
        told = f"order {other} waits for a download: tracker.download({other})"
        limit_tells(re.escape(told), lambda limit_s: mine.wait(timeout_s=limit_s))
        named = re.findall(r"wait for (.*?)[;\n]", capsys.readouterr().out)
        assert set(named) == {f"order {other}"}
        assert told in re.sub("<[^>]*>", " ", tracker._repr_html_())
        waiting = threading.Thread(target=mine.wait, kwargs={"download": True})
        waiting.start()
        until(lambda: tracker.orders["downloaded_files"].max() == 4)
        mine.cancel()
        waiting.join()


def test_a_message_tells_the_name_of_an_order_that_a_wait_downloads(
    simulator: Simulator, tmp_path: Path
) -> None:
    """REST gave its number only; its next message has the correlation id, and the wait goes on."""
    other = simulator.order(OrderPlan(n_files=4, files_per_suborder=1))
    simulator.wait_available(other, files=2)
    simulator.flush()
    purge_queue(simulator)
    with tracker_of(simulator, tmp_path) as tracker:
        mine = tracker.submit("dataset:SWOT_PASS_012")
        mine.wait(download=True, timeout_s=60)
        assert mine.status == "DONE"
        assert tracker[other].state.downloaded_files == 4


def lists(simulator: Simulator) -> int:
    """Return how often a page of the list of orders was asked for."""
    return sum(seen.path.endswith("/user/orders") for seen in simulator.requests)


def assert_short_rounds(simulator: Simulator, tracker: OrderTracker) -> None:
    """After a round that read on, others read one page for a while, and what that found counts."""
    sync = tracker._sync
    assert sync is not None
    sync.listing._read_on_s = math.inf
    n_rounds = sync.rounds
    until(lambda: sync.rounds > n_rounds + 1)  # one may have begun before
    n_before, n_rounds = lists(simulator), sync.rounds
    until(lambda: sync.rounds > n_rounds + 3)
    assert lists(simulator) - n_before <= sync.rounds - n_rounds + 1
    assert sync.listing.n_only(200) == 200
    sync.listing._read_on_s = 0.0


def test_a_wait_says_how_far_it_looked_for_what_blocks_it(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The list of orders has an end for each round; the call that is named looks further."""
    other = simulator.order(LONG)
    for _ in range(200):
        simulator.order(ONE_FILE)
    with tracker_of(simulator, tmp_path, amqp=None, queue=None, poll_s=0.05) as tracker:
        assert tracker._sync is not None
        tracker._sync.most_listed = 200
        mine = tracker.submit("dataset:SWOT_PASS_012")
        told = f"order {mine.order_id} may have to wait for an order that is not among the newest "
        told += "200: tracker.sync(limit=2000) looks at older ones"
        limit_tells(re.escape(told), lambda limit_s: mine.wait(timeout_s=limit_s))
        assert_short_rounds(simulator, tracker)
        assert len(tracker.sync(limit=2000)) == 201
        told = f"order {mine.order_id} may have to wait for orders {other}, {other + 1}"
        limit_tells(re.escape(told), lambda limit_s: mine.wait(timeout_s=limit_s))


def test_the_third_unfinished_order_is_warned_of(tracker: OrderTracker) -> None:
    """Without auto_download REGARDS stops after two sub-orders: submit() says so in time."""
    for name in "ab":
        tracker.submit("dataset:SWOT_CYCLE_007", correlation_id=name)
    with pytest.raises(errors.SettingsError, match="^cart must be"):  # and no warning
        tracker.submit("dataset:SWOT_CYCLE_007", cart="yes")  # type: ignore[call-overload]
    with pytest.warns(
        # Sub-orders may be ready by then, or not yet.
        UserWarning,
        match=r"came (order 1|orders 1, 2)\. Use wait\(download=True\) or auto_download",
    ):
        tracker.submit("dataset:SWOT_CYCLE_007", correlation_id="c")


def test_a_wait_says_what_else_it_downloads(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """wait(download=True) names the orders that it fetches first, and why."""
    numbers = [simulator.order(ONE_FILE) for _ in range(3)]
    until(lambda: tracker.orders["waits_for_download"].sum() == 2)
    simulator.faults.add(Slow(route=Route.ZIP, delay_s=1.0))
    tracker.wait(numbers[2], download=True, timeout_s=60)
    told = capsys.readouterr().out
    assert re.search("downloading orders? 1(, 2)? first, because REGARDS waits for", told)
    assert "tracker.download(" not in told


def test_a_wait_asks_at_once_what_blocks_it(simulator: Simulator, tracker: OrderTracker) -> None:
    """No message tells of the orders of another notebook: REST is asked when a wait begins."""
    mine = tracker.submit("dataset:SWOT_CYCLE_007")
    until(lambda: mine.state.waits_for_download)
    # the round after the connect, which comes before the order where the machine is slow
    until(lambda: tracker._sync is not None and tracker._sync.rounds)
    before = lists(simulator)
    waiting = threading.Thread(target=mine.wait)
    waiting.start()
    until(lambda: lists(simulator) > before)
    mine.cancel()
    waiting.join()


def test_one_suborder_that_waits_blocks_nothing(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """REGARDS goes on with the other place; from the second one on, the advice is given."""
    tracker._blocking.quiet_s = 600.0
    tracker.wait(simulator.order(ONE_FILE), timeout_s=60)
    capsys.readouterr()  # it may have said that this order waits for a download
    long = simulator.order(LONG)
    with pytest.raises(errors.WaitTimeoutError) as caught:
        tracker.wait(long, timeout_s=0.5)
    assert "for a download" not in str(caught.value) + capsys.readouterr().out
    assert not tracker.snapshot().blocking
    tracker._blocking.quiet_s = 0.0  # the number of places is a setting of REGARDS
    with pytest.raises(errors.WaitTimeoutError, match=r"order 1 waits for a download"):
        tracker.wait(long, timeout_s=0.5)


def test_an_order_waited_for_that_waits_for_a_download_is_named_at_once(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without RabbitMQ nothing tells how many of its sub-orders are ready: one is enough."""
    advice = "order 1 waits for a download: tracker.download(1), or wait(download=True)"
    with tracker_of(simulator, tmp_path, amqp=None, queue=None, poll_s=0.05) as tracker:
        mine = tracker.submit("dataset:SWOT_CYCLE_007")
        until(lambda: mine.state.waits_for_download)
        limit_tells(re.escape(advice), lambda limit_s: mine.wait(timeout_s=limit_s))
        with (
            interrupted_after(lambda text: advice in text, monkeypatch),
            pytest.raises(errors.StoppedWaiting),
        ):
            mine.wait(timeout_s=60)


def test_what_blocks_others_is_not_said_of_a_typing_error_or_a_paused_order(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first cause is said, and no other."""
    mine = tracker.submit("dataset:SWOT_CYCLE_007")
    until(lambda: tracker.snapshot().blocking)
    with pytest.raises(errors.OrderNotFoundError):
        tracker.wait("L9x", timeout_s=30)
    told = capsys.readouterr().out
    assert "no order is called 'L9x'" in told
    assert "L9x' so far (tracker.orders lists all)\n" in told
    mine.pause()
    with pytest.raises(errors.WaitTimeoutError, match=r"; order 1 is paused: ") as caught:
        mine.wait(timeout_s=0.2)
    assert "for a download" not in str(caught.value)


def test_an_order_that_waits_for_others_says_so(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for one that only REST knows: in the row, the wait, its time limit and submit_each."""
    long = simulator.order(LONG)
    with tracker_of(simulator, tmp_path, amqp=None, queue=None, poll_s=0.05) as tracker:
        mine = tracker.submit("dataset:SWOT_PASS_012")
        told = (
            "REGARDS prepares at most two sub-orders per user at a time, and order "
            f"{mine.order_id} may have to wait for order {long}"
        )
        limit_tells(told, lambda limit_s: mine.wait(timeout_s=limit_s))
        assert told in capsys.readouterr().out
        assert f"{told} " in re.sub("<[^>]*>", " ", tracker._repr_html_())
        assert tracker.client is not None
        table = tracker.client.search(dataset="SWOT_CYCLE_008", limit=2)
        told = r"orders \d+, \d+ may have to wait for orders 1, 2"
        limit_tells(told, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s))
        assert len(simulator.service.orders_of(simulator.username)) == 4


def test_a_download_that_takes_a_place_is_named_at_once(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the order that has the other place, also where auto_download does not fetch it."""
    waiting = simulator.order(ONE_FILE)
    simulator.wait_for(waiting, "DONE")
    long = simulator.order(LONG)
    options = {"amqp": None, "queue": None, "poll_s": 0.05, "auto_download": True}
    with tracker_of(simulator, tmp_path, **options) as tracker:
        tracker._blocking.quiet_s = 3600.0
        mine = tracker.submit("dataset:SWOT_PASS_012")
        told = (
            f"order {mine.order_id} may have to wait for orders {waiting}, {long}; order {waiting} "
            f"waits for a download: tracker.download({waiting})"
        )
        assert_told(told, mine, tracker, capsys)


def test_an_order_behind_one_that_is_being_downloaded_says_so(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait, its time limit, iter_parts(), the row and submit_each say how far that one is."""
    simulator.faults.add(Slow(route=Route.ZIP, stall_after_bytes=60_000, times=1))
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        first = simulator.order(OrderPlan(n_files=2, file_bytes=40_000, files_per_suborder=1))
        until(lambda: tracker[first].state.downloaded_files == 1)
        mine = tracker.submit("dataset:SWOT_PASS_012")
        is_told = rf"this kernel is downloading order {first} \(1 of 2 files, \d\d %\)"
        told = rf"order {mine.order_id} may have to wait for order {first}; {is_told}"
        limit_tells(told, lambda limit_s: mine.wait(timeout_s=limit_s))
        assert re.search(told, capsys.readouterr().out)
        assert re.search(told, re.sub("<[^>]*>", " ", tracker._repr_html_()))
        limit_tells(told, lambda limit_s: next(mine.iter_parts(timeout_s=limit_s)))
        assert tracker.client is not None
        table = tracker.client.search(dataset="SWOT_CYCLE_008", limit=2)
        told = rf"may have to wait for orders {first}, {mine.order_id}; {is_told}"
        limit_tells(told, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s))
        simulator.faults.clear()


@pytest.mark.parametrize("how", ["download", "wait"])
def test_files_that_are_here_and_that_regards_still_waits_for_are_named_and_released(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """It sent whole zips and did not save that: a download of any kind has it count the files."""
    simulator.faults.add(IncompleteZip(times=2))
    sent = [simulator.order(ONE_FILE) for _ in range(2)]
    until(lambda: tracker.orders["waits_for_download"].sum() == 2)
    tracker.download()
    assert (tracker.orders["downloaded_files"] == 1).all()
    mine = tracker[simulator.order(OrderPlan(n_files=4, files_per_suborder=2))]
    if how == "download":
        told = "orders 1, 2 wait for a download: tracker.download(1, 2)"
        limit_tells(re.escape(told), lambda limit_s: mine.wait(timeout_s=limit_s))
        assert_told(told, mine, tracker, capsys)
        tracker.download()
        until(lambda: mine.state.waits_for_download)
    mine.wait(download=how == "wait", timeout_s=60)
    assert tracker.client is not None
    assert not any(tracker.client.order(number).waiting_for_user for number in sent)


def test_auto_download_releases_files_that_are_here_without_a_call(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGARDS is asked some time after a download, because no message comes."""
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        monkeypatch.setattr(type(tracker._downloading()), "counted_s", 0.1)
        tracker.wait(simulator.order(ONE_FILE), timeout_s=60)
        sync = tracker._sync
        assert sync is not None
        until(lambda: not sync._due_s)  # REGARDS is asked no more because of the start and the wait
        simulator.faults.add(IncompleteZip(times=2))
        for _ in range(2):
            simulator.order(ONE_FILE)
        mine = simulator.order(OrderPlan(n_files=4, files_per_suborder=2))
        until(lambda: tracker[mine].state.downloaded_files == 4)


def test_a_table_says_which_of_its_orders_are_being_downloaded(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Also by a call that is not its own: the next order is made when their files are here."""
    simulator.faults.add(Slow(route=Route.ZIP, delay_s=3600, times=2))
    with tracker_of(simulator, tmp_path) as tracker:
        assert tracker.client is not None
        table = tracker.client.search(dataset="SWOT_CYCLE_008", limit=3)
        limit_tells("2 of 3 orders made", lambda s: tracker.submit_each(table, timeout_s=s))
        until(lambda: tracker.orders["waits_for_download"].sum() == 2)
        for number in tracker.orders["order_id"]:
            tracker.download_soon(number)
        told = "this kernel is downloading order 1[^;]*; this kernel is downloading order 2"
        limit_tells(told, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s))
        simulator.faults.clear()


def test_submit_each_downloads_what_blocks_it(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orders of another journal are asked for, named, downloaded; without download=True named."""
    for number in (simulator.order(ONE_FILE), simulator.order(ONE_FILE)):
        simulator.wait_for(number, "DONE")
    with tracker_of(simulator, tmp_path, amqp=None, queue=None, poll_s=0.05) as tracker:
        assert tracker.client is not None
        table = tracker.client.search(dataset="SWOT_CYCLE_008", limit=3)
        advice = r"orders 1, 2 wait for a download: tracker.download\(1, 2\), or submit_each\("
        limit_tells(advice, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s))
        simulator.faults.add(Slow(route=Route.ZIP, delay_s=1.0))
        orders = tracker.submit_each(table, download=True, timeout_s=60)
        assert set(tracker.orders.join(orders, on="label")["status"]) == {"DONE"}
        assert re.search("downloading orders? 1(, 2)? first", capsys.readouterr().out)
