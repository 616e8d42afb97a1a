"""The notebooks: stored without outputs, and each runs from top to bottom as its text says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import without_waits

if TYPE_CHECKING:
    from regards_nb.simulator import PrivateBroker

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: They start a RabbitMQ of their own: a shared one has other names of queues.
SHOW_THEIR_QUEUE = {"02_order_and_steer", "05_real_service"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(notebook: Path) -> None:
    """Nothing of somebody's run is in the repository: no output, no count, no widget."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"]
    for cell in book["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def executed(name: str, broker: PrivateBroker) -> Any:
    """Return the executed notebook, from the one execution that all tests share."""
    import nbformat

    execute = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))["executed"]
    with pytest.MonkeyPatch.context() as patch:
        if name.removesuffix(".ipynb") not in SHOW_THEIR_QUEUE:
            patch.setenv("REGARDS_NB_AMQP_URL", broker.admin_url)
        return nbformat.read(execute(ROOT / "notebooks" / name), as_version=4)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(notebook: Path, broker: PrivateBroker) -> None:
    """On the simulator, without an error, and without a word on stderr."""
    book = executed(notebook.name, broker)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert outputs
    # The simulator's passwords are made up, and still must not be in a saved notebook.
    assert re.search(r"://[^/\s]+:[^/\s]+@", "".join(map(str, outputs))) is None
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert "Traceback" not in str(book)


def printed(cell: Any) -> str:
    """Return what a cell printed."""
    return without_waits("".join(output.get("text", "") for output in cell.outputs))


def test_order_and_steer_shows_what_it_says(broker: PrivateBroker) -> None:
    """Notebook 02: ordered once, paused, resumed, retried, cancelled."""
    book = executed("02_order_and_steer.ipynb", broker)
    shown = {cell.id: printed(cell) for cell in book.cells if cell.cell_type == "code"}
    estimate, *statuses = shown["steer-09"].splitlines()
    assert estimate.startswith("ordering 10 products, 20 files, ")
    assert statuses == ["PAUSED", "RUNNING"]
    assert "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED" in shown["steer-11"]
    assert "FAILED - Order of user" in shown["steer-13"]
    assert "4 files" in shown["steer-13"]
    assert "DONE\n6 files" in shown["steer-14"]
    assert "made on the web page" in shown["steer-18"]
    assert "polling REGARDS over REST" in shown["steer-21"]
    frame = next(cell for cell in book.cells if cell.id == "steer-16").outputs[0]
    assert "DELETED" in str(frame.data["text/plain"])


def test_what_the_quickstart_prints_does_not_wrap(broker: PrivateBroker) -> None:
    """At 1280 pixels JupyterLab has room for some 140 characters beside the prompt."""
    for cell in executed("01_quickstart.ipynb", broker).cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            printed = output.get("text") or ("" if "text/html" in data else data.get("text/plain"))
            assert max(map(len, (printed or "").splitlines()), default=0) <= 120, printed


def test_beyond_one_notebook_shows_what_it_says(broker: PrivateBroker) -> None:
    """Notebook 07: a reader follows, files are objects, workers process, the journal stays."""
    book = executed("07_beyond_one_notebook.ipynb", broker)
    shown = {cell.id: printed(cell) for cell in book.cells if cell.cell_type == "code"}
    assert "3 objects; s3://orders/swot/1/" in shown["beyond-07"]
    assert "{1: 202218, 2: 202218}\n6 files, the reader says" in shown["beyond-10"]
    assert shown["beyond-12"].startswith("0 events of 0 orders")
