"""A view as HTML that is replaced through its display id: notebooks without live widgets.

The display id dies when the page is reloaded, and every update marks the notebook as changed:
widgets are preferred where there are any. This is also how a live view ends: as a saved picture
of the last state, because a notebook does not store widgets.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import IPython.display

from regards_nb.display.markup import html
from regards_nb.display.plain import text

if TYPE_CHECKING:
    from regards_nb.display.sources import SnapshotView, Wanted

#: Outputs of one view that are kept up to date; cells run over and over are forgotten.
MAX_HANDLES = 8


def publish(bundle: dict[str, Any], handles: deque[Any]) -> None:
    """Put something below the running cell, and keep the handle that replaces it.

    It is kept before anything is seen: the stop button may be pressed as soon as it is.
    """
    # IPython has no types
    handle: Any = IPython.display.DisplayHandle()  # type: ignore[no-untyped-call]
    handles.append(handle)
    handle.display(bundle, raw=True)


def static_bundle(snapshot: SnapshotView, note: str = "") -> dict[str, Any]:
    """Return HTML and text of the same snapshot."""
    return {"text/html": html(snapshot, note=note), "text/plain": text(snapshot, note=note)}


#: An output that shows nothing.
NOTHING = {"text/html": "", "text/plain": ""}

# Lab and Notebook prefer the widget to the HTML beside it even when the kernel with the widget is
# gone, and then say "model not found": the panel that says so is hidden. Elsewhere, also in what
# nbconvert makes, there is no such panel, and the HTML beside the widget is what one sees.
_PANEL = ">.lm-Panel.jp-OutputArea-output"
_LIVE = ":has(.jupyter-widgets .regards-nb)"
_DEAD = f":has(>.jp-OutputArea-child{_PANEL}):not({_LIVE})"
_SPARE_CSS = f"""<style>
.jp-OutputArea{_DEAD}:has(.regards-nb-spare)>.jp-OutputArea-child:has({_PANEL}){{display:none}}
.jp-OutputArea{_DEAD} .regards-nb-spare{{display:block!important}}
.jp-OutputArea{_LIVE}>.jp-OutputArea-child:has(.regards-nb-spare){{display:none}}
</style>"""


def spare_bundle(snapshot: SnapshotView) -> dict[str, Any]:
    """Return a picture that is seen only in place of a widget that cannot be shown any more."""
    picture = f'<div class="regards-nb-spare" style="display:none">{html(snapshot)}</div>'
    return {"text/html": f"{_SPARE_CSS}{picture}", "text/plain": ""}


class HtmlPanel:
    """One table, in however many outputs, replaced as a whole.

    Parameters
    ----------
    wanted : callable
        Returns the orders to show; None for all.
    note : str
        A sentence that stands below the headline unless another does.
    """

    #: Each update is a new output for the page: twice a second is bearable.
    interval_s = 0.5

    def __init__(self, wanted: Wanted, note: str = "") -> None:
        self.wanted = wanted
        self.visible = False
        self.last: SnapshotView | None = None
        # show() runs on the caller's thread, paint() on the repaint thread
        self._lock = threading.Lock()
        self._standing_note = note
        self._note = note
        self._handles: deque[Any] = deque(maxlen=MAX_HANDLES)
        self._shown: dict[str, Any] = {}
        self._changed = False

    @property
    def changed(self) -> bool:
        """Whether there is something to paint even if the tracker did not change."""
        return self._changed

    def begin(self, wanted: Wanted) -> None:
        """Leave the outputs so far as they are; the next show() starts a new one."""
        self.wanted = wanted
        self._handles.clear()

    def show(self, snapshot: SnapshotView, **_: object) -> None:
        """Put the table below the running cell."""
        with self._lock:
            self.last = snapshot
            bundle = static_bundle(snapshot, self._note)
            self._replace(bundle)
            self.visible = True
            publish(bundle, self._handles)

    def say(self, note: str) -> None:
        """Change the sentence below the headline, from the next painting on."""
        note = note or self._standing_note
        self._changed |= note != self._note
        self._note = note

    def paint(self, snapshot: SnapshotView) -> None:
        """Replace the table if it would look different."""
        with self._lock:
            self._changed = False
            self.last = snapshot
            self._replace(static_bundle(snapshot, self._note))

    def freeze(self, snapshot: SnapshotView, note: str = "") -> None:
        """Leave the last state standing."""
        with self._lock:
            self.visible = False
            self._replace(static_bundle(snapshot, note or self._standing_note))

    def close(self) -> None:
        """Do nothing: there are no widgets to give back."""

    def _replace(self, bundle: dict[str, Any]) -> None:
        if bundle != self._shown:
            for handle in self._handles:
                handle.update(bundle, raw=True)
            self._shown = bundle
