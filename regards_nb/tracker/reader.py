"""A tracker that reads a journal which another kernel writes: no broker, no polling."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regards_nb.consumer import Health, HealthState
from regards_nb.errors import JournalError, SettingsError
from regards_nb.journal import DEFAULT_PATH
from regards_nb.tracker.rest_sync import REST_ANSWERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.journal import Journal

#: In the place of the address of a broker: the journal is read, nothing is received.
JOURNAL_ONLY: Any = object()


class JournalReader:
    """Takes the place of the consumer in a tracker that only reads its journal."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.health = Health()
        self._changed = changed

    def start(self, timeout_s: float) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Say that the journal is read."""
        if self.health.state is not HealthState.READING:
            self._report(HealthState.READING)

    def stop(self, timeout_s: float) -> None:  # noqa: ARG002
        """Say that it is not read any more."""
        self._report(HealthState.STOPPED)

    def _report(self, state: HealthState) -> None:
        self.health = replace(self.health, state=state, since=datetime.now(UTC))
        self._changed()


def require_file(journal: str | Path | None) -> None:
    """Refuse a file that does not exist: a reader would make an empty journal."""
    if isinstance(journal, str) and "://" in journal:
        return
    path = Path(DEFAULT_PATH if journal is None else journal).expanduser().absolute()
    if not path.exists():
        raise JournalError(
            f"there is no journal {path}: give the file or the URL that the other kernel writes"
        )


def other_queues(journal: Journal, queue: str) -> str | None:
    """Return a text on the messages of other queues in the journal; None if there are none."""
    others = journal.having_messages(sorted(journal.queues() - {queue, REST_ANSWERS}))
    if not others:
        return None
    return (
        f"the journal {journal.location} also holds messages of {_named(others)}. They are kept "
        f"apart: this tracker shows those of queue {queue!r} only. To see the others: "
        f"OrderTracker.reader(journal=..., queue={others[0]!r})"
    )


def check_queue(journal: Journal, queue: str | None) -> None:
    """Refuse a reader that would mix up queues, or names one without messages in the journal."""
    known = journal.queues()
    queues = journal.having_messages(sorted(known - {REST_ANSWERS}))
    if queue is None and len(queues) > 1:
        raise SettingsError(
            f"the journal {journal.location} holds messages of {_named(queues)}. Two queues may "
            "hold the same events, so name the one to read: OrderTracker.reader(..., queue="
            f"{queues[0]!r})"
        )
    if queue is not None and queues and queue not in known:
        raise SettingsError(
            f"the journal {journal.location} holds no message of queue {queue!r}, only of "
            f"{_named(queues)}"
        )


def _named(queues: list[str]) -> str:
    return ("queue " if len(queues) == 1 else "the queues ") + " and ".join(map(repr, queues))
