"""The consumer thread: one link after the other, for ever, until stopped."""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from regards_nb.consumer.health import Health, HealthState
from regards_nb.consumer.link import AmqpParameters, ConnectionLost, Link, describe
from regards_nb.consumer.redelivery import InDoubt
from regards_nb.errors import BrokerError, BrokerUnreachableError, JournalError, TrackingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.events import Delivery
    from regards_nb.journal import Journal

_log = logging.getLogger(__name__)

#: Full-jitter back-off between two attempts: anything up to FIRST * 2**failures, at most LONGEST.
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 4.0

#: How far back a redelivered message is looked for. A broker that crashed can forget the
#: acknowledgements of its last moments, so this reaches beyond what was not acknowledged.
DOUBT_ROWS = 100_000


class Consumer:
    """Reads one queue into the journal, in a thread of its own.

    Parameters
    ----------
    parameters : pika.connection.Parameters
    queue : str
        Declared passively only.
    journal : Journal
    changed : callable
        Called without arguments, in the thread, when rows were journalled or the health changed.
        It must be quick, must not raise, and must not hold the consumer's owner.
    """

    def __init__(
        self,
        parameters: AmqpParameters,
        queue: str,
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        self._parameters = parameters
        self._queue = queue
        self._journal = journal
        self._changed = changed
        self._control = _Control(changed)
        self._thread: threading.Thread | None = None

    @property
    def health(self) -> Health:
        """What the thread is doing now."""
        return self._control.health

    @property
    def is_running(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, timeout_s: float) -> None:
        """Start the thread and return once it is consuming.

        Raises
        ------
        BrokerError
            The broker refused, or nobody answered within *timeout_s*.
        JournalError
            The journal cannot be written.
        """
        if self.is_running:
            return
        control = self._control = _Control(self._changed)
        # The thread is given what it needs and not the consumer, so that a tracker that a
        # notebook forgot can be collected, and its thread ends. It is a daemon, because a kernel
        # restart must not wait for a broker.
        self._thread = threading.Thread(
            target=_run,
            args=(self._parameters, self._queue, self._journal, control),
            name="regards-nb-consumer",
            daemon=True,
        )
        weakref.finalize(self, control.request_stop, 1.0).atexit = False
        self._thread.start()
        try:
            control.started.result(timeout_s)
        except TimeoutError:
            control.request_stop(1.0)
            raise BrokerUnreachableError(
                f"{describe(self._parameters)} did not answer within {timeout_s:g} s"
            ) from None
        except BaseException:
            control.request_stop(1.0)
            raise

    def stop(self, timeout_s: float) -> None:
        """End the thread: politely first, by closing the socket after half of *timeout_s*.

        Raises
        ------
        TrackingError
            The thread did not end in time. It is a daemon and holds up nothing.
        """
        thread = self._thread
        if thread is None:
            return
        self._control.request_stop(timeout_s / 2)
        thread.join(timeout_s)
        if thread.is_alive():
            raise TrackingError(
                f"the consumer of {self._queue!r} did not end within {timeout_s:g} s; it will "
                "when its current step is over"
            )
        self._thread = None


class _Control:
    """What the thread and its owner share. Both only replace whole values under the lock."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self.started: Future[None] = Future()
        self.health = Health()
        self._changed = changed
        self._link: Link | None = None
        self._lock = threading.Lock()

    def report(self, state: HealthState, reason: str | None = None) -> None:
        """Change the state; one that stays the same keeps its beginning."""
        since = self.health.since if state is self.health.state else datetime.now(UTC)
        self._replace(replace(self.health, state=state, reason=reason, since=since))

    def report_depth(self, messages: int) -> None:
        self._replace(replace(self.health, queue_depth=messages))

    def report_event(self) -> None:
        self._replace(replace(self.health, last_event=datetime.now(UTC)))

    def _replace(self, health: Health) -> None:
        self.health = health
        self._changed()

    def hold(self, link: Link | None) -> None:
        """Say which link lives now, so that it can be asked to end."""
        with self._lock:
            self._link = link

    def request_stop(self, within_s: float) -> None:
        """Ask the thread to end, the current link within *within_s*."""
        self.stop.set()
        with self._lock:
            if self._link is not None:
                self._link.ask_to_end(within_s)


class _Receiver:
    """Journals what one link brings, leaving out what is in the journal already."""

    def __init__(self, queue: str, journal: Journal, control: _Control) -> None:
        self._queue = queue
        self._journal = journal
        self._control = control
        self._session_id: int | None = None
        self._in_doubt = InDoubt()
        self._looked_up_to = 0

    def next_offset(self) -> int | None:
        return self._journal.next_offset(self._queue)

    def consuming(self) -> None:
        self._control.report(HealthState.CONSUMING)
        if not self._control.started.done():
            self._control.started.set_result(None)

    def depth(self, messages: int) -> None:
        self._control.report_depth(messages)

    def held_up(self, error: JournalError) -> None:
        self._control.report(HealthState.RECONNECTING, f"{error} Nothing is acknowledged meanwhile")

    def keep(self, deliveries: Sequence[Delivery]) -> None:
        if self._session_id is None:
            self._session_id = self._journal.open_session(self._queue)
        if any(delivery.stream_offset is not None for delivery in deliveries):
            self._journal.append(self._session_id, deliveries, stream=self._queue)
        elif any(delivery.redelivered for delivery in deliveries):
            new = self._without_known(deliveries, self._session_id)
            self._journal.append(self._session_id, new)
        else:
            self._journal.append(self._session_id, deliveries)
        if self._control.health.state is not HealthState.CONSUMING:
            self._control.report(HealthState.CONSUMING)
        self._control.report_event()

    def _without_known(self, deliveries: Sequence[Delivery], session_id: int) -> list[Delivery]:
        """Drop the redelivered messages that are in the journal already."""
        # Also rows that another kernel added meanwhile: its messages come to us when it dies.
        newest_id = self._journal.last_id()
        self._in_doubt.add(
            self._journal.recent(
                self._queue, after_id=self._looked_up_to, not_of=session_id, limit=DOUBT_ROWS
            )
        )
        self._looked_up_to = newest_id
        return [d for d in deliveries if not (d.redelivered and self._in_doubt.claim(d))]


def _run(parameters: AmqpParameters, queue: str, journal: Journal, control: _Control) -> None:
    control.report(HealthState.CONNECTING)
    failures = 0
    reason: BaseException | None = None
    while not control.stop.is_set():
        born = time.monotonic()
        # Without a goodbye from the broker, it may have been a message that pika cannot read.
        mending = reason is not None and isinstance(reason.__cause__, ConnectionLost)
        reason = _live(parameters, queue, journal, control, mending=mending)
        if control.stop.is_set():
            break
        if not control.started.done():
            control.report(HealthState.FAILED, str(reason))
            control.started.set_exception(reason)
            return
        if time.monotonic() - born > LONGEST_BACKOFF_S:
            failures = 0
        control.report(HealthState.RECONNECTING, str(reason))
        _log.warning("%s", reason)
        control.stop.wait(random.uniform(0, min(FIRST_BACKOFF_S * 2**failures, LONGEST_BACKOFF_S)))
        failures += 1
    control.report(HealthState.STOPPED)
    if not control.started.done():
        control.started.set_exception(TrackingError("stopped before it was consuming"))


def _live(
    parameters: AmqpParameters,
    queue: str,
    journal: Journal,
    control: _Control,
    *,
    mending: bool,
) -> BaseException:
    """Live through one link and return why it ended."""
    receiver = _Receiver(queue, journal, control)
    link = Link(parameters, queue, receiver, mending=mending)
    control.hold(link)
    try:
        if not control.stop.is_set():
            link.run()
    except BrokerError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - a thread that dies silently would lose every later event
        _log.exception("the consumer met an unexpected error and goes on")
        error = BrokerError(f"unexpected: {type(exc).__name__}: {exc}")
        error.__cause__ = exc
        return error
    finally:
        control.hold(None)
    return BrokerError("ended")
