"""The fold: the same events in any order, any of them repeated, give the same orders."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from strategies import event, histories

from regards_nb.events import OrderEvent
from regards_nb.orders import OrderKey, OrderReducer, OrderState

KEY = OrderKey("tenant", "c1")


def fold(*events: OrderEvent) -> OrderState:
    book = OrderReducer()
    for row_id, item in enumerate(events, start=1):
        book.add(row_id, item)
    return book.state(KEY)


def states(history: list[tuple[int, OrderEvent]]) -> dict[OrderKey, OrderState]:
    book = OrderReducer()
    for row_id, item in history:
        book.add(row_id, item)
    return {key: book.state(key) for key in book}


@given(histories(), st.data())
def test_arrival_order_and_repetition_do_not_matter(
    history: list[tuple[int, OrderEvent]], data: st.DataObject
) -> None:
    """Shuffle a history and repeat parts of it: the orders end the same."""
    repeated = history + data.draw(st.lists(st.sampled_from(history))) if history else []
    assert states(data.draw(st.permutations(repeated))) == states(history)


def test_the_life_of_an_order_in_two_parts() -> None:
    """GRANTED, two parts, DONE: the last word is DONE, all parts are counted."""
    state = fold(
        event("GRANTED", orderId=5, timestamp_s=100),
        event("SUBORDER_DONE", orderId=5, subOrderId=1, totalSubOrders=2, timestamp_s=110),
        event("SUBORDER_DONE", orderId=5, subOrderId=2, totalSubOrders=2, timestamp_s=120),
        event("DONE", orderId=5, message="finished", downloadLink="link", timestamp_s=121),
    )
    assert (state.order_id, state.status, state.finished, state.progress) == (5, "DONE", True, 1.0)
    assert (state.suborders_done, state.suborders_total) == (2, 2)
    assert (state.message, state.download_link) == ("finished", "link")
    assert state.first_event == datetime.fromtimestamp(100, UTC)
    assert state.last_event == datetime.fromtimestamp(121, UTC)
    assert state.ready_row == 3


def test_progress_counts_finished_parts() -> None:
    """Half of the parts are half of the order."""
    part = event("SUBORDER_DONE", orderId=5, subOrderId=1, totalSubOrders=2)
    assert fold(part).progress == 0.5
    assert fold(event("SUBORDER_DONE", orderId=5)).progress is None
    assert fold(part, event("DONE", orderId=5)).suborders_done == 2, "a message may be lost"


def test_equal_parts_of_an_older_server_are_counted_each() -> None:
    """Without numbers two parts look the same; each event is one of them (protocol.md 0.7)."""
    part = event("SUBORDER_DONE", orderId=5)
    assert fold(part, part).suborders_done == 2


def test_a_part_that_is_announced_late_does_not_undo_the_end() -> None:
    """DONE is the end, even if a part is announced a second later."""
    state = fold(
        event("DONE", orderId=5, timestamp_s=100),
        event("SUBORDER_DONE", orderId=5, subOrderId=2, timestamp_s=101),
    )
    assert state.finished
    assert state.status == "DONE"
    assert state.suborders_done == 1


def test_a_retry_reopens_a_failed_order() -> None:
    """After FAILED a later part means that it runs again; DONE then ends it."""
    failed = event("FAILED", orderId=5, errorType="INTERNAL_ERROR", timestamp_s=100)
    part = event("SUBORDER_DONE", orderId=5, subOrderId=9, timestamp_s=200)
    assert fold(failed).finished
    assert not fold(failed, part).finished
    done = fold(failed, part, event("DONE", orderId=5, timestamp_s=201))
    assert (done.status, done.error_type) == ("DONE", None)


@pytest.mark.parametrize("end", ["EXPIRED", "DELETED"])
def test_a_good_retry_has_no_errors_whatever_comes_later(end: str) -> None:
    """The errors are those of the last run; no end of the order is another run."""
    failed = event("DONE_WITH_WARNING", orderId=5, errors=3, timestamp_s=100)
    done = event("DONE", orderId=5, timestamp_s=200)
    last = event(end, orderId=5, timestamp_s=300)
    assert fold(failed, last).errors == 3
    for history in permutations([failed, done, last]):
        assert fold(*history).errors is None


def test_a_part_published_with_the_failure_does_not_reopen_it() -> None:
    """Within one second the end is the last word."""
    part = event("SUBORDER_DONE", orderId=5, subOrderId=9, timestamp_s=100)
    assert fold(event("FAILED", orderId=5, timestamp_s=100), part).finished


def test_a_failure_with_a_link_has_something_to_fetch() -> None:
    """FAILED with a link is a partial success (protocol.md 0.4); without, there is nothing."""
    assert fold(event("FAILED", orderId=5, downloadLink="link")).ready_row == 1
    assert fold(event("FAILED", orderId=5)).ready_row == 0


def test_a_denied_order_has_no_number_and_is_finished() -> None:
    """DENIED and FAILED can be the first and only answer."""
    state = fold(event("DENIED", message="deny cause"))
    assert (state.order_id, state.finished, state.message) == (None, True, "deny cause")


def test_an_event_that_says_only_the_number_finds_its_order() -> None:
    """Correlation id and number are tied by whichever event has both, before or after."""
    nameless = event("DONE", orderId=5, correlationId=None, timestamp_s=200)
    granted = event("GRANTED", orderId=5, timestamp_s=100)
    assert fold(granted, nameless).status == "DONE"
    assert fold(nameless, granted).status == "DONE"


def test_a_correlation_id_that_looks_like_a_number_depends_on_no_order_of_arrival() -> None:
    """An order of which only the number is known is called "#1", too."""
    by_number = event("SUBORDER_DONE", correlationId=None, orderId=1)
    by_name = event("GRANTED", correlationId="#1", orderId=1)
    by_another = event("GRANTED", correlationId="c1", orderId=1)
    said = list(enumerate([by_number, by_name, by_another], start=1))
    for history in said[:2], said:
        ends = [states(list(arrival)) for arrival in permutations(history)]
        assert all(end == ends[0] for end in ends)


def test_a_correlation_id_used_again_shows_the_newer_order() -> None:
    """A cell that is run again makes a second order under the same name: that one is shown."""
    state = fold(
        event("DONE", orderId=5, subOrderId=1, timestamp_s=100),
        event("GRANTED", orderId=6, timestamp_s=200),
    )
    assert (state.order_id, state.status, state.finished) == (6, "GRANTED", False)


def test_an_older_order_of_the_same_name_says_nothing_any_more() -> None:
    """Neither what it said before nor what is still to come of it; what has no number, stays."""
    unnumbered = event("DENIED", message="by name", timestamp_s=50)
    older = event("DONE", orderId=5, errors=3, totalSubOrders=4, timestamp_s=100)
    newer = event("GRANTED", orderId=6, timestamp_s=200)
    for history in permutations([unnumbered, older, newer]):
        state = fold(*history)
        assert (state.order_id, state.status, state.errors) == (6, "GRANTED", None)
        assert state.suborders_total is None
        assert state.first_event == datetime.fromtimestamp(50, UTC)


def test_orders_are_found_by_their_names() -> None:
    """By correlation id in each tenant, and by number once an event has said it."""
    book = OrderReducer()
    other = book.add(1, replace(event("GRANTED", orderId=5), tenant="other"))
    nameless = book.add(2, event("DONE", orderId=6, correlationId=None))
    book.add(3, event("DENIED"))
    assert book.named("c1") == [other, KEY]
    assert book.named("c2") == []
    assert book.numbered(5) == [other]
    assert book.numbered(6) == [nameless]
    book.add(4, event("GRANTED", orderId=6))
    assert KEY in book.numbered(6)
    assert book.resolved(nameless) == KEY


def test_equal_texts_are_kept_once() -> None:
    """There may be very many orders, all of which say the same."""
    book = OrderReducer()
    keys = [
        book.add(n, event("DENIED", correlationId=f"c{n}", message="-".join("why")))
        for n in range(2)
    ]
    one, other = map(book.state, keys)
    assert one.message is other.message
    assert one.key.tenant is other.key.tenant


def test_an_unknown_status_is_shown_and_ends_nothing() -> None:
    """What this version does not know is not an end."""
    state = fold(event("GRANTED", orderId=5, timestamp_s=1), event("ON_TAPE", orderId=5))
    assert (state.status, state.finished) == ("ON_TAPE", False)
