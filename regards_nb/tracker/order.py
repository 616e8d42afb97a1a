"""`Order`: one order of a tracker, with its newest state and its actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regards_nb.arguments import check_seconds_are_named
from regards_nb.events import OrderStatus
from regards_nb.waits import stopped_by_user

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from datetime import datetime
    from pathlib import Path

    import pandas as pd

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.tracker import OrderTracker

#: Ends of an order that its message explains.
_ENDS_WITH_REASON = frozenset(
    {OrderStatus.DENIED, OrderStatus.FAILED, OrderStatus.DONE_WITH_WARNING}
)


class Order:
    """One order of a tracker. Obtained by ``tracker[key]`` or ``tracker.submit(...)``.

    Each attribute is read anew from the journal, without any network. `await` the order to wait
    for its end.
    """

    def __init__(self, tracker: OrderTracker, key: OrderKey) -> None:
        self._tracker = tracker
        self.key = key

    def __repr__(self) -> str:
        state = self.state
        number = "no number" if state.order_id is None else state.order_id
        reason = state.reason if state.status in _ENDS_WITH_REASON else ""
        return f"<Order {state.correlation_id!r} ({number}): {state.status}{reason}>"

    def __await__(self) -> Generator[Any, None, Order]:
        yield from self._tracker.wait_async(self).__await__()
        return self

    @stopped_by_user("the order is not shown; tracking continues")
    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from regards_nb.display import mimebundle

        return mimebundle(self._tracker, [self.key], include, exclude)

    def _display_(self) -> Any:
        # marimo's name for it
        from regards_nb.display import marimo_value

        return marimo_value(self._tracker, [self.key])

    def widget(self) -> Any:
        """Return the live view of this order as a widget. See `OrderTracker.widget`."""
        from regards_nb.display import widget

        return widget(self._tracker, [self.key])

    @property
    def state(self) -> OrderState:
        """All that is known now, as one value."""
        return self._tracker.state(self.key)

    @property
    def correlation_id(self) -> str:
        """The client's own name for the order."""
        return self.state.correlation_id

    @property
    def order_id(self) -> int | None:
        """The number that REGARDS gave; None before, and for a denied order."""
        return self.state.order_id

    @property
    def status(self) -> str:
        """The status of the event that decides: DONE if there was one, else the latest."""
        return self.state.status

    @property
    def finished(self) -> bool:
        """Whether no further event is expected."""
        return self.state.finished

    @property
    def message(self) -> str | None:
        """The message of REGARDS."""
        return self.state.message

    @property
    def suborders_done(self) -> int:
        """Number of finished sub-orders."""
        return self.state.suborders_done

    @property
    def suborders_total(self) -> int | None:
        """Number of all sub-orders; None where the server does not tell."""
        return self.state.suborders_total

    @property
    def progress(self) -> float | None:
        """Finished sub-orders over all, 0 to 1; None where the server does not tell."""
        return self.state.progress

    @property
    def label(self) -> str | None:
        """The text given to ``submit(label=...)``, or the label that REGARDS shows."""
        return self.state.label

    @property
    def errors(self) -> int | None:
        """Number of files that REGARDS could not prepare in the last run; None without any."""
        return self.state.errors

    @property
    def error_type(self) -> str | None:
        """The server's error code."""
        return self.state.error_type

    @property
    def expires_at(self) -> datetime | None:
        """The time at which REGARDS removes the files; None where the server does not tell."""
        return self.state.expires_at

    @property
    def events(self) -> pd.DataFrame:
        """The rows of ``tracker.events`` of this order."""
        events, state = self._tracker.events, self.state
        mine = events["correlation_id"] == state.correlation_id
        if state.order_id is not None:
            numbered = (events["order_id"] == state.order_id).fillna(False)  # noqa: FBT003
            mine |= events["correlation_id"].isna() & numbered
        tenant = events["tenant"]
        return events[mine & (tenant.isna() if state.tenant is None else tenant == state.tenant)]

    @property
    def files(self) -> pd.DataFrame:
        """The rows of ``tracker.files`` of this order."""
        files, order_id = self._tracker.files, self.order_id
        return files[(files["order_id"] == (-1 if order_id is None else order_id)).fillna(False)]  # noqa: FBT003

    @check_seconds_are_named
    def wait(
        self, *, until: str = "finished", timeout_s: float | None = None, download: bool = False
    ) -> Order:
        """Wait for this order, with a progress display. See `OrderTracker.wait`."""
        self._tracker.wait(self, until=until, timeout_s=timeout_s, download=download)
        return self

    def download(
        self,
        *,
        directory: str | Path | None = None,
        extract: bool = True,
        again: bool = False,
        checksum: bool = False,
    ) -> list[Path]:
        """Download the ready files of this order. See `OrderTracker.download`."""
        return self._tracker.download(
            self, directory=directory, extract=extract, again=again, checksum=checksum
        )

    def pause(self) -> Order:
        """Have REGARDS prepare no more files. See `OrderTracker.pause`."""
        self._tracker.pause(self)
        return self

    def resume(self) -> Order:
        """Have REGARDS continue a paused order. See `OrderTracker.resume`."""
        self._tracker.resume(self)
        return self

    def retry(self) -> Order:
        """Have REGARDS prepare failed files again. See `OrderTracker.retry`."""
        self._tracker.retry(self)
        return self

    def restart(self, *, label: str | None = None) -> Order:
        """Order the same again; return the new order. See `OrderTracker.restart`."""
        (order,) = self._tracker.restart(self, label=label)
        return order

    def cancel(self) -> Order:
        """Stop the order and delete it on the server. See `OrderTracker.cancel`."""
        self._tracker.cancel(self)
        return self

    def delete(self) -> Order:
        """Delete an order that has ended or is paused. See `OrderTracker.delete`."""
        self._tracker.delete(self)
        return self

    def iter_parts(self, *, timeout_s: float | None = None) -> Iterator[list[Path]]:
        """Yield the files of each sub-order as it becomes ready, until the order has ended.

        Each sub-order is downloaded when it is ready, which lets REGARDS prepare the next
        (protocol.md 0.2).

        Parameters
        ----------
        timeout_s : float, optional
            Time limit for the wait for one sub-order, and for the next byte of its download, in
            seconds. A download of which bytes come may take longer.

        Yields
        ------
        list of pathlib.Path
            The new files. Those that were downloaded before come with the first ones.

        Raises
        ------
        WaitTimeoutError
            Within the time limit no sub-order was ready, no byte of its download came, or the
            download that runs already did not end.
        DownloadError
            As `OrderTracker.download`, also where the order has ended without any file.
        """
        return self._tracker.parts(self.key, timeout_s)
