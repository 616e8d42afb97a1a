"""Pause, resume, retry, restart, cancel, delete: only what the server would accept now."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from regards_nb.client import advice_for
from regards_nb.errors import (
    NotAllowedError,
    RegardsError,
    ServiceError,
    SettingsError,
)
from regards_nb.tracker.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.client import RegardsClient, RemoteOrder
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.asking import Asking
    from regards_nb.tracker.works import Works

#: Jobs of the server take their time to stop after a pause; REGARDS itself waits up to 100 s.
PATIENCE_S = 100.0

#: What the server would say to an action that none of its links offers (protocol.md 1.2).
_REFUSAL = {
    "pause": "ORDER_MUST_BE_PENDING_OR_RUNNING",
    "resume": "ORDER_MUST_BE_PAUSED",
    "retry": "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED",
    "restart": "ORDER_MUST_BE_DONE_OR_DONE_WITH_WARNING_OR_FAILED",
    "delete": "ORDER_MUST_BE_DONE_OR_DONE_WITH_WARNING_OR_PAUSED_OR_FAILED_OR_EXPIRED",
}
#: After a pause, until all jobs have stopped.
_STOPPING = frozenset({"PENDING", "RUNNING", "PAUSED"})
#: The status after an action, where the server cannot be asked any more.
_EXPECTED = {"pause": "PAUSED", "resume": "RUNNING", "retry": "RUNNING"}


class Steering:
    """Acts on orders over REST.

    Parameters
    ----------
    works : Works
    asking : Asking or None
        None makes every action a SettingsError that says what is missing.
    patience_s : float
        How long to wait for the server's jobs to stop.
    """

    def __init__(
        self, works: Works, asking: Asking | None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._works = works
        self._asking = asking
        self._patience_s = patience_s
        self._workers = Workers("regards-nb-steering", 1)
        self._stop = threading.Event()

    def act(self, action: str, key: OrderKey, **details: Any) -> OrderKey:
        """Do one thing to one order, and return once the server has done it.

        Returns
        -------
        OrderKey
            Of the order; after a restart, of the new one.

        Raises
        ------
        NotAllowedError
            The server would refuse, or did; the text says why and what to do.
        ServiceError
            The server cannot be asked.
        SettingsError
            There is no client, or the order has no number.
        """
        if self._asking is None:
            raise SettingsError(
                f"to {action} an order needs the REST side: "
                "OrderTracker(..., client=RegardsClient(...))"
            )
        state = self._works.state(key)
        if state.order_id is None:
            raise SettingsError(
                f"order {state.correlation_id!r} has no number, so there is nothing to {action}: "
                f"{state.status}" + (f" ({state.message})" if state.message else "")
            )
        step = _Step(self._asking, state, state.order_id, self._stop, self._patience_s)
        outcome = step.restart(**details) if action == "restart" else getattr(step, action)()
        return self._works.frames.key_of(outcome) or key

    def soon(self, action: str, key: OrderKey) -> None:
        """Do it in the background; errors are shown, and raised by the user's next call."""
        number = self._works.state(key).order_id
        what = f"to {action} order {key.correlation_id if number is None else number}"
        future = self._workers.submit(partial(self.act, action, key))
        problems = self._works.problems

        def ended(done: Any) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                problems.record(what, error)

        future.add_done_callback(ended)

    def stop(self, timeout_s: float) -> None:
        """End what waits; what was asked of the server stays asked."""
        self._stop.set()
        self._workers.stop(timeout_s)
        self._stop = threading.Event()


class _Step:
    """One action on one order."""

    def __init__(
        self,
        asking: Asking,
        state: OrderState,
        order_id: int,
        stop: threading.Event,
        patience_s: float,
    ) -> None:
        self._asking = asking
        self._client: RegardsClient = asking.client
        self._state = state
        self._order_id = order_id
        self._stop = stop
        self._patience_s = patience_s

    def pause(self) -> int:
        """Pause."""
        return self._simply("pause", self._client.pause)

    def resume(self) -> int:
        """Resume, once the jobs of the order have stopped."""
        return self._simply("resume", self._client.resume, stopping=frozenset({"PAUSED"}))

    def retry(self) -> int:
        """Try again what failed."""
        return self._simply("retry", self._client.retry)

    def delete(self) -> int:
        """Delete on the server; what was downloaded stays here."""
        return self._delete(self._allowed("delete"))

    def cancel(self) -> int:
        """Pause where needed, wait for the jobs to stop, delete."""
        remote = self._client.order(self._order_id)
        if "pause" in remote.actions:
            # One that ends at this very moment can be deleted as well.
            with suppress(NotAllowedError):
                self._client.pause(self._order_id)
        return self._delete(self._allowed("delete", stopping=_STOPPING))

    def restart(self, label: str | None = None) -> int:
        """Order the same again; return the number of the new order."""
        self._allowed("restart")
        remote = self._client.restart(self._order_id, label=label)
        self._asking.keep_outcome(None, remote)
        return remote.order_id

    def _simply(
        self,
        action: str,
        act: Callable[[int], None],
        *,
        stopping: frozenset[str] = frozenset(),
    ) -> int:
        remote = self._allowed(action, stopping=stopping)
        act(self._order_id)
        expected = replace(remote, status=_EXPECTED[action], status_at=None)
        self._asking.keep_outcome(self._state, self._outcome(expected))
        return self._order_id

    def _outcome(self, expected: RemoteOrder) -> RemoteOrder:
        try:
            return self._client.order(self._order_id)
        except ServiceError:
            return expected  # it was done; what came of it is asked again in a while

    def _delete(self, remote: RemoteOrder) -> int:
        self._client.delete(self._order_id)
        # No message says so (protocol.md 1.6), and the list leaves it out from now on.
        gone = replace(remote, status="DELETED", status_at=None, available_files=0)
        self._asking.keep_outcome(self._state, gone)
        return self._order_id

    def _allowed(self, action: str, *, stopping: frozenset[str] = frozenset()) -> RemoteOrder:
        """Return what the server says of the order, once its links offer *action*.

        While it is in one of the states *stopping*, they may offer it a moment later.
        """
        for pause_s in _growing(self._patience_s):
            remote = self._client.order(self._order_id)
            # A server that gives no links at all is left to decide by itself.
            if action in remote.actions or not remote.actions:
                return remote
            if remote.status not in stopping or self._stop.wait(pause_s):
                break
        code = _REFUSAL[action]
        if action == "retry" and remote.status in {"DONE_WITH_WARNING", "FAILED"}:
            code = "ORDER_HAS_PROCESSING"
        offered = ", ".join(sorted(remote.actions - {"remove"}))
        raise NotAllowedError(
            f"REGARDS does not let you {action} order {self._order_id} now, which is "
            f"{remote.status} ({code}). {advice_for([code])}. It would let you: {offered}",
            messages=[code],
        )


def _growing(limit_s: float) -> Iterator[float]:
    """Yield pauses of 0.5 s, 1 s, 2 s and so on, at most 10 s each, until the limit is used up."""
    pause_s, spent_s = 0.5, 0.0
    while spent_s < limit_s:
        yield min(pause_s, limit_s - spent_s)
        spent_s += pause_s
        pause_s = min(2 * pause_s, 10.0)
    yield 0.0


def on_each(keys: list[OrderKey], act: Callable[[OrderKey], OrderKey]) -> list[OrderKey]:
    """Act on all orders, also if one refuses; return their keys.

    Raises
    ------
    RegardsError
        That of the first refusal. Where several were meant, the text names all that failed.
    """
    done, errors = [], []
    for key in keys:
        try:
            done.append(act(key))
        except RegardsError as exc:
            errors.append(exc)
    if len(errors) > 1 or (errors and done):
        told = "; ".join(map(str, errors))
        raise NotAllowedError(f"{len(done)} of {len(keys)} orders done. {told}") from errors[0]
    for error in errors:
        raise error
    return done
