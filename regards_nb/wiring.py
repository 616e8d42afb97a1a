"""The few calls that go against the direction of imports.

``tracker.show()`` needs the display, which is built on the tracker; ``client.download_order()``
needs the download room, which is built on the client. Those rooms are not imported from below:
``regards_nb/__init__`` names them here, and they are loaded when first called.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOM_OF: dict[str, str] = {}


def plug(**rooms: str) -> None:
    """Say which module defines each function, as ``function="package.module"``."""
    _ROOM_OF.update(rooms)


def call(function: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a plugged function, importing its module when it is first needed."""
    return getattr(importlib.import_module(_ROOM_OF[function]), function)(*args, **kwargs)
