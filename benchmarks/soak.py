"""A thousand orders at once for ten minutes: memory, threads, latency.

::

    python benchmarks/soak.py [--orders 1000] [--minutes 10]

The simulator, on a real RabbitMQ and real HTTP, runs a thousand orders. A tracker in a Jupyter
kernel downloads each sub-order, with a live view. Every few seconds the kernel prints its memory,
its threads, and the time that a message takes to become a row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

from jupyter_client.manager import start_new_kernel

from regards_nb.simulator import OrderPlan, Simulator

SUB_ORDERS = 60
SETUP = """
import gc, json, os, threading, time
import psutil
from regards_nb import OrderTracker, RegardsClient

client = RegardsClient({base_url!r}, tenant={tenant!r}, username={user!r}, password={password!r},
                       client_id={client_id!r}, client_secret={client_secret!r})
tracker = OrderTracker({amqp_url!r}, {queue!r}, client=client, auto_download=True).start()
tracker.show()
me, pause = psutil.Process(), threading.Event()
"""
SAMPLE = """
gc.collect()
seen, begin = len(tracker.events), time.monotonic()
orders, files = tracker.orders, tracker.files
print(json.dumps(dict(
    rss_mib=me.memory_info().rss / 2**20, threads=threading.active_count(),
    events=seen, orders=len(orders), finished=int(orders["finished"].sum()),
    files=int((files["state"] == "VERIFIED").sum()), failed=int((files["state"] == "FAILED").sum()),
    frames_ms=(time.monotonic() - begin) * 1e3, cpu_s=time.process_time(),
)))
"""
#: Waits until the published message is a row, and prints the time.
LATENCY = """
import datetime
def newest():
    return tracker.events["correlation_id"].iloc[-200:].eq({marker!r}).any()
limit = time.monotonic() + 60
while not newest() and time.monotonic() < limit:
    pause.wait(0.001)
print(time.monotonic_ns())
"""


class Kernel:
    """A Jupyter kernel."""

    def __init__(self, folder: str) -> None:
        self._manager, self._client = start_new_kernel(kernel_name="python3", cwd=folder)

    def run(self, code: str) -> str:
        """Run a cell and return its output."""
        printed: list[str] = []

        def collect(message: Any) -> None:
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed.append(content["text"])

        answer = self._client.execute_interactive(code, output_hook=collect, timeout=300)
        if answer["content"]["status"] != "ok":
            raise SystemExit("\n".join(answer["content"]["traceback"]))
        return "".join(printed)

    def stop(self) -> None:
        """End the kernel."""
        self._client.stop_channels()
        self._manager.shutdown_kernel()


def main() -> None:
    """Run the orders and print the samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    samples = []
    with tempfile.TemporaryDirectory() as folder, Simulator(suborder_pause_s=0) as simulator:
        kernel = Kernel(folder)
        try:
            kernel.run(setup(simulator))
            plan = OrderPlan(n_files=SUB_ORDERS, file_bytes=2000, files_per_suborder=1)
            for _ in range(args.orders):
                simulator.order(plan)
            end = time.monotonic() + args.minutes * 60
            while time.monotonic() < end:
                samples.append(sample(kernel, simulator, len(samples)))
                print(json.dumps(samples[-1]), flush=True)
            kernel.run("tracker.stop()")
        finally:
            kernel.stop()
    report(samples)


def setup(simulator: Simulator) -> str:
    """Return the cell that starts the tracker."""
    return SETUP.format(
        base_url=simulator.base_url,
        tenant=simulator.tenant,
        user=simulator.username,
        password=simulator.password,
        client_id=simulator.client_id,
        client_secret=simulator.client_secret,
        amqp_url=simulator.amqp_url,
        queue=simulator.queue,
    )


def sample(kernel: Kernel, simulator: Simulator, number: int) -> dict[str, float]:
    """Return the state of the tracker and the latency of one message."""
    state: dict[str, float] = json.loads(kernel.run(SAMPLE))
    marker = f"marker-{number}"
    begin = time.monotonic_ns()
    simulator.publish_raw(json.dumps({"status": "DENIED", "correlationId": marker}).encode())
    seen = int(kernel.run(LATENCY.format(marker=marker)))
    threading.Event().wait(4)
    return state | {"latency_ms": (seen - begin) / 1e6}


def report(samples: list[dict[str, float]]) -> None:
    """Print the medians of the first, second and last third of the time."""
    third = len(samples) // 3
    for name in samples[0]:
        parts = [samples[third // 2 : third + 1], samples[third : 2 * third], samples[2 * third :]]
        medians = [statistics.median(one[name] for one in part) for part in parts]
        sys.stdout.write(f"{name:12} {' -> '.join(f'{value:,.1f}' for value in medians)}\n")


if __name__ == "__main__":
    main()
