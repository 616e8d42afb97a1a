"""The wire: what an AMQP message of the REGARDS order service says, or why it says nothing.

Pure: bytes and properties in, an :class:`OrderEvent` or a :class:`Rejection` out. The rules are
those of the seed page ("Get Order progress AMQP") and of protocol.md sections 0 and 1.6; where
the two differ, both are accepted.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import msgspec

from regards_nb.text import replace_surrogates

VHOST = "regards.multitenant.manager"
RESPONSE_TYPE = "fr.cnes.regards.modules.order.amqp.output.OrderResponseDtoEvent"
RESPONSE_EXCHANGE = f"regards.broadcast.{RESPONSE_TYPE}"
REQUEST_TYPE = "fr.cnes.regards.modules.order.amqp.input.OrderRequestDtoEvent"
REQUEST_EXCHANGE = f"regards.broadcast.{REQUEST_TYPE}"
TENANT_HEADER = "regards.tenant"
#: Stands where messages have the name of their publisher, in what was learnt over REST instead.
REST_APP_ID = "REST"

#: A response of REGARDS is below 1 kB. What is larger than this cannot be one, and is not parsed.
MAX_BODY_BYTES = 1 << 20

_INT64 = range(-(2**63), 2**63)
_EPOCH = datetime.fromtimestamp(0, UTC)

# The seed page prints bodies with a comma after the last field. No REGARDS server sends that, but
# whoever replays the page does. A string is matched first, so that commas in it are left alone.
_STRING_OR_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')

_Int64 = Annotated[int, msgspec.Meta(ge=_INT64.start, le=_INT64.stop - 1)]


class _Body(msgspec.Struct, rename="camel", forbid_unknown_fields=True, gc=False):
    """The body as REGARDS writes it (protocol.md 0.3). Other bodies are read patiently."""

    status: str
    correlation_id: str | None = None
    order_id: _Int64 | None = None
    message: str | None = None
    download_link: str | None = None
    error_type: str | None = None
    #: Of the seed page; the same as ``error_type`` (protocol.md 1.7).
    error_code: str | None = None
    errors: _Int64 | None = None
    total_sub_orders: _Int64 | None = None
    sub_order_id: _Int64 | None = None


_body_from = msgspec.json.Decoder(_Body).decode

#: The fields beside the status, by their name in a body.
_KINDS = {
    "correlationId": str,
    "orderId": int,
    "message": str,
    "downloadLink": str,
    "errorType": str,
    "errorCode": str,
    "errors": int,
    "totalSubOrders": int,
    "subOrderId": int,
}


class OrderStatus(StrEnum):
    """The statuses that REGARDS has named. A server may grow others; they are kept as text."""

    GRANTED = "GRANTED"
    SUBORDER_DONE = "SUBORDER_DONE"
    DONE = "DONE"
    #: Only in the documentation; on the wire it is FAILED with a download link (protocol.md 1.7).
    DONE_WITH_WARNING = "DONE_WITH_WARNING"
    FAILED = "FAILED"
    DENIED = "DENIED"
    #: The following come over REST only; no message says them (protocol.md 1.2).
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    EXPIRED = "EXPIRED"
    DELETED = "DELETED"


class Delivery(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message as RabbitMQ handed it over, before anybody tried to understand it.

    Many thousands are held for a moment, with nothing in them that could be part of a cycle: the
    garbage collector does not look at them.
    """

    body: bytes
    #: When it reached us: microseconds since 1970, UTC.
    received_at_us: int
    redelivered: bool
    #: AMQP property, seconds since 1970, UTC. The body has no time of its own.
    timestamp_s: int | None
    #: AMQP property.
    correlation_id: str | None
    #: Header ``regards.tenant``.
    tenant: str | None
    #: AMQP property.
    app_id: str | None
    #: The remaining properties and headers, as JSON.
    properties: str
    #: Its place, if it comes from a stream queue.
    stream_offset: int | None = None


class OrderEvent(msgspec.Struct, frozen=True, gc=False):
    """What one message says about one order. Nothing here is checked against other messages.

    ``status`` is one of :class:`OrderStatus` or a text this version does not know. ``extra``
    holds the fields of the body that it does not know.
    """

    received_at_us: int
    timestamp_s: int | None
    tenant: str | None
    correlation_id: str | None
    order_id: int | None
    status: str
    message: str | None
    download_link: str | None
    error_type: str | None
    errors: int | None
    total_sub_orders: int | None
    sub_order_id: int | None
    app_id: str | None
    redelivered: bool
    extra: dict[str, Any]

    @property
    def received_at(self) -> datetime:
        """When the message reached us (UTC)."""
        return _EPOCH + timedelta(microseconds=self.received_at_us)

    @property
    def timestamp(self) -> datetime | None:
        """When REGARDS published the message (UTC, whole seconds), if it said so."""
        return None if self.timestamp_s is None else _EPOCH + timedelta(seconds=self.timestamp_s)


class Rejection(NamedTuple):
    """Why a message could not be understood."""

    reason: str


def decode(delivery: Delivery) -> OrderEvent | Rejection:
    """Read one message.

    Parameters
    ----------
    delivery : Delivery
        Body and properties, as received.

    Returns
    -------
    OrderEvent or Rejection
        The correlation id is the body's, else the AMQP property (seed page, "AMQP Headers").
        ``errorType`` and ``errorCode`` mean the same (protocol.md 1.7). Unknown statuses and
        fields are kept; a known field of the wrong type makes the whole message a rejection,
        because guessing at half of it could move the wrong order.
    """
    raw = delivery.body
    if len(raw) > MAX_BODY_BYTES:
        return Rejection(f"{len(raw)} bytes; a response has at most {MAX_BODY_BYTES}")
    try:
        body, extra = _read(raw)
    except _UnreadableError as why:
        return Rejection(str(why))
    correlation_id = body.correlation_id or delivery.correlation_id or None
    order_id = body.order_id
    if correlation_id is None and order_id is None:
        return Rejection("neither correlationId nor orderId: it is about no order")
    return OrderEvent(
        delivery.received_at_us,
        delivery.timestamp_s,
        delivery.tenant,
        correlation_id,
        order_id,
        body.status.strip(),
        body.message,
        body.download_link,
        body.error_type or body.error_code,
        body.errors,
        body.total_sub_orders,
        body.sub_order_id,
        delivery.app_id,
        delivery.redelivered,
        extra,
    )


def _read(raw: bytes) -> tuple[_Body, dict[str, Any]]:
    """Return what the body says, and the fields of it that are not known."""
    try:
        body = _body_from(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_patiently(raw)
    if body.status.isspace() or not body.status:
        raise _UnreadableError("no status")
    return body, {}


def _read_patiently(raw: bytes) -> tuple[_Body, dict[str, Any]]:
    """Read what is not quite as it should be, or say why it means nothing.

    Newer servers may write fields that we do not know, and whoever replays the seed page writes
    its commas.
    """
    fields = _parse_object(raw)
    status = _take_status(fields)
    return _Body(status, *(_take(fields, name, kind) for name, kind in _KINDS.items())), fields


class _UnreadableError(ValueError):
    """Carries the reason of a rejection to `decode`; never leaves this module."""


_KIND_IN_WORDS = {str: "a text", int: "a whole number"}


def _parse_object(raw: bytes) -> dict[str, Any]:
    """Parse the body, which must be one JSON object in UTF-8."""
    if not raw:
        raise _UnreadableError("empty body")
    try:
        text = raw.decode("utf-8-sig")
        body = _loads(text)
    except UnicodeDecodeError as exc:
        raise _UnreadableError(f"not UTF-8: {exc.reason} at byte {exc.start}") from exc
    except RecursionError as exc:
        raise _UnreadableError("JSON nested too deeply") from exc
    except ValueError as exc:
        raise _UnreadableError(f"not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise _UnreadableError(f"not a JSON object but {type(body).__name__}: {_shown(body)}")
    return body


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        mended = _STRING_OR_TRAILING_COMMA.sub(lambda match: match[1] or "", text)
        if mended == text:
            raise
        return json.loads(mended)


def _take_status(body: dict[str, Any]) -> str:
    status = _take(body, "status", str)
    if status is None or not status.strip():
        raise _UnreadableError("no status")
    return str(status)


def _take(body: dict[str, Any], name: str, kind: type) -> Any:
    """Take a field that may be missing or null, but must not be of another type."""
    value = body.pop(name, None)
    if value is None:
        return None
    # bool is an int in Python, and never one in REGARDS
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _UnreadableError(f"{name} is not {_KIND_IN_WORDS[kind]}: {_shown(value)}")
    if kind is int and value not in _INT64:
        raise _UnreadableError(f"{name} does not fit 64 bits: {_shown(value)}")
    return replace_surrogates(value) if isinstance(value, str) else value


def _shown(value: object) -> str:
    """Return a short repr: a rejection's reason is for reading."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
