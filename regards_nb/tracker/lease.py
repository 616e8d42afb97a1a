"""Wait for the lease of an order or of the submissions, and say which process holds it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from regards_nb.errors import DownloadError
from regards_nb.journal import order_lease

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from regards_nb.journal import Holder, Journal

#: A process that waits for a lease looks so often whether it is free.
LOOK_S = 0.5


class OrderHeldError(DownloadError):
    """Another process downloads the order, and the request was not to wait for it."""


@contextmanager
def held(journal: Journal, name: str, waiting: Callable[[Holder], object]) -> Iterator[None]:
    """Hold a lease during the block.

    *waiting* is called with the process that has the lease, again and again; it waits for a moment,
    or raises an error.
    """
    while (holder := journal.leases.holder(name) or journal.leases.take(name)) is not None:
        waiting(holder)
    try:
        yield
    finally:
        journal.leases.release(name)


@contextmanager
def held_order(
    journal: Journal,
    tenant: str | None,
    order_id: int,
    *,
    stop: threading.Event,
    waiting: Callable[[Holder], object] | None,
) -> Iterator[None]:
    """Hold the lease of an order during the block; *stop* ends the wait for it.

    *waiting* is called with the process that has the lease, while it is waited for. Without it,
    OrderHeldError is raised.
    """

    def wait(holder: Holder) -> None:
        if waiting is None:
            raise OrderHeldError(f"{holder} is downloading order {order_id}")
        waiting(holder)
        if stop.wait(LOOK_S):
            raise DownloadError(
                f"the download of order {order_id} was stopped while {holder} was downloading it"
            )

    with held(journal, order_lease(tenant, order_id), wait):
        yield
