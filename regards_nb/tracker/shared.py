"""The objects that a tracker's modules share: journal, frames, change signal, background errors.

`held` waits for the lease of the submissions or of an order. `names_in` and `Shared.keys_in` find
the orders that a user means: a correlation id, a number, an order, rows or a list.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from regards_nb.client import Calls, LastByte
from regards_nb.download import paths_of
from regards_nb.errors import (
    JournalError,
    OrderNotFoundError,
    RegardsError,
    ServiceError,
    SettingsError,
    TrackingError,
    TrackingErrorGroup,
)
from regards_nb.journal import order_lease
from regards_nb.orders import OrderKey, replaced
from regards_nb.text import counted, did_you_mean
from regards_nb.waits import is_unasked, limited, stopped_by_user, unasked, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from regards_nb.consumer import Health
    from regards_nb.download import Progress
    from regards_nb.frames import Frames, States
    from regards_nb.journal import Holder, Journal, Position
    from regards_nb.orders import OrderState

    #: The orders of a view, or what returns those that are known so far; None: all.
    Wanted: TypeAlias = Iterable[OrderKey] | Callable[[], Iterable[OrderKey] | None] | None

#: A correlation id, an order id, or an `OrderKey`, which is never ambiguous.
Name = str | int | OrderKey

_log = logging.getLogger("regards_nb")

#: Maximum number of sub-orders of a user that REGARDS prepares before he downloads them
#: (protocol.md 0.2).
SUBORDERS_PER_USER = 2
#: How often a waiting thread looks for what other processes have written, without a signal.
LOOK_S = 0.5
#: How long a view waits for the server of a journal before it shows what is known, and how long
#: while a thread in the background knows that it does not answer.
_ANSWER_S, _LATER_ANSWER_S = 1.0, 0.1
#: A process that downloads an order has no lease for a moment between two of its sub-orders.
_BETWEEN_SUBORDERS_S = 2.0

# Without any handler Python writes warnings to stderr, which is the output of the running cell.
_log.addHandler(logging.NullHandler())

NEW_ORDER = "Correct the request, or ask the administrator for the right, and order again: submit()"
CLIENT_MISSING = "needs the REST side: make the tracker with client=RegardsClient(...)"

_STOPPED = "stopped while REGARDS was asked for {}, so nothing was done; the same call asks again"

#: The work that has failed if a thread of the tracker has ended by itself.
RECEIVING = "receiving messages"
#: The work that a round of REST sync does; an answer withdraws its errors.
ASKING = "asking for unfinished orders"

_MOST_ERRORS = 20
#: Time for which a view that stays open shows a note or an error.
SHOWN_S = 600.0


class WaitDisplay(Protocol):
    """The progress view of a cell that waits."""

    def refresh(self, *, note: str = "") -> None:
        """Show the current state, with *note* below it."""


class ChangeSignal:
    """A counter that threads can wait on. Sending is cheap and never blocks for long."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0
        #: Each wakes a coroutine that waits, once.
        self._wakers: list[Callable[[], object]] = []

    @property
    def count(self) -> int:
        """Number of changes so far."""
        return self._count

    def send(self) -> None:
        """Count one change and wake all threads that wait."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            with suppress(RuntimeError):  # the loop of the coroutine was closed
                wake()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Return the count as soon as it differs from *seen*, at the latest after *timeout_s*."""
        with self._condition:
            self._condition.wait_for(lambda: self._count != seen, timeout_s)
            return self._count

    async def wait_async(self, seen: int, timeout_s: float) -> int:
        """Do the same without blocking the event loop."""
        loop = asyncio.get_running_loop()
        # Not asyncio.wait_for(): that of Python 3.11 drops a cancellation, and so the stop button,
        # when a change comes in the same step of the loop.
        changed = loop.create_future()
        timer = loop.call_later(timeout_s, _wake, changed)
        wake = partial(loop.call_soon_threadsafe, _wake, changed)
        with self._condition:
            if self._count == seen:
                self._wakers.append(wake)
            else:
                _wake(changed)
        try:
            await changed
        finally:
            timer.cancel()
            with self._condition, suppress(ValueError):
                self._wakers.remove(wake)
        return self._count


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(frozen=True, slots=True)
class _Told:
    """A note, or an error that no call has raised yet."""

    #: The end of the time for which it is shown.
    until_s: float
    source: str = ""
    error: BaseException | None = None
    check_again: Callable[[], object] | None = None
    #: For which orders, by number or correlation id, and what is said of them.
    orders: tuple[int | str, ...] = ()
    said_of: Callable[[Sequence[int | str]], str] = lambda _: ""
    #: Whether it is no longer true.
    is_over: Callable[[], bool] = lambda: False


class BackgroundErrors:
    """Keeps background errors for the display until the next call has raised them.

    *changed* is called after each change.
    """

    def __init__(
        self, changed: Callable[[], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._changed = changed
        self._clock = clock
        # Threads of downloads, callbacks and REST sync record; the user's thread raises.
        self._lock = threading.Lock()
        #: By text, so that a repeated one is kept once; the oldest first.
        self._told: dict[str, _Told] = {}

    @property
    def shown(self) -> tuple[str, ...]:
        """The notes and errors that a view shows, oldest first."""
        now_s = self._clock()
        with self._lock:
            shown = {text: told for text, told in self._told.items() if now_s < told.until_s}
        return tuple(
            t + told.said_of(told.orders) for t, told in shown.items() if not told.is_over()
        )

    def record(
        self,
        what: str,
        error: BaseException,
        *,
        where: str = "",
        source: str = "",
        check_again: Callable[[], object] | None = None,
        order: int | str | None = None,
        said_of: Callable[[Sequence[int | str]], str] = lambda _: "",
    ) -> None:
        """Keep *error*, which ended *what*; `withdraw` takes the *source*, by default *what*.

        *check_again* is called before a call raises the error, and withdraws one that is over.
        *said_of* returns the end of the text, for all orders to which this error has come.
        """
        text = f"{what}: {_described(what, error)}{where}"
        orders = () if order is None else (order,)
        until_s = self._clock() + SHOWN_S
        self._keep(text, _Told(until_s, source or what, error, check_again, orders, said_of))
        _log.warning("%s%s", text, said_of(orders), exc_info=error)

    def note(self, text: str, *, is_over: Callable[[], bool] = lambda: False) -> None:
        """Show a text about a problem that no call raises, until *is_over*."""
        self._keep(text, _Told(self._clock() + SHOWN_S, is_over=is_over))

    def _keep(self, text: str, new: _Told) -> None:
        with self._lock:
            before = self._told.pop(text, new).orders
            self._told[text] = replace(new, orders=tuple(dict.fromkeys(before + new.orders)))
            alike = [t for t, told in self._told.items() if bool(told.error) is bool(new.error)]
            for oldest in alike[:-_MOST_ERRORS]:
                del self._told[oldest]
        self._changed()

    def _forget(self, which: Callable[[_Told], bool]) -> dict[str, _Told]:
        with self._lock:
            forgotten = {text: told for text, told in self._told.items() if which(told)}
            for text in forgotten:
                del self._told[text]
        if forgotten:
            self._changed()
        return forgotten

    def mark_shown(self) -> None:
        """Stop showing what the last view of a call has shown. Errors are still raised once."""
        with self._lock:
            before = self._told
            errors = {text: told for text, told in before.items() if told.error is not None}
            self._told = {text: replace(told, until_s=0.0) for text, told in errors.items()}
        if before:
            self._changed()

    def withdraw(self, what: str) -> None:
        """Forget the errors of *what*, which has succeeded meanwhile or is not wanted any more."""
        self._forget(lambda told: told.source == what)

    def raise_new(self) -> None:
        """Raise all errors, and stop showing them.

        It is a new TrackingError with the recorded error as its cause: raising the recorded one
        repeatedly would make its traceback grow. Several are a `TrackingErrorGroup`.
        """
        told_so_far = list(self._told.values())
        for check_again in {each.check_again for each in told_so_far if each.check_again}:
            check_again()
        errors = self._forget(lambda told: told.error is not None)
        texts = [text + told.said_of(told.orders) for text, told in errors.items()]
        raised = []
        for text, told in zip(texts, errors.values(), strict=True):
            raised.append(TrackingError(f"in the background: {text}"))
            raised[-1].__cause__ = told.error
        if len(raised) == 1:
            raise raised[0]
        if raised:
            raise TrackingErrorGroup(f"in the background: {'; '.join(texts)}", raised)


def _described(what: str, error: BaseException) -> str:
    """Return the text of an error without what *what* says already; foreign errors by type."""
    if not isinstance(error, RegardsError):
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = str(error)
    named = what.rpartition(" order ")[2]
    return text.removeprefix(f"order {named}: ") if named else text


class OrderHolders:
    """Knows which other process downloads an order; it looks at the journal now and then."""

    def __init__(self, journal: Journal, tenant: str | None) -> None:
        self._journal = journal
        self._tenant = tenant
        self._next_s = 0.0
        #: How far the journal had grown at the last look.
        self._position: Position | None = None
        #: By the name of the lease, and when it was seen last.
        self._seen: dict[str, tuple[Holder, float]] = {}

    def look(self) -> bool:
        """Look at the journal, if it is time; return whether another process downloads."""
        now_s = time.monotonic()
        if now_s < self._next_s or is_unasked():
            return bool(self._seen)
        self._next_s = now_s + LOOK_S
        # A download writes to the journal soon after it has begun.
        position = self._journal.position(exact=False)
        if self._seen or position != self._position:
            self._position = position
            found = self._journal.leases.downloads_of_others()
            since_s = now_s - _BETWEEN_SUBORDERS_S
            recent = {name: seen for name, seen in self._seen.items() if seen[1] > since_s}
            self._seen = recent | {name: (holder, now_s) for name, holder in found.items()}
        return bool(self._seen)

    def of(self, order: OrderState) -> Holder | None:
        """Return the process that downloads an order, also between two of its sub-orders."""
        if not self.look():
            return None
        seen = self._seen.get(order_lease(order.tenant or self._tenant, order.order_id or 0))
        return None if seen is None else seen[0]

    def without_held(self, orders: States) -> States:
        """Return the orders; those that another process downloads do not wait for the user."""
        if not self.look():
            return orders

        def without(order: OrderState) -> OrderState:
            holder = self.of(order)
            if holder is None:
                return order
            return replaced(order, waits_for_download=False, lacks_names=False, held_by=str(holder))

        return orders.changed(without, "to_download")

    def held(self, orders: States) -> list[OrderState]:
        """Return by number those of the orders that another process downloads, with its name."""
        if not self.look():
            return []
        waiting = orders.where("to_download").sorted("order_id")
        return [each for each in self.without_held(waiting) if each.held_by]


@dataclass(slots=True, eq=False, kw_only=True)
class RunningDownload:
    """How far the download of an order is, in a thread of this process or in a worker."""

    #: What is asked of a thread of this process; None in a worker.
    request: object = None
    #: The calls that wait for it, and what else has asked for it.
    callers: set[object] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)
    last_byte: LastByte = field(default_factory=LastByte)
    #: None before the first byte, and in a worker.
    progress: Progress | None = None
    #: The other process that downloads the order, and is waited for.
    holder: Holder | None = None
    #: The download of the order before this one, until that has ended.
    before: RunningDownload | None = None
    future: Future[None] = field(init=False)
    #: Whether it has ended once no file of the order waits: of a worker, only the journal tells.
    ends_with_files: bool = False
    #: Called after a change of the above.
    changed: Callable[[], object] = lambda: None
    #: Called at the end with texts on files that were in the way, and whether all files came and
    #: some are new.
    fetched: Callable[..., object] = lambda *_, **__: None

    @property
    def active(self) -> RunningDownload:
        """The download that runs now, which this one may wait for."""
        return self if self.before is None else self.before.active

    def note(self, name: str) -> str:
        """Say why no byte of an order comes; empty while bytes come."""
        # Of a worker only the journal tells whether it has begun.
        if self.request and not (self.future.running() or self.future.done()):
            return "waits for its turn to be downloaded"
        return self.last_byte.text(name)

    def with_earlier(self) -> Iterator[RunningDownload]:
        """Yield it and those that it waits for."""
        each: RunningDownload | None = self
        while each is not None:
            yield each
            each = each.before

    def end(self) -> None:
        """Have it end; that of a worker ends with its call."""
        if self.request:
            self.stop.set()
            self.last_byte.forget_requests()
            self.future.cancel()
            if self.progress is not None:
                self.report(self.progress)

    def report(self, progress: Progress) -> None:
        """Take how far the download is; one that was stopped asks for nothing."""
        self.progress = replace(progress, silence="") if self.stop.is_set() else progress
        self.changed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The objects that the threads of a tracker share. It holds no tracker: one can be collected.

    *downloads* are those that run, by order id.
    """

    #: How long REGARDS is asked for orders that are not known here.
    look_up_s: ClassVar[float] = 10.0

    journal: Journal
    frames: Frames
    signal: ChangeSignal
    errors: BackgroundErrors
    holders: OrderHolders
    downloads: dict[int, RunningDownload] = field(default_factory=dict)
    #: What REGARDS is asked to do now, by order id.
    acting: dict[int, str] = field(default_factory=dict)
    #: The calls that ask for orders, those of the background and of the user.
    asking: Calls = field(default_factory=Calls)

    def read_news(self, *, exact: bool = False) -> None:
        """Read what is new in the journal; a server that does not answer is not waited for long."""
        self.frames.refresh(exact=exact, answer_s=self._answer_s())

    def _answer_s(self) -> float:
        return _LATER_ANSWER_S if self.journal.server_is_away() else _ANSWER_S

    @contextmanager
    def as_known(self, wanted: Wanted) -> Iterator[tuple[list[OrderKey] | None, States]]:
        """Read what is new in the journal; in the block, and in an outage, it is not asked.

        The block gets the keys of the orders that a view wants, and their states.
        """
        try:
            self.read_news()
            with within(self._answer_s()):
                self.holders.look()
        except JournalError:
            if not self.journal.server_is_away():
                raise
        with unasked():
            keys = wanted_keys(wanted)
            yield keys, self.holders.without_held(self.states(keys))

    def key_of(self, name: Name) -> OrderKey | None:
        """Find an order by correlation id, number, number as text, or a label that is unique."""
        key = self.frames.key_of(name)
        if key is not None or not isinstance(name, str):
            return key
        if name.isdecimal() and (numbered := self.frames.key_of(int(name))) is not None:
            return numbered
        labelled = self.frames.labelled(name)
        if len(labelled) > 1:
            named = ", ".join(f"{s.correlation_id!r} ({s.order_id})" for s in labelled)
            raise SettingsError(
                f"{len(labelled)} orders bear the label {name!r}: {named}. Give one of these "
                "correlation ids, or a number"
            )
        return labelled[0].key if labelled else None

    def keys_in(
        self, selection: Any, look_up: Callable[[int | str], bool] | None = None
    ) -> list[OrderKey]:
        """Return the keys of the orders in a selection, each once; `names_in` has the forms.

        *look_up* asks REGARDS for a number or label that is not known here, for a moment.
        """
        keys: dict[OrderKey, None] = {}
        end_s, unanswered = time.monotonic() + self.look_up_s, ""
        for name in names_in(selection):
            key = self.key_of(name)
            text = str(name) if isinstance(name, int) else called(name)
            has = f"the number {name}" if isinstance(name, int) else f"the name {text!r}"
            if key is None and look_up is not None and isinstance(name, int | str):
                try:
                    with limited(end_s), stopped_by_user(_STOPPED.format(has)):
                        look_up(name)
                except ServiceError as exc:
                    unanswered = f", and REGARDS could not be asked ({exc})"
                key = self.key_of(name)
            if key is None:
                raise OrderNotFoundError(
                    f"no order with {has}: no message has named one so far{unanswered}. "
                    f"{self.near(text)}"
                )
            keys[key] = None
        return list(keys)

    def near(self, name: str) -> str:
        """Return a sentence on the correlation ids and labels that may be meant."""
        known = self.frames.states()
        texts = (text for state in known for text in (state.correlation_id, state.label) if text)
        names = [text for text in texts if text != name]  # its first event may come just now
        return did_you_mean(name, names) or "tracker.orders lists all"

    def states(self, keys: Iterable[OrderKey] | None = None) -> States:
        """Return the states of some orders, or of all, with their running downloads."""
        return self.frames.states(keys).changed(
            self._with_download, "order_id", list(self.downloads)
        )

    def obstacles(self) -> list[str]:
        """Return which program holds the journal, and of what no byte came for long."""
        running = list(self.downloads.items())
        texts = [each.active.last_byte.text(f"order {number}") for number, each in running]
        texts.insert(0, self.asking.text("the list of orders"))
        return list(filter(None, [self.journal.obstacle(), *texts]))

    def state(self, key: OrderKey) -> OrderState:
        """Return the state of one order."""
        (state,) = self.states([key])
        return state

    def paths(self, order_id: int | None) -> list[Path]:
        """Return the paths of the downloaded files of an order."""
        return [] if order_id is None else paths_of(self.frames.files_of(order_id))

    def _with_download(self, state: OrderState) -> OrderState:
        running = self.downloads.get(state.order_id or 0)
        if running is None or (running.ends_with_files and not state.to_download):
            return state
        running = running.active
        state = replaced(
            state,
            downloading=True,
            waits_for_download=False,
            lacks_names=False,
            download_note=running.note(state.name),
            held_by="" if running.holder is None else str(running.holder),
        )
        if (progress := running.progress) is None:
            return state
        return replaced(
            state,
            downloaded_files=max(state.downloaded_files, progress.files_done),
            downloaded_bytes=max(state.downloaded_bytes, progress.bytes_done),
            bytes_total=progress.bytes_total or state.bytes_total,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An immutable copy of the state that a view draws."""

    orders: States
    #: The orders to download before REGARDS prepares others, where it has stopped: it prepares at
    #: most two sub-orders per user (protocol.md 0.2).
    blocking: Sequence[OrderState]
    #: The first two orders of the user that REGARDS has not finished, as far as REST told, and some
    #: that wait for a download or are being downloaded, which takes a place as well.
    line: Sequence[OrderState]
    #: Whether the tracker has a REST side.
    can_download: bool
    health: Health
    #: What the journal waits for.
    obstacle: str
    #: What REGARDS is asked to do now.
    acting: tuple[str, ...]
    background_errors: tuple[str, ...]
    rejected: int
    #: The number of orders that the tracker knows, shown or not.
    n_known: int
    #: The number of orders that the view is about, also those that are not made yet.
    n_wanted: int

    @property
    def is_moving(self) -> bool:
        """Whether an order goes on, at REGARDS or with its download."""
        numbers = self.orders.numbers
        return not numbers("finished").all() or bool(numbers("downloading").any())


class HeldElsewhereError(RegardsError):
    """Another process has the lease, and the call does not wait for it."""


@contextmanager
def held(journal: Journal, name: str, waiting: Callable[[Holder], object] | None) -> Iterator[None]:
    """Hold a lease during the block.

    *waiting* is called with the process that has the lease, again and again; it waits for a moment,
    or raises an error. None: HeldElsewhereError is raised, its text is the process.
    """
    # Ctrl-C may come as soon as the lease is taken.
    with journal.leases.released_after(name):
        while (holder := journal.leases.holder(name) or journal.leases.take(name)) is not None:
            if waiting is None:
                raise HeldElsewhereError(str(holder))
            waiting(holder)
        yield


def advice_for_missing(order: OrderState) -> str:
    """Return how many files of an ended order are not here, and what to do."""
    total = order.files_total or 0
    files = counted(f"{total - order.downloaded_files} of {total}", "file")
    call = f"tracker.download({order.order_id}) tries again"
    return f"{files} of order {order.order_id} could not be downloaded: {call}"


def called(name: str | OrderKey) -> str:
    """Return the correlation id or label of a name."""
    return name.correlation_id if isinstance(name, OrderKey) else name


def names_in(selection: Any) -> list[Name]:
    """Return the names of the orders in a selection, whether or not such orders are known.

    A number may be one of NumPy's; an order may be an `OrderKey`.
    """
    if isinstance(selection, str | OrderKey):
        return [selection]
    if str(getattr(selection, "dtype", "")) in {"bool", "boolean"}:
        raise SettingsError(
            "a comparison names no order, it has a row for each: give the rows that it selects, as "
            "in tracker.orders[comparison]"
        )
    if isinstance(key := getattr(selection, "key", None), OrderKey):
        return [key]
    index: Any = getattr(selection, "index", selection)
    if list(getattr(index, "names", ())) == list(OrderKey._fields):
        return [_key(*row) for row in index]
    if hasattr(selection, "columns"):
        return _names_in_rows(selection)
    with suppress(TypeError):
        if not isinstance(selection, bool):  # wait(True) would wait for order 1
            return [operator.index(selection)]
    if isinstance(selection, Iterable) and not isinstance(selection, Mapping | bytes):
        return [name for each in selection for name in names_in(each)]
    raise SettingsError(
        f"{selection!r} names no order: give a correlation id, a number, an order, or rows of "
        "tracker.orders"
    )


def check_keys(keys: Iterable[object]) -> None:
    """Refuse what is no `OrderKey`, such as a name."""
    for key in keys:
        if not isinstance(key, OrderKey):
            raise SettingsError(f"{key!r:.100} is no key of an order: give tracker[...].key")


def wanted_keys(keys: Wanted) -> list[OrderKey] | None:
    """Return the keys of the orders that a view wants, as far as they are known; None: all."""
    keys = keys() if callable(keys) else keys
    if keys is None:
        return None
    known = list(keys)
    check_keys(known)
    return known


def _names_in_rows(frame: Any) -> list[Name]:
    """Return the orders of a frame with columns, of pandas or polars, each once."""
    columns = set(frame.columns)
    if not set(OrderKey._fields) <= columns:
        raise SettingsError(
            "a selection must be rows of tracker.orders with their index, or have the columns "
            "tenant and correlation_id"
        )
    tenants, names = (list(frame[name]) for name in OrderKey._fields)
    # An event may name its order by the order id alone.
    ids = list(frame["order_id"]) if "order_id" in columns else names
    keys = [
        _key(tenant, name if isinstance(name, str) else f"#{order_id}")
        for tenant, name, order_id in zip(tenants, names, ids, strict=True)
    ]
    return list(dict.fromkeys(keys))


def _key(tenant: object, correlation_id: str) -> OrderKey:
    return OrderKey(tenant if isinstance(tenant, str) else None, correlation_id)
