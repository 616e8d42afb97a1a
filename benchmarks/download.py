"""Downloading an order: regards_nb beside what a user would pick instead.

::

    python benchmarks/download.py                        all works, 3 runs each
    python benchmarks/download.py --works large --runs 5
    python benchmarks/download.py --write docs/download-speed.md

Needs Linux, curl, unzip, bsdtar (libarchive-tools), md5sum and aria2c. Every competitor downloads
the same order from the same server (HTTP/1.1, chunked, no Content-Length, sent by ``sendfile``), in
a process of its own that is started for it, and verifies each file by MD5. Runs are taken in turn;
what is printed are medians, and the ratio of regards_nb to each. The results of each work are kept
in the cache, and the page is written from all that are there.

None of the others waits until the files are on the disk; regards_nb does, unless it is told not to
(``durable=False``, here "no flush"). What is judged is like with like.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from download_page import LINE, Floor, Result, Run, page
from load import Stopwatch, cpu_s, wait_until_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
#: As it comes, and with ``durable=False``: no other competitor waits for the disk.
OURS, QUICK = "regards_nb", "regards_nb, no flush"
CURL_UNZIP, CURL_BSDTAR = "curl, unzip, md5sum", "curl | bsdtar, md5sum"
PYTHON = "requests, zipfile, MD5"
ARIA2, CURL_8 = "aria2c -j8 with MD5", "curl --parallel 8, md5sum"
PLAIN = f"{QUICK}, zlib"
SINGLY, QUICK_SINGLY = f"{OURS}, one by one", f"{QUICK}, one by one"


@dataclass(frozen=True)
class Work:
    """One work of the benchmark."""

    what: str
    order: str
    competitors: Sequence[str]
    floors: Sequence[Floor]
    bytes_per_s: float | None = None
    latency_s: float = 0.0
    max_rss_bytes: float = 64e6
    #: Files of 20 bytes take one block each, and are in the staging folder one by one.
    judges_disk: bool = True


WORKS: dict[str, Work] = {
    "large": Work(
        "a zip of 4 files, 1.07 GB that look like netCDF",
        "large",
        [QUICK, OURS, PLAIN, CURL_UNZIP, CURL_BSDTAR],
        [
            Floor(CURL_UNZIP, 0.26, QUICK, OURS),
            Floor(CURL_BSDTAR, 0.38, QUICK, OURS),
            Floor(CURL_UNZIP, 0.41, PLAIN),
            Floor(CURL_BSDTAR, 0.59, PLAIN),
        ],
    ),
    "typical": Work(
        "a zip of 200 files, 421 MB, a third of them incompressible",
        "typical",
        [QUICK, OURS, CURL_UNZIP, CURL_BSDTAR],
        [Floor(CURL_UNZIP, 0.38, QUICK, OURS), Floor(CURL_BSDTAR, 0.72, QUICK, OURS)],
    ),
    "limited": Work(
        "the large one, at a server limited to 100 MB/s",
        "large",
        [QUICK, OURS],
        [Floor(LINE, 1.05, QUICK, OURS)],
        bytes_per_s=100e6,
    ),
    "small-10000": Work(
        "a zip of 10,000 files of 20 bytes: two full sub-orders",
        "small-10000",
        [QUICK, OURS, PYTHON, CURL_UNZIP],
        [Floor(PYTHON, 0.9, QUICK, OURS), Floor(CURL_UNZIP, 1.0, QUICK, OURS)],
        max_rss_bytes=110e6,
        judges_disk=False,
    ),
    "separate": Work(
        "500 files of 1 to 5 MB one by one, 1.5 GB, each answer 30 ms late",
        "separate",
        [QUICK_SINGLY, SINGLY, ARIA2, CURL_8],
        [Floor(ARIA2, 0.27, QUICK_SINGLY, SINGLY), Floor(CURL_8, 0.55, QUICK_SINGLY, SINGLY)],
        latency_s=0.03,
    ),
}
_START = "from the start of Python to the first byte pass 0.18 s, nearly all of them imports"
_NAMED = (
    "of 0.60 s of processor for 10,000 files the imports take 0.16 s (those of the other 0.13 s), "
    "making the files 0.14 s, of which 0.09 s are five system calls for each, the manifest, the "
    "records and names 0.10 s, reading the zip 0.07 s, MD5 and its comparison 0.05 s, the paths "
    "that are returned 0.03 s. In these, 0.05 s are Python's garbage collection (0.01 s of the "
    "other): a file is five objects on its way. Names relative to an open folder save 0.006 s, and "
    "files without a name until they are linked (O_TMPFILE) as much"
)
#: Where it goes, by work and by what is judged, from profiles; shown where a floor is missed.
WHY: dict[tuple[str, str], str] = {
    ("large", "time"): "of 4.1 s of processor MD5 takes 1.7 s (OpenSSL's does 640 MB/s on this "
    "machine), inflating by isal 1.3 s, copying in the kernel 0.6 s and starting Python 0.2 s: "
    "3.8 s on two cores that also serve the zip. A thread of its own for MD5, for writing or for "
    "the network makes it no faster; without writing at all it takes 0.3 s less. zlib takes 1 to "
    "2 s more.",
    ("typical", "time"): f"{_START}; of 2.4 s of processor the kernel takes 0.8 s (copying, "
    "and waking threads), MD5 0.6 s, Python 0.5 s and inflating 0.3 s.",
    ("limited", "time"): f"{_START}; the rest is the line's.",
    ("small-10000", "time"): f"{_NAMED}.",
    ("separate", "time"): "of 5.5 s of processor, on two cores that also serve the files, MD5 "
    "takes 2.1 s, the kernel 2.0 s (most of it copying), and Python 1.3 s, most of that in "
    "requests, 500 times. Sixteen at a time instead of eight made no difference.",
}

#: Python keeps what it compiled, as it does for users: the first run of each, which does not count,
#: compiles it. Some containers forbid that, and then each run would compile all of its imports.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}

#: A run counts when other work took less of the machine; else it is made again, so often.
_QUIET, _TRIES = 0.1, 3
#: For so long all runs together wait for a quiet machine, or are made again. On a quiet machine all
#: works of 3 runs take 5 minutes, and making the orders takes another one.
_PATIENCE_S = 60.0


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


@contextmanager
def serving(folder: Path, work: Work) -> Iterator[tuple[str, int]]:
    """Run the server in a process of its own; give its address and its process id."""
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
        if ARIA2 in work.competitors:
            _write_lists(folder, url)
        yield url, process.pid
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


class _Patience:
    """Makes runs on a quiet machine, while the time for waiting lasts; one for all works."""

    def __init__(self) -> None:
        self._left_s = _PATIENCE_S

    def run(self, name: str, folder: Path, server: tuple[str, int], scratch: Path) -> Run:
        """Run one competitor, again while other work disturbs it; return the quietest run."""
        runs: list[Run] = []
        while len(runs) < _TRIES and (not runs or (self._left_s > 0 and runs[-1].others > _QUIET)):
            watch = Stopwatch()
            wait_until_quiet(_QUIET, self._left_s)
            waited_s = watch.passed_s
            runs.append(run_once(name, folder, server, scratch, watch_disk=False))
            # only the first run of each had to be made
            self._left_s -= waited_s if len(runs) == 1 else watch.passed_s
        return min(runs, key=lambda run: run.others)


def run_once(
    name: str, folder: Path, server: tuple[str, int], scratch: Path, *, watch_disk: bool
) -> Run:
    """Run one competitor in a fresh process and a fresh folder."""
    url, server_pid = server
    urllib.request.urlopen(f"{url}/reset").read()
    target = Path(tempfile.mkdtemp(dir=scratch))
    os.sync()
    peak = _PeakDisk(target) if watch_disk else None
    served_s = cpu_s(server_pid)
    watch = Stopwatch()
    process = subprocess.Popen(
        ["/bin/sh", "-c", command(name, folder, url)],
        cwd=target,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = watch.passed_s
    taken_s = usage.ru_utime + usage.ru_stime
    others = watch.others(taken_s + cpu_s(server_pid) - served_s)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak_bytes = peak.stop() if peak else None
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}")
    if sum(1 for _ in entries_in(target)) < _MANY_FILES:
        shutil.rmtree(target)
    return Run(wall_s, taken_s, usage.ru_maxrss * 1024, peak_bytes, others)


def entries_in(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, never holding all of it.

    What this process once held is counted for those that it starts: Linux takes it over into their
    peak.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from entries_in(entry.path)


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
        for entry in entries_in(self._folder):
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
        self._peak = max(self._peak, total)

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        self._look()
        return self._peak


def measure(title: str, work: Work, cache: Path, runs: int, patience: _Patience) -> Result:
    """Run all competitors in turn, and print the table."""
    folder = cache / work.order
    # not in this process: how much memory it once took is counted for those that it starts
    maker = [sys.executable, str(HERE / "orders.py"), work.order, str(cache)]
    stored_bytes = int(subprocess.run(maker, check=True, stdout=subprocess.PIPE).stdout)
    found: dict[str, list[Run]] = {name: [] for name in work.competitors}
    with serving(folder, work) as server, tempfile.TemporaryDirectory(dir=cache) as scratch:
        for name in work.competitors:
            # looking at the disk costs time: one run of each is for that alone
            found[name].append(run_once(name, folder, server, Path(scratch), watch_disk=True))
        for _ in range(runs):
            for name in work.competitors:
                found[name].append(patience.run(name, folder, server, Path(scratch)))
    rate = work.bytes_per_s
    line_s = (folder / "zip.chunked").stat().st_size / rate if rate else None
    ours = [name for name in work.competitors if name.startswith(OURS)]
    result = Result(
        title,
        work.what,
        found,
        list(work.floors),
        ours,
        stored_bytes,
        line_s,
        work.max_rss_bytes,
        work.judges_disk,
    )
    print(f"\n## {title}: {work.what}; {runs} runs\n{result.table()}")
    print(*result.verdicts(), sep="\n", flush=True)
    return result


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--runs", type=int, default=3, help="timed runs; the median counts")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regards-bench")
    parser.add_argument("--write", type=Path, help="write the page from all results in the cache")
    asked = parser.parse_args()
    asked.cache.mkdir(exist_ok=True)
    patience = _Patience()
    for title in asked.works:
        result = measure(title, WORKS[title], asked.cache, asked.runs, patience)
        result.save(asked.cache / f"{title}.json")
    paths = {title: asked.cache / f"{title}.json" for title in WORKS}
    results = [Result.load(path) for path in paths.values() if path.exists()]
    if asked.write:
        asked.write.write_text(page(results, WHY), encoding="utf-8")
    sys.exit(0 if all(verdict.met for result in results for verdict in result.verdicts()) else 1)


if __name__ == "__main__":
    main()
