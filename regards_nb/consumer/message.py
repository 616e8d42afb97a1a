"""From pika's properties to a `Delivery`, believing nothing about their types."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from regards_nb.events import TENANT_HEADER, Delivery

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


def delivery_from(
    redelivered: bool,  # noqa: FBT001 - as pika names and passes it
    properties: Any,
    body: bytes,
    received_at_us: int,
) -> Delivery:
    """Take what we use, and keep the rest as JSON. Values of a wrong type count as missing."""
    headers: dict[Any, Any] = properties.headers or {}
    timestamp_s = properties.timestamp
    if timestamp_s is not None and not 0 <= timestamp_s <= _LAST_TIMESTAMP_S:
        timestamp_s = None
    return Delivery(
        body,
        received_at_us,
        redelivered,
        timestamp_s,
        _text(properties.correlation_id),
        _text(headers.get(TENANT_HEADER)),
        _text(properties.app_id),
        _others(properties, headers),
        headers.get("x-stream-offset"),
    )


def _text(value: Any) -> str | None:
    """Return a text that any database can hold, or None."""
    if not isinstance(value, str):
        return None
    return value if value.isprintable() else value.encode("ascii", "backslashreplace").decode()


def _others(properties: Any, headers: dict[Any, Any]) -> str:
    values = tuple(getattr(properties, name) for name in _KEPT_PROPERTIES)
    try:
        return _as_json(values, tuple(headers.items()))
    except TypeError:  # a table or a list among the headers: not hashable
        return _as_json.__wrapped__(values, tuple(headers.items()))


@lru_cache(maxsize=64)
def _as_json(values: tuple[Any, ...], headers: tuple[tuple[Any, Any], ...]) -> str:
    """Write properties and headers as JSON; of all messages of a service they are the same."""
    kept = {name: value for name, value in zip(_KEPT_PROPERTIES, values, strict=True) if value}
    # x-...: the broker's own bookkeeping, which differs from delivery to delivery
    kept["headers"] = {
        str(name): value for name, value in headers if not str(name).startswith("x-")
    }
    return json.dumps(kept, default=repr)
