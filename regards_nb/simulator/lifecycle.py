"""The states of orders: pure data and rules, no clock, no thread, no network (protocol.md 0, 1.2).

The most important rule: at most two sub-orders of one user, over all orders, are being staged or
wait for a download. All others stay queued until the user downloads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from regards_nb.simulator.plans import FileSpec, OrderPlan

SUBORDERS_PER_USER = 2


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
    status: ServerStatus = ServerStatus.PENDING
    status_at: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.status_at = self.created_at

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

    def move(self, status: ServerStatus, at: datetime) -> None:
        """Set the status and its time."""
        self.status, self.status_at = status, at

    def settle(self, at: datetime) -> bool:
        """End the order if nothing is left to stage; return whether it ended in this call."""
        if self.status is not ServerStatus.RUNNING or any(
            sub_order.stage is not Stage.STAGED for sub_order in self.sub_orders
        ):
            return False
        failed = [file.state is FileState.ERROR for file in self.files]
        if all(failed):
            self.move(ServerStatus.FAILED, at)
        else:
            self.move(ServerStatus.DONE_WITH_WARNING if any(failed) else ServerStatus.DONE, at)
        return True


def startable(orders: Iterable[Order]) -> list[tuple[Order, SubOrder]]:
    """Return the sub-orders that may start now, those of the oldest order first.

    *orders* are those of one user. A paused order starts nothing, but its staged sub-orders still
    occupy the user's places.
    """
    kept = [order for order in orders if order.status is not ServerStatus.DELETED]
    # Nothing of a pending order has begun. Skipping them keeps a thousand orders fast.
    begun = (order for order in kept if order.status is not ServerStatus.PENDING)
    taken = sum(sub_order.occupies for order in begun for sub_order in order.sub_orders)
    queued = (
        (order, sub_order)
        for order in kept
        if order.status in (ServerStatus.PENDING, ServerStatus.RUNNING)
        for sub_order in order.sub_orders
        if sub_order.stage is Stage.QUEUED
    )
    return list(islice(queued, max(SUBORDERS_PER_USER - taken, 0)))


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


def act(order: Order, action: Action, at: datetime) -> str | None:
    """Execute an action, or return the code of the refusal."""
    if code := refusal(order, action):
        return code
    match action:
        case Action.PAUSE:
            for sub_order in order.sub_orders:
                if sub_order.stage is Stage.STAGING:
                    sub_order.stage = Stage.QUEUED
            order.move(ServerStatus.PAUSED, at)
        case Action.RESUME:
            order.move(ServerStatus.RUNNING, at)
        case Action.DELETE:
            remove(order, ServerStatus.DELETED, at)
        case Action.RETRY:
            _stage_again(order)
            order.move(ServerStatus.RUNNING, at)
        case Action.RESTART:
            pass  # the service makes a new order
    return None


def remove(order: Order, status: ServerStatus, at: datetime) -> None:
    """Delete the files of an order that is deleted or expired."""
    order.move(status, at)
    for sub_order in order.sub_orders:
        sub_order.stage = Stage.STAGED
        for file in sub_order.files:
            file.state, file.error = FileState.ERROR, f"Order {status.lower()}"


def _stage_again(order: Order) -> None:
    """Stage every file that failed in staging or in a download."""
    for sub_order in order.sub_orders:
        for file in sub_order.files:
            if file.state in (FileState.ERROR, FileState.DOWNLOAD_ERROR):
                file.state, file.error = FileState.PENDING, None
                sub_order.stage = Stage.QUEUED
