"""Download one order: the same in a thread of the tracker and in a worker of another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from regards_nb.download import (
    Downloader,
    DownloadOptions,
    DownloadResult,
    archive_of,
    order_folder,
)
from regards_nb.errors import IncompleteDownloadError, ServiceError
from regards_nb.tracker.shared import held_order

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from regards_nb.client import RegardsClient, Silence
    from regards_nb.download import Check, FileLog, Place, Progress
    from regards_nb.journal import Holder, Journal
    from regards_nb.orders import OrderState


class DownloadDetails(TypedDict, total=False):
    """The keywords of `OrderTracker.download` that do not change its result."""

    directory: str | Path | None
    extract: bool
    again: bool
    checksum: bool
    executor: Executor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """The options of one download of an order; see `OrderTracker.download`.

    By default only new files are fetched: files that the user removed stay away.
    """

    directory: Place | None = None
    extract: bool = True
    #: See `DownloadOptions`.
    check: Check = "none"
    again: bool = False
    #: Raise `OrderHeldError` if another process downloads the order; by default it is waited for.
    if_free: bool = False

    @property
    def only_new_files(self) -> bool:
        """Whether files that any process has fetched with this journal are left alone."""
        return self.directory is None and self.check == "none" and not self.again


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderToFetch:
    """What a download needs to know of an order: numbers and the tenant, and no link.

    *up_to_row*: the newest event that the download answers; *is_new*: no download has answered it.
    *lacks_files*: REGARDS could not prepare some files, and no manifest lists them. *has_ended*: it
    prepares no more.
    """

    tenant: str | None
    order_id: int
    up_to_row: int
    lacks_files: bool
    has_ended: bool
    is_new: bool

    @classmethod
    def of(cls, order: OrderState, order_id: int) -> OrderToFetch:
        """Return what a download needs of the state of an order."""
        return cls(
            tenant=order.tenant,
            order_id=order_id,
            up_to_row=max(order.ready_row, order.errors_row),
            lacks_files=bool(order.errors_row and order.ready_row),
            has_ended=order.finished,
            is_new=order.to_download,
        )


def fetch_order(
    client: RegardsClient,
    journal: Journal,
    order: OrderToFetch,
    *,
    tenant: str | None,
    workspace: Place,
    request: DownloadRequest,
    stop: threading.Event,
    report: Callable[[Progress], object],
    waiting: Callable[[Holder], object],
    silence: Silence,
) -> DownloadResult:
    """Download the ready files of an order, and record them in the journal.

    One process at a time does it, of all that share the journal. The others wait, and then fetch
    the files that their own workspace lacks: *waiting* is called with the holder of the lease
    meanwhile. With ``request.if_free``, OrderHeldError is raised instead.

    *tenant* is that of the files of orders whose events name none, *workspace* as in `Downloads`.
    *stop* ends the download, and verified files stay. *report* is called a few times per second,
    but not while a request waits for its answer: then *silence* tells for how long.
    """
    with held_order(
        journal,
        order.tenant or tenant,
        order.order_id,
        stop=stop,
        waiting=None if request.if_free else waiting,
    ):
        was_fetched = order.up_to_row <= journal.fetched_row(order.tenant, order.order_id)
        if order.is_new and was_fetched and request.only_new_files:
            return DownloadResult(order_id=order.order_id)  # by another process, meanwhile
        archive = archive_of(client.base_url, order.tenant or client.tenant)
        log = journal.file_log(order.tenant or tenant, workspace)
        # The manifest names no file that was downloaded before, with this or another journal.
        if order.lacks_files or (request.again and order.has_ended):
            list_others(client, order.order_id, log)
        try:
            result = Downloader(
                client,
                order.order_id,
                request.directory or order_folder(workspace, order.order_id, archive),
                log,
                DownloadOptions(
                    on_progress=report,
                    stop=stop,
                    silence=silence,
                    extract=request.extract,
                    check=request.check,
                    again=request.again,
                    gather=request.directory is not None,
                ),
            ).fetch()
        except IncompleteDownloadError:
            # The server has sent the files and prepares the next ones. The journal names
            # the missing files, and the next download asks only for those.
            journal.save_fetched(order.tenant, order.order_id, order.up_to_row)
            raise
        except ServiceError as exc:
            exc.put_first(f"order {order.order_id}")
            raise
        journal.save_fetched(order.tenant, order.order_id, order.up_to_row)
        return result


def list_others(client: RegardsClient, order_id: int, log: FileLog) -> None:
    """Record the files that REGARDS could not prepare or has sent already.

    No manifest lists them. The download then asks for each by its id, and reports it like a file
    that the zip did not hold.
    """
    known = {record.file_id for record in log.files(order_id)}
    log.save(
        record
        for dataset_id in client.order(order_id).dataset_ids
        for record in client.dataset_files(order_id, dataset_id)
        if record.file_id not in known
    )
