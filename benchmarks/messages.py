"""The messages of the benchmarks: SUBORDER_DONE of orders with 100 sub-orders."""

from __future__ import annotations

import json

import pika

SUB_ORDERS = 100
LINK = "https://regards.example/api/v1/rs-order/user/orders/{}/download"


def body(number: int) -> bytes:
    """Return the body of one message."""
    order = number // SUB_ORDERS
    return json.dumps(
        {
            "status": "SUBORDER_DONE",
            "orderId": order,
            "correlationId": f"benchmark-{order:08d}",
            "message": "A sub-order of user john@cnes.fr is finished and ready to download",
            "downloadLink": LINK.format(order),
            "errors": 0,
            "totalSubOrders": SUB_ORDERS,
            "subOrderId": number,
        },
        separators=(",", ":"),
    ).encode()


def properties(number: int) -> pika.BasicProperties:
    """Return the AMQP properties of one message; the timestamps are those of 500 a second."""
    return pika.BasicProperties(
        content_type="application/json",
        content_encoding="UTF-8",
        delivery_mode=2,
        priority=1,
        app_id="rs-order",
        timestamp=1_700_000_000 + number // 500,
        headers={"regards.tenant": "project1", "regards.converter": "GSON"},
    )
