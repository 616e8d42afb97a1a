"""`OrderTracker`: a queue of REGARDS order events as DataFrames, displays and files."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from regards_nb.errors import SettingsError
from regards_nb.frames import Frames
from regards_nb.journal import Journal
from regards_nb.tracker.bell import Bell
from regards_nb.tracker.catchup import POLL_S, SILENCE_S
from regards_nb.tracker.downloads import Downloads
from regards_nb.tracker.fetching import fetch, parts
from regards_nb.tracker.loops import run_nested
from regards_nb.tracker.order import Order
from regards_nb.tracker.ordering import Ordering
from regards_nb.tracker.problems import Problems
from regards_nb.tracker.selection import keys_in
from regards_nb.tracker.sources import Sources, check_sources
from regards_nb.tracker.steered import Steered
from regards_nb.tracker.waiting import Wait, stopped_by_user
from regards_nb.tracker.watch import Watch, checked_callback
from regards_nb.tracker.works import Works

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    import pandas as pd

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters, Health
    from regards_nb.events import OrderEvent
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a display shows, at one moment."""

    orders: tuple[OrderState, ...]
    health: Health
    background_errors: tuple[str, ...]
    rejected: int
    #: When the REST login ends; it is renewed before.
    token_ends_at: datetime | None = None


class OrderTracker(Ordering, Steered):
    """Follows the orders of a REGARDS archive.

    Parameters
    ----------
    amqp : str or pika.ConnectionParameters, optional
        ``"amqps://user:password@broker:5671/regards.multitenant.manager"``. Without it, the
        orders are followed by asking over REST now and then, which needs a client.
    queue : str, optional
        The queue that the REGARDS administrator made for you (seed page, "Exchange"). It is read,
        never declared.
    tenant : str, optional
        Keep this tenant's events (header ``regards.tenant``), and those that name none.
        By default all are kept.
    client : RegardsClient, optional
        The REST side, for downloading, submitting, steering and catching up.
    journal : str or pathlib.Path, optional
        Where the history is kept: a path or an SQLAlchemy URL. By default
        ``.regards/journal.sqlite`` beside the notebook.
    workspace : str or pathlib.Path, default "orders"
        Files go to ``<workspace>/<order id>/``.
    auto_download : bool, default False
        Fetch each part when it is announced. REGARDS stops after two parts that nobody fetches
        (protocol.md 0.2), so a large order needs this, or somebody who downloads.
    silence_s : float, default 900
        After so long without a message, unfinished orders are asked for over REST. The
        documentation calls an order failed of which no sub-order came for two hours, but nothing
        on the server sees to that (protocol.md 1.7): asking is better than waiting for it.
    poll_s : float, default 10
        Without a broker: how often REGARDS is asked while orders change. It becomes less often,
        up to once a minute, while they do not, and ends while none is unfinished.

    Raises
    ------
    SettingsError
        A parameter is wrong.
    JournalError
        The journal cannot be opened.

    Notes
    -----
    Nothing is connected before `start`. Every event that RabbitMQ delivers is journalled before
    it is acknowledged, so a restarted kernel shows the same frames.
    """

    def __init__(
        self,
        amqp: str | AmqpParameters | None = None,
        queue: str | None = None,
        *,
        tenant: str | None = None,
        client: RegardsClient | None = None,
        journal: str | Path | None = None,
        workspace: str | Path = "orders",
        auto_download: bool = False,
        silence_s: float = SILENCE_S,
        poll_s: float = POLL_S,
    ) -> None:
        check_sources(amqp, queue, client)
        self.queue = queue
        self.tenant = tenant
        self.client = client
        self.auto_download = auto_download
        kept = Journal(journal)
        bell = Bell()
        problems = Problems(bell.ring)
        self._works = Works(
            journal=kept,
            frames=Frames(kept, tenant),
            bell=bell,
            problems=problems,
            downloads=Downloads(client, kept, tenant, workspace, bell.ring),
        )
        self._sources = Sources(
            self._works, amqp, queue, client, tenant, silence_s=silence_s, poll_s=poll_s
        )
        self._asking = self._sources.asking
        self._steering = self._sources.steering
        self._submission = self._sources.submission
        self._watch: Watch | None = None
        self._callbacks: list[tuple[str, Callable[[OrderEvent], object]]] = []
        #: the service of a demo; None on a real archive
        self.simulator: Any = None
        self._belongings = contextlib.ExitStack()
        weakref.finalize(self, kept.close).atexit = False

    @classmethod
    def demo(cls, **options: Any) -> OrderTracker:
        """Start a simulated REGARDS, on a real RabbitMQ, and a tracker that follows it.

        Parameters
        ----------
        **options
            Of `OrderTracker` (``journal``, ``workspace``, ``auto_download``) or of
            `regards_nb.simulator.Simulator` (``seed``, ``suborder_pause_s``).

        Returns
        -------
        OrderTracker
            Started; ``tracker.simulator`` is the service, ``tracker.client`` its REST client.
            Both end with `stop`, or with Python.
        """
        from regards_nb.demo import demo_tracker

        return demo_tracker(**options)

    def __repr__(self) -> str:
        what = "by REST alone" if self.queue is None else f"of {self.queue!r}"
        return f"<OrderTracker {what} at {self._sources.where}: {self.health.state}>"

    def _ipython_display_(self) -> None:
        self.show()

    def _repr_html_(self) -> str:
        from regards_nb.display import html

        # Used by tools that show objects without IPython's display machinery.
        return html(self.snapshot())

    # -- life cycle --

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 30.0) -> Self:
        """Connect, and return once messages are being consumed.

        Raises
        ------
        BrokerError
            Wrong password, unknown virtual host, missing queue, no right to read, nobody there:
            the text says which, and what to do.
        ServiceError
            Without a broker: the login is refused, or nobody answers.
        JournalError
            The journal cannot be written.
        """
        self._sources.start(timeout_s)
        if self._watch is None:
            downloads = self._works.downloads if self.auto_download else None
            self._watch = Watch(
                self._works.frames, self._works.bell, downloads, self._works.problems
            )
            self._watch.callbacks.extend(self._callbacks)
        return self

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End all threads and connections. The frames stay readable.

        Raises
        ------
        TrackingError
            Something did not end within *timeout_s*.
        """
        from regards_nb.display import close_views

        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop(timeout_s)
        self._works.downloads.stop(timeout_s)
        try:
            self._sources.stop(timeout_s)
        finally:
            # Views show the last state from now on, and that it is the last.
            close_views(self)
            self._belongings.close()

    def ends_with(self, end: Callable[[], object]) -> None:
        """Call *end* when this tracker has stopped: for what was started for it alone."""
        self._belongings.callback(end)

    @property
    def health(self) -> Health:
        """State of the connection to RabbitMQ, or of the polling without one."""
        return self._sources.health

    @property
    def version(self) -> int:
        """Grows with each change; cheap to ask."""
        return self._works.bell.rings

    # -- the frames --

    @property
    def events(self) -> pd.DataFrame:
        """One row per event, in journal order."""
        return self._works.frames.events

    @property
    def orders(self) -> pd.DataFrame:
        """One row per order; index (tenant, correlation_id)."""
        return self._works.frames.orders

    @property
    def files(self) -> pd.DataFrame:
        """One row per file: order, name, path, size in bytes, md5, state, error."""
        return self._works.frames.files

    @property
    def rejected(self) -> pd.DataFrame:
        """One row per message that could not be understood: body, reason, received_at."""
        return self._works.frames.rejected

    def export(self, folder: str | Path, *, kind: str = "parquet") -> list[Path]:
        """Write events, orders, files and rejected messages to a folder.

        Parameters
        ----------
        folder : path
            Made if missing; an earlier export in it is replaced.
        kind : {"parquet", "csv"}
            Parquet keeps the dtypes, and needs pyarrow.

        Returns
        -------
        list of pathlib.Path
            The four files.
        """
        return self._works.frames.export(Path(folder), kind)

    def check_journal(self) -> list[str]:
        """Look for damage in the journal; return what is wrong, nothing when all is well."""
        return self._works.journal.check()

    def __getitem__(self, key: Selection | OrderKey) -> Order:
        found = keys_in(key, self._works.frames.key_of)
        if len(found) != 1:
            raise SettingsError(f"tracker[...] gives one order, and these are {len(found)}")
        return Order(self, found[0])

    def state(self, key: OrderKey) -> OrderState:
        """Return what is known of one order."""
        return self._works.state(key)

    def snapshot(self, keys: Iterable[OrderKey] | None = None) -> Snapshot:
        """Return what a display shows: of some orders, or of all."""
        return Snapshot(
            orders=tuple(self._works.states(keys)),
            health=self.health,
            background_errors=self._works.problems.shown,
            rejected=self._works.frames.rejections,
            token_ends_at=None if self.client is None else self.client.token_ends_at,
        )

    # -- waiting --

    def wait(
        self,
        *keys: Selection,
        until: str = "finished",
        timeout_s: float | None = None,
        run_loop: bool = False,
    ) -> pd.DataFrame:
        """Wait for orders, showing their progress.

        Parameters
        ----------
        *keys : str, int, Order, or rows of `orders`
            Correlation ids or order ids, also of orders without any event yet. By default all
            that are unfinished now.
        until : {"finished", "part"}
            "part" returns as soon as each order has a part to fetch, or has ended.
        timeout_s : float, optional
            Limit in seconds; by default none. The stop button or Ctrl-C ends the wait, too.
        run_loop : bool, default False
            Keep your own asyncio tasks running meanwhile, in a nested event loop.

        Returns
        -------
        pandas.DataFrame
            The rows of `orders` for these keys.

        Raises
        ------
        WaitTimeoutError
            The limit was reached. The orders go on, and are still tracked.
        TrackingError
            Something went wrong in the background since the last call.
        SettingsError
            ``run_loop=True`` is not possible here, or would lose work; says what to do instead.
        """
        from regards_nb.display import watching

        wait = Wait(self._works, keys, until=until, timeout_s=timeout_s)
        with stopped_by_user(), watching(self, wait.found) as view:
            if run_loop:
                run_nested(wait.sit_out_async(view))
            else:
                wait.sit_out(view)
        return wait.result()

    async def wait_async(
        self, *keys: Selection, until: str = "finished", timeout_s: float | None = None
    ) -> pd.DataFrame:
        """Wait like `wait`, leaving the kernel free for clicks and other tasks."""
        from regards_nb.display import watching

        wait = Wait(self._works, keys, until=until, timeout_s=timeout_s)
        with watching(self, wait.found, blocking=False) as view:
            await wait.sit_out_async(view)
        return wait.result()

    def on(self, status: str, callback: Callable[[OrderEvent], object]) -> None:
        """Call *callback* with each new event of a status, in a thread of its own.

        An error in it is logged and shown, raised by the next call, and stops nothing. A status
        that REGARDS has not named so far is a slip or a novelty: there is a warning.

        Raises
        ------
        SettingsError
            *callback* cannot be called.
        """
        kept = checked_callback(status, callback)
        self._callbacks.append(kept)
        if self._watch is not None:
            self._watch.callbacks.append(kept)

    # -- ordering and fetching --

    def download(
        self,
        *keys: Selection,
        directory: str | Path | None = None,
        extract: bool = True,
    ) -> list[Path]:
        """Fetch what is ready of some orders, verified, with a progress bar.

        Parameters
        ----------
        *keys : str, int, Order, or rows of `orders`
            By default all orders that have something to fetch.
        directory : path, optional
            By default ``<workspace>/<order id>``.
        extract : bool, default True
            False keeps the zips as they came.

        Returns
        -------
        list of pathlib.Path
            All files of these orders that are in place, the new ones and the earlier ones.
            A server that has nothing new to give is no error (protocol.md 0.3).

        Raises
        ------
        IncompleteDownloadError
            Some files could not be had; the others are in place.
        ServiceError, WorkspaceError, ArchiveError
            Nothing could be fetched, and why.
        """
        from regards_nb.display import watching

        self._need_client("downloading")
        if keys:
            states = self._works.states(keys_in(keys, self._works.frames.key_of))
        else:
            states = [state for state in self._works.states() if state.waits_for_download]
        found = [state.key for state in states]
        with stopped_by_user(), watching(self, found) as view:
            return fetch(self._works, view, states, directory=directory, extract=extract)

    def parts(self, key: OrderKey, timeout_s: float | None) -> Iterator[list[Path]]:
        """Yield the new files of each part of an order; see `Order.iter_parts`."""
        self._need_client("downloading")
        return parts(
            self._works, self, lambda: Wait(self._works, [key], until="part", timeout_s=timeout_s)
        )

    def download_soon(self, key: OrderKey) -> None:
        """Fetch what is ready of one order in the background; errors are shown and kept."""
        state = self.state(key)
        future = self._works.downloads.begin(state)
        what = f"downloading order {state.order_id}"
        problems = self._works.problems

        def ended(done: Any) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                problems.record(what, error)

        future.add_done_callback(ended)

    # -- displays --

    def show(self) -> None:
        """Show the live table of all orders; the cell ends at once."""
        from regards_nb.display import show

        show(self)

    def plot_timeline(self) -> Any:
        """Plot when each order was granted, had parts ready, and ended (needs matplotlib)."""
        from regards_nb.display import plot_timeline

        return plot_timeline(self)

    def plot_throughput(self) -> Any:
        """Plot how fast files came in (needs matplotlib)."""
        from regards_nb.display import plot_throughput

        return plot_throughput(self)

    def _need_client(self, doing: str) -> RegardsClient:
        if self.client is None:
            raise SettingsError(
                f"{doing} needs the REST side: OrderTracker(..., client=RegardsClient(...))"
            )
        return self.client
