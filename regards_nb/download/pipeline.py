"""Reads one zip in one pass while it arrives: receive, inflate and check CRC-32, MD5 and write.

One thread receives and inflates, another one writes: each releases Python's lock for most of its
time. The caller's thread waits for both: Ctrl-C arrives there, and progress is reported there.

Entries become verified files, each as soon as it is complete; others are discarded. A file that
has the MD5 of the manifest is handed over at once: later damage of the zip cannot make it wrong. A
file without an MD5 in the manifest waits until the whole zip is proven and its notice does not name
the file.
"""

from __future__ import annotations

import queue
import sys
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from regards_nb.download.manifest import MAX_NOTICE_BYTES, NOTICE_NAME, MatchKind, parse_notice
from regards_nb.download.places import files_in, root_and_name
from regards_nb.download.publisher import raise_if_stopped
from regards_nb.download.records import zip_name
from regards_nb.download.workspace import MAX_HELD_BYTES, CheckedFile, Content, ContentWriter
from regards_nb.download.zipstream import read_zip
from regards_nb.errors import (
    ArchiveError,
    NotAllowedError,
    QuotaError,
    ServiceError,
    ServiceUnreachableError,
)
from regards_nb.files import FileState
from regards_nb.waits import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from regards_nb.download.context import DownloadContext
    from regards_nb.download.zipstream import EntryBytes
    from regards_nb.files import FileRecord

#: The pieces of a block go to the writer together, because each switch between the threads takes
#: time: maximum size of such a batch, and maximum number of batches that wait for the writer.
_BATCH_BYTES, _WAITING_BATCHES = 1 << 20, 3
#: How long to wait for a thread that reads from a dead connection.
_JOIN_S = 5.0
#: Maximum number of entries of a zip: a multiple of the files of the manifest, plus a number.
_MAX_ENTRIES_FACTOR, _MAX_ENTRIES_MORE = 2, 1000


@dataclass(slots=True)
class ZipOutcome:
    """The result of one zip besides its files."""

    #: Why it is not proven to be complete; None if it is.
    failure: ArchiveError | ServiceError | None = None
    #: What the server says of files that it could not send, by name.
    notice: dict[str, str] = field(default_factory=dict)
    #: Entries that the manifest does not list; they are staged until the zip is proven.
    unlisted_entries: list[Content] = field(default_factory=list)
    #: Why entries were not right, by the ids of the files they stand for.
    wrong: dict[int, str] = field(default_factory=dict)


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
        self._extractor = _Extractor(context)
        #: With ``extract=False`` the zip itself is written; `require_space` has looked for room.
        self._copy: ContentWriter | None = None
        if not context.options.extract:
            self._copy = ContentWriter(zip_name(context.order_id), sys.maxsize, context.workspace)
        #: None: there are no more.
        self._pieces: queue.Queue[Sequence[EntryBytes] | None] = queue.Queue(_WAITING_BATCHES)
        self._batch: list[EntryBytes] = []
        self._batch_bytes = 0
        self._halted = False

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
        failure = writer.exception() or reader.exception()
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
        try:
            while (pieces := self._pieces.get()) is not None:
                self._extractor.take(pieces)
        except BaseException:
            self._halt()
            while self._pieces.get() is not None:
                pass  # the reader may wait for room in the queue
            raise

    def _halt(self) -> None:
        """Let the reader end, from any thread: it reads no other block."""
        self._halted = True
        self._abort()


class _Extractor:
    """Takes the pieces of one zip, in one thread; verified files go to the publisher."""

    def __init__(self, context: DownloadContext) -> None:
        self._manifest = context.manifest
        self._workspace = context.workspace
        self._publisher, self._counter = context.publisher, context.counter
        self._extracts = context.options.extract
        self._writer: ContentWriter | None = None
        self._n_entries = 0
        self._verified: list[CheckedFile] = []
        self._size_only: list[tuple[Content, FileRecord]] = []
        self._notice: Content | None = None
        self._max_entries = _MAX_ENTRIES_FACTOR * len(self._manifest) + _MAX_ENTRIES_MORE
        #: With ``extract=False``: files that are right and stay in the zip.
        self.zipped: list[FileRecord] = []
        self._outcome = ZipOutcome()

    def take(self, pieces: Iterable[EntryBytes]) -> None:
        """Take pieces, in the order of the zip; raise ArchiveError where it is a bomb."""
        arrived_bytes = 0
        with self._workspace.errors():
            for piece in pieces:
                arrived_bytes += len(piece.data)
                content = self._completed(piece)
                if self._notice is not None:
                    # another entry follows: so it was a file of that name
                    self._match(self._notice)
                    self._notice = None
                if content is None:
                    continue
                if content.name == NOTICE_NAME and content.path is None:
                    self._notice = content
                else:
                    self._match(content)
        self._counter.add_bytes(arrived_bytes)
        self._hand_over()

    def finish(self, failure: ArchiveError | ServiceError | None) -> ZipOutcome:
        """Decide about the entries that had to wait, and return what came of the zip.

        Without a *failure* it is proven: it was read to its end and everything agreed.
        """
        proven, outcome = failure is None, self._outcome
        notice = parse_notice(self._notice.data) if proven and self._notice else None
        with self._workspace.errors():
            if self._notice is not None and notice is None:
                self._match(self._notice)
            for content, record in self._size_only:
                if not proven or record.name in (notice or {}):
                    content.discard()
                    self._manifest.reopen([record])
                else:
                    self._accept(content, [record], FileState.UNVERIFIED)
            self._match_unlisted_entries()
        self._hand_over()
        if not proven or not self._extracts:
            # not proven: the server marked nothing, so they come again; else they stay in the zip
            for content in outcome.unlisted_entries:
                content.discard()
            outcome.unlisted_entries.clear()
        outcome.failure, outcome.notice = failure, notice or {}
        return outcome

    def close(self) -> None:
        """Forget an entry that was not completed."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _hand_over(self) -> None:
        verified, self._verified = self._verified, []
        self._publisher.add(verified)

    def _completed(self, piece: EntryBytes) -> Content | None:
        """Add a piece to its entry; return the entry when it is complete and undamaged."""
        writer = self._writer
        if writer is None:
            name = piece.name
            self._n_entries += 1
            if self._n_entries > self._max_entries:
                raise ArchiveError("the zip has many more entries than the order has files")
            if piece.last and piece.damage is None:
                return Content.of(name, piece.data)
            writer = self._writer = ContentWriter(
                name,
                self._manifest.limit_bytes(name),
                self._workspace if self._extracts else None,
                # a notice is read, even if it turns out to be a file
                max_held_bytes=MAX_NOTICE_BYTES if name == NOTICE_NAME else MAX_HELD_BYTES,
            )
        writer.add(piece.data)
        if not piece.last:
            return None
        self._writer = None
        if piece.damage is None:
            return writer.finish()
        writer.discard()
        same_name = self._manifest.named(writer.name)
        self._note_wrong(same_name, piece.damage)
        if not same_name:
            # it matches no MD5
            damaged = Content(writer.name, 0, md5="", data=b"", path=None)
            self._outcome.unlisted_entries.append(damaged)
        return None

    def _match(self, content: Content) -> None:
        """Find out which file an entry is, and accept it or not."""
        kind, records = self._manifest.match(content.name, content.size_bytes, content.md5)
        if kind is MatchKind.VERIFIED and records:
            self._accept(content, records, FileState.VERIFIED)
        elif kind is MatchKind.SIZE_ONLY:
            self._size_only.append((self._moved_to_disk(content), records[0]))
        elif kind is MatchKind.UNKNOWN:
            self._outcome.unlisted_entries.append(self._moved_to_disk(content))
        else:
            # it is wrong or ambiguous, or the file was found already
            content.discard()
            self._counter.add_bytes(-content.size_bytes)
        if kind is MatchKind.WRONG:
            self._note_wrong(records, f"the zip held other content ({content.size_bytes} bytes)")

    def _match_unlisted_entries(self) -> None:
        """Match entries whose name no file has by their content."""
        candidates, self._outcome.unlisted_entries = self._outcome.unlisted_entries, []
        matched = self._manifest.match_contents([content.md5 for content in candidates])
        for content, record in zip(candidates, matched, strict=True):
            if record is None:
                self._outcome.unlisted_entries.append(content)
            else:
                self._accept(content, [record], FileState.VERIFIED)

    def _accept(self, content: Content, records: Sequence[FileRecord], state: FileState) -> None:
        if self._extracts:
            self._verified.append(CheckedFile(content, records, state))
            return
        size_bytes = content.size_bytes
        self.zipped += [r._replace(size_bytes=size_bytes, state=state) for r in records]

    def _moved_to_disk(self, content: Content) -> Content:
        """Return an entry that has to wait, without its bytes in memory."""
        if not self._extracts:
            return content._replace(data=b"")
        return content.staged(self._workspace)

    def _note_wrong(self, records: Iterable[FileRecord], reason: str) -> None:
        self._outcome.wrong.update((record.file_id, reason) for record in records)
