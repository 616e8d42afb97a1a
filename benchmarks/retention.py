"""Bytes of a journal: of each event while it is kept, and of each order after its events are gone.

::

    python benchmarks/retention.py --orders 20000
    python benchmarks/retention.py --orders 20000 --journal postgresql+psycopg://me@db/empty

Each order has ten messages; ten messages arrive together, as under load.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import messages

from regards_nb.events import Delivery
from regards_nb.frames import Frames
from regards_nb.journal import Journal, time_us

EVENTS_PER_ORDER = TOGETHER = 10
OLD_US, NEW_US = time_us("2026-01-01"), time_us("2026-03-01")
BEFORE_US = time_us("2026-02-01")


def delivery(order: int, event: int, *, at_us: int = OLD_US) -> Delivery:
    """Return one message of an order; the last one ends it."""
    fields = json.loads(messages.body(order * messages.SUB_ORDERS))
    last = event == EVENTS_PER_ORDER - 1
    fields |= {"status": "DONE" if last else "SUBORDER_DONE", "subOrderId": event}
    return Delivery(
        body=json.dumps(fields, separators=(",", ":")).encode(),
        received_at_us=at_us,
        redelivered=False,
        timestamp_s=at_us // 1_000_000,
        correlation_id=None,
        tenant="project1",
        app_id="rs-order",
        properties='{"content_type":"application/json","content_encoding":"UTF-8","priority":1}',
    )


def measure(journal: Journal, orders: int) -> dict[str, float]:
    """Fill a journal, prune it, and return sizes and times."""
    size_bytes = journal.pruning.run(0, dry_run=True).size_before_bytes
    session = journal.open_session("q")
    everything = [delivery(n, e) for n in range(orders) for e in range(EVENTS_PER_ORDER)]
    for first in range(0, len(everything), TOGETHER):
        journal.append(session, everything[first : first + TOGETHER])
    journal.append(journal.open_session("q"), [delivery(orders, 0, at_us=NEW_US)])
    before = Frames(journal, None)
    n_orders = len(before.orders)
    began_s = time.perf_counter()
    pruned = journal.pruning.run(BEFORE_US)
    seconds = time.perf_counter() - began_s
    assert len(Frames(journal, None).orders) == n_orders
    return {
        "events": pruned.events,
        "bytes_per_event": (pruned.size_before_bytes - size_bytes) / len(everything),
        "bytes_per_order_after": (pruned.size_after_bytes - size_bytes) / n_orders,
        "seconds": seconds,
        "events_per_s": pruned.events / seconds,
    }


def main() -> None:
    """Print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--journal", help="an empty database; default: a file")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(arguments.journal or Path(folder) / "journal.sqlite") as journal,
    ):
        for name, value in measure(journal, arguments.orders).items():
            print(f"{name}: {value:,.1f}")


if __name__ == "__main__":
    main()
