"""`OrderTracker` and `Order`: the classes that a user works with.

- ``shared``: journal, frames, change signal, background errors and leases, which all modules use,
  and which orders a user means;
- ``downloads``: one download at a time for each order, several orders side by side;
- ``fetch``: runs the download of one order, in a thread or in a worker of another process;
- ``dispatcher``: hands new events to callbacks, each at least once, and downloads the files they
  announce;
- ``rest_sync``, ``rounds``: asks REGARDS over REST, and when;
- ``submission``: submits a request once;
- ``estimate``, ``table_orders``: what an order will contain, and one order for each row of a table;
- ``actions``: pause, resume, retry, restart, cancel, delete;
- ``blocking``: why REGARDS does not prepare an order;
- ``life``: starts a tracker; whether it runs, only reads a journal, or shares its queue;
- ``waiting``: calls that wait for orders, such as ``wait()``, which blocks the cell, and how the
  user's event loop can go on meanwhile;
- ``order``, ``tracker``: the two public classes, the only modules that know each other.
"""

from __future__ import annotations

from regards_nb.tracker.blocking import HOW_WITHOUT_CLIENT as HOW_WITHOUT_CLIENT
from regards_nb.tracker.blocking import advice_for as advice_for
from regards_nb.tracker.blocking import behind as behind
from regards_nb.tracker.dispatcher import AutoDownload as AutoDownload
from regards_nb.tracker.dispatcher import EventDispatcher as EventDispatcher
from regards_nb.tracker.life import JournalReader as JournalReader
from regards_nb.tracker.order import Order as Order
from regards_nb.tracker.shared import NEW_ORDER as NEW_ORDER
from regards_nb.tracker.shared import SHOWN_S as SHOWN_S
from regards_nb.tracker.shared import BackgroundErrors as BackgroundErrors
from regards_nb.tracker.shared import ChangeSignal as ChangeSignal
from regards_nb.tracker.shared import Snapshot as Snapshot
from regards_nb.tracker.shared import names_in as names_in
from regards_nb.tracker.tracker import OrderTracker as OrderTracker
from regards_nb.tracker.waiting import run_nested as run_nested
