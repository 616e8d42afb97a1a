"""Connections for one purpose: check a queue, create one, publish an order request."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import pika
from pika import exceptions as pika_errors

from regards_nb.arguments import check_choice
from regards_nb.consumer.addresses import CONNECT_TIMEOUT_S, AmqpParameters, addresses_of, describe
from regards_nb.consumer.errors import (
    CONNECTION_ERRORS,
    UnconfirmedRequestError,
    broker_error,
    combined_error,
)
from regards_nb.errors import BrokerAccessError, BrokerError, RegardsError
from regards_nb.events import REQUEST_EXCHANGE, REQUEST_TYPE, RESPONSE_EXCHANGE, TENANT_HEADER
from regards_nb.waits import awaited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A broker that is short of disk or memory blocks publishers; stop waiting after this time.
_BLOCKED_TIMEOUT_S = 15.0


class QueueCheck(NamedTuple):
    """The result of `check_queue`.

    *reached* is the last step that succeeded (``""``, ``connection``, ``queue`` or ``read``),
    *error* why the next one failed. *messages* and *consumers* are as RabbitMQ counts them: a
    stream counts all messages that it keeps, and no consumers.
    """

    reached: str
    error: BrokerError | None
    messages: int = 0
    consumers: int = 0
    is_stream: bool = False


def check_queue(parameters: AmqpParameters, queue: str) -> QueueCheck:
    """Connect to one address, look at the queue, and check the right to read it.

    No message moves: the consumer has an argument that only streams support. RabbitMQ checks the
    right first and refuses the argument then; a delivery would count towards the delivery limit of
    a quorum queue. A stream accepts it, and the consumer begins after the last message.
    """
    where = describe(parameters)
    reached, messages, consumers, is_stream = "", 0, 0, False
    try:
        with pika.BlockingConnection(parameters) as connection:
            reached = "connection"
            channel = connection.channel()
            declared = channel.queue_declare(queue, passive=True).method
            reached, messages, consumers = "queue", declared.message_count, declared.consumer_count
            channel.basic_qos(prefetch_count=1)
            try:
                # A stream may deliver something meanwhile.
                channel.basic_consume(queue, lambda *_: None, arguments={"x-stream-offset": "next"})
                is_stream = True
            except pika_errors.ChannelClosed as exc:
                if "x-stream-offset" not in exc.reply_text:
                    raise
            reached = "read"
    except CONNECTION_ERRORS as exc:
        return QueueCheck(reached, broker_error(exc, where, queue), messages, consumers)
    return QueueCheck(reached, None, messages, consumers, is_stream)


#: RabbitMQ 4 drops a message of a quorum queue after 20 deliveries unless the limit is off.
_NO_DELIVERY_LIMIT = {"x-delivery-limit": -1}

QueueKind = Literal["quorum", "stream", "classic"]


def create_queue(parameters: AmqpParameters, queue: str, *, kind: QueueKind = "quorum") -> None:
    """Declare a durable queue and bind it to the exchange of the order responses.

    An existing queue of the same kind is left as it is; a missing binding is added.

    Raises
    ------
    BrokerAccessError
        The user may not configure this queue or read the exchange.
    BrokerError
        The queue exists with other arguments, or there is no such exchange.
    """
    check_choice("kind", kind, *get_args(QueueKind))
    create = partial(_create, parameters, queue, kind)
    awaited(create, f"waiting for RabbitMQ at {describe(parameters)}")


def _create(parameters: AmqpParameters, queue: str, kind: QueueKind) -> None:
    where = describe(parameters)
    connection = _connect(parameters)
    try:
        with connection:
            _declare(connection, queue, kind)
            connection.channel().queue_bind(queue, RESPONSE_EXCHANGE, routing_key="")
    except pika_errors.ChannelClosed as exc:
        raise _creation_error(exc, where, queue) from exc
    except CONNECTION_ERRORS as exc:
        raise broker_error(exc, where, queue) from exc


def _declare(connection: pika.BlockingConnection, queue: str, kind: QueueKind) -> None:
    arguments: dict[str, Any] = {"x-queue-type": kind}
    if kind == "quorum":
        # RabbitMQ 3.10 has no limit by default, and refuses the argument that turns it off.
        try:
            wanted = arguments | _NO_DELIVERY_LIMIT
            connection.channel().queue_declare(queue, durable=True, arguments=wanted)
        except pika_errors.ChannelClosedByBroker as exc:
            if exc.reply_code != 406 or "x-delivery-limit" not in exc.reply_text:
                raise
        else:
            return
    connection.channel().queue_declare(queue, durable=True, arguments=arguments)


def _creation_error(exc: pika_errors.ChannelClosed, where: str, queue: str) -> BrokerError:
    """Return the error of a refused declaration or binding."""
    if exc.reply_code == 403:
        return BrokerAccessError(
            f"this user may not create the queue {queue!r} at {where}. Ask the REGARDS "
            "administrator for the queue, or for the rights to configure and write it and to read "
            f"the exchange {RESPONSE_EXCHANGE} ({exc.reply_text})."
        )
    if exc.reply_code == 404 and "exchange" in exc.reply_text:
        return BrokerError(
            f"there is no exchange {RESPONSE_EXCHANGE} at {where}. REGARDS makes it when its order "
            "service starts: check the virtual host at the end of the URL."
        )
    if exc.reply_code == 406:
        return BrokerError(
            f"the queue {queue!r} at {where} exists with other arguments. Use it as it is, or "
            f"choose another name ({exc.reply_text})."
        )
    return BrokerError(f"{where} refused the queue {queue!r}: {exc.reply_code} {exc.reply_text}")


def publish_request(
    parameters: AmqpParameters,
    body: bytes,
    *,
    tenant: str,
    correlation_id: str,
    begin: Callable[[], None],
) -> None:
    """Publish an ``OrderRequestDtoEvent`` and return once RabbitMQ confirms it (protocol.md 1.6).

    Of several addresses the first that can be connected is used. REGARDS does not answer a request
    without *tenant*. *begin* is called just before the request is sent; after Ctrl-C and after the
    time limit it is not sent any more. UnconfirmedRequestError: RabbitMQ has not confirmed it after
    that, and may have it. After any other BrokerError it has not.
    """
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding="UTF-8",
        delivery_mode=2,
        correlation_id=correlation_id,
        timestamp=int(time.time()),
        headers={TENANT_HEADER: tenant, "regards.converter": "GSON", "regards.type": REQUEST_TYPE},
    )
    where = describe(parameters)
    limit_s = _BLOCKED_TIMEOUT_S + CONNECT_TIMEOUT_S * len(addresses_of(parameters))
    in_time = partial(awaited, text=f"waiting for RabbitMQ at {where}", timeout_s=limit_s)
    with translated_publish_errors(parameters):
        channel = in_time(partial(_opened, parameters), unwanted=_close)
        begin()
        try:
            in_time(partial(_publish, channel, body, properties))
        except (pika_errors.AMQPConnectionError, OSError) as exc:
            raise UnconfirmedRequestError(
                f"the connection to {where} broke before RabbitMQ confirmed the request "
                f"{correlation_id!r}, so it is open whether REGARDS has it. Submit it again with "
                "the same correlation_id: it is not sent twice"
            ) from exc


def _opened(parameters: AmqpParameters) -> Any:
    """Return a new channel with publisher confirms, on a connection of its own."""
    channel = _connect(parameters).channel()
    channel.confirm_delivery()
    return channel


def _publish(channel: Any, body: bytes, properties: pika.BasicProperties) -> None:
    try:
        channel.basic_publish(REQUEST_EXCHANGE, "", body, properties, mandatory=True)
    finally:
        _close(channel)


def _close(channel: Any) -> None:
    if channel.connection.is_open:
        channel.connection.close()


def _connect(parameters: AmqpParameters) -> pika.BlockingConnection:
    """Connect to the first address that answers."""
    errors: list[RegardsError] = []
    for each in addresses_of(parameters):
        address = copy.copy(each)
        address.blocked_connection_timeout = _BLOCKED_TIMEOUT_S
        try:
            with translated_publish_errors(each):
                return pika.BlockingConnection(address)
        except BrokerError as exc:
            errors.append(exc)
    raise combined_error(errors) from errors[-1].__cause__


@contextmanager
def translated_publish_errors(parameters: AmqpParameters) -> Iterator[None]:
    """Translate pika's exceptions of a publisher into errors of regards_nb."""
    where = describe(parameters)
    try:
        yield
    except pika_errors.UnroutableError as exc:
        raise BrokerError(
            f"{where}: no service reads the order requests (exchange {REQUEST_EXCHANGE}), so "
            "nothing was ordered. Ask the REGARDS administrator whether the order service runs."
        ) from exc
    except pika_errors.NackError as exc:
        raise BrokerError(
            f"{where} did not accept the request, so nothing was ordered. Try again; if the error "
            "stays, ask the REGARDS administrator about the queue of order requests."
        ) from exc
    except pika_errors.ChannelClosed as exc:
        raise _publish_error(exc, where) from exc
    except CONNECTION_ERRORS as exc:
        raise broker_error(exc, where, "") from exc


def _publish_error(error: pika_errors.ChannelClosed, where: str) -> BrokerError:
    code, text = error.reply_code, error.reply_text
    if code == 403:
        return BrokerAccessError(
            f"{where}: this user may not publish order requests. Ask the REGARDS administrator for "
            f"the write permission on {REQUEST_EXCHANGE}, or order over REST ({text})."
        )
    if code == 404:
        return BrokerAccessError(
            f"{where} has no exchange {REQUEST_EXCHANGE}: this broker or virtual host is not that "
            "of a REGARDS. Check the end of the URL."
        )
    return BrokerError(f"{where} closed the channel while a request was published: {code} {text}")
