"""Files fetched one by one, several at a time: for repair, and where that beats the zip.

How many at a time is found by trying: the server limits the parallel downloads of a user and says
so only by refusing one (protocol.md 1.3, "rate").
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from regards_nb.client import is_too_parallel
from regards_nb.download.belt import BeltStopped
from regards_nb.download.publisher import Checked
from regards_nb.download.tools import StoppedError
from regards_nb.download.wholes import Growing
from regards_nb.errors import (
    ArchiveError,
    NotAllowedError,
    QuotaError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
)
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from regards_nb.client import Body
    from regards_nb.download.tools import Tools
    from regards_nb.download.wholes import Whole
    from regards_nb.files import FileRecord

#: How many at a time: at first, and at most while the server does not mind.
_FIRST_PARALLEL, _MAX_PARALLEL = 4, 8
_MAX_TRIES = 4
#: Content that is wrong twice will be wrong again.
_MAX_WRONG = 2
#: Other downloads of the same user end some time.
_MAX_REFUSALS = 8
#: How long threads that read from dead connections are waited for.
_JOIN_S = 5.0
#: After so many files in a row without any answer the server counts as gone.
_MAX_SILENCES = 3
_MAX_BACKOFF_FACTOR = 30
_GLANCE_S = 0.2


class _FailedError(Exception):
    """A file cannot be had; the text says why. It does not leave this room."""


class _WrongContentError(_FailedError):
    """A file arrived and is not the right one."""


def fetch_singly(
    tools: Tools, records: Sequence[FileRecord], *, keep: bool = True
) -> dict[int, str]:
    """Fetch files by their ids; checked ones go to the publisher.

    Parameters
    ----------
    tools : Tools
        What every way of fetching needs.
    records : sequence of FileRecord
        The files.
    keep : bool
        False: only let the server see that they were fetched, so that it goes on.

    Returns
    -------
    dict of int to str
        Why files could not be had, by file id.

    Raises
    ------
    RegardsError
        It cannot go on at all: the workspace is full, the login is refused, it was stopped.
    """
    return _Pool(tools, records, keep=keep).run() if records else {}


class _Pool:
    """Some threads, a list of files, and how many may be open at a time."""

    def __init__(self, tools: Tools, records: Sequence[FileRecord], *, keep: bool) -> None:
        self._tools = tools
        self._keep = keep
        self._waiting = deque(records)
        #: Guards everything below it.
        self._changed = threading.Condition()
        self._open: set[Body] = set()
        self._active = 0
        self._parallel, self._ceiling = _FIRST_PARALLEL, _MAX_PARALLEL
        self._silences = 0
        self._failed: dict[int, str] = {}
        #: Once the quota is used up: what the server said.
        self._no_quota: str | None = None
        self._fatal: BaseException | None = None
        #: Nothing more is begun, and what is open is given up.
        self._halt = threading.Event()

    def run(self) -> dict[int, str]:
        """Fetch all, and report progress meanwhile."""
        count = min(len(self._waiting), _MAX_PARALLEL)
        # daemons: a kernel that is restarted does not wait for the network
        threads = [
            threading.Thread(target=self._work, name=f"regards-nb-file-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self._tools.stop.is_set():
                with self._changed:
                    self._changed.wait(_GLANCE_S)
                self._tools.counter.report()
        finally:
            # at the normal end there is nothing left to halt
            self._end_all()
            until_s = time.monotonic() + _JOIN_S
            for thread in threads:
                thread.join(max(until_s - time.monotonic(), 0))
        if self._tools.stop.is_set():
            raise StoppedError("stopped before its end")
        if self._fatal is not None:
            raise self._fatal
        return self._failed

    def _end_all(self) -> None:
        self._halt.set()
        with self._changed:
            self._waiting.clear()
            for body in self._open:
                body.abort()
            self._changed.notify_all()

    def _work(self) -> None:
        """Fetch file after file; runs in each thread."""
        try:
            while (record := self._begin()) is not None:
                try:
                    self._fetch(record)
                except _FailedError as exc:
                    self._failed[record.file_id] = str(exc)
                finally:
                    self._end()
        except BeltStopped:
            pass  # the publisher has failed, and says why
        except BaseException as exc:  # noqa: BLE001 - not swallowed: run() raises it
            self._fatal = self._fatal or exc
            self._end_all()

    def _begin(self) -> FileRecord | None:
        """Return the next file when one more may be open; None when there is none left."""
        with self._changed:
            while self._waiting and self._active >= self._parallel:
                self._changed.wait(_GLANCE_S)
            if not self._waiting:
                return None
            self._active += 1
            return self._waiting.popleft()

    def _end(self) -> None:
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def _fetch(self, record: FileRecord) -> None:
        """Fetch one file, again where that may help."""
        wrong = refusals = failures = 0
        while not self._halt.is_set():
            if self._no_quota is not None:
                raise _FailedError(self._no_quota)
            try:
                self._fetch_once(record)
            except QuotaError as exc:
                self._slow_down(exc)
                refusals += 1
                reason = str(exc)
            except _WrongContentError as exc:
                wrong += 1
                reason = str(exc)
            except ServiceLoginError:
                raise
            except ServiceError as exc:
                if _is_final(exc):
                    self._note_silence(exc)
                    raise _FailedError(str(exc)) from exc
                failures += 1
                reason = str(exc)
            else:
                self._speed_up()
                return
            if wrong == _MAX_WRONG or failures == _MAX_TRIES or refusals == _MAX_REFUSALS:
                raise _FailedError(reason)
            factor = min(2 ** (wrong + failures + refusals - 1), _MAX_BACKOFF_FACTOR)
            self._halt.wait(random.uniform(0, self._tools.backoff_s * factor))

    def _fetch_once(self, record: FileRecord) -> None:
        with self._tools.client.open_file(record.file_id, stop=self._halt) as body:
            if not self._keep:
                for _ in self._followed(body):
                    pass
                return
            growing = Growing(record.name, record.size_bytes, self._tools.workspace)
            received_bytes = 0
            try:
                for block in self._followed(body):
                    growing.add(block)
                    received_bytes += len(block)
                    self._tools.counter.add_bytes(len(block))
                self._publish(record, growing.end())
            except BaseException as exc:
                self._tools.counter.add_bytes(-received_bytes)
                growing.discard()
                if isinstance(exc, ArchiveError):
                    raise _WrongContentError(str(exc)) from exc
                raise

    def _followed(self, body: Body) -> Iterator[bytes]:
        """Yield the blocks of a body that :meth:`_end_all` can end."""
        with self._changed:
            self._open.add(body)
        try:
            yield from body.blocks()
        finally:
            with self._changed:
                self._open.discard(body)

    def _publish(self, record: FileRecord, whole: Whole) -> None:
        """Hand a file on if it is the right one."""
        if record.size_bytes not in (None, whole.size_bytes):
            problem = f"{whole.size_bytes} bytes came, {record.size_bytes} were announced"
        elif record.md5 not in (None, whole.md5):
            problem = f"its MD5 is {whole.md5}, the manifest says {record.md5}"
        else:
            state = FileState.UNVERIFIED if record.md5 is None else FileState.VERIFIED
            self._tools.publisher.add([Checked(whole, [record], state)])
            return
        raise _WrongContentError(problem)

    def _note_silence(self, error: ServiceError) -> None:
        """Give up on all files when several in a row found nobody there."""
        with self._changed:
            silent = isinstance(error, ServiceUnreachableError)
            self._silences = self._silences + 1 if silent else 0
            if self._silences >= _MAX_SILENCES:
                raise error

    def _slow_down(self, refusal: QuotaError) -> None:
        """Take a refusal as what it means: too many at once, or none any more today."""
        with self._changed:
            if not is_too_parallel(refusal):
                self._no_quota = str(refusal)
                return
            self._ceiling = max(self._parallel - 1, 1)
            self._parallel = max(self._parallel // 2, 1)

    def _speed_up(self) -> None:
        with self._changed:
            self._silences = 0
            self._parallel = min(self._parallel + 1, self._ceiling)
            self._changed.notify_all()


def _is_final(error: ServiceError) -> bool:
    """Whether trying this file again cannot help.

    A body that broke can, and so can a file that is not ready yet. For anything else the client
    has done the trying already.
    """
    broke = isinstance(error, ServiceUnreachableError) and error.status_code == 200
    not_ready = isinstance(error, NotAllowedError) and error.status_code == 202
    return not broke and not not_ready
