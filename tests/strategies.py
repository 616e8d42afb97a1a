"""Messages and events for tests: builders and Hypothesis strategies."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from regards_nb.events import Delivery, OrderEvent, decode

STATUSES = ["GRANTED", "SUBORDER_DONE", "DONE", "DENIED", "FAILED", "DONE_WITH_WARNING", "NEW_ONE"]


def delivery(
    body: bytes | dict[str, Any],
    *,
    timestamp_s: int | None = 1681461977,
    correlation_id: str | None = None,
    tenant: str | None = "tenant",
    redelivered: bool = False,
    app_id: str = "rs-order",
) -> Delivery:
    """Return a message as the consumer makes it of what RabbitMQ delivers."""
    return Delivery(
        body=body if isinstance(body, bytes) else json.dumps(body).encode(),
        received_at_us=1_700_000_000_123_456,
        redelivered=redelivered,
        timestamp_s=timestamp_s,
        correlation_id=correlation_id,
        tenant=tenant,
        app_id=app_id,
        properties="{}",
    )


def event(status: str, *, timestamp_s: int | None = 100, **body: Any) -> OrderEvent:
    """Return an event."""
    body.setdefault("correlationId", "c1")
    decoded = decode(delivery({"status": status, **body}, timestamp_s=timestamp_s))
    assert isinstance(decoded, OrderEvent)
    return decoded


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, OrderEvent]]:
    """Draw events of a few orders, each with its journal row."""
    bodies = st.fixed_dictionaries(
        {
            "status": st.sampled_from(STATUSES),
            "correlationId": st.sampled_from(["c1", "c2", None]),
        },
        optional={
            "orderId": st.sampled_from([1, 2]),
            "message": st.sampled_from(["a", "b"]),
            "downloadLink": st.sampled_from(["https://one", "https://two"]),
            "errorType": st.sampled_from(["INTERNAL_ERROR", "EMPTY_ORDER"]),
            "errors": st.integers(0, 3),
            "totalSubOrders": st.integers(0, 4),
            "subOrderId": st.integers(1, 4),
        },
    )
    times = st.one_of(st.none(), st.integers(100, 105))
    decoded = [
        decode(delivery(body, timestamp_s=draw(times)))
        for body in draw(st.lists(bodies, max_size=12))
    ]
    understood = [item for item in decoded if isinstance(item, OrderEvent)]
    return list(enumerate(understood, start=1))
