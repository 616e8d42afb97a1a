"""One life of a connection to RabbitMQ: connect, consume, end. The only room that imports pika.

A link is made, run and dropped by the consumer thread; from another thread only `ask_to_end` may
be called. It never declares anything but passively, because a REGARDS user may do nothing else
(protocol.md 0.6).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import pika
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from regards_nb.consumer.intake import PREFETCH, Intake
from regards_nb.consumer.mending import Mender
from regards_nb.consumer.message import delivery_from
from regards_nb.consumer.refusals import explain
from regards_nb.errors import JournalError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.events import Delivery

# pika reports each lost connection as an ERROR record. Without any handler Python would write it
# to stderr, and from a thread that is the output of whatever cell happens to run.
logging.getLogger("pika").addHandler(logging.NullHandler())

#: How pika calls the end of a connection without a goodbye from the broker.
ConnectionLost = pika.exceptions.StreamLostError

#: A URL, or pika's own parameters. pika carries no types, hence ``Any``.
AmqpParameters = Any

ACK_PERIOD_S = 0.5
DEPTH_PERIOD_S = 5.0
JOURNAL_RETRY_S = 1.0
HEARTBEAT_S = 30
CONNECT_TIMEOUT_S = 10.0


class Receiver(Protocol):
    """What a link reports to."""

    def next_offset(self) -> int | None:
        """Where to go on, if the queue is a stream; None means from its first message."""

    def consuming(self) -> None:
        """Messages may come from now on."""

    def depth(self, messages: int) -> None:
        """So many messages wait in the queue."""

    def keep(self, deliveries: Sequence[Delivery]) -> None:
        """Journal the messages, or raise JournalError. They are acknowledged after that."""

    def held_up(self, error: JournalError) -> None:
        """Messages cannot be journalled at the moment; they are kept and tried again."""


def parameters_from(amqp: str | AmqpParameters) -> AmqpParameters:
    """Read a URL; anything else must be pika's own parameters.

    Raises
    ------
    SettingsError
        It is neither. The text does not repeat the URL, which holds the password.
    """
    if not isinstance(amqp, str):
        if not isinstance(amqp, pika.connection.Parameters):
            raise SettingsError(
                "the first argument must be an AMQP URL or pika.ConnectionParameters, "
                f"not {type(amqp).__name__}"
            )
        return amqp
    try:
        if not amqp.startswith(("amqp://", "amqps://")):
            raise ValueError("it must begin with amqp:// or amqps://")  # noqa: TRY301
        parameters = pika.URLParameters(amqp)
    except (ValueError, TypeError) as exc:
        # pika's own message can repeat parts of the URL, and with them the password
        cause = exc if str(exc).startswith("it must") else type(exc).__name__
        raise SettingsError(
            f"not an AMQP URL ({cause}). It looks like "
            "amqps://user:password@broker.example:5671/regards.multitenant.manager"
        ) from None
    if "heartbeat=" not in amqp:
        parameters.heartbeat = HEARTBEAT_S
    parameters.socket_timeout = CONNECT_TIMEOUT_S
    parameters.stack_timeout = CONNECT_TIMEOUT_S
    return parameters


def describe(parameters: AmqpParameters) -> str:
    """Return the address without the password."""
    scheme = "amqps" if parameters.ssl_options else "amqp"
    user = getattr(parameters.credentials, "username", "")
    where = f"{parameters.host}:{parameters.port}/{parameters.virtual_host}"
    return f"{scheme}://{user}@{where}" if user else f"{scheme}://{where}"


class _InputOutput(SelectorIOServicesAdapter):  # type: ignore[misc]
    """pika's I/O services, remembering the transport so that it can be aborted.

    Closing a connection politely needs the broker's answer. A frozen broker gives none, and then
    the socket has to be closed without it.
    """

    def __init__(self, *, mending: bool) -> None:
        super().__init__(IOLoop())
        self.transport: Any = None
        self._mending = mending

    def create_streaming_connection(
        self, protocol_factory: Any, sock: Any, on_done: Any, *args: Any, **kwargs: Any
    ) -> Any:
        def make() -> Any:
            return Mender(protocol_factory()) if self._mending else protocol_factory()

        def remember(result: Any) -> None:
            if not isinstance(result, BaseException):
                self.transport, protocol = result
                # pika expects its own protocol back
                result = (self.transport, getattr(protocol, "protocol", protocol))
            on_done(result)

        return super().create_streaming_connection(make, sock, remember, *args, **kwargs)


class Link:
    """One connection with one consumer on one queue.

    *mending* takes out message properties that pika cannot decode, see `mending`.
    """

    def __init__(
        self,
        parameters: AmqpParameters,
        queue: str,
        receiver: Receiver,
        *,
        mending: bool = False,
    ) -> None:
        self._queue = queue
        self._receiver = receiver
        self._where = describe(parameters)
        self._parameters = parameters
        self._io = _InputOutput(mending=mending)
        self._connection: Any = None
        self._channel: Any = None
        self._spare: Any = None
        self._spare_is_ready = False
        self._consumer_tag: str | None = None
        #: The broker tells what kind of queue it is only by refusing what the kind cannot do.
        self._may_be_stream = True
        self._ended_because: BaseException | None = None
        self._ending = False
        #: guards the one call from other threads against the end of the I/O services
        self._lock = threading.Lock()
        self._over = False
        self._flush_planned = False
        self._intake = Intake(receiver.keep, self._acknowledge)

    def run(self) -> None:
        """Live until the connection ends.

        Raises
        ------
        BrokerError
            Why it ended, unless `ask_to_end` was called.
        """
        try:
            self._connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._on_connected,
                on_open_error_callback=self._on_disconnected,
                on_close_callback=self._on_disconnected,
                custom_ioloop=self._io,
            )
            self._io.run()
        finally:
            with self._lock:
                self._over = True
                self._io.close()
        if self._ended_because is not None and not self._ending:
            raise explain(self._ended_because, self._where, self._queue) from self._ended_because

    def ask_to_end(self, within_s: float) -> None:
        """End the life of this link: politely, and by force after *within_s*. Thread-safe."""
        with self._lock:
            if not self._over:
                self._io.add_callback_threadsafe(lambda: self._end(within_s))

    # -- from connect to consume; each step follows the broker's answer to the one before --

    def _on_connected(self, connection: Any) -> None:
        # Both at once: where the queue is no stream RabbitMQ closes the first, and the second is as
        # far already.
        self._channel = connection.channel(on_open_callback=self._on_channel)
        self._spare = connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        if channel is not self._spare:
            channel.queue_declare(self._queue, passive=True, callback=self._on_queue)
        channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: self._on_limited(channel))

    def _on_queue(self, answer: Any) -> None:
        self._receiver.depth(answer.method.message_count)

    def _on_limited(self, channel: Any) -> None:
        if channel is self._channel:
            self._consume()
        else:
            self._spare_is_ready = True

    def _consume(self) -> None:
        arguments = {}
        if self._may_be_stream:
            offset = self._receiver.next_offset()
            arguments["x-stream-offset"] = "first" if offset is None else offset
        self._consumer_tag = self._channel.basic_consume(
            self._queue, self._on_message, arguments=arguments, callback=self._on_consuming
        )

    def _on_consuming(self, _answer: Any) -> None:
        self._receiver.consuming()
        self._every(ACK_PERIOD_S, self._intake.acknowledge_settled)
        self._every(DEPTH_PERIOD_S, self._ask_depth)

    def _every(self, period_s: float, action: Callable[[], None]) -> None:
        def tick() -> None:
            if self._channel.is_open:
                action()
                self._io.call_later(period_s, tick)

        self._io.call_later(period_s, tick)

    def _ask_depth(self) -> None:
        def answered(answer: Any) -> None:
            self._receiver.depth(answer.method.message_count)

        self._channel.queue_declare(self._queue, passive=True, callback=answered)

    # -- messages: journal first, acknowledge after --

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        delivery = delivery_from(
            method.redelivered,
            properties,
            body,
            time.time_ns() // 1000,
            of_stream=self._may_be_stream,
        )
        self._intake.take(method.delivery_tag, delivery)
        if not self._flush_planned:
            self._plan_flush(0)

    def _plan_flush(self, delay_s: float) -> None:
        self._flush_planned = True
        self._io.call_later(delay_s, self._flush_when_still)

    def _flush_when_still(self) -> None:
        """Journal what has come unless more comes at this moment.

        What arrives together is committed together, and a single message does not wait.
        """
        if self._intake.has_grown():
            self._plan_flush(0)
        else:
            self._flush()

    def _flush(self) -> None:
        self._flush_planned = False
        try:
            self._intake.flush()
        except JournalError as exc:
            # RabbitMQ stops sending at PREFETCH unacknowledged messages: memory stays bounded.
            self._receiver.held_up(exc)
            self._plan_flush(JOURNAL_RETRY_S)

    def _acknowledge(self, tag: int) -> None:
        if self._channel.is_open:
            self._channel.basic_ack(tag, multiple=True)

    # -- the end, from whichever side it comes --

    def _end(self, within_s: float) -> None:
        if self._ending:
            return
        self._ending = True
        self._io.call_later(within_s, self._end_by_force)
        if self._channel is not None and self._channel.is_open and self._consumer_tag:
            # What is on its way pika hands back; it comes again, marked as redelivered, next time.
            self._channel.basic_cancel(self._consumer_tag, callback=self._on_cancelled_by_us)
        else:
            self._close()

    def _end_by_force(self) -> None:
        """Close the socket without the broker's answer."""
        self._close()
        if self._io.transport is None or self._connection.is_closed:
            self._io.stop()
        else:
            self._io.transport.abort()

    def _on_cancelled_by_us(self, _answer: Any) -> None:
        self._flush()
        self._intake.acknowledge_all()
        self._close()

    def _on_cancelled_by_broker(self, _frame: Any) -> None:
        # pika does not pass a reason; the broker cancels when the queue goes away
        self._finish(pika.exceptions.ConsumerCancelled(_frame.method))

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:
        if self._may_be_stream and "x-stream-offset" in str(reason):
            self._may_be_stream = False
            self._channel = self._spare
            if self._spare_is_ready:
                self._consume()
        else:
            self._finish(reason)

    def _finish(self, reason: BaseException) -> None:
        """Close the connection for *reason*, the first of which is kept."""
        if self._ended_because is None:
            self._ended_because = reason
        self._close()

    def _close(self) -> None:
        if not (self._connection.is_closed or self._connection.is_closing):
            self._connection.close()

    def _on_disconnected(self, _connection: Any, reason: BaseException) -> None:
        if self._ended_because is None:
            self._ended_because = reason
        # one more turn of the loop, in which pika closes its socket
        self._io.call_later(0, self._io.stop)
