"""The table as text, and a wait in a terminal or a log file.

In a terminal `rich` repaints the table in place. Elsewhere each change of an order is one line, so
that a log file stays readable. The waiting thread itself writes.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len, set_cell_size

from regards_nb.display.facts import Severity
from regards_nb.display.model import (
    SIGN,
    TICK_S,
    DownloadRates,
    clock,
    row_of,
    table_model,
)
from regards_nb.output import encodable, reworded, write_lines
from regards_nb.text import LINE_CHARS, clean, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console
    from rich.text import Text

    from regards_nb.consumer import Health
    from regards_nb.display.model import KeysOf, Row, TableModel
    from regards_nb.frames import States
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker import OrderTracker, Snapshot

BAR_CELLS = 16
#: Longest of each column, so that one long name does not push the others off the screen.
_MAX_CELLS = (24, 32, BAR_CELLS, 12, 20, 32, 44, 400)

#: A note that counts something changes often. A log gets one at most this often, if only its
#: numbers have changed; and the same note once a minute.
NOTE_INTERVAL_S = 10.0
NOTE_AGAIN_S = 60.0
_DIGITS = re.compile(r"\d+(, \d+)*")
#: A note that comes back after another one tells something new, and so does one whose time has
#: passed and is replaced: another silence, or the next attempt. It is written after this pause at
#: first, which doubles, and at the latest as above.
_NEWS_AFTER_S = 1.0
_TIME = re.compile(r"\b\d\d:\d\d:\d\d\b")
#: More changes than this at once are counted and not listed.
MAX_LINES = 50

_STYLE = {
    Severity.WAITS: "yellow",
    Severity.FAILED: "red",
    Severity.INCOMPLETE: "yellow",
    Severity.RUNNING: "blue",
    Severity.DONE: "green",
    Severity.GONE: "bright_black",
}


# -- the table


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
        *([clean(note, LINE_CHARS)] if note else []),
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


def fetched_line(row: Row) -> str:
    """Return how far the download of an order is, on one line of a log."""
    number, name, *_, timing, files, _ = cells(row)
    return "  ".join(filter(None, (number, name, files or "no file so far", timing)))


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
    """Return a string cut to *n_cells* cells of a terminal.

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


# -- a wait


@dataclass(slots=True)
class _Note:
    """A note without its numbers, as it was written last."""

    text: str = ""
    written_s: float = -math.inf
    #: After which pause it is written again if it tells something new.
    pause_s: float = _NEWS_AFTER_S
    #: Whether another note was shown after it was written.
    came_back: bool = False

    def interval_s(self, note: str) -> float:
        """Return how long after it was written the same note, with these numbers, is news."""
        now = f"{datetime.now(UTC):%H:%M:%S}"
        replaced = {*_TIME.findall(self.text)} - {*_TIME.findall(note)}
        interval_s = NOTE_AGAIN_S if self.text == note else NOTE_INTERVAL_S
        is_new = self.came_back or any(told <= now for told in replaced)
        return min(self.pause_s, interval_s) if is_new else interval_s

    def write(self, note: str, now_s: float) -> None:
        """Take down that it is written now."""
        is_frequent = now_s - self.written_s < 2 * NOTE_AGAIN_S
        self.pause_s = min(2 * self.pause_s, NOTE_AGAIN_S) if is_frequent else _NEWS_AFTER_S
        self.text, self.written_s, self.came_back = note, now_s, False


class LogView:
    """One line per change, and now and then one for a running download."""

    #: The first line of a running download comes after this time; the pauses between two lines
    #: double up to the second time.
    fetched_interval_s, longest_interval_s = 5.0, 320.0

    def __init__(self, tracker: OrderTracker, keys_of: KeysOf, stream: TextIO) -> None:
        self._tracker = tracker
        self._keys_of = keys_of
        self._stream = stream
        self._version = -1
        #: What the last line of each order told, and with how many files.
        self._told: dict[OrderKey, tuple[tuple[object, ...], int]] = {}
        self._health: tuple[str, str | None] | None = None
        #: The last notes, by their texts without numbers, and the one that was shown last.
        self._notes: dict[str, _Note] = {}
        self._shown: _Note | None = None
        self._problems: set[str] = set()
        self._rates = DownloadRates()
        #: What was known of how far each download is when such lines were due.
        self._fetched: dict[OrderKey, str] = {}
        #: When the next lines of running downloads are due, and how long after that the next ones.
        self._due_s, self._pause_s = math.inf, self.fetched_interval_s

    def open(self) -> None:
        """Write the state at the beginning."""
        # Read before the snapshot: at worst the same state is compared twice.
        self._version = self._tracker.version
        snapshot = self._tracker.snapshot(self._keys_of)
        self._told = {o.key: (_state(o), o.downloaded_files) for o in snapshot.orders}
        self._health = _health_state(snapshot.health)
        model = table_model(snapshot)
        self._problems = {*model.problems}
        write_lines(self._stream, lines(model))

    def refresh(self, *, note: str = "") -> None:
        """Write what changed since the last call."""
        if note and self._is_news(note):
            write_lines(self._stream, [_stamped(clean(note, LINE_CHARS))])
        version = self._tracker.version
        if version != self._version or time.monotonic() >= self._due_s:
            self._version = version
            self._write_changes(is_last=False)

    def _is_news(self, note: str) -> bool:
        """Return whether to write a note: a note of the same words was not written lately."""
        now_s = time.monotonic()
        known = self._notes.setdefault(_DIGITS.sub("", note), _Note())
        if known is not self._shown:
            known.came_back, self._shown = True, known
        is_news = now_s - known.written_s >= known.interval_s(note)
        if is_news:
            known.write(note, now_s)
        return is_news

    def _write_changes(self, *, is_last: bool) -> None:
        snapshot = self._tracker.snapshot(self._keys_of)
        changed = self._changed(snapshot.orders, is_last=is_last)
        row = partial(row_of, can_download=snapshot.can_download)
        written = [line(row(order)) for order in changed[:MAX_LINES]]
        if len(changed) > MAX_LINES:
            written.append(f"… and {counted(len(changed) - MAX_LINES, 'more order')} changed")
        if self._health != (state := _health_state(snapshot.health)):
            self._health = state
            written.append(table_model(snapshot).health)
        written += self._fetched_lines(snapshot.orders.where("downloading"))
        write_lines(self._stream, map(_stamped, written))
        self._write_problems(table_model(snapshot) if snapshot.background_errors else None)

    def _fetched_lines(self, running: States) -> list[str]:
        """Return how far the running downloads are, if that is due.

        Of one that stands still there is no line: the note on the reason stays the last one.
        """
        now_s = time.monotonic()
        self._rates.update(running, now_s)
        if not running:
            self._due_s, self._pause_s = math.inf, self.fetched_interval_s
        elif self._due_s == math.inf:
            self._due_s = now_s + self._pause_s
        elif now_s >= self._due_s:
            self._pause_s = min(2 * self._pause_s, self.longest_interval_s)
            self._due_s = now_s + self._pause_s
            rates = {order.key: self._rates.of(order.key) for order in running}
            rows = [row_of(order, rate=rates[order.key]) for order in running]
            before, self._fetched = self._fetched, {row.key: row.files for row in rows}
            still = {row.key for row in rows if before.get(row.key) == row.files}
            still |= {key for key, rate in rates.items() if rate == 0}
            return [fetched_line(row) for row in rows if row.key not in still]
        return []

    def _write_problems(self, model: TableModel | None) -> None:
        """Write the problems that were not written before."""
        problems = () if model is None else model.problems
        new = [each for each in problems if each not in self._problems]
        self._problems = {*problems}
        write_lines(self._stream, (f"! {each}" for each in new))

    def close(self, note: str = "") -> None:
        """Write the last changes and a headline."""
        if note not in (known.text for known in self._notes.values()):
            self._notes.clear()
        self.refresh(note=note)
        self._write_changes(is_last=True)
        model = table_model(self._tracker.snapshot(self._keys_of))
        write_lines(self._stream, [_stamped(model.headline)])
        self._write_problems(model)

    def _changed(self, orders: Iterable[OrderState], *, is_last: bool) -> list[OrderState]:
        changed = []
        for order in orders:
            state, n_files = _state(order), order.downloaded_files
            told, n_told = self._told.get(order.key, (None, 0))
            # At the end of a download the line tells its files, and stays true.
            is_early = order.downloading and not is_last
            if (told != state and not is_early) or (is_last and n_told != n_files):
                self._told[order.key] = state, n_files
                changed.append(order)
        return changed


class ScreenView:
    """The table, repainted in place by `rich`, *interval_s* after the last time or later."""

    def __init__(
        self, tracker: OrderTracker, keys_of: KeysOf, stream: TextIO, *, interval_s: float
    ) -> None:
        from rich.live import Live

        self._interval_s = interval_s
        self._tracker = tracker
        self._keys_of = keys_of
        self._stream = stream
        self._console = _console(stream)
        # What callbacks print goes above the table.
        is_stdout = stream is sys.stdout
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=is_stdout,
            redirect_stderr=is_stdout,
            vertical_overflow="crop",
        )
        self._rates = DownloadRates()
        self._seen: tuple[int, str] | None = None
        self._next_s = self._next_tick_s = 0.0
        #: The note that was painted last, without its numbers.
        self._words = ""

    def open(self) -> None:
        """Paint the state at the beginning."""
        self._live.start()
        self.refresh()

    def refresh(self, *, note: str = "") -> None:
        """Repaint if something changed; at once for new words of the note.

        The waiting thread may next do something long, such as to call a function of the user.
        """
        now, words = time.monotonic(), _DIGITS.sub("", note)
        if now < self._next_s and words == self._words:
            return
        self._words = words
        self._next_s = now + self._interval_s
        seen = (self._tracker.version, note)
        if seen != self._seen or now >= self._next_tick_s:
            self._seen = seen
            self._next_tick_s = now + TICK_S
            self._paint(note)

    def close(self, note: str = "") -> None:
        """Paint the last state, and leave the cursor below it."""
        try:
            self._paint(note)
        finally:
            self._live.stop()

    def _paint(self, note: str) -> None:
        self._console.size = _terminal_size(self._stream)
        snapshot = self._tracker.snapshot(self._keys_of)
        self._rates.update(snapshot.orders.where("downloading"), time.monotonic())
        model = table_model(snapshot, rates=self._rates)
        self._live.update(_screen(model, note, self._console), refresh=True)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(
        file=stream,
        force_jupyter=False,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
    )


def _screen(model: TableModel, note: str, console: Console) -> Any:
    """Return the table for rich, with as many rows as the terminal has lines."""
    from rich.console import Group

    # What is waited for, why, and what to do, is one sentence: it may take some lines.
    first = [part for words in above(model, note) for part in _wrapped(words, console)]
    last = below(model)
    # One line stays free for the cursor.
    n_rows = max(console.height - 1 - len(first) - len(last), 1)
    rows = model.rows
    if len(rows) > n_rows:
        rows = rows[: max(n_rows - 1, 0)]
        last = [f"… and {counted(len(model.rows) - len(rows), 'more row')}", *last]
    shown = [*first, *aligned(rows), *last]
    return Group(*(_styled(reworded(words), console.encoding) for words in shown))


def _wrapped(words: str, console: Console) -> list[str]:
    """Return a sentence as lines of the terminal, at most a sixth of those that it has."""
    from rich.text import Text

    parts = [part.plain.rstrip() for part in Text(words).wrap(console, console.width)]
    n_before = max(console.height // 6, 1) - 1
    rest = " ".join(parts[n_before:])
    return [*parts[:n_before], *([fit(rest, console.width)] if rest else [])]


def _styled(words: str, encoding: str) -> Text:
    """Return a line with coloured signs, in characters that the stream can encode."""
    from rich.text import Text

    words = encodable(words, encoding)
    styled = Text(words, no_wrap=True, overflow="ellipsis")
    for severity, sign in SIGN.items():
        if (position := words.find(sign)) >= 0:
            styled.stylize(_STYLE[severity], position, position + 1)
    return styled


def is_screen(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that can be repainted."""
    isatty = getattr(stream, "isatty", None)
    if isatty is None or not isatty():
        return False
    # rich is imported only for a terminal.
    console = _console(stream)
    return console.is_terminal and not console.is_dumb_terminal


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    """Return columns and lines; some terminals report 0 when they do not know."""
    try:
        columns, height = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns = height = 0
    return columns or 80, max(height or 24, 4)


def _stamped(words: str) -> str:
    return f"{clock(datetime.now(UTC))}  {words}"


def _state(order: OrderState) -> tuple[object, ...]:
    """Return what makes a line worth writing: not every new file or download does."""
    return (
        order.status,
        order.finished,
        order.suborders_done,
        order.error_type,
        order.waits_for_download,
        order.is_refused,
        order.downloaded_files if order.finished and not order.downloading else 0,
    )


def _health_state(health: Health) -> tuple[str, str | None]:
    return health.state.value, health.reason
