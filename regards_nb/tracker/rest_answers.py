"""What an answer of REGARDS over REST tells that no message told, as messages; the list of orders.

An answer that says something new is journalled like a message that came late, so that events and
orders need no second mechanism.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from regards_nb.events import REST_APP_ID, Delivery, OrderEvent, OrderStatus, decode
from regards_nb.orders import ENDS_WITH_ERRORS, FINISHED, GONE, OrderReducer, precedence, replaced
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from regards_nb.client import RemoteOrder
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderState

#: Number of orders that one request lists.
PAGE = 100
#: Where no order waits for the user, the list is read on again after this time.
_READ_ON_AGAIN_S = 10.0

#: Name of the queue in the journal for what REST told.
REST_ANSWERS = "REST answers"

#: The server's statuses (protocol.md 1.2) as the statuses of messages (1.6). A status that is not
#: here has no known meaning and is ignored.
STATUS_OF_MESSAGE = {
    "PENDING": OrderStatus.RUNNING,
    "RUNNING": OrderStatus.RUNNING,
    "PAUSED": OrderStatus.PAUSED,
    "DONE": OrderStatus.DONE,
    "DONE_WITH_WARNING": OrderStatus.FAILED,
    "FAILED": OrderStatus.FAILED,
    "ERROR": OrderStatus.FAILED,
    "EXPIRED": OrderStatus.EXPIRED,
    "DELETED": OrderStatus.DELETED,
}


@dataclass(slots=True)
class Listing:
    """How far the list of orders was read, which begins with the newest."""

    #: How many orders were taken in; infinite if all.
    n_taken_in: float = 0.0
    #: How many the rounds read that count, infinite if all; and the oldest one of the last round.
    n: float = 0.0
    oldest: int = 0
    #: Until when no round reads on.
    _read_on_s: float = 0.0

    @property
    def n_newest(self) -> float:
        """How many of the newest orders are known; infinite if all."""
        return max(self.n, self.n_taken_in)

    @property
    def is_all(self) -> bool:
        """Whether all orders of the user are known."""
        return self.n_newest == math.inf

    def n_only(self, most: int) -> int:
        """Return how many of the newest orders were read; 0 if all, or less than the *most*."""
        return int(self.n_newest) if most <= self.n_newest < math.inf else 0

    @property
    def has_read_on(self) -> bool:
        """Whether a round has read on a moment ago, and counts beside later ones."""
        return time.monotonic() < self._read_on_s

    def read(
        self, orders: Iterable[RemoteOrder], wanted: Iterable[int], *, most: int, reads_on: bool
    ) -> dict[int, RemoteOrder]:
        """Read down to the oldest of the *wanted* orders, at most *most*.

        *reads_on*: go on to an order that waits for the user, unless that was done a moment ago.
        """
        found: dict[int, RemoteOrder] = {}
        missing = set(wanted)
        n_before = self.n if self.has_read_on else 0.0
        reads_on = reads_on and not self.has_read_on
        for remote in islice(orders, most):
            found[remote.order_id] = remote
            missing.discard(remote.order_id)
            reads_on = reads_on and not _waits_for_user(remote)
            # The rest of a page costs no request, and may hold orders that block others.
            if not missing and not reads_on and len(found) % PAGE == 0:
                break
        else:
            if len(found) < most:
                n_before = math.inf
        if reads_on:
            self._read_on_s = time.monotonic() + _READ_ON_AGAIN_S
        self.n, self.oldest = max(n_before, len(found)), min(found, default=0)
        return found


def _waits_for_user(remote: RemoteOrder) -> bool:
    """Return whether an order takes a place: one that has ended may have external files only."""
    return remote.waiting_for_user or bool(remote.available_files and not remote.finished)


def new_deliveries(
    known: OrderState | None,
    remote: RemoteOrder,
    *,
    tenant: str | None,
    downloading: bool = False,
    acted: str = "",
) -> list[Delivery]:
    """Compare the server's answer with the known state; return the difference as messages.

    *known* is None for an order of which no message came, because it was made elsewhere; it gets
    *tenant*. *downloading*: a download of the order runs, which changes the list of available
    files. *acted* names an action of this tracker that the answer follows. It is then newer than
    all messages so far, with any timestamps.
    """
    status = STATUS_OF_MESSAGE.get(remote.status)
    tell = partial(_message, known, remote, tenant)
    found = []
    if known is None:
        found.append(tell(OrderStatus.GRANTED, _seconds(remote.created_at)))
    if status is None:
        return found
    waits = known is not None and known.waits_for_download
    if remote.available_files and status not in GONE and not (downloading or waits):
        # Without a timestamp: REST does not tell when the files became ready.
        found.append(tell(OrderStatus.SUBORDER_DONE, downloadLink=_link(remote)))
    if _is_new(known, remote, status, acted=bool(acted)):
        details = _details(remote, status, acted or "asked over REST")
        found.append(tell(status, _timestamp_s(known, remote), **details))
    return found


def ready_again(known: OrderState, remote: RemoteOrder) -> Delivery:
    """Return the message that files of an ended order wait, which seemed downloaded."""
    return _message(
        known, remote, known.tenant, OrderStatus.SUBORDER_DONE, downloadLink=_link(remote)
    )


def _message(
    known: OrderState | None,
    remote: RemoteOrder,
    tenant: str | None,
    status: str,
    timestamp_s: int | None = None,
    **details: Any,
) -> Delivery:
    name = None
    if known is not None:
        tenant = known.tenant
        if not known.correlation_id.startswith("#"):  # else only its number is known
            name = known.correlation_id
    fields = {"status": status, "orderId": remote.order_id, "correlationId": name, **details}
    return answer_delivery(fields, tenant=tenant, timestamp_s=timestamp_s)


def _is_new(known: OrderState | None, remote: RemoteOrder, status: str, *, acted: bool) -> bool:
    if known is None:
        return status != OrderStatus.RUNNING
    if known.status == status or precedence(known.status) > precedence(status):
        return False
    if known.finished and status not in FINISHED:
        at_s = _seconds(remote.status_at)
        is_later = at_s is not None and at_s > known.decided_at_s
        return known.status in ENDS_WITH_ERRORS and (acted or is_later)
    if status == OrderStatus.RUNNING:
        return known.status == OrderStatus.PAUSED
    return not (status == OrderStatus.FAILED and known.status in ENDS_WITH_ERRORS)


def _timestamp_s(known: OrderState | None, remote: RemoteOrder) -> int | None:
    """Return a timestamp later than that of the event that decided so far.

    The answer is newer than the messages. They carry whole seconds, and two changes may happen
    within one.
    """
    at_s, decided_at_s = _seconds(remote.status_at), 0 if known is None else known.decided_at_s
    return decided_at_s + 1 if decided_at_s and (at_s or 0) <= decided_at_s else at_s


def _details(remote: RemoteOrder, status: str, source: str) -> dict[str, Any]:
    details: dict[str, Any] = {"message": f"{remote.status}, {source}"}
    if remote.files_in_error and status in FINISHED:
        details["errors"] = number = remote.files_in_error
        details["message"] = f"{remote.status}: {counted(number, 'file')} in error, {source}"
    if status in FINISHED and remote.available_files:
        # Without a link there is nothing to fetch, as in messages (protocol.md 0.4).
        details["downloadLink"] = _link(remote)
    return details


def _link(remote: RemoteOrder) -> str:
    return f"/api/v1/rs-order/user/orders/{remote.order_id}/download"


def answer_delivery(
    fields: dict[str, Any], *, tenant: str | None, timestamp_s: int | None = None
) -> Delivery:
    """Return an answer over REST as the message that would have said the same."""
    return Delivery(
        body=json.dumps({k: v for k, v in fields.items() if v is not None}).encode(),
        received_at_us=time.time_ns() // 1000,
        redelivered=False,
        timestamp_s=timestamp_s,
        correlation_id=fields.get("correlationId"),
        tenant=tenant,
        app_id=REST_APP_ID,
        properties="{}",
    )


def journal_answers(journal: Journal, deliveries: list[Delivery]) -> bool:
    """Journal what REST told; return whether there was anything."""
    if deliveries:
        journal.append(journal.open_session(REST_ANSWERS), deliveries)
    return bool(deliveries)


def state_of(remote: RemoteOrder, tenant: str | None) -> OrderState:
    """Return the state of an order of which only REST has told."""
    reducer = OrderReducer()
    for delivery in new_deliveries(None, remote, tenant=tenant):
        event = decode(delivery)
        assert isinstance(event, OrderEvent)  # noqa: S101 - made above, from valid fields
        key = reducer.add(0, event)
    return replaced(
        reducer.state(key),
        label=remote.label,
        expires_at=remote.expires_at,
        waits_for_download=bool(remote.available_files),
    )


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else max(int(at.timestamp()), 0)


def is_newer(state: OrderState, asked: OrderState | None) -> bool:
    """Return whether a message or another answer came since REGARDS was asked."""
    # Every message changes one of these.
    fields = attrgetter("status", "last_event", "ready_row", "suborders_done")
    return asked is None or fields(asked) != fields(state)
