"""One call of ``wait()``: which orders, until when, how long, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from regards_nb.errors import SettingsError, StoppedWaiting, WaitTimeoutError
from regards_nb.events import OrderStatus
from regards_nb.tracker.selection import names_in
from regards_nb.tracker.shared import POLL_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.selection import Name
    from regards_nb.tracker.shared import TrackerParts, View


@contextmanager
def stopped_by_user() -> Iterator[None]:
    """End a wait at Ctrl-C or the stop button with one line instead of a traceback.

    In a kernel, Python's own handler of SIGINT is installed meanwhile: kernels (xeus-python) and
    libraries replace it, and then the stop button ends the kernel or does nothing.

    Raises
    ------
    StoppedWaiting
        In place of KeyboardInterrupt; it is a subclass.
    """
    replaced: Any = None
    if _in_kernel() and threading.current_thread() is threading.main_thread():
        replaced = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedWaiting from None
    finally:
        # None: the handler was not installed from Python, and cannot be installed again.
        if replaced is not None:
            signal.signal(signal.SIGINT, replaced)


def _in_kernel() -> bool:
    """Return whether a Jupyter kernel runs this code."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return getattr(get_ipython(), "kernel", None) is not None


class Wait:
    """The orders of one call of ``wait()``, and the condition that ends it.

    Parameters
    ----------
    parts : TrackerParts
    selections : sequence
        What `names_in` understands; none means all orders that are unfinished now.
    until : {"finished", "part"}
    timeout_s : float or None
    """

    def __init__(
        self, parts: TrackerParts, selections: Sequence[Any], *, until: str, timeout_s: float | None
    ) -> None:
        if until not in {"finished", "part"}:
            raise SettingsError(f'until must be "finished" or "part", not {until!r}')
        self._parts = parts
        self._until = until
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._names: list[Name] = (
            list(dict.fromkeys(names_in(selections)))
            if selections
            else [state.key for state in parts.states() if not state.finished]
        )
        self._states: list[OrderState] = []

    def keys(self) -> list[OrderKey]:
        """Return the keys of the orders waited for, as far as an event has named them."""
        keys = (self._parts.frames.key_of(name) for name in self._names)
        return [key for key in keys if key is not None]

    def run(self, view: View) -> list[OrderState]:
        """Block until the wait is over, and keep the view up to date; return the orders."""
        seen = -1
        while not self.is_over():
            view.refresh(note=self.note())
            seen = self._parts.signal.wait(seen, POLL_S)
        return self._states

    async def run_async(self, view: View) -> None:
        """Wait without blocking the event loop."""
        while not self.is_over():
            view.refresh(note=self.note())
            # A Condition would block the loop. Ten looks a second at the journal cost little.
            await asyncio.sleep(0.1)

    def is_over(self) -> bool:
        """Return whether all orders have come as far as the call asked.

        Raises
        ------
        WaitTimeoutError
            The time limit is reached.
        TrackingError
            Something failed in the background.
        """
        self._states = self._parts.states(self.keys())
        if len(self._states) == len(self._names) and all(map(self._suffices, self._states)):
            return True
        self._parts.errors.raise_new()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise WaitTimeoutError(
                f"after {self._timeout_s:g} s, {self.note()}. They go on and are still tracked: "
                "call wait() again, or look at tracker.orders"
            )
        return False

    def _suffices(self, state: OrderState) -> bool:
        return state.finished or (self._until == "part" and state.waits_for_download)

    def note(self) -> str:
        """Return a sentence on the orders that the wait still needs."""
        running = [state for state in self._states if not self._suffices(state)]
        unseen = len(self._names) - len(self._states)
        note = f"{len(running) + unseen} of {len(self._names)} orders are still running"
        if unseen:
            note += f", {unseen} of them without any event"
        waiting = [str(state.order_id) for state in running if state.waits_for_download]
        if waiting:
            note += (
                f"; REGARDS waits for you to download order {', '.join(waiting)}: "
                "tracker.download() or auto_download=True"
            )
        paused = [str(s.order_id) for s in running if s.status == OrderStatus.PAUSED]
        if paused:
            note += f"; order {', '.join(paused)} is paused: tracker.resume()"
        return note

    def result(self) -> pd.DataFrame:
        """Return the rows of the orders waited for."""
        return self._parts.frames.orders_of(self._names)
