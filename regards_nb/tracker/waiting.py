"""One call of ``wait()``: which orders, until when, how long, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from regards_nb.consumer import HealthState
from regards_nb.errors import OrderNotFoundError, SettingsError, StoppedWaiting, WaitTimeoutError
from regards_nb.events import OrderStatus
from regards_nb.orders import OrderKey
from regards_nb.tracker.selection import names_in
from regards_nb.tracker.shared import POLL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pandas as pd

    from regards_nb.consumer import Health
    from regards_nb.orders import OrderState
    from regards_nb.tracker.blocking import BlockingOrders
    from regards_nb.tracker.dispatcher import AutoDownload
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.selection import Name
    from regards_nb.tracker.shared import TrackerParts, WaitDisplay

#: A message that was sent before the wait arrives so soon; an order without one is unknown.
_UNKNOWN_AFTER_S = 2.0
_ADVICE = "wait(download=True)"
_REST_MISSING = (
    "REGARDS sends no message when an order expires, is cancelled on the web page or fails by a "
    "time limit of the server. Only REST tells of it: OrderTracker(..., client=RegardsClient(...))"
)


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
    sync : RestSync or None
    blocking : BlockingOrders
    health : callable
        Returns the health of the tracker.
    auto_download : bool
        The tracker downloads by itself.
    silence_s : float
        Without REST: after so long without a message the note says what no message tells.
    until : {"finished", "part"}
    timeout_s : float or None
    downloads : AutoDownload, optional
        Downloads the orders waited for, and those that block them.
    """

    def __init__(
        self,
        parts: TrackerParts,
        selections: Sequence[Any],
        *,
        sync: RestSync | None,
        blocking: BlockingOrders,
        health: Callable[[], Health],
        auto_download: bool,
        silence_s: float,
        until: str,
        timeout_s: float | None,
        downloads: AutoDownload | None = None,
    ) -> None:
        if until not in {"finished", "part"}:
            raise SettingsError(f'until must be "finished" or "part", not {until!r}')
        self._core = parts
        self._sync = sync
        self._blocking_orders = blocking
        self._health = health
        self._auto_download = auto_download
        self._silence_s = silence_s
        self._until = until
        self._timeout_s = timeout_s
        self._downloads = downloads
        self._began = datetime.now(UTC)
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._names: list[Name] = (
            list(dict.fromkeys(names_in(selections)))
            if selections
            else [state.key for state in parts.states() if not state.finished]
        )
        self._states: list[OrderState] = []

    def _unknown(self) -> list[Name]:
        return [name for name in self._names if self._core.key_of(name) is None]

    def keys(self) -> list[OrderKey]:
        """Return the keys of the orders waited for, as far as an event has named them."""
        keys = map(self._core.key_of, self._names)
        return [key for key in keys if key is not None]

    def run(self, view: WaitDisplay) -> list[OrderState]:
        """Block until the wait is over, and keep the view up to date; return the orders."""
        seen = -1
        while not self.is_over():
            view.refresh(note=self.note())
            seen = self._core.signal.wait(seen, POLL_S)
        return self._states

    async def run_async(self, view: WaitDisplay) -> None:
        """Wait without blocking the event loop."""
        # Unknown orders are looked up over REST, which would block the loop.
        while not (await asyncio.to_thread(self.is_over) if self._unknown() else self.is_over()):
            view.refresh(note=self.note())
            # A Condition would block the loop. Ten looks a second at the journal cost little.
            await asyncio.sleep(0.1)

    def is_over(self) -> bool:
        """Return whether all orders have come as far as the call asked.

        Raises
        ------
        WaitTimeoutError
            The time limit is reached.
        OrderNotFoundError
            Nobody submitted an order, and no message and no answer over REST names it.
        SettingsError
            The tracker is not started.
        """
        self._states = self._core.states(self.keys())
        if len(self._states) == len(self._names) and all(map(self._suffices, self._states)):
            return True
        if self._downloads is not None:
            self._downloads.begin(self._to_download())
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            note = self.note()
            if self._sync is None and _REST_MISSING not in note:
                note += f". {_REST_MISSING}"
            raise WaitTimeoutError(
                f"after {self._timeout_s:g} s, {note}. The orders are still tracked: call wait() "
                "again, or look at tracker.orders"
            )
        self._refuse_an_endless_wait()
        return False

    def _refuse_an_endless_wait(self) -> None:
        health = self._health()
        if health.state in {HealthState.STOPPED, HealthState.FAILED}:
            raise SettingsError(
                "this tracker is not started, so no event can arrive: call tracker.start(), or "
                "use `with tracker:`" + (f" ({health.reason})" if health.reason else "")
            )
        if len(self._states) == len(self._names):
            return
        if health.state not in {HealthState.CONSUMING, HealthState.POLLING} or health.queue_depth:
            return
        last_sign = max(self._began, health.since, health.last_event or health.since)
        if (datetime.now(UTC) - last_sign).total_seconds() < _UNKNOWN_AFTER_S:
            return
        for name in self._unknown():
            if isinstance(name, int):
                if self._sync is None or not self._sync.look_up(name):
                    raise OrderNotFoundError(
                        f"no order with the number {name}; tracker.orders lists all. If seconds "
                        f"are meant: wait(timeout_s={name})"
                    )
                continue
            called = name.correlation_id if isinstance(name, OrderKey) else name
            tenant = None if self._sync is None else self._sync.tenant
            if self._core.journal.request(tenant, called) is None:
                raise OrderNotFoundError(
                    f"no order with the correlation id or label {called!r}: it was not submitted "
                    "here, and no message names it. " + self._near(called)
                )

    def _near(self, name: str) -> str:
        known = self._core.frames.states()
        names = [text for s in known for text in (s.correlation_id, s.label) if text]
        near = get_close_matches(name, names, n=3)
        if not near:
            return "tracker.orders lists all"
        return f"Did you mean {' or '.join(map(repr, near))}?"

    def _suffices(self, state: OrderState) -> bool:
        if self._until == "part" and state.waits_for_download:
            return True
        if not state.finished:
            return False
        return self._downloads is None or not (state.downloading or state.waits_for_download)

    def _blocking(self) -> list[OrderState]:
        return self._blocking_orders.find(auto_download=self._auto_download)

    def _to_download(self) -> list[OrderKey]:
        """Return the orders with files that wait: those waited for, and those that block them."""
        blocking = self._blocking()
        for state in blocking:
            if self._sync is not None and self._core.key_of(state.order_id or 0) is None:
                self._sync.look_up(state.order_id or 0)
        waiting = [*self._states, *blocking]
        keys = (self._core.key_of(state.order_id or 0) for state in waiting)
        return [key for key in keys if key is not None]

    def note(self) -> str:
        """Return a sentence on the orders that the wait still needs."""
        running = [state for state in self._states if not self._suffices(state)]
        unseen = len(self._names) - len(self._states)
        note = f"{len(running) + unseen} of {len(self._names)} orders are still running"
        if unseen:
            note += f", {unseen} of them without any event"
        blocking = self._blocking()
        if blocking and self._downloads is None:
            wait = "orders {} wait" if len(blocking) > 1 else "order {} waits"
            note += (
                "; REGARDS prepares at most two sub-orders per user, and "
                f"{wait.format(_numbers(blocking))} for a download: "
                f"tracker.download({_numbers(blocking)}), or {_ADVICE}"
            )
        paused = [state for state in running if state.status == OrderStatus.PAUSED]
        if paused:
            note += f"; order {_numbers(paused)} is paused: tracker.resume({_numbers(paused)})"
        if self._sync is None and self._is_silent(running):
            note += f"; no message came for a while. {_REST_MISSING}"
        return note

    def _is_silent(self, states: list[OrderState]) -> bool:
        last = self._health().last_event or self._began
        silent_s = (datetime.now(UTC) - max(last, self._began)).total_seconds()
        return bool(states) and silent_s >= self._silence_s

    def result(self) -> pd.DataFrame:
        """Return the rows of the orders waited for.

        Raises
        ------
        TrackingError
            Something failed in the background.
        """
        self._core.errors.raise_new()
        return self._core.frames.orders_of(self.keys())


def _numbers(states: Iterable[OrderState]) -> str:
    return ", ".join(str(state.order_id) for state in states)
