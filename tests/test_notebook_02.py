"""The notebook on ordering and steering runs from top to bottom, and does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "02_order_and_steer.ipynb"


def said(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_order_and_steer(tmp_path: Path) -> None:
    """Ordered once, paused, resumed, retried, cancelled; and stored without outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    runner = NotebookClient(
        notebook,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        timeout=60,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    runner.execute()
    shown = {cell.id: said(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert shown["steer-09"].split() == ["PAUSED", "RUNNING"]
    assert "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED" in shown["steer-11"]
    assert "FAILED - Order of user" in shown["steer-13"]
    assert "4 files" in shown["steer-13"]
    assert "DONE\n6 files" in shown["steer-14"]
    assert "made on the web page" in shown["steer-18"]
    assert "no broker" in shown["steer-21"]
    frame = next(cell for cell in notebook.cells if cell.id == "steer-16").outputs[0]
    assert "DELETED" in str(frame.data["text/plain"])
    assert "Traceback" not in str(notebook)
