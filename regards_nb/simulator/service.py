"""The order service: the states of orders (protocol.md 0, 1.2), and a thread that runs them.

The most important rule: at most two sub-orders of one user, over all orders, are being staged or
wait for a download. All others stay queued until the user downloads.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum, auto
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator.catalogue import Catalogue
from regards_nb.simulator.faults import StagingError
from regards_nb.simulator.plans import REFUSED, OrderPlan, Outcome
from regards_nb.simulator.query import QueryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.plans import FileSpec

ORDERS_PATH = "/api/v1/rs-order/user/orders"
_ORDER_LIFETIME = timedelta(days=3)
_SUBORDERS_PER_USER = 2

# Gson escapes these by default, for text inside of HTML and JavaScript.
_GSON_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&='\u2028\u2029"})


# -- the states of orders


class FileState(StrEnum):
    """The states of one file of an order, as REGARDS names them."""

    PENDING = "PENDING"
    AVAILABLE = "AVAILABLE"
    DOWNLOADED = "DOWNLOADED"
    DOWNLOAD_ERROR = "DOWNLOAD_ERROR"
    ERROR = "ERROR"


class ServerStatus(StrEnum):
    """The status of an order on the server, as REGARDS names it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    EXPIRED = "EXPIRED"
    FAILED = "FAILED"
    DONE_WITH_WARNING = "DONE_WITH_WARNING"
    DONE = "DONE"
    DELETED = "DELETED"


class Stage(Enum):
    """How far one sub-order has come."""

    #: It waits for one of the user's two places.
    QUEUED = auto()
    #: REGARDS stages its files.
    STAGING = auto()
    #: Each of its files is available or in error.
    STAGED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class OrderFile:
    """One file of an order on the server."""

    file_id: int
    order_id: int
    spec: FileSpec
    state: FileState = FileState.PENDING
    error: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SubOrder:
    """The files that are staged together."""

    sub_order_id: int
    files: list[OrderFile]
    stage: Stage = Stage.QUEUED
    #: When staging ends, on the monotonic clock of the service.
    due_s: float = 0

    @property
    def errors(self) -> int:
        """Number of files that could not be staged."""
        return sum(file.state is FileState.ERROR for file in self.files)

    @property
    def waits_for_user(self) -> bool:
        """Whether it has files that are available and not downloaded."""
        return self.stage is Stage.STAGED and any(
            file.state is FileState.AVAILABLE for file in self.files
        )

    @property
    def occupies(self) -> bool:
        """Whether it occupies one of the user's two places."""
        return self.stage is Stage.STAGING or self.waits_for_user


@dataclass(slots=True, kw_only=True, eq=False)
class Order:
    """One order on the server."""

    order_id: int
    owner: str
    correlation_id: str
    label: str
    plan: OrderPlan
    dataset_id: int
    sub_orders: list[SubOrder]
    created_at: datetime
    expires_at: datetime
    status_at: datetime
    status: ServerStatus = ServerStatus.PENDING

    @property
    def files(self) -> Iterator[OrderFile]:
        """All files, ordered by id."""
        return (file for sub_order in self.sub_orders for file in sub_order.files)

    def available(self, sub_order_id: int | None = None) -> list[OrderFile]:
        """Return the available files of one sub-order or of all."""
        wanted = (each for each in self.sub_orders if sub_order_id in (None, each.sub_order_id))
        return [f for each in wanted for f in each.files if f.state is FileState.AVAILABLE]

    @property
    def waits_for_user(self) -> bool:
        """Whether any sub-order waits for a download."""
        return any(sub_order.waits_for_user for sub_order in self.sub_orders)

    def move(self, status: ServerStatus) -> None:
        """Set the status and its time."""
        self.status, self.status_at = status, datetime.now(UTC)

    def remove(self, status: ServerStatus) -> None:
        """Delete the files of an order that is deleted or expired."""
        self.move(status)
        for sub_order in self.sub_orders:
            sub_order.stage = Stage.STAGED
            for file in sub_order.files:
                file.state, file.error = FileState.ERROR, f"Order {status.lower()}"

    def stage_again(self) -> None:
        """Stage every file that failed in staging or in a download."""
        self.move(ServerStatus.RUNNING)
        for sub_order in self.sub_orders:
            for file in sub_order.files:
                if file.state in (FileState.ERROR, FileState.DOWNLOAD_ERROR):
                    file.state, file.error = FileState.PENDING, None
                    sub_order.stage = Stage.QUEUED

    def settle(self) -> bool:
        """End the order if nothing is left to stage; return whether it ended in this call."""
        if self.status is not ServerStatus.RUNNING or any(
            sub_order.stage is not Stage.STAGED for sub_order in self.sub_orders
        ):
            return False
        failed = [file.state is FileState.ERROR for file in self.files]
        if all(failed):
            self.move(ServerStatus.FAILED)
        else:
            self.move(ServerStatus.DONE_WITH_WARNING if any(failed) else ServerStatus.DONE)
        return True


def _startable(orders: Sequence[Order]) -> list[tuple[Order, SubOrder]]:
    """Return the sub-orders that may start now, those of the oldest order first.

    *orders* are those of one user. A paused order starts nothing, but its staged sub-orders still
    occupy the user's places.
    """
    # Nothing of a pending order has begun. Skipping them keeps a thousand orders fast.
    begun = (order for order in orders if order.status is not ServerStatus.PENDING)
    taken = sum(sub_order.occupies for order in begun for sub_order in order.sub_orders)
    queued = (
        (order, sub_order)
        for order in orders
        if order.status in (ServerStatus.PENDING, ServerStatus.RUNNING)
        for sub_order in order.sub_orders
        if sub_order.stage is Stage.QUEUED
    )
    return list(islice(queued, max(_SUBORDERS_PER_USER - taken, 0)))


class Action(StrEnum):
    """The actions of the owner, named like the relations of the links."""

    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"
    RESTART = "restart"
    RETRY = "retry"


#: For each action, the states that allow it; the code of a refusal names them (protocol.md 1.2).
ACTIONS = {
    Action.PAUSE: ("PENDING", "RUNNING"),
    Action.RESUME: ("PAUSED",),
    Action.DELETE: ("DONE", "DONE_WITH_WARNING", "PAUSED", "FAILED", "EXPIRED"),
    Action.RESTART: ("DONE", "DONE_WITH_WARNING", "FAILED"),
    Action.RETRY: ("DONE_WITH_WARNING", "FAILED"),
}


def refusal(order: Order, action: Action) -> str | None:
    """Return the code of the refusal, or None if the action is allowed."""
    allowed = ACTIONS[action]
    return None if order.status in allowed else f"ORDER_MUST_BE_{'_OR_'.join(allowed)}"


# -- messages and results


class Message(NamedTuple):
    """One response, without its AMQP properties."""

    body: bytes
    correlation_id: str
    timestamp_s: int


class Refusal(NamedTuple):
    """Why a request did not become an order."""

    status: str
    error_type: str
    message: str


REFUSALS = {
    Outcome.EMPTY: Refusal(
        "FAILED",
        "EMPTY_ORDER",
        "EmptySelectionException: This selection contains no file that can be ordered",
    ),
    Outcome.DENIED: Refusal(
        "DENIED",
        "INTERNAL_ERROR",
        "[INVALID_CONTENT] List of queries should not be empty at queries: rejected value [[]].",
    ),
    Outcome.FORBIDDEN: Refusal(
        "DENIED", "FORBIDDEN", "[FORBIDDEN] Unknown user at user: rejected value [null]."
    ),
    Outcome.TOO_BIG: Refusal(
        "DENIED",
        "ORDER_LIMIT_REACHED",
        "ExceededBasketSizeException: The basket holds 12000000 files, 10000000 are allowed",
    ),
}


class RequestResult(NamedTuple):
    """The result of one request for an order: an order or a refusal."""

    correlation_id: str
    order_id: int | None
    refusal: Refusal | None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the response."""
        status, error_type, message = self.refusal or ("GRANTED", None, None)
        fields = {
            "status": status,
            "orderId": self.order_id,
            "correlationId": self.correlation_id,
            "message": message,
            "errorType": error_type,
        }
        return {name: value for name, value in fields.items() if value is not None}


# -- the service


class Service:
    """Runs orders. Every method is thread-safe. Equal seeds give equal orders, files and messages.

    *publish* must not block. *counted*: messages contain ``totalSubOrders`` and ``subOrderId``, as
    since REGARDS 1.14.
    """

    def __init__(
        self,
        *,
        seed: int,
        tenant: str,
        faults: Faults,
        publish: Callable[[Message], None],
        host: Callable[[], str],
        suborder_pause_s: float,
        counted: bool,
    ) -> None:
        self._seed = seed
        self.catalogue = Catalogue(seed=seed, tenant=tenant)
        #: Queries for the products in the web basket of each user.
        self.baskets: dict[str, list[str]] = {}
        self.faults = faults
        self._publish = publish
        #: Returns the host of links, which an administrator configures, and which can differ from
        #: the host of the server (protocol.md 1.1).
        self.host = host
        self._pause_s = suborder_pause_s
        self._counted = counted
        #: Orders and files by their ids.
        self.orders: dict[int, Order] = {}
        self.files: dict[int, OrderFile] = {}
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
        """End the thread and join it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock for reading or changing orders, then wake the thread."""
        with self._changed:
            yield
            self._changed.notify_all()

    def wait_until(self, done: Callable[[], bool], *, timeout_s: float = 30) -> bool:
        """Wait until *done*, called after every change, returns True; False after the limit."""
        with self._changed:
            return self._changed.wait_for(done, timeout_s)

    # -- requests for orders

    def request(
        self,
        plan: OrderPlan,
        *,
        owner: str,
        correlation_id: str | None,
        over_amqp: bool,
        refusal: Refusal | None = None,
    ) -> RequestResult:
        """Grant or refuse one order; *refusal* replaces that of the outcome.

        The result of a request over AMQP is published, that of a REST request is only returned
        (protocol.md 1.6).
        """
        with self.changing():
            if plan.outcome in REFUSED:
                name = correlation_id or self._correlation_id()
                result = RequestResult(name, None, refusal or REFUSALS[plan.outcome])
            else:
                order = self._create(plan, owner=owner, correlation_id=correlation_id)
                result = RequestResult(order.correlation_id, order.order_id, None)
            if over_amqp:
                self._publish_fields(result.fields)
            return result

    def request_by_query(
        self,
        queries: Sequence[str],
        *,
        owner: str,
        correlation_id: str | None,
        data_types: Iterable[str] = (),
        filename_regexp: str | None = None,
        size_limit_bytes: int | None = None,
        over_amqp: bool = False,
    ) -> RequestResult:
        """Grant or refuse the order of what the catalogue contains for these queries.

        REGARDS makes the selection in the owner's only web basket: products that are already there
        are ordered, too, and the basket is empty afterwards. Each query is a selection of its own:
        one without a file ends the request, and those before it stay in the basket.
        """
        with self.changing():
            basket = self.baskets.pop(owner, [])
            refusal = None
            try:
                plan = self.catalogue.plan(
                    [*queries, *basket],
                    data_types=data_types,
                    filename_regexp=re.compile(filename_regexp or ".*", re.DOTALL).fullmatch,
                )
                for place, query in enumerate(queries):
                    if not any(product.files for product in self.catalogue.search(query)):
                        plan = OrderPlan(outcome=Outcome.EMPTY)
                        self.baskets[owner] = [*queries[:place], *basket]
                        break
            except (QueryError, re.error) as exc:
                plan = OrderPlan(outcome=Outcome.EMPTY)
                refusal = Refusal("FAILED", "INTERNAL_ERROR", f"CatalogSearchException: {exc}")
            if size_limit_bytes is not None and plan.size_bytes > size_limit_bytes:
                # The selection stays in the basket.
                self.baskets[owner] = [*queries, *basket]
                plan = OrderPlan(outcome=Outcome.TOO_BIG)
            return self.request(
                plan,
                owner=owner,
                correlation_id=correlation_id,
                over_amqp=over_amqp,
                refusal=refusal,
            )

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
            sub_orders=[self._sub_order(order_id, files) for files in plan.suborders()],
            created_at=now,
            status_at=now,
            expires_at=now + _ORDER_LIFETIME,
        )
        for fault in plan.faults:
            self.faults.add(replace(fault, order_id=order_id))
        self.orders[order_id] = order
        self.files.update((file.file_id, file) for file in order.files)
        return order

    def _correlation_id(self) -> str:
        """Return the id that the server gives to a request without one (protocol.md 1.2)."""
        return f"auto-correlation-id-{uuid.UUID(int=self._names.getrandbits(128), version=4)}"

    def _sub_order(self, order_id: int, specs: Iterable[FileSpec]) -> SubOrder:
        number = self._numbers["file"]
        files = [OrderFile(file_id=next(number), order_id=order_id, spec=spec) for spec in specs]
        return SubOrder(sub_order_id=next(self._numbers["sub"]), files=files)

    # -- reading orders

    def download_link(self, order_id: int) -> str:
        """Return the link to an order's zip."""
        return f"{self.host()}{ORDERS_PATH}/{order_id}/download"

    def orders_of(self, owner: str) -> list[Order]:
        """Return the user's orders, newest first, without the deleted ones."""
        with self._changed:
            return [
                order
                for order in reversed(self.orders.values())
                if order.owner == owner and order.status is not ServerStatus.DELETED
            ]

    # -- actions of the owner

    def act(self, order: Order, action: Action) -> str | None:
        """Execute an action, or return the code of the refusal."""
        with self.changing():
            if code := refusal(order, action):
                return code
            match action:
                case Action.PAUSE:
                    for sub_order in order.sub_orders:
                        if sub_order.stage is Stage.STAGING:
                            sub_order.stage = Stage.QUEUED
                    order.move(ServerStatus.PAUSED)
                case Action.RESUME:
                    order.move(ServerStatus.RUNNING)
                case Action.DELETE:
                    order.remove(ServerStatus.DELETED)
                case Action.RETRY:
                    order.stage_again()
                case Action.RESTART:
                    pass  # see `restart`
            return None

    def restart(self, order: Order, label: str | None) -> Order:
        """Make a new order of the same files."""
        with self.changing():
            plan = replace(order.plan, label=label, faults=())
            return self._create(plan, owner=order.owner, correlation_id=None)

    def expire(self, order_id: int) -> None:
        """Expire an order now."""
        with self.changing():
            self.orders[order_id].remove(ServerStatus.EXPIRED)

    def downloaded(
        self, files: Iterable[OrderFile], problems: dict[int, str], *, late_s: float = 0
    ) -> None:
        """Save the states of downloaded files, with a delay; *problems* by file id."""
        with self.changing():
            if late_s:
                self._late.append((time.monotonic() + late_s, files, problems))
            else:
                _save_states(files, problems)

    # -- the thread

    def _run(self) -> None:
        with self._changed:
            while not self._stopping:
                self._save_late()
                self._finish_staged()
                self._start_staging()
                # For wait_until(), which never notifies in turn.
                self._changed.notify_all()
                self._changed.wait(self._until_next_s())

    def _until_next_s(self) -> float | None:
        dues = [sub_order.due_s for _, sub_order in self._staging()]
        dues += [due_s for due_s, _, _ in self._late]
        return max(min(dues) - time.monotonic(), 0) if dues else None

    def _save_late(self) -> None:
        now_s = time.monotonic()
        for late in [each for each in self._late if each[0] <= now_s]:
            self._late.remove(late)
            _save_states(late[1], late[2])

    def _staging(self) -> list[tuple[Order, SubOrder]]:
        begun = (o for o in self.orders.values() if o.status is not ServerStatus.PENDING)
        return [(o, sub) for o in begun for sub in o.sub_orders if sub.stage is Stage.STAGING]

    def _start_staging(self) -> None:
        now_s = time.monotonic()
        for owner in {order.owner for order in self.orders.values()}:
            of_owner = [order for order in self.orders.values() if order.owner == owner]
            for order, sub_order in _startable(of_owner):
                if order.status is ServerStatus.PENDING:
                    order.move(ServerStatus.RUNNING)
                sub_order.stage = Stage.STAGING
                pause_s = order.plan.suborder_pause_s
                sub_order.due_s = now_s + (self._pause_s if pause_s is None else pause_s)

    def _finish_staged(self) -> None:
        now_s = time.monotonic()
        for order, sub_order in self._staging():
            if sub_order.due_s <= now_s:
                self._stage(order, sub_order)
        for order in self.orders.values():
            # An order without files has no sub-order that could start it.
            if order.status is ServerStatus.PENDING and not order.sub_orders:
                order.move(ServerStatus.RUNNING)
            if order.settle():
                self._publish_end(order)

    def _stage(self, order: Order, sub_order: SubOrder) -> None:
        sub_order.stage = Stage.STAGED
        for file in sub_order.files:
            if file.state is not FileState.PENDING:
                continue
            file.error = self._staging_error(order, file)
            file.state = FileState.ERROR if file.error else FileState.AVAILABLE
        if sub_order.waits_for_user:
            self._publish_response(
                order,
                "SUBORDER_DONE",
                f"A sub-order of user {order.owner} is finished and ready to download",
                errors=sub_order.errors,
                sub_order_id=sub_order.sub_order_id if self._counted else None,
            )

    def _staging_error(self, order: Order, file: OrderFile) -> str | None:
        outcome, last = order.plan.outcome, order.sub_orders[-1].files[-1]
        fault = self.faults.take(StagingError, order_id=order.order_id, name=file.spec.name)
        if fault:
            return fault.reason
        if outcome is Outcome.FAILED or (outcome is Outcome.PARTIAL and file is last):
            return StagingError().reason
        return None

    # -- messages

    def _publish_end(self, order: Order) -> None:
        """Publish DONE, FAILED with a link, or FAILED without a link."""
        errors = sum(sub_order.errors for sub_order in order.sub_orders)
        is_failed = order.status is ServerStatus.FAILED
        text = f"Order of user {order.owner} is finished"
        if is_failed:
            text = f"Order of user {order.owner} failed: none of its files can be retrieved"
        elif errors:
            text += f". Files in error: {errors}"
        self._publish_response(
            order,
            "FAILED" if is_failed or errors else "DONE",
            text,
            errors=errors,
            # REGARDS adds a link also to an order that never had a file.
            has_link=not is_failed or not order.sub_orders,
        )

    def _publish_response(
        self,
        order: Order,
        status: str,
        text: str,
        *,
        errors: int,
        has_link: bool = True,
        sub_order_id: int | None = None,
    ) -> None:
        self._publish_fields(
            {
                "status": status,
                "orderId": order.order_id,
                "correlationId": order.correlation_id,
                "message": text,
                "downloadLink": self.download_link(order.order_id) if has_link else None,
                "errorType": "INTERNAL_ERROR" if errors or status == "FAILED" else None,
                "errors": errors or None,
                "totalSubOrders": len(order.sub_orders) if self._counted else None,
                "subOrderId": sub_order_id,
            }
        )

    def _publish_fields(self, fields: dict[str, Any]) -> None:
        now_s = int(datetime.now(UTC).timestamp())
        self._publish(Message(gson(fields), fields["correlationId"], now_s))


def gson(fields: dict[str, Any]) -> bytes:
    r"""Write JSON as Gson does: no nulls, no spaces, and escapes that are safe in HTML.

    >>> gson({"status": "DONE", "message": "a < b", "errorType": None})
    b'{"status":"DONE","message":"a \\u003c b"}'
    """
    kept = {name: value for name, value in fields.items() if value is not None}
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    # Outside of its strings this JSON contains none of the escaped characters.
    return text.translate(_GSON_ESCAPES).encode("utf-8", "replace")


def _save_states(files: Iterable[OrderFile], problems: dict[int, str]) -> None:
    for file in files:
        problem = problems.get(file.file_id)
        file.state = FileState.DOWNLOAD_ERROR if problem else FileState.DOWNLOADED
        file.error = problem
