"""Pause, resume, retry, restart, cancel and delete orders over REST.

The server decides which actions are allowed. A click costs two requests: the action, and the order
afterwards, which also tells what a refused order is doing.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from regards_nb.client import RemoteOrder
from regards_nb.errors import NotAllowedError, RegardsError, ServiceError, SettingsError
from regards_nb.events import OrderStatus
from regards_nb.orders import GONE
from regards_nb.text import counted
from regards_nb.tracker.downloads import Workers
from regards_nb.tracker.shared import CLIENT_MISSING, NEW_ORDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import TrackerParts

#: The jobs of an order take time to stop after a pause; REGARDS itself waits up to 100 s.
JOBS_STOP_TIMEOUT_S = 100.0

#: Until all jobs have stopped, a paused order is refused a resume and a delete (protocol.md 1.2).
_JOBS_STOPPING = frozenset({"PENDING", "RUNNING", "PAUSED"})
#: The status after an action, used when the order cannot be asked for afterwards.
_EXPECTED = {"pause": "PAUSED", "resume": "RUNNING", "retry": "RUNNING"}


class OrderActions:
    """Acts on orders over REST; without *sync* every action is a SettingsError.

    *jobs_stop_timeout_s* is the time limit for the server's jobs to stop.
    """

    def __init__(
        self,
        parts: TrackerParts,
        sync: RestSync | None,
        *,
        jobs_stop_timeout_s: float = JOBS_STOP_TIMEOUT_S,
    ) -> None:
        self._core = parts
        self._sync = sync
        self._jobs_stop_timeout_s = jobs_stop_timeout_s
        self._workers = Workers("regards-nb-actions", 1)
        self._stop = threading.Event()

    def act(self, action: str, key: OrderKey, **details: Any) -> OrderKey:
        """Do one action on one order, and return its key once the server has done it.

        After a restart it is the key of the new order. NotAllowedError: the server refuses; the
        text says why and what to do.
        """
        if self._sync is None:
            raise SettingsError(f"to {action} an order {CLIENT_MISSING}")
        state = self._core.state(key)
        if state.order_id is None:
            raise SettingsError(
                f"{state.name} has no number, so there is nothing to {action}: "
                f"{state.status}{state.reason}. {NEW_ORDER}"
            )
        step = _Action(self._sync, state, state.order_id, self._stop, self._jobs_stop_timeout_s)
        try:
            order_id = step.restart(**details) if action == "restart" else getattr(step, action)()
        except ServiceError as exc:
            exc.put_first(f"order {state.order_id}")
            raise
        return self._core.frames.key_of(order_id) or key

    def begin(self, action: str, key: OrderKey) -> None:
        """Do it in the background; keep an error for the display and the next call."""
        number = self._core.state(key).order_id
        what = f"to {action} order {key.correlation_id if number is None else number}"
        future = self._workers.submit(partial(self.act, action, key))
        errors = self._core.errors

        def ended(done: Any) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                errors.record(what, error)

        future.add_done_callback(ended)

    def stop(self, timeout_s: float) -> str:
        """End the waits for the server's jobs; requests that were sent stay sent.

        See `Workers.finish`.
        """
        self._stop.set()
        unended = self._workers.stop(timeout_s, lambda: "a request to REGARDS")
        self._stop = threading.Event()
        return unended


@dataclass(slots=True, eq=False)
class _Action:
    """One action on one order."""

    sync: RestSync
    state: OrderState
    order_id: int
    stop: threading.Event
    jobs_stop_timeout_s: float

    def pause(self) -> int:
        """Pause."""
        return self._change("pause", self.sync.client.pause)

    def resume(self) -> int:
        """Resume, once the jobs of the order have stopped."""
        return self._change("resume", self.sync.client.resume, wait_while=frozenset({"PAUSED"}))

    def retry(self) -> int:
        """Have REGARDS prepare the failed files again."""
        return self._change("retry", self.sync.client.retry)

    def restart(self, label: str | None = None) -> int:
        """Order the same again; return the number of the new order."""
        remote: RemoteOrder = self._send("restart", partial(self.sync.client.restart, label=label))
        self.sync.keep_outcome(None, remote)
        return remote.order_id

    def cancel(self) -> int:
        """Pause, wait for the jobs to stop, delete."""
        # An order that has ended, also at this very moment, can be deleted without a pause.
        with suppress(NotAllowedError):
            self.sync.client.pause(self.order_id)
        return self._delete(wait_while=_JOBS_STOPPING)

    def delete(self) -> int:
        """Delete on the server; downloaded files stay."""
        return self._delete()

    def _change(
        self, action: str, act: Callable[[int], None], *, wait_while: frozenset[str] = frozenset()
    ) -> int:
        self._send(action, act, wait_while=wait_while)
        # Without an answer: the server did it, and the next round of REST sync asks for the order.
        outcome = self._asked_for() or self._expected(_EXPECTED[action])
        self.sync.keep_outcome(self.state, outcome)
        return self.order_id

    def _delete(self, *, wait_while: frozenset[str] = frozenset()) -> int:
        self._send("delete", self.sync.client.delete, wait_while=wait_while)
        # No message tells of it (protocol.md 1.6), and the list leaves the order out from now on.
        self.sync.keep_outcome(self.state, self._expected("DELETED"))
        return self.order_id

    def _asked_for(self) -> RemoteOrder | None:
        try:
            return self.sync.client.order(self.order_id)
        except ServiceError:
            return None

    def _expected(self, status: str) -> RemoteOrder:
        """Return the order as it was known, in a new status."""
        progress = self.state.progress
        return RemoteOrder(
            order_id=self.order_id,
            status=status,
            label=self.state.label,
            expires_at=self.state.expires_at,
            percent_completed=None if progress is None else round(100 * progress),
        )

    def _send(
        self, action: str, act: Callable[[int], Any], *, wait_while: frozenset[str] = frozenset()
    ) -> Any:
        """Send the action; while the order is in a status of *wait_while*, repeat a refused one.

        The server's answer about an order that it refused is journalled: it is new.
        """
        for pause_s in _pauses(self.jobs_stop_timeout_s):
            try:
                return act(self.order_id)
            except NotAllowedError as exc:
                remote = self._asked_for()
                if remote is None:
                    raise
                if remote.status not in wait_while or not pause_s or self.stop.wait(pause_s):
                    self.sync.keep_outcome(self.state, remote)
                    raise self._refused(action, exc, remote) from exc
        raise AssertionError  # the last pause is 0

    def _refused(
        self, action: str, refusal: NotAllowedError, remote: RemoteOrder
    ) -> NotAllowedError:
        offered = ", ".join(sorted(remote.actions - {"remove"}))
        text = f"REGARDS does not let you {action} order {self.order_id}, which is {remote.status}"
        if remote.status == OrderStatus.DELETED and action in {"cancel", "delete"}:
            text = f"order {self.order_id} is deleted already: there is nothing to {action}"
        elif remote.status in GONE and action != "delete":
            # The advice for the server's code is meant for orders that still have files.
            text += ": it has deleted its files. A new order brings them: submit()"
        else:
            text += f". {refusal}" + (f". It allows: {offered}" if offered else "")
        return NotAllowedError(text, status_code=refusal.status_code, messages=refusal.messages)


def _pauses(limit_s: float) -> Iterator[float]:
    """Yield pauses of 0.5 s, 1 s, 2 s and so on, at most 10 s each, up to the limit; then 0."""
    pause_s, spent_s = 0.5, 0.0
    while spent_s < limit_s:
        yield min(pause_s, limit_s - spent_s)
        spent_s += pause_s
        pause_s = min(2 * pause_s, 10.0)
    yield 0.0


def act_on_each(keys: list[OrderKey], act: Callable[[OrderKey], OrderKey]) -> list[OrderKey]:
    """Act on all orders, also after a refusal; return their keys.

    The first refusal is raised. Where several orders were meant, its text names all that failed.
    """
    done, errors = [], []
    for key in keys:
        try:
            done.append(act(key))
        except RegardsError as exc:
            errors.append(exc)
    if len(errors) > 1 or (errors and done):
        told = "; ".join(map(str, errors))
        raise NotAllowedError(
            f"{len(done)} of {counted(len(keys), 'order')} done. {told}"
        ) from errors[0]
    for error in errors:
        raise error
    return done
