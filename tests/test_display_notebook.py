"""The display in a real kernel, run without a browser as nbconvert and nbmake do."""

from __future__ import annotations

import copy
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PYTHON_MODULE
from kernels import sockets_in

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"

SETUP = """
import sys, threading
from scripted_tracker import NOON, ScriptedTracker, order
from regards_nb.consumer import Health, HealthState
from regards_nb.display import close_views, show, watching
from ipywidgets.widgets.widget import _instances
tracker = ScriptedTracker(order("first", 1))
before = len(_instances)

def html_widgets():
    return [w for w in _instances.copy().values() if type(w).__name__ == "HTML"]

def until(condition):
    deadline = threading.Event()
    for _ in range(1000):
        if condition():
            return
        deadline.wait(0.02)
    raise AssertionError("the condition did not come")
"""


#: after a test in the kernel that several share
CLOSE = "close_views(tracker) if 'tracker' in globals() else None"


@contextmanager
def new_kernel(folder: Path) -> Iterator[Any]:
    """Start a kernel; yield what executes cells in it."""
    import nbformat.v4
    from nbclient import NotebookClient
    from traitlets.config import Config

    books: Any = nbformat
    options = {"timeout": 240, "startup_timeout": 240, "kernel_name": "python3"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        patch.setenv("IPYTHONDIR", str(folder))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        config = Config(KernelManager=sockets_in(folder))
        client: Any = NotebookClient(books.v4.new_notebook(), config=config, **options)
        with client.setup_kernel():
            yield client


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return one kernel for all tests that change nothing in it for good."""
    with new_kernel(tmp_path_factory.mktemp("kernel")) as client:
        yield client


@pytest.fixture
def own_kernel(tmp_path: Path) -> Iterator[Any]:
    """Return a new kernel."""
    with new_kernel(tmp_path) as client:
        yield client


def run(client: Any, *cells: str) -> list[list[Any]]:
    """Run cells in a kernel; return the outputs of each."""
    import nbformat.v4

    books: Any = nbformat
    client.nb = books.v4.new_notebook(cells=[books.v4.new_code_cell(cell) for cell in cells])
    client.reset_execution_trackers()
    try:
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        # the last cell changes what is shown
        return copy.deepcopy([cell.outputs for cell in client.nb.cells])
    finally:
        client.nb.cells.append(books.v4.new_code_cell(CLOSE))
        client.execute_cell(client.nb.cells[-1], len(cells))


def test_a_wait_ends_as_a_static_picture(kernel: Any) -> None:
    """After the wait the saved output is HTML and text of the last state, without a widget."""
    outputs = run(
        kernel,
        SETUP,
        """
with watching(tracker, [order("first").key]) as watch:
    for done in range(1, 4):
        tracker.tell(order("first", 1, suborders_done=done, suborders_total=3))
        watch.refresh(note=f"{done} of 3")
        until(lambda: any(f"{done}/3" in w.value for w in html_widgets()))
    tracker.tell(order("first", 1, status="DONE", suborders_done=3, suborders_total=3))
""",
    )
    output, last_line = outputs[1]
    assert set(output.data) == {"text/html", "text/plain"}
    # jupyter-console shows this one, and cannot replace the other
    assert last_line.data == {"text/html": "", "text/plain": "REGARDS: 1 of 1 order finished"}
    for shown in output.data.values():
        assert "1 of 1 order finished" in shown
        assert "3/3" in shown
        assert "2 of 3" not in shown
        assert "This cell is waiting" not in shown


def test_the_live_view_is_updated_from_its_thread_while_cells_run(kernel: Any) -> None:
    """show() returns at once; later changes reach the widgets, and no output but its own."""
    outputs = run(
        kernel,
        SETUP,
        "show(tracker)",
        """
tracker.tell(order("second", 2, label="<i>second</i>"))
until(lambda: any("&lt;i&gt;second&lt;/i&gt;" in w.value for w in html_widgets()))
""",
        "close_views(tracker, note='closed')\nassert len(_instances) == before, _instances",
    )
    output, fallback = outputs[1]
    assert fallback.data == {"text/html": "", "text/plain": ""}
    assert WIDGET not in output.data
    assert "closed" in output.data["text/plain"]
    assert "<i>second</i>" in output.data["text/plain"]
    assert "<i>second</i>" not in output.data["text/html"]
    assert outputs[2] == outputs[3] == []


def test_a_view_that_is_never_closed_leaves_a_fallback_picture(own_kernel: Any) -> None:
    """Beside the widget a hidden picture follows, for the day when the kernel is gone."""
    outputs = run(
        own_kernel,
        SETUP,
        "from regards_nb.display import WidgetView\n"
        "WidgetView.fallback_interval_s = 0.1\nshow(tracker)",
        """
from regards_nb.display import refresh_thread_of
(shown,) = refresh_thread_of(tracker)._views.values()
tracker.tell(order("second", 2, label="<i>second</i>"))
until(lambda: shown._fallback is shown.last and len(shown.last.orders) == 2)
""",
    )
    live, fallback = outputs[1]
    assert {WIDGET, "text/html", "text/plain"} <= set(live.data)
    assert fallback.data["text/plain"] == ""
    assert 'class="regards-nb-fallback" style="display:none"' in fallback.data["text/html"]
    assert "&lt;i&gt;second&lt;/i&gt;" in fallback.data["text/html"]


def test_the_value_of_a_cell_is_live_with_fallbacks_of_the_same_moment(kernel: Any) -> None:
    """A cell ending in the tracker gives a widget, HTML and text; twenty cells cost one view."""
    outputs = run(
        kernel,
        SETUP,
        "tracker",
        "once = len(_instances)\nfor _ in range(20):\n    tracker._repr_mimebundle_()",
        "assert len(_instances) == once",
    )
    fallback, output = outputs[1]
    assert 'class="regards-nb-fallback" style="display:none"' in fallback.data["text/html"]
    assert output.output_type == "execute_result"
    assert {WIDGET, "text/html", "text/plain"} <= set(output.data)
    assert "0 of 1 order finished" in output.data["text/html"]
    assert "0 of 1 order finished" in output.data["text/plain"]


def test_twenty_waits_cost_one_view(kernel: Any) -> None:
    """Waits one after the other use the same widgets, and the thread ends between them."""
    run(
        kernel,
        SETUP,
        """
with watching(tracker): pass
once = len(_instances)
for _ in range(20):
    with watching(tracker) as watch:
        watch.refresh()
assert len(_instances) == once
names = lambda: [thread.name for thread in threading.enumerate()]
until(lambda: "regards-nb-display" not in names())
close_views(tracker)
assert len(_instances) == before
""",
    )


def test_what_was_shown_does_not_keep_the_tracker(kernel: Any) -> None:
    """A tracker that was waited for, and is still shown, is collected when nobody holds it."""
    outputs = run(
        kernel,
        SETUP,
        """
import gc, weakref

class Wait:
    def __init__(self, tracker):
        self.tracker = tracker

    def keys(self):
        return [each.key for each in self.tracker.snapshot().orders]

with watching(tracker, Wait(tracker).keys) as watch:
    watch.refresh()
show(tracker)
gone = weakref.ref(tracker)
del tracker, watch
gc.collect()
until(lambda: gone() is None)
until(lambda: len(_instances) == before)
""",
    )
    waited, _, shown, _ = outputs[1]
    assert "This tracker no longer exists; this is its last state." in shown.data["text/plain"]
    assert WIDGET not in {**waited.data, **shown.data}


def test_a_kernel_that_cannot_update_from_threads_is_named(own_kernel: Any) -> None:
    """On ipykernel 7.0.x the table says why it stands still; a wait is lines of text."""
    outputs = run(
        own_kernel,
        SETUP + "\nimport ipykernel\nipykernel.__version__ = '7.0.1'",
        "show(tracker)\nassert 'regards-nb-display' not in "
        "[thread.name for thread in threading.enumerate()]",
        """
with watching(tracker) as watch:
    tracker.tell(order("second", 2))
    watch.refresh()
""",
    )
    assert "ipykernel 7.0.1" in outputs[1][0].data["text/plain"]
    assert "pip install -U ipykernel" in outputs[1][0].data["text/plain"]
    lines = "".join(output.text for output in outputs[2])
    assert "ipykernel 7.0.1" in lines
    assert "#2  second" in lines


def test_an_error_in_the_display_does_not_reach_the_cell(kernel: Any) -> None:
    """A tracker whose snapshots fail still can be waited for; the error is recorded."""
    outputs = run(
        kernel,
        SETUP,
        """
recorded = []
tracker.broken = OSError("no snapshot")
with watching(tracker, record=recorded.append) as watch:
    watch.refresh(note="a note")
assert [str(error) for error in recorded] == ["no snapshot"]
""",
    )
    assert outputs[1] == []


def test_a_converted_notebook_needs_nothing_from_the_network(kernel: Any, tmp_path: Path) -> None:
    """Nbconvert's HTML of a finished wait holds the table and its bars as plain elements."""
    import nbformat

    run(
        kernel,
        SETUP,
        "with watching(tracker):\n"
        "    tracker.tell(order('first', 1, suborders_done=1, suborders_total=4))",
    )
    nbformat.write(kernel.nb, tmp_path / "run.ipynb")
    subprocess.run(
        [*PYTHON_MODULE, "nbconvert", "--to", "html", "run.ipynb"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    page = (tmp_path / "run.html").read_text()
    assert "<progress" in page
    assert "1/4" in page
