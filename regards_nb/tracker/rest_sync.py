"""REST sync: ask REGARDS for the state of orders, and journal what no message said.

What no message tells, a label, is an `Answer`. `rounds` decides when `RestSync` asks.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from regards_nb.errors import (
    JournalError,
    NotAllowedError,
    OrderNotFoundError,
    RegardsError,
    ServiceError,
    ServiceUnreachableError,
)
from regards_nb.events import OrderStatus, decode
from regards_nb.frames import Answer
from regards_nb.orders import GONE, replaced
from regards_nb.text import numbered
from regards_nb.tracker.rest_answers import (
    PAGE,
    REST_ANSWERS,
    STATUS_OF_MESSAGE,
    Listing,
    is_newer,
    journal_answers,
    new_deliveries,
    ready_again,
    state_of,
)
from regards_nb.tracker.shared import ASKING, SUBORDERS_PER_USER
from regards_nb.waits import ended_by, is_stopped, limited

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.consumer import Health
    from regards_nb.frames import States
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.shared import Shared

_log = logging.getLogger("regards_nb")

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
            self.client.iter_orders(page_size=PAGE),
            wanted,
            most=self.most_listed,
            reads_on=_any_still(unfinished.values()),
        )
        remotes = self._completed(remotes, wanted)
        known = self._ours(self._shared.states().where("order_id", remotes))
        gone = {n for n, each in remotes.items() if STATUS_OF_MESSAGE.get(each.status) in GONE}
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
        found = (state_of(each, self.tenant) for each in (*with_files, *first))
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
                if state is not None and is_newer(state, known_of.get(number)):
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
                    newest = islice(self.client.iter_orders(page_size=PAGE), PAGE)
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
            or STATUS_OF_MESSAGE.get(remote.status) in GONE
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
                journal_answers(self._shared.journal, [ready_again(known, remote)])

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
