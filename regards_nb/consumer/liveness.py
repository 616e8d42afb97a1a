"""Notices that RabbitMQ has stopped to answer, although the connection and its heartbeats go on.

A channel waits for the leader of its queue: while a leader is elected, or the majority of the
queue's nodes is down, RabbitMQ answers nothing on that channel for up to 65 s, and the connection
stays open. Another node may answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pika.spec import Basic

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.consumer.journal_writer import JournalWriter

#: Number of ticks after which the connection is given up. Ticks are counted and not seconds: after
#: a pause of this process the answers are in the socket, and are read between two ticks.
LATE_TICKS = 8
#: Number of ticks between two questions to a quorum queue.
PROBE_TICKS = 15


class PendingAnswers:
    """The requests of one connection that RabbitMQ has not answered yet."""

    def __init__(self) -> None:
        self._ticks: dict[str, int] = {}

    def expect(self, what: str) -> None:
        """Store that a request was sent; *what* names the answer."""
        self._ticks.setdefault(what, 0)

    def received(self, what: str) -> None:
        """Store that the answer has come."""
        self._ticks.pop(what, None)

    def tick(self) -> int:
        """Count one tick; return for how many the oldest request has waited."""
        for what in self._ticks:
            self._ticks[what] += 1
        return max(self._ticks.values(), default=0)


class MajorityProbe:
    """Finds out whether a majority of the nodes of an empty quorum queue works.

    Without a majority a quorum queue delivers nothing, takes nothing, and keeps its consumers: a
    passive declaration is answered by a single node. A basic.get is answered by a majority alone.
    RabbitMQ gives a new message to a consumer that waits for it, so the answer is that the queue is
    empty; the rare message goes back.

    *answers* tells when the answer is late. *on_closed* is called with the reason if RabbitMQ has
    closed the channel of the probe, unless the queue is the reason: RabbitMQ refuses a basic.get
    for a quorum queue with a single active consumer.
    """

    def __init__(
        self,
        queue: str,
        answers: PendingAnswers,
        writer: JournalWriter,
        on_closed: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue
        self._answers = answers
        self._writer = writer
        self._on_closed = on_closed
        #: whether RabbitMQ counted no more consumers after ours was added: ask at once, why
        self.is_uncounted = False
        self._channel: Any = None
        self._ticks = 0

    def tick(self, connection: Any) -> None:
        """Ask in every `PROBE_TICKS`-th call; the queue is empty now."""
        self._ticks += 1
        if self._ticks % PROBE_TICKS and not self.is_uncounted:
            return
        if self._channel is None:
            self._channel = connection.channel(on_open_callback=self._on_open)
        elif self._channel.is_open:
            self._ask()

    def _on_open(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_callback(self._on_empty, [Basic.GetEmpty], one_shot=False)
        self._ask()

    def _ask(self) -> None:
        self._answers.expect("majority")
        self._channel.basic_get(self._queue, self._on_message)

    def _on_empty(self, _answer: Any) -> None:
        self._answers.received("majority")
        self.is_uncounted = False  # the queue has no single active consumer
        # A majority has also written all that the queue was told before.
        self._writer.on_acknowledgements_confirmed()

    def _on_message(self, channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        self._answers.received("majority")
        channel.basic_nack(method.delivery_tag)

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:
        self._answers.received("majority")
        if "basic.get" not in str(reason):
            self._on_closed(reason)
        elif self.is_uncounted:
            self._writer.on_waiting()
