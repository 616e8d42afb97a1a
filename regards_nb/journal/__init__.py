"""The durable log of all messages, and the file records, in SQLite or PostgreSQL.

The journal stores raw messages and only ever appends. Events, orders and rejected messages are
computed from it (`events.decode`, `orders`) and never stored: a later version of regards_nb can
understand more of an old journal, and no second table can disagree with the first.

- ``schema``: the tables;
- ``batches``: how messages are stored and read: many in a row;
- ``database``: opening, locking, what a database error means, using other files after a change of
  the path;
- ``location``: where a journal is: a path or a URL; what to do about an error of the database;
- ``connections``: threads use them, or one closes them; a server that does not answer;
- ``watched``: connections of psycopg that are given up then;
- ``changes``: how far the journal has grown, and when to look; notifications of other processes;
- ``processes``: what processes leave for each other: leases and cursors;
- ``sqlite_file``: the files of SQLite: keep them in place, notice when they are not;
- ``rescue``: save the messages of replaced and of damaged files;
- ``journal``: `Journal`: append messages, read on from a position, keep the file records;
- ``checkpoints``: stores results computed from the journal;
- ``prune``: remove the events of orders that have ended long ago.
"""

from __future__ import annotations

from regards_nb.journal.batches import Batch as Batch
from regards_nb.journal.batches import Row as Row
from regards_nb.journal.batches import RowReader as RowReader
from regards_nb.journal.changes import ChangeDetector as ChangeDetector
from regards_nb.journal.changes import Listener as Listener
from regards_nb.journal.changes import Position as Position
from regards_nb.journal.checkpoints import CHECKPOINT_HEAD as CHECKPOINT_HEAD
from regards_nb.journal.connections import Server as Server
from regards_nb.journal.database import Database as Database
from regards_nb.journal.database import JournalReplacedError as JournalReplacedError
from regards_nb.journal.journal import Journal as Journal
from regards_nb.journal.journal import TenantFiles as TenantFiles
from regards_nb.journal.location import DEFAULT_PATH as DEFAULT_PATH
from regards_nb.journal.location import location_of as location_of
from regards_nb.journal.processes import Holder as Holder
from regards_nb.journal.processes import Leases as Leases
from regards_nb.journal.processes import order_lease as order_lease
from regards_nb.journal.prune import KeptOrder as KeptOrder
from regards_nb.journal.prune import Pruned as Pruned
from regards_nb.journal.prune import kept_orders as kept_orders
from regards_nb.journal.prune import name_of as name_of
from regards_nb.journal.prune import restore as restore
from regards_nb.journal.prune import time_us as time_us
from regards_nb.journal.rescue import repair as repair
from regards_nb.journal.sqlite_file import NetworkFileSystemWarning as NetworkFileSystemWarning
from regards_nb.journal.sqlite_file import SqliteFile as SqliteFile
