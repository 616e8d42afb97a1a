"""Finds the orders with files to download that keep REGARDS from preparing others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regards_nb.events import OrderStatus
from regards_nb.frames import States
from regards_nb.orders import replaced
from regards_nb.text import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.dispatcher import AutoDownload
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import TrackerParts

#: REGARDS prepares so many sub-orders of a user until he downloads them (protocol.md 0.2).
SUBORDERS_PER_USER = 2
_MOST_NAMED = 5


class BlockingOrders:
    """Finds all orders of the user that wait for a download, while an order is unfinished.

    Each of them may keep REGARDS from preparing others (protocol.md 0.2). *sync* knows which orders
    are not the user's, and orders that no message has named.
    """

    def __init__(self, parts: TrackerParts, sync: RestSync | None) -> None:
        self._core = parts
        self._sync = sync

    def find(self, own: AutoDownload | None = None) -> States:
        """Return these orders by number; not those that *own* downloads in a moment."""
        parts, states = self._core, self._states_of_user()
        if not states.without("finished"):
            return States()
        without_message = () if self._sync is None else self._sync.without_message
        waiting = states.where("waits_for_download") + [
            state
            for state in without_message
            if parts.frames.key_of(state.order_id or 0) is None
            and state.order_id not in parts.downloads
        ]
        waiting = without_own(parts.holders.without_held(waiting), own)
        return waiting.where("waits_for_download").sorted("order_id")

    def _states_of_user(self) -> States:
        not_ours = () if self._sync is None else self._sync.not_ours
        return self._core.states().without("order_id", not_ours)

    def unfinished(self, keys: Iterable[OrderKey], *, is_running: bool) -> str:
        """Return which of some orders REGARDS still prepares, and what keeps it; empty if none."""
        running = [state for state in self._core.states(keys) if not state.finished]
        if not running:
            return ""
        numbers = [str(state.order_id) for state in running]
        orders, them = ("orders", "them") if len(running) > 1 else ("order", "it")
        text = (
            f"REGARDS has not finished {orders} {listed(numbers, most=_MOST_NAMED)}: "
            f"{'' if is_running else 'after tracker.start(), '}tracker.wait("
            f"{', '.join(numbers[:_MOST_NAMED])}, "
            f"download=True) waits for {them} and downloads the rest"
        )
        if paused := advice_for_paused(running):
            text += f"; {paused}"
        blocking = [state for state in self.find() if state not in running]
        return f"{text}; {advice_for(blocking, 'that wait')}" if blocking else text

    def take_in(self, keys: Iterable[object]) -> None:
        """Journal those of these orders that only REST knows and *keys* name by number."""
        each = [n for key in keys for n in (key if isinstance(key, (list, tuple)) else [key])]
        named = {number for number in each if isinstance(number, int)}
        self.journal_unknown(state for state in self.find() if state.order_id in named)

    def journal_unknown(self, states: Iterable[OrderState]) -> None:
        """Journal those of some orders that only REST knows, so that they have a key here."""
        for state in states:
            if self._sync is not None and self._core.key_of(state.order_id or 0) is None:
                self._sync.look_up(state.order_id or 0)

    def advice(self) -> str:
        """Return what to do about these orders, for the end of a sentence; empty without any."""
        blocking = self.find()
        return f"; {advice_for(blocking, 'wait(download=True)')}" if blocking else ""

    def before_third(self) -> str:
        """Return a warning of a third unfinished order: REGARDS stops after two sub-orders."""
        unfinished = self._states_of_user().without("finished")
        if len(unfinished) < SUBORDERS_PER_USER:
            return ""
        named = self.find()[:_MOST_NAMED] or unfinished[:SUBORDERS_PER_USER]
        numbers = ", ".join(str(state.order_id) for state in named)
        orders = "order" if len(named) == 1 else "orders"
        return (
            f"REGARDS prepares at most {SUBORDERS_PER_USER} sub-orders per user until they are "
            f"downloaded; before this one came {orders} {numbers}. Use wait(download=True) or "
            "auto_download=True, or call tracker.download()"
        )


def advice_for(blocking: Sequence[OrderState], call: str) -> str:
    """Return which orders wait for a download, and what to do; *call* is the other way."""
    numbers = ", ".join(str(state.order_id) for state in blocking[:_MOST_NAMED])
    wait = "orders {} wait" if len(blocking) > 1 else "order {} waits"
    if len(blocking) > _MOST_NAMED:
        wait = wait.format(f"{numbers} and {len(blocking) - _MOST_NAMED:,} more")
        numbers = ""  # all
    return (
        f"REGARDS prepares at most two sub-orders per user, and {wait.format(numbers)} for a "
        f"download: tracker.download({numbers}), or {call}"
    )


def advice_for_paused(states: Iterable[OrderState]) -> str:
    """Return which of some orders are paused, and what to do; empty if none is."""
    paused = [str(state.order_id) for state in states if state.status == OrderStatus.PAUSED]
    if not paused:
        return ""
    numbers, are = ", ".join(paused), "orders {} are" if len(paused) > 1 else "order {} is"
    call = f"[{numbers}]" if len(paused) > 1 else numbers
    return f"{are.format(numbers)} paused: tracker.resume({call})"


def without_own(states: States, own: AutoDownload | None) -> States:
    """Return the states without the downloads that *own* begins in a moment."""
    if own is None:
        return states

    def without(state: OrderState) -> OrderState:
        is_own = own.will_try(state)
        return replaced(state, waits_for_download=False, lacks_names=False) if is_own else state

    return states.changed(without, "to_download")
