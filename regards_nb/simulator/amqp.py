"""The AMQP side: responses are published, order requests are read (protocol.md 1.6)."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from regards_nb.events import REQUEST_EXCHANGE, RESPONSE_EXCHANGE, RESPONSE_TYPE, TENANT_HEADER
from regards_nb.simulator.plans import OrderPlan, Outcome

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

    from regards_nb.simulator.service import Service

_IDLE_S = 5
_RETRY_S = 0.1
_CONNECT_LIMIT_S = 10
_START_LIMIT_S = 15
_STOP_LIMIT_S = 5

_DEAD_LETTER_EXCHANGE, _DEAD_LETTER_QUEUE = "regards.DLX", "regards.DLQ"
#: The arguments of a tracker's queue in the documentation of REGARDS 2.x: a classic queue with
#: priorities, whose rejected messages go to the queue of dead letters.
QUEUE_ARGUMENTS = {
    "x-dead-letter-exchange": _DEAD_LETTER_EXCHANGE,
    "x-dead-letter-routing-key": _DEAD_LETTER_QUEUE,
    "x-max-priority": 255,
}

#: What publishing can raise while the broker is down, frozen or restarts. The time limit of a
#: handshake is no AMQPError.
_CONNECTION_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)


def properties(*, tenant: str) -> dict[str, Any]:
    """Return the AMQP properties and headers of a response that is published now."""
    return {
        "content_type": "application/json",
        "content_encoding": "UTF-8",
        "priority": 1,
        "delivery_mode": 2,
        "timestamp": int(datetime.now(UTC).timestamp()),
        "app_id": "rs-order",
        "headers": {
            TENANT_HEADER: tenant,
            "regards.converter": "GSON",
            "regards.type": RESPONSE_TYPE,
        },
    }


class Publisher:
    """Publishes responses from one thread with one connection, as the administrator.

    On the same connection it reads the order *requests*, if there are any.

    A message stays first in the queue until RabbitMQ has confirmed it. If the connection breaks
    before, the message is published again: at least once, as in REGARDS.
    """

    def __init__(self, url: str, queue: str, *, requests: OrderRequests | None = None) -> None:
        self._parameters = _parameters(url)
        self._queue = queue
        self._requests = requests
        self._is_ready = threading.Event()
        self._waiting: deque[tuple[bytes, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._connection: BlockingConnection | None = None
        self._thread = threading.Thread(target=self._run, name="simulator-amqp", daemon=True)

    def start(self) -> None:
        """Declare exchange, queue and binding, then start the thread."""
        with pika.BlockingConnection(self._parameters) as connection:
            self._declare(connection.channel())
        self._thread.start()
        if not self._is_ready.wait(_START_LIMIT_S):
            raise RuntimeError("the exchange of order requests cannot be read")

    def _declare(self, channel: BlockingChannel) -> None:
        channel.exchange_declare(RESPONSE_EXCHANGE, "fanout", durable=True)
        channel.exchange_declare(_DEAD_LETTER_EXCHANGE, "direct", durable=True)
        channel.queue_declare(_DEAD_LETTER_QUEUE, durable=True)
        channel.queue_bind(_DEAD_LETTER_QUEUE, _DEAD_LETTER_EXCHANGE, _DEAD_LETTER_QUEUE)
        channel.queue_declare(self._queue, durable=True, arguments=QUEUE_ARGUMENTS)
        channel.queue_bind(self._queue, RESPONSE_EXCHANGE)

    def publish(self, body: bytes, properties: dict[str, Any]) -> None:
        """Add a message to the queue of the thread and return at once."""
        with self._changed:
            self._waiting.append((body, properties))
        self._wake()

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until RabbitMQ has confirmed every message; return False after the time limit."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def stop(self) -> None:
        """Publish the waiting messages within five seconds, then end the thread."""
        if self._thread.is_alive():
            self.flush(timeout_s=_STOP_LIMIT_S)
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()

    def delete_queue(self) -> None:
        """Delete the queue on a broker that continues after the simulator."""
        # A broker that is down has no queue to delete.
        with (
            contextlib.suppress(*_CONNECTION_ERRORS),
            pika.BlockingConnection(self._parameters) as connection,
        ):
            connection.channel().queue_delete(self._queue)

    def _wake(self) -> None:
        connection = self._connection
        if connection is not None:
            # A connection that was closed a moment ago has ended the wait itself.
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.add_callback_threadsafe(lambda: None)

    # -- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with pika.BlockingConnection(self._parameters) as connection:
                    self._connection = connection
                    self._pump(connection)
            except _CONNECTION_ERRORS:
                # The broker is down; tests kill and restart it.
                self._stopping.wait(_RETRY_S)
            finally:
                self._connection = None

    def _pump(self, connection: BlockingConnection) -> None:
        channel = connection.channel()
        # A killed node can accept connections before it has restored its bindings, and then
        # confirms messages that it routes to no queue. Declaring the binding again avoids that.
        self._declare(channel)
        if self._requests is not None:
            self._requests.consume(connection.channel())
        self._is_ready.set()
        channel.confirm_delivery()
        while not self._stopping.is_set():
            if self._waiting:
                self._publish_first(channel)
            else:
                # This call answers heartbeats; _wake() ends it.
                connection.process_data_events(_IDLE_S)

    def _publish_first(self, channel: BlockingChannel) -> None:
        body, properties = self._waiting[0]
        # Returns after RabbitMQ's confirm, and raises without one.
        channel.basic_publish(RESPONSE_EXCHANGE, "", body, pika.BasicProperties(**properties))
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()


class OrderRequests:
    """Reads order requests from their exchange.

    REGARDS drops a request without the tenant's header or a ``correlationId``, and so does this.
    Only *user* may order.
    """

    def __init__(self, service: Service, *, tenant: str, user: str) -> None:
        self._service = service
        self._tenant = tenant
        self._user = user

    def consume(self, channel: BlockingChannel) -> None:
        """Read the requests from now on, in the thread of the connection."""
        channel.exchange_declare(REQUEST_EXCHANGE, "fanout", durable=True)
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, REQUEST_EXCHANGE)
        channel.basic_consume(
            queue,
            lambda _channel, _method, sent, body: self._handle(sent.headers or {}, body),
            auto_ack=True,
        )

    def _handle(self, headers: dict[str, Any], body: bytes) -> None:
        try:
            request = json.loads(body)
        except ValueError:
            return
        correlation_id = request.get("correlationId") if isinstance(request, dict) else None
        if headers.get(TENANT_HEADER) != self._tenant or not correlation_id:
            return
        common: dict[str, Any] = {
            "owner": self._user,
            "correlation_id": correlation_id,
            "over_amqp": True,
        }
        queries, filters = request.get("queries"), request.get("filters") or {}
        if not queries or (request.get("filters") is not None and not filters.get("dataTypes")):
            self._service.request(OrderPlan(outcome=Outcome.DENIED), **common)
        elif request.get("user") != self._user:
            self._service.request(OrderPlan(outcome=Outcome.FORBIDDEN), **common)
        else:
            self._service.request_by_query(
                queries,
                data_types=filters.get("dataTypes") or (),
                filename_regexp=filters.get("filenameRegExp"),
                size_limit_bytes=request.get("sizeLimitInBytes"),
                **common,
            )


def _parameters(url: str) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = _CONNECT_LIMIT_S
    parameters.heartbeat = 10
    return parameters
