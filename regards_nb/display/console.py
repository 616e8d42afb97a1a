"""A wait seen in a terminal or a log file, written by the waiting thread itself.

In a terminal the table is repainted in place. Elsewhere each change of an order is one line, so
that a log file stays readable.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from regards_nb.display.board import SIGN, Tone, board, clock, row
from regards_nb.display.plain import fit, line, lines
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.consumer import Health
    from regards_nb.display.sources import TrackerView, Wanted
    from regards_nb.orders import OrderKey, OrderState

REPAINT_INTERVAL_S = 0.2
#: A note that counts something changes often.
NOTE_INTERVAL_S = 10.0
#: More changes than this in one go are counted and not listed.
MAX_LINES = 50

_COLOURS = {
    Tone.WAITS: "33",
    Tone.FAILED: "31",
    Tone.PARTLY: "33",
    Tone.RUNNING: "34",
    Tone.DONE: "32",
    Tone.GONE: "90",
}
_COLOURED = str.maketrans(
    {SIGN[tone]: f"\x1b[{code}m{SIGN[tone]}\x1b[0m" for tone, code in _COLOURS.items()}
)
_ASCII = str.maketrans("█░▼✕▲●✓○…·■", "#-!x!*+o.|#")


class LogWatch:
    """One line per change."""

    def __init__(self, tracker: TrackerView, wanted: Wanted, stream: TextIO) -> None:
        self._tracker = tracker
        self._wanted = wanted
        self._stream = stream
        self._version = -1
        self._seen: dict[OrderKey, tuple[object, ...]] = {}
        self._health: tuple[str, str | None] | None = None
        self._note = ""
        self._next_note_s = 0.0

    def open(self) -> None:
        """Write how things stand."""
        # Read before the snapshot: at worst the same state is looked at twice.
        self._version = self._tracker.version
        snapshot = self._tracker.snapshot(self._wanted())
        self._seen = {order.key: _state(order) for order in snapshot.orders}
        self._health = _health_state(snapshot.health)
        write_lines(self._stream, lines(board(snapshot)))

    def refresh(self, *, note: str = "") -> None:
        """Write what changed since the last time."""
        now = time.monotonic()
        if note and note != self._note and now >= self._next_note_s:
            self._note = note
            self._next_note_s = now + NOTE_INTERVAL_S
            write_lines(self._stream, [_stamped(clean(note, 400))])
        version = self._tracker.version
        if version == self._version:
            return
        self._version = version
        snapshot = self._tracker.snapshot(self._wanted())
        changed = self._changed(snapshot.orders)
        said = [line(row(order)) for order in changed[:MAX_LINES]]
        if len(changed) > MAX_LINES:
            said.append(f"… and {len(changed) - MAX_LINES} more orders changed")
        if self._health != (state := _health_state(snapshot.health)):
            self._health = state
            said.append(board(snapshot).health)
        write_lines(self._stream, map(_stamped, said))

    def close(self, note: str = "") -> None:
        """Write the last changes and a headline."""
        self._next_note_s = 0.0
        self.refresh(note=note)
        shown = board(self._tracker.snapshot(self._wanted()))
        write_lines(
            self._stream, [_stamped(shown.headline), *(f"! {each}" for each in shown.problems)]
        )

    def _changed(self, orders: Iterable[OrderState]) -> list[OrderState]:
        states = {order.key: (order, _state(order)) for order in orders}
        changed = [order for key, (order, state) in states.items() if self._seen.get(key) != state]
        self._seen = {key: state for key, (_, state) in states.items()}
        return changed


class ScreenWatch:
    """The table, repainted in place."""

    def __init__(self, tracker: TrackerView, wanted: Wanted, stream: TextIO) -> None:
        self._tracker = tracker
        self._wanted = wanted
        self._stream = stream
        self._painted: list[str] = []
        self._seen: tuple[int, str] | None = None
        self._next_s = 0.0

    def open(self) -> None:
        """Paint how things stand."""
        self.refresh()

    def refresh(self, *, note: str = "") -> None:
        """Repaint if something changed, at most five times a second."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + REPAINT_INTERVAL_S
        seen = (self._tracker.version, note)
        if seen != self._seen:
            self._seen = seen
            self._paint(note)

    def close(self, note: str = "") -> None:
        """Leave the last state standing and the cursor below it."""
        self._paint(note)

    def _paint(self, note: str) -> None:
        columns, height = _terminal_size(self._stream)
        shown = lines(board(self._tracker.snapshot(self._wanted())), note)
        if len(shown) > height - 1:
            shown = [*shown[: height - 2], f"… and {len(shown) - height + 2} more lines"]
        shown = [fit(each, columns - 1) for each in shown]
        if shown != self._painted:
            # Up to where the last picture began, and clear from there.
            up = f"\x1b[{len(self._painted)}F\x1b[J" if self._painted else ""
            write_lines(self._stream, shown, before=up, colour="NO_COLOR" not in os.environ)
            self._painted = shown


def write_lines(
    stream: TextIO, shown: Iterable[str], *, before: str = "", colour: bool = False
) -> None:
    """Write whole lines in one go, in characters that the stream can take."""
    said = "".join(f"{each}\n" for each in shown)
    if not said:
        return
    encoding = stream.encoding or "utf-8"
    try:
        said.encode(encoding)
    except UnicodeEncodeError:
        said = said.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    stream.write(before + (said.translate(_COLOURED) if colour else said))
    stream.flush()


def is_screen(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that understands ANSI sequences."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    # The old Windows console prints the sequences instead of following them.
    return sys.platform != "win32" or "WT_SESSION" in os.environ


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    """Return columns and lines; some terminals say 0 when they do not know."""
    try:
        columns, height = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns = height = 0
    return columns or 80, max(height or 24, 4)


def _stamped(said: str) -> str:
    return f"{clock(datetime.now(UTC))}  {said}"


def _state(order: OrderState) -> tuple[object, ...]:
    """Return what makes a line worth writing: not every file that comes in."""
    return (
        order.status,
        order.finished,
        order.suborders_done,
        order.error_type,
        order.waits_for_download,
        order.downloading,
    )


def _health_state(health: Health) -> tuple[str, str | None]:
    return health.state.value, health.reason
