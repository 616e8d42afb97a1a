"""Writes the generated parts of the pages: statuses and their diagram, errors, columns, rooms.

Run ``python docs/generate.py`` after a change; ``tests/test_docs.py`` fails if the files are not
current. The statuses, their ranks and which of them end an order come from ``regards_nb.orders``.
The arrows of the diagram are the messages that the simulated REGARDS publishes for each outcome
and for a retry.
"""

from __future__ import annotations

import ast
import inspect
import json
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import regards_nb
from regards_nb import errors, frames, orders
from regards_nb.client import REFUSALS
from regards_nb.errors import RegardsError
from regards_nb.events import OrderStatus
from regards_nb.orders import FINISHED
from regards_nb.settings import FIELDS, SECRETS, variable
from regards_nb.simulator import Action, OrderPlan, Outcome, Simulator, StagingError

GENERATED = Path(__file__).parent / "generated"
PACKAGE = Path(regards_nb.__file__).parent
#: The file with the list of rooms.
LAYERS = PACKAGE.parent / "tests" / "test_layers.py"
REQUEST = "request"

_ENDED = ("DONE", "FAILED", "DONE_WITH_WARNING")
_RANK = orders._RANK  # noqa: SLF001 - this page is about it

_SAYS = {
    "GRANTED": "REGARDS accepted the request; the order has a number",
    "RUNNING": "REGARDS prepares files (known over REST only)",
    "SUBORDER_DONE": "the files of one sub-order can be downloaded",
    "PAUSED": "a user has paused the order (known over REST only)",
    "DENIED": "REGARDS refused the request; there is no order",
    "FAILED": "with a link: some files are ready, download them; without: none is",
    "DONE_WITH_WARNING": "the name of FAILED with a link over REST and in the manual",
    "DONE": "REGARDS prepares no further file; the last ones may still have to be downloaded",
    "EXPIRED": "REGARDS has deleted the files (known over REST only)",
    "DELETED": "the order was deleted or cancelled (known over REST only)",
}


def main() -> None:
    """Write all files anew."""
    GENERATED.mkdir(exist_ok=True)
    for name, text in contents().items():
        (GENERATED / name).write_text(text, encoding="utf-8")


def contents() -> dict[str, str]:
    """Return the text of each generated file."""
    return {
        "life.svg": Diagram(transitions()).svg(),
        "statuses.md": status_table(),
        "errors.md": error_table(),
        "refusals.md": refusal_table(),
        "columns.md": column_tables(),
        "settings.md": settings_table(),
        "rooms.md": room_table(),
    }


# -- the statuses


def transitions() -> set[tuple[str, str]]:
    """Return the pairs of statuses that the simulated service publishes one after the other."""
    with Simulator(amqp=None, suborder_pause_s=0) as sim:
        for outcome in Outcome:
            # One owner per order: an order that nobody downloads blocks its owner's others.
            answer = sim.apply(_plan(outcome), correlation_id=outcome.name, owner=outcome.name)
            if answer.order_id is not None:
                sim.wait_for(answer.order_id, *_ENDED)
        number = sim.order(_plan(faults=(StagingError(),)), correlation_id="retried", owner="retry")
        sim.wait_for(number, *_ENDED)
        sim.service.act(sim.service.orders[number], Action.RETRY)
        sim.wait_for(number, "DONE")
        told: dict[str, list[str]] = {}
        for message in sim.transcript:
            status = json.loads(message.body)["status"]
            told.setdefault(message.correlation_id, [REQUEST]).append(status)
    return {step for statuses in told.values() for step in pairwise(statuses)}


def _plan(outcome: Outcome = Outcome.DONE, faults: tuple[StagingError, ...] = ()) -> OrderPlan:
    return OrderPlan(n_files=2, files_per_suborder=1, outcome=outcome, faults=faults)


def status_table() -> str:
    """Return the statuses as a table, lowest rank first."""
    rows = [
        f"| `{status}` | {_RANK.get(status, '')} | {'yes' if status in FINISHED else ''} "
        f"| {_SAYS[status]} |"
        for status in sorted(OrderStatus, key=lambda status: _RANK.get(status, -1))
    ]
    return "\n".join(
        ["| status | rank | ends the order | meaning |", "|---|---|---|---|", *rows, ""]
    )


# -- the diagram


class Node(NamedTuple):
    """A status and the coordinates of its centre."""

    name: str
    x: int
    y: int


_WIDTH, _HALF_W, _HALF_H = 800, 74, 20
_COLUMNS, _LAST_COLUMN = range(90, 800, 195), 690
_FIRST_Y, _STEP_Y = 40, 78


class Diagram:
    """The statuses: those of a running order in one line, final ones above each other."""

    def __init__(self, steps: set[tuple[str, str]]) -> None:
        self._steps = sorted(steps)
        sent = {name for step in steps for name in step} - {REQUEST}
        going = sorted(sent - FINISHED, key=_RANK.__getitem__)  # type: ignore[arg-type]
        ended = sorted(sent & FINISHED, key=_RANK.__getitem__)  # type: ignore[arg-type]
        heights = range(_FIRST_Y, 10_000, _STEP_Y)
        line = heights[len(ended) - 1]
        self._way = [REQUEST, *going]
        nodes = [Node(name, x, line) for name, x in zip(self._way, _COLUMNS, strict=False)]
        nodes += [Node(name, _LAST_COLUMN, y) for name, y in zip(ended, heights, strict=False)]
        self._nodes = {node.name: node for node in nodes}
        self._height = line + 62

    def svg(self) -> str:
        """Return the picture."""
        arrows = "\n".join(self._arrow(*step) for step in self._steps)
        boxes = "\n".join(_box(node) for node in self._nodes.values())
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {self._height}" '
            'role="img" aria-label="Which status of an order follows which" '
            'font-family="system-ui, sans-serif" font-size="13">\n'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>\n'
            f'<rect width="{_WIDTH}" height="{self._height}" rx="8" fill="#fff"/>\n'
            f'<g fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#tip)">\n{arrows}\n'
            f"</g>\n{boxes}\n</svg>\n"
        )

    def _arrow(self, source: str, target: str) -> str:
        start, end = self._nodes[source], self._nodes[target]
        if source == target:
            path, style = _loop(start), ""
        elif source in FINISHED:
            path, style = _back(start, end), ' stroke-dasharray="5 4"'
        elif start.y == end.y:
            path, style = f"M{start.x + _HALF_W} {start.y}H{end.x - _HALF_W}", ""
        else:
            path, style = _up(start, end, self._way.index(source)), ""
        return f'<path d="{path}"{style}><title>{source} to {target}</title></path>'


def _loop(node: Node) -> str:
    y = node.y + _HALF_H
    return f"M{node.x + 18} {y}C{node.x + 30} {y + 38} {node.x - 30} {y + 38} {node.x - 18} {y}"


def _back(start: Node, end: Node) -> str:
    """Return the path of a retry."""
    x, y = start.x - 60, end.y - 10
    return f"M{x} {start.y + _HALF_H}C{x} {y - 20} {x - 34} {y} {end.x + _HALF_W} {y}"


def _up(start: Node, end: Node, lane: int) -> str:
    """Return a path up and then to the right; each source has its own lane."""
    x, y = start.x + (20 if lane else (end.y - start.y) // 8), end.y + 12 * (lane - 1)
    return f"M{x} {start.y - _HALF_H}V{y + 14}Q{x} {y} {x + 14} {y}H{end.x - _HALF_W}"


def _box(node: Node) -> str:
    fill, stroke = ("#eef3fb", "#1976d2") if node.name not in FINISHED else ("#eef7f0", "#2e8b45")
    if node.name in {"DENIED", "FAILED"}:
        fill, stroke = "#fdeeee", "#d9363e"
    rx = 20 if node.name == REQUEST else 5
    # Thick lines mark final statuses: not every reader can tell the colours apart.
    width = 3 if node.name in FINISHED else 1.2
    return (
        f'<rect x="{node.x - _HALF_W}" y="{node.y - _HALF_H}" width="{2 * _HALF_W}" '
        f'height="{2 * _HALF_H}" rx="{rx}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="{width}"/><text x="{node.x}" y="{node.y + 5}" text-anchor="middle" '
        f'fill="#222">{escape(node.name)}</text>'
    )


# -- the errors


def error_table() -> str:
    """Return the exceptions with what they mean, as their docstrings say."""
    rows = [
        f"| {'&emsp;' * (_depth(kind) - 1)}`{kind.__name__}` | {_first_sentence(kind)} |"
        for kind in _tree(RegardsError)
    ]
    return "\n".join(["| exception | when |", "|:---|:---|", *rows, ""])


def _tree(root: type) -> list[type]:
    """Return a class and those below it, in the order of the file."""
    below = [kind for kind in vars(errors).values() if root in getattr(kind, "__bases__", ())]
    return [root, *(each for kind in below for each in _tree(kind))]


def _depth(kind: type) -> int:
    return kind.__mro__.index(RegardsError) + 1


def _first_sentence(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def refusal_table() -> str:
    """Return the codes of refused actions, in words."""
    rows = [f"| `{code}` | {why} | {advice} |" for code, (why, advice) in REFUSALS.items()]
    return "\n".join(["| code | means | what to do |", "|---|---|---|", *rows, ""])


# -- the frames

_FRAMES = {
    "tracker.events": frames.EVENT_COLUMNS,
    "tracker.orders": frames.ORDER_COLUMNS,
    "tracker.files": frames.FILE_COLUMNS,
    "tracker.rejected": frames.REJECTED_COLUMNS,
    "client.orders()": frames.REMOTE_COLUMNS,
    "client.search()": frames.PRODUCT_COLUMNS,
    "client.datasets()": frames.DATASET_COLUMNS,
    "client.attributes()": frames.ATTRIBUTE_COLUMNS,
    "client.estimate()": frames.SUMMARY_COLUMNS,
    "client.quota()": frames.QUOTA_COLUMNS,
}


def column_tables() -> str:
    """Return a table of columns for each frame."""
    head = ["| column | dtype | what it holds |", "|---|---|---|"]
    return "\n".join(
        "\n".join([f"**`{name}`**\n", *head, *_column_rows(columns), ""])
        for name, columns in _FRAMES.items()
    )


def _column_rows(columns: dict[str, frames.ColumnInfo]) -> list[str]:
    return [f"| `{name}` | {info.dtype} | {info.meaning} |" for name, info in columns.items()]


# -- the settings


def settings_table() -> str:
    """Return the settings with their environment variables."""
    rows = [
        *(f"| `{name}` | `{variable(name)}` | {field.meaning} |" for name, field in FIELDS.items()),
        *(f"| in no file | `{variable(name)}` | secret |" for name in SECRETS),
    ]
    return "\n".join(["| in the profile | environment | meaning |", "|---|---|---|", *rows, ""])


# -- the rooms


def room_table() -> str:
    """Return the rooms, from the bottom to the top, each with what it does."""
    rows = [f"| `{room}` | {_reason(room)} |" for room in _rooms()]
    return "\n".join(["| room | what it does |", "|---|---|", *rows, ""])


def _rooms() -> list[str]:
    """Return the rooms in the order that the test of the imports keeps."""
    for node in ast.parse(LAYERS.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="ROOMS")], value=ast.List() as rooms):
                return [room for room in ast.literal_eval(rooms) if _files(room)]
    raise LookupError(f"no ROOMS in {LAYERS}")


def _files(room: str) -> list[Path]:
    places = (PACKAGE / room / "__init__.py", PACKAGE / f"{room}.py")
    return [place for place in places if place.exists()]


def _reason(room: str) -> str:
    """Return the first paragraph of what a room says about itself."""
    text = ast.get_docstring(ast.parse(_files(room)[0].read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("``", "`")


if __name__ == "__main__":
    main()
