"""The bytes between kernel and browser: a view of many orders in a real JupyterLab.

``python benchmarks/traffic.py`` follows 1,000 orders at 1,000 messages a second for 20 seconds in a
real JupyterLab and Chromium, once with ipywidgets and once with anywidget, and counts the payloads
that arrive by WebSocket from the kernel. ``--orders 10000 --per-s 100 --seconds 100`` shows what a
long table costs: each order gets at least one message at the rate, and the ends come together.
``--base FOLDER`` takes an earlier source tree in turn and prints the ratios to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import display
import pika

# The tests have the helpers for browser and server.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Chromium, Lab, Page, chromium

from regards_nb.simulator import PrivateBroker

HERE = Path(__file__).parent.parent
TICK_S = 0.02
LIMIT_MS = 300_000
SHOWN_ROWS = 50

START = """
import sys
sys.path.insert(0, {tree!r})
import threading, time
import regards_nb
from regards_nb import OrderTracker

assert regards_nb.__file__.startswith({tree!r})
{choice}
tracker = OrderTracker({url!r}, {queue!r}, journal="{queue}.sqlite").start()
granted, ended, all_granted, all_ended = set(), set(), threading.Event(), threading.Event()

def note(event, names, reached):
    names.add(event.correlation_id)
    if len(names) == {orders}:
        reached.set()

tracker.on("GRANTED", lambda event: note(event, granted, all_granted))
tracker.on("DONE", lambda event: note(event, ended, all_ended))
"""
#: Types into the filter, waits for the row, and empties the filter again.
FILTER = """async (word) => {
  const box = document.querySelector(".rg-filter, .widget-text input");
  const names = () => [...document.querySelectorAll(".rg-name")]
    .filter((name) => name.checkVisibility()).map((name) => name.textContent);
  const type = async (text, isShown) => {
    const began = performance.now();
    box.value = text;
    box.dispatchEvent(new Event("input", {bubbles: true}));
    while (!isShown(names())) await new Promise(requestAnimationFrame);
    return performance.now() - began;
  };
  const took = await type(word, (shown) => shown.length === 1 && shown[0] === word);
  await type("", (shown) => shown.length > 1);
  return took;
}"""
#: Scrolls the table to its end and back; returns the longest time to the next painted picture.
SCROLL = """async () => {
  let box = [...document.querySelectorAll(".rg-name")].find((name) => name.checkVisibility());
  while (box.scrollHeight <= box.clientHeight || getComputedStyle(box).overflowY === "visible")
    box = box.parentElement;
  let longest = 0;
  for (let step = 1; step <= 20; step++) {
    const began = performance.now();
    box.scrollTop = (step % 2) * (box.scrollHeight - box.clientHeight);
    // The second picture begins after the first one, with the new place, was painted.
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    longest = Math.max(longest, performance.now() - began);
  }
  return longest;
}"""
GRANTED = "assert all_granted.wait(280)"
BEGIN = "cpu_began_s = time.process_time()"
END = """
assert all_ended.wait(280)
print(time.process_time() - cpu_began_s, len(tracker.events))
tracker.stop()
"""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The result of one run."""

    tree: str
    library: str
    #: Payloads of the WebSocket frames from the first message of the flood to the last picture.
    bytes_per_s: float
    frames_per_s: float
    kernel_cpu_s: float
    #: From the start of the cell to the table on the page.
    first_paint_s: float
    #: From a word typed into the filter to its only row on the page.
    filter_ms: float
    #: The longest time of a scroll of the table during the flood.
    scroll_ms: float
    #: Whether the frame has all messages, and the page the last state of the orders that it shows.
    exact: bool


class Counter:
    """Counts what arrives by WebSocket."""

    def __init__(self) -> None:
        self.n_bytes = self.n_frames = 0

    def on_socket(self, socket: Any) -> None:
        """Count the frames of a new WebSocket."""
        socket.on("framereceived", self._on_frame)

    def _on_frame(self, payload: str | bytes) -> None:
        self.n_bytes += len(payload if isinstance(payload, bytes) else payload.encode())
        self.n_frames += 1


def run(
    broker: PrivateBroker,
    lab: Lab,
    browser: Chromium,
    *,
    tree: Path,
    library: str,
    orders: int,
    per_s: int,
    seconds: int,
) -> Traffic:
    """Send messages to a tracker in a notebook, and count what its page receives."""
    queue, parts = f"traffic.{uuid.uuid4().hex}", per_s * seconds // orders
    choice = f"import regards_nb.display; regards_nb.display.use({library!r})"
    start = START.format(
        tree=str(tree),
        url=broker.admin_url,
        queue=queue,
        orders=orders,
        # The earlier tree has no choice: it shows ipywidgets.
        choice="" if library == "ipywidgets" else choice,
    )
    connection = pika.BlockingConnection(pika.URLParameters(broker.admin_url))
    connection.channel().queue_declare(queue, durable=True)
    connection.close()
    name = lab.notebook(f"{queue}.ipynb", start, GRANTED, "tracker.show()", BEGIN, END)
    counter = Counter()
    with browser.bare_page() as bare:
        bare.on("websocket", counter.on_socket)
        bare.set_default_timeout(LIMIT_MS)
        page = Page(bare, lab, name)
        page.run_cell(0)
        send(broker, queue, [("GRANTED", order, {}) for order in range(orders)])
        page.run_cell(1)
        shown_from_s = time.monotonic()
        page.start_cell(2)
        page.output(2).locator(".rg-parts").first.wait_for()
        first_paint_s = time.monotonic() - shown_from_s
        filter_ms = bare.evaluate(FILTER, f"order-{orders - 1}")
        page.run_cell(3)
        n_bytes, n_frames, began_s = counter.n_bytes, counter.n_frames, time.monotonic()
        flood = threading.Thread(target=send_flood, args=(broker, queue, orders, parts, per_s))
        flood.start()
        scroll_ms = max(bare.evaluate(SCROLL) for _ in range(5))
        page.until_text(2, f"{orders} of {orders} orders finished")
        took_s = time.monotonic() - began_s
        flood.join()
        parts_shown = page.output(2).locator(".rg-parts:visible").all_inner_texts()
        n_bytes, n_frames = counter.n_bytes - n_bytes, counter.n_frames - n_frames
        page.run_cell(4)
        cpu_s, events = page.output(4).inner_text().split()[-2:]
    return Traffic(
        tree=tree.name,
        library=library,
        bytes_per_s=round(n_bytes / took_s),
        frames_per_s=round(n_frames / took_s, 1),
        kernel_cpu_s=round(float(cpu_s), 2),
        first_paint_s=round(first_paint_s, 2),
        filter_ms=round(filter_ms),
        scroll_ms=round(scroll_ms),
        exact=int(events) == orders * (parts + 2)
        and parts_shown == [f"{parts}/{parts}"] * min(orders, SHOWN_ROWS),
    )


def send_flood(broker: PrivateBroker, queue: str, orders: int, parts: int, per_s: int) -> None:
    """Send the sub-orders of all orders in turn at a rate, then the ends."""
    fields = [
        ("SUBORDER_DONE", order, {"subOrderId": part, "totalSubOrders": parts})
        for part in range(parts)
        for order in range(orders)
    ]
    send(broker, queue, fields, per_s=per_s)
    send(broker, queue, [("DONE", order, {}) for order in range(orders)])


def send(
    broker: PrivateBroker,
    queue: str,
    messages: list[tuple[str, int, dict[str, int]]],
    *,
    per_s: int | None = None,
) -> None:
    """Send messages with the properties of REGARDS, at a rate or as fast as possible."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.admin_url))
    channel = connection.channel()
    began_s, pause = time.monotonic(), threading.Event()
    for number, (status, order, fields) in enumerate(messages):
        while per_s is not None and (time.monotonic() - began_s) * per_s < number:
            connection.process_data_events(0)
            pause.wait(TICK_S)
        display.send(channel, queue, order, status, **fields)
    connection.close()


def main() -> None:
    """Run each library in turn, and print each run, the medians and the ratios to the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--per-s", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--base", type=Path, help="an earlier source tree to compare with")
    given = parser.parse_args()
    if given.per_s * given.seconds < given.orders:
        parser.error("per-s times seconds must be at least orders: each gets a sub-order")
    subjects = [(HERE, "ipywidgets"), (HERE, "anywidget")]
    if given.base:
        subjects.insert(0, (given.base.resolve(), "ipywidgets"))
    results: dict[tuple[Path, str], list[Traffic]] = {subject: [] for subject in subjects}
    with PrivateBroker() as broker, Lab() as lab, chromium() as browser:
        for _ in range(given.runs):
            for tree, library in subjects:
                result = run(
                    broker,
                    lab,
                    browser,
                    tree=tree,
                    library=library,
                    orders=given.orders,
                    per_s=given.per_s,
                    seconds=given.seconds,
                )
                results[tree, library].append(result)
                print(json.dumps(asdict(result)), flush=True)
    base = medians(results[subjects[0]])
    for (tree, library), runs in results.items():
        values = medians(runs)
        ratios = {name: round(value / base[name], 3) for name, value in values.items()}
        print(json.dumps({"tree": tree.name, "library": library, **values, "ratios": ratios}))


def medians(runs: list[Traffic]) -> dict[str, float]:
    """Return the median of each figure."""
    names = (
        "bytes_per_s",
        "frames_per_s",
        "kernel_cpu_s",
        "first_paint_s",
        "filter_ms",
        "scroll_ms",
    )
    return {name: statistics.median(getattr(run, name) for run in runs) for name in names}


if __name__ == "__main__":
    main()
