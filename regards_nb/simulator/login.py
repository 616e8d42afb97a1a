"""The token endpoint, and the check of the token of each request (protocol.md 1.1)."""

from __future__ import annotations

import base64
import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from regards_nb.simulator.faults import ExpiredToken
from regards_nb.simulator.server import Response, json_response

if TYPE_CHECKING:
    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.server import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The user, the project, and the credentials of the client application."""

    tenant: str
    username: str
    client_id: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    client_secret: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)


class Login:
    """Issues tokens and checks them.

    Parameters
    ----------
    account : Account
        The only user.
    expires_in_s : float
        Lifetime of a token; the response has it in whole seconds.
    faults : Faults
        Read for :class:`ExpiredToken`.
    """

    def __init__(self, account: Account, *, expires_in_s: float, faults: Faults) -> None:
        self._account = account
        self._expires_in_s = expires_in_s
        self._faults = faults
        self._lock = threading.Lock()
        self._ends_at_s: dict[str, float] = {}
        self._declared_expired: dict[str, ExpiredToken] = {}

    def token(self, request: Request) -> Response:
        """Respond to a request for a token."""
        account = self._account
        basic = base64.b64encode(f"{account.client_id}:{account.client_secret}".encode()).decode()
        if not _equal(request.headers.get("authorization", ""), f"Basic {basic}"):
            return spring_error(401, "Unauthorized", request.path)
        try:
            fields = request.json()
        except ValueError:
            return spring_error(400, "Bad Request", request.path)
        scope = fields.get("scope") or request.query.get("scope")
        if not (
            _equal(str(fields.get("username")), account.username)
            and _equal(str(fields.get("password")), account.password)
            and fields.get("grant_type") == "password"
            and scope == account.tenant
        ):
            detail = {"error": "AUTHENTICATION_FAILED", "error_description": "Bad credentials"}
            return json_response(400, detail)
        response = json_response(200, self._new_token())
        response.headers.append(("Cache-Control", "no-store"))
        return response

    def _new_token(self) -> dict[str, Any]:
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._ends_at_s[token] = time.monotonic() + self._expires_in_s
        return {
            "token_type": "bearer",
            "tenant": self._account.tenant,
            "scope": self._account.tenant,
            "role": "REGISTERED_USER",
            "sub": self._account.username,
            "email": self._account.username,
            "access_token": token,
            "expires_in": int(self._expires_in_s),
        }

    def user(self, request: Request) -> str | Response:
        """Return the user of a request's token, or the error response."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        with self._lock:
            ends_at_s = self._ends_at_s.get(token, 0) if kind == "Bearer" else 0
            if ends_at_s and (fault := self._faults.take(ExpiredToken)):
                self._declared_expired[token] = fault
            if fault := self._declared_expired.get(token):
                if fault.body:
                    return Response(status=fault.status, body=fault.body)
                return spring_error(fault.status, "Expired", request.path)
        if time.monotonic() >= ends_at_s:
            return spring_error(401, "Unauthorized", request.path)
        return self._account.username

    def forget_all(self) -> None:
        """Invalidate every token issued so far."""
        with self._lock:
            self._ends_at_s.clear()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def iso_time(at: datetime) -> str:
    """Format a time as REGARDS does."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def spring_error(status: int, text: str, path: str) -> Response:
    """Return the JSON of Spring Boot for an error outside of any controller."""
    now = iso_time(datetime.now(UTC))
    return json_response(status, {"timestamp": now, "status": status, "error": text, "path": path})
