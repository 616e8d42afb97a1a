"""The notebooks: stored without outputs, and each runs from top to bottom."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: On a busy machine; alone each takes well under a minute.
LIMIT_S = 240
# nbformat has no types
_books: Any = nbformat


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(notebook: Path) -> None:
    """Nothing of somebody's run is in the repository: no output, no count, no widget."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"]
    for cell in book["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(notebook: Path) -> None:
    """On the simulator, without an error, and without a word on stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "notebooks.py"), notebook.name],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    book = _books.read(ROOT / "build" / "notebooks" / notebook.name, as_version=4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert outputs
    # The simulator's passwords are made up, and still must not be in a saved notebook.
    assert re.search(r"://[^/\s]+:[^/\s]+@", "".join(map(str, outputs))) is None
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
