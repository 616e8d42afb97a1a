"""Compare this tree with an earlier one, in turn: nothing gets slower.

::

    git worktree add ../before cc25b43
    python benchmarks/against.py --base ../before                    # 20 minutes
    python benchmarks/against.py --base ../before --only drain start --runs 10

Each measurement is a process of its own with the package and the benchmark files of one tree. A
ratio is the earlier time over that of this tree: medians, in seconds. Where other work disturbs
the machine, the processor time of a process (`cpu`) says more than its duration.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import download
import drain

from regards_nb.simulator import PrivateBroker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
#: Repeated measurements of one tree differ by so much.
LEAST_RATIO = 0.95
MESSAGES = 100_000
DOWNLOADS = ("large", "typical")
KINDS = ("import", "start", "latency", "drain", "growth", *DOWNLOADS)

START = """
import json, sys, time
from regards_nb import OrderTracker

tracker, took = OrderTracker(sys.argv[1], sys.argv[2], journal="start.sqlite"), []
for _ in range(4):
    began = time.perf_counter()
    tracker.start()
    took.append(time.perf_counter() - began)
    tracker.stop()
print(json.dumps(min(took[1:])))
"""
LATENCY = """
import sys
sys.path.insert(0, sys.argv[1])
import latency

print(latency.measured(sys.argv[2], "regards_nb", int(sys.argv[3]), int(sys.argv[4])).median_ms)
"""


class Comparison:
    """Measures two trees in turn; *scale* shortens what is measured."""

    def __init__(
        self, trees: Sequence[Path], cache: Path, broker_url: str, scale: float = 1.0
    ) -> None:
        self._trees = trees
        self._broker_url = broker_url
        self._cache = cache
        self._scale = scale
        self._stack = ExitStack()
        #: by what is measured and the place of the tree
        self.found: dict[str, tuple[list[float], list[float]]] = {}
        self._servers: dict[str, str] = {}

    def measure(self, kinds: Sequence[str], runs: int) -> None:
        """Measure the kinds so many times; an odd number is raised by one."""
        with self._stack:
            for title in set(DOWNLOADS) & {*kinds}:
                self._servers[title] = self._served(title)
            # What comes second finds caches filled: each tree comes first equally often.
            for number in range(runs + runs % 2):
                for kind in kinds:
                    self._measure(kind, (0, 1) if number % 2 else (1, 0))

    def _served(self, title: str) -> str:
        work = download.WORKS[title]
        maker = [sys.executable, str(HERE / "orders.py"), work.order, str(self._cache)]
        subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
        server = download.serving(self._cache / work.order, work)
        return self._stack.enter_context(server)[0]

    def _measure(self, kind: str, order: tuple[int, int]) -> None:
        with tempfile.TemporaryDirectory(dir=self._cache) as folder, ExitStack() as stack:
            queues: dict[str, str] = {}
            if kind in {"start", "drain"}:
                count = self._scaled(MESSAGES) if kind == "drain" else 0
                filled = drain.filled_queues(self._broker_url, ["0", "1"], count)
                queues = stack.enter_context(filled)
            for n in order:
                where = Path(folder) / str(n)
                where.mkdir()
                queue = queues.get(str(n), "")
                for what, value in self._values(kind, self._trees[n], where, queue):
                    self.found.setdefault(what, ([], []))[n].append(value)

    def _values(
        self, kind: str, tree: Path, where: Path, queue: str
    ) -> Iterator[tuple[str, float]]:
        files, url, count = tree / "benchmarks", self._broker_url, self._scaled(MESSAGES)
        if kind == "import":
            _, *took = run(tree, where, "-c", "from regards_nb import OrderTracker")
            yield from zip(("import", "import, cpu"), took, strict=True)
        elif kind == "start":
            yield "start()", float(run(tree, where, "-c", START, url, queue)[0])
        elif kind == "latency":
            for rate, messages in ((10, 100), (1000, 5000)):
                arguments = map(str, (files, url, rate, self._scaled(messages)))
                found = run(tree, where, "-c", LATENCY, *arguments)[0]
                yield f"latency at {rate:,}/s", float(found) / 1000
        elif kind == "drain":
            client = str(files / "drain_clients.py")
            found = json.loads(run(tree, where, client, "regards_nb", url, queue, str(count))[0])
            yield f"drain of {count:,} messages", found["wall_s"]
            yield f"drain of {count:,} messages, cpu", found["cpu_s"]
        elif kind == "growth":
            sizes = map(str, (self._scaled(200_000), self._scaled(20_000)))
            found = json.loads(run(tree, where, str(files / "growth.py"), *sizes)[0])
            for name, what in (("events_s", "events"), ("orders_s", "orders")):
                yield f"growth: `{what}` after 100 new events", found[name]
            yield "growth: first `events`", found["first_s"]
        else:
            urllib.request.urlopen(f"{self._servers[kind]}/reset").read()
            client = str(files / "competitors.py")
            arguments = ("regards_nb", self._servers[kind], "auto", "no-flush")
            _, *took = run(tree, where, client, *arguments)
            names = (f"download, {kind}", f"download, {kind}, cpu")
            yield from zip(names, took, strict=True)

    def _scaled(self, count: int) -> int:
        return int(count * self._scale)

    def table(self) -> str:
        """Return the medians and ratios as a Markdown table."""
        lines = ["| what | earlier, s | this tree, s | ratio | |", "|---|---:|---:|---:|---|"]
        for what, values in self.found.items():
            before, now = map(statistics.median, values)
            verdict = "met" if before / now >= LEAST_RATIO else "**missed**"
            lines.append(f"| {what} | {before:.4g} | {now:.4g} | {before / now:.2f} | {verdict} |")
        return "\n".join(lines)


def run(tree: Path, folder: Path, *arguments: str) -> tuple[str, float, float]:
    """Run Python with the package of a tree; return output, duration and processor time."""
    environment = download.ENVIRONMENT | {"PYTHONPATH": str(tree)}
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        output = stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments[0]} failed with {process.returncode} in {tree}")
    return output, took_s, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="the earlier source tree")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--runs", type=int, default=6, help="the medians of these count")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of messages")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regards-bench")
    given = parser.parse_args()
    given.cache.mkdir(exist_ok=True)
    trees = (given.base.resolve(), HERE.parent)
    with PrivateBroker() as broker:
        comparison = Comparison(trees, given.cache, broker.admin_url, given.scale)
        comparison.measure(given.only, given.runs)
    print(comparison.table())


if __name__ == "__main__":
    main()
