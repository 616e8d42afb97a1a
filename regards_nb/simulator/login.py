"""Who may come in: the token endpoint, and the check of each request's token (protocol.md 1.1)."""

from __future__ import annotations

import base64
import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from regards_nb.simulator import dto
from regards_nb.simulator.answers import Answer, json_answer
from regards_nb.simulator.faults import ExpiredToken

if TYPE_CHECKING:
    from regards_nb.simulator.answers import Request
    from regards_nb.simulator.faults import Faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The user, his project, and the application he comes with."""

    tenant: str
    username: str
    client_id: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    client_secret: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)


class Login:
    """Gives tokens and knows them again.

    Parameters
    ----------
    account : Account
        The one user there is.
    expires_in_s : float
        How long a token lives; the answer says it in whole seconds.
    faults : Faults
        Asked for :class:`ExpiredToken`.
    """

    def __init__(self, account: Account, *, expires_in_s: float, faults: Faults) -> None:
        self._account = account
        self._expires_in_s = expires_in_s
        self._faults = faults
        self._lock = threading.Lock()
        self._ends_at_s: dict[str, float] = {}
        self._declared_expired: dict[str, ExpiredToken] = {}

    def token(self, request: Request) -> Answer:
        """Answer a request for a token."""
        account = self._account
        basic = base64.b64encode(f"{account.client_id}:{account.client_secret}".encode()).decode()
        if not _same(request.headers.get("authorization", ""), f"Basic {basic}"):
            return spring_error(401, "Unauthorized", request.path)
        try:
            asked = request.json()
        except ValueError:
            return spring_error(400, "Bad Request", request.path)
        scope = asked.get("scope") or request.query.get("scope")
        if not (
            _same(str(asked.get("username")), account.username)
            and _same(str(asked.get("password")), account.password)
            and asked.get("grant_type") == "password"
            and scope == account.tenant
        ):
            detail = {"error": "AUTHENTICATION_FAILED", "error_description": "Bad credentials"}
            return json_answer(400, detail)
        answer = json_answer(200, self._new_token())
        answer.headers.append(("Cache-Control", "no-store"))
        return answer

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

    def user(self, request: Request) -> str | Answer:
        """Return who sent the request, or the refusal."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        with self._lock:
            ends_at_s = self._ends_at_s.get(token, 0) if kind == "Bearer" else 0
            if ends_at_s and (fault := self._faults.take(ExpiredToken)):
                self._declared_expired[token] = fault
            if fault := self._declared_expired.get(token):
                if fault.body:
                    return Answer(status=fault.status, body=fault.body)
                return spring_error(fault.status, "Expired", request.path)
        if time.monotonic() >= ends_at_s:
            return spring_error(401, "Unauthorized", request.path)
        return self._account.username

    def forget_all(self) -> None:
        """Make every token given so far invalid."""
        with self._lock:
            self._ends_at_s.clear()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def spring_error(status: int, text: str, path: str) -> Answer:
    """Return the error of a filter, before any controller: Spring Boot's JSON."""
    now = dto.date(datetime.now(UTC))
    return json_answer(status, {"timestamp": now, "status": status, "error": text, "path": path})
