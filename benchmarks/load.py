"""The load that other processes put on the machine during a measurement (Linux)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CORES = os.cpu_count() or 1
#: Columns of /proc/stat: user, nice, system, irq, softirq and steal, without idle and iowait.
_BUSY = (1, 2, 3, 6, 7, 8)
_SAMPLE_S = 1.0
#: Never set; its wait() is the pause.
_PAUSE = threading.Event()


class Stopwatch:
    """Measures the time and the load of the machine since it was made."""

    def __init__(self) -> None:
        self._busy_s = _busy_s()
        self._started_s = time.perf_counter()

    @property
    def passed_s(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._started_s

    def others(self, own_s: float) -> float:
        """Return the share of all cores that other processes used; *own_s* is our own time."""
        busy_s = _busy_s() - self._busy_s - own_s
        return max(busy_s / (self.passed_s * _CORES), 0.0)


def wait_until_quiet(busy: float, limit_s: float) -> None:
    """Wait until at most the share *busy* of the machine is used, or until the time limit."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        watch = Stopwatch()
        _PAUSE.wait(_SAMPLE_S)
        if watch.others(0.0) <= busy:
            return


def cpu_s(pid: int) -> float:
    """Return the processor time of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _busy_s() -> float:
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return sum(int(fields[number]) for number in _BUSY) / _TICKS_PER_S
