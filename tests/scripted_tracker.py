"""A tracker that plays a script: the display's tests decide what it says, and hear what it does."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from regards_nb.consumer import Health, HealthState
from regards_nb.errors import NotAllowedError
from regards_nb.frames import States
from regards_nb.orders import FINISHED, OrderKey, OrderState
from regards_nb.tracker import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def order(name: str = "swath-a", order_id: int | None = 1, **known: Any) -> OrderState:
    """Return an order that was granted and nothing else, but for what is said."""
    status = known.get("status", "GRANTED")
    values: dict[str, Any] = {
        "key": OrderKey(known.pop("tenant", "project1"), name),
        "order_id": order_id,
        "status": status,
        "finished": status in FINISHED,
        "progress": None,
        "suborders_done": 0,
        "suborders_total": None,
        "errors": None,
        "error_type": None,
        "message": None,
        "download_link": None,
        "ready_row": 0,
        "errors_row": 0,
        "first_event": NOON,
        "last_event": NOON,
    }
    return OrderState(**{**values, **known})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedSnapshot:
    """What the tracker says at one moment."""

    orders: Sequence[OrderState] = ()
    health: Health = field(
        default_factory=lambda: Health(state=HealthState.CONSUMING, since=NOON, last_event=NOON)
    )
    obstacle: str = ""
    acting: tuple[str, ...] = ()
    background_errors: tuple[str, ...] = ()
    rejected: int = 0
    n_known: int = 0
    n_wanted: int = 0
    blocking: tuple[OrderState, ...] = ()
    can_download: bool = True
    line: tuple[OrderState, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "orders", States(self.orders))

    is_moving = Snapshot.is_moving


class ScriptedTracker:
    """Says what it was told, and remembers what it was asked to do."""

    def __init__(self, *orders: OrderState) -> None:
        self.version = 0
        self.asked: list[tuple[str, OrderKey]] = []
        #: Snapshots taken so far, and an error to raise instead of the next ones.
        self.looks = 0
        self.broken: Exception | None = None
        self._now = ScriptedSnapshot(orders=orders)
        self._changed = threading.Condition()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from regards_nb.display import mimebundle

        return mimebundle(self, None, include, exclude)

    def _display_(self) -> Any:
        from regards_nb.display import marimo_value

        return marimo_value(self)

    def tell(self, *orders: OrderState, **rest: Any) -> None:
        """Add or replace orders, or change health, problems and rejected."""
        with self._changed:
            known = {each.key: each for each in self._now.orders}
            known.update((each.key, each) for each in orders)
            self._now = replace(self._now, orders=tuple(known.values()), **rest)
            self.version += 1
            self._changed.notify_all()

    @property
    def health(self) -> Health:
        """What was told last."""
        return replace(self._now.health, reason=self._now.obstacle or self._now.health.reason)

    def snapshot(
        self, keys: Iterable[OrderKey] | Callable[[], Any] | None = None
    ) -> ScriptedSnapshot:
        """Return what was told last."""
        keys = keys() if callable(keys) else keys
        self.looks += 1
        if self.broken is not None:
            raise self.broken
        if keys is None:
            return self._now
        wanted = set(keys)
        shown = tuple(each for each in self._now.orders if each.key in wanted)
        return replace(self._now, orders=shown)

    def record(self, error: Exception) -> None:
        """Show an error as the tracker would."""
        self.tell(background_errors=(str(error),))

    def record_background_error(self, what: str, error: BaseException) -> None:
        """Show an error as the tracker would."""
        self.tell(background_errors=(f"{what}: {error}",))

    def wait(self, *, timeout_s: float) -> bool:
        """Wait for the next change."""
        with self._changed:
            return self._changed.wait(timeout_s)

    def download_soon(self, key: OrderKey) -> None:
        """Remember that a download was asked for."""
        self._ask("download", key)

    def cancel(self, key: OrderKey) -> None:
        """Remember that a cancellation was asked for."""
        self._ask("cancel", key)

    def pause(self, key: OrderKey) -> None:
        """Remember that a pause was asked for."""
        self._ask("pause", key)

    def resume(self, key: OrderKey) -> None:
        """Refuse, as a server does for an order that is not paused."""
        raise NotAllowedError(
            f"{key.correlation_id} is not paused", messages=["ORDER_MUST_BE_PAUSED"]
        )

    def retry(self, key: OrderKey) -> None:
        """Remember that a retry was asked for."""
        self._ask("retry", key)

    def _ask(self, what: str, key: OrderKey) -> None:
        with self._changed:
            self.asked.append((what, key))
            self.version += 1
            self._changed.notify_all()
