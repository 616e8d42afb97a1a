"""The exceptions of regards_nb, each saying what happened, to what, and what to do next.

::

    RegardsError
    ├── BrokerError                     the AMQP side
    │   ├── BrokerUnreachableError      nobody answers at that address
    │   ├── BrokerLoginError            user name or password refused
    │   ├── BrokerAccessError           logged in, but this vhost or queue is not for you
    │   ├── QueueNotFoundError          no queue of that name
    │   └── QueueInUseError             somebody else holds the queue exclusively
    ├── ServiceError                    the REST side
    │   ├── ServiceUnreachableError     no connection, no answer in time
    │   ├── ServiceLoginError           user name, password or token refused
    │   ├── NotAllowedError             the server refuses this action now, or to you
    │   ├── OrderNotFoundError          no such order, here or on the server
    │   ├── QuotaError                  download quota or rate exceeded
    │   └── UnexpectedAnswerError       an answer that REGARDS would not give
    ├── DownloadError                   fetching the files of an order
    │   ├── IncompleteDownloadError     some files could not be had; the others are there
    │   ├── ArchiveError                a zip that cannot be trusted
    │   └── WorkspaceError              the place for the files: full, read-only, not a folder
    ├── JournalError                    the journal cannot be opened, read or written
    ├── SettingsError                   a parameter, profile or variable is missing or wrong
    ├── TrackingError                   the background thread met a problem earlier
    └── WaitTimeoutError                wait() reached its limit; tracking goes on
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class RegardsError(Exception):
    """The root of every exception that regards_nb raises on purpose."""


class BrokerError(RegardsError):
    """RabbitMQ refused, or the connection to it failed."""


class BrokerUnreachableError(BrokerError):
    """Nobody speaks AMQP at the given address, or TLS could not be agreed."""


class BrokerLoginError(BrokerError):
    """RabbitMQ refused the user name or the password."""


class BrokerAccessError(BrokerError):
    """The login is right, but the virtual host or the queue may not be used with it."""


class QueueNotFoundError(BrokerError):
    """The queue does not exist: the REGARDS administrator makes it (seed page, "Exchange")."""


class QueueInUseError(BrokerError):
    """Another consumer holds the queue exclusively."""


class ServiceError(RegardsError):
    """The REST side of REGARDS answered with an error.

    Attributes
    ----------
    status_code : int or None
        HTTP status of the answer; None when there was none.
    messages : tuple of str
        What the server said, in its own words (``{"messages": [...]}``).
    """

    def __init__(
        self, text: str, *, status_code: int | None = None, messages: Sequence[str] = ()
    ) -> None:
        super().__init__(text)
        self.status_code = status_code
        self.messages = tuple(messages)


class ServiceUnreachableError(ServiceError):
    """No connection to the REST side, or no answer in time.

    Attributes
    ----------
    in_work : bool
        Whether the server may have received the request and may still work on it.
    """

    def __init__(
        self,
        text: str,
        *,
        status_code: int | None = None,
        messages: Sequence[str] = (),
        in_work: bool = True,
    ) -> None:
        super().__init__(text, status_code=status_code, messages=messages)
        self.in_work = in_work


class ServiceLoginError(ServiceError):
    """User name, password or token refused by the REST side."""


class NotAllowedError(ServiceError):
    """The server refuses this action: not now, or not to you."""


class OrderNotFoundError(ServiceError, KeyError):
    """No such order, in the journal or on the server."""

    # KeyError prints the repr of its argument, which would quote the sentence.
    __str__ = Exception.__str__


class QuotaError(ServiceError):
    """The download quota or the number of parallel downloads is exceeded."""


class UnexpectedAnswerError(ServiceError):
    """An answer that REGARDS would not give: an HTML page, broken JSON, a foreign redirect."""


class DownloadError(RegardsError):
    """Files of an order could not be fetched."""


class IncompleteDownloadError(DownloadError):
    """Some files of an order could not be had; the others are verified and in place.

    Attributes
    ----------
    paths : tuple of pathlib.Path
        The files that are verified and under their final names.
    missing : dict of str to str
        Name of each file that is missing, and why.
    """

    def __init__(self, text: str, *, paths: Sequence[Path], missing: dict[str, str]) -> None:
        super().__init__(text)
        self.paths = tuple(paths)
        self.missing = dict(missing)


class ArchiveError(DownloadError):
    """The zip of an order is damaged, cut, or not what a REGARDS server would make."""


class WorkspaceError(DownloadError):
    """The folder for the files is full, read-only, or not a folder."""


class JournalError(RegardsError):
    """The journal file or database cannot be opened, read or written."""


class SettingsError(RegardsError):
    """A parameter, a profile or an environment variable is missing or wrong."""


class TrackingError(RegardsError):
    """Something went wrong in the background; raised by the next call of the user."""


class WaitTimeoutError(RegardsError, TimeoutError):
    """``wait()`` reached its time limit. The orders go on and are still tracked."""


class StoppedWaiting(KeyboardInterrupt):
    """The user stopped a wait with Ctrl-C or the stop button; tracking goes on.

    A KeyboardInterrupt, so that "Run all" and scripts stop as they always do; a notebook shows
    one line instead of a traceback.
    """

    def __init__(self) -> None:
        super().__init__("stopped waiting; the orders go on and are still tracked")

    def _render_traceback_(self) -> list[str]:
        """Return what IPython prints in place of a traceback."""
        return [str(self)]
