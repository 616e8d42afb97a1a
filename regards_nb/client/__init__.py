"""The REST side of REGARDS: token, orders, manifest, zip and file streams over HTTPS."""

from __future__ import annotations

from regards_nb.client.answers import is_too_parallel, printable
from regards_nb.client.api import RegardsClient
from regards_nb.client.body import Body
from regards_nb.client.origin import Link, Origin
from regards_nb.client.rows import ApplyAnswer, RemoteOrder

__all__ = [
    "ApplyAnswer",
    "Body",
    "Link",
    "Origin",
    "RegardsClient",
    "RemoteOrder",
    "is_too_parallel",
    "printable",
]
