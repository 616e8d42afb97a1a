"""The linter, the formatter and the type checker find nothing: what ``make lint`` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ["mypy", "ruff check .", "ruff format --check ."]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_checkers_find_nothing(command: str) -> None:
    """Each command that ``make lint`` runs succeeds."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(BIN)/python -m {command}\n" in makefile
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
