"""A live view made of widgets: head, table, foot, and the bar with the buttons.

Three HTML widgets and not one, because only those that changed are sent. The table scrolls on
its widget's layout: a scroll box inside the HTML would jump to the top at every repaint.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from regards_nb.display import markup
from regards_nb.display.actions import ActionBar, discard
from regards_nb.display.board import board
from regards_nb.display.handles import MAX_HANDLES, publish, static_bundle
from regards_nb.display.style import MAX_HEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.sources import SnapshotView, TrackerView, Wanted


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
        self._in_bundle = False
        self._head, self._foot, self._answer = widgets.HTML(), widgets.HTML(), widgets.HTML()
        scroll = widgets.Layout(max_height=MAX_HEIGHT, overflow="auto")
        self._table = widgets.HTML(layout=scroll)
        self._bar = ActionBar(tracker, self.answer)
        self._box = widgets.VBox(
            [self._head, self._table, self._foot, self._bar.widget, self._answer]
        )

    @property
    def changed(self) -> bool:
        """Whether there is something to paint even if the tracker did not change."""
        return self._changed

    def show(self, snapshot: SnapshotView) -> None:
        """Put the view below the running cell."""
        with self._lock:
            bundle = self._bundle(snapshot)
            self._handles.append(publish(bundle, raw=True, display_id=True))

    def bundle(self, snapshot: SnapshotView) -> dict[str, Any]:
        """Return the view as the value of a cell, with HTML and text for who has no widgets."""
        with self._lock:
            self._in_bundle = True
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
            self.freeze(self.last, " · ".join(filter(None, (self._note, said))))

    def paint(self, snapshot: SnapshotView) -> None:
        """Bring the widgets up to date; ipywidgets sends only what is different."""
        with self._lock:
            self._changed = False
            self.last = snapshot
            shown = board(snapshot)
            self._head.value = markup.head(shown, self._note)
            self._table.value = markup.table(shown)
            self._foot.value = markup.foot(shown)
            self._answer.value = markup.answer(self._said)
            self._bar.offer(shown)

    def freeze(self, snapshot: SnapshotView, note: str = "") -> None:
        """Replace the outputs by the last state as plain HTML, which the notebook can store."""
        with self._lock:
            self.visible = False
            self.last = snapshot
            self._note = note
            bundle = static_bundle(snapshot, note)
            for handle in self._handles:
                handle.update(bundle, raw=True)
            if self._in_bundle:
                # No handle leads to the value of a cell: its widgets get the last state instead.
                self.paint(snapshot)

    def begin(self, wanted: Wanted) -> None:
        """Leave the outputs so far as they are; the next show() starts a new one."""
        self.wanted = wanted
        self._handles.clear()
        self._said = ""

    def close(self) -> None:
        """Take the widgets out of the kernel's memory, but for those a cell's value shows."""
        with self._lock:
            self._bar.close()
            discard(self._answer)
            if not self._in_bundle:
                discard(self._head, self._table, self._foot, self._box)

    def _bundle(self, snapshot: SnapshotView) -> dict[str, Any]:
        self.paint(snapshot)
        self.visible = True
        live = self._box._repr_mimebundle_()
        return {**live, **static_bundle(snapshot, self._note)}
