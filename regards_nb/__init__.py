"""Follow the orders of a REGARDS archive from a notebook.

>>> import regards_nb
>>> "OrderTracker" in dir(regards_nb)
True
"""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regards_nb.client import RegardsClient
    from regards_nb.errors import RegardsError
    from regards_nb.events import OrderEvent, OrderStatus
    from regards_nb.frames import plain
    from regards_nb.tracker import Order, OrderTracker

__all__ = [
    "Order",
    "OrderEvent",
    "OrderStatus",
    "OrderTracker",
    "RegardsClient",
    "RegardsError",
    "plain",
]

__version__ = "0.1.0"

_ROOM_OF = {
    "Order": "tracker",
    "OrderEvent": "events",
    "OrderStatus": "events",
    "OrderTracker": "tracker",
    "RegardsClient": "client",
    "RegardsError": "errors",
    "plain": "frames",
}
#: Modules that a user reaches without an import of their own: ``regards_nb.queries.urns(...)``.
_MODULES = ("errors", "queries")
#: The same, but not offered by tab completion.
_FURTHER_MODULES = ("display", "settings")


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that the import itself costs nothing."""
    # What pandas and SQLAlchemy make stays: to look for garbage in it takes a tenth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        if name in _ROOM_OF:
            value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
        elif name in _MODULES + _FURTHER_MODULES:
            value = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    finally:
        if collects:
            if not gc.get_freeze_count():
                # The next collection would look at all of it at once, unless it is old.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
