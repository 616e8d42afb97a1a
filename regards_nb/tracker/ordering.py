"""How a tracker orders: `submit`, and what it checks first."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Literal, cast, overload

from regards_nb.tracker.order import Order
from regards_nb.tracker.requests import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.tracker.order_tracker import OrderTracker
    from regards_nb.tracker.submission import Submission


class Ordering:
    """The ordering side of `OrderTracker`."""

    _submission: Submission

    @overload
    def submit(
        self,
        queries: str | Sequence[str],
        *,
        data_types: Sequence[str] | None = None,
        filename_regexp: str | None = None,
        correlation_id: str | None = None,
        label: str | None = None,
        user: str | None = None,
        dry_run: Literal[False] = False,
    ) -> Order: ...

    @overload
    def submit(
        self,
        queries: str | Sequence[str],
        *,
        data_types: Sequence[str] | None = None,
        filename_regexp: str | None = None,
        correlation_id: str | None = None,
        label: str | None = None,
        user: str | None = None,
        dry_run: Literal[True],
    ) -> Request: ...

    def submit(
        self,
        queries: str | Sequence[str],
        *,
        data_types: Sequence[str] | None = None,
        filename_regexp: str | None = None,
        correlation_id: str | None = None,
        label: str | None = None,
        user: str | None = None,
        dry_run: bool = False,
    ) -> Order | Request:
        """Order files: over REST where there is a client, else over AMQP.

        Parameters
        ----------
        queries : str or sequence of str
            Lucene queries of the REGARDS catalogue; `regards_nb.queries` writes the usual ones.
        data_types : sequence of {"RAWDATA", "QUICKLOOK"}, optional
        filename_regexp : str, optional
            Order only the files whose names match.
        correlation_id : str, optional
            Your own name for the order, at most 255 characters; made up by default. Submitting
            the same name again orders nothing twice: it returns the order there is. Where a
            request had no answer, REGARDS is asked what became of it.
        label : str, optional
            For your eyes; kept in the journal.
        user : str, optional
            Your REGARDS account; needed over AMQP only.
        dry_run : bool, default False
            Check the request and return it without sending anything.

        Returns
        -------
        Order
            Also when REGARDS denies it: its status and message say so.

        Raises
        ------
        SettingsError
            REGARDS would deny the request; the text says why. Nothing was sent.
        ServiceError, BrokerError
            It could not be sent, or there was no answer.
        WaitTimeoutError
            Over AMQP: taken by the broker, not answered by REGARDS.
        """
        request = Request(
            queries=[queries] if isinstance(queries, str) else list(queries),
            data_types=data_types,
            filename_regexp=filename_regexp,
            correlation_id=f"nb-{uuid.uuid4()}" if correlation_id is None else correlation_id,
            label=label,
            user=user,
        )
        request.check()
        if dry_run:
            return request
        return Order(cast("OrderTracker", self), self._submission.submit(request))
