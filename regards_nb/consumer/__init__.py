"""The background thread: RabbitMQ queue → journal, then acknowledge.

``health``
    what the thread is doing, for everybody to see;
``redelivery``
    pure: which of the messages that RabbitMQ marks as redelivered are in the journal already;
``intake``
    pure: what is journalled when, and acknowledged when;
``link``
    one life of a connection, from connect to its end, whatever the end;
``message``, ``mending``, ``refusals``
    what pika hands over, cannot read, and reports;
``thread``
    one life after the other, with back-off between them: :class:`Consumer`.
"""

from __future__ import annotations

from regards_nb.consumer.health import Health, HealthState
from regards_nb.consumer.link import AmqpParameters, describe, parameters_from
from regards_nb.consumer.publishing import publish_request
from regards_nb.consumer.thread import Consumer

__all__ = [
    "AmqpParameters",
    "Consumer",
    "Health",
    "HealthState",
    "describe",
    "parameters_from",
    "publish_request",
]
