"""One wait: for which orders, until what, how long, and how it ends."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from regards_nb.errors import SettingsError, StoppedWaiting, WaitTimeoutError
from regards_nb.events import OrderStatus
from regards_nb.tracker.selection import names_in
from regards_nb.tracker.watch import POLL_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.selection import Name
    from regards_nb.tracker.works import Works


@contextmanager
def stopped_by_user() -> Iterator[None]:
    """Let Ctrl-C and the stop button end a wait without a page of traceback.

    Raises
    ------
    StoppedWaiting
        In place of KeyboardInterrupt, of which it is one.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedWaiting from None


class Wait:
    """What one call of ``wait()`` waits for.

    Parameters
    ----------
    works : Works
    selections : sequence
        Whatever `names_in` understands; none means all orders that are unfinished now.
    until : {"finished", "part"}
    timeout_s : float or None
    """

    def __init__(
        self, works: Works, selections: Sequence[Any], *, until: str, timeout_s: float | None
    ) -> None:
        if until not in {"finished", "part"}:
            raise SettingsError(f'until must be "finished" or "part", not {until!r}')
        self._works = works
        self._until = until
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._wanted: list[Name] = (
            list(dict.fromkeys(names_in(selections)))
            if selections
            else [state.key for state in works.states() if not state.finished]
        )
        self._states: list[OrderState] = []

    def found(self) -> list[OrderKey]:
        """Return the orders waited for, those of them that have shown up."""
        found = (self._works.frames.key_of(key) for key in self._wanted)
        return [key for key in found if key is not None]

    def sit_out(self, view: Any) -> list[OrderState]:
        """Block until it is over, keeping a view up to date; return the orders waited for."""
        seen = -1
        while not self.is_over():
            view.refresh(note=self.note())
            seen = self._works.bell.wait(seen, POLL_S)
        return self._states

    async def sit_out_async(self, view: Any) -> None:
        """Wait until it is over without blocking the event loop."""
        while not self.is_over():
            view.refresh(note=self.note())
            # A Condition would block the loop; a journal look-up ten times a second does not.
            await asyncio.sleep(0.1)

    def is_over(self) -> bool:
        """Tell whether all is as wanted.

        Raises
        ------
        WaitTimeoutError
            The limit is reached.
        TrackingError
            Something went wrong in the background.
        """
        self._states = self._works.states(self.found())
        if len(self._states) == len(self._wanted) and all(map(self._suffices, self._states)):
            return True
        self._works.problems.raise_new()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise WaitTimeoutError(
                f"after {self._timeout_s:g} s, {self.note()}. They go on and are still tracked: "
                "call wait() again, or look at tracker.orders"
            )
        return False

    def _suffices(self, state: OrderState) -> bool:
        return state.finished or (self._until == "part" and state.waits_for_download)

    def note(self) -> str:
        """Say what is still missing."""
        open_orders = [state for state in self._states if not self._suffices(state)]
        unseen = len(self._wanted) - len(self._states)
        note = f"{len(open_orders) + unseen} of {len(self._wanted)} orders are not there yet"
        if unseen:
            note += f", {unseen} of them without any event"
        waiting = [str(state.order_id) for state in open_orders if state.waits_for_download]
        if waiting:
            note += (
                f"; REGARDS waits for you to download order {', '.join(waiting)}: "
                "tracker.download() or auto_download=True"
            )
        paused = [str(s.order_id) for s in open_orders if s.status == OrderStatus.PAUSED]
        if paused:
            note += f"; order {', '.join(paused)} is paused: tracker.resume()"
        return note

    def result(self) -> pd.DataFrame:
        """Return the rows of the orders waited for."""
        return self._works.frames.orders_of(self._wanted)
