"""How urgent each order is, and what a table needs of all orders, shown or not."""

from __future__ import annotations

import math
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from regards_nb.events import OrderStatus
from regards_nb.frames import States
from regards_nb.orders import GONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.orders import OrderState


class Severity(StrEnum):
    """The urgency of an order for its user, the most urgent first."""

    #: REGARDS prepares no further part until the user downloads.
    WAITS = "waits"
    #: Ended without files.
    FAILED = "failed"
    #: Ended with some of the files.
    INCOMPLETE = "incomplete"
    RUNNING = "running"
    DONE = "done"
    #: Deleted or expired on the server, or the order of another user.
    GONE = "gone"


RANK = {severity: rank for rank, severity in enumerate(Severity)}

#: What a table needs of each order, shown or not.
_FACTS = np.dtype([
    # the position in `Severity`
    ("severity", "i1"),
    ("number", "i8"),
    ("is_finished", "?"),
    ("is_paused", "?"),
    ("is_downloading", "?"),
    ("is_refused", "?"),
    # the fraction that is done, at most 1; NaN: unknown
    ("fraction", "f8"),
    # in seconds since 1970
    ("first_event", "f8"),
    ("last_event", "f8"),
    # sub-orders; both 0 where their number is not known
    ("done", "i8"),
    ("total", "i8"),
    # positions in the texts of `OrderFacts`
    ("status", "i4"),
    ("tenant", "i4"),
])  # fmt: skip
_LAST = np.iinfo("i8").max


class OrderFacts:
    """Keeps what a view needs of each order, and computes it again only for changed orders.

    There may be a hundred thousand orders, of which a few change between two repaints.
    """

    def __init__(self) -> None:
        #: The orders of the last call and their facts: Ctrl-C cannot leave one without the other.
        self._last: tuple[States, np.ndarray[Any, Any]] = States(), np.empty(0, _FACTS)
        #: The position of each status and tenant.
        self._positions: dict[str | None, int] = {}
        #: What a filter searches in an order, and its correlation id; made by the first filter.
        self._searched: dict[int, tuple[str, str]] = {}

    def of(self, orders: States) -> np.ndarray[Any, Any]:
        """Return the facts of these orders, and forget those of others."""
        before, known = self._last
        new, n = orders.new_since(before), len(orders)
        facts = np.empty(n, _FACTS)
        facts[: len(known)] = known[:n]
        facts[new] = np.fromiter(map(self._facts_of, orders.take(new)), _FACTS, len(new))
        for position in new:
            self._searched.pop(position, None)
        self._last = orders, facts
        return facts

    def _facts_of(self, order: OrderState) -> tuple[object, ...]:
        is_over = order.finished and not order.downloading
        # It is 1 for an order that has ended in any way.
        fraction = 1.0 if is_over else fraction_of(order)
        return (
            RANK[severity_of(order)],
            _LAST if order.order_id is None else order.order_id,
            order.finished,
            order.status == OrderStatus.PAUSED,
            order.downloading,
            order.is_refused,
            math.nan if fraction is None else fraction,
            order.first_event.timestamp(),
            order.last_event.timestamp(),
            order.suborders_done if order.suborders_total else 0,
            order.suborders_total or 0,
            self._positions.setdefault(order.status, len(self._positions)),
            self._positions.setdefault(order.tenant, len(self._positions)),
        )

    def match(self, words: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return for each order whether it has all words of a filter."""
        orders, _ = self._last
        positions = range(len(orders))
        missing = [position for position in positions if position not in self._searched]
        for position, order in zip(missing, orders.take(missing), strict=True):
            self._searched[position] = _searched_text(order), order.correlation_id.casefold()
        # A correlation id behind a label must match as a whole: generated ids match by chance.
        searched = map(self._searched.__getitem__, positions)
        return np.fromiter((all(w in text or w == n for w in words) for text, n in searched), bool)

    def statuses(self, positions: np.ndarray[Any, Any]) -> Counter[str]:
        """Count the statuses of some orders, by the positions of their texts."""
        counts = np.bincount(positions, minlength=len(self._positions)).tolist()
        return Counter({str(t): n for t, n in zip(self._positions, counts, strict=True) if n})


def severity_of(order: OrderState) -> Severity:
    """Return how much the order needs its user."""
    if order.is_refused:
        return Severity.GONE
    if order.waits_for_download:
        return Severity.WAITS
    if not order.finished:
        return Severity.RUNNING
    if order.status in GONE:
        lacks_files = 0 < order.downloaded_files < (order.files_total or 0)
        is_lost = order.status == OrderStatus.EXPIRED and lacks_files
        return Severity.INCOMPLETE if is_lost else Severity.GONE
    if order.status == OrderStatus.DONE:
        return Severity.INCOMPLETE if order.lacks_files else Severity.DONE
    has_files = had_files(order) or order.elsewhere_files
    return Severity.INCOMPLETE if has_files else Severity.FAILED


def had_files(order: OrderState) -> bool:
    """Return whether REGARDS prepared files of the order.

    FAILED with a link is a partial success (protocol.md 0.4), but not with a total of 0 sub-orders:
    the filters have then left no file.
    """
    return bool(order.download_link) and order.suborders_total != 0


def fraction_of(order: OrderState) -> float | None:
    """Return the length of the bar, by the counts beside it; None: unknown."""
    if order.suborders_total:
        return min(1.0, order.suborders_done / order.suborders_total)
    return 1.0 if order.status == OrderStatus.DONE else order.progress


def _searched_text(order: OrderState) -> str:
    searched = (
        order.label or order.correlation_id,
        f"#{order.order_id}",
        order.tenant,
        order.status,
        severity_of(order),
        order.error_type,
        order.message,
    )
    return " ".join(filter(None, searched)).casefold()
