"""The durable log of all messages, and the file records, in SQLite or PostgreSQL.

The journal stores raw messages and only ever appends. Events, orders and rejected messages are
computed from it (`events.decode`, `orders`) and never stored: a later version of regards_nb can
understand more of an old journal, and no second table can disagree with the first.

``schema``
    the tables;
``batches``
    how messages are stored and read: many in a row;
``database``
    opening, locking, what a database error means, using other files after a change of the path;
``properties``
    what processes leave for each other: cursors, and downloads that were stopped;
``location``
    where a journal is: a path or a URL;
``use_lock``
    threads use the connections, or one closes them;
``changes``
    how far the journal has grown, and when to look;
``listener``
    hear of the commits of other processes;
``lease``
    one process at a time does a piece of work;
``sqlite_file``
    the files of SQLite: keep them in place, notice when they are not;
``rescue``
    write missing messages and records to files that replaced ours;
``journal``
    `Journal`: append messages, read on from a position, keep the file records;
``checkpoints``
    stores results computed from the journal;
``prune``
    remove the events of orders that have ended long ago;
``salvage``
    save what can be read of a damaged file.
"""

from __future__ import annotations

from regards_nb.journal.batches import Batch, Row, RowReader
from regards_nb.journal.changes import ChangeDetector, Position
from regards_nb.journal.checkpoints import HEAD as CHECKPOINT_HEAD
from regards_nb.journal.checkpoints import CheckpointStore
from regards_nb.journal.database import Database, JournalReplacedError
from regards_nb.journal.journal import Journal, TenantFiles, with_full_path
from regards_nb.journal.lease import Holder, Leases, order_lease
from regards_nb.journal.listener import Listener
from regards_nb.journal.location import DEFAULT_PATH, location_of
from regards_nb.journal.prune import Pruned, time_us
from regards_nb.journal.salvage import Repair, repair
from regards_nb.journal.sqlite_file import NetworkFileSystemWarning, SqliteFile

__all__ = [
    "CHECKPOINT_HEAD",
    "DEFAULT_PATH",
    "Batch",
    "ChangeDetector",
    "CheckpointStore",
    "Database",
    "Holder",
    "Journal",
    "JournalReplacedError",
    "Leases",
    "Listener",
    "NetworkFileSystemWarning",
    "Position",
    "Pruned",
    "Repair",
    "Row",
    "RowReader",
    "SqliteFile",
    "TenantFiles",
    "location_of",
    "order_lease",
    "repair",
    "time_us",
    "with_full_path",
]
