"""Downloads: at most one at a time for an order, several orders side by side."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.download import Downloader, DownloadOptions, Progress
from regards_nb.errors import IncompleteDownloadError, SettingsError
from regards_nb.tracker.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from regards_nb.client import RegardsClient
    from regards_nb.download import DownloadResult
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderState

#: Orders fetched side by side. REGARDS limits the parallel downloads of a user (protocol.md 1.3).
SIDE_BY_SIDE = 3


@dataclass(frozen=True, slots=True)
class _Running:
    future: Future[DownloadResult]
    stop: threading.Event


class Together:
    """Downloads that were begun for one call."""

    def __init__(self) -> None:
        self.futures: list[tuple[int | None, Future[DownloadResult]]] = []

    def done(self) -> bool:
        """Tell whether all have ended."""
        return all(future.done() for _, future in self.futures)

    def errors(self) -> list[tuple[int | None, BaseException]]:
        """Return what failed, by order."""
        return [
            (order_id, error)
            for order_id, future in self.futures
            if (error := future.exception()) is not None
        ]


class Downloads:
    """Fetches what is ready of an order, and records that it did.

    Parameters
    ----------
    client : RegardsClient or None
        None makes every attempt a SettingsError that says what is missing.
    journal : Journal
    tenant : str or None
    workspace : str or pathlib.Path
        Files of order 12 go to ``<workspace>/12/``.
    changed : callable
        Called, from the worker, when there is progress.
    """

    def __init__(
        self,
        client: RegardsClient | None,
        journal: Journal,
        tenant: str | None,
        workspace: str | Path,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._journal = journal
        self._tenant = tenant
        self._workspace = Path(workspace)
        self._changed = changed
        self._workers = Workers("regards-nb-download", SIDE_BY_SIDE)
        self._running: dict[int, _Running] = {}
        self._progress: dict[int, Progress] = {}
        self._lock = threading.Lock()

    def folder(self, order_id: int) -> Path:
        """Return where the files of an order go by default."""
        return self._workspace / str(order_id)

    def progress(self, order_id: int) -> Progress | None:
        """Return how far a running download is."""
        return self._progress.get(order_id)

    def is_running(self, order_id: int) -> bool:
        """Whether this order is being fetched, or waits for its turn."""
        return order_id in self._running

    def begin(
        self, order: OrderState, *, directory: str | Path | None = None, extract: bool = True
    ) -> Future[DownloadResult]:
        """Fetch what is ready of *order*; while it is being fetched, return that download.

        Raises
        ------
        SettingsError
            The tracker has no client, or the order has no number.
        """
        client, order_id = self._client, order.order_id
        if client is None:
            raise SettingsError(
                "downloading needs the REST side: OrderTracker(..., client=RegardsClient(...))"
            )
        if order_id is None:
            raise SettingsError(
                f"order {order.correlation_id!r} has no number, so it has no files: {order.status}"
                + (f" ({order.message})" if order.message else "")
            )
        folder = self.folder(order_id) if directory is None else Path(directory)
        with self._lock:
            running = self._running.get(order_id)
            if running is not None:
                return running.future
            stop = threading.Event()
            future = self._workers.submit(
                lambda: self._fetch(client, order, order_id, folder, stop, extract=extract)
            )
            self._running[order_id] = _Running(future, stop)
        # Outside the lock: a download that has ended already ends here.
        future.add_done_callback(lambda _: self._ended(order_id))
        self._changed()
        return future

    @contextmanager
    def together(
        self, orders: Iterable[OrderState], *, directory: str | Path | None, extract: bool
    ) -> Iterator[Together]:
        """Fetch several orders; those that are not through at the end of the block are ended."""
        begun = Together()
        try:
            for order in orders:
                future = self.begin(order, directory=directory, extract=extract)
                begun.futures.append((order.order_id, future))
            yield begun
        finally:
            for order_id, future in begun.futures:
                if order_id is not None and not future.done():
                    self.cancel(order_id)

    def cancel(self, order_id: int) -> None:
        """Ask a running download to end; verified files stay."""
        running = self._running.get(order_id)
        if running is not None:
            running.stop.set()
            running.future.cancel()

    def stop(self, timeout_s: float) -> None:
        """End all downloads; verified files stay, and the next download goes on from there."""
        for order_id in list(self._running):
            self.cancel(order_id)
        self._workers.stop(timeout_s)

    def _fetch(
        self,
        client: RegardsClient,
        order: OrderState,
        order_id: int,
        folder: Path,
        stop: threading.Event,
        *,
        extract: bool,
    ) -> DownloadResult:
        def report(progress: Progress) -> None:
            self._progress[order_id] = progress
            self._changed()

        try:
            fetched = Downloader(
                client,
                order_id,
                folder,
                self._journal.file_log(order.tenant or self._tenant),
                DownloadOptions(on_progress=report, stop=stop, extract=extract),
            ).fetch()
        except IncompleteDownloadError:
            # The server has handed the part over, and goes on; what is missing is recorded file
            # by file, and only those are asked for next time.
            self._journal.save_fetched(order.tenant, order_id, order.ready_row)
            raise
        self._journal.save_fetched(order.tenant, order_id, order.ready_row)
        return fetched

    def _ended(self, order_id: int) -> None:
        with self._lock:
            self._running.pop(order_id, None)
            self._progress.pop(order_id, None)
        self._changed()
