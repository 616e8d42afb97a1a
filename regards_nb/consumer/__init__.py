"""The background thread that reads a RabbitMQ queue: write to the journal, then acknowledge.

- ``addresses``: AMQP URLs as parameters of pika, and as text without the password;
- ``errors``: pika's exceptions as errors of regards_nb;
- ``redelivery``: which of the delivered messages are in the journal already;
- ``ack_batching``: when received messages are journalled, and when they are acknowledged;
- ``delivery_reader``: reads delivered messages from the bytes of a connection, before pika does,
  as `Delivery`;
- ``liveness``: notices that RabbitMQ has stopped to answer on an open connection;
- ``connection``: a single connection: connect, consume, close;
- ``one_shot``: connections for one purpose: check a queue, publish an order request;
- ``journal_writer``: journals what a connection receives, and reports what it tells;
- ``consumer``: :class:`Consumer`, the thread that opens one connection after the other;
- ``health``: the state of a source of events.
"""

from __future__ import annotations

from regards_nb.consumer.ack_batching import AckBatcher as AckBatcher
from regards_nb.consumer.addresses import AmqpParameters as AmqpParameters
from regards_nb.consumer.addresses import addresses_of as addresses_of
from regards_nb.consumer.addresses import describe as describe
from regards_nb.consumer.addresses import parameters_from as parameters_from
from regards_nb.consumer.connection import Connection as Connection
from regards_nb.consumer.consumer import Consumer as Consumer
from regards_nb.consumer.delivery_reader import DeliveryReader as DeliveryReader
from regards_nb.consumer.delivery_reader import properties_from as properties_from
from regards_nb.consumer.errors import UnconfirmedRequestError as UnconfirmedRequestError
from regards_nb.consumer.errors import broker_error as broker_error
from regards_nb.consumer.health import ENDED as ENDED
from regards_nb.consumer.health import Health as Health
from regards_nb.consumer.health import HealthReport as HealthReport
from regards_nb.consumer.health import HealthState as HealthState
from regards_nb.consumer.one_shot import QueueKind as QueueKind
from regards_nb.consumer.one_shot import check_queue as check_queue
from regards_nb.consumer.one_shot import create_queue as create_queue
from regards_nb.consumer.one_shot import publish_request as publish_request
from regards_nb.consumer.one_shot import translated_publish_errors as translated_publish_errors
from regards_nb.consumer.redelivery import RedeliveryMatcher as RedeliveryMatcher
from regards_nb.consumer.redelivery import fingerprint as fingerprint
