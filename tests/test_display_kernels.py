"""The display on each generation of ipykernel: it moves, stops, and counts each click once.

The kernels are real, and told what JupyterLab tells them; ``test_display_browser`` has the real
JupyterLab on the newest.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from kernels import NEWEST, Kernel
from scripted_cells import SETUP

from regards_nb.events import Delivery
from regards_nb.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The only ones of all that cannot update a widget from a thread.
BROKEN = "7.0.1"
SOUND = ("6.31.0", "7.1.0", NEWEST)
#: In the others a click is handled when the cell has ended.
LIVE_WHILE_AWAITING = ("7.1.0", NEWEST)

GRANTED = Delivery(
    body=b'{"status":"GRANTED","orderId":1,"correlationId":"order-one"}',
    received_at_us=1_700_000_000_000_000,
    redelivered=False,
    timestamp_s=None,
    correlation_id=None,
    tenant=None,
    app_id=None,
    properties="{}",
)
NESTED = """
from regards_nb.tracker import run_nested
ticks = []
async def tick():
    while True:
        ticks.append(1)
        await asyncio.sleep(0.02)
user = asyncio.get_running_loop().create_task(tick())
run_nested(wait_async())
"""


class Waiting(Kernel):
    """A kernel whose cells wait until a file is there."""

    def __init__(self, version: str, home: Path) -> None:
        super().__init__(version, home)
        self.version = version
        self._finish = home / "finish"

    def finish(self) -> None:
        """End the wait."""
        self._finish.touch()

    def begin(self) -> None:
        """Let the next wait be one, on an empty page."""
        self._finish.unlink(missing_ok=True)
        self.displays.clear()

    def end(self) -> None:
        """End what moves the orders."""
        self.finish()
        self.run("[t.join() for t in threading.enumerate() if '(drive)' in t.name]")

    def asked(self) -> list[str]:
        """Return what the tracker was asked to do so far."""
        return self.run("print(*[what for what, _ in tracker.asked])").printed.split()


def named(version: str) -> str:
    """Return how a version is called in reports."""
    return "newest" if version == NEWEST else version


@contextmanager
def prepared(version: str, home: Path) -> Iterator[Waiting]:
    """Start a kernel of that version, with a tracker to wait for."""
    with Waiting(version, home) as kernel:
        kernel.run(f"FINISH = {str(home / 'finish')!r}{SETUP}")
        cell = kernel.run("import ipykernel\nprint(ipykernel.__version__)")
        assert cell.printed.strip() == version
        yield kernel


@pytest.fixture(scope="module", params=SOUND, ids=named)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Waiting]:
    """Return one kernel of a version for all tests of this file."""
    with prepared(request.param, tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


@pytest.fixture
def kernel(running: Waiting) -> Iterator[Waiting]:
    """Return that kernel with nothing going on in it."""
    running.begin()
    yield running
    running.end()


def test_the_table_moves_while_the_cell_waits(kernel: Waiting) -> None:
    """Parts are counted while the cell is busy, and the last state stays, without a widget."""
    cell = kernel.start("_ = wait()")
    _moves(kernel)
    assert not cell.done
    kernel.finish()
    kernel.until(lambda: cell.done)
    assert (cell.error, cell.printed) == ("", "")
    assert "1 of 2 orders finished" in list(kernel.displays.values())[-1]["text/plain"]


def test_stop_ends_the_wait_in_one_line(kernel: Waiting) -> None:
    """The stop button ends the cell with a sentence; tracking goes on; a second wait works."""
    cell = kernel.start("wait()")
    kernel.until(lambda: kernel.parts_done() >= 0)
    kernel.interrupt()
    kernel.until(lambda: cell.done)
    assert cell.error.startswith("stopped waiting; ")
    assert "You stopped waiting; tracking continues in the background." in kernel.shown()
    kernel.run("v = tracker.version\nwhile tracker.version == v: tracker.wait(timeout_s=1)")
    again = kernel.start("_ = wait()")
    kernel.finish()
    kernel.until(lambda: again.done)
    assert again.error == ""


def test_stop_ends_an_awaited_wait_in_one_line(kernel: Waiting, tmp_path: Path) -> None:
    """Also where nothing else wakes the event loop, and in tasks of the user; the kernel lives."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.append(journal.open_session("q"), [GRANTED])
    kernel.run(
        "from regards_nb import OrderTracker\n"
        f"reader = OrderTracker.reader({str(tmp_path / 'journal.sqlite')!r}).start()"
    )
    waits = ("await reader[1]", "await asyncio.gather(reader.wait_async(1), reader.wait_async())")
    for code in waits:
        kernel.displays.clear()
        cell = kernel.start(code)
        kernel.until(lambda: "order-one" in kernel.shown())
        kernel.interrupt()
        kernel.until(lambda cell=cell: cell.done)
        assert cell.error == "stopped waiting; tracking continues"
        assert "You stopped waiting; tracking continues in the background." in kernel.shown()
    assert kernel.run("reader.stop(); print(reader[1].status)").printed == "GRANTED\n"


def test_stop_ends_a_wait_although_the_handler_of_sigint_was_replaced(kernel: Waiting) -> None:
    """Some kernels and libraries put their own handler there: stop works, and theirs comes back."""
    cell = kernel.start(
        "import signal\ndef other(*_): pass\nsignal.signal(signal.SIGINT, other)\n"
        "try:\n    wait()\nfinally:\n    print(signal.getsignal(signal.SIGINT).__name__)"
    )
    kernel.until(lambda: kernel.parts_done() >= 0)
    kernel.interrupt()
    kernel.until(lambda: cell.done)
    assert "stopped waiting" in cell.error
    assert cell.printed.split() == ["other"]


def test_expected_errors_are_one_line(kernel: Waiting) -> None:
    """What tells a user something, and not a programmer, shows no traceback in a notebook."""
    start = (
        "from regards_nb import OrderTracker, RegardsClient\n"
        "from regards_nb.errors import WaitTimeoutError\n"
        "client = RegardsClient('http://127.0.0.1:9', tenant='t', token='x')\n"
        "import tempfile\n"
        "real = OrderTracker(client=client, journal=tempfile.mkdtemp() + '/journal.sqlite')\n"
    )
    cell = kernel.start(start + "real['nope']")
    kernel.until(lambda: cell.done)
    assert cell.error.startswith("OrderNotFoundError: "), cell.error
    assert len(cell.error.splitlines()) == 1
    cell = kernel.start("raise WaitTimeoutError('after 3 s, 1 order is still running')")
    kernel.until(lambda: cell.done)
    assert cell.error == "WaitTimeoutError: after 3 s, 1 order is still running"


def test_errors_show_the_lines_of_the_user_and_none_of_the_library(kernel: Waiting) -> None:
    """Also of a callback, which another thread called."""
    kernel.run(
        "from tempfile import mkdtemp\nfrom regards_nb import OrderTracker, RegardsClient\n"
        "client = RegardsClient('http://127.0.0.1:9', tenant='t', token='x', backoff_s=0.01)\n"
        "real = OrderTracker(client=client, journal=mkdtemp() + '/journal.sqlite')\n"
        "def fails(event): return 1 / 0\n"
        "def record(name):\n"
        "    try:\n"
        "        fails(None)\n"
        "    except ZeroDivisionError as exc:\n"
        "        real.record_background_error(name, exc)\n"
        "def mine():\n"
        "    return real.export('/proc/x')"
    )
    seen = []
    for code in (
        "real.export('/proc/x')",
        "real.sync()",
        "mine()",
        "record('one'); real.wait()",
        "record('one'); record('two'); real.wait()",
    ):
        cell = kernel.start(code)
        kernel.until(lambda cell=cell: cell.done)
        first, *others = cell.error.splitlines()
        seen.append((first.partition(":")[0], [line.partition("line ")[2] for line in others]))
    fails = ["8, in record: fails(None)", "5, in fails: def fails(event): return 1 / 0"]
    assert seen == [
        ("WorkspaceError", []),
        ("ServiceUnreachableError", []),
        ("WorkspaceError", ["12, in mine: return real.export('/proc/x')"]),
        ("TrackingError", fails),
        ("TrackingErrorGroup", ["", *fails, "", *fails]),
    ]


def test_cells_queued_behind_a_wait_run(kernel: Waiting) -> None:
    """None of those sent during a wait is lost, nor during one in a nested loop."""
    wait = kernel.start("_ = wait()")
    queued = [kernel.start(f"print({n})") for n in range(2)]
    kernel.until(lambda: kernel.parts_done() >= 0)
    kernel.finish()
    kernel.until(lambda: all(cell.done for cell in (wait, *queued)))
    assert [cell.printed for cell in queued] == ["0\n", "1\n"]

    kernel.end()
    kernel.begin()
    nested = kernel.start(NESTED)
    queued = [kernel.start("print(len(ticks) > 10)"), kernel.start("print(user.cancel())")]
    _moves(kernel)
    kernel.finish()
    kernel.until(lambda: all(cell.done for cell in (nested, *queued)))
    assert nested.error == ""
    assert [cell.printed for cell in queued] == ["True\n", "True\n"]


def test_a_click_counts_exactly_once(kernel: Waiting) -> None:
    """During a wait, blocking or not, it is neither lost nor doubled."""
    before = kernel.asked()
    cell = kernel.start("_ = wait()")
    _moves(kernel)
    _click(kernel, "Pause")
    kernel.finish()
    kernel.until(lambda: cell.done and "pause: queued for #1 first" in kernel.shown())
    assert kernel.asked() == [*before, "pause"]

    kernel.end()
    kernel.begin()
    cell = kernel.start("_ = await wait_async()")
    _moves(kernel)
    _click(kernel, "Cancel order")
    if kernel.version in LIVE_WHILE_AWAITING:
        kernel.until(lambda: "cancel: queued for #1 first" in kernel.shown())
        assert not cell.done
    kernel.finish()
    kernel.until(lambda: cell.done and "cancel: queued for #1 first" in kernel.shown())
    assert kernel.asked() == [*before, "pause", "cancel"]


def test_a_kernel_that_cannot_update_from_threads_says_so(tmp_path: Path) -> None:
    """On ipykernel 7.0.x the table stands still and says in one sentence why; tracking works."""
    with prepared(BROKEN, tmp_path) as kernel:
        cell = kernel.run("show(tracker)")
        (table,) = cell.shown
        assert f"ipykernel {BROKEN} cannot update this table" in table["text/plain"]
        assert "pip install -U ipykernel" in table["text/html"]
        kernel.run("threading.Thread(target=drive, daemon=True).start()")
        kernel.run("v = tracker.version\nwhile tracker.version < v + 5: tracker.wait(timeout_s=1)")
        kernel.end()


def test_the_unmaintained_nesting_is_refused_where_it_loses_cells(tmp_path: Path) -> None:
    """With nest_asyncio applied for real, a nested wait says what to do instead of starting."""
    with prepared("7.1.0", tmp_path) as kernel:
        kernel.run("import nest_asyncio\nnest_asyncio.apply()")
        cell = kernel.start(NESTED)
        kernel.until(lambda: cell.done)
    assert "silently loses cells" in cell.error
    assert "await tracker.wait_async()" in cell.error


def _moves(kernel: Kernel) -> None:
    """See the table come up, and change twice."""
    kernel.until(lambda: kernel.parts_done() >= 0)
    for _ in range(2):
        seen = kernel.parts_done()
        kernel.until(lambda seen=seen: kernel.parts_done() != seen)


def _click(kernel: Kernel, button: str) -> None:
    """Choose the first order and click."""
    kernel.choose("#1 first")
    kernel.click(button)
