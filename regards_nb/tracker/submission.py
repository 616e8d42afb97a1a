"""Ordering once: written down before it is sent, and asked about where no answer came.

REGARDS has no look-up by correlation id (protocol.md 0.8). So the journal holds the request and
the newest order number before it; an order that is newer, and that nobody here knows, is it.
"""

from __future__ import annotations

import json
import time
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from regards_nb.errors import (
    ServiceError,
    ServiceUnreachableError,
    SettingsError,
    WaitTimeoutError,
)
from regards_nb.tracker.news import answer_delivery, keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.orders import OrderKey
    from regards_nb.tracker.asking import Asking
    from regards_nb.tracker.requests import Request
    from regards_nb.tracker.works import Works

#: The gateway gives up after 60 s (protocol.md 1.1); what REGARDS has not made of a request by
#: then, it does not make any more.
IN_DOUBT_S = 60.0
#: How long an answer over AMQP is waited for.
ANSWER_S = 60.0


class Submission:
    """Sends requests, each at most once.

    Parameters
    ----------
    works : Works
    asking : Asking or None
        The REST side, which is used where there is one.
    publish : callable or None
        Publishes ``(body, tenant, correlation_id)`` to the broker.
    tenant : str or None
    """

    def __init__(
        self,
        works: Works,
        asking: Asking | None,
        publish: Callable[[bytes, str, str], None] | None,
        tenant: str | None,
        *,
        in_doubt_s: float = IN_DOUBT_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._works = works
        self._asking = asking
        self._publish = publish
        self._tenant = tenant if asking is None else asking.tenant
        self._in_doubt_s = in_doubt_s
        self._answer_s = answer_s

    def submit(self, request: Request) -> OrderKey:
        """Order, unless it was ordered under this name already; return its key.

        Raises
        ------
        SettingsError
            REGARDS would deny it; or the name stands for other files already.
        ServiceError, BrokerError
            There is no order, or nobody knows: the text says which.
        """
        request.check()
        earlier = self._earlier(request)
        known = self._works.frames.key_of(request.correlation_id)
        if earlier is not None and known is not None:
            return known
        if self._asking is not None:
            if not (earlier is not None and self._find(self._asking.client, request, earlier)):
                self._send_over_rest(self._asking.client, request)
        elif self._publish is not None:
            self._send_over_amqp(self._publish, request, sent_before=earlier is not None)
        self._works.bell.ring()
        found = self._works.frames.key_of(request.correlation_id)
        assert found is not None  # noqa: S101 - its answer was journalled
        return found

    def _earlier(self, request: Request) -> dict[str, Any] | None:
        """Return an earlier request under this name, if it was sent."""
        row = self._works.journal.request(self._tenant, request.correlation_id)
        if row is None:
            return None
        body, sent_at_us = row
        earlier: dict[str, Any] = json.loads(body) | {"sent_at_us": sent_at_us}
        if not earlier.get("sent", True):
            return None
        if not request.orders_the_same_as(earlier):
            raise SettingsError(
                f"correlation_id {request.correlation_id!r} was used for another request already: "
                f"{earlier.get('queries')!r:.200}. Choose another one, or leave it out"
            )
        return earlier

    def _save(self, request: Request, *, sent: bool, newest_before: int = 0) -> None:
        self._works.journal.save_request(
            self._tenant,
            request.correlation_id,
            label=request.label,
            body=request.saved(sent=sent, newest_before=newest_before),
        )

    # -- over REST --

    def _send_over_rest(self, client: RegardsClient, request: Request) -> None:
        newest = next(client.iter_orders(page_size=1), None)
        newest_before = 0 if newest is None else newest.order_id
        self._save(request, sent=True, newest_before=newest_before)
        try:
            answer = client.apply(
                request.queries,
                data_types=request.data_types,
                filename_regexp=request.filename_regexp,
                correlation_id=request.correlation_id,
            )
        except ServiceError as exc:
            if _surely_not_ordered(exc):
                self._save(request, sent=False)
                raise
            if self._find(client, request, {"newest_before": newest_before}):
                return
            raise ServiceUnreachableError(
                f"no answer to request {request.correlation_id!r}, so nobody knows yet whether it "
                f"was ordered ({exc}). Submit it again with the same correlation_id: REGARDS is "
                "then asked first, and nothing is ordered twice",
                status_code=exc.status_code,
            ) from exc
        self._keep_answer(
            request,
            status=answer.status,
            orderId=answer.order_id,
            message=answer.message,
            errorType=answer.error_type,
        )

    def _find(self, client: RegardsClient, request: Request, earlier: dict[str, Any]) -> bool:
        """Look for the order of a request that had no answer; tell whether it is known now.

        Raises
        ------
        ServiceError
            It is too early to tell, or several orders could be it.
        """
        if self._works.frames.key_of(request.correlation_id) is not None:
            return True
        newest_before = earlier.get("newest_before") or 0
        candidates = self._unknown_after(client, newest_before)
        if len(candidates) > 1:
            numbers = ", ".join(str(order.order_id) for order in candidates)
            raise ServiceError(
                f"request {request.correlation_id!r} had no answer, and each of the orders "
                f"{numbers} could be it. Look at client.orders(); sync() takes them in"
            )
        for order in candidates:
            self._keep_answer(request, status="GRANTED", orderId=order.order_id)
            return True
        age_s = time.time() - earlier.get("sent_at_us", 0) / 1e6
        if 0 <= age_s < self._in_doubt_s:
            raise ServiceUnreachableError(
                f"request {request.correlation_id!r} was sent {age_s:.0f} s ago and had no "
                "answer; REGARDS may still be making the order. Submit it again in "
                f"{self._in_doubt_s - age_s:.0f} s"
            )
        return False

    def _unknown_after(self, client: RegardsClient, newest_before: int) -> list[RemoteOrder]:
        newer = takewhile(lambda order: order.order_id > newest_before, client.iter_orders())
        return [o for o in newer if self._works.frames.key_of(o.order_id) is None]

    def _keep_answer(self, request: Request, **fields: Any) -> None:
        # An order made over REST gets no GRANTED over AMQP (protocol.md 1.6); its answer says
        # the same, so it is journalled as a message. Without a time: the server's clock decides
        # between events, and ours would not compare with it.
        delivery = answer_delivery(
            fields | {"correlationId": request.correlation_id}, tenant=self._tenant
        )
        keep(self._works.journal, [delivery])

    # -- over AMQP --

    def _send_over_amqp(
        self,
        publish: Callable[[bytes, str, str], None],
        request: Request,
        *,
        sent_before: bool,
    ) -> None:
        if request.user is None or self._tenant is None:
            raise SettingsError(
                "ordering over AMQP needs user=... (your REGARDS account) and the tracker's "
                "tenant=...; or give the tracker a client=RegardsClient(...) to order over REST"
            )
        if not sent_before:
            self._save(request, sent=True)
            try:
                body = json.dumps(request.body()).encode()
                publish(body, self._tenant, request.correlation_id)
            except BaseException:
                self._save(request, sent=False)
                raise
        self._wait_for_answer(request.correlation_id)

    def _wait_for_answer(self, correlation_id: str) -> None:
        deadline_s = time.monotonic() + self._answer_s
        seen = -1
        while self._works.frames.key_of(correlation_id) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeoutError(
                    f"RabbitMQ took request {correlation_id!r}, but REGARDS has not answered "
                    f"within {self._answer_s:g} s. It does not answer at all where the tenant is "
                    "wrong: check it, and ask the administrator. tracker.wait() with this "
                    "correlation id goes on waiting; submitting it again orders nothing twice"
                )
            seen = self._works.bell.wait(seen, min(left_s, 0.5))


def _surely_not_ordered(error: ServiceError) -> bool:
    """Tell whether the request was refused, or never arrived."""
    if isinstance(error, ServiceUnreachableError) and error.status_code is None:
        return not error.in_work
    return error.status_code is not None and 400 <= error.status_code < 500
