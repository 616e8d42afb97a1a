"""Download one order: in a thread of the tracker, or in a worker of another process.

A worker gets a `WorkerTask`, makes client and journal itself, and also processes the files.
"""

from __future__ import annotations

import importlib
import pickle
import socket
import threading
import traceback
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from regards_nb.client import watched
from regards_nb.download import (
    Downloader,
    DownloadOptions,
    DownloadResult,
    all_files,
    archive_of,
    as_place,
    order_folder,
    path_of,
)
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    JournalError,
    ProcessingError,
    RegardsError,
    ServiceError,
    SettingsError,
    WorkspaceError,
)
from regards_nb.journal import order_lease
from regards_nb.text import raised_at, user_frames
from regards_nb.threads import begin
from regards_nb.tracker.shared import LOOK_S, RunningDownload, held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from regards_nb.client import RegardsClient
    from regards_nb.download import Check, FileLog, Place
    from regards_nb.journal import Holder, Journal
    from regards_nb.orders import OrderState
    from regards_nb.settings import WorkerSettings

#: How often a worker asks the journal whether the call was stopped.
_STOP_POLL_S = 1.0


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
    #: Raise `HeldElsewhereError` if another process downloads the order, instead of waiting for it.
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
    request: DownloadRequest,
    running: RunningDownload,
    *,
    tenant: str | None,
    workspace: Place,
) -> DownloadResult:
    """Download the ready files of an order, and record them in the journal.

    One process at a time does it, of all that share the journal. The others wait, and then fetch
    the files that their own workspace lacks. With ``request.if_free``, HeldElsewhereError is raised
    instead.

    *tenant* is that of the files of orders whose events name none, *workspace* as in `Downloads`.
    The stop of *running* ends the download, and verified files stay.
    """
    if running.before is not None:
        wait_for([running.before.future])
        running.before = None

    def wait(holder: Holder) -> None:
        running.holder = holder
        running.changed()
        if running.stop.wait(LOOK_S):
            raise DownloadError(
                f"the download of order {order.order_id} was stopped while {holder} was "
                "downloading it"
            )

    lease = order_lease(order.tenant or tenant, order.order_id)
    with held(journal, lease, None if request.if_free else wait):
        was_fetched = order.up_to_row <= journal.fetched_row(order.tenant, order.order_id)
        if order.is_new and was_fetched and request.only_new_files:
            return DownloadResult(order_id=order.order_id)  # by another process, meanwhile
        archive = archive_of(client.base_url, order.tenant or client.tenant)
        log = journal.file_log(order.tenant or tenant, workspace)
        # The manifest names no file that was downloaded before, with this or another journal.
        if order.lacks_files or (request.again and order.has_ended):
            with watched(running.last_byte):
                list_others(client, order.order_id, log)
        try:
            result = Downloader(
                client,
                order.order_id,
                request.directory or order_folder(workspace, order.order_id, archive),
                log,
                DownloadOptions(
                    on_progress=running.report,
                    stop=running.stop,
                    last_byte=running.last_byte,
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
            running.fetched(None)
            raise
        except ServiceError as exc:
            exc.put_first(f"order {order.order_id}")
            raise
        journal.save_fetched(order.tenant, order.order_id, order.up_to_row)
        running.fetched(result)
        return result


def list_others(client: RegardsClient, order_id: int, log: FileLog) -> None:
    """Record the files that REGARDS could not prepare or has sent already.

    No manifest lists them. The download then asks for each by its id, and reports it like a file
    that the zip did not hold.
    """
    known = {record.file_id for record in log.files(order_id)}
    log.save(file for file in all_files(client, order_id) if file.file_id not in known)


# -- in a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """One order for a worker. It holds no secret: no link, password or token.

    *call* is the id that the journal names when the call is stopped. Without *fetch* the files are
    in place, and are only processed. *process* is the user's function, from `packed_function`.
    """

    call: str
    settings: WorkerSettings
    order: OrderToFetch
    request: DownloadRequest
    fetch: bool
    process: bytes | None


def packed_function(process: Callable[[list[Any]], Any]) -> bytes:
    """Pickle the user's function, with cloudpickle where it is installed."""
    pickler: Any = pickle
    try:
        pickler = importlib.import_module("cloudpickle")
    except ImportError:
        if getattr(process, "__module__", None) == "__main__":
            raise SettingsError(
                "workers cannot import a function of a notebook or script: write process= into a "
                "module, or install cloudpickle, which sends it along: pip install cloudpickle"
            ) from None
    try:
        packed: bytes = pickler.dumps(process)
    except Exception as exc:
        raise SettingsError(
            f"process= cannot be sent to a worker: {type(exc).__name__}: {exc}. Give it plain "
            "values, and let it open what it needs"
        ) from exc
    return packed


def run_in_worker(task: WorkerTask) -> bytes | RegardsError | None:
    """Download one order and process its files; called in a worker.

    The result is pickled here: one that cannot be read back would end a pool of processes, and the
    other orders with it. An error is returned, because Dask logs one that is raised.
    """
    try:
        paths = _fetch(task)
        if task.process is None or not paths:
            return None
        try:
            process = pickle.loads(task.process)  # noqa: S301 - the user's own function
            return pickle.dumps(process(paths))
        except Exception as exc:  # noqa: BLE001 - the caller raises it
            return _told(task, processing_error(task.order.order_id, exc))
    except Exception as exc:  # noqa: BLE001 - the caller raises it
        return _told(task, exc)


def processing_error(order_id: int, cause: Exception) -> ProcessingError:
    """Return the error for a function of the user that failed."""
    error = ProcessingError(
        f"order {order_id}: process= raised {type(cause).__name__}: {cause} {raised_at(cause)}. "
        "Its files are in place"
    )
    error.__cause__ = cause
    return error


def _told(task: WorkerTask, error: Exception) -> RegardsError:
    """Return an error that can be pickled; pickle keeps notes, neither causes nor tracebacks."""
    cause = error.__cause__ or error
    if isinstance(error, RegardsError):
        told, lines = error, "".join(traceback.format_list(user_frames(cause)))
    else:
        number, kind = task.order.order_id, type(error).__name__
        told = DownloadError(f"order {number}: {kind} in its worker: {error}")
        lines = "".join(traceback.format_exception(cause))
    told.add_note(f"in a worker on {socket.gethostname()}\n{lines}".rstrip())
    return told


def _fetch(task: WorkerTask) -> list[Place]:
    """Download the ready files, and return the paths of all files of the order."""
    settings, order = task.settings, task.order
    workspace = as_place(settings.workspace)
    if settings.is_shared and isinstance(workspace, Path) and not workspace.is_dir():
        raise WorkspaceError(
            f"the worker on {socket.gethostname()} has no folder {workspace}: give a workspace on "
            "storage that the notebook and all workers share"
        )
    with settings.open_journal() as journal:
        if task.fetch:
            with settings.client() as client, _stopped_with(journal, task.call) as stop:
                fetch_order(
                    client,
                    journal,
                    order,
                    task.request,
                    RunningDownload(stop=stop),
                    tenant=settings.tenant,
                    workspace=workspace,
                )
        records = journal.file_log(order.tenant or settings.tenant, workspace)
        found = dict.fromkeys(record.path for record in records.files(order.order_id))
        return [path_of(path) for path in found if path is not None]


@contextmanager
def _stopped_with(journal: Journal, call: str) -> Iterator[threading.Event]:
    """Return an event that is set when the call was stopped, wherever its notebook is."""
    stop, end = threading.Event(), threading.Event()

    def watch() -> None:
        while not end.wait(_STOP_POLL_S):
            # A database that does not answer: the download itself gets the error.
            with suppress(JournalError):
                if journal.cursors.read(call) is not None:
                    stop.set()
                    return

    thread = begin("stop", watch)
    try:
        yield stop
    finally:
        end.set()
        thread.join()
