"""Which orders keep REGARDS from preparing others, because nobody has downloaded them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regards_nb.orders import OrderState
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import TrackerParts

#: REGARDS prepares so many sub-orders of a user until he downloads them (protocol.md 0.2).
_SUBORDERS_PER_USER = 2


def blocking_orders(
    parts: TrackerParts, sync: RestSync | None, *, auto_download: bool
) -> list[OrderState]:
    """Return all orders of the user that wait for a download, while an order is unfinished.

    REGARDS prepares at most two sub-orders per user (protocol.md 0.2): each of these orders may
    keep it from preparing others. With *auto_download*, only those whose download has failed.
    """
    states = _states_of_user(parts, sync)
    if all(state.finished for state in states):
        return []
    waiting = [s for s in states if s.waits_for_download and s.order_id not in parts.downloads]
    unheard = () if sync is None else sync.unheard
    waiting += [each for each in unheard if parts.frames.key_of(each.order_id or 0) is None]
    if auto_download:
        waiting = [state for state in waiting if is_left_to_user(parts, state)]
    return sorted(waiting, key=lambda state: state.order_id or 0)


def without_own(parts: TrackerParts, states: list[OrderState]) -> list[OrderState]:
    """Return the states without the downloads that the dispatcher begins in a moment."""
    return [
        replace(state, waits_for_download=False)
        if state.waits_for_download and not is_left_to_user(parts, state)
        else state
        for state in states
    ]


def is_left_to_user(parts: TrackerParts, state: OrderState) -> bool:
    """Return whether the automatic download of an order has failed."""
    return parts.errors.has(f"downloading order {state.order_id}")


def warn_of_blocking(parts: TrackerParts, sync: RestSync | None) -> None:
    """Warn before a third unfinished order: REGARDS stops after two sub-orders."""
    unfinished = [state for state in _states_of_user(parts, sync) if not state.finished]
    if len(unfinished) < _SUBORDERS_PER_USER:
        return
    named = blocking_orders(parts, sync, auto_download=False) or unfinished[:_SUBORDERS_PER_USER]
    numbers = ", ".join(str(state.order_id) for state in named)
    warnings.warn(
        f"REGARDS prepares at most {_SUBORDERS_PER_USER} sub-orders per user until they are "
        f"downloaded, and order {numbers} came before. Use wait(download=True) or "
        "auto_download=True, or call tracker.download()",
        stacklevel=3,
    )


def _states_of_user(parts: TrackerParts, sync: RestSync | None) -> list[OrderState]:
    not_ours = set() if sync is None else sync.not_ours
    return [state for state in parts.frames.states() if state.order_id not in not_ours]
