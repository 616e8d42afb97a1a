"""The token endpoint, and the check of the token of each request (protocol.md 1.1)."""

from __future__ import annotations

import base64
import secrets
import threading
import time
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from regards_nb.simulator.faults import ExpiredToken
from regards_nb.simulator.server import HttpError, Response, iso_time, json_response

if TYPE_CHECKING:
    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.server import Request


class LoginForm(Enum):
    """The bodies that the token endpoint accepts."""

    #: JSON only, as since REGARDS 2.0.
    JSON = "json"
    #: A web form only, as from 1.12 to 1.15.
    FORM = "form"
    #: Both.
    ANY = "any"


class Login:
    """Issues tokens to the only user of a project, and checks them.

    ``foreign_token`` is of a single sign-on (OpenID Connect) for the same user. With an *api_key*,
    a portal in front refuses requests without this ``X-API-Key``.
    """

    client_id = "regards-nb"

    def __init__(
        self,
        *,
        tenant: str,
        username: str,
        api_key: str | None,
        form: LoginForm,
        expires_in_s: float,
        faults: Faults,
    ) -> None:
        self._tenant, self._username = tenant, username
        self.password, self.client_secret = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        self.foreign_token = secrets.token_urlsafe(32)
        self._api_key = api_key
        self._form = form
        self._expires_in_s = expires_in_s
        self._faults = faults
        self._lock = threading.Lock()
        self._ends_at_s: dict[str, float] = {}
        self._declared_expired: dict[str, ExpiredToken] = {}
        #: Foreign tokens that were refused once; the server remembers them for 30 minutes.
        self._refused: set[str] = set()

    def token(self, request: Request) -> Response:
        """Respond to a request for a token."""
        if not self._has_client_credentials(request):
            return spring_error(401, "Unauthorized", request.path)
        is_json = "json" in request.headers.get("content-type", "")
        if self._form not in (LoginForm.ANY, LoginForm.JSON if is_json else LoginForm.FORM):
            return _oauth_error("invalid_request", "Missing grant type")
        try:
            fields = request.json() if is_json else request.form()
        except HttpError:
            return spring_error(400, "Bad Request", request.path)
        if not (
            fields.get("username") == self._username
            and fields.get("password") == self.password
            and fields.get("grant_type") == "password"
            and (fields.get("scope") or request.query.get("scope")) == self._tenant
        ):
            code = "invalid_grant" if self._form is LoginForm.FORM else "AUTHENTICATION_FAILED"
            return _oauth_error(code, "Bad credentials")
        response = json_response(200, self._new_token())
        response.headers.append(("Cache-Control", "no-store"))
        return response

    def _has_client_credentials(self, request: Request) -> bool:
        """Accept the application's own credentials and REGARDS' default, ``client:secret``."""
        given = request.headers.get("authorization", "")
        return any(
            given == f"Basic {base64.b64encode(pair.encode()).decode()}"
            for pair in (f"{self.client_id}:{self.client_secret}", "client:secret")
        )

    def _new_token(self) -> dict[str, Any]:
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._ends_at_s[token] = time.monotonic() + self._expires_in_s
        return {
            "token_type": "bearer",
            "tenant": self._tenant,
            "scope": self._tenant,
            "role": "REGISTERED_USER",
            "sub": self._username,
            "email": self._username,
            "access_token": token,
            "expires_in": int(self._expires_in_s),
        }

    def passes_portal(self, request: Request) -> bool:
        """Return whether a request has the API key of the portal, if there is one."""
        given = request.headers.get("x-api-key", "")
        return self._api_key in (None, given)

    def user(self, request: Request, *, is_public: bool) -> str:
        """Return the user of a request; raises HttpError if its token is not valid.

        A request without a token may use a public endpoint if it names the project as ``scope``;
        its user is "".
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        scope = request.headers.get("scope") or request.query.get("scope")
        if not kind and is_public and scope == self._tenant:
            return ""
        with self._lock:
            if token == self.foreign_token and token not in self._refused:
                if scope == self._tenant:
                    return self._username
                # The gateway reads the project of a foreign token from the scope only.
                self._refused.add(token)
            ends_at_s = self._ends_at_s.get(token, 0) if kind == "Bearer" else 0
            if ends_at_s and (fault := self._faults.take(ExpiredToken)):
                self._declared_expired[token] = fault
            if fault := self._declared_expired.get(token):
                raise HttpError(
                    Response(status=fault.status, body=fault.body)
                    if fault.body
                    else spring_error(fault.status, "Expired", request.path)
                )
        if time.monotonic() >= ends_at_s:
            raise HttpError(spring_error(401, "Unauthorized", request.path))
        return self._username

    def forget_all(self) -> None:
        """Invalidate every token issued so far."""
        with self._lock:
            self._ends_at_s.clear()


def spring_error(status: int, text: str, path: str) -> Response:
    """Return the JSON of Spring Boot for an error outside of any controller."""
    now = iso_time(datetime.now(UTC))
    return json_response(status, {"timestamp": now, "status": status, "error": text, "path": path})


def _oauth_error(code: str, description: str) -> Response:
    return json_response(400, {"error": code, "error_description": description})
