"""The consumer on a real RabbitMQ behind a proxy that fails: no event lost, none twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pika
import pytest
from conftest import Admin, until
from tcp_proxy import TcpProxy
from test_consumer import LIMIT_S, body, nothing, numbers, publish

from regards_nb.consumer import Consumer, parameters_from
from regards_nb.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from regards_nb.simulator import PrivateBroker


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield journal


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
        until(lambda: journal.last_id() >= 400 or quorum.messages_left() == 0)
        until(lambda: quorum.messages_left() == 0)
        consumer.stop(LIMIT_S)
        assert proxy.connections > 5
    assert numbers(journal) == list(range(400))
