"""The AMQP side: what arrives in the queue is what REGARDS would send (protocol.md 1.6)."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
import pytest
from conftest import until

from regards_nb.events import RESPONSE_EXCHANGE, RESPONSE_TYPE
from regards_nb.simulator import QUEUE_ARGUMENTS, OrderPlan, PrivateBroker, Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pika.adapters.blocking_connection import BlockingChannel


pytestmark = pytest.mark.simulator(with_broker=True)


@pytest.fixture
def reader(simulator: Simulator) -> Iterator[BlockingChannel]:
    """Return a channel with the tracker's login."""
    connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
    yield connection.channel()
    connection.close()


def receive(reader: BlockingChannel, queue: str) -> tuple[pika.BasicProperties, bytes]:
    """Take the next message."""

    def get() -> Any:
        method, properties, body = reader.basic_get(queue, auto_ack=True)
        return method and (properties, body)

    taken: tuple[pika.BasicProperties, bytes] = until(get)
    return taken


def test_a_message_has_the_properties_of_a_real_one(
    simulator: Simulator, reader: BlockingChannel
) -> None:
    """Every property and header of protocol.md 1.6 is there; the body is Gson's."""
    simulator.order(OrderPlan(n_files=1), correlation_id="<mine>")
    properties, body = receive(reader, simulator.queue)
    assert body == b'{"status":"GRANTED","orderId":1,"correlationId":"\\u003cmine\\u003e"}'
    assert properties.headers == {
        "regards.tenant": "demo",
        "regards.converter": "GSON",
        "regards.type": RESPONSE_TYPE,
    }
    assert properties.content_type == "application/json"
    assert properties.content_encoding == "UTF-8"
    assert (properties.priority, properties.delivery_mode) == (1, 2)
    assert properties.correlation_id == "<mine>"
    assert properties.app_id == "rs-order"
    assert properties.timestamp == simulator.transcript[0].timestamp_s


def test_the_queue_gets_the_transcript_in_order(
    simulator: Simulator, reader: BlockingChannel
) -> None:
    """All that is published arrives, in the order of publishing."""
    simulator.wait_for(simulator.order(OrderPlan(n_files=4)), "DONE")
    arrived = [receive(reader, simulator.queue)[1] for _ in range(4)]
    assert arrived == [message.body for message in simulator.transcript]
    assert [json.loads(body)["status"] for body in arrived] == [
        "GRANTED",
        "SUBORDER_DONE",
        "SUBORDER_DONE",
        "DONE",
    ]


def test_the_tracker_may_only_read_its_queue(simulator: Simulator) -> None:
    """Declaring, publishing, purging, deleting and reading elsewhere are refused with 403."""
    attempts: tuple[Callable[[Any], Any], ...] = (
        lambda channel: channel.queue_declare("other"),
        lambda channel: channel.queue_purge("orders.other"),
        lambda channel: channel.queue_delete(simulator.queue),
        lambda channel: channel.queue_bind(simulator.queue, RESPONSE_EXCHANGE),
        lambda channel: channel.exchange_declare("other"),
    )
    for attempt in attempts:
        connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="403"):
            attempt(connection.channel())
        connection.close()


def test_the_queue_is_that_of_the_documentation(simulator: Simulator) -> None:
    """Classic, durable, with priorities and dead letters: a rejected message is kept."""
    simulator.publish_raw(b"rejected")
    simulator.flush()
    connection = pika.BlockingConnection(pika.URLParameters(simulator.admin_amqp_url))
    channel = connection.channel()
    channel.queue_declare(simulator.queue, durable=True, arguments=QUEUE_ARGUMENTS)
    channel.queue_purge("regards.DLQ")
    method, _, _ = channel.basic_get(simulator.queue)
    channel.basic_reject(method.delivery_tag, requeue=False)
    assert until(lambda: channel.basic_get("regards.DLQ", auto_ack=True)[2]) == b"rejected"
    connection.close()


def test_anything_can_be_published(simulator: Simulator, reader: BlockingChannel) -> None:
    """Raw bytes with any properties, of another tenant or without headers."""
    simulator.publish_raw(b"\xff", tenant="other", correlation_id="c", timestamp=None)
    properties, body = receive(reader, simulator.queue)
    assert body == b"\xff"
    assert properties.headers["regards.tenant"] == "other"
    assert (properties.correlation_id, properties.timestamp) == ("c", None)
    simulator.publish_raw(b"{}", headers={"x": 1})
    assert receive(reader, simulator.queue)[0].headers == {"x": 1}


def test_simulators_on_one_node_hear_each_other(
    simulator: Simulator, broker: PrivateBroker
) -> None:
    """The exchange is one for all tenants; queue and login are each simulator's own."""
    with Simulator(broker=broker, tenant="other", suborder_pause_s=0) as other:
        assert other.queue != simulator.queue
        assert other.amqp_url != simulator.amqp_url
        other.order(OrderPlan(n_files=1))
        other.flush()
    connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
    properties, _ = receive(connection.channel(), simulator.queue)
    connection.close()
    assert properties.headers["regards.tenant"] == "other"


def test_a_stopped_simulator_leaves_nothing_on_a_shared_node(broker: PrivateBroker) -> None:
    """Queue and threads are gone; the node goes on."""
    with Simulator(broker=broker) as simulator:
        queue = simulator.queue
        simulator.order(OrderPlan(n_files=1))
    assert not [each for each in threading.enumerate() if each.name.startswith("simulator")]
    connection = pika.BlockingConnection(pika.URLParameters(broker.admin_url))
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
        connection.channel().queue_declare(queue, passive=True)
    connection.close()


def test_what_is_published_during_an_outage_arrives_afterwards(broker: PrivateBroker) -> None:
    """A killed and restarted node gets every message; those before the kill are kept.

    Its port, users and queues are the same.
    """
    with Simulator(broker=broker, suborder_pause_s=0) as simulator:
        simulator.publish_raw(b"before")
        simulator.flush()
        connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
        broker.kill()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            connection.process_data_events(30)
        for number in range(20):
            simulator.publish_raw(b"%d" % number)
        with pytest.raises(TimeoutError):
            simulator.flush(timeout_s=0.01)
        broker.restart()
        simulator.flush()
        connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
        channel = connection.channel()
        arrived = [receive(channel, simulator.queue)[1] for _ in range(21)]
        connection.close()
    assert arrived == [b"before", *(b"%d" % number for number in range(20))]


def test_an_existing_broker_can_be_used(
    broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With REGARDS_NB_AMQP_URL no node is started, and that login does everything."""
    monkeypatch.setenv("REGARDS_NB_AMQP_URL", broker.admin_url)
    with Simulator(suborder_pause_s=0) as simulator:
        assert simulator.admin_amqp_url == simulator.amqp_url == broker.admin_url
        simulator.order(OrderPlan(n_files=1))
        connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
        assert receive(connection.channel(), simulator.queue)[1].startswith(b'{"status":"GRANTED"')
        connection.close()


def test_without_amqp_there_is_none() -> None:
    """A simulator without AMQP says so when it is asked for the queue."""
    with Simulator(amqp=None) as simulator, pytest.raises(RuntimeError, match="no AMQP"):
        _ = simulator.queue
