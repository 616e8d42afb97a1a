"""The background thread that reads a RabbitMQ queue: write to the journal, then acknowledge.

``addresses``
    AMQP URLs as parameters of pika, and as text without the password;
``errors``
    pika's exceptions as errors of regards_nb;
``message``
    a message of pika as a `Delivery`;
``redelivery``
    which of the messages that RabbitMQ marks as redelivered are in the journal already;
``stream``
    whether a stream queue continues where the journal ends;
``ack_batching``
    when received messages are journalled, and when they are acknowledged;
``delivery_reader``
    reads delivered messages from the bytes of a connection, before pika does;
``liveness``
    notices that RabbitMQ answers no more on an open connection;
``connection``
    a single connection: connect, consume, close;
``one_shot``
    connections for one purpose: check a queue, publish an order request;
``consumer``
    :class:`Consumer`, the thread that opens one connection after the other, and its health.
"""

from __future__ import annotations

from regards_nb.consumer.ack_batching import ACK_LINGER_S, PREFETCH_STEPS, AckBatcher
from regards_nb.consumer.addresses import (
    AmqpParameters,
    addresses_of,
    describe,
    parameters_from,
)
from regards_nb.consumer.connection import Connection
from regards_nb.consumer.consumer import SAID_AFTER_S, Consumer, Health, HealthState
from regards_nb.consumer.delivery_reader import DeliveryReader, properties_from
from regards_nb.consumer.errors import UnconfirmedRequestError, broker_error
from regards_nb.consumer.message import delivery_from
from regards_nb.consumer.one_shot import (
    QueueCheck,
    QueueKind,
    check_queue,
    create_queue,
    publish_request,
    translated_publish_errors,
)
from regards_nb.consumer.redelivery import RedeliveryMatcher, fingerprint

__all__ = [
    "ACK_LINGER_S",
    "PREFETCH_STEPS",
    "SAID_AFTER_S",
    "AckBatcher",
    "AmqpParameters",
    "Connection",
    "Consumer",
    "DeliveryReader",
    "Health",
    "HealthState",
    "QueueCheck",
    "QueueKind",
    "RedeliveryMatcher",
    "UnconfirmedRequestError",
    "addresses_of",
    "broker_error",
    "check_queue",
    "create_queue",
    "delivery_from",
    "describe",
    "fingerprint",
    "parameters_from",
    "properties_from",
    "publish_request",
    "translated_publish_errors",
]
