"""Calls that wait for orders: until when, and how they end."""

from __future__ import annotations

import asyncio
import heapq
import math
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self, TypeVar

from regards_nb.arguments import SECONDS_MEANT, check_choice, check_numbers
from regards_nb.consumer import HealthState
from regards_nb.errors import (
    JournalError,
    OrderNotFoundError,
    ServiceError,
    ServiceUnreachableError,
    SettingsError,
    StoppedWaiting,
    WaitTimeoutError,
)
from regards_nb.orders import GONE
from regards_nb.output import say
from regards_nb.text import clean, counted, doubled, numbered
from regards_nb.tracker.blocking import HOW_WITHOUT_CLIENT
from regards_nb.tracker.life import RUNNING
from regards_nb.tracker.rounds import AskingMeanwhile
from regards_nb.tracker.shared import LOOK_S, called, names_in
from regards_nb.waits import (
    AGAIN_S,
    ended_by,
    in_cell,
    in_thread,
    is_after_stop,
    limited,
    told,
    unasked,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    import pandas as pd

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.blocking import BlockingOrders
    from regards_nb.tracker.dispatcher import AutoDownload
    from regards_nb.tracker.life import Life
    from regards_nb.tracker.shared import Name, Shared, WaitDisplay

_T = TypeVar("_T")

#: A message that was sent before the wait arrives within this time; else the order is unknown.
_UNKNOWN_AFTER_S = 2.0
#: Maximum number of orders without an event that a note names.
_MOST_NAMED = 3
#: A shorter silence of an order is not told.
_SILENT_S = 60.0
_ASYNC_PAUSE_S = 0.005
#: How often a wait asks the server of the journal for what is new.
_ASK_JOURNAL_S = 1.0
_REST_MISSING = (
    "REGARDS sends no message when an order expires, is cancelled on the web page or fails by a "
    "time limit of the server. Only REST tells of it: make the tracker with "
    "client=RegardsClient(...)"
)


class WaitingCall:
    """A call that waits: until `is_over`, it does its work with `proceed` and shows its `note`.

    *asked* downloads meanwhile the orders waited for, and those that block them.
    """

    def __init__(
        self,
        shared: Shared,
        blocking: BlockingOrders,
        life: Life,
        *,
        asked: AutoDownload | None,
        timeout_s: float | None,
    ) -> None:
        check_numbers(timeout_s=timeout_s)
        self._shared = shared
        self._sync = blocking.sync
        self._blocking = blocking
        self._life = life
        self._asked = asked
        self._timeout_s = timeout_s
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        #: When the server of the journal is asked again.
        self._ask_journal_s = 0.0
        #: The orders whose downloads Ctrl-C has ended.
        self._ended: list[int] = []
        self._left = threading.Event()
        self._asking = (
            None if self._sync is None else AskingMeanwhile(self._sync, shared, self._left)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._left.set()
        # After a time limit the downloads go on: a zip may take longer than any wait for it.
        if self._asked is not None:
            stops = (KeyboardInterrupt, asyncio.CancelledError)  # of a call, and of an awaited one
            is_stopped = kind is not None and issubclass(kind, stops)
            self._ended = self._asked.leave(is_stopped=is_stopped)

    def stopped(self) -> str:
        """Return what the user is told who stops the call."""
        ended = f", and downloading {numbered(self._ended)}" if self._ended else ""
        return f"stopped waiting{ended}; tracking continues"

    def is_over(self) -> bool:
        """Return whether all orders have come as far as the call asked."""
        raise NotImplementedError

    def proceed(self) -> None:
        """Begin the downloads that are asked for; raise what ends the call early."""
        self._begin_downloads()
        if self._asked is not None and self._asked.is_hopeless:
            self._shared.errors.raise_new()
        self._keep_time_limit()
        self._life.require_running()

    def note(self) -> str:
        """Return a sentence on the orders that the call still needs."""
        raise NotImplementedError

    def _to_download(self) -> Sequence[OrderState]:
        raise NotImplementedError

    def _told_at_limit(self) -> str:
        raise NotImplementedError

    def run(self, view: WaitDisplay) -> None:
        """Block until the wait is over, and keep the view up to date."""
        seen = -1
        while True:
            with self._outlasting_outages(view):
                if self._is_over_now():
                    return
                self.proceed()
                self._look()
                view.refresh(note=self.note())
            seen = self._shared.signal.wait(seen, LOOK_S)

    def _is_over_now(self) -> bool:
        """Read what is new, and return whether the wait is over.

        A server of the journal is asked now and then although it notifies of what is new: nothing
        else shows soon that it does not answer.
        """
        is_due = time.monotonic() >= self._ask_journal_s
        self._shared.read_news(exact=is_due)
        if is_due:
            self._ask_journal_s = time.monotonic() + _ASK_JOURNAL_S
        return self.is_over()

    @contextmanager
    def _outlasting_outages(self, view: WaitDisplay) -> Iterator[None]:
        """Say why the journal cannot be read while its server is away, until the time limit.

        The server may restart, and messages wait in the queue as in an outage of RabbitMQ.
        """
        try:
            yield
        except JournalError as exc:
            if not self._shared.journal.server_is_away() or is_after_stop(exc):
                raise
            if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                raise WaitTimeoutError(f"after {self._timeout_s:g} s, {exc}") from exc
            view.refresh(note=f"{exc} The wait goes on")

    def _look(self) -> None:
        if self._asking is not None:
            self._asking.look(self._life.health.last_event)

    def _begin_downloads(self) -> None:
        if self._asked is not None and not self._life.refusal():
            self._asked.begin(self._blocking.keys_of(self._to_download()))

    def _keep_time_limit(self) -> None:
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            with unasked():
                text = self._told_at_limit()
            raise WaitTimeoutError(f"after {self._timeout_s:g} s, {text}")


class Wait(WaitingCall):
    """The orders of one call of ``wait()``, and the condition that ends it.

    Without *selections* (`names_in`) they are all that are unfinished now. The error of a time
    limit repeats the texts of *warnings*. With a download the wait goes on until the first attempt
    for its orders has ended. Without REST, the note says after *silence_s* without a message what
    no message tells.
    """

    def __init__(
        self,
        selections: Sequence[Any],
        shared: Shared,
        blocking: BlockingOrders,
        life: Life,
        *,
        warnings: Callable[[], tuple[str, ...]],
        silence_s: float,
        until: str,
        timeout_s: float | None,
        asked: AutoDownload | None = None,
    ) -> None:
        check_choice("until", until, "finished", "part")
        super().__init__(shared, blocking, life, asked=asked, timeout_s=timeout_s)
        self._warnings = warnings
        self._silence_s = silence_s
        self._until = until
        self._began = datetime.now(UTC)
        self._names: list[Name] = list(dict.fromkeys(names_in(selections)))
        if not selections:
            states = shared.states().without("is_refused")
            if self._downloads is None:
                states = states.without("finished")  # those that have ended suffice
            self._names = [state.key for state in states if not self._suffices(state)]
        self._unknown()  # a label that several orders bear is refused before anything is shown
        self._is_of_all = not selections
        self._states: list[OrderState] = []
        #: Names of orders without any event that the journal has as requests.
        self._submitted: set[Name] = set()
        #: What is said of names without any event, by name.
        self._unseen: dict[Name, str] = {}
        #: That REGARDS did not answer when it was asked last.
        self._unanswered = ""

    @property
    def _downloads(self) -> AutoDownload | None:
        return self._asked or self._blocking.automatic

    def is_needless(self) -> bool:
        """Return whether there is no order to wait for; say so."""
        if not self._names:
            say(self._why_nothing())
        return not self._names

    def _why_nothing(self) -> str:
        if not self._is_of_all:
            return "nothing to wait for: no order is selected"
        known = self._shared.frames.states()
        states = self._shared.holders.without_held(known.without("is_refused"))
        if not states:
            self._life.require_running()
            why = "all orders belong to other users" if known else "no orders so far"
            return "; ".join([f"nothing to wait for: {why}", *self._unheard()])
        n_known, waiting = len(states), states.where("waits_for_download")
        if running := states.without("finished"):  # with until="part"
            named = numbered(state.order_id for state in running)
            why = f"files of {named} are ready, more come after a download"
        else:
            all_are = f"all {counted(n_known, 'order')} are" if n_known > 1 else "the only order is"
            why = f"{all_are} finished"
        text = f"nothing to wait for: {why}"
        if waiting:
            how = HOW_WITHOUT_CLIENT if self._sync is None else "tracker.download()"
            text += f"; {len(waiting)} to download: {how}"
        automatic = self._blocking.automatic
        failure = "" if automatic is None else automatic.failure(waiting)
        return "; ".join(filter(None, (text, failure, *self._unheard())))

    def _unheard(self) -> list[str]:
        """Return why an event may not have come, and how to hear of an order without any."""
        advice = "" if self._sync is None else self._life.sync_advice
        return list(filter(None, (*self._shared.obstacles(), self._life.outage, advice)))

    def _unknown(self) -> list[Name]:
        return [name for name in self._names if self._shared.key_of(name) is None]

    def keys(self) -> list[OrderKey]:
        """Return the keys of the orders waited for, as far as an event has named them."""
        keys = []
        for name in self._names:
            with suppress(SettingsError):  # of a label that several bear, the wait itself tells
                keys.append(self._shared.key_of(name))
        return [key for key in keys if key is not None]

    def begin(self) -> None:
        """Begin the downloads that are asked for, so that no view asks the user for them."""
        self._states = list(self._shared.states(self.keys()))
        with limited(self._deadline_s):
            is_new = self._sync is not None and self._sync.log_in_again()
        if is_new and (automatic := self._blocking.automatic) is not None:
            automatic.try_now()
        if self._downloads is None:
            # No message tells that files have expired.
            waiting = [s for s in self._states if s.finished and s.waits_for_download]
            with suppress(ServiceError):
                for state in waiting[:_MOST_NAMED]:
                    self._regards_has(state.order_id or 0)
        self._begin_downloads()

    async def run_async(self, view: WaitDisplay) -> None:
        """Wait without blocking the event loop."""
        seen = -1
        while True:
            with self._outlasting_outages(view):
                if await self._is_over_beside_loop():
                    return
                if self._unknown():  # over REST, each is looked up
                    await self._beside_loop(self.proceed, lambda: view.refresh(note=self.note()))
                else:
                    self.proceed()
                self._look()
                view.refresh(note=self.note())
            seen = await self._shared.signal.wait_async(seen, LOOK_S)
            # While many events arrive, the other tasks of the loop have their turn.
            await asyncio.sleep(_ASYNC_PAUSE_S)

    async def _is_over_beside_loop(self) -> bool:
        """Return `_is_over_now`; a journal that does not answer blocks no event loop."""
        journal = self._shared.journal
        if not journal.is_on_server:
            return self._is_over_now()

        def tell() -> None:
            if text := journal.obstacle():
                told(text, math.inf, again_s=AGAIN_S)

        return await self._beside_loop(self._is_over_now, tell)

    async def _beside_loop(self, job: Callable[[], _T], meanwhile: Callable[[], object]) -> _T:
        """Run a part of the wait in a thread, and *meanwhile* now and then in the event loop."""
        with ended_by(self._left):
            running = asyncio.wrap_future(in_thread(job))
        # After a stop nobody asks for its error.
        running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        while not running.done():
            meanwhile()
            await asyncio.wait([running], timeout=LOOK_S)
        return running.result()

    def is_over(self) -> bool:
        """Read the states of the orders; return whether all have come as far as the call asked.

        A call for all orders leaves out those that turn out to belong to another user.
        """
        states = self._shared.states(self.keys())
        if self._is_of_all and states.numbers("is_refused").any():
            states = states.without("is_refused")
            self._names = [state.key for state in states]
            if not self._names:
                say(self._why_nothing())
        self._states = list(states)
        return len(self._states) == len(self._names) and all(map(self._suffices, self._states))

    def proceed(self) -> None:
        """Begin the downloads that are asked for, and look unknown orders up over REST.

        WaitTimeoutError: the time limit is reached. OrderNotFoundError: an order was not submitted
        here, and no message and no answer over REST names it.
        """
        super().proceed()
        try:
            self._refuse_unknown_orders()
        except ServiceUnreachableError:
            self._keep_time_limit()
            raise

    def _told_at_limit(self) -> str:
        note = self.note(is_last=True)
        if self._lacks_rest and self._states and _REST_MISSING not in note:
            note += f". {_REST_MISSING}"
        away = self._life.outage
        told = (*self._warnings(), away[:1].upper() + away[1:], self._unanswered)
        warned = "".join(f". {text.rstrip('.')}" for text in told if text)
        return f"{note}{warned}. Tracking continues: call wait() again, or look at tracker.orders"

    def _regards_has(self, name: int | str) -> bool:
        """Ask REGARDS for an order, at most until the time limit; return whether it has it."""
        if self._sync is None:
            return False
        try:
            with limited(self._deadline_s):
                is_known = self._sync.look_up(name)
        except JournalError:
            return True  # its state was not written, and is asked for again
        except ServiceError as exc:
            if isinstance(exc, ServiceUnreachableError):
                self._unanswered = f"{self._sync.where} does not answer"
            exc.put_first(f"the order {name!r} is not known here, and REGARDS could not be asked")
            raise
        self._unanswered = ""
        return is_known

    def _refuse_unknown_orders(self) -> None:
        health = self._life.health
        if len(self._states) == len(self._names):
            return
        if health.state in RUNNING:
            is_answer_due = not health.queue_depth
        else:  # without RabbitMQ only REGARDS can tell
            is_answer_due = self._sync is not None
        # What a message has named may not be written yet.
        if not is_answer_due or self._shared.journal.obstacle():
            return
        last_sign = max(self._began, health.since, health.last_event or health.since)
        if (datetime.now(UTC) - last_sign).total_seconds() < _UNKNOWN_AFTER_S:
            return
        for name in self._unknown():
            if isinstance(name, int):
                # Without REST: one of the other consumers may have got its messages.
                if (self._sync is None and health.other_consumers) or self._regards_has(name):
                    continue
                raise OrderNotFoundError(
                    f"no order with the number {name}; tracker.orders lists all. "
                    + SECONDS_MEANT.format(name)
                )
            text = called(name)
            if self._is_submitted(name) or self._regards_has(text):
                continue
            raise OrderNotFoundError(
                f"no order with the correlation id or label {text!r}: it was not submitted "
                "here, and no message names it. " + self._shared.near(text)
            )

    def _is_submitted(self, name: str | OrderKey) -> bool:
        """Return whether the journal has a request with this name; one that it has stays there."""
        if name not in self._submitted:
            tenant = None if self._sync is None else self._sync.tenant
            if self._shared.journal.request(tenant, called(name)) is None:
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
        return f"no order is called {text!r} so far ({self._shared.near(text)})"

    def _suffices(self, state: OrderState) -> bool:
        if state.is_refused and (self._until == "part" or self._asked is not None):
            return True  # no file of it will come
        if self._until == "part" and (state.waits_for_download or state.downloading):
            return state.waits_for_download
        return self._blocking.has_ended(state, self._asked)

    def _to_download(self) -> list[OrderState]:
        """Return the orders with files that wait: those waited for, and those that block them."""
        return [*self._states, *self._blocking.find()]

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
        deleted = [state for state in needed if state.status in GONE]
        words += [f"{s.name} is {s.status}, and its download still runs" for s in deleted]
        if unfetched := [s for s in needed if s.finished and s not in deleted]:
            named = numbered((state.order_id for state in unfetched), most=len(unfetched))
            words.append(f"the files of {named} are not all downloaded")
        if is_last:
            running_here = (self._shared.downloads.get(state.order_id or 0) for state in needed)
            words += [
                str(replace(progress, silence=""))
                for each in running_here
                if each and (progress := each.active.progress)
            ]
        words += [
            f"{holder} is downloading order {state.order_id}"
            for state in needed
            if state.to_download and (holder := self._shared.holders.of(state))
        ]
        words += self._shared.obstacles()
        if not words and len(self._states) == len(self._names):  # else an event comes just now
            words.append(f"{total} {'has' if len(self._names) == 1 else 'have'} ended")
        advice = "wait(download=True)"
        note = "; ".join([*words, *self._blocking.reasons(needed, advice, self._asked)])
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
        self._shared.errors.raise_new()
        if (downloads := self._downloads) is not None:
            downloads.tell_missing(self._shared.states(self.keys()))
        return self._shared.frames.orders_of(self.keys())


def _silences(states: Iterable[OrderState], *, is_exact: bool) -> list[str]:
    """Return for how long no event of some orders came, for those with the longest silence.

    The time is exact, or `doubled`.
    """
    now, texts, more_than = datetime.now(UTC), [], "" if is_exact else "more than "
    for state in heapq.nsmallest(_MOST_NAMED, states, key=attrgetter("last_event")):
        silent_s = (now - state.last_event).total_seconds()
        if not is_exact:
            silent_s = doubled(silent_s, _SILENT_S)
            if not silent_s:
                break
        label = f" ({clean(state.label)})" if state.label and state.order_id else ""
        texts.append(f"no event of {state.name}{label} for {more_than}{max(silent_s, 0):.0f} s")
    return texts


class _StoppedAwaiting(StoppedWaiting, asyncio.CancelledError):
    """`StoppedWaiting` in a task.

    As a cancellation it ends the task alone: asyncio passes any other KeyboardInterrupt on to the
    code that runs the loop, and a kernel would end.
    """


# A notebook and a script show the name.
_StoppedAwaiting.__name__ = _StoppedAwaiting.__qualname__ = StoppedWaiting.__name__


@contextmanager
def awaiting_stopped_by_user(outcome: Callable[[], str]) -> Iterator[None]:
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
        loop.call_soon_threadsafe(lambda: None)

    is_replaced = callable(kernels) and in_cell()
    if is_replaced:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except asyncio.CancelledError:
        if is_stopped:
            raise _StoppedAwaiting(outcome()) from None
        raise
    finally:
        # The kernel has its own handler back already if the cell has ended, or another one runs.
        if is_replaced and signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, kernels)


def run_nested(work: Coroutine[Any, Any, _T]) -> _T:
    """Run *work* to its end, inside the running loop if there is one.

    asyncio refuses to run a running loop again. nest-asyncio2 patches it here, and no import does.
    SettingsError: a nested loop is not possible here. Where its predecessor nest_asyncio, which is
    no longer maintained, has patched asyncio, ipykernel 7.1 and later would lose queued cells.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    kind, refusal = f"{type(loop).__module__}.{type(loop).__qualname__}", ""
    if not isinstance(loop, asyncio.BaseEventLoop):
        refusal = f"run_loop=True needs asyncio's own event loop, not {kind}"
    elif hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2"):
        refusal = (
            "with nest_asyncio a kernel silently loses cells that are queued during the wait. "
            "Restart it, and import no nest_asyncio"
        )
    if refusal:
        work.close()
        raise SettingsError(
            f"{refusal}. Use `await tracker.wait_async()`, which nests nothing, or wait() without "
            "run_loop"
        )
    import nest_asyncio2

    nest_asyncio2.apply(loop)
    task = loop.create_task(work)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        # Ctrl-C ends the step of the loop and not the task, which would run on after the cell.
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        raise
