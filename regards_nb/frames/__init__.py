"""Journal rows → typed DataFrames, in time proportional to what is new. The room of pandas.

``dtypes``
    the columns of each frame;
``columns``, ``table``
    memory that grows, shown to pandas without a copy;
``standing``
    what is known of each order, from events, files and answers over REST;
``orders``
    the frame of orders;
``frames``
    `Frames`: all of it together, kept up to date from the journal.
"""

from __future__ import annotations

from regards_nb.frames.dtypes import (
    EVENT_DTYPES,
    FILE_DTYPES,
    ORDER_DTYPES,
    REJECTED_DTYPES,
    REMOTE_DTYPES,
)
from regards_nb.frames.frames import EventQueue, Frames, orders_frame

__all__ = [
    "EVENT_DTYPES",
    "FILE_DTYPES",
    "ORDER_DTYPES",
    "REJECTED_DTYPES",
    "REMOTE_DTYPES",
    "EventQueue",
    "Frames",
    "orders_frame",
]
