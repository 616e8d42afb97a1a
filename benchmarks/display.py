"""The cost of a live view for the kernel, and the updates of the page, under many messages.

::

    python benchmarks/display.py                                   a flood of messages
    python benchmarks/display.py --orders 10000 --per-s 100        many orders

Sends 5,000 messages a second for ten seconds through a real RabbitMQ to a tracker in a real
JupyterLab, without a view and with one in a real Chromium.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika

# The tests have the helpers for browser and server.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Lab, chromium

from regards_nb.simulator import PrivateBroker

if TYPE_CHECKING:
    from browser import Chromium, Page

TICK_S = 0.02
LIMIT_MS = 300_000

START = """
import threading, time
from regards_nb import OrderTracker

tracker = OrderTracker({url!r}, {queue!r}, journal="{queue}.sqlite").start()

def wait_for(n_events):
    while len(tracker.events) < n_events:
        time.sleep(0.1)
"""
GRANTED = "wait_for({orders})"
BEGIN = "began, cpu_began = time.monotonic(), time.process_time()"
SENT = "cpu, taken = time.process_time() - cpu_began, time.monotonic() - began"
END = """
wait_for({events})
view = [thread for thread in threading.enumerate() if thread.name == "regards-nb-display"]
of_view = sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) for thread in view)
print(cpu, of_view, taken, len(tracker.events))
tracker.stop()
"""
TABLE = ".widget-html:has(table[aria-label='REGARDS orders'])"
WATCH = f"""() => {{
  window.__changes = [];
  new MutationObserver(() => window.__changes.push(performance.now()))
    .observe(document.querySelector("{TABLE}"), {{childList: true, subtree: true}});
}}"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one run."""

    messages: int
    per_s: int
    orders: int
    #: Duration of sending, and the processor time of the kernel in it.
    sent_in_s: float
    kernel_cpu_s: float
    #: In percent of one processor.
    kernel_share_percent: float
    #: Of the refresh thread, since its start.
    view_cpu_s: float
    #: Whether the frame has all messages, and the page the last state of every order.
    exact: bool
    #: Changes of the table on the page; None without a view.
    changes: int | None
    most_changes_in_a_second: int | None
    #: Errors of the page and the server.
    complaints: list[str]


def run(
    broker: PrivateBroker,
    lab: Lab,
    browser: Chromium,
    *,
    orders: int,
    per_s: int,
    seconds: int,
    has_view: bool,
) -> Outcome:
    """Send messages to a tracker in a notebook, and observe the page."""
    queue, n_parts = f"flood.{uuid.uuid4().hex}", per_s * seconds
    connection = pika.BlockingConnection(pika.URLParameters(broker.admin_url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    start = START.format(url=broker.admin_url, queue=queue)
    show = "tracker.show()" if has_view else "None"
    events = 2 * orders + n_parts
    granted, end = GRANTED.format(orders=orders), END.format(events=events)
    name = lab.notebook(f"{queue}.ipynb", start, granted, show, BEGIN, SENT, end)
    with browser.page(lab, name) as page:
        page.page.set_default_timeout(LIMIT_MS)
        page.run_cell(0)
        say(channel, queue, orders, "GRANTED")
        page.run_cell(1)
        page.run_cell(2)
        if has_view:
            page.until(f'() => document.querySelector("{TABLE}")')
            page.page.evaluate(WATCH)
        page.run_cell(3)
        sent_in_s = publish(channel, queue, orders=orders, n_parts=n_parts, per_s=per_s)
        page.run_cell(4)
        say(channel, queue, orders, "DONE")
        page.run_cell(5)
        cpu_s, view_cpu_s, taken_in_s, found = page.output(5).inner_text().split()[-4:]
        exact = int(found) == events
        changes: list[float] | None = None
        if has_view:
            exact &= is_shown(page, orders, n_parts)
            changes = page.page.evaluate("window.__changes")
        complaints = [*browser.errors]
        if page.page.get_by_text("rate exceeded").count():
            complaints.append("rate exceeded")
    channel.queue_delete(queue)
    connection.close()
    return Outcome(
        messages=n_parts,
        orders=orders,
        per_s=per_s,
        sent_in_s=round(sent_in_s, 1),
        kernel_cpu_s=round(float(cpu_s), 2),
        kernel_share_percent=round(100 * float(cpu_s) / float(taken_in_s), 1),
        view_cpu_s=round(float(view_cpu_s), 2),
        exact=exact,
        changes=None if changes is None else len(changes),
        most_changes_in_a_second=None if changes is None else most_in_a_second(changes),
        complaints=complaints,
    )


def publish(channel: Any, queue: str, *, orders: int, n_parts: int, per_s: int) -> float:
    """Send sub-orders of the orders in turn, at a rate; return the duration."""
    began, sent, pause = time.monotonic(), 0, threading.Event()
    fields = {"totalSubOrders": max(n_parts // orders, 1)}
    while sent < n_parts:
        due = min(int((time.monotonic() - began) * per_s) + 1, n_parts)
        for number in range(sent, due):
            part, order = divmod(number, orders)
            send(channel, queue, order, "SUBORDER_DONE", subOrderId=part, **fields)
        sent = due
        channel.connection.process_data_events(0)
        pause.wait(TICK_S)
    return time.monotonic() - began


def say(channel: Any, queue: str, orders: int, status: str) -> None:
    """Send one message about each order."""
    for order in range(orders):
        send(channel, queue, order, status)


def send(channel: Any, queue: str, order: int, status: str, **fields: int) -> None:
    """Send one message with the properties of REGARDS."""
    body = {"status": status, "orderId": order + 1, "message": "from the benchmark", **fields}
    properties = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        timestamp=int(time.time()),
        correlation_id=f"order-{order}",
        headers={"regards.tenant": "project1"},
    )
    channel.basic_publish("", queue, json.dumps(body).encode(), properties)


def is_shown(page: Page, orders: int, n_parts: int) -> bool:
    """Wait until the page shows the end of all orders; return whether the parts are counted."""
    page.until_text(2, f"{orders} of {orders} orders finished")
    shown = page.output(2).locator(".rg-parts:visible").all_inner_texts()
    parts = n_parts // orders
    return not parts or shown == [f"{parts}/{parts}"] * orders


def most_in_a_second(moments_ms: list[float]) -> int:
    """Return the largest number of moments within one second."""
    return max(
        (sum(first <= each < first + 1000 for each in moments_ms) for first in moments_ms),
        default=0,
    )


def main() -> None:
    """Run without a view and with one, and print both results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--per-s", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=10)
    given = parser.parse_args()
    with PrivateBroker() as broker, Lab() as lab, chromium() as browser:
        for has_view in (False, True):
            outcome = run(
                broker,
                lab,
                browser,
                orders=given.orders,
                per_s=given.per_s,
                seconds=given.seconds,
                has_view=has_view,
            )
            print(json.dumps({"view": has_view, **asdict(outcome)}))


if __name__ == "__main__":
    main()
