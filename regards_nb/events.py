"""Decode an AMQP message of the REGARDS order service: `Delivery` to `OrderEvent` or `Rejection`.

Also what the two forms of an order request, REST and AMQP, have in common. Pure. The rules are
those of the seed page ("Get Order progress AMQP") and of protocol.md sections 0 and 1.6. Where the
two differ, both are accepted.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from regards_nb.text import replace_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterable

VHOST = "regards.multitenant.manager"
RESPONSE_TYPE = "fr.cnes.regards.modules.order.amqp.output.OrderResponseDtoEvent"
RESPONSE_EXCHANGE = f"regards.broadcast.{RESPONSE_TYPE}"
REQUEST_TYPE = "fr.cnes.regards.modules.order.amqp.input.OrderRequestDtoEvent"
REQUEST_EXCHANGE = f"regards.broadcast.{REQUEST_TYPE}"
TENANT_HEADER = "regards.tenant"
#: The ``app_id`` of events that the REST sync made. Messages have the name of their publisher.
REST_APP_ID = "REST"

#: The types of files that an order can have.
DATA_TYPES = ("RAWDATA", "QUICKLOOK")

#: A response of REGARDS is below 1 kB. A larger body than this is rejected without parsing it.
MAX_BODY_BYTES = 1 << 20

_INT64 = range(-(2**63), 2**63)
_EPOCH = datetime.fromtimestamp(0, UTC)

# The seed page prints bodies with a comma after the last field. No REGARDS server sends that, but
# a replay of the page does. The pattern matches strings first and so leaves their commas alone.
_STRING_OR_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')

_Int64 = Annotated[int, msgspec.Meta(ge=_INT64.start, le=_INT64.stop - 1)]


class _Body(msgspec.Struct, rename="camel", forbid_unknown_fields=True, gc=False):
    """The body as REGARDS writes it (protocol.md 0.3). `_read_leniently` reads other bodies."""

    status: str
    correlation_id: str | None = None
    order_id: _Int64 | None = None
    message: str | None = None
    download_link: str | None = None
    error_type: str | None = None
    #: The name of ``error_type`` on the seed page (protocol.md 1.7).
    error_code: str | None = None
    errors: _Int64 | None = None
    total_sub_orders: _Int64 | None = None
    sub_order_id: _Int64 | None = None


_body_from = msgspec.json.Decoder(_Body).decode

#: The name and type of each field of a body but the status.
_FIELD_TYPES = {
    each.encode_name: str if each.type == str | None else int
    for each in msgspec.structs.fields(_Body)[1:]
}


class OrderStatus(StrEnum):
    """The statuses that REGARDS names. A status that is not here is kept as text."""

    GRANTED = "GRANTED"
    SUBORDER_DONE = "SUBORDER_DONE"
    DONE = "DONE"
    #: Only in the documentation. A message says FAILED with a download link (protocol.md 1.7).
    DONE_WITH_WARNING = "DONE_WITH_WARNING"
    FAILED = "FAILED"
    DENIED = "DENIED"
    #: The following come over REST only, never in a message (protocol.md 1.2).
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    EXPIRED = "EXPIRED"
    DELETED = "DELETED"


class Delivery(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message as RabbitMQ delivered it, not decoded.

    ``gc=False``: thousands exist at a time, and none can be part of a reference cycle.
    """

    body: bytes
    #: When the message arrived here: microseconds since 1970, UTC.
    received_at_us: int
    redelivered: bool
    #: AMQP property, seconds since 1970, UTC. The body has no time.
    timestamp_s: int | None
    #: AMQP property.
    correlation_id: str | None
    #: Header ``regards.tenant``.
    tenant: str | None
    #: AMQP property.
    app_id: str | None
    #: The remaining properties and headers, as JSON.
    properties: str
    #: The offset in a stream queue; None for other queues.
    stream_offset: int | None = None


class OrderEvent(msgspec.Struct, frozen=True, gc=False):
    """A decoded message about one order. It is not compared with other messages.

    ``status`` is one of :class:`OrderStatus`, or a text that this version does not know. ``extra``
    holds the fields of the body that this version does not know.
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
        """The time at which the message arrived here (UTC)."""
        return utc(self.received_at_us)

    @property
    def timestamp(self) -> datetime | None:
        """The time of publication by REGARDS (UTC, whole seconds); None without that property."""
        return None if self.timestamp_s is None else utc(self.timestamp_s * 1_000_000)


def utc(us: int) -> datetime:
    """Return the time that is so many microseconds after the beginning of 1970."""
    return _EPOCH + timedelta(microseconds=us)


class Rejection(NamedTuple):
    """Why a message could not be decoded."""

    reason: str


def order_filters(
    data_types: Iterable[str] | None, filename_regexp: str | None
) -> dict[str, object] | None:
    """Return the filters of a request for an order; None if all files are wanted.

    REGARDS denies filters without types (protocol.md 1.6), so a pattern alone comes with all types.

    >>> order_filters(None, ".*nc")
    {'dataTypes': ['RAWDATA', 'QUICKLOOK'], 'filenameRegExp': '.*nc'}
    """
    types = list(data_types or ())
    if not filename_regexp:
        return {"dataTypes": types} if types else None
    return {"dataTypes": types or list(DATA_TYPES), "filenameRegExp": filename_regexp}


def decode(delivery: Delivery) -> OrderEvent | Rejection:
    """Decode one message.

    The correlation id is the body's, else the AMQP property (seed page, "AMQP Headers").
    ``errorType`` and ``errorCode`` mean the same (protocol.md 1.7). Unknown statuses and fields are
    kept. A known field of the wrong type makes the whole message a rejection, because a guess could
    change the wrong order.
    """
    raw = delivery.body
    if len(raw) > MAX_BODY_BYTES:
        return Rejection(f"{len(raw)} bytes; a response has at most {MAX_BODY_BYTES}")
    try:
        body, extra = _read(raw)
    except _UnreadableError as why:
        return Rejection(str(why))
    status = body.status.strip()
    if not status:
        return Rejection("no status")
    correlation_id = body.correlation_id or delivery.correlation_id or None
    order_id = body.order_id
    if correlation_id is None and order_id is None:
        return Rejection("neither correlationId nor orderId: the message names no order")
    return OrderEvent(
        delivery.received_at_us,
        delivery.timestamp_s,
        delivery.tenant,
        correlation_id,
        order_id,
        status,
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
    """Return the decoded body, and its unknown fields."""
    try:
        return _body_from(raw), {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_leniently(raw)


def _read_leniently(raw: bytes) -> tuple[_Body, dict[str, Any]]:
    """Decode a body with unknown fields or trailing commas, or raise the reason why not.

    Newer servers may send new fields. A replay of the seed page has trailing commas.
    """
    fields = _parse_object(raw)
    status = _take(fields, "status", str) or ""
    return _Body(
        status, *(_take(fields, name, kind) for name, kind in _FIELD_TYPES.items())
    ), fields


class _UnreadableError(ValueError):
    """The reason of a rejection; `decode` catches it."""


_TYPE_NAMES = {str: "a text", int: "a whole number"}


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
        without_commas = _STRING_OR_TRAILING_COMMA.sub(lambda match: match[1] or "", text)
        if without_commas == text:
            raise
        return json.loads(without_commas)


def _take(body: dict[str, Any], name: str, kind: type) -> Any:
    """Remove a field and return it: it may be missing or null, but not of another type."""
    value = body.pop(name, None)
    if value is None:
        return None
    # Python's bool is an int; REGARDS sends none where a number belongs
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _UnreadableError(f"{name} is not {_TYPE_NAMES[kind]}: {_shown(value)}")
    if kind is int and value not in _INT64:
        raise _UnreadableError(f"{name} does not fit 64 bits: {_shown(value)}")
    return replace_surrogates(value) if isinstance(value, str) else value


def _shown(value: object) -> str:
    """Return a short repr for the reason of a rejection."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
