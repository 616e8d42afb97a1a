"""Journal rows as typed DataFrames, in time proportional to what is new. The room of pandas.

``columns``
    the columns and dtypes of each frame, and the growing memory behind them;
``state``
    the state of each order, from events, files and answers over REST;
``orders``
    the frame of orders;
``frames``
    `Frames`: all frames of one tenant, kept up to date from the journal.
"""

from __future__ import annotations

from regards_nb.frames.columns import (
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
