"""The step to a final name: prepare the content, create the name without replacing, record it.

It runs in threads of its own, so that the network and the checks do not wait for the disk or for
uploads: in one thread for a folder, in several for a bucket.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from regards_nb.download.bounded_queue import BoundedQueue, QueueClosed
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.download.names import FinalNames
    from regards_nb.download.progress import ProgressCounter
    from regards_nb.download.records import OrderRecords
    from regards_nb.download.workspace import Content, VerifiedFile, Workspace
    from regards_nb.files import FileRecord

#: Files that are ready within this time are published together, because each flush takes time, and
#: recorded together, because each record is a commit or a request.
_GATHER_S = 0.25
#: How much may wait in memory for a disk and for uploads, and what a file takes beside its content.
#: Small files arrive faster than a store answers, and the network does not wait for them.
_WAITING_BYTES, _UPLOADS_BYTES, _FILE_BYTES = 2 << 20, 32 << 20, 1000
#: A call that stops waits so long for uploads that have begun.
_STOP_S = 2.0
_WAKE_S = 0.2


class Publisher:
    """Gives verified files their final names and records them; *stop* ends a wait for uploads."""

    def __init__(
        self,
        workspace: Workspace,
        records: OrderRecords,
        names: FinalNames,
        counter: ProgressCounter,
        stop: threading.Event,
    ) -> None:
        self._workspace = workspace
        self._uploads = workspace.waiting_bytes > 0
        self._records = records
        self._names = names
        self._counter = counter
        self._stop = stop
        self._failure: BaseException | None = None
        # Several threads choose names and add to what is to be recorded.
        self._lock = threading.Condition()
        #: How many of them publish files at this moment.
        self._busy = 0
        self._placed: list[FileRecord] = []
        #: Names that other files had, and the names that were given instead.
        self.kept: dict[str, str] = {}
        # One thread at a time records, for all; the others go on with their files.
        self._recording = threading.Lock()
        self._queue: BoundedQueue[Sequence[VerifiedFile]] = BoundedQueue(
            workspace.waiting_bytes or _WAITING_BYTES, held_until_done=self._uploads
        )
        # Daemon threads: a kernel that is restarted does not wait for the disk.
        self._threads = [
            threading.Thread(target=self._run, name="regards-nb-publisher", daemon=True)
            for _ in range(workspace.parallel)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, files: Sequence[VerifiedFile]) -> None:
        """Hand over verified files, from any thread.

        QueueClosed means that publishing has failed; :meth:`finish` raises the reason.
        """
        size = self._workspace.batch_files
        for start in range(0, len(files), size):
            batch = files[start : start + size]
            self._queue.put(batch, self._held_bytes(batch))

    def finish(self) -> bool:
        """Return True when all files are in place and recorded, or raise why they cannot be.

        False: the download was asked to stop while files were uploaded.
        """
        self._queue.end()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_WAKE_S)
                self._counter.report()
                if self._uploads and self._stop.is_set():
                    return False
        self.raise_failure()
        return True

    def finish_early(self) -> None:
        """Publish the files handed over so far, while another error is raised.

        Of uploads only those are waited for that have begun, and for a moment.
        """
        self._queue.close() if self._uploads else self._queue.end()
        until_s = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0.0) if self._uploads else None)

    def raise_failure(self) -> None:
        """Raise the error of publishing, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for first in self._queue:
                batch = self._gather(first)
                self._publish_batch(batch)
                if self._uploads:
                    self._queue.done(self._held_bytes(batch))
        except BaseException as exc:  # noqa: BLE001 - not swallowed: finish() raises it
            with self._lock:
                self._failure = self._failure or exc
            self._queue.close()

    def _held_bytes(self, files: Sequence[VerifiedFile]) -> int:
        in_memory = sum(len(file.content.data) for file in files) + _FILE_BYTES * len(files)
        if not self._uploads:
            return in_memory
        # The limit is one for the scratch disk: a byte in memory counts as many there.
        staged = sum(file.content.size_bytes for file in files if file.content.path is not None)
        return staged + in_memory * (self._workspace.waiting_bytes // _UPLOADS_BYTES)

    def _gather(self, first: Sequence[VerifiedFile]) -> list[VerifiedFile]:
        """Add the files that become ready within a moment."""
        batch = list(first)
        until_s = time.monotonic() + _GATHER_S
        with suppress(QueueClosed):
            while (
                len(batch) < self._workspace.batch_files
                and (left_s := until_s - time.monotonic()) > 0
            ):
                batch += self._queue.take(left_s) or ()
        return batch

    def _publish_batch(self, batch: Sequence[VerifiedFile]) -> None:
        placed: list[FileRecord] = []
        with self._lock:
            self._busy += 1
        try:
            with self._workspace.errors():
                contents = self._workspace.prepare([file.content for file in batch])
                for file, content in zip(batch, contents, strict=True):
                    placed += self._publish(file, content)
                self._workspace.complete_batch()
        finally:
            # also when one failed: the others have their names now
            self._record(placed)

    def _record(self, placed: Sequence[FileRecord]) -> None:
        with self._lock:
            self._placed += placed
            self._busy -= 1
            self._lock.notify_all()
        # looked at again after the release: another thread may have added records just before it
        while self._placed and self._recording.acquire(blocking=False):
            try:
                with self._lock:
                    self._lock.wait_for(lambda: not self._busy, _GATHER_S)
                    together, self._placed = self._placed, []
                self._records.save(together)
                verified = sum(record.state is FileState.VERIFIED for record in together)
                self._counter.add_files(len(together), verified=verified)
            finally:
                self._recording.release()

    def _publish(self, file: VerifiedFile, content: Content) -> list[FileRecord]:
        first, workspace = file.records[0], self._workspace
        wanted = name = file.name or self._names.choose(first.file_id, first.name)
        is_created = True
        while not workspace.create(name, content):
            # Another download may have put the same file there, or the user another one.
            is_suspect = workspace.path_of(name) in self._records.suspect
            if workspace.has(name, content, is_suspect=is_suspect):
                content.discard()
                is_created = False
                break
            # A cut file of ours has nothing that the verified one lacks.
            if is_suspect and workspace.replace_cut(name, content):
                break
            with self._lock:
                name = self._names.choose_another(name)
        else:
            if name != wanted:
                with self._lock:
                    self.kept[wanted] = name
        path = workspace.path_of(name)
        fetched_at_us = time.time_ns() // 1000 if is_created else None
        return [
            record._replace(
                path=path,
                error=None,
                fetched_at_us=fetched_at_us if file.is_fetched else record.fetched_at_us,
                size_bytes=record.size_bytes if file.state is None else content.size_bytes,
                state=file.state or record.state,
            )
            for record in file.records
        ]
