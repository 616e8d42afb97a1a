"""Orders of other users: the exchange tells all users of them, and they are not taken for ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import tracker_of, until

from regards_nb import OrderTracker, errors
from regards_nb.display import table_model, text
from regards_nb.frames import Frames
from regards_nb.simulator import OrderPlan, Reply, Route, Simulator
from regards_nb.tracker import AutoDownload

pytestmark = pytest.mark.simulator(with_broker=True)

ONE_FILE = OrderPlan(n_files=1)
#: REGARDS prepares two sub-orders, and waits until the owner downloads them.
LONG = OrderPlan(n_files=4, files_per_suborder=1)
JANE = "jane@cnes.fr"


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    with tracker_of(simulator, tmp_path) as tracker:
        yield tracker


@pytest.fixture
def hers(simulator: Simulator, tracker: OrderTracker) -> int:
    """Return the number of an order of another user with files that wait."""
    number = simulator.order(LONG, owner=JANE)
    until(lambda: waits(tracker, number) or is_refused(tracker, number))
    return number


@pytest.fixture
def not_asked(tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have only calls ask REGARDS, so that it is not known before whose the order is."""
    monkeypatch.setattr(tracker._sync, "ask_round", lambda: False)


def waits(tracker: OrderTracker, number: int) -> bool:
    orders = tracker.orders
    return bool(orders.loc[orders["order_id"] == number, "waits_for_download"].any())


def is_refused(tracker: OrderTracker, number: int) -> bool:
    return number in [state.order_id for state in tracker.snapshot().orders if state.is_refused]


def downloads(simulator: Simulator, number: int) -> int:
    """Return how often the files of an order were asked for."""
    return sum(f"/{number}/" in seen.path for seen in simulator.requests)


@pytest.mark.usefixtures("not_asked")
def test_views_say_whose_the_order_is(tracker: OrderTracker, hers: int) -> None:
    """REGARDS waits for nobody here; the journal, which may be shared, does not have it."""
    assert tracker._sync is not None
    tracker._sync.ask_unfinished()
    (state,) = tracker.snapshot().orders
    assert state.is_refused
    assert not state.waits_for_download
    assert not waits(tracker, hers)
    model = table_model(tracker.snapshot())
    assert model.headline == "No orders of yours"
    assert not model.counts
    assert not model.rows[0].actions
    drawn = text(tracker.snapshot())
    assert "belongs to another user" in drawn
    assert "waits for you" not in drawn
    assert " left" not in drawn
    others = Frames(tracker._shared.journal, tracker.tenant, account="another")
    assert others.orders["waits_for_download"].tolist() == [True]


@pytest.mark.usefixtures("not_asked")
@pytest.mark.parametrize("is_listed", [False, True])
def test_sync_learns_it_and_the_next_kernel_knows_it(
    tracker: OrderTracker, simulator: Simulator, hers: int, tmp_path: Path, *, is_listed: bool
) -> None:
    """The next kernel asks nothing for it. An order that REGARDS lists later is ours after all."""
    tracker.sync()
    assert is_refused(tracker, hers)
    tracker.stop()
    before = len(simulator.requests)
    again = tracker_of(simulator, tmp_path)
    assert is_refused(again, hers)
    assert not waits(again, hers)
    assert len(simulator.requests) == before
    if is_listed:
        simulator.service.orders[hers].owner = simulator.username
        again.sync()
        assert not is_refused(again, hers)
        assert waits(again, hers)


@pytest.mark.usefixtures("not_asked")
def test_frames_that_are_read_again_still_know_it(tracker: OrderTracker, hers: int) -> None:
    """Rows were removed from the journal, or it was replaced."""
    frames = tracker._shared.frames
    assert not any(state.is_refused for state in frames.states())
    frames.set_refused([hers], is_refused=True)
    frames.read_again()
    assert [state.is_refused for state in frames.states()] == [True]
    assert not frames.orders["waits_for_download"].any()


def test_a_wait_for_all_ends_without_it(
    simulator: Simulator, tracker: OrderTracker, hers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is learnt during the wait."""
    mine = simulator.order(OrderPlan(n_files=1, suborder_pause_s=0.5))
    until(lambda: mine in tracker.orders["order_id"].tolist())
    assert tracker.wait(timeout_s=30)["order_id"].tolist() == [mine]
    assert is_refused(tracker, hers)
    tracker.download(mine)
    capsys.readouterr()
    assert tracker.wait(timeout_s=30).empty
    assert "the only order is finished" in capsys.readouterr().out


def test_a_wait_for_nothing_else_says_so(
    tracker: OrderTracker, hers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the wait that learns it, and in the next one."""
    for _ in range(2):
        assert tracker.wait(timeout_s=30).empty
        assert "all orders belong to other users" in capsys.readouterr().out
    assert is_refused(tracker, hers)


@pytest.mark.usefixtures("not_asked")
def test_a_wait_with_a_download_fetches_ours(
    simulator: Simulator, tracker: OrderTracker, hers: int
) -> None:
    """It ends, without an error."""
    mine = simulator.order(ONE_FILE)
    until(lambda: waits(tracker, mine))
    assert tracker.wait(download=True, timeout_s=30)["order_id"].tolist() == [mine]
    assert not tracker.snapshot().background_errors
    assert len(list(tracker.files["order_id"])) == 1
    assert is_refused(tracker, hers)


def test_automatic_downloads_try_it_once(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an error; those of the user go on."""
    monkeypatch.setattr(AutoDownload, "first_retry_s", 0.01)
    tracker = tracker_of(simulator, tmp_path, auto_download=True)
    monkeypatch.setattr(tracker._sync, "ask_round", lambda: False)
    with tracker:
        hers = simulator.order(LONG, owner=JANE)
        until(lambda: is_refused(tracker, hers))
        tried = downloads(simulator, hers)
        for _ in range(2):
            mine = simulator.order(ONE_FILE)
            tracker.wait(mine, timeout_s=30)
            assert mine in tracker.files["order_id"].tolist()
        assert not tracker.snapshot().background_errors
        assert downloads(simulator, hers) == tried
        tracker.wait(timeout_s=30)


@pytest.mark.usefixtures("not_asked")
@pytest.mark.parametrize("has_process", [False, True])
def test_a_download_of_all_fetches_ours(
    simulator: Simulator, tracker: OrderTracker, hers: int, *, has_process: bool
) -> None:
    """The first call learns whose the other one is."""
    mine = simulator.order(ONE_FILE)
    until(lambda: waits(tracker, mine))
    if has_process:
        with ThreadPoolExecutor(2) as executor:
            assert tracker.download(process=len, executor=executor) == {mine: 1}
    else:
        assert len(tracker.download()) == 1
    assert is_refused(tracker, hers)
    assert tracker.download() == []


@pytest.mark.usefixtures("not_asked")
def test_a_call_that_names_it_says_why_there_are_no_files(
    tracker: OrderTracker, hers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """download() raises each time, and a wait for its files ends."""
    for _ in range(2):
        with pytest.raises(errors.NotAllowedError, match="another user"):
            tracker.download(hers)
    assert is_refused(tracker, hers)
    with pytest.raises(errors.NotAllowedError, match="another user"):
        next(tracker[hers].iter_parts())
    assert len(tracker.wait(hers, download=True, timeout_s=30)) == 1
    assert f"order {hers} belongs to another user" in capsys.readouterr().out
    with pytest.raises(errors.WaitTimeoutError, match="1 of 1 order is still running"):
        tracker.wait(hers, timeout_s=0.1)


def test_an_order_that_regards_shows_is_ours(simulator: Simulator, tracker: OrderTracker) -> None:
    """Then it is the role that does not allow the download, and that may change."""
    mine = simulator.order(ONE_FILE)
    until(lambda: waits(tracker, mine))
    simulator.faults.add(Reply(route=Route.ZIP, status=403, times=None))
    with pytest.raises(errors.NotAllowedError, match="403"):
        tracker.download()
    assert not is_refused(tracker, mine)
    assert waits(tracker, mine)
