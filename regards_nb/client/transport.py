"""HTTP as REGARDS needs it: one origin, a token that cannot be replaced, careful repetition.

What may be repeated is decided here: reading may, acting may not, and the GET of a zip may only
before its first byte, because each one spends quota and changes what the next will hold
(protocol.md 1.0, 4 and 6).
"""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from regards_nb.client.answers import (
    MAX_JSON_BYTES,
    MAX_RETRY_AFTER_S,
    Answer,
    error_for,
    is_temporary,
)
from regards_nb.client.body import Body
from regards_nb.errors import ServiceUnreachableError, SettingsError, UnexpectedAnswerError
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from regards_nb.client.login import Token, Tokens
    from regards_nb.client.origin import Origin

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_TRIES = 4
_MAX_BACKOFF_FACTOR = 30
#: Parallel connections kept open for the next request.
_POOL_SIZE = 16


class Repeat(Enum):
    """When a request may be sent once more."""

    #: It acts: nobody knows whether it did.
    NEVER = auto()
    #: A zip: only where surely nothing of it was made.
    UNANSWERED = auto()
    #: It only reads.
    FREELY = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as it is meant; it may be sent several times."""

    path: str
    method: str = "GET"
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    repeat: Repeat = Repeat.FREELY
    #: Refusals that are answers all the same.
    welcome: frozenset[int] = frozenset()
    #: Set when nobody waits for the answer any more.
    stop: threading.Event | None = None

    @property
    def asked(self) -> str:
        """The request for error texts: no host, no query."""
        return f"{self.method} {self.path}"


class _Silence(NamedTuple):
    """That there is no answer, and why."""

    reason: str
    #: It may still be worked on.
    in_work: bool


class BearerAuth(AuthBase):
    """Puts the token into a request at the last moment.

    As an AuthBase: a plain header would be replaced by what ~/.netrc has for the host.
    """

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._token.secret.reveal()}"
        return request


class Transport:
    """Sends calls to one origin. Safe in any thread.

    Parameters
    ----------
    origin : Origin
        Nothing else is ever contacted.
    ca_bundle : str, optional
        Certificates to trust; by default those of REQUESTS_CA_BUNDLE, else certifi's.
    connect_timeout_s, read_timeout_s : float
        How long to wait for a connection, and for the next bytes.
    backoff_s : float
        The first wait before a repetition is between 0 and this; each may be twice as long.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        ca_bundle: str | None,
        connect_timeout_s: float,
        read_timeout_s: float,
        backoff_s: float,
    ) -> None:
        self._origin = origin
        self._verify = ca_bundle
        self._timeout_s = (connect_timeout_s, read_timeout_s)
        self._backoff_s = backoff_s
        self._closed = threading.Event()
        # One session for all threads: what it shares between them are connections, in urllib3's
        # own pool. The one thing that is not safe to share, cookies, REGARDS does not use.
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # An added gzip layer would hide what really arrives.
        self._session.headers["Accept-Encoding"] = "identity"
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=_POOL_SIZE)
        self._session.mount(f"{origin.scheme}://", adapter)
        # A proxy is for other computers; the password for this one is none of its business.
        self._proxies = {"http": "", "https": ""} if origin.is_loopback else None

    def close(self) -> None:
        """Close the connections; calls that wait to be repeated fail."""
        self._closed.set()
        self._session.close()

    def exchange(self, call: Call, auth: Tokens | AuthBase) -> Answer:
        """Send a call and return the whole answer.

        Raises
        ------
        ServiceError
            The answer is an error, or there is none.
        """
        outcome = self._until_welcome(call, auth)
        return outcome if isinstance(outcome, Answer) else _read(outcome, call.asked)

    @contextmanager
    def stream(self, call: Call, auth: Tokens | AuthBase) -> Iterator[Body]:
        """Send a call and hand out the body of the answer; close it at the end."""
        response = self._until_welcome(call, auth)
        assert isinstance(response, requests.Response)  # noqa: S101 - no refusal is welcome here
        with response:
            yield Body(response, call.asked)

    def _until_welcome(self, call: Call, auth: Tokens | AuthBase) -> requests.Response | Answer:
        """Send a call, and again where that may help, until the answer is welcome."""
        tries = 0
        while True:
            tries += 1
            outcome = self._authorised(call, auth)
            if isinstance(outcome, requests.Response):
                return outcome
            if isinstance(outcome, Answer) and outcome.status in call.welcome:
                return outcome
            if tries == _MAX_TRIES or not _may_repeat(call, outcome):
                raise self._error(call, outcome)
            self._pause(call, outcome, tries)

    def _authorised(
        self, call: Call, auth: Tokens | AuthBase
    ) -> requests.Response | Answer | _Silence:
        """Send a call with a token, and once more with a new one where it was refused."""
        if isinstance(auth, AuthBase):
            return self._send(call, auth)
        token = auth.current()
        outcome = self._send(call, BearerAuth(token))
        if not isinstance(outcome, Answer) or not _refuses(outcome, token, call):
            return outcome
        newer = auth.renewed(token, certain=outcome.status == 401 or token.has_ended)
        if newer is None:
            return outcome
        refused_with = outcome.status
        outcome = self._send(call, BearerAuth(newer))
        if isinstance(outcome, Answer) and outcome.status == refused_with:
            auth.renewing_was_useless()
        return outcome

    def _send(self, call: Call, auth: AuthBase) -> requests.Response | Answer | _Silence:
        """Send a call once, following redirections within the origin."""
        url = self._origin.url(call.path)
        response = self._send_to(url, call, auth)
        for _ in range(_MAX_REDIRECTS):
            if isinstance(response, _Silence) or response.status_code not in _REDIRECTS:
                break
            url = self._redirected(response, url, call)
            response = self._send_to(url, call, auth)
        if isinstance(response, _Silence):
            return response
        if 200 <= response.status_code < 300:
            return response
        return _read(response, call.asked)

    def _send_to(self, url: str, call: Call, auth: AuthBase) -> requests.Response | _Silence:
        if self._closed.is_set():
            raise SettingsError("this RegardsClient is closed: make a new one")
        try:
            return self._session.request(
                call.method,
                url,
                # a redirection brings its own query
                params=call.params if url == self._origin.url(call.path) else None,
                json=call.json,
                auth=auth,
                timeout=self._timeout_s,
                allow_redirects=False,
                stream=True,
                proxies=self._proxies,
                verify=self._verify,
            )
        except requests.RequestException as exc:
            # Only the reason is kept: the frames of this exception hold password and token.
            return _silence(exc, self._timeout_s)

    def _redirected(self, response: requests.Response, url: str, call: Call) -> str:
        """Return where a redirection leads; another origin is not followed."""
        response.close()
        location = response.headers.get("Location", "")
        target = self._origin.follow(url, location) if location else None
        if target is None or call.method != "GET":
            raise UnexpectedAnswerError(
                f"{call.asked}: HTTP {response.status_code}, redirected to "
                f"{clean(urlsplit(location).netloc or location or 'nowhere')}. The token is "
                "sent to base_url only: if REGARDS has moved there, give it as base_url",
                status_code=response.status_code,
            )
        return target

    def _error(self, call: Call, outcome: Answer | _Silence) -> Exception:
        if isinstance(outcome, Answer):
            return error_for(outcome)
        return ServiceUnreachableError(
            f"{call.asked}: no answer from {self._origin}: {outcome.reason}",
            in_work=outcome.in_work,
        )

    def _pause(self, call: Call, outcome: Answer | _Silence, tries: int) -> None:
        """Wait before a repetition: as long as the server asks, or a random while."""
        factor = min(2 ** (tries - 1), _MAX_BACKOFF_FACTOR)
        pause_s = random.uniform(0, self._backoff_s * factor)
        if isinstance(outcome, Answer) and outcome.retry_after_s is not None:
            if outcome.retry_after_s > MAX_RETRY_AFTER_S:
                raise self._error(call, outcome)
            pause_s = max(outcome.retry_after_s, pause_s)
        if (call.stop or self._closed).wait(pause_s):
            raise self._error(call, outcome)


def _refuses(answer: Answer, token: Token, call: Call) -> bool:
    """Tell whether a refusal may be about the token (protocol.md 1.0, 9)."""
    if answer.status == 500 and call.repeat is not Repeat.FREELY:
        # it may have acted, and said so badly
        return token.has_ended
    return answer.status in (401, 403, 500) and (token.has_ended or not answer.messages)


def _may_repeat(call: Call, outcome: Answer | _Silence) -> bool:
    if call.repeat is Repeat.NEVER:
        return False
    if isinstance(outcome, _Silence):
        return call.repeat is Repeat.FREELY or not outcome.in_work
    if outcome.status == 500 and call.repeat is Repeat.UNANSWERED:
        return False
    return is_temporary(outcome)


def _read(response: requests.Response, asked: str) -> Answer:
    """Read a whole body that is not files, and close the answer."""
    body = bytearray()
    reason = None
    with response:
        try:
            for block in response.iter_content(1 << 16):
                body += block
                if len(body) > MAX_JSON_BYTES:
                    reason = f"more than {MAX_JSON_BYTES} bytes"
                    break
        except requests.RequestException as exc:
            reason = f"the connection broke ({type(exc).__name__})"
    if reason is None:
        return Answer(asked, response.status_code, response.headers, bytes(body))
    raise UnexpectedAnswerError(
        f"{asked}: HTTP {response.status_code} with a body that cannot be read: {reason}",
        status_code=response.status_code,
    )


def _silence(exc: requests.RequestException, timeout_s: tuple[float, float]) -> _Silence:
    """Say why there is no answer, in words that hold no secret."""
    if isinstance(exc, requests.ConnectTimeout):
        return _Silence(f"no connection within {timeout_s[0]:g} s", in_work=False)
    if isinstance(exc, requests.ReadTimeout):
        return _Silence(f"nothing came for {timeout_s[1]:g} s", in_work=True)
    chain: list[BaseException] = [exc]
    while (cause := chain[-1].__context__) is not None:
        chain.append(cause)
    reason = type(exc).__name__
    if isinstance(chain[-1], OSError) and len(chain) > 1:
        reason = f"{reason}: {chain[-1].strerror or chain[-1]}"
    # Without a connection nothing was sent; with one, the server may be at work on it.
    names = {type(link).__name__ for link in chain}
    connected = not names & {"NewConnectionError", "NameResolutionError", "SSLError"}
    return _Silence(clean(reason), in_work=connected)
