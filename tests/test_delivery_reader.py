"""Deliveries are read before pika reads the connection, whatever the pieces of the stream."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from pika import frame, spec

from regards_nb.consumer import DeliveryReader, properties_from

HEARTBEAT = frame.Heartbeat().marshal()
PROPERTIES = pika.BasicProperties(
    content_type="application/json",
    correlation_id="order-1",
    timestamp=1681461977,
    headers={"regards.tenant": "tenant", "x-delivery-count": 3},
)
GET_OK = spec.Basic.GetOk(delivery_tag=1, exchange="", routing_key="key", message_count=0)


class PikaProtocol:
    """What pika would receive."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


def delivery(channel: int, tag: int, body: bytes, *, pieces: int = 1) -> list[bytes]:
    """Return the frames of one message, its body in so many frames."""
    deliver = spec.Basic.Deliver("consumer", tag, tag % 2 == 0, "exchange", "key")
    step = max(1, -(-len(body) // pieces))
    return [
        frame.Method(channel, deliver).marshal(),
        frame.Header(channel, len(body), PROPERTIES).marshal(),
        *(frame.Body(channel, body[n : n + step]).marshal() for n in range(0, len(body), step)),
    ]


def read(chunks: list[bytes]) -> tuple[list[tuple[Any, ...]], bytes]:
    """Return the messages that are read, and the bytes for pika without heartbeats."""
    pika_protocol, messages = PikaProtocol(), []
    reader = DeliveryReader(pika_protocol, lambda *message: messages.append(message))
    for chunk in chunks:
        reader.data_received(chunk)
    return messages, b"".join(each for each in pika_protocol.received if each != HEARTBEAT)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_messages_and_other_frames_are_told_apart_at_every_cut(size: int) -> None:
    """Two channels whose frames alternate, bodies in pieces, an empty body, other answers."""
    answer = frame.Method(1, spec.Queue.DeclareOk("q", 5, 1)).marshal()
    got = [
        frame.Method(2, GET_OK).marshal(),
        frame.Header(2, 3, PROPERTIES).marshal(),
        frame.Body(2, b"got").marshal(),
    ]
    one, two = delivery(1, 1, b"a body in pieces", pieces=4), delivery(3, 2, b"other")
    mixed = [one[0], two[0], one[1], two[1], one[2], *got, *one[3:], two[2]]
    stream = b"".join([answer, *mixed, answer, *delivery(1, 3, b""), *delivery(1, 4, b"last")])
    messages, passed = read([stream[n : n + size] for n in range(0, len(stream), size)])
    encoded = b"".join(PROPERTIES.encode())
    assert messages == [
        (1, 1, False, encoded, b"a body in pieces"),
        (3, 2, True, encoded, b"other"),
        (1, 3, False, encoded, b""),
        (1, 4, True, encoded, b"last"),
    ]
    assert passed == answer + b"".join(got) + answer
    others = '{"content_type": "application/json", "headers": {"regards.tenant": "tenant"}}'
    assert properties_from(encoded) == (1681461977, "order-1", "tenant", None, others, None, 3)


def test_a_channel_that_closes_inside_of_a_message_ends_the_message() -> None:
    """The next channel of that number gets an answer with a body, which is for pika."""
    close = frame.Method(1, spec.Channel.Close(404, "gone", 0, 0)).marshal()
    header = frame.Header(1, 3, PROPERTIES).marshal()
    get_ok = frame.Method(1, GET_OK).marshal()
    answer = [get_ok, header, frame.Body(1, b"got").marshal()]
    messages, passed = read([*delivery(1, 1, b"never complete")[:2], close, *answer])
    assert messages == []
    assert passed == close + b"".join(answer)


def test_pika_hears_of_a_connection_that_carries_messages_alone() -> None:
    """RabbitMQ sends no heartbeat beside messages, and pika closes a connection that is silent."""
    pika_protocol = PikaProtocol()
    reader = DeliveryReader(pika_protocol, lambda *_: None)
    reader.data_received(b"".join(delivery(1, 1, b"body")))
    assert pika_protocol.received == [HEARTBEAT]
    reader.data_received(b"".join(delivery(1, 2, b"body")))
    assert pika_protocol.received == [HEARTBEAT], "once a second is enough"


def test_a_server_that_speaks_another_protocol_is_left_to_pika() -> None:
    """RabbitMQ answers with eight bytes of its own version."""
    assert read([b"AMQP\x00\x00\x09\x01"]) == ([], b"AMQP\x00\x00\x09\x01")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"x-delivery-count": 2}, 2),
        ({"x-acquired-count": 1}, 1),
        ({"x-acquired-count": 4, "x-delivery-count": 3}, 4),
        ({}, None),
    ],
)
def test_each_return_is_counted(counts: dict[str, int], expected: int | None) -> None:
    """RabbitMQ 4.3 counts in x-delivery-count what failed alone, and all in x-acquired-count."""
    encoded = b"".join(pika.BasicProperties(headers=counts).encode())
    assert properties_from(encoded).delivery_count == expected
