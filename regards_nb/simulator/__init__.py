"""A small REGARDS order service for demonstrations and tests, on a real RabbitMQ and real HTTP.

Of regards_nb it imports only ``events``, the names on the wire. With more than that, it could
share the mistakes of the code that it tests.
"""

from __future__ import annotations

from regards_nb.simulator.amqp import QUEUE_ARGUMENTS
from regards_nb.simulator.broker import (
    BrokerMissingError,
    BrokerStartError,
    ExistingBroker,
    Installation,
    PrivateBroker,
    Tls,
    broker_from_environment,
    find_installation,
    free_ports,
)
from regards_nb.simulator.catalogue import dataset_names
from regards_nb.simulator.downloads import ZipWriter, encoded_name, in_blocks
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
from regards_nb.simulator.lifecycle import Action, FileState, ServerStatus
from regards_nb.simulator.login import LoginForm
from regards_nb.simulator.plans import (
    Content,
    FileSpec,
    OrderPlan,
    Outcome,
    noise,
    of_bytes,
    of_path,
    quicklook,
    sea_level,
)
from regards_nb.simulator.server import Seen, Server
from regards_nb.simulator.service import gson
from regards_nb.simulator.simulator import Simulator

__all__ = [
    "QUEUE_ARGUMENTS",
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
    "LoginForm",
    "MissingEntry",
    "OrderPlan",
    "Outcome",
    "PrivateBroker",
    "RawZip",
    "Reply",
    "Route",
    "Seen",
    "Server",
    "ServerStatus",
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
