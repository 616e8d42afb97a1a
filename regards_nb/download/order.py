"""Downloads without a tracker: a whole order, or files of products that were not ordered.

An order is fetched in one increment after the other, until the server is done.
"""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from regards_nb.arguments import check_paths
from regards_nb.download.after_zip import all_files
from regards_nb.download.context import DownloadOptions
from regards_nb.download.increment import Downloader
from regards_nb.download.places import archive_of, as_place, paths_of
from regards_nb.download.progress import ProgressLine
from regards_nb.download.records import StateLog
from regards_nb.download.workspace import open_workspace
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    OrderNotFoundError,
    ServiceError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from regards_nb.files import FileRecord, FileState
from regards_nb.text import counted
from regards_nb.waits import stopped_by_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from regards_nb.client import Body, Product, RegardsClient, RemoteOrder
    from regards_nb.download.context import Way
    from regards_nb.download.places import Place
    from regards_nb.download.progress import Progress

#: What Ctrl-C in a download says; it is completed by how many files are here.
STOPPED = "stopped; {} saved and verified so far. The same call goes on from there"
#: Factor by which each wait for more files is longer than the last one, and the longest wait.
_SLOWER, _MAX_POLL_S = 1.5, 30.0
#: Maximum number of requests in turn without an answer; the client repeats each several times.
_MAX_UNANSWERED = 6

#: Orders have numbers from 1 on.
_NO_ORDER = 0


def download_order(
    client: RegardsClient,
    order_id: int,
    directory: str | Place,
    *,
    on_progress: Callable[[Progress], object] | None = None,
    show: bool = True,
    stop: threading.Event | None = None,
    timeout_s: float | None = None,
    extract: bool = True,
    again: bool = False,
    checksum: bool = False,
    way: Way = "auto",
    durable: bool = True,
    poll_s: float = 2.0,
    backoff_s: float = 1.0,
) -> list[Path]:
    """Fetch all files of an order, while REGARDS prepares it and afterwards.

    Parameters
    ----------
    client : RegardsClient
        The REST side.
    order_id : int
        The order.
    directory : str, pathlib.Path or upath.UPath
        Where the files go: a folder, made if it is missing, or ``s3://bucket/prefix``.
        Verified files in it are not fetched again.
    on_progress : callable, optional
        Called with a :class:`Progress` a few times per second. By default the progress is shown
        on the standard output.
    show : bool
        False: without *on_progress*, nothing is shown.
    stop : threading.Event, optional
        Set it to end the download; verified files stay.
    timeout_s : float, optional
        How long to go on; by default as long as REGARDS prepares files of the order.
    extract : bool
        False: keep each zip as one file instead of the files in it. True extracts zips that an
        earlier call kept. To open kept zips by hand, see "Proxies and zips" in the documentation.
    again : bool
        Fetch all files once more. A file whose content differs now is not replaced, unless it is
        cut: the new one gets a number, and a warning names both.
    checksum : bool
        Read files that are there already and compare their MD5; by default only their size is
        compared.
    way : {"auto", "zip", "files"}
        One zip at a time, the files one by one, or whichever suits the files.
    durable : bool
        False: do not wait for the disk. Files are then complete also after the program is killed,
        but not necessarily after a power cut.
    poll_s : float
        How long to wait before asking for more files; each wait is longer, up to 30 s.
    backoff_s : float
        Unit of the random waits before a request is repeated.

    Returns
    -------
    list of pathlib.Path
        All files of the order, ready to be opened. In a bucket each is an `upath.UPath`.

    Raises
    ------
    IncompleteDownloadError
        Some files could not be downloaded; the others are in place.
    DownloadError
        The order has ended without files, is paused, or the download was stopped.
    WaitTimeoutError
        *timeout_s* is over; files that were ready are in place.
    WorkspaceError, ServiceError
        The directory cannot be written to, or the REST side refuses or does not answer.
    """
    check_paths(directory=directory)
    folder = as_place(directory)
    stop = stop or threading.Event()
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    client.order(order_id)  # raises where there is none, before anything is made here
    with open_workspace(folder, order_id, stop=stop):
        pass
    line = ProgressLine()
    downloader = Downloader(
        client,
        order_id,
        folder,
        StateLog(
            folder, order_id, archive=archive_of(client.base_url, client.tenant), durable=durable
        ),
        DownloadOptions(
            on_progress=on_progress or (line if show else None),
            stop=stop,
            extract=extract,
            way=way,
            check="checksum" if checksum else "size",
            again=again,
            gather=True,
            durable=durable,
            backoff_s=backoff_s,
        ),
    )
    try:
        order = _fetch_until_finished(client, downloader, stop, deadline_s, poll_s)
        _fetch_rest(client, order, downloader)
    finally:
        line.end()
    for text in downloader.notes:
        warnings.warn(text, stacklevel=3)
    paths = paths_of(downloader.records.in_place)
    if not paths:
        raise DownloadError(
            f"order {order_id} is {order.status}, and the server has no files of it"
        )
    return paths


def _fetch_until_finished(
    client: RegardsClient,
    downloader: Downloader,
    stop: threading.Event,
    deadline_s: float | None,
    poll_s: float,
) -> RemoteOrder:
    """Fetch increments until the server prepares nothing more."""
    unanswered, pause_s = 0, poll_s
    while True:
        came = False
        try:
            # First the status, then the files: a file that becomes ready in between is not missed.
            order = client.order(downloader.order_id)
            came = _fetch_ready(downloader)
        except ServiceUnreachableError:
            unanswered += 1
            if unanswered == _MAX_UNANSWERED:
                raise
        else:
            unanswered = 0
            if order.finished and not came:
                return order
            if order.status == "PAUSED" and not came:
                raise DownloadError(
                    f"order {order.order_id} is paused: no more files come until "
                    f"client.resume({order.order_id})"
                )
        if came:
            pause_s = poll_s
            continue
        _pause(downloader, stop, pause_s, deadline_s)
        pause_s = min(pause_s * _SLOWER, _MAX_POLL_S)


def _fetch_ready(downloader: Downloader) -> bool:
    """Fetch one increment; return whether files came. Failed files are retried at the end."""
    try:
        return not downloader.fetch().nothing_new
    except IncompleteDownloadError as exc:
        return bool(exc.paths)


def _pause(
    downloader: Downloader, stop: threading.Event, pause_s: float, deadline_s: float | None
) -> None:
    left_s = pause_s if deadline_s is None else min(deadline_s - time.monotonic(), pause_s)
    if left_s <= 0:
        raise WaitTimeoutError(
            f"order {downloader.order_id} is still being prepared; its first files are in place. "
            "Call download_order again to go on"
        )
    if stop.wait(left_s):
        raise DownloadError(f"the download of order {downloader.order_id} was stopped")


def _fetch_rest(client: RegardsClient, order: RemoteOrder, downloader: Downloader) -> None:
    """Fetch the files that no manifest listed, and retry the failed files.

    Files that were downloaded before, from elsewhere, are in no manifest any more. They can still
    be fetched one by one (protocol.md 1.0, 7); the lists of the data sets name them.
    """
    records = downloader.records
    added = 0
    if order.files_total is None or order.files_total > len(records.known):
        # an older server refuses this request; the manifests have listed the available files
        with suppress(ServiceError):
            added = records.expect(all_files(client, order.order_id))
    if not downloader.retry_failed() and not added:
        return
    try:
        downloader.fetch()
    except IncompleteDownloadError:
        everything = records.of(records.known)
        failed = [record for record in everything if record.state is FileState.FAILED]
        # the numbers of this error are those of the whole order
        paths = paths_of(records.in_place)
        raise downloader.incomplete(failed, paths) from None


def download_products(
    client: RegardsClient,
    products: Sequence[Product],
    directory: str | Place,
    *,
    accept_licence: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    show: bool = True,
    stop: threading.Event | None = None,
    durable: bool = True,
    backoff_s: float = 1.0,
) -> list[Path]:
    """Fetch the files of products, several at a time; verified files are not fetched again.

    Parameters
    ----------
    products : sequence of Product
        The products.
    accept_licence : bool
        Accept the licence of the data sets that have one.
    client, directory, on_progress, show, stop, durable, backoff_s
        As in :func:`download_order`.

    Returns
    -------
    list of pathlib.Path
        All files of the products. In a bucket each is an `upath.UPath`.

    Raises
    ------
    IncompleteDownloadError
        Some files could not be downloaded; the others are in place.
    """
    check_paths(directory=directory)
    folder = as_place(directory)
    source = _ProductFiles(client, products, accept_licence=accept_licence)
    if not source.records:
        raise DownloadError(f"{counted(len(products), 'product')} without any file")
    with open_workspace(folder, _NO_ORDER):
        pass
    line = ProgressLine()
    downloader = Downloader(
        # Of a client, a download of single files uses the methods of _ProductFiles only.
        cast("RegardsClient", source),
        _NO_ORDER,
        folder,
        StateLog(folder, _NO_ORDER, durable=durable),
        DownloadOptions(
            on_progress=on_progress or (line if show else None),
            stop=stop or threading.Event(),
            way="files",
            check="size",
            durable=durable,
            backoff_s=backoff_s,
        ),
    )
    # No manifest lists the files: they are fetched as those that a manifest lists no longer.
    downloader.records.expect(source.records)
    downloader.retry_failed()

    def stopped() -> str:
        here = sum(record.in_place for record in downloader.records.of(wanted))
        files = counted(f"{here} of {len(wanted)}", "file")
        return STOPPED.format(files)

    wanted = [record.file_id for record in source.records]
    try:
        with stopped_by_user(stopped):
            downloader.fetch()
    except IncompleteDownloadError as exc:
        name, reason = next(iter(exc.missing.items()))
        raise IncompleteDownloadError(
            f"{counted(f'{len(exc.missing)} of {len(source.records)}', 'file')} could not be "
            f"downloaded; the others are saved in {folder}. {name}: {reason}",
            paths=exc.paths,
            missing=exc.missing,
        ) from None
    finally:
        line.end()
    return paths_of(downloader.records.of(wanted))


class _File(NamedTuple):
    urn: str
    checksum: str


class _ProductFiles:
    """The files of products, with the methods of a client that a download uses."""

    def __init__(
        self, client: RegardsClient, products: Sequence[Product], *, accept_licence: bool
    ) -> None:
        self._client = client
        self._accept_licence = accept_licence
        self._files: dict[int, _File] = {}
        self.records: list[FileRecord] = []
        for product in products:
            for file in product.files:
                if file.checksum is None:
                    raise DownloadError(
                        f"{file.name} has no checksum, and REGARDS gives files of the catalogue by "
                        "checksum only: order the product"
                    )
                key = _File(product.urn, file.checksum)
                # The same number in each call, so that a later call finds what was fetched.
                digest = hashlib.md5("/".join(key).encode(), usedforsecurity=False).digest()
                file_id = int.from_bytes(digest[:7])
                self._files[file_id] = key
                self.records.append(
                    FileRecord(
                        order_id=_NO_ORDER,
                        file_id=file_id,
                        name=file.name,
                        size_bytes=file.size_bytes,
                        md5=file.md5,
                        product_id=product.provider_id,
                    )
                )

    def order(self, _order_id: int) -> NoReturn:
        """Raise: these files belong to no order that could expire."""
        raise OrderNotFoundError("files of the catalogue belong to no order")

    def iter_available_files(self, _order_id: int) -> Iterator[FileRecord]:
        """Yield nothing: REGARDS waits for no download of these files."""
        return iter(())

    def open_file(
        self, file_id: int, *, stop: threading.Event | None = None
    ) -> AbstractContextManager[Body]:
        """Open one file."""
        urn, checksum = self._files[file_id]
        return self._client.open_product_file(
            urn, checksum, accept_licence=self._accept_licence, stop=stop
        )
