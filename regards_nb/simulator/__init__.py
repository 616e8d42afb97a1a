"""A small REGARDS order service for demonstrations and tests, on a real RabbitMQ and real HTTP.

Of regards_nb it imports only ``events``, the names on the wire. With more than that, it could
share the mistakes of the code that it tests.
"""

from __future__ import annotations

from regards_nb.simulator.amqp import QUEUE_ARGUMENTS as QUEUE_ARGUMENTS
from regards_nb.simulator.broker import BrokerMissingError as BrokerMissingError
from regards_nb.simulator.broker import BrokerStartError as BrokerStartError
from regards_nb.simulator.broker import PrivateBroker as PrivateBroker
from regards_nb.simulator.broker import Tls as Tls
from regards_nb.simulator.broker import find_installation as find_installation
from regards_nb.simulator.broker import free_ports as free_ports
from regards_nb.simulator.catalogue import dataset_names as dataset_names
from regards_nb.simulator.downloads import ZipWriter as ZipWriter
from regards_nb.simulator.downloads import encoded_name as encoded_name
from regards_nb.simulator.downloads import in_blocks as in_blocks
from regards_nb.simulator.faults import CorruptEntry as CorruptEntry
from regards_nb.simulator.faults import CorruptFile as CorruptFile
from regards_nb.simulator.faults import CutFile as CutFile
from regards_nb.simulator.faults import CutMode as CutMode
from regards_nb.simulator.faults import CutZip as CutZip
from regards_nb.simulator.faults import ExpiredToken as ExpiredToken
from regards_nb.simulator.faults import Fault as Fault
from regards_nb.simulator.faults import IncompleteZip as IncompleteZip
from regards_nb.simulator.faults import LateSave as LateSave
from regards_nb.simulator.faults import MissingEntry as MissingEntry
from regards_nb.simulator.faults import RawZip as RawZip
from regards_nb.simulator.faults import Reply as Reply
from regards_nb.simulator.faults import Route as Route
from regards_nb.simulator.faults import Slow as Slow
from regards_nb.simulator.faults import StagingError as StagingError
from regards_nb.simulator.faults import StorageRefuses as StorageRefuses
from regards_nb.simulator.faults import TruncatedEntry as TruncatedEntry
from regards_nb.simulator.faults import WrongChecksum as WrongChecksum
from regards_nb.simulator.faults import WrongCrc as WrongCrc
from regards_nb.simulator.faults import business_error as business_error
from regards_nb.simulator.faults import html_page as html_page
from regards_nb.simulator.faults import quota_exceeded as quota_exceeded
from regards_nb.simulator.faults import rate_exceeded as rate_exceeded
from regards_nb.simulator.faults import redirect as redirect
from regards_nb.simulator.login import LoginForm as LoginForm
from regards_nb.simulator.plans import Content as Content
from regards_nb.simulator.plans import FileSpec as FileSpec
from regards_nb.simulator.plans import OrderPlan as OrderPlan
from regards_nb.simulator.plans import Outcome as Outcome
from regards_nb.simulator.plans import noise as noise
from regards_nb.simulator.service import Action as Action
from regards_nb.simulator.service import gson as gson
from regards_nb.simulator.simulator import Simulator as Simulator
