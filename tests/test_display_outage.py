"""RabbitMQ goes away while somebody looks and waits: the views say so, and nobody is misled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kernels import NEWEST, Kernel

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Admin

    from regards_nb.simulator import PrivateBroker

#: Long enough for several attempts to connect; it was tried with 30, too.
OUTAGE_S = 3.0
AWAY, HERE = "reconnecting to RabbitMQ", "listening since"


def test_an_outage_is_shown_and_survived_by_views_and_waits(
    broker: PrivateBroker, admin: Admin, tmp_path: Path
) -> None:
    """Both views tell of the outage as long as it lasts, and the wait ends with the order."""
    start = (
        "from regards_nb import OrderTracker\n"
        f"tracker = OrderTracker({broker.admin_url!r}, {admin.queue!r}).start()\n"
        "tracker.show()"
    )
    with Kernel(NEWEST, tmp_path) as kernel:
        kernel.run(start)
        admin.publish({"status": "GRANTED", "orderId": 1}, correlation_id="pass-12")
        kernel.until(lambda: "GRANTED" in kernel.shown())
        cell = kernel.start("print(*tracker.wait('pass-12')['status'])")
        kernel.until(lambda: "1 of 1 order is still running" in kernel.shown())

        admin.close()
        broker.kill()
        kernel.until(lambda: kernel.shown().count(AWAY) == 2)
        back = time.monotonic() + OUTAGE_S
        while time.monotonic() < back:
            kernel.read(0.2)
            assert not cell.done
            assert HERE not in kernel.shown()
        broker.restart()
        admin.connect()
        admin.make_queue()  # as an administrator would: a killed node may have forgotten it

        kernel.until(lambda: kernel.shown().count(HERE) == 2)
        assert not cell.done
        admin.publish({"status": "DONE", "orderId": 1}, correlation_id="pass-12")
        kernel.until(lambda: cell.done)
        assert (cell.printed, cell.error) == ("DONE\n", "")
        kernel.until(lambda: kernel.shown().count("1 of 1 order finished") == 2)
        kernel.run("tracker.stop()")
