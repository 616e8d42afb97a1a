"""Journals the messages of one connection, and reports what the connection tells."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from regards_nb.consumer.health import HealthState
from regards_nb.consumer.redelivery import RedeliveryMatcher, StreamMatcher
from regards_nb.errors import JournalError
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from regards_nb.consumer.health import HealthReport
    from regards_nb.events import Delivery
    from regards_nb.journal import Journal, RowReader

#: How many of the newest rows are compared with redelivered messages. A broker that crashed can
#: lose acknowledgements of its last moments, so this is more than the unacknowledged rows.
MAX_COMPARED_ROWS = 100_000

#: How long after its arrival a message may be delivered again on the same connection. The nodes of
#: a RabbitMQ cluster notice a broken link after up to 75 s (net_ticktime).
REDELIVERABLE_OWN_S = 300.0

#: A user is told from this number of returns on: RabbitMQ 4 drops a message at the 21st.
MANY_RETURNS = 10

#: Number of answers in turn (one every 2 s) after which a queue that delivers nothing is reported.
SILENT_ANSWERS = 8

#: A connection that is lost earlier counts as cut; one that lasts so long ends the note on cuts.
STABLE_S = 60.0


class JournalWriter:
    """Writes the messages of one connection to the journal, and what it tells to *report*.

    The `Connection` calls a method ``on_...`` for each thing that RabbitMQ tells, `journal_batch`
    with the messages, and `verify_journal` before it acknowledges them. Redelivered messages that
    are in the journal already are left out. The result of *started* is set once messages are
    delivered: it ends the wait of ``start()``.
    """

    def __init__(
        self,
        address: str,
        queue: str,
        journal: Journal,
        *,
        report: HealthReport,
        started: Future[None],
        stream: StreamMatcher,
    ) -> None:
        self._address = address
        self._queue = queue
        self._journal = journal
        self._report = report
        self._started = started
        #: Messages of a quorum queue up to this row are acknowledged, and do not come again.
        self._cursor = f"acknowledged {blake2b(queue.encode(), digest_size=8).hexdigest()}"
        self._session_id = 0
        self._matcher = RedeliveryMatcher()
        self._consuming_since_s: float | None = None
        #: how often in a row RabbitMQ said that messages wait, and delivered none
        self._silent_answers = 0
        #: by id of a delivery that is not journalled yet
        self._delivery_counts: dict[int, int] = {}
        #: up to which row the matcher has those that may be delivered again
        self._compared_up_to_id = 0
        #: up to which row it has those that other sessions have written meanwhile
        self._taken_over_up_to_id = 0
        #: the newest row, unless another session writes
        self._expected_id = 0
        #: up to which row RabbitMQ was told that all are acknowledged, and has confirmed it
        self._acknowledged_up_to_id = self._confirmed_up_to_id = 0
        #: the generation of the files that these ids belong to
        self._generation = 0
        #: what decides about the messages if the queue is a stream
        self.stream = stream

    @property
    def consumed_s(self) -> float | None:
        """The time since the first delivery in seconds; None before."""
        since_s = self._consuming_since_s
        return None if since_s is None else time.monotonic() - since_s

    def open_session(self) -> None:
        """Begin a session of the journal: this proves that it can be written, or raises."""
        self._generation = self._journal.generation
        self._session_id = self._journal.open_session(self._queue)
        self._taken_over_up_to_id = self._expected_id = self._journal.last_id()
        self._confirmed_up_to_id = self._journal.cursors.read(self._cursor) or 0
        self._compared_up_to_id = self._confirmed_up_to_id

    def on_consuming(self) -> None:
        """Store that RabbitMQ delivers messages from now on."""
        self._consuming_since_s = time.monotonic()
        for kind in ("waiting", "silent", "unanswered", "returned", "anew"):
            self._report.note(kind, None)
        self._report.update(address=self._address)
        self._report.report(HealthState.CONSUMING)
        if not self._started.done():
            self._started.set_result(None)

    def on_depth(self, messages: int | None, *, is_silent: bool) -> None:
        """Store how many messages of the queue are ready to be delivered; None for a stream.

        *is_silent* says that none was delivered since the last call.
        """
        self._report.update(queue_depth=messages)
        self._silent_answers = self._silent_answers + 1 if messages and is_silent else 0
        if self._silent_answers >= SILENT_ANSWERS:
            self._report.note(
                "silent",
                f"the queue {self._queue!r} holds {counted(messages or 0, 'message')}, but "
                "RabbitMQ delivers none: another program is the active consumer of the queue, or a "
                "majority of the queue's nodes is down.",
            )
        elif not is_silent:
            self._report.note("silent", None)
        if (self.consumed_s or 0) > STABLE_S:
            self._report.note("cut", None)

    def on_answers(self, *, late_after_s: float | None) -> None:
        """Store whether RabbitMQ answers, or the connection ends *late_after_s* after a request."""
        text = None
        if late_after_s is not None:
            text = (
                f"RabbitMQ does not answer about the queue {self._queue!r}: events may come late. "
                f"After {late_after_s:g} s without an answer another connection is made."
            )
        self._report.note("unanswered", text)

    def on_waiting(self) -> None:
        """Store that the queue has a single active consumer, which may be another one."""
        self._report.note(
            "waiting",
            f"the queue {self._queue!r} has a single active consumer, and another one was it when "
            "this one connected: messages come here only after that one has ended.",
        )

    def on_other_consumers(self, count: int) -> None:
        """Store how many other consumers take messages from the queue."""
        if count != self._report.health.other_consumers:
            self._report.update(other_consumers=count)

    def on_journal_error(self, error: JournalError) -> bool:
        """Store why the journal cannot be written; return whether to try again.

        A start tries again, until its time limit, while another program holds the journal.
        """
        text = f"{error} No message is acknowledged until then"
        self._report.report(HealthState.RECONNECTING, text)
        return self._started.done() or bool(self._journal.obstacle())

    def on_redelivery(self, delivery: Delivery, count: int) -> None:
        """Store how often RabbitMQ has returned a message to its queue."""
        self._delivery_counts[id(delivery)] = count
        if count >= MANY_RETURNS:
            self._report.note(
                "returned",
                f"RabbitMQ has delivered a message of the queue {self._queue!r} {count + 1} times, "
                "and drops it at the queue's delivery limit (20 returns unless the administrator "
                "sets delivery-limit to -1).",
            )

    def on_all_acknowledged(self) -> None:
        """Store that all journalled messages are acknowledged, and no other consumer has any."""
        self._acknowledged_up_to_id = self._expected_id

    def on_acknowledgements_confirmed(self) -> None:
        """Store that RabbitMQ has written the acknowledgements of the last such moment."""
        row_id = self._acknowledged_up_to_id
        if row_id > self._confirmed_up_to_id:
            self._confirmed_up_to_id = row_id
            # Without it more rows are compared, and a later confirmation writes it.
            with suppress(JournalError):
                self._journal.cursors.advance(self._cursor, row_id, generation=self._generation)

    def verify_journal(self) -> None:
        """Raise JournalError if messages must not be acknowledged."""
        self._journal.verify(self._session_id)

    def journal_batch(self, deliveries: Sequence[Delivery], *, unacknowledged: int) -> None:
        """Write messages to the journal; they are acknowledged later.

        *unacknowledged* is how many of the messages before these are not acknowledged. After a
        JournalError they are given again; after a StreamInDoubtError the connection must end.
        """
        if deliveries[0].stream_offset is not None:
            deliveries = self.stream.new(deliveries)
            if not deliveries:
                return
            self._journal.append(self._session_id, deliveries, stream=self._queue)
            self.stream.confirm(deliveries)
        else:
            choose = partial(self._choose, unacknowledged=unacknowledged)
            self._journal.append(self._session_id, deliveries, choose=choose)
            self._matcher.confirm()
            if any(delivery.redelivered for delivery in deliveries):
                # the matcher knows the own rows of such a batch already
                self._compared_up_to_id = self._expected_id
        self._delivery_counts.clear()
        self._report.note("waiting", None)
        if self._report.state is not HealthState.CONSUMING:
            self._report.report(HealthState.CONSUMING)
        self._report.report_event()

    def _choose(
        self, rows: RowReader, deliveries: Sequence[Delivery], *, unacknowledged: int
    ) -> Sequence[Delivery]:
        """Return the messages that are not in the journal.

        `Journal.append` calls it in the transaction that writes them, so no other session writes
        meanwhile. The matcher gets the rows that have come since the last batch: where RabbitMQ
        has delivered again, those that it may deliver again; where another session has written,
        those that it may have taken over. Most batches need neither, and are new as a whole.
        """
        self._matcher.revert_uncommitted(deliveries)
        newest_id = rows.last_id
        is_redelivery = any(delivery.redelivered for delivery in deliveries)
        if is_redelivery:
            # Include new rows of other kernels: when one of them ends, its messages come here.
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
        new = self._matcher.new(deliveries, self._delivery_counts, unacknowledged=unacknowledged)
        self._expected_id = newest_id + len(new)
        return new
