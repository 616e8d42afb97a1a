"""One look at broker and queue, for the doctor: login, virtual host, queue, right to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pika
from pika import exceptions as pika_errors

from regards_nb.consumer.link import AmqpParameters, describe
from regards_nb.consumer.refusals import explain

if TYPE_CHECKING:
    from regards_nb.errors import BrokerError


class Probe(NamedTuple):
    """How far one got, and what was seen there.

    Attributes
    ----------
    error : BrokerError or None
        Why it went no further.
    reached : {"", "connection", "queue", "read"}
        The last step that succeeded.
    """

    reached: str
    error: BrokerError | None
    messages: int = 0
    consumers: int = 0


def probe(parameters: AmqpParameters, queue: str, *, is_read: bool) -> Probe:
    """Connect, look at the queue, and begin to read it for a moment.

    Reading moves at most one message, which goes back at once, marked as redelivered. With
    *is_read*, somebody of ours reads it already: then even that is left out.
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
                # Whoever reads the queue for real has precedence over this.
                channel.basic_consume(queue, _ignore, arguments={"x-priority": -1})
            reached = "read"
        finally:
            if connection.is_open:
                connection.close()
    except (pika_errors.AMQPError, OSError) as exc:
        return Probe(reached, explain(exc, where, queue), messages, consumers)
    return Probe(reached, None, messages, consumers)


def _ignore(*_: object) -> None:
    """Leave a message unacknowledged: it goes back to its place when the channel closes."""
