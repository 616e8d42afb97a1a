"""A small REGARDS order service for demonstrations and tests, on a real RabbitMQ and real HTTP.

It stands on the other side: of regards_nb it knows the names on the wire (``events``) and nothing
else, or it would agree with the mistakes of what it is there to test.
"""

from __future__ import annotations

from regards_nb.simulator.broker import (
    BrokerStartError,
    ExistingBroker,
    PrivateBroker,
    broker_from_environment,
)
from regards_nb.simulator.catalogue import dataset_names
from regards_nb.simulator.content import Content, noise, of_bytes, of_path, quicklook, sea_level
from regards_nb.simulator.facade import Simulator
from regards_nb.simulator.faults import (
    CorruptEntry,
    CorruptFile,
    CutFile,
    CutZip,
    Ending,
    ExpiredToken,
    Fault,
    Faults,
    IncompleteZip,
    LateSave,
    MissingEntry,
    RawZip,
    Reply,
    Route,
    Slow,
    StagingError,
    StorageRefuses,
    TruncatedEntry,
    WrongChecksum,
    WrongCrc,
    business_error,
    html_page,
    quota_exceeded,
    rate_exceeded,
    redirect,
)
from regards_nb.simulator.installation import BrokerMissingError
from regards_nb.simulator.plans import FileSpec, OrderPlan, Outcome

__all__ = [
    "BrokerMissingError",
    "BrokerStartError",
    "Content",
    "CorruptEntry",
    "CorruptFile",
    "CutFile",
    "CutZip",
    "Ending",
    "ExistingBroker",
    "ExpiredToken",
    "Fault",
    "Faults",
    "FileSpec",
    "IncompleteZip",
    "LateSave",
    "MissingEntry",
    "OrderPlan",
    "Outcome",
    "PrivateBroker",
    "RawZip",
    "Reply",
    "Route",
    "Simulator",
    "Slow",
    "StagingError",
    "StorageRefuses",
    "TruncatedEntry",
    "WrongChecksum",
    "WrongCrc",
    "broker_from_environment",
    "business_error",
    "dataset_names",
    "html_page",
    "noise",
    "of_bytes",
    "of_path",
    "quicklook",
    "quota_exceeded",
    "rate_exceeded",
    "redirect",
    "sea_level",
]
