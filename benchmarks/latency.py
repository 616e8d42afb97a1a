"""The time from publishing until a bare callback or a row of the frame has the message.

The publisher is a process of its own and writes the time into each message.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pika

_LONGEST_S = 60.0


class Latency(NamedTuple):
    """Milliseconds from publishing to the callback or row."""

    rate_per_s: int
    client: str
    median_ms: float
    p99_ms: float


def publish(url: str, queue: str, rate_per_s: int, count: int) -> None:
    """Publish messages at a rate."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        begin = time.monotonic()
        pause = threading.Event()
        for number in range(count):
            ahead_s = begin + number / rate_per_s - time.monotonic()
            if ahead_s > 0:
                pause.wait(ahead_s)
            body = {"status": "SUBORDER_DONE", "orderId": 1, "correlationId": "c"}
            body |= {"subOrderId": number, "message": str(time.monotonic_ns())}
            channel.basic_publish("", queue, json.dumps(body).encode())


def measured(url: str, client: str, rate_per_s: int, count: int) -> Latency:
    """Let a client receive the published messages, and return the latency."""
    queue = f"benchmark.{uuid.uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare(queue, durable=True)
    command = [sys.executable, __file__, url, queue, str(rate_per_s), str(count)]
    receive = {"pika": _by_callback, "regards_nb": _by_row}[client]
    late_ms = sorted(receive(url, queue, count, command))
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_delete(queue)
    p99 = late_ms[int(len(late_ms) * 0.99)]
    return Latency(rate_per_s, client, statistics.median(late_ms), p99)


def _by_callback(url: str, queue: str, count: int, command: list[str]) -> list[float]:
    late_ms: list[float] = []
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1000)

    def take(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        late_ms.append((time.monotonic_ns() - int(json.loads(body)["message"])) / 1e6)
        channel.basic_ack(method.delivery_tag, multiple=True)
        if len(late_ms) == count:
            channel.stop_consuming()

    channel.basic_consume(queue, take)
    with subprocess.Popen(command):
        channel.start_consuming()
    connection.close()
    return late_ms


def _by_row(url: str, queue: str, count: int, command: list[str]) -> list[float]:
    # not at the top: the publisher needs none of it
    from regards_nb import OrderTracker

    late_ms: list[float] = []
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        OrderTracker(url, queue, journal=Path(folder) / "journal.sqlite") as tracker,
        subprocess.Popen(command),
    ):
        # Wait like a live view. Polling would take processor time from the consumer.
        signal, seen = tracker._shared.signal, -1  # noqa: SLF001
        while len(late_ms) < count:
            seen = signal.wait(seen, _LONGEST_S)
            new = tracker.events["message"].iloc[len(late_ms) :]
            now = time.monotonic_ns()
            late_ms += [(now - int(sent)) / 1e6 for sent in new]
    return late_ms


if __name__ == "__main__":
    publish(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
