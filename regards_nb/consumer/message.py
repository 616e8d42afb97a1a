"""A message of pika as a `Delivery`. A publisher may send properties of any type."""

from __future__ import annotations

import json
from functools import lru_cache
from operator import attrgetter
from typing import Any

from regards_nb.events import TENANT_HEADER, Delivery
from regards_nb.text import escape_unprintable

#: The year 2000, before which no REGARDS ran: a clock that is not set gives 0. The end of the year
#: 9999: a DataFrame cannot hold a later time.
_FIRST_TIMESTAMP_S, _LAST_TIMESTAMP_S = 946_684_800, 253_402_300_799

_OTHER_PROPERTIES = (
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "cluster_id",
)
_stored_properties = attrgetter("app_id", *_OTHER_PROPERTIES)


def delivery_from(
    redelivered: bool,  # noqa: FBT001 - as pika names and passes it
    properties: Any,
    body: bytes,
    received_at_us: int,
    *,
    of_stream: bool = False,
) -> Delivery:
    """Return a message with the properties that are used, and all others as JSON.

    A property of a wrong type counts as missing. The header ``x-stream-offset`` is used only if
    the queue is a stream (*of_stream*): in other queues it comes from the publisher.
    """
    headers: dict[Any, Any] = properties.headers or {}
    timestamp_s = properties.timestamp
    if timestamp_s is not None and not _FIRST_TIMESTAMP_S <= timestamp_s <= _LAST_TIMESTAMP_S:
        timestamp_s = None
    tenant, app_id, others = _service_properties(properties, headers)
    return Delivery(
        body,
        received_at_us,
        redelivered,
        timestamp_s,
        _text(properties.correlation_id),
        tenant,
        app_id,
        others,
        # pika uses a type of its own for it
        int(headers["x-stream-offset"]) if of_stream and "x-stream-offset" in headers else None,
    )


def _text(value: Any) -> str | None:
    """Return a text that every database can store, or None."""
    return escape_unprintable(value) if isinstance(value, str) else None


def _service_properties(
    properties: Any, headers: dict[Any, Any]
) -> tuple[str | None, str | None, str]:
    """Return tenant, app id, and the other properties as JSON."""
    values = _stored_properties(properties)
    try:
        return _as_text(values, tuple(headers.items()))
    except TypeError:  # a table or a list among the headers cannot be hashed
        return _as_text.__wrapped__(values, tuple(headers.items()))


@lru_cache(maxsize=256)
def _as_text(
    values: tuple[Any, ...], headers: tuple[tuple[Any, Any], ...]
) -> tuple[str | None, str | None, str]:
    """Return properties and headers as text. All messages of one service have the same ones."""
    app_id, *others = values
    kept = {name: value for name, value in zip(_OTHER_PROPERTIES, others, strict=True) if value}
    # The broker writes headers x-...; they differ from delivery to delivery.
    kept["headers"] = {
        str(name): value for name, value in headers if not str(name).startswith("x-")
    }
    tenant = dict(headers).get(TENANT_HEADER)
    return _text(tenant), _text(app_id), json.dumps(kept, default=repr)
