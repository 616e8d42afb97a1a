"""The token: got once for all threads, renewed before it ends (protocol.md 1.1).

REGARDS has no refresh token: renewing means logging in again.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.errors import ServiceUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.client.secret import Secret

#: A token is renewed when this part of its life is over.
_RENEW_AFTER = 0.8
#: For so long after a useless renewal, a doubtful refusal is taken at its word.
_DOUBT_S = 60.0


class Token(NamedTuple):
    """A token and its life, on the monotonic clock."""

    secret: Secret
    renew_at_s: float
    ends_at_s: float
    #: The same end on the calendar, for people; None: not known.
    ends_at: datetime | None = None

    @classmethod
    def lasting(cls, secret: Secret, life_s: float) -> Token:
        """Return a token whose life starts now."""
        now_s = time.monotonic()
        ends_at = datetime.now(UTC) + timedelta(seconds=life_s)
        return cls(secret, now_s + _RENEW_AFTER * life_s, now_s + life_s, ends_at)

    @property
    def has_ended(self) -> bool:
        """Whether its time is over by the clock."""
        return time.monotonic() >= self.ends_at_s


class Tokens:
    """Holds the current token. Safe in any thread: one logs in, the others wait for it.

    Parameters
    ----------
    log_in : callable
        Asks the server for a new token.
    given : Token, optional
        A token that the user gave; then it cannot be renewed.
    """

    def __init__(self, log_in: Callable[[], Token] | None, given: Token | None = None) -> None:
        self._log_in = log_in
        self._token = given
        self._lock = threading.Lock()
        self._doubtful_until_s = 0.0

    @property
    def ends_at(self) -> datetime | None:
        """When the token that is held ends; None where there is none, or its end is not known."""
        token = self._token
        return None if token is None else token.ends_at

    def current(self) -> Token:
        """Return a token that is good for a while; log in where there is none."""
        token = self._token
        if token is not None and (self._log_in is None or time.monotonic() < token.renew_at_s):
            return token
        try:
            return self._replace(token)
        except ServiceUnreachableError:
            # too early to give up: the old one still has some of its life
            if token is None or token.has_ended:
                raise
            return token

    def renewed(self, refused: Token, *, certain: bool) -> Token | None:
        """Return another token than the one that was refused; None if that is no use.

        A refusal that is not for *certain* about the token (403, 500) is answered by a new login
        only while that has not just proved useless.
        """
        if self._log_in is None or not (certain or time.monotonic() >= self._doubtful_until_s):
            return None
        return self._replace(refused)

    def renewing_was_useless(self) -> None:
        """Note that a new token was refused like the old one: the token is not the reason."""
        self._doubtful_until_s = time.monotonic() + _DOUBT_S

    def _replace(self, old: Token | None) -> Token:
        with self._lock:
            # Who waited here while another thread logged in takes what that one got.
            if self._token is old or self._token is None:
                assert self._log_in is not None  # noqa: S101 - a given token is never replaced
                self._token = self._log_in()
            return self._token
