"""What went wrong in the background."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from regards_nb.errors import TrackingError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("regards_nb")
# Without any handler Python would write warnings to stderr: into whatever cell runs.
_log.addHandler(logging.NullHandler())

_SHOWN = 20


class Problems:
    """Keeps the latest problems for the display, and each one once for the user's next call."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._shown: deque[str] = deque(maxlen=_SHOWN)
        self._unraised: deque[tuple[str, BaseException]] = deque(maxlen=_SHOWN)

    @property
    def shown(self) -> tuple[str, ...]:
        """The latest problems, oldest first."""
        with self._lock:
            return tuple(self._shown)

    def record(self, what: str, error: BaseException) -> None:
        """Note that *what* failed with *error*."""
        text = f"{what}: {error}" if str(error) else f"{what}: {type(error).__name__}"
        with self._lock:
            self._shown.append(text)
            self._unraised.append((text, error))
        _log.warning("%s", text, exc_info=error)
        self._changed()

    def raise_new(self) -> None:
        """Raise what the user has not been told yet.

        Raises
        ------
        TrackingError
            New each time, from the recorded error: raising that one again and again would make
            its traceback grow.
        """
        with self._lock:
            unraised = list(self._unraised)
            self._unraised.clear()
        if unraised:
            text = "; ".join(dict.fromkeys(text for text, _ in unraised))
            raise TrackingError(f"in the background: {text}") from unraised[-1][1]
