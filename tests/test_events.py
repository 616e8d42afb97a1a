"""The wire: every response of the seed page, and everything that is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import delivery

from regards_nb import events
from regards_nb.events import MAX_BODY_BYTES, OrderEvent, Rejection, decode

if TYPE_CHECKING:
    from collections.abc import Callable

# As printed on the page "Get Order progress AMQP", trailing commas and all.
GRANTED = b"""{
  "correlationId": "xxx",
  "orderId": 1,
  "status": "GRANTED"
}"""
SUBORDER_DONE = b"""{
  "status": "SUBORDER_DONE",
  "orderId": 1234,
  "correlationId": "xxx",
  "message": "A sub-order of user john@cnes.fr is finished and ready to download",
  "downloadLink": "<host>/api/v1/rs-order/user/orders/1234/download"
}"""
DONE = b"""{
    "status" : "DONE",
    "orderId": 1234,
    "correlationId": "xxx",
    "message": "Order of user john@cnes.fr is finished",
    "downloadLink": "<host>/api/v1/rs-order/user/orders/1234/download"
}"""
DENIED = b"""{
    "status" : "DENIED",
    "correlationId": "xxx",
    "message" : "deny cause",
}"""
FAILED = b"""{
    "status" : "FAILED",
    "orderId": 1,
    "correlationId": "xxx",
    "message": "Error cause",
}"""


def understood(body: bytes | dict[str, object], **properties: object) -> OrderEvent:
    event = decode(delivery(body, **properties))  # type: ignore[arg-type]
    assert isinstance(event, OrderEvent), event
    return event


@pytest.mark.parametrize(
    ("body", "status", "order_id", "message"),
    [
        (GRANTED, "GRANTED", 1, None),
        (
            SUBORDER_DONE,
            "SUBORDER_DONE",
            1234,
            "A sub-order of user john@cnes.fr is finished and ready to download",
        ),
        (DONE, "DONE", 1234, "Order of user john@cnes.fr is finished"),
        (DENIED, "DENIED", None, "deny cause"),
        (FAILED, "FAILED", 1, "Error cause"),
    ],
)
def test_every_response_of_the_seed_page_is_understood(
    body: bytes, status: str, order_id: int | None, message: str | None
) -> None:
    """The bodies as they stand on the page give the event they describe."""
    event = understood(body)
    assert (event.status, event.order_id, event.message) == (status, order_id, message)
    assert event.correlation_id == "xxx"
    assert event.tenant == "tenant"
    assert event.timestamp == datetime(2023, 4, 14, 8, 46, 17, tzinfo=UTC)


def test_a_trailing_comma_inside_a_text_is_left_alone() -> None:
    """Mending the page's commas never changes what a message says."""
    text = 'see [1,] and {2, } and ",}" and \\'
    body = b'{"status": "FAILED", "correlationId": "x", "message": ' + json.dumps(text).encode()
    assert understood(body + b",\n}").message == text


def test_the_correlation_id_of_the_property_serves_where_the_body_has_none() -> None:
    """The AMQP property names the order when the body does not; the body goes first."""
    assert understood({"status": "DONE"}, correlation_id="prop").correlation_id == "prop"
    body = {"status": "DONE", "correlationId": "body"}
    assert understood(body, correlation_id="prop").correlation_id == "body"


@pytest.mark.parametrize("name", ["errorType", "errorCode"])
def test_both_spellings_of_the_error_field_are_read(name: str) -> None:
    """The documentation says errorCode, the server errorType."""
    body = {"status": "FAILED", "correlationId": "x", name: "EMPTY_ORDER"}
    assert understood(body).error_type == "EMPTY_ORDER"


def test_unknown_statuses_and_fields_are_kept() -> None:
    """A server that has grown is understood as far as it is known, and nothing is dropped."""
    event = understood({"status": "ARCHIVED", "orderId": 7, "colour": "blue", "deep": [{"a": 1}]})
    assert event.status == "ARCHIVED"
    assert event.extra == {"colour": "blue", "deep": [{"a": 1}]}


def test_nulls_count_as_missing() -> None:
    """A field that is null is as good as one that is not there."""
    event = understood({"status": "DENIED", "correlationId": "x", "orderId": None, "errors": None})
    assert event.order_id is None
    assert event.errors is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty body"),
        (b"hello", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "not a JSON object but list"),
        (b'"GRANTED"', "not a JSON object but str"),
        (b"null", "not a JSON object but NoneType"),
        (b'{"orderId": 1}', "no status"),
        (b'{"status": "", "orderId": 1}', "no status"),
        (b'{"status": 5, "orderId": 1}', "status is not a text"),
        (b'{"status": "DONE", "orderId": "1"}', "orderId is not a whole number"),
        (b'{"status": "DONE", "orderId": true}', "orderId is not a whole number"),
        (b'{"status": "DONE", "orderId": 1.5}', "orderId is not a whole number"),
        (b'{"status": "DONE", "orderId": 9223372036854775808}', "orderId does not fit 64 bits"),
        (b'{"status": "DONE", "correlationId": 5}', "correlationId is not a text"),
        (b'{"status": "DONE", "orderId": 1, "errors": []}', "errors is not a whole number"),
        (b'{"status": "DONE"}', "the message names no order"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"status": "DONE", "orderId": 1}' + b" " * MAX_BODY_BYTES, "bytes; a response has"),
    ],
)
def test_what_cannot_be_understood_says_why(body: bytes, reason: str) -> None:
    """Each kind of bad message is a rejection with its own reason, never an exception."""
    rejection = decode(delivery(body))
    assert isinstance(rejection, Rejection)
    assert reason in rejection.reason


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=5)))
def test_any_bytes_give_an_event_or_a_reason(body: bytes, correlation_id: str | None) -> None:
    """No message whatever makes the decoder raise."""
    result = decode(delivery(body, correlation_id=correlation_id))
    assert isinstance(result, OrderEvent) or result.reason


@given(st.dictionaries(st.text(max_size=3), st.text(max_size=5)), st.text(max_size=10))
def test_any_text_comes_out_as_one_that_can_be_written(extra: dict[str, str], message: str) -> None:
    """What JSON can spell and UTF-8 cannot, such as a lone surrogate, is replaced."""
    event = understood({**extra, "status": "DONE", "orderId": 1, "message": message + "\ud800"})
    assert event.message is not None
    assert event.message.encode().decode().startswith(message)


_anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=2,
)
_a_body = st.fixed_dictionaries(
    {"status": st.sampled_from(["DONE", " DONE ", " ", ""]) | _anything},
    optional=dict.fromkeys(
        ("correlationId", "orderId", "message", "errorCode", "subOrderId", "new"), _anything
    ),
)


@given(_a_body, st.sampled_from([json.dumps, lambda body: json.dumps(body, ensure_ascii=False)]))
def test_a_body_is_read_alike_by_either_way(
    body: dict[str, object], spelled: Callable[[object], str]
) -> None:
    """The quick way of reading a body and the patient one say the same, or both refuse."""
    raw = spelled(body).encode("utf-8", "replace")

    def said(read: Callable[[bytes], object]) -> object:
        try:
            return read(raw)
        except ValueError as why:
            return str(why)

    assert said(events._read) == said(events._read_leniently)
