"""The widgets of the live view, without a page: what they hold, and what clicks do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import pytest
from scripted_tracker import NOON, ScriptedTracker, order
from traitlets import All

from regards_nb.consumer import Health, HealthState
from regards_nb.display import (
    MAX_CHOICES,
    ActionBar,
    AnyWidgetView,
    LiveView,
    WidgetView,
    close_views,
    table_model,
    use,
    widget,
)
from regards_nb.errors import SettingsError
from regards_nb.orders import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regards_nb.orders import OrderKey


def _living() -> int:
    """Return how many widgets the kernel remembers."""
    return len(widgets.widget._instances)


def _all() -> None:
    """Ask for all orders."""


class Bench:
    """An action bar and what it is connected with."""

    def __init__(self, tracker: ScriptedTracker | None) -> None:
        self.tracker = tracker
        self.said: list[str] = []
        self.bar = ActionBar(lambda: self.tracker, self.said.append)
        self.offer()

    def offer(self) -> None:
        """Let the bar see the tracker's state."""
        if self.tracker is not None:
            self.bar.update(table_model(self.tracker.snapshot()))

    @property
    def choice(self) -> widgets.Dropdown:
        """The list of orders."""
        return self.bar.widget.children[0]

    def click(self, description: str) -> str:
        """Click the button that begins so, and return what was said."""
        (button,) = (
            each
            for each in self.bar.widget.children[1:]
            if each.description.startswith(description)
        )
        button.click()
        return self.said[-1]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Return a bar over two orders, one of which waits for a download."""
    bench = Bench(ScriptedTracker(order("a", 1), order("b", 2, waits_for_download=True)))
    yield bench
    widgets.Widget.close_all()


def _asked(bench: Bench) -> list[tuple[str, OrderKey]]:
    assert bench.tracker is not None
    return bench.tracker.asked


def test_a_click_queues_what_was_chosen(bench: Bench) -> None:
    """Choose an order, click: the tracker is asked about that order, and the bar says so."""
    bench.choice.value = order("a").key
    assert bench.click("Cancel") == "cancel: queued for #1 a"
    assert bench.click("Pause") == "pause: queued for #1 a"
    bench.choice.value = order("b").key
    assert bench.click("Retry") == "retry: queued for #2 b"
    assert bench.click("Download") == "download: queued for #2 b"
    assert _asked(bench) == [
        ("cancel", order("a").key),
        ("pause", order("a").key),
        ("retry", order("b").key),
        ("download", order("b").key),
    ]


def test_without_a_choice_only_what_waits_is_fetched(bench: Bench) -> None:
    """Download takes every order that waits; nothing else acts on an order nobody chose."""
    for name in ("Cancel", "Pause", "Resume", "Retry"):
        assert "choose an order first" in bench.click(name)
    assert _asked(bench) == []
    assert bench.click("Download (1)") == "download: queued for #2 b"
    assert _asked(bench) == [("download", order("b").key)]


def test_impatient_clicks_count_once(bench: Bench) -> None:
    """The same click again at once is not a second request; another order's is."""
    bench.choice.value = order("a").key
    bench.click("Cancel")
    assert bench.click("Cancel") == "cancel: already queued"
    bench.choice.value = order("b").key
    bench.click("Cancel")
    assert _asked(bench) == [("cancel", order("a").key), ("cancel", order("b").key)]


def test_a_refusal_is_said_and_not_raised(bench: Bench) -> None:
    """What the server or the tracker refuses is shown beside the buttons."""
    bench.choice.value = order("a").key
    assert bench.click("Resume") == "resume is not possible: a is not paused"


def test_a_tracker_that_is_gone_is_said(bench: Bench) -> None:
    """A bar that outlived its tracker does nothing, and says so."""
    bench.choice.value = order("a").key
    bench.tracker = None
    assert bench.click("Cancel") == "this tracker no longer exists; nothing was done"


def test_a_line_of_the_list_never_changes_its_order(bench: Bench) -> None:
    """A page names the line that was chosen, maybe late: line 2 stays order b for ever."""
    assert bench.tracker is not None
    bench.tracker.tell(order("urgent", 3, status="FAILED"), order("b", 2, status="DONE"))
    bench.offer()
    labels = [label for label, _ in bench.choice.options]
    assert labels[1:] == ["#2 b", "#1 a", "#3 urgent"]
    bench.choice.index = 1
    assert bench.choice.value == order("b").key


def test_a_list_that_changes_forgets_the_choice(bench: Bench) -> None:
    """After a change of the list nothing is chosen: asking again beats a wrong order."""
    assert bench.tracker is not None
    bench.choice.value = order("a").key
    bench.offer()
    assert bench.choice.value == order("a").key
    bench.tracker.tell(order("c", 3))
    bench.offer()
    assert bench.choice.value is None


def test_a_single_order_is_chosen_already() -> None:
    """Where no other order could be meant, nobody needs to choose."""
    bench = Bench(ScriptedTracker(order("only", 7)))
    assert bench.click("Pause") == "pause: queued for #7 only"
    widgets.Widget.close_all()


def test_a_list_too_long_is_started_anew() -> None:
    """Beyond two hundred lines a fresh list takes over, without a choice and without a leak."""
    bench = Bench(ScriptedTracker(*(order(f"o{n}", n) for n in range(1, 51))))
    assert bench.tracker is not None
    first = bench.choice
    living = _living()
    for n in range(51, 251):
        later = NOON + timedelta(seconds=n)
        bench.tracker.tell(order(f"o{n}", n, status="FAILED", last_event=later))
        bench.offer()
    assert bench.choice is not first
    assert bench.choice.value is None
    assert len(bench.choice.options) <= MAX_CHOICES + 1
    assert _living() == living
    widgets.Widget.close_all()


def _enabled(bench: Bench) -> set[str]:
    return {
        each.description.split()[0] for each in bench.bar.widget.children[1:] if not each.disabled
    }


def test_buttons_are_enabled_for_what_is_possible_now() -> None:
    """With an order chosen: what can be done with it; before: what can be done with any."""
    bench = Bench(ScriptedTracker(order("runs", 1), order("failed", 2, status="FAILED")))
    assert bench.tracker is not None
    assert _enabled(bench) == {"Pause", "Cancel", "Retry"}
    bench.choice.value = order("runs").key
    assert _enabled(bench) == {"Pause", "Cancel"}
    bench.tracker.tell(order("runs", 1, status="PAUSED"))
    bench.offer()
    assert _enabled(bench) == {"Resume", "Cancel"}
    bench.tracker.tell(order("runs", 1, status="DONE", waits_for_download=True))
    bench.offer()
    assert _enabled(bench) == {"Download"}
    bench.choice.value = order("failed").key
    assert _enabled(bench) == {"Retry"}
    widgets.Widget.close_all()


def test_the_filter_appears_with_the_sixth_order_and_limits_the_table() -> None:
    """Typing shows the matching rows at once, also when nothing repaints the view."""
    tracker = ScriptedTracker(*(order(f"o{n}", n) for n in range(1, 6)))
    view = WidgetView(lambda: tracker, _all)
    view.paint(tracker.snapshot())
    assert view._filter.layout.display == "none"
    tracker.tell(order("needle", 6))
    view.visible = True
    view.paint(tracker.snapshot())
    assert view._filter.layout.display == "flex"
    view._filter.value = "NEED"
    assert view._table.value.count("<tr ") == 1
    assert "1 of 6 orders match" in view._foot.value
    view.visible = False
    view._filter.value = ""
    assert view._table.value.count("<tr ") == 6
    view.close()


def test_hostile_names_are_text_in_the_list() -> None:
    """Names are cleaned; the list itself shows them as text."""
    bench = Bench(ScriptedTracker(order(label="<b>x</b>\u202e\n", order_id=1)))
    assert bench.choice.options[1][0] == "#1 <b>x</b>\ufffd"
    widgets.Widget.close_all()


def test_a_closed_panel_leaves_no_widget_behind() -> None:
    """Twenty times opened, painted and closed: the kernel holds no more widgets than before."""
    tracker = ScriptedTracker(order())
    living = _living()
    for _ in range(20):
        view = WidgetView(lambda: tracker, _all)
        view.paint(tracker.snapshot())
        assert _living() > living
        view.close()
    assert _living() == living


def test_painting_the_same_again_sends_nothing() -> None:
    """Only parts that look different get a new value: the table is not sent for a note."""
    tracker = ScriptedTracker(order())
    view = WidgetView(lambda: tracker, _all)
    view.paint(tracker.snapshot())
    sent: list[str] = []
    for part in (view._head, view._table, view._foot, view._answer):
        part.observe(lambda change: sent.append(change["new"]), "value")
    view.paint(tracker.snapshot())
    assert sent == []
    view.say("a note")
    view.paint(tracker.snapshot())
    assert len(sent) == 1
    assert "a note" in sent[0]
    view.close()


class Shown:
    """What a live view holds after it was painted: its rows as the page gets them."""

    def __init__(self, view: AnyWidgetView) -> None:
        self._root = view.root

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The values of each row, from top to bottom."""
        slots = self._root.order
        return [
            {**getattr(self._root, f"name_{slot}"), **getattr(self._root, f"state_{slot}")}
            for slot in slots
        ]


def test_anywidget_gets_each_row_once_and_then_what_changed() -> None:
    """A row keeps its slot while it is shown; the page is told the order of the slots."""
    tracker = ScriptedTracker(order("a", 1), order("b", 2, message="long " * 50))
    view = AnyWidgetView(lambda: tracker, _all)
    view.paint(tracker.snapshot())
    shown = Shown(view)
    assert [row["name"] for row in shown.rows] == ["a", "b"]
    assert shown.rows[0]["key"] == '["project1", "a"]'
    assert len(shown.rows[1]["tooltip"]) > len(shown.rows[1]["remarks"][0])
    slot_of_a = view.root.order[0]
    sent: list[str] = []
    view.root.observe(lambda change: sent.append(change["name"]), All)
    tracker.tell(order("c", 3, status="FAILED"), order("a", 1, suborders_done=1))
    view.paint(tracker.snapshot())
    assert [row["name"] for row in shown.rows] == ["c", "a", "b"]
    assert view.root.order[1] == slot_of_a
    new_row = {"name_2", "state_2", "progress_2"}
    assert new_row | {"order", "headline", f"progress_{slot_of_a}"} <= set(sent)
    assert not {"name_0", "name_1", "note", "answer", "problems"} & set(sent)
    assert view.root.headline == "1 of 3 orders finished"
    sent.clear()
    tracker.tell(order("a", 1, suborders_done=2, suborders_total=9))
    view.paint(tracker.snapshot())
    assert set(sent) <= {f"progress_{slot_of_a}", "fraction", "overall"}
    assert getattr(view.root, f"progress_{slot_of_a}")[0] == "2/9"
    view.root.only = "failed"
    assert [row["name"] for row in shown.rows] == ["c"]
    view.close()


def test_a_click_on_anywidget_names_its_order_and_is_answered() -> None:
    """The page sends the key of an order, so a late click cannot act on another one."""
    tracker = ScriptedTracker(order("a", 1), order("b", 2, waits_for_download=True))
    view = AnyWidgetView(lambda: tracker, _all)
    view.widget(tracker.snapshot())
    for message in (
        {"action": "cancel", "key": '["project1", "a"]'},
        {"action": "download", "key": None},
        {"action": "format the disk", "key": None},
        {"key": "no JSON"},
        "nothing",
    ):
        view.root._handle_custom_msg(message, [])
    assert tracker.asked == [("cancel", order("a").key), ("download", order("b").key)]
    view.paint(tracker.snapshot())
    assert view.root.answer == "download: queued for #2 b"
    view.close()


@pytest.mark.parametrize(
    ("kind", "most_bytes"), [(WidgetView, 23_500), (AnyWidgetView, 3_800)], ids=["ipy", "any"]
)
def test_a_repaint_of_a_thousand_orders_sends_little(
    kind: type[LiveView], most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 200 changes between two repaints; the first version of the view sent 38,400 bytes."""
    now = datetime.now(UTC)
    known = {
        "status": "SUBORDER_DONE",
        "message": "Sub-order is finished, 1 of its parts can be downloaded",
        "suborders_total": 400,
        "first_event": now - timedelta(minutes=5),
    }
    names = [f"nb-{n:08x}" for n in range(1000)]
    orders = [order(name, n, label=f"SWOT pass {n:04d}", **known) for n, name in enumerate(names)]
    tracker = ScriptedTracker(*orders)
    view = kind(lambda: tracker, _all)  # type: ignore[call-arg,arg-type]
    view.widget(tracker.snapshot())
    sent: list[int] = []

    def count(_: object, message: dict[str, Any], **__: object) -> None:
        sent.append(len(json.dumps(message, default=str, ensure_ascii=False).encode()))

    monkeypatch.setattr(widgets.Widget, "_send", count)
    random = Random(1)
    for repaint in range(1, 11):
        for n in random.sample(range(1000), 200):
            orders[n] = replaced(orders[n], suborders_done=orders[n].suborders_done + 1)
        health = Health(state=HealthState.CONSUMING, since=NOON, last_event=now)
        tracker.tell(*orders, health=replace(health, last_event=now + timedelta(seconds=repaint)))
        view.paint(tracker.snapshot())
    assert 0 < sum(sent) / 10 <= most_bytes
    monkeypatch.undo()
    view.close()


def test_the_widgets_can_be_chosen_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a call or by the environment; a wrong choice, or one that is not installed, says so."""
    tracker = ScriptedTracker(order("a", 1))
    with pytest.raises(SettingsError, match='must be "ipywidgets" or "anywidget"'):
        use("qt")  # type: ignore[arg-type]
    monkeypatch.setenv("REGARDS_NB_WIDGETS", "anywidget")
    made = widget(tracker)
    assert type(made).__name__ == "TableWidget"
    assert widget(tracker) is made
    monkeypatch.delenv("REGARDS_NB_WIDGETS")
    assert isinstance(widget(tracker, [order("a").key]), widgets.VBox)
    made.close()
    monkeypatch.setenv("REGARDS_NB_WIDGETS", "anywidget")
    assert widget(tracker) is not made
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(SettingsError, match=r"regards_nb\[marimo\]"):
        use("anywidget")
    close_views(tracker)
