"""Log in with user name and password: a JSON body, or a form where the server wants one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from requests.auth import HTTPBasicAuth

from regards_nb.client.auth import Token, needs_form
from regards_nb.client.errors import APPLICATION_ADVICE, LOGIN_ADVICE, PORTAL_ADVICE, error_for
from regards_nb.client.transport import RequestSpec
from regards_nb.errors import ServiceLoginError, UnexpectedAnswerError

if TYPE_CHECKING:
    from regards_nb.client.auth import Secret
    from regards_nb.client.models import Response
    from regards_nb.client.transport import Transport

_PATH = "/api/v1/rs-authentication/oauth/token"
#: What to do about a refused login, by the status.
_ADVICE = {401: APPLICATION_ADVICE, 403: f". {PORTAL_ADVICE}"}


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class PasswordLogin:
    """Gets tokens for one user; *address* is that of REGARDS, for error texts."""

    transport: Transport
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
            text += _ADVICE.get(response.status, LOGIN_ADVICE)
            raise ServiceLoginError(text, status_code=response.status, messages=response.messages)
        return Token.from_login(response)

    def _send(self, form: str) -> Response:
        fields = {
            "grant_type": "password",
            "username": self.username,
            "password": self.password.reveal(),
            "scope": self.tenant,
        }
        request = RequestSpec(
            method="POST",
            path=_PATH,
            params={"scope": self.tenant},
            json=fields if form == "json" else None,
            form=fields if form == "form" else None,
            accepted_statuses=frozenset({400, 401, 403, 404, 415}),
        )
        application = HTTPBasicAuth(self.client_id, self.client_secret.reveal())
        return self.transport.exchange(request, application)
