"""A tracker of a simulated archive, and the demo of the README.

``python -m regards_nb.demo`` executes the quickstart notebook, prints the orders and where their
files are, and writes the executed notebook and its HTML.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import weakref
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regards_nb.client import RegardsClient
from regards_nb.errors import SettingsError
from regards_nb.output import say
from regards_nb.settings import check_options
from regards_nb.simulator import BrokerMissingError, Simulator
from regards_nb.text import counted
from regards_nb.tracker import OrderTracker
from regards_nb.waits import said_meanwhile

if TYPE_CHECKING:
    from nbformat import NotebookNode

QUICKSTART = Path("notebooks") / "01_quickstart.ipynb"
OUTPUT = Path("demo-output")
WORKSPACE = Path("orders")

_TRACKER_OPTIONS = {"journal", "workspace", "auto_download", "silence_s"}


def demo_tracker(**options: Any) -> OrderTracker:
    """Start a simulated REGARDS and a tracker of its orders; see `OrderTracker.demo`."""
    check_options(options, _TRACKER_OPTIONS | signature(Simulator).parameters.keys(), "demo()")
    tracker_options = {name: options.pop(name) for name in _TRACKER_OPTIONS & options.keys()}
    if options.get("broker") is None:
        say("starting a private RabbitMQ for the demo, which takes some seconds")
    try:
        simulator = Simulator(**options).start()
    except BrokerMissingError as exc:
        raise SettingsError(str(exc)) from exc
    try:
        client = RegardsClient(
            simulator.base_url,
            tenant=simulator.tenant,
            username=simulator.username,
            password=simulator.password,
            client_id=simulator.client_id,
            client_secret=simulator.client_secret,
        )
        # Each simulator counts its orders from 1, so an earlier demo's journal would not match.
        scratch = tempfile.mkdtemp(prefix="regards-nb-demo-")
        tracker_options.setdefault("journal", Path(scratch) / "journal.sqlite")
        tracker_options.setdefault("workspace", _new_workspace())
        tracker = OrderTracker(
            simulator.amqp_url,
            simulator.queue,
            tenant=simulator.tenant,
            client=client,
            **tracker_options,
        )
        tracker.simulator = simulator
        tracker.ends_with(
            said_meanwhile("waiting for the RabbitMQ of this demo to end")(simulator.stop),
            then="this demo has ended with stop(): OrderTracker.demo() starts a new one",
        )
        weakref.finalize(tracker, shutil.rmtree, scratch, ignore_errors=True)
        return tracker.start()
    except BaseException:
        simulator.stop()
        raise


def _new_workspace() -> Path:
    """Return a folder that does not exist yet; two demos of one day share no files."""
    name = time.strftime("demo-%Y-%m-%d-%H%M%S")
    names = (name, *(f"{name}-{number}" for number in range(2, 100)))
    return next(path for path in map(WORKSPACE.joinpath, names) if not path.exists())


def main() -> int:
    """Run the quickstart for `make demo` and return the exit code."""
    # Packages of the extra [demo], which the tracker itself does not need.
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert.exporters import HTMLExporter

    OUTPUT.mkdir(exist_ok=True)
    notebook: NotebookNode = nbformat.read(QUICKSTART, as_version=4)
    titles = _titles(notebook)

    def print_title(cell_index: int, **_: object) -> None:
        if cell_index in titles:
            say(f"  {titles[cell_index]}")

    say(f"Running {QUICKSTART} on a simulated REGARDS:")
    runner = NotebookClient(
        notebook,
        # With widget state, the page would load JavaScript from the network.
        store_widget_state=False,
        # Warnings of the kernel itself are no part of the demo.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        timeout=300,
        resources={"metadata": {"path": str(OUTPUT)}},
        on_cell_start=print_title,
    )
    try:
        runner.execute()
    except CellExecutionError as exc:
        say(f"The notebook stopped:\n{exc}")
        return 1
    finally:
        nbformat.write(notebook, OUTPUT / QUICKSTART.name)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        (OUTPUT / QUICKSTART.name).with_suffix(".html").write_text(page, encoding="utf-8")
    report(notebook)
    return 0


def _titles(notebook: NotebookNode) -> dict[int, str]:
    """Return the headings of the notebook, each with the index of the cell after it."""
    return {
        index + 1: cell.source.splitlines()[0].lstrip("# ")
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown" and cell.source.startswith("#")
    }


def report(notebook: NotebookNode) -> None:
    """Print the table of orders of an executed notebook, and the places of the files."""
    for cell in notebook.cells:
        if "orders-table" in cell.metadata.get("tags", ()):
            values = (output.data["text/plain"] for output in cell.outputs if "data" in output)
            say("\n".join(["", *values, ""]))
    folder = max((OUTPUT / WORKSPACE).iterdir(), key=lambda path: path.stat().st_mtime)
    # the workspace keeps its own records in folders whose names begin with a dot
    files = sorted(folder.glob("[!.]*/[!.]*"))
    say(f"{counted(len(files), 'file')} in {folder}, for example {files[0]}")
    say(f"The executed notebook: {OUTPUT / QUICKSTART.name}, as a page: .html beside it")
    say("Open it in JupyterLab with:  make lab")


if __name__ == "__main__":
    sys.exit(main())
