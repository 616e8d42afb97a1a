"""Decides why REGARDS does not prepare an order: a download, a pause, or an order before it."""

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from regards_nb.events import OrderStatus
from regards_nb.frames import States
from regards_nb.orders import replaced
from regards_nb.text import counted, numbered
from regards_nb.tracker.shared import SUBORDERS_PER_USER, advice_for_missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.dispatcher import AutoDownload
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import Shared

#: How to download with a tracker that has no REST side.
HOW_WITHOUT_CLIENT = (
    "download in a kernel that has a client, or make this tracker with client=RegardsClient(...)"
)
_MOST_NAMED = 5
#: Only the newest orders are searched for files that could not be downloaded.
_MOST_LOOKED_AT = 100


class BlockingOrders:
    """Finds all orders of the user that wait for a download, while an order is unfinished.

    They may keep REGARDS from preparing others of the same tenant (protocol.md 0.2). *sync* knows
    which orders are not the user's, and orders that no message has named.
    """

    #: The number of sub-orders that REGARDS prepares is a setting of the server: after this time
    #: without a change, fewer sub-orders that wait are named as the reason, too.
    quiet_s = 30.0

    def __init__(self, shared: Shared, sync: RestSync | None) -> None:
        self._shared = shared
        self.sync = sync
        #: The tracker's automatic download, while it runs.
        self.automatic: AutoDownload | None = None
        #: What waits for a download, and since when it has not changed.
        self._waiting: list[bytes] = []
        self._waiting_since_s = 0.0

    def find(self) -> States:
        """Return these orders by number; not those that `automatic` downloads in a moment."""
        states, others = self._states_of_user(), self._only_over_rest()
        if states.numbers("finished").all():
            return States()
        waiting = self.without_automatic(states.where("waits_for_download")) + [
            state for state in others if state.order_id not in self._shared.downloads
        ]
        waiting = self._shared.holders.without_held(waiting)
        return waiting.where("waits_for_download").sorted("order_id")

    def _states_of_user(self) -> States:
        not_ours = () if self.sync is None else self.sync.not_ours
        return self._shared.states().without("order_id", not_ours)

    def _running(self) -> States:
        """Return the orders that are downloaded here as if they were not: which REGARDS awaits."""
        return self._shared.frames.states().where("order_id", list(self._shared.downloads))

    def _only_over_rest(self) -> list[OrderState]:
        """Return the orders of the user that only REST knows."""
        orders = () if self.sync is None else self.sync.without_message
        return [each for each in orders if self._shared.frames.key_of(each.order_id or 0) is None]

    def first_in_line(self) -> list[OrderState]:
        """Return the first two orders that REGARDS has not finished, and those that keep places.

        As far as REST told. The latter wait for a download (`find`), or are being downloaded.
        """
        if self.sync is None or not self.sync.rounds:
            return []  # it is not known whose the orders are
        known = self._states_of_user()
        downloaded = self.being_downloaded(known)
        if not self.sync.listing.is_all:  # older ones may be before those that have not begun
            known = known.where("order_id", self.sync.begun)
        unfinished = (known + self._only_over_rest()).without("finished")
        going_on = (
            replaced(state, waits_for_download=False)
            for state in unfinished.sorted("order_id")
            if state.order_id and state.status != OrderStatus.PAUSED
        )
        line = {state.order_id: state for state in islice(going_on, SUBORDERS_PER_USER)}
        for keeping in (self.find(), downloaded):
            line |= {state.order_id: state for state in keeping[:_MOST_NAMED]}
        return list(line.values())

    def being_downloaded(self, orders: States) -> list[OrderState]:
        """Return those of the orders that REGARDS prepares on when a running download has ended."""
        waiting = self._running().where("waits_for_download").numbers("order_id").tolist()
        return [*self._shared.holders.held(orders), *orders.where("order_id", waiting)]

    def without_automatic(self, states: States) -> States:
        """Return states without waits that `automatic` ends in a moment, and with its failures."""
        if (automatic := self.automatic) is None:
            return states

        def without(state: OrderState) -> OrderState:
            if state.downloading:
                return state
            if automatic.will_try(state):
                return replaced(state, waits_for_download=False, lacks_names=False)
            return replaced(state, download_note=automatic.failure([state]))

        return states.changed(without, "to_download")

    def has_ended(self, state: OrderState, asked: AutoDownload | None) -> bool:
        """Return whether an order has ended, and the download of its files if there is one.

        *asked* downloads them for the call that waits. Of `automatic` the first attempt counts: a
        failed one may be repeated for long.
        """
        downloads = asked or self.automatic
        if not state.finished or downloads is None:
            return state.finished
        if asked is None and not downloads.will_try(state):
            return True
        return not (state.downloading or state.to_download or downloads.is_held(state))

    def standing_still(
        self,
        waited_for: Iterable[OrderState] = (),
        *,
        shown: States | None = None,
    ) -> Sequence[OrderState]:
        """Return the orders to download before REGARDS prepares others, if it has stopped.

        If it may still go on, only those of *waited_for* that may have more sub-orders than it
        prepares at once. Without *waited_for*, the orders that may be blocked are those *shown*, by
        default all. Orders whose download by `automatic` failed are left out: it says why.
        """
        automatic, found = self.automatic, self.find()
        # Very many orders may wait: only a few of them are made.
        waiting = [found.numbers(name).tobytes() for name in ("order_id", "suborders_done")]
        now_s = time.monotonic()
        if waiting != self._waiting:
            self._waiting, self._waiting_since_s = waiting, now_s
        waited_for, is_quiet = list(waited_for), now_s - self._waiting_since_s >= self.quiet_s

        def blocking(waiting: States) -> States:
            return waiting if is_quiet else _taking_both_places(waiting, waited_for)

        if found and self._shared.frames.is_mixed():
            unfinished = (shown or self._shared.frames.states()).without("finished")
            groups = _by_tenant(found, waited_for or unfinished)
            found = States([state for group in groups for state in blocking(group)])
        else:
            found = blocking(found)
        return found if automatic is None else [s for s in found if not automatic.failure([s])]

    def reasons(
        self, needed: Sequence[OrderState], call: str, asked: AutoDownload | None
    ) -> list[str]:
        """Return why the orders that a call waits for do not go on, the first cause first.

        *asked* is the download of the call, or None. *call* is a call that downloads what blocks.
        """
        going_on = [s for s in needed if not s.finished and s.status != OrderStatus.PAUSED]
        reasons = [advice_for_paused(needed)]
        running = self._running()
        if (downloads := asked or self.automatic) is not None:
            reasons.append(downloads.failure([*needed, *self.find(), *running]))
        waiting = running.where("waits_for_download")
        numbers = {state.order_id for state in needed}
        first = sorted(s.order_id for s in waiting if s.order_id and s.order_id not in numbers)
        if asked is not None and first:
            them = "them" if len(first) > 1 else "it"
            reasons.append(f"downloading {numbered(first)} first, because REGARDS waits for {them}")
        elif going_on:
            blocking, line = self.standing_still(going_on), self.first_in_line()
            if asked is not None:  # it downloads what waits
                blocking, line = [], [replaced(s, waits_for_download=False) for s in line]
            call = "" if self.sync is None else call
            is_mixed = bool(blocking) and self._shared.frames.is_mixed()
            advice = partial(advice_for, blocking, call, with_tenant=is_mixed)
            ahead = "" if blocking else behind(going_on, line) or self._not_listed(going_on)
            reasons.append(advice() if blocking else ahead)
        return list(filter(None, reasons))

    def _not_listed(self, states: Iterable[OrderState]) -> str:
        """Return which of some orders may have to wait for one that is too old to be found."""
        sync = self.sync
        if sync is None or not (n_listed := sync.listing.n_only(sync.most_listed)):
            return ""
        numbers = [s.order_id for s in states if s.order_id and s.order_id not in sync.begun]
        if not numbers:
            return ""
        return (
            f"{numbered(numbers)} may have to wait for an order that is not among the newest "
            f"{n_listed:,}: tracker.sync(limit={10 * n_listed}) looks at older ones"
        )

    def unfinished(self, keys: Iterable[OrderKey], *, is_running: bool) -> str:
        """Return which of some orders REGARDS still prepares, and what keeps it; empty if none."""
        states = self._shared.states(keys).without("is_refused")
        running = [state for state in states if not state.finished]
        if not running:
            return ""
        numbers = [str(state.order_id) for state in running]
        text = (
            f"REGARDS has not finished {numbered(numbers)}: "
            f"{'' if is_running else 'after tracker.start(), '}tracker.wait("
            f"{', '.join(numbers[:_MOST_NAMED])}, download=True) waits for "
            f"{'them' if len(running) > 1 else 'it'} and downloads the rest"
        )
        if paused := advice_for_paused(running):
            text += f"; {paused}"
        blocking = [state for state in self.standing_still() if state not in running]
        return f"{text}; {advice_for(blocking, 'that wait')}" if blocking else text

    def keys_of(self, states: Sequence[OrderState]) -> list[OrderKey]:
        """Return the keys of some orders; those that only REST knows are journalled."""
        numbers = [state.order_id or 0 for state in states]
        for number in numbers:
            if self.sync is not None and self._shared.key_of(number) is None:
                self.sync.look_up(number)
        return [key for number in numbers if (key := self._shared.key_of(number)) is not None]

    def nothing_to_download(self, *, again: bool) -> str:
        """Return what to do instead of a download of all orders that wait for one."""
        if again:
            return "to fetch files once more, name their orders: tracker.download(12, again=True)"
        texts, blocking = ["no order has files that wait for it"], self.standing_still()
        if blocking:
            texts.append(advice_for(blocking, "wait(download=True)"))
        lacking = [s for s in self._shared.states()[-_MOST_LOOKED_AT:] if s.lacks_files]
        return "; ".join([*texts, *map(advice_for_missing, lacking[-_MOST_NAMED:])])

    def before_third(self) -> str:
        """Return a warning of a third unfinished order: REGARDS stops after two sub-orders."""
        unfinished = self._states_of_user().without("finished")
        if len(unfinished) < SUBORDERS_PER_USER:
            return ""
        named = self.find()[:_MOST_NAMED] or unfinished[:SUBORDERS_PER_USER]
        return (
            f"REGARDS prepares at most {SUBORDERS_PER_USER} sub-orders per user until they are "
            f"downloaded; before this one came {numbered(s.order_id for s in named)}. Use "
            "wait(download=True) or auto_download=True, or call tracker.download()"
        )


def _by_tenant(waiting: States, others: Iterable[OrderState]) -> Iterator[States]:
    """Yield the orders that wait of each tenant of the unfinished *others*."""
    for tenant in dict.fromkeys(state.tenant for state in others):
        yield waiting.take(n for n, state in enumerate(waiting) if state.tenant == tenant)


def _taking_both_places(waiting: States, waited_for: Iterable[OrderState]) -> States:
    """Return the orders of a tenant that wait, if they have all that REGARDS prepares at once.

    Else only those of *waited_for* that may have more sub-orders.
    """
    # Of an order that was downloaded in part nothing tells how many of its sub-orders wait.
    some = waiting[:SUBORDERS_PER_USER]
    count = sum(1 if s.downloaded_files else max(s.suborders_done, 1) for s in some)
    if count >= SUBORDERS_PER_USER:
        return waiting
    many = SUBORDERS_PER_USER + 1  # the number may be unknown, above all without messages
    named = [s.order_id or 0 for s in waited_for if (s.suborders_total or many) >= many]
    return waiting.where("order_id", named)


def advice_for(blocking: Sequence[OrderState], call: str, *, with_tenant: bool = False) -> str:
    """Return which orders wait for a download, and what to do; *call* does it, too.

    Without REST there is no such call. *with_tenant*: other tenants have the same numbers.
    """
    # Very many may wait: only those that are named are made.
    named: dict[str | None, list[str]] = {}
    for state in blocking[:_MOST_NAMED]:
        named.setdefault(state.tenant if with_tenant else None, []).append(str(state.order_id))
    numbers = " and ".join(
        ", ".join(each) + (f" of tenant {tenant!r}" if tenant else "")
        for tenant, each in named.items()
    )
    more = f" and {n:,} more" if (n := len(blocking) - _MOST_NAMED) > 0 else ""
    wait = f"orders {numbers}{more} wait" if len(blocking) > 1 else f"order {numbers} waits"
    how = f"tracker.download({'' if more else numbers}), or {call}" if call else HOW_WITHOUT_CLIENT
    return f"REGARDS prepares at most two sub-orders per user, and {wait} for a download: {how}"


def behind(states: Iterable[OrderState], line: Sequence[OrderState]) -> str:
    """Return which of some orders may have to wait for others; empty if none has to.

    *line* is `BlockingOrders.first_in_line`. Two places are shared by all orders of a user
    (protocol.md 0.2), and nothing tells which sub-orders have them.
    """
    # One that has ended keeps its places until it is downloaded.
    may_block = [
        s.order_id
        for s in line
        if s.order_id and (s.waits_for_download or s.held_by or s.downloading or not s.finished)
    ]
    first = min(may_block, default=0)
    numbers = [
        state.order_id
        for state in states
        if first < (state.order_id or 0) and not (state.finished or state.suborders_done)
        if state.status != OrderStatus.PAUSED and not state.ready_row
    ]
    last = max(filter(None, numbers), default=0)
    ahead = sorted(number for number in may_block if number not in numbers and number < last)
    if not ahead:
        return ""
    text = (
        f"REGARDS prepares at most two sub-orders per user at a time, and {numbered(numbers)} may "
        f"have to wait for {numbered(ahead)}"
    )
    waiting = [str(each.order_id) for each in line if each.waits_for_download]
    if waiting:
        text += f"; {numbered(waiting)} wait{'' if len(waiting) > 1 else 's'} for a download: "
        text += f"tracker.download({', '.join(waiting)})"
    return "; ".join([text, *downloads_of(s for s in line if s.order_id in ahead)])


def downloads_of(states: Iterable[OrderState]) -> list[str]:
    """Return which process downloads which of some orders, and how far this one is."""
    return [
        f"{state.held_by or 'this kernel'} is downloading order {state.order_id}{_so_far(state)}"
        for state in states
        if state.held_by or state.downloading
    ]


def _so_far(state: OrderState) -> str:
    """Return how far a download of this process is, in brackets; empty before its manifest."""
    words, so_far, total = [], state.downloaded_bytes, state.bytes_total or 0
    if state.files_total:
        words.append(counted(f"{state.downloaded_files} of {state.files_total}", "file"))
    if total > so_far:  # a later increment counts only the bytes that it fetches itself
        words.append(f"{100 * so_far // total} %")
    return f" ({', '.join(words)})" if words and state.downloading else ""


def advice_for_paused(states: Iterable[OrderState]) -> str:
    """Return which of some orders are paused, and what to do; empty if none is."""
    paused = [str(state.order_id) for state in states if state.status == OrderStatus.PAUSED]
    if not paused:
        return ""
    numbers, are = ", ".join(paused), "orders {} are" if len(paused) > 1 else "order {} is"
    call = f"[{numbers}]" if len(paused) > 1 else numbers
    return f"{are.format(numbers)} paused: tracker.resume({call})"
