"""The table as text: for terminals, log files, and front ends that cannot show HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from regards_nb.display.model import SIGN, table_model
from regards_nb.text import clean, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from regards_nb.display.model import Row, TableModel
    from regards_nb.tracker import Snapshot

BAR_CELLS = 16
#: Longest of each column, so that one long name does not push the others off the screen.
_MAX_CELLS = (24, 32, BAR_CELLS, 12, 20, 32, 44, 400)


def text(snapshot: Snapshot, *, note: str = "") -> str:
    """Return the snapshot as lines of text.

    Parameters
    ----------
    snapshot : Snapshot
        What to show.
    note : str
        A sentence below the headline.

    Returns
    -------
    str
        The same orders and texts as :func:`regards_nb.display.html` shows.
    """
    return "\n".join(lines(table_model(snapshot), note))


def lines(model: TableModel, note: str = "") -> list[str]:
    """Return headline, health, note, one line per order, hidden orders and problems."""
    return [*above(model, note), *aligned(model.rows), *below(model)]


def above(model: TableModel, note: str = "") -> list[str]:
    """Return the lines above the table."""
    counts = ", ".join(words for _, words in model.counts)
    overall = "  ".join(filter(None, (bar(model.fraction), model.overall)))
    return [
        f"REGARDS: {model.headline}{f' ({counts})' if counts else ''}",
        *([overall] if overall else []),
        *([f"! {model.standstill}"] if model.standstill else []),
        f"{SIGN[model.health_severity]} {model.health}",
        *([clean(note, 400)] if note else []),
    ]


def below(model: TableModel) -> list[str]:
    """Return the lines below the table."""
    return [*([model.more] if model.more else []), *(f"! {each}" for each in model.problems)]


def last_line(snapshot: Snapshot) -> str:
    """Return the headline of the last state."""
    return above(table_model(snapshot))[0]


def line(row: Row) -> str:
    """Return one order on one line, for a log whose lines begin with the time."""
    words = cells(row)
    return "  ".join(filter(None, (*words[:5], *words[6:])))


def cells(row: Row) -> tuple[str, ...]:
    """Return the columns of one order."""
    return (
        row.number,
        row.name,
        bar(row.fraction),
        counted(row.parts, "part") if row.parts else "",
        f"{SIGN[row.severity]} {row.status}",
        row.timing,
        row.files,
        " · ".join(row.remarks),
    )


def bar(fraction: float | None) -> str:
    """Return a bar of fixed width; an empty string if the fraction is unknown.

    >>> bar(0.5)
    '████████░░░░░░░░'
    """
    if fraction is None:
        return ""
    full = int(fraction * BAR_CELLS)
    return "█" * full + "░" * (BAR_CELLS - full)


def fit(shown: str, n_cells: int) -> str:
    """Return a string cut to so many cells of a terminal.

    >>> fit("abcdef", 4), fit("中文字", 4)
    ('abc…', '中…')
    """
    if cell_len(shown) <= n_cells:
        return shown
    return f"{set_cell_size(shown, n_cells - 1).rstrip()}…"


def aligned(rows: Iterable[Row]) -> Iterator[str]:
    """Return one line per order, each column padded to its widest cell."""
    table = [
        tuple(fit(cell, limit) for cell, limit in zip(cells(row), _MAX_CELLS, strict=True))
        for row in rows
    ]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    for line_cells in table:
        padded = (
            set_cell_size(cell, width)
            for cell, width in zip(line_cells, widths, strict=True)
            if width
        )
        yield "  ".join(padded).rstrip()
