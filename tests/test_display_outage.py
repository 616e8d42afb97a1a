"""RabbitMQ or the journal goes away while somebody looks and waits: the views say so."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pika
import pytest
from kernels import NEWEST, Kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Admin
    from postgresql import PrivatePostgreSQL

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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a journal as another program does that writes for long."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@pytest.mark.parametrize(
    "waits_for", ["waiting for the server of the journal", "another program holds the journal"]
)
def test_an_outage_of_the_journal_is_shown_by_views_and_waits(
    waits_for: str, admin: Admin, postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """Both views show the last rows and what the journal waits for, and then go on as before."""
    path = tmp_path / "journal.sqlite"
    on_server = "server" in waits_for
    journal = postgresql.new_database() if on_server else str(path)
    start = (
        "from regards_nb import OrderTracker\n"
        "from regards_nb.journal import Database, Server\n"
        "Database.restart_patience_s = Server.silence_s = 600.0\n"  # no view waits so long
        f"tracker = OrderTracker({admin.url!r}, {admin.queue!r}, journal={journal!r}).start()\n"
        "tracker.show()"
    )
    with (
        pika.BlockingConnection(pika.URLParameters(admin.url)) as connection,
        Kernel(NEWEST, tmp_path) as kernel,
    ):
        # It gets no message while the tracker reads; the view looks in the journal whose it is.
        last = {"x-priority": -1}
        connection.channel().basic_consume(admin.queue, lambda *_: None, arguments=last)
        kernel.run(start)
        admin.publish({"status": "GRANTED", "orderId": 1}, correlation_id="pass-12")
        kernel.until(lambda: "GRANTED" in kernel.shown() and "other consumer" in kernel.shown())
        cell = kernel.start("print(*tracker.wait('pass-12')['status'])")
        kernel.until(lambda: "1 of 1 order is still running" in kernel.shown())
        with postgresql.suspended() if on_server else locked(path):
            admin.publish({"status": "RUNNING", "orderId": 1}, correlation_id="pass-12")
            kernel.until(lambda: kernel.shown().count(waits_for) >= 2)
            assert HERE not in kernel.shown()
            assert kernel.shown().count("GRANTED") == 2
        kernel.until(lambda: kernel.shown().count(HERE) == 2)
        kernel.until(lambda: kernel.shown().count("RUNNING") == 2)
        assert "updating the display" not in kernel.shown()
        admin.publish({"status": "DONE", "orderId": 1}, correlation_id="pass-12")
        kernel.until(lambda: cell.done)
        assert cell.error == ""
        assert cell.printed.endswith("DONE\n")
        kernel.run("tracker.stop()")
