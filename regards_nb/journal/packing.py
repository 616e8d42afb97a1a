"""How the messages of one commit are stored: together, as msgpack values of a limited size.

A flood of messages comes to disk in few large rows, a single one in a row of its own. That is
what makes a commit cheap: SQLite does its work once for each row, not once for each message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from regards_nb.events import Delivery

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: A row grows up to this size, and beyond it only for a single message that is larger.
MOST_BYTES = 1 << 20

#: Each message is an array: the fields of `Delivery` in their order, which is therefore part of the
#: schema.
pack = msgspec.msgpack.Encoder().encode
#: Returns what `pack` was given.
unpack = msgspec.msgpack.Decoder(list[Delivery]).decode


def pieces(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """Cut messages into runs that are each one row."""
    start = size_bytes = 0
    for end, delivery in enumerate(deliveries):
        size_bytes += len(delivery.body)
        if size_bytes > MOST_BYTES and end > start:
            yield deliveries[start:end]
            start, size_bytes = end, len(delivery.body)
    if start < len(deliveries):
        yield deliveries[start:]
