"""Download the files of an order, verify them, and give them their final names."""

from __future__ import annotations

from regards_nb.download.bounded_queue import BoundedQueue, QueueClosed
from regards_nb.download.bucket import Bucket, is_url
from regards_nb.download.context import DownloadOptions
from regards_nb.download.disk import (
    has_content,
    is_alive,
    link_without_replacing,
    lock_if_free,
)
from regards_nb.download.increment import Downloader, DownloadResult, make_plan, takes_zip
from regards_nb.download.manifest import (
    MAX_NOTICE_BYTES,
    Manifest,
    MatchKind,
    entry_form,
    parse_notice,
)
from regards_nb.download.names import (
    MAX_NAME_BYTES,
    FinalNames,
    collision_key,
    numbered,
    safe_name,
    unnumbered,
)
from regards_nb.download.order import download_order
from regards_nb.download.places import (
    Place,
    archive_of,
    as_place,
    list_place,
    open_workspace,
    order_folder,
    path_of,
)
from regards_nb.download.products import download_products
from regards_nb.download.progress import Progress
from regards_nb.download.records import (
    Check,
    FileLog,
    FileLook,
    OrderRecords,
    StateFile,
)
from regards_nb.download.workspace import FolderWorkspace
from regards_nb.download.zipstream import MAX_PIECE_BYTES, crc32, read_zip

__all__ = [
    "MAX_NAME_BYTES",
    "MAX_NOTICE_BYTES",
    "MAX_PIECE_BYTES",
    "BoundedQueue",
    "Bucket",
    "Check",
    "DownloadOptions",
    "DownloadResult",
    "Downloader",
    "FileLog",
    "FileLook",
    "FinalNames",
    "FolderWorkspace",
    "Manifest",
    "MatchKind",
    "OrderRecords",
    "Place",
    "Progress",
    "QueueClosed",
    "StateFile",
    "archive_of",
    "as_place",
    "collision_key",
    "crc32",
    "download_order",
    "download_products",
    "entry_form",
    "has_content",
    "is_alive",
    "is_url",
    "link_without_replacing",
    "list_place",
    "lock_if_free",
    "make_plan",
    "numbered",
    "open_workspace",
    "order_folder",
    "parse_notice",
    "path_of",
    "read_zip",
    "safe_name",
    "takes_zip",
    "unnumbered",
]
