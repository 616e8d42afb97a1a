"""505 files of an order into a bucket, beside the same to a disk, and beside boto3 afterwards.

::

    python benchmarks/object_store.py --runs 5
    python benchmarks/object_store.py --works far

The order has 500 files of 20 kB and 5 of 40 MiB. The archive is a server that costs next to
nothing, the object store is ``rclone serve s3`` on this machine, which checks each content. Each
competitor is a process of its own, with its imports; the runs are taken in turn, and the medians
are compared:

* ``disk``: regards_nb into a folder;
* ``bucket``: regards_nb into ``s3://bucket``;
* ``disk, then boto3``: regards_nb into a folder, then one ``upload_file`` after the other.

The work ``far`` has a line of 25 MB/s from the archive, and 30 ms for each answer of the store, as
over a network: the targets are for it. ``near`` has no limits: the archive, the store and the
program share the processor, of which the store alone takes more than the program. The processor
times of both are printed, so that this is seen.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from load import Stopwatch, cpu_s
from orders import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ACCOUNT = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-secret"}
BUCKET = "bucket"
FILES = 505
DISK, INTO_BUCKET, BOTO3 = "disk", "bucket", "disk, then boto3"
_BLOCK_BYTES = 1 << 18


class Work(NamedTuple):
    """The conditions of one comparison."""

    bytes_per_s: float | None
    latency_s: float


WORKS = {"far": Work(25e6, 0.03), "near": Work(None, 0.0)}


class Store(NamedTuple):
    """A running object store."""

    url: str
    pid: int


class Run(NamedTuple):
    """The cost of one competitor: time, and processor time of the program and of the store."""

    passed_s: float
    client_s: float
    store_s: float
    load: float


def download(kind: str, url: str, target: str) -> None:
    """Be a competitor: download the order, and perhaps upload it."""
    from regards_nb import RegardsClient

    place = f"s3://{BUCKET}/{target}" if kind == INTO_BUCKET else target
    with RegardsClient(url, tenant="t", username="u", password="p") as client:
        paths = client.download_order(1, place, show=False)
    if kind == BOTO3:
        import boto3

        client = boto3.client("s3")
        for path in paths:
            client.upload_file(str(path), BUCKET, f"{target}/{path.name}")


class Delay:
    """A proxy to a server that holds each answer back for a while."""

    def __init__(self, port: int, latency_s: float) -> None:
        self._target, self._latency_s = port, latency_s
        self._never = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, latency_s in (
                (client, server, 0.0),
                (server, client, self._latency_s),
            ):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(
                    target=self._pump, args=(source, sink, latency_s), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, latency_s: float) -> None:
        with suppress(OSError):
            while data := source.recv(_BLOCK_BYTES):
                if latency_s:
                    self._never.wait(latency_s)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def archive(folder: Path, work: Work) -> Iterator[str]:
    """Run the archive; yield its address."""
    command = [sys.executable, str(HERE / "order_server.py"), str(folder)]
    if work.bytes_per_s:
        command += ["--bytes-per-s", str(work.bytes_per_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@contextmanager
def store(folder: Path, work: Work) -> Iterator[Store]:
    """Run the object store."""
    (folder / BUCKET).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    rclone = Path(sys.executable).with_name("rclone")
    command = [
        *(str(rclone), "--config", os.devnull, "serve", "s3"),
        *("--auth-key", ",".join(ACCOUNT.values()), "--addr", f"127.0.0.1:{port}", str(folder)),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        proxy = Delay(port, work.latency_s) if work.latency_s else None
        yield Store(f"http://127.0.0.1:{proxy.port if proxy else port}", server.pid)
        server.kill()


def run_once(kind: str, archive_url: str, there: Store, scratch: Path) -> Run:
    """Run one competitor; return its cost."""
    urllib.request.urlopen(f"{archive_url}/reset").read()
    # a new prefix each time: the server remembers what it listed
    target = f"files-{secrets.token_hex(4)}"
    for folder in (scratch / "here", scratch / "temporary"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    os.sync()
    environment = {
        **os.environ,
        **ACCOUNT,
        "AWS_ENDPOINT_URL": there.url,
        "AWS_REGION": "us-east-1",
        "TMPDIR": str(scratch / "temporary"),
    }
    store_before_s, client_before_s = cpu_s(there.pid), _children_s()
    watch = Stopwatch()
    command = [sys.executable, __file__, "--be", kind, archive_url, target]
    subprocess.run(command, check=True, cwd=scratch / "here", env=environment)
    passed_s = watch.passed_s
    place = scratch / "here" if kind == DISK else scratch / "store" / BUCKET
    found = sum(1 for _ in (place / target).glob("*.nc"))
    if found != FILES:
        raise SystemExit(f"{kind}: {found} of {FILES} files")
    return Run(
        passed_s,
        _children_s() - client_before_s,
        cpu_s(there.pid) - store_before_s,
        os.getloadavg()[0],
    )


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(name: str, cache: Path, runs: int) -> bool:
    """Compare all competitors; return whether the targets are met."""
    work, folder = WORKS[name], prepare("objects", cache)
    taken: dict[str, list[Run]] = {kind: [] for kind in (DISK, INTO_BUCKET, BOTO3)}
    with (
        tempfile.TemporaryDirectory(dir=cache) as scratch,
        archive(folder, work) as archive_url,
        store(Path(scratch) / "store", work) as there,
    ):
        for _ in range(runs):
            for kind, each in taken.items():
                each.append(run_once(kind, archive_url, there, Path(scratch)))
    median_s = {kind: statistics.median(r.passed_s for r in each) for kind, each in taken.items()}
    to_disk = median_s[DISK] / median_s[INTO_BUCKET]
    to_boto3 = median_s[BOTO3] / median_s[INTO_BUCKET]
    loads = [run.load for each in taken.values() for run in each]
    line = f"{work.bytes_per_s / 1e6:g} MB/s" if work.bytes_per_s else "no limits"
    print(f"\n{name} ({line}), {runs} runs, load {min(loads):.1f} to {max(loads):.1f}")
    for kind, each in taken.items():
        times = [run.passed_s for run in each]
        client_s, store_s = (statistics.median(run[column] for run in each) for column in (1, 2))
        print(
            f"  {kind:17} {median_s[kind]:6.2f} s  ({min(times):.2f} to {max(times):.2f}), "
            f"processor: {client_s:.2f} s, store {store_s:.2f} s"
        )
    print(f"  bucket: {to_disk:.2f} x the rate to disk (0.9), {to_boto3:.2f} x boto3 (3.0)")
    return (to_disk >= 0.9 and to_boto3 >= 3.0) or name == "near"


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--runs", type=int, default=5, help="timed runs; the median counts")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regards-bench")
    parser.add_argument("--be", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.be:
        download(*asked.be)
        return
    asked.cache.mkdir(exist_ok=True)
    met = [measure(name, asked.cache, asked.runs) for name in asked.works]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
