"""The README shows what its code prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conftest import without_waits

if TYPE_CHECKING:
    import pytest

    from regards_nb.simulator import PrivateBroker

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_lines_tell_a_stranger_what_it_is() -> None:
    """The first thirty lines hold claim, audience, five lines of code and their output."""
    top = "\n".join(README.read_text(encoding="utf-8").splitlines()[:30])
    assert blocks("python")[0] in top
    assert blocks("text")[0] in top
    assert "For whom" in top


def test_the_first_example_prints_what_the_readme_says(
    broker: PrivateBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first example prints the text below it."""
    monkeypatch.setenv("REGARDS_NB_AMQP_URL", broker.admin_url)
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert without_waits(done.stdout).endswith(blocks("text")[0])
    assert done.stderr == ""


def test_the_commands_of_the_readme_exist() -> None:
    """Each make target that the README names exists."""
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
