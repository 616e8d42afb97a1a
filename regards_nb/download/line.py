"""How far a download is, in words: one line that is rewritten in a terminal, a few elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regards_nb.download.progress import Progress

#: In a notebook or a log, where lines stay.
_BETWEEN_LINES_S = 5.0
#: Back to the start of the line, and what stood there away.
_ANEW = "\r\033[K"


class ProgressLine:
    """Writes the progress of one order to the standard output; give it as ``on_progress``.

    An order may come in many increments, of which each counts from zero: what came before is said
    besides.
    """

    def __init__(self) -> None:
        self._before = 0
        self._next_line_s = 0.0
        #: What was not written yet, because another line was written just before.
        self._late = ""
        self._is_open = False

    def __call__(self, progress: Progress) -> None:
        """Show a snapshot."""
        if not progress.files_total:  # the manifest is not read yet
            return
        text = f"{progress}, {self._before} files before" if self._before else f"{progress}"
        if progress.phase == "done":
            self._before += progress.files_done
        if sys.stdout.isatty():
            self._is_open = True
            _write(f"{_ANEW}{text}")
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _BETWEEN_LINES_S
            self._late = ""
            _write(f"{text}\n")
        else:
            self._late = f"{text}\n"

    def end(self) -> None:
        """Leave the line."""
        _write("\n" if self._is_open else self._late)
        self._is_open, self._late = False, ""


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
