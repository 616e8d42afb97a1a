"""The bar below the table: choose an order, then say what to do with it.

One bar and not a button per row: a burst of some thousand widget messages is dropped by ZMQ
without an error, and buttons inside repainted HTML would lose the focus.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from regards_nb.display.board import Tone
from regards_nb.display.possible import Action
from regards_nb.display.style import COLOUR
from regards_nb.errors import RegardsError
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.board import Board
    from regards_nb.display.sources import TrackerView
    from regards_nb.orders import OrderKey

#: Clicks during a cell that blocks the kernel all arrive when it ends: the same one again within
#: this time is impatience and not a second order.
IMPATIENCE_S = 2.0

#: A longer list is started anew.
MAX_CHOICES = 200

_ANY = "choose an order"
_ACTIONS = (
    (Action.DOWNLOAD, "Download", "Fetch what is ready: of this order, or of all that wait for it"),
    (Action.PAUSE, "Pause", "Ask REGARDS to pause this order"),
    (Action.RESUME, "Resume", "Ask REGARDS to go on with this order"),
    (Action.RETRY, "Retry", "Ask REGARDS to try the failed files again"),
    (Action.CANCEL, "Cancel order", "Ask REGARDS to stop this order and to delete it"),
)


def discard(*unwanted: Any) -> None:
    """Close widgets with their layouts and styles, which ipywidgets would keep for ever."""
    for widget in unwanted:
        parts = (getattr(widget, "layout", None), getattr(widget, "style", None))
        widget.close()
        for part in parts:
            if isinstance(part, widgets.Widget):
                part.close()


class OrderChoice:
    """The list to choose from.

    A front end tells which *line* was chosen, and that message may be seconds old. So a line
    never changes its order: new orders are appended, and a list that became too long is replaced
    by another widget. Whenever the list changes, nothing is chosen: the worst a race can do is to
    ask again, never to cancel another order.
    """

    def __init__(self, chosen: Callable[[Any], object]) -> None:
        self._chosen = chosen
        self._keys: list[OrderKey] = []
        self._titles: dict[OrderKey, str] = {}
        self.widget = self._dropdown()

    @property
    def key(self) -> OrderKey | None:
        """The chosen order."""
        key: OrderKey | None = self.widget.value
        return key

    def title(self, key: OrderKey) -> str:
        """Return what the list says for an order."""
        return self._titles.get(key, key[1])

    def offer(self, titles: dict[OrderKey, str]) -> None:
        """See to it that these orders can be chosen."""
        new = [key for key in titles if key not in self._titles]
        changed = {**self._titles, **titles}
        if changed == self._titles:
            return
        self._keys = [*self._keys, *new]
        if len(self._keys) > MAX_CHOICES:
            self._keys, changed = list(titles), titles
            discard(self.widget)
            self.widget = self._dropdown()
        self._titles = changed
        with self.widget.hold_sync():
            self.widget.options = [(_ANY, None), *((changed[key], key) for key in self._keys)]
            # One order: no other could be meant.
            self.widget.index = 1 if len(self._keys) == 1 else 0

    def _dropdown(self) -> Any:
        dropdown = widgets.Dropdown(
            options=[(_ANY, None)],
            # the list's name, for those who hear it
            description="Order",
            style={"description_width": "initial"},
            layout=widgets.Layout(width="auto", min_width="180px", max_width="420px"),
            tooltip="The order that the buttons are about",
        )
        dropdown.observe(self._chosen, "value")
        return dropdown


class ActionBar:
    """A list of orders and five buttons. Clicks only queue; the tracker's workers act.

    Parameters
    ----------
    tracker : callable
        Returns the tracker, or None once it is gone: the bar must not keep it alive.
    done : callable
        Called with what to say after a click, on the thread of the click.
    """

    def __init__(
        self, tracker: Callable[[], TrackerView | None], done: Callable[[str], None]
    ) -> None:
        self._tracker = tracker
        self._done = done
        # Click handlers run on the main thread or, with some kernels, on one of their own.
        self._lock = threading.Lock()
        self._waiting: tuple[OrderKey, ...] = ()
        self._possible: dict[OrderKey, frozenset[Action]] = {}
        self._last_click: tuple[Action, OrderKey | None, float] | None = None
        self._choice = OrderChoice(lambda _: self._enable())
        self._buttons = {name: _button(*rest) for name, *rest in _ACTIONS}
        for name, button in self._buttons.items():
            button.on_click(lambda _, name=name: self._click(name))
        self._buttons[Action.CANCEL].style.text_color = COLOUR[Tone.FAILED]
        self.widget = widgets.HBox(
            [self._choice.widget, *self._buttons.values()],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )

    def offer(self, shown: Board) -> None:
        """Put the orders of the board into the list; called by whoever paints."""
        self._waiting = tuple(row.key for row in shown.rows if row.tone is Tone.WAITS)
        with self._lock:
            self._choice.offer({row.key: row.title for row in shown.rows})
        if self.widget.children[0] is not self._choice.widget:
            self.widget.children = (self._choice.widget, *self._buttons.values())
        waiting, download = len(self._waiting), self._buttons[Action.DOWNLOAD]
        download.description = f"Download ({waiting})" if waiting else "Download"
        download.button_style = "primary" if waiting else ""
        self._possible = {row.key: row.actions for row in shown.rows}
        self._enable()

    def close(self) -> None:
        """Remove the bar from every page and from the kernel's memory."""
        discard(self._choice.widget, *self._buttons.values(), self.widget)

    def _enable(self) -> None:
        """Enable the buttons for what can be done now.

        Before an order is chosen, for what can be done with any of them: while a cell blocks,
        the kernel hears of a choice only afterwards, and the click would be lost.
        """
        chosen, every = self._choice.key, self._possible
        wanted = every.values() if chosen is None else [every.get(chosen, frozenset(Action))]
        possible = frozenset[Action]().union(*wanted)
        for action, button in self._buttons.items():
            button.disabled = action not in possible

    def _click(self, action: Action) -> None:
        try:
            said = self._act(action)
        except RegardsError as exc:
            said = f"{action} is not possible: {exc}"
        except Exception as exc:  # noqa: BLE001 - an error in a handler would vanish in a log
            said = f"{action} is not possible: {type(exc).__name__}: {exc}"
        self._done(clean(said, 300))

    def _act(self, action: Action) -> str:
        tracker = self._tracker()
        if tracker is None:
            return "this tracker is gone: nothing was done"
        with self._lock:
            key = self._choice.key
            if self._is_impatience(action, key):
                return f"{action}: already queued"
        if action is Action.DOWNLOAD:
            return self._download(tracker, key)
        if key is None:
            return f"{action}: choose an order first"
        getattr(tracker, action)(key)
        return f"{action}: queued for {self._choice.title(key)}"

    def _download(self, tracker: TrackerView, key: OrderKey | None) -> str:
        keys = self._waiting if key is None else (key,)
        for each in keys:
            tracker.download_soon(each)
        if not keys:
            return "download: no order waits; choose one to fetch what it has"
        named = self._choice.title(keys[0]) if len(keys) == 1 else f"{len(keys)} orders"
        return f"download: queued for {named}"

    def _is_impatience(self, action: Action, key: OrderKey | None) -> bool:
        """Tell whether this click repeats the last one; asking for a choice is not counted."""
        if key is None and action is not Action.DOWNLOAD:
            return False
        now = time.monotonic()
        last, self._last_click = self._last_click, (action, key, now)
        return last is not None and last[:2] == (action, key) and now - last[2] < IMPATIENCE_S


def _button(description: str, tooltip: str) -> Any:
    return widgets.Button(
        description=description, tooltip=tooltip, layout=widgets.Layout(width="auto")
    )
