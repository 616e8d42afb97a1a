"""Publishes to RabbitMQ from one thread with one connection; what it was given is not lost.

Each message stays at the head of the line until RabbitMQ has confirmed it. Where the connection
breaks in between, it is published again: at least once, as in REGARDS.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions

from regards_nb.events import RESPONSE_EXCHANGE, RESPONSE_TYPE, TENANT_HEADER

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

_IDLE_S = 5
_RETRY_S = 0.1
_CONNECT_LIMIT_S = 10

#: What a message can fail with while the broker is away or comes back.
_TROUBLE = (pika.exceptions.AMQPError, OSError)


def properties(
    *, tenant: str | None, correlation_id: str | None, timestamp_s: int
) -> dict[str, Any]:
    """Return the AMQP properties and headers of a response (protocol.md 1.6)."""
    headers = {
        TENANT_HEADER: tenant,
        "regards.converter": "GSON",
        "regards.type": RESPONSE_TYPE,
    }
    return {
        "content_type": "application/json",
        "content_encoding": "UTF-8",
        "priority": 1,
        "delivery_mode": 2,
        "timestamp": timestamp_s,
        "correlation_id": correlation_id,
        "app_id": "rs-order",
        "headers": {name: value for name, value in headers.items() if value is not None},
    }


class Publisher:
    """The service's end of the exchange.

    Parameters
    ----------
    url : str
        AMQP URL of the administrator.
    queue : str
        The queue that he makes for the tracker.
    """

    def __init__(self, url: str, queue: str) -> None:
        self._parameters = _parameters(url)
        self._queue = queue
        self._waiting: deque[tuple[bytes, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._connection: BlockingConnection | None = None
        self._thread = threading.Thread(target=self._run, name="simulator-amqp", daemon=True)

    def start(self) -> None:
        """Make exchange, queue and binding, then begin to publish."""
        with _connected(self._parameters) as connection:
            self._declare(connection.channel())
        self._thread.start()

    def _declare(self, channel: BlockingChannel) -> None:
        channel.exchange_declare(RESPONSE_EXCHANGE, "fanout", durable=True)
        channel.queue_declare(self._queue, durable=True)
        channel.queue_bind(self._queue, RESPONSE_EXCHANGE)

    def publish(self, body: bytes, properties: dict[str, Any]) -> None:
        """Put a message in the line; returns at once."""
        with self._changed:
            self._waiting.append((body, properties))
        self._wake()

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until RabbitMQ has confirmed everything; tell whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def stop(self, *, timeout_s: float = 5) -> None:
        """Publish what waits, if that can be done in time, and end the thread."""
        if self._thread.is_alive():
            self.flush(timeout_s=timeout_s)
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()

    def delete_queue(self) -> None:
        """Take the queue away, where the broker outlives the simulator."""
        # a broker that is gone has no queue either
        with contextlib.suppress(*_TROUBLE), _connected(self._parameters) as connection:
            connection.channel().queue_delete(self._queue)

    def _wake(self) -> None:
        connection = self._connection
        if connection is not None:
            # closed a moment ago: then the thread is awake
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.add_callback_threadsafe(lambda: None)

    # -- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with _connected(self._parameters) as connection:
                    self._connection = connection
                    self._pump(connection)
            except _TROUBLE:
                # The broker is down or restarts; it is a test's business whether it comes back.
                self._stopping.wait(_RETRY_S)
            finally:
                self._connection = None

    def _pump(self, connection: BlockingConnection) -> None:
        channel = connection.channel()
        # A node that was killed may take connections before it has found its bindings again, and
        # it confirms what it can bring nowhere: a binding that is made again is there for certain.
        self._declare(channel)
        channel.confirm_delivery()
        while not self._stopping.is_set():
            if self._waiting:
                self._publish_first(channel)
            else:
                # heartbeats are answered here; _wake() ends the wait
                connection.process_data_events(_IDLE_S)

    def _publish_first(self, channel: BlockingChannel) -> None:
        body, properties = self._waiting[0]
        # returns when RabbitMQ has confirmed, and raises when it has not
        channel.basic_publish(RESPONSE_EXCHANGE, "", body, pika.BasicProperties(**properties))
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()


def _parameters(url: str) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = _CONNECT_LIMIT_S
    parameters.heartbeat = 10
    return parameters


@contextlib.contextmanager
def _connected(parameters: pika.URLParameters) -> Any:
    """Open a connection and close it again, whatever happens."""
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        with contextlib.suppress(*_TROUBLE):
            connection.close()
