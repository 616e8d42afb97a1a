"""The arguments of each step of a download: the options of the user, and the shared objects."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from regards_nb.client import LastByte
from regards_nb.download.publisher import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from regards_nb.client import RegardsClient
    from regards_nb.download.manifest import Manifest
    from regards_nb.download.names import FinalNames
    from regards_nb.download.progress import Progress, ProgressCounter
    from regards_nb.download.publisher import Publisher
    from regards_nb.download.records import Check, OrderRecords
    from regards_nb.download.workspace import Workspace

#: How often it is looked whether a download was stopped.
_WAKE_S = 0.2

Way = Literal["auto", "zip", "files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """The options of a download; most are those of :func:`download_order`."""

    #: Called a few times per second, in the thread of the caller.
    on_progress: Callable[[Progress], object] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    extract: bool = True
    way: Way = "auto"
    #: Files that were verified earlier are fetched again if they fail this check: they are not
    #: there, have another size, or another MD5. ``none``: files that are missing are assumed to
    #: have been moved by the user.
    check: Check = "none"
    again: bool = False
    #: Files that are verified in another folder are linked or copied into the directory.
    gather: bool = False
    durable: bool = True
    #: How long no byte has come.
    last_byte: LastByte = field(default_factory=LastByte)
    #: Unit of the random waits before something is tried again.
    backoff_s: float = 1.0


class DownloadContext(NamedTuple):
    """The parts of one increment."""

    client: RegardsClient
    order_id: int
    options: DownloadOptions
    #: What is recorded of the files of the order.
    records: OrderRecords
    #: Which files are expected, and which of them are still missing.
    manifest: Manifest
    workspace: Workspace
    names: FinalNames
    publisher: Publisher
    counter: ProgressCounter

    def wait_for(self, jobs: Sequence[Future[None]]) -> None:
        """Wait until all have ended; meanwhile report progress, and record uploads.

        StoppedError: the download was asked to stop.
        """
        while wait(jobs, _WAKE_S).not_done:
            self.publisher.report()
            self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Raise where the download was asked to stop."""
        if self.options.stop.is_set():
            raise StoppedError
