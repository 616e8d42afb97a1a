"""The messages of one channel, from their delivery to their acknowledgement.

Knows neither pika nor threads: `link` feeds it from a real broker, the tests from a scripted one.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.events import Delivery

#: Messages that RabbitMQ may send ahead of our acknowledgements. A quarter of them stay without one
#: for a while (see below), and as many as half are journalled at once: with fewer, RabbitMQ would
#: wait for us again and again.
PREFETCH = 4000
#: A row is acknowledged this long after it was journalled, or when so many others wait that
#: RabbitMQ would pause. Two messages can be identical only within the second of their AMQP
#: timestamp: after this time both are in the journal, and the end of the connection cannot leave
#: one acknowledged and the other, looking the same, on its way (see `redelivery`).
ACK_LINGER_S = 1.5


class Intake:
    """Journals first and acknowledges after.

    Parameters
    ----------
    keep : callable
        Journals messages, or raises JournalError.
    acknowledge : callable
        Acknowledges all messages up to a delivery tag.
    prefetch : int
        How many unacknowledged messages the broker allows.
    clock : callable
        Seconds that only go forward.
    """

    def __init__(
        self,
        keep: Callable[[Sequence[Delivery]], None],
        acknowledge: Callable[[int], None],
        *,
        prefetch: int = PREFETCH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._acknowledge = acknowledge
        self._most_unacknowledged = prefetch // 2
        self._kept_unacknowledged = prefetch // 4
        self._clock = clock
        #: delivered, not journalled
        self._pending: list[Delivery] = []
        self._newest_tag = 0
        #: journalled, not acknowledged: (last delivery tag of a batch, when), oldest first
        self._journalled: deque[tuple[int, float]] = deque()
        self._acknowledged_tag = 0
        #: how many were pending when that was last asked
        self._pending_before = 0

    def take(self, delivery_tag: int, delivery: Delivery) -> None:
        """Receive one message."""
        self._pending.append(delivery)
        self._newest_tag = delivery_tag

    def has_grown(self) -> bool:
        """Tell whether messages came since this was last asked, and there is room for more."""
        pending = len(self._pending)
        before, self._pending_before = self._pending_before, pending
        return before < pending < self._most_unacknowledged

    def flush(self) -> None:
        """Journal what was received.

        Raises
        ------
        JournalError
            It is kept, and tried again with the next call.
        """
        if not self._pending:
            return
        self._keep(self._pending)
        newest_tag = self._newest_tag
        self._journalled.append((newest_tag, self._clock()))
        self._pending = []
        self._pending_before = 0
        if newest_tag - self._acknowledged_tag > self._most_unacknowledged:
            # All but the newest: what comes again after the end of the connection then begins
            # with a run of rows of the journal, and their place in it tells what follows.
            self._acknowledge_up_to(newest_tag - self._kept_unacknowledged)

    def acknowledge_settled(self) -> None:
        """Acknowledge what was journalled long enough ago."""
        self._acknowledge_older_than(self._clock() - ACK_LINGER_S)

    def acknowledge_all(self) -> None:
        """Acknowledge all that is journalled: nothing more is on its way."""
        self._acknowledge_older_than(self._clock())

    def _acknowledge_older_than(self, moment: float) -> None:
        tag = 0
        while self._journalled and self._journalled[0][1] <= moment:
            tag, _ = self._journalled.popleft()
        self._acknowledge_up_to(tag)

    def _acknowledge_up_to(self, tag: int) -> None:
        if tag > self._acknowledged_tag:
            self._acknowledge(tag)
            self._acknowledged_tag = tag
