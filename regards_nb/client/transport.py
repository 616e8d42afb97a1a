"""HTTP requests to one origin: the token, redirects within the origin, and careful repetition.

`Retry` decides which requests may be sent again. Reading may, actions may not. The GET of a zip
may only if the server surely did not get it: each one spends quota and changes what the next zip
holds (protocol.md 1.0, 4 and 6). Lists come in pages and change while they are read (1.4).
"""

from __future__ import annotations

import os
import random
import re
import ssl
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from regards_nb.client.auth import token_advice
from regards_nb.client.errors import error_for, is_temporary
from regards_nb.client.last_byte import asking_again, pausing, waiting
from regards_nb.client.models import RequestSpec, Response, Retry, file_record, read_page
from regards_nb.client.streaming import Body, HttpConnection, HttpsConnection
from regards_nb.errors import (
    ServiceUnreachableError,
    SettingsError,
    StoppedWaiting,
    UnexpectedAnswerError,
)
from regards_nb.text import clean
from regards_nb.waits import awaited, ended_by, is_stopped, pause, progress, time_left_s, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from regards_nb.client.auth import Secret, Token, TokenProvider
    from regards_nb.client.models import Page
    from regards_nb.client.origin import Origin
    from regards_nb.files import FileRecord

    #: Sends a request and returns the response.
    Exchange: TypeAlias = "Callable[[RequestSpec], Response]"

_Result = TypeVar("_Result")

#: No response of REGARDS but files is larger; a page of 2000 files has less than 2 MB.
MAX_JSON_BYTES = 16 << 20

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 3
_MAX_ATTEMPTS = 4
#: The message of http.client when a proxy refuses to connect to another host.
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
_PROXY_ADVICE = {
    407: "the proxy wants a login (407): set HTTPS_PROXY=http://user:password@host:port with the "
    "password percent-encoded. If REGARDS needs no proxy, add its host to NO_PROXY",
    403: "the proxy refuses to connect to this host (403): ask its administrator. If REGARDS needs "
    "no proxy, add its host to NO_PROXY",
}
#: Connections kept open for the next request.
_POOL_SIZE = 16

#: 500,000 orders with 100 on a page; more pages mean a server that counts wrongly.
_MAX_PAGES = 5000
#: Spring sends at most so many at a time.
_MANIFEST_PAGE_SIZE = 2000
#: How often a manifest that changed while its pages were read is read again.
_MAX_READINGS = 3


class RequestFailure(NamedTuple):
    """Why a request got no response, in words that hold no secret."""

    reason: str
    #: The server may have received the request.
    in_work: bool
    #: Another attempt would fail in the same way.
    is_final: bool = False

    @classmethod
    def because_of(
        cls, error: requests.RequestException, timeout_s: tuple[float, float]
    ) -> RequestFailure:
        """Read an exception of requests. *timeout_s*: to connect, to the next byte."""
        if isinstance(error, requests.ConnectTimeout):
            return cls(f"no connection within {timeout_s[0]:g} s", in_work=False)
        if isinstance(error, requests.ReadTimeout):
            return cls(f"no byte for {timeout_s[1]:.3g} s", in_work=True)
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__context__) is not None:
            chain.append(cause)
        if final := _final_reason(error, chain[-1]):
            return cls(final, in_work=False, is_final=True)
        reason = type(error).__name__
        if isinstance(chain[-1], OSError) and len(chain) > 1:
            reason = f"{reason}: {chain[-1].strerror or chain[-1]}"
        # Without a connection nothing was sent.
        names = {type(link).__name__ for link in chain}
        connected = not names & {"NewConnectionError", "NameResolutionError", "SSLError"}
        return cls(clean(reason), in_work=connected)


def _final_reason(error: BaseException, innermost: BaseException) -> str:
    """Return why no other attempt can go better; "" where one may."""
    refusal = _TUNNEL.search(str(innermost))
    if refusal and (status := int(refusal[1])) < 500:
        # Repeated wrong passwords lock the account of the proxy.
        return _PROXY_ADVICE.get(status, f"the proxy refuses to connect ({status})")
    if isinstance(innermost, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({innermost.verify_message}); if it is of an "
            "authority of your own, give its file: ca_bundle=..., or REGARDS_CA_BUNDLE"
        )
    if "WRONG_VERSION_NUMBER" in str(innermost):
        return "the port speaks http without TLS; base_url needs the port of https"
    if isinstance(error, requests.exceptions.InvalidURL):
        # base_url was checked: it is the address of the proxy
        return "its address must look like http://proxy.example:3128"
    return ""


class BearerAuth(AuthBase):
    """Adds the token to a request, if there is one.

    An AuthBase, because requests otherwise adds what ~/.netrc has for the host.
    """

    def __init__(self, token: Token | None = None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token.secret.reveal()}"
        return request


class _Adapter(HTTPAdapter):
    """Adds secret headers to each request at the last moment: a session would print its headers."""

    def __init__(self, headers: Mapping[str, Secret]) -> None:
        super().__init__(pool_connections=1, pool_maxsize=_POOL_SIZE)
        self._headers = headers

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return the connections to a server or a proxy; requests calls this."""
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = HttpsConnection if pool.scheme == "https" else HttpConnection
        return pool

    def add_headers(self, request: requests.PreparedRequest, **_: Any) -> None:
        """Add the headers; requests calls this before it sends."""
        for name, secret in self._headers.items():
            request.headers[name] = secret.reveal()


class Transport:
    """Sends requests to one origin, and contacts no other host. Thread-safe."""

    def __init__(
        self,
        origin: Origin,
        *,
        tenant: str,
        headers: Mapping[str, Secret],
        ca_bundle: str | None,
        connect_timeout_s: float,
        read_timeout_s: float,
        backoff_s: float,
    ) -> None:
        self._origin = origin
        #: Certificates to trust; by default those of REQUESTS_CA_BUNDLE, else certifi's.
        self._verify = ca_bundle
        #: To connect, and to the next bytes.
        self._timeout_s = (connect_timeout_s, read_timeout_s)
        #: The first wait before a repetition is between 0 and this; each next one is up to twice
        #: as long.
        self._backoff_s = backoff_s
        self._closed = threading.Event()
        self._closed_because = ""
        # One session for all threads: it shares connections between them, in the thread-safe pool
        # of urllib3. Cookies would not be thread-safe; the gateway of REGARDS removes them anyway.
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # A compressed zip would hide the bytes that the server sent.
        self._session.headers["Accept-Encoding"] = "identity"
        # The gateway accepts a foreign token, and a request without one, only with the project.
        self._session.headers["scope"] = tenant
        self._session.mount(f"{origin.scheme}://", _Adapter(headers))
        # A request to this computer needs no proxy, and the proxy would see the password.
        self._proxies = {"http": "", "https": ""} if origin.is_loopback else None

    def close(self, reason: str) -> None:
        """Close the connections. Requests that wait to be repeated fail, later ones say why."""
        self._closed_because = reason
        self._closed.set()
        self._session.close()

    def exchange(self, request: RequestSpec, auth: TokenProvider | AuthBase) -> Response:
        """Send a request and return the whole response; ServiceError for an error or for none.

        StoppedWaiting says at Ctrl-C whether the server may have received an action.
        """
        request = self._begun(request)
        with self._stopped_in_words(request), ended_by(request.stop):
            response = self._read(self._send_until_accepted(request, auth), request)
            # Behind Squid, an origin that ends inside of its header becomes 200 with an empty body.
            if _is_cut(response) and request.retry is Retry.IF_TEMPORARY:
                response = self._read(self._send_until_accepted(request, auth), request)
        if isinstance(response, RequestFailure):
            raise self._error(request, response)
        if not isinstance(auth, AuthBase):
            auth.n_accepted += not response.is_page
        return response

    def _begun(self, request: RequestSpec) -> RequestSpec:
        return replace(request, ends_at_s=time.monotonic() + sum(self._timeout_s))

    @contextmanager
    def _stopped_in_words(self, request: RequestSpec) -> Iterator[None]:
        try:
            yield
        except StoppedWaiting:
            raise  # the login before the request
        except KeyboardInterrupt:
            in_work = request.retry is not Retry.IF_TEMPORARY
            outcome = f"{request} changes nothing"
            if in_work:
                outcome = f"it may carry out {request}; client.orders() shows whether it did"
            raise StoppedWaiting(
                f"stopped waiting for REGARDS at {self._origin}: {outcome}", in_work=in_work
            ) from None

    @contextmanager
    def stream(self, request: RequestSpec, auth: TokenProvider | AuthBase) -> Iterator[Body]:
        """Send a request and yield the body of the response; close it at the end."""
        request = self._begun(request)
        body = self._open(request, auth)
        with closing(body):
            # As in exchange(). Where the length is known, a body that is cut shows itself.
            if (
                request.retry is Retry.IF_TEMPORARY
                and body.status_code == 200
                and body.length_bytes is None
                and not body.first_block()
            ):
                body.close()
                body = self._open(request, auth)
            with closing(body):
                yield body

    def _open(self, request: RequestSpec, auth: TokenProvider | AuthBase) -> Body:
        with ended_by(request.stop):
            response = self._send_until_accepted(request, auth)
        assert isinstance(response, requests.Response)  # noqa: S101 - no error status is accepted
        return Body(response, str(request))

    def _read(
        self, response: requests.Response | Response, request: RequestSpec
    ) -> Response | RequestFailure:
        """Read the body of a response, unless that is done."""
        if isinstance(response, Response):
            return response
        has_begun = False

        def read() -> Response | RequestFailure:
            nonlocal has_begun
            has_begun = True
            with waiting(str(self._origin), self._timeout_s[1]):
                return _read(response, str(request))

        outcome = self._awaited(read, request, self._timeout_s[1], is_sent=True)
        if not has_begun:
            response.close()
        return outcome

    def _send_until_accepted(
        self, request: RequestSpec, auth: TokenProvider | AuthBase
    ) -> requests.Response | Response:
        """Send a request, and again where `Retry` allows it, until the response is accepted."""
        attempt, began_s = 0, time.monotonic()
        while True:
            attempt += 1
            outcome = self._send_authorised(request, auth)
            if isinstance(outcome, requests.Response):
                return outcome
            if isinstance(outcome, Response) and outcome.status in request.accepted_statuses:
                return outcome
            if attempt == _MAX_ATTEMPTS or not _may_repeat(request, outcome):
                raise self._error(request, outcome)
            self._wait_before_repetition(request, outcome, attempt, began_s)

    def _send_authorised(
        self, request: RequestSpec, auth: TokenProvider | AuthBase
    ) -> requests.Response | Response | RequestFailure:
        """Send a request with a token, and once more with a new one if the token was refused."""
        if isinstance(auth, AuthBase):
            return self._send(request, auth)
        token = auth.current()
        outcome = self._send_with(token, request)
        if not isinstance(outcome, Response):
            return outcome
        may_have_acted = request.retry is not Retry.IF_TEMPORARY
        newer = auth.renewed(token, outcome, may_have_acted=may_have_acted)
        if newer is None:
            return outcome
        first_status = outcome.status
        outcome = self._send_with(newer, request)
        if isinstance(outcome, Response) and outcome.status == first_status:
            auth.renewal_did_not_help()
        return outcome

    def _send_with(
        self, token: Token, request: RequestSpec
    ) -> requests.Response | Response | RequestFailure:
        outcome = self._send(request, BearerAuth(token))
        if isinstance(outcome, Response):
            return replace(outcome, advice=token_advice(outcome, token))
        if isinstance(outcome, RequestFailure) and (advice := token_advice(None, token)):
            return outcome._replace(reason=f"{outcome.reason}. {advice}")
        return outcome

    def _send(
        self, request: RequestSpec, auth: AuthBase
    ) -> requests.Response | Response | RequestFailure:
        """Send a request once, following redirects within the origin."""
        url = self._origin.url(request.path)
        response = self._send_to(url, request, auth)
        for _ in range(_MAX_REDIRECTS):
            if isinstance(response, RequestFailure) or response.status_code not in _REDIRECTS:
                break
            url = self._redirected(response, url, request)
            response = self._send_to(url, request, auth)
        if isinstance(response, RequestFailure):
            return response
        if 200 <= response.status_code < 300:
            return response
        return self._read(response, request)

    def _send_to(
        self, url: str, request: RequestSpec, auth: AuthBase
    ) -> requests.Response | RequestFailure:
        if self._closed.is_set():
            raise SettingsError(self._closed_because)
        # The second request after a redirect or a refused token has some time in any case.
        connect_s, read_s = self._timeout_s
        left_s = max(request.ends_at_s - time.monotonic(), connect_s + read_s / 10)
        timeout_s = (connect_s, min(read_s, left_s - connect_s))
        try:
            send = partial(
                self._session.request,
                request.method,
                url,
                # The target of a redirect has its own query.
                params=request.params if url == self._origin.url(request.path) else None,
                json=request.json,
                data=request.form,
                auth=auth,
                timeout=timeout_s,
                allow_redirects=False,
                stream=True,
                proxies=self._proxies,
                verify=self._verify,
            )
            # Without any time left, it is not sent at all.
            is_sent = time_left_s() > 0
            with waiting(str(self._origin), timeout_s[1]):
                return self._awaited(
                    send, request, left_s, is_sent=is_sent, unwanted=requests.Response.close
                )
        except requests.RequestException as exc:
            # Only the reason is kept: the frames of this exception hold password and token.
            return RequestFailure.because_of(exc, timeout_s)
        except OSError as exc:
            text = f"{exc}. Correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, or unset it"
        raise SettingsError(text)

    def _awaited(
        self,
        job: Callable[[], _Result],
        request: RequestSpec,
        ends_after_s: float,
        *,
        is_sent: bool,
        unwanted: Callable[[_Result], object] = lambda _: None,
    ) -> _Result | RequestFailure:
        """Return what a job of a request returns, unless a time limit or a stop comes first.

        *is_sent*: the server may have the request then.
        """
        try:
            return awaited(
                job,
                lambda: f"waiting for REGARDS at {self._origin}{self._through_proxy()}",
                ends_after_s=ends_after_s,
                unwanted=unwanted,
            )
        except TimeoutError:
            reason = "stopped" if is_stopped() else "no answer within the time limit of this call"
            in_work = is_sent and request.retry is not Retry.IF_TEMPORARY
            return RequestFailure(reason, in_work, is_final=True)

    def _redirected(self, response: requests.Response, url: str, request: RequestSpec) -> str:
        """Return the target of a redirect; raise if it is another origin."""
        response.close()
        location = response.headers.get("Location", "")
        target = self._origin.follow(url, location) if location else None
        if target is not None and request.method == "GET":
            return target
        if target is None:
            host = clean(urlsplit(location).netloc or location or "nowhere")
            problem = (
                f"redirected to {host}. Password and token are sent to base_url only. If REGARDS "
                "has moved there, give it as base_url. If that is a single sign-on portal, log in "
                "with token=... instead of a password"
            )
        else:
            problem = (
                f"the server redirects a {request.method} to {clean(location)}, on the same host. "
                "The client does not follow that: correct base_url"
            )
        raise UnexpectedAnswerError(
            f"{request}: HTTP {response.status_code}, {problem}", status_code=response.status_code
        )

    def _error(self, request: RequestSpec, outcome: Response | RequestFailure) -> Exception:
        if isinstance(outcome, Response):
            return error_for(outcome)
        return ServiceUnreachableError(
            f"{request}: no response from {self._origin}{self._through_proxy()}: {outcome.reason}. "
            "Check the address and the network (VPN, proxy)",
            in_work=outcome.in_work,
        )

    def _through_proxy(self) -> str:
        """Name the proxy that the environment wants, and the variable; "" if there is none."""
        url = str(self._origin)
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
        if self._proxies is not None or not proxy:
            return ""
        names = (f"{self._origin.scheme}_proxy", "all_proxy")
        variables = [each for name in names for each in (name, name.upper()) if each in os.environ]
        source = variables[0] if variables else "the settings of the system"
        # It may hold a password.
        return f" through the proxy {clean(proxy.rpartition('@')[2])} (of {source})"

    def _wait_before_repetition(
        self, request: RequestSpec, outcome: Response | RequestFailure, attempt: int, began_s: float
    ) -> None:
        """Wait for a random time, or as long as the server asks; say so if that is long."""
        pause_s = random.uniform(0, self._backoff_s * 2 ** (attempt - 1))
        if isinstance(outcome, Response) and outcome.retry_after_s is not None:
            pause_s = max(outcome.retry_after_s, pause_s)
        # All attempts together take no longer than the first may.
        if time.monotonic() + pause_s + self._timeout_s[0] >= request.ends_at_s:
            raise self._error(request, outcome)
        attempts = f"attempt {attempt + 1} of {_MAX_ATTEMPTS}"
        failure = f"REGARDS at {self._origin}: {outcome.reason}"
        text = asking_again(pause_s, f"{failure}, {attempts}")
        told(text, time.monotonic() - began_s + pause_s)
        with pausing(text, failure), ended_by(self._closed):
            is_over = pause(pause_s)
        if is_over:
            raise self._error(request, outcome)


def _may_repeat(request: RequestSpec, outcome: Response | RequestFailure) -> bool:
    if request.retry is Retry.NEVER:
        return False
    if isinstance(outcome, RequestFailure):
        if outcome.is_final:
            return False
        return request.retry is Retry.IF_TEMPORARY or not outcome.in_work
    if outcome.status != 429 and request.retry is Retry.IF_NOT_STARTED:
        # 502, 503 and 504: a proxy that waits no longer, while the server still makes the zip.
        return False
    return is_temporary(outcome)


def _is_cut(response: Response | RequestFailure) -> bool:
    """Whether a response that should be JSON is only a part of it."""
    if isinstance(response, RequestFailure):
        return True
    return response.status in (200, 206) and not response.is_json and not response.is_page


def _read(response: requests.Response, request: str) -> Response | RequestFailure:
    """Read a whole body that holds no files, and close the response."""
    body = bytearray()
    with response:
        try:
            for block in response.iter_content(1 << 16):
                body += block
                if len(body) > MAX_JSON_BYTES:
                    raise UnexpectedAnswerError(
                        f"{request}: HTTP {response.status_code} with a body of more than "
                        f"{MAX_JSON_BYTES} bytes",
                        status_code=response.status_code,
                    )
        except requests.RequestException as exc:
            reason = f"the connection broke inside the response ({type(exc).__name__})"
            return RequestFailure(reason, in_work=True)
    return Response(
        request=request,
        status=response.status_code,
        headers=response.headers,
        body=bytes(body),
        elapsed_s=response.elapsed.total_seconds(),
    )


def iter_pages(
    exchange: Exchange, request: RequestSpec, page_size: int, *, what: str
) -> Iterator[Page]:
    """Yield one page after the other; their numbers are added to the query of the request.

    *what* are the items, for the line that says how many of them have come.
    """
    before: list[Any] = []
    n_items, so_far = 0, ""
    for number in range(_MAX_PAGES):
        params = {**request.params, "page": number, "size": page_size}
        with progress(so_far):
            response = exchange(replace(request, params=params))
        if response.status == 204:  # The documentation has 204 for an empty list.
            return
        page = read_page(response)
        yield page
        # Where the server does not count its pages, a full page may have a next one.
        is_full = len(page.items) >= page_size
        has_next = is_full if page.pages is None else number + 1 < page.pages
        # A server that counts wrongly may send an empty page, or the same page, for ever.
        if not has_next or page.items in ([], before):
            return
        before = page.items
        n_items += len(page.items)
        so_far = f"{what}: {n_items}" + ("" if page.total is None else f" of {page.total}")
    raise UnexpectedAnswerError(f"{request}: still no end after {_MAX_PAGES} pages")


def iter_manifest(
    exchange: Exchange, request: RequestSpec, *, order_id: int
) -> Iterator[FileRecord]:
    """Yield each file of a manifest once, page by page.

    Files that become available or are downloaded meanwhile move others to another page. The
    manifest is read again until as many files were seen as the server announces.
    """
    seen: set[int] = set()
    for _ in range(_MAX_READINGS):
        total: int | None = None
        what = f"the list of files of order {order_id}"
        for page in iter_pages(exchange, request, _MANIFEST_PAGE_SIZE, what=what):
            total = page.total
            for item in page.items:
                record = file_record(item, order_id, page.response.request)
                if record.file_id not in seen:
                    seen.add(record.file_id)
                    yield record
        if total is None or len(seen) >= total:
            return
