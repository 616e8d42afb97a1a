"""The wheel installs into an empty environment and can be imported there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

IMPORTED_ALONE = """
import sys
import regards_nb
for name in regards_nb.__all__:
    getattr(regards_nb, name)
assert "site-packages" in regards_nb.__file__, regards_nb.__file__
for library in ("IPython", "matplotlib", "jupyterlab", "isal"):
    assert library not in sys.modules, library
print("imported", *regards_nb.__all__)
"""


def uv(*arguments: str | Path) -> None:
    """Run a command of uv, which must succeed."""
    subprocess.run([sys.executable, "-m", "uv", *arguments], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_installs_and_imports_in_an_empty_environment(tmp_path: Path) -> None:
    """The required dependencies are enough to import all public names; types are included."""
    uv("build", "--wheel", "--out-dir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("regards_nb-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"regards_nb/py.typed", "regards_nb/display/table.js"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "notebooks/"))]
    folder = tmp_path / "an empty environment"
    python = folder / "bin" / "python"
    uv("venv", "--python", sys.executable, folder)
    uv("pip", "install", "--python", python, wheel)
    said = subprocess.run(
        [python, "-E", "-W", "error", "-c", IMPORTED_ALONE],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert said.stdout.startswith("imported Order OrderEvent OrderStatus OrderTracker")
