"""Builds the site into ``build/docs``: pages, executed notebooks, API; any warning is an error.

The pages are put together in ``build/site``, so that nothing generated lies among the sources.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

from notebooks import ROOT, SOURCES, executed

SITE = ROOT / "build" / "site"
TARGET = ROOT / "build" / "docs"


def main() -> int:
    """Build; return the exit code."""
    shutil.rmtree(SITE, ignore_errors=True)
    # Pages of an earlier build would hide that a link leads nowhere.
    shutil.rmtree(TARGET, ignore_errors=True)
    pages = SITE / "docs"
    shutil.copytree(Path(__file__).parent, pages, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, SITE)
    (pages / "notebooks").mkdir()
    for source in sorted(SOURCES.glob("*.ipynb")):
        shutil.copy(executed(source), pages / "notebooks")
    options = ["-W", "--keep-going", "-q", "-d", str(SITE / "doctrees")]
    return build_main([*options, "-b", "html", str(pages), str(TARGET)])


if __name__ == "__main__":
    sys.exit(main())
