"""The step to a final name: create it, or a numbered one where other content has it; record it.

It runs in threads of its own, so that the network and the checks do not wait for the disk or for
uploads: in one thread for a folder, in several for a bucket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import wait
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING

from regards_nb.client import watched
from regards_nb.errors import DownloadError, RegardsError
from regards_nb.files import FileRecord, FileState
from regards_nb.waits import in_thread, is_stopped, limited

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from regards_nb.download.names import FinalNames
    from regards_nb.download.progress import ProgressCounter
    from regards_nb.download.records import OrderRecords
    from regards_nb.download.workspace import CheckedFile, Content, Workspace

#: Files that are ready within this time are published together: each flush takes time, and each of
#: the five system calls for a small file waits for Python's lock while other threads read the zip.
_GATHER_S = 0.25
#: Maximum time that a call that stops waits for uploads that have begun.
_STOP_S = 0.5
#: A waiting thread wakes up this often: on Windows, Ctrl-C does not interrupt a wait.
_WAKE_S = 0.2


class StoppedError(DownloadError):
    """The download was asked to stop."""


def raise_if_stopped() -> None:
    """Raise StoppedError where the download was asked to stop."""
    if is_stopped():
        raise StoppedError


class PublisherFailedError(Exception):
    """The publisher takes no more files; `Publisher.finish` raises the reason."""


class Publisher:
    """Gives verified files their final names and records them."""

    def __init__(
        self,
        workspace: Workspace,
        records: OrderRecords,
        names: FinalNames,
        counter: ProgressCounter,
    ) -> None:
        self._workspace = workspace
        self._records = records
        self._names = names
        self._counter = counter
        #: Guards all attributes below, and the names.
        self._changed = threading.Condition()
        self._waiting: deque[CheckedFile] = deque()
        #: Of the files that wait or are being published.
        self._held_bytes = 0
        self._ended = False
        #: Files with a final name that are not recorded yet.
        self._placed: list[FileRecord] = []
        #: Names that other files had, and the names that were given instead.
        self.renamed: dict[str, str] = {}
        # Without the caller's stop events: uploads that have begun may still end in `_STOP_S`.
        self._jobs = [
            Context().run(in_thread, self._run, "regards-nb-publisher")
            for _ in range(workspace.parallel)
        ]

    def add(self, files: Sequence[CheckedFile]) -> None:
        """Hand over verified files, from any thread, as soon as there is room for them.

        PublisherFailedError: publishing has failed; :meth:`finish` raises the reason.
        """
        with self._changed:
            while self._is_full() and not self._ended:
                self._changed.wait(_WAKE_S)
            if self._ended:
                raise PublisherFailedError
            self._waiting += files
            self._held_bytes += self._workspace.held_bytes(files)
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when all files are in place and recorded, or raise why they cannot be.

        StoppedError: the download was asked to stop while files were uploaded.
        """
        self._end()
        self.wait_for(self._jobs, until_stopped=self._workspace.uploads)
        self._record()
        self.raise_failure()

    def finish_early(self) -> None:
        """Publish the files handed over so far, while another error is raised.

        Of uploads only those are waited for that have begun, and for a moment.
        """
        uploads = self._workspace.uploads
        self._end(drop=uploads)
        wait(self._jobs, _STOP_S if uploads else None)

        def record() -> None:
            # A log beside the files is in the bucket that may not answer.
            with limited(time.monotonic() + _STOP_S if uploads else None):
                self._record()

        with suppress(RegardsError):  # the first error counts
            Context().run(record)  # also after a stop

    def raise_failure(self) -> None:
        """Raise the error of publishing, if there was one."""
        for job in self._jobs:
            if job.done():
                job.result()

    def wait_for(self, jobs: Sequence[Future[None]], *, until_stopped: bool = True) -> None:
        """Wait until all have ended, in the thread that called the download.

        Meanwhile report progress, and record uploaded files.
        """
        while wait(jobs, _WAKE_S).not_done:
            if self._workspace.uploads:
                self._record()  # several together, because each record is a request or a commit
            self._counter.report()
            if until_stopped:
                raise_if_stopped()

    def _record(self) -> None:
        with self._changed:
            placed, self._placed = self._placed, []
        if placed:
            self._records.save(placed)
            verified = sum(record.state is FileState.VERIFIED for record in placed)
            self._counter.add_files(len(placed), verified=verified)

    def _end(self, *, drop: bool = False) -> None:
        with self._changed:
            self._ended = True
            if drop:
                self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            with watched(self._counter.last_byte):
                while batch := self._take():
                    self._publish_batch(batch)
        except BaseException:
            self._end(drop=True)
            raise

    def _take(self) -> Sequence[CheckedFile]:
        """Return files that become ready within a moment; none where there are no more."""
        most = self._workspace.batch_files
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if len(self._waiting) < most:
                self._changed.wait_for(lambda: self._is_full() or self._ended, _GATHER_S)
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _is_full(self) -> bool:
        return self._held_bytes >= self._workspace.waiting_bytes

    def _publish_batch(self, batch: Sequence[CheckedFile]) -> None:
        placed: list[FileRecord] = []
        try:
            with self._workspace.errors():
                contents = self._workspace.prepare([file.content for file in batch])
                for file, content in zip(batch, contents, strict=True):
                    placed += self._publish(file, content)
                self._workspace.complete_batch()
        finally:
            with self._changed:
                # also when one failed: the others have their names now
                self._placed += placed
                self._held_bytes -= self._workspace.held_bytes(batch)
                self._changed.notify_all()
            if not self._workspace.uploads:
                # At once: another process that knows a file only later may give it another name.
                self._record()

    def _publish(self, file: CheckedFile, content: Content) -> list[FileRecord]:
        first = file.records[0]
        name = file.name or self._names.choose(first.file_id, first.name)
        name, is_created = self._place(name, content)
        path = self._workspace.files.join(name)
        fetched_at_us = time.time_ns() // 1000 if is_created else None
        # By position: `_replace` takes three times as long, and there may be 10,000 files.
        return [
            FileRecord(
                record.order_id,
                record.file_id,
                record.name,
                record.size_bytes if file.state is None else content.size_bytes,
                record.md5,
                record.product_id,
                path,
                file.state or record.state,
                None,
                fetched_at_us if file.is_fetched else record.fetched_at_us,
            )
            for record in file.records
        ]

    def _place(self, wanted: str, content: Content) -> tuple[str, bool]:
        """Give a file the name *wanted* or a numbered one; return it, and whether it was created.

        Another download may have put the same file there, or the user another one.
        """
        name, workspace = wanted, self._workspace
        while not workspace.create(name, content):
            # A file that failed a check is read, whatever is recorded beside it.
            is_suspect = workspace.files.join(name) in self._records.suspect
            if workspace.files.has(name, content.size_bytes, content.md5, reads=is_suspect):
                content.discard()
                return name, False
            # A cut file of ours has nothing that the verified one lacks.
            if is_suspect and workspace.replace_cut(name, content):
                return name, True
            with self._changed:
                name = self._names.choose_another(name)
        if name != wanted:
            with self._changed:
                self.renamed[wanted] = name
        return name, True
