"""What the consumer is doing, as one value that is replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum


class HealthState(StrEnum):
    """The life of a consumer."""

    #: On the way to the broker for the first time.
    CONNECTING = "CONNECTING"
    #: Connected; messages are journalled as they come.
    CONSUMING = "CONSUMING"
    #: The connection was lost, or the journal cannot be written; trying for ever.
    RECONNECTING = "RECONNECTING"
    #: No broker: REGARDS is asked over REST now and then.
    POLLING = "POLLING"
    #: Not started, or stopped by the user.
    STOPPED = "STOPPED"
    #: ``start()`` was refused; see the reason.
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of the connection to RabbitMQ, and since when.

    Attributes
    ----------
    state : HealthState
    since : datetime.datetime
        When this state began (UTC).
    reason : str or None
        Why, where there is something to say.
    last_event : datetime.datetime or None
        When the last message of this process's life was journalled (UTC).
    queue_depth : int or None
        Messages waiting in the queue when the broker was last asked.
    """

    state: HealthState = HealthState.STOPPED
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    reason: str | None = None
    last_event: datetime | None = None
    queue_depth: int | None = None
