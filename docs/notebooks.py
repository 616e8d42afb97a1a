"""Executes notebooks and keeps the result: for the tests, and for the site.

``python docs/notebooks.py [NAME ...]`` executes the named notebooks, or all, and writes them to
``build/notebooks``. Widgets are taken out of the result: a page would fetch a script for them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "notebooks"
EXECUTED = ROOT / "build" / "notebooks"
CELL_LIMIT_S = 60
WIDGET = "application/vnd.jupyter.widget-view+json"

# nbformat has no types
_books: Any = nbformat


def main(names: Iterable[str]) -> int:
    """Execute notebooks; return how many failed."""
    failed = 0
    for source in [SOURCES / name for name in names] or sorted(SOURCES.glob("*.ipynb")):
        try:
            execute(source)
        except CellExecutionError as exc:
            sys.stderr.write(f"{source.name}: {exc}\n")
            failed += 1
    return failed


def execute(source: Path) -> Path:
    """Execute one notebook in an empty folder, and return where the result is."""
    book = _books.read(source, as_version=4)
    with tempfile.TemporaryDirectory(prefix="regards-nb-") as folder:
        NotebookClient(
            book,
            timeout=CELL_LIMIT_S,
            store_widget_state=False,
            resources={"metadata": {"path": folder}},
            # a kernel's own warnings are no part of the notebook
            extra_arguments=["--IPKernelApp.log_level=ERROR", "--HistoryManager.enabled=False"],
        ).execute()
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    _books.write(book, EXECUTED / source.name)
    return EXECUTED / source.name


def executed(source: Path) -> Path:
    """Return an executed notebook, executing it only if it or the package is younger."""
    result = EXECUTED / source.name
    code = (ROOT / "regards_nb").rglob("*.py")
    newest = max(path.stat().st_mtime for path in (source, *code))
    if result.exists() and result.stat().st_mtime > newest:
        return result
    return execute(source)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
