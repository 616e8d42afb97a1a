"""The live view of anywidget: for marimo, and where selected text must be kept.

The kernel sends values and not HTML, and only those that changed: each text around the table, the
order of the rows, and of each row its name, its state and its progress. A row keeps its slot while
it is shown, so one more sub-order costs some thirty bytes. `table.js` draws them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from regards_nb.display.html import CSS, MAX_HEIGHT
from regards_nb.display.live import Clicks, LiveView
from regards_nb.display.model import MAX_ROWS, Action
from regards_nb.orders import OrderKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.display.model import KeysOf, Row, TableModel
    from regards_nb.tracker import OrderTracker

_CSS = (
    CSS.removeprefix("<style>").removesuffix("</style>")
    + f"""
.regards-nb .rg-scroll{{max-height:{MAX_HEIGHT};overflow:auto}}
.regards-nb .rg-counts>span{{margin-right:14px}}
.regards-nb .rg-problem{{white-space:pre-line}}
.regards-nb .rg-filter{{width:26em;max-width:100%;margin:2px 0 6px}}
.regards-nb .rg-actions{{display:flex;flex-wrap:wrap;gap:4px;padding:6px 0 2px}}
.regards-nb .rg-actions>*,.regards-nb .rg-filter{{font:inherit;color:inherit;padding:3px 10px;
border:1px solid var(--rg-line);border-radius:3px;background:var(--rg-back)}}
.regards-nb .rg-actions button{{cursor:pointer;background:var(--rg-track)}}
.regards-nb .rg-actions button:disabled{{cursor:default;opacity:.45}}
.regards-nb .rg-actions select{{max-width:26em}}
.regards-nb [hidden]{{display:none!important}}
"""
)
#: The texts around the table that are those of the model, and the others.
_OF_MODEL = ("headline", "overall", "health", "standstill", "more", "has_filter")
_OTHERS = ("fraction", "counts", "health_severity", "problems", "note", "answer", "waiting")
#: The values of a row, by how often they change: never, at times, and with each sub-order.
_KINDS = ("name", "state", "progress")


class _Base(anywidget.AnyWidget):
    """The values that the page shows."""

    _esm = Path(__file__).with_name("table.js")
    _css = _CSS
    #: The slots of the rows, from top to bottom.
    order: Any = traitlets.List().tag(sync=True)
    #: The words that the user typed into the filter.
    only = traitlets.Unicode().tag(sync=True)


_NAMES = (*_OF_MODEL, *_OTHERS, *(f"{kind}_{slot}" for kind in _KINDS for slot in range(MAX_ROWS)))
TableWidget: Any = type(
    "TableWidget", (_Base,), {name: traitlets.Any().tag(sync=True) for name in _NAMES}
)


class AnyWidgetView(LiveView):
    """The live view made of one anywidget."""

    def __init__(self, tracker: Callable[[], OrderTracker | None], keys_of: KeysOf) -> None:
        super().__init__(keys_of)
        self._clicks = Clicks(tracker)
        self._slots: dict[OrderKey, int] = {}
        #: By slot.
        self._rows: dict[int, Row] = {}
        self.root = TableWidget()
        self.root.on_msg(self._on_message)
        self.root.observe(self.on_filter, "only")

    def update(self, model: TableModel, note: str, answer: str) -> None:
        """Show these texts; one message holds what changed."""
        self._clicks.update(model)
        shown = {row.key for row in model.rows}
        self._slots = {key: slot for key, slot in self._slots.items() if key in shown}
        free = iter(sorted(set(range(MAX_ROWS)) - set(self._slots.values())))
        with self.root.hold_sync():
            for row in model.rows:
                slot = self._slots.get(row.key)
                if slot is None:
                    slot = self._slots[row.key] = next(free)
                if self._rows.get(slot) == row:
                    continue
                self._rows[slot] = row
                for kind, values in zip(
                    _KINDS, (_name(row), _state(row), _progress(row)), strict=True
                ):
                    setattr(self.root, f"{kind}_{slot}", values)
            self.root.order = [self._slots[row.key] for row in model.rows]
            for name in _OF_MODEL:
                setattr(self.root, name, getattr(model, name))
            fraction = None if model.fraction is None else round(model.fraction, 3)
            self.root.fraction = fraction
            self.root.counts = [[str(severity), words] for severity, words in model.counts]
            self.root.health_severity = str(model.health_severity)
            self.root.problems = list(model.problems)
            self.root.note, self.root.answer = note, answer
            self.root.waiting = len(self._clicks.waiting)

    def discard(self, *, keep_table: bool) -> None:
        """Close the widget unless a page shows it."""
        if not keep_table:
            layout = self.root.layout
            self.root.close()
            layout.close()

    def _on_message(self, _: object, content: Any, __: object) -> None:
        """Handle a click of the page."""
        try:
            action = Action(content["action"])
            key = None if content["key"] is None else OrderKey(*json.loads(content["key"]))
        except (TypeError, KeyError, ValueError):
            # A page of another version sends other messages.
            return
        self.answer(self._clicks.handle(action, key))


def _name(row: Row) -> dict[str, str]:
    """Return what identifies an order."""
    values = {"key": json.dumps(row.key), "name": row.name, "number": row.number}
    return {**values, "full": row.full_name} if row.full_name else values


def _state(row: Row) -> dict[str, Any]:
    """Return the values of a row that change at times, without the empty ones."""
    values = {
        "severity": str(row.severity),
        "status": row.status,
        "remarks": list(row.remarks),
        "actions": sorted(map(str, row.actions)),
        "tooltip": row.full_message,
    }
    return {name: value for name, value in values.items() if value not in ("", [])}


def _progress(row: Row) -> list[Any]:
    """Return the values of a row that change often, in the order in which `table.js` reads them."""
    fraction, fetched = (
        None if value is None else round(value, 3) for value in (row.fraction, row.fetched)
    )
    values = [row.parts, fraction, row.timing, row.files, fetched]
    return values if row.files else values[:3]
