"""The cost of the frames with a long journal: of an update, and of a complete rebuild.

Runs in a process of its own for each length of the journal and prints one line of JSON. The rounds
of new events begin when the checkpoint of the first look is stored.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import messages
import pandas as pd
import psutil

from regards_nb.consumer import properties_from
from regards_nb.events import Delivery, OrderEvent, decode
from regards_nb.frames import Frames
from regards_nb.journal import Journal
from regards_nb.orders import OrderReducer

if TYPE_CHECKING:
    from collections.abc import Callable

NEW = 100
_PIECE = 500


def deliveries(first: int, count: int, orders: int) -> list[Delivery]:
    """Return messages of *orders* orders in turn."""
    made = []
    for number in range(first, first + count):
        body = json.loads(messages.body(number))
        body["orderId"] = number % orders
        body["downloadLink"] = messages.LINK.format(number % orders)
        body["correlationId"] = f"benchmark-{number % orders:08d}"
        raw = json.dumps(body).encode()
        properties = properties_from(b"".join(messages.properties(number).encode()))
        received_at_us, redelivered = 1_700_000_000_000_000 + number, False
        made.append(Delivery(raw, received_at_us, redelivered, *properties[:5]))
    return made


def timed(work: Callable[[], Any]) -> float:
    """Return the duration of a call in seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def until_checkpoint() -> None:
    """Wait for the background thread that stores a checkpoint of what the first look folded."""
    for thread in threading.enumerate():
        if thread.name == "regards-nb-checkpoint":
            thread.join()


def measured(folder: Path, events: int, orders: int) -> dict[str, float]:
    """Fill a journal, open it, and measure the cost of new events."""
    journal = Journal(folder / "journal.sqlite")
    session_id = journal.open_session("queue")
    for first in range(0, events, _PIECE):
        journal.append(session_id, deliveries(first, _PIECE, orders))
    process = psutil.Process()
    gc.collect()
    before_bytes = process.memory_info().rss
    begin = time.perf_counter()
    frames = Frames(Journal(folder / "journal.sqlite"), None)
    found = {"events": events, "orders": orders, "open_s": time.perf_counter() - begin}
    found["first_s"] = timed(lambda: frames.events)
    gc.collect()
    own_bytes = frames.events.memory_usage(deep=True).sum()
    found["beyond_frame_bytes"] = (process.memory_info().rss - before_bytes - own_bytes) / events
    found["first_orders_s"] = timed(lambda: frames.orders)
    until_checkpoint()
    events_s, orders_s = [], []
    for round_ in range(21):
        journal.append(session_id, deliveries(events + round_ * NEW, NEW, orders))
        events_s.append(timed(lambda: frames.events))
        orders_s.append(timed(lambda: frames.orders))
    found["events_s"] = statistics.median(events_s)
    found["orders_s"] = statistics.median(orders_s)
    found |= rebuilt(folder, frames)
    return found


def from_dicts(frame: pd.DataFrame) -> float:
    """Return the time to build a frame from a list with a dict for each row."""
    rows = frame.to_dict("records")
    return timed(lambda: pd.DataFrame(rows))


def rebuilt(folder: Path, frames: Frames) -> dict[str, float]:
    """Measure the same frames built from lists of dicts and from a Parquet file."""
    found = {
        "rebuild_s": from_dicts(frames.events),
        "rebuild_orders_s": from_dicts(frames.orders.reset_index()),
    }
    path = folder / "events.parquet"
    frames.events.to_parquet(path)
    found["parquet_s"] = timed(lambda: pd.read_parquet(path))
    numbered = [row for batch in Journal(folder / "journal.sqlite").read() for row in batch.rows()]
    events = [(row.id, decode(row.delivery)) for row in numbered]
    book = OrderReducer()
    begin = time.perf_counter()
    for row_id, event in events:
        assert isinstance(event, OrderEvent)
        book.add(row_id, event)
    found["fold_s"] = time.perf_counter() - begin
    return found


def main() -> None:
    """Measure one length of the journal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int)
    parser.add_argument("orders", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        print(json.dumps(measured(Path(folder), args.events, args.orders)))


if __name__ == "__main__":
    main()
