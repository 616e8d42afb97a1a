"""Asking REGARDS over REST about orders, in few requests, and keeping what is new."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

from regards_nb.errors import NotAllowedError, OrderNotFoundError
from regards_nb.tracker.news import News, keep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.works import Works

#: The list is read as far as the oldest unfinished order, and no further than this.
_MOST_LISTED = 1000
#: Orders that the list leaves out, because they are deleted or somebody else's, are asked for
#: one by one: so many in one round.
_MOST_SINGLE = 10
#: How soon after an action of ours it is asked what came of it.
_AFTER_ACTION_S = 5.0


class Asking:
    """What this tracker learns over REST. Safe in any thread; knows no tracker.

    Parameters
    ----------
    works : Works
    client : RegardsClient
    tenant : str or None
        Of the tracker; None: the client's.
    """

    def __init__(self, works: Works, client: RegardsClient, tenant: str | None) -> None:
        self.client = client
        self.tenant = tenant or client.tenant
        self._works = works
        #: numbers that are not for us: asked once, never again
        self._strangers: set[int] = set()
        self._lock = threading.Lock()
        self._due_s: float | None = None

    def ask_soon(self) -> None:
        """See to it that the next round is not far away: something was asked for."""
        self._due_s = time.monotonic() + _AFTER_ACTION_S

    def take_due(self) -> bool:
        """Tell, once, whether a round that was asked for is due."""
        if self._due_s is None or time.monotonic() < self._due_s:
            return False
        self._due_s = None
        return True

    def unfinished(self) -> dict[int, OrderState]:
        """Return the orders that may still change, by number."""
        return {
            state.order_id: state
            for state in self._works.states()
            if state.order_id is not None
            and not state.finished
            and state.order_id not in self._strangers
            and state.tenant in (None, self.tenant)
        }

    def ask_unfinished(self) -> bool:
        """Ask for all unfinished orders together; tell whether anything was new.

        Raises
        ------
        ServiceError
            The server cannot be asked.
        """
        with self._lock:
            before = self.unfinished()
            if not before:
                return False
            heard = self._listed(before)
            changed = False
            for state in self._works.states():
                remote = heard.get(state.order_id or -1)
                if remote is None:
                    continue
                self._works.frames.set_remote(state.key, remote)
                known = before.get(remote.order_id)
                # A message that came meanwhile is newer than the answer.
                if known is not None and _gist(known) == _gist(state):
                    changed |= self._keep(state, remote)
            self._works.bell.ring()
            return changed

    def take_in(self, *, limit: int) -> list[OrderKey]:
        """Take in the user's newest orders, also those made elsewhere; return the latter's keys.

        Raises
        ------
        ServiceError
            The server cannot be asked.
        """
        with self._lock:
            before = {state.order_id: state for state in self._works.states()}
            new = []
            # Oldest first, as their messages would have come.
            for remote in reversed(list(islice(self.client.iter_orders(), limit))):
                known = before.get(remote.order_id)
                if known is None and self._works.frames.key_of(remote.order_id) is not None:
                    continue  # it was made here, just now
                self._keep(known, remote)
                if known is None:
                    new.append(remote.order_id)
            self._works.bell.ring()
            keys = (self._works.frames.key_of(order_id) for order_id in new)
            return [key for key in keys if key is not None]

    def keep_outcome(self, known: OrderState | None, remote: RemoteOrder) -> None:
        """Keep what the server says after an action of ours."""
        with self._lock:
            self._keep(known, remote, acted=True)
        self.ask_soon()
        self._works.bell.ring()

    def _keep(self, known: OrderState | None, remote: RemoteOrder, *, acted: bool = False) -> bool:
        fetching = self._works.downloads.is_running(remote.order_id)
        if fetching:
            self.ask_soon()  # until then it is open what of it is new
        news = News(known, remote, tenant=self.tenant, fetching=fetching, acted=acted)
        is_new = keep(self._works.journal, news.deliveries())
        key = known.key if known is not None else self._works.frames.key_of(remote.order_id)
        if key is not None:
            self._works.frames.set_remote(key, remote)
        return is_new

    def _listed(self, wanted: Iterable[int]) -> dict[int, RemoteOrder]:
        """Return the orders of the list, up to the oldest wanted one; and the wanted rest."""
        missing = set(wanted)
        heard = {}
        for remote in islice(self.client.iter_orders(), _MOST_LISTED):
            heard[remote.order_id] = remote
            missing.discard(remote.order_id)
            if not missing:
                break
        return heard | self._each(sorted(missing, reverse=True)[:_MOST_SINGLE])

    def _each(self, wanted: Iterable[int]) -> dict[int, RemoteOrder]:
        """Return orders that the list leaves out; strangers are noted and not asked for again."""
        heard = {}
        for order_id in wanted:
            try:
                heard[order_id] = self.client.order(order_id)
            except (OrderNotFoundError, NotAllowedError):
                self._strangers.add(order_id)
        return heard


def _gist(state: OrderState) -> tuple[object, ...]:
    """Return what every message changes."""
    return state.status, state.last_event, state.ready_row, state.suborders_done
