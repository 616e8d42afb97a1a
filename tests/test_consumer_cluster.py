"""A quorum queue on three real RabbitMQ nodes: a link breaks, the leader dies, then the majority.

The nodes take most of the time, so one test tells the whole story.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pika
import pytest
from cluster import three_nodes
from conftest import until

from regards_nb import OrderTracker
from regards_nb.consumer import Connection, HealthState
from regards_nb.errors import BrokerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

QUEUE = "orders.of.three"


class Publisher(threading.Thread):
    """Publishes numbered messages until told to stop; knows which of them RabbitMQ has taken."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__()
        self._urls = itertools.cycle(urls)
        self._numbers = itertools.count()
        self.taken: set[int] = set()
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set():
            # a node is down, or there is no leader at the moment
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                self._publish(pika.URLParameters(next(self._urls)))
            # a node that was killed refuses at once
            self.enough.wait(0.1)

    def _publish(self, parameters: pika.URLParameters) -> None:
        properties = pika.BasicProperties(delivery_mode=2, timestamp=1681461977)
        with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while not self.enough.is_set():
                number = next(self._numbers)
                body = {"status": "SUBORDER_DONE", "orderId": 1, "subOrderId": number}
                channel.basic_publish("", QUEUE, json.dumps(body).encode(), properties)
                self.taken.add(number)


def make_queue(url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        arguments = {"x-queue-type": "quorum"}
        connection.channel().queue_declare(QUEUE, durable=True, arguments=arguments)


def numbers(tracker: OrderTracker) -> list[int]:
    """Return the numbers of the messages in the frame."""
    return [int(number) for number in tracker.events["sub_order_id"]]


@pytest.mark.slow
# with such a short period a slow machine has no answer in time
@pytest.mark.filterwarnings("ignore:RabbitMQ does not answer:UserWarning")
def test_a_cluster_loses_no_event_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link breaks, the leader is killed; then health and start() tell of the lost majority."""
    monkeypatch.setattr(Connection, "depth_period_s", 0.1)
    monkeypatch.setattr(Connection, "consume_timeout_s", 5.0)
    with three_nodes() as cluster:
        make_queue(cluster.urls[0])
        tracker = OrderTracker(cluster.urls, QUEUE, journal=tmp_path / "journal.sqlite").start()
        publisher = Publisher(cluster.urls)
        publisher.start()
        until(lambda: len(publisher.taken) > 200)
        cluster.break_links(cluster.leader(QUEUE))
        at_break = len(publisher.taken)
        until(lambda: len(publisher.taken) > at_break + 200)
        killed = cluster.leader(QUEUE)
        killed.kill()
        at_kill = len(publisher.taken)
        until(lambda: len(publisher.taken) > at_kill + 200)
        publisher.enough.set()
        publisher.join()
        until(lambda: publisher.taken <= set(numbers(tracker)))
        assert [n for n, count in Counter(numbers(tracker)).items() if count > 1] == []
        until(lambda: tracker.health.state is HealthState.CONSUMING)
        address = tracker.health.address or ""
        for node in cluster.nodes:
            if node is not killed and f":{node.amqp_port}/" not in address:
                node.kill()
        until(lambda: tracker.health.state is HealthState.RECONNECTING)
        until(lambda: "majority" in (tracker.health.reason or ""))
        second = OrderTracker(cluster.urls, QUEUE, journal=tmp_path / "second.sqlite")
        with pytest.raises(BrokerUnreachableError, match="did not confirm the consumer") as caught:
            second.start(timeout_s=30)
        assert str(caught.value).count("no broker answers") == 2
        tracker.stop()
