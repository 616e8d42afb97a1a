"""A team on one journal in PostgreSQL: how soon kernels see an event, what an idle kernel costs.

    python benchmarks/team.py
    python benchmarks/team.py --events 200 --idle-s 60 --listeners 10

A private PostgreSQL is started. The listeners are trackers in another process; their callbacks
compare the monotonic clock with the time that the event carries, which is that before its commit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from regards_nb import OrderTracker
from regards_nb.events import Delivery
from regards_nb.journal import Journal

# the private PostgreSQL of the tests
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from postgresql import PrivatePostgreSQL

_TICK = threading.Event()

LISTENERS = """
import json, sys, threading, time
from regards_nb import OrderTracker
url, count, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seen, done = [], threading.Semaphore(0)
def note(event):
    seen.append((time.monotonic_ns() - int(event.message)) / 1e6)
    done.release()
trackers = [OrderTracker.reader(url) for _ in range(count)]
for tracker in trackers:
    tracker.on(None, note)
    tracker.start()
time.sleep(7)  # listening, or known that it is impossible
print("listening", flush=True)
for _ in range(count * events):
    done.acquire()
print(json.dumps(seen), flush=True)
for tracker in trackers:
    tracker.stop()
"""


def delivery(body: dict[str, object]) -> Delivery:
    """Return a message with this body."""
    return Delivery(
        body=json.dumps(body).encode(),
        received_at_us=time.time_ns() // 1000,
        redelivered=False,
        timestamp_s=None,
        correlation_id=None,
        tenant=None,
        app_id="benchmark",
        properties="{}",
    )


def latencies_ms(writer: str, reader: str, *, listeners: int, events: int) -> list[float]:
    """Return from before the commit of an event to its callback, for each listener and event."""
    command = [sys.executable, "-c", LISTENERS, reader, str(listeners), str(events)]
    with (
        Journal(writer) as journal,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        session_id = journal.open_session("benchmark")
        assert process.stdout is not None
        process.stdout.readline()
        for number in range(events):
            body = {"status": "GRANTED", "correlationId": f"c{number}"}
            journal.append(session_id, [delivery(body | {"message": str(time.monotonic_ns())})])
            _TICK.wait(random.uniform(0.1, 0.3))
        return sorted(json.loads(process.stdout.readline()))


def idle_transactions(server: PrivatePostgreSQL, url: str, duration_s: float) -> int:
    """Return how many transactions a kernel makes that waits, shows a view and has a callback."""
    with Journal(url) as journal:
        body = {"status": "GRANTED", "correlationId": "a"}
        journal.append(journal.open_session("benchmark"), [delivery(body)])
    with tempfile.TemporaryDirectory() as folder:
        tracker = OrderTracker.reader(url, workspace=folder).start()
        tracker.on("DONE", print)
        over = threading.Event()
        views = threading.Thread(target=_look, args=(tracker, over))
        views.start()
        waiting = threading.Thread(target=_wait, args=(tracker,), daemon=True)
        waiting.start()
        _TICK.wait(10.0)
        before = transactions(server, url)
        _TICK.wait(duration_s)
        after = transactions(server, url)
        over.set()
        views.join()
        tracker.stop()
        return after - before


def _look(tracker: OrderTracker, over: threading.Event) -> None:
    """Take a snapshot five times a second, as a view of a running order does."""
    while not over.wait(0.2):
        tracker.snapshot()


def _wait(tracker: OrderTracker) -> None:
    try:
        tracker.wait("a")
    except Exception:  # noqa: BLE001 - the tracker is stopped at the end
        return


def transactions(server: PrivatePostgreSQL, url: str) -> int:
    """Return the number of transactions in a database so far, also of those that only read."""
    name = url.partition("@/")[2].partition("?")[0]
    query = f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
    return int(server.value(query))


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of them lies."""
    return values[min(int(len(values) * share), len(values) - 1)]


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--listeners", type=int, default=10)
    parser.add_argument("--idle-s", type=float, default=60.0)
    options = parser.parse_args()
    print("| event to callback, ms | p50 | p99 | max |\n|---|---:|---:|---:|")
    with PrivatePostgreSQL() as server:
        # its own transactions would be counted
        server.execute("ALTER SYSTEM SET autovacuum = off")
        server.execute("SELECT pg_reload_conf()")
        url = server.new_database()
        with server.pgbouncer(url) as pooled:
            for name, reader in (("told by NOTIFY", url), ("PgBouncer between", pooled)):
                found = latencies_ms(
                    url, reader, listeners=options.listeners, events=options.events
                )
                figures = [percentile(found, 0.5), percentile(found, 0.99), found[-1]]
                print(f"| {name} | {' | '.join(f'{each:.1f}' for each in figures)} |", flush=True)
        print(f"\n| transactions in {options.idle_s:g} s of an idle kernel | |\n|---|---:|")
        url = server.new_database()
        print(f"| waiting, with a view | {idle_transactions(server, url, options.idle_s)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
