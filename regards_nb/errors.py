"""The exceptions of regards_nb. Each text says what happened, to what, and what to do next.

::

    RegardsError
    ├── BrokerError                     the AMQP side
    │   ├── BrokerUnreachableError      no broker answers at that address
    │   ├── BrokerLoginError            the broker refused user name or password
    │   ├── BrokerAccessError           logged in, but no right to the virtual host or queue
    │   ├── QueueNotFoundError          there is no queue of that name
    │   └── QueueInUseError             another program holds the queue exclusively
    ├── ServiceError                    the REST side
    │   ├── ServiceUnreachableError     no connection, or no answer in time
    │   ├── ServiceLoginError           the server refused user name, password or token
    │   ├── NotAllowedError             the server refuses this action now, or to this user
    │   ├── OrderNotFoundError          no such order in the journal or on the server
    │   ├── QuotaError                  the download quota or rate is exceeded
    │   └── UnexpectedAnswerError       the answer is not one of REGARDS
    ├── DownloadError                   downloading the files of an order
    │   ├── IncompleteDownloadError     some files could not be downloaded; the others are saved
    │   ├── ArchiveError                a zip is damaged or incomplete
    │   └── WorkspaceError              the folder for the files is full, read-only or no folder
    ├── ProcessingError                 your function process= failed on the files of an order
    │   └── ProcessingErrorGroup        several orders failed; it has the results of the others
    ├── JournalError                    the journal cannot be opened, read or written
    ├── SettingsError                   a parameter, profile or variable is missing or wrong
    ├── TrackingError                   an error happened in a background thread
    │   └── TrackingErrorGroup          several errors happened there
    └── WaitTimeoutError                wait() reached its time limit; tracking continues
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from regards_nb.output import ipython
from regards_nb.text import counted, user_frames, users_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


def _prepare(errors: Sequence[BaseException]) -> None:
    """Leave the frames of the user alone in the errors of a group, as far as the text suffices.

    They are printed with all frames. IPython gets a handler for groups, unless it has another one.
    """
    shell = ipython()
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((ProcessingErrorGroup, TrackingErrorGroup), _show_group)
    for each in errors:
        error: BaseException | None = each
        while error is not None:
            own = users_part(error.__traceback__)
            if own is not None or isinstance(error, RegardsError):
                error.__traceback__ = own
            error = error.__cause__


def _in_notebook(error: BaseException) -> Iterator[str]:
    """Yield the text of an error, and the lines of the user's code on the way to it.

    The text says all that a user needs of this package. A function of the user that called it, a
    callback, and a function given as process= are found by their lines.
    """
    if isinstance(error, BaseExceptionGroup):
        results = getattr(error, "results", None)
        more = f", and {counted(len(results), 'result')}" if results else ""
        yield f"{type(error).__name__}: {counted(len(error.exceptions), 'error')}{more}"
        for each in error.exceptions:
            yield from (f"  {line}" for line in _in_notebook(each))
        return
    text = str(error)
    yield f"{type(error).__name__}: {text}"
    yield from getattr(error, "__notes__", ())
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        seen.add(id(each))
        # The notebook shows the cell itself above.
        frames = [frame for frame in user_frames(each) if frame.name != "<module>"]
        if frames and str(each) not in text:
            yield f"  {type(each).__name__}: {each}"
        for frame in frames:
            place = "a cell" if "ipykernel" in frame.filename else frame.filename
            yield f"  {place}, line {frame.lineno}, in {frame.name}: {frame.line}"
        context = None if each.__suppress_context__ else each.__context__
        later = each.__cause__ or context
        todo += [later] if later is not None and id(later) not in seen else []


def _show_group(shell: Any, kind: Any, error: Any, trace: Any, tb_offset: Any = None) -> None:
    """Show a group of errors in IPython as any other error: a handler of IPython.

    By itself it prints every line of this package that a group came through.
    """
    shown = RegardsError(str(error))
    shown.__cause__ = error  # for traceback.print_last()
    shown._render_traceback_ = error._render_traceback_  # type: ignore[method-assign]
    shell.showtraceback((kind, shown, trace), tb_offset=tb_offset)


class RegardsError(Exception):
    """The root of every exception that regards_nb raises on purpose."""

    def put_first(self, words: str) -> None:
        """Begin the text with other words, unless it has them: the caller knows the order."""
        if words not in str(self):
            self.args = (f"{words}: {self}", *self.args[1:])

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython prints instead of a traceback."""
        return list(_in_notebook(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # By default pickle calls the class with the text alone, and some classes need more. An
        # error that cannot be read back ends a pool of processes.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class BrokerError(RegardsError):
    """RabbitMQ refused, or the connection to it failed."""


class BrokerUnreachableError(BrokerError):
    """No broker answers at the given address, or the TLS handshake failed."""


class BrokerLoginError(BrokerError):
    """RabbitMQ refused the user name or the password."""


class BrokerAccessError(BrokerError):
    """The login is right, but the user has no right to the virtual host or the queue."""


class QueueNotFoundError(BrokerError):
    """The queue does not exist. The REGARDS administrator creates it (seed page, "Exchange")."""


class QueueInUseError(BrokerError):
    """Another program holds the queue exclusively."""


class ServiceError(RegardsError):
    """The REST side of REGARDS answered with an error.

    Attributes
    ----------
    status_code : int or None
        HTTP status of the answer; None without an answer.
    messages : tuple of str
        The texts of the server (``{"messages": [...]}``).
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
    """The server refuses this action in the present state, or to this user."""


class OrderNotFoundError(ServiceError, KeyError):
    """There is no such order in the journal or on the server."""

    # KeyError shows the repr of its argument, which would put the sentence in quotes.
    __str__ = Exception.__str__


class QuotaError(ServiceError):
    """The download quota or the number of parallel downloads is exceeded."""


class UnexpectedAnswerError(ServiceError):
    """The answer is not one of REGARDS: an HTML page, broken JSON, a redirect elsewhere."""


class DownloadError(RegardsError):
    """Files of an order could not be downloaded."""


class IncompleteDownloadError(DownloadError):
    """Some files of an order could not be downloaded; the others are verified and saved.

    Attributes
    ----------
    paths : tuple of pathlib.Path
        The files that are verified and under their final names.
    missing : dict of str to str
        The name of each missing file, and the reason.
    """

    def __init__(self, text: str, *, paths: Sequence[Path], missing: dict[str, str]) -> None:
        super().__init__(text)
        self.paths = tuple(paths)
        self.missing = dict(missing)


class ArchiveError(DownloadError):
    """The zip of an order is damaged, incomplete, or not in the format of REGARDS."""


class WorkspaceError(DownloadError):
    """The folder for the files is full, read-only, or not a folder."""


class ProcessingError(RegardsError):
    """The function given as ``process=`` failed on the files of an order; they are in place."""


class ProcessingErrorGroup(ProcessingError, ExceptionGroup[RegardsError]):  # noqa: N818 - a group
    """Several orders could not be downloaded or processed; each is in ``exceptions``.

    Attributes
    ----------
    results : dict of int to object
        What ``process=`` returned for the other orders, by order number.
    """

    results: dict[int, Any]

    def __new__(
        cls,
        text: str,
        errors: Sequence[RegardsError],
        results: Mapping[int, Any] = MappingProxyType({}),
    ) -> Self:
        """Make the group."""
        _prepare(errors)
        group = super().__new__(cls, text, errors)
        group.results = dict(results)
        return group

    def derive(self, errors: Sequence[RegardsError], /) -> ProcessingErrorGroup:  # type: ignore[override]
        """Return a group of some of the errors, for ``except*``."""
        return ProcessingErrorGroup(self.message, errors, self.results)


class JournalError(RegardsError):
    """The journal file or database cannot be opened, read or written."""


class SettingsError(RegardsError):
    """A parameter, a profile or an environment variable is missing or wrong."""


class TrackingError(RegardsError):
    """An error happened in a background thread. The next call of the user raises it."""


class TrackingErrorGroup(TrackingError, ExceptionGroup[TrackingError]):  # noqa: N818 - a group
    """Several errors happened in background threads; each is in ``exceptions``, with its cause."""

    def __new__(cls, text: str, errors: Sequence[TrackingError]) -> Self:
        """Make the group."""
        _prepare(errors)
        return super().__new__(cls, text, errors)


class WaitTimeoutError(RegardsError, TimeoutError):
    """``wait()`` reached its time limit; tracking continues."""


class StoppedWaiting(KeyboardInterrupt):
    """The user stopped a wait with Ctrl-C or the stop button; tracking continues.

    It is a KeyboardInterrupt, so that "Run all" and scripts stop as usual. A notebook shows one
    line instead of a traceback.

    Attributes
    ----------
    in_work : bool
        Whether REGARDS may have received an action, and may carry it out.
    """

    def __init__(
        self, text: str = "stopped waiting; tracking continues", *, in_work: bool = False
    ) -> None:
        super().__init__(text)
        self.in_work = in_work

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython prints instead of a traceback."""
        return [str(self)]
