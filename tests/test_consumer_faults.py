"""The consumer on a real RabbitMQ behind a proxy that fails: no event lost, none twice."""

from __future__ import annotations

import signal
import sqlite3
import warnings
from contextlib import closing
from typing import TYPE_CHECKING

import pika
import pytest
from children import Child
from conftest import Admin, until
from erlang import evaluate
from tcp_proxy import TcpProxy
from test_consumer import LIMIT_S, body, consuming, nothing, numbers, publish, rows

from regards_nb import OrderTracker, errors
from regards_nb.consumer import Connection, Consumer, HealthState, check_queue, parameters_from
from regards_nb.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from regards_nb.simulator import PrivateBroker


@pytest.fixture
def quorum(broker: PrivateBroker) -> Iterator[Admin]:
    """Return an administrator with a quorum queue that drops a message at its sixth delivery.

    RabbitMQ 4 does so at the 21st without any argument.
    """
    someone = Admin(broker, **{"x-queue-type": "quorum", "x-delivery-limit": 5})
    yield someone
    someone.delete_queue()
    someone.close()


def test_headers_in_another_order_are_the_same_headers(
    broker: PrivateBroker, quorum: Admin, journal: Journal
) -> None:
    """A quorum queue of RabbitMQ 3.10 sorts the headers by name when it delivers again."""
    headers = {"regards.tenant": "t", "regards.converter": "GSON", "regards.type": "x"}
    for number in range(20):
        quorum.publish_raw(body(number), pika.BasicProperties(headers=headers))
    with TcpProxy(("127.0.0.1", broker.amqp_port)) as proxy:
        consumer = Consumer(parameters_from(proxy.url(quorum.url)), quorum.queue, journal, nothing)
        consumer.start(LIMIT_S)
        until(lambda: journal.last_id() == 20)
        proxy.cut()
        until(lambda: proxy.connections > 1)
        publish(quorum, 20, 21)
        until(lambda: 20 in numbers(journal))
        until(lambda: quorum.messages_left() == 0)
        consumer.stop(LIMIT_S)
    assert sorted(n for n in numbers(journal) if n is not None) == list(range(21))


def test_a_proxy_that_cuts_every_connection_loses_nothing(
    broker: PrivateBroker, quorum: Admin, journal: Journal
) -> None:
    """Each connection ends after 20 kB: few messages are taken at a time, and none is dropped."""
    publish(quorum, 0, 400)
    with TcpProxy(("127.0.0.1", broker.amqp_port), limit_bytes=20_000) as proxy:
        consumer = Consumer(parameters_from(proxy.url(quorum.url)), quorum.queue, journal, nothing)
        consumer.start(LIMIT_S)
        until(lambda: journal.last_id() >= 400)
        consumer.stop(LIMIT_S)
        assert proxy.connections > 5
    assert numbers(journal) == list(range(400))


def test_a_check_of_the_queue_moves_no_message(quorum: Admin, journal: Journal) -> None:
    """Checked more often than the delivery limit allows, the queue has all its messages."""
    publish(quorum, 0, 10)
    for _ in range(8):
        seen = check_queue(parameters_from(quorum.url), quorum.queue)
        assert (seen.reached, seen.messages, seen.error) == ("read", 10, None)
    with consuming(quorum, journal):
        until(lambda: journal.last_id() == 10)
    assert not any(row.delivery.redelivered for row in rows(journal))


def test_a_message_that_was_returned_often_is_reported(
    broker: PrivateBroker, journal: Journal
) -> None:
    """From ten returns on, health names the delivery limit at which RabbitMQ drops a message."""
    admin = Admin(broker, **{"x-queue-type": "quorum"})
    publish(admin, 0, 1)
    for _ in range(10):
        until(lambda: admin._channel.basic_get(admin.queue)[0])
        admin._channel.basic_recover(requeue=True)
    with consuming(admin, journal) as consumer:
        until(lambda: "delivery limit" in (consumer.health.reason or ""))
        assert consumer.health.state is HealthState.CONSUMING
    admin.delete_queue()
    admin.close()


def test_start_proves_that_the_journal_can_be_written(
    admin: Admin, journal: Journal, tmp_path: Path
) -> None:
    """A journal that refuses writes: start() says so, and no message is taken."""
    admin.publish(body(0))
    with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON sessions "
            "BEGIN SELECT RAISE(ABORT, 'refused for a test'); END"
        )
        consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
        with pytest.raises(errors.JournalError, match="refused for a test"):
            consumer.start(LIMIT_S)
        assert consumer.health.state is HealthState.FAILED
        consumer.stop(LIMIT_S)
        other.execute("DROP TRIGGER refuse")
    with consuming(admin, journal):
        until(lambda: journal.last_id() == 1)
    assert not rows(journal)[0].delivery.redelivered


# -- errors that name their cause --


def test_a_limit_on_connections_is_named(broker: PrivateBroker, journal: Journal) -> None:
    """RabbitMQ's code 530 says which limit; the virtual host is right."""
    access = broker.access()
    parameters = parameters_from(access.url)
    user = f'<<"{parameters.credentials.username}">>'
    limits = "rabbit_auth_backend_internal:{}_user_limits(" + user + ', <<"{}">>, <<"tests">>)'
    try:
        for limit in ("max-connections", "max-channels"):
            evaluate(broker, limits.format("set", f'{{\\"{limit}\\":0}}'))
            consumer = Consumer(parameters, access.queue, journal, nothing)
            with pytest.raises(errors.BrokerAccessError, match="refuses one more connection or ch"):
                consumer.start(LIMIT_S)
            evaluate(broker, limits.format("clear", limit))
    finally:
        evaluate(broker, limits.format("clear", "all"))


def test_a_queue_that_another_program_alone_may_read_is_named(
    broker: PrivateBroker, journal: Journal
) -> None:
    """Single active consumer: health says that messages come after the other has stopped."""
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    admin = Admin(broker, **arguments)
    tag = admin._channel.basic_consume(admin.queue, print)
    with consuming(admin, journal) as consumer:
        until(lambda: "single active consumer" in (consumer.health.reason or ""))
        admin._channel.basic_cancel(tag)
        admin.publish(body(0))
        until(lambda: journal.last_id() == 1)
        until(lambda: consumer.health.reason is None)
    admin.delete_queue()
    admin.close()


def test_a_consumer_that_ends_meanwhile_does_not_pass_for_the_active_one(
    admin: Admin, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ counts as many consumers then as before: the queue shows what kind it is."""
    tag = admin._channel.basic_consume(admin.queue, print)
    consume, look = Connection._consume_if_ready, Connection._on_queue
    looks: list[object] = []

    def consume_later(connection: Connection) -> None:
        if connection._consumers_before:
            admin._channel.basic_cancel(tag)
        consume(connection)

    def count(connection: Connection, answer: object) -> None:
        look(connection, answer)
        looks.append(connection._writer._report.health.reason)

    monkeypatch.setattr(Connection, "_consume_if_ready", consume_later)
    monkeypatch.setattr(Connection, "_on_queue", count)
    with consuming(admin, journal):
        until(lambda: len(looks) > 4)
    assert set(looks) == {None}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_views_and_start_tell_of_a_single_active_consumer(
    broker: PrivateBroker, tmp_path: Path, kind: str
) -> None:
    """RabbitMQ tells a reader of a classic queue only that there is another one."""
    admin = Admin(broker, **{"x-queue-type": kind, "x-single-active-consumer": True})
    admin._channel.basic_consume(admin.queue, print)
    tracker = OrderTracker(admin.url, admin.queue, journal=tmp_path / "journal.sqlite")
    with warnings.catch_warnings(action="ignore"), tracker:
        until(lambda: "single active consumer" in "".join(tracker.snapshot().background_errors))
    admin.delete_queue()
    admin.close()


def test_a_line_that_is_cut_again_and_again_is_named(
    broker: PrivateBroker, admin: Admin, journal: Journal
) -> None:
    """Three connections in a row ended soon: health names a proxy as the possible cause."""
    with TcpProxy(("127.0.0.1", broker.amqp_port)) as proxy:
        consumer = Consumer(parameters_from(proxy.url(admin.url)), admin.queue, journal, nothing)
        consumer.start(LIMIT_S)
        for _ in range(3):
            until(lambda: consumer.health.state is HealthState.CONSUMING)
            proxy.cut()
            until(lambda: consumer.health.state is HealthState.RECONNECTING)
        until(lambda: consumer.health.state is HealthState.CONSUMING)
        assert "proxy" in (consumer.health.reason or "")
        consumer.stop(LIMIT_S)


def test_a_password_crosses_no_network_without_tls() -> None:
    """amqp:// with a password is for this machine, unless the URL asks for more."""
    with pytest.raises(errors.SettingsError, match="unencrypted.*insecure=true") as caught:
        parameters_from("amqp://user:secret@broker.example/v")
    assert "secret" not in str(caught.value)
    url = "amqp://user:secret@broker.example/v?insecure=true&heartbeat=7"
    assert parameters_from(url).heartbeat == 7
    assert parameters_from("amqp://user:secret@127.0.0.1/v").host == "127.0.0.1"
    assert parameters_from("amqps://user:secret@broker.example/v").ssl_options


# -- several kernels --


SUSPENDED = """
import sys
from regards_nb import OrderTracker, errors
from regards_nb.consumer import Consumer, HealthState, check_queue, parameters_from
from regards_nb.journal import Journal
journal = Journal(sys.argv[3])
consumer = Consumer(parameters_from(sys.argv[1]), sys.argv[2], journal, lambda: None)
consumer.start(30)
print("consuming", flush=True)
sys.stdin.read()
consumer.stop(30)
"""


def test_a_suspended_kernel_writes_nothing_that_another_took_over(
    broker: PrivateBroker, admin: Admin, journal: Journal, tmp_path: Path
) -> None:
    """Two kernels, one queue, one journal; one is stopped behind a proxy for two heartbeats."""
    with TcpProxy(("127.0.0.1", broker.amqp_port)) as proxy:
        url = f"{proxy.url(admin.url)}?heartbeat=2"
        with (
            Child(SUSPENDED, url, admin.queue, tmp_path / "journal.sqlite") as process,
            consuming(admin, journal),
        ):
            process.stdout.readline()
            publish(admin, 0, 200)
            # a process that is stopped inside of a transaction keeps SQLite's write lock
            until(lambda: journal.last_id() >= 200)
            process.send_signal(signal.SIGSTOP)
            try:
                publish(admin, 200, 500)
                until(lambda: journal.last_id() >= 500)
                # RabbitMQ may have had nothing to take back: it was between two prefetch limits
                until(lambda: proxy.has_ended)
            finally:
                process.send_signal(signal.SIGCONT)
            until(lambda: proxy.connections > 1)
            process.output()
    assert sorted(n for n in numbers(journal) if n is not None) == list(range(500))


# -- the addresses of a cluster --


def test_the_next_address_is_used_when_one_fails(
    broker: PrivateBroker, admin: Admin, journal: Journal
) -> None:
    """Of two addresses one goes away: the other serves, and health names it."""
    target = ("127.0.0.1", broker.amqp_port)
    with TcpProxy(target) as kept:
        with TcpProxy(target) as lost:
            urls = [lost.url(admin.url), kept.url(admin.url)]
            consumer = Consumer(parameters_from(urls), admin.queue, journal, nothing)
            while f":{lost.port}/" not in (consumer.health.address or ""):
                consumer.stop(LIMIT_S)
                consumer.start(LIMIT_S)
            publish(admin, 0, 100)
            until(lambda: journal.last_id() > 0)
        until(lambda: f":{kept.port}/" in (consumer.health.address or ""))
        publish(admin, 100, 200)
        until(lambda: journal.last_id() == 200)
        consumer.stop(LIMIT_S)
    assert sorted(n for n in numbers(journal) if n is not None) == list(range(200))


def test_all_addresses_are_named_when_none_answers(journal: Journal) -> None:
    """The error has a line for each address, and the type of the most telling one."""
    urls = [f"amqp://u:p@127.0.0.1:{port}/v" for port in (1, 2, 3)]
    consumer = Consumer(parameters_from(urls), "q", journal, nothing)
    with pytest.raises(errors.BrokerUnreachableError, match="none of the 3 addresses") as caught:
        consumer.start(LIMIT_S)
    assert all(f"127.0.0.1:{port}/v" in str(caught.value) for port in (1, 2, 3))
