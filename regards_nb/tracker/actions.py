"""Pause, resume, retry, restart, cancel and delete orders over REST.

The server decides which actions are allowed. A click costs two requests: the action, and the order
afterwards, which also tells what a refused order is doing.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from regards_nb.client import RemoteOrder
from regards_nb.errors import (
    JournalError,
    NotAllowedError,
    RegardsError,
    ServiceError,
    SettingsError,
    StoppedWaiting,
)
from regards_nb.events import OrderStatus
from regards_nb.orders import GONE
from regards_nb.output import say
from regards_nb.text import counted, listed
from regards_nb.threads import JobThreads
from regards_nb.tracker.shared import CLIENT_MISSING, NEW_ORDER
from regards_nb.waits import growing, progress, told, words_first

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import Shared

#: The jobs of an order take time to stop after a pause; REGARDS itself waits up to 100 s.
_JOBS_STOP_TIMEOUT_S = 100.0

#: While an order is in one of these statuses, its jobs stop, and a refused action is repeated
#: (protocol.md 1.2).
_JOBS_STOPPING = {"resume": {"PAUSED"}, "cancel": {"PENDING", "RUNNING", "PAUSED"}}
#: What is said while several orders are acted on.
_DOING = {
    "pause": "pausing",
    "resume": "resuming",
    "retry": "retrying",
    "restart": "restarting",
    "cancel": "cancelling",
    "delete": "deleting",
}
#: The status after an action, used when the order cannot be asked for afterwards; else it is gone.
_EXPECTED = {"pause": "PAUSED", "resume": "RUNNING", "retry": "RUNNING"}


class OrderActions:
    """Acts on orders over REST; without *sync* every action is a SettingsError."""

    def __init__(self, shared: Shared, sync: RestSync | None, restart: Callable[..., int]) -> None:
        self._shared = shared
        self._sync = sync
        self._restart = restart
        self._threads = JobThreads("actions", 1)
        self._stop = threading.Event()

    def act_on_all(self, action: str, keys: list[OrderKey], **details: Any) -> list[OrderKey]:
        """Act on several orders, also after an error; return their keys.

        Raises the first error that is no NotAllowedError, else the first. Where several orders were
        meant, its text names all that failed. The line at Ctrl-C says which orders were acted on.
        """
        if not keys:
            say(f"nothing to {action}: no order is selected")
        left, total = list(keys), counted(len(keys), "order")
        done: list[OrderKey] = []
        n_carried_out, errors = 0, list[RegardsError]()
        try:
            while left:
                so_far = f"{_DOING[action]}: {len(keys) - len(left)} of {total}"
                with progress(so_far if len(keys) > 1 else ""):
                    carried_out: list[str] = []
                    try:
                        done.append(self.act(action, left[0], carried_out, **details))
                    except RegardsError as exc:
                        errors.append(exc)
                n_carried_out += action in carried_out
                del left[0]
                if left and errors and isinstance(errors[-1], JournalError):
                    names = [self._shared.state(key).name for key in left]
                    errors.append(JournalError(f"no request was sent for {listed(names)}"))
                    break
        except KeyboardInterrupt as exc:
            texts = [str(error) for error in errors]
            names = [self._shared.state(key).name for key in left]
            if getattr(exc, "in_work", False):
                first = names.pop(0)
                asks = "tracker.sync() asks it"
                texts.append(f"it is open whether REGARDS did {action} {first}, {asks}")
            if names:
                texts.append(f"no request was sent for {listed(names)}")
            raise StoppedWaiting(f"{action}() was stopped: {'; '.join(texts)}") from None
        if len(errors) > 1 or (errors and done):
            told = "; ".join(map(str, errors))
            worst = next((e for e in errors if not isinstance(e, NotAllowedError)), errors[0])
            raise type(worst)(f"{n_carried_out} of {total} done. {told}") from worst
        for error in errors:
            raise error
        return done

    def act(self, action: str, key: OrderKey, carried_out: list[str], **details: Any) -> OrderKey:
        """Do one action on one order, and return its key once the server has done it.

        After a restart it is the key of the new order. NotAllowedError: the server refuses; the
        text says why and what to do. StoppedWaiting and JournalError say whether the server has
        acted; what it has done is added to *carried_out*.
        """
        if self._sync is None:
            raise SettingsError(f"to {action} an order {CLIENT_MISSING}")
        with unchanged(action):
            state = self._shared.state(key)
        if state.order_id is None:
            raise NotAllowedError(
                f"{state.name} has no number, so there is nothing to {action}: "
                f"{state.status}{state.reason}. {NEW_ORDER}"
            )
        shared = self._shared
        with unchanged(f"{action} {state.name}"):
            self._sync.prove_journal()
        shared.acting[state.order_id] = f"asking REGARDS to {action} {state.name}"
        shared.signal.send()
        try:
            with words_first(ServiceError, state.name):
                order_id = self._carry_out(self._sync, action, state, carried_out, **details)
        except KeyboardInterrupt as exc:
            in_work = bool(carried_out) or getattr(exc, "in_work", False)
            raise StoppedWaiting(in_work=in_work) from None
        except JournalError as exc:
            if action in carried_out:
                exc.put_first(
                    f"REGARDS did {action} {state.name}. Do not repeat it: the tracker journals it "
                    "as soon as it can"
                )
            raise
        finally:
            shared.acting.pop(state.order_id, None)
            shared.signal.send()
        return self._shared.frames.key_of(order_id) or key

    def _carry_out(
        self, sync: RestSync, action: str, state: OrderState, carried_out: list[str], **details: Any
    ) -> int:
        """Send the request, and journal the outcome; return the number of the order.

        What REGARDS has done is added to *carried_out*. A restart returns the number of the new
        order, which it has journalled.
        """
        order_id = state.order_id or 0
        of_client = "delete" if action == "cancel" else action
        send = self._restart if action == "restart" else getattr(sync.client, of_client)
        if action == "cancel":
            # An order that has ended, also at this very moment, can be deleted without a pause.
            with suppress(NotAllowedError):
                sync.client.pause(order_id)
                carried_out.append("pause")
        ends_at_s, pauses = time.monotonic() + _JOBS_STOP_TIMEOUT_S, growing(0.5, 10.0)
        while True:
            try:
                new_order_id: int | None = send(order_id, **details)
                carried_out.append(action)
                break
            except NotAllowedError as exc:
                remote = _asked_for(sync, order_id)
                if remote is None:
                    raise
                is_stopping = remote.status in _JOBS_STOPPING.get(action, ())
                pause_s, left_s = next(pauses), ends_at_s - time.monotonic()
                if is_stopping and left_s > 0:
                    limit = f"at most {_JOBS_STOP_TIMEOUT_S:g} s"
                    told(
                        f"waiting until REGARDS has stopped the jobs of {state.name}, {limit}",
                        _JOBS_STOP_TIMEOUT_S - left_s + pause_s,
                    )
                if not is_stopping or left_s <= 0 or self._stop.wait(min(pause_s, left_s)):
                    with suppress(JournalError):  # what it says of a refused order is new
                        sync.keep_outcome(state, remote)
                    raise _refused(action, order_id, exc, remote) from exc
        if new_order_id is not None:
            return new_order_id
        # No message tells of a deletion (protocol.md 1.6), and the list leaves the order out from
        # now on. Of another action without an answer the next round of REST sync tells.
        outcome = _asked_for(sync, order_id) if action in _EXPECTED else None
        expected = RemoteOrder(
            order_id=order_id,
            status=_EXPECTED.get(action, "DELETED"),
            label=state.label,
            expires_at=state.expires_at,
            percent_completed=None if state.progress is None else round(100 * state.progress),
        )
        sync.keep_outcome(state, outcome or expected, f"by the action {action}")
        return order_id

    def begin(self, action: str, key: OrderKey) -> None:
        """Act on one order in the background; keep an error for the display and the next call."""
        number = self._shared.state(key).order_id
        what = f"to {action} order {key.correlation_id if number is None else number}"
        future = self._threads.submit(partial(self.act, action, key, []))
        errors = self._shared.errors

        def ended(done: Any) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                errors.record(what, error)

        future.add_done_callback(ended)

    def stop(self, timeout_s: float) -> str:
        """End the waits for the server's jobs; requests that were sent stay sent.

        See `JobThreads.finish`.
        """
        self._stop.set()
        unended = self._threads.stop(timeout_s, lambda: "a request to REGARDS")
        self._stop = threading.Event()
        return unended


def unchanged(doing: str) -> AbstractContextManager[None]:
    """Say in a JournalError of the block, which comes before a request, that none was sent."""
    return words_first(JournalError, f"nothing was changed at REGARDS to {doing}")


def _asked_for(sync: RestSync, order_id: int) -> RemoteOrder | None:
    try:
        return sync.client.order(order_id)
    except ServiceError:
        return None


def _refused(
    action: str, order_id: int, refusal: NotAllowedError, remote: RemoteOrder
) -> NotAllowedError:
    offered = ", ".join(sorted(remote.actions - {"remove"}))
    action = "delete" if action == "cancel" else action
    text = f"REGARDS does not let you {action} order {order_id}, which is {remote.status}"
    if remote.status == OrderStatus.DELETED and action == "delete":
        text = f"order {order_id} is deleted already: there is nothing to {action}"
    elif remote.status in GONE and action != "delete":
        # The advice for the server's code is meant for orders that still have files.
        text += ": it has deleted its files. A new order brings them: submit()"
    else:
        text += f". {refusal}" + (f". It allows: {offered}" if offered else "")
    return NotAllowedError(text, status_code=refusal.status_code, messages=refusal.messages)
