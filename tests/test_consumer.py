"""The consumer on a real RabbitMQ: what is delivered is journalled once, whatever dies."""

from __future__ import annotations

import gc
import json
import struct
import threading
import weakref
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pytest
from children import Child
from conftest import Admin, until
from erlang import evaluate
from pika.exceptions import ChannelClosedByBroker
from strategies import delivery
from tcp_proxy import TcpProxy

from regards_nb import errors
from regards_nb.consumer import (
    AckBatcher,
    Consumer,
    HealthState,
    broker_error,
    check_queue,
    describe,
    parameters_from,
)
from regards_nb.events import OrderEvent, decode
from regards_nb.journal import Journal, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.simulator import PrivateBroker

LIMIT_S = 30.0


def sizes_of_commits(count: int, distance_s: float) -> list[int]:
    """Return how many of *count* messages that come at a distance are in each commit."""
    now_s, received, sizes = 0.0, 0, list[int]()
    batcher = AckBatcher(
        lambda messages, **_: sizes.append(len(messages)), lambda _: None, clock=lambda: now_s
    )
    while received < count:
        now_s = max(now_s, received * distance_s)
        while received < count and received * distance_s <= now_s:
            received += 1
            batcher.add(received, delivery(b"{}"))
        batcher.flush()
        now_s += batcher.pause_s
    return sizes


def test_messages_that_come_often_are_committed_together() -> None:
    """A message after a silence is committed at once and alone, others about eight together.

    Nothing waits where they come faster than they can be committed one by one.
    """
    for distance_s in (0.1, 0.001, 0.0001):
        assert sizes_of_commits(50, distance_s) == [1] * 50
    for distance_s in (0.01, 0.007):
        sizes = sizes_of_commits(1000, distance_s)
        assert sizes[:2] == [1, 1]
        assert len(sizes) < 150
        assert max(sizes) < 12


def nothing() -> None:
    """Stand in for somebody who does not care for changes."""


@contextmanager
def consuming(admin: Admin, journal: Journal) -> Iterator[Consumer]:
    """Run a consumer of the administrator's queue."""
    consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
    consumer.start(LIMIT_S)
    try:
        yield consumer
    finally:
        consumer.stop(LIMIT_S)


@pytest.fixture
def consumer(admin: Admin, journal: Journal) -> Iterator[Consumer]:
    consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
    yield consumer
    consumer.stop(LIMIT_S)


def body(number: int) -> dict[str, object]:
    return {"status": "SUBORDER_DONE", "orderId": 1, "correlationId": "c", "subOrderId": number}


def rows(journal: Journal) -> list[Row]:
    return [row for batch in journal.read() for row in batch.rows()]


def numbers(journal: Journal) -> list[int | None]:
    events = [decode(row.delivery) for row in rows(journal)]
    assert all(isinstance(event, OrderEvent) for event in events)
    return [event.sub_order_id for event in events if isinstance(event, OrderEvent)]


def publish(admin: Admin, first: int, last: int) -> None:
    admin.publish_all(map(body, range(first, last)))


def test_messages_are_journalled_in_order_and_then_acknowledged(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """All messages of a queue end in the journal, with their properties, and leave the queue."""
    admin.publish(body(0), timestamp=1681461977, correlation_id="prop")
    publish(admin, 1, 3000)
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() == 3000)
    assert numbers(journal) == list(range(3000))
    first = rows(journal)[0].delivery
    assert first.timestamp_s == 1681461977
    assert (first.correlation_id, first.tenant, first.app_id) == ("prop", "tenant", "REGARDS")
    assert '"priority": 1' in first.properties
    assert not first.redelivered
    consumer.stop(LIMIT_S)
    assert admin.messages_left() == 0
    assert consumer.health.state is HealthState.STOPPED


def test_start_returns_when_consuming_and_health_says_so(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Health goes from STOPPED to CONSUMING, knows the depth, and the last event."""
    publish(admin, 0, 5)
    assert consumer.health.state is HealthState.STOPPED
    consumer.start(LIMIT_S)
    assert consumer.health.state is HealthState.CONSUMING
    assert consumer.health.queue_depth == 5
    until(lambda: journal.last_id() == 5)
    until(lambda: consumer.health.last_event)
    consumer.start(LIMIT_S)  # a second start changes nothing
    assert consumer.health.state is HealthState.CONSUMING


def test_a_stopped_consumer_can_be_started_again(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Stop and start: nothing is lost between, nothing comes twice."""
    consumer.start(LIMIT_S)
    publish(admin, 0, 10)
    until(lambda: journal.last_id() == 10)
    consumer.stop(LIMIT_S)
    publish(admin, 10, 20)
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() == 20)
    assert numbers(journal) == list(range(20))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (("admin:", "nobody:"), errors.BrokerLoginError, "refused the user name or the password"),
        (("regards.multi", "other"), errors.BrokerAccessError, "virtual host"),
    ],
)
def test_a_wrong_url_is_refused_at_once(
    admin: Admin, journal: Journal, change: tuple[str, str], error: type[Exception], says: str
) -> None:
    """start() raises an error of its own kind that says what to do, and no password."""
    url = admin.url.replace(*change)
    consumer = Consumer(parameters_from(url), admin.queue, journal, nothing)
    with pytest.raises(error, match=says) as caught:
        consumer.start(LIMIT_S)
    assert url.split(":")[2].split("@")[0] not in str(caught.value)
    assert consumer.health.state is HealthState.FAILED
    assert says in (consumer.health.reason or "")


def test_a_missing_queue_is_named(admin: Admin, journal: Journal) -> None:
    """The error names the queue and who makes it."""
    consumer = Consumer(parameters_from(admin.url), "no.such.queue", journal, nothing)
    with pytest.raises(errors.QueueNotFoundError, match=r"no\.such\.queue.*administrator"):
        consumer.start(LIMIT_S)


def test_a_queue_on_a_node_that_is_down_is_not_said_to_be_missing() -> None:
    """RabbitMQ's 404 for a queue that is there is passed on: the name is right."""
    text = "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost 'v' is down"
    error = broker_error(ChannelClosedByBroker(404, text), "amqp://u@host/v", "q")
    assert not isinstance(error, errors.QueueNotFoundError)
    assert text in str(error)


def test_no_right_to_read_is_told_apart(
    broker: PrivateBroker, admin: Admin, journal: Journal
) -> None:
    """A reader of another queue is told to ask for the read permission on this one."""
    url = broker.access().url
    consumer = Consumer(parameters_from(url), admin.queue, journal, nothing)
    with pytest.raises(errors.BrokerAccessError, match="read permission"):
        consumer.start(LIMIT_S)


def test_an_exclusive_reader_is_told_apart(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Where somebody holds the queue exclusively, the error says that."""
    admin._channel.basic_consume(admin.queue, print, exclusive=True)
    with pytest.raises(errors.QueueInUseError, match="exclusively"):
        consumer.start(LIMIT_S)


def test_nobody_there_is_an_error_at_once(journal: Journal) -> None:
    """A closed port is said to be one."""
    consumer = Consumer(parameters_from("amqp://u:p@127.0.0.1:1/v"), "q", journal, nothing)
    with pytest.raises(errors.BrokerUnreachableError, match="no broker answers at amqp://u@127"):
        consumer.start(LIMIT_S)


def test_a_server_of_another_protocol_is_said_to_be_one(journal: Journal) -> None:
    """It answers HTTP and closes the connection."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"amqp://u:p@127.0.0.1:{server.server_address[1]}/v"
        consumer = Consumer(parameters_from(url), "q", journal, nothing)
        with pytest.raises(errors.BrokerUnreachableError, match="not answer as RabbitMQ.*port"):
            consumer.start(LIMIT_S)
        server.shutdown()


def test_something_that_does_not_speak_amqp_is_an_error(journal: Journal) -> None:
    """A server that says nothing runs into the time limit of start(); the journal is ready then."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"amqp://u:p@127.0.0.1:{server.getsockname()[1]}/v"
        parameters = parameters_from(url)
        parameters.stack_timeout = 0.2
        assert "does not answer as RabbitMQ" in str(check_queue(parameters, "q").error)
        consumer = Consumer(parameters_from(url), "q", journal, nothing)
        with pytest.raises(errors.BrokerUnreachableError, match=r"did not answer within 0\.5 s"):
            consumer.start(0.5)
        consumer.stop(LIMIT_S)
        assert journal.queues() == {"q"}


@pytest.mark.parametrize("url", ["http://x", "amqp://u:secret@h:port/v", "", "amqp://u:secret@[/"])
def test_what_is_no_amqp_url_is_refused_without_its_password(url: str) -> None:
    """The error shows how a URL looks and does not repeat the one that was given."""
    with pytest.raises(errors.SettingsError, match="amqps://user:password@") as caught:
        parameters_from(url)
    assert "secret" not in str(caught.value)


def test_the_description_of_a_broker_has_no_password() -> None:
    """Host, port, virtual host and user, nothing else."""
    text = describe(parameters_from("amqps://user:secret@host:5671/v"))
    assert text == "amqps://user@host:5671/v"


def test_parameters_of_another_type_are_refused() -> None:
    """Neither a URL nor pika's parameters."""
    with pytest.raises(errors.SettingsError, match="not int"):
        parameters_from(5)


# -- faults while messages flow --


def fault_close_connections(broker: PrivateBroker) -> None:
    evaluate(broker, 'rabbit_networking:close_all_connections("maintenance")')


def fault_stop_app(broker: PrivateBroker) -> None:
    evaluate(broker, "rabbit:stop()")
    evaluate(broker, "rabbit:start()")


def fault_kill_node(broker: PrivateBroker) -> None:
    broker.kill()
    broker.restart()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault_close_connections, fault_stop_app, fault_kill_node])
def test_nothing_is_lost_or_twice_when_the_broker_fails(
    broker: PrivateBroker,
    admin: Admin,
    journal: Journal,
    consumer: Consumer,
    fault: Callable[[PrivateBroker], None],
) -> None:
    """Break the broker in the middle of a stream: each message is in the journal once."""
    publish(admin, 0, 3000)
    admin.close()
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() > 300)
    fault(broker)
    admin.connect()
    publish(admin, 3000, 3100)
    until(lambda: journal.last_id() >= 3100)
    until(lambda: consumer.health.state is HealthState.CONSUMING)
    until(lambda: admin.messages_left() == 0)
    consumer.stop(LIMIT_S)
    assert numbers(journal) == list(range(3100))


def test_a_deleted_queue_is_read_again_once_it_is_made_again(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Health says what is wrong meanwhile; no restart is needed."""
    consumer.start(LIMIT_S)
    admin.delete_queue()
    until(lambda: consumer.health.state is HealthState.RECONNECTING)
    assert "administrator" in (consumer.health.reason or "")
    admin.make_queue()
    until(lambda: consumer.health.state is HealthState.CONSUMING)
    publish(admin, 0, 3)
    until(lambda: journal.last_id() == 3)


def test_stop_keeps_its_limit_with_a_frozen_broker(
    broker: PrivateBroker, admin: Admin, consumer: Consumer
) -> None:
    """A broker that does not answer does not hold up stop(): the socket is closed."""
    consumer.start(LIMIT_S)
    broker.freeze()
    try:
        consumer.stop(2.0)
        assert not consumer.is_running
    finally:
        broker.thaw()


def test_a_forgotten_consumer_ends_its_thread(admin: Admin, journal: Journal) -> None:
    """Nobody holds it any more: it is collected and its connection closes."""
    consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
    consumer.start(LIMIT_S)
    (thread,) = [t for t in threading.enumerate() if t.name == "regards-nb-consumer"]
    gone = weakref.ref(consumer)
    del consumer
    gc.collect()
    assert gone() is None
    thread.join(LIMIT_S)
    assert not thread.is_alive()


KILLED_CONSUMER = """
import sys
from regards_nb.consumer import Consumer, parameters_from
from regards_nb.journal import Journal
journal = Journal(sys.argv[3])
consumer = Consumer(parameters_from(sys.argv[1]), sys.argv[2], journal, lambda: None)
consumer.start(30)
print("consuming", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_nothing_is_lost_or_twice_when_the_process_is_killed(
    admin: Admin, journal: Journal, tmp_path: Path, consumer: Consumer
) -> None:
    """kill -9 at whatever moment, five times, then start again: each message once."""
    publish(admin, 0, 6000)
    path = str(tmp_path / "journal.sqlite")
    for goal in (1, 700, 1500, 2900, 4500):
        with Child(KILLED_CONSUMER, admin.url, admin.queue, path) as process:
            until(lambda goal=goal: journal.last_id() >= goal)
            process.kill()
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() >= 6000)
    until(lambda: admin.messages_left() == 0)
    consumer.stop(LIMIT_S)
    assert numbers(journal) == list(range(6000))


def test_what_one_kernel_passes_on_to_another_is_known(
    admin: Admin, journal: Journal, tmp_path: Path
) -> None:
    """A kernel is killed; another one fails before it writes its part, which comes to a third."""
    publish(admin, 0, 6)
    with Child(KILLED_CONSUMER, admin.url, admin.queue, str(tmp_path / "journal.sqlite")) as killed:
        until(lambda: journal.last_id() == 6)
        killed.kill()
    until(lambda: admin.messages_left() == 6)
    failing = admin._connection.channel()
    for _ in range(3):
        failing.basic_get(admin.queue)
    with consuming(admin, journal):
        until(lambda: admin.messages_left() == 0)
        failing.close()
        publish(admin, 6, 7)
        until(lambda: 6 in numbers(journal))
    assert numbers(journal) == list(range(7))


def test_legal_twins_stay_two(admin: Admin, journal: Journal, consumer: Consumer) -> None:
    """Two byte-identical messages are two rows, also after a reconnect."""
    twin = {"status": "SUBORDER_DONE", "orderId": 1, "correlationId": "c"}
    admin.publish(twin)
    admin.publish(twin)
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() == 2)
    consumer.stop(LIMIT_S)
    consumer.start(LIMIT_S)
    admin.publish(twin)
    until(lambda: journal.last_id() == 3)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_stop_returns_no_message(broker: PrivateBroker, journal: Journal, kind: str) -> None:
    """Stopped while many messages wait: what is received is kept, the rest is as it was."""
    check_that_stop_returns_nothing(broker, journal, kind)


def check_that_stop_returns_nothing(broker: PrivateBroker, journal: Journal, kind: str) -> None:
    admin = Admin(broker, **{"x-queue-type": kind})
    publish(admin, 0, 5000)
    with consuming(admin, journal):
        until(lambda: journal.last_id() > 0)
    received = journal.last_id()
    assert 0 < received < 5000
    assert admin.messages_left() == 5000 - received
    method, _, _ = admin._channel.basic_get(admin.queue)
    assert not method.redelivered
    admin.delete_queue()
    admin.close()


def test_a_message_that_somebody_looked_at_is_not_taken_for_an_acknowledged_one(
    broker: PrivateBroker, journal: Journal
) -> None:
    """The second of two equal messages comes late, and is put back with the flag: it is new."""
    check_that_a_late_twin_is_new(broker, journal)


def check_that_a_late_twin_is_new(broker: PrivateBroker, journal: Journal) -> None:
    admin = Admin(broker, **{"x-queue-type": "quorum"})
    with consuming(admin, journal):
        publish(admin, 0, 2)
        until(lambda: journal.last_id() == 2)
    publish(admin, 0, 2)
    channel = admin._connection.channel()
    assert channel.basic_get(admin.queue)[0]
    assert channel.basic_get(admin.queue)[0]
    channel.close()
    with consuming(admin, journal):
        until(lambda: admin.messages_left() == 0)
    assert numbers(journal) == [0, 1, 0, 1]
    admin.delete_queue()
    admin.close()


def test_hostile_properties_do_not_stop_the_good_messages(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Values of any AMQP type where a text is expected count as missing, and are kept as JSON."""
    admin.publish(body(0), tenant={"nested": [1, {"deep": None}]})
    admin.publish(body(1), tenant=b"\xff\xfe", timestamp=2**63, message_id="x" * 250)
    admin.publish(body(2), tenant=["list"], timestamp=0)
    admin.publish(body(3))
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() == 4)
    tenants = [row.delivery.tenant for row in rows(journal)]
    assert tenants == [None, None, None, "tenant"]
    assert numbers(journal) == [0, 1, 2, 3]
    assert "nested" in rows(journal)[0].delivery.properties
    assert [row.delivery.timestamp_s for row in rows(journal)] == [
        1681461977,
        None,
        None,
        1681461977,
    ]


# -- kinds of queues --


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-queue-type": "classic"},
        {"x-queue-type": "classic", "x-max-priority": 255},
        {"x-queue-type": "quorum"},
        {"x-queue-type": "quorum", "x-delivery-limit": 2},
        {"x-queue-type": "stream"},
    ],
    ids=["classic", "priority", "quorum", "quorum with limit", "stream"],
)
def test_every_kind_of_queue_gives_each_message_once(
    broker: PrivateBroker, journal: Journal, arguments: dict[str, object]
) -> None:
    """Without being told the kind: from the first message on, and on after each interruption."""
    admin = Admin(broker, **arguments)
    publish(admin, 0, 500)
    with TcpProxy(("127.0.0.1", broker.amqp_port)) as proxy:
        consumer = Consumer(parameters_from(proxy.url(admin.url)), admin.queue, journal, nothing)
        for goal in (500, 600, 700):
            consumer.start(LIMIT_S)
            until(lambda goal=goal: journal.last_id() == goal)
            connections = proxy.connections
            proxy.cut()
            until(lambda connections=connections: proxy.connections > connections)
            until(lambda: consumer.health.state is HealthState.CONSUMING)
            publish(admin, goal, goal + 100)
            consumer.stop(LIMIT_S)
        consumer.start(LIMIT_S)
        until(lambda: journal.last_id() == 800)
        consumer.stop(LIMIT_S)
    assert sorted(n for n in numbers(journal) if n is not None) == list(range(800))
    admin.delete_queue()
    admin.close()


def test_two_kernels_share_a_stream_and_a_journal(broker: PrivateBroker, journal: Journal) -> None:
    """Each reads the whole stream; the journal has each message once."""
    admin = Admin(broker, **{"x-queue-type": "stream"})
    consumers = [
        Consumer(parameters_from(admin.url), admin.queue, journal, nothing) for _ in range(2)
    ]
    for consumer in consumers:
        consumer.start(LIMIT_S)
    publish(admin, 0, 300)
    until(lambda: journal.last_id() == 300)
    for consumer in consumers:
        consumer.stop(LIMIT_S)
    assert numbers(journal) == list(range(300))
    admin.delete_queue()
    admin.close()


# -- hostile messages --


class Unreadable(pika.BasicProperties):
    """Properties with one header, spelled as bytes: what pika itself would never send."""

    def __init__(self, value: bytes) -> None:
        super().__init__()
        self._value = value

    def encode(self) -> list[bytes]:
        """Return flags and table as they go over the wire."""
        entry = b"\x01h" + self._value
        return [struct.pack(">HI", pika.BasicProperties.FLAG_HEADERS, len(entry)), entry]


def test_properties_that_pika_cannot_read_stop_nothing(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """The message is journalled without its properties, once, and the others as ever."""
    consumer.start(LIMIT_S)
    admin.publish(body(0))
    until(lambda: journal.last_id() == 1)
    raw = json.dumps(body(1)).encode()
    beyond_time = Unreadable(b"T" + b"\xff" * 8)
    admin._channel.basic_publish("", admin.queue, raw, beyond_time)
    admin.publish(body(2))
    until(lambda: journal.last_id() == 3)
    consumer.stop(LIMIT_S)
    # A message without a priority comes after the others of the queue.
    tenants = [row.delivery.tenant for row in rows(journal)]
    assert sorted(zip(numbers(journal), tenants, strict=True)) == [
        (0, "tenant"),
        (1, None),
        (2, "tenant"),
    ]
    assert admin.messages_left() == 0


def test_headers_of_every_type_are_taken_as_they_are(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Nested tables, lists, decimals, times, bytes, numbers of any size, names of any kind."""
    everything = {
        "text": "é",
        "bytes": b"\x00\xff",
        "bool": True,
        "int": -(2**31),
        "long": 2**62,
        "decimal": Decimal("1.23"),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "nothing": None,
        "list": [1, ["deep", {"deeper": [None]}]],
        "table": {"a": {"b": {"c": {}}}},
        "x" * 120: "long name",
    }
    admin._channel.basic_publish(
        "", admin.queue, json.dumps(body(0)).encode(), pika.BasicProperties(headers=everything)
    )
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() == 1)
    kept = json.loads(rows(journal)[0].delivery.properties)["headers"]
    assert kept["text"] == "é"
    assert kept["list"] == [1, ["deep", {"deeper": [None]}]]
    assert set(kept) == {name for name in everything if not name.startswith("x-")}


def test_a_flood_of_poison_does_not_hide_the_good_messages(
    admin: Admin, journal: Journal, consumer: Consumer
) -> None:
    """Messages nobody can understand are journalled like the others, each once."""
    poison = b"\xff poison"
    admin.publish_all(each for n in range(300) for each in [*[poison] * 9, body(n)])
    consumer.start(LIMIT_S)
    until(lambda: journal.last_id() == 3000)
    consumer.stop(LIMIT_S)
    decoded = [decode(row.delivery) for row in rows(journal)]
    good = [event.sub_order_id for event in decoded if isinstance(event, OrderEvent)]
    assert good == list(range(300))
    assert admin.messages_left() == 0
