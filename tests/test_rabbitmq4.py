"""RabbitMQ 4 drops a message of a quorum queue at its 21st return: we return none so often.

The node is the one of Debian 13 that ``scripts/rabbitmq4.sh`` unpacks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pytest
from children import Child
from conftest import Admin, until
from erlang import evaluate
from tcp_proxy import TcpProxy
from test_consumer import (
    LIMIT_S,
    check_that_a_late_twin_is_new,
    check_that_stop_returns_nothing,
    consuming,
    nothing,
    numbers,
    publish,
)
from test_docs import DOCS, administer, fences

from regards_nb import OrderTracker
from regards_nb.consumer import Consumer, HealthState, check_queue, parameters_from
from regards_nb.journal import Journal
from regards_nb.simulator import OrderPlan, PrivateBroker, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regards_nb.consumer import QueueKind

UNPACKED = Path(__file__).parent.parent / "build/rabbitmq-4"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """Return a node of RabbitMQ 4: the unpacked one, or else the installed one."""
    # RabbitMQ's scripts do not work in a folder with a space, where the clone may lie
    link = tmp_path_factory.mktemp("node") / "rabbitmq-4"
    link.symlink_to(UNPACKED)
    with pytest.MonkeyPatch.context() as patch:
        for server in link.glob("usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server"):
            patch.setenv("REGARDS_NB_RABBITMQ_SERVER", str(server))
        node = PrivateBroker().start()
    with node:
        with pika.BlockingConnection(pika.URLParameters(node.admin_url)) as connection:
            version = connection._impl.server_properties["version"]
        assert version.startswith("4."), f"RabbitMQ {version}: sh scripts/rabbitmq4.sh unpacks 4"
        yield node


@contextlib.contextmanager
def quorum_queue(broker: PrivateBroker, **arguments: int) -> Iterator[Admin]:
    """Make a quorum queue with these arguments."""
    with contextlib.closing(Admin(broker, **{"x-queue-type": "quorum"}, **arguments)) as admin:
        yield admin
        admin.delete_queue()


@pytest.fixture
def quorum(broker: PrivateBroker) -> Iterator[Admin]:
    """Return an administrator with a quorum queue that has the limit of RabbitMQ 4."""
    with quorum_queue(broker) as admin:
        yield admin


def give_back(admin: Admin, times: int) -> None:
    """Take all messages of a queue and give them back by closing the channel."""
    for _ in range(times):
        channel = admin._connection.channel()
        while channel.basic_get(admin.queue)[0]:
            pass
        channel.close()


def consume_until_closed(admin: Admin) -> None:
    """Consume without acknowledging until RabbitMQ closes the channel."""
    channel = admin._connection.channel()
    channel.basic_consume(admin.queue, lambda *_: None)
    until(lambda: admin._connection.process_data_events() or not channel.is_open)


def test_a_queue_made_as_documented_keeps_what_is_given_back(
    broker: PrivateBroker, quorum: Admin, tmp_path: Path
) -> None:
    """Of five messages given back 25 times, five are left by policy or argument, else none."""
    (command,) = (text for text in fences(DOCS / "administrators.md", "text") if "-1" in text)
    with quorum_queue(broker) as by_policy, quorum_queue(broker, **{"x-delivery-limit": -1}) as own:
        administer(broker, command.replace(r"^orders\.", by_policy.queue), tmp_path)
        for admin, left in ((by_policy, 5), (own, 5), (quorum, 0)):
            publish(admin, 0, 5)
            give_back(admin, 25)
            with Journal(tmp_path / admin.queue) as journal, consuming(admin, journal):
                until(lambda journal=journal, left=left: journal.last_id() == left)
                until(lambda admin=admin: admin.messages_left() == 0)
                assert sorted(numbers(journal)) == list(range(left))


def test_health_warns_before_the_limit_and_a_check_uses_up_no_delivery(
    quorum: Admin, journal: Journal
) -> None:
    """Nine returns are not told, ten are; checks of the queue are none."""
    publish(quorum, 0, 3)
    give_back(quorum, 9)
    for _ in range(21):
        assert check_queue(parameters_from(quorum.url), quorum.queue).messages == 3
    returned = quorum._channel.basic_get(quorum.queue)
    assert returned[1].headers["x-delivery-count"] == 9
    quorum._channel.basic_recover(requeue=True)
    with consuming(quorum, journal) as consumer:
        until(lambda: "delivery limit" in (consumer.health.reason or ""))
        assert consumer.health.state is HealthState.CONSUMING
        until(lambda: journal.last_id() == 3)


def test_a_proxy_that_cuts_every_connection_loses_nothing(
    broker: PrivateBroker, journal: Journal
) -> None:
    """Each connection ends after 60 kB, more often than a message may be returned.

    A connection takes 100 messages before it uses the limit of 400. With that many on their way, a
    message is returned by five connections, or six, before it arrives.
    """
    most_returns = 7
    with quorum_queue(broker, **{"x-delivery-limit": most_returns}) as admin:
        publish(admin, 0, 1500)
        with TcpProxy(("127.0.0.1", broker.amqp_port), limit_bytes=60_000) as proxy:
            parameters = parameters_from(proxy.url(admin.url))
            consumer = Consumer(parameters, admin.queue, journal, nothing)
            consumer.start(LIMIT_S)
            until(lambda: journal.last_id() >= 1500)
            consumer.stop(LIMIT_S)
            assert proxy.connections > most_returns
    # RabbitMQ may notice the end of a connection after the next one has begun, and gives that one
    # the messages behind those that the first one had.
    assert sorted(numbers(journal)) == list(range(1500))


#: Kernels that are killed one after the other, each as soon as its first batch is journalled.
KILLED = """
import os, signal, sys
from regards_nb.consumer import Consumer, parameters_from
from regards_nb.journal import Journal

url, queue, path, times = sys.argv[1:]
for _ in range(int(times)):
    reader, writer = os.pipe()
    kernel = os.fork()
    if not kernel:
        def changed():
            if consumer.health.last_event:
                os.write(writer, b".")
        consumer = Consumer(parameters_from(url), queue, Journal(path), changed)
        consumer.start(30)
        signal.pause()
    os.read(reader, 1)
    os.kill(kernel, signal.SIGKILL)
    os.waitpid(kernel, 0)
"""


def test_kernels_that_are_killed_lose_nothing(
    broker: PrivateBroker, journal: Journal, path: Path
) -> None:
    """Killed -9 more often than a message may be returned, before they acknowledge."""
    with quorum_queue(broker, **{"x-delivery-limit": 4}) as admin:
        publish(admin, 0, 500)
        with Child(KILLED, admin.url, admin.queue, path, 8) as kernels:
            kernels.output()
        assert journal.last_id() < 500
        with consuming(admin, journal):
            until(lambda: journal.last_id() >= 500)
            until(lambda: admin.messages_left() == 0)
    assert sorted(numbers(journal)) == list(range(500))


def test_a_journal_that_cannot_be_written_for_long_loses_nothing(
    broker: PrivateBroker, path: Path, journal: Journal
) -> None:
    """Locked until another program, which consumes again after each timeout, has lost a message."""
    put = "[application:set_env(rabbit, K, V) || {{K, V}} <- "
    put += "[{{consumer_timeout, {}}}, {{channel_tick_interval, {}}}]]"
    evaluate(broker, put.format(500, 100))
    two_returns = {"x-delivery-limit": 2}
    with quorum_queue(broker, **two_returns) as other, quorum_queue(broker, **two_returns) as admin:
        publish(other, 0, 1)
        with consuming(admin, journal), contextlib.closing(sqlite3.connect(path)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            publish(admin, 0, 200)
            while other.messages_left():
                consume_until_closed(other)
            lock.rollback()
            until(lambda: journal.last_id() >= 200)
    evaluate(broker, put.format(1_800_000, 60_000))
    assert sorted(numbers(journal)) == list(range(200))


def test_the_node_refuses_what_rabbitmq_is_going_to_remove(admin: Admin) -> None:
    """A transient queue is refused: the other tests of this file show that nothing of ours is."""
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="deprecated"):
        admin._channel.queue_declare("orders.transient", durable=False)


@pytest.mark.simulator(with_broker=True)
@pytest.mark.parametrize("kind", ["quorum", "stream", "classic"])
def test_a_created_queue_of_each_kind_receives_an_order(
    simulator: Simulator, tmp_path: Path, kind: QueueKind
) -> None:
    """`create_queue` makes it; the tracker follows an order there, and the doctor may read it."""
    url, queue = simulator.admin_amqp_url, f"orders.{kind}"
    tracker = OrderTracker(url, queue, journal=tmp_path / "journal.sqlite")
    tracker.create_queue(kind=kind)
    with tracker:
        simulator.order(OrderPlan(n_files=1), correlation_id=kind)
        tracker.wait(kind, timeout_s=60)
        assert tracker.doctor()["right to read"].verdict == "ok"


def test_a_message_that_somebody_looked_at_is_new(broker: PrivateBroker, journal: Journal) -> None:
    """The second of two comes late, and somebody has looked at it."""
    check_that_a_late_twin_is_new(broker, journal)


def test_stop_returns_no_message(broker: PrivateBroker, journal: Journal) -> None:
    """A return counts towards the limit at which RabbitMQ 4 drops a message."""
    check_that_stop_returns_nothing(broker, journal, "quorum")
