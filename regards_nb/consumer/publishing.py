"""Publishing one order request to RabbitMQ, and knowing that it was taken (protocol.md 1.6)."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions as pika_errors

from regards_nb.consumer.link import AmqpParameters, describe
from regards_nb.consumer.refusals import explain
from regards_nb.errors import BrokerAccessError, BrokerError
from regards_nb.events import REQUEST_EXCHANGE, REQUEST_TYPE, TENANT_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A broker that is short of disk or memory takes nothing; it is not waited for longer than this.
_BLOCKED_S = 15.0


def publish_request(
    parameters: AmqpParameters, body: bytes, *, tenant: str, correlation_id: str
) -> None:
    """Publish an ``OrderRequestDtoEvent`` and return once RabbitMQ has taken it.

    Parameters
    ----------
    parameters : pika.connection.Parameters
    body : bytes
        JSON.
    tenant : str
        Without it in the headers REGARDS would not even answer.
    correlation_id : str

    Raises
    ------
    BrokerError
        It was not taken: no right to publish, no such exchange, nobody who would read it.
    """
    parameters = copy.copy(parameters)
    parameters.blocked_connection_timeout = _BLOCKED_S
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
    with _translated(parameters):
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(REQUEST_EXCHANGE, "", body, properties, mandatory=True)
        finally:
            if connection.is_open:
                connection.close()


@contextmanager
def _translated(parameters: AmqpParameters) -> Iterator[None]:
    """Turn pika's exceptions into ours."""
    where = describe(parameters)
    try:
        yield
    except pika_errors.UnroutableError as exc:
        raise BrokerError(
            f"{where}: nobody reads the order requests (exchange {REQUEST_EXCHANGE}), so nothing "
            "was ordered. Ask the REGARDS administrator whether the order service runs."
        ) from exc
    except pika_errors.NackError as exc:
        raise BrokerError(
            f"{where} did not take the request, so nothing was ordered. Try again; if it stays "
            "so, ask the REGARDS administrator about the queue of order requests."
        ) from exc
    except pika_errors.ChannelClosed as exc:
        raise _refused(exc, where) from exc
    except (pika_errors.AMQPError, OSError) as exc:
        raise explain(exc, where, "") from exc


def _refused(error: Any, where: str) -> BrokerError:
    code, text = error.reply_code, error.reply_text
    if code == 403:
        return BrokerAccessError(
            f"{where}: this user may not publish order requests. Ask the REGARDS administrator for "
            f"the write permission on {REQUEST_EXCHANGE}, or order over REST ({text})."
        )
    if code == 404:
        return BrokerAccessError(
            f"{where} has no exchange {REQUEST_EXCHANGE}: this is not the broker of a REGARDS, or "
            "the virtual host is another one. Check the end of the URL."
        )
    return BrokerError(f"{where} closed the channel while a request was published: {code} {text}")
