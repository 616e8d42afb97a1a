"""Begins the downloads of a tracker: each order in one thread of this process at a time.

`OrderTracker.download`, `Order.iter_parts`, the buttons of the display (`download_soon`), and
`AutoDownload` of the dispatcher (``auto_download=True``, ``wait(download=True)``, `submit_each`)
ask for them. Of several processes, the one with the lease of the order downloads it: `Leases` of
the journal decides which, also for workers. `download_order` and `download_products` take none.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from regards_nb.download import (
    OrderRecords,
    all_files,
    archive_of,
    compare_files,
    order_folder,
    stopped_text,
)
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    ProcessingErrorGroup,
    RegardsError,
    ServiceError,
    SettingsError,
    WaitTimeoutError,
)
from regards_nb.files import FileState
from regards_nb.orders import GONE
from regards_nb.text import clean, counted, listed, numbered
from regards_nb.threads import JobThreads
from regards_nb.tracker.fetch import (
    CallOptions,
    DownloadRequest,
    WorkerCall,
    begin_processing,
    fetch_order,
    submitted,
)
from regards_nb.tracker.shared import (
    LOOK_S,
    NEW_ORDER,
    HeldElsewhereError,
    RunningDownload,
)
from regards_nb.waits import said_meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from regards_nb.download import FileProblem, Place
    from regards_nb.files import FileRecord
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.fetch import Submit
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import Shared, WaitDisplay

#: Orders downloaded side by side. REGARDS limits a user's parallel downloads (protocol.md 1.3).
MOST_PARALLEL = 3
#: Maximum number of missing files that an error names.
_MOST_NAMED = 5


#: What `auto_download` and the buttons of the display want.
_NEW_FILES = DownloadRequest()


class Downloads:
    """Downloads the ready files of orders, and records in the journal which it has fetched.

    Files of order 12 go to ``<workspace>/12/``, or if that folder has order 12 of another archive
    or tenant, to ``<workspace>/12-<tenant>/``.
    """

    #: How long after a download REGARDS has counted what it has sent: it counts every 10 s, and
    #: later if that fails.
    counted_s = 60.0

    def __init__(self, shared: Shared, sync: RestSync, workspace: Place) -> None:
        self._shared = shared
        self._sync = sync
        self._workspace = workspace
        self._workers = JobThreads("download", MOST_PARALLEL)
        #: Each `AutoDownload` that runs: of the tracker, and of calls with ``download=True``.
        self.automatic: weakref.WeakSet[Any] = weakref.WeakSet()
        # The user's thread and the dispatcher may begin the same order.
        self._lock = threading.Lock()

    def begin(
        self,
        order: OrderState,
        request: DownloadRequest = _NEW_FILES,
        submit: Submit | None = None,
        *,
        caller: object,
        on_end: Callable[[Future[None]], object] = lambda _: None,
    ) -> Future[None]:
        """Download the ready files of *order*; return the running download if it does the same.

        A download with another request begins when the running one has ended, and so does one after
        Ctrl-C. *submit* runs it in a thread that is not one of the tracker. The *caller* wants it
        until it calls `leave`. *on_end* is called before the order counts as not downloading,
        unless the download was stopped.
        """
        if (order_id := order.order_id) is None:
            raise _no_number(order)
        with self._lock:
            before = self._shared.downloads.get(order_id)
            if before is not None and before.request == request and not before.stop.is_set():
                before.callers.add(caller)
                return before.future
            running = RunningDownload(
                request=request,
                callers={caller},
                before=before if before is not None and before.request else None,
                changed=self._shared.signal.send,
                fetched=partial(self._fetched, order_id),
            )
            job = partial(
                fetch_order,
                self._sync.client,
                self._shared.journal,
                order,
                request,
                running,
                workspace=self._workspace,
            )
            future = running.future = (submit or self._workers.submit)(job)
            self._shared.downloads[order_id] = running
        # Outside the lock: the callback of a download that has ended runs at once, in this thread.
        future.add_done_callback(lambda done: running.stop.is_set() or on_end(done))
        future.add_done_callback(lambda _: self._ended(order_id, running))
        self._shared.signal.send()
        return future

    def begin_recording_errors(
        self,
        order: OrderState,
        request: DownloadRequest = _NEW_FILES,
        *,
        caller: object = None,
        is_repeated: bool = False,
    ) -> Future[None]:
        """Download in the background; keep an error for the display and the next call.

        That REGARDS refuses the order of another user is no error: the views say whose it is.
        *is_repeated*: it tries again what was incomplete, which the user knows or will be told.
        """
        errors, what = self._shared.errors, f"downloading order {order.order_id}"

        def ended(done: Future[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is None or (is_repeated and isinstance(error, IncompleteDownloadError)):
                return  # a success withdraws earlier errors, see `_ended`
            # Of several downloads only the last counts.
            errors.withdraw(what)
            is_refused = order.order_id in self._shared.frames.refused
            if not (is_refused or isinstance(error, HeldElsewhereError)):
                errors.record(what, error)

        return self.begin(order, request, caller=caller, on_end=ended)

    def leave(self, caller: object, *, is_stopped: bool = False) -> list[int]:
        """Note that a call wants no download any more, and return the orders that it alone wanted.

        If the user has stopped it (*is_stopped*), their downloads end; verified files stay.
        """
        with self._lock:
            left = {
                order_id: each
                for order_id, running in self._shared.downloads.items()
                for each in running.with_earlier()
                if caller in each.callers
            }
            for each in left.values():
                each.callers.discard(caller)
        alone = {order_id: each for order_id, each in left.items() if not each.callers}
        for each in alone.values() if is_stopped else ():
            each.end()
        return list(alone)

    def run(
        self,
        view: WaitDisplay,
        orders: Sequence[OrderState],
        request: DownloadRequest = _NEW_FILES,
        options: CallOptions | None = None,
        *,
        of_all: bool = False,
        timeout_s: float = math.inf,
        unfinished: Callable[[Iterable[OrderKey]], str] = lambda _: "",
    ) -> dict[int, Any]:
        """Download the ready files of some orders; return what ``process=`` returns for each.

        An order that has ended without files is an error, raised after the others were fetched. It
        ends with the text of *unfinished* on the orders without an error. *of_all*: the user has
        named none, and those that turn out to belong to another user are left out.
        Ctrl-C ends the downloads that still run, and so does a byte that does not come within
        *timeout_s*.
        """
        options = options or CallOptions()
        process = options.process
        begin, stop = self._ways(request, options)
        begun: list[tuple[int, Future[Any]]] = []
        tell = partial(self._tell, view, begun, options, time.monotonic(), timeout_s)
        try:
            for order in orders:
                number = order.order_id
                is_gone = order.status in GONE
                if number and not (
                    is_gone and (process is None or self.nothing_for(order, request))
                ):
                    begun.append((number, begin(order)))
            seen = -1
            while not all(future.done() for _, future in begun):
                tell()
                options.do_jobs(tell)
                seen = self._shared.signal.wait(seen, LOOK_S)
        except BaseException as exc:
            stop()
            options.stop_processing(exc)
            raise
        if options.has_workers:
            self._ask_for_workers(orders)
        refused = self._shared.frames.refused if of_all else ()
        orders = [order for order in orders if order.order_id not in refused]
        begun = [each for each in begun if each[0] not in refused]
        errors = self._errors(orders, dict(begun), request)
        failed = {order_id for order_id, _ in errors}
        for order in orders:
            text = _old_files(self._shared.state(order.key), request)
            if text and order.order_id not in failed:
                warnings.warn(text, stacklevel=4)
        results = {number: future.result() for number, future in begun if number not in failed}
        if errors:
            told = [error for _, error in errors]
            rest = unfinished(order.key for order in orders if order.order_id not in failed)
            raise _in_one(orders, told, None if process is None else results, rest=rest)
        return {} if process is None else results

    def _ways(
        self, request: DownloadRequest, options: CallOptions
    ) -> tuple[Callable[[OrderState], Future[Any]], Callable[[], object]]:
        """Return how a call begins the download of an order, and how it stops what it began."""
        executor = options.executor
        if executor is None or not options.has_workers:
            submit = None if executor is None else partial(submitted, executor)
            caller = object()
            begin = partial(self.begin, request=request, submit=submit, caller=caller)
            if options.process is not None:
                begin = partial(begin_processing, self._shared, options, options.process, begin)
            return begin, partial(self.leave, caller, is_stopped=True)
        call = WorkerCall(
            self._shared,
            self._sync.client,
            options,
            executor,
            request=request,
            workspace=self._workspace,
            submit=self._workers.submit,
        )
        return call.begin, call.stop

    def _errors(
        self,
        orders: Sequence[OrderState],
        begun: Mapping[int, Future[Any]],
        request: DownloadRequest,
    ) -> list[tuple[int | None, BaseException]]:
        """Return what failed, each error with the number of its order."""
        errors: list[tuple[int | None, BaseException]] = []
        with asking_for_deleted(orders):
            for order in orders:
                future = begun.get(order.order_id or 0)
                error = None if future is None else future.exception()
                # The error of a file of a deleted order advises what cannot help any more.
                if error is None or self._shared.state(order.key).status in GONE:
                    error = self.nothing_for(order, request) or error
                if error is not None:
                    errors.append((order.order_id, error))
        return errors

    def _ask_for_workers(self, orders: Iterable[OrderState]) -> None:
        """Ask for the orders of which no file came: a worker cannot keep what REGARDS answers."""
        for order in orders:
            now = self._shared.state(order.key)
            if order.order_id and now.downloaded_files == order.downloaded_files:
                self._ask_again(order.order_id)

    def _tell(
        self,
        view: WaitDisplay,
        begun: Iterable[tuple[int, Future[Any]]],
        options: CallOptions,
        began_s: float,
        timeout_s: float,
    ) -> None:
        """Show what a call waits for; its function runs for an order with files after a download.

        Of a worker only the journal tells what it does, and nothing when it has started.
        """
        running = [number for number, future in begun if not future.done()]
        for number in running:
            if (download := self._shared.downloads.get(number)) is None:
                continue
            waited_s = download.active.last_byte.age_s
            lacking, _ = download.active.last_byte.lacking(f"order {number}")
            why = f"{lacking} for {timeout_s:g} s"
            if (holder := download.active.holder) is not None:
                waited_s = time.monotonic() - began_s
                why = f"after {timeout_s:g} s, {holder} is downloading order {number}"
            if waited_s >= timeout_s:
                raise WaitTimeoutError(
                    f"{why}. Verified files stay, and the same call goes on from there"
                )
        # Without process=, a download has ended just before its future is done.
        processing = [
            number
            for number in running
            if options.process and self._has_ended(number) and self._shared.paths(number)
        ]
        runs = "workers start or run process=" if options.executor is not None else "process= runs"
        words = [f"{runs} for {numbered(processing)}"] if processing else []
        if len(processing) < len(running):
            words.insert(0, "workers start or download" if options.has_workers else "downloading")
        held = [
            f"{holder} is downloading order {order_id}, which is waited for"
            for order_id, each in list(self._shared.downloads.items())
            if (holder := each.active.holder)
        ]
        view.refresh(note="; ".join([*words, *held, *self._shared.obstacles()]))

    def _has_ended(self, number: int) -> bool:
        """Return whether no download of an order runs any more, as far as the journal tells."""
        download = self._shared.downloads.get(number)
        if download is None or not download.ends_with_files:
            return download is None
        key = self._shared.key_of(number)
        return key is not None and not self._shared.state(key).downloading

    def nothing_for(
        self, order: OrderState, request: DownloadRequest = _NEW_FILES
    ) -> RegardsError | None:
        """Return why an order has no files to return, or lacks some that REGARDS has deleted."""
        if order.order_id is None:
            return _no_number(order)
        order = self._shared.state(order.key)  # the download may have asked for it
        number, message = order.order_id or 0, f": {clean(order.message)}" if order.message else ""
        if order.status in GONE:
            missing = self._missing_forever(order, request)
            return missing or self._not_gathered(order, number, request)
        if not order.finished or order.elsewhere or self._shared.paths(number):
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
        if not any(record.in_place for record in self._shared.frames.files_of(number)):
            return DownloadError(f"{deleted}, and none of them is here. {new_order}")
        log = self._shared.journal.file_log(self._sync.tenant, self._workspace)
        archive = archive_of(self._sync.client.base_url, self._sync.client.tenant)
        folder = order_folder(self._workspace, number, archive)
        # This also records the files of the workspace of which copies elsewhere are gone.
        recorded = OrderRecords(log, number, folder, check="size", originals=lambda: folder)
        with suppress(ServiceError):  # REGARDS may no longer list them
            recorded.expect(all_files(self._sync.client, number))
        records = self._shared.frames.files_of(number)
        wrong = compare_files(records, checksum=request.check == "checksum", what=order.name)
        lost = {r.name: why for r in records if (why := _why_missing(r, wrong.get(r)))}
        # REGARDS tells a number; no manifest has named these files.
        unnamed = max((order.files_total or 0) - len(records), 0)
        # A sub-order was not prepared, or not downloaded after that.
        fetched_row = self._shared.journal.fetched_row(order.tenant, number)
        is_short = not (lost or unnamed) and (
            order.ready_row > fetched_row or order.suborders_done < (order.suborders_total or 0)
        )
        if not (lost or unnamed or is_short):
            return None
        names = [f"{clean(name)} ({why})" for name, why in lost.items()][:_MOST_NAMED]
        more = len(lost) - len(names) + unnamed
        if more:
            names.append(f"{'more ' if names else ''}{counted(more, 'file')}")
        if is_short:
            names.append("the files of its sub-orders that were not downloaded")
        gone = {record.path for record in records if record.name in lost}
        paths = [path for path in self._shared.paths(number) if str(path) not in gone]
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
        paths = self._shared.paths(number)
        if request.directory is None or all(request.directory in path.parents for path in paths):
            return None
        return DownloadError(
            f"order {number} is {order.status}, and REGARDS no longer lists its files: nothing was "
            f"written to {request.directory}. Copy them from {paths[0].parent}"
        )

    def record_missing(self, order: OrderState) -> None:
        """Record as an error which files of an order another process could not download."""
        records = self._shared.frames.files_of(order.order_id or 0)
        missing = {r.name: r.error or "unknown" for r in records if r.state is FileState.FAILED}
        if not missing:
            return
        named = listed([f"{clean(name)}: {clean(why)}" for name, why in missing.items()])
        text = (
            f"{order.name}: another process could not download {counted(len(missing), 'file')}. "
            f"{named}. tracker.download({order.order_id}) tries again"
        )
        error = IncompleteDownloadError(text, paths=[], missing=missing)
        self._shared.errors.record(f"downloading {order.name}", error)

    def ask(self, *, are_told: bool) -> ServiceError | None:
        """Ask REGARDS what is ready, unless messages tell that; return why it could not be asked.

        After a login that was refused, log in for the call of the user.
        """
        self._sync.log_in_again()
        try:
            if not are_told:
                self._sync.ask_unfinished()
        except ServiceError as exc:
            return exc
        return None

    def open_orders(self) -> list[OrderState]:
        """Return the orders whose files wait or are on their way, such as one just stopped."""
        states = self._shared.states()
        return [*states.where("to_download"), *states.where("downloading")]

    def stopped(
        self,
        keys: Iterable[OrderKey],
        request: DownloadRequest = _NEW_FILES,
        *,
        processes: bool = False,
    ) -> str:
        """Return how far the downloads of some orders had come when the user stopped the call."""
        process = ", and calls process= with the files of each order again" if processes else ""
        folder, files = request.directory, []
        for state in self._shared.states(keys):
            n_files, where = state.downloaded_files, ""
            if folder is not None:  # files that are elsewhere may not have been copied
                paths = self._shared.paths(state.order_id)
                n_files, where = sum(folder in path.parents for path in paths), f" in {folder}"
            n_of = f"{n_files} of {counted(state.files_total or 0, 'file')}"
            files.append(f"{n_of if state.files_total else 'no file'} of {state.name}{where}")
        return stopped_text(listed(files, most=_MOST_NAMED), again=request.again) + process

    def stop(self, timeout_s: float) -> str:
        """End all downloads. Verified files stay, and the next download fetches only the rest.

        See `JobThreads.finish`.
        """
        running = self._shared.downloads
        for download in list(running.values()):
            for each in download.with_earlier():
                each.end()
        return self._workers.stop(
            timeout_s, lambda: f"the download of order {', '.join(map(str, list(running)))}"
        )

    def _ask_again(self, order_id: int) -> None:
        """Ask for an order without new files: other journals may have them, or it has expired."""
        # Without an answer, what is known stays known.
        with suppress(ServiceError):
            self._sync.look_up(order_id)

    def _fetched(self, order_id: int, notes: Iterable[str] = (), *, is_new: bool) -> None:
        for text in notes:
            self._shared.errors.note(text)
        if not is_new:
            self._ask_again(order_id)

    def _ended(self, order_id: int, running: RunningDownload) -> None:
        with self._lock:
            if self._shared.downloads.get(order_id) is running:
                del self._shared.downloads[order_id]
        if not running.future.cancelled() and running.future.exception() is None:
            self._shared.errors.withdraw(f"downloading order {order_id}")  # of an earlier download
        if not self._shared.downloads:
            self._sync.ask_soon(self.counted_s)  # REGARDS may go on waiting for what is here
        self._shared.signal.send()


def asking_for_deleted(orders: Iterable[OrderState]) -> AbstractContextManager[None]:
    """Say that `Downloads.nothing_for` takes long in the block: it asks for each deleted order."""
    deleted = [order.order_id for order in orders if order.status in GONE]
    return said_meanwhile(f"asking REGARDS for the files of {numbered(deleted)}" if deleted else "")


def _no_number(order: OrderState) -> SettingsError:
    return SettingsError(
        f"{order.name} has no number, so it has no files: {order.status}{order.reason}. {NEW_ORDER}"
    )


def _old_files(order: OrderState, request: DownloadRequest) -> str:
    """Return a text on files that this call did not fetch although the user may think so."""
    if request.again and order.status in GONE:
        return (
            f"{order.name} is {order.status}, and REGARDS no longer has its files: nothing was "
            "fetched again, the files of earlier calls are returned"
        )
    if not order.elsewhere:
        return ""
    until = f", until {order.expires_at:%Y-%m-%d %H:%M} UTC" if order.expires_at else ""
    return (
        f"{order.name}: {order.elsewhere}, not with this journal. REGARDS still has them{until}: "
        f"tracker.download({order.order_id}, again=True)"
    )


def _why_missing(record: FileRecord, found: FileProblem | None) -> str:
    """Return why a file of a deleted order is missing or damaged; empty if it is neither."""
    if not record.in_place:
        return clean(record.error) if record.error else "not downloaded"
    return "" if found is None else found.problem


def _in_one(
    orders: Sequence[OrderState],
    errors: Sequence[BaseException],
    results: Mapping[int, Any] | None,
    *,
    rest: str,
) -> BaseException:
    """Return one error for all: that of the only order, or one that names all that failed.

    *results* are those of ``process=`` for the other orders; None without it. *rest* is what
    follows on these.
    """
    if len(orders) == 1:
        return errors[0]
    told = "; ".join(filter(None, [*map(str, errors), rest]))
    if results is not None:
        done = counted(f"{len(orders) - len(errors)} of {len(orders)}", "order")
        ours = [error if isinstance(error, RegardsError) else _as_ours(error) for error in errors]
        return ProcessingErrorGroup(f"{done} processed. {told}", ours, results)
    # Of the others, some may have had no file to download.
    failed = counted(f"{len(errors)} of {len(orders)}", "order")
    text = f"{failed} could not be downloaded. {told}"
    error = DownloadError(text)
    if incomplete := [each for each in errors if isinstance(each, IncompleteDownloadError)]:
        error = IncompleteDownloadError(
            text,
            paths=[path for each in incomplete for path in each.paths],
            missing={name: why for each in incomplete for name, why in each.missing.items()},
        )
    error.__cause__ = errors[0]
    return error


def _as_ours(error: BaseException) -> RegardsError:
    ours = DownloadError(f"{type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours
