"""Downloads on executors: threads, processes that may be killed, a Dask cluster."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import worker_functions
from conftest import DEADLINE_S, interrupted_after, until
from postgresql import PrivatePostgreSQL

from regards_nb import OrderTracker, errors
from regards_nb.simulator import OrderPlan, Route, Simulator, Slow

if TYPE_CHECKING:
    import distributed

PLAN = OrderPlan(n_files=6, files_per_suborder=6)
SPAWN = multiprocessing.get_context("spawn")


class Recorder(ProcessPoolExecutor):
    """Keeps what is submitted, pickled."""

    submitted = b""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += pickle.dumps((fn, args, kwargs))
        return super().submit(fn, *args, **kwargs)


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One simulator for all tests, with its profile and passwords in the environment.

    The processes of pools and clusters keep the environment in which they began.
    """
    path = tmp_path_factory.mktemp("settings") / "profiles.toml"
    with Simulator(amqp=None, suborder_pause_s=0.01) as started, pytest.MonkeyPatch.context() as to:
        path.write_text(
            f'[archive]\nurl = "{started.base_url}"\ntenant = "{started.tenant}"\n'
            f'username = "{started.username}"\nclient_id = "{started.client_id}"\n'
        )
        to.setenv("REGARDS_SETTINGS", str(path))
        to.setenv("REGARDS_PASSWORD", started.password)
        to.setenv("REGARDS_CLIENT_SECRET", started.client_secret)
        # the functions that workers import
        to.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
        yield started


@pytest.fixture
def profile(simulator: Simulator, tmp_path: Path) -> Iterator[Callable[..., OrderTracker]]:
    """Return a function that makes a tracker of the profile."""
    # REGARDS prepares no order while two others wait for a download, such as those of other tests
    for number in list(simulator.service.orders):
        simulator.expire(number)

    def make(**options: Any) -> OrderTracker:
        options.setdefault("journal", tmp_path / "journal.sqlite")
        options.setdefault("workspace", tmp_path / "orders")
        return OrderTracker.from_profile("archive", poll_s=0.05, **options)

    yield make
    simulator.faults.clear()


@pytest.fixture(scope="module")
def processes(simulator: Simulator) -> Iterator[Recorder]:
    """A pool of two processes."""
    with Recorder(2, mp_context=SPAWN) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster(simulator: Simulator) -> Iterator[distributed.LocalCluster]:
    """A Dask cluster of two processes on this machine."""
    import dask
    import distributed

    # by default a cluster gives up a worker that does not come back within 15 s
    dask.config.set({"distributed.deploy.lost-worker-timeout": "300 s"})
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",
        worker_dashboard_address=None,
        memory_limit=0,
    ) as started:
        yield started


@pytest.fixture
def dask(cluster: distributed.LocalCluster) -> Iterator[Executor]:
    """The executor of a client, which is shut down before the client closes."""
    import distributed

    with distributed.Client(cluster) as client, client.get_executor() as executor:
        yield executor


def ended_orders(simulator: Simulator, tracker: OrderTracker, count: int = 3) -> list[int]:
    """Return orders that are done; the files of the last two wait, those of others are here.

    REGARDS prepares at most two sub-orders that nobody has downloaded.
    """
    numbers: list[int] = []
    for _ in range(count):
        if len(numbers) >= 2:
            tracker.download(numbers[-2])
        numbers.append(simulator.order(PLAN))
        simulator.wait_for(numbers[-1], "DONE")
        tracker.sync()
    return numbers


def files_of(tracker: OrderTracker, numbers: list[int]) -> list[Path]:
    """Return what lies in the workspace, after a look that all of it is verified."""
    assert tracker.verify(*numbers, checksum=True).empty
    folder = tracker._workspace
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and ".regards" not in str(path)
    )


def token_of(tracker: OrderTracker) -> str:
    assert tracker.client is not None
    return tracker.client._login.current().secret.reveal()


# -- without workers


def test_process_runs_in_the_calling_thread_and_gives_results_by_order(
    simulator: Simulator,
    profile: Callable[..., OrderTracker],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without an executor users can try their function: same thread, same dict, and it is said."""
    threads: list[threading.Thread] = []

    def total_bytes(paths: list[Path]) -> int:
        threads.append(threading.current_thread())
        return sum(path.stat().st_size for path in paths)

    with profile() as tracker:
        numbers = ended_orders(simulator, tracker)
        results = tracker.download(*numbers, process=total_bytes)
        assert list(results) == numbers
        sizes = tracker.orders.set_index("order_id")["downloaded_bytes"]
        assert results == {number: sizes[number] for number in numbers}
        assert {*threads} == {threading.current_thread()}
        assert "process= runs for order " in capsys.readouterr().out
        with ThreadPoolExecutor(1) as one:  # of two orders, one waits for its thread
            tracker.download(*numbers, executor=one, process=total_bytes)
        assert "workers start or run process= for order " in capsys.readouterr().out
        # also for files that are there already
        assert tracker.download(*numbers, process=total_bytes) == results
        empty = simulator.order(OrderPlan(suborder_pause_s=DEADLINE_S))
        tracker.sync()
        capsys.readouterr()
        assert tracker.download(empty, process=total_bytes) == {empty: None}
        assert "process= runs" not in capsys.readouterr().out, "there is no file to process"


def test_an_error_in_process_names_the_order_and_loses_no_other_result(
    simulator: Simulator, profile: Callable[..., OrderTracker]
) -> None:
    """Two of three orders have a result; the group has it, and except* finds the third."""
    with profile() as tracker:
        numbers = ended_orders(simulator, tracker)

        def fails_once(paths: list[Path]) -> int:
            if f"/{numbers[1]}/" in str(paths[0]):
                raise ValueError("no such band")
            return len(paths)

        with pytest.raises(errors.ProcessingErrorGroup) as caught:
            tracker.download(*numbers, process=fails_once)
        assert caught.value.results == {numbers[0]: 6, numbers[2]: 6}
        (error,) = caught.value.exceptions
        assert f"order {numbers[1]}: process= raised ValueError: no such band" in str(error)
        assert isinstance(error.__cause__, ValueError)
        frames = traceback.extract_tb(error.__cause__.__traceback__)
        assert [frame.name for frame in frames] == ["fails_once"]
        split = caught.value.subgroup(errors.ProcessingError)
        assert isinstance(split, errors.ProcessingErrorGroup)
        assert split.results == caught.value.results
        with pytest.raises(
            errors.ProcessingError, match=r"no such band \(test_workers\.py, "
        ) as one:
            tracker.download(numbers[1], process=fails_once)
        shown = one.value._render_traceback_()
        assert [line.partition(", in ")[2] for line in shown[1:]][-1] == (
            'fails_once: raise ValueError("no such band")'
        )
        assert "regards_nb" not in "".join(shown[1:])


def test_threads_of_the_user_download_and_process(
    simulator: Simulator, profile: Callable[..., OrderTracker]
) -> None:
    """A ThreadPoolExecutor shares the tracker's client and journal, whatever they are."""
    with profile() as tracker, ThreadPoolExecutor(2, thread_name_prefix="mine") as threads:
        numbers = ended_orders(simulator, tracker)
        names = tracker.download(
            *numbers, executor=threads, process=lambda _: threading.current_thread().name
        )
        assert all(name.startswith("mine") for name in names.values())
        assert len(files_of(tracker, numbers)) == 18
        told = r"process= raised SystemExit: 2 \(test_workers\.py, "
        with pytest.raises(errors.ProcessingError, match=told):
            tracker.download(numbers[0], executor=threads, process=lambda _: sys.exit(2))
        threads.shutdown()
        with pytest.raises(errors.SettingsError, match="the executor was shut down"):
            tracker.download(numbers[0], again=True, executor=threads)
        assert not tracker[numbers[0]].state.downloading
        with pytest.raises(errors.SettingsError, match=r"executor must be .* not <class"):
            tracker.download(executor=ThreadPoolExecutor)  # type: ignore[arg-type]


def test_ctrl_c_says_at_once_what_the_executor_waits_for(
    simulator: Simulator, profile: Callable[..., OrderTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that runs in a thread cannot be ended, and the with block waits for its end."""
    line = "what runs in the workers ends first, and the executor waits for it\n"
    runs = threading.Event()
    with profile() as tracker:
        (number,) = ended_orders(simulator, tracker, 1)
        with interrupted_after(lambda _: runs.is_set(), monkeypatch) as written:

            def process(_: list[Path]) -> None:
                runs.set()
                until(lambda: line in written.getvalue())

            told = "^stopped; 6 of 6 files of order"
            with pytest.raises(errors.StoppedWaiting, match=told), ThreadPoolExecutor(1) as threads:
                tracker.download(number, executor=threads, process=process)
        assert line in written.getvalue()


def test_ctrl_c_cancels_the_functions_that_wait_for_a_thread(
    simulator: Simulator, profile: Callable[..., OrderTracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The with block of the executor waits for the one that runs, and for no other."""
    called: list[list[Path]] = []
    end = threading.Event()

    def process(paths: list[Path]) -> None:
        called.append(paths)
        end.wait(DEADLINE_S)

    with profile() as tracker:
        numbers = ended_orders(simulator, tracker, 3)
        threads = ThreadPoolExecutor(1)
        with (
            interrupted_after(lambda _: called and threads._work_queue.qsize() == 2, monkeypatch),
            pytest.raises(errors.StoppedWaiting),
        ):
            tracker.download(*numbers, executor=threads, process=process)
        end.set()
        threads.shutdown()
    assert len(called) == 1


# -- processes


def test_processes_download_and_no_secret_travels(
    simulator: Simulator,
    profile: Callable[..., OrderTracker],
    processes: Recorder,
) -> None:
    """What is submitted names the profile and orders, no links; the journal tells of the files."""
    with profile() as tracker:
        numbers = ended_orders(simulator, tracker)
        results = tracker.download(*numbers, executor=processes, process=worker_functions.count)
        assert {number: count for number, (count, _) in results.items()} == dict.fromkeys(
            numbers, 6
        )
        assert os.getpid() not in {pid for _, pid in results.values()}
        assert len(files_of(tracker, numbers)) == 18
        assert tracker.orders["downloaded_files"].sum() == 18
        links = [tracker[number].state.download_link or "" for number in numbers]
        assert all(links)
        for secret in (simulator.password, simulator.client_secret, token_of(tracker), *links):
            assert secret.encode() not in processes.submitted
        assert b"archive" in processes.submitted


def killed_in_the_middle(simulator: Simulator, kill: Callable[[], None]) -> threading.Thread:
    """Let the next zip stall after some files, and *kill* its worker then."""
    before = len(simulator.requests)
    simulator.faults.add(Slow(route=Route.ZIP, stall_after_bytes=35_000))

    def wait_and_kill() -> None:
        until(lambda: any(seen.path.endswith("/download") for seen in simulator.requests[before:]))
        kill()

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def children() -> set[psutil.Process]:
    """Return the processes of pools."""
    of_us = psutil.Process().children()
    return {child for child in of_us if "spawn_main" in " ".join(child.cmdline())}


def test_a_killed_process_costs_no_file(
    simulator: Simulator, profile: Callable[..., OrderTracker]
) -> None:
    """kill -9 breaks the pool: its orders run again in new processes, each file once."""
    with profile() as tracker:
        numbers = ended_orders(simulator, tracker, 2)
        of_others = children()

        def kill() -> None:
            for child in children() - of_others:
                child.kill()

        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            killer = killed_in_the_middle(simulator, kill)
            results = tracker.download(*numbers, executor=pool, process=worker_functions.count)
            killer.join()
            with pytest.raises(BrokenExecutor):
                pool.submit(os.getpid)
        assert {number: count for number, (count, _) in results.items()} == dict.fromkeys(
            numbers, 6
        )
        assert len(files_of(tracker, numbers)) == 12


def test_an_order_that_kills_each_worker_is_named(
    simulator: Simulator, profile: Callable[..., OrderTracker]
) -> None:
    """It is tried twice, the second time alone; the other orders have their results."""
    with profile() as tracker:
        numbers = ended_orders(simulator, tracker, 2)
        with (
            ProcessPoolExecutor(2, mp_context=SPAWN) as pool,
            pytest.raises(errors.ProcessingErrorGroup) as caught,
        ):
            tracker.download(
                *numbers, executor=pool, process=worker_functions.DieOn(f"/{numbers[0]}/")
            )
        assert caught.value.results == {numbers[1]: 6}
        assert f"order {numbers[0]}: its worker ended" in str(caught.value)


def test_errors_of_workers_come_back_whole(
    simulator: Simulator, profile: Callable[..., OrderTracker], processes: ProcessPoolExecutor
) -> None:
    """An error with its own constructor, and one that cannot be pickled, break no pool."""
    with profile() as tracker:
        (number,) = ended_orders(simulator, tracker, 1)
        with pytest.raises(errors.ProcessingError, match="OddError: 3 of 4") as caught:
            tracker.download(number, executor=processes, process=worker_functions.fails_oddly)
        assert "in fails_oddly" in "".join(caught.value.__notes__)
        with pytest.raises(errors.ProcessingError, match="pickle"):
            tracker.download(number, executor=processes, process=worker_functions.returns_a_lock)
        with pytest.raises(errors.ProcessingError, match="process= raised SystemExit: 2"):
            tracker.download(number, executor=processes, process=worker_functions.exits)
        assert tracker.download(number, executor=processes, process=worker_functions.count)


def test_ctrl_c_stops_what_runs_and_cancels_what_waits(
    simulator: Simulator, profile: Callable[..., OrderTracker], processes: ProcessPoolExecutor
) -> None:
    """Workers learn of it from the journal, and end soon; a later call fetches the rest."""
    with profile() as tracker:
        numbers = ended_orders(simulator, tracker)
        slow = simulator.faults.add(Slow(route=Route.ZIP, bytes_per_s=100, times=None))
        main, before = threading.get_ident(), len(simulator.requests)

        def interrupt() -> None:
            until(lambda: any("download" in seen.path for seen in simulator.requests[before:]))
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            tracker.download(*numbers, executor=processes)
        thread.join()
        # the pool is free again, long before the slow zips would have ended
        processes.submit(os.getpid).result(timeout=60)
        simulator.faults.remove(slow)
        tracker.download(*numbers, executor=processes)
        assert len(files_of(tracker, numbers)) == 18


def test_what_workers_do_after_the_download_is_said(
    simulator: Simulator,
    profile: Callable[..., OrderTracker],
    processes: ProcessPoolExecutor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call says what may run; Ctrl-C says that ``process=`` runs on, and begins anew later."""
    with profile() as tracker:
        (number,) = ended_orders(simulator, tracker, 1)
        tracker.download(number)
        empty = simulator.order(OrderPlan(suborder_pause_s=DEADLINE_S))
        tracker.sync()
        wait_for = worker_functions.WaitFor(tmp_path / "end")
        again = "calls process= .* again"
        try:
            for order_id, said, done in (
                (number, f"workers start or run process= for order {number}", "6 of 6 files"),
                (empty, "workers start or download", "no file"),
            ):
                with (
                    interrupted_after(lambda text, said=said: said in text, monkeypatch) as told,
                    pytest.raises(errors.StoppedWaiting, match=rf"{done}.*{again}"),
                ):
                    tracker.download(order_id, executor=processes, process=wait_for)
                assert "executor waits for it" in told.getvalue()
                processes.submit(wait_for, [])  # no worker is free
        finally:
            wait_for.path.touch()


# -- Dask


def test_dask_downloads_and_processes(
    simulator: Simulator,
    profile: Callable[..., OrderTracker],
    dask: Executor,
    postgresql: PrivatePostgreSQL,
) -> None:
    """On workers of a real cluster, with a function of this file; no ended order stays there."""
    import distributed

    with profile(journal=postgresql.new_database()) as tracker:
        numbers = ended_orders(simulator, tracker)

        def local(paths: list[Path]) -> int:
            return len(paths)

        gc.disable()  # nothing waits for the collector
        try:
            results = tracker.download(*numbers, executor=dask, process=local)
            # The cluster would run kept tasks again, and the function, when their worker dies.
            scheduler = distributed.default_client()
            until(lambda: scheduler.run_on_scheduler(number_of_tasks) == 0)
        finally:
            gc.enable()
        assert results == dict.fromkeys(numbers, 6)
        assert len(files_of(tracker, numbers)) == 18
        assert tracker.orders["downloaded_files"].sum() == 18


def number_of_tasks(dask_scheduler: Any) -> int:
    """Return how many tasks the scheduler of a cluster keeps."""
    return len(dask_scheduler.tasks)


def test_a_killed_dask_worker_costs_no_file(
    simulator: Simulator,
    profile: Callable[..., OrderTracker],
    cluster: distributed.LocalCluster,
    dask: Executor,
    postgresql: PrivatePostgreSQL,
) -> None:
    """Dask runs the orders of killed workers on others; each file is there once."""

    def kill() -> None:
        for nanny in list(cluster.workers.values()):
            os.kill(nanny.pid, signal.SIGKILL)

    with profile(journal=postgresql.new_database()) as tracker:
        numbers = ended_orders(simulator, tracker, 2)
        killer = killed_in_the_middle(simulator, kill)
        results = tracker.download(*numbers, executor=dask, process=len)
        killer.join()
        assert results == dict.fromkeys(numbers, 6)
        assert len(files_of(tracker, numbers)) == 12


def test_what_other_machines_cannot_reach_is_refused(
    profile: Callable[..., OrderTracker],
    dask: Executor,
    postgresql: PrivatePostgreSQL,
    simulator: Simulator,
) -> None:
    """A SQLite journal, a relative folder and settings in code: the text says what to do."""
    with profile() as tracker:
        (number,) = ended_orders(simulator, tracker, 1)
        with pytest.raises(errors.SettingsError, match="keep it in PostgreSQL"):
            tracker.download(number, executor=dask)
    place = postgresql.new_database()
    with profile(journal=place, workspace="orders") as tracker:
        tracker.sync()
        with pytest.raises(errors.SettingsError, match="folder 'orders' is another one"):
            tracker.download(number, executor=dask)
    with (
        profile(journal=place, password=simulator.password) as tracker,
        pytest.raises(errors.SettingsError, match="password of this tracker.*from_profile"),
    ):
        tracker.download(number, executor=dask)
    with OrderTracker(client=tracker.client, journal=place, poll_s=0.05) as tracker:
        with pytest.raises(errors.SettingsError, match="all settings of this tracker"):
            tracker.download(number, executor=dask)
        with pytest.raises(errors.SettingsError, match="client.get_executor()"):
            tracker.download(number, executor=object())  # type: ignore[call-overload]


def test_a_forked_pool_is_refused(
    simulator: Simulator, profile: Callable[..., OrderTracker]
) -> None:
    """A process that is forked while threads run can hang: the text names the remedy."""
    with (
        profile() as tracker,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
    ):
        (number,) = ended_orders(simulator, tracker, 1)
        with pytest.raises(errors.SettingsError, match='get_context\\("spawn"\\)'):
            tracker.download(number, executor=pool)


def test_the_page_on_workers_does_what_it_shows(
    profile: Callable[..., OrderTracker], postgresql: PrivatePostgreSQL, simulator: Simulator
) -> None:
    """The code of its section runs without changes, block by block."""
    page = Path(__file__).parent.parent / "docs" / "beyond-one-machine.md"
    section = re.search(
        r"^## Workers\n.*?(?=^## )", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert section is not None
    blocks = re.findall(r"^```python\n(.*?)^```", section[0], re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    with profile(journal=postgresql.new_database()) as tracker:
        names: dict[str, Any] = {"tracker": tracker}
        for block in blocks:
            number = simulator.order(PLAN)
            simulator.wait_for(number, "DONE")
            tracker.sync()
            exec(compile(block, page.name, "exec"), names)  # noqa: S102 - our own page
            assert not tracker.orders["waits_for_download"].any()
        assert tracker.orders["downloaded_files"].sum() == 18


# -- errors


def test_every_error_can_be_pickled() -> None:
    """An error that cannot be read back would end a pool of processes."""
    error = errors.IncompleteDownloadError("text", paths=[Path("a")], missing={"b": "gone"})
    error.add_note("where")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (str(again), again.paths, again.missing) == ("text", (Path("a"),), {"b": "gone"})
    assert again.__notes__ == ["where"]
    group = errors.ProcessingErrorGroup("text", [error], {1: 2})
    again = pickle.loads(pickle.dumps(group))  # noqa: S301 - our own
    assert (again.results, str(again.exceptions[0])) == ({1: 2}, "text")


UNGUARDED = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from regards_nb import OrderTracker

tracker = OrderTracker.from_profile("archive", journal="journal.sqlite")
tracker.submit("dataset:SWOT_PASS_012", label="once")
with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
    pool.submit(len, ()).result()
"""


def test_a_script_that_a_worker_imports_orders_once(simulator: Simulator, tmp_path: Path) -> None:
    """Its worker ends with a text that says where the lines of the script belong."""
    before = len(simulator.service.orders_of(simulator.username))
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "BrokenProcessPool" in done.stderr
    assert 'below a line  if __name__ == "__main__":' in done.stderr
    assert len(simulator.service.orders_of(simulator.username)) == before + 1
