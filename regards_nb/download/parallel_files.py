"""Fetch files one by one, several at a time; give up a file that comes twice with a wrong MD5.

This is for the files that a zip did not hold, and where it is faster than the zip.

The server limits the parallel downloads of a user and tells the limit only by refusing a request
(protocol.md 1.3, "rate"). So the number of parallel requests grows until one is refused.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.client import asking_again, is_too_parallel, pausing
from regards_nb.download.workspace import CheckedFile, ContentWriter
from regards_nb.errors import (
    ArchiveError,
    NotAllowedError,
    QuotaError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
)
from regards_nb.files import FileState
from regards_nb.text import clean
from regards_nb.waits import ended_by, growing, in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.client import Body
    from regards_nb.download.context import DownloadContext
    from regards_nb.download.workspace import Content
    from regards_nb.files import FileRecord

#: The number of parallel requests: at first, and at most while the server does not refuse one.
_FIRST_PARALLEL, _MAX_PARALLEL = 4, 8
#: The largest block of a file: all that are read at the same time are in memory.
_BLOCK_BYTES = 1 << 18
_MAX_TRIES = 4
#: Content that is wrong twice will be wrong again.
_MAX_WRONG = 2
#: A file that is refused so often, because the user has too many downloads, is given up.
_MAX_REFUSALS = 8
#: How long to wait for threads that read from dead connections.
_JOIN_S = 5.0
#: Number of files in turn without any answer after which the server counts as unreachable.
_MAX_UNANSWERED = 3
_MAX_BACKOFF_FACTOR = 30
_WAKE_S = 0.2
#: The storage service does not have the file, has it no longer, or could not prepare it
#: (protocol.md 1.5). Before REGARDS has prepared it anew, each request gets the same response.
_REFUSED = frozenset({404, 410, 422})


class Failure(NamedTuple):
    """Why a file could not be downloaded."""

    reason: str
    #: Another request for it cannot help.
    is_refused: bool = False


def fetch_files(
    context: DownloadContext, records: Sequence[FileRecord], *, keep: bool = True
) -> dict[int, Failure]:
    """Fetch files by their ids, and return why files could not be downloaded, by file id.

    Verified files go to the publisher. With ``keep=False`` the bytes are dropped: the server then
    counts the files as downloaded, and goes on. An error is raised where the download cannot go on:
    the workspace is full, the login is refused, or it was stopped.
    """
    return _Pool(context, records, keep=keep).run() if records else {}


class _Pool:
    """Threads, a list of files, and how many of them may be open at a time."""

    def __init__(
        self, context: DownloadContext, records: Sequence[FileRecord], *, keep: bool
    ) -> None:
        self._context = context
        self._keep = keep
        self._waiting = deque(records)
        #: Guards all attributes below.
        self._changed = threading.Condition()
        self._open: set[Body] = set()
        self._active = 0
        self._parallel, self._ceiling = _FIRST_PARALLEL, _MAX_PARALLEL
        self._unanswered = 0
        self._failed: dict[int, Failure] = {}
        #: What the server said when the quota was used up.
        self._quota_message: str | None = None
        #: Set: no thread begins another file, and open files are dropped.
        self._halt = threading.Event()

    def run(self) -> dict[int, Failure]:
        """Fetch all, and report progress meanwhile."""
        jobs = [
            in_thread(self._work, f"regards-nb-file-{number}")
            for number in range(min(len(self._waiting), _MAX_PARALLEL))
        ]
        try:
            self._context.publisher.wait_for(jobs)
        finally:
            # After a normal end nothing is left to stop. A thread that waits for an answer has no
            # file, and drops the answer.
            self._end_all()
            with self._changed:
                self._changed.wait_for(lambda: not self._open, _JOIN_S)
        for error in filter(None, [job.exception() for job in jobs]):
            raise error
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
                    with ended_by(self._halt):
                        failure = self._fetch(record)
                    if failure is not None:
                        self._failed[record.file_id] = failure
                finally:
                    self._end()
        except BaseException:
            self._end_all()
            raise

    def _begin(self) -> FileRecord | None:
        """Return the next file when one more may be open; None when there is none left."""
        with self._changed:
            while self._waiting and self._active >= self._parallel:
                self._changed.wait(_WAKE_S)
            if not self._waiting:
                return None
            self._active += 1
            return self._waiting.popleft()

    def _end(self) -> None:
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def _fetch(self, record: FileRecord) -> Failure | None:
        """Fetch one file; repeat the request where that may help. Return why it did not come."""
        wrong = refusals = failures = 0
        unit_s = self._context.options.backoff_s
        pauses = growing(unit_s, _MAX_BACKOFF_FACTOR * unit_s)
        while not self._halt.is_set():
            if self._quota_message is not None:
                return Failure(self._quota_message)
            try:
                self._fetch_once(record)
            except QuotaError as exc:
                self._slow_down(exc)
                refusals += 1
                reason = str(exc)
            except ArchiveError as exc:
                wrong += 1
                reason = str(exc)
            except ServiceLoginError:
                raise
            except ServiceError as exc:
                if _is_final(exc):
                    self._note_unanswered(exc)
                    return Failure(str(exc), is_refused=exc.status_code in _REFUSED)
                failures += 1
                reason = str(exc)
            else:
                self._speed_up()
                return None
            if wrong == _MAX_WRONG or failures == _MAX_TRIES or refusals == _MAX_REFUSALS:
                return Failure(reason)
            pause_s = random.uniform(0, next(pauses))
            with pausing(asking_again(pause_s, f"{clean(record.name)}: {reason}")):
                self._halt.wait(pause_s)
        return None

    def _fetch_once(self, record: FileRecord) -> None:
        with self._context.client.open_file(record.file_id) as body:
            with self._changed:
                if self._halt.is_set():
                    return
                self._open.add(body)
            try:
                self._receive(record, body)
            finally:
                with self._changed:
                    self._open.discard(body)
                    self._changed.notify_all()

    def _receive(self, record: FileRecord, body: Body) -> None:
        """Read a body; :meth:`_end_all` can end it from another thread."""
        if not self._keep:
            for _ in body.blocks(largest_bytes=_BLOCK_BYTES):
                pass
            return
        writer = ContentWriter(record.name, record.size_bytes, self._context.workspace)
        received_bytes = 0
        try:
            for block in body.blocks(largest_bytes=_BLOCK_BYTES):
                writer.add(block)
                received_bytes += len(block)
                self._context.counter.add_bytes(len(block))
            self._publish(record, writer.finish())
        except BaseException:
            self._context.counter.add_bytes(-received_bytes)
            writer.discard()
            raise

    def _publish(self, record: FileRecord, content: Content) -> None:
        """Hand a file over to the publisher; ArchiveError: it is not the right one."""
        if record.size_bytes not in (None, content.size_bytes):
            problem = f"{content.size_bytes} bytes arrived, the manifest says {record.size_bytes}"
        elif record.md5 not in (None, content.md5):
            problem = f"its MD5 is {content.md5}, the manifest says {record.md5}"
        else:
            state = FileState.UNVERIFIED if record.md5 is None else FileState.VERIFIED
            self._context.publisher.add([CheckedFile(content, [record], state)])
            return
        raise ArchiveError(problem)

    def _note_unanswered(self, error: ServiceError) -> None:
        """Raise when several files in a row got no answer: the server is unreachable."""
        with self._changed:
            # a request that is stopped because another file failed has no answer, too
            unanswered = isinstance(error, ServiceUnreachableError) and not self._halt.is_set()
            self._unanswered = self._unanswered + 1 if unanswered else 0
            if self._unanswered >= _MAX_UNANSWERED:
                raise error

    def _slow_down(self, refusal: QuotaError) -> None:
        """Tell two refusals apart: too many requests at once, or the quota is used up."""
        with self._changed:
            if not is_too_parallel(refusal):
                self._quota_message = str(refusal)
                return
            self._ceiling = max(self._parallel - 1, 1)
            self._parallel = max(self._parallel // 2, 1)

    def _speed_up(self) -> None:
        with self._changed:
            self._unanswered = 0
            self._parallel = min(self._parallel + 1, self._ceiling)
            self._changed.notify_all()


def _is_final(error: ServiceError) -> bool:
    """Return whether another request for this file cannot help.

    It can after a broken connection, and for a file that is not ready yet. All other requests were
    repeated by the client already.
    """
    broke = isinstance(error, ServiceUnreachableError) and error.status_code == 200
    not_ready = isinstance(error, NotAllowedError) and error.status_code == 202
    return not broke and not not_ready
