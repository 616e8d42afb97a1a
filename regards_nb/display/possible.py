"""What can be done with an order as it stands, for the buttons (protocol.md 1.2). Pure.

The server has the last word: it may know of a pause, or of a job that has not stopped, of which no
message told.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from regards_nb.events import OrderStatus
from regards_nb.orders import GONE

if TYPE_CHECKING:
    from regards_nb.orders import OrderState

_TO_RETRY = frozenset({OrderStatus.FAILED, OrderStatus.DONE_WITH_WARNING})


class Action(StrEnum):
    """What the buttons ask for."""

    DOWNLOAD = "download"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    CANCEL = "cancel"


def possible(order: OrderState) -> frozenset[Action]:
    """Return what makes sense for an order now."""
    if order.order_id is None:
        # denied, or not answered yet: the server does not know it by any number
        return frozenset()
    is_paused = order.status == OrderStatus.PAUSED
    has_files = order.waits_for_download or bool(order.download_link)
    answers = {
        Action.DOWNLOAD: has_files and not order.downloading and order.status not in GONE,
        Action.PAUSE: not order.finished and not is_paused,
        Action.RESUME: is_paused,
        Action.RETRY: order.status in _TO_RETRY,
        Action.CANCEL: not order.finished,
    }
    return frozenset(action for action, makes_sense in answers.items() if makes_sense)
