"""A wait seen in a terminal, in a log file, and by a script without Jupyter."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyte
import pytest
from conftest import client_of, until
from scripted_tracker import NOON, ScriptedTracker, order

from regards_nb import OrderTracker
from regards_nb.client import LastByte, RegardsClient, watched
from regards_nb.consumer import Health, HealthState
from regards_nb.display import (
    MAX_LINES,
    STILL_TRACKED,
    LogView,
    ScreenView,
    mimebundle,
    show,
    text,
    watching,
)
from regards_nb.download import ProgressLine
from regards_nb.errors import JournalError, TrackingError, WaitTimeoutError
from regards_nb.simulator import OrderPlan, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parent


class _Stream(io.TextIOWrapper):
    """A stream of a given encoding that remembers its bytes."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, newline="\n")

    def lines(self) -> list[str]:
        """Return what was written, without the time in front."""
        self.flush()
        written = self.raw_bytes.getvalue().decode(self.encoding)
        return [re.sub(r"^\d\d:\d\d:\d\d UTC  ", "", line) for line in written.splitlines()]


class _Screen(pyte.Screen):
    """A terminal that has followed what was written."""

    def __init__(self, written: str, columns: int, n_lines: int) -> None:
        super().__init__(columns, n_lines)
        pyte.Stream(self).feed(written)

    @property
    def lines_shown(self) -> list[str]:
        """The lines without the blanks at their ends."""
        return [line.rstrip() for line in self.display]

    @property
    def colours(self) -> set[str]:
        """The colours of all characters."""
        return {char.fg for line in self.buffer.values() for char in line.values()}


@pytest.fixture
def terminal() -> Iterator[tuple[io.TextIOWrapper, int]]:
    """Return a stream to a terminal of 60 columns and 8 lines, and its other end."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 60, 0, 0))
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream, ours
    os.close(ours)


def _screen(
    stream: io.TextIOWrapper, other_end: int, columns: int = 60, n_lines: int = 8
) -> _Screen:
    """Read all that was written: a terminal gives it in pieces, so its end is marked."""
    stream.write("END")
    stream.flush()
    written = ""
    while not written.endswith("END"):
        assert select.select([other_end], [], [], 10)[0], written
        written += os.read(other_end, 1 << 16).decode(errors="ignore")
    return _Screen(written.removesuffix("END"), columns, n_lines)


def _wait_until(error: BaseException) -> None:
    with watching(ScriptedTracker(order())) as watch:
        watch.refresh(note="1 of 1 orders are still running")
        raise error


def opened(watch: Any) -> Any:
    """Return a watch that has shown how things stand."""
    watch.open()
    return watch


def _all() -> None:
    """Ask for all orders."""


def test_a_log_gets_one_line_per_change() -> None:
    """Each change of an order is one line with its bar; files alone and no change are none."""
    tracker, stream = ScriptedTracker(order("a", 1), order("b", 2)), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    before = len(stream.lines())
    watch.refresh()
    tracker.tell(order("a", 1, downloaded_files=3))
    watch.refresh()
    assert len(stream.lines()) == before
    tracker.tell(order("a", 1, status="SUBORDER_DONE", suborders_done=1, suborders_total=2))
    watch.refresh()
    tracker.tell(order("b", 2, status="DENIED", error_type="FORBIDDEN", message="two\nlines"))
    watch.refresh()
    watch.close()
    assert stream.lines()[before:] == [
        "#1  a  ████████░░░░░░░░  1/2 parts  ● SUBORDER_DONE",
        "#2  b  ✕ DENIED  FORBIDDEN · two lines",
        "1 of 2 orders finished",
    ]


def test_a_log_of_an_automatic_download_has_one_line_for_a_part_and_one_for_the_end() -> None:
    """Downloads that begin and end between the parts are no lines; the last one tells all files."""
    tracker, stream = ScriptedTracker(order("a", 1)), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    before = len(stream.lines())
    part = {"status": "SUBORDER_DONE", "suborders_total": 2}
    done = {"status": "DONE", "suborders_total": 2, "suborders_done": 2}
    for known in (
        {**part, "suborders_done": 1},
        {**part, "suborders_done": 1, "downloading": True},
        {**part, "suborders_done": 1, "downloaded_files": 4},
        {**part, "suborders_done": 2, "downloaded_files": 4},
        {**part, "suborders_done": 2, "downloading": True, "downloaded_files": 4},
        {**done, "downloading": True, "downloaded_files": 6},
        {**done, "downloaded_files": 8},
    ):
        tracker.tell(order("a", 1, **known))
        watch.refresh()
    watch.close()
    assert stream.lines()[before:] == [
        "#1  a  ████████░░░░░░░░  1/2 parts  ● SUBORDER_DONE",
        "#1  a  ████████████████  2/2 parts  ● SUBORDER_DONE  4 files, 0 B",
        "#1  a  ████████████████  2/2 parts  ✓ DONE  8 files, 0 B",
        "1 of 1 order finished",
    ]


def test_a_log_does_not_end_with_a_download_that_has_ended() -> None:
    """While REGARDS prepares the next part, the last line says what is here."""
    tracker, stream = ScriptedTracker(order("a", 1)), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    part = {"status": "SUBORDER_DONE", "suborders_total": 2, "suborders_done": 1}
    for known in ({"downloading": True}, {"downloaded_files": 4}):
        tracker.tell(order("a", 1, **part, **known))
        watch.refresh()
    last = "#1  a  ████████░░░░░░░░  1/2 parts  ● SUBORDER_DONE  4 files, 0 B"
    assert stream.lines()[-1] == last


def test_a_log_says_how_far_a_long_download_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, bytes, rate and the time that is left, the next line after twice the pause."""
    monkeypatch.setattr(LogView, "fetched_interval_s", 0.3)
    known = {"status": "DONE", "files_total": 3, "bytes_total": 10**9, "downloading": True}
    tracker, stream = ScriptedTracker(order("a", 1, label="july", **known)), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    before, numbers = len(stream.lines()), itertools.count(1)

    def lines() -> list[str]:
        tracker.tell(order("a", 1, label="july", downloaded_bytes=10_000 * next(numbers), **known))
        watch.refresh()
        return stream.lines()[before:]

    until(lambda: len(lines()) == 2)
    line = r"#1  july  0/3 files, \S+ kB of 1\.0 GB, \S+ .B/s  .* left"
    assert re.fullmatch(line, lines()[1])


def test_a_log_says_that_a_download_has_no_file_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has more than a name and a time, also where no byte has come."""
    monkeypatch.setattr(LogView, "fetched_interval_s", 0.0)
    tracker, stream = ScriptedTracker(order("a", 1, label="july", downloading=True)), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    before = len(stream.lines())
    until(lambda: watch.refresh() or tracker.tell() or stream.lines()[before:])
    assert stream.lines()[before].startswith("#1  july  no file so far  ")


def test_a_log_ends_with_the_reason_while_no_byte_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that stands still gets no other line: the note on it stays the last one."""
    monkeypatch.setattr(LogView, "fetched_interval_s", 0.0)
    going = {"downloading": True, "files_total": 3, "bytes_total": 2000}
    standing = order("a", 1, downloaded_bytes=10, **going)
    tracker, stream = ScriptedTracker(standing, order("b", 2, **going)), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    numbers = itertools.count(1)

    def lines_of(number: int) -> list[str]:
        tracker.tell(standing, order("b", 2, downloaded_bytes=next(numbers), **going))
        watch.refresh()
        return [line for line in stream.lines() if line.startswith(f"#{number} ")]

    until(lambda: len(lines_of(2)) == 4)
    assert len(lines_of(1)) == 2  # as the view was opened, and the first line of its download


def test_a_log_tells_of_a_download_as_soon_as_the_client_does() -> None:
    """The first line of a slow download comes after the same time in wait() and download_order."""
    assert LogView.fetched_interval_s == ProgressLine.between_lines_s


def test_a_log_tells_the_files_of_a_download_at_its_end() -> None:
    """Also of an order that goes on, and of one whose download still runs."""
    for known in ({"status": "SUBORDER_DONE"}, {"status": "DONE", "downloading": True}):
        tracker, stream = ScriptedTracker(order("a", 1, status="SUBORDER_DONE")), _Stream()
        watch = opened(LogView(tracker, _all, stream))
        tracker.tell(order("a", 1, downloaded_files=4, **known))
        watch.refresh()
        watch.close()
        assert sum("4 files" in line for line in stream.lines()) == 1


def test_a_log_says_when_the_connection_is_lost_and_found() -> None:
    """Changes of the connection are lines too, with the whole advice; so is a note."""
    tracker, stream = ScriptedTracker(order()), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    reason = f"connection reset, {'for some reason, ' * 30}check the VPN"
    lost = Health(state=HealthState.RECONNECTING, since=NOON, reason=reason, address="amqp://host")
    tracker.tell(health=lost)
    watch.refresh(note=reason)
    assert stream.lines()[-2] == reason
    tracker.tell(health=Health(state=HealthState.CONSUMING, since=NOON))
    watch.refresh()
    assert stream.lines()[-2:] == [
        f"reconnecting to RabbitMQ since 2026-11-23 12:00 UTC: {reason}",
        "listening since 2026-11-23 12:00 UTC",
    ]


def test_a_burst_of_changes_is_counted_and_not_listed() -> None:
    """A thousand orders that change together do not fill the log."""
    tracker, stream = ScriptedTracker(), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    before = len(stream.lines())
    tracker.tell(*(order(f"o{n}", n) for n in range(1000)))
    watch.refresh()
    assert len(stream.lines()) == before + MAX_LINES + 1
    assert stream.lines()[-1] == f"… and {1000 - MAX_LINES} more orders changed"


def test_two_notes_in_turn_are_one_line_each() -> None:
    """A wait says for each part that it downloads another order first: the log says it once."""
    tracker, stream = ScriptedTracker(order()), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    notes = ["1 order is running; downloading order 46 first", "1 order is running"]
    for note in notes * 5:
        watch.refresh(note=note)
    watch.close(notes[0])
    assert [line for line in stream.lines() if "is running" in line] == notes


def test_a_note_with_a_time_that_has_passed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the last line of a log says for 10 s that REGARDS is asked again at an old time."""
    monkeypatch.setattr(sys.modules[LogView.__module__], "NOTE_INTERVAL_S", 600.0)
    stream = _Stream()
    watch = opened(LogView(ScriptedTracker(order("a", 1)), _all, stream))
    before = len(stream.lines())
    old, new, newer = (f"asking again at {at} UTC" for at in ("00:00:00", "23:59:58", "23:59:59"))
    watch.refresh(note=old)

    def is_replaced() -> bool:
        watch.refresh(note=new)
        return len(stream.lines()) > before + 1

    until(is_replaced)
    watch.refresh(note=newer)
    assert stream.lines()[before:] == [old, new], "a time to come is not replaced so soon"


def test_a_log_tells_each_silence_of_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the same length; while one lasts, no line is added."""
    monkeypatch.setattr(sys.modules[LogView.__module__], "NOTE_INTERVAL_S", 600.0)
    monkeypatch.setattr(sys.modules[LogView.__module__], "NOTE_AGAIN_S", 600.0)
    monkeypatch.setattr(LastByte, "told_after_s", 0.3)
    stream, last = _Stream(), LastByte()
    watch = opened(LogView(ScriptedTracker(order("a", 1)), _all, stream))

    def lines() -> list[str]:
        words = filter(None, ("1 order is running", last.text("order 1")))
        watch.refresh(note="; ".join(words))
        return [line for line in stream.lines() if "no byte of order 1" in line]

    with socket.create_server(("127.0.0.1", 0)) as server:
        client = RegardsClient(f"http://127.0.0.1:{server.getsockname()[1]}", tenant="t", token="x")

        def read() -> None:
            with watched(last), client.open_file(1) as body:
                list(body.blocks())

        reader = threading.Thread(target=read)
        reader.start()
        connection, _ = server.accept()
        until(lambda: len(lines()) == 1)
        silent_s = last.age_s
        until(lambda: last.age_s > 4 * silent_s and lines())
        assert len(lines()) == 1
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
        until(lambda: last.age_s < silent_s and lines())
        until(lambda: len(lines()) == 2)
        connection.sendall(b"x")
        reader.join()
        connection.close()
    client.close()


def test_a_note_that_comes_again_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another program takes for the second time within a minute, and not its end."""
    monkeypatch.setattr(sys.modules[LogView.__module__], "NOTE_AGAIN_S", 600.0)
    stream = _Stream()
    watch = opened(LogView(ScriptedTracker(order("a", 1)), _all, stream))

    def count(note: str) -> int:
        watch.refresh(note=note)
        return stream.lines().count(note)

    for n_times in (1, 2):
        until(lambda n_times=n_times: count("1 order is running") == n_times)
        until(lambda n_times=n_times: count("1 order is running; it is locked") == n_times)
    assert count("1 order is running; it is locked") == 2


def test_a_note_that_counts_does_not_flood_the_log() -> None:
    """Notes come at most every ten seconds, but for the last word."""
    tracker, stream = ScriptedTracker(order()), _Stream()
    watch = opened(LogView(tracker, _all, stream))
    for left in range(50, 0, -1):
        watch.refresh(note=f"{left} of 50 orders are still running")
    watch.close("You stopped waiting.")
    lines = stream.lines()
    assert [line for line in lines if "still running" in line] == [
        "50 of 50 orders are still running"
    ]
    assert lines[-2:] == ["You stopped waiting.", "0 of 1 order finished"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_old_encodings_get_plain_characters(encoding: str) -> None:
    """A stream that cannot hold the bar gets one of # and -, and no error."""
    tracker, stream = (
        ScriptedTracker(order("中", suborders_done=1, suborders_total=2)),
        _Stream(encoding),
    )
    opened(LogView(tracker, _all, stream)).close()
    shown = "\n".join(stream.lines())
    assert "#1  ?  ########--------  1/2 parts  * GRANTED" in shown
    assert shown.isascii()


def test_a_terminal_shows_at_once_what_the_call_does_next(
    terminal: tuple[io.TextIOWrapper, int],
) -> None:
    """The thread of the call paints: it may run code of the user next, and paint nothing then."""
    tracker, (stream, other_end) = ScriptedTracker(order()), terminal
    watch = opened(ScreenView(tracker, _all, stream, interval_s=1000.0))
    for note in ("downloading: 1 of 3", "downloading: 2 of 3", "process= runs for order 1"):
        watch.refresh(note=note)
    assert "process= runs for order 1" in _screen(stream, other_end).lines_shown
    watch.close()


def test_a_terminal_is_repainted_in_place(terminal: tuple[io.TextIOWrapper, int]) -> None:
    """However often it is painted, the screen holds the last table and nothing else."""
    stream, other_end = terminal
    tracker = ScriptedTracker(order("a", 1), order("b", 2))
    health = Health(state=HealthState.CONSUMING, since=NOON)
    tracker.tell(health=health)
    watch = opened(ScreenView(tracker, _all, stream, interval_s=0.2))
    for done in range(1, 4):
        tracker.tell(order("a", 1, suborders_done=done, suborders_total=3, message="long " * 30))
        watch._next_s = 0.0  # as if the time between two repaints had passed
        watch.refresh(note=f"step {done}")
    tracker.tell(order("b", 2, status="DENIED"))
    watch.close("step 4")
    screen = _screen(stream, other_end)
    assert [line.split("  ")[0] for line in screen.lines_shown] == [
        "REGARDS: 1 of 2 orders finished (1 failed, 1 running)",
        "████████████████",
        mock.ANY,  # "No event from REGARDS for" the time since the scripted noon
        "✓ listening since 2026-11-23 12:00 UTC",
        "step 4",
        "#2",
        "#1",
        "",
    ]
    assert "████████████████  3/3 parts" in screen.lines_shown[6]
    assert screen.lines_shown[6].endswith("…")
    assert {"red", "green", "blue", "default"} <= screen.colours
    assert not screen.cursor.hidden


@pytest.mark.parametrize(("columns", "n_lines"), [(120, 2), (80, 3), (50, 4)])
def test_a_terminal_shows_the_whole_sentence_of_a_wait(
    terminal: tuple[io.TextIOWrapper, int], columns: int, n_lines: int
) -> None:
    """The cause and the next step stand at its end; one that is very long is cut."""
    stream, other_end = terminal
    fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    note = (
        "1 of 1 order is still running; no event of order 161 (mine) for more than 60 s; REGARDS "
        "prepares at most two sub-orders per user at a time, and order 161 may have to wait for "
        "order 42; order 42 waits for a download: tracker.download(42)"
    )
    tracker = ScriptedTracker(*(order(f"o{n}", n) for n in range(1, 41)))
    watch = opened(ScreenView(tracker, _all, stream, interval_s=0.2))
    watch.close(note)
    shown = _screen(stream, other_end, columns, 24).lines_shown
    first = next(n for n, line in enumerate(shown) if line.startswith("1 of 1 order"))
    told = " ".join(shown[first : first + n_lines])
    assert told == (note if columns > 50 else f"{note[: len(told) - 1]}…")
    assert shown[first + n_lines].startswith("#1 ")
    assert shown[-2].endswith(" more rows")


def test_a_terminal_with_few_lines_shows_the_most_urgent(
    terminal: tuple[io.TextIOWrapper, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that do not fit are counted: a table taller than the screen cannot be repainted."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream, other_end = terminal
    tracker = ScriptedTracker(*(order(f"o{n}", n, status="DONE") for n in range(1, 41)))
    opened(ScreenView(tracker, _all, stream, interval_s=0.2)).close()
    screen = _screen(stream, other_end)
    assert [line.split()[0] for line in screen.lines_shown[:3]] == ["REGARDS:", "█" * 16, "✓"]
    assert screen.lines_shown[3:] == [
        "#1  o1  ████████████████  ✓ DONE",
        "#2  o2  ████████████████  ✓ DONE",
        "#3  o3  ████████████████  ✓ DONE",
        "… and 37 more rows",
        "",
    ]
    assert screen.colours == {"default"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), f"You stopped waiting; {STILL_TRACKED}."),
        (WaitTimeoutError("after 3 s"), f"The time limit is reached; {STILL_TRACKED}."),
        (OSError("x"), "The call ended with OSError."),
    ],
)
def test_a_wait_that_is_cut_short_says_that_tracking_goes_on(
    error: BaseException, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error passes through, and the last word says what it means."""
    with pytest.raises(type(error)):
        _wait_until(error)
    assert said in capsys.readouterr().out


def test_only_the_orders_waited_for_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Keys, also those that show up later, select the orders; no keys at all select none."""
    tracker = ScriptedTracker(order("a", 1), order("b", 2))
    with watching(tracker, [order("b").key]):
        pass
    assert "of 1 order" in capsys.readouterr().out
    keys: list[object] = []
    with watching(tracker, lambda: keys) as watch:  # type: ignore[arg-type,return-value]
        assert "No orders" in capsys.readouterr().out
        keys.append(order("a").key)
        tracker.tell()
        watch.refresh()
    assert "#1  a" in capsys.readouterr().out


def test_a_broken_stream_does_not_end_the_wait() -> None:
    """Where stdout is closed nothing is shown, and the wait goes on."""
    recorded: list[Exception] = []
    closed = _Stream()
    closed.close()
    tracker = ScriptedTracker(order())
    with contextlib.redirect_stdout(closed), watching(tracker, record=recorded.append) as watch:
        watch.refresh(note="a note")
    assert [type(error) for error in recorded] == [ValueError]


def test_show_and_mimebundle_without_a_notebook_are_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script gets the table as text; IPython in a terminal gets text and HTML, no widget."""
    tracker = ScriptedTracker(order("a", 1))
    show(tracker)
    assert "#1  a" in capsys.readouterr().out
    bundle = mimebundle(tracker)
    assert set(bundle) == {"text/plain", "text/html"}
    assert set(mimebundle(tracker, None, {"text/html"})) == {"text/html"}
    assert set(mimebundle(tracker, None, None, {"text/html"})) == {"text/plain"}


def test_a_script_loads_neither_jupyter_nor_matplotlib() -> None:
    """Importing and using the display in a script imports none of the heavy libraries."""
    script = (
        "import sys\n"
        "from scripted_tracker import ScriptedTracker, order\n"
        "from regards_nb.display import show, watching\n"
        "tracker = ScriptedTracker(order('a', 1))\n"
        "show(tracker)\n"
        "with watching(tracker) as watch:\n"
        "    watch.refresh()\n"
        "heavy = {'IPython', 'ipywidgets', 'matplotlib', 'ipykernel'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#1  a") == 2


class _Tee:
    """The least that code puts in place of stdout: no encoding, no isatty, no fileno."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


def test_a_stdout_without_encoding_is_written_to() -> None:
    """show() and waits write to any object with write() and flush(), as print() does."""
    tracker, stream = ScriptedTracker(order("a", 1)), _Tee()
    with contextlib.redirect_stdout(stream):  # type: ignore[type-var]
        show(tracker)
        with watching(tracker) as watch:
            tracker.tell(order("a", 1, status="DONE"))
            watch.refresh()
    assert stream.written.count("#1  a") == 3


@pytest.mark.simulator
def test_an_error_of_the_display_that_comes_back_is_told_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A stdout that could be written to meanwhile fails in the same way as before."""
    broken = _Stream()
    broken.close()
    with OrderTracker(client=client_of(simulator), journal=tmp_path / "j.sqlite") as tracker:
        for _ in range(2):
            for _ in range(2):
                with contextlib.redirect_stdout(broken):
                    tracker.show()
            with pytest.raises(TrackingError, match="updating the display"):
                tracker.wait(timeout_s=60)
            tracker.show()


@pytest.mark.simulator
def test_an_outage_of_the_journal_that_a_view_met_is_shown_and_not_raised(
    simulator: Simulator, tmp_path: Path
) -> None:
    """It may be over when the next call begins; a call that meets it raises it."""
    with OrderTracker(client=client_of(simulator), journal=tmp_path / "j.sqlite") as tracker:
        tracker.record_background_error("updating the display", JournalError("no answer"))
        assert tracker.snapshot().background_errors == ("updating the display: no answer",)
        tracker.wait(timeout_s=60)


@pytest.mark.simulator
def test_an_error_of_the_display_is_recorded_shown_and_raised_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A stdout that cannot be written to stops nothing; the error is in the view and raised."""
    tracker = OrderTracker(client=client_of(simulator), journal=tmp_path / "j.sqlite")
    broken = _Stream()
    broken.close()
    with tracker:
        with contextlib.redirect_stdout(broken):
            tracker.show()
        (said,) = tracker.snapshot().background_errors
        assert said.startswith("updating the display: ")
        assert said in text(tracker.snapshot())
        number = simulator.order(OrderPlan(n_files=1), over_amqp=False)
        tracker.sync()
        with pytest.raises(TrackingError, match="updating the display"):
            tracker.wait(number, until="part", timeout_s=60)
        tracker.wait(number, until="part", timeout_s=60)
