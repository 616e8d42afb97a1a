"""How much of the machine other work took while something was measured (Linux)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CORES = os.cpu_count() or 1
#: Of /proc/stat: user, nice, system, (idle, iowait,) irq, softirq, steal.
_BUSY = (1, 2, 3, 6, 7, 8)
_LOOK_S = 1.0
_WAITING = threading.Event()  # never set: for waiting only


class Stopwatch:
    """Measures from when it is made: the time, and how much of the machine was busy."""

    def __init__(self) -> None:
        self._busy_s = _busy_s()
        self._started_s = time.perf_counter()

    @property
    def passed_s(self) -> float:
        """What has passed."""
        return time.perf_counter() - self._started_s

    def others(self, own_s: float) -> float:
        """Return which share of all cores was taken by what is not *own_s*."""
        busy_s = _busy_s() - self._busy_s - own_s
        return max(busy_s / (self.passed_s * _CORES), 0.0)


def wait_until_quiet(busy: float, limit_s: float) -> None:
    """Return when less than this share of the machine is busy, or after the limit."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        watch = Stopwatch()
        _WAITING.wait(_LOOK_S)
        if watch.others(0.0) <= busy:
            return


def cpu_s(pid: int) -> float:
    """Return what a running process has taken of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _busy_s() -> float:
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return sum(int(fields[number]) for number in _BUSY) / _TICKS_PER_S
