"""Entries of a zip become verified files, each as soon as it is complete; others are discarded.

A file that has the MD5 of the manifest is handed over at once: later damage of the zip cannot make
it wrong. A file without an MD5 in the manifest waits until the whole zip is proven and its notice
does not name the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from regards_nb.download.manifest import MAX_NOTICE_BYTES, NOTICE_NAME, MatchKind, parse_notice
from regards_nb.download.workspace import MAX_HELD_BYTES, CheckedFile, Content, ContentWriter
from regards_nb.errors import ArchiveError
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from regards_nb.download.context import DownloadContext
    from regards_nb.download.zipstream import EntryBytes
    from regards_nb.errors import ServiceError
    from regards_nb.files import FileRecord

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


class Extractor:
    """Takes the pieces of one zip, in one thread; verified files go to the publisher."""

    def __init__(self, context: DownloadContext) -> None:
        self._manifest = context.manifest
        self._workspace = context.workspace
        self._publisher = context.publisher
        self._counter = context.counter
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
            self._outcome.unlisted_entries.append(Content.damaged(writer.name))
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
