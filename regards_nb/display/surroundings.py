"""Where we run, and what can be shown there. Nothing is imported to find out."""

from __future__ import annotations

import sys
from enum import Enum
from importlib.util import find_spec
from typing import Any

#: ipykernel 7.0.0 and 7.0.1 raise LookupError in any thread that updates a widget.
BROKEN_IPYKERNEL = "7.0."
BROKEN_IPYKERNEL_NOTE = (
    "This kernel runs ipykernel {version}, which cannot update a display from the background: "
    "this table stands still. Tracking goes on. To see it live: pip install -U ipykernel, and "
    "restart the kernel."
)


class Surroundings(Enum):
    """What the place where we run can show."""

    #: A notebook with ipywidgets: live from a background thread.
    WIDGETS = "widgets"
    #: A notebook where only the caller's own thread can update the table.
    HTML = "html"
    #: A terminal, a script, a log file.
    TEXT = "text"


def surroundings() -> Surroundings:
    """Return what can be shown here."""
    if not in_notebook():
        return Surroundings.TEXT
    return Surroundings.WIDGETS if has_widgets() and not live_obstacle() else Surroundings.HTML


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code (IPython in a terminal has no kernel)."""
    if "IPython" not in sys.modules:
        return False
    return getattr(_ipython().get_ipython(), "kernel", None) is not None


def has_widgets() -> bool:
    """Return whether ipywidgets can be imported."""
    # A None in sys.modules is how Python spells "not importable"
    if "ipywidgets" in sys.modules:
        return sys.modules["ipywidgets"] is not None
    return find_spec("ipywidgets") is not None


def live_obstacle() -> str:
    """Return why nothing can be updated from a thread here; empty if it can."""
    version = str(getattr(sys.modules.get("ipykernel"), "__version__", ""))
    if version.startswith(BROKEN_IPYKERNEL):
        return BROKEN_IPYKERNEL_NOTE.format(version=version)
    return ""


def _ipython() -> Any:
    return sys.modules["IPython"]
