"""The time before the first message: the import, and ``start()`` until CONSUMING."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pika

from regards_nb import OrderTracker

if TYPE_CHECKING:
    from collections.abc import Callable

#: `import regards_nb` must not import these: each takes time and is needed only for some work.
LATER = ("ipywidgets", "requests", "sqlalchemy", "matplotlib", "pandas", "pika")


class Pair(NamedTuple):
    """Medians of two durations that were measured in turn, in seconds."""

    ours_s: float
    theirs_s: float

    @property
    def ratio(self) -> float:
        """The time of regards_nb over the other time."""
        return self.ours_s / self.theirs_s


def imports(runs: int) -> Pair:
    """Compare `import regards_nb` and `import pandas`, each in a new process."""
    loaded = _python(f"import regards_nb, sys; print([n for n in {LATER} if n in sys.modules])")
    if loaded.strip() != "[]":
        raise SystemExit(f"import regards_nb loads {loaded}")
    ours = lambda: _python("import regards_nb")  # noqa: E731
    return in_turn(ours, lambda: _python("import pandas"), runs)


def trackers(runs: int) -> Pair:
    """Compare `from regards_nb import OrderTracker` and `import pandas`."""
    ours = lambda: _python("from regards_nb import OrderTracker")  # noqa: E731
    return in_turn(ours, lambda: _python("import pandas"), runs)


def starts(url: str, runs: int) -> Pair:
    """Compare `OrderTracker.start` and a bare pika connection that starts to consume."""
    queue = f"benchmark.{uuid.uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(url)) as administrator:
        channel = administrator.channel()
        channel.queue_declare(queue)
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            tracker = OrderTracker(url, queue, journal=Path(folder) / "journal.sqlite")
            tracker.start()
            tracker.stop()
            pair = in_turn(tracker.start, lambda: _bare(url, queue), runs, after=tracker.stop)
        channel.queue_delete(queue)
    return pair


def _bare(url: str, queue: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, passive=True)
    channel.basic_qos(prefetch_count=1000)
    channel.basic_consume(queue, lambda *_: None)


def in_turn(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    runs: int,
    after: Callable[[], object] = lambda: None,
) -> Pair:
    """Run both in turn and return the medians; the time of *after* does not count."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for times, work, end in ((found[0], ours, after), (found[1], theirs, lambda: None)):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
            end()
    return Pair(statistics.median(found[0]), statistics.median(found[1]))


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
