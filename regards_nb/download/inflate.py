"""Inflate and CRC-32: by isal where it is installed (extra ``fast``), else by zlib."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    Bytes = bytes | bytearray | memoryview


class Inflater(Protocol):
    """What both libraries give for one deflate stream."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was seen."""

    @property
    def unused_data(self) -> bytes:
        """What came after the end."""

    @property
    def unconsumed_tail(self) -> bytes:
        """What was not looked at because the output had its full length."""

    def decompress(self, data: Bytes, max_length: int, /) -> bytes:
        """Return at most *max_length* bytes."""


def _plain_inflater() -> Inflater:
    return zlib.decompressobj(-zlib.MAX_WBITS)


inflater: Callable[[], Inflater] = _plain_inflater
crc32: Callable[[Bytes, int], int] = zlib.crc32
DeflateError: type[Exception] = zlib.error

try:
    from isal import isal_zlib
except ImportError:
    pass
else:

    def _fast_inflater() -> Inflater:
        made: Inflater = isal_zlib.decompressobj(-zlib.MAX_WBITS)
        return made

    inflater, crc32 = _fast_inflater, isal_zlib.crc32
    # isal's own type hints take the class for an instance
    DeflateError = cast("type[Exception]", isal_zlib.error)
