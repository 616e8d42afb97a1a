"""A team: several kernels on one queue and one journal."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from children import Child
from conftest import DEADLINE_S, client_of, limit_tells, login_of, tracker_of, until

from regards_nb import OrderTracker
from regards_nb.errors import WaitTimeoutError
from regards_nb.journal import order_lease
from regards_nb.simulator import OrderPlan, Route, Simulator, Slow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgresql import PrivatePostgreSQL

#: A kernel that downloads by itself, until its standard input ends.
KERNEL = """
import json, sys
from regards_nb import OrderTracker, RegardsClient
given = json.loads(sys.argv[1])
client = RegardsClient(given["base_url"], **given["client"])
with OrderTracker(client=client, auto_download=True, **given["tracker"]):
    print("started", flush=True)
    sys.stdin.read()
"""


@contextmanager
def kernel(
    simulator: Simulator, journal: str | Path, workspace: Path, *, has_broker: bool = True
) -> Iterator[Child]:
    """Run a kernel in another process until the block ends."""
    given = {
        "base_url": simulator.base_url,
        "client": {**login_of(simulator), "backoff_s": 0.01},
        "tracker": {
            "amqp": simulator.amqp_url if has_broker else None,
            "queue": simulator.queue if has_broker else None,
            "tenant": simulator.tenant,
            "journal": str(journal),
            "workspace": str(workspace),
        },
    }
    with Child(KERNEL, json.dumps(given)) as process:
        assert process.stdout.readline().strip() == "started"
        yield process


def zips(simulator: Simulator) -> Counter[str]:
    """Return how often the zip of each order was asked for."""
    return Counter(each.path for each in simulator.requests if each.path.endswith("/download"))


def look_at(simulator: Simulator, journal: str | Path, folder: Path) -> OrderTracker:
    """Return a tracker that only looks at the journal of the kernels."""
    return OrderTracker(
        client=client_of(simulator),
        tenant=simulator.tenant,
        journal=journal,
        workspace=folder,
    )


@pytest.mark.slow
@pytest.mark.simulator(with_broker=True)
def test_three_kernels_fetch_each_zip_once(
    simulator: Simulator, place: str | Path, tmp_path: Path
) -> None:
    """Each of twelve orders is fetched by one kernel, and all see all files as verified."""
    workspace = tmp_path / "orders"
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(kernel(simulator, place, workspace))
        plan = OrderPlan(n_files=2, file_bytes=2000, files_per_suborder=2)
        orders = [simulator.order(plan) for _ in range(12)]
        observer = look_at(simulator, place, workspace)
        until(lambda: (observer.files["state"] == "VERIFIED").sum() == 24)
        until(lambda: observer.orders["finished"].sum() == 12)
    assert set(observer.files["order_id"]) == set(orders)
    assert list(zips(simulator).values()) == [1] * 12
    observer.stop()


@pytest.mark.slow
@pytest.mark.simulator(with_broker=True)
def test_the_orders_of_a_killed_kernel_are_fetched_by_another(
    simulator: Simulator, postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """kill -9 in the middle of a zip: no file is missing, none is there twice."""
    url = postgresql.new_database()
    workspace = tmp_path / "orders"
    simulator.faults.add(Slow(route=Route.ZIP, bytes_per_s=10_000, times=1))
    observer = look_at(simulator, url, workspace)
    leases = observer._shared.journal.leases
    with ExitStack() as stack:
        kernels = {
            each.pid: each
            for each in (stack.enter_context(kernel(simulator, url, workspace)) for _ in range(3))
        }
        plan = OrderPlan(n_files=6, file_bytes=10_000, files_per_suborder=6)
        first = simulator.order(plan)
        holder = until(lambda: leases.holder(order_lease(simulator.tenant, first)))
        until(lambda: list((workspace / f"{first}").glob("*.bin")))
        kernels[holder.pid].kill()
        orders = [first, *(simulator.order(plan) for _ in range(3))]
        until(lambda: (observer.files["state"] == "VERIFIED").sum() == 24)
    assert set(observer.files["order_id"]) == set(orders)
    names = [path.name for order_id in orders for path in (workspace / f"{order_id}").glob("*.bin")]
    assert len(names) == 24
    assert not [name for name in names if "(" in name]
    assert sorted(zips(simulator).values())[:3] == [1, 1, 1]
    observer.stop()


@pytest.mark.simulator(with_broker=True)
def test_a_user_waits_for_the_kernel_that_downloads_the_order(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Views and download() say which process downloads it; in another workspace files come, too."""
    simulator.faults.add(Slow(route=Route.ZIP, bytes_per_s=50_000))
    with (
        tracker_of(simulator, tmp_path) as tracker,
        kernel(simulator, tmp_path / "journal.sqlite", tmp_path / "elsewhere") as other,
    ):
        order_id = simulator.order(OrderPlan(n_files=2, file_bytes=60_000, files_per_suborder=2))
        running = simulator.order(OrderPlan(suborder_pause_s=DEADLINE_S))
        leases = tracker._shared.journal.leases
        until(lambda: leases.holder(order_lease(simulator.tenant, order_id)))
        downloading = rf"process {other.pid} on \S+ is downloading "
        shown = until(
            lambda: (
                re.search(rf"0/2 files.*{downloading}it", html := tracker._repr_html_()) and html
            )
        )
        with pytest.raises(WaitTimeoutError, match=rf"^after 0.1 s, {downloading}order {order_id}"):
            list(tracker[order_id].iter_parts(timeout_s=0.1))
        assert "B/s" not in capsys.readouterr().out
        with pytest.raises(WaitTimeoutError) as said:
            tracker.wait(running, timeout_s=0)
        for text in (shown, str(said.value)):
            assert not re.search("waits for|until you download|[0-9] incomplete|tries the", text)
        paths = tracker.download(order_id)
        assert [path.stat().st_size for path in paths] == [60_000, 60_000]
        assert all(path.is_relative_to(tmp_path / "orders") for path in paths)
        assert f"process {other.pid} on " in capsys.readouterr().out
    assert list(zips(simulator).values()) == [1]


@pytest.mark.simulator(with_broker=True)
def test_an_order_behind_one_that_another_kernel_downloads_says_so(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait, its time limit and the row name the order and the process."""
    simulator.faults.add(Slow(route=Route.ZIP, stall_after_bytes=10_000, times=1))
    with (
        tracker_of(simulator, tmp_path) as tracker,
        kernel(simulator, tmp_path / "journal.sqlite", tmp_path / "orders") as other,
    ):
        first = simulator.order(OrderPlan(n_files=2, file_bytes=60_000, files_per_suborder=1))
        leases = tracker._shared.journal.leases
        until(lambda: leases.holder(order_lease(simulator.tenant, first)))
        mine = tracker.submit("dataset:SWOT_PASS_012")
        told = (
            rf"order {mine.order_id} may have to wait for order {first}; process {other.pid} on "
            rf"\S+ is downloading order {first}"
        )
        until(lambda: tracker.snapshot().line)  # after a round that asked REGARDS
        for asked in (False, True):
            limit_tells(
                told, lambda limit_s, asked=asked: mine.wait(timeout_s=limit_s, download=asked)
            )
            assert re.search(told, capsys.readouterr().out)
        assert re.search(told, re.sub("<[^>]*>", " ", tracker._repr_html_()))
        simulator.faults.clear()


@pytest.mark.simulator(with_broker=True)
def test_a_table_behind_orders_that_another_kernel_downloads_says_so(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The next order is made when their files are here."""
    simulator.faults.add(Slow(route=Route.ZIP, delay_s=3600, times=2))
    with (
        tracker_of(simulator, tmp_path) as tracker,
        kernel(simulator, tmp_path / "journal.sqlite", tmp_path / "orders") as other,
    ):
        assert tracker.client is not None
        table = tracker.client.search(dataset="SWOT_CYCLE_008", limit=3)
        told = "; ".join(rf"process {other.pid} on \S+ is downloading order {n}" for n in (1, 2))
        limit_tells(told, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s))
        simulator.faults.clear()
