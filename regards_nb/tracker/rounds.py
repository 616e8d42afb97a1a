"""When REST sync asks.

`catching_up` decides it beside a broker, `Poller` without one, `AskingMeanwhile` in a wait. A call
of `OrderTracker.download` asks, too (`Downloads.ask`), and `OrderTracker.sync` for the newest.
"""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from regards_nb.consumer import HealthReport, HealthState
from regards_nb.errors import (
    JournalError,
    NotAllowedError,
    RegardsError,
    ServiceLoginError,
    ServiceUnreachableError,
    SettingsError,
    TrackingError,
)
from regards_nb.threads import OwnThread
from regards_nb.tracker.shared import RECEIVING
from regards_nb.waits import ended_by, growing, in_thread, limited, pause

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from regards_nb.consumer import Consumer, Health
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import Shared

LONGEST_SILENCE_S = 3600.0
#: Instead of ``silence_s`` until the first message: perhaps none can come.
_UNHEARD_S = 30.0
#: After a connect, messages that waited in the queue arrive in the first moments.
SETTLE_S = 2.0
#: Time after which REST is asked although the queue holds messages, which it does not deliver.
_STALLED_QUEUE_S = 60.0
#: During a wait REST is asked at once, and after the first of these times without a change; the
#: pauses between two questions double up to the second time.
_UNMOVED_S, _LONGEST_UNMOVED_S = 2.0, 300.0
#: Without a broker: the pause between two rounds while orders change, and while they do not.
POLL_S = 10.0
LONGEST_POLL_S = 60.0
_TICK_S = 1.0


def catching_up(
    owner: object, sync: RestSync, consumer: Consumer, *, silence_s: float
) -> OwnThread:
    """Start a thread that asks after a connect, an action and a long silence.

    After *silence_s* without a message the unfinished orders are asked for.
    """
    sync.failures, sync.error = 0, ""
    work = partial(_catch_up, sync, weakref.ref(consumer), silence_s)
    return _begin("catchup", work, "asks REGARDS after a connect and a silence", sync, owner)


def _begin(
    name: str, work: Callable[[], None], does: str, sync: RestSync, owner: object
) -> OwnThread:
    """Start a thread. It does not hold its *owner*, the tracker, which can then be collected."""
    thread = OwnThread(
        name,
        work,
        does=does,
        died=partial(sync.errors.record, RECEIVING),
        owner=owner,
        awaits=sync.where,
        obstacle=sync.obstacle,
    )
    thread.start()
    return thread


def _catch_up(sync: RestSync, consumer_of: weakref.ref[Consumer], silence_s: float) -> None:
    asked_at: datetime | None = None
    #: The number of rounds in turn that brought nothing new.
    unmoved = 0
    not_before_s, is_unheard_noted = 0.0, False
    while not pause(_TICK_S):
        consumer = consumer_of()
        if consumer is None:
            return
        with suppress(JournalError):
            sync.save_outcomes()
        health = consumer.health
        del consumer
        if time.monotonic() < not_before_s:
            continue
        if health.state is HealthState.RECONNECTING and sync.take_due():
            # A call of the user waits for what no message can tell now.
            sync.ask_round()
            not_before_s = time.monotonic() + sync.retry_s(0.0)
        if health.state is not HealthState.CONSUMING:
            continue
        now = datetime.now(UTC)
        last_sign = max(health.since, health.last_event or health.since)
        quiet_s = (now - last_sign).total_seconds()
        if quiet_s < SETTLE_S or (health.queue_depth and quiet_s < _STALLED_QUEUE_S):
            continue
        missed = asked_at is None or asked_at < health.since
        silent_s = (now - max(last_sign, asked_at or last_sign)).total_seconds()
        usual_s = silence_s if health.last_event else min(silence_s, _UNHEARD_S)
        pause_s = min(usual_s * 2.0 ** min(unmoved, 10), max(LONGEST_SILENCE_S, silence_s))
        if not (missed or silent_s >= pause_s or sync.take_due()):
            continue
        asked_at = now
        changed = sync.ask_round()
        with suppress(JournalError):  # an outage of the journal ends by itself, too
            unmoved = 0 if changed or not sync.unfinished() else unmoved + 1
        if not is_unheard_noted and (text := sync.unheard(health)):
            is_unheard_noted = True
            is_over = partial(_is_heard, sync, consumer_of)
            sync.errors.note(f"{text}. tracker.doctor() says what to do", is_over=is_over)
        if sync.failures:
            asked_at = None
            not_before_s = time.monotonic() + sync.retry_s(silence_s)


def _is_heard(sync: RestSync, consumer_of: weakref.ref[Consumer]) -> bool:
    consumer = consumer_of()
    return consumer is None or not sync.unheard(consumer.health)


class AskingMeanwhile:
    """Has REGARDS asked during a call that waits, while nothing moves.

    No message tells of the orders of another notebook. *end* ends a round that this runs itself.
    """

    def __init__(self, sync: RestSync, shared: Shared, end: threading.Event) -> None:
        self._sync = sync
        self._shared = shared
        self._end = end
        #: What is compared to see whether something moves; when REGARDS is asked next, and how long
        #: after that.
        self._moves: object = None
        self._next_s, self._pauses = 0.0, growing(_UNMOVED_S, _LONGEST_UNMOVED_S)

    def look(self, last_event: datetime | None) -> None:
        """Have REGARDS asked at once the first time, later when nothing has moved for a while."""
        moves, now_s = (last_event, frozenset(self._shared.downloads)), time.monotonic()
        if moves != self._moves:
            self._next_s = now_s + (0.0 if self._moves is None else _UNMOVED_S)
            self._moves, self._pauses = moves, growing(_UNMOVED_S, _LONGEST_UNMOVED_S)
        if now_s < self._next_s:
            return
        self._next_s = now_s + next(self._pauses)
        self._sync.ask_soon(0.0)
        if self._shared.asking.hangs:
            # The round that runs may be on a dead connection: ask beside it.
            with ended_by(self._end):
                in_thread(self._sync.ask_round)


class Poller:
    """Takes the place of the consumer without a broker: asks over REST at intervals.

    *changed* is called when the health changed. *poll_s* is the pause between two rounds while
    orders change; it is up to six times longer while they do not.
    """

    def __init__(self, sync: RestSync, changed: Callable[[], None], *, poll_s: float) -> None:
        if poll_s <= 0:
            raise SettingsError(f"poll_s must be more than 0 seconds, not {poll_s:g}")
        self._sync = sync
        self._poll_s = poll_s
        self._health = HealthReport(changed)

    @property
    def health(self) -> Health:
        """Whether REGARDS answers: the last round tells, of any thread."""
        health, error = self._health.health, self._sync.error
        if health.state is not HealthState.POLLING:
            return health
        health = replace(health, since=max(health.since, self._sync.since))
        if silent := self._sync.silence:
            health = replace(health, reason=f"{health.reason}; {silent}")
        return replace(health, state=HealthState.RECONNECTING, reason=error) if error else health

    def start(self, timeout_s: float) -> None:
        """Log in, ask once, and go on asking in a thread, also if the list cannot be read."""
        if (thread := self._health.thread) is not None and thread.is_alive():
            return
        sync = self._sync
        sync.failures, sync.error = 0, ""
        try:
            with limited(time.monotonic() + timeout_s):
                problem = self._ask_first()
                sync.open_session()
        except RegardsError as exc:
            self._health.report(HealthState.FAILED, str(exc))
            raise
        if problem is not None:
            sync.failed(problem)
        rate = f"every {self._poll_s:g} to {max(LONGEST_POLL_S, self._poll_s):g} s"
        text = f"polling REGARDS over REST {rate} (no RabbitMQ account)"
        self._health.report(HealthState.POLLING, text)
        work = partial(_poll, sync, self._health, self._poll_s)
        self._health.thread = _begin("poll", work, "asks REGARDS for the orders", sync, self)

    def _ask_first(self) -> RegardsError | None:
        """Ask for the orders; return why they cannot be read, if it is REGARDS that answers."""
        client = self._sync.client
        try:
            # One order is enough to know whether the login is accepted.
            next(client.iter_orders(page_size=1), None)
            self._sync.ask_unfinished()
        except (NotAllowedError, ServiceLoginError, ServiceUnreachableError):
            raise  # no later round would go better
        except RegardsError as exc:
            # After a login it is not a page of something else. A token has proved nothing so far.
            if client.login_form is None:
                try:
                    client.cart()
                except RegardsError:
                    raise exc from None
            return exc
        return None

    def stop(self, timeout_s: float) -> None:
        """End the thread; TrackingError if it did not end in time."""
        thread = self._health.thread
        if thread is None:
            return
        try:
            has_ended = thread.end(timeout_s)
        finally:
            self._health.report(HealthState.STOPPED)
        if not has_ended:
            raise TrackingError(f"polling over REST did not end within {timeout_s:g} s")


def _poll(sync: RestSync, health: HealthReport, poll_s: float) -> None:
    pause_s = poll_s
    known: set[int] = set()
    next_s = time.monotonic() + pause_s
    while not pause(min(_TICK_S, poll_s)):
        with suppress(JournalError):  # that of an outage: look again at the next tick
            sync.save_outcomes()
            unfinished = set(sync.unfinished())
            if unfinished - known:  # a new order: poll at the shortest pause again
                pause_s, next_s = poll_s, min(next_s, time.monotonic() + poll_s)
            known = unfinished
        if time.monotonic() < next_s and not sync.take_due():
            continue
        changed = sync.ask_round()
        if changed:
            health.report_event()
        pause_s = poll_s if changed else min(1.5 * pause_s, max(LONGEST_POLL_S, poll_s))
        next_s = time.monotonic() + sync.retry_s(pause_s)
