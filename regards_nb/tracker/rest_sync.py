"""REST sync: ask REGARDS for the state of orders, and journal what no message said.

An answer that says something new is journalled like a message that came late, so that events and
orders need no second mechanism. What no message tells, a label, is an `Answer`. `rounds` decides
when `RestSync` asks.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from regards_nb.errors import (
    JournalError,
    NotAllowedError,
    OrderNotFoundError,
    RegardsError,
    ServiceError,
    ServiceUnreachableError,
)
from regards_nb.events import REST_APP_ID, Delivery, OrderEvent, OrderStatus, decode
from regards_nb.frames import Answer
from regards_nb.orders import ENDS_WITH_ERRORS, FINISHED, GONE, OrderReducer, precedence, replaced
from regards_nb.text import counted, numbered
from regards_nb.tracker.shared import ASKING, SUBORDERS_PER_USER
from regards_nb.waits import ended_by, is_stopped, limited

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.consumer import Health
    from regards_nb.frames import States
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.shared import Shared

_log = logging.getLogger("regards_nb")

#: Number of orders that one request lists.
_PAGE = 100
#: Where no order waits for the user, the list is read on again after this time.
_READ_ON_AGAIN_S = 10.0

#: Name of the queue in the journal for what REST told.
REST_ANSWERS = "REST answers"

#: The server's statuses (protocol.md 1.2) as the statuses of messages (1.6). A status that is not
#: here has no known meaning and is ignored.
_STATUS_OF_MESSAGE = {
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

#: When an order has stood still for so long, the list is read on to one that waits for the user.
_STILL_S = 1.0
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
#: What messages tell, and REST only where they did not come.
_ANNOUNCED = frozenset({OrderStatus.SUBORDER_DONE, OrderStatus.DONE, OrderStatus.FAILED})
FIRST_RETRY_S = 30.0
#: Maximum time to find out whether the cause of an error has ended.
_CHECK_S = 5.0


@dataclass(slots=True)
class Listing:
    """How far the list of orders was read, which begins with the newest."""

    #: How many orders were taken in; infinite if all.
    n_taken_in: float = 0.0
    #: How many the rounds read that count, infinite if all; and the oldest one of the last round.
    n: float = 0.0
    oldest: int = 0
    #: Until when no round reads on.
    _read_on_s: float = 0.0

    @property
    def n_newest(self) -> float:
        """How many of the newest orders are known; infinite if all."""
        return max(self.n, self.n_taken_in)

    @property
    def is_all(self) -> bool:
        """Whether all orders of the user are known."""
        return self.n_newest == math.inf

    def n_only(self, most: int) -> int:
        """Return how many of the newest orders were read; 0 if all, or less than the *most*."""
        return int(self.n_newest) if most <= self.n_newest < math.inf else 0

    @property
    def has_read_on(self) -> bool:
        """Whether a round has read on a moment ago, and counts beside later ones."""
        return time.monotonic() < self._read_on_s

    def read(
        self, orders: Iterable[RemoteOrder], wanted: Iterable[int], *, most: int, reads_on: bool
    ) -> dict[int, RemoteOrder]:
        """Read down to the oldest of the *wanted* orders, at most *most*.

        *reads_on*: go on to an order that waits for the user, unless that was done a moment ago.
        """
        found: dict[int, RemoteOrder] = {}
        missing = set(wanted)
        n_before = self.n if self.has_read_on else 0.0
        reads_on = reads_on and not self.has_read_on
        for remote in islice(orders, most):
            found[remote.order_id] = remote
            missing.discard(remote.order_id)
            # One that has ended may have external files only, and they take no place.
            has_files = remote.available_files and not remote.finished
            reads_on = reads_on and not (remote.waiting_for_user or has_files)
            # The rest of a page costs no request, and may hold orders that block others.
            if not missing and not reads_on and len(found) % _PAGE == 0:
                break
        else:
            if len(found) < most:
                n_before = math.inf
        if reads_on:
            self._read_on_s = time.monotonic() + _READ_ON_AGAIN_S
        self.n, self.oldest = max(n_before, len(found)), min(found, default=0)
        return found


class RestSync:
    """Asks for orders in few requests, and journals the new facts. Safe in any thread.

    Each call that asks raises ServiceError where the server does not answer.
    """

    #: The list, which REGARDS neither filters nor sorts (protocol.md 1.2), is read as far as the
    #: oldest unfinished order, and no further than this.
    most_listed = 1000

    def __init__(self, shared: Shared, client: RegardsClient) -> None:
        self.client = client
        self.tenant = client.tenant
        self.where = f"REGARDS at {client.base_url}"
        self.errors, self.obstacle = shared.errors, shared.journal.obstacle
        self._shared = shared
        #: What actions of this tracker have brought, until the journal has it.
        self._outcomes: list[tuple[OrderState | None, RemoteOrder, str]] = []
        #: Numbers of orders that the server does not show to this user. They are asked for once.
        self.not_ours = set(shared.frames.refused)
        #: Numbers of orders of which REST told what a message should have told.
        self.unannounced: set[int] = set()
        #: Numbers of ended orders of which REGARDS listed files that seemed downloaded.
        self._awaited: set[int] = set()
        #: The user's orders that no message has named, which have files to download, and the first
        #: that go on. While older ones may be before them, without those that have not begun.
        self.without_message: tuple[OrderState, ...] = ()
        #: Numbers of the orders that REGARDS has begun, as the last round told.
        self.begun: frozenset[int] = frozenset()
        self.listing = Listing()
        # Held while an answer is compared and journalled, so that no two threads journal the same.
        # Never during a request.
        self._lock = threading.Lock()
        #: When further rounds are due; `list` is safe in any thread.
        self._due_s: list[float] = []
        #: Number of rounds that REGARDS answered, and of those in turn that failed since.
        self.rounds = self.failures = 0
        #: Text of the last error, empty after a round that went well; and since when it was or not.
        self.error, self.since = "", datetime.now(UTC)
        #: Set by the first answer to several rounds that run at the same time; it ends the others.
        self._answered = threading.Event()

    def open_session(self) -> None:
        """Write to the journal that this process asks REGARDS, for those that only read it."""
        self._shared.journal.open_session(REST_ANSWERS)

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
    def silence(self) -> str:
        """Since when no answer of REGARDS about the orders comes, or why it is asked again."""
        return self._shared.asking.text("the list of orders")

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
            if state.order_id is not None and state.order_id not in self.not_ours
        }

    def ask_unfinished(self) -> bool:
        """Ask for all orders that may change together; return whether anything was new."""
        unfinished = self.unfinished()
        wanted = unfinished | self._waiting()
        if not wanted:
            return False
        before = self._shared.states()
        older = self.without_message if self.listing.has_read_on else ()
        remotes = self.listing.read(
            self.client.iter_orders(page_size=_PAGE),
            wanted,
            most=self.most_listed,
            reads_on=_any_still(unfinished.values()),
        )
        remotes = self._completed(remotes, wanted)
        known = self._ours(self._shared.states().where("order_id", remotes))
        gone = {n for n, each in remotes.items() if _STATUS_OF_MESSAGE.get(each.status) in GONE}
        self.begun = frozenset(n for n, each in remotes.items() if each.status != "PENDING")
        others = [each for n, each in sorted(remotes.items()) if n not in known.keys() | gone]
        with_files = (each for each in others if each.available_files)
        going_on = (
            each
            for each in others
            if not (each.available_files or each.finished or each.status == "PAUSED")
            if self.listing.is_all or each.order_id in self.begun
        )
        # Of those that go on, only so many can be first in line.
        first = islice(going_on, SUBORDERS_PER_USER)
        found = (_state_of(each, self.tenant) for each in (*with_files, *first))
        older = tuple(s for s in older if (s.order_id or 0) < self.listing.oldest)
        self.without_message = (*older, *found)
        remotes = {number: each for number, each in remotes.items() if number in known}
        return self._take(remotes, before, unfinished.keys() | gone)[0]

    def _take(
        self, remotes: dict[int, RemoteOrder], before: States, may_change: Container[int]
    ) -> tuple[bool, list[int]]:
        """Journal what is new in the answers to a question; *before* are the states before it.

        Return whether anything was, and which orders a message or another answer has changed
        meanwhile. Of an order that is not in *may_change*, only what REST alone tells is kept.
        """
        self.errors.withdraw(ASKING)
        known_of = self._ours(before.where("order_id", remotes))
        now_of = self._ours(self._shared.states().where("order_id", remotes))
        self._keep_answers((now_of.get(number), each) for number, each in remotes.items())
        asked, newer, changed = [], [], False
        with self._lock:
            now_of = self._ours(self._shared.states().where("order_id", remotes))
            # Oldest first, as their messages would have come.
            for number, remote in reversed(remotes.items()):
                state = now_of.get(number)
                if state is not None and _is_newer(state, known_of.get(number)):
                    newer.append(number)
                    continue
                if number in may_change:
                    changed |= self._keep(state, remote)
                if state is not None:
                    asked.append((state, remote))
        for state, remote in asked:
            self._keep_listed(state, remote)
        self.rounds += 1
        self._shared.signal.send()
        return changed, newer

    def ask_round(self) -> bool:
        """Ask as `ask_unfinished`. An outage delays the next round, other errors are recorded."""
        answered = self._answered
        with self._shared.asking.watched(), ended_by(answered):
            try:
                changed = self.ask_unfinished()
            except RegardsError as exc:
                if not is_stopped():  # by an answer, or the end of the call that asked
                    self.failed(exc)
                return False
        self._answered = threading.Event()
        answered.set()
        self._report(0, "")
        return changed

    def failed(self, error: RegardsError) -> None:
        """Delay the next round, and record an error that does not end by itself, once."""
        if isinstance(error, ServiceUnreachableError | JournalError):
            # An outage ends by itself, and every call of the user tells it while it lasts.
            _log.warning("%s: %s", ASKING, error)
        elif str(error) != self.error:
            self.errors.record(ASKING, error, check_again=self._check_again)
        self._report(self.failures + 1, str(error))

    def _report(self, failures: int, error: str) -> None:
        before, self.error, self.failures = self.error, error, failures
        if bool(error) != bool(before):
            self.since = datetime.now(UTC)
        if error != before:
            self._shared.signal.send()

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
        self.save_outcomes()
        before, key_of = self._shared.states(), self._shared.frames.key_of
        remotes = {each.order_id: each for each in islice(self.client.iter_orders(), limit)}
        is_all = len(remotes) < limit
        n_taken_in = math.inf if is_all else len(remotes)
        self.listing.n_taken_in = max(self.listing.n_taken_in, n_taken_in)
        new = [number for number in reversed(remotes) if key_of(number) is None]
        oldest = 0 if is_all else min(remotes, default=0)
        known = self.unfinished() | self._waiting()
        remotes = self._completed(remotes, {number for number in known if number > oldest})
        _, newer = self._take(remotes, before, remotes)
        for order_id in newer:
            self.look_up(order_id)
        return list(filter(None, map(key_of, new)))

    def look_up(self, name: int | str) -> bool:
        """Ask for one order, by number, or among the newest by label; return whether there is one.

        What no message told is journalled.
        """
        try:
            with self._shared.asking.watched():
                if isinstance(name, int):
                    remotes = [self._order(name)]
                else:
                    newest = islice(self.client.iter_orders(page_size=_PAGE), _PAGE)
                    remotes = [remote for remote in newest if remote.label == name]
        except (OrderNotFoundError, NotAllowedError):
            return False
        numbers = [each.order_id for each in remotes]
        known_of = self._ours(self._shared.states().where("order_id", numbers))
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
        """Journal the server's answer after an action. After a JournalError that is repeated."""
        if (outcome := (known, remote, acted)) not in self._outcomes:
            self._outcomes.append(outcome)
        self.ask_soon()
        self.save_outcomes()

    def prove_journal(self) -> None:
        """Write to the journal, before REGARDS is asked to act: it must remember what was done."""
        self.save_outcomes()
        self._shared.journal.open_session(REST_ANSWERS)

    def save_outcomes(self) -> None:
        """Journal what `keep_outcome` could not."""
        for outcome in self._outcomes.copy():
            known, remote, acted = outcome
            self._keep_answers([(known, remote)])
            with self._lock:
                if outcome in self._outcomes:  # no other thread has done it
                    self._keep(known, remote, acted=acted)
                    self._outcomes.remove(outcome)
            self._shared.signal.send()

    def _keep(self, known: OrderState | None, remote: RemoteOrder, *, acted: str = "") -> bool:
        if downloading := remote.order_id in self._shared.downloads:
            self.ask_soon()  # only after the download can new files be told from old ones
        deliveries = _new_deliveries(
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
            is_awaited = remote.waiting_for_user and remote.order_id in self._awaited
            answers[tenant, remote.order_id] = Answer.of(
                remote, waits=waits, counts_sent=not is_awaited
            )
        self._shared.frames.keep_answers(answers)

    def _keep_listed(self, known: OrderState, remote: RemoteOrder) -> None:
        """Journal whether files wait, if the server's list says so; its count may be late.

        Of an ended order it may wait for files that are here: it sent them, and did not save that
        (protocol.md 1.0, 5). This is told once, so that no download is repeated without end.
        """
        number, waits = remote.order_id, known.waits_for_download
        is_new = known.finished and remote.waiting_for_user and number not in self._awaited
        if (
            not (remote.available_files == 0 if waits else is_new)
            or _STATUS_OF_MESSAGE.get(remote.status) in GONE
            or number in self._shared.downloads
        ):
            return
        with suppress(ServiceError):
            is_listed = next(iter(self.client.iter_available_files(number)), None) is not None
            if waits and not is_listed:
                self._shared.journal.save_fetched(known.tenant, number, known.ready_row)
                self._keep_answers([(replaced(known, waits_for_download=False), remote)])
            elif is_listed and not waits:
                self._awaited.add(number)
                self._keep_answers([(known, remote)])
                status, link = OrderStatus.SUBORDER_DONE, _link(remote)
                again = _message(known, remote, self.tenant, status, downloadLink=link)
                journal_answers(self._shared.journal, [again])

    def _order(self, order_id: int) -> RemoteOrder:
        """Ask for one order alone. NotAllowedError: it belongs to another user, which is noted."""
        try:
            return self.client.order(order_id)
        except NotAllowedError:
            self.not_ours.add(order_id)
            self._shared.frames.set_refused([order_id], is_refused=True)
            self._shared.signal.send()
            raise

    def _completed(
        self, listed: dict[int, RemoteOrder], wanted: Iterable[int]
    ) -> dict[int, RemoteOrder]:
        """Add the wanted orders that were not listed; remember which are ours and which are not."""
        self.not_ours.difference_update(listed)
        self._shared.frames.set_refused(listed, is_refused=False)
        remotes = listed.copy()
        for order_id in sorted(set(wanted) - listed.keys(), reverse=True)[:_MOST_SINGLE]:
            try:
                remotes[order_id] = self._order(order_id)
            except (OrderNotFoundError, NotAllowedError):
                self.not_ours.add(order_id)
        return remotes


def _any_still(unfinished: Iterable[OrderState]) -> bool:
    """Return whether one of the orders may have to wait for others."""
    now = datetime.now(UTC)
    return any(
        not state.waits_for_download
        and state.status != OrderStatus.PAUSED
        and (now - state.last_event).total_seconds() >= _STILL_S
        for state in unfinished
    )


def _new_deliveries(
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
    status = _STATUS_OF_MESSAGE.get(remote.status)
    tell = partial(_message, known, remote, tenant)
    found = []
    if known is None:
        found.append(tell(OrderStatus.GRANTED, _seconds(remote.created_at)))
    if status is None:
        return found
    waits = known is not None and known.waits_for_download
    if remote.available_files and status not in GONE and not (downloading or waits):
        # Without a timestamp: REST does not tell when the files became ready.
        found.append(tell(OrderStatus.SUBORDER_DONE, downloadLink=_link(remote)))
    if _is_new(known, remote, status, acted=bool(acted)):
        details = _details(remote, status, acted or "asked over REST")
        found.append(tell(status, _timestamp_s(known, remote), **details))
    return found


def _message(
    known: OrderState | None,
    remote: RemoteOrder,
    tenant: str | None,
    status: str,
    timestamp_s: int | None = None,
    **details: Any,
) -> Delivery:
    name = None
    if known is not None:
        tenant = known.tenant
        if not known.correlation_id.startswith("#"):  # else only its number is known
            name = known.correlation_id
    fields = {"status": status, "orderId": remote.order_id, "correlationId": name, **details}
    return answer_delivery(fields, tenant=tenant, timestamp_s=timestamp_s)


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


def _state_of(remote: RemoteOrder, tenant: str | None) -> OrderState:
    """Return the state of an order of which only REST has told."""
    reducer = OrderReducer()
    for delivery in _new_deliveries(None, remote, tenant=tenant):
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


def _is_newer(state: OrderState, asked: OrderState | None) -> bool:
    """Return whether a message or another answer came since REGARDS was asked."""
    # Every message changes one of these.
    fields = attrgetter("status", "last_event", "ready_row", "suborders_done")
    return asked is None or fields(asked) != fields(state)
