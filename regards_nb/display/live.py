"""The live view of a notebook: its outputs, the fallback pictures of widgets, and clicks."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

from regards_nb.display.facts import OrderFacts, Severity
from regards_nb.display.html import (
    EMPTY_BUNDLE,
    MAX_HANDLES,
    as_of,
    fallback_bundle,
    in_marimo,
    publish,
    static_bundle,
)
from regards_nb.display.model import Action, DownloadRates, table_model
from regards_nb.errors import RegardsError
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.model import KeysOf, Row, TableModel
    from regards_nb.orders import OrderKey
    from regards_nb.tracker import OrderTracker, Snapshot

#: Clicks during a cell that blocks the kernel all arrive when the cell ends: the same click again
#: within this time is not a second request.
REPEATED_CLICK_S = 2.0
#: A longer list of orders to choose from is replaced by a new one.
MAX_CHOICES = 200


class LiveView(ABC):
    """One set of widgets; any number of outputs may show it, and they are replaced together."""

    #: How old the fallback picture may be: each new one is sent whole, and saves the notebook.
    fallback_interval_s = 60.0
    #: The widget that holds all others; subclasses make it.
    root: Any

    def __init__(self, keys_of: KeysOf) -> None:
        self.keys_of = keys_of
        self.page_exists: Callable[[], bool] = lambda: True
        self.visible = False
        self.last: Snapshot | None = None
        # show() runs on the caller's thread, paint() on the refresh thread. A click that freezes
        # the view enters again.
        self._lock = threading.RLock()
        self._note = ""
        #: The words that the user typed into the filter.
        self._filter_words = ""
        self._changed = False
        self._rates = DownloadRates()
        self._facts = OrderFacts()
        self._handles: deque[Any] = deque(maxlen=MAX_HANDLES)
        self._answer_text = ""
        self._fallback_handles: deque[Any] = deque(maxlen=MAX_HANDLES)
        #: The snapshot that the fallback pictures show, and when they may be replaced.
        self._fallback: Snapshot | None = None
        self._next_fallback_s = 0.0
        #: Whether an output shows the widgets that cannot be replaced, as the value of a cell.
        self._is_permanent = False

    @abstractmethod
    def update(self, model: TableModel, note: str, answer: str) -> None:
        """Show these texts; send only what changed."""

    @abstractmethod
    def discard(self, *, keep_table: bool) -> None:
        """Remove the widgets from the kernel's memory; with *keep_table*, the table stays."""

    @property
    def is_alive(self) -> bool:
        """Whether the page still exists; that of Panel ends without closing its widgets."""
        return self.root.comm is not None and self.page_exists()

    @property
    def changed(self) -> bool:
        """Whether to paint although the tracker did not change."""
        return self._changed or self._is_fallback_due

    @property
    def _is_fallback_due(self) -> bool:
        is_old = self._fallback is not self.last and time.monotonic() >= self._next_fallback_s
        return bool(self._fallback_handles) and is_old

    def show(self, snapshot: Snapshot, *, with_fallback: bool = False) -> None:
        """Put the view below the running cell.

        *with_fallback* adds a fallback picture, for a view that may not be closed before the kernel
        ends: the reopened notebook shows the picture.
        """
        if in_marimo():
            # marimo keeps the page, and only the cell that made an output can replace it.
            sys.modules["marimo"].output.append(self.widget(snapshot))
            return
        with self._lock:
            publish(self._bundle(snapshot), self._handles)
            if with_fallback:
                self._publish_fallback(snapshot)

    def bundle(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return the view as the value of a cell, with HTML and text for other front ends.

        The value of a cell has no display id, so its fallback picture is a separate output.
        """
        with self._lock:
            self._is_permanent = True
            self._publish_fallback(snapshot)
            return self._bundle(snapshot)

    def widget(self, snapshot: Snapshot) -> Any:
        """Return the widget, for code that places it itself."""
        with self._lock:
            self._is_permanent = True
            self.paint(snapshot)
            self.visible = True
            return self.root

    def detach_outputs(self, keys_of: KeysOf) -> None:
        """Stop updating the outputs so far; the next `show` makes a new one."""
        self.keys_of = keys_of
        self._handles.clear()
        self._fallback_handles.clear()
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

    def paint(self, snapshot: Snapshot) -> None:
        """Update the widgets, and the fallback picture from time to time."""
        with self._lock:
            self._changed = False
            self.last = snapshot
            self._rates.update(snapshot.orders.where("downloading"), time.monotonic())
            model = table_model(
                snapshot, only=self._filter_words, rates=self._rates, facts=self._facts
            )
            self.update(model, self._note, self._answer_text)
            if self._is_fallback_due:
                self._replace_fallback(fallback_bundle(self._still(snapshot)))

    def freeze(self, snapshot: Snapshot, note: str = "") -> None:
        """Replace the outputs by the last state as plain HTML, which the notebook stores."""
        with self._lock:
            self.visible = False
            self.last = snapshot
            self._note = note
            words = " · ".join(filter(None, (note, self._answer_text, as_of())))
            bundle = static_bundle(self._still(snapshot), words)
            for handle in self._handles:
                handle.update(bundle, raw=True)
            # The value of a cell cannot be replaced: its widgets show the last state, and its
            # fallback stays for the time when the kernel has ended.
            is_permanent = self._is_permanent
            self._replace_fallback(
                fallback_bundle(self._still(snapshot)) if is_permanent else EMPTY_BUNDLE
            )
            if is_permanent:
                self._note = " · ".join(filter(None, (note, as_of())))
                self.paint(snapshot)

    def close(self) -> None:
        """Remove the widgets from the kernel's memory, except those that stay on a page."""
        with self._lock:
            self.discard(keep_table=self._is_permanent)

    def on_filter(self, change: Any) -> None:
        """Show the matching rows at once, not with the next repaint: the user waits for them."""
        self._filter_words = change["new"]
        if self.last is not None:
            self.paint(self.last)

    def _still(self, snapshot: Snapshot) -> TableModel:
        """Return the texts of a picture that does not move."""
        return table_model(snapshot, facts=self._facts)

    def _bundle(self, snapshot: Snapshot) -> dict[str, Any]:
        self.paint(snapshot)
        self.visible = True
        live = self.root._repr_mimebundle_()
        # anywidget returns the metadata beside the values
        values = live[0] if isinstance(live, tuple) else live
        return {**values, **static_bundle(self._still(snapshot), as_of())}

    def _publish_fallback(self, snapshot: Snapshot) -> None:
        publish(fallback_bundle(self._still(snapshot)), self._fallback_handles)
        self._fallback = snapshot

    def _replace_fallback(self, bundle: dict[str, Any]) -> None:
        for handle in self._fallback_handles:
            handle.update(bundle, raw=True)
        self._fallback = self.last
        self._next_fallback_s = time.monotonic() + self.fallback_interval_s


class Clicks:
    """Turns clicks into requests to the tracker, if it still exists; returns what to answer."""

    def __init__(self, tracker: Callable[[], OrderTracker | None]) -> None:
        self._tracker = tracker
        # Click handlers run on the main thread or, with some kernels, on a thread of their own.
        self._lock = threading.Lock()
        self._last: tuple[Action, OrderKey | None, float] | None = None
        self._rows: dict[OrderKey, Row] = {}
        #: Of the orders that the table has shown: a click may come after its row has gone.
        self.titles: dict[OrderKey, str] = {}

    def update(self, model: TableModel) -> None:
        """Store the rows of the table."""
        self._rows = {row.key: row for row in model.rows}
        shown = {row.key: row.title for row in model.rows}
        merged = {**self.titles, **shown}
        self.titles = merged if len(merged) <= MAX_CHOICES else shown

    @property
    def waiting(self) -> tuple[OrderKey, ...]:
        """The orders that wait for a download."""
        return tuple(key for key, row in self._rows.items() if row.severity is Severity.WAITS)

    def allowed(self, key: OrderKey | None) -> frozenset[Action]:
        """Return the allowed actions of an order, or, without one, of any order of the table.

        An order that the table no longer shows allows everything: the server decides.
        """
        if key is not None:
            return self._rows[key].actions if key in self._rows else frozenset(Action)
        return frozenset[Action]().union(*(row.actions for row in self._rows.values()))

    def handle(self, action: Action, key: OrderKey | None) -> str:
        """Queue a request, and return what happened."""
        try:
            words = self._act(action, key)
        except RegardsError as exc:
            words = f"{action} is not possible: {exc}"
        except Exception as exc:  # noqa: BLE001 - an error in a handler would only reach a log
            words = f"{action} is not possible: {type(exc).__name__}: {exc}"
        return clean(words, 300)

    def _act(self, action: Action, key: OrderKey | None) -> str:
        tracker = self._tracker()
        if tracker is None:
            return "this tracker no longer exists; nothing was done"
        with self._lock:
            if self._is_repeated(action, key):
                return f"{action}: already queued"
        if action is Action.DOWNLOAD:
            return self._download(tracker, key)
        if key is None:
            return f"{action}: choose an order first"
        getattr(tracker, action)(key)
        return f"{action}: queued for {self._title(key)}"

    def _title(self, key: OrderKey) -> str:
        return self.titles.get(key, key.correlation_id)

    def _download(self, tracker: OrderTracker, key: OrderKey | None) -> str:
        keys = self.waiting if key is None else (key,)
        for each in keys:
            tracker.download_soon(each)
        if not keys:
            return "download: no order waits for a download; choose an order to fetch its files"
        what = self._title(keys[0]) if len(keys) == 1 else f"{len(keys)} orders"
        return f"download: queued for {what}"

    def _is_repeated(self, action: Action, key: OrderKey | None) -> bool:
        """Return whether this click repeats the last one; a click without an order never does."""
        if key is None and action is not Action.DOWNLOAD:
            return False
        now = time.monotonic()
        last, self._last = self._last, (action, key, now)
        return last is not None and last[:2] == (action, key) and now - last[2] < REPEATED_CLICK_S
