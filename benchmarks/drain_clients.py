"""The clients of the benchmark: each empties a queue once, in a process of its own.

Prints one line of JSON: seconds from before the connection until the last message, and the
processor time of that. A run counts only if it has received every message once.
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
    """regards_nb: decode, journal before the acknowledgement, fold, and build the frame."""
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
    """pika, BlockingConnection: parse JSON, keep a list, acknowledge every 100th message."""
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
    """pika, SelectConnection, which regards_nb uses: as above."""
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
    """aio-pika: parse JSON, keep a list, acknowledge every 100th message."""
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
    """kombu: parse JSON, keep a list, acknowledge every 100th message."""
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
    """The usual recipe of notebooks: pd.concat and one acknowledgement for each message."""
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
    args = parser.parse_args()
    logging.disable()
    run = CLIENTS[args.client](args.url, args.queue, args.count)
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    numbers = run()
    wall_s = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    if sorted(numbers) != list(range(args.count)):
        sys.exit(f"{args.client} did not receive every message once")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "rss_mib": after.ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
