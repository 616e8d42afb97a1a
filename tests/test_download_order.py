"""Orders as a whole: increments, reruns, both ways, progress, and the helper without a tracker."""

from __future__ import annotations

import re
import threading
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from conftest import client_of, interrupted_after
from download_kit import files_named, world

from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    OrderNotFoundError,
    ServiceLoginError,
    ServiceUnreachableError,
    StoppedWaiting,
    WaitTimeoutError,
    WorkspaceError,
)
from regards_nb.files import FileState
from regards_nb.simulator import (
    CutZip,
    FileSpec,
    LateSave,
    MissingEntry,
    OrderPlan,
    Outcome,
    Reply,
    Route,
    Slow,
    StorageRefuses,
)

if TYPE_CHECKING:
    from pathlib import Path

    from regards_nb.download import Progress

QUICK = {"poll_s": 0.02, "backoff_s": 0.01}


def test_an_order_of_forty_sub_orders_runs_through_by_itself(tmp_path: Path) -> None:
    """The server stalls after two parts until they are fetched; the helper keeps it going."""
    plan = OrderPlan(n_files=40, file_bytes=3000, files_per_suborder=1)
    with world(tmp_path, plan) as here:
        paths = here.client.download_order(here.order_id, here.folder, **QUICK)
        assert [path.name for path in paths] == sorted(here.expected)
        assert here.found == here.expected
        assert here.zips >= 20
        # everything is known now: no byte is fetched twice
        zips, singles = here.zips, here.singles
        assert here.client.download_order(here.order_id, here.folder, **QUICK) == paths
        assert (here.zips, here.singles) == (zips, singles)


def test_without_a_tracker_the_progress_is_shown_unless_it_is_not_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line counts all files; who follows it by a callback, or wants none, sees none."""
    plan = OrderPlan(n_files=6, file_bytes=3000, files_per_suborder=1)
    with world(tmp_path, plan) as here:
        here.client.download_order(here.order_id, here.folder, **QUICK)
        *_, last = capsys.readouterr().out.splitlines()
        done, before = re.findall(r"verified (\d+)/|, (\d+) files before", last)
        assert int(done[0]) + int(before[1]) == 6
        ways: list[dict[str, Any]] = [{"show": False}, {"on_progress": str}]
        for number, quiet in enumerate(ways):
            here.client.download_order(here.order_id, tmp_path / f"{number}", **QUICK, **quiet)
            assert not capsys.readouterr().out


def test_without_a_tracker_a_wait_names_the_order_and_what_blocks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGARDS prepares nothing more while another order waits; Ctrl-C says what is here."""
    with world(tmp_path, OrderPlan(n_files=4, files_per_suborder=1)) as here:
        here.simulator.wait_available(here.order_id, files=2)
        behind = here.simulator.order(OrderPlan(n_files=1))
        why = (
            r"order 2 is \w+: waiting for more files of it. REGARDS prepares at most two "
            "sub-orders per user, and order 1 waits for a download\n"
        )
        late = here.simulator.faults.add(Slow(route=Route.ORDER, delay_s=60))
        with (
            interrupted_after(lambda _: not here.simulator.faults.is_armed(late), monkeypatch),
            pytest.raises(StoppedWaiting, match="^stopped before a file was fetched: call it"),
        ):
            here.client.download_order(behind, here.folder)
        with (
            interrupted_after(lambda told: re.search(why, told) is not None, monkeypatch),
            pytest.raises(StoppedWaiting, match="^stopped; 0 files of order 2 saved.*same call"),
        ):
            here.client.download_order(behind, here.folder)


def test_without_a_tracker_a_refused_login_names_the_order(tmp_path: Path) -> None:
    """A script downloads many orders, and its error is all that a log holds."""
    with world(tmp_path) as here:
        client = client_of(here.simulator, password="wrong")
        with pytest.raises(
            ServiceLoginError, match=rf"^order {here.order_id}: .*refused the login"
        ):
            client.download_order(here.order_id, here.folder)


def test_files_that_were_removed_or_downloaded_before_come_back_one_by_one(tmp_path: Path) -> None:
    """They are in no manifest any more; their ids still serve them."""
    with world(tmp_path) as here:
        client, order_id = here.client, here.order_id
        paths = client.download_order(order_id, here.folder, **QUICK)
        paths[2].unlink()
        assert client.download_order(order_id, here.folder, **QUICK) == paths
        assert here.found == here.expected
        assert here.singles == 1
        # and to another folder, of another computer as it were
        elsewhere = client.download_order(order_id, tmp_path / "elsewhere", **QUICK)
        assert [path.name for path in elsewhere] == [path.name for path in paths]
        assert here.zips == 1


def test_an_increment_leaves_alone_what_the_user_took_away(tmp_path: Path) -> None:
    """Who processes a part and removes it does not get it again with the next part."""
    with world(tmp_path, OrderPlan(n_files=6, file_bytes=100, files_per_suborder=2)) as here:
        here.simulator.wait_available(here.order_id, files=4)
        first = here.fetch()
        for path in first:
            path.unlink()
        here.simulator.wait_available(here.order_id, files=2)
        second = here.fetch()
        assert len(second) == 2
        assert set(here.found) == {path.name for path in second}
        assert here.fetch() == []


def test_a_file_says_when_it_was_fetched(tmp_path: Path) -> None:
    """A file that another download has put there already was found, and not fetched."""
    began_us = time.time_ns() // 1000
    with world(tmp_path) as here:
        here.fetch()
        assert {record.state for record in here.records.values()} == {FileState.VERIFIED}
        assert all(r.fetched_at_us >= began_us for r in here.records.values())
    other = tmp_path / "other"
    other.mkdir()
    with world(other) as here:
        here.folder = tmp_path / "files"
        here.fetch()
        assert len(here.records) == 6
        assert [record.fetched_at_us for record in here.records.values()] == [None] * 6


def test_nothing_new_is_no_error(tmp_path: Path) -> None:
    """Before anything is ready, and after everything was fetched."""
    with world(tmp_path) as here:
        assert here.fetch()
        again = here.fetch()
        assert again == []
        assert here.zips == 1


def test_a_server_that_saves_late_is_waited_for(tmp_path: Path) -> None:
    """Files that are still listed right after their zip are not fetched twice."""
    with world(tmp_path, None, LateSave(delay_s=0.5)) as here:
        here.fetch()
        assert here.fetch() == []
        assert (here.zips, here.singles) == (1, 0)


def test_what_failed_is_tried_again_by_the_next_increment(tmp_path: Path) -> None:
    """A file that could not be had is recorded with its reason, and comes when it can."""
    with world(tmp_path, None, MissingEntry(name="file_00002.bin")) as here:
        gone = here.simulator.faults.add(StorageRefuses(name="file_00002.bin", times=None))
        with pytest.raises(IncompleteDownloadError):
            here.fetch()
        record = here.records["file_00002.bin"]
        assert record.state is FileState.FAILED
        assert record.error is not None
        assert "no longer has this file" in record.error
        here.simulator.faults.remove(gone)
        assert [path.name for path in here.fetch()] == ["file_00002.bin"]
        assert here.found == here.expected
        assert here.records["file_00002.bin"].error is None


def test_external_files_that_were_asked_for_one_by_one_are_released_all_the_same(
    tmp_path: Path,
) -> None:
    """The files are there, and one zip tells the server so."""
    plan = OrderPlan(files=files_named("a.nc", "b.nc", reference=True), files_per_suborder=2)
    seen: list[Progress] = []
    with world(tmp_path, plan) as here:
        here.fetch(way="files", on_progress=seen.append)
        assert here.found == here.expected
        assert here.client.order(here.order_id).available_files == 0
        assert (seen[-1].files_done, seen[-1].files_total) == (2, 2)


def test_external_files_go_by_the_zip(tmp_path: Path) -> None:
    """Fetched one by one they would keep the order waiting for ever."""
    files = files_named("a.nc", reference=True) + files_named("b.nc")
    with world(tmp_path, OrderPlan(files=files, files_per_suborder=2)) as here:
        here.fetch()
        assert here.found == here.expected
        assert (here.zips, here.singles) == (1, 0)
        states = {record.name: record.state for record in here.records.values()}
        assert states == {"a.nc": FileState.UNVERIFIED, "b.nc": FileState.VERIFIED}
        assert here.records["a.nc"].size_bytes == 20_000


def test_files_without_a_checksum_are_checked_by_size(tmp_path: Path) -> None:
    """They are there and called unverified; a notice about them counts."""
    files = files_named("a.nc", "b.nc", has_checksum=False)
    plan = OrderPlan(files=files, files_per_suborder=2)
    with world(tmp_path, plan, MissingEntry(name="b.nc")) as here:
        here.fetch()
        assert here.found == here.expected
        assert here.singles == 1
        assert {record.state for record in here.records.values()} == {FileState.UNVERIFIED}


def test_the_zip_itself_can_be_kept(tmp_path: Path) -> None:
    """extract=False: one verified zip instead of its files."""
    with world(tmp_path, OrderPlan(n_files=4, file_bytes=90_000, files_per_suborder=4)) as here:
        fetched = here.fetch(extract=False)
        assert [path.name for path in fetched] == [f"order_{here.order_id}.zip"]
        with zipfile.ZipFile(fetched[0]) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == here.expected
        assert {record.state for record in here.records.values()} == {FileState.VERIFIED}
        assert here.fetch(extract=False) == []


def test_a_kept_zip_is_one_path_and_is_extracted_later(tmp_path: Path) -> None:
    """One path for the zip; extract=True takes the files from it, and asks REGARDS for nothing."""
    with world(tmp_path, OrderPlan(n_files=4, file_bytes=90_000, files_per_suborder=4)) as here:
        client, order_id = here.client, here.order_id
        paths = client.download_order(order_id, here.folder, extract=False, **QUICK)
        assert [path.name for path in paths] == [f"order_{order_id}.zip"]
        assert client.download_order(order_id, here.folder, extract=False, **QUICK) == paths
        asked = here.zips, here.singles
        found = client.download_order(order_id, here.folder, **QUICK)
        assert {path.name: path.read_bytes() for path in found} == here.expected
        assert (here.zips, here.singles) == asked
        assert paths[0].exists()


def test_files_that_a_kept_zip_no_longer_holds_are_fetched(tmp_path: Path) -> None:
    """A kept zip that was cut gives the files that are whole in it; the others are fetched."""
    with world(tmp_path, OrderPlan(n_files=4, file_bytes=90_000, files_per_suborder=4)) as here:
        (path,) = here.fetch(extract=False)
        with path.open("r+b") as file:
            file.truncate(200_000)
        here.fetch()
        assert here.found == here.expected | {path.name: path.read_bytes()}
        assert here.singles == 2


def test_a_zip_that_is_not_whole_is_not_kept(tmp_path: Path) -> None:
    """Its files come one by one instead."""
    with world(tmp_path, None, CutZip()) as here:
        here.fetch(extract=False)
        assert here.found == here.expected


def test_progress_is_told_a_few_times_and_ends_at_the_whole(tmp_path: Path) -> None:
    """Files and bytes grow to their totals, in the caller's thread, not too often."""
    seen: list[tuple[Progress, threading.Thread]] = []
    plan = OrderPlan(n_files=30, file_bytes=50_000, files_per_suborder=30)
    slow = Slow(route=Route.ZIP, bytes_per_s=1_500_000)
    with world(tmp_path, plan, slow) as here:
        here.fetch(on_progress=lambda p: seen.append((p, threading.current_thread())))
    last, _ = seen[-1]
    assert {thread for _, thread in seen} == {threading.current_thread()}
    assert (last.files_done, last.files_total, last.verified) == (30, 30, 30)
    assert (last.bytes_done, last.bytes_total) == (1_500_000, 1_500_000)
    assert [p.bytes_done for p, _ in seen] == sorted(p.bytes_done for p, _ in seen)
    assert {p.phase for p, _ in seen} >= {"manifest", "zip", "done"}
    assert 3 <= len(seen) <= 4 + 5 * last.elapsed_s
    assert "verified 30/30" in str(last)
    assert last.bytes_per_s > 0
    assert last.remaining_s == 0


def test_a_partial_order_returns_what_there_is_and_names_the_rest(tmp_path: Path) -> None:
    """FAILED with a link: three of four files are in place, and the error names the fourth."""
    plan = OrderPlan(n_files=4, file_bytes=100, files_per_suborder=2, outcome=Outcome.PARTIAL)
    with world(tmp_path, plan) as here:
        with pytest.raises(IncompleteDownloadError, match="1 of 4") as caught:
            here.client.download_order(here.order_id, here.folder, **QUICK)
        assert set(caught.value.missing) == {"file_00003.bin"}
        assert len(here.found) == 3


def test_an_order_without_files_is_an_error(tmp_path: Path) -> None:
    """An expired order has nothing to give, and that is said."""
    with world(tmp_path) as here:
        here.simulator.expire(here.order_id)
        with pytest.raises(DownloadError):
            here.client.download_order(here.order_id, here.folder, **QUICK)
        assert here.found == {}


def test_an_unknown_order_is_said_before_anything_is_made(tmp_path: Path) -> None:
    """No folder is left behind for an order that does not exist."""
    with world(tmp_path) as here:
        with pytest.raises(OrderNotFoundError):
            here.client.download_order(4711, here.folder)
        assert not here.folder.exists()


def test_a_paused_order_does_not_wait_for_ever(tmp_path: Path) -> None:
    """What was ready is in place, and the error says how to go on."""
    plan = OrderPlan(n_files=9, file_bytes=100, files_per_suborder=3)
    with world(tmp_path, plan) as here:
        here.client.pause(here.order_id)
        with pytest.raises(DownloadError, match=r"client\.resume"):
            here.client.download_order(here.order_id, here.folder, **QUICK)
        assert len(here.found) >= 3
        here.client.resume(here.order_id)
        assert len(here.client.download_order(here.order_id, here.folder, **QUICK)) == 9


def test_a_time_limit_ends_the_waiting_and_keeps_the_files(tmp_path: Path) -> None:
    """The server prepares the next part for an hour: the limit is kept."""
    plan = OrderPlan(n_files=3, file_bytes=100, files_per_suborder=1)
    with world(tmp_path, plan) as here:
        here.simulator.wait_available(here.order_id, files=2)
        here.simulator.faults.add(Slow(route=Route.ZIP, delay_s=0))
        here.client.pause(here.order_id)
        frozen = Reply(
            route=Route.ORDER,
            times=None,
            body=b'{"content":{"id":1,"status":"RUNNING"},"links":[]}',
            status=200,
        )
        here.simulator.faults.add(frozen)
        with pytest.raises(WaitTimeoutError, match="still being prepared"):
            here.client.download_order(here.order_id, here.folder, timeout_s=0.3, **QUICK)
        assert len(here.found) == 2


def test_the_server_may_be_away_for_a_while_but_not_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restart of the gateway is survived, and told; a server that is gone is an error."""
    with world(tmp_path) as here:
        away = Reply(route=Route.AVAILABLE, status=503, times=9)
        here.simulator.faults.add(away)
        assert len(here.client.download_order(here.order_id, here.folder, **QUICK)) == 6
        assert re.search(r"order 1: GET .*503.* after a pause \(1 of 6\)", capsys.readouterr().out)
        here.simulator.faults.add(Reply(route=Route.ANY, status=503, times=None))
        with pytest.raises(ServiceUnreachableError):
            here.client.download_order(here.order_id, tmp_path / "other", **QUICK)


def test_a_place_that_cannot_be_written_is_a_workspace_error(tmp_path: Path) -> None:
    """The helper says so before it asks for anything that costs."""
    (tmp_path / "file").write_text("in the way")
    with world(tmp_path) as here:
        with pytest.raises(WorkspaceError):
            here.client.download_order(here.order_id, tmp_path / "file", **QUICK)
        assert here.zips == 0


def test_content_of_every_kind_goes_through(tmp_path: Path) -> None:
    """Empty, one byte, just around the sizes at which it is handled differently."""
    sizes = [0, 1, 1023, 1024, 65_535, 65_536, 65_537, 262_144, 524_288, 524_289, 1_500_000]
    files = [
        spec
        for size in sizes
        for spec in (
            FileSpec(name=f"zeros_{size}", content=bytes(size)),
            FileSpec(name=f"text_{size}", content=b"x" * size),
            *files_named(f"noise_{size}", size_bytes=size),
        )
    ]
    plan = OrderPlan(files=files, files_per_suborder=len(files))
    for way in ("zip", "files"):
        folder = tmp_path / way
        folder.mkdir()
        with world(folder, plan) as here:
            here.fetch(way=way)
            assert here.found == here.expected
