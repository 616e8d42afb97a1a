"""When REGARDS is asked over REST: after a start, a reconnect, an action, or a long silence.

With a broker the messages tell what happens, and asking is for what was missed. Without one,
asking is all there is, and `Poller` stands where the consumer stands otherwise.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from regards_nb.consumer import Health, HealthState
from regards_nb.errors import RegardsError, ServiceUnreachableError, SettingsError, TrackingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.tracker.asking import Asking
    from regards_nb.tracker.problems import Problems

_log = logging.getLogger("regards_nb")

#: The documentation has it that an order without a sub-order for two hours has failed. Nothing
#: on the server sees to that (protocol.md 1.7), so nobody should wait two hours for it to come
#: true: after a quarter of an hour without a message the server itself is asked.
SILENCE_S = 900.0
#: What was waiting in the queue comes in the first moments: it is not asked for.
SETTLE_S = 2.0
LONGEST_SILENCE_S = 3600.0
#: A queue that holds messages and brings none for so long is not waited for.
_QUEUE_STANDS_S = 60.0
FIRST_RETRY_S = 30.0

#: Without a broker: how often is asked while things change, and at most while they do not.
POLL_S = 10.0
LONGEST_POLL_S = 60.0
_TICK_S = 1.0


class CatchUp:
    """Asks for what the messages did not say, in a thread of its own.

    Parameters
    ----------
    asking : Asking
    problems : Problems
    health : callable
        Returns what the consumer is doing, or None once there is no consumer.
    silence_s : float
        How long no message comes before unfinished orders are asked for.
    settle_s : float
        How long the queue is left to itself after a connect.
    """

    def __init__(
        self,
        asking: Asking,
        problems: Problems,
        health: Callable[[], Health | None],
        *,
        silence_s: float,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._stop = threading.Event()
        rounds = _Rounds(asking, problems)
        # Given what it needs and not the tracker, which can then be collected.
        self._thread = threading.Thread(
            target=_catch_up,
            args=(rounds, health, self._stop, silence_s, settle_s),
            name="regards-nb-catchup",
            daemon=True,
        )
        weakref.finalize(self, self._stop.set).atexit = False
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread; one that waits for an answer ends when it has it."""
        self._stop.set()
        self._thread.join(timeout_s)


class _Rounds:
    """Asks, and turns what goes wrong into waiting, or into a problem that is told once."""

    def __init__(self, asking: Asking, problems: Problems) -> None:
        self.asking = asking
        self._problems = problems
        self._told = ""
        self.failures = 0

    def ask(self) -> bool:
        """Ask for the unfinished orders; tell whether anything was new."""
        try:
            changed = self.asking.ask_unfinished()
        except ServiceUnreachableError as exc:
            # It passes; the messages come all the same.
            _log.warning("asking for unfinished orders: %s", exc)
            self._failed(exc)
        except RegardsError as exc:
            if str(exc) != self._told:
                self._problems.record("asking for unfinished orders", exc)
            self._failed(exc)
        else:
            self.failures, self._told = 0, ""
            return changed
        return False

    def _failed(self, error: RegardsError) -> None:
        self.failures += 1
        self._told = str(error)

    @property
    def error(self) -> str:
        """What went wrong last; empty where it went well."""
        return self._told

    def retry_s(self, usual_s: float) -> float:
        """Return how long to wait for the next round."""
        if not self.failures:
            return usual_s
        return min(FIRST_RETRY_S * 2.0 ** (self.failures - 1), SILENCE_S)


def _catch_up(
    rounds: _Rounds,
    health_of: Callable[[], Health | None],
    stop: threading.Event,
    silence_s: float,
    settle_s: float,
) -> None:
    asked_at: datetime | None = None
    pause_s = silence_s
    not_before_s = 0.0
    while not stop.wait(min(_TICK_S, settle_s)):
        health = health_of()
        if health is None:
            return
        if health.state is not HealthState.CONSUMING or time.monotonic() < not_before_s:
            continue
        now = datetime.now(UTC)
        last_sign = max(health.since, health.last_event or health.since)
        quiet_s = (now - last_sign).total_seconds()
        if quiet_s < settle_s or (health.queue_depth and quiet_s < _QUEUE_STANDS_S):
            continue
        missed = asked_at is None or asked_at < health.since
        silent_s = (now - max(last_sign, asked_at or last_sign)).total_seconds()
        if not (missed or silent_s >= pause_s or rounds.asking.take_due()):
            continue
        asked_at = now
        changed = rounds.ask()
        pause_s = silence_s if changed else min(2 * pause_s, max(LONGEST_SILENCE_S, silence_s))
        if rounds.failures:
            asked_at = None
            not_before_s = time.monotonic() + rounds.retry_s(silence_s)


class Poller:
    """Stands where the consumer stands when there is no broker: asks over REST now and then.

    Parameters
    ----------
    asking : Asking
    problems : Problems
    changed : callable
        Called when the health changed.
    poll_s : float
        How often is asked while orders change. It becomes six times less often while they do not.
    """

    def __init__(
        self,
        asking: Asking,
        problems: Problems,
        changed: Callable[[], None],
        *,
        poll_s: float,
    ) -> None:
        if poll_s <= 0:
            raise SettingsError(f"poll_s must be more than 0 seconds, not {poll_s:g}")
        self._asking = asking
        self._problems = problems
        self._changed = changed
        self._poll_s = poll_s
        self._board = _HealthBoard(changed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def health(self) -> Health:
        """Whether REGARDS answers."""
        return self._board.health

    @property
    def is_running(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, timeout_s: float) -> None:  # noqa: ARG002 - the client has its own limits
        """Log in, ask once, and go on asking in a thread.

        Raises
        ------
        ServiceError
            The login is refused, or nobody answers.
        """
        if self.is_running:
            return
        try:
            # One order is enough to know whether the login is accepted.
            next(self._asking.client.iter_orders(page_size=1), None)
            self._asking.ask_unfinished()
        except RegardsError as exc:
            self._board.report(HealthState.FAILED, str(exc))
            raise
        self._stop = threading.Event()
        self._board.report(HealthState.POLLING, _polling(self._poll_s))
        self._thread = threading.Thread(
            target=_poll,
            args=(_Rounds(self._asking, self._problems), self._board, self._stop, self._poll_s),
            name="regards-nb-poll",
            daemon=True,
        )
        weakref.finalize(self, self._stop.set).atexit = False
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread.

        Raises
        ------
        TrackingError
            It waits for an answer and did not end in time.
        """
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is None:
            return
        thread.join(timeout_s)
        self._board.report(HealthState.STOPPED)
        if thread.is_alive():
            raise TrackingError(
                f"asking over REST did not end within {timeout_s:g} s; it will when the server "
                "has answered"
            )


class _HealthBoard:
    """The health that the thread writes and everybody reads."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.health = Health()
        self._changed = changed

    def report(self, state: HealthState, reason: str | None = None) -> None:
        """Change the state; one that stays the same keeps its beginning."""
        since = self.health.since if state is self.health.state else datetime.now(UTC)
        self.health = replace(self.health, state=state, reason=reason, since=since)
        self._changed()

    def report_event(self) -> None:
        """Note that something new was heard."""
        self.health = replace(self.health, last_event=datetime.now(UTC))
        self._changed()


def _poll(rounds: _Rounds, board: _HealthBoard, stop: threading.Event, poll_s: float) -> None:
    pause_s = poll_s
    known: set[int] = set()
    next_s = time.monotonic() + pause_s
    while not stop.wait(min(_TICK_S, poll_s)):
        unfinished = set(rounds.asking.unfinished())
        if unfinished - known:  # somebody has just ordered, and wants to see it move
            pause_s, next_s = poll_s, min(next_s, time.monotonic() + poll_s)
        known = unfinished
        if time.monotonic() < next_s and not rounds.asking.take_due():
            continue
        changed = rounds.ask()
        if rounds.failures:
            board.report(HealthState.RECONNECTING, rounds.error)
        elif board.health.state is not HealthState.POLLING:
            board.report(HealthState.POLLING, _polling(poll_s))
        if changed:
            board.report_event()
        pause_s = poll_s if changed else min(1.5 * pause_s, max(LONGEST_POLL_S, poll_s))
        next_s = time.monotonic() + rounds.retry_s(pause_s)


def _polling(poll_s: float) -> str:
    longest_s = max(LONGEST_POLL_S, poll_s)
    return (
        f"no broker: while orders are unfinished, REGARDS is asked over REST every {poll_s:g} to "
        f"{longest_s:g} s"
    )
