"""Downloads without a tracker: a whole order, or files of products that were not ordered.

An order is fetched in one increment after the other, until the server is done.
"""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING

from regards_nb.arguments import check_paths
from regards_nb.download.after_zip import all_files
from regards_nb.download.context import DownloadOptions, FileSource
from regards_nb.download.increment import Downloader, not_downloaded
from regards_nb.download.places import archive_of, as_place, paths_of
from regards_nb.download.progress import ProgressLine
from regards_nb.download.records import StateLog
from regards_nb.download.workspace import open_workspace
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    ServiceError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from regards_nb.files import FileRecord, FileState
from regards_nb.text import counted, doubled, numbered
from regards_nb.waits import (
    SAID_AFTER_S,
    STOPPED_EARLY,
    growing,
    shown_meanwhile,
    stopped_by_user,
    words_first,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from regards_nb.client import Body, Product, RegardsClient, RemoteOrder
    from regards_nb.download.context import Way
    from regards_nb.download.places import Place
    from regards_nb.download.progress import Progress

#: Time without a file after which its length is told, and again after twice that and so on.
_STILL_S = 5.0
#: Only the newest orders are searched for those that block an order.
_MOST_LOOKED_AT = 100
#: Factor by which each wait for more files is longer than the last one, and the longest wait.
_SLOWER, _MAX_POLL_S = 1.5, 30.0
#: Maximum number of requests in turn without an answer; the client repeats each several times.
_MAX_UNANSWERED = 6

#: Orders have numbers from 1 on.
_NO_ORDER = 0


@stopped_by_user(STOPPED_EARLY, keeps_inner=True)
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
    folder, named = as_place(directory), f"order {order_id}"
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    with stopped_by_user(STOPPED_EARLY), words_first(ServiceError, named):
        client.order(order_id)  # raises where there is none, before anything is made here
    line = ProgressLine() if show and on_progress is None else None
    options = DownloadOptions(
        on_progress=on_progress or line,
        stop=stop or threading.Event(),
        extract=extract,
        way=way,
        check="checksum" if checksum else "size",
        again=again,
        durable=durable,
        backoff_s=backoff_s,
    )
    archive = archive_of(client.base_url, client.tenant)
    with _downloader(client, order_id, folder, options, line, archive=archive) as downloader:

        def stopped() -> str:
            here = counted(len(downloader.records.in_place), "file")
            return stopped_text(f"{here} of order {order_id}", again=again)

        with stopped_by_user(stopped), words_first(ServiceError, named):
            order = _fetch_until_finished(
                client, downloader, options.stop, line, deadline_s=deadline_s, poll_s=poll_s
            )
            _fetch_rest(client, order, downloader)
    for text in downloader.notes:
        warnings.warn(text, stacklevel=4)
    paths = paths_of(downloader.records.in_place)
    if not paths:
        raise DownloadError(
            f"order {order_id} is {order.status}, and the server has no files of it"
        )
    return paths


def stopped_text(files: str, *, again: bool = False) -> str:
    """Return what Ctrl-C in a download says; *files* are here."""
    if again:
        return (
            f"stopped; {files} are here, from this call or an earlier one. The same call fetches "
            "all of them again"
        )
    return f"stopped; {files} saved and verified so far. The same call goes on from there"


@contextmanager
def _downloader(
    source: FileSource,
    order_id: int,
    folder: Place,
    options: DownloadOptions,
    line: ProgressLine | None,
    *,
    archive: str = "",
) -> Iterator[Downloader]:
    """Make what downloads into a place that can be written to, and end its progress line."""
    with open_workspace(folder, order_id):
        pass
    log = StateLog(folder, order_id, archive=archive, durable=options.durable)
    try:
        with shown_meanwhile():
            yield Downloader(source, order_id, folder, log, options)
    finally:
        if line is not None:
            line.end()


def _fetch_until_finished(
    client: RegardsClient,
    downloader: Downloader,
    stop: threading.Event,
    line: ProgressLine | None,
    *,
    deadline_s: float | None,
    poll_s: float,
) -> RemoteOrder:
    """Fetch increments until the server prepares no more; *line* names the cause of a wait."""
    unanswered, pauses = 0, growing(poll_s, _MAX_POLL_S, _SLOWER)
    since_s, told = time.monotonic(), ("", 0.0)
    while True:
        came = False
        try:
            # First the status, then the files: a file that becomes ready in between is not missed.
            order = client.order(downloader.order_id)
            came = _fetch_ready(downloader)
        except ServiceUnreachableError as exc:
            unanswered += 1
            if unanswered == _MAX_UNANSWERED:
                raise
            if line is not None:
                line.note(
                    f"order {downloader.order_id}: {exc}. Asked again after a pause "
                    f"({unanswered} of {_MAX_UNANSWERED})"
                )
        else:
            unanswered = 0
            if order.finished and not came:
                return order
            if order.status == "PAUSED" and not came:
                raise DownloadError(
                    f"order {order.order_id} is paused: no more files come until "
                    f"client.resume({order.order_id})"
                )
            waited_s = time.monotonic() - since_s
            news = (order.status, doubled(waited_s, _STILL_S))
            if line and not came and news != told and waited_s + poll_s > SAID_AFTER_S:
                told = news
                line.note(_preparing(client, order, news[1]))
        if came:
            pauses, since_s = growing(poll_s, _MAX_POLL_S, _SLOWER), time.monotonic()
        else:
            _pause(downloader, stop, next(pauses), deadline_s)


def _fetch_ready(downloader: Downloader) -> bool:
    """Fetch one increment; return whether files came. Failed files are retried at the end."""
    try:
        return bool(downloader.fetch())
    except IncompleteDownloadError as exc:
        return bool(exc.paths)


def _preparing(client: RegardsClient, order: RemoteOrder, still_s: float) -> str:
    """Return that REGARDS prepares an order, for how long, and which orders block it."""
    since = f", for more than {still_s:.0f} s" if still_s else ""
    text = f"order {order.order_id} is {order.status}: waiting for more files of it{since}"
    with suppress(ServiceError):
        newest = islice(client.iter_orders(), _MOST_LOOKED_AT)
        others = [each.order_id for each in newest if each.available_files]
        if others := [number for number in others if number != order.order_id]:
            text += (
                f". REGARDS prepares at most two sub-orders per user, and {numbered(others)} "
                f"{'waits' if len(others) == 1 else 'wait'} for a download"
            )
    return text


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


@stopped_by_user(STOPPED_EARLY, keeps_inner=True)
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
    line = ProgressLine() if show and on_progress is None else None
    options = DownloadOptions(
        on_progress=on_progress or line,
        stop=stop or threading.Event(),
        way="files",
        check="size",
        durable=durable,
        backoff_s=backoff_s,
    )
    wanted = [record.file_id for record in source.records]
    with _downloader(source, _NO_ORDER, folder, options, line) as downloader:
        records = downloader.records
        # No manifest lists the files: they are fetched as those that a manifest lists no longer.
        records.expect(source.records)

        def n_saved() -> int:
            return sum(record.in_place for record in records.of(wanted))

        def stopped() -> str:
            return stopped_text(counted(f"{n_saved()} of {len(wanted)}", "file"))

        try:
            with stopped_by_user(stopped):
                downloader.fetch()
        except IncompleteDownloadError as exc:
            name, reason = next(iter(exc.missing.items()))
            raise IncompleteDownloadError(
                f"{not_downloaded(len(exc.missing), n_saved(), folder)}. {name}: {reason}",
                paths=exc.paths,
                missing=exc.missing,
            ) from None
        return paths_of(records.of(wanted))


class _ProductFiles(FileSource):
    """The files of products."""

    def __init__(
        self, client: RegardsClient, products: Sequence[Product], *, accept_licence: bool
    ) -> None:
        self._client = client
        self._accept_licence = accept_licence
        #: URN of the product and checksum, by file id.
        self._files: dict[int, tuple[str, str]] = {}
        self.records: list[FileRecord] = []
        for product in products:
            for file in product.files:
                if file.checksum is None:
                    raise DownloadError(
                        f"{file.name} has no checksum, and REGARDS gives files of the catalogue by "
                        "checksum only: order the product"
                    )
                key = (product.urn, file.checksum)
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

    def open_file(self, file_id: int) -> AbstractContextManager[Body]:
        """Open one file."""
        urn, checksum = self._files[file_id]
        return self._client.open_product_file(urn, checksum, accept_licence=self._accept_licence)
