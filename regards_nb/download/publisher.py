"""The step to a final name: flush the content, link it without replacing anything, record it.

It runs in a thread of its own, so that the network and the checks do not wait for the disk.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regards_nb.download.bounded_queue import BoundedQueue, QueueClosed
from regards_nb.download.workspace import has_content, link_without_replacing
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.download.content import VerifiedFile
    from regards_nb.download.names import FinalNames
    from regards_nb.download.progress import ProgressCounter
    from regards_nb.download.records import OrderRecords
    from regards_nb.download.workspace import Workspace
    from regards_nb.files import FileRecord

#: Files that are ready within this time are published together, because each flush takes time.
_GATHER_S = 0.25
#: A batch has at most so many files: small ones are in memory until then.
_MAX_BATCH = 1000
#: How much may wait, and what a file takes besides its content.
_WAITING_BYTES, _FILE_BYTES = 2 << 20, 1000


class Publisher:
    """Gives verified files their final names and records them.

    Parameters
    ----------
    workspace : Workspace
        Where the files are staged and where they go.
    records : OrderRecords
        Where they are recorded, after they are in place.
    names : FinalNames
        The final names.
    counter : ProgressCounter
        Counts each file in place.
    """

    def __init__(
        self,
        workspace: Workspace,
        records: OrderRecords,
        names: FinalNames,
        counter: ProgressCounter,
    ) -> None:
        self._workspace = workspace
        self._folder = f"{workspace.directory}{os.sep}"
        self._records = records
        self._names = names
        self._counter = counter
        self._failure: BaseException | None = None
        self._queue: BoundedQueue[Sequence[VerifiedFile]] = BoundedQueue(_WAITING_BYTES)
        # A daemon thread: a kernel that is restarted does not wait for the disk.
        self._thread = threading.Thread(target=self._run, name="regards-nb-publisher", daemon=True)
        self._thread.start()

    def add(self, files: Sequence[VerifiedFile]) -> None:
        """Hand over verified files, from any thread.

        Raises
        ------
        QueueClosed
            Publishing has failed; :meth:`finish` raises the reason.
        """
        if files:
            held_bytes = sum(len(file.content.data) for file in files)
            self._queue.put(files, held_bytes + _FILE_BYTES * len(files))

    def finish(self) -> None:
        """Return when all files are in place and recorded, or raise why they cannot be."""
        self._queue.end()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def finish_quietly(self) -> None:
        """Publish what was handed over, while another error is being raised."""
        with suppress(Exception):
            self.finish()

    def _run(self) -> None:
        try:
            for first in self._queue:
                self._publish_batch(self._gather(first))
        except BaseException as exc:  # noqa: BLE001 - not swallowed: finish() raises it
            self._failure = exc
            self._queue.close()

    def _gather(self, first: Sequence[VerifiedFile]) -> list[VerifiedFile]:
        """Add the files that become ready within a moment."""
        batch = list(first)
        until_s = time.monotonic() + _GATHER_S
        try:
            while len(batch) < _MAX_BATCH and (left_s := until_s - time.monotonic()) > 0:
                batch += self._queue.take(left_s) or ()
        except QueueClosed:
            pass
        return batch

    def _publish_batch(self, batch: Sequence[VerifiedFile]) -> None:
        placed: list[FileRecord] = []
        try:
            with self._workspace.errors():
                staged = [file.content.staged(self._workspace) for file in batch]
                self._workspace.flush(staged)
                for file, path in zip(batch, staged, strict=True):
                    placed += self._publish(file, path)
                self._workspace.flush_names()
        finally:
            # also when one failed: the others have their names now
            self._records.save(placed)
            verified = sum(record.state is FileState.VERIFIED for record in placed)
            self._counter.add_files(len(placed), verified=verified)

    def _publish(self, file: VerifiedFile, staged: str) -> list[FileRecord]:
        first, content = file.records[0], file.content
        name = file.name or self._names.choose(first.file_id, first.name)
        fetched_at_us: int | None = time.time_ns() // 1000
        while not link_without_replacing(staged, path := self._folder + name):
            # Another download may have put the same file there, or the user another one.
            if has_content(path, content.size_bytes, content.md5):
                os.unlink(staged)  # noqa: PTH108 - a string
                fetched_at_us = None
                break
            name = self._names.choose_another(name)
        changes: dict[str, Any] = {"path": path, "error": None}
        if file.is_fetched:
            changes["fetched_at_us"] = fetched_at_us
        if file.state is not None:
            changes |= {"size_bytes": content.size_bytes, "state": file.state}
        return [replace(record, **changes) for record in file.records]
