"""A single connection to RabbitMQ: connect, consume, acknowledge journalled messages, close.

The consumer thread makes, runs and drops a connection; other threads may call only
`Connection.request_close`. Queues are only declared passively, because a REGARDS user may not
create them (protocol.md 0.6).
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pika

from regards_nb.consumer.ack_batching import AckBatcher
from regards_nb.consumer.addresses import HEARTBEAT_S, describe
from regards_nb.consumer.delivery_reader import IOServices, properties_from
from regards_nb.consumer.errors import broker_error
from regards_nb.consumer.liveness import LATE_TICKS, MajorityProbe, PendingAnswers
from regards_nb.consumer.redelivery import StreamInDoubtError
from regards_nb.errors import BrokerUnreachableError, JournalError, RegardsError
from regards_nb.events import Delivery
from regards_nb.journal import JournalReplacedError
from regards_nb.waits import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.consumer.addresses import AmqpParameters
    from regards_nb.consumer.journal_writer import JournalWriter

# pika logs each lost connection as an ERROR. Without any handler Python would write the record to
# stderr, and Jupyter shows the stderr of a thread in the output of the cell that happens to run.
logging.getLogger("pika").addHandler(logging.NullHandler())

#: pika's exception for a connection that ended without a close frame of the broker.
ConnectionLost = pika.exceptions.StreamLostError

ACK_PERIOD_S = 0.5
#: Time until RabbitMQ is asked whether it counts our consumer: `start` returns before that.
FIRST_DEPTH_S = 0.1
JOURNAL_RETRY_S = 1.0
#: Time for RabbitMQ to deliver a message of a stream that it had before.
STREAM_SILENCE_S = 2.0
#: A consumer that must end waits for the messages on their way. Time between two questions to
#: RabbitMQ, and number of answers without a message in between after which the consumer ends.
REMAINING_PERIOD_S = 0.02
SILENT_ANSWERS_AT_END = 25
#: Time for RabbitMQ to confirm the end of a connection on which it has answered nothing.
CLOSE_TIMEOUT_S = 2.0


class Connection:
    """One AMQP connection with one consumer on one queue."""

    #: how often RabbitMQ is asked for the depth of the queue, which also shows that it answers
    depth_period_s = 2.0
    #: Time for RabbitMQ to confirm the consumer. Without a majority of its nodes a quorum queue
    #: answers after 65 s; another node may answer at once.
    consume_timeout_s = 10.0

    def __init__(self, parameters: AmqpParameters, queue: str, writer: JournalWriter) -> None:
        self._queue = queue
        self._writer = writer
        self.where = describe(parameters)
        self._parameters = parameters
        self._io = IOServices(self._on_message, self._open_session)
        self._connection: Any = None
        self._channel: Any = None
        self._spare: Any = None
        self._consumer_tag: str | None = None
        #: of the queue: classic, quorum or stream; empty until RabbitMQ tells
        self._kind = ""
        self._session_is_open = False
        #: where a consumer of a stream begins; read while the session is opened
        self._stream_start: int | None = None
        self._is_consuming = False
        #: a consumer is cancelled because the next one gets a larger prefetch limit
        self._growing = False
        #: RabbitMQ has cancelled that consumer: its channel closes after the next commit
        self._cancelled_to_grow = False
        self._close_reason: BaseException | None = None
        self._closing = False
        #: the consumer ends, and no message is on its way to it
        self._is_complete = False
        self._is_cancelling = False
        self._silent_answers = 0
        #: at the last answer on the depth of the queue, and at the last look for answers
        self._newest_tag_seen = self._newest_tag_ticked = 0
        #: whether no message waited in the queue when RabbitMQ was last asked
        self._is_drained = False
        #: consumers of the queue before this one was added
        self._consumers_before: int | None = None
        self._alive_at_s = _clock_s()
        #: the answer that is awaited before the consumer works; another thread reads it
        self.awaited = "the connection"
        self._answers = PendingAnswers()
        self._probe = MajorityProbe(queue, self._answers, writer, self._finish)
        #: `request_close`, in another thread, must not use I/O services that are closed
        self._lock = threading.Lock()
        self._ended = False
        self._flush_scheduled = False
        self.batcher = AckBatcher(writer.journal_batch, self._acknowledge)

    def run(self, stop: threading.Event) -> None:
        """Run until the connection ends; raise why, unless `request_close` was called."""
        self._stop = stop
        try:
            if not stop.is_set():
                self._connection = pika.SelectConnection(
                    self._parameters,
                    on_open_callback=self._on_connected,
                    on_open_error_callback=self._on_disconnected,
                    on_close_callback=self._on_disconnected,
                    custom_ioloop=self._io,
                )
                self._io.run()
        finally:
            with self._lock:
                self._ended = True
                self._io.close()
            if self._is_consuming:
                self._end_if_suspended()
        if self._close_reason is None or self._closing:
            return
        if isinstance(self._close_reason, RegardsError):
            raise self._close_reason
        raise broker_error(self._close_reason, self.where, self._queue) from self._close_reason

    def journal_remaining(self) -> bool:
        """Journal the messages received before the connection ended; return whether that is done.

        RabbitMQ delivers these messages again, and they are recognised. Without this, a line that
        is cut soon after each connect would make no progress. And after a failure of the journal
        this proves that it can be written again.
        """
        try:
            self.batcher.flush()
        except (JournalReplacedError, StreamInDoubtError):
            self.batcher.drop_pending()
        except JournalError as exc:
            self._writer.on_journal_error(exc)
        return not self.batcher.pending

    def request_close(self, within_s: float) -> None:
        """Close the connection; close its socket after *within_s* s at the latest. Thread-safe."""
        self._call_in_loop(lambda: self._begin_close(within_s))

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        # Without its descriptors, which other code can close, the loop calls it a little later.
        with self._lock, suppress(OSError):
            if not self._ended:
                self._io.add_callback_threadsafe(callback)

    # -- from connect to consume; each step follows the broker's answer to the one before --

    def _on_connected(self, connection: Any) -> None:
        # RabbitMQ tells the type of a queue only by refusing what the type does not support, and
        # then closes the channel: one of these is for a stream, the other one for any other queue.
        self._channel = connection.channel(on_open_callback=self._on_channel)
        self._spare = connection.channel(on_open_callback=self._on_channel)
        self._io.call_later(self.consume_timeout_s, self._end_unless_consuming)
        self.awaited = "a channel"

    def _open_session(self) -> None:
        """Open a session of the journal before the first message, and try until it succeeds.

        A journal that cannot be written would receive the same messages again at each consumer
        timeout, and RabbitMQ 4 drops a message of a quorum queue after 20 returns.
        """
        # RabbitMQ checks the login while the disk writes; `_consume_if_ready` waits for both.
        if not self._closing:
            opened = in_thread(self._open_session_now, "regards-nb-session")
            opened.add_done_callback(
                lambda done: self._call_in_loop(lambda: self._on_session(done.exception()))
            )

    def _open_session_now(self) -> None:
        self._writer.open_session()
        self._stream_start = self._writer.stream.start()

    def _on_session(self, error: BaseException | None) -> None:
        if error is not None and self._channel is None:
            # pika raises AssertionError where a connection is closed before it is open
            self._io.call_later(REMAINING_PERIOD_S, lambda: self._on_session(error))
        elif isinstance(error, JournalError):
            if self._writer.on_journal_error(error):
                self._io.call_later(JOURNAL_RETRY_S, self._open_session)
            else:
                self._finish(error)
        elif error is not None:
            raise error
        else:
            self._session_is_open = True
            self._consume_if_ready()

    def _end_unless_consuming(self) -> None:
        if self._is_consuming or self._closing:
            return
        if not self._session_is_open:
            self._io.call_later(self.consume_timeout_s, self._end_unless_consuming)
            return
        self._end_unanswered(
            f"{self.where} accepted the connection, but RabbitMQ did not confirm {self.awaited} "
            f"of the queue {self._queue!r} within {self.consume_timeout_s:g} s."
        )

    def _end_unanswered(self, text: str) -> None:
        """End the connection, because RabbitMQ does not answer and may not answer a cancel."""
        self._finish(
            BrokerUnreachableError(
                f"{text} In a cluster this happens while a majority of the queue's nodes is down; "
                "ask the REGARDS administrator."
            )
        )
        self._io.call_later(CLOSE_TIMEOUT_S, self._abort)

    def _on_channel(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        if self._growing:
            self._consume_larger()
            return
        if channel is self._spare:
            self.awaited = "the state"
            channel.queue_declare(self._queue, passive=True, callback=self._on_queue)
        channel.basic_qos(prefetch_count=self.batcher.prefetch)
        if channel is self._channel:
            self._consume_if_ready()

    def _on_queue(self, answer: Any) -> None:
        self._answers.received("depth")
        depth: int | None = answer.method.message_count
        if self._kind == "stream":
            # a stream counts all that it keeps, read or not
            depth = None
        self._is_drained = not depth
        is_silent = self._is_silent()
        self._writer.on_depth(depth, is_silent=is_silent)
        consumers: int = answer.method.consumer_count
        before, self._consumers_before = self._consumers_before, 0
        if not self._is_consuming:
            self._consumers_before = consumers
            self._consume_if_ready()
        elif consumers and consumers == before:
            # The queue has a single active consumer, which alone is counted, or one has ended.
            self._probe.is_uncounted = True
        if self._is_consuming and is_silent and depth == 0 and self._kind == "quorum":
            self._store_if_all_acknowledged(answer)
            self._probe.tick(self._connection)
        if self._is_consuming and not self._growing:
            self._report_other_consumers(consumers - 1)

    def _is_silent(self) -> bool:
        """Return whether no message has come since the last call."""
        before, self._newest_tag_seen = self._newest_tag_seen, self.batcher.newest_tag
        return before == self.batcher.newest_tag

    def _store_if_all_acknowledged(self, answer: Any) -> None:
        if self.batcher.is_acknowledged and answer.method.consumer_count <= 1:
            self._writer.on_all_acknowledged()

    def _report_other_consumers(self, count: int) -> None:
        # A stream gives each message to every consumer; all other queues give it to one.
        self._writer.on_other_consumers(0 if self._kind == "stream" else max(count, 0))

    def _consume_if_ready(self) -> None:
        is_declared = self._consumers_before is not None
        if self._session_is_open and is_declared and self._channel.is_open:
            self.awaited = "the consumer"
            self._consumer_tag = self._start_consumer(self._channel, self._on_consuming)
            self._start_consumer(self._spare, self._on_stream)

    def _start_consumer(self, channel: Any, on_consuming: Callable[[Any], None]) -> str:
        if channel is self._spare or self._kind == "stream":
            offset = "first" if self._stream_start is None else self._stream_start
            arguments = {"x-stream-offset": offset}
        else:
            arguments = {"x-priority": 0}  # the default, and a stream refuses it
        tag: str = channel.basic_consume(
            self._queue, _message_for_pika, arguments=arguments, callback=on_consuming
        )
        return tag

    def _on_stream(self, answer: Any) -> None:
        self._kind, self._channel = "stream", self._spare
        self._consumer_tag = answer.method.consumer_tag
        self._on_consuming(answer)

    def _on_consuming(self, _answer: Any) -> None:
        self._is_consuming = True
        self._report_other_consumers(self._consumers_before or 0)
        if self._kind == "stream":
            # the depth came before the type of the queue was known
            self._writer.on_depth(None, is_silent=False)
            self._io.call_later(STREAM_SILENCE_S, self._start_over_if_silent)
        self._writer.on_consuming()
        self._io.call_later(FIRST_DEPTH_S, self._request_depth)
        self._repeat(ACK_PERIOD_S, self._acknowledge_settled)
        self._repeat(self.depth_period_s, self._end_or_request_depth)

    def _start_over_if_silent(self) -> None:
        has_received = self.batcher.has_journalled or self.batcher.pending
        if has_received or self._closing or not self._channel.is_open:
            return
        try:
            self._writer.stream.check_silence()
        except StreamInDoubtError as exc:
            self._start_over(exc)

    def _repeat(self, period_s: float, action: Callable[[], None]) -> None:
        def tick() -> None:
            if self._connection.is_open:
                action()
                self._io.call_later(period_s, tick)

        self._io.call_later(period_s, tick)

    def _end_or_request_depth(self) -> None:
        ticks = self._answers.tick()
        if ticks >= LATE_TICKS:
            self._end_unanswered(
                f"{self.where} keeps the connection open, but RabbitMQ does not answer about the "
                f"queue {self._queue!r}."
            )
            return
        # A busy queue answers after its messages.
        is_silent = ticks > 0 and self.batcher.newest_tag == self._newest_tag_ticked
        self._newest_tag_ticked = self.batcher.newest_tag
        self._writer.on_answers(
            late_after_s=LATE_TICKS * self.depth_period_s if is_silent else None
        )
        self._request_depth()

    def _request_depth(self) -> None:
        if self._channel.is_open:
            self._answers.expect("depth")
            self._channel.queue_declare(self._queue, passive=True, callback=self._on_queue)

    def _grow_if_used(self) -> None:
        """Replace the consumer by one with a larger prefetch limit, once the present one was used.

        RabbitMQ fixes the limit of a consumer at its start. A quorum queue returns messages
        consumer by consumer and not in their order: there the old consumer ends first, with all its
        messages acknowledged. It ends with its channel, because RabbitMQ 3.10 neither delivers nor
        returns a message that is on its way to a cancelled consumer before the channel closes. A
        classic queue keeps the order; there the new consumer starts first, because a queue with
        auto-delete ends with its last consumer.
        """
        is_busy = self._growing or self._closing or not self._kind
        if is_busy or not self.batcher.should_raise_limit():
            return
        self._growing = True
        self._answers.expect("a larger limit")
        if self._kind == "classic":
            # the old consumer stays full, and receives nothing more
            self.batcher.is_held = True
            self.batcher.raise_limit()
            self._consume_larger()
        else:
            self._cancel(self._on_cancelled_to_grow)

    def _on_cancelled_to_grow(self, answer: Any) -> None:
        self._answers.received("a larger limit")
        self._consumer_tag = None
        if self._closing:
            self._is_cancelling = self._is_complete = True
            self._on_cancelled_by_us(answer)
            return
        self._cancelled_to_grow = True
        self._flush()

    def _consume_larger(self) -> None:
        old_tag = self._consumer_tag

        def on_consuming(answer: Any) -> None:
            if old_tag is None:
                on_grown(answer)
            else:
                self._cancel(on_grown, old_tag)

        def on_grown(_answer: Any) -> None:
            self._growing = False
            self._answers.received("a larger limit")
            if not self._closing:
                self.batcher.is_held = False

        self._channel.basic_qos(prefetch_count=self.batcher.prefetch)
        if self._kind == "stream":
            self._stream_start = self._writer.stream.start()
        self._consumer_tag = self._start_consumer(self._channel, on_consuming)

    def _cancel(self, then: Callable[[Any], None], tag: str | None = None) -> None:
        """Cancel a consumer; messages that are on their way are received as before."""
        self._channel.basic_cancel(tag or self._consumer_tag, callback=then)

    # -- messages: journal first, acknowledge after --

    def _on_message(
        self,
        channel_number: int,
        delivery_tag: int,
        redelivered: bool,  # noqa: FBT001 - as AMQP passes it
        encoded: bytes,
        body: bytes,
    ) -> None:
        if channel_number != self._channel.channel_number or not self._channel.is_open:
            return  # RabbitMQ delivers again what a closed channel has not acknowledged
        properties = properties_from(encoded)
        offset = properties.stream_offset if self._kind == "stream" else None
        received_at_us = time.time_ns() // 1000
        delivery = Delivery(body, received_at_us, redelivered, *properties[:5], offset)
        if redelivered and properties.delivery_count is not None:
            self._writer.on_redelivery(delivery, properties.delivery_count)
        self.batcher.add(delivery_tag, delivery)
        if not self._flush_scheduled:
            self._schedule_flush(0)

    def _schedule_flush(self, delay_s: float) -> None:
        self._flush_scheduled = True
        self._io.call_later(delay_s, self._flush_or_wait)

    def _flush_or_wait(self) -> None:
        """Journal the received messages, unless many more arrived since the last call.

        Messages that arrive together are committed together, and a single one does not wait.
        """
        if self.batcher.should_wait_for_more():
            self._schedule_flush(0)
        else:
            self._flush()
            # Outside of the loop, which each message would wake; it has nothing urgent to do.
            self._stop.wait(self.batcher.pause_s)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._end_if_suspended():
            return
        try:
            self.batcher.flush()
        except (JournalReplacedError, StreamInDoubtError) as exc:
            self._start_over(exc)
            return
        except JournalError as exc:
            # RabbitMQ pauses at the prefetch limit, so memory stays bounded.
            self._writer.on_journal_error(exc)
            self._schedule_flush(JOURNAL_RETRY_S)
            return
        if self._cancelled_to_grow and not self._closing:
            self._cancelled_to_grow = False
            self.batcher.acknowledge_all()
            if self._channel.is_open:
                self._answers.expect("a larger limit")
                self._channel.close()
        self._grow_if_used()

    def _acknowledge_settled(self) -> None:
        if not self._end_if_suspended() and self._channel.is_open:
            self.batcher.acknowledge_settled(is_drained=self._is_drained)
            self._grow_if_used()

    def _end_if_suspended(self) -> bool:
        """Drop the pending messages if this process did not run for longer than the heartbeat.

        RabbitMQ has closed the connection by then, even if a proxy keeps our side open, and has
        given the messages to another kernel, which may have journalled them.
        """
        now_s = _clock_s()
        away_s, self._alive_at_s = now_s - self._alive_at_s, now_s
        heartbeat = self._connection.params.heartbeat
        limit_s = heartbeat if isinstance(heartbeat, int) and heartbeat > 0 else HEARTBEAT_S
        if away_s <= limit_s:
            return False
        self.batcher.drop_pending()
        if not self._ended:
            self._finish(
                BrokerUnreachableError(
                    f"this process did not run for {away_s:.0f} s (suspended, or blocked by other "
                    f"code), longer than the heartbeat of {limit_s} s that RabbitMQ waits for"
                )
            )
            self._abort()
        return True

    def _start_over(self, error: RegardsError) -> None:
        """Close the connection: messages of this session or of the stream may not be journalled.

        RabbitMQ delivers the unacknowledged messages again, and the next session compares them with
        the rows that are there.
        """
        self.batcher.drop_pending()
        self._finish(error)

    def _acknowledge(self, tag: int) -> None:
        if not self._channel.is_open:
            return
        try:
            self._writer.verify_journal()
        except JournalError as exc:
            self._start_over(exc)
        else:
            self._channel.basic_ack(tag, multiple=True)

    # -- the end: requested by us, by the broker, or a lost connection --

    def _begin_close(self, within_s: float) -> None:
        if self._closing:
            return
        self._closing = True
        self._io.call_later(within_s, self._abort)
        if not (self._channel is not None and self._channel.is_open and self._consumer_tag):
            self._close()
        elif self._kind == "stream" or not self._is_consuming:
            self._cancel_to_close()
        else:
            self.batcher.is_held = True
            self._newest_tag_seen = self.batcher.newest_tag
            self._io.call_later(within_s / 2, self._cancel_to_close)
            self._ask_remaining()

    def _ask_remaining(self) -> None:
        """Ask whether messages may be on their way to the consumer.

        RabbitMQ would deliver these again with the flag, and of two messages with the same bytes
        one could be journalled and acknowledged, and the other be matched with it. A consumer that
        acknowledges nothing receives what the prefetch limit allows, and then no more.
        """
        if self._channel.is_open and not self._is_cancelling:
            self._channel.queue_declare(self._queue, passive=True, callback=self._on_remaining)

    def _on_remaining(self, answer: Any) -> None:
        self._silent_answers = self._silent_answers + 1 if self._is_silent() else 0
        self._is_complete = self.batcher.is_full
        has_more = answer.method.message_count and self._silent_answers < SILENT_ANSWERS_AT_END
        if self._growing or (has_more and not self._is_complete):
            self._io.call_later(REMAINING_PERIOD_S, self._ask_remaining)
            return
        if not answer.method.message_count and self._kind == "quorum":
            # Before the cancellation: its answer then says that RabbitMQ has written them.
            self._flush()
            self.batcher.acknowledge_all()
            self._store_if_all_acknowledged(answer)
        self._cancel_to_close()

    def _cancel_to_close(self) -> None:
        if self._is_cancelling or not self._channel.is_open:
            return
        self._is_cancelling = True
        self._cancel(self._on_cancelled_by_us)

    def _abort(self) -> None:
        """Close the socket without the broker's answer."""
        self._close()
        if self._io.transport is None or self._connection.is_closed:
            self._io.stop()
        else:
            self._io.transport.abort()

    def _on_cancelled_by_us(self, _answer: Any) -> None:
        if self._kind == "quorum":
            self._writer.on_acknowledgements_confirmed()
        self._flush()
        if self._kind != "stream" and not self._is_complete and self._channel.is_open:
            # Messages that arrived last may be on their way to the consumer that is gone.
            self._channel.queue_declare(self._queue, passive=True, callback=self._on_last_remaining)
        else:
            self._acknowledge_remaining(is_drained=True)

    def _on_last_remaining(self, answer: Any) -> None:
        self._acknowledge_remaining(is_drained=not answer.method.message_count)

    def _acknowledge_remaining(self, *, is_drained: bool) -> None:
        if not (self._kind == "classic" and self._growing):
            self.batcher.acknowledge_all(is_drained=is_drained)
        self._close()

    def _on_cancelled_by_broker(self, frame: Any) -> None:
        # pika does not pass a reason; RabbitMQ cancels a consumer when its queue is deleted
        self._finish(pika.exceptions.ConsumerCancelled(frame.method))

    def _on_channel_closed(self, channel: Any, reason: BaseException) -> None:
        text = str(reason)
        if "invalid arg" in text:
            # the consumer of the other channel is accepted
            if channel is self._spare:
                kind = text.rpartition("queue type")[2]
                self._kind = "classic" if "classic" in kind else "quorum"
        elif (
            isinstance(reason, pika.exceptions.ChannelClosedByClient)
            and self._growing
            and self._connection.is_open
            and not self._closing
        ):
            self._answers.received("depth")
            self.batcher.raise_limit_on_new_channel()
            self._channel = self._connection.channel(on_open_callback=self._on_channel)
        else:
            self._finish(reason)

    def _finish(self, reason: BaseException) -> None:
        """Close the connection; the first *reason* is the one that is reported."""
        self._close_reason = self._close_reason or reason
        self._close()

    def _close(self) -> None:
        if not (self._connection.is_closed or self._connection.is_closing):
            self._connection.close()

    def _on_disconnected(self, _connection: Any, reason: BaseException) -> None:
        self._close_reason = self._close_reason or reason
        # pika closes its socket in one more turn of the loop
        self._io.call_later(0, self._io.stop)


def _message_for_pika(*_: object) -> None:
    """Refuse a message: `DeliveryReader` takes all of them before pika does."""
    raise AssertionError("a delivery has reached pika")


def _clock_s() -> float:
    """Return seconds that go on while the computer sleeps, where the system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if clock is None else time.clock_gettime(clock)
