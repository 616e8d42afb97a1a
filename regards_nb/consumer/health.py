"""The health of a source of events: RabbitMQ, REST, or a journal that another kernel writes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.threads import OwnThread

_log = logging.getLogger(__name__)


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


#: In these states no event arrives.
ENDED = frozenset({HealthState.STOPPED, HealthState.FAILED})


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
        When this process last journalled a message (UTC); of a reader, when another one did.
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


class HealthReport:
    """Holds the present health of a source: its thread sets it, every thread reads it.

    After each change *changed* is called, which wakes the threads that wait. Once `thread` has
    ended by an error, the health is FAILED with that error, whatever was set last.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._health = Health()
        #: The thread of the source; None before its start.
        self.thread: OwnThread | None = None
        self._changed = changed
        #: apart, because it changes with each commit
        self._last_event: datetime | None = None
        #: what a user should know while messages are consumed, by kind
        self._notes: dict[str, str] = {}

    @property
    def health(self) -> Health:
        """The health at this moment."""
        health = replace(self._health, last_event=self._last_event)
        death = None if self.thread is None else self.thread.death
        if death is None or health.state in ENDED:
            return health
        return replace(health, state=HealthState.FAILED, reason=str(death))

    @property
    def state(self) -> HealthState:
        """The state that was set last, also if the thread has ended by itself."""
        return self._health.state

    def report(self, state: HealthState, reason: str | None = None) -> None:
        """Set the state and the reason; ``since`` becomes now if the state is another one.

        While messages are consumed the reason is what `note` has set.
        """
        if state is HealthState.CONSUMING:
            reason = " ".join(self._notes.values()) or None
        since = self._health.since if state is self._health.state else datetime.now(UTC)
        self.update(state=state, reason=reason, since=since)

    def note(self, kind: str, text: str | None) -> None:
        """Set what a user should know while messages are consumed, and log it; None removes it."""
        if self._notes.get(kind) == text:
            return
        if text is None:
            del self._notes[kind]
        else:
            self._notes[kind] = text
            _log.warning("%s", text)
        if self._health.state is HealthState.CONSUMING:
            self.report(HealthState.CONSUMING)

    def update(self, **values: Any) -> None:
        """Set some attributes of the health."""
        self._health = replace(self._health, **values)
        self._changed()

    def report_event(self) -> None:
        """Set the time of the last event to now."""
        self._last_event = datetime.now(UTC)
        self._changed()
