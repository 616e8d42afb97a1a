"""The board as text: for terminals, log files, and front ends that cannot show HTML."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from regards_nb.display.board import SIGN, board
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.display.board import Board, Row
    from regards_nb.display.sources import SnapshotView

BAR_CELLS = 16
#: Longest of each column, so that one odd order does not push the others off the screen.
_COLUMN_CELLS = (24, 32, BAR_CELLS, 12, 20, 32, 400)


def text(snapshot: SnapshotView, *, note: str = "") -> str:
    """Return the snapshot as lines of text.

    Parameters
    ----------
    snapshot : Snapshot
        What to show.
    note : str
        A sentence to stand below the headline.

    Returns
    -------
    str
        The same orders and words as :func:`regards_nb.display.html` shows.
    """
    return "\n".join(lines(board(snapshot), note))


def lines(shown: Board, note: str = "") -> list[str]:
    """Return headline, note, one line per order, and what does not fit."""
    counts = ", ".join(words for _, words in shown.counts)
    headline = f"REGARDS: {shown.headline}{f' ({counts})' if counts else ''}"
    return [
        headline,
        f"{SIGN[shown.health_tone]} {shown.health}",
        *([clean(note, 400)] if note else []),
        *_aligned([cells(row) for row in shown.rows]),
        *([shown.more] if shown.more else []),
        *(f"! {problem}" for problem in shown.problems),
    ]


def line(row: Row) -> str:
    """Return one order on one line."""
    return "  ".join(filter(None, cells(row)))


def cells(row: Row) -> tuple[str, ...]:
    """Return the columns of one order."""
    return (
        row.number,
        row.name,
        bar(row.fraction),
        f"{row.parts} parts" if row.parts else "",
        f"{SIGN[row.tone]} {row.status}",
        row.files,
        " · ".join(row.remarks),
    )


def bar(fraction: float | None) -> str:
    """Return a bar of fixed width; nothing if there is nothing to measure against.

    >>> bar(0.5)
    '████████░░░░░░░░'
    """
    if fraction is None:
        return ""
    full = int(fraction * BAR_CELLS)
    return "█" * full + "░" * (BAR_CELLS - full)


def width(shown: str) -> int:
    """Return how many cells of a terminal a string fills.

    >>> width("abc"), width("中文")
    (3, 4)
    """
    return sum(_char_width(char) for char in shown)


def fit(shown: str, n_cells: int) -> str:
    """Return a string cut to so many cells."""
    if width(shown) <= n_cells:
        return shown
    used = 0
    for index, char in enumerate(shown):
        used += _char_width(char)
        if used > n_cells - 1:
            return f"{shown[:index]}…"
    return shown


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or char == "\u200d":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _aligned(table: list[tuple[str, ...]]) -> Iterable[str]:
    """Pad each column to its widest cell."""
    table = [
        tuple(fit(cell, limit) for cell, limit in zip(row, _COLUMN_CELLS, strict=True))
        for row in table
    ]
    widths = [max(map(width, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (
            cell + " " * (wide - width(cell))
            for cell, wide in zip(row, widths, strict=True)
            if wide
        )
        yield "  ".join(padded).rstrip()
