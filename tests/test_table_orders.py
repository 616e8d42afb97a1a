"""`submit_each`: one order for each row or group of a table, each once, as REGARDS has room."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from children import Child
from conftest import client_of, interrupted_after, limit_tells, tracker_of, until

from regards_nb import OrderTracker, errors, queries, waits
from regards_nb.client import LastByte, watched
from regards_nb.simulator import PrivateBroker, Reply, Route, Simulator, Slow


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    """Yield a started tracker that has nothing but REST."""
    with polling(simulator, tmp_path) as tracker:
        yield tracker


def polling(simulator: Simulator, folder: Path, **options: Any) -> OrderTracker:
    return OrderTracker(
        client=client_of(simulator),
        journal=folder / "journal.sqlite",
        workspace=folder / "orders",
        poll_s=0.05,
        **options,
    )


def products(tracker: OrderTracker, low: int, high: int) -> pd.DataFrame:
    """Return products of passes of cycle 8."""
    assert tracker.client is not None
    return tracker.client.search(dataset="SWOT_CYCLE_008", **{"pass": (low, high)})


def applied(simulator: Simulator) -> int:
    return sum(seen.path.endswith("/apply") for seen in simulator.requests)


def test_a_time_limit_that_passes_while_the_journal_is_written_is_one(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path
) -> None:
    """Also where another thread of the process writes for long; nothing was ordered."""
    table = products(tracker, 1, 1)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.WaitTimeoutError, match="0 of 1 order made.*the journal"):
            tracker.submit_each(table, timeout_s=0.3)
    assert not simulator.service.orders


def test_a_time_limit_inside_of_an_answer_orders_nothing_twice(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """It passes when REGARDS has made the order, before the body of its answer is read."""
    table = products(tracker, 1, 1)

    class LateReader(list[Any]):
        def remove(self, wait: object) -> None:
            # The call's own thread, which has the header.
            if applied(simulator) and waits.in_main_thread():
                until(lambda: waits.time_left_s() <= 0)
            super().remove(wait)

    for limit_s in (1.0, 4.0, 16.0):
        last_byte = LastByte()
        last_byte.waits = LateReader()
        with (
            watched(last_byte),
            pytest.raises(errors.WaitTimeoutError, match="0 of 1 order made"),
        ):
            tracker.submit_each(table, timeout_s=limit_s)
        if applied(simulator):
            break
    tracker.submit_each(table, download=True, timeout_s=60)
    assert applied(simulator) == 1


def test_each_row_is_an_order_with_its_own_columns(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are downloaded, and the table joins the orders by label."""
    table = products(tracker, 1, 5).assign(mine=list("abcde"))
    result = tracker.submit_each(table, download=True, timeout_s=60)
    assert result.index.name == "label"
    assert list(result.index) == list(table["provider_id"])
    assert list(result["mine"]) == list("abcde")
    assert list(result["urn"]) == list(table.index)
    assert list(result["table_label"]) == list(table["label"])
    joined = tracker.orders.join(result, on="label")
    assert list(joined["mine"]) == list("abcde")
    assert set(joined["status"]) == {"DONE"}
    # The product and the description of the format.
    assert list(joined["downloaded_files"]) == [2] * 5
    assert len(tracker.wait(result.index, timeout_s=10)) == 5
    assert capsys.readouterr().out.startswith("ordering 5 products, 5 files, ")
    assert applied(simulator) == 5
    typing_error = pd.DataFrame({"provider_id": ["SWOT_SSH_008_006", "SWOT_NOPE"]})
    told = r"corrected rows for SWOT_NOPE \(nothing was ordered: the catalogue has no product for"
    with pytest.warns(UserWarning, match=told):
        tracker.submit_each(typing_error, download=True, timeout_s=60)
    assert "; the catalogue does not have 1 of the 2 products (2 orders)" in capsys.readouterr().out
    assert applied(simulator) == 6
    corrected = pd.DataFrame({"n": [7, 8], "pass": ["SWOT_PAS_012", "SWOT_PASS_012"]})
    options: dict[str, Any] = {
        "products": lambda row: queries.term("dataset", row["pass"]),
        "label": "pass {n}",
    }
    with pytest.warns(UserWarning, match=r"rows for pass 7 \(.*Did you mean 'SWOT_PASS_012'\?\)$"):
        tracker.submit_each(corrected, download=True, timeout_s=60, **options)
    corrected.loc[0, "pass"] = "SWOT_PASS_012"
    tracker.submit_each(corrected, download=True, timeout_s=60, **options)
    assert applied(simulator) == 8


def test_each_group_is_an_order(simulator: Simulator, tracker: OrderTracker) -> None:
    """The values of the columns are the label; the number of rows is told."""
    assert tracker.client is not None
    table = tracker.client.search("cycle:8 AND pass:[1 TO 3]")
    table = pd.concat([table, tracker.client.search("cycle:7 AND pass:[1 TO 2]")])
    result = tracker.submit_each(table, by="cycle", download=True, timeout_s=60)
    assert list(result.index) == ["cycle 7", "cycle 8"]
    assert list(result["cycle"]) == [7, 8]
    assert list(result["rows"]) == [2, 3]
    # The same rows in another order, and one of them twice, are the same orders.
    again = pd.concat([table.iloc[::-1], table.iloc[:1]])
    pd.testing.assert_series_equal(
        tracker.submit_each(again, by="cycle", timeout_s=10)["correlation_id"],
        result["correlation_id"],
    )
    assert applied(simulator) == 2


def test_any_table_has_a_function_and_labels(simulator: Simulator, tracker: OrderTracker) -> None:
    """The function returns what submit takes; the label names columns."""
    table = pd.DataFrame({"cycle": [8, 8], "pass": [1, 2], "size": [1.5, 2.5]})
    result = tracker.submit_each(
        table,
        products=lambda row: queries.fields(cycle=row["cycle"], **{"pass": row["pass"]}),
        label="pass {pass:03} of {cycle}",
        download=True,
        timeout_s=60,
    )
    assert list(result.index) == ["pass 001 of 8", "pass 002 of 8"]
    assert set(tracker.files["name"]) == {
        "SWOT_SSH_008_001.csv",
        "SWOT_SSH_008_002.csv",
        "SWOT_SSH_FORMAT.txt",
    }


@pytest.mark.usefixtures("_says_at_once")
def test_a_slow_function_of_the_user_is_named(
    tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """What products= does with all rows comes before any view."""
    lines: list[str] = []

    def slow(row: pd.Series[Any]) -> str:
        until(lambda: lines.extend(capsys.readouterr().out.splitlines()) or lines)
        return queries.term("dataset", row["dataset"])

    table = pd.DataFrame({"dataset": ["SWOT_PASS_012"]})
    tracker.submit_each(table, products=slow, label="{dataset}", download=True, timeout_s=60)
    assert lines[0] == "products= runs, for 1 order of the table"


def test_without_a_download_it_says_what_blocks(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two orders are made; the third only when somebody has downloaded one."""
    table = products(tracker, 1, 3)
    blocked = r"2 of 3 orders made.*orders 1, 2 wait for a download: tracker.download\(1, 2\)"
    told = str(limit_tells(blocked, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s)))
    assert "submit_each() with the same table goes on" in told
    assert "submit_each(..., download=True)" in told
    finished = re.findall(r"(?:REGARDS:|UTC ) (.*) finished", capsys.readouterr().out)
    # one of the two may have its files before REGARDS has told that it is DONE
    assert finished[0] == "0 of 3 orders"
    assert finished[-1].strip() in {"1 of 3 orders", "2 of 3 orders"}
    n_requests = len(simulator.requests)

    def interrupt() -> None:
        # The call alone asks the catalogue; its threads may ask for orders at any time.
        until(lambda: any("rs-catalog" in each.path for each in simulator.requests[n_requests:]))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(errors.StoppedWaiting, match=blocked):
        tracker.submit_each(table, timeout_s=60)
    thread.join()
    assert applied(simulator) == 2
    tracker.download()
    tracker.submit_each(table, timeout_s=60)
    assert applied(simulator) == 3


def test_auto_download_lets_it_go_on(broker: PrivateBroker, tmp_path: Path) -> None:
    """With messages of RabbitMQ, never more than two orders are open; it ends with their files."""
    with (
        Simulator(broker=broker, suborder_pause_s=0.01) as simulator,
        tracker_of(simulator, tmp_path, auto_download=True) as tracker,
    ):
        result = tracker.submit_each(products(tracker, 1, 8), timeout_s=60)
        assert set(tracker.orders.join(result, on="label")["status"]) == {"DONE"}
        assert applied(simulator) == 8
        assert set(tracker.orders["downloaded_files"]) == {2}


def test_the_table_may_grow_and_a_changed_row_is_refused(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """New rows are ordered, old ones are not; other products under an old label are an error."""
    table = products(tracker, 1, 3)
    tracker.submit_each(table.iloc[:1], download=True, timeout_s=60)
    tracker.submit_each(table, download=True, timeout_s=60)
    assert applied(simulator) == 3
    changed = table.assign(provider_id=table["provider_id"].iloc[::-1].to_numpy())
    with pytest.raises(errors.SettingsError, match="SWOT_SSH_008_003; .*ask for other products"):
        tracker.submit_each(changed, timeout_s=60)
    with pytest.raises(errors.SettingsError, match="ask for other products or files"):
        tracker.submit_each(table, data_types="QUICKLOOK")
    assert applied(simulator) == 3


def test_failed_rows_are_told_and_ordered_again_on_request(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """They do not end the others; the label of the second attempt has its number."""
    table = pd.DataFrame({"dataset": ["FORBIDDEN", "SWOT_PASS_012"]})

    def submit(**options: Any) -> pd.DataFrame:
        return tracker.submit_each(
            table,
            products=lambda row: queries.term("dataset", row["dataset"]),
            label="{dataset}",
            timeout_s=60,
            download=True,
            **options,
        )

    told = r"1 of 2 orders brought no file: FORBIDDEN \(DENIED: .*Unknown user.*retry=True\)"
    for _ in range(2):
        with pytest.warns(UserWarning, match=told):
            result = submit()
    assert list(result.index) == ["FORBIDDEN", "SWOT_PASS_012"]
    assert applied(simulator) == 2
    simulator.service.catalogue.datasets[
        "FORBIDDEN"
    ].outcome = simulator.service.catalogue.datasets["SWOT_PASS_012"].outcome
    for _ in range(2):
        result = submit(retry=True)
        assert list(result.index) == ["FORBIDDEN (2)", "SWOT_PASS_012"]
    assert applied(simulator) == 3
    assert list(tracker.orders.join(result, on="label")["dataset"].dropna()) == list(
        result["dataset"][::-1]
    )
    # Later calls follow the second attempt, without being told to.
    assert list(submit().index) == list(result.index)


def test_a_lost_answer_is_looked_for_and_nothing_is_ordered_twice(
    simulator: Simulator, tmp_path: Path
) -> None:
    """An answer that comes too late, and a server that is away for a while."""
    client = client_of(simulator, read_timeout_s=2)
    with OrderTracker(
        client=client, journal=tmp_path / "j", workspace=tmp_path / "orders", poll_s=0.05
    ) as tracker:
        table = products(tracker, 1, 3)
        simulator.faults.add(Slow(route=Route.APPLY, delay_s=4))
        tracker.submit_each(table, download=True, timeout_s=60)
    assert len(simulator.service.orders_of(simulator.username)) == 3


def test_while_regards_is_away_it_tries_again(simulator: Simulator, tracker: OrderTracker) -> None:
    """A request that reached nobody is sent later; the note says why."""
    away = simulator.faults.add(Reply(route=Route.BASKET, status=503, times=None))
    table = products(tracker, 1, 2)
    told = "0 of 2 orders made, 0 running; asking again at .* UTC: .*503"
    limit_tells(told, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s))
    timer = threading.Timer(1.0, simulator.faults.remove, [away])
    timer.start()
    tracker.submit_each(table, download=True, timeout_s=60)
    timer.join()
    assert applied(simulator) == 2


PROGRAM = """
import sys, pandas as pd
from regards_nb import OrderTracker, RegardsClient
base_url, user, secret, journal, folder, count = sys.argv[1:]
client = RegardsClient(base_url, tenant="demo", username=user, password=secret,
                       client_id="regards-nb", client_secret=sys.stdin.readline().strip())
with OrderTracker(client=client, journal=journal, workspace=folder, poll_s=0.05) as tracker:
    table = client.search(f"cycle:8 AND pass:[1 TO {count}]")
    print("ready", flush=True)
    sys.stdin.readline()
    made = tracker.submit_each(table, download=True, timeout_s=120)
    print(sorted(made["correlation_id"]), flush=True)
"""


def begin(simulator: Simulator, place: str | Path, folder: Path, count: int) -> Child:
    """Run a kernel that orders the passes of a cycle, each for itself, once `go` was called."""
    secrets = [simulator.base_url, simulator.username, simulator.password]
    process = Child(PROGRAM, *secrets, place, folder / "orders", count)
    process.tell(simulator.client_secret)
    return process


def go(processes: list[Child]) -> None:
    """Let kernels order when all of them are ready."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.tell()


def products_of_orders(simulator: Simulator) -> list[str]:
    orders = simulator.service.orders_of(simulator.username)
    names = [file.spec.name for order in orders for file in order.files]
    return sorted(name for name in names if name.endswith(".csv"))


def test_two_kernels_that_order_one_table_at_once_order_each_row_once(
    simulator: Simulator, place: str | Path, tmp_path: Path
) -> None:
    """Each makes the orders that the other has not made, and returns all of them."""
    with begin(simulator, place, tmp_path, 4) as one, begin(simulator, place, tmp_path, 4) as two:
        go([one, two])
        ended = [one.output(), two.output()]
    assert len(products_of_orders(simulator)) == len(set(products_of_orders(simulator))) == 4
    assert len({output.splitlines()[-1] for output in ended}) == 1
    assert applied(simulator) == 4


def test_a_restart_goes_on_and_orders_nothing_twice(simulator: Simulator, tmp_path: Path) -> None:
    """Ten orders, with a process that is killed in the middle of them."""
    with begin(simulator, tmp_path / "j.sqlite", tmp_path, 10) as process:
        go([process])
        until(lambda: applied(simulator) >= 3)
        process.kill()
    assert applied(simulator) < 10
    with begin(simulator, tmp_path / "j.sqlite", tmp_path, 10) as process:
        go([process])
        process.output()
    orders = simulator.service.orders_of(simulator.username)
    assert len(orders) == 10
    assert len(set(products_of_orders(simulator))) == 10


def test_ctrl_c_ends_it_in_one_line(simulator: Simulator, tracker: OrderTracker) -> None:
    """It names the orders made and not made; the next call goes on, and orders nothing twice."""
    table = products(tracker, 1, 3)
    made, left = table["provider_id"][:2], table["provider_id"][2:]

    def interrupt() -> None:
        until(lambda: applied(simulator) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(errors.StoppedWaiting) as stopped:
        tracker.submit_each(table)
    thread.join()
    said_made, said_left = str(stopped.value).split("Not made: ")
    assert "orders made" in said_made
    assert all(name in said_left for name in left)
    # the signal may arrive before the answer to the second request
    assert all(name in said_made for name in made)
    assert "same table goes on" in said_left
    tracker.submit_each(table, download=True, timeout_s=60)
    assert len(simulator.service.orders_of(simulator.username)) == 3


def test_an_order_that_was_never_asked_for_is_not_perhaps_made(
    simulator: Simulator, tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGARDS answers 503 to what comes before the request, and Ctrl-C ends the pause."""
    table = products(tracker, 1, 2)
    simulator.faults.add(Reply(route=Route.BASKET, status=503, times=None))
    with (
        interrupted_after(lambda told: "nothing was ordered for 'SWOT" in told, monkeypatch),
        pytest.raises(
            errors.StoppedWaiting, match=r"^stopped; 0 of 2 orders made\. Not made: SWOT"
        ),
    ):
        tracker.submit_each(table)


@pytest.mark.parametrize(
    ("table", "options", "why"),
    [
        ({"cycle": [7]}, {}, "column urn or provider_id|needs a label"),
        ({"cycle": [7]}, {"label": "{cycle}"}, "column urn or provider_id"),
        ({"provider_id": ["a", "a"]}, {}, "the label 'a' would stand for several"),
        ({"provider_id": ["a"]}, {"by": "cycle"}, "no column 'cycle', only 'provider_id'"),
        ({"provider_id": ["a"]}, {"label": "{cycle}"}, "does not fit the table: KeyError 'cycle'"),
        ({"provider_id": ["a"]}, {"products": "x"}, "products='x': the table has no such column"),
        ({"provider_id": ["a", "b"], "c": [1, None]}, {"by": "c"}, "no order gets 1 row without"),
        ({"provider_id": ["a"]}, {"cart": "full"}, "cart must be"),
        ({"provider_id": ["a"]}, {"data_types": "X"}, "data_types must be"),
        (
            {"provider_id": ["a"]},
            {"products": lambda row: row["pass"]},
            r"^nothing was ordered: products= raised KeyError: 'pass' \(.*line \d+\) for the .*'a'",
        ),
        ({"provider_id": ["a"]}, {"products": lambda _: 7}, "^nothing was ordered: the order 'a'"),
    ],
)
def test_a_table_that_cannot_be_ordered_is_refused(
    table: dict[str, Any],
    options: dict[str, Any],
    why: str,
    simulator: Simulator,
    tracker: OrderTracker,
) -> None:
    """The text says what is missing; nothing was ordered."""
    with pytest.raises(errors.SettingsError, match=why):
        tracker.submit_each(pd.DataFrame(table), **options)
    assert applied(simulator) == 0


def test_an_empty_table_orders_nothing(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so, and has the same columns as any other result."""
    table = products(tracker, 1, 2)
    result = tracker.submit_each(table.iloc[:0], timeout_s=10)
    assert result.empty
    assert list(result.columns)[-1] == "correlation_id"
    assert applied(simulator) == 0
    assert "nothing to order: the table has no rows" in capsys.readouterr().out


def test_it_needs_a_started_tracker(simulator: Simulator, tmp_path: Path) -> None:
    """Otherwise it would wait without end."""
    tracker = polling(simulator, tmp_path)
    with pytest.raises(errors.SettingsError, match="not started"):
        tracker.submit_each(products(tracker, 1, 2))
    assert applied(simulator) == 0


def test_over_amqp_alone_orders_follow_each_other(broker: PrivateBroker, tmp_path: Path) -> None:
    """Nobody here sees downloads: the next order is made when one has ended."""
    from test_requests_amqp import let_publish

    table = pd.DataFrame({"provider_id": [f"SWOT_SSH_008_00{number}" for number in range(1, 5)]})
    with Simulator(broker=broker, amqp_requests=True, suborder_pause_s=0.01) as simulator:
        let_publish(broker, simulator)
        downloading = threading.Thread(target=download_all, args=(simulator, 4, tmp_path))
        downloading.start()
        for _ in range(2):
            with tracker_of(simulator, tmp_path, client=None) as tracker:
                result = tracker.submit_each(
                    table, user=simulator.username, cart="include", timeout_s=60
                )
        downloading.join()
        assert set(tracker.orders.join(result, on="label")["status"]) == {"DONE"}
        assert len(simulator.service.orders_of(simulator.username)) == 4


def download_all(simulator: Simulator, n_orders: int, folder: Path) -> None:
    """Download orders as a user does on the web page."""
    with client_of(simulator) as client:
        for number in range(1, n_orders + 1):
            until(lambda number=number: simulator.service.orders.get(number))
            client.download_order(number, folder / f"elsewhere-{number}", show=False)
