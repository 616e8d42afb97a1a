"""Ordering: written down before it is sent, and its answer kept like any other message."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from regards_nb.events import Delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.client import ApplyAnswer, RegardsClient
    from regards_nb.journal import Journal

#: Stands in the journal where the name of a queue stands otherwise.
REST_ANSWERS = "REST answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is ordered, under which name."""

    queries: Sequence[str]
    data_types: Sequence[str] | None
    filename_regexp: str | None
    correlation_id: str
    label: str | None


def submit(client: RegardsClient, journal: Journal, tenant: str | None, request: Request) -> str:
    """Order over REST and journal the answer; return the correlation id."""
    # Before it is sent: REGARDS has no look-up by correlation id (protocol.md 0.8).
    journal.save_request(
        tenant, request.correlation_id, label=request.label, body=json.dumps(asdict(request))
    )
    answer = client.apply(
        request.queries,
        data_types=request.data_types,
        filename_regexp=request.filename_regexp,
        correlation_id=request.correlation_id,
    )
    # An order made over REST gets no GRANTED over AMQP (protocol.md 1.6); this answer says the
    # same, so it is journalled as a message.
    session_id = journal.open_session(REST_ANSWERS)
    journal.append(session_id, [_as_delivery(answer, tenant, request.correlation_id)])
    return request.correlation_id


def _as_delivery(answer: ApplyAnswer, tenant: str | None, correlation_id: str) -> Delivery:
    fields = {
        "status": answer.status,
        "orderId": answer.order_id,
        "correlationId": correlation_id,
        "message": answer.message,
        "errorType": answer.error_type,
    }
    return Delivery(
        body=json.dumps({k: v for k, v in fields.items() if v is not None}).encode(),
        received_at_us=time.time_ns() // 1000,
        redelivered=False,
        # The server's clock decides between events; ours would not compare with it.
        timestamp_s=None,
        correlation_id=correlation_id,
        tenant=tenant,
        app_id="REST",
        properties="{}",
    )
