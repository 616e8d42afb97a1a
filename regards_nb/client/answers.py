"""What an answer means: REGARDS' many ways to say no, as one kind of exception each. Pure.

A refusal may be REGARDS' own ``{"messages": [...]}``, Spring's JSON, the page of a proxy, plain
text or nothing at all (protocol.md 1.2). 401 is both "log in" and "not in this state" (1.0.9).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.client.refusals import advice_for
from regards_nb.errors import (
    NotAllowedError,
    OrderNotFoundError,
    QuotaError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
    UnexpectedAnswerError,
)
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

#: No answer of REGARDS but files is larger; a page of 2000 files has less than 2 MB.
MAX_JSON_BYTES = 16 << 20

#: A server that asks to wait longer is not waited for.
MAX_RETRY_AFTER_S = 120.0

_MAX_SHOWN = 200
_GATEWAY_STATUSES = frozenset({502, 503, 504})


class Answer(NamedTuple):
    """An answer whose body was read."""

    #: ``GET /path``, for error texts: no query, no host.
    asked: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def messages(self) -> tuple[str, ...]:
        """What the server says in its own words; empty where it does not say it that way."""
        try:
            parsed = json.loads(self.body)
        except (ValueError, RecursionError):
            return ()
        found = parsed.get("messages") if isinstance(parsed, dict) else None
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def retry_after_s(self) -> float | None:
        """How long the server asks to wait."""
        return _seconds(self.headers.get("Retry-After"))

    @property
    def clock_skew_s(self) -> float | None:
        """By how much our clock is ahead of that of the server, in whole seconds."""
        try:
            said = parsedate_to_datetime(self.headers.get("Date", ""))
        except ValueError:
            return None
        said = said if said.tzinfo else said.replace(tzinfo=UTC)
        return round((datetime.now(UTC) - said).total_seconds())

    def json(self) -> Any:
        """Return the parsed body.

        Raises
        ------
        UnexpectedAnswerError
            It is no JSON: the page of a proxy or a login portal, most often.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            pass
        raise UnexpectedAnswerError(
            f"{self.described()}. That is not REGARDS: check base_url and the proxy",
            status_code=self.status,
        )

    def described(self) -> str:
        """Return the answer in one line, safe to print."""
        said = ", ".join(self.messages)
        if not said and self.body:
            kind = self.headers.get("Content-Type", "no content type")
            said = f"{kind}: {clean(self.body.decode('utf-8', 'replace'), _MAX_SHOWN)}"
        text = f"{self.asked}: HTTP {self.status}" + (
            f" ({clean(said, _MAX_SHOWN)})" if said else ""
        )
        number = self.headers.get("correlation-id")
        return f"{text}, correlation id {clean(number, _MAX_SHOWN)}" if number else text


def error_for(answer: Answer) -> ServiceError:
    """Return the exception that says what an answer of 3xx, 4xx or 5xx means."""
    kind, advice = _meaning(answer)
    if answer.retry_after_s:
        advice = f"It asks to wait {answer.retry_after_s:.0f} s. {advice}"
    text = answer.described() + (f". {advice}" if advice else "")
    return kind(text, status_code=answer.status, messages=_own_words(answer))


def _own_words(answer: Answer) -> tuple[str, ...]:
    """Return the server's words, plain text included: storage speaks so of quotas."""
    if answer.messages or not answer.body:
        return answer.messages
    is_plain = answer.headers.get("Content-Type", "").startswith("text/plain")
    return (clean(answer.body.decode("utf-8", "replace"), _MAX_SHOWN),) if is_plain else ()


#: What a status means, and what to do about it.
_MEANINGS: dict[int, tuple[type[ServiceError], str]] = {
    401: (ServiceLoginError, "The token was refused: check user name, password and tenant"),
    403: (NotAllowedError, "It belongs to somebody else, or your role does not allow it"),
    404: (OrderNotFoundError, "Check the order id and the tenant"),
    429: (QuotaError, "Wait, or ask the administrator for a higher quota"),
    **dict.fromkeys(
        _GATEWAY_STATUSES,
        (ServiceUnreachableError, "REGARDS is down or overloaded: try again later"),
    ),
}


def _meaning(answer: Answer) -> tuple[type[ServiceError], str]:
    """Return the kind of the error, and what to do about it."""
    if answer.status == 401 and answer.messages:
        return NotAllowedError, advice_for(answer.messages)
    if answer.status == 404 and "/orders/files/" in answer.asked:
        return ServiceError, ""
    if 300 <= answer.status < 400:
        return UnexpectedAnswerError, "A redirection that REGARDS would not give"
    return _MEANINGS.get(answer.status, (ServiceError, ""))


def is_too_parallel(error: QuotaError) -> bool:
    """Whether a 429 is about downloads at the same time, and not about the quota of the day.

    Storage calls the number of parallel downloads "rate" (protocol.md 1.3). A 429 in other words
    is a gateway's, and temporary as well.
    """
    return not any("download quota" in text.lower() for text in (*error.messages, str(error)))


def is_temporary(answer: Answer) -> bool:
    """Whether the same GET may well succeed a little later."""
    if answer.status == 429:
        # storage's own two texts are decided upon by who knows how many downloads run
        return not any("download" in text.lower() for text in _own_words(answer))
    return answer.status in _GATEWAY_STATUSES or (answer.status == 500 and not answer.messages)


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After: seconds or a date."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max((at - datetime.now(UTC)).total_seconds(), 0.0)
