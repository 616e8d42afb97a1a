"""Threads of the consumer, seen from the whole process: busy cells, exits, floods."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
from conftest import Admin, until

from regards_nb import OrderTracker
from regards_nb.consumer import HealthState


def test_heartbeats_survive_a_cell_that_computes(admin: Admin, tmp_path: Path) -> None:
    """Pure Python that never pauses, for several heartbeats: the connection stays as it was."""
    url = f"{admin.url}?heartbeat=2"
    with OrderTracker(url, admin.queue, journal=tmp_path / "j.sqlite") as tracker:
        before = tracker.health
        end, count = time.monotonic() + 6, 0
        while time.monotonic() < end:
            count += sum(range(1000))
        assert tracker.health.state is HealthState.CONSUMING
        assert tracker.health.since == before.since
        admin.publish({"status": "DONE", "orderId": 1})
        until(lambda: len(tracker.events) == 1)


EXITS_WITHOUT_STOP = """
import sys
from regards_nb import OrderTracker
tracker = OrderTracker(sys.argv[1], sys.argv[2], journal=sys.argv[3]).start()
tracker.on("DONE", print)
tracker.show()
assert len(tracker.events) == 0
print(tracker.health.state)
"""


def test_python_ends_at_once_without_stop(admin: Admin, tmp_path: Path) -> None:
    """A script or a kernel that just ends is not held up, and says nothing on its way out."""
    ended = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-c",
            EXITS_WITHOUT_STOP,
            admin.url,
            admin.queue,
            str(tmp_path / "j.sqlite"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "CONSUMING"
    assert ended.stderr == ""


def test_memory_stays_bounded_in_a_flood_of_poison(admin: Admin, tmp_path: Path) -> None:
    """Messages that nobody understands cost a line each, not their bodies; the good ones pass."""
    with OrderTracker(admin.url, admin.queue, journal=tmp_path / "j.sqlite") as tracker:
        admin.publish({"status": "GRANTED", "orderId": 1})
        until(lambda: len(tracker.events) == 1)
        before = psutil.Process().memory_info().rss
        for _ in range(100):
            admin.publish(b"\xff" * 1_000_000)
        admin.publish({"status": "DONE", "orderId": 1})
        until(lambda: tracker["#1"].status == "DONE")
        assert tracker.snapshot().rejected == 100
        grown = psutil.Process().memory_info().rss - before
        assert grown < 80_000_000, f"{grown} bytes for 100 messages of 1 MB"
