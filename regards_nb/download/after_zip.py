"""The steps after a zip: missing files, entries that no manifest lists, release of files."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from regards_nb.client import pausing
from regards_nb.download.manifest import Manifest, MatchKind
from regards_nb.download.parallel_files import Failure, fetch_files
from regards_nb.download.pipeline import extract_zip, fetch_zip
from regards_nb.download.places import files_in, root_and_name
from regards_nb.download.publisher import raise_if_stopped
from regards_nb.download.records import compare_files, is_in_zip
from regards_nb.download.workspace import CheckedFile, ContentWriter
from regards_nb.errors import ArchiveError, ServiceError
from regards_nb.files import FileRecord, FileState
from regards_nb.text import counted, size
from regards_nb.waits import pause

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from regards_nb.download.context import DownloadContext, FileSource
    from regards_nb.download.pipeline import ZipOutcome
    from regards_nb.download.workspace import Content

_log = logging.getLogger(__name__)

#: The server saves the state of files after the last byte (protocol.md 1.0, 5). A file that it
#: still lists counts as not downloaded only after these waits.
_SAVING_S = (0.1, 0.2, 0.4, 0.8, 1.6)
#: Fewer waits after a zip that failed: the server has then most likely no state to save.
_SHORT_SAVING_S = _SAVING_S[:3]
#: Why a download waits then.
_SAVING = "REGARDS lists files that are here, and may not have saved yet that it sent them"


def fetch_missing(context: DownloadContext, outcome: ZipOutcome) -> dict[int, Failure]:
    """Fetch one by one the files that are still missing.

    A file for which the zip says that the quota is used up is not requested again. Return why
    files could not be downloaded, by file id.
    """
    missing = context.manifest.missing
    stated = {
        record.file_id: reason
        for record in missing
        if (reason := outcome.notice.get(record.name) or outcome.wrong.get(record.file_id))
    }
    problems = {
        file_id: Failure(reason) for file_id, reason in stated.items() if "Download quota" in reason
    }
    rest = [record for record in missing if record.file_id not in problems]
    if rest:
        context.counter.enter("files")
        failed = fetch_files(context, rest)
        context.manifest.close(record for record in rest if record.file_id not in failed)
        for file_id, failure in failed.items():
            in_zip = stated.get(file_id)
            is_told = not in_zip or failure.is_refused
            both = f"in the zip: {in_zip}; alone: {failure.reason}"
            problems[file_id] = failure if is_told else Failure(both)
    return problems


def gather(context: DownloadContext, others: Iterable[FileRecord]) -> None:
    """Link or copy files into the directory that are verified in another folder.

    A file that differs from the verified one counts as missing, and is fetched.
    """
    files = list(_by_path(others))
    reading = _Reading(context, files)
    wrong = compare_files((records[0] for _, records in files), checksum=False)
    with pausing(reading.text):
        for path, records in files:
            first = records[0]
            content = None if first in wrong else reading.read(path, first)
            if content is None:
                context.manifest.add(context.records.mark_missing(records))
                continue
            name = context.names.choose_new(os.path.basename(path))  # noqa: PTH119
            context.publisher.add([CheckedFile(content, records, None, name, is_fetched=False)])


class _Reading:
    """Reads files of another folder, which are linked or copied, and says how far it is."""

    def __init__(
        self, context: DownloadContext, files: Sequence[tuple[str, list[FileRecord]]]
    ) -> None:
        self._context = context
        self._n_files, self._n_read, self._read_bytes = len(files), 0, 0
        self._total_bytes = sum(records[0].size_bytes or 0 for _, records in files)
        self._folder, self._is_copied = root_and_name(files[0][0])[0], False

    def text(self) -> str:
        """Return what is read, and how much of it was read."""
        files = f"the files of order {self._context.order_id}"
        done = counted(f"{self._n_read} of {self._n_files}", "file")
        how_far = f"{done} ({size(self._read_bytes)} of {size(self._total_bytes)})"
        if self._is_copied:
            return f"copying {files}: {how_far}, from {self._folder}"
        return f"comparing {files} with their MD5: {how_far}, in {self._folder}"

    def read(self, path: str, record: FileRecord) -> Content | None:
        """Return a file; None where it is not the verified one."""
        workspace = self._context.workspace
        link, is_linked = workspace.new_path(), True
        try:
            os.link(path, link)
        except OSError:  # a URL, another file system, or one without links
            is_linked = False
        self._folder, name = root_and_name(path)
        self._is_copied, files = not is_linked, files_in(self._folder)
        # What is linked is only compared.
        limit_bytes, _ = files.size_of(name)
        writer = ContentWriter(record.name, limit_bytes, None if is_linked else workspace)
        try:
            for block in files.blocks(name):
                writer.add(block)
                self._read_bytes += len(block)
                self._context.counter.report()
        except (OSError, ArchiveError):  # it was removed or changed meanwhile
            writer.discard()
            return None
        except BaseException:
            writer.discard()
            raise
        self._n_read += 1
        content = writer.finish()
        if is_linked:
            content = content._replace(data=b"", path=link)
        if is_in_zip(record) or record.md5 in (None, content.md5):
            return content
        content.discard()
        return None


def _by_path(records: Iterable[FileRecord]) -> Iterable[tuple[str, list[FileRecord]]]:
    """Return the records of each file: one file may be several of the order, or a kept zip."""
    files: dict[str, list[FileRecord]] = {}
    for record in records:
        files.setdefault(record.path or "", []).append(record)
    return files.items()


def extract_kept_zips(context: DownloadContext, records: Iterable[FileRecord]) -> None:
    """Extract files from zips that an earlier download kept; the zips stay.

    A file that its zip does not hold any more counts as missing, and is fetched.
    """
    for path, zipped in _by_path(records):
        manifest = Manifest(zipped)
        outcome = extract_zip(context._replace(manifest=manifest), path)
        identify(outcome.unlisted_entries, context)
        context.manifest.add(context.records.mark_missing(manifest.missing))


def identify(entries: Sequence[Content], context: DownloadContext) -> None:
    """Find out which files the unlisted entries of a zip are, and publish them.

    They are files that became available between the manifest and the zip. The server counts them
    as downloaded once the zip is sent, so they must not be dropped (protocol.md 1.0, 5; 1.4). The
    lists of the data sets name all files of the order in any state. An entry that they do
    not name either is kept as unverified, with an id below zero.
    """
    if not entries:
        return
    others: list[FileRecord] = []
    with suppress(ServiceError):
        everything = all_files(context.client, context.order_id)
        others = [record for record in everything if record not in context.manifest]
    listing = Manifest(others)
    verified: list[CheckedFile] = []
    for content in entries:
        kind, records = listing.match(content.name, content.size_bytes, content.md5)
        if kind in {MatchKind.WRONG, MatchKind.AMBIGUOUS}:
            # truncated or damaged, or one of several files of the same name: fetched alone
            content.discard()
            context.records.expect(records)
            context.manifest.add(record for record in records if record not in context.manifest)
            continue
        if not content.md5:
            continue
        if not records:
            records = [_unknown_file(content, context.order_id)]
        state = FileState.VERIFIED if kind is MatchKind.VERIFIED else FileState.UNVERIFIED
        name = context.names.choose_new(records[0].name)
        verified.append(CheckedFile(content, records, state, name))
    context.publisher.add(verified)


def release(context: DownloadContext, file_ids: set[int]) -> frozenset[int]:
    """Make the server count files as downloaded that are in place: it goes on only then.

    Each file is fetched alone once more, and its bytes are dropped. External files count only
    after a zip (protocol.md 1.5); by now it holds nothing else. Return the ids of the files that
    the server still lists after that.
    """
    waiting = _still_listed(context, file_ids)
    if not waiting:
        return frozenset()
    fetch_files(context, [row for row in waiting if not is_external(row)], keep=False)
    if any(is_external(row) for row in waiting):
        identify(fetch_zip(context).unlisted_entries, context)
    left = frozenset(row.file_id for row in _still_listed(context, file_ids))
    if left:
        _log.warning(
            "order %d: the server still lists %d files that were downloaded; it may not go on",
            context.order_id,
            len(left),
        )
    return left


def is_external(record: FileRecord) -> bool:
    """Return whether only a zip makes the server count this file as downloaded."""
    return record.size_bytes is None


def _still_listed(context: DownloadContext, file_ids: set[int]) -> list[FileRecord]:
    """Return which of these files the server lists, after it had time to save their state."""
    rows: list[FileRecord] = []
    for _ in looks(_SHORT_SAVING_S):
        raise_if_stopped()
        listed = context.client.iter_available_files(context.order_id)
        rows = [row for row in listed if row.file_id in file_ids]
        if not rows:
            break
    return rows


def looks(pauses_s: Sequence[float] = _SAVING_S) -> Iterator[None]:
    """Yield at once, and after each pause in which REGARDS may save that it sent files."""
    yield
    for pause_s in pauses_s:
        with pausing(_SAVING):
            pause(pause_s)
        yield


def all_files(client: FileSource, order_id: int) -> Iterator[FileRecord]:
    """Yield all files of an order in any state: the lists of its data sets name them."""
    for dataset_id in client.order(order_id).dataset_ids:
        yield from client.iter_dataset_files(order_id, dataset_id)


def _unknown_file(content: Content, order_id: int) -> FileRecord:
    """Return a record for a file that the server does not list, the same at every download."""
    identity = hashlib.sha256(f"{content.md5}/{content.name}".encode()).digest()
    return FileRecord(
        order_id=order_id,
        file_id=-int.from_bytes(identity[:7], "big") - 1,
        name=content.name,
        size_bytes=content.size_bytes,
    )
