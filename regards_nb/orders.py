"""What the events mean: a pure fold, event after event, into the state of each order.

Delivery is at least once and the order of arrival is not the order of life (protocol.md 0.5), so
everything here is a maximum, a minimum or a set: the same events in any order, any of them
repeated, give the same state. What decides between two events is the AMQP property ``timestamp``
and, within one second, the rank of the status; never which arrived first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from regards_nb.events import OrderStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.events import OrderEvent

#: How far each status stands in the life of an order. Statuses we do not know stand at 1.
_RANK = {
    OrderStatus.GRANTED: 0,
    OrderStatus.SUBORDER_DONE: 1,
    OrderStatus.DENIED: 2,
    OrderStatus.FAILED: 3,
    OrderStatus.DONE_WITH_WARNING: 4,
    OrderStatus.DONE: 5,
}
_UNKNOWN_RANK = 1

FINISHED = frozenset(
    {OrderStatus.DENIED, OrderStatus.FAILED, OrderStatus.DONE_WITH_WARNING, OrderStatus.DONE}
)

#: (tenant, correlation id): what identifies an order before it has a number.
OrderKey = tuple[str | None, str]


class FileState(StrEnum):
    """How far one file of an order has come on this side."""

    #: In the manifest; not fetched yet.
    LISTED = "LISTED"
    #: In the workspace under its final name, size and checksum as in the manifest.
    VERIFIED = "VERIFIED"
    #: In the workspace; the manifest gives no checksum, so only size and CRC were checked.
    UNVERIFIED = "UNVERIFIED"
    #: Could not be had; ``error`` says why.
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of an order: what the manifest says (protocol.md 1.4), and where it is now."""

    order_id: int
    #: The server's id: the way to fetch the file alone, also after the zip (protocol.md 1.0, 7).
    file_id: int
    name: str
    size_bytes: int | None = None
    md5: str | None = None
    product_id: str | None = None
    #: Absolute path under its final name, once it is there.
    path: str | None = None
    state: FileState = FileState.LISTED
    error: str | None = None
