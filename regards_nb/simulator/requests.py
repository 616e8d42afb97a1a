"""Order requests that come over AMQP (protocol.md 1.6): taken, denied, or dropped in silence."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions

from regards_nb.events import REQUEST_EXCHANGE, TENANT_HEADER
from regards_nb.simulator.plans import OrderPlan, Outcome

if TYPE_CHECKING:
    from regards_nb.simulator.service import Service

_POLL_S = 0.1
_START_LIMIT_S = 15


class RequestReader:
    """Reads the exchange of order requests in a thread of its own.

    Parameters
    ----------
    url : str
        AMQP URL of the administrator.
    service : Service
    tenant, user : str
        The project, and the one user who may order in it.
    """

    def __init__(self, url: str, service: Service, *, tenant: str, user: str) -> None:
        self._parameters = pika.URLParameters(url)
        self._service = service
        self._tenant = tenant
        self._user = user
        self._listening = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulator-requests", daemon=True)

    def start(self) -> None:
        """Begin to read; return when a request would be read."""
        self._thread.start()
        if not self._listening.wait(_START_LIMIT_S):
            raise RuntimeError("the exchange of order requests cannot be read")

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        # a broker that is taken away while this reads is a test's business
        with contextlib.suppress(pika.exceptions.AMQPError, OSError):
            connection = pika.BlockingConnection(self._parameters)
            channel = connection.channel()
            channel.exchange_declare(REQUEST_EXCHANGE, "fanout", durable=True)
            queue = channel.queue_declare("", exclusive=True).method.queue
            channel.queue_bind(queue, REQUEST_EXCHANGE)
            self._listening.set()
            for method, properties, body in channel.consume(queue, inactivity_timeout=_POLL_S):
                if method is not None:
                    self._take(properties.headers or {}, body)
                    channel.basic_ack(method.delivery_tag)
                if self._stopping.is_set():
                    break
            connection.close()

    def _take(self, headers: dict[str, Any], body: bytes) -> None:
        """Answer one request; what REGARDS could not answer is dropped."""
        try:
            asked = json.loads(body)
        except ValueError:
            return
        correlation_id = asked.get("correlationId") if isinstance(asked, dict) else None
        if headers.get(TENANT_HEADER) != self._tenant or not correlation_id:
            return
        queries, user = asked.get("queries"), asked.get("user")
        if not queries or user != self._user:
            outcome = Outcome.DENIED if not queries else Outcome.FORBIDDEN
            self._service.request(
                OrderPlan(outcome=outcome),
                owner=self._user,
                correlation_id=correlation_id,
                over_amqp=True,
            )
            return
        filters = asked.get("filters") or {}
        self._service.request_by_query(
            queries,
            owner=user,
            correlation_id=correlation_id,
            data_types=filters.get("dataTypes") or (),
            filename_regexp=filters.get("filenameRegExp"),
            over_amqp=True,
        )
