"""Download the files of an order, verify them, and give them their final names."""

from __future__ import annotations

from regards_nb.download.context import DownloadOptions
from regards_nb.download.increment import Downloader, DownloadResult
from regards_nb.download.order import download_order
from regards_nb.download.progress import Progress
from regards_nb.download.records import FileLog

__all__ = [
    "DownloadOptions",
    "DownloadResult",
    "Downloader",
    "FileLog",
    "Progress",
    "download_order",
]
