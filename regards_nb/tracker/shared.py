"""What all parts of a tracker work on: journal, frames, change signal, background errors."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from regards_nb.errors import TrackingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from regards_nb.consumer import Health
    from regards_nb.download import Progress
    from regards_nb.frames import Frames
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderKey, OrderState

_log = logging.getLogger("regards_nb")
# Without any handler Python writes warnings to stderr, which is the output of the running cell.
_log.addHandler(logging.NullHandler())

#: How often a waiting thread reads the journal without a signal: another kernel may write to it.
POLL_S = 0.5
_MOST_ERRORS = 20


class View(Protocol):
    """The progress view of a cell that waits."""

    def refresh(self, *, note: str = "") -> None:
        """Show the current state, with *note* below it."""


class ChangeSignal:
    """A counter that threads can wait on. Sending is cheap and never blocks for long."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """Number of changes so far."""
        return self._count

    def send(self) -> None:
        """Count one change and wake all threads that wait."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Return the count as soon as it differs from *seen*, at the latest after *timeout_s*."""
        with self._condition:
            self._condition.wait_for(lambda: self._count != seen, timeout_s)
            return self._count


class BackgroundErrors:
    """Keeps the latest background errors for the display, and each once for the next call.

    Parameters
    ----------
    changed : callable
        Called after each new error.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        # Threads of downloads, callbacks and REST sync record; the user's thread raises.
        self._lock = threading.Lock()
        self._shown: deque[str] = deque(maxlen=_MOST_ERRORS)
        self._unraised: deque[tuple[str, BaseException]] = deque(maxlen=_MOST_ERRORS)

    @property
    def shown(self) -> tuple[str, ...]:
        """The latest errors as text, oldest first."""
        with self._lock:
            return tuple(self._shown)

    def record(self, what: str, error: BaseException) -> None:
        """Keep *error*, which ended *what*."""
        text = f"{what}: {error}" if str(error) else f"{what}: {type(error).__name__}"
        with self._lock:
            self._shown.append(text)
            self._unraised.append((text, error))
        _log.warning("%s", text, exc_info=error)
        self._changed()

    def note(self, text: str) -> None:
        """Show a text about something that was mended by itself: no call raises it."""
        with self._lock:
            self._shown.append(text)
        self._changed()

    def raise_new(self) -> None:
        """Raise all errors that were not raised yet.

        Raises
        ------
        TrackingError
            A new exception, with the last recorded error as its cause: raising the recorded one
            repeatedly would make its traceback grow.
        """
        with self._lock:
            unraised = list(self._unraised)
            self._unraised.clear()
        if unraised:
            text = "; ".join(dict.fromkeys(text for text, _ in unraised))
            raise TrackingError(f"in the background: {text}") from unraised[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerParts:
    """What the threads of a tracker share. It holds no tracker, so that one can be collected.

    Attributes
    ----------
    journal : Journal
    frames : Frames
    signal : ChangeSignal
    errors : BackgroundErrors
    downloads : dict of int to Progress or None
        The running downloads by order id, and how far each is; `Downloads` writes it.
    """

    journal: Journal
    frames: Frames
    signal: ChangeSignal
    errors: BackgroundErrors
    downloads: dict[int, Progress | None] = field(default_factory=dict)

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return the states of some orders, or of all, with their running downloads."""
        return [self._with_download(state) for state in self.frames.states(keys)]

    def state(self, key: OrderKey) -> OrderState:
        """Return the state of one order."""
        (state,) = self.states([key])
        return state

    def paths(self, order_id: int | None) -> list[Path]:
        """Return the paths of the downloaded files of an order."""
        records = [] if order_id is None else self.frames.files_of(order_id)
        return [Path(record.path) for record in records if record.path is not None]

    def _with_download(self, state: OrderState) -> OrderState:
        if state.order_id is None or state.order_id not in self.downloads:
            return state
        progress = self.downloads.get(state.order_id)
        state = replace(state, downloading=True, waits_for_download=False)
        if progress is None:
            return state
        return replace(
            state,
            downloaded_files=max(state.downloaded_files, progress.files_done),
            downloaded_bytes=max(state.downloaded_bytes, progress.bytes_done),
            bytes_total=progress.bytes_total or state.bytes_total,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An immutable copy of the state that a view draws."""

    orders: tuple[OrderState, ...]
    health: Health
    background_errors: tuple[str, ...]
    rejected: int
    #: When the REST login ends; the client renews it before.
    token_ends_at: datetime | None = None
