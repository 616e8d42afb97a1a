"""Warn of consumers that take messages of the same queue into another journal."""

from __future__ import annotations

import os
import socket
import weakref
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from regards_nb.consumer import HealthState
from regards_nb.download import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.consumer import Health
    from regards_nb.journal import Journal

#: After a lost connection RabbitMQ counts its consumer until the heartbeat ends: at most so long.
_STALE_S = 90.0

#: Those of this process, which all have its process id.
_in_this_process: weakref.WeakSet[OtherConsumers] = weakref.WeakSet()


class OtherConsumers:
    """Tells consumers with another journal from those that share this one.

    RabbitMQ gives each message to one consumer of a queue. Consumers that share a journal all see
    it; to any other it is lost.
    """

    def __init__(self, journal: Journal, queue: str, health: Callable[[], Health]) -> None:
        self._journal = journal
        self.place = (journal.location, queue)
        self._queue = queue
        self.health = health
        self._connected_at: datetime | None = None
        #: The count of consumers that was last compared with the journal, and the outcome.
        self._compared = 0
        self._foreign = 0
        _in_this_process.add(self)

    def warning(self) -> str | None:
        """Return a text if consumers of the queue write to another journal, else None."""
        health = self.health()
        if health.state is not HealthState.CONSUMING or not health.other_consumers:
            self._compared = self._foreign = 0
            return None
        self._connected_at = self._connected_at or health.since
        is_reconnected = health.since > self._connected_at
        if is_reconnected and (datetime.now(UTC) - health.since).total_seconds() < _STALE_S:
            return None
        if health.other_consumers != self._compared:
            self._compared = health.other_consumers
            self._foreign = health.other_consumers - self._sharing()
        if self._foreign <= 0:
            return None
        read = "consumer reads" if self._foreign == 1 else "consumers read"
        return (
            f"{self._foreign} other {read} queue {self._queue!r} with another journal. RabbitMQ "
            "gives each message to one of them only (all messages to the first one, if the queue "
            "has a single active consumer), so this tracker misses the rest. Stop the others, give "
            "all the same journal=..., or ask the REGARDS administrator for a queue of your own"
        )

    def _sharing(self) -> int:
        """Return how many other consumers of the queue share the journal, as far as it knows."""
        here, pid = socket.gethostname(), os.getpid()
        elsewhere = sum(
            host != here or is_alive(process)
            for host, process in self._journal.processes(self._queue)
            if (host, process) != (here, pid)
        )
        beside = sum(
            other.place == self.place and other.health().state is HealthState.CONSUMING
            for other in list(_in_this_process)
            if other is not self
        )
        return elsewhere + beside
