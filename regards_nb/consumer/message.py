"""From pika's properties to a `Delivery`, believing nothing about their types."""

from __future__ import annotations

import json
from functools import lru_cache
from operator import attrgetter
from typing import Any

from regards_nb.events import TENANT_HEADER, Delivery
from regards_nb.text import escape_unprintable

#: The year 9999: what is later is no time, and no DataFrame could hold it.
_LAST_TIMESTAMP_S = 253_402_300_799

_KEPT_PROPERTIES = (
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
_kept_properties = attrgetter("app_id", *_KEPT_PROPERTIES)


def delivery_from(
    redelivered: bool,  # noqa: FBT001 - as pika names and passes it
    properties: Any,
    body: bytes,
    received_at_us: int,
    *,
    of_stream: bool = False,
) -> Delivery:
    """Take what we use, and keep the rest as JSON. Values of a wrong type count as missing.

    The offset is the broker's word only if the queue is a stream: elsewhere anybody may have
    written that header.
    """
    headers: dict[Any, Any] = properties.headers or {}
    timestamp_s = properties.timestamp
    if timestamp_s is not None and not 0 <= timestamp_s <= _LAST_TIMESTAMP_S:
        timestamp_s = None
    tenant, app_id, others = _what_stays_the_same(properties, headers)
    return Delivery(
        body,
        received_at_us,
        redelivered,
        timestamp_s,
        _text(properties.correlation_id),
        tenant,
        app_id,
        others,
        # pika gives it a type of its own
        int(headers["x-stream-offset"]) if of_stream and "x-stream-offset" in headers else None,
    )


def _text(value: Any) -> str | None:
    """Return a text that any database can hold, or None."""
    return escape_unprintable(value) if isinstance(value, str) else None


def _what_stays_the_same(
    properties: Any, headers: dict[Any, Any]
) -> tuple[str | None, str | None, str]:
    """Return tenant, app id, and everything else as JSON."""
    values = _kept_properties(properties)
    try:
        return _described(values, tuple(headers.items()))
    except TypeError:  # a table or a list among the headers: not hashable
        return _described.__wrapped__(values, tuple(headers.items()))


@lru_cache(maxsize=256)
def _described(
    values: tuple[Any, ...], headers: tuple[tuple[Any, Any], ...]
) -> tuple[str | None, str | None, str]:
    """Put properties and headers into words; of all messages of a service they are the same."""
    app_id, *others = values
    kept = {name: value for name, value in zip(_KEPT_PROPERTIES, others, strict=True) if value}
    # x-...: the broker's own bookkeeping, which differs from delivery to delivery
    kept["headers"] = {
        str(name): value for name, value in headers if not str(name).startswith("x-")
    }
    tenant = dict(headers).get(TENANT_HEADER)
    return _text(tenant), _text(app_id), json.dumps(kept, default=repr)
