"""The built site has no warning and no dead link, and loads nothing from the network."""

from __future__ import annotations

import fcntl
import os
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from conftest import PYTHON_MODULE
from test_notebooks import NOTEBOOKS, executed

if TYPE_CHECKING:
    from regards_nb.simulator import PrivateBroker

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "docs"
#: When this run of the tests began; see conftest.
RUN = os.environ["REGARDS_NB_NOTEBOOKS_SINCE"]


class _Page(HTMLParser):
    """The links, the loaded files and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value for name, value in attrs if value}
        self.anchors.update(known[name] for name in ("id", "name") if name in known)
        if tag == "a" and "href" in known:
            self.links.add(known["href"])
        elif tag == "link" and known.get("rel") in {"stylesheet", "preload", "icon"}:
            self.loads.add(known["href"])
        elif "src" in known:
            self.loads.add(known["src"])


@pytest.fixture(scope="module")
def pages(broker: PrivateBroker) -> dict[Path, _Page]:
    """Return the pages of the site, which one process builds for all that run these tests."""
    # The build would start a RabbitMQ for each notebook that is not executed yet.
    for notebook in NOTEBOOKS:
        executed(notebook.name, broker)
    SITE.parent.mkdir(exist_ok=True)
    with (SITE.parent / "docs.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() != RUN:
            done = subprocess.run(
                [*PYTHON_MODULE, "build"],
                cwd=ROOT / "docs",
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            lock.truncate(0)
            lock.write(RUN)
    return {path: _Page(path) for path in sorted(SITE.rglob("*.html"))}


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(pages: dict[Path, _Page]) -> None:
    """The page and the anchor of each link exist."""
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if urlsplit(link).scheme:
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            found = pages.get(file)
            if not file.is_file() or (anchor and found and unquote(anchor) not in found.anchors):
                dead.append(f"{path.relative_to(SITE)}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_outside(pages: dict[Path, _Page]) -> None:
    """Styles, scripts and pictures are files of the site, so that it works offline."""
    for path, page in pages.items():
        for source in page.loads:
            assert urlsplit(source).scheme in {"", "data"}, f"{path.name}: {source}"
            if not urlsplit(source).scheme:
                assert (path.parent / urlsplit(unquote(source)).path).is_file(), source


def test_the_notebooks_are_there_with_their_outputs(pages: dict[Path, _Page]) -> None:
    """Each notebook is a page with tables and pictures; widgets would be empty there."""
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(sources) >= 3
    for source in sources:
        path = SITE / "notebooks" / f"{source.stem}.html"
        assert path in pages
        text = path.read_text(encoding="utf-8")
        assert 'aria-label="REGARDS orders"' in text
        # a style sheet may name the type; a script of it would be an empty widget
        assert '<script type="application/vnd.jupyter.widget-view' not in text
