"""REST sync: ask REGARDS for the state of orders, and journal what no message said.

An answer that says something new is journalled like a message that came late, so that events and
orders need no second mechanism. What no message tells, a label, is an `Answer`. `RestSync` asks and
journals, `catching_up` decides when to ask beside a broker, `Poller` asks without one.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from regards_nb.client import watched
from regards_nb.consumer import HealthReport, HealthState
from regards_nb.errors import (
    JournalError,
    NotAllowedError,
    OrderNotFoundError,
    RegardsError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
    SettingsError,
    TrackingError,
)
from regards_nb.events import REST_APP_ID, Delivery, OrderEvent, OrderStatus, decode
from regards_nb.frames import Answer
from regards_nb.orders import ENDS_WITH_ERRORS, FINISHED, GONE, OrderReducer, precedence, replaced
from regards_nb.text import counted, numbered
from regards_nb.threads import OwnThread
from regards_nb.tracker.shared import ASKING, RECEIVING
from regards_nb.waits import ended_by, limited, pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.consumer import Consumer, Health
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.shared import Shared

_log = logging.getLogger("regards_nb")

#: The list is read as far as the oldest unfinished order, and no further than this.
_MOST_LISTED = 1000
_PAGE = 100
#: The list leaves out deleted orders and those of other users. Maximum number of them that one
#: round asks for, one by one.
_MOST_SINGLE = 10
#: Maximum number of orders with files to download that a round asks for, too.
_MOST_WAITING = 20
#: Time after an action of this tracker until its outcome is asked for.
_AFTER_ACTION_S = 5.0

#: The documentation calls an order failed after two hours without a sub-order. Nothing on the
#: server enforces that (protocol.md 1.7), so waiting for it is useless: after this time without a
#: message the server itself is asked.
SILENCE_S = 900.0
LONGEST_SILENCE_S = 3600.0
#: Used instead until the first message: perhaps none can come.
_UNHEARD_S = 30.0
#: What messages tell, and REST only where they did not come.
_ANNOUNCED = frozenset({OrderStatus.SUBORDER_DONE, OrderStatus.DONE, OrderStatus.FAILED})
#: After a connect, messages that waited in the queue arrive in the first moments.
SETTLE_S = 2.0
#: Time after which REST is asked although the queue holds messages, which it does not deliver.
_STALLED_QUEUE_S = 60.0
FIRST_RETRY_S = 30.0
#: Maximum time to find out whether an error has healed.
_CHECK_S = 5.0

#: Without a broker: the pause between two rounds while orders change, and while they do not.
POLL_S = 10.0
LONGEST_POLL_S = 60.0
_TICK_S = 1.0
#: No later round would go better.
_REFUSALS = (NotAllowedError, ServiceLoginError, ServiceUnreachableError)

#: Name of the queue in the journal for what REST told.
REST_ANSWERS = "REST answers"

#: The server's statuses (protocol.md 1.2) as the statuses of messages (1.6). A status that is not
#: here has no known meaning and is ignored.
STATUS_OF_MESSAGE = {
    "PENDING": OrderStatus.RUNNING,
    "RUNNING": OrderStatus.RUNNING,
    "PAUSED": OrderStatus.PAUSED,
    "DONE": OrderStatus.DONE,
    "DONE_WITH_WARNING": OrderStatus.FAILED,
    "FAILED": OrderStatus.FAILED,
    "ERROR": OrderStatus.FAILED,
    "EXPIRED": OrderStatus.EXPIRED,
    "DELETED": OrderStatus.DELETED,
}


# -- what an answer tells


def new_deliveries(
    known: OrderState | None,
    remote: RemoteOrder,
    *,
    tenant: str | None,
    downloading: bool = False,
    acted: str = "",
) -> list[Delivery]:
    """Compare the server's answer with the known state; return the difference as messages.

    *known* is None for an order of which no message came, because it was made elsewhere; it gets
    *tenant*. *downloading*: a download of the order runs, which changes the list of available
    files. *acted* names an action of this tracker that the answer follows. It is then newer than
    all messages so far, with any timestamps.
    """
    status = STATUS_OF_MESSAGE.get(remote.status)
    name = None if known is None else known.correlation_id
    if name is not None and name.startswith("#"):
        name = None  # only the number of the order is known
    named = {"orderId": remote.order_id, "correlationId": name}
    tenant = tenant if known is None else known.tenant

    def tell(status: str, timestamp_s: int | None, **details: Any) -> Delivery:
        fields = {"status": status, **named, **details}
        return answer_delivery(fields, tenant=tenant, timestamp_s=timestamp_s)

    found = []
    if known is None:
        found.append(tell(OrderStatus.GRANTED, _seconds(remote.created_at)))
    if status is None:
        return found
    waits = known is not None and known.waits_for_download
    if remote.available_files and status not in GONE and not (downloading or waits):
        # Without a timestamp: REST does not tell when the files became ready.
        found.append(tell(OrderStatus.SUBORDER_DONE, None, downloadLink=_link(remote)))
    if _is_new(known, remote, status, acted=bool(acted)):
        details = _details(remote, status, acted or "asked over REST")
        found.append(tell(status, _timestamp_s(known, remote), **details))
    return found


def _is_new(known: OrderState | None, remote: RemoteOrder, status: str, *, acted: bool) -> bool:
    if known is None:
        return status != OrderStatus.RUNNING
    if known.status == status or precedence(known.status) > precedence(status):
        return False
    if known.finished and status not in FINISHED:
        at_s = _seconds(remote.status_at)
        is_later = at_s is not None and at_s > known.decided_at_s
        return known.status in ENDS_WITH_ERRORS and (acted or is_later)
    if status == OrderStatus.RUNNING:
        return known.status == OrderStatus.PAUSED
    return not (status == OrderStatus.FAILED and known.status in ENDS_WITH_ERRORS)


def _timestamp_s(known: OrderState | None, remote: RemoteOrder) -> int | None:
    """Return a timestamp later than that of the event that decided so far.

    The answer is newer than the messages. They carry whole seconds, and two changes may happen
    within one.
    """
    at_s, decided_at_s = _seconds(remote.status_at), 0 if known is None else known.decided_at_s
    return decided_at_s + 1 if decided_at_s and (at_s or 0) <= decided_at_s else at_s


def _details(remote: RemoteOrder, status: str, source: str) -> dict[str, Any]:
    details: dict[str, Any] = {"message": f"{remote.status}, {source}"}
    if remote.files_in_error and status in FINISHED:
        details["errors"] = number = remote.files_in_error
        details["message"] = f"{remote.status}: {counted(number, 'file')} in error, {source}"
    if status in FINISHED and remote.available_files:
        # Without a link there is nothing to fetch, as in messages (protocol.md 0.4).
        details["downloadLink"] = _link(remote)
    return details


def _link(remote: RemoteOrder) -> str:
    return f"/api/v1/rs-order/user/orders/{remote.order_id}/download"


def answer_delivery(
    fields: dict[str, Any], *, tenant: str | None, timestamp_s: int | None = None
) -> Delivery:
    """Return an answer over REST as the message that would have said the same."""
    return Delivery(
        body=json.dumps({k: v for k, v in fields.items() if v is not None}).encode(),
        received_at_us=time.time_ns() // 1000,
        redelivered=False,
        timestamp_s=timestamp_s,
        correlation_id=fields.get("correlationId"),
        tenant=tenant,
        app_id=REST_APP_ID,
        properties="{}",
    )


def journal_answers(journal: Journal, deliveries: list[Delivery]) -> bool:
    """Journal what REST told; return whether there was anything."""
    if deliveries:
        journal.append(journal.open_session(REST_ANSWERS), deliveries)
    return bool(deliveries)


def state_of(remote: RemoteOrder, tenant: str | None) -> OrderState:
    """Return the state of an order of which only REST has told."""
    reducer = OrderReducer()
    for delivery in new_deliveries(None, remote, tenant=tenant):
        event = decode(delivery)
        assert isinstance(event, OrderEvent)  # noqa: S101 - made above, from valid fields
        key = reducer.add(0, event)
    return replaced(
        reducer.state(key),
        label=remote.label,
        expires_at=remote.expires_at,
        waits_for_download=bool(remote.available_files),
    )


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else max(int(at.timestamp()), 0)


# -- the requests


class RestSync:
    """Asks for orders in few requests, and journals the new facts. Safe in any thread.

    Each call that asks raises ServiceError where the server does not answer. *tenant* is by default
    that of the client.
    """

    def __init__(self, shared: Shared, client: RegardsClient, tenant: str | None) -> None:
        self.client = client
        self.tenant = tenant or client.tenant
        self.where = f"REGARDS at {client.base_url}"
        self.errors = shared.errors
        self._shared = shared
        #: Numbers of orders that the server does not show to this user. They are asked for once.
        self.not_ours: set[int] = set()
        #: Numbers of orders of which REST told what a message should have told.
        self.unannounced: set[int] = set()
        #: The user's orders that no message has named, which have files to download or go on.
        self.without_message: tuple[OrderState, ...] = ()
        # Held while an answer is compared and journalled, so that no two threads journal the same.
        # Never during a request.
        self._lock = threading.Lock()
        #: When further rounds are due; `list` is safe in any thread.
        self._due_s: list[float] = []
        #: Number of rounds that REGARDS answered, and of those in turn that failed since.
        self.rounds = self.failures = 0
        #: Text of the last error; empty after a round that went well.
        self.error = ""
        #: Set by the first answer to several rounds that run at the same time; it ends the others.
        self._answered = threading.Event()

    def unheard(self, health: Health) -> str:
        """Return of which orders REST has told and RabbitMQ has not; empty once it tells of any.

        Also empty if others read the queue: they may have got the messages, and a warning says so.
        """
        if not self.unannounced or health.last_event or health.other_consumers:
            return ""
        return (
            "RabbitMQ has delivered no message since start(), and REGARDS tells over REST how "
            f"{numbered(sorted(self.unannounced))} went on"
        )

    @property
    def login_refused(self) -> str:
        """That REGARDS refused the last login; empty if it did not."""
        if not self.client.is_login_refused:
            return ""
        return f"{self.where} refuses the login: tracker.doctor() says why"

    def log_in_again(self) -> bool:
        """Log in for a call of the user if REGARDS refused it; return whether that succeeded.

        The background waits longer until it sends the password again.
        """
        if not self.client.is_login_refused:
            return False
        try:
            self.client.login()
        except ServiceError:
            return False
        self.errors.withdraw(ASKING)
        self.ask_soon(0.0)
        return True

    def ask_soon(self, delay_s: float = _AFTER_ACTION_S) -> None:
        """Have a round take place soon: by default so late that it sees what an action changed."""
        self._due_s.append(time.monotonic() + delay_s)

    def take_due(self) -> bool:
        """Return, once, whether a round that `ask_soon` announced is due."""
        now_s = time.monotonic()
        due = [each for each in self._due_s.copy() if each <= now_s]
        for each in due:
            self._due_s.remove(each)
        return bool(due)

    def unfinished(self) -> dict[int, OrderState]:
        """Return the orders that may still change, by number."""
        return self._ours(self._shared.states().without("finished"))

    def _waiting(self) -> dict[int, OrderState]:
        """Return the newest orders with files to download: these may be here, or expire."""
        return self._ours(self._shared.states().where("waits_for_download")[-_MOST_WAITING:])

    def _ours(self, states: Iterable[OrderState]) -> dict[int, OrderState]:
        return {
            state.order_id: state
            for state in states
            if state.order_id is not None
            and state.order_id not in self.not_ours
            and state.tenant in (None, self.tenant)
        }

    def ask_unfinished(self) -> bool:
        """Ask for all orders that may change together; return whether anything was new."""
        unfinished = self.unfinished()
        wanted = unfinished | self._waiting()
        if not wanted:
            return False
        before = self._shared.states()
        remotes = self._listed(wanted)
        self.errors.withdraw(ASKING)
        known_of = {state.order_id: state for state in before.where("order_id", remotes)}
        states = self._shared.states().where("order_id", remotes)
        self._keep_answers((state, remotes[state.order_id or 0]) for state in states)
        asked, changed = [], False
        with self._lock:
            self.without_message = tuple(
                state_of(remote, self.tenant)
                for remote in sorted(remotes.values(), key=lambda remote: remote.order_id)
                if (remote.available_files or not remote.finished)
                and STATUS_OF_MESSAGE.get(remote.status) not in GONE
                and self._shared.frames.key_of(remote.order_id) is None
            )
            for state in self._shared.states().where("order_id", remotes):
                remote = remotes[state.order_id or 0]
                if _is_newer(state, known_of.get(remote.order_id)):
                    continue
                if remote.order_id in unfinished or STATUS_OF_MESSAGE.get(remote.status) in GONE:
                    changed |= self._keep(state, remote)
                asked.append((state, remote))
        self._end_round(asked)
        return changed

    def ask_round(self) -> bool:
        """Ask as `ask_unfinished`. An outage delays the next round, other errors are recorded."""
        answered = self._answered
        try:
            with watched(self._shared.asking), ended_by(answered):
                changed = self.ask_unfinished()
        except RegardsError as exc:
            if not answered.is_set():
                self.failed(exc)
            return False
        self._answered = threading.Event()
        answered.set()
        self.failures, self.error = 0, ""
        return changed

    def failed(self, error: RegardsError) -> None:
        """Delay the next round, and record an error that does not end by itself, once."""
        if isinstance(error, ServiceUnreachableError | JournalError):
            # An outage ends by itself, and every call of the user tells it while it lasts.
            _log.warning("%s: %s", ASKING, error)
        elif str(error) != self.error:
            self.errors.record(ASKING, error, check_again=self._check_again)
        self.failures += 1
        self.error = str(error)

    def _check_again(self) -> None:
        """Withdraw the error of a round if REGARDS answers now."""
        with limited(time.monotonic() + _CHECK_S), suppress(RegardsError):
            if self.unfinished() or self._waiting():
                self.ask_round()
            else:
                next(self.client.iter_orders(page_size=1), None)
                self.errors.withdraw(ASKING)

    def retry_s(self, usual_s: float) -> float:
        """Return the pause before the next round."""
        if not self.failures:
            return usual_s
        return min(FIRST_RETRY_S * 2.0 ** (self.failures - 1), SILENCE_S)

    def take_in(self, *, limit: int) -> list[OrderKey]:
        """Ask for the user's newest orders; return the keys of those that were not known."""
        before = self._shared.states()
        remotes = {each.order_id: each for each in islice(self.client.iter_orders(), limit)}
        self.errors.withdraw(ASKING)
        known_of = {state.order_id: state for state in before.where("order_id", remotes)}
        asked, new, again = [], [], []
        self._keep_answers((known_of.get(number), each) for number, each in remotes.items())
        with self._lock:
            now_of = {s.order_id: s for s in self._shared.states().where("order_id", remotes)}
            # Oldest first, as their messages would have come.
            for remote in reversed(remotes.values()):
                state = now_of.get(remote.order_id)
                if state is not None and _is_newer(state, known_of.get(remote.order_id)):
                    again.append(remote.order_id)
                    continue
                self._keep(state, remote)
                if state is None:
                    new.append(remote.order_id)
                else:
                    asked.append((state, remote))
        self._end_round(asked)
        for order_id in again:
            self.look_up(order_id)
        return list(filter(None, map(self._shared.frames.key_of, new)))

    def _end_round(self, asked: Iterable[tuple[OrderState, RemoteOrder]]) -> None:
        for state, remote in asked:
            self._keep_fetched(state, remote)
        self.rounds += 1
        self._shared.signal.send()

    def look_up(self, name: int | str) -> bool:
        """Ask for one order, by number, or among the newest by label; return whether there is one.

        What no message told is journalled.
        """
        try:
            if isinstance(name, int):
                remotes = [self.client.order(name)]
            else:
                newest = islice(self.client.iter_orders(page_size=_PAGE), _PAGE)
                remotes = [remote for remote in newest if remote.label == name]
        except (OrderNotFoundError, NotAllowedError):
            return False
        states = self._shared.states().where("order_id", [each.order_id for each in remotes])
        known_of = {state.order_id: state for state in states}
        self._keep_answers((known_of.get(each.order_id), each) for each in remotes)
        with self._lock:
            for remote in remotes:
                key = self._shared.frames.key_of(remote.order_id)
                self._keep(None if key is None else self._shared.state(key), remote)
        self._shared.signal.send()
        return bool(remotes)

    def keep_outcome(
        self, known: OrderState | None, remote: RemoteOrder, acted: str = "asked over REST"
    ) -> None:
        """Journal the server's answer after an action of this tracker."""
        self._keep_answers([(known, remote)])
        with self._lock:
            self._keep(known, remote, acted=acted)
        self.ask_soon()
        self._shared.signal.send()

    def _keep(self, known: OrderState | None, remote: RemoteOrder, *, acted: str = "") -> bool:
        if downloading := remote.order_id in self._shared.downloads:
            self.ask_soon()  # only after the download can new files be told from old ones
        deliveries = new_deliveries(
            known, remote, tenant=self.tenant, downloading=downloading, acted=acted
        )
        # Of orders that are not known here, the messages may be in another journal.
        told = {getattr(decode(each), "status", None) for each in deliveries}
        if known is not None and told & _ANNOUNCED:
            self.unannounced.add(remote.order_id)
        return journal_answers(self._shared.journal, deliveries)

    def _keep_answers(self, found: Iterable[tuple[OrderState | None, RemoteOrder]]) -> None:
        """Journal what only REST tells, without the lock: each round may wait for the journal.

        At the end the server counts no external files: of orders with a name its list decides.
        """
        answers = {}
        for known, remote in found:
            is_ours = known and (known.waits_for_download or known.correlation_id[:1] != "#")
            waits = bool(is_ours) or remote.order_id in self._shared.downloads
            tenant = known.tenant if known else self.tenant
            answers[tenant, remote.order_id] = Answer.of(remote, waits=waits)
        self._shared.frames.keep_answers(answers)

    def _keep_fetched(self, known: OrderState, remote: RemoteOrder) -> None:
        """Journal that no file waits, if the server's list is empty; its count may be late."""
        if (
            not known.waits_for_download
            or remote.available_files != 0
            or STATUS_OF_MESSAGE.get(remote.status) in GONE
            or remote.order_id in self._shared.downloads
        ):
            return
        with suppress(ServiceError):
            if next(iter(self.client.iter_available_files(remote.order_id)), None) is None:
                self._shared.journal.save_fetched(known.tenant, remote.order_id, known.ready_row)
                self._keep_answers([(replaced(known, waits_for_download=False), remote)])

    def _listed(self, wanted: Iterable[int]) -> dict[int, RemoteOrder]:
        """Return the newest orders down to the oldest wanted one, and wanted ones not listed.

        Remember those that are not ours.
        """
        missing = set(wanted)
        remotes = {}
        for remote in islice(self.client.iter_orders(page_size=_PAGE), _MOST_LISTED):
            remotes[remote.order_id] = remote
            missing.discard(remote.order_id)
            # The rest of a page costs no request, and may hold orders that block others.
            if not missing and len(remotes) % _PAGE == 0:
                break
        for order_id in sorted(missing, reverse=True)[:_MOST_SINGLE]:
            try:
                remotes[order_id] = self.client.order(order_id)
            except (OrderNotFoundError, NotAllowedError):
                self.not_ours.add(order_id)
        return remotes


def _is_newer(state: OrderState, asked: OrderState | None) -> bool:
    """Return whether a message or another answer came since REGARDS was asked."""
    # Every message changes one of these.
    fields = attrgetter("status", "last_event", "ready_row", "suborders_done")
    return asked is None or fields(asked) != fields(state)


# -- when it is asked


def catching_up(
    owner: object, sync: RestSync, consumer: Consumer, *, silence_s: float
) -> OwnThread:
    """Start a thread that asks after a connect, an action and a long silence.

    After *silence_s* without a message the unfinished orders are asked for. The thread does not
    hold its *owner*, the tracker, which can then be collected.
    """
    sync.failures, sync.error = 0, ""
    thread = OwnThread(
        "catchup",
        partial(_catch_up, sync, weakref.ref(consumer), silence_s),
        does="asks REGARDS after a connect and a silence",
        died=partial(sync.errors.record, RECEIVING),
        owner=owner,
        awaits=sync.where,
    )
    thread.start()
    return thread


def _catch_up(sync: RestSync, consumer_of: weakref.ref[Consumer], silence_s: float) -> None:
    asked_at: datetime | None = None
    #: The number of rounds in turn that brought nothing new.
    unmoved = 0
    not_before_s = 0.0
    is_unheard = False
    while not pause(_TICK_S):
        consumer = consumer_of()
        if consumer is None:
            return
        health = consumer.health
        del consumer
        if time.monotonic() < not_before_s:
            continue
        if health.state is HealthState.RECONNECTING and sync.take_due():
            # A call of the user waits for what no message can tell now.
            sync.ask_round()
            not_before_s = time.monotonic() + sync.retry_s(0.0)
        if health.state is not HealthState.CONSUMING:
            continue
        now = datetime.now(UTC)
        last_sign = max(health.since, health.last_event or health.since)
        quiet_s = (now - last_sign).total_seconds()
        if quiet_s < SETTLE_S or (health.queue_depth and quiet_s < _STALLED_QUEUE_S):
            continue
        missed = asked_at is None or asked_at < health.since
        silent_s = (now - max(last_sign, asked_at or last_sign)).total_seconds()
        usual_s = silence_s if health.last_event else min(silence_s, _UNHEARD_S)
        pause_s = min(usual_s * 2.0 ** min(unmoved, 10), max(LONGEST_SILENCE_S, silence_s))
        if not (missed or silent_s >= pause_s or sync.take_due()):
            continue
        asked_at = now
        changed = sync.ask_round()
        with suppress(JournalError):  # an outage of the journal ends by itself, too
            unmoved = 0 if changed or not sync.unfinished() else unmoved + 1
        if not is_unheard and (text := sync.unheard(health)):
            is_unheard = True
            sync.errors.note(f"{text}. tracker.doctor() says what to do")
        if sync.failures:
            asked_at = None
            not_before_s = time.monotonic() + sync.retry_s(silence_s)


class Poller:
    """Takes the place of the consumer without a broker: asks over REST at intervals.

    *changed* is called when the health changed. *poll_s* is the pause between two rounds while
    orders change; it is up to six times longer while they do not.
    """

    def __init__(self, sync: RestSync, changed: Callable[[], None], *, poll_s: float) -> None:
        if poll_s <= 0:
            raise SettingsError(f"poll_s must be more than 0 seconds, not {poll_s:g}")
        self._sync = sync
        self._poll_s = poll_s
        self._health = HealthReport(changed)

    @property
    def health(self) -> Health:
        """Whether REGARDS answers."""
        return self._health.health

    def start(self, timeout_s: float) -> None:
        """Log in, ask once, and go on asking in a thread, also if the list cannot be read."""
        if (thread := self._health.thread) is not None and thread.is_alive():
            return
        sync = self._sync
        sync.failures, sync.error = 0, ""
        try:
            with limited(time.monotonic() + timeout_s):
                problem = self._ask_first()
        except RegardsError as exc:
            self._health.report(HealthState.FAILED, str(exc))
            raise
        if problem is not None:
            sync.failed(problem)
        self._health.report(HealthState.POLLING, _polling(self._poll_s))
        self._health.thread = OwnThread(
            "poll",
            partial(_poll, sync, self._health, self._poll_s),
            does="asks REGARDS for the orders",
            died=partial(sync.errors.record, RECEIVING),
            owner=self,
            awaits=sync.where,
        )
        self._health.thread.start()

    def _ask_first(self) -> RegardsError | None:
        """Ask for the orders; return why they cannot be read, if it is REGARDS that answers."""
        client = self._sync.client
        try:
            # One order is enough to know whether the login is accepted.
            next(client.iter_orders(page_size=1), None)
            self._sync.ask_unfinished()
        except _REFUSALS:
            raise
        except RegardsError as exc:
            # After a login it is not a page of something else. A token has proved nothing so far.
            if client.login_form is None:
                try:
                    client.cart()
                except RegardsError:
                    raise exc from None
            return exc
        return None

    def stop(self, timeout_s: float) -> None:
        """End the thread; TrackingError if it did not end in time."""
        thread = self._health.thread
        if thread is None:
            return
        try:
            has_ended = thread.end(timeout_s)
        finally:
            self._health.report(HealthState.STOPPED)
        if not has_ended:
            raise TrackingError(f"polling over REST did not end within {timeout_s:g} s")


def _poll(sync: RestSync, health: HealthReport, poll_s: float) -> None:
    pause_s = poll_s
    known: set[int] = set()
    next_s = time.monotonic() + pause_s
    while not pause(min(_TICK_S, poll_s)):
        with suppress(JournalError):  # that of an outage: look again at the next tick
            unfinished = set(sync.unfinished())
            if unfinished - known:  # a new order: poll at the shortest pause again
                pause_s, next_s = poll_s, min(next_s, time.monotonic() + poll_s)
            known = unfinished
        if time.monotonic() < next_s and not sync.take_due():
            continue
        changed = sync.ask_round()
        if sync.failures:
            health.report(HealthState.RECONNECTING, sync.error)
        elif health.health.state is not HealthState.POLLING:
            health.report(HealthState.POLLING, _polling(poll_s))
        if changed:
            health.report_event()
        pause_s = poll_s if changed else min(1.5 * pause_s, max(LONGEST_POLL_S, poll_s))
        next_s = time.monotonic() + sync.retry_s(pause_s)


def _polling(poll_s: float) -> str:
    longest_s = max(LONGEST_POLL_S, poll_s)
    return f"polling REGARDS over REST every {poll_s:g} to {longest_s:g} s (no RabbitMQ account)"
