"""The durable log: every message as it came, and every file of an order, in one database.

The log is append-only and holds the raw deliveries; events, orders and rejected messages are
derived from it (`events.decode`, `orders.OrderReducer`) and never stored, so that a later version
of regards_nb understands more of an old journal and nothing has to be kept in step. SQLite by
default, PostgreSQL by URL.

``packing``
    how messages are stored, many in a row;
``schema``
    the tables, and how an older journal becomes a newer one;
``batches``
    the messages, as they are written and read;
``database``
    opening, locking, and what is wrong when it does not work;
``onlooker``
    how far it has come, for those who ask again and again;
``log``
    `Journal`: append, and read on from where one was.
"""

from __future__ import annotations

from regards_nb.journal.batches import Batch, Row
from regards_nb.journal.database import DEFAULT_PATH, NetworkFileSystemWarning
from regards_nb.journal.log import Journal, TenantFiles

__all__ = ["DEFAULT_PATH", "Batch", "Journal", "NetworkFileSystemWarning", "Row", "TenantFiles"]
