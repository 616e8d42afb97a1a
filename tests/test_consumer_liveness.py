"""A connection that stays open while RabbitMQ answers nothing on it, on a real RabbitMQ."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from conftest import Admin, until
from erlang import evaluate
from tcp_proxy import TcpProxy
from test_consumer import LIMIT_S, nothing, numbers, publish

from regards_nb.consumer import AckBatcher, Connection, Consumer, HealthState, parameters_from
from regards_nb.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.simulator import PrivateBroker


@pytest.fixture
def quorum(broker: PrivateBroker) -> Iterator[Admin]:
    """Return an administrator with a quorum queue."""
    admin = Admin(broker, **{"x-queue-type": "quorum"})
    yield admin
    admin.delete_queue()
    admin.close()


def test_a_channel_that_answers_no_more_is_replaced(
    broker: PrivateBroker,
    quorum: Admin,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection and its heartbeats go on; health says what is wrong, and messages come."""
    monkeypatch.setattr(Connection, "depth_period_s", 0.3)
    consumer = Consumer(parameters_from(quorum.url), quorum.queue, journal, nothing)
    consumer.start(LIMIT_S)
    publish(quorum, 0, 20)
    until(lambda: journal.last_id() == 20)
    # as a channel does that waits for the leader of its queue
    channels = (
        "[P || P <- rabbit_channel:list(), [{consumer_count, N}] <- "
        "[catch rabbit_channel:info(P, [consumer_count])], N > 0]"
    )
    evaluate(broker, f"[sys:suspend(P) || P <- {channels}]")
    until(lambda: "another connection is made" in (consumer.health.reason or ""))
    assert consumer.health.state is HealthState.CONSUMING
    until(lambda: "keeps the connection open" in (consumer.health.reason or ""))
    publish(quorum, 20, 40)
    until(lambda: journal.last_id() == 40)
    consumer.stop(LIMIT_S)
    assert numbers(journal) == list(range(40))


def while_the_limit_grows(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call *act* once, after the small consumer has ended and before a larger one begins."""
    acknowledge_all = AckBatcher.acknowledge_all

    def act_and_acknowledge(batcher: AckBatcher) -> None:
        monkeypatch.undo()
        act()
        acknowledge_all(batcher)

    monkeypatch.setattr(AckBatcher, "acknowledge_all", act_and_acknowledge)


def test_a_connection_that_is_lost_while_the_limit_grows_is_a_lost_connection(
    broker: PrivateBroker,
    quorum: Admin,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The consumer of 50 messages has ended, that of 400 has not begun: no unexpected error."""
    publish(quorum, 0, 200)
    with TcpProxy(("127.0.0.1", broker.amqp_port)) as proxy:
        while_the_limit_grows(monkeypatch, proxy.cut)
        url = proxy.url(quorum.url)
        consumer = Consumer(parameters_from(url), quorum.queue, journal, nothing)
        consumer.start(LIMIT_S)
        until(lambda: journal.last_id() == 200)
        consumer.stop(LIMIT_S)
    assert numbers(journal) == list(range(200))
    assert "was lost" in caplog.text
    assert "unexpected" not in caplog.text


def test_a_queue_that_is_deleted_while_the_limit_grows_is_named(
    quorum: Admin,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """RabbitMQ refuses the larger consumer: no other one is tried, and no step is skipped."""
    publish(quorum, 0, 200)
    while_the_limit_grows(monkeypatch, quorum.delete_queue)
    consumer = Consumer(parameters_from(quorum.url), quorum.queue, journal, nothing)
    consumer.start(LIMIT_S)
    until(lambda: "there is no queue" in (consumer.health.reason or ""))
    assert "was lost" not in caplog.text
    quorum.make_queue()
    publish(quorum, 200, 210)
    until(lambda: numbers(journal)[-10:] == list(range(200, 210)))
    consumer.stop(LIMIT_S)


def test_a_queue_that_is_not_ready_is_waited_for(
    broker: PrivateBroker, quorum: Admin, journal: Journal
) -> None:
    """A start just after that of the broker tries until its time limit; health says what it met."""
    name = f'rabbit_misc:r(<<"regards.multitenant.manager">>, queue, <<"{quorum.queue}">>)'
    queue = f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), Id = amqqueue:get_pid(Q)"
    publish(quorum, 0, 20)
    evaluate(broker, f"{queue}, ra:stop_server(quorum_queues, Id)")
    consumer = Consumer(parameters_from(quorum.url), quorum.queue, journal, nothing)
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(consumer.start, LIMIT_S)
        until(lambda: "541" in (consumer.health.reason or ""))
        restart = f"{queue}, ra:restart_server(quorum_queues, Id)"
        # A server that was just stopped may refuse to start once more.
        until(lambda: evaluate(broker, restart) == "ok")
        started.result(LIMIT_S)
    until(lambda: journal.last_id() == 20)
    consumer.stop(LIMIT_S)
