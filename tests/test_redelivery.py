"""Which redelivered messages are in the journal already."""

from __future__ import annotations

from strategies import delivery

from regards_nb.consumer import RedeliveryMatcher, fingerprint
from regards_nb.events import Delivery
from regards_nb.journal import Row


def message(name: str, **properties: object) -> Delivery:
    return delivery({"status": "DONE", "correlationId": name}, **properties)  # type: ignore[arg-type]


def rows(*names: str, session_id: int = 1, first_id: int = 1) -> list[Row]:
    return [Row(first_id + i, session_id, message(name)) for i, name in enumerate(names)]


def claimed(matcher: RedeliveryMatcher, *names: str) -> list[bool]:
    return [matcher.claim(message(name, redelivered=True)) for name in names]


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
