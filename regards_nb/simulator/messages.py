"""What the service publishes about its orders, as REGARDS' Gson writes it (protocol.md 1.6)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator.plans import Outcome

if TYPE_CHECKING:
    from regards_nb.simulator.lifecycle import Order, SubOrder

# Gson's default is to be safe inside HTML and JavaScript.
_GSON_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&='\u2028\u2029"})


class Message(NamedTuple):
    """One response, before it is given its AMQP properties."""

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


def gson(fields: dict[str, Any]) -> bytes:
    r"""Write JSON as Gson does: no nulls, no spaces, and escapes that are safe in HTML.

    Examples
    --------
    >>> gson({"status": "DONE", "message": "a < b", "errorType": None})
    b'{"status":"DONE","message":"a \\u003c b"}'
    """
    kept = {name: value for name, value in fields.items() if value is not None}
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    # outside its strings this JSON holds none of the escaped characters
    return text.translate(_GSON_ESCAPES).encode("utf-8", "replace")


def granted(order: Order) -> dict[str, Any]:
    """Return the answer to a request that became an order."""
    return {"status": "GRANTED", "orderId": order.order_id, "correlationId": order.correlation_id}


def refused(refusal: Refusal, correlation_id: str) -> dict[str, Any]:
    """Return the answer to a request that did not."""
    return {
        "status": refusal.status,
        "correlationId": correlation_id,
        "message": refusal.message,
        "errorType": refusal.error_type,
    }


def suborder_done(order: Order, sub_order: SubOrder, *, link: str, counted: bool) -> dict[str, Any]:
    """Return the message for a sub-order; *counted*: with the fields of newer servers."""
    errors = sub_order.errors
    return {
        "status": "SUBORDER_DONE",
        "orderId": order.order_id,
        "correlationId": order.correlation_id,
        "message": f"A sub-order of user {order.owner} is finished and ready to download",
        "downloadLink": link,
        "errorType": "INTERNAL_ERROR" if errors else None,
        "errors": errors or None,
        "totalSubOrders": len(order.sub_orders) if counted else None,
        "subOrderId": sub_order.sub_order_id if counted else None,
    }


def ended(order: Order, *, link: str, counted: bool) -> dict[str, Any]:
    """Return the last message of an order: DONE, FAILED with a link, or FAILED without."""
    errors = sum(sub_order.errors for sub_order in order.sub_orders)
    nothing = order.status == "FAILED"
    text = f"Order of user {order.owner} is finished"
    if nothing:
        text = f"Order of user {order.owner} failed: none of its files can be retrieved"
    elif errors:
        text = f"Order of user {order.owner} is finished. Files in error: {errors}"
    return {
        "status": "FAILED" if errors else "DONE",
        "orderId": order.order_id,
        "correlationId": order.correlation_id,
        "message": text,
        "downloadLink": None if nothing else link,
        "errorType": "INTERNAL_ERROR" if errors else None,
        "errors": errors or None,
        "totalSubOrders": len(order.sub_orders) if counted else None,
    }
