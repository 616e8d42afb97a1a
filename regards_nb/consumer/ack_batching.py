"""The messages of one channel, from their delivery to their acknowledgement.

Independent of pika and of threads: `connection` calls it for a real broker, tests for a
scripted one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.events import Delivery

#: Prefetch limits: how many messages RabbitMQ may deliver before we acknowledge.
#: - Up to half of the limit is journalled at once, and a quarter waits for its acknowledgement
#:   (`ACK_LINGER_S`): with a small limit, RabbitMQ would pause after each batch.
#: - Each connection begins with a small one. When a connection ends, RabbitMQ delivers all
#:   unacknowledged messages again, and RabbitMQ 4 drops a message of a quorum queue after 20
#:   returns: where something cuts each connection soon, that must be few.
PREFETCH_STEPS = (50, 400, 4000)
#: Time from journalling to acknowledging a message, unless RabbitMQ would pause before. Two
#: messages can be identical only if their AMQP timestamps name the same second: after this time
#: both are in the journal, and a lost connection cannot leave one acknowledged and the other, with
#: the same bytes, undelivered (see `redelivery`).
ACK_LINGER_S = 1.5
#: A batch waits for further messages only while more than these arrive in one turn of the loop: a
#: single message is committed at once, and the commit takes so long that the next batch is larger.
FEW_MESSAGES = 8
#: Where two or more messages come in this time, they are gathered for that long, or until about
#: `FEW_MESSAGES` have come: to wake for a message and to commit it takes 1 ms of the processor, one
#: more message in the same commit 0.1 ms.
GATHER_S = 0.1
#: Messages that come faster wait for the commit before theirs, and so are together without a pause.
FAST_S = 0.005


class AckBatcher:
    """Journals messages in batches and acknowledges them after that.

    ``journal_batch(deliveries, unacknowledged=n)`` raises JournalError where it cannot write; it
    gets how many of the messages before these are not acknowledged. *acknowledge* acknowledges all
    messages up to a delivery tag. *prefetch_steps* are how many unacknowledged messages the broker
    allows: at first, and after `raise_limit`. *clock* returns monotonic seconds.
    """

    def __init__(
        self,
        journal_batch: Callable[..., None],
        acknowledge: Callable[[int], None],
        *,
        prefetch_steps: Sequence[int] = PREFETCH_STEPS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal_batch = journal_batch
        self._acknowledge = acknowledge
        self._steps = list(prefetch_steps)
        self._clock = clock
        #: delivered, not journalled
        self.pending: list[Delivery] = []
        #: whether any message was journalled
        self.has_journalled = False
        #: the delivery tag of the last message that came on the present channel
        self.newest_tag = 0
        #: journalled, not acknowledged: (last delivery tag of a batch, time), oldest first
        self._journalled: deque[tuple[int, float]] = deque()
        self._acknowledged_tag = 0
        #: the newest tag that was delivered with an earlier prefetch limit
        self._raised_at_tag = 0
        #: the number of pending messages at the last call of `should_wait_for_more`
        self._pending_before = 0
        #: the time of the last commit, and until when messages are gathered after it
        self._flushed_s = self._gathers_until_s = -math.inf
        #: acknowledge nothing but by `acknowledge_all`, so that the limit fills
        self.is_held = False

    @property
    def prefetch(self) -> int:
        """The number of unacknowledged messages that the broker allows now."""
        return self._steps[0]

    @property
    def is_acknowledged(self) -> bool:
        """Whether all messages that were delivered are acknowledged."""
        return self._acknowledged_tag == self.newest_tag

    @property
    def is_full(self) -> bool:
        """Whether all that the limit allows is delivered: then no message is on its way."""
        before = max(self._acknowledged_tag, self._raised_at_tag)
        return self.newest_tag - before >= self.prefetch

    def should_raise_limit(self) -> bool:
        """Return whether the limit was used once, and the broker waits for us now."""
        return self._may_raise_limit() and self.is_full

    def _may_raise_limit(self) -> bool:
        n_acknowledged = self._acknowledged_tag - self._raised_at_tag
        return len(self._steps) > 1 and n_acknowledged >= self.prefetch

    def raise_limit(self) -> None:
        """Use the next prefetch limit; the caller tells the broker."""
        del self._steps[0]
        self._raised_at_tag = self.newest_tag

    def raise_limit_on_new_channel(self) -> None:
        """Use the next prefetch limit on a new channel, after all messages were acknowledged."""
        del self._steps[0]
        self.newest_tag = self._acknowledged_tag = self._raised_at_tag = 0
        self._journalled.clear()

    def drop_pending(self) -> None:
        """Forget the messages that are not journalled; RabbitMQ delivers them again."""
        self.pending = []

    def add(self, delivery_tag: int, delivery: Delivery) -> None:
        """Receive one message."""
        self.pending.append(delivery)
        self.newest_tag = delivery_tag

    def should_wait_for_more(self) -> bool:
        """Return whether many messages came since the last call, and the limit lets more come."""
        pending = len(self.pending)
        before, self._pending_before = self._pending_before, pending
        return before + FEW_MESSAGES < pending < self.prefetch // 2

    @property
    def pause_s(self) -> float:
        """Time for which to receive nothing, so that the next commit has several messages."""
        return max(self._gathers_until_s - self._clock(), 0.0)

    def flush(self) -> None:
        """Journal the received messages; after a JournalError the next call tries again."""
        if not self.pending:
            return
        newest_tag, n = self.newest_tag, len(self.pending)
        unacknowledged = newest_tag - n - self._acknowledged_tag
        self._journal_batch(self.pending, unacknowledged=unacknowledged)
        self.has_journalled = True
        now_s = self._clock()
        self._journalled.append((newest_tag, now_s))
        self.pending = []
        self._pending_before = 0
        period_s = (now_s - self._flushed_s) / n
        if FAST_S < period_s <= GATHER_S / 2:
            self._gathers_until_s = now_s + min(FEW_MESSAGES * period_s, GATHER_S)
        self._flushed_s = now_s
        is_half_used = newest_tag - self._acknowledged_tag > self.prefetch // 2
        if is_half_used and not self._may_raise_limit() and not self.is_held:
            # Leave the newest unacknowledged: if the connection ends, the redelivered messages
            # then begin with journalled rows, whose order tells which later messages are new.
            self._acknowledge_up_to(newest_tag - self.prefetch // 4)

    def acknowledge_settled(self, *, is_drained: bool) -> None:
        """Acknowledge messages that were journalled `ACK_LINGER_S` ago or earlier.

        Unless the queue *is_drained*, not the newest ones: a message with the same bytes may be the
        next in the queue, and be delivered to a connection that ends.
        """
        if not self.is_held:
            self._acknowledge_older_than(self._clock() - ACK_LINGER_S, is_drained=is_drained)

    def acknowledge_all(self, *, is_drained: bool = True) -> None:
        """Acknowledge all journalled messages, or all but the newest unless the queue *is_drained*.

        Right only if no message is being delivered.
        """
        self._acknowledge_older_than(self._clock(), is_drained=is_drained)

    def _acknowledge_older_than(self, moment: float, *, is_drained: bool) -> None:
        limit = self.newest_tag - (0 if is_drained else self.prefetch // 4)
        tag = 0
        while self._journalled and self._journalled[0][1] <= moment:
            tag, _ = self._journalled[0]
            if tag > limit:
                break
            self._journalled.popleft()
        self._acknowledge_up_to(min(tag, limit))

    def _acknowledge_up_to(self, tag: int) -> None:
        if tag > self._acknowledged_tag:
            self._acknowledge(tag)
            self._acknowledged_tag = tag
