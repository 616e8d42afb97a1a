"""The REST side of REGARDS: token, orders, manifest, zip and file streams over HTTPS."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regards_nb.client.answers import is_too_parallel
from regards_nb.client.origin import DownloadLink, Origin
from regards_nb.client.refusals import REFUSALS, advice_for
from regards_nb.client.rows import ApplyResponse, RemoteOrder
from regards_nb.client.secret import Secret

if TYPE_CHECKING:
    from regards_nb.client.api import RegardsClient
    from regards_nb.client.body import Body

__all__ = [
    "REFUSALS",
    "ApplyResponse",
    "Body",
    "DownloadLink",
    "Origin",
    "RegardsClient",
    "RemoteOrder",
    "Secret",
    "advice_for",
    "is_too_parallel",
]

_MODULE_OF = {"RegardsClient": "api", "Body": "body"}


def __getattr__(name: str) -> Any:
    """Load what needs requests when it is first used: a tracker may do without the REST side."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
