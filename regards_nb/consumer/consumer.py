"""The consumer thread: it opens one connection after the other until it is stopped."""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.consumer.addresses import AmqpParameters, addresses_of, describe
from regards_nb.consumer.connection import JOURNAL_RETRY_S, Connection, ConnectionLost
from regards_nb.consumer.errors import QueueDownError, combined_error
from regards_nb.consumer.redelivery import RedeliveryMatcher
from regards_nb.consumer.stream import StreamMatcher
from regards_nb.errors import (
    BrokerError,
    BrokerUnreachableError,
    JournalError,
    RegardsError,
    TrackingError,
)
from regards_nb.output import SAID_AFTER_S, say
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.events import Delivery
    from regards_nb.journal import Journal, RowReader

_log = logging.getLogger(__name__)

#: The thread of a start that was given up has ended after so long.
_GIVEN_UP_S = 5.0

#: Full-jitter back-off: a random time up to FIRST * 2**failures, at most LONGEST.
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 4.0

#: How many of the newest rows are compared with redelivered messages. A broker that crashed can
#: lose acknowledgements of its last moments, so this is more than the unacknowledged rows.
MAX_COMPARED_ROWS = 100_000

#: How long after its arrival a message may be delivered again on the same connection. The nodes of
#: a RabbitMQ cluster notice a broken link after up to 75 s (net_ticktime).
REDELIVERABLE_OWN_S = 300.0

#: A user is told from this number of returns on: RabbitMQ 4 drops a message at the 21st.
MANY_RETURNS = 10

#: After so many answers in a row (every 5 s) a queue that delivers nothing is reported.
SILENT_ANSWERS = 3

#: A connection that lasted longer is not cut soon after each connect.
STABLE_S = 60.0
MANY_CUTS = 3


class HealthState(StrEnum):
    """The states of a consumer."""

    #: Connecting for the first time.
    CONNECTING = "CONNECTING"
    #: Connected; messages are journalled as they arrive.
    CONSUMING = "CONSUMING"
    #: The connection was lost or the journal cannot be written; the consumer tries without end.
    RECONNECTING = "RECONNECTING"
    #: No broker: REGARDS is polled over REST.
    POLLING = "POLLING"
    #: `OrderTracker.reader`: another kernel writes the journal, this one reads it.
    READING = "READING"
    #: Not started, or stopped by the user.
    STOPPED = "STOPPED"
    #: ``start()`` failed, or the thread has ended by itself; ``reason`` says why.
    FAILED = "FAILED"


_ENDED = frozenset({HealthState.STOPPED, HealthState.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of the connection to RabbitMQ.

    Attributes
    ----------
    state : HealthState
    since : datetime.datetime
        When this state began (UTC).
    reason : str or None
        Why the consumer is in this state, if that needs an explanation.
    last_event : datetime.datetime or None
        When this process last journalled a message (UTC).
    queue_depth : int or None
        Messages in the queue when RabbitMQ was last asked; None for a stream.
    other_consumers : int
        Other consumers of the queue, each of which takes a part of its messages.
    address : str or None
        The address that is connected, without the password.
    """

    state: HealthState = HealthState.STOPPED
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    reason: str | None = None
    last_event: datetime | None = None
    queue_depth: int | None = None
    other_consumers: int = 0
    address: str | None = None


class Consumer:
    """Reads one queue into the journal, in a thread of its own.

    Several *parameters* are the nodes of a cluster: the next one is tried when one fails. *changed*
    is called in the thread when rows were journalled or the health changed, *died* with the error
    that has ended the thread. Both must be quick, must not raise, and must not hold the consumer's
    owner.
    """

    def __init__(
        self,
        parameters: AmqpParameters,
        queue: str,
        journal: Journal,
        changed: Callable[[], None],
        died: Callable[[TrackingError], object] | None = None,
    ) -> None:
        self._parameters = parameters
        self._queue = queue
        self._journal = journal
        self._changed = changed
        self._died = died
        self._shared = _SharedState(changed, died)
        # `start` of several threads must not start two of ours.
        self._starting = threading.Lock()

    @property
    def health(self) -> Health:
        """The current state of the thread."""
        shared = self._shared
        health = replace(shared.health, last_event=shared.last_event)
        if shared.has_thread_ended() and health.state not in _ENDED:
            # It could not say so itself. After a fork, the child process has no such thread.
            reason = str(_thread_ended(self._queue, None))
            return replace(health, state=HealthState.FAILED, reason=reason)
        return health

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        thread = self._shared.thread
        return thread is not None and thread.is_alive()

    def start(self, timeout_s: float) -> None:
        """Start the thread; return once it is consuming. After a second, say what it waits for."""
        with self._starting:
            if self._shared.stop.is_set():
                self._join(_GIVEN_UP_S)
            if not self.is_running:
                self._start_thread()
            shared = self._shared
        where = describe(self._parameters)
        try:
            with suppress(TimeoutError):
                shared.started.result(min(SAID_AFTER_S, timeout_s))
                return
            if timeout_s > SAID_AFTER_S:
                say(f"waiting for RabbitMQ at {where}, at most {timeout_s:g} s")
            shared.started.result(max(timeout_s - SAID_AFTER_S, 0))
        except TimeoutError:
            error = shared.unanswered(where, timeout_s)
            shared.request_stop(1.0)
            raise error from None
        except BaseException:
            shared.request_stop(1.0)
            raise

    def _start_thread(self) -> None:
        shared = _SharedState(self._changed, self._died)
        # The thread does not hold the consumer: a tracker that a notebook dropped can be
        # collected, and then its thread ends. The thread is a daemon, because a kernel restart must
        # not wait for a broker.
        shared.thread = threading.Thread(
            target=_run,
            args=(addresses_of(self._parameters), self._queue, self._journal, shared),
            name="regards-nb-consumer",
            daemon=True,
        )
        weakref.finalize(self, shared.request_stop, 1.0).atexit = False
        self._shared = shared
        shared.thread.start()

    def cancel_start(self) -> None:
        """End a `start` of another thread that still waits; it raises TrackingError."""
        if not self._shared.started.done():
            self._shared.request_stop(1.0)

    def stop(self, timeout_s: float) -> None:
        """Stop the thread; after half of *timeout_s*, close its socket without an AMQP close.

        TrackingError: it did not end in time. It is a daemon and does not delay the end of Python.
        """
        self._shared.request_stop(timeout_s / 2)
        self._join(timeout_s)

    def _join(self, timeout_s: float) -> None:
        thread = self._shared.thread
        if thread is None or not thread.is_alive():
            return
        thread.join(timeout_s)
        if thread.is_alive():
            raise TrackingError(
                f"the consumer of {self._queue!r} did not end within {timeout_s:g} s; it ends "
                "after its current step"
            )


class _SharedState:
    """The state that the thread shares with its owner. Values are replaced as a whole."""

    def __init__(
        self, changed: Callable[[], None], died: Callable[[TrackingError], object] | None
    ) -> None:
        self.thread: threading.Thread | None = None
        self.stop = threading.Event()
        self.started: Future[None] = Future()
        self.health = Health()
        #: of `Consumer.health`: it changes with each commit, and is read less often
        self.last_event: datetime | None = None
        self._changed = changed
        self._died = died
        #: what a user should know while messages are consumed, by kind
        self._notes: dict[str, str] = {}
        self._connection: Connection | None = None
        #: the errors of the addresses that were tried before that connection
        self.errors: list[RegardsError] = []
        #: the errors of the last round in which the queue was down
        self.last_round: list[RegardsError] = []
        #: `request_stop` of another thread must not miss a connection that is being made
        self._lock = threading.Lock()

    def has_thread_ended(self) -> bool:
        """Return whether the thread was started, and does not run any more."""
        thread = self.thread
        return thread is not None and thread.ident is not None and not thread.is_alive()

    def report_death(self, error: TrackingError) -> None:
        """Store the error that ends the thread."""
        self.report(HealthState.FAILED, str(error))
        if not self.started.done():
            self.started.set_exception(error)
        elif self._died is not None:
            self._died(error)

    def report(self, state: HealthState, reason: str | None = None) -> None:
        """Change the state; ``since`` changes only with it."""
        if state is HealthState.CONSUMING:
            reason = " ".join(self._notes.values()) or None
        since = self.health.since if state is self.health.state else datetime.now(UTC)
        self._replace(replace(self.health, state=state, reason=reason, since=since))

    def note(self, kind: str, text: str | None) -> None:
        """Set or remove what a user should know while messages are consumed."""
        if self._notes.get(kind) == text:
            return
        if text is None:
            del self._notes[kind]
        else:
            self._notes[kind] = text
            _log.warning("%s", text)
        if self.health.state is HealthState.CONSUMING:
            self.report(HealthState.CONSUMING)

    def report_address(self, address: str) -> None:
        self._replace(replace(self.health, address=address))

    def report_depth(self, messages: int | None) -> None:
        self._replace(replace(self.health, queue_depth=messages))

    def report_other_consumers(self, count: int) -> None:
        if count != self.health.other_consumers:
            self._replace(replace(self.health, other_consumers=count))

    def report_event(self) -> None:
        self.last_event = datetime.now(UTC)
        self._changed()

    def _replace(self, health: Health) -> None:
        self.health = health
        self._changed()

    def set_connection(self, connection: Connection | None) -> None:
        """Set the connection that `request_stop` closes."""
        with self._lock:
            self._connection = connection

    def unanswered(self, where: str, within_s: float) -> RegardsError:
        """Return the error of a start that took too long: what RabbitMQ has answered so far."""
        if self.last_round:
            return combined_error(self.last_round)
        with self._lock:
            awaited = self._connection.awaited if self._connection else "the connection"
            where = self._connection.where if self._connection else where
        error = BrokerUnreachableError(
            f"{where} did not answer within {within_s:g} s: RabbitMQ did not confirm {awaited}. It "
            "may be overloaded or stopped, or a firewall drops the connection: try again later, or "
            "ask the administrator"
        )
        return combined_error([*self.errors, error])

    def request_stop(self, within_s: float) -> None:
        """Ask the thread to end, and its connection to close within *within_s*."""
        self.stop.set()
        with self._lock:
            if self._connection is not None:
                self._connection.request_close(within_s)


class _JournalWriter:
    """Journals the messages of one connection, without those that are in the journal already."""

    def __init__(
        self,
        address: str,
        queue: str,
        journal: Journal,
        shared: _SharedState,
        stream: StreamMatcher,
    ) -> None:
        self._address = address
        self._queue = queue
        self._journal = journal
        self._shared = shared
        #: Messages of a quorum queue up to this row are acknowledged, and do not come again.
        self._cursor = f"acknowledged {blake2b(queue.encode(), digest_size=8).hexdigest()}"
        self._session_id = 0
        self._matcher = RedeliveryMatcher()
        self._consuming_since_s: float | None = None
        #: how often in a row RabbitMQ said that messages wait, and delivered none
        self._silent_answers = 0
        #: by id of a delivery that is not journalled yet
        self._delivery_counts: dict[int, int] = {}
        #: the newest rows that the matcher knows, of all sessions and of other sessions
        self._compared_up_to_id = 0
        self._taken_over_up_to_id = 0
        #: the newest row, unless another session writes
        self._expected_id = 0
        #: up to which row RabbitMQ was told that all are acknowledged, and has confirmed it
        self._acknowledged_up_to_id = self._confirmed_up_to_id = 0
        #: the generation of the files that these ids belong to
        self._generation = 0
        self._stream = stream

    @property
    def consumed_s(self) -> float | None:
        """The time since the first delivery in seconds; None before."""
        since_s = self._consuming_since_s
        return None if since_s is None else time.monotonic() - since_s

    def open_session(self) -> None:
        self._generation = self._journal.generation
        self._session_id = self._journal.open_session(self._queue)
        self._taken_over_up_to_id = self._expected_id = self._journal.last_id()
        self._confirmed_up_to_id = self._journal.cursors.read(self._cursor) or 0
        self._compared_up_to_id = self._confirmed_up_to_id

    def stream_start(self) -> int | None:
        return self._stream.start()

    def on_silent_stream(self) -> None:
        self._stream.check_silence()

    def on_consuming(self) -> None:
        self._consuming_since_s = time.monotonic()
        self._shared.note("waiting", None)
        self._shared.note("silent", None)
        self._shared.note("returned", None)
        self._shared.note("anew", None)
        self._shared.report_address(self._address)
        self._shared.report(HealthState.CONSUMING)
        if not self._shared.started.done():
            self._shared.started.set_result(None)

    def on_depth(self, messages: int | None, *, is_silent: bool) -> None:
        self._shared.report_depth(messages)
        self._silent_answers = self._silent_answers + 1 if messages and is_silent else 0
        if self._silent_answers >= SILENT_ANSWERS:
            self._shared.note(
                "silent",
                f"the queue {self._queue!r} holds {counted(messages or 0, 'message')}, but "
                "RabbitMQ delivers none: another program is the active consumer of the queue, or a "
                "majority of the queue's nodes is down.",
            )
        elif not is_silent:
            self._shared.note("silent", None)
        if (self.consumed_s or 0) > STABLE_S:
            self._shared.note("cut", None)

    def on_waiting(self) -> None:
        self._shared.note(
            "waiting",
            f"another program reads the queue {self._queue!r}, which has a single active consumer: "
            "messages come here only after that program has stopped.",
        )

    def on_other_consumers(self, count: int) -> None:
        self._shared.report_other_consumers(count)

    def on_journal_error(self, error: JournalError) -> bool:
        text = f"{error} No message is acknowledged until then"
        self._shared.report(HealthState.RECONNECTING, text)
        return self._shared.started.done()

    def on_redelivery(self, delivery: Delivery, count: int) -> None:
        self._delivery_counts[id(delivery)] = count
        if count >= MANY_RETURNS:
            self._shared.note(
                "returned",
                f"RabbitMQ has delivered a message of the queue {self._queue!r} {count + 1} times, "
                "and drops it at the queue's delivery limit (20 returns unless the administrator "
                "sets delivery-limit to -1).",
            )

    def on_all_acknowledged(self) -> None:
        self._acknowledged_up_to_id = self._expected_id

    def on_acknowledgements_confirmed(self) -> None:
        row_id = self._acknowledged_up_to_id
        if row_id > self._confirmed_up_to_id:
            self._confirmed_up_to_id = row_id
            # Without it more rows are compared, and a later confirmation writes it.
            with suppress(JournalError):
                self._journal.cursors.advance(self._cursor, row_id, generation=self._generation)

    def verify_journal(self) -> None:
        self._journal.verify(self._session_id)

    def journal_batch(
        self, deliveries: Sequence[Delivery], *, delivered: int, acknowledged: int
    ) -> None:
        if deliveries[0].stream_offset is not None:
            deliveries = self._stream.new(deliveries)
            if not deliveries:
                return
            self._journal.append(self._session_id, deliveries, stream=self._queue)
            self._stream.confirm(deliveries)
        else:
            choose = partial(self._choose, delivered=delivered, acknowledged=acknowledged)
            self._journal.append(self._session_id, deliveries, choose=choose)
            self._matcher.confirm()
            if any(delivery.redelivered for delivery in deliveries):
                # the matcher knows the own rows of such a batch already
                self._compared_up_to_id = self._expected_id
        self._delivery_counts.clear()
        self._shared.note("waiting", None)
        if self._shared.health.state is not HealthState.CONSUMING:
            self._shared.report(HealthState.CONSUMING)
        self._shared.report_event()

    def _choose(
        self, rows: RowReader, deliveries: Sequence[Delivery], *, delivered: int, acknowledged: int
    ) -> Sequence[Delivery]:
        """Return the messages that are not in the journal. No other session can write meanwhile."""
        self._matcher.begin(deliveries)
        newest_id = rows.last_id()
        is_redelivery = any(delivery.redelivered for delivery in deliveries)
        if is_redelivery:
            # Include new rows of other kernels: when one of them dies, we receive its messages.
            recent = rows.recent(
                self._queue, after_id=self._compared_up_to_id, limit=MAX_COMPARED_ROWS
            )
            since_us = (time.time() - REDELIVERABLE_OWN_S) * 1e6
            own = [row for row in recent if row.session_id == self._session_id]
            self._matcher.add(row for row in recent if row.session_id != self._session_id)
            self._matcher.add_own(row for row in own if row.delivery.received_at_us > since_us)
            self._compared_up_to_id = newest_id
        if newest_id != self._expected_id:
            self._matcher.add_taken_over(
                rows.recent(
                    self._queue,
                    after_id=self._taken_over_up_to_id,
                    not_of=self._session_id,
                    limit=MAX_COMPARED_ROWS,
                )
            )
            self._taken_over_up_to_id = newest_id
        elif not is_redelivery and not self._matcher.may_be_taken_over:
            self._expected_id = newest_id + len(deliveries)
            return deliveries
        new = self._matcher.new(
            deliveries, self._delivery_counts, delivered=delivered, acknowledged=acknowledged
        )
        self._expected_id = newest_id + len(new)
        return new


def _run(
    addresses: Sequence[AmqpParameters], queue: str, journal: Journal, shared: _SharedState
) -> None:
    """Run the thread: nothing ends it without a word."""
    try:
        _run_connections(addresses, queue, journal, shared)
    except BaseException as exc:  # noqa: BLE001 - other code can throw any exception into a thread
        error = _thread_ended(queue, exc)
        error.__cause__ = exc
        shared.report_death(error)


def _thread_ended(queue: str, cause: BaseException | None) -> TrackingError:
    said = "" if cause is None else f" ({type(cause).__name__}: {cause})".replace(": )", ")")
    return TrackingError(
        f"the thread that reads the queue {queue!r} has ended{said}. RabbitMQ keeps the new "
        "messages: call tracker.start()"
    )


def _run_connections(
    addresses: Sequence[AmqpParameters], queue: str, journal: Journal, shared: _SharedState
) -> None:
    """Open one connection after the other until the thread is stopped.

    The addresses of a cluster are tried in turn, beginning with a random one: kernels spread over
    the nodes. The back-off comes after each round without success.
    """
    shared.report(HealthState.CONNECTING)
    addresses = random.sample(addresses, len(addresses))
    stream = StreamMatcher(queue, journal, shared.note)
    failures = cuts = 0
    while not shared.stop.is_set():
        end = _run_connection(addresses[0], queue, journal, shared, stream)
        if shared.stop.is_set():
            break
        addresses = [*addresses[1:], addresses[0]]
        if end.consumed_s is not None:
            shared.errors = []
            is_cut = isinstance(end.error.__cause__, ConnectionLost) and end.consumed_s < STABLE_S
            cuts = cuts + 1 if is_cut else 0
            if cuts >= MANY_CUTS:
                shared.note("cut", _cut_text(cuts, end.consumed_s))
            if end.made_progress or end.consumed_s > LONGEST_BACKOFF_S:
                failures = 0
        shared.errors = [*shared.errors, end.error]
        is_full_round = len(shared.errors) >= len(addresses)
        error = combined_error(shared.errors)
        # A script that starts together with the broker waits for the queue.
        is_down = any(isinstance(each, QueueDownError) for each in shared.errors)
        if is_full_round and is_down:
            shared.last_round = shared.errors
        elif not shared.started.done() and (is_full_round or isinstance(error, JournalError)):
            shared.report(HealthState.FAILED, str(error))
            shared.started.set_exception(error)
            return
        shared.report(HealthState.RECONNECTING, str(error))
        _log.warning("%s", end.error)
        if is_full_round:
            backoff_s = min(FIRST_BACKOFF_S * 2**failures, LONGEST_BACKOFF_S)
            shared.stop.wait(random.uniform(0, backoff_s))
            failures += 1
            shared.errors = []
    shared.report(HealthState.STOPPED)
    if not shared.started.done():
        shared.started.set_exception(TrackingError("stopped before it was consuming"))


def _cut_text(cuts: int, consumed_s: float) -> str:
    return (
        f"the connection was cut {cuts} times in a row, the last time after {consumed_s:.1f} s: a "
        "proxy, firewall or load balancer on the way may end connections. Ask the administrator "
        "for an idle time-out above 30 s."
    )


class _ConnectionEnd(NamedTuple):
    """The reason why one connection ended."""

    error: RegardsError
    #: how long messages were consumed; None if they never were
    consumed_s: float | None
    made_progress: bool


def _run_connection(
    parameters: AmqpParameters,
    queue: str,
    journal: Journal,
    shared: _SharedState,
    stream: StreamMatcher,
) -> _ConnectionEnd:
    """Run one connection until it ends."""
    writer = _JournalWriter(describe(parameters), queue, journal, shared, stream)
    connection = Connection(parameters, queue, writer)
    shared.set_connection(connection)
    error: RegardsError = BrokerError("the connection was closed")
    try:
        connection.run(shared.stop)
    except RegardsError as exc:
        error = exc
    except BaseException as exc:  # noqa: BLE001 - also what other code throws into this thread
        _log.exception("the consumer met an unexpected error and reconnects")
        error = BrokerError(f"unexpected: {type(exc).__name__}: {exc}")
        error.__cause__ = exc
        # Nobody knows whether the journal has them. RabbitMQ delivers them again, and the next
        # session compares them.
        connection.drop_pending()
    finally:
        shared.set_connection(None)
    consumed_s = writer.consumed_s
    while not connection.journal_rest() and not shared.stop.wait(JOURNAL_RETRY_S):
        pass
    return _ConnectionEnd(error, consumed_s, connection.made_progress)
