"""The board as HTML: pure, bounded, every string escaped, no script and nothing from the network.

It comes in three parts, head, table and foot, because the live view sends only those that
changed: screen readers hear the head when it says something new, not at every step of a bar.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from regards_nb.display.board import SIGN, board
from regards_nb.display.style import COLOUR, CSS, MAX_HEIGHT
from regards_nb.text import clean

if TYPE_CHECKING:
    from regards_nb.display.board import Board, Row, Tone
    from regards_nb.display.sources import SnapshotView

# JupyterLab turns cells to the right, and takes our style sheet out of notebooks it does not trust.
_LEFT = ' style="text-align:left"'
_COLUMNS = ("Order", "Parts", "Status", "What happens")


def html(snapshot: SnapshotView, *, note: str = "") -> str:
    """Return the snapshot as one static piece of HTML.

    Parameters
    ----------
    snapshot : Snapshot
        What to show.
    note : str
        A sentence to stand below the headline.

    Returns
    -------
    str
        At most 50 orders, the most urgent first, and a line that counts the others.
    """
    shown = board(snapshot)
    scroll = f'<div style="max-height:{MAX_HEIGHT};overflow:auto">{table(shown)}</div>'
    return f"{head(shown, note)}{scroll}{foot(shown)}"


def head(shown: Board, note: str = "") -> str:
    """Return headline, health and note, with the style sheet for all parts."""
    counts = "".join(f" <span>{_sign(tone)}{escape(words)}</span>" for tone, words in shown.counts)
    noted = f'<div class="rg-note">{escape(clean(note, 400))}</div>' if note else ""
    return (
        f'{CSS}<div class="regards-nb" role="status" aria-live="polite">'
        f'<div class="rg-head"><span class="rg-headline">{escape(shown.headline)}</span>{counts}'
        f'</div><div class="rg-health">{_sign(shown.health_tone)}{escape(shown.health)}</div>'
        f"{noted}</div>"
    )


def table(shown: Board) -> str:
    """Return one row per order."""
    if not shown.rows:
        return ""
    columns = "".join(f'<th scope="col"{_LEFT}>{name}</th>' for name in _COLUMNS)
    body = "".join(map(_row, shown.rows))
    return (
        '<div class="regards-nb"><table aria-label="REGARDS orders">'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def foot(shown: Board) -> str:
    """Return what stands below the table: the orders left out, and problems."""
    more = f'<div class="rg-more">{escape(shown.more)}</div>' if shown.more else ""
    problems = "".join(
        f'<div class="rg-problem rg-partly">{_mark("▲")}{escape(problem)}</div>'
        for problem in shown.problems
    )
    return f'<div class="regards-nb">{more}{problems}</div>' if more or problems else ""


def answer(said: str) -> str:
    """Return what the last click did."""
    if not said:
        return ""
    return f'<div class="regards-nb rg-said" role="status">{escape(clean(said, 300))}</div>'


def _row(row: Row) -> str:
    parts = f' <span class="rg-parts">{escape(row.parts)}</span>' if row.parts else ""
    fetched = _bar(row, row.fetched, "bytes") if row.fetched is not None else ""
    files = f'<div class="rg-files">{fetched} {escape(row.files)}</div>' if row.files else ""
    return (
        f'<tr class="rg-{row.tone}"><th scope="row"{_LEFT}>{_title(row)}</th>'
        f"<td{_LEFT}>{_bar(row, row.fraction, 'parts')}{parts}{files}</td>"
        f"<td{_LEFT}>{_mark(SIGN[row.tone])}{escape(row.status)}</td>"
        f'<td class="rg-remarks"{_LEFT} title="{escape(row.tooltip)}">{_remarks(row)}</td></tr>'
    )


def _title(row: Row) -> str:
    number = f'<div class="rg-id">{escape(row.number)}</div>' if row.number else ""
    name = f'<div class="rg-name" title="{escape(row.full_name)}">{escape(row.name)}</div>'
    return f"{name}{number}"


def _bar(row: Row, fraction: float | None, of: str) -> str:
    """Return a native bar; none as long as the total is unknown, rather than an empty one."""
    if fraction is None:
        return ""
    label = escape(f"{of} of order {row.title}")
    said = escape(row.parts) if of == "parts" else f"{fraction:.0%}"
    return (
        f'<progress class="rg-{of}-bar" max="1" value="{fraction:.4g}" aria-label="{label}" '
        f'style="accent-color:{COLOUR[row.tone]}">{said}</progress>'
    )


def _remarks(row: Row) -> str:
    act = row.tone == "waits"
    first = f'<span class="rg-act">{escape(row.remarks[0])}</span>' if act and row.remarks else ""
    rest = [escape(remark) for remark in row.remarks[bool(first) :]]
    return " · ".join([first, *rest] if first else rest)


def _sign(tone: Tone) -> str:
    return f'<span class="rg-{tone}">{_mark(SIGN[tone])}</span>'


def _mark(sign: str) -> str:
    """Return a sign for the eye: the word beside it says the same to everybody."""
    return f'<i class="rg-sign" aria-hidden="true">{sign}</i>&nbsp;'
