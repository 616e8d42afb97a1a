"""What the display reads: the shape of a tracker and of its snapshots.

The display pulls. A snapshot is immutable, so that rendering needs no lock, and one snapshot
feeds HTML and text alike. :class:`regards_nb.OrderTracker` has this shape; so has whatever a test
plays in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from regards_nb.consumer import Health
    from regards_nb.orders import OrderKey, OrderState

    #: Says which orders a view shows; None means all. Asked anew for each picture, because an
    #: order that is waited for may show up later.
    Wanted = Callable[[], Iterable[OrderKey] | None]


class SnapshotView(Protocol):
    """Everything the display shows, at one moment."""

    @property
    def orders(self) -> Sequence[OrderState]:
        """The orders, in any order."""

    @property
    def health(self) -> Health:
        """The connection to RabbitMQ."""

    @property
    def background_errors(self) -> Sequence[str]:
        """What went wrong in the background, oldest first."""

    @property
    def rejected(self) -> int:
        """Messages that could not be understood."""

    @property
    def token_ends_at(self) -> datetime | None:
        """When the REST login ends and is renewed; None where there is none, or no end."""


class TrackerView(Protocol):
    """What the display asks of a tracker. The last five return at once: they only queue."""

    @property
    def version(self) -> int:
        """A number that grows when anything changed; cheap."""

    def snapshot(self, keys: Iterable[OrderKey] | None = None) -> SnapshotView:
        """Return the state of these orders, or of all."""

    def download_soon(self, key: OrderKey) -> object:
        """Fetch what is ready."""

    def cancel(self, key: OrderKey) -> object:
        """Stop and delete the order."""

    def pause(self, key: OrderKey) -> object:
        """Pause the order."""

    def resume(self, key: OrderKey) -> object:
        """Resume a paused order."""

    def retry(self, key: OrderKey) -> object:
        """Try the failed files again."""
