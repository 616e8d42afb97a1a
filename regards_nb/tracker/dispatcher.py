"""Hand new events to the user's callbacks, and download the files that they announce."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from regards_nb.arguments import check_function, check_texts
from regards_nb.download import is_unusable
from regards_nb.errors import (
    IncompleteDownloadError,
    JournalError,
    RegardsError,
    ServiceLoginError,
    TrackingError,
)
from regards_nb.events import REST_APP_ID, OrderStatus
from regards_nb.orders import GONE
from regards_nb.output import say
from regards_nb.text import counted, did_you_mean, doubled, numbered, raised_at
from regards_nb.threads import JobThreads, OwnThread
from regards_nb.tracker.downloads import asking_for_deleted
from regards_nb.tracker.fetch import DownloadRequest
from regards_nb.tracker.shared import LOOK_S, RECEIVING, HeldElsewhereError, advice_for_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future
    from typing import TypeAlias

    from regards_nb.events import OrderEvent
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.downloads import Downloads
    from regards_nb.tracker.life import Life
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import Shared

    #: A status or None for all, and the function to call with each of its events.
    Callback: TypeAlias = tuple[str | None, Callable[[OrderEvent], object]]

#: Events of this time are handled together: reading costs more per read than per event.
GATHER_S = 0.05
#: Maximum pause before a failed download is repeated, and repetitions of an incomplete one.
LONGEST_RETRY_S = 900.0
MOST_RETRIES = 3
#: REGARDS publishes a change of an order within this time after it has stored it.
_SAME_CHANGE_S = 10
#: Maximum number of orders with missing files that are named.
_MOST_TOLD = 3
#: Time until an order that another process downloads is checked again.
HELD_LOOK_S = 2.0

#: What automatic downloads want: a second process would fetch the same files once more.
_IF_FREE = DownloadRequest(if_free=True)

_log = logging.getLogger(__name__)

#: Minimum time between two writes of the cursor: a commit costs more than most callbacks.
SAVE_PERIOD_S = 1.0


class EventDispatcher:
    """Follows the events of one tracker, in a thread of its own, until it is stopped.

    It handles the events that are journalled after it was made, so it is made before the consumer
    starts. Before them it handles those that an earlier process journalled and did not hand on.
    *auto* downloads the files that they announce. *callbacks* are called one after the other, in
    their own thread; they are read anew for each event, so that they may grow. The threads hold the
    dispatcher and not its *owner*, the tracker, which can then be collected. *life* looks now and
    then whether a kernel receives messages.
    """

    #: The user is told of a callback that runs for longer.
    slow_s = 5.0

    def __init__(
        self,
        owner: object,
        shared: Shared,
        cursor: DispatchCursor,
        auto: AutoDownload | None,
        callbacks: list[Callback],
        *,
        life: Life,
    ) -> None:
        self._shared = shared
        self._life = life
        self._cursor = cursor
        self._auto = auto
        self._callbacks = callbacks
        self._stop = threading.Event()
        self._queue = shared.frames.follow(cursor.start())
        self._threads = JobThreads("callback", 1)
        #: The call that runs, or the last one.
        self._running = "a callback"
        #: When it began; None: no call runs.
        self._began_s: float | None = None
        #: What comes after the calls of the events so far; None: there was none.
        self._last_job: Future[None] | None = None
        #: Each is counted by one thread alone.
        self._submitted = self._begun = 0
        #: Which callback runs for long, and how many calls wait behind it; empty without one.
        self.slow_callback = ""
        #: The call and the time in that text.
        self._told: tuple[str, float] | None = None
        self._is_over = False
        #: What REST has told, when by the clock of the server, and to which callbacks; by tenant,
        #: number and status, until the message comes that says the same.
        self._told_by_rest: dict[
            tuple[str | None, int | None, str],
            tuple[int | None, list[Callable[[OrderEvent], object]]],
        ] = {}
        self._thread = OwnThread(
            "dispatch",
            self._follow,
            does="hands events to callbacks and downloads",
            died=partial(shared.errors.record, RECEIVING),
            stop=self._stop,
            owner=owner,
            awaits="the last events",
            obstacle=shared.journal.obstacle,
        )

    @property
    def death(self) -> TrackingError | None:
        """The error that has ended the thread."""
        return self._thread.death

    def start(self) -> None:
        """Start the thread; later calls do nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self, timeout_s: float) -> str:
        """Call the callbacks of all events journalled so far, and end the thread.

        See `JobThreads.finish`.
        """
        self._stop.set()
        self._shared.signal.send()
        if self._thread.ident is None:
            self._shared.frames.unfollow(self._queue)
        elif self._thread is not threading.current_thread():
            self._thread.end(timeout_s)
        unended = self._threads.finish(
            timeout_s, lambda: self._running, then="; the next start() makes the calls left out"
        )
        self._is_over = True  # the thread may still wait for the journal, and makes no call then
        self._cursor.save(at_once=True)
        return unended

    def _follow(self) -> None:
        try:
            seen = -1
            while not self._stop.is_set():
                is_needed = bool(self._callbacks) or self._auto is not None
                if not is_needed:
                    # Nobody is handed an event: only look whether another kernel has written some.
                    self._stop.wait(LOOK_S)
                before, seen = seen, self._shared.signal.wait(seen, LOOK_S if is_needed else 0)
                if self._step(self._auto) and seen == before:
                    # Another kernel has written the events; wake the threads that wait.
                    self._shared.signal.send()
                self._look()
                self._life.look()
                self._cursor.save()
                if is_needed:
                    self._stop.wait(GATHER_S)
            # The journal holds these events from now on, so the next process does not call for
            # them.
            self._step(None)
        finally:
            # The tracker may have been collected without a stop().
            self._shared.frames.unfollow(self._queue)

    def _step(self, auto: AutoDownload | None) -> bool:
        """Handle the new events; return whether there were any."""
        frames, errors = self._shared.frames, self._shared.errors
        try:
            frames.refresh(exact=False)
        except JournalError as exc:
            # An outage ends by itself, and every call of the user tells it while it lasts.
            _log.warning("the journal cannot be read, and is read again: %s", exc)
            return False
        read_up_to = frames.read_up_to
        news = [self._queue.popleft() for _ in range(len(self._queue))]
        self._call([event for _, events in news for event in events], read_up_to)
        changed = dict.fromkeys(key for keys, _ in news for key in keys)
        if auto is not None:
            try:
                auto.begin_all(list(changed))
            except RegardsError as exc:
                errors.record("starting downloads", exc)
        return bool(changed)

    def _call(self, events: list[OrderEvent], read_up_to: tuple[int, int]) -> None:
        """Call the callbacks with events, which are all up to a generation and a row."""
        registered = list(self._callbacks)
        if self._is_over or not events:
            return
        is_busy = self._last_job is not None and not self._last_job.done()
        for event in events if registered else ():
            called = [each for status, each in registered if status in (None, event.status)]
            for callback in self._new_to(called, event):
                self._submitted += 1
                self._threads.submit(partial(self._guarded, callback, event))
                is_busy = True
        advance = partial(self._cursor.advance, *read_up_to)
        if is_busy:  # after the callbacks, in their thread
            self._last_job = self._threads.submit(advance)
        else:
            advance()

    def _new_to(
        self, callbacks: list[Callable[[OrderEvent], object]], event: OrderEvent
    ) -> list[Callable[[OrderEvent], object]]:
        """Return the callbacks to which REST has not told before what a late message tells.

        The number of a sub-order is in its message alone, so that is always new.
        """
        told = (event.tenant, event.order_id, event.status)
        if event.app_id == REST_APP_ID and event.status != OrderStatus.SUBORDER_DONE:
            self._told_by_rest[told] = event.timestamp_s, callbacks
        elif before := self._told_by_rest.pop(told, None):
            rest_s, known = before
            message_s = event.timestamp_s
            # A later one is that of another run of the order.
            if rest_s is None or message_s is None or message_s <= rest_s + _SAME_CHANGE_S:
                return [each for each in callbacks if each not in known]
        return callbacks

    def _look(self) -> None:
        """Say which call runs for long."""
        began_s = self._began_s
        ran_s = 0.0 if began_s is None else doubled(time.monotonic() - began_s, self.slow_s)
        told = (self._running, ran_s) if ran_s else None
        if told == self._told:
            return
        self._told = told
        others = counted(self._submitted - self._begun, "other call")
        text = f"{self._running} runs since {ran_s:.0f} s, and holds up {others}"
        self.slow_callback = text if told else ""
        self._shared.signal.send()

    def _guarded(self, callback: Callable[[OrderEvent], object], event: OrderEvent) -> None:
        name = getattr(callback, "__name__", repr(callback))
        self._running = f"callback {name} on {event.status} of order {event.order_id}"
        self._begun += 1
        if not any(each == callback for _, each in self._callbacks):
            return  # off() was called meanwhile
        self._began_s = time.monotonic()
        try:
            callback(event)
        # Also SystemExit: in this thread nobody else would tell of it.
        except BaseException as exc:  # noqa: BLE001 - the user's code must not stop the tracking
            self._shared.errors.record(
                f"callback {name} on {event.status}",
                exc,
                where=f" {raised_at(exc)}",
                source=source_of(callback),
                order=event.order_id or event.correlation_id,
                said_of=partial(_by_hand, name, event.status),
            )
        finally:
            self._began_s = None


def checked_callback(status: str | None, callback: Callable[[OrderEvent], object]) -> Callback:
    """Return both as they are kept; warn of a status that REGARDS has not named so far.

    SettingsError: *callback* cannot be called, not with one argument, or its body would not run.
    """
    check_texts(status=status)
    check_function("callback", callback, "the OrderEvent")
    if status is None:
        return None, callback
    if status not in OrderStatus.__members__:
        # No error: a newer server may send other statuses, and their events are kept, too.
        meant = did_you_mean(status, map(str, OrderStatus)) or f"Known are {', '.join(OrderStatus)}"
        warnings.warn(f"no event is known to have the status {status!r}. {meant}", stacklevel=3)
    return str(status), callback


def _by_hand(name: str, status: str, orders: Sequence[int | str]) -> str:
    """Return for which orders a callback failed, and an expression that calls it for them."""
    function = name if name.isidentifier() else "function"
    return (
        f", for {numbered(orders)}. The tracker does not call it again for "
        f"{'them' if len(orders) > 1 else 'it'}. By hand: [{function}(event) for order in "
        f"{list(orders)} for event in tracker[order].events.itertuples() if event.status == "
        f"{status!r}]"
    )


def source_of(callback: Callable[[OrderEvent], object]) -> str:
    """Return the name under which the errors of a callback are recorded."""
    # Two bound methods of one object are equal and have the same text.
    return f"callback {callback!r}"


@dataclass(slots=True)
class _Tries:
    """The downloads of an order so far."""

    #: Before this time it is not looked at again.
    next_s: float = 0.0
    #: That time for a user, and what to do before it.
    next_try: str = ""
    #: Why the last one failed, and whether it was because files are missing; empty after a success.
    error: str = ""
    is_incomplete: bool = False
    #: How many in a row failed like the last one.
    failures: int = 0
    #: Whether another process downloads it.
    is_held: bool = False

    def look_later(self) -> None:
        """Look at the order again when the other process may have downloaded it."""
        self.is_held = True
        self.next_s, self.next_try = time.monotonic() + HELD_LOOK_S, ""


class AutoDownload:
    """Downloads the files that wait, and tries again what failed.

    One thread begins downloads. Any thread may ask `will_try`. After each round of *sync*, all
    orders are searched for files that wait for a download.
    """

    first_retry_s = 5.0

    def __init__(self, shared: Shared, downloads: Downloads, sync: RestSync | None) -> None:
        self._shared = shared
        self._downloads = downloads
        self._sync = sync
        self._seen_rounds = -1
        #: Whether one has failed that no later try can mend.
        self.is_hopeless = False
        #: The orders to look at.
        self._tries: dict[OrderKey, _Tries] = {}
        downloads.automatic.add(self)

    def failure(self, states: Iterable[OrderState]) -> str:
        """Return a sentence on the first of some orders whose last download failed; else empty."""
        failed = {key: tries for key, tries in list(self._tries.items()) if tries.error}
        for state in states if failed else ():
            if (tries := failed.get(state.key)) and (state.to_download or _lacks_some(state)):
                then = self._next_try(state.key)
                return f"the download of order {state.order_id} failed: {tries.error}{then}"
        return ""

    def _next_try(self, key: OrderKey) -> str:
        """Return when an order is tried again, by this or by another one that runs."""
        now_s = time.monotonic()
        all_tries = [each.tries_of(key) for each in list(self._downloads.automatic)]
        coming = [tries for tries in all_tries if tries.next_try and tries.next_s > now_s]
        return min(coming, key=attrgetter("next_s")).next_try if coming else ""

    def tries_of(self, key: OrderKey) -> _Tries:
        """Return the downloads of an order so far."""
        return self._tries.get(key) or _Tries()

    def is_held(self, state: OrderState) -> bool:
        """Return whether another process downloaded the order when this one looked last."""
        return self.tries_of(state.key).is_held

    def tell_missing(self, states: Iterable[OrderState]) -> None:
        """Say why files of some orders are not here, of the first few."""
        with asking_for_deleted(states):
            texts = filter(None, map(self._missing, states))
            told = "; ".join(islice(texts, _MOST_TOLD))
        if told:
            say(told)

    def _missing(self, state: OrderState) -> str:
        if state.is_refused:
            return f"{state.name} belongs to another user: REGARDS refuses its files"
        if state.lacks_files:
            return advice_for_missing(state)
        if state.ready_row and state.status not in GONE:
            return self.failure([state]) if state.to_download else ""
        error = self._downloads.nothing_for(state)
        return "" if error is None else str(error)

    def will_try(self, order: OrderState) -> bool:
        """Return whether a download runs or begins at once: the first, or one of new files.

        A failed download that is tried again after a pause does not count.
        """
        tries = self.tries_of(order.key)
        return order.to_download if tries.is_incomplete else not tries.failures

    def try_now(self) -> None:
        """Try at once what has failed, because its cause has ended."""
        for tries in list(self._tries.values()):
            tries.next_s, tries.failures = 0.0, 0

    def begin_all(self, changed: list[OrderKey]) -> None:
        """Download the files that wait: of changed orders and, after a REST sync, of all."""
        rounds = 0 if self._sync is None else self._sync.rounds
        if rounds != self._seen_rounds:
            self._seen_rounds = rounds
            changed = [s.key for s in self._shared.frames.states().where("to_download")]
        self.begin(changed)

    def begin(self, keys: Iterable[OrderKey]) -> None:
        """Download the files of these orders that wait, and those whose pause is over."""
        for key in keys:
            self._tries.setdefault(key, _Tries())
        for key in list(self._tries):
            # A message may have told the correlation id of an order of which REST told the number.
            if key.correlation_id.startswith("#") and (told := self._shared.key_of(key)) != key:
                self._tries.setdefault(told or key, self._tries.pop(key))
        now_s = time.monotonic()
        known = list(self._tries.items())
        due = [k for k, t in known if t.is_incomplete or t.is_held or t.next_s <= now_s]
        for state in self._shared.states(due):
            tries = self._tries.setdefault(state.key, _Tries())
            if tries.is_incomplete and state.to_download:
                # What an incomplete download lacks waits for its turn, what was announced since
                # does not.
                tries.is_incomplete, tries.failures, tries.next_s = False, 0, now_s
            # The other process has fetched what it held.
            is_settled = tries.is_held and not (state.to_download or tries.is_incomplete)
            if state.downloading or (tries.next_s > now_s and not is_settled):
                continue
            is_incomplete = tries.is_incomplete and state.status not in GONE and _lacks_some(state)
            if state.order_id is None or not (state.to_download or is_incomplete):
                del self._tries[state.key]
                if tries.is_held:
                    self._downloads.record_missing(state)  # the other process tells its own user
            elif self._shared.holders.of(state):
                tries.look_later()
            else:
                tries.is_held = False
                future = self._downloads.begin_recording_errors(
                    state, _IF_FREE, caller=self, is_repeated=is_incomplete
                )
                future.add_done_callback(partial(self._ended, state))

    def leave(self, *, is_stopped: bool) -> list[int]:
        """Want no download any more; see `Downloads.leave`."""
        self._downloads.automatic.discard(self)
        return self._downloads.leave(self, is_stopped=is_stopped)

    def _ended(self, order: OrderState, done: Future[None]) -> None:
        if done.cancelled():
            return
        error, tries = done.exception(), self._tries.setdefault(order.key, _Tries())
        if isinstance(error, HeldElsewhereError):
            tries.look_later()
            return
        if error is None or order.order_id in self._shared.frames.refused:
            self._tries[order.key] = _Tries()
            return
        self.is_hopeless = self.is_hopeless or is_unusable(error)
        is_incomplete = isinstance(error, IncompleteDownloadError)
        if is_incomplete is not tries.is_incomplete:
            tries.failures = 0
        tries.error, tries.is_incomplete = str(error), is_incomplete
        if is_incomplete and tries.failures == MOST_RETRIES:
            # The missing files stay FAILED in the frame; a call of download() tries them again.
            tries.is_incomplete = False
            return
        wait_s = min(self.first_retry_s * 2**tries.failures, LONGEST_RETRY_S)
        tries.failures += 1
        tries.next_s = time.monotonic() + wait_s
        tries.next_try = ""
        if not isinstance(error, ServiceLoginError):  # it tells when the next login comes
            next_at = datetime.now(UTC) + timedelta(seconds=wait_s)
            at_once = f"tracker.download({order.order_id}) tries at once"
            tries.next_try = f"; the next try comes at {next_at:%H:%M:%S} UTC, {at_once}"


def _lacks_some(state: OrderState) -> bool:
    """Return whether files are not here; a call of the user may have downloaded what failed."""
    return state.downloaded_files < (state.files_total or 1)


class DispatchCursor:
    """The last row whose callbacks have returned, stored in the journal.

    A process that was killed leaves it behind the newest row, and the next process calls again from
    there: each event reaches the callbacks at least once. Trackers with the same queue and tenant
    share it. A reader, which writes nothing to the journal, stores none: *is_stored* is False.
    """

    def __init__(
        self, journal: Journal, queue: str | None, tenant: str | None, *, is_stored: bool
    ) -> None:
        self._journal = journal
        self._is_stored = is_stored
        digest = hashlib.blake2b(json.dumps([queue, tenant]).encode(), digest_size=12)
        self._name = digest.hexdigest()
        self._saved = self._done = (-1, 0)
        self._not_before_s = 0.0

    def start(self) -> int:
        """Return the row after which to begin: the cursor, or the newest row if there is none.

        A first cursor is written with the next write of this process, so before its first message:
        the process may be killed before it has called anything.
        """
        if not self._is_stored:
            return self._journal.last_id()
        generation = self._journal.generation
        found = self._journal.cursors.read(self._name)
        if found is not None:
            return found
        newest_id = self._journal.last_id()
        self._journal.cursors.begin(self._name, newest_id, generation=generation)
        return newest_id

    def advance(self, generation: int, row_id: int) -> None:
        """Store that the callbacks up to a row of a generation of the journal have returned."""
        self._done = (generation, row_id)

    def save(self, *, at_once: bool = False) -> None:
        """Write the cursor if it has advanced and was not written within `SAVE_PERIOD_S`."""
        if not self._is_stored:
            return
        done = self._done
        now_s = time.monotonic()
        if done == self._saved or (now_s < self._not_before_s and not at_once):
            return
        self._not_before_s = now_s + SAVE_PERIOD_S
        try:
            self._journal.cursors.advance(self._name, done[1], generation=done[0])
        except JournalError as exc:
            _log.warning("the position of the callbacks was not written: %s", exc)
        else:
            self._saved = done
