"""Download an order, if no other process has its lease, in a thread or in a worker.

Threads use the client and the journal of the tracker. A worker of another process makes both
itself: a `WorkerTask` is all that it gets. It also processes the files.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import logging
import pickle
import queue
import socket
import threading
import traceback
import uuid
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from regards_nb.arguments import check_function
from regards_nb.client import watched
from regards_nb.download import (
    Downloader,
    DownloadOptions,
    all_files,
    archive_of,
    as_place,
    order_folder,
    paths_of,
)
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    JournalError,
    NotAllowedError,
    ProcessingError,
    RegardsError,
    ServiceError,
    SettingsError,
    WorkspaceError,
)
from regards_nb.journal import order_lease
from regards_nb.orders import GONE, replaced
from regards_nb.output import say
from regards_nb.text import raised_at, user_frames
from regards_nb.threads import begin
from regards_nb.tracker.shared import LOOK_S, RunningDownload, held
from regards_nb.waits import ended_by, fulfil, unspoken, users_code, words_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.client import RegardsClient
    from regards_nb.download import Check, Place
    from regards_nb.journal import Holder, Journal
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.settings import SettingsSource, WorkerSettings
    from regards_nb.tracker.shared import Shared

    #: The user's function: called with the paths of the files of one order.
    Process = Callable[[list[Any]], Any]
    #: Runs a job in a thread.
    Submit = Callable[[Callable[[], Any]], Future[Any]]

_log = logging.getLogger(__name__)

#: How often a worker asks the journal whether the call was stopped.
_STOP_POLL_S = 1.0


class DownloadDetails(TypedDict, total=False):
    """The keywords of `OrderTracker.download` that do not change its result."""

    directory: str | Path | None
    extract: bool
    again: bool
    checksum: bool
    executor: Executor | None


class DownloadRequest(NamedTuple):
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


def fetch_order(
    client: RegardsClient,
    journal: Journal,
    order: OrderState,
    request: DownloadRequest,
    running: RunningDownload,
    *,
    workspace: Place,
) -> None:
    """Download the ready files of an order that has a number, and record them in the journal.

    One process at a time does it, of all that share the journal. The others wait, and then fetch
    the files that their own workspace lacks. With ``request.if_free``, HeldElsewhereError is raised
    instead.

    *workspace* is as in `Downloads`. The stop of *running* ends the download, and verified files
    stay.
    """
    assert order.order_id is not None  # noqa: S101 - its callers refuse it
    # the newest event that the download answers
    up_to_row = max(order.ready_row, order.errors_row)
    if (before := running.before) is not None:
        while wait_for([before.future], LOOK_S).not_done:
            # The connection may be dead, while REGARDS answers a new request at once.
            is_stopped = before.stop.is_set()
            if not (is_stopped or before.callers) and before.last_byte.hangs:
                before.end()
        running.before = None

    def wait(holder: Holder) -> None:
        running.holder = holder
        running.changed()
        if running.stop.wait(LOOK_S):
            raise DownloadError(
                f"the download of {order.name} was stopped while {holder} was downloading it"
            )

    lease = order_lease(client.tenant, order.order_id)
    with (
        unspoken(),
        ended_by(running.stop),
        watched(running.last_byte),
        words_first(ServiceError, order.name),
        held(journal, lease, None if request.if_free else wait),
    ):
        running.holder = None
        was_fetched = up_to_row <= journal.fetched_row(order.tenant, order.order_id)
        if order.to_download and was_fetched and request.only_new_files:
            return  # by another process, meanwhile
        archive = archive_of(client.base_url, client.tenant)
        log = journal.file_log(client.tenant, workspace)
        originals = partial(order_folder, workspace, order.order_id, archive)
        folder = request.directory or originals()
        options = DownloadOptions(
            on_progress=running.report,
            stop=running.stop,
            last_byte=running.last_byte,
            extract=request.extract,
            check=request.check,
            again=request.again,
            gather=request.directory is not None,
            originals=originals,
        )
        downloader = Downloader(client, order.order_id, folder, log, options)
        # The manifest names no file that REGARDS could not prepare, or that was downloaded before,
        # with this or another journal. The download asks for each of them by its id.
        lacks_files = order.errors_row and order.ready_row
        if lacks_files or (request.again and order.finished):
            downloader.records.expect(all_files(client, order.order_id))
        try:
            new = downloader.fetch()
        except IncompleteDownloadError:
            # The server has sent the files and prepares the next ones. The journal names
            # the missing files, and the next download asks only for those.
            journal.save_fetched(order.tenant, order.order_id, up_to_row)
            running.fetched(is_new=False)
            raise
        except NotAllowedError:
            running.fetched(is_new=False)  # perhaps it belongs to another user
            raise
        journal.save_fetched(order.tenant, order.order_id, up_to_row)
        running.fetched(downloader.notes, is_new=bool(new))


# -- a call of ``download`` on an executor


def submitted(executor: Executor, *job: Any) -> Future[Any]:
    """Give a job to an executor; SettingsError: it was shut down and takes none."""
    try:
        return executor.submit(*job)
    except BrokenExecutor:
        raise
    except RuntimeError as exc:  # of concurrent.futures and of Dask
        raise SettingsError(
            "the executor was shut down: call download() with a new one, inside of its with block"
        ) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Where a call of ``download`` downloads, and what it does with the files of each order."""

    executor: Executor | None = None
    process: Process | None = None
    #: Where the settings of the tracker come from; None: all were given in code.
    source: SettingsSource | None = None
    #: As the user gave it.
    directory: str | Path | None = None
    #: What the thread of the call does while it waits; other threads add to it.
    jobs: queue.SimpleQueue[Callable[[], object]] = field(default_factory=queue.SimpleQueue)
    #: What calls *process* in threads of the executor.
    processing: list[Future[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot run a job, or cannot be called with the paths of an order."""
        if self.process is not None:
            check_function("process", self.process, "the list of paths")
        if self.executor is not None and not isinstance(self.executor, Executor):
            raise SettingsError(
                f"executor must be a concurrent.futures.Executor, not {self.executor!r:.100}; a "
                "Dask client has one: client.get_executor()"
            )

    @property
    def has_workers(self) -> bool:
        """Whether the jobs run in other processes, and not in threads of this one."""
        # Since Python 3.14; each of its threads has its own modules, as a process has.
        interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", ())
        return self.executor is not None and (
            isinstance(self.executor, interpreters)
            or not isinstance(self.executor, concurrent.futures.ThreadPoolExecutor)
        )

    def stop_processing(self, exc: BaseException) -> None:
        """Cancel the calls of *process* that have not begun; say after Ctrl-C that others end.

        The error is seen only when the with block of the executor has ended.
        """
        for each in self.processing:
            each.cancel()
        is_stopped = isinstance(exc, KeyboardInterrupt)
        if is_stopped and self.process is not None and self.executor is not None:
            say("what runs in the workers ends first, and the executor waits for it")

    def do_jobs(self, tell: Callable[[], object]) -> None:
        """Do what other threads have left to the thread of the call; *tell* comes before each."""
        while not self.jobs.empty():
            job = self.jobs.get()
            tell()
            job()


def begin_processing(
    shared: Shared,
    options: CallOptions,
    process: Process,
    begin: Callable[[OrderState], Future[Any]],
    order: OrderState,
) -> Future[Any]:
    """Begin an order, and call *process* with its files then; the result is None without files.

    The executor does it; without one, the thread of the call.
    """
    executor = options.executor
    outer: Future[Any] = Future()
    fetched: Future[Any] = Future()
    if order.status in GONE:
        fetched.set_result(None)
    else:
        fetched = begin(order)

    def run() -> None:
        try:
            paths = shared.paths(order.order_id)
            with users_code():
                outer.set_result(process(paths) if paths else None)
        except BaseException as exc:
            # Ctrl-C and sys.exit() end the thread of the call; one of the executor goes on.
            if executor is None and not isinstance(exc, Exception):
                raise
            is_ours = isinstance(exc, JournalError)
            outer.set_exception(exc if is_ours else processing_error(order, exc))
        shared.signal.send()

    def submit(executor: Executor) -> None:
        options.processing.append(submitted(executor, run))

    def ended(_: Future[Any]) -> None:
        if fetched.cancelled():
            outer.cancel()
        elif (error := fetched.exception()) is not None:
            outer.set_exception(error)
        else:
            options.jobs.put(run if executor is None else partial(submit, executor))
        shared.signal.send()

    fetched.add_done_callback(ended)
    return outer


class WorkerCall:
    """A call whose orders are downloaded by workers of other processes.

    *submit* runs a job in a thread: orders whose worker ended together with its pool.
    """

    def __init__(
        self,
        shared: Shared,
        client: RegardsClient,
        options: CallOptions,
        executor: Executor,
        *,
        request: DownloadRequest,
        workspace: Place,
        submit: Submit,
    ) -> None:
        self._shared = shared
        self._jobs = options.jobs
        self._executor = executor
        self._request = request
        self._settings = _settings_for_workers(options, shared.journal, executor, client, workspace)
        self._submit = submit
        self._process = None if options.process is None else packed_function(options.process)
        self._id = uuid.uuid4().hex
        self._is_stopped = False
        self._inner: dict[OrderKey, Future[Any]] = {}

    def begin(self, order: OrderState) -> Future[Any]:
        """Begin an order; the result is that of ``process=``, None without files."""
        order_id = order.order_id or 0
        task = WorkerTask(
            call=self._id,
            settings=self._settings,
            order=replaced(order, download_link=None),
            request=self._request,
            fetch=order.status not in GONE,
            process=self._process,
        )
        outer: Future[Any] = Future()
        try:
            inner = submitted(self._executor, run_in_worker, task)
        except BrokenExecutor as exc:
            inner = Future()
            inner.set_exception(exc)
        self._follow(task, outer, inner, is_second=False)
        running = RunningDownload(ends_with_files=not self._request.again)
        self._shared.downloads.setdefault(order_id, running)
        outer.add_done_callback(lambda _: self._forget(order_id, running))
        return outer

    def _forget(self, order_id: int, running: RunningDownload) -> None:
        if self._shared.downloads.get(order_id) is running:
            del self._shared.downloads[order_id]
        self._shared.signal.send()

    def _follow(
        self, task: WorkerTask, outer: Future[Any], inner: Future[Any], *, is_second: bool
    ) -> None:
        self._inner[task.order.key] = inner
        inner.add_done_callback(partial(self._ended, task, outer, is_second=is_second))

    def _ended(
        self, task: WorkerTask, outer: Future[Any], inner: Future[Any], *, is_second: bool
    ) -> None:
        """Pass on what a worker answered; called in a thread of the executor.

        An order whose pool broke begins again in a new process. Alone there, an order that kills
        its worker again harms no other.
        """
        # Dask keeps a result as long as its future exists, and makes it again when its worker ends.
        self._inner.pop(task.order.key, None)
        error = None if inner.cancelled() else inner.exception()
        is_pool = isinstance(self._executor, concurrent.futures.ProcessPoolExecutor)
        is_broken = is_pool and isinstance(error, BrokenExecutor)
        if is_broken and not is_second and not self._is_stopped:
            _log.warning("%s begins again: %s", task.order.name, error)
            self._jobs.put(partial(self._begin_again, task, outer))
            self._shared.signal.send()
        else:
            fulfil(outer, partial(_result_of, task.order.name, inner))

    def _begin_again(self, task: WorkerTask, outer: Future[Any]) -> None:
        inner = self._submit(partial(_run_in_new_process, task))
        self._follow(task, outer, inner, is_second=True)

    def stop(self) -> None:
        """Cancel the orders that have not begun, and stop all workers of this call."""
        self._is_stopped = True
        for inner in list(self._inner.values()):
            inner.cancel()
        # The call raises KeyboardInterrupt, not the error of a journal that cannot be written.
        with suppress(JournalError):
            journal = self._shared.journal
            journal.cursors.advance(self._id, 0, generation=journal.generation)


def _run_in_new_process(task: WorkerTask) -> Any:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_in_worker, task).result()


def _result_of(name: str, inner: Future[Any]) -> Any:
    """Return what a worker has returned for an order, or raise why there is nothing."""
    if inner.cancelled():
        raise DownloadError(f"{name} was cancelled before it began")
    if (error := inner.exception()) is not None:
        text = str(error) or "no reason given"
        raise DownloadError(
            f"{name}: its worker ended ({type(error).__name__}: {text}), perhaps for lack of "
            "memory. Verified files stay: call download() again"
        ) from error
    answer = inner.result()
    if isinstance(answer, RegardsError):
        raise answer
    try:
        return answer and pickle.loads(answer)  # noqa: S301 - of our own worker
    except Exception as exc:  # a class of the user that is not here
        raise DownloadError(f"{name}: its result cannot be read here: {exc}") from exc


def _settings_for_workers(
    options: CallOptions,
    journal: Journal,
    executor: Executor,
    client: RegardsClient,
    workspace: Place,
) -> WorkerSettings:
    """Return what is sent to the workers of an executor.

    SettingsError: workers could not make the same client and journal, or not reach the same files.
    """
    from regards_nb.settings import WorkerSettings

    is_local = isinstance(executor, concurrent.futures.ProcessPoolExecutor)
    kind, source = type(executor).__name__, options.source
    if source is None or source.only_in_code:
        told = "all settings" if source is None else ", ".join(source.only_in_code)
        raise SettingsError(
            f"the workers of {kind} make the client and the journal themselves, and no password "
            f"is sent to them: {told} of this tracker were given in code. Write the addresses and "
            "names into a profile of the settings file, set the passwords in the environment of "
            "the workers (REGARDS_PASSWORD), and make the tracker with OrderTracker.from_profile("
            '"NAME"). Threads need none of it: executor=ThreadPoolExecutor()'
        )
    # No public name has the start method. Without this one a forked process is not noticed.
    context = getattr(executor, "_mp_context", None)
    if is_local and context is not None and context.get_start_method() == "fork":
        raise SettingsError(
            "a process that is forked while threads run can hang: make the executor with "
            'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))'
        )
    if not (journal.is_on_server or is_local):
        raise SettingsError(
            f"the workers of {kind} may be on other machines and cannot write to the journal "
            f"{journal.location}: keep it in PostgreSQL (journal=), or use a ProcessPoolExecutor, "
            "whose workers are on this machine"
        )
    relative = [
        str(place)
        for place in (source.workspace, options.directory)
        if place is not None
        and "://" not in str(place)
        and not Path(place).expanduser().is_absolute()
    ]
    if relative and not is_local:
        raise SettingsError(
            f"the workers of {kind} may be on other machines, where the folder {relative[0]!r} is "
            "another one: give a workspace that all of them share, with its whole path"
        )
    if not is_local and isinstance(workspace, Path):
        workspace.mkdir(parents=True, exist_ok=True)
    return WorkerSettings(
        profile=source.profile,
        url=client.base_url,
        tenant=client.tenant,
        journal=journal.location,
        workspace=str(workspace),
        is_shared=not is_local,
    )


# -- in a worker


class WorkerTask(NamedTuple):
    """One order for a worker, without its link. It holds no secret: no password or token.

    *call* is the id that the journal names when the call is stopped. Without *fetch* the files are
    in place, and are only processed. *process* is the user's function, from `packed_function`.
    """

    call: str
    settings: WorkerSettings
    order: OrderState
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
        except BaseException as exc:  # noqa: BLE001 - the caller raises it, also SystemExit
            return _told(task, processing_error(task.order, exc))
    except Exception as exc:  # noqa: BLE001 - the caller raises it
        return _told(task, exc)


def processing_error(order: OrderState, cause: BaseException) -> ProcessingError:
    """Return the error for a function of the user that failed."""
    error = ProcessingError(
        f"{order.name}: process= raised {type(cause).__name__}: {cause} {raised_at(cause)}. "
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
        kind = type(error).__name__
        told = DownloadError(f"{task.order.name}: {kind} in its worker: {error}")
        lines = "".join(traceback.format_exception(cause))
    told.add_note(f"in a worker on {socket.gethostname()}\n{lines}".rstrip())
    return told


def _fetch(task: WorkerTask) -> list[Path]:
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
                    workspace=workspace,
                )
        records = journal.file_log(settings.tenant, workspace)
        return paths_of(records.files(order.order_id or 0))


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
