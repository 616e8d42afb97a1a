"""What the user holds: `OrderTracker`, and one `Order` of it.

``bell``
    tells waiters that something changed;
``problems``
    what went wrong in the background, for the display and the user's next call;
``workers``
    daemon threads that take jobs from a queue;
``downloads``
    at most one download at a time for an order, several orders side by side;
``watch``
    the thread that answers new events with callbacks and downloads;
``requests``, ``submission``, ``ordering``
    what is ordered; sent once, whatever happens; and the method that does it;
``news``, ``asking``, ``catchup``
    what an answer over REST says that is new; what is asked; and when;
``steering``, ``steered``
    pause, resume, retry, restart, cancel, delete; and the methods that do it;
``selection``
    which orders a user means;
``sources``
    broker, REST side, or both: what brings the news;
``works``
    the parts above, together, for
``waiting``, ``fetching``
    what a cell does while it blocks;
``loops``
    keeps the user's event loop turning meanwhile, where that is asked for and safe;
``order``, ``order_tracker``
    the two public classes.
"""

from __future__ import annotations

from regards_nb.tracker.order import Order
from regards_nb.tracker.order_tracker import OrderTracker, Snapshot

__all__ = ["Order", "OrderTracker", "Snapshot"]
