"""What `start` waits for: RabbitMQ, and meanwhile the login to REGARDS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from regards_nb.errors import RegardsError, ServiceLoginError
from regards_nb.output import say
from regards_nb.waits import in_thread

if TYPE_CHECKING:
    from regards_nb.client import RegardsClient
    from regards_nb.tracker.shared import BackgroundErrors

#: A start waits so long for the answer to the login after RabbitMQ has answered. Messages arrive
#: without REGARDS, so its outage must not delay a start.
_LOGIN_S = 2.0


_UNCHECKED = "the login to REGARDS could not be checked, and messages arrive: {}"

#: What the user is told who stops a start.
STOPPED = "start() was stopped, and no event arrives: call start() again"
#: The same of other calls.
DOCTOR_STOPPED = "doctor() was stopped before its last check; it has changed nothing"
END_STOPPED = "stop() was stopped: what still runs ends by itself, and stop() can be called again"


class Source(Protocol):
    """Where the events of a tracker come from: RabbitMQ, REST or a journal."""

    def start(self, timeout_s: float) -> None:
        """Return once events can arrive; after a second, say what it waits for."""

    def stop(self, timeout_s: float) -> None:
        """End it."""


def connect(
    source: Source,
    client: RegardsClient | None,
    errors: BackgroundErrors,
    timeout_s: float,
) -> None:
    """Start a source of events, and log in to REGARDS meanwhile if there is a *client*.

    A refused login ends the start. One that is refused later is raised by the next call of the
    user, and an outage is only shown.
    """
    login = None if client is None else in_thread(lambda: _log_in(client))
    source.start(timeout_s)
    if login is None:
        return
    try:
        login.result(_LOGIN_S)
    except TimeoutError:
        login.add_done_callback(lambda done: _tell(done.exception(), errors))
    except (ServiceLoginError, KeyboardInterrupt):
        source.stop(timeout_s)
        raise
    except RegardsError as exc:
        # A wrong address is seen nowhere else while nothing is ordered.
        say(_UNCHECKED.format(exc))
        _tell(exc, errors)


def _log_in(client: RegardsClient) -> None:
    if client.uses_token:
        # Only a request tells whether the token is accepted; one order is enough.
        next(client.iter_orders(page_size=1), None)
    else:
        client.login()


def _tell(error: BaseException | None, errors: BackgroundErrors) -> None:
    if isinstance(error, ServiceLoginError):
        errors.record("logging in to REGARDS", error)
    elif error is not None:
        errors.note(_UNCHECKED.format(error))
