"""Which redelivered messages are in the journal already."""

from __future__ import annotations

import msgspec
import pytest
from strategies import delivery

from regards_nb.consumer import RedeliveryMatcher, fingerprint
from regards_nb.events import Delivery
from regards_nb.journal import Row


def message(name: str, **properties: object) -> Delivery:
    """Return a message that may have an equal one: older servers do not number sub-orders."""
    body = {"status": "SUBORDER_DONE", "correlationId": name}
    return delivery(body, **properties)  # type: ignore[arg-type]


def rows(*names: str, session_id: int = 1, first_id: int = 1) -> list[Row]:
    return [Row(first_id + i, session_id, message(name)) for i, name in enumerate(names)]


def claimed(matcher: RedeliveryMatcher, *names: str, count: int = 1) -> list[bool]:
    deliveries = [message(name, redelivered=True) for name in names]
    new = matcher.new(deliveries, {id(each): count for each in deliveries})
    return [all(delivery is not each for each in new) for delivery in deliveries]


def test_a_journalled_message_is_known_once() -> None:
    """Each row answers for one redelivery; a second equal message is a new one."""
    matcher = RedeliveryMatcher()
    matcher.add(rows("a", "b"))
    assert claimed(matcher, "a", "b", "b", "c") == [True, True, False, False]


def test_two_identical_rows_answer_for_two_redeliveries() -> None:
    """Legal twins in the journal stay two, and no third appears."""
    matcher = RedeliveryMatcher()
    matcher.add(rows("a", "a", "b"))
    assert claimed(matcher, "a", "a", "b", "a") == [True, True, True, False]


def test_an_equal_message_after_a_later_row_is_new() -> None:
    """Once a later row has come again, an earlier one does not: its twin was on its way."""
    matcher = RedeliveryMatcher()
    matcher.add(rows("a", "b"))
    assert claimed(matcher, "b", "a") == [True, False]


def test_messages_that_were_returned_twice_may_come_last() -> None:
    """A quorum queue puts them behind those that were returned once; each row answers once."""
    matcher = RedeliveryMatcher()
    matcher.add(rows("a", "b", "c", "d"))
    assert claimed(matcher, "c", "d") == [True, True]
    assert claimed(matcher, "a", "b", "b", count=2) == [True, True, False]


@pytest.mark.parametrize(
    ("body", "timestamp_s", "is_known"),
    [
        ({"status": "SUBORDER_DONE", "subOrderId": 1}, 100, True),
        ({"status": "DONE"}, 100, True),
        ({"status": "SUBORDER_DONE"}, 100, False),
        ({"status": "DONE"}, None, False),
        ({"status": "NEW"}, 100, False),
    ],
)
def test_a_message_without_an_equal_one_may_come_behind_later_rows(
    body: dict[str, object], timestamp_s: int | None, *, is_known: bool
) -> None:
    """Kernels that share a queue pass it on; where an equal one is possible it is new."""
    named = {**body, "correlationId": "a"}
    first = delivery(named, timestamp_s=timestamp_s)
    again = delivery(named, timestamp_s=timestamp_s, redelivered=True)
    matcher = RedeliveryMatcher()
    matcher.add([Row(1, 1, first), *rows("b", session_id=2, first_id=2)])
    assert claimed(matcher, "b") == [True]
    assert matcher.new([again]) == ([] if is_known else [again])
    assert matcher.new([again]) == [again]


def test_two_kernels_at_a_time_come_again_each_in_its_own_order() -> None:
    """Sessions whose rows interleave in the journal may come again interleaved differently."""
    matcher = RedeliveryMatcher()
    mine, other = rows("a", "b"), rows("x", "y", session_id=2)
    matcher.add([mine[0], other[0]._replace(id=2), mine[1]._replace(id=3), other[1]._replace(id=4)])
    assert claimed(matcher, "x", "a", "y", "b") == [True] * 4


def test_an_earlier_session_does_not_come_after_a_later_one() -> None:
    """What an earlier session left stood first in the queue; after it, an equal one is new."""
    matcher = RedeliveryMatcher()
    matcher.add([*rows("a", "c"), *rows("a", "b", session_id=2, first_id=3)])
    assert claimed(matcher, "b", "c") == [True, False]


def test_the_sequence_tells_which_twin_came_again() -> None:
    """Where the first message fits in two places, the next ones tell which it was."""
    matcher = RedeliveryMatcher()
    matcher.add(rows("a", "b", "c", "a", "d"))
    assert claimed(matcher, "a", "d", "a", "b") == [True, True, False, False]


def test_the_second_of_publication_tells_messages_apart() -> None:
    """The same body with another timestamp is another message."""
    assert fingerprint(message("a", timestamp_s=1)) != fingerprint(message("a", timestamp_s=2))
    assert fingerprint(message("a")) == fingerprint(message("a", redelivered=True))


def test_the_order_of_headers_does_not_matter() -> None:
    """RabbitMQ 3.10 sorts the headers of a quorum queue when it delivers again."""
    first = msgspec.structs.replace(message("a"), properties='{"headers": {"b": 1, "a": 2}}')
    again = msgspec.structs.replace(
        message("a", redelivered=True), properties='{"headers": {"a": 2, "b": 1}}'
    )
    matcher = RedeliveryMatcher()
    matcher.add([Row(1, 1, first)])
    assert matcher.new([again]) == []


def test_messages_that_come_again_on_the_same_channel_are_known() -> None:
    """A broken link between two nodes: three messages, the same three with new tags, thrice."""
    matcher = RedeliveryMatcher()
    first = [message(name) for name in ("a", "a", "b")]
    assert matcher.new(first) == first
    matcher.confirm()
    matcher.add_own(rows("a", "a", "b", session_id=2))
    for count, delivered in ((1, 3), (2, 7), (3, 11)):
        again = [message(name, redelivered=True) for name in ("a", "a", "b", "c")]
        new = matcher.new(again, {id(each): count for each in again}, unacknowledged=delivered)
        matcher.confirm()
        assert new == ([again[-1]] if count == 1 else [])


def test_a_message_that_comes_again_follows_the_first_unacknowledged_one() -> None:
    """Somebody looks at the second of two equal messages in a quorum queue: it is new.

    The first one is the newest of four that wait for their acknowledgement. RabbitMQ returns all
    of them or none, beginning with the oldest.
    """
    matcher = RedeliveryMatcher()
    matcher.add_own(rows("a", "b", "c", "d", "e"))
    looked_at, *returned = [message(name, redelivered=True) for name in ("e", "b", "c", "e")]
    for delivered, each in enumerate((looked_at, *returned), 5):
        new = matcher.new([each], {id(each): 1}, unacknowledged=delivered - 1)
        assert new == ([each] if each is looked_at else [])


def test_of_equal_messages_the_one_in_its_place_comes_again() -> None:
    """The first of two equal ones is acknowledged; the others come again twice, then with more."""
    matcher = RedeliveryMatcher()
    matcher.add_own(rows("a", "b", "a"))
    delivered = 3
    for count, names in ((1, "ba"), (2, "ba"), (0, "c"), (3, "bac"), (0, "d"), (4, "bacd")):
        batch = [message(name, redelivered=count > 0) for name in names]
        counts = {id(each): count for each in batch}
        new = matcher.new(batch, counts, unacknowledged=delivered - 1)
        assert new == ([] if count else batch)
        if not count:
            matcher.add_own(rows(names))
        delivered += len(batch)


def test_another_consumer_may_take_the_first_messages_that_come_again() -> None:
    """A link breaks while two kernels read a queue: a numbered sub-order is known in any place."""
    matcher = RedeliveryMatcher()
    body = {"status": "SUBORDER_DONE", "correlationId": "c"}
    sent = [delivery({**body, "subOrderId": number}, timestamp_s=100) for number in range(4)]
    matcher.add_own(Row(number, 1, each) for number, each in enumerate(sent, 1))
    again = [msgspec.structs.replace(each, redelivered=True) for each in sent]
    for count, delivered, part in ((1, 4, again[2:]), (2, 6, again[:2]), (3, 8, again[1:])):
        assert matcher.new(part, {id(each): count for each in part}, unacknowledged=delivered) == []


def test_a_message_that_another_kernel_took_over_is_known() -> None:
    """While this process was suspended, RabbitMQ gave its messages to another session."""
    matcher = RedeliveryMatcher()
    taken = [message(name, redelivered=True) for name in ("a", "b")]
    matcher.add_taken_over(Row(n, 2, each) for n, each in enumerate(taken, 1))
    mine = [message(name) for name in ("a", "a", "b", "c")]
    assert matcher.new(mine) == [mine[1], mine[3]]


def test_a_decision_that_was_not_committed_is_made_again() -> None:
    """The journal refused the batch: the next attempt finds the same messages known and new."""
    matcher = RedeliveryMatcher()
    matcher.add(rows("a", "b", "a"))
    batch = [message(name, redelivered=True) for name in ("b", "a", "a", "b")]
    for attempt in (batch, batch, batch[1:], batch[2:]):
        matcher.revert_uncommitted(attempt)
        assert matcher.new(attempt) == [each for each in batch[2:] if each in attempt]


def test_a_classic_queue_delivers_nothing_again_on_the_same_channel() -> None:
    """Somebody has looked at the second of two equal messages and put it back: it is new."""
    matcher = RedeliveryMatcher()
    matcher.add_own(rows("a"))
    looked_at = message("a", redelivered=True)
    assert matcher.new([looked_at]) == [looked_at]
