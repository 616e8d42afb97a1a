"""Between the socket and pika: message properties that pika cannot decode are taken out.

A header may hold what no Python type can, such as a timestamp beyond the year 9999 or a float
that is not a number. pika then raises while it reads, the connection is lost, the message comes
again, and so on for ever. Without its properties the message can be read, journalled and
acknowledged like any other. Looking into each frame costs time, so this is switched on only
after it was needed.
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


class Mender(AbstractStreamProtocol):  # type: ignore[misc]
    """Passes everything on to pika's own protocol, frame by frame."""

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
        """Pass on whole frames, with their properties mended."""
        self._unfinished += data
        if self._unfinished.startswith(b"AMQP"):
            # no frame: the broker speaks another version, and pika says so
            self.protocol.data_received(bytes(self._unfinished))
            return
        whole = bytearray()
        while frame := self._next_frame():
            whole += frame
        if whole:
            self.protocol.data_received(bytes(whole))

    def _next_frame(self) -> bytes:
        if len(self._unfinished) < _FRAME_START.size:
            return b""
        kind, channel, size = _FRAME_START.unpack_from(self._unfinished)
        end = _FRAME_START.size + size + _FRAME_END_BYTES
        if len(self._unfinished) < end:
            return b""
        frame = bytes(self._unfinished[:end])
        del self._unfinished[:end]
        return _mended(frame, channel) if kind == _CONTENT_HEADER else frame


def _mended(frame: bytes, channel: int) -> bytes:
    payload = frame[_FRAME_START.size : -_FRAME_END_BYTES]
    try:
        BasicProperties().decode(payload, _HEADER_START_BYTES)
    except Exception:  # noqa: BLE001 - pika raises whatever the bytes make Python raise
        payload = payload[:_HEADER_START_BYTES] + _NO_PROPERTIES
        start = _FRAME_START.pack(_CONTENT_HEADER, channel, len(payload))
        return start + payload + frame[-_FRAME_END_BYTES:]
    return frame
