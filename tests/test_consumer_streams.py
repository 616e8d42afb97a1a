"""A stream queue on a real RabbitMQ: made anew, set back, shortened by its retention."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from conftest import Admin, until
from test_consumer import body, consuming, numbers, publish, rows

from regards_nb.consumer import HealthState, check_queue, parameters_from
from regards_nb.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from regards_nb.simulator import PrivateBroker


@contextmanager
def a_stream(broker: PrivateBroker, **arguments: object) -> Iterator[Admin]:
    """Return an administrator with a new stream."""
    admin = Admin(broker, **{"x-queue-type": "stream"}, **arguments)
    yield admin
    admin.delete_queue()
    admin.close()


@pytest.fixture
def stream(broker: PrivateBroker) -> Iterator[Admin]:
    with a_stream(broker) as admin:
        yield admin


def read(admin: Admin, journal: Journal, first: int, last: int) -> None:
    """Publish some messages and have them journalled."""
    goal = journal.last_id() + last - first
    publish(admin, first, last)
    with consuming(admin, journal):
        until(lambda: journal.last_id() == goal)


def publish_singly(admin: Admin, first: int, last: int) -> None:
    """Publish messages that fill many segments: retention removes whole segments."""
    for number in range(first, last):
        admin.publish(body(number))


def make_anew(admin: Admin) -> None:
    admin.delete_queue()
    admin.make_queue()


@pytest.mark.parametrize("count", [5, 60, 90], ids=["fewer", "equal", "more"])
def test_a_stream_that_was_made_anew_is_read_from_its_first_message(
    stream: Admin, journal: Journal, count: int
) -> None:
    """It has fewer, as many or more messages than the one before: each comes once."""
    read(stream, journal, 0, 60)
    make_anew(stream)
    publish(stream, 1000, 1000 + count)
    with consuming(stream, journal) as consumer:
        until(lambda: journal.last_id() >= 60 + count)
        until(lambda: "made anew" in (consumer.health.reason or ""))
        publish(stream, 1000 + count, 1100)
        until(lambda: journal.last_id() >= 160)
    assert numbers(journal) == [*range(60), *range(1000, 1100)]
    read(stream, journal, 1100, 1110)
    assert numbers(journal) == [*range(60), *range(1000, 1110)]


def test_a_stream_that_is_made_anew_while_it_is_read_loses_nothing(
    stream: Admin, journal: Journal
) -> None:
    """It is still empty when the consumer comes back."""
    with consuming(stream, journal) as consumer:
        publish(stream, 0, 60)
        until(lambda: journal.last_id() == 60)
        stream.delete_queue()
        until(lambda: consumer.health.state is HealthState.RECONNECTING)
        stream.make_queue()
        until(lambda: "does not continue" in (consumer.health.reason or ""))
        until(lambda: consumer.health.state is HealthState.CONSUMING)
        publish(stream, 1000, 1003)
        until(lambda: journal.last_id() >= 63)
    assert numbers(journal) == [*range(60), *range(1000, 1003)]


def test_a_stream_that_was_set_back_goes_on_where_it_differs(
    stream: Admin, journal: Journal
) -> None:
    """As after a backup of the broker: the first messages are there, later ones are others."""
    read(stream, journal, 0, 60)
    make_anew(stream)
    publish(stream, 0, 40)
    publish(stream, 1000, 1005)
    with consuming(stream, journal):
        until(lambda: journal.last_id() >= 65)
    read(stream, journal, 1005, 1010)
    assert numbers(journal) == [*range(60), *range(1000, 1010)]


def test_a_stream_that_is_the_same_is_read_on(stream: Admin, journal: Journal) -> None:
    """Started again: no event comes twice, none is said to have come, nothing is wrong."""
    read(stream, journal, 0, 60)
    for _ in range(2):
        with consuming(stream, journal) as consumer:
            assert consumer.health.queue_depth is None
            publish(stream, journal.last_id(), journal.last_id() + 1)
            until(lambda consumer=consumer: consumer.health.last_event)
            assert (consumer.health.reason, consumer.health.queue_depth) == (None, None)
    assert numbers(journal) == list(range(62))


def test_kernels_that_share_a_journal_read_a_new_stream_once(
    stream: Admin, journal: Journal, tmp_path: Path
) -> None:
    """Both find that it was made anew; one sets the offset back."""
    read(stream, journal, 0, 60)
    make_anew(stream)
    publish(stream, 1000, 1060)
    with (
        Journal(tmp_path / "journal.sqlite") as second,
        consuming(stream, journal),
        consuming(stream, second) as consumer,
    ):
        until(lambda: journal.last_id() >= 120)
        publish(stream, 1060, 1100)
        until(lambda: journal.last_id() >= 160)
        until(lambda: consumer.health.state is HealthState.CONSUMING)
    assert numbers(journal) == [*range(60), *range(1000, 1100)]


def test_messages_that_retention_removed_are_counted(
    broker: PrivateBroker, journal: Journal
) -> None:
    """Health tells how many messages were not read, at most; the others come."""
    limits = {"x-max-length-bytes": 12_000, "x-stream-max-segment-size-bytes": 4000}
    with a_stream(broker, **limits) as stream:
        read(stream, journal, 0, 10)
        publish_singly(stream, 10, 200)
        with consuming(stream, journal) as consumer:
            until(lambda: 199 in numbers(journal))
            until(lambda: consumer.health.reason)
            reason = consumer.health.reason
        last_read, first_kept = (row.delivery.stream_offset or 0 for row in rows(journal)[9:11])
        gap = first_kept - last_read - 1
        assert f"up to {gap} messages before they were read" in (reason or "")
        missing = set(range(200)) - set(numbers(journal))
        # each segment of the stream uses an offset of its own
        assert 0.8 * gap < len(missing) <= gap
        assert numbers(journal) == [n for n in range(200) if n not in missing]


def test_messages_that_retention_removes_under_a_slow_consumer_are_counted(
    broker: PrivateBroker, journal: Journal, tmp_path: Path
) -> None:
    """The connection stays open; the journal takes no write for a while."""
    limits = {"x-max-length-bytes": 12_000, "x-stream-max-segment-size-bytes": 4000}
    with a_stream(broker, **limits) as stream, consuming(stream, journal) as consumer:
        publish(stream, 0, 10)
        until(lambda: journal.last_id() == 10)
        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            publish_singly(stream, 10, 500)
        until(lambda: 499 in numbers(journal))
        until(lambda: "retention of the stream" in (consumer.health.reason or ""))
        offsets = [row.delivery.stream_offset or 0 for row in rows(journal)]
        gap = max(after - before for before, after in pairwise(offsets)) - 1
        assert f"up to {gap} messages before they were read" in (consumer.health.reason or "")
        missing = set(range(500)) - set(numbers(journal))
        assert 0.8 * gap < len(missing) <= gap
        assert numbers(journal) == [n for n in range(500) if n not in missing]


def test_a_check_knows_a_stream(stream: Admin) -> None:
    """A stream counts no readers."""
    seen = check_queue(parameters_from(stream.url), stream.queue)
    assert (seen.reached, seen.is_stream, seen.consumers) == ("read", True, 0)
