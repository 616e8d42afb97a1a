"""The first look at a long history, with this tree and with another one in turn.

::

    git worktree add ../before cc25b43
    python benchmarks/first_look.py --base ../before --write docs/performance.md  # 15 minutes

An earlier process has journalled the messages, looked at the orders and stopped. Then the time and
the memory are measured from making an `OrderTracker` until the first ``tracker.orders``, view and
``tracker.events``: each in a new process, both trees in turn. One order of a hundred is unfinished.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TITLE = "## The first look at a long history"
LOOKS = ("orders", "view", "events")
#: The most that the new time and memory may be of the old ones.
LIMITS = {"orders": (0.1, 0.4), "view": (0.1, 0.4), "events": (0.25, None)}
_EVENTS_PER_ORDER = 10
_BATCH = 500


class Look(NamedTuple):
    """What one process measured."""

    wall_s: float
    processor_s: float
    peak_mb: float


def fill(journal_path: Path, orders: int) -> None:
    """Journal ten messages of each order, in the order in which a server sends them."""
    from regards_nb.journal import Journal

    with Journal(journal_path) as journal:
        session_id = journal.open_session("queue")
        batch = []
        for number in range(orders * _EVENTS_PER_ORDER):
            batch.append(_delivery(number, orders))
            if len(batch) == _BATCH:
                journal.append(session_id, batch)
                batch = []
        journal.append(session_id, batch)


def _delivery(number: int, orders: int) -> object:
    from regards_nb.events import Delivery

    step, order = divmod(number, orders)
    body: dict[str, object] = {"correlationId": f"benchmark-{order:08d}", "orderId": order + 1}
    is_last = step == _EVENTS_PER_ORDER - 1 and order % 100
    if step == 0:
        body |= {"status": "GRANTED", "message": f"Order {order} of user@example.org is granted"}
    else:
        body |= {
            "status": "DONE" if is_last else "SUBORDER_DONE",
            "message": "Order is done" if is_last else f"Sub-order {step} is ready",
            "downloadLink": f"https://regards.example/api/v1/rs-order/user/orders/{order}/download",
            "errors": 0,
            "totalSubOrders": _EVENTS_PER_ORDER - 2,
        }
        if not is_last:
            body["subOrderId"] = step
    received_at_us = 1_700_000_000_000_000 + number
    raw = json.dumps(body).encode()
    return Delivery(
        body=raw,
        received_at_us=received_at_us,
        redelivered=False,
        timestamp_s=received_at_us // 10**6,
        correlation_id=None,
        tenant="project1",
        app_id="rs-order",
        properties="{}",
    )


def look(journal_path: Path, what: str) -> Look:
    """Look once, in this process."""
    import pandas as pd

    from regards_nb import OrderTracker

    assert pd  # imported before the clock starts, as in a notebook
    began_s, processor_s = time.perf_counter(), time.process_time()
    tracker = OrderTracker("amqp://127.0.0.1:1", "queue", journal=journal_path)
    if what == "view":
        tracker._repr_html_()
    else:
        assert len(getattr(tracker, what))
    found = time.perf_counter() - began_s, time.process_time() - processor_s
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kb = int(status.split("VmHWM:")[1].split()[0])
    tracker.stop()
    return Look(*found, peak_kb / 1024)


def run(tree: Path, *arguments: str) -> str:
    """Run this file with the package of a tree."""
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def compared(base: Path, orders: int, runs: int) -> dict[str, tuple[list[Look], list[Look]]]:
    """Measure both trees in turn; return for each look those of the base and of this tree."""
    trees = (base.resolve(), HERE.parent)
    found: dict[str, tuple[list[Look], list[Look]]] = {what: ([], []) for what in LOOKS}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        journals = [Path(folder) / str(n) / "journal.sqlite" for n in range(2)]
        for tree, journal in zip(trees, journals, strict=True):
            journal.parent.mkdir()
            run(tree, "--fill", str(journal), "--orders", str(orders))
            # The second time for a machine so busy that the end of Python did not wait long enough.
            for _ in range(2):
                run(tree, "--look", "orders", str(journal))
        for _ in range(runs):
            for what in LOOKS:
                for n, (tree, journal) in enumerate(zip(trees, journals, strict=True)):
                    found[what][n].append(
                        Look(*json.loads(run(tree, "--look", what, str(journal))))
                    )
    return found


def section(found: dict[str, tuple[list[Look], list[Look]]], orders: int) -> str:
    """Return the section of the page, as Markdown."""
    runs = len(found["orders"][0])
    lines = [
        f"{TITLE}, {orders * _EVENTS_PER_ORDER:,} events of {orders:,} orders",
        "",
        "Made by `python benchmarks/first_look.py --base TREE --write docs/performance.md`:",
        f"medians of {runs} processes of each tree in turn, from `OrderTracker(...)` on.",
        "",
        "| first | s before | s now | ratio | goal | CPU | MB before | MB now | ratio | goal |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for what, (before, now) in found.items():
        (wall_b, cpu_b, mb_b), (wall_n, cpu_n, mb_n) = (
            tuple(statistics.median(column) for column in zip(*looks, strict=True))
            for looks in (before, now)
        )
        limit_s, limit_mb = LIMITS[what]
        lines.append(
            f"| {what} | {wall_b:.2f} | {wall_n:.2f} | {wall_n / wall_b:.3f} | ≤ {limit_s} "
            f"| {cpu_n / cpu_b:.3f} | {mb_b:.0f} | {mb_n:.0f} | {mb_n / mb_b:.2f} "
            f"| {'' if limit_mb is None else f'≤ {limit_mb}'} |"
        )
    return "\n".join(lines) + "\n"


def section_of(page: Path) -> str:
    """Return the section that a page has; empty if it has none."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return text[text.index(TITLE) :] if TITLE in text else ""


def main() -> None:
    """Compare two trees; the other options are for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="the tree to compare with")
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the section at the end of this page")
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fill is not None:
        fill(args.fill, args.orders)
    elif args.look is not None:
        print(json.dumps(look(Path(args.look[1]), args.look[0])))
    elif args.base is None:
        parser.error("--base is missing: the tree to compare with")
    else:
        text = section(compared(args.base, args.orders, args.runs), args.orders)
        print(text)
        if args.write is not None:
            page = args.write.read_text(encoding="utf-8").removesuffix(section_of(args.write))
            args.write.write_text(f"{page.rstrip()}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
