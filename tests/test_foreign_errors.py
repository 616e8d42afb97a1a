"""Every exception of pika and requests becomes one of ours at its seam."""

from __future__ import annotations

import inspect
from typing import Any

import pika
import pika.exceptions
import pytest
import requests

from regards_nb import errors
from regards_nb.client import REFUSALS, RequestFailure, advice_for
from regards_nb.consumer import broker_error, translated_publish_errors


def classes_of(module: Any, root: type) -> list[type]:
    return [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, root)]


PIKA = classes_of(pika.exceptions, pika.exceptions.AMQPError)
REQUESTS = classes_of(requests.exceptions, requests.RequestException)


def made(kind: type) -> Any:
    """Make an exception of a class with the first arguments that it takes."""
    for arguments in ((403, "refused - no access"), ([],), ("text",), (), ("", "", 0)):
        try:
            return kind(*arguments)
        except TypeError:
            continue
    return pytest.fail(f"cannot make {kind}")


@pytest.mark.parametrize("kind", PIKA, ids=lambda kind: kind.__name__)
def test_pika_s_are_translated(kind: type) -> None:
    """Each exception of pika becomes a BrokerError with the address and the cause."""
    cause = made(kind)
    assert isinstance(broker_error(cause, "amqp://john@broker:5672/v", "q"), errors.BrokerError)
    with (
        pytest.raises(errors.BrokerError, match="broker") as caught,
        translated_publish_errors(pika.ConnectionParameters(host="broker")),
    ):
        raise cause
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_requests_are_put_into_words(kind: type) -> None:
    """Each exception of requests becomes a reason without the text of the exception."""
    cause = made(kind)
    outcome = RequestFailure.because_of(cause, (10.0, 120.0))
    assert outcome.reason
    assert "refused - no access" not in outcome.reason


@pytest.mark.parametrize("code", REFUSALS)
def test_each_code_of_the_server_has_words_and_a_remedy(code: str) -> None:
    """The advice for a code has words and does not repeat the code."""
    advice = advice_for([code])
    assert len(advice) > 40
    assert code not in advice
    assert advice_for(["NOT_A_CODE"]) == ""
