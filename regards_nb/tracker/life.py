"""Whether a tracker runs, and what a call says that needs a tracker that runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regards_nb.consumer import HealthState
from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import Health

_NOT_STARTED = (
    "this tracker is not started, so no event can arrive: call tracker.start(), or use "
    "`with tracker:`"
)
_STOPPED = "the tracker is stopped; call start() again, no event can arrive before"


class Life:
    """Refuses what needs a tracker that runs.

    *was_stopped*: the tracker ran before. *end* says why it cannot be started again; it is empty as
    long as it can.
    """

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health
        self.was_stopped = False
        self.end = ""

    @property
    def health(self) -> Health:
        """The health of the consumer; its reason says if the tracker has ended for good."""
        health = self._health()
        if self.end and health.state is HealthState.STOPPED:
            return replace(health, reason=self.end)
        return health

    def refusal(self) -> str:
        """Return why no event can arrive; empty while the tracker runs."""
        health = self._health()
        if health.state not in {HealthState.STOPPED, HealthState.FAILED}:
            return ""
        if self.end:
            return self.end
        if self.was_stopped:
            return _STOPPED
        return _NOT_STARTED + (f" ({health.reason})" if health.reason else "")

    def require_running(self) -> None:
        """Refuse a call whose answer is an event; the text says what to do."""
        if text := self.refusal():
            raise SettingsError(text)

    def end_for_good(self, text: str, client: RegardsClient | None) -> None:
        """Refuse all later calls with *text*, also those of the client."""
        self.end = text
        if client is not None:
            client.close(text)

    def require_no_end(self) -> None:
        """Refuse to start a tracker that has ended for good; the text says what to do instead."""
        if self.end:
            raise SettingsError(self.end)
