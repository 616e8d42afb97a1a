"""What every way of fetching is given, and how it says that it was stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from regards_nb.errors import DownloadError

if TYPE_CHECKING:
    import threading

    from regards_nb.client import RegardsClient
    from regards_nb.download.matching import Manifest
    from regards_nb.download.names import FinalNames
    from regards_nb.download.progress import Counter
    from regards_nb.download.publisher import Publisher
    from regards_nb.download.records import Records
    from regards_nb.download.staging import Workspace


class Tools(NamedTuple):
    """What every way of fetching needs."""

    client: RegardsClient
    order_id: int
    #: What is known of the files of the order.
    records: Records
    #: What is expected, and which of it is still missing.
    manifest: Manifest
    workspace: Workspace
    names: FinalNames
    publisher: Publisher
    counter: Counter
    #: Set from outside when the download is to end.
    stop: threading.Event
    #: Whether the files are wanted, or the zip as it is.
    extract: bool
    #: Unit of the random waits before something is tried again.
    backoff_s: float


class StoppedError(DownloadError):
    """The download was asked to stop."""
