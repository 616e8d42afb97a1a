"""A whole order without a tracker: increment after increment, until the server has no more."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.download.increment import Downloader, DownloadOptions, incomplete, paths_of
from regards_nb.download.line import ProgressLine
from regards_nb.download.staging import Workspace
from regards_nb.download.statefile import StateFile
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    ServiceError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.download.plan import Way
    from regards_nb.download.progress import Progress
    from regards_nb.files import FileRecord

_SLOWER, _MAX_POLL_S = 1.5, 30.0
#: So often in a row the server may be away; the client has tried several times each.
_MAX_SILENCES = 6


def download_order(
    client: RegardsClient,
    order_id: int,
    directory: str | Path,
    *,
    on_progress: Callable[[Progress], object] | None = None,
    show: bool = True,
    stop: threading.Event | None = None,
    timeout_s: float | None = None,
    extract: bool = True,
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
    directory : str or pathlib.Path
        Where the files go; made if it is missing. What is there and verified is not fetched again.
    on_progress : callable, optional
        Called with a :class:`Progress` a few times per second. By default the progress is shown
        on the standard output.
    show : bool
        False: without *on_progress*, nothing is shown.
    stop : threading.Event, optional
        Set it to end the download; verified files stay.
    timeout_s : float, optional
        How long to go on; by default as long as REGARDS prepares the order.
    extract : bool
        False: keep each zip as one file instead of the files in it.
    way : {"auto", "zip", "files"}
        One zip at a time, the files one by one, or whichever suits the files.
    durable : bool
        False: do not wait for the disk. Files are then complete also after the program is killed,
        but not necessarily after a power cut.
    poll_s : float
        How long to wait before the first look for more; each wait is longer, up to 30 s.
    backoff_s : float
        Unit of the random waits before something is tried again.

    Returns
    -------
    list of pathlib.Path
        All files of the order, ready to be opened.

    Raises
    ------
    IncompleteDownloadError
        Some files could not be had; the others are in place.
    DownloadError
        The order has ended without files, is paused, or the download was stopped.
    WaitTimeoutError
        *timeout_s* is over; what was ready is in place.
    WorkspaceError, ServiceError
        The directory, or the REST side, does not let it go on.
    """
    folder = Path(directory).expanduser().absolute()
    stop = stop or threading.Event()
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    client.order(order_id)  # raises where there is none, before anything is made here
    with Workspace(folder, order_id):
        pass
    line = ProgressLine()
    increments = Downloader(
        client,
        order_id,
        folder,
        StateFile(folder, order_id, durable=durable),
        DownloadOptions(
            on_progress=on_progress or (line if show else None),
            stop=stop,
            extract=extract,
            way=way,
            restore_removed=True,
            durable=durable,
            backoff_s=backoff_s,
        ),
    )
    try:
        order = _fetch_until_finished(client, increments, stop, deadline_s, poll_s)
        _fetch_rest(client, order, increments)
    finally:
        line.end()
    names = list(dict.fromkeys(increments.records.files.in_place.final_names))
    # Paths of very many files take as much as all else together, which is not needed any more.
    del increments
    if not names:
        what = f"order {order_id} is {order.status}"
        raise DownloadError(f"{what}, and the server has no files of it")
    return [folder / name for name in names]


def _fetch_until_finished(
    client: RegardsClient,
    increments: Downloader,
    stop: threading.Event,
    deadline_s: float | None,
    poll_s: float,
) -> RemoteOrder:
    """Fetch what is ready, again and again, until the server prepares nothing more."""
    silences, pause_s = 0, poll_s
    while True:
        came = False
        try:
            # First the status, then the files: what comes in between is not missed.
            order = client.order(increments.order_id)
            came = _fetch_ready(increments)
        except ServiceUnreachableError:
            silences += 1
            if silences == _MAX_SILENCES:
                raise
        else:
            silences = 0
            if order.finished and not came:
                return order
            if order.status == "PAUSED" and not came:
                raise DownloadError(
                    f"order {order.order_id} is paused: nothing more comes until "
                    f"client.resume({order.order_id})"
                )
        if came:
            pause_s = poll_s
            continue
        _pause(increments, stop, pause_s, deadline_s)
        pause_s = min(pause_s * _SLOWER, _MAX_POLL_S)


def _fetch_ready(increments: Downloader) -> bool:
    """Fetch one increment; tell whether anything came. What failed is tried again at the end."""
    try:
        return not increments.fetch().nothing_new
    except IncompleteDownloadError as exc:
        return bool(exc.paths)


def _pause(
    increments: Downloader, stop: threading.Event, pause_s: float, deadline_s: float | None
) -> None:
    left_s = pause_s if deadline_s is None else min(deadline_s - time.monotonic(), pause_s)
    if left_s <= 0:
        raise WaitTimeoutError(
            f"order {increments.order_id} is still being prepared; what was ready is in place. "
            "Call again to go on"
        )
    if stop.wait(left_s):
        raise DownloadError(f"the download of order {increments.order_id} was stopped")


def _fetch_rest(client: RegardsClient, order: RemoteOrder, increments: Downloader) -> None:
    """Fetch what the manifests never listed, and try once more what failed.

    Files that somebody downloaded before are in no manifest any more, but can still be had one by
    one (protocol.md 1.0, 7); the lists of the data sets name them.
    """
    records = increments.records
    added = 0
    if order.files_total is None or order.files_total > len(records.table):
        added = records.expect(_all_files(client, order))
    if not increments.forgive() and not added:
        return
    try:
        increments.fetch()
    except IncompleteDownloadError:
        failed = [record for record in records.files if record.state is FileState.FAILED]
        # told of the order as a whole
        paths = paths_of(records.files.in_place)
        raise incomplete(order.order_id, paths, failed) from None


def _all_files(client: RegardsClient, order: RemoteOrder) -> Iterator[FileRecord]:
    # an older server refuses; the manifests have listed what there was
    with suppress(ServiceError):
        for dataset_id in order.dataset_ids:
            yield from client.iter_dataset_files(order.order_id, dataset_id)
