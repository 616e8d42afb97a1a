"""The order service: the life of orders on a clock, in a thread, telling what happens."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator import lifecycle, messages
from regards_nb.simulator.catalogue import plan_for
from regards_nb.simulator.faults import StagingError
from regards_nb.simulator.lifecycle import (
    Action,
    FileState,
    Order,
    OrderFile,
    OrderState,
    Stage,
    SubOrder,
)
from regards_nb.simulator.plans import REFUSED, OrderPlan, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.messages import Message, Refusal

_LIFE_OF_AN_ORDER = timedelta(days=3)


class Answer(NamedTuple):
    """What a request for an order is answered."""

    correlation_id: str
    order_id: int | None
    refusal: Refusal | None

    @property
    def fields(self) -> dict[str, Any]:
        """The answer as the service writes it."""
        if self.refusal:
            return messages.refused(self.refusal, self.correlation_id)
        return {
            "status": "GRANTED",
            "orderId": self.order_id,
            "correlationId": self.correlation_id,
        }


class Service:
    """Runs orders. Every method is safe in any thread.

    Parameters
    ----------
    seed : int
        Equal seeds give equal orders, files and messages.
    faults : Faults
        What is to go wrong.
    publish : callable
        Takes each :class:`~regards_nb.simulator.messages.Message`; must return at once.
    order_link : callable
        Makes the download link from an order's id.
    suborder_pause_s : float
        How long the staging of a sub-order takes.
    counted : bool
        Whether messages carry ``totalSubOrders`` and ``subOrderId``, as newer servers' do.
    """

    def __init__(
        self,
        *,
        seed: int,
        faults: Faults,
        publish: Callable[[Message], None],
        order_link: Callable[[int], str],
        suborder_pause_s: float,
        counted: bool,
    ) -> None:
        self._seed = seed
        self._faults = faults
        self._publish = publish
        self._order_link = order_link
        self._pause_s = suborder_pause_s
        self._counted = counted
        self._orders: dict[int, Order] = {}
        self._files: dict[int, OrderFile] = {}
        self._late: list[tuple[float, Iterable[OrderFile], dict[int, str]]] = []
        self._numbers = {kind: itertools.count(1) for kind in ("order", "sub", "file", "dataset")}
        self._names = random.Random(f"{seed}/correlation ids")
        self._changed = threading.Condition(threading.RLock())
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that stages sub-orders."""
        self._thread = threading.Thread(target=self._run, name="simulator-orders", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock while reading or changing orders, then let the thread look at them."""
        with self._changed:
            yield
            self._changed.notify_all()

    def wait_until(self, done: Callable[[], bool], *, timeout_s: float = 30) -> bool:
        """Wait until *done*, which is asked after every change, says so."""
        with self._changed:
            return self._changed.wait_for(done, timeout_s)

    # -- asking for orders

    def request(
        self,
        plan: OrderPlan,
        *,
        owner: str,
        correlation_id: str | None,
        over_amqp: bool,
    ) -> Answer:
        """Take or refuse one order.

        Over AMQP every answer is published; over REST the caller gets it (protocol.md 1.6).
        """
        with self.changing():
            if plan.outcome in REFUSED:
                name = correlation_id or self._correlation_id()
                answer = Answer(name, None, messages.REFUSALS[plan.outcome])
            else:
                order = self._create(plan, owner=owner, correlation_id=correlation_id)
                answer = Answer(order.correlation_id, order.order_id, None)
            if over_amqp:
                self._tell(answer.fields)
            return answer

    def request_by_query(
        self,
        queries: Sequence[str],
        *,
        owner: str,
        correlation_id: str | None,
        data_types: Iterable[str] = (),
        filename_regexp: str | None = None,
        over_amqp: bool = False,
    ) -> Answer:
        """Take or refuse the order that the catalogue has for these queries."""
        plan = plan_for(queries, seed=self._seed)
        if plan.outcome not in REFUSED:
            plan = _filtered(plan, set(data_types), filename_regexp)
        return self.request(plan, owner=owner, correlation_id=correlation_id, over_amqp=over_amqp)

    def _create(self, plan: OrderPlan, *, owner: str, correlation_id: str | None) -> Order:
        order_id = next(self._numbers["order"])
        plan = plan.with_files(seed=f"{self._seed}/{order_id}")
        now = datetime.now(UTC)
        order = Order(
            order_id=order_id,
            owner=owner,
            correlation_id=correlation_id or self._correlation_id(),
            label=plan.label or f"Order {order_id} of {plan.dataset}",
            plan=plan,
            dataset_id=next(self._numbers["dataset"]),
            sub_orders=[self._cut(order_id, files) for files in plan.suborders()],
            created_at=now,
            expires_at=now + _LIFE_OF_AN_ORDER,
        )
        for fault in plan.faults:
            self._faults.add(replace(fault, order_id=order_id))
        self._orders[order_id] = order
        self._files.update((file.file_id, file) for file in order.files)
        return order

    def _correlation_id(self) -> str:
        """Return the server's own name for a request that came without (protocol.md 1.2)."""
        return f"auto-correlation-id-{uuid.UUID(int=self._names.getrandbits(128), version=4)}"

    def _cut(self, order_id: int, files: Iterable[Any]) -> SubOrder:
        return SubOrder(
            sub_order_id=next(self._numbers["sub"]),
            files=[
                OrderFile(file_id=next(self._numbers["file"]), order_id=order_id, spec=spec)
                for spec in files
            ],
        )

    # -- looking at orders

    def find(self, order_id: int) -> Order | None:
        """Return the order of this number."""
        return self._orders.get(order_id)

    def known(self, order_id: int) -> Order:
        """Return the order of this number, which exists; LookupError where it does not."""
        return self._orders[order_id]

    def find_file(self, file_id: int) -> OrderFile | None:
        """Return the file of this number."""
        return self._files.get(file_id)

    def orders_of(self, owner: str) -> list[Order]:
        """Return the user's orders, newest first, without the deleted ones."""
        with self._changed:
            return [
                order
                for order in reversed(self._orders.values())
                if order.owner == owner and order.status is not OrderState.DELETED
            ]

    # -- what the owner does

    def act(self, order: Order, action: Action) -> str | None:
        """Do what the owner asks, or return the code of the refusal."""
        with self.changing():
            if code := lifecycle.refusal(order, action):
                return code
            now = datetime.now(UTC)
            match action:
                case Action.PAUSE:
                    lifecycle.pause(order, now)
                case Action.RESUME:
                    lifecycle.resume(order, now)
                case Action.DELETE:
                    lifecycle.delete(order, now)
                case Action.RETRY:
                    lifecycle.retry(order, now)
                case Action.RESTART:
                    pass  # a new order, see restart()
            return None

    def restart(self, order: Order, label: str | None) -> Order:
        """Order the same files again, as a new order."""
        with self.changing():
            plan = replace(order.plan, label=label, faults=())
            return self._create(plan, owner=order.owner, correlation_id=None)

    def expire(self, order_id: int) -> None:
        """Let the time of an order run out now."""
        with self.changing():
            lifecycle.expire(self._orders[order_id], datetime.now(UTC))

    def downloaded(
        self, files: Iterable[OrderFile], problems: dict[int, str], *, late_s: float = 0
    ) -> None:
        """Note, so much later, that these files have been sent but for those with problems."""
        with self.changing():
            if late_s:
                self._late.append((time.monotonic() + late_s, files, problems))
            else:
                _mark(files, problems)

    # -- the thread

    def _run(self) -> None:
        with self._changed:
            while not self._stopping:
                self._mark_late()
                self._finish_staged()
                self._start_staging()
                # for wait_until(); whoever waits there never notifies in turn
                self._changed.notify_all()
                self._changed.wait(self._until_next_s())

    def _until_next_s(self) -> float | None:
        dues = [sub_order.due_s for _, sub_order in self._staging()]
        dues += [due_s for due_s, _, _ in self._late]
        return max(min(dues) - time.monotonic(), 0) if dues else None

    def _mark_late(self) -> None:
        now_s = time.monotonic()
        for late in [each for each in self._late if each[0] <= now_s]:
            self._late.remove(late)
            _mark(late[1], late[2])

    def _staging(self) -> list[tuple[Order, SubOrder]]:
        return [
            (order, sub_order)
            for order in self._orders.values()
            if order.status is not OrderState.PENDING
            for sub_order in order.sub_orders
            if sub_order.stage is Stage.STAGING
        ]

    def _start_staging(self) -> None:
        now_s = time.monotonic()
        for owner in {order.owner for order in self._orders.values()}:
            mine = [order for order in self._orders.values() if order.owner == owner]
            for order, sub_order in lifecycle.startable(mine):
                if order.status is OrderState.PENDING:
                    order.move(OrderState.RUNNING, datetime.now(UTC))
                sub_order.stage = Stage.STAGING
                pause_s = order.plan.suborder_pause_s
                sub_order.due_s = now_s + (self._pause_s if pause_s is None else pause_s)

    def _finish_staged(self) -> None:
        now_s = time.monotonic()
        for order, sub_order in self._staging():
            if sub_order.due_s <= now_s:
                self._stage(order, sub_order)
        for order in self._orders.values():
            if order.settle(datetime.now(UTC)):
                self._tell(
                    messages.ended(
                        order, link=self._order_link(order.order_id), counted=self._counted
                    )
                )

    def _stage(self, order: Order, sub_order: SubOrder) -> None:
        sub_order.stage = Stage.STAGED
        for file in sub_order.files:
            if file.state is not FileState.PENDING:
                continue
            file.error = self._staging_error(order, file)
            file.state = FileState.ERROR if file.error else FileState.AVAILABLE
        if sub_order.waits_for_user:
            link = self._order_link(order.order_id)
            self._tell(messages.suborder_done(order, sub_order, link=link, counted=self._counted))

    def _staging_error(self, order: Order, file: OrderFile) -> str | None:
        outcome, last = order.plan.outcome, order.sub_orders[-1].files[-1]
        fault = self._faults.take(StagingError, order_id=order.order_id, name=file.spec.name)
        if fault:
            return fault.reason
        if outcome is Outcome.FAILED or (outcome is Outcome.PARTIAL and file is last):
            return StagingError().reason
        return None

    def _tell(self, fields: dict[str, Any]) -> None:
        self._publish(
            messages.Message(
                messages.gson(fields), fields["correlationId"], int(datetime.now(UTC).timestamp())
            )
        )


def _mark(files: Iterable[OrderFile], problems: dict[int, str]) -> None:
    for file in files:
        problem = problems.get(file.file_id)
        file.state = FileState.DOWNLOAD_ERROR if problem else FileState.DOWNLOADED
        file.error = problem


def _filtered(plan: OrderPlan, data_types: set[str], filename_regexp: str | None) -> OrderPlan:
    """Return the plan with the files that the request's filters let through."""
    kept = tuple(
        spec
        for spec in plan.files
        if (not data_types or spec.data_type in data_types)
        and (filename_regexp is None or re.fullmatch(filename_regexp, spec.name))
    )
    return replace(plan, files=kept) if kept else replace(plan, outcome=Outcome.EMPTY)
