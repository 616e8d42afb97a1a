"""The display as users see it: JupyterLab in Chromium, on a real kernel."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import display
import pytest
from browser import Chromium, Lab, chromium
from kernels import kernelspec, sockets_in
from scripted_cells import PARTS_DONE, SETUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from browser import Page

    from regards_nb.simulator import PrivateBroker

TESTS = Path(__file__).parent
SCREENSHOTS = TESTS / "screenshots"
#: Beside the newest; test_display_kernels has more about each.
OLDER = ("6.31.0", "7.1.0")
#: A kernel for a notebook that ends or changes it.
OWN = "python3"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Return one JupyterLab for all tests of this file."""
    with Lab(*map(kernelspec, OLDER)) as lab:
        yield lab


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """Return one browser for all tests of this file."""
    with chromium() as browser:
        yield browser


class Session:
    """A page and the file that ends the wait in its kernel."""

    def __init__(self, lab: Lab, browser: Chromium, name: str) -> None:
        self._lab = lab
        self._browser = browser
        self.name = f"{name}.ipynb"
        self._finish = lab.root / f"{name}.finish"
        #: What the page may complain of.
        self.forgiven: set[str] = set()

    @contextmanager
    def page(self, *cells: str, kernel: str = "") -> Iterator[Page]:
        """Open a notebook of these cells, below one that has been run; no error may come up.

        Without the name of a kernel it is the one that several tests share.
        """
        close = "if 'tracker' in globals(): close_views(tracker)"
        setup = f"{close}\nFINISH = {str(self._finish)!r}{SETUP}"
        self._lab.notebook(self.name, setup, *cells, kernel=kernel or OWN)
        if not kernel:
            self._lab.share_kernel(self.name)
        self._browser.errors.clear()
        self._browser.refused.clear()
        with self._browser.page(self._lab, self.name) as page:
            page.run_cell(0)
            yield page
            assert page.page.evaluate("window.__xss") is None
        errors = self._browser.errors
        assert [each for each in errors if not any(map(each.__contains__, self.forgiven))] == []
        assert self._browser.refused == []

    def finish(self) -> None:
        """End the wait in the kernel."""
        self._finish.touch()


@pytest.fixture
def session(lab: Lab, browser: Chromium, request: pytest.FixtureRequest) -> Session:
    """Return a session named after the test."""
    return Session(lab, browser, re.sub(r"\W+", "-", request.node.name).strip("-"))


def test_the_table_moves_while_a_cell_waits_and_stays_when_the_kernel_is_gone(
    lab: Lab, session: Session
) -> None:
    """Parts are counted while the cell is busy; saved and reopened, the last state is there."""
    with session.page("wait()", kernel=OWN) as page:
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        seen = page.page.evaluate(PARTS_DONE)
        for _ in range(3):
            page.until(f"(seen) => ({PARTS_DONE})() > seen", seen)
            seen = page.page.evaluate(PARTS_DONE)
        assert "[*]" in page.page.locator(".jp-InputPrompt").nth(1).inner_text()
        assert page.output(1).get_by_text("<img src=x").first.is_visible()
        page.screenshot(SCREENSHOTS / "waiting.png", 1)
        session.finish()
        page.until_done(1)
        page.until_text(1, "1000/1000")
        assert page.page.locator(".jupyter-widgets").count() == 0
        page.save()
        lab.end_kernel(session.name)
        page.open()
        page.until_text(1, "1000/1000")
        assert page.output(1).get_by_text("model not found").count() == 0
        assert page.output(1).locator("progress").count() == 1
    saved = lab.saved(session.name).cells[1].outputs[0].data
    assert "1 of 2 orders finished" in saved["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" not in saved


def test_clicks_act_on_the_chosen_order(session: Session) -> None:
    """In a view shown without waiting, a click reaches the tracker, and the page says so."""
    with session.page("show(tracker)", "tracker.asked") as page:
        page.run_cell(1)
        page.until_text(1, "REGARDS waits for you to download")
        page.output(1).locator("select").select_option(label="#1 first")
        page.output(1).get_by_role("button", name="Cancel order").click()
        page.until_text(1, "cancel: queued for #1 first")
        page.output(1).locator("select").select_option(label="choose an order")
        page.output(1).get_by_role("button", name="Download (1)").click()
        page.until_text(1, "download: queued for #2")
        page.run_cell(2)
        page.until_text(2, "'cancel', OrderKey(tenant='project1', correlation_id='first')")
        page.until_text(2, "'download'")


def test_a_click_during_a_blocking_wait_counts_once(session: Session) -> None:
    """Handled at once or after the cell, a click is neither lost nor doubled."""
    with session.page("wait()", "len(tracker.asked)") as page:
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        page.output(1).locator("select").select_option(label="#1 first")
        page.output(1).get_by_role("button", name="Pause").click()
        page.start_cell(2)
        session.finish()
        page.until_done(2)
        page.until_text(1, "pause: queued for #1 first")
        page.run_cell(2)
        assert page.output(2).inner_text().split()[-1] == "1"


def test_clicks_during_an_async_wait_are_live(session: Session) -> None:
    """While a cell awaits, a click is answered before the cell ends."""
    with session.page("await wait_async()") as page:
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        page.output(1).locator("select").select_option(label="#1 first")
        page.output(1).get_by_role("button", name="Pause").click()
        page.until_text(1, "pause: queued for #1 first")
        assert page.output(1).get_by_text("This cell is waiting").count() == 0
        session.finish()
        page.until_done(1)


def test_stop_ends_the_wait_and_a_queued_cell_still_runs(session: Session) -> None:
    """The stop button ends the cell with a sentence; what was queued behind runs on request."""
    with session.page("wait()", "tracker.snapshot().orders[0].order_id") as page:
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        page.interrupt()
        page.until_done(1)
        page.until_text(1, "You stopped waiting; tracking continues in the background.")
        page.run_cell(2)
        assert page.output(2).inner_text().split()[-1] == "1"
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        page.start_cell(2)
        session.finish()
        page.until_done(2)


@pytest.mark.parametrize("version", OLDER)
def test_an_older_kernel_waits_is_clicked_and_stopped(session: Session, version: str) -> None:
    """The table moves, a click counts once, a queued cell runs, and stop says one sentence."""
    asked = "import ipykernel\nprint(ipykernel.__version__, len(tracker.asked))"
    with session.page("_ = wait()", asked, kernel=version) as page:
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        page.interrupt()
        page.until_done(1)
        page.until_text(1, "You stopped waiting; tracking continues in the background.")
        assert "Traceback" not in page.output(1).inner_text()
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        seen = page.page.evaluate(PARTS_DONE)
        page.until(f"(seen) => ({PARTS_DONE})() > seen", seen)
        page.output(1).locator("select").select_option(label="#1 first")
        page.output(1).get_by_role("button", name="Pause").click()
        page.start_cell(2)
        session.finish()
        page.until_done(2)
        page.until_text(1, "pause: queued for #1 first")
        page.run_cell(2)
        assert page.output(2).inner_text().split()[-2:] == [version, "1"]


def test_a_thousand_orders_are_shown_at_once_and_keep_the_scroll(session: Session) -> None:
    """Fifty rows and a count come up; repainting does not scroll the table back to the top."""
    with session.page(
        "tracker.tell(*(order(f'o{n}', n) for n in range(3, 1001)))\nshow(tracker)",
        "tracker.tell(order('o40', 40, suborders_done=5, suborders_total=8))",
    ) as page:
        page.run_cell(1)
        page.until_text(1, "and 950 more orders")
        assert page.output(1).locator("tbody tr:visible").count() == 50
        scroll = "(() => document.querySelector('.widget-html:has(table)'))()"
        page.page.evaluate(f"() => {{ {scroll}.scrollTop = 700 }}")
        page.run_cell(2)
        page.until_text(1, "5/8")
        assert page.page.evaluate(f"() => {scroll}.scrollTop") == 700


def test_a_flood_of_changes_is_shown_without_a_word_from_the_server(session: Session) -> None:
    """Thousands of changes a second: the last state is exact, and no rate limit was met."""
    flood = """
import time
end = time.monotonic() + 1
count = 0
while time.monotonic() < end:
    count += 1
    tracker.tell(order("first", 1, suborders_done=count, suborders_total=10**9))
print("changes:", count)
"""
    with session.page("show(tracker)", flood) as page:
        page.run_cell(1)
        page.run_cell(2)
        page.until_text(2, "changes:")
        count = int(page.output(2).inner_text().split()[-1])
        assert count > 1000
        page.until_text(1, f"{count}/1000000000")
        assert page.page.get_by_text("rate exceeded").count() == 0


def test_a_flood_through_rabbitmq_is_shown_exactly(
    lab: Lab, browser: Chromium, broker: PrivateBroker
) -> None:
    """Messages come faster than pages are drawn: few changes, and the last state of each order.

    The whole of it, with 5,000 messages a second for ten seconds, is ``benchmarks/display.py``.
    """
    outcome = display.run(broker, lab, browser, orders=10, per_s=2000, seconds=2, has_view=True)
    assert outcome.exact, outcome
    assert outcome.complaints == []
    assert outcome.most_changes_in_a_second is not None
    assert 0 < outcome.most_changes_in_a_second <= 10


def test_everything_has_a_name_for_those_who_do_not_see_it(session: Session) -> None:
    """Table, headers, bars, status line, list and buttons appear in the accessibility tree."""
    with session.page("show(tracker)") as page:
        page.run_cell(1)
        page.until_text(1, "REGARDS waits for you to download")
        tree = page.output(1).aria_snapshot()
    for expected in (
        'table "REGARDS orders"',
        'columnheader "Status"',
        'rowheader "first #1"',
        'progressbar "parts of order #1 first"',
        "status:",
        'combobox "Order"',
        'button "Download (1)"',
        'button "Cancel order"',
    ):
        assert expected in tree


def test_light_and_dark_live_and_saved_look_alike(session: Session) -> None:
    """In both themes the live and the static table have the same columns and legible text."""
    static = (
        "from IPython.display import HTML\nfrom regards_nb.display import html\n"
        "HTML(html(tracker.snapshot()))"
    )
    geometry = (
        "() => [...document.querySelectorAll('.regards-nb table')]"
        ".filter(t => t.offsetParent).map(t => "
        "[...t.querySelectorAll('th, td')].map(c => { const s = getComputedStyle(c);"
        " return [s.textAlign, s.paddingLeft, s.fontSize, s.color, s.backgroundColor,"
        " s.lineHeight, s.verticalAlign].join() }))"
    )
    with session.page("show(tracker)", static) as page:
        page.run_cell(1)
        page.run_cell(2)
        page.until_text(2, "REGARDS waits for you to download")
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            page.theme(theme)
            page.screenshot(SCREENSHOTS / f"{theme.split()[-1].lower()}.png", 1)
            live, saved = page.page.evaluate(geometry)
            assert live == saved


def test_anywidget_moves_is_clicked_and_keeps_selected_text(session: Session) -> None:
    """With anywidget the same view moves from its thread; repainting changes only what differs."""
    use = "from regards_nb.display import use\nuse('anywidget')\nshow(tracker)"
    with session.page(use, "drive_once()", "wait()", "tracker.asked", kernel=OWN) as page:
        page.run_cell(1)
        page.until_text(1, "REGARDS waits for you to download")
        root = page.output(1).locator(".regards-nb-live")
        assert root.locator("tbody tr").count() == 2
        assert page.output(1).locator("table:visible").count() == 1
        root.locator("select").select_option(label="#1 first")
        root.get_by_role("button", name="Cancel order").click()
        page.until_text(1, "cancel: queued for #1 first")
        select = (
            "() => { const n = document.querySelector('.regards-nb-live .rg-name'); "
            "window.getSelection().selectAllChildren(n); return window.getSelection().toString() }"
        )
        selected = page.page.evaluate(select)
        page.run_cell(2)
        page.until_text(1, "77/1000")
        assert selected
        assert page.page.evaluate("() => window.getSelection().toString()") == selected
        page.screenshot(SCREENSHOTS / "anywidget.png", 1)
        page.start_cell(3)
        page.until_text(3, "waiting for 2 orders")
        seen = page.page.evaluate(PARTS_DONE)
        page.until(f"(seen) => ({PARTS_DONE})() > seen", seen)
        session.finish()
        page.until_done(3)
        page.until_text(3, "1000/1000")
        page.run_cell(4)
        page.until_text(4, "'cancel', OrderKey(tenant='project1', correlation_id='first')")


def converted(book: Any) -> str:
    """Return a notebook as nbconvert's HTML, without the scripts that every such page fetches."""
    import nbconvert

    exporter = nbconvert.HTMLExporter(exclude_input=True)
    exporter.require_js_url = exporter.mathjax_url = exporter.mermaid_js_url = ""
    html: str = exporter.from_notebook_node(book)[0]
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def test_views_are_readable_when_their_kernel_is_gone(
    lab: Lab, browser: Chromium, session: Session
) -> None:
    """Nobody closed them: opened again without its kernel, the notebook shows the last pictures."""
    change = (
        "from regards_nb.display import WidgetView\nWidgetView.fallback_interval_s = 0.1\n"
        "tracker.tell(order('first', 1, suborders_done=7, suborders_total=1000))"
    )
    # JupyterLab itself tells the console of the widget that is gone, sometimes late.
    session.forgiven.add("widget model not found")
    with session.page("show(tracker)", "tracker", change, kernel=OWN) as page:
        for index in (1, 2):
            page.run_cell(index)
            page.until_text(index, "REGARDS waits for you to download")
            assert page.output(index).locator("table:visible").count() == 1
        page.run_cell(3)
        page.until(
            "() => [...document.querySelectorAll('.regards-nb-fallback')]"
            ".filter(each => each.innerHTML.includes('7/1000')).length === 2"
        )
        page.save()
        page.close()
        lab.end_kernel(session.name)
        page.turn_to(session.name)
        for index in (1, 2):
            page.output(index).locator("table:visible").wait_for()
            assert page.output(index).locator("table:visible").count() == 1
            assert "7/1000" in page.output(index).inner_text()
            assert "model not found" not in page.output(index).inner_text()
        page.screenshot(SCREENSHOTS / "reopened.png", 1)
    with browser.bare_page() as plain:
        plain.set_content(converted(lab.saved(session.name)))
        assert plain.locator("table:visible").count() == 2


def test_a_page_made_with_stored_widgets_shows_the_tables_without_network(
    browser: Chromium, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """papermill and nbconvert --execute store the widgets; their library comes from the network."""
    import nbconvert
    import nbformat.v4
    from nbclient import NotebookClient
    from traitlets.config import Config

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = [f"FINISH = ''{SETUP}", "show(tracker)", "tracker"]
    book: Any = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    options = {"timeout": 240, "startup_timeout": 240, "store_widget_state": True}
    config = Config(KernelManager=sockets_in(tmp_path))
    NotebookClient(book, kernel_name="python3", config=config, **options).execute()
    assert book.metadata.widgets
    html: str = nbconvert.HTMLExporter().from_notebook_node(book)[0]
    (lab.root / "stored.html").write_text(html, encoding="utf-8")
    with browser.bare_page() as page:
        page.goto(f"{lab.url}/files/stored.html", wait_until="domcontentloaded")
        tables = page.locator("table[aria-label='REGARDS orders']:visible")
        tables.nth(1).wait_for()
        assert tables.count() == 2
        said = page.get_by_text("this picture does not move").locator("visible=true")
        assert said.count() == 2


def test_the_filter_limits_the_table(session: Session) -> None:
    """Typing in the box leaves the matching rows, and the headline says how many there are."""
    with session.page(
        "tracker.tell(*(order(f'o{n}', n) for n in range(3, 101)))\nshow(tracker)"
    ) as page:
        page.run_cell(1)
        page.output(1).get_by_label("Filter").fill("waits")
        page.until_text(1, "1 of 100 orders match")
        assert page.output(1).locator("tbody tr:visible").count() == 1
        head = page.output(1).get_by_role("status").first
        assert "REGARDS waits for you: 1 to download" in head.inner_text()
        page.screenshot(SCREENSHOTS / "filter.png", 1)


def test_cells_queued_during_a_nested_wait_run_afterwards(session: Session) -> None:
    """With a nested event loop the user's task goes on, and no queued cell is lost."""
    nested = (
        "from regards_nb.tracker import run_nested\n"
        "ticks = []\n"
        "async def tick():\n"
        "    while True:\n"
        "        ticks.append(1)\n"
        "        await asyncio.sleep(0.02)\n"
        "user = asyncio.get_running_loop().create_task(tick())\n"
        "asked = run_nested(wait_async())"
    )
    cells = [nested, "'ticked', len(ticks) > 10", "'last', user.cancel()"]
    with session.page(*cells, kernel=OWN) as page:
        page.start_cell(1)
        page.until_text(1, "waiting for 2 orders")
        page.start_cell(2)
        page.start_cell(3)
        page.output(1).locator("select").select_option(label="#1 first")
        page.output(1).get_by_role("button", name="Pause").click()
        session.finish()
        page.until_done(3)
        page.until_text(2, "('ticked', True)")
        page.until_text(3, "('last', True)")
        page.until_text(1, "pause: queued for #1 first")


def test_after_a_reload_the_view_is_live_again(session: Session) -> None:
    """A page loaded anew finds the widgets in the kernel, with their newest values."""
    start = "threading.Thread(target=drive, daemon=True).start()"
    with session.page("show(tracker)", start) as page:
        page.run_cell(1)
        page.run_cell(2)
        page.until(f"() => ({PARTS_DONE})() > 0")
        page.save()
        page.open()
        page.until(f"() => ({PARTS_DONE})() > 0")
        seen = page.page.evaluate(PARTS_DONE)
        page.until(f"(seen) => ({PARTS_DONE})() > seen", seen)
        session.finish()
        page.until_text(1, "1000/1000")
