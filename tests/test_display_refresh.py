"""The repaint thread: how often it paints, what stops it, and what does not."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING

import pytest
from conftest import until
from scripted_tracker import NOON, ScriptedTracker, order

from regards_nb import OrderTracker
from regards_nb.consumer import Health, HealthState
from regards_nb.display import TRACKER_DELETED, RefreshThread, close_views, refresh_thread_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from regards_nb.tracker import Snapshot


def _same(view: SketchView) -> SketchView:
    return view


def all_orders() -> None:
    """Ask for all orders."""


class SketchView:
    """A view that remembers what it was told to show."""

    is_alive = True

    def __init__(self) -> None:
        self.visible = True
        self.changed = False
        self.painted: list[tuple[float, Snapshot]] = []
        self.frozen: list[tuple[Snapshot, str]] = []
        self.closed = 0
        #: What a painting takes of the processor.
        self.cost_s = 0.0
        self.error: Exception | None = None
        self.keys_of = all_orders
        self.last: Snapshot | None = None

    def paint(self, snapshot: Snapshot) -> None:
        """Remember the snapshot, or fail as told."""
        if self.error is not None:
            raise self.error
        end = time.thread_time() + self.cost_s
        while time.thread_time() < end:
            pass
        self.last = snapshot
        self.painted.append((time.monotonic(), snapshot))

    def freeze(self, snapshot: Snapshot, note: str = "") -> None:
        """Remember how it ended."""
        self.visible = False
        self.frozen.append((snapshot, note))

    def close(self) -> None:
        """Count."""
        self.closed += 1


@pytest.fixture
def tracker() -> ScriptedTracker:
    """Return a tracker with one order."""
    return ScriptedTracker(order())


@pytest.fixture
def view() -> SketchView:
    """Return a view that is shown."""
    return SketchView()


@pytest.fixture
def refresh(tracker: ScriptedTracker, view: SketchView) -> Iterator[RefreshThread]:
    """Return a running refresh; its thread must end with the test."""
    refresh = refresh_thread_of(tracker)
    refresh.view("sketch", lambda: view)
    refresh.run()
    thread = refresh.thread
    assert thread is not None
    yield refresh
    close_views(tracker)
    until(lambda: not thread.is_alive())


def test_it_paints_what_changed_and_nothing_else(
    tracker: ScriptedTracker, view: SketchView, refresh: RefreshThread
) -> None:
    """A change is painted soon; without changes the tracker is not even asked."""
    until(lambda: len(view.painted) == 1)
    looks = tracker.looks
    tracker.tell(order(suborders_done=1))
    until(lambda: len(view.painted) == 2)
    assert tracker.looks == looks + 1
    assert view.painted[-1][1].orders[0].suborders_done == 1
    view.changed = True
    until(lambda: len(view.painted) >= 3)
    assert refresh.thread is not None


@pytest.mark.usefixtures("refresh")
def test_it_paints_at_most_five_times_a_second(tracker: ScriptedTracker, view: SketchView) -> None:
    """However many changes come, paintings keep their distance, and the last state is shown."""
    began = time.monotonic()
    stop = began + 1.2
    count = 0
    while time.monotonic() < stop:
        count += 1
        tracker.tell(order(suborders_done=count))
    until(lambda: bool(view.painted) and view.painted[-1][1].orders[0].suborders_done == count)
    assert count > 100
    assert len(view.painted) <= 5 * (time.monotonic() - began) + 3


@pytest.mark.usefixtures("refresh")
def test_costly_pictures_are_painted_less_often(tracker: ScriptedTracker, view: SketchView) -> None:
    """Paintings that take 10 ms of the processor are made less than twice a second.

    On the whole: one that is held up by other work on the machine may come close to the next.
    """
    view.cost_s = 0.01
    count = 0
    while len(view.painted) < 6:
        count += 1
        tracker.tell(order(suborders_done=count))
        threading.Event().wait(0.01)
    times = [when for when, _ in view.painted[1:]]
    assert times[-1] - times[0] > 0.5 * (len(times) - 1)
    until(lambda: view.painted[-1][1].orders[0].suborders_done == count)


def test_an_error_is_recorded_once_and_painting_goes_on(tracker: ScriptedTracker) -> None:
    """A broken page is tried again; its error reaches the recorder once and nobody else."""
    recorded: list[Exception] = []
    refresh = refresh_thread_of(tracker, recorded.append)
    broken, sound = SketchView(), SketchView()
    broken.error = RuntimeError("no such page")
    refresh.view("broken", lambda: broken)
    refresh.view("sound", lambda: sound)
    refresh.run()
    until(lambda: len(sound.painted) == 1)
    tracker.tell(order(suborders_done=1))
    until(lambda: len(sound.painted) == 2)
    broken.error = None
    until(lambda: len(broken.painted) == 1)
    assert [str(error) for error in recorded] == ["no such page"]
    close_views(tracker)


@pytest.mark.usefixtures("refresh")
def test_a_tracker_that_fails_to_answer_is_asked_again(
    tracker: ScriptedTracker, view: SketchView
) -> None:
    """An error of snapshot() itself does not end the thread."""
    until(lambda: len(view.painted) == 1)
    tracker.broken = OSError("disk full")
    tracker.version += 1
    looks = tracker.looks
    until(lambda: tracker.looks > looks)
    tracker.broken = None
    until(lambda: len(view.painted) == 2)


def test_without_visible_views_the_thread_ends(view: SketchView, refresh: RefreshThread) -> None:
    """The last view that is hidden ends the thread; the next one starts another."""
    thread = refresh.thread
    assert thread is not None
    view.visible = False
    until(lambda: not thread.is_alive())
    view.visible = True
    refresh.run()
    assert refresh.thread is not None
    assert refresh.thread is not thread


def test_it_ends_with_the_tracker_and_leaves_the_last_state() -> None:
    """A tracker nobody holds is collected although it is shown, and its thread ends."""
    view = SketchView()
    tracker = ScriptedTracker(order())
    refresh = refresh_thread_of(tracker, tracker.record)
    refresh.view("sketch", lambda: view)
    refresh.run()
    thread = refresh.thread
    assert thread is not None
    until(lambda: len(view.painted) == 1)
    gone = weakref.ref(tracker)
    del tracker, refresh
    gc.collect()
    until(lambda: gone() is None)
    until(lambda: not thread.is_alive())
    ((snapshot, note),) = view.frozen
    assert note == TRACKER_DELETED
    assert snapshot.orders[0].order_id == 1
    assert view.closed == 1


def test_stopping_the_tracker_freezes_the_views(tmp_path: Path, view: SketchView) -> None:
    """When a tracker is stopped, its views become pictures without being asked to."""
    tracker = OrderTracker("amqp://a:b@127.0.0.1:1/x", "q", journal=tmp_path / "journal.sqlite")
    refresh = refresh_thread_of(tracker)
    refresh.view("sketch", lambda: view)
    refresh.run()
    until(lambda: len(view.painted) == 1)
    tracker.stop()
    assert view.closed == 1
    assert view.frozen[-1][0].health.state is HealthState.STOPPED


def test_a_tracker_not_started_yet_is_not_stopped(view: SketchView) -> None:
    """A view opened before start() stays live, and shows the start."""
    tracker = ScriptedTracker()
    tracker.tell(health=Health(state=HealthState.STOPPED, since=NOON))
    refresh = refresh_thread_of(tracker)
    refresh.view("sketch", lambda: view)
    refresh.run()
    until(lambda: len(view.painted) == 1)
    tracker.tell(health=Health(state=HealthState.CONSUMING, since=NOON))
    until(lambda: len(view.painted) == 2)
    assert view.frozen == []
    close_views(tracker)


def test_closing_freezes_with_the_newest_state_and_only_once(
    tracker: ScriptedTracker, view: SketchView, refresh: RefreshThread
) -> None:
    """close_views leaves the state of that moment, gives everything back, and may be repeated."""
    tracker.tell(order(suborders_done=9))
    thread = refresh.thread
    assert thread is not None
    close_views(tracker, note="stopped")
    close_views(tracker)
    assert not thread.is_alive()
    ((snapshot, note),) = view.frozen
    assert snapshot.orders[0].suborders_done == 9
    assert note == "stopped"
    assert view.closed == 1


def test_hidden_panels_are_kept_for_late_clicks_but_not_for_ever(
    tracker: ScriptedTracker,
) -> None:
    """The same name gives the same view, until too many others were opened since."""
    refresh = refresh_thread_of(tracker)
    views = []
    for name in range(20):
        view = SketchView()
        view.visible = False
        views.append(view)
        refresh.view(name, partial(_same, view))
    again: object = refresh.view(19, SketchView)
    assert again is views[19]
    assert [view.closed for view in views[:10]] == [1] * 10
    assert [view.closed for view in views[12:]] == [0] * 8
    close_views(tracker)


def test_a_recorder_that_fails_stops_nothing(tracker: ScriptedTracker) -> None:
    """An error in the recorder is not passed on either."""

    def fail(error: Exception) -> None:
        raise ValueError(str(error))

    def paint() -> None:
        raise RuntimeError("of the display")

    refresh = refresh_thread_of(tracker, fail)
    with refresh.recording():
        paint()
    close_views(tracker)
