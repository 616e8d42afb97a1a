"""`OrderTracker`: the orders of a REGARDS archive as DataFrames, displays and files."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import warnings
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, Unpack, overload

from regards_nb.arguments import (
    check_counts,
    check_flags,
    check_local_paths,
    check_numbers,
    check_paths,
    check_texts,
)
from regards_nb.consumer import (
    Consumer,
    HealthState,
    create_queue,
    describe,
    parameters_from,
)
from regards_nb.download import as_place
from regards_nb.errors import JournalError, SettingsError, TrackingError
from regards_nb.frames import Frames, read_table, with_columns, with_orders
from regards_nb.journal import Journal, time_us
from regards_nb.orders import OrderKey
from regards_nb.output import say
from regards_nb.queries import selection
from regards_nb.tracker.actions import OrderActions, unchanged
from regards_nb.tracker.blocking import BlockingOrders
from regards_nb.tracker.dispatcher import (
    AutoDownload,
    DispatchCursor,
    EventDispatcher,
    checked_callback,
    source_of,
)
from regards_nb.tracker.downloads import Downloads
from regards_nb.tracker.fetch import CallOptions, DownloadDetails, DownloadRequest
from regards_nb.tracker.life import (
    JOURNAL_ONLY,
    RUNNING,
    JournalReader,
    Life,
    OtherConsumers,
    check_queue,
    check_sources,
    require_file,
    tenant_of,
)
from regards_nb.tracker.order import Order
from regards_nb.tracker.rest_sync import REST_ANSWERS, SILENCE_S, RestSync
from regards_nb.tracker.rounds import POLL_S, Poller, catching_up
from regards_nb.tracker.shared import (
    CLIENT_MISSING,
    RECEIVING,
    BackgroundErrors,
    ChangeSignal,
    OrderHolders,
    Shared,
    Snapshot,
    check_keys,
)
from regards_nb.tracker.submission import Details, Request, Submission, refuses_cart
from regards_nb.tracker.table_orders import TableOrders
from regards_nb.tracker.waiting import Wait, awaiting_stopped_by_user, run_nested
from regards_nb.waits import is_own_thread, limited, reads_only, stopped_by_user, users_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor
    from datetime import date, datetime

    import pandas as pd

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters, Health, QueueKind
    from regards_nb.doctor import Report
    from regards_nb.events import OrderEvent
    from regards_nb.journal import Pruned
    from regards_nb.orders import OrderState
    from regards_nb.settings import SettingsSource
    from regards_nb.threads import OwnThread
    from regards_nb.tracker.dispatcher import Callback
    from regards_nb.tracker.shared import WaitDisplay, Wanted

    #: A correlation id, a number, an order, rows of ``tracker.orders``, or several of these.
    Selection: TypeAlias = str | int | Order | pd.DataFrame | Iterable[str | int | Order]
    #: Rows of `RegardsClient.search`, URNs, provider ids, or queries.
    Products: TypeAlias = str | pd.DataFrame | pd.Series[Any] | Iterable[str]

_Result = TypeVar("_Result")


class OrderTracker:
    """Follows the orders of a REGARDS archive.

    Parameters
    ----------
    amqp : str, pika.ConnectionParameters, or list of them, optional
        ``"amqps://user:password@broker:5671/regards.multitenant.manager"``. A list holds the nodes
        of a cluster, which are tried in turn. Without it the tracker polls REGARDS over REST, which
        needs a client.
    queue : str, optional
        The queue that the REGARDS administrator made for you (seed page, "Exchange"). The tracker
        reads it and never declares it.
    tenant : str, optional
        Keep this tenant's events (header ``regards.tenant``), and those that name no tenant.
        By default that of the client: other tenants have orders with the same numbers. Without a
        client, all are kept.
    client : RegardsClient, optional
        The REST side: to download, to submit, to pause or cancel, and to ask for missed messages.
    journal : str or pathlib.Path, optional
        Where the history is kept: a path or an SQLAlchemy URL. By default
        ``.regards/journal.sqlite`` beside the notebook.
    workspace : str or pathlib.Path, default "orders"
        Files go to ``<workspace>/<order id>/``. ``"s3://bucket/prefix"`` is a workspace on an
        object store, with the account of the environment (``AWS_...``); needs the extra ``s3``.
    auto_download : bool, default False
        Download each sub-order when it is announced. REGARDS stops after two sub-orders that
        were not downloaded (protocol.md 0.2): a large order needs this, or a user who downloads.
    silence_s : float, default 900
        After so long without a message, unfinished orders are asked for over REST.
    poll_s : float, default 10
        Without a broker: the pause between two rounds of polling while orders change. It grows to
        one minute while they do not, and polling ends while no order is unfinished.

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

    The actions `pause`, `resume`, `retry`, `restart`, `cancel` and `delete` take a correlation id,
    a number, an `Order`, several of these, or rows of ``tracker.orders``, as in
    ``tracker.retry(tracker.orders.query("status == 'FAILED'"))``. They return when the server has
    done it, and raise NotAllowedError where the server refuses: not in this state, or not by you.
    The text has its code in words, and what to do. Downloaded files stay where they are. An
    `OrderKey`, which the buttons of the display pass, is only queued: an error is then shown, and
    raised by the next call.
    """

    def __init__(
        self,
        amqp: str | AmqpParameters | Sequence[str] | None = None,
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
        check_texts(queue=queue, tenant=tenant)
        check_paths(journal=journal, workspace=workspace)
        check_flags(auto_download=auto_download)
        check_numbers(silence_s=silence_s, poll_s=poll_s)
        if amqp is not JOURNAL_ONLY:
            check_sources(amqp, queue, client, auto_download=auto_download)
        place = self._workspace = as_place(workspace)
        self.queue = queue
        self.tenant = tenant = tenant_of(client, tenant)
        self.client = client
        self.auto_download = auto_download
        #: The service of a demo; None on a real archive.
        self.simulator: Any = None
        #: Where its settings come from; None: all were given in code.
        self._source: SettingsSource | None = None
        self._silence_s = silence_s
        with stopped_by_user("no tracker was made: call it again"):
            opened = Journal(journal)
            if amqp is JOURNAL_ONLY:
                check_queue(opened, queue)
        signal = ChangeSignal()
        errors = BackgroundErrors(signal.send)
        opened.on_notice(errors.note)
        shared = Shared(
            journal=opened,
            frames=Frames(
                opened,
                tenant,
                place,
                queues=None if queue is None else {queue, REST_ANSWERS},
                account=None if client is None else client.account,
            ),
            signal=signal,
            errors=errors,
            holders=OrderHolders(opened, tenant),
        )
        self._shared = shared
        self._sync = None if client is None else RestSync(shared, client)
        self._downloads = None if self._sync is None else Downloads(shared, self._sync, place)
        self._blocking = BlockingOrders(shared, self._sync)
        self._amqp_parameters: AmqpParameters | None = None
        self._consumer: Consumer | Poller | JournalReader
        others: OtherConsumers | None = None
        if amqp is JOURNAL_ONLY:
            self._consumer = JournalReader(shared, queue, client)
        elif amqp is not None and queue:
            parameters = self._amqp_parameters = parameters_from(
                amqp, ca_bundle=None if client is None else client.ca_bundle
            )
            died = partial(errors.record, RECEIVING)
            self._consumer = Consumer(parameters, queue, opened, signal.send, died)
            others = OtherConsumers(shared, queue, self._consumer)
        else:
            assert self._sync is not None  # noqa: S101 - check_sources() refuses the rest
            self._consumer = Poller(self._sync, signal.send, poll_s=poll_s)
        self._life = Life(self._consumer, shared, others)
        self._submission = Submission(shared, self._sync, self._amqp_parameters, tenant, self._life)
        self._actions = OrderActions(shared, self._sync, self._submission.restart)
        self._catch_up: OwnThread | None = None
        self._dispatcher: EventDispatcher | None = None
        self._callbacks: list[Callback] = []
        self._at_end = contextlib.ExitStack()
        weakref.finalize(self, opened.close).atexit = False

    @classmethod
    def reader(
        cls,
        journal: str | Path | None = None,
        *,
        queue: str | None = None,
        tenant: str | None = None,
        client: RegardsClient | None = None,
        workspace: str | Path = "orders",
    ) -> Self:
        """Make a tracker for a journal that another kernel writes. It needs no broker account.

        Frames, views, `wait` and callbacks show what the other kernel receives. The right to read
        the journal is enough: a read-only folder, a role with SELECT only, a hot standby.

        Parameters
        ----------
        journal : str or pathlib.Path, optional
            The same place that the other kernel was given.
        queue : str, optional
            Show the messages of this queue; needed where the journal has those of several.
        tenant, workspace
            As of `OrderTracker`; the workspace is that of the other kernel if you share it.
        client : RegardsClient, optional
            To download, submit, pause and so on with an account of your own. The result is
            written to the journal, which needs the right to write. REGARDS is not polled.

        Raises
        ------
        SettingsError
            The journal has messages of several queues, or none of *queue*.
        JournalError
            The journal cannot be opened, or there is no such file.
        """
        check_texts(queue=queue, tenant=tenant)
        check_paths(journal=journal, workspace=workspace)
        require_file(journal)
        return cls(
            JOURNAL_ONLY,
            queue,
            tenant=tenant,
            client=client,
            journal=journal,
            workspace=workspace,
        )

    @classmethod
    @stopped_by_user("demo() was stopped: call it again")
    def demo(cls, **options: Any) -> OrderTracker:
        """Start a simulated REGARDS, on a real RabbitMQ, and a tracker that follows it.

        ``tracker.simulator`` is the service, ``tracker.client`` its REST client. Both end with
        `stop`, or with Python.

        Parameters
        ----------
        **options
            Of `OrderTracker` (``journal``, ``workspace``, ``auto_download``) or of
            `regards_nb.simulator.Simulator` (``seed``, ``suborder_pause_s``).
        """
        from regards_nb.demo import demo_tracker

        return demo_tracker(**options)

    @classmethod
    def from_profile(cls, name: str | None = None, **options: Any) -> Self:
        """Make a tracker from a profile in the settings file.

        Parameters
        ----------
        name : str, optional
            The profile; by default that of ``REGARDS_PROFILE``, else the only one in the file.
        **options
            Of `OrderTracker`; they replace what the profile says.

        Raises
        ------
        SettingsError
            A setting is missing or wrong; the text names the file and the line.
        """
        check_texts(name=name)
        return cls._from_settings(name, options, of_profile=True)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Make a tracker from the environment variables ``REGARDS_...`` alone.

        *options* and errors are as with `from_profile`.
        """
        return cls._from_settings(None, options, of_profile=False)

    @classmethod
    def _from_settings(cls, name: str | None, options: dict[str, Any], *, of_profile: bool) -> Self:
        from regards_nb.settings import tracker_from_settings

        tracker, source = tracker_from_settings(cls, name, options, of_profile=of_profile)
        tracker._source = source  # noqa: SLF001
        return tracker

    def __repr__(self) -> str:
        source = "by REST alone" if self.queue is None else f"of {self.queue!r}"
        if isinstance(self._consumer, JournalReader):
            return f"<OrderTracker that reads {self._shared.journal.location}: {self.health.state}>"
        if self._amqp_parameters is not None:
            where = describe(self._amqp_parameters)
        else:
            where = "" if self.client is None else self.client.base_url
        return f"<OrderTracker {source} at {where}: {self.health.state}>"

    def _ipython_display_(self) -> None:
        self.show()

    def _display_(self) -> Any:
        # marimo's name for it
        from regards_nb.display import marimo_value

        return marimo_value(self)

    def _repr_html_(self) -> str:
        from regards_nb.display import html

        # Used by tools that show objects without IPython's display machinery.
        return html(self.snapshot())

    # -- life cycle --

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self.stop()
            return
        # The user wants the end: a server that does not answer would be waited for. A thread that
        # still runs then is a daemon.
        with contextlib.suppress(TrackingError):
            self.stop(timeout_s=1.0)

    @stopped_by_user("start() was stopped: call start() again", keeps_inner=True)
    def start(self, *, timeout_s: float = 30.0) -> Self:
        """Connect, and return once messages are being consumed.

        Raises
        ------
        BrokerError
            Wrong password, unknown virtual host, missing queue, no right to read, no answer:
            the text says which, and what to do.
        ServiceError
            REGARDS refuses the login; without a broker: it does not answer.
        JournalError
            The journal cannot be written.
        """
        self._life.require_no_end()
        check_numbers(timeout_s=timeout_s)
        with self._life.changing:
            was_running = self.health.state in RUNNING
            with stopped_by_user(partial(self._life.give_up_start, was_running=was_running)):
                self._start(timeout_s, was_running=was_running)
        return self

    def _start(self, timeout_s: float, *, was_running: bool) -> None:
        if self._dispatcher is None or self._dispatcher.death:
            # Before the consumer: what waited in the queue is new, too.
            stored, journal = not isinstance(self._consumer, JournalReader), self._shared.journal
            cursor = DispatchCursor(journal, self.queue, self.tenant, is_stored=stored)
            auto = self._blocking.automatic = self._new_download() if self.auto_download else None
            self._dispatcher = EventDispatcher(
                self, self._shared, cursor, auto, self._callbacks, life=self._life
            )
        queues, client = "", None
        if not was_running and self._life.others is not None:
            queues, client = self._life.others.begin(), self.client
        self._life.connect(client, timeout_s)
        self._life.look()
        self._shared.errors.withdraw(RECEIVING)
        self._dispatcher.start()
        if not was_running:
            self._shared.journal.watch(self._shared.signal.send)
            for text in filter(None, (*self._warnings(), queues)):
                warnings.warn(text, stacklevel=4)  # that of the user
        asks = self._catch_up is not None and self._catch_up.death is None
        source = self._consumer
        if not asks and self._sync is not None and isinstance(source, Consumer):
            self._catch_up = catching_up(self, self._sync, source, silence_s=self._silence_s)

    @stopped_by_user("stop() was stopped: what still runs ends by itself", keeps_inner=True)
    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End all threads and connections. The frames stay readable.

        Your callbacks are called for all events journalled so far; after a second a line says
        which one is waited for. Those left out are called after the next `start`.

        Raises
        ------
        TrackingError
            A thread did not end within *timeout_s*; the text says which callback or download.
        """
        from regards_nb.display import close_views

        check_numbers(timeout_s=timeout_s)
        if isinstance(self._consumer, Consumer):
            self._consumer.cancel_start()
        # A callback that calls stop() while another thread does would wait for itself.
        if self._dispatcher is None and is_own_thread():
            return
        with self._life.changing, limited(time.monotonic() + timeout_s):
            catch_up, self._catch_up = self._catch_up, None
            dispatcher, self._dispatcher = self._dispatcher, None
            try:
                try:
                    self._consumer.stop(timeout_s)
                finally:
                    if catch_up is not None:
                        catch_up.end(timeout_s)
                    self._blocking.automatic = None
                    workers = (dispatcher, self._downloads, self._actions)
                    unended = [each.stop(timeout_s) for each in workers if each is not None]
                    self._shared.frames.checkpoints.finish(timeout_s)
            finally:
                self._shared.journal.watch(None)
                self._life.was_stopped = True
                # Views show the last state from now on, and say that it is the last.
                close_views(self)
                self._at_end.close()
        if any(unended):
            raise TrackingError("; ".join(filter(None, unended)))

    def ends_with(self, end: Callable[[], object], *, then: str = "") -> None:
        """Call *end* when this tracker has stopped, to stop what only this tracker uses.

        With *then* the tracker cannot be started again, and later calls raise that text.
        """
        self._at_end.callback(end)
        if then:
            self._at_end.callback(self._life.end_for_good, then, self.client)

    @property
    def health(self) -> Health:
        """State of the connection to RabbitMQ, or of the polling without one."""
        health = self._life.health
        refused = "" if self._sync is None else self._sync.login_refused
        is_said = health.reason and health.state not in RUNNING
        causes = health.reason, "" if is_said else self._shared.journal.obstacle(), refused
        texts = filter(None, (*causes, *self._troubles()))
        return replace(health, reason=" ".join(texts) or None)

    @property
    def version(self) -> int:
        """Number of changes so far; cheap to read."""
        return self._shared.signal.count

    @reads_only
    def doctor(self) -> Report:
        """Check what this tracker depends on: connections, rights, places.

        The report prints one line for each check: ok, or what is wrong and what to do.
        """
        from regards_nb.doctor import examine

        return examine(
            parameters=self._amqp_parameters,
            queue=self.queue,
            health=self.health,
            reader=self._consumer if isinstance(self._consumer, JournalReader) else None,
            client=self.client,
            journal=self._shared.journal,
            workspace=self._workspace,
            unheard="" if self._sync is None else self._sync.unheard(self.health),
            sharing=(lambda: 0) if self._life.others is None else self._life.others.sharing,
        )

    # -- the frames --

    @property
    @with_columns
    def events(self) -> pd.DataFrame:
        """One row per event, in journal order."""
        return self._shared.frames.events

    @property
    @with_columns
    def orders(self) -> pd.DataFrame:
        """One row per order; index (tenant, correlation_id)."""
        return self._shared.frames.orders

    @property
    @with_columns
    def files(self) -> pd.DataFrame:
        """One row per file that a manifest listed."""
        return self._shared.frames.files

    @property
    @with_columns
    def rejected(self) -> pd.DataFrame:
        """One row per message that could not be decoded."""
        return self._shared.frames.rejected

    @stopped_by_user("export() was stopped: each file in its place is complete; call it again")
    def export(self, folder: str | Path, *, kind: str = "parquet") -> list[Path]:
        """Write events, orders, files and rejected messages to a folder; return the four files.

        Parameters
        ----------
        folder : path
            Made if missing; an earlier export in it is replaced.
        kind : {"parquet", "csv"}
            Parquet keeps the dtypes, and needs pyarrow.

        Raises
        ------
        WorkspaceError
            The folder cannot be written.
        SettingsError
            *kind* is another one, or pyarrow is missing.
        """
        check_local_paths(folder=folder)
        return self._shared.frames.export(Path(folder), kind)

    def check_journal(self) -> list[str]:
        """Return the damages found in the journal; an empty list when there are none."""
        return self._shared.journal.check()

    @stopped_by_user("journal_prune() was stopped. The same call goes on from there")
    def journal_prune(self, *, before: str | date | datetime, dry_run: bool = False) -> Pruned:
        """Remove the events of orders that have ended long ago. Orders keep their last state.

        Parameters
        ----------
        before : str, datetime.date or datetime.datetime
            ``"2026-06-01"``. Orders that have ended, and of which no event arrived since (UTC where
            no time zone is given).
        dry_run : bool, default False
            Remove nothing; return what would be removed.

        Returns
        -------
        Pruned
            How many orders and events, and the size of the journal before and after, in bytes.

        Raises
        ------
        JournalError
            The journal cannot be written, or another process does the same.
        SettingsError
            *before* is no date.

        Notes
        -----
        `orders`, `files` and `rejected` stay as they are. Messages that RabbitMQ may deliver again
        stay: the newest ones of kernels that wrote in the last day of a queue.
        """
        check_flags(dry_run=dry_run)
        pruned = self._shared.journal.pruning.run(time_us(before), dry_run=dry_run)
        if pruned.events and not dry_run:
            self._shared.frames.read_again()
            self._shared.signal.send()
        return pruned

    @stopped_by_user("create_queue() was stopped; RabbitMQ may create the queue: call it again")
    def create_queue(self, name: str | None = None, *, kind: QueueKind = "quorum") -> str:
        """Create a durable queue, bind it to the exchange of the responses, and return its name.

        For users whose RabbitMQ account may configure queues; otherwise the administrator creates
        the queue. Messages from then on wait in it, also while no tracker runs. An existing queue
        of the same kind is left as it is.

        Parameters
        ----------
        name : str, optional
            Name of the queue; default: the queue of this tracker.
        kind : {"quorum", "stream", "classic"}
            ``"quorum"`` survives the loss of one node of a cluster, and its delivery limit is off.
            Several programs can read a ``"stream"``, each all messages.

        Raises
        ------
        SettingsError
            The tracker has no broker.
        BrokerAccessError
            The account may not create the queue.
        BrokerError
            The queue exists with other arguments, or the broker has no such exchange.
        """
        check_texts(name=name)
        queue = name or self.queue
        if self._amqp_parameters is None or queue is None:
            raise SettingsError("a queue needs a broker: OrderTracker(amqp=..., queue=...)")
        create_queue(self._amqp_parameters, queue, kind=kind)
        return queue

    @stopped_by_user("backup() was stopped: call it again")
    def backup(self, path: str | Path) -> Path:
        """Write a copy of the journal to one new file, also while messages arrive.

        A copy of the file by other means (``cp``, ``shutil.copy``) lacks the newest messages: they
        are in the -wal file beside it.

        Parameters
        ----------
        path : str or pathlib.Path
            A new file. It is a journal: ``OrderTracker(journal=path)`` opens it.

        Raises
        ------
        JournalError
            The file exists already or cannot be written, or the journal is on a server.
        """
        return self._shared.journal.backup(path)

    @stopped_by_user("the look at an order was stopped")
    def __getitem__(self, key: Selection | OrderKey) -> Order:
        found = self._keys_in(key)
        if len(found) != 1:
            raise SettingsError(f"tracker[...] gives one order, and these are {len(found)}")
        return Order(self, found[0])

    def _keys_in(self, selection: Any) -> list[OrderKey]:
        return self._shared.keys_in(selection, None if self._sync is None else self._sync.look_up)

    def state(self, key: OrderKey) -> OrderState:
        """Return the state of one order."""
        check_keys([key])
        return self._shared.state(key)

    def snapshot(self, keys: Wanted = None) -> Snapshot:
        """Return the state that a view draws, of some orders or of all; in an outage the last."""
        with self._shared.as_known(keys) as (wanted, states):
            return Snapshot(
                orders=self._blocking.without_automatic(states),
                blocking=self._blocking.standing_still(shown=states),
                line=self._blocking.first_in_line(),
                can_download=self._sync is not None,
                health=self._life.health,
                obstacle=self._shared.journal.obstacle(),
                acting=tuple(self._shared.acting.values()),
                background_errors=self._warnings() + self._shared.errors.shown,
                rejected=self._shared.frames.rejections,
                n_known=len(states) or len(self._shared.frames.states()),
                n_wanted=len(states) if wanted is None else len(wanted),
            )

    def _troubles(self) -> list[str]:
        """Return which callback runs for long, and which threads have ended by themselves."""
        slow = [] if self._dispatcher is None else [self._dispatcher.slow_callback]
        threads = (self._dispatcher, self._catch_up)
        return slow + [str(death) for each in threads if each is not None and (death := each.death)]

    def _warnings(self) -> tuple[str, ...]:
        """Return what a user should know although messages are consumed."""
        health = self._life.health
        others = "" if self._life.others is None else self._life.others.warning
        reason = health.reason if health.state is HealthState.CONSUMING else None
        return tuple(filter(None, (others, reason, *self._troubles())))

    def record_background_error(self, what: str, error: BaseException) -> None:
        """Show an error of a background thread, and raise it in the next call of the user.

        An outage of the journal ends by itself, and each call raises it while it lasts.
        """
        if isinstance(error, JournalError):
            self._shared.errors.note(f"{what}: {error}")
        else:
            self._shared.errors.record(what, error)

    # -- waiting --

    @stopped_by_user(keeps_inner=True)
    def wait(
        self,
        *keys: Selection,
        until: str = "finished",
        timeout_s: float | None = None,
        download: bool = False,
        run_loop: bool = False,
    ) -> pd.DataFrame:
        """Wait for orders, and show their progress.

        Parameters
        ----------
        *keys : str, int, Order, or rows of `orders`
            Correlation ids, labels or order ids, also of submitted orders without any event yet.
            By default all that are unfinished now.
        until : {"finished", "part"}
            "part" returns as soon as each order has a sub-order to download, or has ended.
        timeout_s : float, optional
            Time limit in seconds; by default none. The stop button or Ctrl-C ends the wait, too.
        download : bool, default False
            Download these orders as they become ready, and all other orders that block them:
            REGARDS prepares at most two sub-orders per user until they are downloaded.
        run_loop : bool, default False
            Keep your own asyncio tasks running meanwhile, in a nested event loop.

        Returns
        -------
        pandas.DataFrame
            The rows of `orders` for these keys.

        Raises
        ------
        WaitTimeoutError
            The time limit was reached. The orders are still tracked.
        TrackingError
            The wait is over, and something failed in the background since the last call; several
            errors are a `TrackingErrorGroup`.
        OrderNotFoundError
            No such order was submitted here, and neither a message nor REST names it.
        SettingsError
            The tracker is not started; a label belongs to several orders; or ``run_loop=True`` is
            not possible here, and the text says what to do instead.
        """
        check_flags(run_loop=run_loop)
        wait = self._new_wait(keys, until=until, timeout_s=timeout_s, download=download)
        if wait.is_needless():
            return wait.result()
        with stopped_by_user(wait.stopped), wait:
            wait.begin()
            with self._watching(wait.keys) as view:
                if run_loop:
                    run_nested(wait.run_async(view))
                else:
                    wait.run(view)
        return wait.result()

    async def wait_async(
        self,
        *keys: Selection,
        until: str = "finished",
        timeout_s: float | None = None,
        download: bool = False,
    ) -> pd.DataFrame:
        """Wait like `wait`, and leave the kernel free for clicks and other tasks."""
        wait = self._new_wait(keys, until=until, timeout_s=timeout_s, download=download)
        if wait.is_needless():
            return wait.result()
        with awaiting_stopped_by_user(wait.stopped), wait:
            await asyncio.to_thread(wait.begin)  # it may ask over REST
            with self._watching(wait.keys, blocking=False) as view:
                await wait.run_async(view)
        return wait.result()

    @contextlib.contextmanager
    def _watching(self, keys: Any, *, blocking: bool = True) -> Iterator[WaitDisplay]:
        """Show orders during a call; what its last view has shown is not shown again."""
        from regards_nb.display import watching

        try:
            with watching(self, keys, blocking=blocking) as view:
                yield view
        finally:
            self._shared.errors.mark_shown()

    def _new_wait(
        self,
        keys: Sequence[Any],
        *,
        until: str,
        timeout_s: float | None,
        download: bool = False,
    ) -> Wait:
        check_flags(download=download)
        return Wait(
            keys,
            self._shared,
            self._blocking,
            self._life,
            warnings=self._warnings,
            silence_s=self._silence_s,
            until=until,
            timeout_s=timeout_s,
            asked=self._new_download() if download else None,
        )

    def _new_download(self) -> AutoDownload:
        return AutoDownload(self._shared, self._downloading(), self._sync)

    def _downloading(self) -> Downloads:
        if self._downloads is None:
            raise SettingsError(f"downloading {CLIENT_MISSING}")
        return self._downloads

    def on(self, status: str | None, callback: Callable[[OrderEvent], object]) -> None:
        """Call *callback* with each new event of a status, in a thread of its own.

        None means every status; `off` ends it. An error in it, or SystemExit, is logged and shown,
        raised at the end of the next wait, and stops nothing. There is a warning for a status that
        REGARDS has not named so far: it is misspelt, or a newer server sends it.

        Raises
        ------
        SettingsError
            *callback* cannot be called, or is an async or generator function.
        """
        self._callbacks.append(checked_callback(status, callback))

    def off(self, callback: Callable[[OrderEvent], object]) -> None:
        """Stop calling *callback*, which was given to `on`, for any status."""
        if not any(each == callback for _, each in self._callbacks):
            raise SettingsError(f"there is no such callback: {callback!r} was not given to on()")
        self._callbacks[:] = [each for each in self._callbacks if each[1] != callback]
        self._shared.errors.withdraw(source_of(callback))

    # -- ordering --

    @overload
    def submit(
        self,
        products: Products,
        *,
        dry_run: Literal[False] = False,
        **more: Unpack[Details],
    ) -> Order: ...

    @overload
    def submit(
        self, products: Products, *, dry_run: Literal[True], **more: Unpack[Details]
    ) -> Request: ...

    @stopped_by_user(
        "submit() was stopped: tracker.orders shows whether it has made an order", keeps_inner=True
    )
    def submit(
        self,
        products: Products,
        *,
        data_types: str | Sequence[str] | None = None,
        filename_regexp: str | None = None,
        correlation_id: str | None = None,
        label: str | None = None,
        user: str | None = None,
        size_limit_bytes: int | None = None,
        cart: Literal["refuse", "include"] = "refuse",
        estimate: bool = True,
        dry_run: bool = False,
    ) -> Order | Request:
        """Order files: over REST where the tracker has a client, else over AMQP.

        Parameters
        ----------
        products : DataFrame, Series, str or iterable of str
            Rows of ``client.search()``, URNs, provider ids, or queries of the catalogue. All of
            them are one order; `regards_nb.queries.selection` has the rules.
        data_types : {"RAWDATA", "QUICKLOOK"} or several of them, optional
        filename_regexp : str, optional
            Order only the files whose names match.
        correlation_id : str, optional
            Your own name for the order, at most 255 characters; made up by default. Submitting
            the same name again orders nothing twice: it returns the existing order. After a lost
            answer, the tracker asks REGARDS whether the order exists.
        label : str, optional
            A text for yourself; kept in the journal.
        user : str, optional
            Your REGARDS account; needed over AMQP only.
        size_limit_bytes : int, optional
            Order nothing if the files are larger. REGARDS checks it over AMQP; over REST the
            estimate is compared.
        cart : {"refuse", "include"}
            REGARDS also orders what lies in your cart on its web page. ``refuse``: raise if the
            cart is not empty. Without a client it cannot be seen, and there is a warning.
        estimate : bool, default True
            Show the numbers of products, files and bytes before they are ordered. Without a
            client nothing is shown.
        dry_run : bool, default False
            Check the request and return it without sending anything.

        Returns
        -------
        Order
            Also when REGARDS denies it: its status and message say so.

        Raises
        ------
        SettingsError
            REGARDS would deny the request, the cart is not empty, or the files are larger than
            the limit; the text says why. Nothing was ordered.
        ServiceError, BrokerError
            The request could not be sent, or there was no answer.
        WaitTimeoutError
            Over AMQP: RabbitMQ took the request, REGARDS did not answer.
        """
        check_flags(estimate=estimate, dry_run=dry_run)
        request = Request.new(
            selection(products),
            data_types=data_types,
            filename_regexp=filename_regexp,
            correlation_id=correlation_id,
            label=label,
            user=user,
            size_limit_bytes=size_limit_bytes,
        )
        request.check()
        if dry_run:
            return request
        refuse_cart = refuses_cart(cart)
        with self._submission.fate_told(request):
            warning = "" if self.auto_download else self._blocking.before_third()
        with stopped_by_user(partial(self._submission.stopped, request)):
            key = self._submission.submit(
                request, refuse_cart=refuse_cart, estimate=say if estimate else None
            )
        if warning:
            warnings.warn(warning, stacklevel=3)
        return Order(self, key)

    @stopped_by_user("stopped. The same call goes on from there", keeps_inner=True)
    def submit_each(
        self,
        table: pd.DataFrame,
        *,
        by: str | Sequence[str] | None = None,
        products: str | Callable[[Any], Any] | None = None,
        label: str | None = None,
        data_types: str | Sequence[str] | None = None,
        filename_regexp: str | None = None,
        user: str | None = None,
        size_limit_bytes: int | None = None,
        cart: Literal["refuse", "include"] = "refuse",
        estimate: bool = True,
        download: bool = False,
        retry: bool = False,
        timeout_s: float | None = None,
    ) -> pd.DataFrame:
        """Order each row or group of a table for itself, and wait for all of these orders.

        The next order is made when REGARDS has room: it prepares at most two sub-orders per user
        until they are downloaded. Call it again with the same table, also after a restart, with a
        longer table, after Ctrl-C, or in another kernel with the same journal at the same time:
        orders made before are not made again.

        Parameters
        ----------
        table : DataFrame
            Rows of ``client.search()``, or a table with a column ``urn`` or ``provider_id``.
        by : str or sequence of str, optional
            One order for each group of rows that have the same values in these columns; by default
            one for each row.
        products : str or callable, optional
            For other tables: the column with the products, or a function of a row (with *by*, of
            the rows of a group) that returns what `submit` takes.
        label : str, optional
            The label of each order, with names of columns: ``"cycle {cycle}"``. It identifies the
            order in a later call. By default the provider id, or names and values of *by*.
        data_types, filename_regexp, user, size_limit_bytes, cart
            For each order, as in `submit`.
        estimate : bool, default True
            Show the numbers of products, files and bytes of all new orders together.
        download : bool, default False
            Download these orders as they become ready, and all other orders that block them. A
            tracker with ``auto_download=True`` does that anyway. Without either, the call says
            which orders wait for you.
        retry : bool, default False
            Make orders again that were denied, have failed, or ended before their files were
            downloaded. The label of such an order gets a number: ``"cycle 7 (2)"``.
        timeout_s : float, optional
            Time limit in seconds; by default none.

        Returns
        -------
        pandas.DataFrame
            One row per order, index ``label``: your columns (with *by*: these columns and
            ``rows``), and ``correlation_id``. A name that `orders` has, too, begins with
            ``table_``. ``tracker.orders.join(result, on="label")`` has the status beside them.

        Raises
        ------
        SettingsError
            A label was used for other products before, the table has no products, or as in
            `submit`.
        WaitTimeoutError
            The time limit was reached. A later call goes on.
        TrackingError
            Something failed in the background since the last call.
        ServiceError, BrokerError
            REGARDS refuses. While it does not answer, the call tries again.
        """
        check_flags(estimate=estimate, download=download, retry=retry)
        check_texts(label=label)
        orders, own = read_table(table, by=by, products=products, label=label)
        each = TableOrders(
            self._shared,
            self._submission,
            self._blocking,
            self._life,
            asked=self._new_download() if download else None,
            timeout_s=timeout_s,
            refuse_cart=refuses_cart(cart),
            estimate=estimate,
            retry=retry,
        )
        if not orders:
            say("nothing to order: the table has no rows")
        with stopped_by_user(each.stopped), each:
            each.plan(
                Request.new(
                    wanted.queries,
                    data_types=data_types,
                    filename_regexp=filename_regexp,
                    label=wanted.label,
                    user=user,
                    size_limit_bytes=size_limit_bytes,
                )
                for wanted in orders
            )
            with self._watching(each.keys) as view:
                each.run(view)
        each.warn_of_failures()
        self._shared.errors.raise_new()
        return with_orders(own, each.labels, each.correlation_ids)

    @stopped_by_user("sync() was stopped: call it again to bring all orders up to date")
    def sync(self, *, limit: int = 200) -> list[Order]:
        """Bring all orders up to date over REST, and take in those that were made elsewhere.

        Parameters
        ----------
        limit : int
            How many orders are asked for, the newest first; they come in pages of 100.

        Returns
        -------
        list of Order
            Those that this tracker did not know.

        Raises
        ------
        ServiceError
            The server cannot be asked.
        """
        if self._sync is None:
            raise SettingsError(f"sync() {CLIENT_MISSING}")
        check_counts(limit=limit)
        return self._as_orders(self._sync.take_in(limit=limit))

    # -- actions --

    def pause(self, orders: Selection | OrderKey) -> list[Order]:
        """Have REGARDS prepare no more files; files that are ready stay ready."""
        return self._act("pause", orders)

    def resume(self, orders: Selection | OrderKey) -> list[Order]:
        """Have REGARDS continue paused orders."""
        return self._act("resume", orders)

    def retry(self, orders: Selection | OrderKey) -> list[Order]:
        """Have REGARDS prepare the failed files of ended orders again."""
        return self._act("retry", orders)

    def restart(self, orders: Selection | OrderKey, *, label: str | None = None) -> list[Order]:
        """Order the same again; return the new orders."""
        check_texts(label=label)
        return self._act("restart", orders, label=label)

    def cancel(self, orders: Selection | OrderKey) -> list[Order]:
        """Stop orders, in any state, and delete them on the server.

        REGARDS publishes no message for it (protocol.md 1.6); the tracker journals it itself.
        """
        return self._act("cancel", orders)

    def delete(self, orders: Selection | OrderKey) -> list[Order]:
        """Delete orders that have ended or are paused."""
        return self._act("delete", orders)

    @stopped_by_user("stopped: tracker.sync() asks REGARDS what was done", keeps_inner=True)
    def _act(self, action: str, orders: Selection | OrderKey, **details: Any) -> list[Order]:
        if isinstance(orders, OrderKey):
            self._actions.begin(action, orders)
            return self._as_orders([orders])
        with unchanged(action):
            keys = self._keys_in(orders)
        return self._as_orders(self._actions.act_on_all(action, keys, **details))

    def _as_orders(self, keys: Iterable[OrderKey]) -> list[Order]:
        return [Order(self, key) for key in keys]

    # -- downloading --

    @overload
    def download(
        self, *keys: Selection, process: None = None, **more: Unpack[DownloadDetails]
    ) -> list[Path]: ...

    @overload
    def download(
        self,
        *keys: Selection,
        process: Callable[[list[Path]], _Result],
        **more: Unpack[DownloadDetails],
    ) -> dict[int, _Result]: ...

    @stopped_by_user("stopped. The same call goes on from there", keeps_inner=True)
    def download(
        self,
        *keys: Selection,
        directory: str | Path | None = None,
        extract: bool = True,
        again: bool = False,
        checksum: bool = False,
        executor: Executor | None = None,
        process: Callable[[list[Path]], Any] | None = None,
    ) -> list[Path] | dict[int, Any]:
        """Download the ready files of some orders, verified, with a progress bar.

        Files that were downloaded before are looked at: those that are gone or cut are fetched
        once more, while REGARDS has them. A cut file, which holds the beginning of the verified one
        and nothing else, is replaced. No file of yours is: where one is in the way, the view
        names the new file beside it.

        Parameters
        ----------
        *keys : str, int, Order, or rows of `orders`
            By default all orders that have files to download.
        directory : path, optional
            Where the files go, also ``s3://bucket/prefix``; by default ``<workspace>/<order id>``.
            Files that are verified elsewhere are linked or copied into it; those of the workspace
            are used again if such copies are gone.
        extract : bool, default True
            False keeps the zips as they came; a later call with True extracts them.
        again : bool, default False
            Fetch all files once more, also those that were downloaded with another journal: a
            warning names the orders that have such files.
        checksum : bool, default False
            Also compare the MD5 of files that were downloaded before.
        executor : concurrent.futures.Executor, optional
            Where each order is downloaded and processed: a ThreadPoolExecutor, a
            ProcessPoolExecutor with the start method "spawn", or that of a Dask client,
            ``client.get_executor()``. Workers of other processes make client and journal
            themselves: the tracker must come from `from_profile` or `from_env`.
        process : callable, optional
            Called with the paths of all files of an order once they are in place: in a worker of
            *executor*, else in this thread. To decode or regrid, for example.

        Returns
        -------
        list of pathlib.Path, or dict of int to object
            All files of these orders that are in place, the new ones and the earlier ones.
            In a bucket each is an `upath.UPath`, which has the methods of a path.
            A server that has nothing new to give is no error (protocol.md 0.3).
            With *process*, its results by order number; None for an order without files.

        Raises
        ------
        IncompleteDownloadError
            Some files could not be downloaded; the others are in place.
        ProcessingError
            *process* failed. With several orders it is a ProcessingErrorGroup, whose ``results``
            are those of the orders that went well.
        SettingsError
            The workers of *executor* cannot do this; the text says why.
        ServiceError, WorkspaceError, ArchiveError
            Nothing could be downloaded; the text says why.
        """
        check_paths(directory=directory)
        check_flags(extract=extract, again=again, checksum=checksum)
        downloads = self._downloading()
        options = CallOptions(
            executor=executor, process=process, source=self._source, directory=directory
        )
        named = self._keys_in(keys) if keys else ()
        unasked = downloads.ask(are_told=self._life.are_told)
        states = list(self._shared.states(named)) if keys else downloads.open_orders()
        if not states:
            why, advice = "no order is selected", ""
            if not keys:
                if unasked is not None:
                    raise unasked
                why = self._blocking.nothing_to_download(again=again)
                advice = self._life.sync_advice
            unheard = filter(None, (*self._shared.obstacles(), self._life.outage, advice))
            say("; ".join([f"nothing to download: {why}", *unheard]))
            return [] if process is None else {}
        found = [state.key for state in states]
        request = DownloadRequest(
            directory=None if directory is None else as_place(directory),
            extract=extract,
            check="checksum" if checksum else "size",
            again=again,
        )
        stopped = partial(downloads.stopped, found, request, processes=process is not None)
        rest = partial(self._blocking.unfinished, is_running=not self._life.refusal())
        with stopped_by_user(stopped), self._watching(found) as view:
            result = downloads.run(view, states, request, options, unfinished=rest, of_all=not keys)
        if text := rest(found):
            say(text)
        if process is not None:
            return result
        return [path for state in states for path in self._shared.paths(state.order_id)]

    def parts(self, key: OrderKey, timeout_s: float | None) -> Iterator[list[Path]]:
        """Yield the new files of each sub-order; see `Order.iter_parts`."""
        downloads = self._downloading()
        seen, is_last = set[Path](), False
        with stopped_by_user(partial(downloads.stopped, [key])), self._watching([key]) as view:
            while not is_last:
                with self._new_wait([key], until="part", timeout_s=timeout_s) as wait:
                    wait.run(view)
                state = self._shared.state(key)
                is_last = not state.to_download
                # The last time, it raises what is missing.
                downloads.run(view, [state], timeout_s=timeout_s or math.inf)
                new = [path for path in self._shared.paths(state.order_id) if path not in seen]
                seen.update(new)
                if new:
                    with users_code():
                        yield new
        self._shared.errors.raise_new()

    @reads_only
    def verify(self, *keys: Selection, checksum: bool = False) -> pd.DataFrame:
        """Look at the downloaded files of some orders; nothing is fetched.

        Parameters
        ----------
        *keys : str, int, Order, or rows of `orders`
            By default all orders.
        checksum : bool, default False
            Read the files and compare their MD5; by default only their size is compared.

        Returns
        -------
        pandas.DataFrame
            One row per file that is missing, cut or changed since it was verified: ``order_id``,
            ``correlation_id``, ``name``, ``path``, ``size_bytes``, ``found_bytes``, ``problem``.
            ``download(order_id)`` fetches these files again; `download` without an order does not
            look at files that were downloaded before.
        """
        check_flags(checksum=checksum)
        states = self._shared.states(self._keys_in(keys)) if keys else ()
        numbers = {state.order_id for state in states if state.order_id is not None}
        return self._shared.frames.problems(numbers if keys else None, checksum=checksum)

    def download_soon(self, key: Selection | OrderKey) -> None:
        """Download the ready files of one order in the background; errors are shown and kept."""
        self._downloading().begin_recording_errors(self[key].state)

    # -- displays --

    @stopped_by_user("show() was stopped: call it again; tracking continues")
    def show(self) -> None:
        """Show the live table of all orders; the cell ends at once."""
        from regards_nb.display import show

        show(self)

    def widget(self) -> Any:
        """Return the live table of all orders as a widget, for Panel, Solara, Voila and layouts.

        See `regards_nb.display.widget`. ``order.widget()`` is that of one order.
        """
        from regards_nb.display import widget

        return widget(self)

    def plot_timeline(self) -> Any:
        """Plot when each order was granted, had files ready, and ended (needs matplotlib)."""
        from regards_nb.display import plot_timeline

        return plot_timeline(self)

    def plot_throughput(self) -> Any:
        """Plot the rate of the downloads (needs matplotlib)."""
        from regards_nb.display import plot_throughput

        return plot_throughput(self)
