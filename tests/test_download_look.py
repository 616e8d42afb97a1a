"""A path that `download` returns exists, and holds what was verified: files are looked at."""

from __future__ import annotations

import _thread
import errno
import io
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from conftest import client_of, until
from download_kit import files_named, world

from regards_nb import OrderTracker
from regards_nb.display import text
from regards_nb.download import FolderFiles
from regards_nb.errors import DownloadError, IncompleteDownloadError, StoppedWaiting
from regards_nb.simulator import OrderPlan, Outcome, Simulator, Slow, StorageRefuses
from regards_nb.waits import is_stopped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from regards_nb.simulator import PrivateBroker

pytestmark = pytest.mark.simulator(with_broker=True)

SIX = OrderPlan(n_files=6, file_bytes=20_000, files_per_suborder=6)


def tracker_in(folder: Path, simulator: Simulator, **options: object) -> OrderTracker:
    """Return a tracker whose journal and files are in one folder."""
    return OrderTracker(
        simulator.amqp_url,
        simulator.queue,
        client=client_of(simulator),
        tenant=simulator.tenant,
        journal=folder / ".regards" / "journal.sqlite",
        workspace=folder / "orders",
        **options,  # type: ignore[arg-type]
    )


@contextmanager
def tracked(
    folder: Path, simulator: Simulator, number: int, **options: object
) -> Iterator[OrderTracker]:
    """Follow an order of the simulator."""
    with tracker_in(folder, simulator, **options) as tracker:
        until(lambda: number in set(tracker.orders["order_id"]))
        yield tracker


def downloaded(simulator: Simulator) -> int:
    """Count the requests for files and zips."""
    paths = [seen.path for seen in simulator.requests]
    return sum(path.endswith("/download") or "/orders/files/" in path for path in paths)


@pytest.mark.usefixtures("_says_at_once")
def test_a_comparison_of_md5_sums_is_told(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads all files: a view says so, and a call without a view says it in a line."""
    said, written = "comparing the files in place", io.StringIO()
    has = FolderFiles.has

    def has_late(*arguments: Any, **options: Any) -> bool:
        until(lambda: said in text(tracker.snapshot()) + written.getvalue(), within_s=20)
        return has(*arguments, **options)

    with tracker_in(tmp_path, simulator) as tracker:
        number = simulator.order(OrderPlan(n_files=1))
        tracker.wait(number, download=True)
        monkeypatch.setattr(FolderFiles, "has", has_late)
        tracker.download(number, checksum=True)
        monkeypatch.setattr(sys, "stdout", written)
        assert tracker.verify(checksum=True).empty
    assert f"{said} with their MD5\n" in written.getvalue()


@pytest.mark.parametrize("is_linked", [True, False])
def test_files_that_go_to_another_folder_are_told(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_linked: bool
) -> None:
    """They are compared with their MD5, or copied to another file system: a view says how far."""
    seen, blocks, link = list[str](), FolderFiles.blocks, os.link

    def blocks_late(files: FolderFiles, name: str) -> Iterator[bytes]:
        for block in blocks(files, name):
            yield block
            until(lambda: told() in tracker[number].state.download_note, within_s=20)
            seen.append(name)

    def told() -> str:
        does = (
            "comparing the files of order {} with their MD5"
            if is_linked
            else "copying the files of order {}"
        )
        where = f"{'in' if is_linked else 'from'} {tmp_path / 'orders' / str(number)}"
        how_far = f"{len(seen)} of 2 files ({20 * len(seen) + 20}.0 kB of 40.0 kB)"
        return f"{does.format(number)}: {how_far}, {where}"

    def link_in_place(source: str, target: str, **options: bool) -> None:
        if not is_linked and ".part" not in source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **options)

    number = simulator.order(OrderPlan(n_files=2, file_bytes=20_000))
    with tracked(tmp_path, simulator, number) as tracker:
        tracker.wait(number, download=True)
        first = tracker.download(number)
        monkeypatch.setattr(FolderFiles, "blocks", blocks_late)
        monkeypatch.setattr(os, "link", link_in_place)
        paths = tracker.download(number, directory=tmp_path / "other")
        assert seen == [path.name for path in paths]
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in first]
        inodes = [{path.stat().st_ino for path in each} for each in (first, paths)]
        assert (inodes[0] == inodes[1]) == is_linked


@pytest.mark.parametrize("option", ["checksum", "directory"])
def test_the_reading_of_a_large_file_is_stopped(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """stop() ends it after a block, and no part of the file gets a final name."""
    began, blocks, other = threading.Event(), FolderFiles.blocks, tmp_path / "other"

    def blocks_until_stopped(files: FolderFiles, name: str) -> Iterator[bytes]:
        for block in blocks(files, name):
            began.set()
            until(is_stopped)
            yield block

    options = {option: True if option == "checksum" else other}
    number = simulator.order(OrderPlan(n_files=1, file_bytes=3 << 20))
    with tracked(tmp_path, simulator, number) as tracker, ThreadPoolExecutor(1) as pool:
        tracker.wait(number, download=True)
        monkeypatch.setattr(FolderFiles, "blocks", blocks_until_stopped)
        call = pool.submit(tracker.download, number, **options)
        until(lambda: began.is_set() or call.done())
        tracker.stop()
        with pytest.raises(DownloadError, match="was stopped while .* was read"):
            call.result()
        assert not other.exists() or list(other.iterdir()) == []
        assert (tracker.files["state"] == "VERIFIED").all()


def test_ctrl_c_tells_how_many_files_were_copied(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are verified in the workspace are not in the other folder."""
    blocks, other = FolderFiles.blocks, tmp_path / "other"

    def blocks_until_stopped(files: FolderFiles, name: str) -> Iterator[bytes]:
        yield from blocks(files, name)
        _thread.interrupt_main()
        until(is_stopped)

    number = simulator.order(OrderPlan(n_files=2, file_bytes=20_000))
    with tracked(tmp_path, simulator, number) as tracker:
        tracker.wait(number, download=True)
        monkeypatch.setattr(FolderFiles, "blocks", blocks_until_stopped)
        told = rf"^stopped; [01] of 2 files of order {number} in {other} saved and verified so far"
        with pytest.raises(StoppedWaiting, match=told):
            tracker.download(number, directory=other)


def test_removed_and_cut_files_are_fetched_again(simulator: Simulator, tmp_path: Path) -> None:
    """All returned paths exist with the right content; the rest is not fetched a second time."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        content = {path: path.read_bytes() for path in paths}
        assert len(content) == 6
        paths[0].unlink()
        paths[1].write_bytes(content[paths[1]][:100])
        before = downloaded(simulator)
        again = tracker[number].download()
        assert sorted(path.read_bytes() for path in again) == sorted(content.values())
        assert downloaded(simulator) == before + 2
        # the cut file held nothing but the beginning of the good one, which takes its place
        assert again == paths
        assert set(tracker.files["path"]) == {str(path) for path in again}
        assert (tracker.files["state"] == "VERIFIED").all()
        assert tracker.download(number) == again
        assert downloaded(simulator) == before + 2


def test_a_file_that_the_user_changed_is_kept_and_named(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is shorter than the verified one and has other content: the view says what is where."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        paths[1].write_text("my notes")
        told = (
            f"order {number}: {paths[1].name} has other content and is kept; the file of the "
            f"archive is {paths[1].stem} (2){paths[1].suffix} beside it"
        )
        capsys.readouterr()
        again = tracker.download(number)
        assert told in capsys.readouterr().out
        assert paths[1].read_text() == "my notes"
        assert again[1].name == f"{paths[1].stem} (2){paths[1].suffix}"
        assert tracker.download(number, again=True) == again
        assert told not in capsys.readouterr().out, "it is told once"


def test_a_file_in_the_way_of_an_automatic_download_is_named(
    simulator: Simulator, tmp_path: Path
) -> None:
    """No call waits for it, so the views say it."""
    mine = tmp_path / "orders" / "1" / "file_00000.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number, auto_download=True) as tracker:
        until(lambda: tracker.orders["downloaded_files"].item() == 6)
        until(lambda: "file_00000 (2).bin" in str(tracker.snapshot().background_errors))
    assert mine.read_text() == "mine"


def test_changed_files_are_found_and_fetched_where_the_checksum_is_asked_for(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A changed file of the same size shows only in its MD5."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        right = paths[2].read_bytes()
        paths[2].write_bytes(right[::-1])
        assert tracker.verify().empty
        found = tracker.verify(number, checksum=True)
        assert list(found["path"]) == [str(paths[2])]
        assert list(found["problem"]) == ["changed"]
        assert tracker.download(number) == paths
        repaired = tracker.download(number, checksum=True)
        assert repaired[2].read_bytes() == right
        assert paths[2].read_bytes() == right[::-1]
        assert tracker.verify(checksum=True).empty


def test_verify_names_what_is_missing_and_cut(simulator: Simulator, tmp_path: Path) -> None:
    """One row for each wrong file; the frame calls a removed file REMOVED; nothing is fetched."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        assert tracker.verify().empty
        assert list(tracker.verify().columns) == [
            "order_id", "correlation_id", "name", "path", "size_bytes", "found_bytes", "problem"
        ]  # fmt: skip
        paths[0].unlink()
        paths[1].write_bytes(paths[1].read_bytes()[:100])
        before = downloaded(simulator)
        found = tracker.verify(number)
        assert dict(zip(found["path"], found["problem"], strict=True)) == {
            str(paths[0]): "missing",
            str(paths[1]): "cut",
        }
        assert found["found_bytes"].tolist()[1] == 100
        states = dict(zip(tracker.files["path"], tracker.files["state"], strict=True))
        assert states[str(paths[0])] == "REMOVED"
        assert states[str(paths[1])] == "VERIFIED"
        assert downloaded(simulator) == before
        tracker.download(number)
        assert (tracker.files["state"] == "VERIFIED").all()


def test_auto_download_leaves_alone_what_the_user_removed(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The next sub-order does not bring the removed files of the last one back."""
    number = simulator.order(OrderPlan(n_files=6, file_bytes=100, files_per_suborder=2))
    with tracked(tmp_path, simulator, number, auto_download=True) as tracker:
        until(lambda: (tracker.files["state"] == "VERIFIED").sum() >= 2)
        first = tracker.files["path"].iloc[0]
        (tmp_path / "orders" / str(number) / first).unlink()
        until(lambda: tracker.orders["downloaded_files"].item() == 6)
        assert tracker.files["state"].value_counts()["REMOVED"] == 1


def test_a_folder_that_moves_with_its_journal_just_works(
    simulator: Simulator, tmp_path: Path
) -> None:
    """After the rename all paths exist, and nothing is fetched again."""
    number = simulator.order(SIX)
    with tracked(tmp_path / "old", simulator, number) as tracker:
        names = {path.name for path in tracker.download(number)}
    (tmp_path / "old").rename(tmp_path / "new")
    before = downloaded(simulator)
    with tracked(tmp_path / "new", simulator, number) as tracker:
        assert (tracker.files["state"] == "VERIFIED").all()
        assert tracker.verify(checksum=True).empty
        paths = tracker.download(number)
        assert {path.parent for path in paths} == {tmp_path / "new" / "orders" / str(number)}
        assert {path.name for path in paths} == names
        assert all(path.is_file() for path in paths)
    assert downloaded(simulator) == before


def test_a_given_directory_gets_the_files(simulator: Simulator, tmp_path: Path) -> None:
    """Files that are verified elsewhere are linked or copied, not fetched."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        first = tracker.download(number)
        before = downloaded(simulator)
        other = tracker.download(number, directory=tmp_path / "other")
        assert [path.parent for path in other] == [tmp_path / "other"] * 6
        assert [path.read_bytes() for path in other] == [path.read_bytes() for path in first]
        assert downloaded(simulator) == before
        # a file that was changed in the first place does not count as verified in the second
        other[0].unlink()
        other[1].write_bytes(bytes(other[1].stat().st_size))
        third = tracker.download(number, directory=tmp_path / "third")
        assert sorted(path.read_bytes() for path in third) != []
        assert len(third) == 6
        assert tracker.verify(checksum=True).empty


def test_files_of_the_workspace_are_used_where_their_copies_are_gone(
    simulator: Simulator, tmp_path: Path
) -> None:
    """They are not fetched again, also into a third folder, and are found of a deleted order."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        first = tracker.download(number)
        before = downloaded(simulator)

        def copy_and_remove() -> None:
            tracker.download(number, directory=tmp_path / "copies")
            shutil.rmtree(tmp_path / "copies")
            assert set(tracker.verify()["problem"]) == {"missing"}

        copy_and_remove()
        assert tracker.download(number) == first
        assert tracker.verify(checksum=True).empty
        copy_and_remove()
        third = tracker.download(number, directory=tmp_path / "third")
        assert [path.parent for path in third] == [tmp_path / "third"] * 6
        assert downloaded(simulator) == before
        copy_and_remove()
        shutil.rmtree(tmp_path / "third")
        right = first[0].read_bytes()
        first[0].write_bytes(right[::-1])
        assert sorted(path.read_bytes() for path in tracker.download(number)) == sorted(
            [right, *(path.read_bytes() for path in first[1:])]
        )
        assert downloaded(simulator) == before + 1, "another content is not used"
        first = tracker.download(number)
        copy_and_remove()
        simulator.expire(number)
        tracker.sync()
        until(lambda: tracker[number].status == "EXPIRED")
        assert tracker.download(number) == first


def test_again_fetches_anew(simulator: Simulator, tmp_path: Path) -> None:
    """Each file is fetched once more; files that are right keep their place.

    Of a deleted order nothing can be fetched again, and a warning says so.
    """
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        before = downloaded(simulator)
        assert tracker.download(number, again=True) == paths
        assert downloaded(simulator) == before + 6
        assert len(list(paths[0].parent.glob("[!.]*"))) == 6
        tracker.delete(number)
        with pytest.warns(UserWarning, match="is DELETED, and REGARDS no longer has its files"):
            assert tracker.download(number, again=True) == paths


def test_what_the_archive_no_longer_has_is_said(simulator: Simulator, tmp_path: Path) -> None:
    """The error names the file, and until when REGARDS keeps the order."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        paths[0].unlink()
        simulator.faults.add(StorageRefuses(name=paths[0].name, status=410, times=None))
        with pytest.raises(IncompleteDownloadError, match=r"keeps .* until 20\d\d-") as caught:
            tracker.download(number)
        assert set(caught.value.missing) == {paths[0].name}
        assert caught.value.paths == ()
        assert tracker.files["state"].tolist().count("FAILED") == 1


def test_the_client_looks_in_the_same_way(tmp_path: Path) -> None:
    """Without a tracker: again and checksum mean the same."""
    quick = {"poll_s": 0.02, "backoff_s": 0.01, "show": False}
    with world(tmp_path) as here:
        client, number = here.client, here.order_id
        paths = client.download_order(number, here.folder, **quick)
        right = paths[0].read_bytes()
        paths[0].write_bytes(right[::-1])
        assert client.download_order(number, here.folder, **quick) == paths
        with pytest.warns(UserWarning, match=rf"{paths[0].name} .* is kept.*\(2\)"):
            found = client.download_order(number, here.folder, checksum=True, **quick)
        assert found[0].read_bytes() == right
        before = here.singles
        client.download_order(number, here.folder, again=True, **quick)
        assert here.singles == before + 6


def test_an_order_with_nothing_to_download_says_why(simulator: Simulator, tmp_path: Path) -> None:
    """Failed without files, expired, filters that match nothing: each is named with its reason."""
    failed = simulator.order(OrderPlan(n_files=2, outcome=Outcome.FAILED))
    empty = simulator.order(OrderPlan(outcome=Outcome.NO_FILES))
    expired = simulator.order(SIX)
    with tracked(tmp_path, simulator, expired) as tracker:
        until(lambda: {failed, empty} <= set(tracker.orders["order_id"]))
        until(lambda: tracker[failed].finished and tracker[empty].finished)
        until(lambda: tracker[expired].status == "DONE")
        # the display does not ask for a download that brings nothing
        waiting = tracker.orders.set_index("order_id")["waits_for_download"]
        assert not waiting[[failed, empty]].any()
        with pytest.raises(DownloadError, match=f"order {failed} .*FAILED.*no file"):
            tracker.download(failed)
        with pytest.raises(DownloadError, match=f"order {empty} .*filters"):
            tracker[empty].download()
        simulator.expire(expired)
        tracker.sync()
        until(lambda: tracker[expired].status == "EXPIRED")
        with pytest.raises(DownloadError, match=f"order {expired} is EXPIRED.*deleted its files"):
            tracker.download(expired)


def test_a_download_of_rows_does_the_others_first(simulator: Simulator, tmp_path: Path) -> None:
    """One order without files does not keep the files of the others away."""
    failed = simulator.order(OrderPlan(n_files=2, outcome=Outcome.FAILED))
    good = simulator.order(SIX)
    with tracked(tmp_path, simulator, good) as tracker:
        until(lambda: tracker.orders["finished"].sum() == 2)
        with pytest.raises(DownloadError, match=f"order {failed} .*FAILED"):
            tracker.download(tracker.orders)
        assert (tracker[good].files["state"] == "VERIFIED").sum() == 6


def test_files_of_an_expired_order_that_are_in_place_are_returned(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The paths come back; a file that is missing is named, because REGARDS has deleted it."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        paths = tracker.download(number)
        simulator.expire(number)
        tracker.sync()
        until(lambda: tracker[number].status == "EXPIRED")
        assert tracker.download(number) == paths
        with pytest.raises(DownloadError, match=f"nothing was written to .*{paths[0].parent}"):
            tracker.download(number, directory=tmp_path / "elsewhere")
        paths[0].unlink()
        with pytest.raises(IncompleteDownloadError, match="REGARDS has deleted") as caught:
            tracker.download(number)
        assert set(caught.value.missing) == {paths[0].name}
        assert set(caught.value.paths) == set(paths[1:])


@pytest.mark.usefixtures("_says_at_once")
def test_a_call_says_that_it_asks_for_deleted_orders(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request for each, and each may be answered too soon to be told by itself."""
    number = simulator.order(SIX)
    with tracked(tmp_path, simulator, number) as tracker:
        tracker.download(number)
        simulator.expire(number)
        tracker.sync()
        simulator.faults.add(Slow(times=None, delay_s=0.5))
        assert len(tracker.download(number)) == 6
    assert f"asking REGARDS for the files of order {number}\n" in capsys.readouterr().out


def test_two_archives_do_not_share_a_folder(
    simulator: Simulator, broker: PrivateBroker, tmp_path: Path
) -> None:
    """Order 1 of another tenant gets a folder of its own, the same one at each download."""
    number = simulator.order(SIX)
    with (
        Simulator(broker=broker, tenant="other", suborder_pause_s=0.01) as other,
        tracked(tmp_path, simulator, number) as tracker,
    ):
        first = tracker.download(number)
        plan = OrderPlan(files=files_named(*[path.name for path in first]), files_per_suborder=6)
        assert other.order(plan) == number
        with OrderTracker(
            other.amqp_url,
            other.queue,
            client=client_of(other),
            tenant="other",
            journal=tmp_path / "other.sqlite",
            workspace=tmp_path / "orders",
        ) as second_tracker:
            until(lambda: number in set(second_tracker.orders["order_id"]))
            until(lambda: second_tracker[number].finished)
            second = second_tracker.download(number)
            assert second_tracker.download(number) == second
        assert {path.parent for path in first} == {tmp_path / "orders" / str(number)}
        assert {path.parent for path in second} == {tmp_path / "orders" / f"{number}-other"}
        assert [path.name for path in second] == [path.name for path in first]
        assert tracker.verify(checksum=True).empty


def test_two_archives_do_not_share_a_state_file(tmp_path: Path) -> None:
    """Order 1 of another tenant in the same directory is not taken for the one that is there."""
    quick = {"poll_s": 0.02, "backoff_s": 0.01, "show": False}
    plan = OrderPlan(files=files_named("a.nc", "b.nc", size_bytes=500), files_per_suborder=2)
    with (
        world(tmp_path) as one,
        world(tmp_path, plan, simulator_options={"tenant": "other"}) as other,
    ):
        assert one.order_id == other.order_id
        first = one.client.download_order(one.order_id, one.folder, **quick)
        second = other.client.download_order(other.order_id, one.folder, **quick)
        assert {path.name: path.read_bytes() for path in second} == other.expected
        assert one.client.download_order(one.order_id, one.folder, **quick) == first
