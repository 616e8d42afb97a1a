"""A broker, a queue, a tracker and a publisher of numbered events, for `faults.py`."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pika
from cluster import Cluster
from tcp_proxy import TcpProxy

from regards_nb import OrderTracker
from regards_nb.errors import JournalError, RegardsError
from regards_nb.simulator import QUEUE_ARGUMENTS, PrivateBroker

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from postgresql import PrivatePostgreSQL

LIMIT_S = 180.0
TICK = threading.Event()


class Publisher(threading.Thread):
    """REGARDS: publishes numbered events, and knows which of them RabbitMQ has taken.

    It pauses by itself after the first *prelude* events, so that a fault always finds some events
    taken and most of them still to come, however slow the machine is.
    """

    def __init__(self, urls: Sequence[str], queue: str, *, count: int, prelude: int) -> None:
        super().__init__(daemon=True)
        #: of the nodes of a cluster: the next one is tried when one fails
        self._urls = itertools.cycle(urls)
        self._queue, self._count, self._prelude = queue, count, prelude
        #: confirmed by the broker
        self.confirmed: list[int] = []
        #: sent, but the answer was lost with the connection: may be there or not
        self.uncertain: list[int] = []
        self._next = 0
        self.finished = threading.Event()
        self.paused = threading.Event()

    def run(self) -> None:
        """Publish all, connecting again as often as it takes."""
        while len(self.confirmed) < self._count:
            # Whatever breaks the connection is the fault under test.
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                self._publish()
            TICK.wait(0.05)
        self.finished.set()

    def _publish(self) -> None:
        parameters = pika.URLParameters(next(self._urls))
        with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while len(self.confirmed) < self._count:
                if self.paused.is_set():
                    connection.process_data_events(0.05)
                    continue
                number, self._next = self._next, self._next + 1
                self.uncertain.append(number)
                with contextlib.suppress(pika.exceptions.UnroutableError):
                    channel.basic_publish(
                        "", self._queue, event(number), properties(), mandatory=True
                    )
                    self.confirmed.append(number)
                    if len(self.confirmed) == self._prelude:
                        self.paused.set()
                self.uncertain.remove(number)


def event(number: int) -> bytes:
    """Return the body of one event; each tenth has a legal twin of an older server beside it."""
    body = {"status": "SUBORDER_DONE", "orderId": number // 10, "correlationId": "c"}
    return json.dumps(body | {"subOrderId": number}).encode()


def properties() -> pika.BasicProperties:
    """Return what REGARDS sends along."""
    return pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        priority=1,
        timestamp=int(time.time()),
        app_id="rs-order",
        # not in the order of their names
        headers={"regards.tenant": "t", "regards.converter": "GSON", "regards.type": "x"},
    )


@dataclass
class World:
    """A broker, a queue, a tracker and a publisher, and what is learned from them."""

    #: of a cluster: a node that is not killed
    broker: PrivateBroker
    folder: Path
    events: int
    arguments: dict[str, object] = field(default_factory=lambda: dict(QUEUE_ARGUMENTS))
    #: a path or a URL; by default a file in the folder
    journal: str = ""
    queue: str = field(default_factory=lambda: f"orders.{uuid.uuid4().hex}")
    states: list[str] = field(default_factory=list)
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        self.journal = self.journal or str(self.folder / "journal.sqlite")
        self.make_queue()
        urls = self.cluster.urls if self.cluster else [self.broker.admin_url]
        self.publisher = Publisher(urls, self.queue, count=self.events, prelude=self.events // 20)
        self.url = f"{self.broker.admin_url}?heartbeat=4"
        addresses = [f"{url}?heartbeat=4" for url in urls]
        self.tracker = OrderTracker(addresses, self.queue, journal=self.journal)

    def use(self, postgresql: PrivatePostgreSQL) -> None:
        """Keep the journal in PostgreSQL."""
        self.postgresql = postgresql
        self.journal = postgresql.new_database()
        self.tracker = OrderTracker(self.url, self.queue, journal=self.journal)

    @contextlib.contextmanager
    def channel(self) -> Iterator[pika.channel.Channel]:
        """Open a channel of the administrator."""
        connection = pika.BlockingConnection(pika.URLParameters(self.broker.admin_url))
        with contextlib.closing(connection):
            yield connection.channel()

    def make_queue(self) -> None:
        """Make the queue, as the administrator does."""
        with self.channel() as channel:
            channel.queue_declare(self.queue, durable=True, arguments=self.arguments)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, noting what health says meanwhile."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            self.note()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: {self.tracker.health}")
            TICK.wait(0.02)

    def note(self) -> None:
        """Remember the state that health shows."""
        state = str(self.tracker.health.state)
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def rows(self) -> int:
        """Return how many events the frame has; 0 while the journal cannot be read."""
        with contextlib.suppress(JournalError):
            return len(self.tracker.events)
        return 0

    def wait_for_rows(self, rows: int) -> None:
        """Wait until so many events are in the frame."""
        self.wait(lambda: self.rows() >= rows, f"{rows} rows")

    def stop(self) -> None:
        """Stop the tracker and close its journal."""
        self.tracker.stop()
        self.tracker._shared.journal.close()  # noqa: SLF001

    def drain(self) -> None:
        """Wait until all events that RabbitMQ has taken are in the frame."""
        self.wait(lambda: self.rows() >= len(self.publisher.confirmed), "drain")

    def flow(self, duration_s: float) -> None:
        """Let events flow for some time."""
        begin = time.monotonic()
        self.wait(lambda: time.monotonic() - begin > duration_s, "flow")

    def pause(self) -> None:
        """Stop publishing until ``publisher.paused.clear()``, and drain the queue."""
        self.publisher.paused.set()
        TICK.wait(0.1)  # a last event may be on its way
        self.drain()

    @contextlib.contextmanager
    def through(self, limit_bytes: int | None = None) -> Iterator[TcpProxy]:
        """Have the tracker reach RabbitMQ through a proxy."""
        self.tracker.stop()
        with TcpProxy(("127.0.0.1", self.broker.amqp_port), limit_bytes) as proxy:
            self.tracker = OrderTracker(proxy.url(self.url), self.queue, journal=self.journal)
            try:
                yield proxy
            finally:
                with contextlib.suppress(RegardsError):
                    self.tracker.stop()
        self.tracker = OrderTracker(self.url, self.queue, journal=self.journal).start()

    def first_new_event_s(self) -> float:
        """Publish one more event and return how long it takes into the frame."""
        begin = time.monotonic()
        marker = f"marker-{uuid.uuid4().hex}"
        body = json.dumps({"status": "DONE", "correlationId": marker}).encode()

        def published() -> bool:
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                with self.channel() as channel:
                    channel.confirm_delivery()
                    channel.basic_publish("", self.queue, body, properties(), mandatory=True)
                return True
            return False

        self.wait(published, "publish")
        self.wait(lambda: self.tracker._shared.frames.key_of(marker) is not None, "marker")  # noqa: SLF001
        return time.monotonic() - begin
