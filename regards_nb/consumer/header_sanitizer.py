"""Removes message properties that pika cannot decode, between the socket and pika.

A header may hold a value that no Python type can hold, such as a timestamp after the year 9999 or
a decimal with a huge exponent. pika then raises while it reads, the connection is lost, RabbitMQ
delivers the message again, and so on without end. Without its properties the message can be read,
journalled and acknowledged like any other. Decoding every header twice costs time, so the
sanitizer is used only on the connection after a lost one.
"""

from __future__ import annotations

import struct
from typing import Any

from pika.adapters.utils.nbio_interface import AbstractStreamProtocol
from pika.spec import BasicProperties

_FRAME_START = struct.Struct(">BHI")
_FRAME_END_BYTES = 1
_CONTENT_HEADER = 2
#: Class, weight and body size; the properties follow.
_HEADER_START_BYTES = 12
_NO_PROPERTIES = b"\x00\x00"


class HeaderSanitizer(AbstractStreamProtocol):  # type: ignore[misc]
    """Hands whole frames to pika's own protocol, without properties that pika cannot decode."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self._unfinished = bytearray()

    def connection_made(self, transport: Any) -> None:
        """Pass on."""
        self.protocol.connection_made(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        """Pass on."""
        self.protocol.connection_lost(error)

    def eof_received(self) -> Any:
        """Pass on."""
        return self.protocol.eof_received()

    def data_received(self, data: bytes) -> None:
        """Pass on the whole frames received so far, sanitized."""
        self._unfinished += data
        if self._unfinished.startswith(b"AMQP"):
            # Not a frame: the broker speaks another version of AMQP, and pika reports that.
            self.protocol.data_received(bytes(self._unfinished))
            return
        frames = bytearray()
        while frame := self._next_frame():
            frames += frame
        if frames:
            self.protocol.data_received(bytes(frames))

    def _next_frame(self) -> bytes:
        if len(self._unfinished) < _FRAME_START.size:
            return b""
        kind, channel, size = _FRAME_START.unpack_from(self._unfinished)
        end = _FRAME_START.size + size + _FRAME_END_BYTES
        if len(self._unfinished) < end:
            return b""
        frame = bytes(self._unfinished[:end])
        del self._unfinished[:end]
        return _sanitized(frame, channel) if kind == _CONTENT_HEADER else frame


def _sanitized(frame: bytes, channel: int) -> bytes:
    payload = frame[_FRAME_START.size : -_FRAME_END_BYTES]
    try:
        BasicProperties().decode(payload, _HEADER_START_BYTES)
    except Exception:  # noqa: BLE001 - pika raises whatever Python raises for these bytes
        payload = payload[:_HEADER_START_BYTES] + _NO_PROPERTIES
        start = _FRAME_START.pack(_CONTENT_HEADER, channel, len(payload))
        return start + payload + frame[-_FRAME_END_BYTES:]
    return frame
