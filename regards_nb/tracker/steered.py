"""What a tracker lets one do to orders on the server, one or a selection of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

from regards_nb.consumer import HealthState
from regards_nb.errors import SettingsError
from regards_nb.orders import OrderKey
from regards_nb.tracker.order import Order
from regards_nb.tracker.selection import keys_in
from regards_nb.tracker.steering import on_each

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.doctor import Report
    from regards_nb.tracker.asking import Asking
    from regards_nb.tracker.order_tracker import OrderTracker
    from regards_nb.tracker.selection import Selection
    from regards_nb.tracker.sources import Sources
    from regards_nb.tracker.steering import Steering
    from regards_nb.tracker.works import Works


class Steered:
    """The actions of `OrderTracker`.

    Each takes a correlation id, a number, an `Order`, several of these, or rows of
    ``tracker.orders``, as in ``tracker.retry(tracker.orders.query("status == 'FAILED'"))``. It
    returns when the server has done it, and raises NotAllowedError where the server refuses, with
    its code in words. An `OrderKey`, which is what the buttons of the display hand over, is only
    queued; what goes wrong is then shown, and raised by the next call.
    """

    _works: Works
    _steering: Steering
    _asking: Asking | None
    _sources: Sources

    @classmethod
    def from_profile(cls, name: str | None = None, **options: Any) -> Self:
        """Make a tracker from a profile in the settings file.

        Parameters
        ----------
        name : str, optional
            The profile; by default that of ``REGARDS_PROFILE``, else the only one there is.
        **options
            Of `OrderTracker`, instead of what the profile says.

        Raises
        ------
        SettingsError
            What is missing or wrong, with the file and the line.
        """
        from regards_nb.settings import tracker_from_profile

        return tracker_from_profile(cls, name, options)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Make a tracker from the environment variables ``REGARDS_...`` alone.

        Raises
        ------
        SettingsError
            What is missing or wrong.
        """
        from regards_nb.settings import tracker_from_env

        return tracker_from_env(cls, options)

    def doctor(self) -> Report:
        """Check what this tracker depends on: connections, rights, places.

        Returns
        -------
        regards_nb.doctor.Report
            Prints as one line for each check: ok, or what to ask of whom.
        """
        from regards_nb.doctor import examine

        sources = self._sources
        return examine(
            parameters=sources.parameters,
            queue=sources.queue,
            is_read=sources.health.state is HealthState.CONSUMING,
            client=None if self._asking is None else self._asking.client,
            journal=self._works.journal,
            workspace=self._works.downloads.folder(0).parent,
        )

    def pause(self, orders: Selection | OrderKey) -> list[Order]:
        """Let REGARDS stop preparing files; what is ready stays ready."""
        return self._steer("pause", orders)

    def resume(self, orders: Selection | OrderKey) -> list[Order]:
        """Let paused orders go on."""
        return self._steer("resume", orders)

    def retry(self, orders: Selection | OrderKey) -> list[Order]:
        """Let REGARDS try again what failed in orders that have ended."""
        return self._steer("retry", orders)

    def restart(self, orders: Selection | OrderKey, *, label: str | None = None) -> list[Order]:
        """Order the same again; return the new orders."""
        return self._steer("restart", orders, label=label)

    def cancel(self, orders: Selection | OrderKey) -> list[Order]:
        """Stop orders and delete them on the server. What was downloaded stays.

        REGARDS publishes no message for it (protocol.md 1.6); the tracker notes it by itself.
        """
        return self._steer("cancel", orders)

    def delete(self, orders: Selection | OrderKey) -> list[Order]:
        """Delete orders that have ended or are paused. What was downloaded stays."""
        return self._steer("delete", orders)

    def sync(self, *, limit: int = 200) -> list[Order]:
        """Bring all orders up to date over REST, and take in those that were made elsewhere.

        Parameters
        ----------
        limit : int
            How many orders are asked for, the newest first; they come in pages of 100.

        Returns
        -------
        list of Order
            Those that this tracker did not know.

        Raises
        ------
        ServiceError
            The server cannot be asked.
        """
        if self._asking is None:
            raise SettingsError(
                "sync() needs the REST side: OrderTracker(..., client=RegardsClient(...))"
            )
        return self._as_orders(self._asking.take_in(limit=limit))

    def _steer(self, action: str, orders: Selection | OrderKey, **details: Any) -> list[Order]:
        if isinstance(orders, OrderKey):
            self._steering.soon(action, orders)
            return self._as_orders([orders])
        keys = keys_in(orders, self._works.frames.key_of)
        return self._as_orders(on_each(keys, partial(self._steering.act, action, **details)))

    def _as_orders(self, keys: Iterable[OrderKey]) -> list[Order]:
        return [Order(cast("OrderTracker", self), key) for key in keys]
