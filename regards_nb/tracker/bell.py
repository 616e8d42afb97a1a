"""Tells waiters, in whichever thread, that something changed."""

from __future__ import annotations

import threading


class Bell:
    """A counter that can be waited on. Ringing is cheap and never blocks for long."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0

    @property
    def rings(self) -> int:
        """How often it has rung; grows with each change."""
        return self._rings

    def ring(self) -> None:
        """Wake everybody who waits."""
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Return the number of rings once it differs from *seen*, at the latest after a time."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings != seen, timeout_s)
            return self._rings
