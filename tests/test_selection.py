"""Which orders a user means: by name, by number, by row of a frame; of which tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from strategies import delivery

from regards_nb import OrderTracker, RegardsClient, errors, plain
from regards_nb.journal import Journal
from regards_nb.orders import OrderKey
from regards_nb.tracker import names_in

ONE, OTHER = OrderKey("one", "mine"), OrderKey("other", "mine")


@pytest.fixture
def tracker(tmp_path: Path) -> OrderTracker:
    """A tracker of two tenants' orders, from a journal alone: both are called "mine"."""
    said: list[tuple[str, dict[str, Any]]] = [
        ("one", {"status": "GRANTED", "orderId": 1, "correlationId": "mine"}),
        ("other", {"status": "GRANTED", "orderId": 2, "correlationId": "mine"}),
        ("one", {"status": "DONE", "orderId": 1}),
        ("one", {"status": "DENIED", "correlationId": "no number"}),
    ]
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        deliveries = [delivery(body, tenant=tenant) for tenant, body in said]
        journal.append(journal.open_session("q"), deliveries)
    return OrderTracker("amqp://nowhere.invalid", "q", journal=path)


@pytest.fixture
def with_client(tracker: OrderTracker, tmp_path: Path) -> OrderTracker:
    """A tracker with a client of the other tenant, whose only order is unfinished."""
    client = RegardsClient("https://nowhere.invalid", tenant="other", username="u", password="p")
    path = tmp_path / "journal.sqlite"
    return OrderTracker("amqp://nowhere.invalid", "q", client=client, journal=path)


def test_whatever_names_an_order_is_understood(tracker: OrderTracker) -> None:
    """Also the numbers that a frame hands out, which are NumPy's and no ``int``."""
    rows = tracker.orders.query("order_id == 1")
    number = rows["order_id"].iloc[0]
    assert not isinstance(number, int)
    for one in (1, number, np.int32(1), "#1", ONE, rows, rows["order_id"], rows.index, [[1]]):
        assert tracker[one].key == ONE
        assert list(tracker.wait(one, timeout_s=30).index) == [ONE]
    assert names_in(tracker.orders["order_id"].dropna().to_numpy()) == [1, 2]
    assert names_in([tracker[1], "mine", 2]) == [ONE, "mine", 2]


def test_rows_without_their_index_name_orders_by_two_columns(tracker: OrderTracker) -> None:
    """Rows of `reset_index()`, of other libraries and of events; an order of many events once."""
    import polars as pl

    rows = tracker.orders.reset_index()
    assert names_in(rows.query("order_id == 2")) == [OTHER]
    assert names_in(pl.DataFrame(plain(rows)).filter(pl.col("order_id") == 2)) == [OTHER]
    assert tracker[tracker.events.query("order_id == 1")].key == ONE
    assert tracker[tracker.events.query("status == 'DONE'")].key == ONE
    with pytest.raises(errors.SettingsError, match="columns tenant and correlation_id"):
        names_in(rows[["order_id"]])


def test_an_empty_selection_is_no_order_and_not_all(with_client: OrderTracker) -> None:
    """A query that finds nothing has nothing to wait for, though other orders are unfinished."""
    tracker = with_client
    nothing = tracker.orders.query("status == 'FAILED'")
    assert not tracker.orders.query("not finished").empty
    assert tracker.wait(nothing, timeout_s=30).empty
    assert tracker.download(nothing) == []
    assert tracker.retry(nothing) == []
    with pytest.raises(errors.SettingsError, match="gives one order, and these are 0"):
        tracker[nothing]


@pytest.mark.parametrize("wrong", [1.0, None, pd.NA, b"mine", {"mine": 1}, object(), [None]])
def test_what_names_no_order_is_said_at_once(with_client: OrderTracker, wrong: Any) -> None:
    """And not waited for."""
    tracker = with_client
    for use in (tracker.__getitem__, tracker.wait, tracker.download, tracker.retry):
        with pytest.raises(errors.SettingsError, match="names no order: give a correlation id"):
            use(wrong)


def test_rows_of_something_else_are_refused(tracker: OrderTracker) -> None:
    """Rows that do not name orders by tenant and correlation id are an error, not all orders."""
    with pytest.raises(errors.SettingsError, match=r"rows of tracker\.orders"):
        tracker.wait(tracker.rejected)


def test_an_unknown_order_is_named(tracker: OrderTracker) -> None:
    """By name, by number, or as a row of another tracker's frame."""
    for name, told in (
        ("x", "the name 'x'"),
        (9, "the number 9"),
        (OrderKey(None, "mine"), "the name 'mine'"),
    ):
        with pytest.raises(errors.OrderNotFoundError, match=f"no order with {told}: "):
            tracker[name]


def test_orders_of_two_tenants_with_one_name_stay_apart(tracker: OrderTracker) -> None:
    """An `Order` is that of its tenant: what it shows, and what it waits for."""
    one, other = tracker[ONE], tracker[OTHER]
    assert list(one.events["status"]) == ["GRANTED", "DONE"]
    assert list(other.events["status"]) == ["GRANTED"]
    assert one.wait(timeout_s=30).finished
    with pytest.raises(errors.WaitTimeoutError):
        other.wait(timeout_s=0)
    with pytest.raises(TypeError, match=r"If seconds are meant: wait\(timeout_s=30\)"):
        other.wait(30)  # type: ignore[call-arg]
    with pytest.raises(errors.WaitTimeoutError, match="1 of 1 order is still running"):
        tracker.wait(timeout_s=0)


def test_an_order_that_gets_its_name_later_is_the_same_order(tmp_path: Path) -> None:
    """Over REST it has a number only; what is held of it then shows all that is said later."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        tracker = OrderTracker("amqp://nowhere.invalid", "q", journal=tmp_path / "journal.sqlite")
        session_id = journal.open_session("q")
        journal.append(session_id, [delivery({"status": "RUNNING", "orderId": 5})])
        order = tracker[5]
        assert order.correlation_id == "#5"
        named = {"status": "DONE", "orderId": 5, "correlationId": "mine"}
        journal.append(session_id, [delivery(named)])
        assert list(order.events["status"]) == ["RUNNING", "DONE"]
        assert (order.correlation_id, order.order_id) == ("mine", 5)
        assert list(tracker.wait(order, timeout_s=30)["status"]) == ["DONE"]
        tracker.stop()


def test_a_callback_for_a_status_nobody_knows_is_asked_about(tracker: OrderTracker) -> None:
    """Most often it is a slip, and would never be called; a new server may still mean it."""
    with pytest.warns(UserWarning, match="'SUBORDERDONE'. Did you mean 'SUBORDER_DONE'"):
        tracker.on("SUBORDERDONE", print)
    with pytest.raises(errors.SettingsError, match="a function of the OrderEvent, not None"):
        tracker.on("DONE", None)  # type: ignore[arg-type]
