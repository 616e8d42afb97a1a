"""Downloads that are interrupted, doubled, or have no room leave nothing partial behind."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from download_kit import DEADLINE_S, World, files_named, result_of, wait_until, worker, world

from regards_nb.client import LastByte
from regards_nb.download import (
    Downloader,
    DownloadOptions,
    Progress,
    Workspace,
    order_folder,
)
from regards_nb.errors import DownloadError, IncompleteDownloadError, WorkspaceError
from regards_nb.simulator import Content, FileSpec, OrderPlan, Route, Slow
from regards_nb.waits import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Large enough for some files to be in place while others are still on their way.
MANY = OrderPlan(n_files=60, file_bytes=100_000, files_per_suborder=60)
SLOWLY = Slow(route=Route.ZIP, bytes_per_s=1_500_000)
#: Files that are in memory until they are verified.
SMALL = OrderPlan(n_files=60, file_bytes=20_000, files_per_suborder=60)
SLOWER = Slow(route=Route.ZIP, bytes_per_s=300_000)
SLOW_FILES = Slow(route=Route.FILE, bytes_per_s=300_000, times=None)


def nothing_partial(here: World) -> bool:
    """Whether each file under a final name is whole."""
    expected = here.expected
    return all(expected.get(name) == data for name, data in here.found.items())


@pytest.mark.parametrize(
    ("plan", "slow", "options"),
    [
        (MANY, SLOWLY, {"way": "zip"}),
        (MANY, SLOW_FILES, {"way": "files"}),
        (SMALL, SLOWER, {"way": "zip", "durable": False}),
    ],
    ids=["zip", "files", "small"],
)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_leaves_whole_files_and_a_rerun_completes(
    how: signal.Signals, plan: OrderPlan, slow: Slow, options: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C and kill -9: what stands there is verified; the next run fetches only the rest."""
    with world(tmp_path, plan, slow) as here:
        with worker(here, **options) as process:
            wait_until(lambda: len(here.found) >= 3, "the first files")
            process.send_signal(how)
            if how is signal.SIGINT:
                assert result_of(process) == {"error": "KeyboardInterrupt"}
                assert not here.leftovers
            else:
                process.wait(DEADLINE_S)
        kept = here.found
        assert 3 <= len(kept) < 60
        assert nothing_partial(here)
        times = {name: (here.folder / name).stat().st_mtime_ns for name in kept}
        here.simulator.faults.clear()
        here.fetch(**options)
        assert here.found == here.expected
        assert {name: (here.folder / name).stat().st_mtime_ns for name in kept} == times
        assert not here.leftovers
        assert here.simulator.wait_for(here.order_id, "DONE") == "DONE"
        assert here.client.order(here.order_id).available_files == 0


@pytest.mark.parametrize(("way", "delay_s"), [("zip", 0.0), ("files", 0.0), ("files", 2.0)])
def test_a_stopped_download_says_so_and_goes_on_later(
    way: str, delay_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``stop`` ends it before the next byte or the first one, as is said; nothing is lost."""
    monkeypatch.setattr(LastByte, "told_after_s", 0.1)
    route = Route.ZIP if way == "zip" else Route.FILE
    stall = Slow(
        route=route, delay_s=delay_s, stall_after_bytes=None if delay_s else 900, times=None
    )
    with world(tmp_path, None, stall) as here:
        stop = threading.Event()

        def stop_in_silence(progress: Progress) -> None:
            if f", no byte of order {here.order_id} from http://" in str(progress):
                stop.set()

        with pytest.raises(DownloadError, match="stopped"):
            here.fetch(way=way, stop=stop, on_progress=stop_in_silence)
        assert not here.found
        assert not here.leftovers
        here.simulator.faults.clear()
        here.fetch(way=way)
        assert here.found == here.expected


@pytest.mark.parametrize("route", [Route.AVAILABLE, Route.ZIP])
def test_a_stopped_download_waits_for_no_answer(route: Route, tmp_path: Path) -> None:
    """REGARDS is silent: the download ends all the same, and the next one makes a new request."""
    with world(tmp_path) as here:
        stop, faults = threading.Event(), here.simulator.faults
        silence = faults.add(Slow(route=route, delay_s=600))
        fetching = in_thread(lambda: here.fetch(stop=stop))
        wait_until(lambda: not faults.is_armed(silence), "the request")
        stop.set()
        wait_until(fetching.done, "the end of the download")
        with pytest.raises(DownloadError, match="stopped; the next one goes on"):
            fetching.result()
        here.fetch()
        assert here.found == here.expected


@pytest.mark.parametrize("way", ["zip", "files"])
def test_two_processes_end_with_the_same_verified_files(way: str, tmp_path: Path) -> None:
    """Both download one order at the same time: one set of files, each once, both content."""
    slow = SLOWLY if way == "zip" else SLOW_FILES
    plan = OrderPlan(
        files=files_named(*["same name.nc"] * 5, *(f"{n}.nc" for n in range(25))),
        files_per_suborder=30,
    )
    with (
        world(tmp_path, plan, slow) as here,
        worker(here, way=way) as one,
        worker(here, way=way) as other,
    ):
        results = [result_of(one), result_of(other)]
        assert all("error" not in result for result in results), results
        assert sorted(here.found.values()) == sorted(
            b"".join(spec.source.chunks()) for spec in plan.files
        )
        assert len(here.found) == 30
        assert not here.leftovers


def test_a_full_disk_is_said_and_what_was_verified_stays(tmp_path: Path) -> None:
    """Writing fails in the middle: no partial file, no staging, and a rerun completes."""
    plan = OrderPlan(
        files=[
            *files_named("small-1.nc", "small-2.nc", size_bytes=10_000),
            FileSpec(name="large.nc", content=os.urandom(300_000)),
        ],
        files_per_suborder=3,
    )
    with world(tmp_path, plan) as here:
        with worker(here, limits=["small files only"]) as process:
            result = result_of(process)
        assert result["error"] == "WorkspaceError", result
        assert "is full" in result["text"]
        assert nothing_partial(here)
        assert not here.leftovers
        here.fetch()
        assert here.found == here.expected


def test_too_little_space_is_known_before_anything_is_fetched(tmp_path: Path) -> None:
    """A petabyte does not fit: the error says how much is needed, and no quota is spent."""
    huge = FileSpec(name="huge.nc", content=Content(lambda: iter([]), size_bytes=10**15))
    with world(tmp_path, OrderPlan(files=[huge], files_per_suborder=1)) as here:
        with pytest.raises(WorkspaceError, match="too full.*Nothing was fetched"):
            here.fetch()
        assert here.zips == here.singles == 0
        assert not here.leftovers


def test_a_place_that_cannot_be_written_is_known_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    """A file where the folder should be, and a folder that nobody can write to."""
    with world(tmp_path) as here:
        here.folder.write_text("I am a file")
        with pytest.raises(WorkspaceError, match="cannot write"):
            here.fetch()
        assert here.folder.read_text() == "I am a file"
        folder = order_folder(here.folder, 5, "here tenant")
        assert isinstance(folder, Path)
        here.folder = folder
        with pytest.raises(WorkspaceError, match="cannot write .*Choose another place"):
            here.fetch()
        here.folder = Path("/proc/regards")
        with pytest.raises(WorkspaceError, match="cannot write to /proc"):
            here.fetch()
        assert here.zips == here.singles == 0


class NoLog:
    """Records nothing."""

    def files(self, order_id: int) -> list[Any]:
        assert order_id
        return []

    def save(self, files: Any) -> None:
        assert files


@contextmanager
def without_rights() -> Iterator[None]:
    """Be somebody who may not write to what belongs to the user who runs the tests."""
    me = os.geteuid()
    if me == 0:  # root may write everywhere
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_a_folder_without_the_right_to_write_is_known_too(tmp_path: Path) -> None:
    """A folder that may be read and not written."""
    with world(tmp_path) as here:
        here.folder.mkdir(mode=0o555)
        # the journal is out of reach for that user: the files are recorded nowhere
        options = DownloadOptions()
        downloader = Downloader(here.client, here.order_id, here.folder, NoLog(), options)
        with without_rights(), pytest.raises(WorkspaceError, match="Permission denied"):
            downloader.fetch()
        assert here.zips == 0


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    """A staging folder goes when its owner has died, and only then."""
    with world(tmp_path, MANY, SLOWLY) as here:
        here.folder.mkdir()
        foreign = here.folder / ".regards-9-foreign.part"
        unknown = here.folder / ".regards-9-unknown.part"
        for folder in (foreign, unknown):
            folder.mkdir()
        (foreign / "owner.json").write_text('{"host": "another computer", "pid": 1}')
        with worker(here, way="zip") as process:
            # killed between making the folder and saying whose it is, it would be unknown as well
            wait_until(lambda: here.found, "its first file")
            process.kill()
            process.wait(DEADLINE_S)
        assert len(here.leftovers) == 3
        here.simulator.faults.clear()
        here.fetch()
        assert sorted(here.leftovers) == sorted([foreign.name, unknown.name])
        # and in the end they go as well, when they are old
        for folder in (foreign, unknown):
            os.utime(folder, (0, 0))
        with Workspace(here.folder, here.order_id):
            assert len(here.leftovers) == 1
        assert not here.leftovers


def test_a_mistake_in_the_progress_callback_does_not_cost_the_download(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the download goes on."""
    with world(tmp_path) as here:
        here.fetch(on_progress=lambda _: 1 / 0)
        assert here.found == here.expected
        assert sum("on_progress failed" in record.message for record in caplog.records) == 1


def test_a_journal_that_cannot_be_written_is_not_passed_over(tmp_path: Path) -> None:
    """Files that cannot be recorded are an error, not a silence."""

    class BrokenLog(NoLog):
        def save(self, files: Any) -> None:
            if any(record.path for record in files):
                raise OSError(5, "the journal is gone")

    with world(tmp_path) as here:
        options = DownloadOptions()
        downloader = Downloader(here.client, here.order_id, here.folder, BrokenLog(), options)
        with pytest.raises(OSError, match="journal is gone"):
            downloader.fetch()
        assert nothing_partial(here)
        assert not here.leftovers


def test_the_error_for_missing_files_holds_all_and_shows_some(tmp_path: Path) -> None:
    """Twelve files are missing: all of them are in the error, five in its text."""
    with world(tmp_path, OrderPlan(n_files=12, file_bytes=10, files_per_suborder=12)) as here:
        from regards_nb.simulator import StorageRefuses

        here.simulator.faults.add(StorageRefuses(status=410, times=None))
        with pytest.raises(IncompleteDownloadError, match="and 7 more") as caught:
            here.fetch(way="files")
        assert len(caught.value.missing) == 12
        assert not caught.value.paths


@pytest.mark.parametrize(
    ("kind", "together"),
    [("ext4", True), ("xfs", True), ("fuse.sshfs", False), ("fuse.rclone", False), ("nfs4", False)],
)
def test_only_local_file_systems_are_flushed_as_a_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    """FUSE forwards no syncfs to most of its file systems: there each file is flushed."""
    (tmp_path / "a mount").mkdir()
    mounts = tmp_path / "mounts"
    point = str(tmp_path / "a mount").replace(" ", "\\040")
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nthere {point} {kind} rw 0 0\n")
    monkeypatch.setattr(Workspace, "mounts", mounts)
    with Workspace(tmp_path / "a mount" / "orders", 1) as workspace:
        assert workspace.flushes_together is together
    with Workspace(tmp_path / "orders", 1) as workspace:
        assert workspace.flushes_together
