"""What an error response means, a 401 for example: its exception, advice, and a new try or not.

REGARDS has many forms of error: its own ``{"messages": [...]}``, Spring's JSON, plain text, an
empty body (protocol.md 1.2). A page of HTML is never REGARDS: a proxy or a login portal sent it.

**What a 401 means** (protocol.md 1.0, 9):

- with ``messages``, the order is not in a state that allows the action: `NotAllowedError`. The
  messages hold one of the codes of `REFUSALS`. For a zip, it may mean that another zip of this
  user is being made (`download/pipeline.py`).
- without, or after the token has ended, the token is not accepted. A client with a password logs
  in once more and repeats the request (`TokenProvider.renewed`). If that gets a 401, too, or a
  token was given instead of a password: `ServiceLoginError`.
- during a login, the name and secret of the application are wrong: `ServiceLoginError`.
- with a page of HTML, a proxy wants a login of its own: `UnexpectedAnswerError`. A client with a
  password logs in once more before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regards_nb.client.models import NOT_REGARDS
from regards_nb.errors import (
    NotAllowedError,
    OrderNotFoundError,
    QuotaError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
    UnexpectedAnswerError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.client.models import Response

_GATEWAY_STATUSES = frozenset({502, 503, 504})

#: The end of the text of a refused login.
LOGIN_ADVICE = (
    ". Check user name, password and tenant: tracker.doctor() says where the password comes from"
)
#: The same for 401: REGARDS answers 400 to a wrong password (protocol.md 1.1).
APPLICATION_ADVICE = (
    ". Check client_id and client_secret (REGARDS_CLIENT_SECRET), which name the application, then "
    "user name, password and tenant"
)
PORTAL_ADVICE = 'If a portal wants a key, give it: headers={"X-API-Key": ...}'

#: Exception and advice for a status.
_MEANINGS: dict[int, tuple[type[ServiceError], str]] = {
    401: (ServiceLoginError, "The token was refused: check user name, password and tenant"),
    403: (NotAllowedError, "It belongs to another user, or your role does not allow it"),
    404: (OrderNotFoundError, "Check the order id and the tenant"),
    429: (QuotaError, "Wait, or ask the administrator for a higher quota"),
    **dict.fromkeys(
        _GATEWAY_STATUSES,
        (ServiceUnreachableError, "REGARDS is down or overloaded: try again later"),
    ),
}

#: What the status of a single file means (protocol.md 1.5).
_FILE_MEANINGS = {
    404: "The archive does not know this file",
    410: "The archive no longer has this file",
    422: "The archive failed to prepare this file",
}

#: The codes with which REGARDS refuses an action (protocol.md 1.2): what they mean, what to do.
REFUSALS: dict[str, tuple[str, str]] = {
    "ORDER_MUST_BE_PENDING_OR_RUNNING": (
        "only an order that is pending or running can be paused",
        "One that has ended or is paused already needs no pause",
    ),
    "ORDER_MUST_BE_PAUSED": (
        "only an order that is paused, and whose jobs have all stopped, can be resumed",
        "If you have just paused it, try again in a minute",
    ),
    "ORDER_MUST_BE_DONE_OR_DONE_WITH_WARNING_OR_PAUSED_OR_FAILED_OR_EXPIRED": (
        "an order that is pending or running cannot be deleted",
        "Use cancel(), which pauses it first",
    ),
    "ORDER_MUST_BE_DELETED": (
        "only a deleted order can be removed for good, and only by the administrator",
        "You need to do nothing more",
    ),
    "ORDER_MUST_BE_DONE_OR_DONE_WITH_WARNING_OR_FAILED": (
        "only an order that has ended can be ordered again",
        "Wait for its end, or submit() the same queries",
    ),
    "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED": (
        "only an order that has ended with errors can be retried",
        "An order that is done has all its files: download it, or order it again with restart()",
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
        "the order belongs to another user",
        "Log in as its owner, or ask the project administrator",
    ),
}


def error_for(response: Response) -> ServiceError:
    """Return the exception that says what a response with status 3xx, 4xx or 5xx means."""
    kind, advice = _meaning(response)
    advice = response.advice or advice
    if response.retry_after_s and not response.is_page:
        advice = f"The server asks to wait {response.retry_after_s:.0f} s. {advice}"
    text = response.describe() + (f". {advice}" if advice else "")
    if _is_file(response) and response.status in _FILE_MEANINGS:
        text = f"{_FILE_MEANINGS[response.status]}: {text}"
    return kind(text, status_code=response.status, messages=response.error_texts)


def _meaning(response: Response) -> tuple[type[ServiceError], str]:
    """Return the class of the exception and the advice."""
    status, request = response.status, response.request
    kind, advice = _MEANINGS.get(status, (ServiceError, ""))
    if status == 401 and response.messages:
        kind, advice = NotAllowedError, advice_for(response.messages)
    elif response.is_page and status not in _GATEWAY_STATUSES:
        kind, advice = UnexpectedAnswerError, NOT_REGARDS
        if status in (401, 403):
            advice = f"{advice}. {PORTAL_ADVICE}"
    elif status == 404 and (_is_file(response) or "/rs-order/" not in request):
        kind, advice = ServiceError, ""
    elif status == 429 and not _is_quota(response.error_texts):
        advice = "Wait, above all until other downloads of your account have ended"
    elif status == 423 and "/rs-catalog/downloads/" in request:
        kind, advice = NotAllowedError, "Read the licence, then pass accept_licence=True"
    elif 300 <= status < 400:
        kind = UnexpectedAnswerError
        advice = "A redirection that is not of REGARDS: check base_url and the proxy"
    return kind, advice


def _is_file(response: Response) -> bool:
    return "/orders/files/" in response.request


def advice_for(messages: Iterable[str]) -> str:
    """Return what the codes among the messages mean, and what to do; "" if none is known.

    >>> advice_for(["ORDER_MUST_BE_PAUSED"]).split(". ")[0]
    'Only an order that is paused, and whose jobs have all stopped, can be resumed'
    """
    known = [REFUSALS[message] for message in messages if message in REFUSALS]
    return ". ".join(f"{words[0].upper()}{words[1:]}. {remedy}" for words, remedy in known)


def is_too_parallel(error: QuotaError) -> bool:
    """Whether a 429 is about simultaneous downloads, and not about the quota of the day.

    The storage service calls the number of simultaneous downloads "rate" (protocol.md 1.3). A 429
    with other words comes from a gateway, and is temporary as well.
    """
    return not _is_quota((*error.messages, str(error)))


def _is_quota(texts: Iterable[str]) -> bool:
    return any("download quota" in text.lower() for text in texts)


def is_temporary(response: Response) -> bool:
    """Whether the same GET may succeed a little later."""
    if response.status == 429:
        # For the two texts of the storage service the download decides: it knows how many
        # downloads run.
        return not any("download" in text.lower() for text in response.error_texts)
    return response.status in _GATEWAY_STATUSES or (
        response.status == 500 and not response.messages
    )
