"""Ordering, steering and catching up, on the simulator: real HTTP, and RabbitMQ where said."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
from conftest import Admin, client_of, purge_queue, throw, until

from regards_nb import Order, OrderTracker, RegardsClient, errors
from regards_nb.consumer import HealthState
from regards_nb.events import RESPONSE_EXCHANGE
from regards_nb.journal import Database
from regards_nb.simulator import (
    OrderPlan,
    Outcome,
    PrivateBroker,
    Reply,
    Route,
    Simulator,
    Slow,
    StagingError,
    html_page,
)


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> Iterator[OrderTracker]:
    """A tracker that has nothing but REST."""
    with OrderTracker(
        client=client_of(simulator),
        journal=tmp_path / "journal.sqlite",
        workspace=tmp_path / "orders",
        poll_s=0.05,
    ) as tracker:
        yield tracker


@pytest.fixture
def with_broker(broker: PrivateBroker, tmp_path: Path) -> Iterator[OrderTracker]:
    """A tracker that hears messages, and may ask."""
    with Simulator(broker=broker, suborder_pause_s=0.01) as simulator:
        tracker = OrderTracker(
            simulator.amqp_url,
            simulator.queue,
            tenant=simulator.tenant,
            client=client_of(simulator),
            journal=tmp_path / "journal.sqlite",
            workspace=tmp_path / "orders",
        )
        tracker.simulator = simulator
        with tracker:
            yield tracker


FLAKY = OrderPlan(n_files=4, files_per_suborder=4, faults=(StagingError(name="file_00003.bin"),))
LARGE = OrderPlan(n_files=8, files_per_suborder=1)


def applied(simulator: Simulator) -> int:
    return sum(seen.path.endswith("/apply") for seen in simulator.requests)


# -- without any broker


def test_rest_alone_follows_an_order_to_its_files(tracker: OrderTracker) -> None:
    """Submit, wait, download: the same words and frames as with a broker."""
    order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
    tracker.wait(order.correlation_id, timeout_s=30)
    assert order.status == "DONE"
    assert len(order.download()) == 3
    row: Any = tracker.orders.loc["demo", order.correlation_id]
    assert (row["label"], row["downloaded_files"], row["finished"]) == ("one pass", 3, True)
    assert not row["waits_for_download"]
    assert row["expires_at"] > row["first_event"]
    assert list(order.events["status"]) == ["GRANTED", "SUBORDER_DONE", "DONE"]
    assert set(order.events["app_id"]) == {"REST"}


def test_rest_alone_says_that_it_polls(simulator: Simulator, tracker: OrderTracker) -> None:
    """Health and repr name the polling; a display can show them."""
    assert tracker.health.state is HealthState.POLLING
    assert "polling REGARDS over REST every 0.05 to 60 s" in (tracker.health.reason or "")
    assert repr(tracker) == f"<OrderTracker by REST alone at {simulator.base_url}: POLLING>"


def test_rest_alone_is_polite(simulator: Simulator, tracker: OrderTracker) -> None:
    """All orders cost one request a round, and none is sent while nothing is unfinished."""
    numbers = [simulator.order(LARGE) for _ in range(20)]
    tracker.sync()
    before = len(simulator.requests)
    until(lambda: len(simulator.requests) > before + 2)
    paths = [seen.path for seen in simulator.requests[before:]]
    assert set(paths) == {"/api/v1/rs-order/user/orders"}
    tracker.cancel(numbers)
    assert tracker.orders["finished"].all()
    tracker.stop()  # a round of its thread may be on its way
    before = len(simulator.requests)
    assert tracker._sync is not None
    assert not tracker._sync.ask_unfinished()
    assert len(simulator.requests) == before


def test_download_asks_what_a_tracker_that_is_not_started_cannot_know(
    simulator: Simulator, tmp_path: Path
) -> None:
    """No event tells it that the files of an order are ready."""
    client, folder = client_of(simulator), tmp_path / "orders"
    tracker = OrderTracker(client=client, journal=tmp_path / "j.sqlite", workspace=folder)
    order = tracker.submit("dataset:SWOT_PASS_012")
    until(lambda: next(client.iter_orders()).waiting_for_user)
    (_, *_) = paths = tracker.download()
    assert order.status == "DONE"
    assert all(path.is_relative_to(folder) for path in paths)


def test_download_asks_before_the_next_round_of_a_poll(
    simulator: Simulator, tmp_path: Path
) -> None:
    """What is ready is fetched at once."""
    client, where = client_of(simulator), {"workspace": tmp_path / "w", "poll_s": 60.0}
    with OrderTracker(client=client, journal=tmp_path / "j.sqlite", **where) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012")
        until(lambda: next(client.iter_orders()).waiting_for_user)
        assert tracker.download()
        assert order.status == "DONE"


def test_download_says_that_regards_could_not_be_asked(
    simulator: Simulator, tmp_path: Path
) -> None:
    """It is not known whether there is nothing to download. What is known is downloaded."""
    client = client_of(simulator)
    tracker = OrderTracker(client=client, journal=tmp_path / "j.sqlite", workspace=tmp_path / "w")
    order = tracker.submit("dataset:SWOT_PASS_012")
    until(lambda: next(client.iter_orders()).waiting_for_user)
    simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=None))
    with pytest.raises(errors.ServiceUnreachableError):
        tracker.download()
    assert tracker.download(order)


def test_rest_alone_large_orders_run_through_with_auto_download(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Each part is seen, fetched, and the next begins."""
    with OrderTracker(
        client=client_of(simulator),
        journal=tmp_path / "j.sqlite",
        workspace=tmp_path / "orders",
        poll_s=0.05,
        auto_download=True,
    ) as tracker:
        number = simulator.order(LARGE)
        (order,) = tracker.sync()
        assert order.order_id == number
        order.wait(timeout_s=60)
        until(lambda: tracker.orders["downloaded_files"].item() == 8)


def test_a_wrong_password_is_told_by_start(simulator: Simulator, tmp_path: Path) -> None:
    """Without a broker the login is what start() proves."""
    client = RegardsClient(
        simulator.base_url, tenant="demo", username=simulator.username, password="wrong"
    )
    tracker = OrderTracker(client=client, journal=tmp_path / "j.sqlite")
    with pytest.raises(errors.ServiceLoginError, match="refused the login"):
        tracker.start()
    assert tracker.health.state is HealthState.FAILED


@pytest.mark.parametrize("with_token", [False, True])
def test_a_list_that_cannot_be_read_stops_no_start(
    simulator: Simulator, tmp_path: Path, *, with_token: bool
) -> None:
    """It is shown as a problem; orders go on once REGARDS sends a list again."""
    client = client_of(simulator)
    if with_token:
        client.login()
        assert client._tokens is not None
        token = client._tokens.current().secret
        client = RegardsClient(simulator.base_url, tenant=simulator.tenant, token=token)
    broken = simulator.faults.add(
        Reply(
            route=Route.ORDERS,
            status=200,
            body=b'{"content": 7}',
            content_type="application/json",
            times=None,
        )
    )
    if with_token:
        page = simulator.faults.add(html_page(Route.BASKET))
        with pytest.raises(errors.UnexpectedAnswerError, match="is not a list"):
            OrderTracker(client=client, journal=tmp_path / "j.sqlite").start()
        simulator.faults.remove(page)
    with OrderTracker(client=client, journal=tmp_path / "j.sqlite", poll_s=0.05) as tracker:
        assert any("is not a list" in text for text in tracker.snapshot().background_errors)
        simulator.faults.remove(broken)
        order = tracker.submit("dataset:SWOT_PASS_012")
        order.wait(timeout_s=60)
        assert order.status == "DONE"
        assert not tracker.snapshot().background_errors


def test_an_outage_is_seen_and_survived(simulator: Simulator, tracker: OrderTracker) -> None:
    """While REST does not answer, health says so; afterwards the orders go on."""
    number = simulator.order(OrderPlan(n_files=1, suborder_pause_s=1.0))
    tracker.sync()
    fault = simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=None))
    until(lambda: tracker.health.state is HealthState.RECONNECTING)
    assert "503" in (tracker.health.reason or "")
    simulator.faults.remove(fault)
    simulator.wait_for(number, "DONE")
    assert tracker._sync is not None
    tracker._sync.ask_unfinished()
    tracker.wait(number, timeout_s=30)


@pytest.mark.parametrize(
    ("source", "name"),
    [("tracker", "poll"), ("with_broker", "catchup"), ("with_broker", "dispatch")],
)
def test_a_thread_that_other_code_ends_is_told(
    request: pytest.FixtureRequest, source: str, name: str
) -> None:
    """Health says so, the next call raises it, and start() works again."""
    tracker: OrderTracker = request.getfixturevalue(source)
    order = tracker.submit("dataset:SWOT_PASS_012")
    throw(SystemExit, f"regards-nb-{name}")
    until(lambda: "has ended (SystemExit)" in (tracker.health.reason or ""))
    assert (tracker.health.state is HealthState.FAILED) is (name == "poll")
    with pytest.raises(errors.TrackingError, match=r"the thread that .* has ended"):
        order.wait(timeout_s=60)
    assert name == "poll" or "has ended" in tracker._repr_html_()
    tracker.start()
    assert "has ended" not in (tracker.health.reason or "")
    order.wait(timeout_s=60)
    assert f"regards-nb-{name}" in {thread.name for thread in threading.enumerate()}


def test_a_tracker_needs_a_source(tmp_path: Path) -> None:
    """Neither broker nor client is an error that says what is possible."""
    with pytest.raises(errors.SettingsError, match="the client alone is enough"):
        OrderTracker(journal=tmp_path / "j.sqlite")
    with pytest.raises(errors.SettingsError, match="queue"):
        OrderTracker("amqp://u:p@h/v", journal=tmp_path / "j.sqlite")


# -- actions


def test_pause_resume_and_cancel(simulator: Simulator, tracker: OrderTracker) -> None:
    """Each acts at once, is seen at once, and the server agrees."""
    order = tracker[tracker.submit("dataset:SWOT_CYCLE_007").correlation_id]
    assert order.pause().status == "PAUSED"
    assert not order.finished
    assert order.resume().status == "RUNNING"
    order.cancel()
    assert (order.status, order.finished) == ("DELETED", True)
    assert order.message == "DELETED, by the action cancel"
    assert simulator.service.orders[order.order_id or 0].status == "DELETED"
    tracker.wait(order.correlation_id, timeout_s=10)


def test_a_retry_brings_what_had_failed(simulator: Simulator, tracker: OrderTracker) -> None:
    """A partial failure, retried, ends well; and the wait in between waits."""
    number = simulator.order(FLAKY)
    (order,) = tracker.sync()
    order.wait(timeout_s=30)
    assert (order.status, order.order_id) == ("FAILED", number)
    order.retry().wait(timeout_s=30)
    assert order.status == "DONE"
    assert len(order.download()) == 4


def test_a_restart_is_a_new_order(simulator: Simulator, tracker: OrderTracker) -> None:
    """The same files under another number."""
    order = tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=30)
    again = order.restart(label="again")
    assert again.order_id != order.order_id
    again.wait(timeout_s=30)
    assert again.state.label == "again"


def test_a_selection_of_the_frame_can_be_steered(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Rows of tracker.orders say which orders are meant."""
    numbers = [simulator.order(LARGE) for _ in range(3)]
    tracker.sync()
    rows = tracker.orders.query("order_id != @numbers[1]")
    paused = tracker.pause(rows)
    resume = rf"tracker.resume\(\[{numbers[0]}, {numbers[2]}\]\)"
    with pytest.raises(errors.WaitTimeoutError, match=f"are paused: {resume}"):
        tracker.wait(timeout_s=0)
    assert {order.order_id for order in paused} == {numbers[0], numbers[2]}
    assert (tracker.orders["status"] == "PAUSED").sum() == 2
    with pytest.raises(errors.NotAllowedError, match="1 of 3 orders done.*ORDER_MUST_BE_PEND"):
        tracker.pause(tracker.orders)
    with pytest.raises(errors.SettingsError, match="rows of tracker.orders"):
        tracker.pause(tracker.orders.reset_index()[["order_id"]])
    with pytest.raises(errors.OrderNotFoundError):
        tracker.pause("no such order")


def test_actions_that_the_journal_cannot_keep_are_an_error_of_the_journal(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path
) -> None:
    """The disk is full: the text says what REGARDS has done, and for how many orders."""
    ended = simulator.order(OrderPlan(n_files=1))
    tracker.wait(ended, timeout_s=30)
    running = simulator.order(LARGE)
    tracker.sync()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON batches BEGIN "
            "SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
        told = (
            f"^1 of 2 orders done. REGARDS did pause order {running}. Do not .*: cannot.*was sent"
        )
        with pytest.raises(errors.JournalError, match=told):
            tracker.pause([running, ended])
        other.execute("DROP TRIGGER full")
    tracker.sync()
    assert tracker[running].state.status == "PAUSED"


#: Each action, how an order comes into a state that allows it, and the status after it.
ACTIONS: list[tuple[str, OrderPlan, str, set[str]]] = [
    ("pause", LARGE, "", {"PAUSED"}),
    ("resume", LARGE, "pause", {"RUNNING", "SUBORDER_DONE"}),
    ("retry", FLAKY, "", {"DONE"}),
    ("restart", OrderPlan(n_files=1), "", {"DONE"}),
    ("cancel", LARGE, "", {"DELETED"}),
    ("delete", LARGE, "pause", {"DELETED"}),
]


@pytest.fixture(params=ACTIONS, ids=[case[0] for case in ACTIONS])
def allowed(
    request: pytest.FixtureRequest, simulator: Simulator, tracker: OrderTracker
) -> tuple[str, Order, set[str]]:
    """An action, an order that allows it, and the status after it."""
    action, plan, first, statuses = request.param
    simulator.order(plan)
    (order,) = tracker.sync()
    if plan is not LARGE:
        order.wait(timeout_s=30)
    if first:
        getattr(order, first)()
    return action, order, statuses


def acted(simulator: Simulator) -> list[str]:
    return [seen.method for seen in simulator.requests if seen.method in {"PUT", "DELETE"}] + [
        seen.path for seen in simulator.requests if seen.path.endswith("/restart")
    ]


def test_nothing_is_changed_while_the_journal_cannot_be_written(
    simulator: Simulator,
    allowed: tuple[str, Order, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """REGARDS gets no request, also not from a second call."""
    action, order, statuses = allowed
    before, ids = acted(simulator), set(simulator.service.orders)
    monkeypatch.setattr(Database, "busy_timeout_s", 0.1)
    told = f"^nothing was changed at REGARDS to {action} order {order.order_id}: cannot write"
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(errors.JournalError, match=told):
                getattr(order, action)()
        other.rollback()
    assert acted(simulator) == before
    assert set(simulator.service.orders) == ids
    monkeypatch.undo()
    result = getattr(order, action)()
    until(lambda: result.status in statuses)


def test_what_regards_did_is_journalled_when_that_is_possible_again(
    simulator: Simulator,
    tracker: OrderTracker,
    allowed: tuple[str, Order, set[str]],
    tmp_path: Path,
) -> None:
    """The error says what REGARDS did; a second restart takes the order that the first made."""
    action, order, statuses = allowed
    n_orders = len(simulator.service.orders)
    told = f"REGARDS did {action} order {order.order_id}. Do not repeat it: .*: cannot write"
    if action == "restart":
        told = r"REGARDS has made order 2 for the restart of order 1, .*restart\(1\) writes it"
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute(
            "CREATE TRIGGER locked BEFORE INSERT ON batches BEGIN "
            "SELECT RAISE(FAIL, 'database is locked'); END"
        )
        with pytest.raises(errors.JournalError, match=told):
            getattr(order, action)()
        with pytest.raises(errors.JournalError, match=f"nothing was changed .*{action}"):
            getattr(order, action)()
        other.execute("DROP TRIGGER locked")
    if action != "restart":
        until(lambda: order.status in statuses)
        return
    until(lambda: 2 in set(tracker.orders["order_id"]))
    assert order.restart().order_id == n_orders + 1 == len(simulator.service.orders)
    assert order.restart().order_id == n_orders + 2
    assert list(tracker[2].events["status"]).count("GRANTED") == 1


def test_a_restart_without_an_answer_is_not_sent_again_before_regards_was_asked(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Where the new order was made it is found; else the same call sends the request again."""
    client = client_of(simulator, read_timeout_s=2)
    with OrderTracker(client=client, journal=tmp_path / "j.sqlite", poll_s=0.05) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=30)
        simulator.faults.add(Slow(route=Route.ACTION, delay_s=4))
        assert order.restart().order_id == 2
        simulator.faults.add(Reply(route=Route.ACTION, status=504))
        for why in (
            r"no answer to the restart of order 1, .*restart\(1\) asks REGARDS first",
            r"the restart of order 1 was sent .*Call restart\(1\) in",
        ):
            with pytest.raises(errors.ServiceUnreachableError, match=why):
                order.restart()
        tracker._submission._in_doubt_s = 0
        assert order.restart().order_id == 3


@pytest.mark.parametrize("label", [None, "again"])
def test_a_restart_whose_answer_is_lost_is_found_where_a_message_has_named_its_order(
    broker: PrivateBroker, tmp_path: Path, label: str | None
) -> None:
    """REGARDS makes up a correlation id, which says nothing; no second order is made."""
    with Simulator(broker=broker) as simulator:
        tracker = OrderTracker(
            simulator.amqp_url,
            simulator.queue,
            tenant=simulator.tenant,
            client=client_of(simulator, read_timeout_s=2),
            journal=tmp_path / "j.sqlite",
        )
        with tracker:
            order = tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=30)
            simulator.faults.add(Slow(route=Route.ACTION, delay_s=4))
            again = None
            with suppress(errors.ServiceUnreachableError):
                again = order.restart(label=label)
            tracker._submission._in_doubt_s = 0
            assert (again or order.restart(label=label)).order_id == 2
            assert len(simulator.service.orders) == 2


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("pause", "ORDER_MUST_BE_PENDING_OR_RUNNING"),
        ("resume", "ORDER_MUST_BE_PAUSED"),
        ("retry", "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED"),
    ],
)
def test_a_refused_action_is_told_in_words(
    tracker: OrderTracker, simulator: Simulator, action: str, code: str
) -> None:
    """The error has the server's code, what it means, and what the server allows."""
    order = tracker.submit("dataset:SWOT_PASS_012").wait(timeout_s=30)
    with pytest.raises(
        errors.NotAllowedError, match=rf"which is DONE\..*\({code}\).*Only"
    ) as caught:
        getattr(order, action)()
    assert caught.value.messages == (code,)
    assert "It allows: delete" in str(caught.value)


def test_an_action_costs_two_requests(simulator: Simulator, tmp_path: Path) -> None:
    """The action and the order afterwards, also where the server refuses."""
    # Not started, so that no round of REST sync comes between.
    tracker = OrderTracker(client=client_of(simulator), journal=tmp_path / "j.sqlite")
    order = tracker.submit("dataset:SWOT_CYCLE_007")
    path = f"/api/v1/rs-order/user/orders/{order.order_id}"

    def requests_of(act: Callable[[], object]) -> list[str]:
        before = len(simulator.requests)
        act()
        return [f"{seen.method} {seen.path}" for seen in simulator.requests[before:]]

    def refused_retry() -> None:
        with pytest.raises(errors.NotAllowedError):
            order.retry()

    paused = path.replace("orders/", "orders/pause/")
    assert requests_of(order.pause) == [f"PUT {paused}", f"GET {path}"]
    assert requests_of(refused_retry) == [f"PUT {path}/retry", f"GET {path}"]


def test_a_refusal_by_the_server_itself_is_told_in_words(simulator: Simulator) -> None:
    """The plain client says what a code means, too."""
    number = simulator.order(OrderPlan(n_files=1))
    simulator.wait_for(number, "DONE")
    with pytest.raises(errors.NotAllowedError, match="can be resumed.*try again in a minute"):
        client_of(simulator).resume(number)


def test_buttons_only_queue_and_their_errors_are_kept(tracker: OrderTracker) -> None:
    """With an OrderKey nothing blocks; what goes wrong is shown and raised later."""
    order = tracker.submit("dataset:SWOT_CYCLE_007")
    tracker.pause(order.key)
    until(lambda: order.status == "PAUSED")
    tracker.retry(order.key)
    until(lambda: tracker.snapshot().background_errors)
    with pytest.raises(errors.TrackingError, match="to retry order 1: REGARDS does not let you"):
        tracker.wait(order.cancel().correlation_id, timeout_s=10)


def test_an_order_without_a_number_cannot_be_steered(tracker: OrderTracker) -> None:
    """A denied order does not exist on the server."""
    with pytest.raises(errors.NotAllowedError, match="has no number.*DENIED"):
        tracker.submit("dataset:FORBIDDEN").cancel()


def test_steering_needs_a_client(broker: PrivateBroker, tmp_path: Path) -> None:
    """A broker alone only tells."""
    with Simulator(broker=broker) as simulator:
        tracker = OrderTracker(simulator.amqp_url, simulator.queue, journal=tmp_path / "j.sqlite")
        simulator.order(LARGE, correlation_id="c")
        with tracker:
            tracker.wait("c", until="part", timeout_s=30)
            with pytest.raises(errors.SettingsError, match="client=RegardsClient"):
                tracker["c"].pause()
        with pytest.raises(errors.SettingsError, match="client=RegardsClient"):
            tracker.sync()


def test_steering_beside_a_broker(with_broker: OrderTracker) -> None:
    """Messages and answers agree, whatever second they fall into."""
    simulator = with_broker.simulator
    simulator.order(FLAKY, correlation_id="flaky")
    with_broker.wait("flaky", timeout_s=30)
    order = with_broker["flaky"]
    assert order.status == "FAILED"
    order.retry().wait(timeout_s=30)
    assert order.status == "DONE"
    large = with_broker.submit("dataset:SWOT_CYCLE_007")
    assert large.pause().status == "PAUSED"
    assert large.resume().status in {"RUNNING", "SUBORDER_DONE"}
    assert large.cancel().status == "DELETED"


def test_a_retry_that_fails_again_within_the_second_is_noticed(with_broker: OrderTracker) -> None:
    """Messages carry whole seconds; what they leave open is asked a moment later."""
    simulator = with_broker.simulator
    simulator.order(OrderPlan(outcome=Outcome.PARTIAL), correlation_id="c")
    with_broker.wait("c", timeout_s=30)
    order = with_broker["c"].retry()
    simulator.wait_for(order.order_id, "DONE_WITH_WARNING")
    order.wait(timeout_s=30)
    assert order.status == "FAILED"


# -- catching up


def test_orders_made_elsewhere_are_taken_in_once(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """sync() brings the web page's orders, and a second one brings nothing new."""
    plans = (OrderPlan(n_files=1), OrderPlan(outcome=Outcome.FAILED), FLAKY)
    numbers = [simulator.order(plan) for plan in plans]
    for number in numbers:
        simulator.wait_for(number, "DONE", "FAILED", "DONE_WITH_WARNING")
    simulator.expire(numbers[0])
    found = tracker.sync()
    assert [order.order_id for order in found] == numbers
    assert [order.status for order in found] == ["EXPIRED", "FAILED", "FAILED"]
    assert list(tracker.orders["waits_for_download"]) == [False, False, True]
    events = len(tracker.events)
    assert tracker.sync() == []
    assert len(tracker.events) == events
    assert tracker.orders["label"].str.startswith("Order").all()


def test_the_server_s_orders_as_a_frame(simulator: Simulator) -> None:
    """client.orders() lists and filters, also when there is nothing."""
    client = client_of(simulator)
    empty = client.orders()
    assert (len(empty), empty.index.name) == (0, "order_id")
    numbers = [simulator.order(OrderPlan(n_files=1)), simulator.order(LARGE)]
    simulator.wait_for(numbers[0], "DONE")
    frame = client.orders()
    assert list(frame.index) == numbers[::-1]
    assert list(frame.query("status == 'DONE'").index) == numbers[:1]
    assert frame.drop(columns="status").dtypes.equals(empty.drop(columns="status").dtypes)
    assert len(client.orders(limit=1)) == 1


def test_percentage_and_expiry_reach_the_orders(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """What only REST tells is in the frame."""
    number = simulator.order(LARGE)
    simulator.wait_available(number, files=2)
    tracker.sync()
    row = tracker.orders.iloc[0]
    assert (row["progress"], row["waits_for_download"]) == (0.25, True)
    assert tracker[number].expires_at is not None


def test_messages_that_were_missed_are_made_up_for(broker: PrivateBroker, tmp_path: Path) -> None:
    """A queue that lost its messages: the end of the order is learnt over REST after the start."""
    journal = tmp_path / "journal.sqlite"
    with Simulator(broker=broker, suborder_pause_s=0.01) as simulator:

        def new_tracker() -> OrderTracker:
            return OrderTracker(
                simulator.amqp_url,
                simulator.queue,
                tenant=simulator.tenant,
                client=client_of(simulator),
                journal=journal,
                workspace=tmp_path / "orders",
            )

        tracker = new_tracker()
        with tracker:
            number = simulator.order(LARGE, correlation_id="c")
            tracker.wait("c", until="part", timeout_s=30)
        client_of(simulator).download_order(number, tmp_path / "elsewhere")
        simulator.wait_for(number, "DONE")
        simulator.flush()
        purge_queue(simulator)
        with new_tracker() as again:
            again.wait("c", timeout_s=30)
            assert again["c"].status == "DONE"
            assert again["c"].events["app_id"].iloc[-1] == "REST"


def test_after_a_silence_the_server_is_asked(broker: PrivateBroker, tmp_path: Path) -> None:
    """An order of which nothing is heard any more: not two hours, not for ever."""
    with Simulator(broker=broker, suborder_pause_s=0.01) as simulator:
        number = simulator.order(OrderPlan(n_files=1), correlation_id="c")
        simulator.wait_for(number, "DONE")
        simulator.flush()
        purge_queue(simulator)
        with OrderTracker(
            simulator.amqp_url,
            simulator.queue,
            tenant=simulator.tenant,
            client=client_of(simulator),
            journal=tmp_path / "journal.sqlite",
            silence_s=4,
        ) as tracker:
            until(lambda: tracker._catch_up is not None)
            simulator.publish_raw(b'{"status":"GRANTED","orderId":1,"correlationId":"c"}')
            tracker.wait("c", timeout_s=60)
            assert tracker["c"].status == "DONE"
            assert tracker["c"].state.waits_for_download
            asked = [seen for seen in simulator.requests if "orders" in seen.path]
            assert len(asked) <= 2


def test_late_messages_repeat_nothing(broker: PrivateBroker, with_broker: OrderTracker) -> None:
    """REST has told that an order is done, and its files are here: no second call, no download."""
    called: list[tuple[int | None, str | None]] = []
    with_broker.on("DONE", lambda event: called.append((event.order_id, event.app_id)))
    broker.freeze()
    try:
        order = with_broker.submit("dataset:SWOT_PASS_012")
        with_broker.wait(order, download=True, timeout_s=60)
    finally:
        broker.thaw()
    until(lambda: set(order.events.query("status == 'DONE'")["app_id"]) == {"REST", "rs-order"})
    assert not order.state.waits_for_download
    with_broker.stop()
    assert called == [(order.order_id, "REST")]


def test_a_queue_that_gets_no_message_is_told(
    admin: Admin, broker: PrivateBroker, tmp_path: Path
) -> None:
    """Nobody bound it: REST tells how the order goes on, the files come, and a note says why."""
    with Simulator(broker=broker, suborder_pause_s=0.01) as simulator:
        tracker = OrderTracker(
            admin.url,
            admin.queue,
            client=client_of(simulator),
            journal=tmp_path / "journal.sqlite",
            workspace=tmp_path / "orders",
            auto_download=True,
            silence_s=0.5,
        )
        with tracker:
            tracker.submit("dataset:SWOT_PASS_012", label="unheard")
            until(lambda: tracker["unheard"].finished and len(tracker.files) == 3)
            notes = " ".join(tracker.snapshot().background_errors)
            assert "no message since start()" in notes
            report = tracker.doctor()
            assert not report.ok
            assert re.search(r"how order 1 went on.*whether the queue is bound", str(report))
            with pika.BlockingConnection(pika.URLParameters(broker.admin_url)) as connection:
                connection.channel().queue_bind(admin.queue, RESPONSE_EXCHANGE)
            simulator.order(OrderPlan(n_files=1))
            until(lambda: "no message since" not in str(tracker.snapshot().background_errors))
        new = OrderTracker(
            admin.url, admin.queue, client=client_of(simulator), journal=tmp_path / "new.sqlite"
        )
        with new:
            # Their messages were those of the other journal.
            new.sync()
            assert new.orders["finished"].all()
            assert new._sync is not None
            assert not new._sync.unannounced


def test_a_tracker_of_another_tenant_than_its_client_is_refused(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Its events and its files would be those of two projects."""
    with pytest.raises(errors.SettingsError, match="tenant='dem0'.*'demo'"):
        OrderTracker(
            client=client_of(simulator), tenant="dem0", journal=tmp_path / "journal.sqlite"
        )


def test_other_peoples_orders_are_asked_for_once(with_broker: OrderTracker) -> None:
    """The exchange tells of all users' orders; the server says once that they are not ours."""
    simulator = with_broker.simulator
    simulator.order(LARGE, correlation_id="hers", owner="jane@cnes.fr")
    with_broker.wait("hers", until="part", timeout_s=30)
    sync = with_broker._sync
    assert sync is not None
    sync.ask_unfinished()
    before = len(simulator.requests)
    sync.ask_unfinished()
    assert len(simulator.requests) == before
    assert with_broker["hers"].status == "SUBORDER_DONE"


# -- submitting


def test_the_same_name_orders_once(simulator: Simulator, tracker: OrderTracker) -> None:
    """A cell that is run twice makes one order; other files need another name."""
    one = tracker.submit("dataset:SWOT_PASS_012", correlation_id="mine")
    two = tracker.submit("dataset:SWOT_PASS_012", correlation_id="mine")
    assert one.order_id == two.order_id
    assert applied(simulator) == 1
    with pytest.raises(errors.SettingsError, match="used for another request already"):
        tracker.submit("dataset:SWOT_CYCLE_007", correlation_id="mine")


def test_an_answer_that_is_lost_is_asked_for(simulator: Simulator, tmp_path: Path) -> None:
    """The order was made, the answer came too late: the order is found, and not made again."""
    client = client_of(simulator, read_timeout_s=2)
    with OrderTracker(client=client, journal=tmp_path / "j.sqlite", poll_s=0.05) as tracker:
        client.login()
        simulator.faults.add(Slow(route=Route.APPLY, delay_s=4))
        order = tracker.submit("dataset:SWOT_PASS_012", correlation_id="lost")
        assert (order.status, order.order_id) == ("GRANTED", 1)
        order.wait(timeout_s=30)
        assert tracker.submit("dataset:SWOT_PASS_012", correlation_id="lost").order_id == 1
    assert len(simulator.service.orders_of(simulator.username)) == 1


def test_an_order_that_the_journal_could_not_take_is_told(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path
) -> None:
    """The error has its number, also at Ctrl-C while the journal cannot be read.

    The same call takes it also where sync() has named it.
    """
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute(
            "CREATE TRIGGER locked BEFORE INSERT ON batches BEGIN "
            "SELECT RAISE(FAIL, 'database is locked'); END"
        )
        told = "^REGARDS has made order 1 for 'x', .* submit.*'x'.* orders nothing twice: cannot"
        with pytest.raises(errors.JournalError, match=told):
            tracker.submit("dataset:SWOT_PASS_012", correlation_id="x")
        request = tracker.submit("dataset:SWOT_PASS_012", correlation_id="x", dry_run=True)
        other.execute("ALTER TABLE batches RENAME TO unreadable")
        assert "REGARDS has made order 1 for 'x'" in tracker._submission.stopped(request)
        other.execute("ALTER TABLE unreadable RENAME TO batches")
        other.execute("DROP TRIGGER locked")
    tracker.sync()
    assert tracker.submit("dataset:SWOT_PASS_012", correlation_id="x").order_id == 1
    assert applied(simulator) == 1


def test_an_order_that_a_message_has_named_is_not_said_to_be_lacking(
    with_broker: OrderTracker, tmp_path: Path
) -> None:
    """The journal could not take the answer of REGARDS, and has the messages of the order."""
    again = partial(with_broker.submit, "dataset:SWOT_PASS_012", correlation_id="x")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute(
            "CREATE TRIGGER locked BEFORE INSERT ON batches BEGIN "
            "SELECT RAISE(FAIL, 'database is locked'); END"
        )
        with pytest.raises(errors.JournalError, match="REGARDS has made order 1 for 'x'"):
            again()
        other.execute("DROP TRIGGER locked")
    until(lambda: with_broker._shared.key_of("x"))
    assert again().order_id == 1
    assert "order 1 was made for 'x'" in with_broker._submission.stopped(again(dry_run=True))


def test_a_request_that_never_arrived_can_be_sent_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    """In doubt it is neither given up nor sent twice: first ask, then wait, then send."""
    simulator.faults.add(Reply(route=Route.APPLY, status=504))
    with OrderTracker(client=client_of(simulator), journal=tmp_path / "j.sqlite") as tracker:
        for why in (
            r"request 'c' \(label 'mine'\), so it is open whether REGARDS has made an order",
            "may still be making the order",
        ):
            with pytest.raises(errors.ServiceUnreachableError, match=why):
                tracker.submit("dataset:SWOT_PASS_012", correlation_id="c", label="mine")
        tracker._submission._in_doubt_s = 0
        assert tracker.submit("dataset:SWOT_PASS_012", correlation_id="c").status == "GRANTED"
    assert len(simulator.service.orders_of(simulator.username)) == 1


def test_a_request_that_could_not_be_sent_is_free_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Without a connection nothing was sent, so nothing is in doubt."""
    tracker = OrderTracker(client=client_of(simulator), journal=tmp_path / "j.sqlite")
    simulator.faults.add(Reply(route=Route.APPLY, status=400, body=b'{"messages": ["no"]}'))
    with pytest.raises(errors.ServiceError, match=r"^nothing was ordered for 'c': POST .*\(no\)"):
        tracker.submit("dataset:SWOT_PASS_012", correlation_id="c")
    assert tracker.submit("dataset:SWOT_PASS_012", correlation_id="c").status == "GRANTED"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"products": []}, "no products"),
        ({"products": ["a", " "]}, "a text that is not empty"),
        ({"products": ["a:1", "a:1"]}, "there twice"),
        ({"products": "a", "data_types": []}, "data_types must be"),
        ({"products": "a", "data_types": ["PICTURE"]}, "data_types must be"),
        ({"products": "a", "filename_regexp": "("}, "no regular expression"),
        ({"products": "a", "correlation_id": "x" * 256}, "1 to 255"),
        ({"products": "a", "correlation_id": ""}, "1 to 255"),
        ({"products": "a", "correlation_id": "#1"}, "must not begin with '#'"),
        ({"products": "a", "user": "u" * 129}, "1 to 128"),
    ],
)
def test_what_regards_would_deny_is_said_before(
    simulator: Simulator, tracker: OrderTracker, asked: dict[str, Any], why: str
) -> None:
    """A wrong request is refused here, in words, without any request."""
    before = len(simulator.requests)
    with pytest.raises(errors.SettingsError, match=why):
        tracker.submit(**asked)
    assert len(simulator.requests) == before


def test_java_s_regular_expressions_are_let_through(tracker: OrderTracker) -> None:
    """REGARDS is written in Java: what only Java knows is not called wrong."""
    tracker.submit("a", filename_regexp=r"(?<name>\p{L}+)\.nc", dry_run=True)


def test_a_dry_run_sends_nothing(simulator: Simulator, tracker: OrderTracker) -> None:
    """It returns the request as it would be sent."""
    request = tracker.submit("dataset:X", data_types=["RAWDATA"], dry_run=True)
    assert request.body()["filters"] == {"dataTypes": ["RAWDATA"]}
    assert applied(simulator) == 0
    assert tracker.orders.empty


# -- broken answers


@pytest.mark.parametrize(
    "fault",
    [
        html_page(Route.ORDERS),
        Reply(route=Route.ORDERS, status=200, body=b""),
        Reply(route=Route.ORDERS, status=200, body=b"[]"),
        Reply(route=Route.ORDERS, status=200, body=b'{"content": [7]}'),
        Reply(route=Route.ORDERS, status=200, body=b'{"content": [{"content": {"id": "x"}}]}'),
        Reply(route=Route.ORDERS, status=200, body=b" " * (17 << 20)),
        Reply(route=Route.ORDERS, status=200, body=b"[" * 100_000),
    ],
    ids=["html", "empty", "list", "number", "text for a number", "17 MB", "deep"],
)
def test_a_broken_answer_is_one_clear_error(simulator: Simulator, fault: Reply) -> None:
    """Whatever comes instead of a list of orders, the error is ours."""
    # A body that is only a part of JSON is requested once more.
    simulator.faults.add(replace(fault, times=None))
    with pytest.raises(errors.UnexpectedAnswerError, match="/user/orders"):
        client_of(simulator).orders()


def test_a_list_without_end_ends(simulator: Simulator) -> None:
    """A server that repeats a page for ever is not listened to for ever."""
    page = {
        "metadata": {"totalPages": 10**9, "totalElements": 10**12},
        "content": [{"content": {"id": 1, "status": "DONE"}, "links": []}],
    }
    body = json.dumps(page).encode()
    simulator.faults.add(Reply(route=Route.ORDERS, status=200, body=body, times=None))
    assert list(client_of(simulator).orders().index) == [1]
    assert len(simulator.requests) == 3


def test_what_an_order_says_wrongly_is_left_out(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """Fields of a wrong type count as missing; an unknown status says nothing."""
    dto = {
        "id": 7,
        "status": "ON_THE_MOON",
        "percentCompleted": "half",
        "expirationDate": "0000-99-99",
        "waitingForUser": "yes",
        "availableFilesCount": -1,
        "datasetTasks": 3,
    }
    page = {"content": [{"content": dto, "links": 5}]}
    body = json.dumps(page).encode()
    simulator.faults.add(Reply(route=Route.ORDERS, status=200, body=body))
    (order,) = tracker.sync()
    assert (order.order_id, order.status, order.expires_at) == (7, "GRANTED", None)


# -- the cart


def test_what_lies_in_the_cart_is_not_ordered_by_surprise(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """REGARDS orders the cart along: refused before anything is sent, unless it is meant."""
    simulator.fill_basket("cycle:8 AND pass:1")
    with pytest.raises(errors.SettingsError, match="1 product of SWOT_CYCLE_008.*cart="):
        tracker.submit("dataset:SWOT_PASS_012")
    assert applied(simulator) == 0
    order = tracker.submit("dataset:SWOT_PASS_012", cart="include")
    names = {file.spec.name for file in simulator.service.orders[order.order_id].files}
    assert any(name.startswith("SWOT_SSH_008_001") for name in names)


def test_a_cart_that_cannot_be_read_is_no_obstacle(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """An older server may not have the request."""
    simulator.faults.add(Reply(route=Route.BASKET, status=404))
    assert tracker.submit("dataset:SWOT_PASS_012").order_id is not None
