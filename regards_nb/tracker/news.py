"""What the server says over REST, compared with what is known: the difference, as messages.

An answer that says something new is journalled like a message that came late, so that orders and
frames need no second mechanism. One that says nothing new leaves no trace.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from regards_nb.events import REST_APP_ID, Delivery, OrderStatus
from regards_nb.orders import FINISHED, GONE, PRECEDENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from regards_nb.client import RemoteOrder
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderState

#: Stands in the journal where the name of a queue stands otherwise.
REST_ANSWERS = "REST answers"

#: The server's statuses (protocol.md 1.2) in the words of the messages (1.6). A status that is
#: not here says nothing: what it means is not known.
_STATUS = {
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
_ENDS_TO_RETRY = frozenset({OrderStatus.FAILED, OrderStatus.DONE_WITH_WARNING})
_DOWNLOAD_PATH = "/api/v1/rs-order/user/orders/{}/download"


class News:
    """The difference between an order as it is known and as the server sees it.

    Parameters
    ----------
    known : OrderState or None
        None: an order that was made elsewhere, and of which no message came.
    remote : RemoteOrder
        The server's answer.
    tenant : str or None
        Of the orders that are not known yet.
    fetching : bool
        A download of the order runs, which changes what is available.
    acted : bool
        The answer follows something that this tracker asked for, so it is newer than every
        message so far, whatever their clocks say.
    """

    def __init__(
        self,
        known: OrderState | None,
        remote: RemoteOrder,
        *,
        tenant: str | None,
        fetching: bool = False,
        acted: bool = False,
    ) -> None:
        self._known = known
        self._remote = remote
        self._tenant = tenant if known is None else known.tenant
        self._fetching = fetching
        self._acted = acted

    def deliveries(self) -> list[Delivery]:
        """Return the messages that would have told it; none where nothing is new."""
        return list(self._deliveries())

    def _deliveries(self) -> Iterator[Delivery]:
        remote, status = self._remote, _STATUS.get(self._remote.status)
        if self._known is None:
            yield self._delivery(OrderStatus.GRANTED, _seconds(remote.created_at))
        if status is None:
            return
        if self._is_ready(status):
            # Without a time: when the part became ready, nobody says.
            yield self._delivery(OrderStatus.SUBORDER_DONE, None, downloadLink=self._link)
        if self._is_new(status):
            yield self._delivery(status, self._timestamp_s(), **self._details(status))

    def _is_ready(self, status: str) -> bool:
        if not self._remote.available_files or status in GONE or self._fetching:
            return False
        return self._known is None or not self._known.waits_for_download

    def _is_new(self, status: str) -> bool:
        known = self._known
        if known is None:
            return status != OrderStatus.RUNNING
        if known.status == status or _precedence(known.status) > _precedence(status):
            return False
        if known.finished and status not in FINISHED:
            return known.status in _ENDS_TO_RETRY and (self._acted or self._is_later(known))
        if status == OrderStatus.RUNNING:
            return known.status == OrderStatus.PAUSED
        return not (status == OrderStatus.FAILED and known.status in _ENDS_TO_RETRY)

    def _is_later(self, known: OrderState) -> bool:
        at_s = _seconds(self._remote.status_at)
        return at_s is not None and at_s > known.decided_at_s

    def _timestamp_s(self) -> int | None:
        """Return a time that lets this decide: the server's answer is newer than its messages.

        They carry whole seconds only, and two things may happen within one.
        """
        at_s = _seconds(self._remote.status_at)
        if self._known is None:
            return at_s
        decided_at_s = self._known.decided_at_s
        if at_s is None or at_s <= decided_at_s:
            return decided_at_s + 1
        return at_s

    def _details(self, status: str) -> dict[str, Any]:
        remote = self._remote
        details: dict[str, Any] = {"message": f"{remote.status}, asked over REST"}
        if remote.files_in_error and status in FINISHED:
            details["errors"] = remote.files_in_error
            details["message"] = (
                f"{remote.status}: {remote.files_in_error} files in error, asked over REST"
            )
        if status in FINISHED and remote.available_files:
            # Without a link there is nothing to fetch, as in messages (protocol.md 0.4).
            details["downloadLink"] = self._link
        return details

    @property
    def _link(self) -> str:
        return _DOWNLOAD_PATH.format(self._remote.order_id)

    def _delivery(self, status: str, timestamp_s: int | None, **details: Any) -> Delivery:
        correlation_id = None if self._known is None else self._known.correlation_id
        if correlation_id is not None and correlation_id.startswith("#"):
            correlation_id = None  # known by its number only
        return answer_delivery(
            {
                "status": status,
                "orderId": self._remote.order_id,
                "correlationId": correlation_id,
                **details,
            },
            tenant=self._tenant,
            timestamp_s=timestamp_s,
        )


def answer_delivery(
    fields: dict[str, Any], *, tenant: str | None, timestamp_s: int | None = None
) -> Delivery:
    """Return an answer of the REST side as the message that would have said the same."""
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


def keep(journal: Journal, deliveries: list[Delivery]) -> bool:
    """Journal what is new; tell whether anything was."""
    if deliveries:
        journal.append(journal.open_session(REST_ANSWERS), deliveries)
    return bool(deliveries)


def _precedence(status: str) -> int:
    return PRECEDENCE.get(status, 0)  # type: ignore[call-overload, no-any-return]


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else max(int(at.timestamp()), 0)
