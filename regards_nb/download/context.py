"""The arguments of each step of a download: the options of the user, and the shared objects."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from regards_nb.client import LastByte
from regards_nb.errors import OrderNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from regards_nb.client import Body, RemoteOrder
    from regards_nb.download.manifest import Manifest
    from regards_nb.download.names import FinalNames
    from regards_nb.download.places import Place
    from regards_nb.download.progress import Progress, ProgressCounter
    from regards_nb.download.publisher import Publisher
    from regards_nb.download.records import Check, OrderRecords
    from regards_nb.download.workspace import Workspace
    from regards_nb.files import FileRecord

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
    #: Returns the folder of the order in the workspace: where a file fails the check in another
    #: folder, to which it was linked or copied, the one with the right MD5 there is used.
    originals: Callable[[], Place] | None = None
    durable: bool = True
    #: How long no byte has come.
    last_byte: LastByte = field(default_factory=LastByte)
    #: Unit of the random waits before something is tried again.
    backoff_s: float = 1.0


class FileSource(Protocol):
    """What a download asks for files: a `RegardsClient`, or a source that knows no order."""

    def open_file(self, file_id: int) -> AbstractContextManager[Body]:
        """Open one file."""

    def open_zip(self, order_id: int) -> AbstractContextManager[Body | None]:  # noqa: ARG002
        """Open the zip of all files that are available now; None if there are none."""
        return nullcontext()

    def order(self, order_id: int) -> RemoteOrder:  # noqa: ARG002
        """Return the order of the files."""
        raise OrderNotFoundError("files of the catalogue belong to no order")

    def iter_available_files(self, order_id: int) -> Iterator[FileRecord]:  # noqa: ARG002
        """Yield the files that the server has ready, and expects to be downloaded."""
        return iter(())

    def iter_dataset_files(self, order_id: int, dataset_id: int) -> Iterator[FileRecord]:  # noqa: ARG002
        """Yield all files of a data set of the order."""
        return iter(())


class DownloadContext(NamedTuple):
    """The parts of one increment."""

    client: FileSource
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
