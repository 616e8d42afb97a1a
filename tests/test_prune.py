"""Events of orders that ended long ago are removed, and nothing else changes."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from strategies import delivery, histories

from regards_nb import OrderTracker, errors
from regards_nb.cli import main
from regards_nb.client import RegardsClient
from regards_nb.consumer import RedeliveryMatcher
from regards_nb.events import Delivery, OrderEvent
from regards_nb.frames import Checkpoints, Frames
from regards_nb.journal import Journal, RowReader, kept_orders, name_of, restore, time_us
from regards_nb.orders import OrderReducer

OLD_US, NEW_US = time_us("2026-05-01"), time_us("2026-07-01")
BEFORE = "2026-06-01"


def message(status: str, name: str, *, at_us: int = OLD_US, **body: Any) -> Delivery:
    body = {"status": status, "correlationId": name, **body}
    return replace(delivery(body, timestamp_s=at_us // 1_000_000), received_at_us=at_us)


def life(
    name: str, order_id: int, *, at_us: int = OLD_US, end: str = "DONE", n_parts: int = 2
) -> list[Delivery]:
    """Return all messages of an order."""
    more: Any = {"at_us": at_us, "orderId": order_id}
    parts = [
        message("SUBORDER_DONE", name, subOrderId=n, totalSubOrders=n_parts + 1, **more)
        for n in range(1, n_parts + 1)
    ]
    return [message("GRANTED", name, **more), *parts, message(end, name, errors=0, **more)]


def filled(journal: Journal) -> None:
    """Write old and new, running and ended orders, and a message that is none."""
    old = journal.open_session("q")
    for start in range(0, 200, 20):
        batch = [life(f"old{n}", n + 1) for n in range(start, start + 20)]
        # the messages of several orders alternate in one row
        journal.append(old, [each for row in zip(*batch, strict=True) for each in row])
    journal.append(old, [message("GRANTED", "runs", orderId=900), delivery(b"poison")])
    journal.append(old, life("reopened", 901, end="FAILED"))
    journal.append(old, life("later", 902))
    journal.append(old, life("other", 903) + life("", 904)[:0] + [message("DENIED", "denied")])
    new = journal.open_session("q")
    journal.append(new, [message("SUBORDER_DONE", "runs", at_us=NEW_US, orderId=900)])
    journal.append(new, [message("RUNNING", "reopened", at_us=NEW_US, orderId=901)])
    journal.append(new, [message("EXPIRED", "later", at_us=NEW_US, orderId=902)])


def frames_of(
    place: str | Path, tenant: str | None = None, queues: set[str] | None = None
) -> dict[str, pd.DataFrame]:
    with Journal(place) as journal:
        frames = Frames(journal, tenant, queues=queues)
        return {name: getattr(frames, name) for name in ("orders", "files", "rejected", "events")}


def test_orders_stay_and_old_events_go(place: str | Path) -> None:
    """The frames of orders, files and rejected messages are the same to the last cell."""
    with Journal(place) as journal:
        filled(journal)
        before = {tenant: frames_of(place, tenant) for tenant in (None, "tenant", "another")}
        pruned = journal.pruning.run(time_us(BEFORE))
        # the newest message of each session stays
        assert (pruned.orders, pruned.events, pruned.kept_for_redelivery) == (201, 804, 1)
        for tenant, frames in before.items():
            after = frames_of(place, tenant)
            for name in ("orders", "files", "rejected"):
                pd.testing.assert_frame_equal(after[name], frames[name])
        events = frames_of(place)["events"]
        assert set(events["correlation_id"]) == {"runs", "reopened", "later", "denied"}
        assert len(events) == len(before[None]["events"]) - pruned.events
        # again: nothing is left to do, and nothing changes
        assert journal.pruning.run(time_us(BEFORE)).events == 0
        pd.testing.assert_frame_equal(frames_of(place)["orders"], before[None]["orders"])
        assert journal.check() == []


def test_the_states_of_queues_stay_apart(place: str | Path) -> None:
    """A tracker that shows one queue of several gets the orders of that queue alone."""
    with Journal(place) as journal:
        filled(journal)
        third = journal.open_session("r")
        journal.append(third, life("r1", 1) + life("old5", 6, end="FAILED") + life("r2", 2))
        journal.append(journal.open_session("r"), [message("GRANTED", "r3", at_us=NEW_US)])
        filters: list[set[str] | None] = [{"q"}, {"r"}, {"q", "r"}, {"s"}, None]
        before = [frames_of(place, None, queues)["orders"] for queues in filters]
        assert journal.pruning.run(time_us(BEFORE)).events > 800
        for queues, orders in zip(filters, before, strict=True):
            pd.testing.assert_frame_equal(frames_of(place, None, queues)["orders"], orders)


def test_the_journal_gets_smaller(place: str | Path) -> None:
    """The file, or the tables of the server, give the space back."""
    with Journal(place) as journal:
        session = journal.open_session("q")
        for start in range(0, 1000, 100):
            lives = [life(f"nb-{n}", n + 1, n_parts=38) for n in range(start, start + 100)]
            journal.append(session, [each for one in lives for each in one])
        journal.append(journal.open_session("q"), [message("GRANTED", "new", at_us=NEW_US)])
        pruned = journal.pruning.run(time_us(BEFORE))
        assert pruned.events == 40_000 - 1
        assert pruned.note == ""
        assert pruned.size_after_bytes < pruned.size_before_bytes / 2
        assert "39,999 events of 1,000 orders" in str(pruned)


def test_a_dry_run_changes_nothing(place: str | Path) -> None:
    """It returns what a real run then removes."""
    with Journal(place) as journal:
        filled(journal)
        events = frames_of(place)["events"]
        told = journal.pruning.run(time_us(BEFORE), dry_run=True)
        pd.testing.assert_frame_equal(frames_of(place)["events"], events)
        assert journal.pruning.orders() == []
        done = journal.pruning.run(time_us(BEFORE))
        assert (told.orders, told.events) == (done.orders, done.events)


def test_kernels_with_open_frames_cope(place: str | Path) -> None:
    """One has read all, one half, one nothing: all show the same orders, and what comes next."""
    with Journal(place) as journal, Journal(place) as other:
        half, whole, nothing = Frames(other, None), Frames(other, None), Frames(other, None)
        session = journal.open_session("q")
        journal.append(session, life("a", 1)[:2] + life("b", 2)[:1])
        queue = half.follow(other.last_id())
        assert len(half.events) == 3
        filled(journal)
        expected = whole.orders
        journal.pruning.run(time_us(BEFORE))
        journal.append(session, [message("EXPIRED", "a", at_us=NEW_US, orderId=1)])
        for frames in (half, whole, nothing):
            orders = frames.orders
            assert list(orders.index) == list(expected.index)
            assert orders["status"].iloc[0] == "EXPIRED"
            pd.testing.assert_frame_equal(orders.iloc[1:], expected.iloc[1:])
        # callbacks get no event twice, also after all rows are read again
        seen = [event for _, events in queue for event in events]
        half.read_again()
        pd.testing.assert_frame_equal(half.orders, nothing.orders)
        assert len([event for _, events in queue for event in events]) == len(seen)


def test_messages_that_may_come_again_are_known(place: str | Path) -> None:
    """Of the last day of a queue, the newest messages of each session are compared as before."""
    with Journal(place) as journal:
        journal.pruning.newest_kept = 10
        first, second = journal.open_session("q"), journal.open_session("q")
        lives = [life(f"o{n}", n + 1) for n in range(20)]
        messages = [each for one in lives for each in one]
        journal.append(first, messages[:40])
        journal.append(second, messages[40:])
        journal.append(journal.open_session("q2"), [message("GRANTED", "new", at_us=NEW_US)])
        pruned = journal.pruning.run(time_us(BEFORE))
        assert (pruned.events, pruned.kept_for_redelivery) == (60, 20)
        matcher = RedeliveryMatcher()
        matcher.add(
            journal._database.read(lambda c: RowReader(c).recent("q", after_id=0, limit=1000))
        )
        again = [replace(each, redelivered=True) for each in messages[30:40] + messages[70:]]
        assert matcher.new(again) == []


def test_a_kill_in_the_middle_loses_nothing(
    place: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states are stored first: the frames of orders are right after each transaction."""
    with Journal(place) as journal:
        journal.pruning.rows_in_transaction = 2
        filled(journal)
        expected = frames_of(place)["orders"]
        write, left = journal._database.write, 0

        def dies(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise errors.JournalError("killed")
            return write(*args, **options)

        for at in range(1, 8):
            left = at + 1  # the first one takes the lease
            monkeypatch.setattr(journal._database, "write", dies)
            with suppress(errors.JournalError):
                journal.pruning.run(time_us(BEFORE))
            monkeypatch.setattr(journal._database, "write", write)
            pd.testing.assert_frame_equal(frames_of(place)["orders"], expected)
        journal.pruning.run(time_us(BEFORE))
        pd.testing.assert_frame_equal(frames_of(place)["orders"], expected)


def fold(events: list[tuple[int, OrderEvent]], reducer: OrderReducer) -> list[Any]:
    for row_id, event in events:
        reducer.add(row_id, event)
    return [reducer.state(key) for key in reducer]


@settings(max_examples=300)
@given(histories(), st.integers(0, 12), st.integers(0, 12), st.data())
def test_pruned_and_later_events_fold_as_all(
    events: list[tuple[int, OrderEvent]], pruned: int, known: int, data: st.DataObject
) -> None:
    """Whatever was folded, kept and removed: states, order and names are those of all events."""
    expected_reducer = OrderReducer()
    expected = fold(events, expected_reducer)
    first = OrderReducer()
    fold(events[:pruned], first)
    first_ids: dict[Any, int] = {}
    for row_id, event in events[:pruned]:
        first_ids.setdefault(name_of(event), row_id)
    kept = sorted(kept_orders(first, first_ids), key=lambda order: order.first_id)
    # a reader that had read some rows, and finds some of the others still there
    reader = OrderReducer()
    fold(events[: min(known, pruned)], reader)
    restore(reader, kept)
    there = [each for each in events[known:pruned] if data.draw(st.booleans())]
    assert fold(there + events[pruned:], reader) == expected
    for number in (1, 2):
        assert set(reader.numbered(number)) == set(expected_reducer.numbered(number))
    # and a second time, from the kept states alone
    again = OrderReducer()
    restore(again, kept)
    fold(events[pruned:], again)
    for row_id, event in events[pruned:]:
        first_ids.setdefault(name_of(event), row_id)
    second = OrderReducer()
    restore(second, sorted(kept_orders(again, first_ids), key=lambda order: order.first_id))
    assert [second.state(key) for key in second] == expected


@pytest.fixture
def tracker(tmp_path: Path) -> OrderTracker:
    """A tracker that nobody started, on a filled journal."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        filled(journal)
    client = RegardsClient("https://regards.example", tenant="tenant", username="u", password="p")
    return OrderTracker(client=client, journal=tmp_path / "journal.sqlite")


def test_the_tracker_prunes_its_journal(tracker: OrderTracker) -> None:
    """Its own frames show it at once; a wrong date is told."""
    orders, n_events = tracker.orders, len(tracker.events)
    pruned = tracker.journal_prune(before=date(2026, 6, 1))
    assert len(tracker.events) == n_events - pruned.events
    pd.testing.assert_frame_equal(tracker.orders, orders)
    moment = datetime(2026, 6, 1, tzinfo=UTC)
    assert tracker.journal_prune(before=moment, dry_run=True).events == 0
    with pytest.raises(errors.SettingsError, match="give one like '2026-06-01'"):
        tracker.journal_prune(before="June")


def test_the_command_prunes(
    tracker: OrderTracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--dry-run says what would go; without it, it goes."""
    for name, value in {
        "URL": "https://regards.example", "TENANT": "tenant", "USERNAME": "u", "PASSWORD": "p",
        "JOURNAL": str(tmp_path / "journal.sqlite"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"REGARDS_{name}", value)
    assert main(["journal", "prune", "--before", BEFORE, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("would be removed: 804 events of 201 orders, ")
    assert main(["journal", "prune", "--before", BEFORE]) == 0
    assert capsys.readouterr().out.startswith("removed: 804 events of 201 orders, ")


def test_checkpoints_of_before_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that began with a checkpoint, and a new one, show all orders and what is left."""
    monkeypatch.setattr(Checkpoints, "min_events", 1)
    place = tmp_path / "journal.sqlite"
    with Journal(place) as journal, Journal(place) as other:
        filled(journal)
        first = Frames(journal, None)
        expected = first.orders
        first.checkpoints.finish(60)
        begun = Frames(other, None)
        assert len(begun.states()) == len(expected)
        journal.pruning.run(time_us(BEFORE))
        first.read_again()
        n_left = len(first.events)
        first.checkpoints.finish(60)
        begun.checkpoints.finish(60)
        assert len(begun.events) >= n_left
        for frames in (begun, Frames(other, None), Frames(Journal(place), None)):
            pd.testing.assert_frame_equal(frames.orders, expected)
        assert len(Frames(other, None).events) == n_left
        session = journal.open_session("q")
        journal.append(session, [message("EXPIRED", "old1", at_us=NEW_US, orderId=2)])
        for frames in (first, begun, Frames(other, None)):
            orders = frames.orders
            assert orders.loc[("tenant", "old1"), "status"] == "EXPIRED"
            assert list(orders.index) == list(expected.index)
