"""Reads delivered messages from the bytes of a connection, as `Delivery`; other frames go to pika.

pika makes an object of each of the three frames of a message, and of its properties. Reading them
here costs a third of that, and a message whose properties pika cannot decode, such as a timestamp
after the year 9999, does not end the connection: it is received without its properties.
"""

from __future__ import annotations

import json
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.spec import BasicProperties

from regards_nb.events import TENANT_HEADER
from regards_nb.text import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Callable

_FRAME_START = struct.Struct(">BHI")
_START_BYTES = _FRAME_START.size
_FRAME_END_BYTES = 1
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_IS_FRAME = frozenset({_METHOD, _HEADER, _BODY, _HEARTBEAT})
#: basic.deliver: class 60, method 60
_DELIVER = b"\x00\x3c\x00\x3c"
_TAG = struct.Struct(">Q?")
#: Class and weight come before the size of the body; the properties follow.
_BODY_SIZE = struct.Struct(">Q")
_BODY_SIZE_OFFSET = 4
_HEADER_START_BYTES = 12
#: pika looks every 6 s or less often whether something was received.
_TELL_ALIVE_S = 1.0
_HEARTBEAT_FRAME = _FRAME_START.pack(_HEARTBEAT, 0, 0) + b"\xce"
#: Messages of one order and second have the same properties; those of attackers may be large.
_CACHED_BYTES = 1024

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


@dataclass(slots=True)
class _Unfinished:
    """A message of which the header or a part of the body has not arrived."""

    delivery_tag: int
    redelivered: bool
    properties: bytes = b""
    size: int = -1
    body: bytes = b""


class DeliveryReader:
    """Takes the deliveries out of the stream that pika's own protocol receives.

    It calls ``on_message(channel_number, delivery_tag, redelivered, properties, body)``;
    *properties* are the encoded ones, see `properties_from`.
    """

    def __init__(
        self, protocol: Any, on_message: Callable[[int, int, bool, bytes, bytes], None]
    ) -> None:
        self.protocol = protocol
        self._on_message = on_message
        self._remainder = b""
        self._alive_told_at_s = float("-inf")
        #: by channel number
        self._unfinished: dict[int, _Unfinished] = {}

    def __getattr__(self, name: str) -> Any:
        # The begin and the end of the connection are for pika.
        return getattr(self.protocol, name)

    def data_received(self, data: bytes) -> None:
        """Read the whole frames received so far, in their order."""
        if self._remainder:
            data = self._remainder + data
        # the frames from `kept` to `position` are for pika
        kept = position = 0
        last_start = len(data) - _START_BYTES - _FRAME_END_BYTES
        has_taken = False
        while position <= last_start:
            kind, channel, size = _FRAME_START.unpack_from(data, position)
            if kind not in _IS_FRAME:
                # the broker uses another version of AMQP, and pika reports that
                position = len(data)
                break
            start = position + _START_BYTES
            end = start + size
            if end >= len(data):
                break
            if self._is_ours(kind, channel, data, start):
                if kept < position:
                    self.protocol.data_received(data[kept:position])
                has_taken = True
                kept = end + _FRAME_END_BYTES
                if kind != _METHOD:
                    self._take(kind, channel, data[start:end])
            position = end + _FRAME_END_BYTES
        self._remainder = data[position:]
        if kept < position:
            self.protocol.data_received(data[kept:position])
        elif has_taken and (now_s := time.monotonic()) >= self._alive_told_at_s + _TELL_ALIVE_S:
            # pika closes a connection on which it receives nothing
            self._alive_told_at_s = now_s
            self.protocol.data_received(_HEARTBEAT_FRAME)

    def _is_ours(self, kind: int, channel: int, data: bytes, start: int) -> bool:
        """Return whether a frame belongs to a delivery; begin the message if it is the first."""
        if kind != _METHOD:
            return channel in self._unfinished
        if data[start : start + 4] != _DELIVER:
            self._unfinished.pop(channel, None)
            return False
        # a short text precedes it: the tag of the consumer
        tag = _TAG.unpack_from(data, start + 5 + data[start + 4])
        self._unfinished[channel] = _Unfinished(*tag)
        return True

    def _take(self, kind: int, channel: int, payload: bytes) -> None:
        message = self._unfinished[channel]
        if kind == _HEADER:
            (message.size,) = _BODY_SIZE.unpack_from(payload, _BODY_SIZE_OFFSET)
            message.properties = payload[_HEADER_START_BYTES:]
        else:
            message.body = message.body + payload if message.body else payload
        if len(message.body) == message.size:
            del self._unfinished[channel]
            self._on_message(
                channel, message.delivery_tag, message.redelivered, message.properties, message.body
            )


class MessageProperties(NamedTuple):
    """The properties of a message: those that are used, and all others as JSON.

    One of a wrong type counts as missing. The first five are fields of `Delivery`.
    """

    timestamp_s: int | None
    correlation_id: str | None
    tenant: str | None
    app_id: str | None
    others: str
    #: Of a stream. In other queues this header comes from the publisher.
    stream_offset: int | None
    #: How often a quorum queue has delivered it before.
    delivery_count: int | None


def properties_from(encoded: bytes) -> MessageProperties:
    """Decode the properties of a message; those that pika cannot decode are empty."""
    return _cached(encoded) if len(encoded) <= _CACHED_BYTES else _cached.__wrapped__(encoded)


@lru_cache(maxsize=1024)
def _cached(encoded: bytes) -> MessageProperties:
    properties = BasicProperties()
    try:
        properties.decode(encoded)
    except Exception:  # noqa: BLE001 - pika raises whatever Python raises for these bytes
        properties = BasicProperties()
    headers: dict[Any, Any] = properties.headers or {}
    timestamp_s = properties.timestamp
    if timestamp_s is not None and not _FIRST_TIMESTAMP_S <= timestamp_s <= _LAST_TIMESTAMP_S:
        timestamp_s = None
    service = _stored_properties(properties), tuple(headers.items())
    try:
        texts = _as_text(*service)
    except TypeError:  # a table or a list among the headers cannot be hashed
        texts = _as_text.__wrapped__(*service)
    offset = headers.get("x-stream-offset")
    # RabbitMQ 4.3 counts in x-delivery-count only what failed, and not what was put back.
    count = headers.get("x-acquired-count", headers.get("x-delivery-count"))
    return MessageProperties(
        timestamp_s,
        _text(properties.correlation_id),
        *texts,
        # pika uses a type of its own for it
        int(offset) if isinstance(offset, int) else None,
        count if isinstance(count, int) else None,
    )


def _text(value: Any) -> str | None:
    """Return a text that every database can store, or None."""
    return escape_unprintable(value) if isinstance(value, str) else None


@lru_cache(maxsize=256)
def _as_text(
    values: tuple[Any, ...], headers: tuple[tuple[Any, Any], ...]
) -> tuple[str | None, str | None, str]:
    """Return tenant, app id and the others as JSON. All messages of one service have the same."""
    app_id, *others = values
    kept = {name: value for name, value in zip(_OTHER_PROPERTIES, others, strict=True) if value}
    # The broker writes headers x-...; they differ from delivery to delivery.
    kept["headers"] = {
        str(name): value for name, value in headers if not str(name).startswith("x-")
    }
    tenant = dict(headers).get(TENANT_HEADER)
    return _text(tenant), _text(app_id), json.dumps(kept, default=repr)


class IOServices(SelectorIOServicesAdapter):  # type: ignore[misc]
    """pika's I/O services, which read messages before pika does and can abort the transport.

    An AMQP close waits for the broker's answer. A frozen broker does not answer; its socket must be
    closed without one. *on_accepted* is called once, when a host accepts the connection.
    """

    def __init__(
        self,
        on_message: Callable[[int, int, bool, bytes, bytes], None],
        on_accepted: Callable[[], object],
    ) -> None:
        super().__init__(IOLoop())
        self.transport: Any = None
        self._on_message = on_message
        self._on_accepted = on_accepted

    def create_streaming_connection(
        self, protocol_factory: Any, sock: Any, on_done: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Give pika its own protocol behind the reader; store the transport."""
        # pika tries the next address of a host that has several
        on_accepted, self._on_accepted = self._on_accepted, lambda: None
        on_accepted()

        def make_protocol() -> Any:
            return DeliveryReader(protocol_factory(), self._on_message)

        def store_transport(result: Any) -> None:
            if not isinstance(result, BaseException):
                self.transport, protocol = result
                # pika expects its own protocol back
                result = (self.transport, protocol.protocol)
            on_done(result)

        return super().create_streaming_connection(
            make_protocol, sock, store_transport, *args, **kwargs
        )

    def close(self) -> None:
        """Close the loop, and the socket if an exception has ended the loop before.

        RabbitMQ would go on to deliver messages to a socket that no loop reads.
        """
        # abort() of the transport needs a loop that runs
        sock = getattr(self.transport, "_sock", None)
        for close in (super().close, getattr(sock, "close", None)):
            with suppress(OSError):  # other code can have closed the descriptors
                if close is not None:
                    close()
