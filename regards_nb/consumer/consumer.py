"""The consumer thread: it opens one connection after the other until it is stopped."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from regards_nb.consumer.addresses import AmqpParameters, addresses_of, describe
from regards_nb.consumer.connection import JOURNAL_RETRY_S, Connection, ConnectionLost
from regards_nb.consumer.errors import QueueDownError, combined_error
from regards_nb.consumer.health import HealthReport, HealthState
from regards_nb.consumer.journal_writer import STABLE_S, JournalWriter
from regards_nb.consumer.redelivery import StreamMatcher
from regards_nb.errors import (
    BrokerError,
    BrokerUnreachableError,
    JournalError,
    RegardsError,
    TrackingError,
)
from regards_nb.threads import OwnThread
from regards_nb.waits import awaited, growing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.consumer.health import Health
    from regards_nb.journal import Journal

_log = logging.getLogger(__name__)

#: Maximum time that a new start waits for the thread of a start that was given up.
_GIVEN_UP_S = 5.0

#: Full-jitter back-off: a random time up to a pause that grows from the first to the longest.
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 4.0

#: Number of connections in turn, each cut soon after its start, that is reported.
MANY_CUTS = 3


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
        self._new_run = partial(_Run, addresses_of(parameters), queue, journal, changed, died)
        self._run = self._new_run()
        # `start` of several threads must not start two of ours.
        self._starting = threading.Lock()

    @property
    def health(self) -> Health:
        """The current state of the thread."""
        return self._run.health

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        thread = self._run.thread
        return thread is not None and thread.is_alive()

    def start(self, timeout_s: float) -> None:
        """Start the thread; return once it is consuming. After a second, say what it waits for."""
        where = describe(self._parameters)
        # Ctrl-C may come as soon as the thread runs.
        try:
            self.begin()
            awaited(
                self._run.started,
                lambda: self._journal.obstacle() or f"waiting for RabbitMQ at {where}",
                timeout_s=timeout_s,
            )
        except TimeoutError:
            obstacle = self._journal.obstacle()
            error = (
                JournalError(f"no event was received within {timeout_s:g} s: {obstacle}")
                if obstacle
                else self._run.unanswered(where, timeout_s)
            )
            self._run.request_stop(1.0)
            raise error from None
        except BaseException:
            self._run.request_stop(1.0)
            raise

    def begin(self) -> None:
        """Start the thread, unless it runs, and do not wait for RabbitMQ."""
        with self._starting:
            if self._run.stop.is_set():
                self._join(_GIVEN_UP_S)
            if self.is_running:
                return
            run = self._new_run()
            run.thread = OwnThread(
                "consumer",
                run.keep_connected,
                does=f"reads the queue {self._queue!r}",
                then="RabbitMQ keeps the new messages: call tracker.start()",
                died=run.report_death,
                stop=run.stop,
                awaits=f"the consumer of {self._queue!r}",
                obstacle=self._journal.obstacle,
            )
            # A tracker that a notebook dropped can be collected, and then its thread ends.
            weakref.finalize(self, run.request_stop, 1.0).atexit = False
            self._run = run
            run.thread.start()

    def cancel_start(self) -> None:
        """End a `start` of another thread that still waits; it raises TrackingError."""
        if not self._run.started.done():
            self._run.request_stop(1.0)

    def stop(self, timeout_s: float) -> None:
        """Stop the thread; after half of *timeout_s*, close its socket without an AMQP close.

        TrackingError: it did not end in time. It is a daemon and does not delay the end of Python.
        """
        self._run.request_stop(timeout_s / 2)
        self._join(timeout_s)

    def _join(self, timeout_s: float) -> None:
        thread = self._run.thread
        if thread is not None and not thread.end(timeout_s):
            obstacle = self._journal.obstacle()
            kept = f"{obstacle}. RabbitMQ keeps what was not journalled" if obstacle else ""
            raise TrackingError(
                f"the consumer of {self._queue!r} did not end within {timeout_s:g} s; "
                f"{kept or 'it ends after its current step'}"
            )


class _Run(HealthReport):
    """One run of the thread. It does not hold the consumer, which can be collected meanwhile."""

    def __init__(
        self,
        addresses: Sequence[AmqpParameters],
        queue: str,
        journal: Journal,
        changed: Callable[[], None],
        died: Callable[[TrackingError], object] | None,
    ) -> None:
        super().__init__(changed)
        self._addresses = addresses
        self._queue = queue
        self._journal = journal
        self._died = died
        self._stream = StreamMatcher(queue, journal, self.note)
        self.stop = threading.Event()
        #: of the start that waits for the first consumer
        self.started: Future[None] = Future()
        #: what `request_stop` closes; a connection that is made after it does not connect
        self._connection: Connection | None = None
        #: the errors of the addresses that were tried before that connection
        self._errors: list[RegardsError] = []
        #: the errors of the last round in which the queue was down
        self._last_round: list[RegardsError] = []

    def report_death(self, error: TrackingError) -> None:
        """Store the error that ends the thread."""
        self.report(HealthState.FAILED, str(error))
        if not self.started.done():
            self.started.set_exception(error)
        elif self._died is not None:
            self._died(error)

    def unanswered(self, where: str, within_s: float) -> RegardsError:
        """Return the error of a start that took too long: what RabbitMQ has answered so far."""
        if self._last_round:
            return combined_error(self._last_round)
        awaited = "the connection"
        if connection := self._connection:
            awaited, where = connection.awaited, connection.where
        error = BrokerUnreachableError(
            f"{where} did not answer within {within_s:g} s: RabbitMQ did not confirm {awaited}. It "
            "may be overloaded or stopped, or a firewall drops the connection: try again later, or "
            "ask the administrator"
        )
        return combined_error([*self._errors, error])

    def request_stop(self, within_s: float) -> None:
        """Ask the thread to end, and its connection to close within *within_s*."""
        self.stop.set()
        if connection := self._connection:
            connection.request_close(within_s)

    def keep_connected(self) -> None:
        """Open one connection after the other until the thread is stopped.

        The addresses of a cluster are tried in turn, beginning with a random one: kernels spread
        over the nodes. The back-off comes after each round without success.
        """
        self.report(HealthState.CONNECTING)
        addresses = random.sample(self._addresses, len(self._addresses))
        pauses, cuts = growing(FIRST_BACKOFF_S, LONGEST_BACKOFF_S), 0
        while not self.stop.is_set():
            last, consumed_s, made_progress = self._run_connection(addresses[0])
            if self.stop.is_set():
                break
            addresses = [*addresses[1:], addresses[0]]
            if consumed_s is not None:
                self._errors = []
                is_cut = isinstance(last.__cause__, ConnectionLost) and consumed_s < STABLE_S
                cuts = cuts + 1 if is_cut else 0
                if cuts >= MANY_CUTS:
                    self.note(
                        "cut",
                        f"the connection was cut {cuts} times in a row, the last time after "
                        f"{consumed_s:.1f} s: a proxy, firewall or load balancer on the way may "
                        "end connections. Ask the administrator for an idle time-out above 30 s.",
                    )
                if made_progress or consumed_s > LONGEST_BACKOFF_S:
                    pauses = growing(FIRST_BACKOFF_S, LONGEST_BACKOFF_S)
            self._errors = [*self._errors, last]
            is_full_round = len(self._errors) >= len(addresses)
            error = combined_error(self._errors)
            # A script that starts together with the broker waits for the queue.
            is_down = any(isinstance(each, QueueDownError) for each in self._errors)
            if is_full_round and is_down:
                self._last_round = self._errors
            elif not self.started.done() and (is_full_round or isinstance(error, JournalError)):
                self.report(HealthState.FAILED, str(error))
                self.started.set_exception(error)
                return
            self.report(HealthState.RECONNECTING, str(error))
            _log.warning("%s", last)
            if is_full_round:
                self.stop.wait(random.uniform(0, next(pauses)))
                self._errors = []
        self.report(HealthState.STOPPED)
        if not self.started.done():
            self.started.set_exception(TrackingError("stopped before it was consuming"))

    def _run_connection(self, address: AmqpParameters) -> tuple[RegardsError, float | None, bool]:
        """Run one connection until it ends.

        Return why, how long messages were consumed (None: never), and whether any was journalled.
        """
        writer = JournalWriter(
            describe(address),
            self._queue,
            self._journal,
            report=self,
            started=self.started,
            stream=self._stream,
        )
        connection = self._connection = Connection(address, self._queue, writer)
        error: RegardsError = BrokerError("the connection was closed")
        try:
            connection.run(self.stop)
        except RegardsError as exc:
            error = exc
        except BaseException as exc:  # noqa: BLE001 - also what other code throws into this thread
            _log.exception("an unexpected error ended the connection; the consumer reconnects")
            error = BrokerError(f"unexpected: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            # The journal may have them or not. RabbitMQ delivers them again, and the next session
            # compares them.
            connection.batcher.drop_pending()
        finally:
            self._connection = None
        consumed_s = writer.consumed_s
        while not connection.journal_remaining() and not self.stop.wait(JOURNAL_RETRY_S):
            pass
        return error, consumed_s, connection.batcher.has_journalled
