"""The clients of the benchmark: each empties a queue once, in a process of its own.

Prints one line of JSON: seconds from before it connects until it has everything, and the
processor time of that. Every message is counted by its number before the time is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PREFETCH = 1000
ACK_EVERY = 100


def regards_nb(url: str, queue: str, count: int) -> Callable[[], Iterable[int]]:
    """Decode, journal before acknowledging, fold, and build the frame."""
    from regards_nb import OrderTracker

    folder = tempfile.TemporaryDirectory(dir=Path.cwd())
    tracker = OrderTracker(url, queue, journal=Path(folder.name) / "journal.sqlite")
    tick = threading.Event()

    def run() -> Iterable[int]:
        tracker.start()
        while len(tracker.events) < count:
            tick.wait(0.05)
        assert len(tracker.orders) > 0
        return numbers()

    def numbers() -> Iterable[int]:
        yield from tracker.events["sub_order_id"]
        tracker.stop()
        folder.cleanup()

    return run


def pika_loop(url: str, queue: str, count: int) -> Callable[[], Iterable[int]]:
    """A bare loop over a BlockingConnection: json, every 100th acknowledged; keeps a list."""
    import pika

    def run() -> Iterable[int]:
        found = []
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)

        def take(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            found.append(json.loads(body))
            if len(found) % ACK_EVERY == 0 or len(found) == count:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if len(found) == count:
                channel.stop_consuming()

        channel.basic_consume(queue, take)
        channel.start_consuming()
        return (message["subOrderId"] for message in found)

    return run


def pika_select(url: str, queue: str, count: int) -> Callable[[], Iterable[int]]:
    """The same with pika's callback API, which regards_nb is built on."""
    import pika

    def run() -> Iterable[int]:
        found = []

        def take(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            found.append(json.loads(body))
            if len(found) % ACK_EVERY == 0 or len(found) == count:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if len(found) == count:
                connection.close()

        def consume(channel: Any) -> None:
            channel.basic_qos(prefetch_count=PREFETCH)
            channel.basic_consume(queue, take)

        connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda it: it.channel(on_open_callback=consume),
            on_close_callback=lambda it, _reason: it.ioloop.stop(),
        )
        connection.ioloop.start()
        return (message["subOrderId"] for message in found)

    return run


def aio_pika(url: str, queue: str, count: int) -> Callable[[], Iterable[int]]:
    """aio-pika with a callback: json, every 100th acknowledged; keeps a list."""
    import aio_pika as library

    async def consume() -> Iterable[int]:
        found: list[Any] = []
        done = asyncio.Event()
        connection = await library.connect(url)
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)

        async def take(message: Any) -> None:
            found.append(json.loads(message.body))
            if len(found) % ACK_EVERY == 0 or len(found) == count:
                await message.ack(multiple=True)
            if len(found) == count:
                done.set()

        await (await channel.get_queue(queue, ensure=True)).consume(take)
        await done.wait()
        await connection.close()
        return (message["subOrderId"] for message in found)

    return lambda: asyncio.run(consume())


def kombu(url: str, queue: str, count: int) -> Callable[[], Iterable[int]]:
    """kombu: json, every 100th acknowledged; keeps a list."""
    import kombu as library

    def run() -> Iterable[int]:
        found: list[Any] = []

        def take(message: Any) -> None:
            found.append(json.loads(message.body))
            if len(found) % ACK_EVERY == 0 or len(found) == count:
                message.channel.basic_ack(message.delivery_tag, multiple=True)

        with library.Connection(url.replace("amqp://", "pyamqp://")) as connection:
            queues = [library.Queue(queue, no_declare=True)]
            consumer = connection.Consumer(
                queues, on_message=take, accept=["json"], prefetch_count=PREFETCH
            )
            with consumer:
                while len(found) < count:
                    connection.drain_events()
        return (message["subOrderId"] for message in found)

    return run


def naive(url: str, queue: str, count: int) -> Callable[[], Iterable[int]]:
    """What is found in notebooks: pd.concat for each message, each acknowledged by itself."""
    import pandas as pd
    import pika

    def run() -> Iterable[int]:
        frame = pd.DataFrame()
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        for method, properties, body in channel.consume(queue):
            event = {"timestamp": properties.timestamp, **json.loads(body)}
            frame = pd.concat([frame, pd.DataFrame([event])], ignore_index=True)
            channel.basic_ack(method.delivery_tag)
            if len(frame) == count:
                break
        connection.close()
        return list(frame["subOrderId"])

    return run


CLIENTS = {
    "regards_nb": regards_nb,
    "pika": pika_loop,
    "pika-select": pika_select,
    "aio-pika": aio_pika,
    "kombu": kombu,
    "naive": naive,
}


def main() -> None:
    """Run one client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("url")
    parser.add_argument("queue")
    parser.add_argument("count", type=int)
    asked = parser.parse_args()
    logging.disable()
    run = CLIENTS[asked.client](asked.url, asked.queue, asked.count)
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    numbers = run()
    wall_s = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    if sorted(numbers) != list(range(asked.count)):
        sys.exit(f"{asked.client} has not got every message once")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "rss_mib": after.ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
