"""The progress of a download: immutable snapshots a few times per second, and their display."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regards_nb.text import counted, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.live import Live

    from regards_nb.client import LastByte

_log = logging.getLogger(__name__)

#: No more than five snapshots per second.
_INTERVAL_S = 0.2
#: The same before a line that says why no byte comes.
_BEFORE_NEWS_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of one order. Files and bytes are those of the running call."""

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
    #: Says that no byte came for a while; empty while bytes come.
    silence: str = ""

    @property
    def bytes_per_s(self) -> float:
        """The average rate."""
        return self.bytes_done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """The time that is left at this rate; None where it cannot be estimated."""
        if self.bytes_total is None or not self.bytes_done:
            return None
        return max(self.bytes_total - self.bytes_done, 0) / self.bytes_per_s

    def __str__(self) -> str:
        name = _name(self.order_id)
        rate = f", {size(int(self.bytes_per_s))}/s" if self.bytes_done else ""
        left = self.remaining_s
        eta = f", {left:.0f} s left" if left else ""
        total = "" if self.bytes_total is None else f" of {size(self.bytes_total)}"
        files = f"verified {self.verified}/{self.files_total}, {size(self.bytes_done)}"
        counts = f"{files}{total}{rate}{eta}" if self.files_total else "no file listed so far"
        return f"{name}: {counts}{', ' * bool(self.silence)}{self.silence}"


def _name(order_id: int) -> str:
    return f"order {order_id}" if order_id else "products"


class ProgressCounter:
    """Counts files and bytes for all threads of a download, and reports them.

    Every thread counts. Only the thread that called for the download reports, so that a callback
    runs in the thread that its author expects.
    """

    def __init__(
        self, order_id: int, on_progress: Callable[[Progress], object] | None, last_byte: LastByte
    ) -> None:
        self._order_id = order_id
        self.last_byte = last_byte
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
        """Set the totals."""
        self._files_total, self._bytes_total = files, size_bytes

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self._phase = phase
        self.report(now=True)

    def add_bytes(self, count: int) -> None:
        """Count bytes of files that arrived; negative where they must be fetched again."""
        with self._lock:
            self._bytes_done += count

    def add_files(self, count: int, *, verified: int) -> None:
        """Count files that are in place."""
        with self._lock:
            self._files_done += count
            self._verified += verified

    def report(self, *, now: bool = False) -> None:
        """Pass a snapshot to the callback, if it is time for one."""
        if self._on_progress is None:
            return
        time_s = time.monotonic()
        if not now and time_s < self._next_report_s:
            return
        self._next_report_s = time_s + _INTERVAL_S
        with self._lock:
            progress = Progress(
                order_id=self._order_id,
                files_done=self._files_done,
                files_total=self._files_total,
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
                verified=self._verified,
                phase=self._phase,
                elapsed_s=time_s - self._started_s,
                silence=self.last_byte.text(_name(self._order_id)),
            )
        try:
            self._on_progress(progress)
        except Exception:  # noqa: BLE001 - it is the user's code
            # An error in a progress bar must not end a download: log it once, then do not call it.
            self._on_progress = None
            _log.exception("on_progress failed; the download goes on without it")


class ProgressLine:
    """Writes the progress of one order to the standard output; it is an ``on_progress``.

    In a terminal one line is drawn again and again by rich, which fits it to the width. In a
    notebook or a log, where lines stay, a new line is written every 5 s, or after one where it says
    that no byte comes. An order may come in many increments, of which each counts from zero: the
    line adds the files that came before.
    """

    #: The time between two lines in a notebook or a log, where lines stay.
    between_lines_s = 5.0

    def __init__(self) -> None:
        self._before = 0
        self._last_line_s = -math.inf
        self._is_silent = False
        #: A line that was not written because another line was written just before.
        self._pending = ""
        self._live: Live | None = None

    def __call__(self, progress: Progress) -> None:
        """Show a snapshot."""
        if not progress.files_total:  # the manifest was not read yet
            return
        text = (
            f"{progress}, {counted(self._before, 'file')} before" if self._before else f"{progress}"
        )
        if progress.phase == "done":
            self._before += progress.files_done
        if sys.stdout.isatty():
            self._draw(text)
            return
        is_news = bool(progress.silence) and not self._is_silent
        pause_s = _BEFORE_NEWS_S if is_news else self.between_lines_s
        self._pending = f"{text}\n"
        if time.monotonic() >= self._last_line_s + pause_s:
            self._last_line_s, self._is_silent = time.monotonic(), bool(progress.silence)
            self._write_pending()

    def note(self, text: str) -> None:
        """Write the cause of a wait between two increments."""
        if sys.stdout.isatty():
            self._draw(text)
        else:
            self._pending += f"{text}\n"
            self._write_pending()

    def _write_pending(self) -> None:
        if self._pending:
            sys.stdout.write(self._pending)
            sys.stdout.flush()
            self._pending = ""

    def end(self) -> None:
        """Leave the line as it is, and write a line that is pending."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._write_pending()

    def _draw(self, text: str) -> None:
        # imported here: it takes 40 ms, and only a terminal needs it
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            # without a thread of its own: only the caller's thread writes to the terminal
            console = Console(file=sys.stdout, force_jupyter=False)
            self._live = Live(
                console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
