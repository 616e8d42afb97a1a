"""How far a download is: an immutable snapshot, handed out a few times per second at most."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

#: No more than five snapshots per second.
_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the download of one order is. Files and bytes are those of the running call."""

    order_id: int
    #: Files that are in place.
    files_done: int
    files_total: int
    #: Bytes of files that have arrived, verified or not.
    bytes_done: int
    #: None while the server does not know the size of a file.
    bytes_total: int | None
    #: Files whose size and MD5 were found right.
    verified: int
    #: ``manifest``, ``zip``, ``files`` or ``done``.
    phase: str
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        """Average pace."""
        return self.bytes_done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """When it will be over at this pace; None where that cannot be said."""
        if self.bytes_total is None or not self.bytes_done:
            return None
        return max(self.bytes_total - self.bytes_done, 0) / self.bytes_per_s

    def __str__(self) -> str:
        rate = f", {_mega(self.bytes_per_s)}/s" if self.bytes_done else ""
        left = self.remaining_s
        eta = f", {left:.0f} s left" if left else ""
        total = f" of {_mega(self.bytes_total)}" if self.bytes_total is not None else ""
        return (
            f"order {self.order_id}: verified {self.verified}/{self.files_total}, "
            f"{_mega(self.bytes_done)}{total}{rate}{eta}"
        )


def _mega(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


class Counter:
    """Counts what the threads of a download do, and reports it.

    The threads count; only the one that called for the download reports, so that a callback runs
    where its author expects it.
    """

    def __init__(self, order_id: int, on_progress: Callable[[Progress], object] | None) -> None:
        self._order_id = order_id
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self._next_report_s = 0.0
        self._phase = "manifest"
        self._files_total = 0
        self._bytes_total: int | None = 0
        self._bytes_done = 0
        self._files_done = 0
        self._verified = 0

    def expect(self, *, files: int, size_bytes: int | None) -> None:
        """Say how much will come."""
        self._files_total, self._bytes_total = files, size_bytes

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self._phase = phase
        self.report(now=True)

    def add_bytes(self, count: int) -> None:
        """Count bytes of files that arrived; negative where they have to come again."""
        with self._lock:
            self._bytes_done += count

    def add_files(self, count: int, *, verified: int) -> None:
        """Count files that are in place."""
        with self._lock:
            self._files_done += count
            self._verified += verified

    def report(self, *, now: bool = False) -> None:
        """Hand out a snapshot, if it is time for one."""
        if self._on_progress is None:
            return
        time_s = time.monotonic()
        if not now and time_s < self._next_report_s:
            return
        self._next_report_s = time_s + _INTERVAL_S
        try:
            self._on_progress(self.snapshot())
        except Exception:  # noqa: BLE001 - it is the user's code
            # A mistake in a progress bar must not cost a download: said once, then not called.
            self._on_progress = None
            _log.exception("on_progress failed; the download goes on without it")

    def snapshot(self) -> Progress:
        """Return how far it is now."""
        with self._lock:
            return Progress(
                order_id=self._order_id,
                files_done=self._files_done,
                files_total=self._files_total,
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
                verified=self._verified,
                phase=self._phase,
                elapsed_s=time.monotonic() - self._started_s,
            )
