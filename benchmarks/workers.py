"""Orders on workers: threads, processes and a Dask cluster beside none, in turn.

::

    python benchmarks/workers.py --runs 3

Three works are measured apart, each with eight orders of one sub-order:

* ``download``: the archive takes 0.5 s to prepare a sub-order, and prepares two at a time until
  somebody downloads them;
* ``python``: ``process=`` of the files that are there, with a function that holds the interpreter's
  lock, as a decoder written in Python does;
* ``native``: the same with one that releases it, as NumPy and zlib do.

The workers are two; they are started, and have imported the package, before the clock runs. The
archive is the simulator, the journal is in PostgreSQL.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import zlib
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from load import Stopwatch

from regards_nb import OrderTracker
from regards_nb.simulator import OrderPlan, Simulator

# the private PostgreSQL of the tests
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from postgresql import PrivatePostgreSQL

WORKERS, ORDERS, FILES, FILE_BYTES = 2, 8, 10, 200_000
PLAN = OrderPlan(n_files=FILES, file_bytes=FILE_BYTES, files_per_suborder=FILES)
PREPARATION_S, PREPARED = 0.5, 2
NONE = "none"


def in_python(paths: list[Path]) -> int:
    """Sum up bytes one by one: the lock of the interpreter is held."""
    return sum(sum(byte & 3 for byte in path.read_bytes() * 3) for path in paths)


def native(paths: list[Path]) -> int:
    """Compress the files: the lock is released."""
    return sum(len(zlib.compress(path.read_bytes() * 3, 9)) for path in paths)


def ready(_: object) -> int:
    """Import what a worker needs; return its process."""
    import regards_nb.tracker  # noqa: F401

    return os.getpid()


def executors(stack: ExitStack) -> dict[str, Executor | None]:
    """Start the workers."""
    from dask.distributed import Client, LocalCluster

    spawn = multiprocessing.get_context("spawn")
    cluster = stack.enter_context(
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=":0",
            worker_dashboard_address=None,
            silence_logs="ERROR",
        )
    )
    found: dict[str, Executor | None] = {
        NONE: None,
        "ThreadPoolExecutor": stack.enter_context(ThreadPoolExecutor(WORKERS)),
        "ProcessPoolExecutor": stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=spawn)),
        "Dask": stack.enter_context(stack.enter_context(Client(cluster)).get_executor()),
    }
    for executor in found.values():
        if executor is not None:
            list(executor.map(ready, range(4 * WORKERS)))
    return found


def settings(archive: Simulator, folder: Path) -> None:
    """Write the profile, and the passwords into the environment, from which workers take them."""
    profiles = folder / "profiles.toml"
    profiles.write_text(
        f'[archive]\nurl = "{archive.base_url}"\ntenant = "{archive.tenant}"\n'
        f'username = "{archive.username}"\nclient_id = "{archive.client_id}"\n'
    )
    os.environ |= {
        "REGARDS_SETTINGS": str(profiles),
        "REGARDS_PASSWORD": archive.password,
        "REGARDS_CLIENT_SECRET": archive.client_secret,
    }


def download(tracker: OrderTracker, archive: Simulator, executor: Executor | None) -> list[int]:
    """Order, and download what is ready until all is there; return the orders."""
    numbers = [archive.order(PLAN) for _ in range(ORDERS)]
    for first in range(0, ORDERS, PREPARED):
        pair = numbers[first : first + PREPARED]
        for number in pair:
            archive.wait_for(number, "DONE")
        tracker.sync()
        tracker.download(*pair, executor=executor)
    return numbers


def measure(runs: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each work, by work and executor."""
    with (
        tempfile.TemporaryDirectory() as name,
        Simulator(amqp=None, suborder_pause_s=PREPARATION_S) as archive,
        PrivatePostgreSQL() as server,
        ExitStack() as stack,
    ):
        folder = Path(name)
        settings(archive, folder)
        found = executors(stack)
        tracker = stack.enter_context(
            OrderTracker.from_profile(
                "archive", journal=server.new_database(), workspace=folder / "orders", poll_s=0.05
            )
        )
        taken: dict[str, dict[str, list[float]]] = {
            work: {executor: [] for executor in found} for work in ("download", "python", "native")
        }
        for _ in range(runs):
            for label, executor in found.items():
                watch = Stopwatch()
                numbers = download(tracker, archive, executor)
                taken["download"][label].append(watch.passed_s)
                for work, function in (("python", in_python), ("native", native)):
                    watch = Stopwatch()
                    results = tracker.download(*numbers, executor=executor, process=function)
                    taken[work][label].append(watch.passed_s)
                    if len(results) != ORDERS:
                        raise SystemExit(f"{label}: {len(results)} of {ORDERS} orders")
        return taken


def table(taken: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians as a table, each with its ratio to none in the same turn."""
    lines = ["| workers | " + " | ".join(taken) + " |", "|---|" + "---:|" * len(taken)]
    for label in taken["download"]:
        cells = []
        for of_work in taken.values():
            turns = zip(of_work[label], of_work[NONE], strict=True)
            ratio = statistics.median(passed_s / none_s for passed_s, none_s in turns)
            cells.append(f"{statistics.median(of_work[label]):.1f} s ({ratio:.2f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="turns; the medians count")
    runs: Any = parser.parse_args().runs
    print(table(measure(runs)))
    print(f"\n{runs} turns, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
