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
    CutMode,
    CutZip,
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
from regards_nb.simulator.installation import BrokerMissingError, Installation, find_installation
from regards_nb.simulator.lifecycle import Action, FileState, OrderState
from regards_nb.simulator.messages import gson
from regards_nb.simulator.node import Tls, free_ports
from regards_nb.simulator.plans import FileSpec, OrderPlan, Outcome
from regards_nb.simulator.server import Seen, Server
from regards_nb.simulator.zipping import ZipWriter, encoded_name, in_blocks

__all__ = [
    "Action",
    "BrokerMissingError",
    "BrokerStartError",
    "Content",
    "CorruptEntry",
    "CorruptFile",
    "CutFile",
    "CutMode",
    "CutZip",
    "ExistingBroker",
    "ExpiredToken",
    "Fault",
    "Faults",
    "FileSpec",
    "FileState",
    "IncompleteZip",
    "Installation",
    "LateSave",
    "MissingEntry",
    "OrderPlan",
    "OrderState",
    "Outcome",
    "PrivateBroker",
    "RawZip",
    "Reply",
    "Route",
    "Seen",
    "Server",
    "Simulator",
    "Slow",
    "StagingError",
    "StorageRefuses",
    "Tls",
    "TruncatedEntry",
    "WrongChecksum",
    "WrongCrc",
    "ZipWriter",
    "broker_from_environment",
    "business_error",
    "dataset_names",
    "encoded_name",
    "find_installation",
    "free_ports",
    "gson",
    "html_page",
    "in_blocks",
    "noise",
    "of_bytes",
    "of_path",
    "quicklook",
    "quota_exceeded",
    "rate_exceeded",
    "redirect",
    "sea_level",
]
