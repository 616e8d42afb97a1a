"""The codes with which REGARDS refuses an action, in words and with what to do. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The server's code (protocol.md 1.2): what it means, what to do.
REFUSALS: dict[str, tuple[str, str]] = {
    "ORDER_MUST_BE_PENDING_OR_RUNNING": (
        "only an order that is pending or running can be paused",
        "It has ended or is paused already: look at its status",
    ),
    "ORDER_MUST_BE_PAUSED": (
        "only an order that is paused, and whose jobs have all stopped, can be resumed",
        "If you have just paused it, try again in a minute",
    ),
    "ORDER_MUST_BE_DONE_OR_DONE_WITH_WARNING_OR_PAUSED_OR_FAILED_OR_EXPIRED": (
        "an order that is at work cannot be deleted",
        "Use cancel(), which pauses it first",
    ),
    "ORDER_MUST_BE_DELETED": (
        "only a deleted order can be removed for good, and only by the administrator",
        "There is nothing left to do for you",
    ),
    "ORDER_MUST_BE_DONE_OR_DONE_WITH_WARNING_OR_FAILED": (
        "only an order that has ended can be ordered again",
        "Wait for its end, or submit() the same queries",
    ),
    "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED": (
        "only an order that has ended with errors can be retried",
        "Of an order that is done, everything was brought: download it, or restart() it",
    ),
    "ORDER_HAS_PROCESSING": (
        "an order whose files are processed on the server cannot be retried",
        "Use restart(), which orders everything again",
    ),
    "ORDER_MUST_HAVE_AVAILABLE_FILES": (
        "no file of the order is ready",
        "Wait for its next part: wait(until='part')",
    ),
    "USER_NOT_ALLOWED_TO_MANAGE_ORDER": (
        "the order belongs to somebody else",
        "Log in as its owner, or ask the project administrator",
    ),
}


def advice_for(messages: Iterable[str]) -> str:
    """Return what the codes among the server's words mean, and what to do; empty if none is known.

    Examples
    --------
    >>> advice_for(["ORDER_MUST_BE_PAUSED"]).split(". ")[0]
    'Only an order that is paused, and whose jobs have all stopped, can be resumed'
    """
    known = [REFUSALS[message] for message in messages if message in REFUSALS]
    return ". ".join(f"{words[0].upper()}{words[1:]}. {remedy}" for words, remedy in known)
