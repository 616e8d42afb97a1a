"""One order for each row or group of a table, made one after the other as REGARDS has room."""

from __future__ import annotations

import time
import warnings
from collections import deque
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from regards_nb.client import asking_again
from regards_nb.errors import (
    BrokerUnreachableError,
    JournalError,
    ServiceUnreachableError,
    SettingsError,
    WaitTimeoutError,
)
from regards_nb.events import OrderStatus
from regards_nb.orders import GONE, OrderKey
from regards_nb.output import say
from regards_nb.text import clean, counted, listed
from regards_nb.tracker.blocking import advice_for, downloads_of
from regards_nb.tracker.estimate import NothingFoundError
from regards_nb.tracker.shared import LOOK_S, SUBORDERS_PER_USER, HeldElsewhereError
from regards_nb.tracker.submission import new_name
from regards_nb.tracker.waiting import WaitingCall
from regards_nb.waits import growing, limited

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.frames import States
    from regards_nb.orders import OrderState
    from regards_nb.tracker.blocking import BlockingOrders
    from regards_nb.tracker.dispatcher import AutoDownload
    from regards_nb.tracker.life import Life
    from regards_nb.tracker.shared import Shared
    from regards_nb.tracker.submission import EarlierRequest, Request, Submission

#: The pause after a request that REGARDS did not get; it doubles up to the second value.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 30.0
_FAILED = frozenset({OrderStatus.DENIED, OrderStatus.FAILED})
_CALL = "submit_each(..., download=True)"
_OTHER_FILES = (
    "ask for other products or files than the orders of the same labels that were made before. "
    'Give these rows other labels, for example label="second {cycle}"'
)
_GO_ON = "submit_each() with the same table goes on, and orders nothing twice"


class TableOrders(WaitingCall):
    """Makes the orders of a table, each once, and follows them to their ends."""

    def __init__(
        self,
        shared: Shared,
        submission: Submission,
        blocking: BlockingOrders,
        life: Life,
        *,
        asked: AutoDownload | None,
        timeout_s: float | None,
        refuse_cart: bool,
        estimate: bool,
        retry: bool,
    ) -> None:
        super().__init__(shared, blocking, life, asked=asked, timeout_s=timeout_s)
        self._submission = submission
        self._refuse_cart = refuse_cart
        self._retry = retry
        #: Without REST the tracker cannot see whether files were downloaded.
        self._sees_downloads = blocking.sync is not None
        #: The labels of the table.
        self._bases: set[str] = set()
        #: The requests as the table has them, and under the names with which they are sent.
        self._wanted: list[Request] = []
        self._requests: list[Request] = []
        #: The places in the list of those that are still to be made.
        self._pending: deque[int] = deque()
        self._not_before_s = 0.0
        self._pauses = growing(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        #: Why REGARDS did not get the last request.
        self._obstacle = ""
        #: Gets the estimate of each order, only so that none is made of nothing; None: not asked.
        self._estimate = (lambda _: None) if estimate else None
        #: By their places, why orders were not made.
        self._refused: dict[int, str] = {}

    @property
    def correlation_ids(self) -> list[str]:
        """The correlation id of each order, in the order of the table."""
        return [request.correlation_id for request in self._requests]

    @property
    def labels(self) -> list[str]:
        """The label of each order; an order that was made again has a number behind it."""
        return [request.label or "" for request in self._requests]

    def keys(self) -> list[OrderKey]:
        """Return the keys of all orders of the table, also of those that are not made yet."""
        find = self._shared.frames.key_of
        names = [n for place, n in enumerate(self.correlation_ids) if place not in self._refused]
        return [find(name) or OrderKey(None, name) for name in names]

    # -- which orders

    def plan(self, wanted: Iterable[Request]) -> None:
        """Find out which of the requests were sent before, under which name. Send nothing.

        Say what those will contain that were never sent, if that is asked for.
        SettingsError: a label was used for other products, the tracker is not started, or REGARDS
        would deny a request.
        """
        self._wanted = list(wanted)
        for request in self._wanted:
            request.check()
        self._life.require_running()
        with limited(self._deadline_s):
            new = self._plan()
            asks = bool(new) and self._estimate is not None
            text = self._submission.estimate(new) if asks else None
        if text is not None:
            say(f"ordering {text} ({counted(len(new), 'order')})")

    def _plan(self) -> list[Request]:
        """Return the requests that were never sent under their label."""
        self._bases = {each.label or "" for each in self._wanted}
        attempts = self._submission.labelled(partial(_is_attempt, self._bases))
        named = [(self._named(request, attempts), request.label or "") for request in self._wanted]
        if changed := [label for request, label in named if request is None]:
            raise SettingsError(
                f"nothing was ordered: {listed(changed, between='; ')} of the table {_OTHER_FILES}"
            )
        self._requests = [request for request, _ in named if request is not None]
        find = self._shared.frames.key_of
        self._pending.extend(
            place for place, r in enumerate(self._requests) if find(r.correlation_id) is None
        )
        pending = [self._requests[place] for place in self._pending]
        return [r for r in pending if (r.label or "") not in attempts]

    def _named(self, request: Request, attempts: dict[str, list[EarlierRequest]]) -> Request | None:
        """Return a request with the name under which it was sent, or with a new one.

        None: another request was sent under its label.
        """
        label = base = request.label or ""
        numbered = (f"{base} ({number})" for number in count(2))
        following = next(numbered)
        while following in attempts or following in self._bases:
            label = label if following in self._bases else following
            following = next(numbered)
        earlier = attempts.get(label, [])
        sent = [each for each in earlier if each.was_sent]
        same = [each for each in sent if request.orders_the_same_as(each.saved)]
        if sent and not same:
            return None
        if same and not (self._retry and self._has_failed(same[-1].correlation_id)):
            return request._replace(label=label, correlation_id=same[-1].correlation_id)
        if same:
            return request._replace(label=following, correlation_id=new_name())
        # A request that was not sent keeps its name, so that its label stands for one order.
        name = earlier[-1].correlation_id if earlier else new_name()
        return request._replace(label=label, correlation_id=name)

    def _renamed_next(self, wanted: Request) -> Request:
        """Name the next request anew: another kernel may have sent it after the plan was made."""
        attempts = self._submission.labelled(partial(_is_attempt, {wanted.label or ""}))
        if (request := self._named(wanted, attempts)) is None:
            raise SettingsError(f"it {_OTHER_FILES}")
        self._requests[self._pending[0]] = request
        return request

    def _has_failed(self, correlation_id: str) -> bool:
        """Return whether an order brought no file and never will."""
        key = self._shared.frames.key_of(correlation_id)
        if key is None:
            # Over REST the order can be looked for. Over AMQP only its answer would tell.
            return not self._sees_downloads
        state = self._shared.state(key)
        if state.status in GONE:
            return not state.downloaded_files
        return state.status in _FAILED and not state.ready_row

    # -- making them

    def is_over(self) -> bool:
        """Return whether all orders are made and have ended."""
        return not self._pending and all(map(self._suffices, self._states()))

    def proceed(self) -> None:
        """Make the next order, if REGARDS has room for it; go on with those that are made.

        After an error of an order that could not be made, the orders before it are made.
        """
        if self._pending and self._has_room(self._states()):
            self._make_next()
        super().proceed()

    def _make_next(self) -> None:
        request = self._wanted[self._pending[0]]
        try:
            with limited(self._deadline_s):
                self._submission.submit(
                    request,
                    refuse_cart=self._refuse_cart,
                    estimate=self._estimate,
                    rename=self._renamed_next,
                )
        except HeldElsewhereError as exc:
            self._obstacle = f"{exc} is submitting a request"
            self._not_before_s = time.monotonic() + LOOK_S
        except (ServiceUnreachableError, BrokerUnreachableError) as exc:
            # The request is in the journal: the next attempt asks for its order first.
            pause_s = next(self._pauses)
            self._obstacle = asking_again(pause_s, str(exc))
            self._not_before_s = time.monotonic() + pause_s
        except JournalError as exc:
            # The time limit of the call may end a wait for a thread that writes to the journal.
            if self._deadline_s is None or time.monotonic() < self._deadline_s:
                raise
            self._obstacle = str(exc)
        except NothingFoundError as exc:
            self._refused[self._pending.popleft()] = f"{request.label} ({exc})"
            self._shared.signal.send()
        except SettingsError as exc:
            raise SettingsError(f"the order {request.label!r} of the table: {exc}") from exc
        except WaitTimeoutError as exc:
            raise WaitTimeoutError(
                f"the order {request.label!r} of the table: {exc}. If REGARDS never made it, "
                "submit_each(..., retry=True) sends it under another name"
            ) from exc
        else:
            self._pending.popleft()
            self._obstacle, self._pauses = "", growing(_FIRST_RETRY_S, _LONGEST_RETRY_S)

    def _has_room(self, states: Iterable[OrderState]) -> bool:
        if time.monotonic() < self._not_before_s:
            return False
        return sum(map(self._occupies, states)) < SUBORDERS_PER_USER

    def _occupies(self, state: OrderState) -> bool:
        """Return whether REGARDS prepares an order, or waits until its files are downloaded."""
        if not state.finished:
            return True
        is_open = state.waits_for_download or state.downloading
        return is_open and self._sees_downloads

    def _suffices(self, state: OrderState) -> bool:
        return self._blocking.has_ended(state, self._asked)

    def _states(self) -> States:
        return self._shared.states(self.keys())

    # -- what is said

    def _to_download(self) -> list[OrderState]:
        """Return the orders whose files were not downloaded: those of the table, and others."""
        if not self._sees_downloads:
            return []
        shown = self._blocking.without_automatic(self._shared.holders.without_held(self._states()))
        mine = {s.order_id: s for s in shown if s.waits_for_download and not s.downloading}
        return list((mine | {state.order_id: state for state in self._blocking.find()}).values())

    def _told_at_limit(self) -> str:
        note = "; ".join(filter(None, (self.note(), self._life.outage))).rstrip(".")
        return f"{note}. {_GO_ON}"

    def note(self) -> str:
        """Return how many orders are made, and why they do not go on."""
        total = len(self._requests)
        needed = [state for state in self._states() if not self._suffices(state)]
        made = total - len(self._pending) - len(self._refused)
        note = f"{made} of {counted(total, 'order')} made, {len(needed)} running"
        if self._obstacle:
            note += f"; {self._obstacle}"
        reasons = self._blocking.reasons(needed, _CALL, self._asked)
        if not reasons and self._pending and self._asked is None:
            # The next order is not made before files of these were downloaded.
            running = downloads_of(self._blocking.being_downloaded(self._states()))
            reasons = [advice_for(waiting, _CALL)] if (waiting := self._to_download()) else running
        return "; ".join([note, *self._shared.obstacles(), *reasons])

    def stopped(self) -> str:
        """Return which orders were made when the user stopped the call."""
        if not self._requests:
            return "stopped; nothing was ordered"
        find, made, left = self._shared.frames.key_of, list[str](), list[str]()
        for request in self._requests:
            (left if find(request.correlation_id) is None else made).append(request.label or "")
        text = f"stopped; {len(made)} of {counted(len(self._requests), 'order')} made"
        text += f": {listed(made, between='; ')}" if made else ""
        following = self._requests[self._pending[0]] if self._pending else None
        if (
            following is not None
            and (label := following.label or "") in left
            and self._submission.was_sent(following.correlation_id)
        ):
            left.remove(label)
            text += f". Perhaps made: {label}, the next call asks REGARDS"
        text += f". Not made: {listed(left, between='; ')}" if left else ""
        waiting = self._to_download()
        if waiting and left and self._asked is None:
            text += f". {advice_for(waiting, _CALL)}"
        return f"{text}. {_GO_ON}"

    def warn_of_failures(self) -> None:
        """Warn of the orders that were denied or failed; the others are there."""
        states = self._states()
        lost = [state for state in states if self._has_failed(state.correlation_id)]
        numbers = [s.order_id for s in states if s.status in _FAILED and s.ready_row and s.order_id]
        texts = []
        if self._refused:
            rows = listed(list(self._refused.values()), between="; ")
            texts.append(f"the same call goes on with corrected rows for {rows}")
        if lost:
            told = [f"{state.label} ({_reason(state)})" for state in lost]
            texts.append(
                f"{counted(f'{len(lost)} of {len(states)}', 'order')} brought no file: "
                f"{listed(told, between='; ')}. submit_each(..., retry=True) orders them again"
            )
        if numbers:
            texts.append(
                f"{counted(f'{len(numbers)} of {len(states)}', 'order')} came with files missing: "
                f"tracker.retry({numbers}) has REGARDS prepare them again"
            )
        if texts:
            warnings.warn("; ".join(texts), stacklevel=4)


def _is_attempt(bases: set[str], label: str) -> bool:
    """Return whether a label is one of some, or one with the number of a later attempt behind."""
    base, _, number = label.rpartition(" (")
    is_later = number.endswith(")") and number[:-1].isdecimal() and base in bases
    return label in bases or is_later


def _reason(state: OrderState) -> str:
    return f"{state.status}: {clean(state.message)}" if state.message else str(state.status)
