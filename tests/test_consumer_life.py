"""Threads of the consumer, seen from the whole process: busy cells, exits, floods, other code."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import Admin, throw, until
from test_consumer import LIMIT_S, consuming, numbers, publish

from regards_nb import OrderTracker, errors
from regards_nb.consumer import Connection, HealthState
from regards_nb.journal import Journal


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


def test_an_exception_thrown_into_the_thread_is_told(admin: Admin, tmp_path: Path) -> None:
    """One: it connects again. Many: health says why it ended, the next call raises it."""
    tracker = OrderTracker(admin.url, admin.queue, journal=tmp_path / "journal.sqlite")
    with tracker:
        began = tracker.health.since
        throw(KeyboardInterrupt, "regards-nb-consumer")
        until(lambda: tracker.health.since > began)
        publish(admin, 0, 20)
        until(lambda: len(tracker.events) == 20)
        while tracker.health.state is not HealthState.FAILED:
            for state in (HealthState.CONSUMING, HealthState.RECONNECTING):
                if tracker.health.state is state:
                    throw(KeyboardInterrupt, "regards-nb-consumer")
                until(lambda state=state: tracker.health.state is not state)
        assert "has ended (KeyboardInterrupt)" in str(tracker.health.reason)
        with pytest.raises(errors.TrackingError, match="receiving messages: the thread .*ended"):
            tracker.wait(timeout_s=LIMIT_S)
        tracker.start()
        publish(admin, 20, 40)
        until(lambda: len(tracker.events) == 40)
        with pytest.raises(errors.WaitTimeoutError):
            tracker.wait(timeout_s=0)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_descriptors_that_other_code_replaced_are_noticed(
    admin: Admin, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets of the connection are gone: another one is opened, and stop() still stops."""
    monkeypatch.setattr(Connection, "depth_period_s", 0.1)

    def sockets() -> set[int]:
        links = {int(link.name): link for link in Path("/proc/self/fd").iterdir()}
        return {fd for fd, link in links.items() if link.is_socket()}

    others = sockets()
    with consuming(admin, journal), Path(os.devnull).open("rb") as null:
        for first in (0, 20):
            for descriptor in sockets() - others:
                os.dup2(null.fileno(), descriptor)
            publish(admin, first, first + 20)
            until(lambda first=first: journal.last_id() == first + 20)
        for descriptor in sockets() - others:
            os.dup2(null.fileno(), descriptor)
    assert numbers(journal) == list(range(40))
    gc.collect()  # pika leaves sockets without a descriptor behind


def test_start_and_stop_in_several_threads(admin: Admin, tmp_path: Path) -> None:
    """Each waits for the other; a start that a stop ends says so; the last one works."""
    tracker = OrderTracker(admin.url, admin.queue, journal=tmp_path / "journal.sqlite")
    failed: list[BaseException] = []

    def start_and_stop() -> None:
        for action in (tracker.start, tracker.stop, tracker.start):
            try:
                action()
            except errors.TrackingError as exc:
                if "stopped before it was consuming" not in str(exc):
                    failed.append(exc)
            except BaseException as exc:  # noqa: BLE001 - the main thread fails with it
                failed.append(exc)

    threads = [threading.Thread(target=start_and_stop) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not failed
    with tracker:
        publish(admin, 0, 20)
        until(lambda: len(tracker.events) == 20)
        assert tracker.health.other_consumers == 0
