"""The table as HTML, and outputs that are replaced by display id.

The HTML is bounded, every string is escaped, and it has no script and loads nothing from the
network. It comes in three pieces, head, table and foot, because the live view sends only the
pieces that changed: a screen reader reads the head when its text changes, not at every step of a
bar.

Colours come from the page: JupyterLab's variables, else those of VS Code, else a colour that is
legible on white and on black. Texts keep the colour of the page; only signs and bars are
coloured, so contrast does not depend on the theme. JupyterLab removes the style sheet from a
notebook that is not trusted; the bars are native ``<progress>`` elements, so the table is still
legible there.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from regards_nb.display.facts import Severity
from regards_nb.display.model import SIGN, clock, table_model
from regards_nb.display.terminal import lines
from regards_nb.text import LINE_CHARS, clean

if TYPE_CHECKING:
    from collections import deque

    from regards_nb.display.model import Row, TableModel
    from regards_nb.tracker import Snapshot

#: The table scrolls from this height on.
MAX_HEIGHT = "440px"
#: Outputs of one view that are updated; a cell that runs again and again adds more.
MAX_HANDLES = 8

_COLUMNS = ("Order", "Parts", "Status", "Details")
# JupyterLab aligns cells to the right, and removes the style sheet if it does not trust a notebook.
_LEFT = ' style="text-align:left"'
# What HTML does not need: quotes around a word, and end tags that a parser adds itself.
_QUOTED_WORD = re.compile(r'="([\w.-]+)"')
_OPTIONAL_END = re.compile("</(?:td|th|tr)>")

#: Colour of each severity, also as inline style: that stays in notebooks that are not trusted.
COLOUR = {
    Severity.WAITS: "var(--jp-warn-color0,var(--vscode-charts-orange,#c77700))",
    Severity.FAILED: "var(--jp-error-color1,var(--vscode-charts-red,#d9363e))",
    Severity.INCOMPLETE: "var(--jp-warn-color1,var(--vscode-charts-yellow,#c77700))",
    Severity.RUNNING: "var(--jp-brand-color1,var(--vscode-charts-blue,#1976d2))",
    Severity.DONE: "var(--jp-success-color1,var(--vscode-charts-green,#2e8b45))",
    Severity.GONE: "var(--jp-ui-font-color2,var(--vscode-descriptionForeground,#777777))",
}
_SEVERITIES = "\n".join(
    f".regards-nb .rg-{severity}{{--rg-tone:{colour}}}\n"
    # the text after the slash is for screen readers: the word beside the sign says the same
    f'.regards-nb .rg-{severity} .rg-sign:empty::before{{content:"{SIGN[severity]}\\a0" / ""}}'
    for severity, colour in COLOUR.items()
)

# JupyterLab aligns, stripes and shrinks the tables of static output but not those of widgets: with
# the !important rules both look alike.
CSS = f"""<style>
.regards-nb{{--rg-fg:var(--jp-content-font-color1,var(--vscode-editor-foreground,currentColor));
--rg-muted:var(--jp-content-font-color2,var(--vscode-descriptionForeground,currentColor));
--rg-line:var(--jp-border-color2,var(--vscode-panel-border,rgba(128,128,128,.35)));
--rg-back:var(--jp-layout-color0,var(--vscode-editor-background,Canvas));
--rg-track:var(--jp-layout-color3,rgba(128,128,128,.28));
color:var(--rg-fg);font-family:var(--jp-ui-font-family,system-ui,sans-serif);
font-size:var(--jp-ui-font-size1,13px);line-height:1.45}}
{_SEVERITIES}
.regards-nb .rg-head{{display:flex;flex-wrap:wrap;align-items:baseline;
gap:2px 14px;padding:4px 0 2px}}
.regards-nb .rg-headline{{font-weight:600;font-size:1.08em}}
.regards-nb .rg-health{{color:var(--rg-muted);padding:0 0 4px}}
.regards-nb .rg-sign{{color:var(--rg-tone);display:inline-block;min-width:.8em;font-style:normal}}
.regards-nb .rg-note{{color:var(--rg-muted);padding:0 0 4px}}
.regards-nb .rg-more,.regards-nb .rg-problem,.regards-nb .rg-said{{padding:3px 0}}
.regards-nb .rg-more,.regards-nb .rg-id,.regards-nb .rg-files,.regards-nb .rg-time,
.regards-nb .rg-overall{{color:var(--rg-muted)}}
.regards-nb .rg-overall{{padding:0 0 3px}}
.regards-nb.regards-nb table{{table-layout:auto!important;border-collapse:collapse!important;
width:100%!important;margin:0!important;border:none!important;font-size:inherit!important;
color:inherit!important}}
.regards-nb.regards-nb tr{{background:none!important}}
.regards-nb.regards-nb th,.regards-nb.regards-nb td,.jp-RenderedHTMLCommon .regards-nb tr>*{{
text-align:left!important;vertical-align:middle!important;padding:5px 14px 5px 0!important;
max-width:none!important;border:none!important;border-bottom:1px solid var(--rg-line)!important;
white-space:nowrap!important;line-height:1.35!important;font-weight:400}}
.regards-nb.regards-nb thead th{{position:sticky;top:0;z-index:1;
background:var(--rg-back)!important;color:var(--rg-muted);font-size:.88em;font-weight:600}}
.regards-nb.regards-nb tbody tr:last-child>*{{border-bottom:none!important}}
.regards-nb .rg-name{{font-weight:600;white-space:normal;min-width:9em;max-width:22em;
overflow-wrap:anywhere}}
.regards-nb .rg-id,.regards-nb .rg-files,.regards-nb .rg-time{{font-size:.88em}}
.regards-nb .rg-parts,.regards-nb .rg-all{{font-variant-numeric:tabular-nums}}
.regards-nb progress+.rg-parts{{padding-left:4px}}
.regards-nb progress{{appearance:none;-webkit-appearance:none;width:110px;height:8px;border:none;
border-radius:4px;overflow:hidden;vertical-align:middle;background:var(--rg-track);
accent-color:var(--rg-tone);color:var(--rg-tone)}}
.regards-nb progress.rg-bytes-bar{{width:60px;height:5px}}
.regards-nb progress.rg-all-bar{{width:260px}}
.regards-nb progress::-webkit-progress-bar{{background:var(--rg-track)}}
.regards-nb progress::-webkit-progress-value{{background:var(--rg-tone);border-radius:4px}}
.regards-nb progress::-moz-progress-bar{{background:var(--rg-tone);border-radius:4px}}
.regards-nb.regards-nb td.rg-remarks{{width:45%;white-space:normal!important;min-width:14em;
overflow-wrap:anywhere;padding-right:0!important}}
.regards-nb .rg-act{{font-weight:600;color:var(--rg-fg)}}
</style>"""


def html(snapshot: Snapshot, *, note: str = "") -> str:
    """Return the snapshot as one static piece of HTML.

    Parameters
    ----------
    snapshot : Snapshot
        What to show.
    note : str
        A sentence below the headline.

    Returns
    -------
    str
        At most 50 orders, the most urgent first, and a line that counts the others; it says as of
        when, because nothing updates it.
    """
    return _page(table_model(snapshot), " · ".join(filter(None, (note, as_of()))))


def as_of() -> str:
    """Return the sentence of a picture that nothing updates."""
    return f"As of {clock(datetime.now(UTC))}; this picture does not move."


def _page(model: TableModel, note: str) -> str:
    scroll = f'<div style="max-height:{MAX_HEIGHT};overflow:auto">{table(model)}</div>'
    return f"{CSS}{head(model, note)}{scroll}{foot(model)}"


def head(model: TableModel, note: str = "") -> str:
    """Return headline, the bar over all orders, health, what stands still, and note."""
    counts = "".join(
        f" <span>{_sign(severity)}{escape(words)}</span>" for severity, words in model.counts
    )
    noted = f'<div class="rg-note">{escape(clean(note, LINE_CHARS))}</div>' if note else ""
    if model.standstill:
        noted = f'<div class="rg-note rg-act">{escape(model.standstill)}</div>{noted}'
    return (
        f'<div class="regards-nb" role="status" aria-live="polite">'
        f'<div class="rg-head"><span class="rg-headline">{escape(model.headline)}</span>{counts}'
        f'</div>{_overall(model)}<div class="rg-health">{_sign(model.health_severity)}'
        f"{escape(model.health)}</div>{noted}</div>"
    )


def _overall(model: TableModel) -> str:
    """Return the bar over all orders; it has no aria-live, or each step would be read aloud."""
    if model.fraction is None and not model.overall:
        return ""
    bar = (
        ""
        if model.fraction is None
        else f'<progress class="rg-all-bar" max="1" value="{model.fraction:.3g}" '
        f'aria-label="all orders" style="accent-color:{COLOUR[Severity.RUNNING]}"></progress> '
    )
    return (
        f'<div class="rg-overall rg-running" aria-live="off">{bar}'
        f'<span class="rg-all">{escape(model.overall)}</span></div>'
    )


def table(model: TableModel, *, is_live: bool = False) -> str:
    """Return one row per order.

    A live table is sent several times a second, so it is short: the style sheet of the widget
    gives it alignment, colours and signs, which a static table has inline.
    """
    if not model.rows:
        return ""
    left = "" if is_live else _LEFT
    columns = "".join(f'<th scope="col"{left}>{name}</th>' for name in _COLUMNS)
    body = "".join(_live_row(row) if is_live else _row(row) for row in model.rows)
    return (
        '<div class="regards-nb"><table aria-label="REGARDS orders">'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def foot(model: TableModel) -> str:
    """Return the lines below the table: hidden orders and problems."""
    more = f'<div class="rg-more">{escape(model.more)}</div>' if model.more else ""
    problems = "".join(
        f'<div class="rg-problem rg-incomplete">{_mark("▲")}{escape(problem)}</div>'
        for problem in model.problems
    )
    return f'<div class="regards-nb">{more}{problems}</div>' if more or problems else ""


def answer_html(words: str) -> str:
    """Return the result of the last click."""
    if not words:
        return ""
    return f'<div class="regards-nb rg-said" role="status">{escape(clean(words, 300))}</div>'


def _row(row: Row) -> str:
    parts = f' <span class="rg-parts">{escape(row.parts)}</span>' if row.parts else ""
    fetched = _bar(row, row.fetched, "bytes") if row.fetched is not None else ""
    files = f'<div class="rg-files">{fetched} {escape(row.files)}</div>' if row.files else ""
    timing = f'<div class="rg-time">{escape(row.timing)}</div>' if row.timing else ""
    tooltip = f' title="{escape(row.full_message)}"' if row.full_message else ""
    return (
        f'<tr class="rg-{row.severity}"><th scope="row"{_LEFT}>{_title(row)}</th>'
        f"<td{_LEFT}>{_bar(row, row.fraction, 'parts')}{parts}{files}</td>"
        f"<td{_LEFT}>{_mark(SIGN[row.severity])}{escape(row.status)}{timing}</td>"
        f'<td class="rg-remarks"{_LEFT}{tooltip}>{_remarks(row)}</td></tr>'
    )


def _live_row(row: Row) -> str:
    """Return a row without inline styles, and without what HTML does not need."""
    short = (
        _row(row)
        .replace(_LEFT, "")
        .replace(f' style="accent-color:{COLOUR[row.severity]}"', "")
        .replace(_mark(SIGN[row.severity]), "<i class=rg-sign></i>")
        .replace(' class="rg-parts-bar" max="1"', "")
    )
    # Texts and values hold neither tags nor quotes: they are escaped. JSON escapes double quotes.
    short = _OPTIONAL_END.sub("", _QUOTED_WORD.sub(r"=\1", short))
    return short.replace('"', "'")


def _title(row: Row) -> str:
    number = f'<div class="rg-id">{escape(row.number)}</div>' if row.number else ""
    full = f' title="{escape(row.full_name)}"' if row.full_name else ""
    name = f'<div class="rg-name"{full}>{escape(row.name)}</div>'
    return f"{name}{number}"


def _bar(row: Row, fraction: float | None, of: str) -> str:
    """Return a native bar; nothing if the total is unknown."""
    if fraction is None:
        return ""
    label = escape(f"{of} of order {row.title}")
    return (
        f'<progress class="rg-{of}-bar" max="1" value="{fraction:.4g}" aria-label="{label}" '
        f'style="accent-color:{COLOUR[row.severity]}"></progress>'
    )


def _remarks(row: Row) -> str:
    is_urgent = row.severity is Severity.WAITS and bool(row.remarks)
    first = [f'<span class="rg-act">{escape(row.remarks[0])}</span>'] if is_urgent else []
    return " · ".join([*first, *map(escape, row.remarks[len(first) :])])


def _sign(severity: Severity) -> str:
    return f'<span class="rg-{severity}">{_mark(SIGN[severity])}</span>'


def _mark(sign: str) -> str:
    """Return a sign that screen readers skip: the word beside it says the same."""
    return f'<i class="rg-sign" aria-hidden="true">{sign}</i>&nbsp;'


# -- outputs


def static_bundle(model: TableModel, note: str) -> dict[str, Any]:
    """Return HTML and text of the same model."""
    return {"text/html": _page(model, note), "text/plain": "\n".join(lines(model, note))}


#: An output that shows nothing.
EMPTY_BUNDLE = {"text/html": "", "text/plain": ""}

# JupyterLab and Notebook prefer the widget to the HTML beside it even when the kernel with the
# widget has ended, and then show "model not found": these rules hide that panel and show the
# fallback picture. Elsewhere, also in pages of nbconvert, there is no such panel, and the HTML
# beside the widget is shown.
_PANEL = ">.lm-Panel.jp-OutputArea-output"
_LIVE = ":has(.jupyter-widgets .regards-nb,.regards-nb-live)"
_DEAD = f":has(>.jp-OutputArea-child{_PANEL}):not({_LIVE})"
# nbconvert writes a widget whose state is stored as a script for a library that is loaded from the
# network: without network nothing is shown.
_STORED = ':has(script[type="application/vnd.jupyter.widget-view+json"])'
_FALLBACK_CSS = f"""<style>
.jp-OutputArea{_STORED}:not({_LIVE}) .regards-nb-fallback{{display:block!important}}
.jp-OutputArea{_DEAD}:has(.regards-nb-fallback)>.jp-OutputArea-child:has({_PANEL}){{display:none}}
.jp-OutputArea{_DEAD} .regards-nb-fallback{{display:block!important}}
.jp-OutputArea{_LIVE}>.jp-OutputArea-child:has(.regards-nb-fallback){{display:none}}
</style>"""


def fallback_bundle(model: TableModel) -> dict[str, Any]:
    """Return a picture that is visible only where the widget beside it cannot be shown."""
    page = _page(model, as_of())
    picture = f'<div class="regards-nb-fallback" style="display:none">{page}</div>'
    return {"text/html": f"{_FALLBACK_CSS}{picture}", "text/plain": ""}


def publish(bundle: dict[str, Any], handles: deque[Any]) -> None:
    """Put an output below the running cell, and keep the handle that replaces it.

    The handle is kept first: the stop button can interrupt as soon as the output is visible.
    """
    import IPython.display

    # IPython has no types
    handle: Any = IPython.display.DisplayHandle()
    handles.append(handle)
    handle.display(bundle, raw=True)


def in_marimo() -> bool:
    """Return whether a marimo notebook runs this code."""
    marimo: Any = sys.modules.get("marimo")
    return marimo is not None and bool(marimo.running_in_notebook())
