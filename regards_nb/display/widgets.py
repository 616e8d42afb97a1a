"""The live view of ipywidgets: head, table, foot, a filter, and a bar with buttons.

Three HTML widgets and not one, because only those that changed are sent. The table scrolls on its
widget's layout: a scroll box inside the HTML would jump to the top at every repaint.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from regards_nb.display.facts import Severity
from regards_nb.display.html import COLOUR, CSS, MAX_HEIGHT, answer_html, foot, head, table
from regards_nb.display.live import Clicks, LiveView
from regards_nb.display.model import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.model import KeysOf, TableModel
    from regards_nb.orders import OrderKey
    from regards_nb.tracker import OrderTracker

_NO_CHOICE = "choose an order"
_BUTTONS = (
    (Action.DOWNLOAD, "Download", "Fetch what is ready of this order, or of every waiting order"),
    (Action.PAUSE, "Pause", "Ask REGARDS to pause this order"),
    (Action.RESUME, "Resume", "Ask REGARDS to resume this order"),
    (Action.RETRY, "Retry", "Ask REGARDS to try the failed files again"),
    (Action.CANCEL, "Cancel order", "Ask REGARDS to stop this order and to delete it"),
)


class WidgetView(LiveView):
    """The live view made of ipywidgets."""

    def __init__(self, tracker: Callable[[], OrderTracker | None], keys_of: KeysOf) -> None:
        super().__init__(keys_of)
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
        self._filter.observe(self.on_filter, "value")
        self._bar = ActionBar(tracker, self.answer)
        parts = [self._style, self._head, self._filter, self._table, self._foot]
        self.root = widgets.VBox([*parts, self._bar.widget, self._answer])

    def update(self, model: TableModel, note: str, answer: str) -> None:
        """Show these texts; ipywidgets sends only the values that changed."""
        if model.has_filter:
            self._filter.layout.display = "flex"
        self._head.value = head(model, note)
        self._table.value = table(model, is_live=True)
        self._foot.value = foot(model)
        self._answer.value = answer_html(answer)
        self._bar.update(model)

    def discard(self, *, keep_table: bool) -> None:
        """Remove the widgets from the kernel's memory; with *keep_table*, the table stays."""
        table = (self._style, self._head, self._filter, self._table, self._foot, self.root)
        discard(*self._bar.widgets, self._answer, *(() if keep_table else table))


def discard(*unwanted: Any) -> None:
    """Close widgets with their layouts and styles, which ipywidgets keeps otherwise.

    All are closed, also where the page of one cannot be told.
    """
    with ExitStack() as stack:
        for widget in unwanted:
            for part in (getattr(widget, "layout", None), getattr(widget, "style", None), widget):
                if isinstance(part, widgets.Widget):
                    stack.callback(part.close)


# -- the buttons


class ActionBar:
    """A list of orders and five buttons. A click only queues a request; the tracker's threads act.

    It is one bar and not a button per row: ZMQ drops a burst of some thousand widget messages
    without an error, and buttons inside repainted HTML would lose the focus. The bar must not keep
    the tracker alive, so it calls *tracker*; it calls *answer* with a text after each click, on its
    thread.

    A front end sends the number of the chosen *line* of the list, and that message may be seconds
    old. So a line keeps its order: new orders are appended, and a list that became too long is
    replaced by another widget. When the list changes, nothing is chosen: a race can only make the
    user choose again, and never cancels another order.
    """

    def __init__(
        self, tracker: Callable[[], OrderTracker | None], answer: Callable[[str], None]
    ) -> None:
        self._answer = answer
        self._clicks = Clicks(tracker)
        self._choice = self._dropdown()
        self._buttons = {
            action: widgets.Button(
                description=text, tooltip=tooltip, layout=widgets.Layout(width="auto")
            )
            for action, text, tooltip in _BUTTONS
        }
        for action, button in self._buttons.items():
            button.on_click(lambda _, action=action: self._on_click(action))
        self._buttons[Action.CANCEL].style.text_color = COLOUR[Severity.FAILED]
        self.widget = widgets.HBox(
            [self._choice, *self._buttons.values()],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )

    def update(self, model: TableModel) -> None:
        """Put the orders of the table into the list, and enable the buttons."""
        before = self._clicks.titles
        self._clicks.update(model)
        if self._clicks.titles != before:
            self._list_orders(before)
        n_waiting, download = len(self._clicks.waiting), self._buttons[Action.DOWNLOAD]
        download.description = f"Download ({n_waiting})" if n_waiting else "Download"
        download.button_style = "primary" if n_waiting else ""
        self._enable()

    @property
    def widgets(self) -> tuple[Any, ...]:
        """The bar and what it holds."""
        return (self._choice, *self._buttons.values(), self.widget)

    def _list_orders(self, before: dict[OrderKey, str]) -> None:
        """Show other orders or texts in the list; in a new list if orders have left it."""
        titles = self._clicks.titles
        if not before.keys() <= titles.keys():
            discard(self._choice)
            self._choice = self._dropdown()
            self.widget.children = (self._choice, *self._buttons.values())
        with self._choice.hold_sync():
            lines = ((title, key) for key, title in titles.items())
            self._choice.options = [(_NO_CHOICE, None), *lines]
            # A single order is chosen.
            self._choice.index = 1 if len(titles) == 1 else 0

    def _dropdown(self) -> Any:
        dropdown = widgets.Dropdown(
            options=[(_NO_CHOICE, None)],
            # Screen readers say this name.
            description="Order",
            style={"description_width": "initial"},
            layout=widgets.Layout(width="auto", min_width="180px", max_width="420px"),
            tooltip="The order for the buttons",
        )
        dropdown.observe(lambda _: self._enable(), "value")
        return dropdown

    def _enable(self) -> None:
        """Enable the buttons of the actions that are allowed now.

        Without a chosen order, a button is enabled if any order allows it: while a cell blocks
        the kernel, the choice arrives late, and a disabled button would lose the click.
        """
        allowed = self._clicks.allowed(self._choice.value)
        for action, button in self._buttons.items():
            button.disabled = action not in allowed

    def _on_click(self, action: Action) -> None:
        self._answer(self._clicks.handle(action, self._choice.value))
