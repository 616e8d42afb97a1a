"""Download the files of an order, verify them, and give them their final names.

- ``order``: a whole order, or products, without a tracker; ``increment``: what is available now;
- ``pipeline``, ``zipstream``: one zip while it arrives: inflate, check, write;
- ``manifest``: which file of the order a zip entry is; name and MD5 decide;
- ``after_zip``: what the zip did not hold; ``parallel_files``: fetch files one by one, and give up
  a file whose MD5 goes on to differ;
- ``workspace``, ``publisher``: from verified content to a final name; ``records``: what is known of
  each file;
- ``places``, ``disk``, ``bucket``: folders and object stores; ``names``: safe names;
- ``context``: options and shared objects; ``progress``: snapshots and their display.
"""

from __future__ import annotations

from regards_nb.download.after_zip import all_files as all_files
from regards_nb.download.bucket import BucketFiles as BucketFiles
from regards_nb.download.context import DownloadOptions as DownloadOptions
from regards_nb.download.disk import FolderFiles as FolderFiles
from regards_nb.download.disk import link_without_replacing as link_without_replacing
from regards_nb.download.disk import lock_if_free as lock_if_free
from regards_nb.download.increment import Downloader as Downloader
from regards_nb.download.increment import make_plan as make_plan
from regards_nb.download.increment import takes_zip as takes_zip
from regards_nb.download.manifest import MAX_NOTICE_BYTES as MAX_NOTICE_BYTES
from regards_nb.download.manifest import Manifest as Manifest
from regards_nb.download.manifest import MatchKind as MatchKind
from regards_nb.download.manifest import entry_form as entry_form
from regards_nb.download.manifest import parse_notice as parse_notice
from regards_nb.download.names import MAX_NAME_BYTES as MAX_NAME_BYTES
from regards_nb.download.names import FinalNames as FinalNames
from regards_nb.download.names import collision_key as collision_key
from regards_nb.download.names import numbered as numbered
from regards_nb.download.names import safe_name as safe_name
from regards_nb.download.names import unnumbered as unnumbered
from regards_nb.download.order import download_order as download_order
from regards_nb.download.order import download_products as download_products
from regards_nb.download.order import stopped_text as stopped_text
from regards_nb.download.places import Place as Place
from regards_nb.download.places import archive_of as archive_of
from regards_nb.download.places import as_place as as_place
from regards_nb.download.places import order_folder as order_folder
from regards_nb.download.places import paths_of as paths_of
from regards_nb.download.progress import Progress as Progress
from regards_nb.download.progress import ProgressCounter as ProgressCounter
from regards_nb.download.progress import ProgressLine as ProgressLine
from regards_nb.download.publisher import Publisher as Publisher
from regards_nb.download.publisher import PublisherFailedError as PublisherFailedError
from regards_nb.download.records import Check as Check
from regards_nb.download.records import FileProblem as FileProblem
from regards_nb.download.records import OrderRecords as OrderRecords
from regards_nb.download.records import StateLog as StateLog
from regards_nb.download.records import compare_files as compare_files
from regards_nb.download.workspace import CheckedFile as CheckedFile
from regards_nb.download.workspace import Content as Content
from regards_nb.download.workspace import Workspace as Workspace
from regards_nb.download.workspace import is_unusable as is_unusable
from regards_nb.download.workspace import open_workspace as open_workspace
from regards_nb.download.zipstream import MAX_PIECE_BYTES as MAX_PIECE_BYTES
from regards_nb.download.zipstream import crc32 as crc32
from regards_nb.download.zipstream import read_zip as read_zip
