"""Downloading an order: regards_nb beside what a user would pick instead.

::

    python benchmarks/download.py [--works large typical ...] [--runs 5]

Needs curl, unzip, bsdtar (libarchive-tools), md5sum and aria2c. Every competitor downloads the
same order from the same server (HTTP/1.1, chunked, no Content-Length, sent by ``sendfile``), in a
process of its own that is started for it, and verifies each file by MD5. Runs are taken in turn;
what is printed are medians, and the ratio of regards_nb to each.

None of the others waits until the files are on the disk; regards_nb does, unless it is told not to
(``durable=False``, here "no flush"). What is judged is like with like.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orders import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
#: As it comes, and with ``durable=False``: no other competitor waits for the disk.
OURS, QUICK = "regards_nb", "regards_nb, no flush"


class Limit(NamedTuple):
    """A ratio that regards_nb must not exceed."""

    peer: str
    ratio: float


@dataclass(frozen=True)
class Work:
    """One line of the benchmark."""

    order: str
    competitors: Sequence[str]
    limits: Sequence[Limit]
    bytes_per_s: float | None = None
    latency_s: float = 0.0


CURL_UNZIP, CURL_BSDTAR = "curl, unzip, md5sum", "curl | bsdtar, md5sum"
PYTHON = "requests, zipfile, MD5"
ARIA2, CURL_8 = "aria2c -j8 with MD5", "curl --parallel 8, md5sum"
PLAIN = f"{QUICK}, zlib"
SINGLY, QUICK_SINGLY = f"{OURS}, one by one", f"{QUICK}, one by one"

WORKS: dict[str, Work] = {
    "large": Work(
        "large",
        [QUICK, OURS, PLAIN, CURL_UNZIP, CURL_BSDTAR],
        [Limit(CURL_UNZIP, 0.27), Limit(CURL_BSDTAR, 0.38)],
    ),
    "typical": Work(
        "typical",
        [QUICK, OURS, CURL_UNZIP, CURL_BSDTAR],
        [Limit(CURL_UNZIP, 0.38), Limit(CURL_BSDTAR, 0.72)],
    ),
    "limited": Work("large", [QUICK, OURS], [], bytes_per_s=100e6),
    "small-5000": Work("small-5000", [QUICK, OURS, PYTHON], [Limit(PYTHON, 1.0)]),
    "small-70000": Work("small-70000", [QUICK, OURS, PYTHON], [Limit(PYTHON, 1.0)]),
    "separate": Work(
        "separate",
        [QUICK_SINGLY, SINGLY, ARIA2, CURL_8],
        [Limit(ARIA2, 0.27), Limit(CURL_8, 0.55)],
        latency_s=0.03,
    ),
}
#: The same limits with the standard zlib.
PLAIN_LIMITS = {"large": [Limit(CURL_UNZIP, 0.41), Limit(CURL_BSDTAR, 0.59)]}


def command(name: str, folder: Path, url: str) -> str:
    """Return the shell command of one competitor, run in an empty folder."""
    python = shlex.quote(sys.executable)
    zip_url = f"{url}/order.zip"
    sums = shlex.quote(str(folder / "MD5SUMS"))
    verify = f"md5sum --check --quiet --strict {sums}"
    worker = f"{python} {shlex.quote(str(HERE / 'competitors.py'))}"
    return {
        OURS: f"{worker} regards_nb {url} auto flush",
        QUICK: f"{worker} regards_nb {url} auto no-flush",
        PLAIN: f"{worker} regards_nb-zlib {url} auto no-flush",
        SINGLY: f"{worker} regards_nb {url} files flush",
        QUICK_SINGLY: f"{worker} regards_nb {url} files no-flush",
        PYTHON: f"{worker} zipfile {zip_url} {shlex.quote(str(folder / 'manifest.json'))}",
        CURL_UNZIP: f"curl -sSfO {zip_url} && unzip -q order.zip && {verify}",
        CURL_BSDTAR: f"curl -sSf {zip_url} | bsdtar -xf - && {verify}",
        ARIA2: f"aria2c -q -j8 -x1 --file-allocation=none -i {shlex.quote(str(folder / 'aria2'))}",
        CURL_8: f"curl -sSf --parallel --parallel-max 8 -K {shlex.quote(str(folder / 'curl'))}"
        f" && {verify}",
    }[name]


#: ext4 is slow to make files where many were deleted in the last half minute, so that the next
#: competitor would pay for the last one: folders of many files stay until all runs are over.
_MANY_FILES = 1000


class Run(NamedTuple):
    """What one run cost."""

    wall_s: float
    cpu_s: float
    rss_mib: float
    disk_mb: float


@contextmanager
def serving(folder: Path, work: Work) -> Iterator[str]:
    """Run the server in a process of its own."""
    arguments = [str(folder), "--latency-s", str(work.latency_s)]
    if work.bytes_per_s:
        arguments += ["--bytes-per-s", str(work.bytes_per_s)]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "order_server.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        _write_lists(folder, url)
        yield url
    finally:
        process.communicate("")


def _write_lists(folder: Path, url: str) -> None:
    """Write what aria2c and curl take their URLs from."""
    rows = json.loads((folder / "manifest.json").read_text())
    (folder / "aria2").write_text(
        "".join(
            f"{url}/files/{row['id']}\n out={row['filename']}\n checksum=md5={row['checksum']}\n"
            for row in rows
        )
    )
    (folder / "curl").write_text(
        "".join(f'url = "{url}/files/{row["id"]}"\noutput = "{row["filename"]}"\n' for row in rows)
    )


def run_once(name: str, folder: Path, url: str, scratch: Path, *, watch_disk: bool) -> Run:
    """Run one competitor in a fresh process and a fresh folder."""
    urllib.request.urlopen(f"{url}/reset").read()
    target = Path(tempfile.mkdtemp(dir=scratch))
    os.sync()
    peak = _PeakDisk(target) if watch_disk else None
    started_s = time.perf_counter()
    process = subprocess.Popen(
        ["/bin/sh", "-c", command(name, folder, url)],
        cwd=target,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    process.returncode = os.waitstatus_to_exitcode(status)
    disk_mb = peak.stop() if peak else 0.0
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}")
    if len(list(target.iterdir())) < _MANY_FILES:
        shutil.rmtree(target)
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, disk_mb)


class _PeakDisk:
    """Looks ten times per second how much a folder holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _look(self) -> None:
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except OSError:
                continue
        self._peak = max(self._peak, total)

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self._peak / 1e6


def measure(title: str, work: Work, cache: Path, runs: int) -> bool:
    """Run all competitors in turn, print the table, and tell whether the limits are kept."""
    folder = prepare(work.order, cache)
    size_bytes = json.loads((folder / "order.json").read_text())["bytes"]
    found: dict[str, list[Run]] = {name: [] for name in work.competitors}
    with serving(folder, work) as url, tempfile.TemporaryDirectory(dir=cache) as scratch:
        for number in range(runs):
            for name in work.competitors:
                # looking at the disk costs time: one run of each is for that alone
                run = run_once(name, folder, url, Path(scratch), watch_disk=number == 0)
                found[name].append(run)
    _print(f"\n## {title}: {size_bytes / 1e6:.0f} MB, {runs - 1} runs")
    _print("| | wall s median (min-max) | CPU s | peak RSS MiB | peak disk / size |")
    _print("|---|---|---|---|---|")
    for name, [first, *timed] in found.items():
        wall = [run.wall_s for run in timed]
        _print(
            f"| {name} | {statistics.median(wall):.2f} ({min(wall):.2f}-{max(wall):.2f}) "
            f"| {statistics.median(run.cpu_s for run in timed):.2f} "
            f"| {max(run.rss_mib for run in timed):.0f} "
            f"| {first.disk_mb * 1e6 / size_bytes:.2f} |"
        )
    medians = {name: statistics.median(r.wall_s for r in runs[1:]) for name, runs in found.items()}
    kept = [_judge(medians, work.competitors[0], limit) for limit in work.limits] + [
        _judge(medians, PLAIN, limit) for limit in PLAIN_LIMITS.get(title, ())
    ]
    if work.bytes_per_s:
        floor_s = (folder / "zip.chunked").stat().st_size / work.bytes_per_s
        kept.append(_judge(medians | {"the line": floor_s}, QUICK, Limit("the line", 1.05)))
    return all(kept)


def _judge(medians: dict[str, float], ours: str, limit: Limit) -> bool:
    ratio = medians[ours] / medians[limit.peer]
    kept = ratio <= limit.ratio
    _print(
        f"{'ok  ' if kept else 'MISS'} {ours} / {limit.peer} = {ratio:.2f} (at most {limit.ratio})"
    )
    return kept


def _print(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--runs", type=int, default=5, help="timed runs; the median counts")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regards-bench")
    asked = parser.parse_args()
    asked.cache.mkdir(exist_ok=True)
    kept = [measure(name, WORKS[name], asked.cache, asked.runs + 1) for name in asked.works]
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
