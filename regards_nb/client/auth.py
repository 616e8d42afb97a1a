"""Secrets, login and token: one login for all threads, and the pause after a refused one.

REGARDS has no refresh token: the client logs in again before a token ends (protocol.md 1.1).
"""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from regards_nb.client.errors import APPLICATION_ADVICE, LOGIN_ADVICE, PORTAL_ADVICE, error_for
from regards_nb.client.last_byte import waiting
from regards_nb.client.models import RequestSpec
from regards_nb.errors import ServiceLoginError, ServiceUnreachableError, UnexpectedAnswerError
from regards_nb.text import raised_at
from regards_nb.waits import awaited, ended_by, in_main_thread, said_meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requests.auth import AuthBase

    from regards_nb.client.models import Response

LOGIN_MISSING = "this needs a login: RegardsClient(..., username=..., password=...) or token=..."
_LOGIN_PATH = "/api/v1/rs-authentication/oauth/token"
#: What to do about a refused login, by the status.
_LOGIN_REFUSED = {401: APPLICATION_ADVICE, 403: f". {PORTAL_ADVICE}"}
#: nginx, Apache and Varnish refuse a header beyond 8 kB with 400, HAProxy beyond 15 kB with 400,
#: Squid beyond 64 kB with 431. Shorter tokens pass everywhere.
_LONG_TOKEN_CHARS = 7000
_HEADER_STATUSES = frozenset({400, 413, 414, 431, 494})
#: A token is renewed after this fraction of its lifetime.
_RENEW_AFTER = 0.8
#: The errors of Spring's authorization server (REGARDS 1.12 to 1.15) for a JSON body: it looks for
#: the fields in a form only. ``invalid_grant`` is not among them: that is a wrong password.
_FIELDS_NOT_FOUND = frozenset({"invalid_request", "unsupported_grant_type"})
#: The lifetime of a token whose login response names none.
_DEFAULT_LIFETIME_S = 300.0
#: Time for which 403 and 500 are final after a renewal that did not help.
_FINAL_FOR_S = 60.0
#: The pauses of the background after refused logins: repeated refusals lock accounts.
_REFUSED_FOR_S, _LONGEST_REFUSED_S = 300.0, 3600.0


class Secret:
    """A password or a token that cannot be printed or pickled.

    >>> secret = Secret("hunter2")
    >>> f"{secret} {secret!r}", secret.reveal()
    ('*** Secret(***)', 'hunter2')
    """

    __slots__ = ("_reveal", "source")

    def __init__(self, text: str, *, source: str = "given as an argument") -> None:
        #: Where the text came from, for error texts.
        self.source = source
        # A closure: tools that list the attributes of an object show a function, not the text.
        self._reveal: Callable[[], str] = lambda: text

    @classmethod
    def of(cls, text: str | Secret) -> Secret:
        """Return *text* as a secret."""
        return text if isinstance(text, Secret) else cls(text)

    def reveal(self) -> str:
        """Return the text."""
        return self._reveal()

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


#: Who is waited for while it runs.
USERS_FUNCTION = "the function given as token="


class Token(NamedTuple):
    """A token and its lifetime, on the monotonic clock."""

    secret: Secret
    renew_at_s: float = math.inf
    ends_at_s: float = math.inf
    #: The end as a date, for users; None if it is not known.
    ends_at: datetime | None = None
    #: The user gave it, or his function: no login of the client did.
    is_given: bool = False

    @classmethod
    def given(cls, secret: Secret) -> Token:
        """Return a token of the user; its end is read from it where it is a JSON Web Token."""
        return cls(secret, ends_at=_end_of(secret), is_given=True)

    @classmethod
    def from_function(cls, function: Callable[[], str | Secret]) -> Token:
        """Ask a function of the user for a token."""
        try:
            with said_meanwhile(f"waiting for {USERS_FUNCTION}"), waiting(USERS_FUNCTION):
                text: object = function()
        except Exception as exc:
            raise ServiceLoginError(
                f"{USERS_FUNCTION} raised {type(exc).__name__} {raised_at(exc)}. The text of that "
                "error is not shown, because it may hold a secret: call the function to see it"
            ) from exc
        if isinstance(text, str):
            text = Secret(text, source="returned by the function given as token=")
        if not isinstance(text, Secret) or not is_header_value(text):
            del text  # tracebacks may show the variables of this frame
            raise ServiceLoginError("the function given as token= returned no token")
        ends_at = _end_of(text)
        if ends_at is None:
            return cls(text, is_given=True)
        token = cls.lasting(text, (ends_at - datetime.now(UTC)).total_seconds())
        return token._replace(is_given=True)

    @classmethod
    def lasting(cls, secret: Secret, lifetime_s: float) -> Token:
        """Return a token whose lifetime starts now."""
        now_s = time.monotonic()
        ends_at = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        return cls(secret, now_s + _RENEW_AFTER * lifetime_s, now_s + lifetime_s, ends_at)

    @classmethod
    def from_login(cls, response: Response) -> Token:
        """Read the response to a login."""
        grant = response.json()
        grant = grant if isinstance(grant, dict) else {}
        text, lifetime_s = grant.get("access_token"), grant.get("expires_in")
        if not isinstance(text, str) or not text.isprintable():
            raise UnexpectedAnswerError(f"{response.request}: no token in the response to a login")
        if not isinstance(lifetime_s, int | float) or lifetime_s <= 0:
            lifetime_s = _DEFAULT_LIFETIME_S
        return cls.lasting(Secret(text), lifetime_s)

    @property
    def has_ended(self) -> bool:
        """Whether the lifetime is over by our clock."""
        return time.monotonic() >= self.ends_at_s


def is_header_value(secret: Secret) -> bool:
    """Whether a text can be sent in a header: a line end would add another header."""
    text = secret.reveal()
    return bool(text) and text.isascii() and text.isprintable()


def needs_form(response: Response) -> bool:
    """Whether a login sent as JSON must be sent as a form: the server did not find its fields.

    Such a server did not check the password, so sending it again cannot lock the account.
    """
    if response.status == 415:
        return True
    error = response.json() if response.is_json else None
    return isinstance(error, dict) and error.get("error") in _FIELDS_NOT_FOUND


def _claims(token: Secret) -> Any:
    payload = token.reveal().split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def _end_of(token: Secret) -> datetime | None:
    """Return the date ``exp`` of a JSON Web Token; None for a token of another form."""
    try:
        return datetime.fromtimestamp(_claims(token)["exp"], UTC)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def user_of(token: Secret) -> str | None:
    """Return the user ``sub`` of a JSON Web Token; None for a token of another form."""
    try:
        return str(_claims(token)["sub"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def token_advice(response: Response | None, token: Token) -> str:
    """Return the fault of the token of a request that failed; "" if none is known.

    *response* is None if the connection was closed: Varnish closes it without a response.
    """
    token_chars = len(token.secret.reveal())
    has_header_status = response is None or response.status in _HEADER_STATUSES
    if has_header_status and token_chars > _LONG_TOKEN_CHARS:
        return (
            f"The token has {token_chars} characters, and many proxies refuse headers beyond 8 kB: "
            "ask the administrator for an account with fewer roles, or for larger headers"
        )
    is_refused = response is not None and response.status == 401 and not response.is_page
    if token.is_given and is_refused:
        return f"The token {token.secret.source} has ended or is not valid: give a new one"
    return ""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class PasswordLogin:
    """Logs in one user with name and password: a JSON body, or a form where the server wants one.

    *exchange* sends the request; *address* is that of REGARDS, for error texts.
    """

    exchange: Callable[[RequestSpec, AuthBase], Response]
    address: str
    tenant: str
    username: str
    password: Secret
    client_id: str
    client_secret: Secret
    #: The body that the server takes: ``json`` since REGARDS 2.0, ``form`` before; None before the
    #: first login.
    form: str | None = None

    def token(self) -> Token:
        """Get a new token.

        After a ServiceLoginError the password is not sent again in another form: repeated refusals
        lock accounts. UnexpectedAnswerError: a proxy answered, or there is no REGARDS at this
        address.
        """
        form = self.form or "json"
        response = self._send(form)
        if form == "json" and response.status != 200 and needs_form(response):
            form = "form"
            response = self._send(form)
        if response.is_page:
            raise error_for(response)
        if response.status == 404:
            raise UnexpectedAnswerError(
                f"{response.describe()}. There is no REGARDS at {self.address}: base_url must end "
                "before /api/v1, and must have the prefix that a proxy may add",
                status_code=404,
            )
        if not needs_form(response):
            self.form = form
        if response.status != 200:
            text = (
                f"{self.address} refused the login of {self.username!r} to tenant "
                f"{self.tenant!r}: {response.describe()}"
            )
            text += _LOGIN_REFUSED.get(response.status, LOGIN_ADVICE)
            raise ServiceLoginError(text, status_code=response.status, messages=response.messages)
        return Token.from_login(response)

    def _send(self, form: str) -> Response:
        from requests.auth import HTTPBasicAuth  # imported here: a tracker can work without REST

        fields = {
            "grant_type": "password",
            "username": self.username,
            "password": self.password.reveal(),
            "scope": self.tenant,
        }
        request = RequestSpec(
            method="POST",
            path=_LOGIN_PATH,
            params={"scope": self.tenant},
            json=fields if form == "json" else None,
            form=fields if form == "form" else None,
            accepted_statuses=frozenset({400, 401, 403, 404, 415}),
        )
        application = HTTPBasicAuth(self.client_id, self.client_secret.reveal())
        return self.exchange(request, application)


class TokenProvider:
    """Holds the current token. Thread-safe: one thread logs in, the others wait a while for it.

    *log_in* gets a new token from the server or from the user; without it the *given* token cannot
    be renewed. *address* is that of REGARDS, for texts.
    """

    #: The connection of a login that takes longer may be dead: the next thread logs in by itself.
    _hangs_after_s = 5.0

    def __init__(
        self, address: str, log_in: Callable[[], Token] | None, given: Token | None = None
    ) -> None:
        self._address = address
        self._log_in = log_in
        self._token = given
        #: The thread that logs in holds it, unless its login hangs.
        self._lock = threading.Lock()
        self._began_at = datetime.now(UTC)
        #: Number of logins and of other requests with a token that the server accepted.
        self.n_accepted = 0
        #: Ends the logins of other threads once one has got a token.
        self._came = threading.Event()
        self._final_until_s = 0.0
        #: The refusal of the last login, and until when other threads than the user's get it, too.
        self._refusal: ServiceLoginError | None = None
        self._refused_for_s = self._refused_until_s = 0.0

    @property
    def is_refused(self) -> bool:
        """Whether the last login was refused."""
        return self._refusal is not None

    @property
    def ends_at(self) -> datetime | None:
        """The end of the current token; None without a token or if its end is not known."""
        token = self._token
        return None if token is None else token.ends_at

    def current(self) -> Token:
        """Return the current token; log in if there is none or if it ends soon."""
        token = self._token
        if token is not None and (self._log_in is None or time.monotonic() < token.renew_at_s):
            return token
        try:
            return self._replace(token)
        except ServiceUnreachableError:
            # The old token is valid for a fifth of its lifetime still.
            if token is None or token.has_ended:
                raise
            return token

    def renewed(self, token: Token, response: Response, *, may_have_acted: bool) -> Token | None:
        """Return a token that replaces one; None if it is not why the server refused a request.

        *may_have_acted*: the request was an action or a zip. After a 500 the server may have acted,
        so the request is sent again only if the token has surely ended (protocol.md 1.0, 9).
        """
        if self._log_in is None or response.status not in (401, 403, 500):
            return None
        if not token.has_ended:
            if response.messages or (response.status == 500 and may_have_acted):
                return None
            # 403, 500 and a 401 with a page of HTML can mean an expired token, or something else:
            # after a renewal that did not help, they are final for a minute.
            is_certain = response.status == 401 and not response.is_page
            if not is_certain and time.monotonic() < self._final_until_s:
                return None
        return self._replace(token)

    def renewal_did_not_help(self) -> None:
        """Note that the server refused the new token like the old one."""
        self._final_until_s = time.monotonic() + _FINAL_FOR_S

    def _replace(self, old: Token | None) -> Token:
        with waiting(f"the login to REGARDS at {self._address}"):
            lock = self._turn()
            try:
                # Of those that waited, the first logs in, and the others find its token here.
                if self._token is old or self._token is None:
                    self._began_at = datetime.now(UTC)
                    return self._first_token()
                return self._token
            finally:
                lock.release()

    def _first_token(self) -> Token:
        """Log in; return the token of another thread whose login has ended before this one."""
        came = self._came
        try:
            with ended_by(came):
                token = self._new()
        except ServiceUnreachableError:
            if not came.is_set() or self._token is None:
                raise
            return self._token
        self._token, self._came = token, threading.Event()
        self.n_accepted += not token.is_given
        came.set()
        return token

    def _new(self) -> Token:
        """Log in; after a refusal, in the background only after a pause."""
        assert self._log_in is not None  # noqa: S101 - a given token is never replaced
        is_paused = time.monotonic() < self._refused_until_s and not in_main_thread()
        if self._refusal is not None and is_paused:
            raise _again(self._refusal)
        try:
            token = self._log_in()
        except ServiceLoginError as exc:
            pause_s = min(max(2 * self._refused_for_s, _REFUSED_FOR_S), _LONGEST_REFUSED_S)
            self._refused_for_s, self._refused_until_s = pause_s, time.monotonic() + pause_s
            at = datetime.now(UTC) + timedelta(seconds=pause_s)
            self._token = None
            self._refusal = _again(exc, f". The background logs in again at {at:%H:%M} UTC")
            raise
        self._refusal, self._refused_for_s = None, 0.0
        return token

    def _turn(self) -> threading.Lock:
        """Wait until no other thread logs in, or its login hangs; return the lock, held."""
        while not ((lock := self._lock).acquire(blocking=False) or self._gets(lock)):
            if self._lock is lock:
                self._lock = threading.Lock()
        return lock

    def _gets(self, lock: threading.Lock) -> bool:
        """Wait for the login of the thread that holds the lock; return whether it has ended."""
        try:
            return awaited(
                partial(lock.acquire, timeout=self._hangs_after_s),
                f"waiting for the login to REGARDS at {self._address} that another thread began "
                f"at {self._began_at:%H:%M:%S} UTC",
                ends_after_s=self._hangs_after_s,
                unwanted=lambda is_held: lock.release() if is_held else None,
            )
        except TimeoutError:
            raise ServiceUnreachableError(
                f"REGARDS at {self._address} does not answer within the time limit",
                in_work=False,
            ) from None


def _again(error: ServiceLoginError, more: str = "") -> ServiceLoginError:
    """Return the same error without its traceback, whose frames hold the password."""
    return ServiceLoginError(
        f"{error}{more}", status_code=error.status_code, messages=error.messages
    )


@contextmanager
def login_missing(tokens: TokenProvider | None) -> Iterator[None]:
    """Say that a request needs a login, if it was refused and there is none."""
    try:
        yield
    except ServiceLoginError as exc:
        if tokens is not None:
            raise
        raise ServiceLoginError(
            f"{LOGIN_MISSING}. Without it REGARDS answers HTTP {exc.status_code}",
            status_code=exc.status_code,
            messages=exc.messages,
        ) from exc
