"""Journal rows as typed DataFrames, in time proportional to the new rows. The room of pandas.

``columns``
    the columns and dtypes of each frame, and the growing memory behind them;
``state``
    the state of each order, from events, files and answers over REST;
``orders``
    the frame of orders;
``events``
    the frame of events;
``packed``
    columns as bytes;
``checkpoint``
    orders and events that are read instead of folded again;
``catalogue``
    the frames of the catalogue;
``table``
    which orders a table asks for;
``export``
    frames for other programs, CSV and Parquet;
``frames``
    `Frames`: all frames of one tenant, kept up to date from the journal.
"""

from __future__ import annotations

from regards_nb.frames.catalogue import (
    ATTRIBUTE_COLUMNS,
    DATASET_COLUMNS,
    PRODUCT_COLUMNS,
    QUOTA_COLUMNS,
    SUMMARY_COLUMNS,
    attributes_frame,
    datasets_frame,
    products_frame,
    quota_frame,
    summary_frame,
)
from regards_nb.frames.checkpoint import CheckpointWriter
from regards_nb.frames.columns import (
    EVENT_COLUMNS,
    EVENT_DTYPES,
    FILE_COLUMNS,
    FILE_DTYPES,
    ORDER_COLUMNS,
    ORDER_DTYPES,
    PROBLEM_COLUMNS,
    PROBLEM_DTYPES,
    REJECTED_COLUMNS,
    REJECTED_DTYPES,
    REMOTE_COLUMNS,
    REMOTE_DTYPES,
    ColumnInfo,
    with_columns,
)
from regards_nb.frames.export import plain
from regards_nb.frames.frames import EventQueue, Frames, orders_frame, problems_frame
from regards_nb.frames.state import OrderFile
from regards_nb.frames.table import read_table, with_orders

__all__ = [
    "ATTRIBUTE_COLUMNS",
    "DATASET_COLUMNS",
    "EVENT_COLUMNS",
    "EVENT_DTYPES",
    "FILE_COLUMNS",
    "FILE_DTYPES",
    "ORDER_COLUMNS",
    "ORDER_DTYPES",
    "PROBLEM_COLUMNS",
    "PROBLEM_DTYPES",
    "PRODUCT_COLUMNS",
    "QUOTA_COLUMNS",
    "REJECTED_COLUMNS",
    "REJECTED_DTYPES",
    "REMOTE_COLUMNS",
    "REMOTE_DTYPES",
    "SUMMARY_COLUMNS",
    "CheckpointWriter",
    "ColumnInfo",
    "EventQueue",
    "Frames",
    "OrderFile",
    "attributes_frame",
    "datasets_frame",
    "orders_frame",
    "plain",
    "problems_frame",
    "products_frame",
    "quota_frame",
    "read_table",
    "summary_frame",
    "with_columns",
    "with_orders",
]
