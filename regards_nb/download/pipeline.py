"""Reads one zip in one pass while it arrives: receive, inflate and check CRC-32, MD5 and write.

One thread receives and inflates, another one writes: each releases Python's lock for most of its
time. The caller's thread waits for both: Ctrl-C arrives there, and progress is reported there.
"""

from __future__ import annotations

import queue
import sys
from concurrent.futures import wait
from typing import TYPE_CHECKING

from regards_nb.download.extract import Extractor, ZipOutcome
from regards_nb.download.places import files_in, root_and_name
from regards_nb.download.publisher import raise_if_stopped
from regards_nb.download.records import zip_name
from regards_nb.download.workspace import CheckedFile, ContentWriter
from regards_nb.download.zipstream import read_zip
from regards_nb.errors import (
    ArchiveError,
    NotAllowedError,
    QuotaError,
    ServiceError,
    ServiceUnreachableError,
)
from regards_nb.waits import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regards_nb.download.context import DownloadContext
    from regards_nb.download.zipstream import EntryBytes

#: The pieces of a block go to the writer together, because each switch between the threads takes
#: time: maximum size of such a batch, and maximum number of batches that wait for the writer.
_BATCH_BYTES, _WAITING_BATCHES = 1 << 20, 3
#: How long to wait for a thread that reads from a dead connection.
_JOIN_S = 5.0


def fetch_zip(context: DownloadContext) -> ZipOutcome:
    """Fetch the available files as one zip; verified files go to the publisher.

    A zip that is refused, is cut or cannot be trusted is not an error here: its files can still
    be fetched one by one. Files that were verified before stay, and the outcome says what happened.
    A login that is refused, or a proxy that answered, is an error: single files would fail as well.
    """
    try:
        with context.client.open_zip(context.order_id) as body:
            if body is None:  # 204: another download fetched the files in the meantime
                return ZipOutcome()
            return _Pipeline(context, body.blocks(), body.abort).run()
    except ServiceError as exc:
        # 401 with a message, 409, 423 and 429 may only mean that another zip is being made for
        # this user (REGARDS 2.1 and later; the answer is not documented).
        is_busy = isinstance(exc, NotAllowedError) and exc.status_code == 401
        if type(exc) not in (ServiceError, ServiceUnreachableError, QuotaError) and not is_busy:
            raise
        raise_if_stopped()
        return ZipOutcome(failure=exc)


def extract_zip(context: DownloadContext, path: str) -> ZipOutcome:
    """Extract a zip that an earlier download kept; verified files go to the publisher."""
    return _Pipeline(context, _blocks_of_kept(path), lambda: None).run()


def _blocks_of_kept(path: str) -> Iterator[bytes]:
    root, name = root_and_name(path)
    try:
        yield from files_in(root).blocks(name)
    except OSError as exc:
        raise ArchiveError(f"cannot read {path}: {exc.strerror}") from exc


class _Pipeline:
    """The two threads of one zip. It comes in blocks; *abort* ends them from another thread."""

    def __init__(
        self, context: DownloadContext, blocks: Iterator[bytes], abort: Callable[[], None]
    ) -> None:
        self._context = context
        self._blocks = blocks
        self._abort = abort
        self._extractor = Extractor(context)
        #: With ``extract=False`` the zip itself is written; `require_space` has looked for room.
        self._copy: ContentWriter | None = None
        if not context.options.extract:
            self._copy = ContentWriter(zip_name(context.order_id), sys.maxsize, context.workspace)
        #: None: there are no more.
        self._pieces: queue.Queue[Sequence[EntryBytes] | None] = queue.Queue(_WAITING_BATCHES)
        self._batch: list[EntryBytes] = []
        self._batch_bytes = 0
        self._halted = False
        self._write_failure: BaseException | None = None

    def run(self) -> ZipOutcome:
        """Return when everything that arrived was extracted."""
        reader = in_thread(self._read, "regards-nb-zip-reader")
        writer = in_thread(self._write, "regards-nb-zip-writer")
        try:
            self._context.publisher.wait_for([reader, writer])
        finally:
            # After Ctrl-C, too: entries that are inflated are still verified and kept.
            if not reader.done():
                self._halt()
                wait([reader], _JOIN_S)
                self._pieces.put(None)
            wait([writer])
            self._extractor.close()
        failure = self._write_failure or reader.exception()
        if failure is not None and not isinstance(failure, ServiceError | ArchiveError):
            raise failure
        outcome = self._extractor.finish(failure)
        if self._copy is not None and (zipped := self._extractor.zipped):
            if failure is None:
                checked = CheckedFile(self._copy.finish(), zipped, None, self._copy.name)
                self._context.publisher.add([checked])
            else:
                self._context.manifest.reopen(zipped)
        return outcome

    def _read(self) -> None:
        """Read the zip and inflate it; runs in the reader."""
        try:
            for piece in read_zip(self._arriving()):
                self._batch.append(piece)
                self._batch_bytes += len(piece.data)
                if self._batch_bytes >= _BATCH_BYTES:
                    self._hand_over()
        finally:
            if self._copy is not None:
                self._copy.finish()  # closes its file
            self._hand_over()
            self._pieces.put(None)

    def _arriving(self) -> Iterator[bytes]:
        """Yield the blocks; hand over the pieces before waiting for the next block."""
        for block in self._blocks:
            if self._halted:
                return
            if self._copy is not None:
                self._copy.add(block)
            yield block
            self._hand_over()

    def _hand_over(self) -> None:
        """Pass the pieces that are ready to the writer."""
        if self._batch:
            self._pieces.put(self._batch)
            self._batch, self._batch_bytes = [], 0

    def _write(self) -> None:
        """Pass the pieces to the extractor; runs in the writer."""
        while (pieces := self._pieces.get()) is not None:
            if self._write_failure is not None:
                continue  # the reader may wait for room in the queue
            try:
                self._extractor.take(pieces)
            except BaseException as exc:  # noqa: BLE001 - not swallowed: run() raises or returns it
                self._write_failure = exc
                self._halt()

    def _halt(self) -> None:
        """Let the reader end, from any thread: it reads no other block."""
        self._halted = True
        self._abort()
