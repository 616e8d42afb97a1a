"""A live view made of widgets: head, table, foot, and the bar with the buttons.

Three HTML widgets and not one, because only those that changed are sent. The table scrolls on
its widget's layout: a scroll box inside the HTML would jump to the top at every repaint.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from regards_nb.display import markup
from regards_nb.display.actions import ActionBar, discard
from regards_nb.display.board import board
from regards_nb.display.handles import MAX_HANDLES, NOTHING, publish, spare_bundle, static_bundle
from regards_nb.display.style import MAX_HEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.sources import SnapshotView, TrackerView, Wanted


#: Fewer orders are found without a filter.
MIN_TO_FILTER = 6
#: How far the spare picture may lag behind: each one makes the page send and save the notebook.
SPARE_INTERVAL_S = 10.0


class WidgetPanel:
    """One set of widgets, however many outputs show it.

    Parameters
    ----------
    tracker : callable
        Returns the tracker, or None once it is gone.
    wanted : callable
        Returns the orders to show; None for all.
    """

    interval_s = 0.2

    def __init__(self, tracker: Callable[[], TrackerView | None], wanted: Wanted) -> None:
        self.wanted = wanted
        self.visible = False
        # Painted by one thread at a time; re-entered when a click freezes the panel.
        self._lock = threading.RLock()
        self._note = self._said = ""
        self._changed = False
        self.last: SnapshotView | None = None
        self._handles: deque[Any] = deque(maxlen=MAX_HANDLES)
        self._spares: deque[Any] = deque(maxlen=MAX_HANDLES)
        #: What the spare pictures show, and when they may be replaced.
        self._spared: SnapshotView | None = None
        self._next_spare_s = 0.0
        self._in_bundle = False
        self._head, self._foot, self._answer = widgets.HTML(), widgets.HTML(), widgets.HTML()
        scroll = widgets.Layout(max_height=MAX_HEIGHT, overflow="auto")
        self._table = widgets.HTML(layout=scroll)
        self._filter = widgets.Text(
            description="Filter",
            placeholder="words in name, number, status or message",
            layout=widgets.Layout(width="auto", max_width="420px", display="none"),
            style={"description_width": "initial"},
        )
        self._filter.observe(lambda _: self._filtered(), "value")
        self._bar = ActionBar(tracker, self.answer)
        self._box = widgets.VBox(
            [self._head, self._filter, self._table, self._foot, self._bar.widget, self._answer]
        )

    @property
    def changed(self) -> bool:
        """Whether there is something to paint even if the tracker did not change."""
        return self._changed or self._is_spare_due

    @property
    def _is_spare_due(self) -> bool:
        is_old = self._spared is not self.last and time.monotonic() >= self._next_spare_s
        return bool(self._spares) and is_old

    def show(self, snapshot: SnapshotView, *, with_spare: bool = False) -> None:
        """Put the view below the running cell.

        *with_spare* adds a hidden picture, for a view that may never be told that it ends: it is
        seen when the notebook is opened again and the kernel with the widgets is gone.
        """
        with self._lock:
            publish(self._bundle(snapshot), self._handles)
            if with_spare:
                self._publish_spare(snapshot)

    def bundle(self, snapshot: SnapshotView) -> dict[str, Any]:
        """Return the view as the value of a cell, with HTML and text for who has no widgets.

        Nobody can replace the value of a cell, so its spare picture is published here.
        """
        with self._lock:
            self._in_bundle = True
            self._publish_spare(snapshot)
            return self._bundle(snapshot)

    def say(self, note: str) -> None:
        """Change the sentence below the headline, from the next painting on."""
        self._changed |= note != self._note
        self._note = note

    def answer(self, said: str) -> None:
        """Say what a click did. A click may arrive when the cell and its view have ended."""
        self._said = said
        self._changed = True
        if not self.visible and self.last is not None:
            self.freeze(self.last, self._note)

    def paint(self, snapshot: SnapshotView) -> None:
        """Bring the widgets up to date; ipywidgets sends only what is different."""
        with self._lock:
            self._changed = False
            self.last = snapshot
            shown = board(snapshot, only=self._filter.value)
            if len(snapshot.orders) >= MIN_TO_FILTER:
                self._filter.layout.display = "flex"
            self._head.value = markup.head(shown, self._note)
            self._table.value = markup.table(shown)
            self._foot.value = markup.foot(shown)
            self._answer.value = markup.answer(self._said)
            self._bar.offer(shown)
            if self._is_spare_due:
                self._spare(spare_bundle(snapshot))

    def _publish_spare(self, snapshot: SnapshotView) -> None:
        publish(spare_bundle(snapshot), self._spares)
        self._spared = snapshot

    def _spare(self, bundle: dict[str, Any]) -> None:
        for handle in self._spares:
            handle.update(bundle, raw=True)
        self._spared = self.last
        self._next_spare_s = time.monotonic() + SPARE_INTERVAL_S

    def _filtered(self) -> None:
        """Show what matches: the repaint thread does, or, where it has ended, this one."""
        self._changed = True
        if not self.visible and self.last is not None:
            self.paint(self.last)

    def freeze(self, snapshot: SnapshotView, note: str = "") -> None:
        """Replace the outputs by the last state as plain HTML, which the notebook can store."""
        with self._lock:
            self.visible = False
            self.last = snapshot
            self._note = note
            bundle = static_bundle(snapshot, " · ".join(filter(None, (note, self._said))))
            for handle in self._handles:
                handle.update(bundle, raw=True)
            # No handle leads to the value of a cell: its widgets get the last state instead, and
            # the spare picture stays for the day when they are gone.
            self._spare(spare_bundle(snapshot) if self._in_bundle else NOTHING)
            if self._in_bundle:
                self.paint(snapshot)

    def begin(self, wanted: Wanted) -> None:
        """Leave the outputs so far as they are; the next show() starts a new one."""
        self.wanted = wanted
        self._handles.clear()
        self._spares.clear()
        self._said = ""

    def close(self) -> None:
        """Take the widgets out of the kernel's memory, but for those a cell's value shows."""
        with self._lock:
            self._bar.close()
            discard(self._answer)
            if not self._in_bundle:
                discard(self._head, self._filter, self._table, self._foot, self._box)

    def _bundle(self, snapshot: SnapshotView) -> dict[str, Any]:
        self.paint(snapshot)
        self.visible = True
        live = self._box._repr_mimebundle_()
        return {**live, **static_bundle(snapshot, self._note)}
