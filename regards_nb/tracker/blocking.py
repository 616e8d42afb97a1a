"""Finds the orders with files to download that keep REGARDS from preparing others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from regards_nb.events import OrderStatus
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

    #: A search through very many orders is repeated only after so many times its duration.
    pause_factor = 10.0

    def __init__(self, parts: TrackerParts, sync: RestSync | None) -> None:
        self._core = parts
        self._sync = sync
        self._found: list[OrderState] = []
        self._valid_until_s = 0.0

    def find(self, own: AutoDownload | None = None) -> list[OrderState]:
        """Return these orders by number; not those that *own* downloads in a moment."""
        began_s = time.monotonic()
        if began_s >= self._valid_until_s:
            self._found = sorted(self._search(), key=lambda state: state.order_id or 0)
            ended_s = time.monotonic()
            self._valid_until_s = ended_s + self.pause_factor * (ended_s - began_s)
        # A download may have begun or ended since the search.
        return [
            state
            for state in map(self._present, self._found)
            if state.waits_for_download
            and state.order_id not in self._core.downloads
            and (own is None or not own.will_try(state))
        ]

    def _present(self, state: OrderState) -> OrderState:
        key = self._core.frames.key_of(state.order_id or 0)
        return state if key is None else self._core.state(key)

    def _search(self) -> list[OrderState]:
        parts = self._core
        states = self._states_of_user()
        if all(state.finished for state in states):
            return []
        waiting = [
            state for state in states if state.waits_for_download and not parts.holders.of(state)
        ]
        without_message = () if self._sync is None else self._sync.without_message
        waiting += [
            each for each in without_message if parts.frames.key_of(each.order_id or 0) is None
        ]
        return waiting

    def _states_of_user(self) -> list[OrderState]:
        states = self._core.frames.states()
        not_ours = None if self._sync is None else self._sync.not_ours
        return [s for s in states if s.order_id not in not_ours] if not_ours else states

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
        unfinished = [state for state in self._states_of_user() if not state.finished]
        if len(unfinished) < SUBORDERS_PER_USER:
            return ""
        named = self.find() or unfinished[:SUBORDERS_PER_USER]
        numbers = ", ".join(str(state.order_id) for state in named)
        orders = "order" if len(named) == 1 else "orders"
        return (
            f"REGARDS prepares at most {SUBORDERS_PER_USER} sub-orders per user until they are "
            f"downloaded; before this one came {orders} {numbers}. Use wait(download=True) or "
            "auto_download=True, or call tracker.download()"
        )


def advice_for(blocking: Sequence[OrderState], call: str) -> str:
    """Return which orders wait for a download, and what to do; *call* is the other way."""
    numbers = ", ".join(str(state.order_id) for state in blocking)
    wait = "orders {} wait" if len(blocking) > 1 else "order {} waits"
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


def without_own(states: Iterable[OrderState], own: AutoDownload | None) -> list[OrderState]:
    """Return the states without the downloads that *own* begins in a moment."""
    return [
        replaced(state, waits_for_download=False, lacks_names=False)
        if own is not None and state.to_download and own.will_try(state)
        else state
        for state in states
    ]
