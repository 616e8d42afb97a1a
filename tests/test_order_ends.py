"""How orders end: errors of the last run, files that are missing, downloads of several orders."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import client_of, interrupted_after, tracker_of, until

from regards_nb import Order, OrderEvent, OrderTracker, errors
from regards_nb.orders import OrderState
from regards_nb.simulator import (
    MissingEntry,
    OrderPlan,
    Outcome,
    PrivateBroker,
    Reply,
    Route,
    Simulator,
    Slow,
    StagingError,
    WrongChecksum,
)
from regards_nb.simulator import StorageRefuses as Refused

pytestmark = pytest.mark.simulator(with_broker=True)


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    with tracker_of(simulator, tmp_path) as tracker:
        yield tracker


def ended(simulator: Simulator, tracker: OrderTracker, plan: OrderPlan) -> Order:
    """Return an order of this plan that has ended."""
    number = simulator.order(plan)
    tracker.wait(number, timeout_s=60)
    return tracker[number]


TWO_LOST = tuple(StagingError(name=f"file_0000{index}.bin") for index in (4, 5))


def test_errors_are_those_of_the_last_run(simulator: Simulator, tracker: OrderTracker) -> None:
    """After a good retry the order is no longer among those with errors."""
    order = ended(simulator, tracker, OrderPlan(n_files=6, files_per_suborder=6, faults=TWO_LOST))
    assert (order.status, order.errors) == ("FAILED", 2)
    assert list(tracker.orders.query("errors > 0")["order_id"]) == [order.order_id]
    order.retry().wait(timeout_s=60)
    assert (order.status, order.errors) == ("DONE", None)
    assert tracker.orders.query("errors > 0").empty


def test_missing_files_of_both_kinds_end_alike(simulator: Simulator, tracker: OrderTracker) -> None:
    """Lost before the zip or in it: 4 of 6 files, and one error that names the other two."""
    in_zip = tuple(
        fault
        for index in (4, 5)
        for fault in (
            MissingEntry(name=f"file_0000{index}.bin"),
            Refused(name=f"file_0000{index}.bin", times=None),
        )
    )
    for faults in (TWO_LOST, in_zip):
        order = ended(simulator, tracker, OrderPlan(n_files=6, files_per_suborder=6, faults=faults))
        with pytest.raises(errors.IncompleteDownloadError) as caught:
            order.download()
        assert "2 of 6 files could not be downloaded; the other 4 are saved" in str(caught.value)
        with pytest.raises(errors.IncompleteDownloadError, match="2 of 6 files .* other 4 are"):
            order.download()  # what an earlier call has saved counts, too
        with pytest.raises(errors.IncompleteDownloadError, match="2 of 6 files .* other 4 are"):
            list(order.iter_parts())
        assert set(caught.value.missing) == {"file_00004.bin", "file_00005.bin"}
        assert len(caught.value.paths) == 4
        assert (order.state.downloaded_files, order.state.files_total) == (4, 6)


@pytest.mark.parametrize("auto_download", [False, True])
def test_a_file_that_fails_in_the_last_suborder_is_told_at_the_end(
    simulator: Simulator, tmp_path: Path, *, auto_download: bool
) -> None:
    """The wait that downloads the last part names it, also after a retry; it is in files."""
    lost = StagingError(name="file_00004.bin", reason="Tape not readable", times=2)
    with tracker_of(simulator, tmp_path, auto_download=auto_download) as tracker:
        number = simulator.order(OrderPlan(n_files=5, faults=[lost], suborder_pause_s=0.3))
        for _ in range(2):
            with pytest.raises(errors.TrackingError, match=r"1 of 5 files.*file_00004\.bin"):
                tracker.wait(number, download=not auto_download, timeout_s=60)
            files = tracker.files.query("state == 'FAILED'")
            assert list(files["name"]) == ["file_00004.bin"]
            assert "4/5 files" in tracker._repr_html_()
            tracker.retry(number)
        tracker.wait(number, download=True, timeout_s=60)
        assert (tracker.files["state"] == "VERIFIED").all()


def test_a_download_of_several_orders_does_what_it_can(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A denied order and one without files are told after the others are done."""
    one = ended(simulator, tracker, OrderPlan(n_files=1))
    denied = tracker.submit("dataset:FORBIDDEN")
    failed = ended(simulator, tracker, OrderPlan(outcome=Outcome.FAILED))
    empty = ended(simulator, tracker, OrderPlan(outcome=Outcome.NO_FILES))
    assert not tracker.orders.query("waits_for_download and order_id != @one.order_id").shape[0]
    with pytest.raises(
        errors.DownloadError, match="3 of 4 orders could not be downloaded"
    ) as caught:
        tracker.download(tracker.orders)
    for order in (denied, failed, empty):
        name = order.order_id or order.correlation_id
        assert f"order {name!r}" in str(caught.value)
    assert one.state.downloaded_files == 1
    for order in (failed, empty):
        for call in (order.download, lambda order=order: list(order.iter_parts())):
            with pytest.raises(errors.DownloadError, match="is FAILED.* no file"):
                call()
        order.wait(download=True)
        assert re.search("is FAILED.* no file", capsys.readouterr().out)
    shown = tracker._repr_html_()
    assert "3 failed" in shown
    assert "no file matches its filters (data_types, filename_regexp)" in shown
    simulator.expire(one.order_id or 0)
    tracker.sync()
    assert len(one.download()) == 1, "what was downloaded before is there"


def test_the_error_of_a_download_tells_of_each_order(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Also of one that did not fail and has no file so far, such as a paused one."""
    deleted = ended(simulator, tracker, OrderPlan(n_files=1))
    one = ended(simulator, tracker, OrderPlan(n_files=1))
    simulator.order(OrderPlan(n_files=1, suborder_pause_s=3600), correlation_id="paused")
    until(lambda: "paused" in tracker.orders.index.get_level_values("correlation_id"))
    paused = tracker["paused"].pause()
    deleted.cancel()
    with pytest.raises(errors.DownloadError, match="1 of 3 orders could not be") as caught:
        tracker.download(deleted, one, paused)
    number = paused.order_id
    assert f"REGARDS has not finished order {number}: tracker.wait(" in str(caught.value)
    assert f"order {number} is paused: tracker.resume({number})" in str(caught.value)
    assert one.state.downloaded_files == 1


def test_automatic_downloads_ask_nobody_to_download(simulator: Simulator, tmp_path: Path) -> None:
    """No snapshot says that an order waits for the user, unless its download has failed."""
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        snapshots = []
        number = simulator.order(OrderPlan(n_files=6, files_per_suborder=1))
        while not tracker.orders["finished"].any():
            snapshots.append(tracker.snapshot())
        tracker.wait(number, timeout_s=60)
        states = [state for snapshot in snapshots for state in snapshot.orders]
        assert {state.status for state in states} >= {"SUBORDER_DONE"}
        assert not any(state.waits_for_download for state in states)
        assert not any(snapshot.blocking for snapshot in snapshots)


def test_callbacks_of_all_events_can_be_taken_off(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Without a status a callback gets every event; off() ends that."""
    seen: list[OrderEvent] = []
    tracker.on(None, seen.append)
    ended(simulator, tracker, OrderPlan(n_files=1))
    until(lambda: [event.status for event in seen] == list(tracker.events["status"]))
    tracker.off(seen.append)
    told = len(seen)
    done: list[OrderEvent] = []
    tracker.on("DONE", done.append)
    tracker.download()
    ended(simulator, tracker, OrderPlan(n_files=1))
    until(lambda: done)
    assert len(seen) == told
    with pytest.raises(errors.SettingsError, match="no such callback"):
        tracker.off(seen.append)


def test_one_data_type_may_be_a_text(tracker: OrderTracker) -> None:
    """`data_types="RAWDATA"` means one type, and not its letters."""
    request = tracker.submit("dataset:X", data_types="RAWDATA", dry_run=True)
    assert request.body()["filters"] == {"dataTypes": ["RAWDATA"]}


def test_an_order_tells_its_label_and_errors(tracker: OrderTracker) -> None:
    """As attributes, like the columns of tracker.orders."""
    order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
    assert (order.label, order.errors) == ("one pass", None)


# -- files that are not here


def test_files_that_were_downloaded_elsewhere_are_called_so(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A new journal says how many they are and how to get them again; it is no error."""
    number = simulator.order(OrderPlan(n_files=3, file_bytes=400_000, files_per_suborder=3))
    (tmp_path / "new").mkdir()
    with tracker_of(simulator, tmp_path) as first:
        first.wait(number, download=True, timeout_s=60)
    with tracker_of(simulator, tmp_path / "new") as second:
        second.sync()
        told = r"already downloaded elsewhere \(3 files, 1\.2 MB\)"
        assert re.search(rf"{told}; download\(again=True\)", second._repr_html_())
        order = second[number]
        with pytest.warns(UserWarning, match=rf"order {number}: {told}.*until 20.*again=True"):
            assert order.download() == []
        assert not second.snapshot().background_errors
        assert len(order.download(again=True)) == 3
        assert (order.files["state"] == "VERIFIED").all()
        assert order.state.elsewhere_files == 0


def test_an_end_with_errors_and_files_elsewhere_is_incomplete(
    simulator: Simulator, tmp_path: Path
) -> None:
    """FAILED with two errors, and four files that another journal has: it is no total failure."""
    number = simulator.order(OrderPlan(n_files=6, files_per_suborder=6, faults=TWO_LOST))
    (tmp_path / "new").mkdir()
    with tracker_of(simulator, tmp_path) as first:
        first.wait(number, timeout_s=60)
        with pytest.raises(errors.IncompleteDownloadError):
            first.download(number)
    with tracker_of(simulator, tmp_path / "new") as second:
        second.sync()
        state = second[number].state
        assert (state.status, state.elsewhere_files) == ("FAILED", 4)
        assert "1 incomplete" in second._repr_html_()
        assert "already downloaded elsewhere (4 files)" in second._repr_html_()


def test_orders_that_others_downloaded_block_nothing(
    simulator: Simulator, broker: PrivateBroker, tmp_path: Path
) -> None:
    """The messages of a second queue announce files that a first tracker fetched: REST tells."""
    numbers = [simulator.order(OrderPlan(n_files=1)) for _ in range(2)]
    for number in numbers:
        simulator.wait_for(number, "DONE")
    simulator.flush()
    for number in numbers:
        client_of(simulator).download_order(number, tmp_path / str(number), show=False)
    with tracker_of(simulator, tmp_path) as tracker:
        until(lambda: tracker.orders["waits_for_download"].sum() == 2)
        tracker.sync()
        assert not tracker.orders["waits_for_download"].any()
        with pytest.warns(UserWarning, match=r"order 1: already downloaded elsewhere \(1 file, "):
            assert tracker.download(numbers[0]) == []


def test_a_cancelled_order_names_the_files_it_lacks(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Six of seven files are returned, with the name of the seventh and why it is missing."""
    lost = MissingEntry(name="file_00006.bin"), Refused(name="file_00006.bin", times=None)
    order = ended(simulator, tracker, OrderPlan(n_files=7, files_per_suborder=7, faults=lost))
    with pytest.raises(errors.IncompleteDownloadError):
        order.download()
    order.cancel()
    with pytest.raises(errors.IncompleteDownloadError, match="file_00006.bin") as caught:
        order.download()
    assert len(caught.value.paths) == 6
    assert set(caught.value.missing) == {"file_00006.bin"}
    assert "DELETED" in str(caught.value)


def test_a_denied_order_is_named_by_its_label(tracker: OrderTracker) -> None:
    """The correlation id is made up; the label is what the user knows."""
    order = tracker.submit("dataset:FORBIDDEN", label="the secret one")
    with pytest.raises(errors.SettingsError, match="order 'the secret one' has no number.*DENIED"):
        order.download()
    with pytest.raises(
        errors.NotAllowedError, match="order 'the secret one' has no number.*DENIED"
    ):
        order.pause()


def test_the_repr_of_an_order_says_why_it_failed(tracker: OrderTracker) -> None:
    """What submit() returns in a cell tells more than FAILED."""
    denied = tracker.submit("dataset:FORBIDDEN", correlation_id="d")
    assert re.fullmatch(r"<Order 'd' \(no number\): DENIED \(.*FORBIDDEN.*\)>", repr(denied))
    assert "(" not in repr(tracker.submit("dataset:SWOT_PASS_012")).split("): ")[1]


# -- orders that expired without a message


@pytest.mark.parametrize("again", [False, True])
def test_a_download_tells_and_keeps_that_an_order_expired(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path, *, again: bool
) -> None:
    """Its error names the order and the way on, and the journal has the new status."""
    order = ended(simulator, tracker, OrderPlan(n_files=2))
    simulator.expire(1)
    for _ in range(2):
        with pytest.raises(
            errors.DownloadError, match=r"^order 1 is EXPIRED: .*submit\(\)"
        ) as said:
            order.download(again=again)
        assert not re.search("retry|again", str(said.value))
    assert order.status == "EXPIRED"
    assert tracker.events["status"].iloc[-1] == "EXPIRED"
    with pytest.raises(errors.NotAllowedError, match=r"which is EXPIRED.*submit\(\)") as refused:
        order.retry()
    assert "download it" not in str(refused.value)
    tracker.stop()
    with tracker_of(simulator, tmp_path, client=None) as restarted:
        assert restarted[1].status == "EXPIRED"


def with_four_of_six_files(simulator: Simulator, tracker: OrderTracker) -> int:
    """Return an order that expired when four of its six files had been fetched."""
    number = simulator.order(OrderPlan(n_files=6, files_per_suborder=2))
    tracker.wait(number, until="part", timeout_s=60)
    simulator.wait_available(number, files=4)
    assert len(tracker.download(number)) == 4
    simulator.wait_available(number, files=2)
    simulator.expire(number)
    return number


def test_an_expired_order_counts_the_files_that_were_never_ready_here(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Four of six files are in place; the order expires before the others are fetched."""
    number = with_four_of_six_files(simulator, tracker)
    with pytest.raises(errors.IncompleteDownloadError, match=r"EXPIRED.*file_00005") as said:
        tracker.download(number)
    assert len(said.value.paths) == 4
    assert tracker[number].status == "EXPIRED"
    assert "1 incomplete" in tracker._repr_html_()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_new_process_names_what_an_expired_order_lacks(
    status: int, simulator: Simulator, tracker: OrderTracker, tmp_path: Path
) -> None:
    """REGARDS may still list the files. Where it does not, the error says how many are missing."""
    number = with_four_of_six_files(simulator, tracker)
    tracker.sync()
    tracker.stop()
    if status != 200:
        simulator.faults.add(Reply(route=Route.ORDER, status=status, times=None))
    with tracker_of(simulator, tmp_path) as restarted:
        said = "file_00005" if status == 200 else "any more: 2 files"
        with pytest.raises(errors.IncompleteDownloadError, match=rf"has deleted.*{said}") as caught:
            restarted.download(number)
        assert len(caught.value.paths) == 4
        missing = restarted.files.query("path.isna()")["name"].tolist()
        assert missing == (["file_00004.bin", "file_00005.bin"] if status == 200 else [])


@pytest.mark.parametrize("status", [404, 410, 422])
def test_a_file_that_regards_refuses_is_told_once(
    status: int, simulator: Simulator, tracker: OrderTracker
) -> None:
    """Its reason stands once in the error, which does not advise to download it again."""
    name = "file_00001.bin"
    reason = f"Server returned HTTP error code {status}"
    lost = MissingEntry(name=name, reason=reason), Refused(name=name, status=status, times=None)
    order = ended(simulator, tracker, OrderPlan(n_files=2, faults=lost))
    for _ in range(2):
        with pytest.raises(errors.IncompleteDownloadError) as said:
            order.download()
        assert str(said.value).count(str(status)) == 1
        assert not re.search("again|download to retry", str(said.value))
        assert "restart()" in str(said.value)


def test_a_file_that_fails_again_is_one_for_the_administrator(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """As docs/errors.md says: download again, and if it fails again, tell the administrator."""
    wrong = WrongChecksum(name="file_00001.bin", times=None)
    order = ended(simulator, tracker, OrderPlan(n_files=2, faults=[wrong]))
    with pytest.raises(errors.IncompleteDownloadError, match="download again to retry this file;"):
        order.download()
    with pytest.raises(
        errors.IncompleteDownloadError,
        match="this file; it failed in an earlier download, too: tell the administrator",
    ):
        order.download()


def test_a_stopped_download_says_what_is_saved(
    simulator: Simulator,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And that the same call goes on, which it does."""
    order = ended(
        simulator, tracker, OrderPlan(n_files=30, file_bytes=100_000, files_per_suborder=30)
    )
    slow = simulator.faults.add(Slow(route=Route.ZIP, bytes_per_s=1_500_000, times=None))

    def interrupt() -> None:
        until(lambda: order.state.downloaded_files)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(errors.StoppedWaiting, match=r"\d+ of 30 files of order 1 saved.*same call"):
        order.download()
    thread.join()
    simulator.faults.remove(slow)
    with pytest.raises(errors.SettingsError, match="process must be a function.*'total'"):
        tracker.download(1, process="total")  # type: ignore[call-overload]
    # Also without a name, while a download of it runs, which may be the stopped one.
    tracker.download_soon(order.key)
    assert len(tracker.download()) == 30
    assert tracker.download(again=True) == []
    assert "name their orders: tracker.download(12, again=True)" in capsys.readouterr().out
    held = simulator.faults.add(Slow(delay_s=600))
    with (
        interrupted_after(lambda _: not simulator.faults.is_armed(held), monkeypatch),
        pytest.raises(errors.StoppedWaiting, match="30 of 30 files of order 1 are here, from this"),
    ):
        tracker.download(1, again=True)
    simulator.stop()


def test_files_that_expired_are_told_by_each_call_that_downloads(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop over the parts ends as if all were processed; a wait returns a frame."""
    order = ended(simulator, tracker, OrderPlan(n_files=1))
    simulator.expire(order.order_id or 0)
    order.wait()
    assert order.status == "EXPIRED"
    told = "order 1 is EXPIRED: REGARDS has deleted its files, and none of them is here"
    for _ in range(2):
        order.wait(download=True)
        assert told in capsys.readouterr().out
        with pytest.raises(errors.DownloadError, match=told):
            list(order.iter_parts())
        tracker.sync()


def test_a_loop_over_parts_waits_for_the_download_that_runs(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Within its time limit, and then gets the files; so does a loop over what is here already."""
    order = ended(simulator, tracker, OrderPlan(n_files=1))
    slow = simulator.faults.add(Slow(route=Route.ZIP, delay_s=1.5))
    tracker.download_soon(order.key)
    until(lambda: order.state.downloading and not simulator.faults.is_armed(slow))
    with pytest.raises(
        errors.WaitTimeoutError, match="the files of order 1 are not all downloaded"
    ):
        list(order.iter_parts(timeout_s=0.1))
    for _ in range(2):
        assert [len(part) for part in order.iter_parts(timeout_s=30)] == [1]


def test_missing_files_are_an_error_in_each_kernel(simulator: Simulator, tmp_path: Path) -> None:
    """Of two kernels with auto_download one downloads, and both waits name what is missing."""
    name = "file_00000.bin"
    faults = [MissingEntry(name=name), Refused(name=name, times=None)]
    simulator.faults.add(Slow(route=Route.ZIP, delay_s=1))
    with (
        tracker_of(simulator, tmp_path, auto_download=True) as one,
        tracker_of(simulator, tmp_path, auto_download=True) as two,
    ):
        number = simulator.order(OrderPlan(n_files=2, faults=faults))
        for tracker in (one, two):
            with pytest.raises(errors.TrackingError, match=f"order {number}.*{name}"):
                tracker.wait(number, timeout_s=60)


def test_an_order_of_which_no_message_told_has_the_time_of_its_answers(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Made and cancelled by a tracker that does not listen, it did not begin in 1970."""
    tracker = tracker_of(simulator, tmp_path)
    order = tracker.submit("dataset:SWOT_PASS_012")
    order.cancel()
    (row,) = tracker.orders.itertuples()
    assert row.status == "DELETED"
    assert row.first_event.year == row.last_event.year > 2020


def test_old_messages_do_not_take_back_what_rest_has_told(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A restarted kernel shows the same without REGARDS, also when the messages come late."""
    number = simulator.order(OrderPlan(n_files=4, files_per_suborder=2), correlation_id="c")
    paths = client_of(simulator).download_order(number, tmp_path / "other", show=False)
    simulator.wait_for(number, "DONE")
    simulator.flush()
    ended_s = time.time()
    until(lambda: time.time() >= int(ended_s) + 2)  # messages and HTTP dates have whole seconds

    def shown(tracker: OrderTracker) -> OrderState:
        assert "already downloaded elsewhere (4 files, " in tracker._repr_html_()
        assert "1 to download" not in tracker._repr_html_()
        return tracker[label].state

    tracker = tracker_of(simulator, tmp_path)
    tracker.sync()
    label = tracker[number].label
    before = shown(tracker)
    simulator.faults.add(Reply(route=Route.ANY, status=503, times=None))
    again = tracker_of(simulator, tmp_path)
    assert shown(again) == before
    with again:
        until(lambda: len(again.events.query("app_id != 'REST'")) >= 4)
        late = shown(again)
    assert (late.elsewhere_files, late.waits_for_download) == (len(paths), False)
    assert late.suborders_done == 2
