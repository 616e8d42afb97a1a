"""Downloads of orders: who may start one, one at a time for each order, several side by side.

These begin them: `OrderTracker.download`, `Order.iter_parts`, the buttons of the display through
`OrderTracker.download_soon`, and `AutoDownload` of the dispatcher, which ``auto_download=True``,
``wait(download=True)`` and `submit_each` use. Of several processes, the one with the lease of the
order downloads it (`tracker/shared.py`); workers of an executor take it, too (`tracker/fetch.py`).
"""

from __future__ import annotations

import queue
import threading
import warnings
import weakref
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from regards_nb.client import Silence
from regards_nb.download import FileLook
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    ProcessingErrorGroup,
    RegardsError,
    ServiceError,
    SettingsError,
)
from regards_nb.files import FileState
from regards_nb.orders import GONE
from regards_nb.text import clean, counted, listed
from regards_nb.tracker.executors import ThreadCall, WorkerCall, is_of_threads, submitted
from regards_nb.tracker.fetch import DownloadRequest, OrderToFetch, fetch_order, list_others
from regards_nb.tracker.shared import CLIENT_MISSING, NEW_ORDER, POLL_S, OrderHeldError
from regards_nb.waits import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from regards_nb.download import DownloadResult, Place, Progress
    from regards_nb.files import FileRecord
    from regards_nb.frames import OrderFile
    from regards_nb.journal import Holder
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.settings import WorkerSettings
    from regards_nb.tracker.executors import Process, Submit
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import TrackerParts, WaitDisplay

_Job = tuple["Future[Any]", "Callable[[], Any]"]

#: Orders downloaded side by side. REGARDS limits a user's parallel downloads (protocol.md 1.3).
MOST_PARALLEL = 3
#: An error names so many missing files.
_MOST_NAMED = 5


class Workers:
    """Up to *count* daemon threads that take jobs from a queue.

    `concurrent.futures` keeps Python from exiting until its jobs are done; a download must not.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Several threads may submit; each must see the threads that the others started.
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._jobs, count).atexit = False

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Run *job* in one of the threads."""
        future: Future[Any] = Future()
        with self._lock:
            self._jobs.put((future, job))
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) < self._count:
                thread = threading.Thread(
                    target=_work, args=(self._jobs,), name=self._name, daemon=True
                )
                self._threads.append(thread)
                thread.start()
        return future

    def stop(self, timeout_s: float, job: Callable[[], str]) -> str:
        """Drop the jobs that wait, and `finish` the running ones."""
        with self._lock:
            self._drop_waiting()
        return self.finish(timeout_s, job)

    def finish(self, timeout_s: float, job: Callable[[], str]) -> str:
        """Return when all jobs have ended; drop those that still wait after *timeout_s*.

        *job* returns what runs now; after a second it is said that this is waited for.
        The result is empty, or says which job has not ended.
        """
        with self._lock:
            threads, self._threads = self._threads, []
            _end(self._jobs, len(threads))
        others = [thread for thread in threads if thread is not threading.current_thread()]
        if joined(
            others,
            timeout_s,
            lambda: f"stop() waits until {job()} has ended, at most {timeout_s:g} s",
        ):
            return ""
        running = job()
        with self._lock:
            self._drop_waiting()
            _end(self._jobs, len(threads))
        return f"{running} did not end within {timeout_s:g} s, and still runs"

    def _drop_waiting(self) -> None:
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[0].cancel()


def _end(jobs: queue.SimpleQueue[_Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    # The thread holds the queue and not the `Workers`, which can then be collected.
    while (item := jobs.get()) is not None:
        future, job = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as exc:  # noqa: BLE001 - the future hands it to its reader
                future.set_exception(exc)
        del item, future, job


@dataclass(frozen=True, slots=True)
class _Running:
    future: Future[DownloadResult]
    stop: threading.Event
    request: DownloadRequest


#: What `auto_download` and the buttons of the display want.
_NEW_FILES = DownloadRequest()


class Downloads:
    """Downloads the ready files of orders, and records in the journal which it has fetched.

    Without *sync* every attempt is a SettingsError. Files of order 12 go to ``<workspace>/12/``, or
    if that folder has order 12 of another archive or tenant, to ``<workspace>/12-<tenant>/``.
    """

    def __init__(
        self, parts: TrackerParts, sync: RestSync | None, tenant: str | None, workspace: Place
    ) -> None:
        self._core = parts
        self._sync = sync
        self._tenant = tenant
        self.workspace = workspace
        self._workers = Workers("regards-nb-download", MOST_PARALLEL)
        self._running: dict[int, _Running] = {}
        #: Which other process downloads an order that is waited for.
        self._held: dict[int, Holder] = {}
        # The user's thread and the dispatcher may begin the same order.
        self._lock = threading.Lock()

    def begin(
        self,
        order: OrderState,
        request: DownloadRequest = _NEW_FILES,
        submit: Submit | None = None,
        *,
        on_end: Callable[[Future[DownloadResult]], None] | None = None,
    ) -> Future[DownloadResult]:
        """Download the ready files of *order*; return the running download if it does the same.

        A download with another request begins when the running one has ended, and so does one after
        Ctrl-C. *submit* runs it in a thread that is not one of the tracker. *on_end* is called
        before the order counts as not downloading.
        """
        sync, order_id = self._sync, order.order_id
        if sync is None:
            raise SettingsError(f"downloading {CLIENT_MISSING}")
        if order_id is None:
            raise _no_number(order)
        with self._lock:
            running = self._running.get(order_id)
            if running and running.request == request and not running.stop.is_set():
                return running.future
            stop = threading.Event()
            job = partial(
                self._fetch,
                sync,
                OrderToFetch.of(order, order_id),
                request,
                stop,
                before=running,
            )
            self._core.downloads.setdefault(order_id)
            try:
                future = (submit or self._workers.submit)(job)
            except SettingsError:
                if running is None:
                    del self._core.downloads[order_id]
                raise
            self._running[order_id] = _Running(future, stop, request)
        # Outside the lock: the callback of a download that has ended runs at once, in this thread.
        if on_end is not None:
            future.add_done_callback(on_end)
        future.add_done_callback(lambda done: self._ended(order_id, done))
        self._core.signal.send()
        return future

    def begin_recording_errors(
        self, order: OrderState, request: DownloadRequest = _NEW_FILES, *, is_repeated: bool = False
    ) -> Future[DownloadResult]:
        """Download in the background; keep an error for the display and the next call.

        *is_repeated*: it tries again what was incomplete, which the user knows or will be told.
        """
        errors, what = self._core.errors, f"downloading order {order.order_id}"

        def ended(done: Future[DownloadResult]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if is_repeated and isinstance(error, IncompleteDownloadError):
                return
            # Of several downloads only the last counts.
            errors.withdraw(what)
            if error is not None and not isinstance(error, OrderHeldError):
                errors.record(what, error)

        return self.begin(order, request, on_end=ended)

    def run(
        self,
        view: WaitDisplay,
        orders: Sequence[OrderState],
        request: DownloadRequest = _NEW_FILES,
        *,
        executor: Executor | None = None,
        process: Process | None = None,
        for_workers: Callable[[Executor], WorkerSettings] | None = None,
    ) -> dict[int, Any]:
        """Download the ready files of some orders; return what *process* returns for each.

        An order that has ended without files is an error, raised after the others were fetched.
        Ctrl-C ends the downloads that still run.
        """
        call = self._call(request, executor, process, for_workers)
        begun: list[tuple[int, Future[Any]]] = []
        try:
            for order in orders:
                number = order.order_id
                is_gone = order.status in GONE
                if number and not (
                    is_gone and (process is None or self.nothing_for(order, request))
                ):
                    begun.append((number, call.begin(order, number)))
            seen = -1
            while not all(future.done() for _, future in begun):
                view.refresh(note=self._note(begun))
                call.step()
                seen = self._core.signal.wait(seen, POLL_S)
        finally:
            for order_id, future in begun:
                if not future.done():
                    call.cancel(order_id)
        if isinstance(call, WorkerCall):
            self._ask_for_workers(orders)
        errors = self._errors(orders, dict(begun), request)
        for order in orders:
            if text := _files_elsewhere(self._core.state(order.key)):
                warnings.warn(text, stacklevel=3)
        failed = {order_id for order_id, _ in errors}
        results = {number: future.result() for number, future in begun if number not in failed}
        if errors:
            raise _in_one(orders, errors) if process is None else _in_group(orders, errors, results)
        return {} if process is None else results

    def _call(
        self,
        request: DownloadRequest,
        executor: Executor | None,
        process: Process | None,
        for_workers: Callable[[Executor], WorkerSettings] | None,
    ) -> ThreadCall | WorkerCall:
        """Return how the orders of a call are begun and cancelled."""
        if executor is None or is_of_threads(executor):
            submit = None if executor is None else partial(submitted, executor)
            begin = partial(self.begin, request=request, submit=submit)
            return ThreadCall(self._core, begin, self._cancel, executor, process)
        assert for_workers is not None  # noqa: S101 - download() gives it with each executor
        settings = for_workers(executor)
        return WorkerCall(
            self._core,
            submit=self._workers.submit,
            settings=settings,
            request=request,
            executor=executor,
            process=process,
        )

    def _errors(
        self,
        orders: Sequence[OrderState],
        begun: Mapping[int, Future[Any]],
        request: DownloadRequest,
    ) -> list[tuple[int | None, BaseException]]:
        """Return what failed, each error with the number of its order."""
        errors: list[tuple[int | None, BaseException]] = []
        for order in orders:
            future = begun.get(order.order_id or 0)
            error = None if future is None else future.exception()
            # The error of a file of a deleted order advises what cannot help any more.
            if error is None or self._core.state(order.key).status in GONE:
                error = self.nothing_for(order, request) or error
            if error is not None:
                errors.append((order.order_id, error))
        return errors

    def _ask_for_workers(self, orders: Iterable[OrderState]) -> None:
        """Ask for the orders of which no file came: a worker cannot keep what REGARDS answers."""
        for order in orders:
            now = self._core.state(order.key)
            is_same = now.downloaded_files == order.downloaded_files
            if self._sync is not None and order.order_id and is_same:
                self._ask_again(self._sync, order.order_id)

    def _note(self, begun: Iterable[tuple[int, Future[Any]]]) -> str:
        """Return what a call waits for; it calls *process* for an order after its download."""
        running = [number for number, future in begun if not future.done()]
        processing = [str(number) for number in running if number not in self._core.downloads]
        words = [f"process= runs for order {listed(processing)}"] if processing else []
        if len(processing) < len(running):
            words.insert(0, "downloading")
        held = [
            f"{holder} is downloading order {order_id}, which is waited for"
            for order_id, holder in list(self._held.items())
        ]
        return "; ".join([*words, *held, *self._core.silent()])

    def nothing_for(
        self, order: OrderState, request: DownloadRequest = _NEW_FILES
    ) -> RegardsError | None:
        """Return why an order has no files to return, or lacks some that REGARDS has deleted."""
        if order.order_id is None:
            return _no_number(order)
        order = self._core.state(order.key)  # the download may have asked for it
        number, message = order.order_id or 0, f": {clean(order.message)}" if order.message else ""
        if order.status in GONE:
            missing = self._missing_forever(order, request)
            return missing or self._not_gathered(order, number, request)
        if not order.finished or order.elsewhere or self._core.paths(number):
            return None
        if order.download_link and not order.ready_row:
            return DownloadError(
                f"order {number} is {order.status}: REGARDS prepared no file for it. Its filters "
                f"(data_types, filename_regexp) may have matched none{message}"
            )
        if order.download_link:
            return None  # it had files, and nothing new to give is no error (protocol.md 0.3)
        return DownloadError(
            f"order {number} is {order.status} and has no file{message}. tracker.retry({number}) "
            "has REGARDS try again; if that fails, too, send the number to the administrator"
        )

    def _missing_forever(self, order: OrderState, request: DownloadRequest) -> RegardsError | None:
        """Return an error for the files of a deleted order that are not in place."""
        number = order.order_id or 0
        deleted = f"order {number} is {order.status}: REGARDS has deleted its files"
        new_order = "A new order brings them: submit()"
        if not any(record.in_place for record in self._core.frames.files_of(number)):
            return DownloadError(f"{deleted}, and none of them was downloaded here. {new_order}")
        if self._sync is not None:
            log = self._core.journal.file_log(order.tenant or self._tenant, self.workspace)
            with suppress(ServiceError):  # REGARDS may list them no more
                list_others(self._sync.client, number, log)
        records = self._core.frames.files_of(number)
        look = FileLook(checksum=request.check == "checksum")
        lost = {r.name: why for r in records if (why := _why_missing(r, look))}
        # REGARDS tells a number; no manifest has named these files.
        unlisted = max((order.files_total or 0) - len(records), 0)
        is_short = not (lost or unlisted) and self._lacks_suborders(order, number)
        if not (lost or unlisted or is_short):
            return None
        names = [f"{clean(name)} ({why})" for name, why in lost.items()][:_MOST_NAMED]
        more = len(lost) - len(names) + unlisted
        if more:
            names.append(f"{'more ' if names else ''}{counted(more, 'file')}")
        if is_short:
            names.append("the files of its sub-orders that were not downloaded")
        gone = {record.path for record in records if record.name in lost}
        paths = [path for path in self._core.paths(number) if str(path) not in gone]
        return IncompleteDownloadError(
            f"{deleted}. {counted(len(paths), 'file')} of it {'is' if len(paths) == 1 else 'are'} "
            f"in place; these cannot be fetched any more: {', '.join(names)}. {new_order}",
            paths=paths,
            missing=lost,
        )

    def _not_gathered(
        self, order: OrderState, number: int, request: DownloadRequest
    ) -> DownloadError | None:
        """Return an error for a folder of the user that got no files: REGARDS lists none."""
        paths = self._core.paths(number)
        if request.directory is None or all(request.directory in path.parents for path in paths):
            return None
        return DownloadError(
            f"order {number} is {order.status}, and REGARDS lists its files no more: nothing was "
            f"written to {request.directory}. Copy them from {paths[0].parent}"
        )

    def _lacks_suborders(self, order: OrderState, number: int) -> bool:
        """Return whether a sub-order was not prepared, or not downloaded after that."""
        fetched_row = self._core.journal.fetched_row(order.tenant, number)
        return order.ready_row > fetched_row or order.suborders_done < (order.suborders_total or 0)

    def record_missing(self, order: OrderState) -> None:
        """Record as an error which files of an order another process could not download."""
        records = self._core.frames.files_of(order.order_id or 0)
        missing = {r.name: r.error or "unknown" for r in records if r.state is FileState.FAILED}
        if not missing:
            return
        named = listed([f"{clean(name)}: {clean(why)}" for name, why in missing.items()])
        text = (
            f"{order.name}: another process could not download {counted(len(missing), 'file')}. "
            f"{named}. tracker.download({order.order_id}) tries again"
        )
        error = IncompleteDownloadError(text, paths=[], missing=missing)
        self._core.errors.record(f"downloading {order.name}", error)

    def open_orders(self) -> list[OrderState]:
        """Return the orders whose files wait or are on their way, such as one just stopped."""
        states = self._core.states()
        return [*states.where("to_download"), *states.where("downloading")]

    def stopped(self, keys: Iterable[OrderKey]) -> str:
        """Return how far the downloads of some orders had come when the user stopped the call."""
        files = [
            f"{state.downloaded_files} of {counted(state.files_total, 'file')} of {state.name}"
            if state.files_total
            else f"no file of {state.name}"
            for state in self._core.states(keys)
        ]
        more = f" and files of {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
        return (
            f"stopped; {', '.join(files[:_MOST_NAMED])}{more} saved and verified so far. The same "
            "call goes on from there"
        )

    def problems(
        self, orders: Sequence[OrderState] | None, *, checksum: bool
    ) -> list[tuple[OrderFile, str, int | None]]:
        """Return the files, of some orders or of all, that have changed since their download."""
        numbers = None if orders is None else {o.order_id for o in orders if o.order_id is not None}
        look, frames = FileLook(checksum=checksum), self._core.frames
        files = [file for file in frames.order_files(numbers) if file.record.in_place]
        found = [(file, look.problem(file.record)) for file in files]
        frames.note_looked_at((f.record, p and p.problem) for f, p in found)
        return [(file, *problem) for file, problem in found if problem]

    def _cancel(self, order_id: int) -> None:
        """Ask a running download to end; verified files stay."""
        running = self._running.get(order_id)
        if running is not None:
            running.stop.set()
            running.future.cancel()

    def stop(self, timeout_s: float) -> str:
        """End all downloads. Verified files stay, and the next download fetches only the rest.

        See `Workers.finish`.
        """
        for order_id in list(self._running):
            self._cancel(order_id)
        running = self._running
        return self._workers.stop(
            timeout_s, lambda: f"the download of order {', '.join(map(str, list(running)))}"
        )

    def _fetch(
        self,
        sync: RestSync,
        order: OrderToFetch,
        request: DownloadRequest,
        stop: threading.Event,
        *,
        before: _Running | None,
    ) -> DownloadResult:
        """Download an order in a worker, after the download of it that ran *before*."""
        if before is not None:
            wait([before.future])

        def report(progress: Progress) -> None:
            self._core.downloads[order.order_id] = progress
            self._held.pop(order.order_id, None)
            self._core.signal.send()

        def waiting(holder: Holder) -> None:
            self._held[order.order_id] = holder
            self._core.signal.send()

        silence = self._core.silences[order.order_id] = Silence()
        try:
            result = fetch_order(
                sync.client,
                self._core.journal,
                order,
                tenant=self._tenant,
                workspace=self.workspace,
                request=request,
                stop=stop,
                report=report,
                waiting=waiting,
                silence=silence,
            )
        except IncompleteDownloadError:
            self._ask_again(sync, order.order_id)
            raise
        finally:
            self._held.pop(order.order_id, None)
            self._core.silences.pop(order.order_id, None)
        for text in result.kept:
            self._core.errors.note(text)
        if result.nothing_new:
            self._ask_again(sync, order.order_id)
        return result

    def _ask_again(self, sync: RestSync, order_id: int) -> None:
        """Ask for an order without new files: other journals may have them, or it has expired."""
        # Without an answer, what is known stays known.
        with suppress(ServiceError):
            sync.look_up(order_id)

    def _ended(self, order_id: int, future: Future[DownloadResult]) -> None:
        with self._lock:
            running = self._running.get(order_id)
            if running is not None and running.future is future:
                del self._running[order_id]
                self._core.downloads.pop(order_id, None)
        if not future.cancelled() and future.exception() is None:
            self._core.errors.withdraw(f"downloading order {order_id}")  # of an earlier download
        self._core.signal.send()


def _no_number(order: OrderState) -> SettingsError:
    return SettingsError(
        f"{order.name} has no number, so it has no files: {order.status}{order.reason}. {NEW_ORDER}"
    )


def _files_elsewhere(order: OrderState) -> str:
    """Return a text on files that were downloaded with another journal; empty without any."""
    if not order.elsewhere:
        return ""
    until = f", until {order.expires_at:%Y-%m-%d %H:%M} UTC" if order.expires_at else ""
    return (
        f"{order.name}: {order.elsewhere}, not with this journal. REGARDS still has them{until}: "
        f"tracker.download({order.order_id}, again=True)"
    )


def _why_missing(record: FileRecord, look: FileLook) -> str:
    """Return why a file of a deleted order is missing or damaged; empty if it is neither."""
    if not record.in_place:
        return clean(record.error) if record.error else "not downloaded"
    found = look.problem(record)
    return "" if found is None else found.problem


def _in_one(
    orders: Sequence[OrderState], errors: list[tuple[int | None, BaseException]]
) -> BaseException:
    """Return one error for all: that of the only order, or one that names all that failed."""
    if len(orders) == 1:
        return errors[0][1]
    texts = "; ".join(str(error) for _, error in errors)
    text = f"{len(orders) - len(errors)} of {counted(len(orders), 'order')} downloaded. {texts}"
    incomplete = [e for _, e in errors if isinstance(e, IncompleteDownloadError)]
    error = (
        IncompleteDownloadError(
            text,
            paths=[path for each in incomplete for path in each.paths],
            missing={name: why for each in incomplete for name, why in each.missing.items()},
        )
        if incomplete
        else DownloadError(text)
    )
    error.__cause__ = errors[0][1]
    return error


def _in_group(
    orders: Sequence[OrderState],
    errors: list[tuple[int | None, BaseException]],
    results: Mapping[int, Any],
) -> BaseException:
    """Return one error for all, which holds the results of the other orders."""
    if len(orders) == 1:
        return errors[0][1]
    texts = "; ".join(str(error) for _, error in errors)
    return ProcessingErrorGroup(
        f"{counted(f'{len(orders) - len(errors)} of {len(orders)}', 'order')} processed. {texts}",
        [error if isinstance(error, RegardsError) else _as_ours(error) for _, error in errors],
        results,
    )


def _as_ours(error: BaseException) -> RegardsError:
    ours = DownloadError(f"{type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours
