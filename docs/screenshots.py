"""Takes the pictures of ``docs/images``: the table in each host, in a real Chromium.

The orders are those of the simulated archive. ``python docs/screenshots.py`` needs the extra
``test``; it replaces all pictures.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from playwright.sync_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).parent.parent
# The tests have the helpers for browser and servers.
sys.path.insert(0, str(ROOT / "tests"))

from browser import Lab, chromium, opened, served  # noqa: E402

if TYPE_CHECKING:
    from browser import Chromium
    from playwright.sync_api import Page

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1000, 440
#: Height of a page of JupyterLab, of which the picture shows the output of one cell.
LAB_HEIGHT = 900

TRACKER = """
from contextlib import suppress
from regards_nb import OrderTracker
from regards_nb.errors import IncompleteDownloadError
tracker = OrderTracker.demo()
one_pass = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
one_pass.wait(timeout_s=60)
one_pass.download()
tracker.submit("dataset:FORBIDDEN", label="not for me")
tapes = tracker.submit("dataset:TAPE_ARCHIVE", label="old tapes")
tapes.wait(timeout_s=60)
with suppress(IncompleteDownloadError):
    tapes.download()
cycle = tracker.submit("dataset:SWOT_CYCLE_007", label="a whole cycle")
"""
INDENTED = TRACKER.replace("\n", "\n    ")
MARIMO = f"""
import marimo
app = marimo.App(width="full")

@app.cell
def _():{INDENTED}
    tracker
    return

if __name__ == "__main__":
    app.run()
"""
# One tracker for all visitors: a module, which is imported once.
PANEL = f"""
import panel as pn
pn.extension("ipywidgets")
from archive import tracker
pn.pane.IPyWidget(tracker.widget(), width={WIDTH - 20}).servable()
"""
SOLARA = """
import solara
from archive import tracker

@solara.component
def Page():
    solara.display(tracker.widget())
"""


def main() -> None:
    """Serve the table in each host, and take its picture."""
    for choice in ("ipywidgets", "anywidget"):
        with chromium() as browser:  # it keeps a page of its server, which ends
            _jupyterlab(browser, choice)
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        _hosts(browser, Path(folder))


def _jupyterlab(browser: Chromium, choice: str) -> None:
    with Lab() as lab:
        use = f"from regards_nb import display; display.use({choice!r})\n"
        name = lab.notebook("orders.ipynb", use + TRACKER, "tracker")
        with browser.page(lab, name) as page:
            page.run_cell(0)
            page.run_cell(1)
            _wait(page.page)
            _take(page.page, f"jupyterlab-{choice}", page.output(1), height=LAB_HEIGHT)


def _hosts(browser: Chromium, folder: Path) -> None:
    books: Any = nbformat.v4
    spec = {"name": "python3", "display_name": "3", "language": "python"}
    cells = [books.new_code_cell("%%capture" + TRACKER), books.new_code_cell("tracker")]
    book = books.new_notebook(cells=cells, metadata={"kernelspec": spec})
    nbformat.write(book, str(folder / "voila.ipynb"))
    (folder / "archive.py").write_text(TRACKER)
    for name, source in (("marimo", MARIMO), ("panel", PANEL), ("solara", SOLARA)):
        (folder / f"{name}_app.py").write_text(source)
    for name, path, command in (
        ("voila", "", "voila voila.ipynb --no-browser --port={port} --Voila.ip=127.0.0.1"),
        ("marimo", "", "marimo run marimo_app.py --headless --no-token --port {port}"),
        ("panel", "/panel_app", "panel serve panel_app.py --warm --port {port}"),
        (
            "solara",
            "",
            "solara run solara_app.py --no-open --production --host 127.0.0.1 --port {port}",
        ),
    ):
        with served(folder, *command.split()) as address, opened(browser, address + path) as page:
            _wait(page)
            _take(page, name)


def _wait(page: Page) -> None:
    """Wait until REGARDS waits for the user: then nothing moves any more."""
    page.get_by_text("a whole cycle").locator("visible=true").first.wait_for(timeout=120_000)
    page.get_by_text("2/5").locator("visible=true").first.wait_for()


def _take(page: Page, name: str, where: Any = None, *, height: int = HEIGHT) -> None:
    page.set_viewport_size({"width": WIDTH, "height": height})
    with suppress(PlaywrightTimeout):
        page.wait_for_load_state("networkidle", timeout=3000)
    target = {"path": str(IMAGES / f"{name}.png")}
    if where is None:
        page.screenshot(**target)
    else:
        where.screenshot(**target)


if __name__ == "__main__":
    main()
