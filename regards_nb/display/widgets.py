"""The live view of ipywidgets: head, table, foot, a filter, and a bar with buttons.

Three HTML widgets and not one, because only those that changed are sent. The table scrolls on its
widget's layout: a scroll box inside the HTML would jump to the top at every repaint.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from regards_nb.display.html import (
    COLOUR,
    CSS,
    EMPTY_BUNDLE,
    MAX_HANDLES,
    MAX_HEIGHT,
    answer,
    foot,
    head,
    publish,
    spare_bundle,
    static_bundle,
    table,
)
from regards_nb.display.model import Action, DownloadRates, Severity, table_model
from regards_nb.errors import RegardsError
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.model import KeysOf, Row, SnapshotView, TableModel, TrackerView
    from regards_nb.orders import OrderKey

#: From this number of orders on there is a filter.
MIN_TO_FILTER = 6
#: Clicks during a cell that blocks the kernel all arrive when the cell ends: the same click again
#: within this time is not a second request.
REPEATED_CLICK_S = 2.0
#: A longer list of orders is replaced by a new one.
MAX_CHOICES = 200

_NO_CHOICE = "choose an order"
_BUTTONS = (
    (Action.DOWNLOAD, "Download", "Fetch what is ready of this order, or of every waiting order"),
    (Action.PAUSE, "Pause", "Ask REGARDS to pause this order"),
    (Action.RESUME, "Resume", "Ask REGARDS to resume this order"),
    (Action.RETRY, "Retry", "Ask REGARDS to try the failed files again"),
    (Action.CANCEL, "Cancel order", "Ask REGARDS to stop this order and to delete it"),
)


class WidgetView:
    """One set of widgets; any number of outputs may show it.

    Parameters
    ----------
    tracker : callable
        Returns the tracker, or None after it was deleted.
    keys_of : callable
        Returns the orders to show; None for all.
    """

    interval_s = 0.2
    #: How old the spare picture may be: each new one makes the page send and save the notebook.
    spare_interval_s = 10.0

    def __init__(self, tracker: Callable[[], TrackerView | None], keys_of: KeysOf) -> None:
        self.keys_of = keys_of
        self.visible = False
        self.last: SnapshotView | None = None
        # One thread paints at a time; a click that freezes the view enters again.
        self._lock = threading.RLock()
        self._note = self._answer_text = ""
        self._changed = False
        self._rates = DownloadRates()
        self._handles: deque[Any] = deque(maxlen=MAX_HANDLES)
        self._spare_handles: deque[Any] = deque(maxlen=MAX_HANDLES)
        #: The snapshot of the spare pictures, and when they may be replaced.
        self._spare: SnapshotView | None = None
        self._next_spare_s = 0.0
        self._is_cell_value = False
        # The style sheet is sent once, and not with each new headline.
        self._style = widgets.HTML(CSS, layout=widgets.Layout(display="none"))
        self._head, self._foot, self._answer = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._table = widgets.HTML(layout=widgets.Layout(max_height=MAX_HEIGHT, overflow="auto"))
        self._filter = widgets.Text(
            description="Filter",
            placeholder="words in name, number, status or message",
            layout=widgets.Layout(width="auto", max_width="420px", display="none"),
            style={"description_width": "initial"},
        )
        self._filter.observe(lambda _: self._on_filter(), "value")
        self._bar = ActionBar(tracker, self.answer)
        self._box = widgets.VBox(
            [
                self._style,
                self._head,
                self._filter,
                self._table,
                self._foot,
                self._bar.widget,
                self._answer,
            ]
        )

    @property
    def changed(self) -> bool:
        """Whether to paint although the tracker did not change."""
        return self._changed or self._is_spare_due

    @property
    def _is_spare_due(self) -> bool:
        is_old = self._spare is not self.last and time.monotonic() >= self._next_spare_s
        return bool(self._spare_handles) and is_old

    def show(self, snapshot: SnapshotView, *, with_spare: bool = False) -> None:
        """Put the view below the running cell.

        *with_spare* adds a hidden picture, for a view that may not be closed before the kernel
        ends: the reopened notebook shows the picture.
        """
        with self._lock:
            publish(self._bundle(snapshot), self._handles)
            if with_spare:
                self._publish_spare(snapshot)

    def bundle(self, snapshot: SnapshotView) -> dict[str, Any]:
        """Return the view as the value of a cell, with HTML and text for other front ends.

        The value of a cell has no display id, so its spare picture is a separate output.
        """
        with self._lock:
            self._is_cell_value = True
            self._publish_spare(snapshot)
            return self._bundle(snapshot)

    def begin(self, keys_of: KeysOf) -> None:
        """Stop updating the outputs so far; the next `show` makes a new one."""
        self.keys_of = keys_of
        self._handles.clear()
        self._spare_handles.clear()
        self._answer_text = ""

    def say(self, note: str) -> None:
        """Change the sentence below the headline; the next `paint` shows it."""
        self._changed |= note != self._note
        self._note = note

    def answer(self, words: str) -> None:
        """Show the result of a click, which may arrive after the cell has ended."""
        self._answer_text = words
        self._changed = True
        if not self.visible and self.last is not None:
            self.freeze(self.last, self._note)

    def paint(self, snapshot: SnapshotView) -> None:
        """Update the widgets; ipywidgets sends only the values that changed."""
        with self._lock:
            self._changed = False
            self.last = snapshot
            self._rates.update(snapshot.orders, time.monotonic())
            model = table_model(snapshot, only=self._filter.value, rates=self._rates)
            if len(snapshot.orders) >= MIN_TO_FILTER:
                self._filter.layout.display = "flex"
            self._head.value = head(model, self._note)
            self._table.value = table(model)
            self._foot.value = foot(model)
            self._answer.value = answer(self._answer_text)
            self._bar.update(model)
            if self._is_spare_due:
                self._replace_spare(spare_bundle(snapshot))

    def freeze(self, snapshot: SnapshotView, note: str = "") -> None:
        """Replace the outputs by the last state as plain HTML, which the notebook stores."""
        with self._lock:
            self.visible = False
            self.last = snapshot
            self._note = note
            bundle = static_bundle(snapshot, " · ".join(filter(None, (note, self._answer_text))))
            for handle in self._handles:
                handle.update(bundle, raw=True)
            # The value of a cell cannot be replaced: its widgets show the last state, and its
            # spare picture stays for the time when the kernel has ended.
            self._replace_spare(spare_bundle(snapshot) if self._is_cell_value else EMPTY_BUNDLE)
            if self._is_cell_value:
                self.paint(snapshot)

    def close(self) -> None:
        """Remove the widgets from the kernel's memory, except those that a cell's value shows."""
        with self._lock:
            self._bar.close()
            discard(self._answer)
            if not self._is_cell_value:
                discard(self._style, self._head, self._filter, self._table, self._foot, self._box)

    def _bundle(self, snapshot: SnapshotView) -> dict[str, Any]:
        self.paint(snapshot)
        self.visible = True
        live = self._box._repr_mimebundle_()
        return {**live, **static_bundle(snapshot, self._note)}

    def _publish_spare(self, snapshot: SnapshotView) -> None:
        publish(spare_bundle(snapshot), self._spare_handles)
        self._spare = snapshot

    def _replace_spare(self, bundle: dict[str, Any]) -> None:
        for handle in self._spare_handles:
            handle.update(bundle, raw=True)
        self._spare = self.last
        self._next_spare_s = time.monotonic() + self.spare_interval_s

    def _on_filter(self) -> None:
        """Let the refresh thread show the matching rows; after that thread ended, do it here."""
        self._changed = True
        if not self.visible and self.last is not None:
            self.paint(self.last)


def discard(*unwanted: Any) -> None:
    """Close widgets with their layouts and styles, which ipywidgets keeps otherwise."""
    for widget in unwanted:
        parts = (getattr(widget, "layout", None), getattr(widget, "style", None))
        widget.close()
        for part in parts:
            if isinstance(part, widgets.Widget):
                part.close()


# -- the buttons


class Clicks:
    """Turns clicks into requests to the tracker; returns what to answer.

    Parameters
    ----------
    tracker : callable
        Returns the tracker, or None after it was deleted.
    """

    def __init__(self, tracker: Callable[[], TrackerView | None]) -> None:
        self._tracker = tracker
        # Click handlers run on the main thread or, with some kernels, on a thread of their own.
        self._lock = threading.Lock()
        self._last: tuple[Action, OrderKey | None, float] | None = None
        self._rows: dict[OrderKey, Row] = {}

    def update(self, model: TableModel) -> None:
        """Learn the orders of the table."""
        self._rows = {row.key: row for row in model.rows}

    @property
    def waiting(self) -> tuple[OrderKey, ...]:
        """The orders that wait for a download."""
        return tuple(key for key, row in self._rows.items() if row.severity is Severity.WAITS)

    def allowed(self, key: OrderKey | None) -> frozenset[Action]:
        """Return what is allowed for an order, or, without one, for any order of the table.

        An order that the table no longer shows allows everything: the server decides.
        """
        if key is not None:
            return self._rows[key].actions if key in self._rows else frozenset(Action)
        return frozenset[Action]().union(*(row.actions for row in self._rows.values()))

    def handle(self, action: Action, key: OrderKey | None, title: str) -> str:
        """Queue a request, and return what happened."""
        try:
            words = self._act(action, key, title)
        except RegardsError as exc:
            words = f"{action} is not possible: {exc}"
        except Exception as exc:  # noqa: BLE001 - an error in a handler would only reach a log
            words = f"{action} is not possible: {type(exc).__name__}: {exc}"
        return clean(words, 300)

    def _act(self, action: Action, key: OrderKey | None, title: str) -> str:
        tracker = self._tracker()
        if tracker is None:
            return "this tracker no longer exists; nothing was done"
        with self._lock:
            if self._is_repeated(action, key):
                return f"{action}: already queued"
        if action is Action.DOWNLOAD:
            return self._download(tracker, key, title)
        if key is None:
            return f"{action}: choose an order first"
        getattr(tracker, action)(key)
        return f"{action}: queued for {title}"

    def _download(self, tracker: TrackerView, key: OrderKey | None, title: str) -> str:
        keys = self.waiting if key is None else (key,)
        for each in keys:
            tracker.download_soon(each)
        if not keys:
            return "download: no order waits for a download; choose an order to fetch its files"
        if key is None:
            title = self._rows[keys[0]].title if len(keys) == 1 else f"{len(keys)} orders"
        return f"download: queued for {title}"

    def _is_repeated(self, action: Action, key: OrderKey | None) -> bool:
        """Return whether this click repeats the last one; a click without an order never does."""
        if key is None and action is not Action.DOWNLOAD:
            return False
        now = time.monotonic()
        last, self._last = self._last, (action, key, now)
        return last is not None and last[:2] == (action, key) and now - last[2] < REPEATED_CLICK_S


class OrderChoice:
    """The list of orders above the buttons.

    A front end sends the number of the chosen *line*, and that message may be seconds old. So a
    line keeps its order: new orders are appended, and a list that became too long is replaced by
    another widget. When the list changes, nothing is chosen: a race can only make the user choose
    again, and never cancels another order.
    """

    def __init__(self, on_choice: Callable[[Any], object]) -> None:
        self._on_choice = on_choice
        self._keys: list[OrderKey] = []
        self._titles: dict[OrderKey, str] = {}
        self.widget = self._dropdown()

    @property
    def key(self) -> OrderKey | None:
        """The chosen order."""
        key: OrderKey | None = self.widget.value
        return key

    def title(self, key: OrderKey) -> str:
        """Return the text of an order in the list."""
        return self._titles.get(key, key.correlation_id)

    def update(self, titles: dict[OrderKey, str]) -> None:
        """Add these orders to the list, or change their texts."""
        new = [key for key in titles if key not in self._titles]
        merged = {**self._titles, **titles}
        if merged == self._titles:
            return
        self._keys = [*self._keys, *new]
        if len(self._keys) > MAX_CHOICES:
            self._keys, merged = list(titles), titles
            discard(self.widget)
            self.widget = self._dropdown()
        self._titles = merged
        with self.widget.hold_sync():
            self.widget.options = [(_NO_CHOICE, None), *((merged[key], key) for key in self._keys)]
            # A single order is chosen.
            self.widget.index = 1 if len(self._keys) == 1 else 0

    def _dropdown(self) -> Any:
        dropdown = widgets.Dropdown(
            options=[(_NO_CHOICE, None)],
            # Screen readers say this name.
            description="Order",
            style={"description_width": "initial"},
            layout=widgets.Layout(width="auto", min_width="180px", max_width="420px"),
            tooltip="The order for the buttons",
        )
        dropdown.observe(self._on_choice, "value")
        return dropdown


class ActionBar:
    """A list of orders and five buttons. A click only queues a request; the tracker's threads act.

    It is one bar and not a button per row: ZMQ drops a burst of some thousand widget messages
    without an error, and buttons inside repainted HTML would lose the focus.

    Parameters
    ----------
    tracker : callable
        Returns the tracker, or None after it was deleted. The bar must not keep it alive.
    answer : callable
        Called with a text after each click, on the thread of the click.
    """

    def __init__(
        self, tracker: Callable[[], TrackerView | None], answer: Callable[[str], None]
    ) -> None:
        self._answer = answer
        self._clicks = Clicks(tracker)
        # The refresh thread changes the list while a click reads it.
        self._lock = threading.Lock()
        self._choice = OrderChoice(lambda _: self._enable())
        self._buttons = {action: _button(*texts) for action, *texts in _BUTTONS}
        for action, button in self._buttons.items():
            button.on_click(lambda _, action=action: self._on_click(action))
        self._buttons[Action.CANCEL].style.text_color = COLOUR[Severity.FAILED]
        self.widget = widgets.HBox(
            [self._choice.widget, *self._buttons.values()],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )

    def update(self, model: TableModel) -> None:
        """Put the orders of the table into the list, and enable the buttons."""
        self._clicks.update(model)
        with self._lock:
            self._choice.update({row.key: row.title for row in model.rows})
        if self.widget.children[0] is not self._choice.widget:
            self.widget.children = (self._choice.widget, *self._buttons.values())
        n_waiting, download = len(self._clicks.waiting), self._buttons[Action.DOWNLOAD]
        download.description = f"Download ({n_waiting})" if n_waiting else "Download"
        download.button_style = "primary" if n_waiting else ""
        self._enable()

    def close(self) -> None:
        """Remove the bar from every page and from the kernel's memory."""
        discard(self._choice.widget, *self._buttons.values(), self.widget)

    def _enable(self) -> None:
        """Enable the buttons for what is allowed now.

        Without a chosen order, a button is enabled if any order allows it: while a cell blocks
        the kernel, the choice arrives late, and a disabled button would lose the click.
        """
        allowed = self._clicks.allowed(self._choice.key)
        for action, button in self._buttons.items():
            button.disabled = action not in allowed

    def _on_click(self, action: Action) -> None:
        with self._lock:
            key = self._choice.key
            title = "" if key is None else self._choice.title(key)
        self._answer(self._clicks.handle(action, key, title))


def _button(description: str, tooltip: str) -> Any:
    return widgets.Button(
        description=description, tooltip=tooltip, layout=widgets.Layout(width="auto")
    )
