"""Ordering over AMQP: confirmed by the broker, answered by REGARDS, refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pika
import pytest
from conftest import limit_tells
from erlang import evaluate

from regards_nb import OrderTracker, errors
from regards_nb.events import REQUEST_EXCHANGE, VHOST
from regards_nb.simulator import PrivateBroker, Simulator

pytestmark = pytest.mark.simulator(with_broker=True, amqp_requests=True)


def tracker_of(simulator: Simulator, folder: Path, **changes: Any) -> OrderTracker:
    options: dict[str, Any] = {
        "amqp": simulator.amqp_url,
        "queue": simulator.queue,
        "tenant": simulator.tenant,
        "journal": folder / "journal.sqlite",
    }
    return OrderTracker(**options | changes)


def let_publish(broker: PrivateBroker, simulator: Simulator) -> None:
    """Do what the administrator of the broker does for somebody who may order."""
    parameters = pika.URLParameters(simulator.amqp_url)
    user, queue = parameters.credentials.username, simulator.queue
    exactly = f"^{REQUEST_EXCHANGE.replace('.', '[.]')}$"
    rights = ", ".join(
        f'<<"{each}">>' for each in (user, VHOST, "^$", exactly, f"^{queue}$", "tests")
    )
    evaluate(broker, f"rabbit_auth_backend_internal:set_permissions({rights})")


def test_an_order_over_amqp(simulator: Simulator, broker: PrivateBroker, tmp_path: Path) -> None:
    """Published, confirmed, granted; under the same name again: nothing is sent."""
    let_publish(broker, simulator)
    with tracker_of(simulator, tmp_path) as tracker:
        order = tracker.submit(
            "dataset:SWOT_PASS_012",
            data_types=["RAWDATA"],
            correlation_id="mine",
            user=simulator.username,
            cart="include",
        )
        assert (order.events["status"].iloc[0], order.order_id) == ("GRANTED", 1)
        again = tracker.submit(
            "dataset:SWOT_PASS_012",
            data_types=["RAWDATA"],
            correlation_id="mine",
            user=simulator.username,
            cart="include",
        )
        assert again.order_id == 1
        order.wait(timeout_s=30)
        assert len(simulator.service.orders_of(simulator.username)) == 1
        unknown = tracker.submit("dataset:SWOT_PASS_012", user="nobody@cnes.fr", cart="include")
        assert (unknown.status, unknown.error_type) == ("DENIED", "FORBIDDEN")


def test_who_may_not_publish_is_told_so(simulator: Simulator, tmp_path: Path) -> None:
    """Without the right nothing was ordered, and the name is free again."""
    with tracker_of(simulator, tmp_path) as tracker:
        for _ in range(2):
            with pytest.raises(errors.BrokerAccessError, match="write permission on regards"):
                tracker.submit("a", correlation_id="c", user=simulator.username, cart="include")
    assert not simulator.service.orders_of(simulator.username)


def test_what_is_missing_is_said_first(simulator: Simulator, tmp_path: Path) -> None:
    """Without user or tenant REGARDS would answer nothing at all."""
    tracker = tracker_of(simulator, tmp_path)
    with pytest.raises(errors.SettingsError, match="needs user="):
        tracker.submit("a")
    tracker = tracker_of(simulator, tmp_path, tenant=None)
    with pytest.raises(errors.SettingsError, match="tenant="):
        tracker.submit("a", user=simulator.username, cart="include")


def test_an_answer_that_does_not_come(
    simulator: Simulator, broker: PrivateBroker, tmp_path: Path
) -> None:
    """A wrong tenant gets no answer: that is said, and the same name is not sent again."""
    let_publish(broker, simulator)
    with tracker_of(simulator, tmp_path, tenant="wrong") as tracker:
        tracker._submission._answer_s = 0.3
        for _ in range(2):
            with pytest.raises(errors.WaitTimeoutError, match="has not answered within 0.3 s"):
                tracker.submit("a", correlation_id="c", user=simulator.username, cart="include")
        tracker._submission._answer_s = 60.0
        table = pd.DataFrame({"provider_id": ["a"]})
        mine: dict[str, Any] = {"user": simulator.username, "cart": "include"}
        told = r"has not answered within \d"
        limit_tells(told, lambda limit_s: tracker.submit_each(table, timeout_s=limit_s, **mine))


@pytest.mark.parametrize("end", ["Ctrl-C", "cut"])
def test_a_request_without_a_confirmation_is_not_sent_twice(
    end: str,
    simulator: Simulator,
    broker: PrivateBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ may have it: the next call under the same name waits for the answer only."""
    let_publish(broker, simulator)
    publish = pika.adapters.blocking_connection.BlockingChannel.basic_publish
    lost = KeyboardInterrupt() if end == "Ctrl-C" else pika.exceptions.StreamLostError("cut")

    def publish_and_lose_the_answer(*arguments: Any, **more: Any) -> None:
        publish(*arguments, **more)
        raise lost

    with tracker_of(simulator, tmp_path) as tracker:
        order: dict[str, Any] = {
            "correlation_id": "c",
            "user": simulator.username,
            "cart": "include",
        }
        with monkeypatch.context() as patched:
            patched.setattr(
                pika.adapters.blocking_connection.BlockingChannel,
                "basic_publish",
                lambda channel, exchange, *rest, **more: (
                    publish_and_lose_the_answer(channel, exchange, *rest, **more)
                    if exchange == REQUEST_EXCHANGE
                    else publish(channel, exchange, *rest, **more)
                ),
            )
            expected = KeyboardInterrupt if end == "Ctrl-C" else errors.BrokerUnreachableError
            with pytest.raises(expected):
                tracker.submit("dataset:SWOT_PASS_012", **order)
        assert tracker.submit("dataset:SWOT_PASS_012", **order).order_id == 1
    assert len(simulator.service.orders_of(simulator.username)) == 1


@pytest.mark.usefixtures("_says_at_once")
def test_a_broker_that_does_not_answer_is_named(
    simulator: Simulator,
    broker: PrivateBroker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The time limit of the call holds; what was not sent in time is not sent later."""
    let_publish(broker, simulator)
    table = pd.DataFrame({"provider_id": ["SWOT_SSH_007_012"]})
    with tracker_of(simulator, tmp_path) as tracker:
        broker.freeze()
        try:
            with pytest.raises(errors.WaitTimeoutError, match="order made.*no broker answers"):
                tracker.submit_each(table, user=simulator.username, cart="include", timeout_s=3)
        finally:
            broker.thaw()
        assert "waiting for RabbitMQ at amqp://" in capsys.readouterr().out
        order = tracker.submit("dataset:SWOT_PASS_012", user=simulator.username, cart="include")
        assert order.order_id == 1


def test_nobody_reads_the_requests(broker: PrivateBroker, tmp_path: Path) -> None:
    """The exchange is there, the order service is not: the broker gives the message back."""
    with Simulator(broker=broker, amqp_requests=True) as simulator:
        let_publish(broker, simulator)
    with Simulator(broker=broker) as simulator:
        let_publish(broker, simulator)
        with (
            tracker_of(simulator, tmp_path) as tracker,
            pytest.raises(errors.BrokerError, match="no service reads the order requests"),
        ):
            tracker.submit("a", user=simulator.username, cart="include")
