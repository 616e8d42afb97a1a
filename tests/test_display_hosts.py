"""The live view in other hosts than Jupyter: each is served for real and seen in a real browser."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import Chromium, chromium, opened, served
from conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

TESTS = Path(__file__).parent
SCREENSHOTS = TESTS / "screenshots"

#: A tracker whose first order moves by itself.
TRACKER = """
import threading
from scripted_tracker import ScriptedTracker, order
tracker = ScriptedTracker(
    order("first", 1, suborders_total=1000),
    order("second", 2, label="SWOT June", status="SUBORDER_DONE", waits_for_download=True),
)
def drive():
    pause = threading.Event()
    for done in range(1, 100_000):
        tracker.tell(order("first", 1, suborders_done=done, suborders_total=1000))
        pause.wait(0.05)
threading.Thread(target=drive, daemon=True).start()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """Return one browser for all tests of this file."""
    with chromium() as browser:
        yield browser


def parts_done(page: Page, view: int) -> int:
    """Return the parts of the first order in a view; locators look into shadow roots, too."""
    parts = page.locator(".rg-parts:visible", has_text="/1000")
    return int(parts.nth(view).inner_text(timeout=120_000).partition("/")[0])


def moves(page: Page, *, view: int = 0) -> None:
    """See the table of a view, and see it change twice."""
    for _ in range(2):
        seen = parts_done(page, view)
        until(lambda seen=seen: parts_done(page, view) > seen)


MARIMO = f"""
import marimo
app = marimo.App()

@app.cell
def _():
{re.sub("^", "    ", TRACKER, flags=re.MULTILINE)}
    return (tracker,)

@app.cell
def _(tracker):
    tracker
    return

if __name__ == "__main__":
    app.run()
"""


#: a cell that waits below the live view until there is a file
MARIMO_WAIT = MARIMO.replace(
    "if __name__",
    """@app.cell
def _(threading, tracker):
    from regards_nb.display import watching
    from pathlib import Path
    pause = threading.Event()
    with watching(tracker) as watch:
        while not Path("finish").exists():
            watch.refresh(note="waiting for 2 orders")
            pause.wait(0.1)
    return

if __name__""",
).replace("return (tracker,)", "return threading, tracker")


@pytest.mark.parametrize("mode", ["run", "edit"])
def test_marimo_shows_the_live_view_with_buttons(
    browser: Chromium, tmp_path: Path, mode: str
) -> None:
    """The value of a cell moves, through anywidget, and a click reaches the tracker.

    The view of a wait moves while its cell runs; afterwards it says that it does not move.
    """
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    (tmp_path / "app.py").write_text(MARIMO_WAIT if mode == "run" else MARIMO)
    command = f"marimo {mode} app.py --headless --no-token --port {{port}}".split()
    if mode == "edit":
        command += ["--skip-update-check"]
    with served(tmp_path, *command) as address, opened(browser, address) as page:
        if mode == "edit":
            page.locator("[data-testid='run-button']").first.wait_for()
            # The key does nothing until the page has its kernel.
            while not page.locator(".regards-nb-live").count():
                page.keyboard.press("Control+Shift+r")
                with suppress(PlaywrightTimeout):
                    page.locator(".regards-nb-live").first.wait_for(timeout=4000)
        else:
            page.get_by_text("waiting for 2 orders").wait_for()
            moves(page, view=1)
            (tmp_path / "finish").touch()
            page.get_by_text("this picture does not move").wait_for()
        moves(page)
        page.screenshot(path=SCREENSHOTS / f"marimo-{mode}.png")
        page.locator(".regards-nb-live select").first.select_option(label="#1 first")
        page.get_by_role("button", name="Pause", exact=True).first.click()
        page.get_by_text("pause: queued for #1 first").first.wait_for()


def test_marimo_without_anywidget_shows_a_picture_that_says_its_time(
    browser: Chromium, tmp_path: Path
) -> None:
    """The table is there, and says as of when it is and that it does not move."""
    # Python takes a module that is None for one that is not installed.
    missing = "def _():\n    import sys; sys.modules['anywidget'] = None\n"
    (tmp_path / "app.py").write_text(MARIMO.replace("def _():\n", missing, 1))
    command = ["marimo", "run", "app.py", "--headless", "--no-token", "--port", "{port}"]
    with served(tmp_path, *command) as address, opened(browser, address) as page:
        page.get_by_text("SWOT June").locator("visible=true").first.wait_for()
        page.get_by_text("this picture does not move").locator("visible=true").first.wait_for()


def test_panel_shows_the_widget(browser: Chromium, tmp_path: Path) -> None:
    """``pn.pane.IPyWidget(tracker.widget())`` moves, its buttons work, and sessions may end.

    Panel ends a session of its own before the first visitor comes, and one after each visitor.
    """
    ended = tmp_path / "ended"
    (tmp_path / "archive.py").write_text(TRACKER)
    (tmp_path / "app.py").write_text(
        "import panel as pn\npn.extension('ipywidgets')\n"
        "from archive import tracker\nfrom regards_nb.display import widget\n"
        f"pn.state.on_session_destroyed(lambda _: open({str(ended)!r}, 'a').write('.'))\n"
        "pn.pane.IPyWidget(widget(tracker), width=1000).servable()\n"
    )
    command = ["panel", "serve", "app.py", "--port", "{port}", "--warm"]
    command += ["--unused-session-lifetime", "1000", "--check-unused-sessions", "200"]
    with served(tmp_path, *command) as address:
        with opened(browser, f"{address}/app") as page:
            moves(page)
            page.screenshot(path=SCREENSHOTS / "panel.png")
            page.locator("select:visible").first.select_option(label="#1 first")
            page.get_by_role("button", name="Pause", exact=True).click()
            page.get_by_text("pause: queued for #1 first").wait_for()
            before = ended.read_text()
        until(lambda: ended.read_text() != before)
        with opened(browser, f"{address}/app") as page:
            moves(page)
            assert not page.get_by_text("updating the display").count()


def test_solara_shows_each_visitor_a_live_view(browser: Chromium, tmp_path: Path) -> None:
    """Two visitors, and one who loads the page again, each have a view that moves."""
    (tmp_path / "app.py").write_text(
        "import solara\n" + TRACKER + "from regards_nb.display import widget\n"
        "@solara.component\ndef Page():\n    solara.display(widget(tracker))\n"
    )
    command = [
        "solara",
        "run",
        "app.py",
        "--no-open",
        "--production",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ]
    with served(tmp_path, *command) as address, opened(browser, address) as page:
        moves(page)
        with opened(browser, address) as second:
            moves(second)
            moves(page)
        page.reload(wait_until="domcontentloaded")
        moves(page)
        page.screenshot(path=SCREENSHOTS / "solara.png")


def test_voila_shows_the_live_view(browser: Chromium, tmp_path: Path) -> None:
    """A notebook that ends in the tracker is a live page."""
    import nbformat.v4

    books: Any = nbformat.v4
    book = books.new_notebook(
        cells=[books.new_code_cell(TRACKER), books.new_code_cell("tracker")],
        metadata={"kernelspec": {"name": "python3", "display_name": "3", "language": "python"}},
    )
    nbformat.write(book, str(tmp_path / "page.ipynb"))
    command = ["voila", "page.ipynb", "--no-browser", "--port={port}", "--Voila.ip=127.0.0.1"]
    with served(tmp_path, *command) as address, opened(browser, address) as page:
        moves(page)
        page.screenshot(path=SCREENSHOTS / "voila.png")
