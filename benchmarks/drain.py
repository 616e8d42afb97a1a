"""The rates at which regards_nb and other clients empty a queue."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import messages
import pika

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from regards_nb.simulator import PrivateBroker

HERE = Path(__file__).parent
OURS, PIKA, AIO_PIKA, KOMBU, NAIVE = "regards_nb", "pika", "aio-pika", "kombu", "naive"
RABBITMQ_C = "rabbitmq-c"


class Run(NamedTuple):
    """One client emptied one queue."""

    wall_s: float
    cpu_s: float
    rss_mib: float


def compiled(folder: Path) -> Path | None:
    """Compile the C client; return None if compiler or library is missing."""
    program = folder / "drain"
    if shutil.which("cc") is None:
        return None
    command = ["cc", "-O2", "-o", str(program), str(HERE / "drain.c"), "-lrabbitmq"]
    done = subprocess.run(command, capture_output=True, check=False)
    return program if done.returncode == 0 else None


def run_client(name: str, url: str, queue: str, count: int, program: Path | None = None) -> Run:
    """Run one client in a process of its own."""
    command = [sys.executable, str(HERE / "drain_clients.py"), name, url, queue, str(count)]
    if name == RABBITMQ_C:
        parts = urlsplit(url)
        login = [parts.hostname, parts.port, parts.username, parts.password]
        vhost = unquote(parts.path[1:]) or "/"
        command = [str(program), *map(str, [*login, vhost, queue, count])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def from_broker(
    broker: PrivateBroker, clients: Sequence[str], *, count: int, runs: int, program: Path | None
) -> dict[str, list[Run]]:
    """Let each client empty a queue of its own, in turn, *runs* times."""
    found: dict[str, list[Run]] = {name: [] for name in clients}
    for number in range(runs):
        with filled_queues(broker.admin_url, clients, count) as queues:
            # Each client starts one round, because the broker still works when a round starts.
            for name in [*clients[number % len(clients) :], *clients[: number % len(clients)]]:
                found[name].append(run_client(name, broker.admin_url, queues[name], count, program))
    return found


@contextmanager
def filled_queues(url: str, names: Sequence[str], count: int) -> Iterator[dict[str, str]]:
    """Declare a queue with the same messages for each name."""
    queues = {name: f"benchmark.{uuid.uuid4().hex}" for name in names}
    exchange = f"benchmark.{uuid.uuid4().hex}"
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "fanout", auto_delete=True)
    for queue in queues.values():
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, exchange)
    for number in range(count):
        channel.basic_publish(exchange, "", messages.body(number), messages.properties(number))
    pause = threading.Event()
    for queue in queues.values():
        while channel.queue_declare(queue, passive=True).method.message_count < count:
            pause.wait(0.1)
    try:
        yield queues
    finally:
        for queue in queues.values():
            channel.queue_delete(queue)
        connection.close()


def from_replay(
    clients: Sequence[str], *, count: int, runs: int, program: Path | None
) -> dict[str, list[Run]]:
    """Measure with a server that is faster than every client."""
    found: dict[str, list[Run]] = {name: [] for name in clients}
    command = [sys.executable, str(HERE / "replay_server.py"), str(count)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        try:
            for _ in range(runs):
                for name in clients:
                    url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
                    found[name].append(run_client(name, url, "queue", count, program))
        finally:
            server.communicate("")
    return found


def table(found: dict[str, list[Run]], count: int) -> str:
    """Return the runs as a Markdown table, with the ratio of the rates to that of regards_nb."""
    lines = [
        (
            "| client | messages/s, median (min-max) | regards_nb is so many times as fast "
            "| processor, µs a message | peak RSS, MiB |"
        ),
        "|---|---:|---:|---:|---:|",
    ]
    ours = median_rate(found[OURS], count)
    for name, runs in found.items():
        rates = sorted(count / run.wall_s for run in runs)
        lines.append(
            f"| {name} | {median_rate(runs, count):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f}) "
            f"| {ours / median_rate(runs, count):.2f} "
            f"| {statistics.median(run.cpu_s for run in runs) / count * 1e6:.1f} "
            f"| {max(run.rss_mib for run in runs):.0f} |"
        )
    return "\n".join(lines)


def median_rate(runs: Sequence[Run], count: int) -> float:
    """Return the median of messages per second."""
    return count / statistics.median(run.wall_s for run in runs)


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder for the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
