"""Runs in a worker of another process: downloads one order, and processes its files."""

from __future__ import annotations

import importlib
import pickle
import socket
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regards_nb.client import Silence
from regards_nb.download import as_place, path_of
from regards_nb.errors import (
    JournalError,
    ProcessingError,
    RegardsError,
    SettingsError,
    WorkspaceError,
)
from regards_nb.text import raised_at, user_frames
from regards_nb.tracker.fetch import DownloadRequest, OrderToFetch, fetch_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.download import Place
    from regards_nb.journal import Journal
    from regards_nb.settings import WorkerSettings

#: How often a worker asks the journal whether the call was stopped.
_STOP_POLL_S = 1.0


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of a worker: a pickled result, or a pickled error.

    It is pickled in the worker, because a result or an error that cannot be read back would end a
    pool of processes, and the other orders with it.
    """

    result: bytes | None = None
    error: bytes | None = None

    def value(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise pickle.loads(self.error)  # noqa: S301 - of a worker that runs our own code
        return None if self.result is None else pickle.loads(self.result)  # noqa: S301


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


def run_in_worker(task: WorkerTask) -> Outcome:
    """Download one order and process its files; called in a worker."""
    try:
        paths = _fetch(task)
    except Exception as exc:  # noqa: BLE001 - the caller raises it
        return Outcome(error=_packed_error(exc))
    if task.process is None or not paths:
        return Outcome()
    try:
        process = pickle.loads(task.process)  # noqa: S301 - the user's own function
        return Outcome(result=pickle.dumps(process(paths)))
    except Exception as exc:  # noqa: BLE001 - the caller raises it
        return Outcome(error=_packed_error(processing_error(task.order.order_id, exc)))


def processing_error(order_id: int, cause: Exception) -> ProcessingError:
    """Return the error for a function of the user that failed."""
    error = ProcessingError(
        f"order {order_id}: process= raised {type(cause).__name__}: {cause} {raised_at(cause)}. "
        "Its files are in place"
    )
    error.__cause__ = cause
    return error


def _packed_error(error: Exception) -> bytes:
    cause = error.__cause__ or error
    if isinstance(error, RegardsError):
        lines = "".join(traceback.format_list(user_frames(cause)))
    else:
        lines = "".join(traceback.format_exception(cause))
    # pickle keeps notes, and neither causes nor tracebacks
    error.add_note(f"in a worker on {socket.gethostname()}\n{lines}".rstrip())
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)  # noqa: S301 - what was pickled here
    except Exception:  # noqa: BLE001 - errors of other libraries may not be read back
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.__notes__ = error.__notes__
        packed = pickle.dumps(plain)
    return packed


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
                    tenant=settings.tenant,
                    workspace=workspace,
                    request=task.request,
                    stop=stop,
                    # The journal tells the notebook which files are there.
                    report=_nothing,
                    waiting=_nothing,
                    silence=Silence(),
                )
        records = journal.file_log(order.tenant or settings.tenant, workspace)
        found = dict.fromkeys(record.path for record in records.files(order.order_id))
        return [path_of(path) for path in found if path is not None]


def _nothing(_: object) -> None:
    pass


@contextmanager
def _stopped_with(journal: Journal, call: str) -> Iterator[threading.Event]:
    """Return an event that is set when the call was stopped, wherever its notebook is."""
    stop, end = threading.Event(), threading.Event()

    def watch() -> None:
        while not end.wait(_STOP_POLL_S):
            # A database that does not answer says nothing; the download itself meets it.
            with suppress(JournalError):
                if journal.stops.is_stopped(call):
                    stop.set()
                    return

    # A daemon: a worker that is told to exit must not wait for it.
    thread = threading.Thread(target=watch, name="regards-nb-stop", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        end.set()
        thread.join()
