"""Executes notebooks into ``build/notebooks``, for the tests and for the site.

``python docs/notebooks.py [NAME ...]`` executes the named notebooks, or all. Widgets are removed
from the result, because a page would load a script from the network for them.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

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
            executed(source)
        except CellExecutionError as exc:
            sys.stderr.write(f"{source.name}: {exc}\n")
            failed += 1
    return failed


def execute(source: Path) -> Path:
    """Execute one notebook in an empty folder, and return where the result is."""
    book = _books.read(source, as_version=4)
    with (
        tempfile.TemporaryDirectory(prefix="regards-nb-") as folder,
        tempfile.TemporaryDirectory(prefix="regards-nb-") as sockets,
    ):
        # Between the choice of a TCP port and its use by the kernel, another program can take it.
        kernel = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        NotebookClient(
            book,
            config=Config(KernelManager=kernel),
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
    """Return an executed notebook; processes that ask at the same time share one execution.

    A result is used again unless the notebook or the package is younger, or the result is older
    than ``REGARDS_NB_NOTEBOOKS_SINCE`` (seconds since 1970), which the tests set when they begin.
    """
    result = EXECUTED / source.name
    EXECUTED.mkdir(parents=True, exist_ok=True)
    with (EXECUTED / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inputs = [source, *(ROOT / "regards_nb").rglob("*.py")]
        since_s = float(os.environ.get("REGARDS_NB_NOTEBOOKS_SINCE", "0"))
        newest_s = max(since_s, *(path.stat().st_mtime for path in inputs))
        if result.exists() and result.stat().st_mtime > newest_s:
            return result
        return execute(source)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
