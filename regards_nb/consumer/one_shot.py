"""Connections for one purpose: check a queue for the doctor, publish an order request."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pika
from pika import exceptions as pika_errors

from regards_nb.consumer.connection import AmqpParameters, describe
from regards_nb.consumer.errors import broker_error
from regards_nb.errors import BrokerAccessError, BrokerError
from regards_nb.events import REQUEST_EXCHANGE, REQUEST_TYPE, TENANT_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A broker that is short of disk or memory blocks publishers; stop waiting after this time.
_BLOCKED_TIMEOUT_S = 15.0


class QueueCheck(NamedTuple):
    """The result of `check_queue`.

    Attributes
    ----------
    reached : {"", "connection", "queue", "read"}
        The last step that succeeded.
    error : BrokerError or None
        Why the next step failed.
    messages, consumers : int
        As RabbitMQ counts them, if the queue was reached.
    """

    reached: str
    error: BrokerError | None
    messages: int = 0
    consumers: int = 0


def check_queue(parameters: AmqpParameters, queue: str, *, is_read: bool) -> QueueCheck:
    """Connect, look at the queue, and begin to read it for a moment.

    Reading moves at most one message, which returns to the queue at once, marked as redelivered.
    With *is_read* this process reads the queue already, and that step is left out.
    """
    where = describe(parameters)
    reached, messages, consumers = "", 0, 0
    try:
        connection = pika.BlockingConnection(parameters)
        try:
            reached = "connection"
            channel = connection.channel()
            declared = channel.queue_declare(queue, passive=True).method
            reached, messages, consumers = "queue", declared.message_count, declared.consumer_count
            if not is_read:
                channel.basic_qos(prefetch_count=1)
                # A consumer of higher priority gets the messages before this one.
                channel.basic_consume(queue, _ignore_message, arguments={"x-priority": -1})
            reached = "read"
        finally:
            if connection.is_open:
                connection.close()
    except (pika_errors.AMQPError, OSError) as exc:
        return QueueCheck(reached, broker_error(exc, where, queue), messages, consumers)
    return QueueCheck(reached, None, messages, consumers)


def _ignore_message(*_: object) -> None:
    """Leave a message unacknowledged: it returns to its place when the channel closes."""


def publish_request(
    parameters: AmqpParameters, body: bytes, *, tenant: str, correlation_id: str
) -> None:
    """Publish an ``OrderRequestDtoEvent`` and return once RabbitMQ confirms it (protocol.md 1.6).

    Parameters
    ----------
    parameters : pika.connection.Parameters
    body : bytes
        JSON.
    tenant : str
        REGARDS does not answer a request without it.
    correlation_id : str

    Raises
    ------
    BrokerError
        RabbitMQ did not confirm: no right to publish, no such exchange, or no queue behind it.
    """
    parameters = copy.copy(parameters)
    parameters.blocked_connection_timeout = _BLOCKED_TIMEOUT_S
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding="UTF-8",
        delivery_mode=2,
        correlation_id=correlation_id,
        timestamp=int(time.time()),
        headers={
            TENANT_HEADER: tenant,
            "regards.converter": "GSON",
            "regards.type": REQUEST_TYPE,
        },
    )
    with translated_publish_errors(parameters):
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(REQUEST_EXCHANGE, "", body, properties, mandatory=True)
        finally:
            if connection.is_open:
                connection.close()


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
    except (pika_errors.AMQPError, OSError) as exc:
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
