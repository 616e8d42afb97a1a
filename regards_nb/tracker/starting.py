"""What `start` waits for: RabbitMQ, and meanwhile the login to REGARDS."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from regards_nb.errors import RegardsError, ServiceLoginError
from regards_nb.output import SAID_AFTER_S, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.client import RegardsClient
    from regards_nb.tracker.shared import BackgroundErrors

#: A start waits so long for the answer to the login after RabbitMQ has answered. Messages arrive
#: without REGARDS, so its outage must not delay a start.
_LOGIN_S = 2.0


_UNCHECKED = "the login to REGARDS could not be checked, and messages arrive: {}"

#: What the user is told who stops a start.
STOPPED = "start() was stopped, and no event arrives: call start() again"


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


def in_thread(job: Callable[[], Any]) -> Future[Any]:
    """Run a job in a thread that delays no end of Python."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as exc:  # noqa: BLE001 - the future hands it to its reader
            future.set_exception(exc)

    threading.Thread(target=run, name="regards-nb-login", daemon=True).start()
    return future


def awaited(future: Future[Any], text: str) -> Any:
    """Return the result of a job; after a second, say what it waits for."""
    with suppress(TimeoutError):
        return future.result(SAID_AFTER_S)
    say(text)
    return future.result()
