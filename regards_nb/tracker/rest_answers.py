"""What an answer of REGARDS over REST tells that no message told, as messages.

An answer that says something new is journalled like a message that came late, so that events and
orders need no second mechanism.
"""

from __future__ import annotations

import json
import time
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from regards_nb.events import REST_APP_ID, Delivery, OrderEvent, OrderStatus, decode
from regards_nb.orders import ENDS_WITH_ERRORS, FINISHED, GONE, OrderReducer, precedence, replaced
from regards_nb.text import counted

if TYPE_CHECKING:
    from datetime import datetime

    from regards_nb.client import RemoteOrder
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderState

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
    name = None if known is None else known.correlation_id
    if name is not None and name.startswith("#"):
        name = None  # only the number of the order is known
    named = {"orderId": remote.order_id, "correlationId": name}
    tenant = tenant if known is None else known.tenant

    def tell(status: str, timestamp_s: int | None, **details: Any) -> Delivery:
        fields = {"status": status, **named, **details}
        return answer_delivery(fields, tenant=tenant, timestamp_s=timestamp_s)

    found = []
    if known is None:
        found.append(tell(OrderStatus.GRANTED, _seconds(remote.created_at)))
    if status is None:
        return found
    waits = known is not None and known.waits_for_download
    if remote.available_files and status not in GONE and not (downloading or waits):
        # Without a timestamp: REST does not tell when the files became ready.
        found.append(tell(OrderStatus.SUBORDER_DONE, None, downloadLink=_link(remote)))
    if _is_new(known, remote, status, acted=bool(acted)):
        details = _details(remote, status, acted or "asked over REST")
        found.append(tell(status, _timestamp_s(known, remote), **details))
    return found


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
