"""Journal rows as typed DataFrames, in time proportional to the new rows. The room of pandas.

- ``columns``: the columns and dtypes of each frame, and the growing memory behind them;
- ``state``: the state of each order, from events, files and answers over REST;
- ``checkpoint``: orders and events that are read instead of folded again;
- ``catalogue``: the frames of the catalogue;
- ``table``: which orders a table asks for;
- ``export``: frames for other programs, CSV and Parquet;
- ``frames``: `Frames`: all frames of one tenant, kept up to date from the journal.
"""

from __future__ import annotations

from regards_nb.frames.catalogue import ATTRIBUTE_COLUMNS as ATTRIBUTE_COLUMNS
from regards_nb.frames.catalogue import DATASET_COLUMNS as DATASET_COLUMNS
from regards_nb.frames.catalogue import PRODUCT_COLUMNS as PRODUCT_COLUMNS
from regards_nb.frames.catalogue import QUOTA_COLUMNS as QUOTA_COLUMNS
from regards_nb.frames.catalogue import SUMMARY_COLUMNS as SUMMARY_COLUMNS
from regards_nb.frames.catalogue import attributes_frame as attributes_frame
from regards_nb.frames.catalogue import datasets_frame as datasets_frame
from regards_nb.frames.catalogue import products_frame as products_frame
from regards_nb.frames.catalogue import quota_frame as quota_frame
from regards_nb.frames.catalogue import summary_frame as summary_frame
from regards_nb.frames.checkpoint import Checkpoints as Checkpoints
from regards_nb.frames.columns import EVENT_COLUMNS as EVENT_COLUMNS
from regards_nb.frames.columns import EVENT_DTYPES as EVENT_DTYPES
from regards_nb.frames.columns import FILE_COLUMNS as FILE_COLUMNS
from regards_nb.frames.columns import FILE_DTYPES as FILE_DTYPES
from regards_nb.frames.columns import ORDER_COLUMNS as ORDER_COLUMNS
from regards_nb.frames.columns import ORDER_DTYPES as ORDER_DTYPES
from regards_nb.frames.columns import REJECTED_COLUMNS as REJECTED_COLUMNS
from regards_nb.frames.columns import REJECTED_DTYPES as REJECTED_DTYPES
from regards_nb.frames.columns import REMOTE_COLUMNS as REMOTE_COLUMNS
from regards_nb.frames.columns import ColumnInfo as ColumnInfo
from regards_nb.frames.columns import orders_frame as orders_frame
from regards_nb.frames.columns import with_columns as with_columns
from regards_nb.frames.export import plain as plain
from regards_nb.frames.frames import Frames as Frames
from regards_nb.frames.state import Answer as Answer
from regards_nb.frames.state import OrderFile as OrderFile
from regards_nb.frames.state import States as States
from regards_nb.frames.table import read_table as read_table
from regards_nb.frames.table import with_orders as with_orders
