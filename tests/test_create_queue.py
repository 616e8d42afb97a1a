"""Users whose RabbitMQ account may configure queues create their own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pika
import pytest

from regards_nb import OrderTracker, cli
from regards_nb.errors import BrokerAccessError, BrokerError
from regards_nb.events import RESPONSE_EXCHANGE
from regards_nb.simulator import OrderPlan, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pika.adapters.blocking_connection import BlockingChannel

    from regards_nb.simulator import PrivateBroker

pytestmark = pytest.mark.simulator(with_broker=True)


@pytest.fixture
def channel(broker: PrivateBroker) -> Iterator[BlockingChannel]:
    """Return a channel of the administrator."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.admin_url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def name(channel: BlockingChannel) -> Iterator[str]:
    """Return the name of a queue that does not exist yet."""
    new = f"orders.{uuid.uuid4().hex}"
    yield new
    channel.queue_delete(new)


@pytest.mark.parametrize("kind", ["quorum", "stream", "classic"])
def test_a_created_queue_receives_what_follows(
    simulator: Simulator, channel: BlockingChannel, name: str, kind: str, tmp_path: Path
) -> None:
    """The queue is durable, of that kind and bound; a tracker on it sees the next order."""
    journal = tmp_path / "journal.sqlite"
    tracker = OrderTracker(simulator.admin_amqp_url, name, journal=journal)
    assert tracker.create_queue(kind=kind) == name  # type: ignore[arg-type]
    assert tracker.create_queue(name, kind=kind) == name  # type: ignore[arg-type]
    with tracker:
        simulator.order(OrderPlan(n_files=1), correlation_id=kind)
        tracker.wait(kind, until="part", timeout_s=60)
        assert tracker.health.state == "CONSUMING"
    limits = [{}, {"x-delivery-limit": -1}] if kind == "quorum" else [{}]
    refused = 0
    for limit in limits:
        again = channel.connection.channel()
        try:
            again.queue_declare(name, durable=True, arguments={"x-queue-type": kind, **limit})
        except pika.exceptions.ChannelClosedByBroker:
            refused += 1
    assert refused == len(limits) - 1


def test_without_the_right_the_error_names_what_to_ask_for(simulator: Simulator) -> None:
    """An account that may only read gets BrokerAccessError with the exchange in its text."""
    tracker = OrderTracker(simulator.amqp_url, simulator.queue)
    with pytest.raises(BrokerAccessError, match="administrator") as caught:
        tracker.create_queue("orders.mine")
    assert RESPONSE_EXCHANGE in str(caught.value)


def test_a_queue_of_another_kind_stays_as_it_is(simulator: Simulator) -> None:
    """A queue that exists with other arguments is an error, and keeps its messages."""
    tracker = OrderTracker(simulator.admin_amqp_url, simulator.queue)
    with pytest.raises(BrokerError, match="exists with other arguments"):
        tracker.create_queue()


@pytest.fixture
def environment(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """Return a simulator whose broker is that of the settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGARDS_AMQP", simulator.admin_amqp_url)
    monkeypatch.setenv("REGARDS_QUEUE", "orders.other")
    return simulator


@pytest.mark.usefixtures("environment")
def test_the_command_line_creates_a_queue(
    name: str,
    channel: BlockingChannel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``regards-nb queue create`` uses the queue of the settings, or the name that is given."""
    assert cli.main(["queue", "create", name]) == 0
    assert name in capsys.readouterr().out
    assert channel.queue_declare(name, passive=True).method.message_count == 0
