"""One call of ``wait()``: which orders, until when, how long, and how it ends."""

from __future__ import annotations

import asyncio
import heapq
import math
import signal
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from regards_nb.arguments import check_choice, check_numbers
from regards_nb.consumer import HealthState
from regards_nb.errors import (
    JournalError,
    OrderNotFoundError,
    ServiceError,
    ServiceUnreachableError,
    StoppedWaiting,
    WaitTimeoutError,
)
from regards_nb.output import say
from regards_nb.text import clean, counted
from regards_nb.tracker.dispatcher import awaits_files
from regards_nb.tracker.life import RUNNING
from regards_nb.tracker.selection import called, names_in
from regards_nb.tracker.shared import POLL_S
from regards_nb.waits import in_cell, limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pandas as pd

    from regards_nb.frames import States
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.blocking import BlockingOrders
    from regards_nb.tracker.dispatcher import AutoDownload
    from regards_nb.tracker.life import Life
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.selection import Name
    from regards_nb.tracker.shared import TrackerParts, WaitDisplay

#: A message that was sent before the wait arrives so soon; an order without one is unknown.
_UNKNOWN_AFTER_S = 2.0
#: A note names so many orders of which no event came.
_MOST_NAMED = 3
#: A shorter silence of an order is not told.
_SILENT_S = 60.0
_ADVICE = "wait(download=True)"
_ASYNC_PAUSE_S = 0.005
_REST_MISSING = (
    "REGARDS sends no message when an order expires, is cancelled on the web page or fails by a "
    "time limit of the server. Only REST tells of it: make the tracker with "
    "client=RegardsClient(...)"
)


class Wait:
    """The orders of one call of ``wait()``, and the condition that ends it.

    Without *selections* (`names_in`) they are all that are unfinished now. The error of a time
    limit repeats the texts of *warnings*. With *auto_download*, the wait goes on until the first
    attempt for its orders has ended; *downloads* fetches the orders waited for, and those that
    block them. Without REST, the note says after *silence_s* without a message what no message
    tells.
    """

    def __init__(
        self,
        parts: TrackerParts,
        selections: Sequence[Any],
        *,
        sync: RestSync | None,
        blocking: BlockingOrders,
        life: Life,
        warnings: Callable[[], tuple[str, ...]],
        auto_download: AutoDownload | None,
        silence_s: float,
        until: str,
        timeout_s: float | None,
        downloads: AutoDownload | None = None,
    ) -> None:
        check_choice("until", until, "finished", "part")
        check_numbers(timeout_s=timeout_s)
        self._core = parts
        self._sync = sync
        self._blocking = blocking
        self._life = life
        self._warnings = warnings
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
            else [state.key for state in self._states_to_end() if not self._suffices(state)]
        )
        self._is_of_all = not selections
        self._states: list[OrderState] = []
        #: Names of orders without any event that the journal has as requests.
        self._submitted: set[Name] = set()
        #: What is said of names without any event, by name.
        self._unseen: dict[Name, str] = {}
        #: That REGARDS did not answer when it was asked last.
        self._unanswered = ""
        self._looks = blocking.looks(life)

    def _states_to_end(self) -> States:
        """Return the orders that may not suffice; without a download, an ended one does."""
        states = self._core.states()
        loads = self._downloads is not None or self._auto_download is not None
        return states if loads else states.without("finished")

    def is_needless(self) -> bool:
        """Return whether there is no order to wait for; say so."""
        if not self._names:
            say(self._why_nothing())
        return not self._names

    def _why_nothing(self) -> str:
        if not self._is_of_all:
            return "nothing to wait for: no order is selected"
        states = self._core.holders.without_held(self._core.frames.states())
        if not states:
            self._life.require_running()
            return "; ".join(["nothing to wait for: no orders so far", *self._unheard()])
        n_known, waiting = len(states), states.where("waits_for_download")
        all_orders = f"all {counted(n_known, 'order')} are" if n_known > 1 else "the only order is"
        text = f"nothing to wait for: {all_orders} finished"
        if waiting:
            text += f"; {len(waiting)} to download: tracker.download()"
        failure = self._auto_download.failure(waiting) if self._auto_download else ""
        return "; ".join(filter(None, (text, failure, *self._unheard())))

    def _unheard(self) -> list[str]:
        """Return why an event may not have come."""
        return list(filter(None, (*self._core.silent(), self._life.outage)))

    def _unknown(self) -> list[Name]:
        return [name for name in self._names if self._core.key_of(name) is None]

    def keys(self) -> list[OrderKey]:
        """Return the keys of the orders waited for, as far as an event has named them."""
        keys = map(self._core.key_of, self._names)
        return [key for key in keys if key is not None]

    def begin(self) -> None:
        """Begin the downloads that are asked for, so that no view asks the user for them."""
        self._states = list(self._core.states(self.keys()))
        if self._sync is not None and self._downloads is None and self._auto_download is None:
            # No message tells that files have expired.
            waiting = [s for s in self._states if s.finished and s.waits_for_download]
            with suppress(ServiceError):
                for state in waiting[:_MOST_NAMED]:
                    self._is_known(self._sync, state.order_id or 0)
        if self._downloads is not None and not self._life.refusal():
            self._downloads.begin(self._to_download())

    def run(self, view: WaitDisplay) -> list[OrderState]:
        """Block until the wait is over, and keep the view up to date; return the orders."""
        seen = -1
        while not self.is_over():
            self._looks.look()
            view.refresh(note=self.note())
            seen = self._core.signal.wait(seen, POLL_S)
        return self._states

    async def run_async(self, view: WaitDisplay) -> None:
        """Wait without blocking the event loop."""
        seen = -1
        # Unknown orders are looked up over REST, which would block the loop.
        while not (await asyncio.to_thread(self.is_over) if self._unknown() else self.is_over()):
            self._looks.look()
            view.refresh(note=self.note())
            seen = await self._core.signal.wait_async(seen, POLL_S)
            # While many events arrive, the other tasks of the loop have their turn.
            await asyncio.sleep(_ASYNC_PAUSE_S)

    def is_over(self) -> bool:
        """Return whether all orders have come as far as the call asked.

        WaitTimeoutError: the time limit is reached. OrderNotFoundError: an order was not submitted
        here, and no message and no answer over REST names it.
        """
        self._states = list(self._core.states(self.keys()))
        if len(self._states) == len(self._names) and all(map(self._suffices, self._states)):
            return True
        if self._downloads is not None and not self._life.refusal():
            self._downloads.begin(self._to_download())
        self._keep_time_limit()
        self._life.require_running()
        try:
            self._refuse_unknown_orders()
        except ServiceUnreachableError:
            self._keep_time_limit()
            raise
        return False

    def _keep_time_limit(self) -> None:
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            note = self.note(is_last=True)
            if self._lacks_rest and self._states and _REST_MISSING not in note:
                note += f". {_REST_MISSING}"
            away = self._life.outage
            told = (*self._warnings(), away[:1].upper() + away[1:], self._unanswered)
            warned = "".join(f". {text.rstrip('.')}" for text in told if text)
            raise WaitTimeoutError(
                f"after {self._timeout_s:g} s, {note}{warned}. The orders are still tracked: call "
                "wait() again, or look at tracker.orders"
            )

    def _is_known(self, sync: RestSync, name: int | str) -> bool:
        """Ask REGARDS for an order, at most until the time limit; return whether it has it."""
        try:
            with limited(self._deadline_s):
                is_known = sync.look_up(name)
        except JournalError:
            return True  # its state was not written, and is asked for again
        except ServiceUnreachableError:
            self._unanswered = f"REGARDS at {sync.client.base_url} does not answer"
            raise
        self._unanswered = ""
        return is_known

    def _refuse_unknown_orders(self) -> None:
        health = self._life.health
        if len(self._states) == len(self._names):
            return
        if health.state not in RUNNING or health.queue_depth:
            return
        last_sign = max(self._began, health.since, health.last_event or health.since)
        if (datetime.now(UTC) - last_sign).total_seconds() < _UNKNOWN_AFTER_S:
            return
        for name in self._unknown():
            if isinstance(name, int):
                if self._sync is None and health.other_consumers:
                    continue  # one of them may have got its messages
                if self._sync is None or not self._is_known(self._sync, name):
                    raise OrderNotFoundError(
                        f"no order with the number {name}; tracker.orders lists all. If seconds "
                        f"are meant: wait(timeout_s={name})"
                    )
                continue
            if self._is_submitted(name):
                continue
            text = called(name)
            if self._sync is not None and self._is_known(self._sync, text):
                continue
            raise OrderNotFoundError(
                f"no order with the correlation id or label {text!r}: it was not submitted "
                "here, and no message names it. " + self._core.near(text)
            )

    def _is_submitted(self, name: str | OrderKey) -> bool:
        """Return whether the journal has a request with this name; one that it has stays there."""
        if name not in self._submitted:
            tenant = None if self._sync is None else self._sync.tenant
            if self._core.journal.request(tenant, called(name)) is None:
                return False
            self._submitted.add(name)
        return True

    def _said_of(self, name: Name) -> str:
        """Return a sentence on a name that no event has named so far."""
        if isinstance(name, int):
            return f"no event of order {name} so far"
        text = called(name)
        if self._is_submitted(name):
            return f"no event of {text!r} so far"
        return f"no order is called {text!r} so far ({self._core.near(text)})"

    def _suffices(self, state: OrderState) -> bool:
        if self._until == "part" and (state.waits_for_download or state.downloading):
            return state.waits_for_download
        return state.finished and not awaits_files(state, self._downloads, self._auto_download)

    def _to_download(self) -> list[OrderKey]:
        """Return the orders with files that wait: those waited for, and those that block them."""
        blocking = self._blocking.find(self._auto_download)
        return self._blocking.keys_of([*self._states, *blocking])

    def note(self, *, is_last: bool = False) -> str:
        """Return a sentence on the orders that the wait still needs.

        It names those of which no event came for long, and the last note any.
        """
        needed = [state for state in self._states if not self._suffices(state)]
        running = [state for state in needed if not state.finished]
        unseen = self._unknown()
        are = "is" if len(running) == 1 else "are"
        total = counted(len(self._names), "order")
        words = [f"{len(running)} of {total} {are} still running"] if running else []
        words += _silences(running, is_exact=is_last)
        if len(unseen) > _MOST_NAMED:
            words.append(f"no event of {counted(len(unseen), 'order')} so far")
        else:
            # Once for each name: among many orders the search for near names takes long.
            missing = [name for name in unseen if name not in self._unseen]
            self._unseen |= {name: self._said_of(name) for name in missing}
            words += [self._unseen[name] for name in unseen]
        if fetched := [state for state in needed if state.finished]:
            orders = "order" if len(fetched) == 1 else "orders"
            words.append(f"the files of {orders} {_numbers(fetched)} are not all downloaded")
        words += [
            f"{holder} is downloading order {state.order_id}"
            for state in needed
            if state.to_download and (holder := self._core.holders.of(state))
        ]
        words += self._core.silent()
        note = "; ".join(words) or f"{total} {'has' if len(self._names) == 1 else 'have'} ended"
        own = self._auto_download
        reasons = self._blocking.reasons(needed, _ADVICE, asked=self._downloads, own=own)
        note = "; ".join([note, *reasons])
        if self._lacks_rest and self._is_silent(running):
            note += f"; no message came for a while. {_REST_MISSING}"
        return note

    @property
    def _lacks_rest(self) -> bool:
        """Whether a client would tell more; that of a reader does not poll."""
        return self._sync is None and self._life.health.state is not HealthState.READING

    def _is_silent(self, states: list[OrderState]) -> bool:
        last = self._life.health.last_event or self._began
        silent_s = (datetime.now(UTC) - max(last, self._began)).total_seconds()
        return bool(states) and silent_s >= self._silence_s

    def result(self) -> pd.DataFrame:
        """Return the rows of the orders waited for; raise what failed in the background.

        Say which of their files are not here.
        """
        self._core.errors.raise_new()
        if (downloads := self._downloads or self._auto_download) is not None:
            downloads.tell_missing(self._core.states(self.keys()))
        return self._core.frames.orders_of(self.keys())


def _silences(states: Iterable[OrderState], *, is_exact: bool) -> list[str]:
    """Return for how long no event of some orders came, for those with the longest silence.

    The time is exact, or doubles from one text to the next: a log gets a line for each.
    """
    now, texts = datetime.now(UTC), []
    for state in heapq.nsmallest(_MOST_NAMED, states, key=attrgetter("last_event")):
        silent_s = (now - state.last_event).total_seconds()
        if not is_exact:
            if silent_s < _SILENT_S:
                break
            silent_s = _SILENT_S * 2 ** int(math.log2(silent_s / _SILENT_S))
        label = f" ({clean(state.label)})" if state.label and state.order_id else ""
        texts.append(f"no event of {state.name}{label} for {max(silent_s, 0):.0f} s")
    return texts


def _numbers(states: Iterable[OrderState]) -> str:
    return ", ".join(str(state.order_id) for state in states)


class _StoppedAwaiting(StoppedWaiting, asyncio.CancelledError):
    """`StoppedWaiting` in a task.

    As a cancellation it ends the task alone: asyncio passes any other KeyboardInterrupt on to the
    code that runs the loop, and a kernel would end.
    """


@contextmanager
def awaiting_stopped_by_user() -> Iterator[None]:
    """End an awaited wait at the stop button with one line, as `stopped_by_user` does.

    The handler of ipykernel cancels the cell with a CancelledError without text, and only when
    something else wakes the loop. It is called as before, and the loop is woken at once.
    """
    kernels: Any = signal.getsignal(signal.SIGINT)
    loop = asyncio.get_running_loop()
    is_stopped = False

    def stop(*signal_and_frame: Any) -> None:
        nonlocal is_stopped
        is_stopped = True
        kernels(*signal_and_frame)
        loop.call_soon_threadsafe(bool)

    is_replaced = callable(kernels) and in_cell()
    if is_replaced:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except asyncio.CancelledError:
        if is_stopped:
            raise _StoppedAwaiting from None
        raise
    finally:
        # The kernel has its own handler back already if the cell has ended, or another one runs.
        if is_replaced and signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, kernels)
