"""The REST side of REGARDS: token, orders, manifest, streams of zips and files.

- ``models``: requests and responses; ``errors``: what an error response means, a 401 for example;
- ``origin``: the one address that is contacted; ``auth``: secrets, login, token;
- ``transport``: send, repeat, redirect, lists in pages; ``streaming``: bodies with files;
  ``last_byte``: when the last byte of them came;
- ``catalogue``: data sets, products, estimates; ``client``: `RegardsClient`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regards_nb.client.auth import USERS_FUNCTION as USERS_FUNCTION
from regards_nb.client.auth import Secret as Secret
from regards_nb.client.errors import LOGIN_ADVICE as LOGIN_ADVICE
from regards_nb.client.errors import REFUSALS as REFUSALS
from regards_nb.client.errors import advice_for as advice_for
from regards_nb.client.errors import is_too_parallel as is_too_parallel
from regards_nb.client.last_byte import Calls as Calls
from regards_nb.client.last_byte import LastByte as LastByte
from regards_nb.client.last_byte import asking_again as asking_again
from regards_nb.client.last_byte import byte_came as byte_came
from regards_nb.client.last_byte import pausing as pausing
from regards_nb.client.last_byte import waiting as waiting
from regards_nb.client.last_byte import watched as watched
from regards_nb.client.models import ApplyResponse as ApplyResponse
from regards_nb.client.models import Attribute as Attribute
from regards_nb.client.models import CatalogueDataset as CatalogueDataset
from regards_nb.client.models import Product as Product
from regards_nb.client.models import RemoteOrder as RemoteOrder
from regards_nb.client.models import SummaryRow as SummaryRow
from regards_nb.client.origin import DownloadLink as DownloadLink
from regards_nb.client.origin import Origin as Origin

if TYPE_CHECKING:
    from regards_nb.client.client import RegardsClient as RegardsClient
    from regards_nb.client.streaming import Body as Body
    from regards_nb.client.transport import RequestFailure as RequestFailure


_MODULE_OF = {
    "RegardsClient": "client",
    "Body": "streaming",
    "RequestFailure": "transport",
}


def __getattr__(name: str) -> Any:
    """Import what needs requests when it is first used: a tracker can work without REST."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
