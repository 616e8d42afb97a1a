"""One increment of an order: all files that are available now, and those that failed before.

The steps: read the manifest and record it; fetch the zip in one pass, or the files one by one;
fetch one by one the files that the zip did not hold; make sure that the server counts all of them
as downloaded, because it prepares the next files only then.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.client import watched
from regards_nb.download.after_zip import (
    extract_kept_zips,
    fetch_missing,
    gather,
    identify,
    is_external,
    looks,
    release,
)
from regards_nb.download.context import DownloadContext, DownloadOptions
from regards_nb.download.manifest import Manifest
from regards_nb.download.names import FinalNames
from regards_nb.download.pipeline import ZipOutcome, fetch_zip
from regards_nb.download.places import paths_of
from regards_nb.download.progress import ProgressCounter
from regards_nb.download.publisher import Publisher, PublisherFailedError, StoppedError
from regards_nb.download.records import OrderRecords, is_in_zip
from regards_nb.download.workspace import open_workspace
from regards_nb.errors import (
    DownloadError,
    IncompleteDownloadError,
    ServiceError,
    ServiceUnreachableError,
)
from regards_nb.files import FileState
from regards_nb.text import clean, counted, listed
from regards_nb.waits import ended_by, is_stopped

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from pathlib import Path

    from regards_nb.download.context import FileSource, Way
    from regards_nb.download.parallel_files import Failure
    from regards_nb.download.places import Place
    from regards_nb.download.records import FileLog
    from regards_nb.download.workspace import Workspace
    from regards_nb.files import FileRecord

_log = logging.getLogger(__name__)

#: The server counts sizes in 32 bits: a larger file may fail in the zip (protocol.md 1.5).
_MAX_ZIP_FILE_BYTES = 2 << 30
#: So few files of such a size are faster in parallel, and one that is cut costs only itself.
_FEW_FILES, _LARGE_BYTES = 8, 512 << 20
#: Maximum number of missing files that an error text names; the error holds all of them.
_MAX_SHOWN = 5


_id = attrgetter("file_id")


class Plan(NamedTuple):
    """The files of an order, by the step that they need."""

    #: Available on the server, not in place.
    wanted: list[FileRecord]
    #: Recorded earlier, not in place, and no longer in the manifest: fetched one by one.
    no_longer_listed: list[FileRecord]
    #: In place, but still listed: the server keeps waiting for their download.
    unreleased: list[FileRecord]
    #: In place in a kept zip, to be extracted.
    zipped: list[FileRecord]
    #: In place in another folder, to be linked or copied into this one.
    to_gather: list[FileRecord]

    @property
    def missing(self) -> list[FileRecord]:
        """All files that are to be fetched, by file id."""
        return sorted(self.wanted + self.no_longer_listed, key=_id)

    @property
    def bytes_total(self) -> int | None:
        """The size of the missing files; None where a size is not known."""
        sizes = [record.size_bytes for record in self.missing]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Downloader:
    """Fetches the files of one order that are available, each time it is asked to.

    They go into *directory*, which is made if it is missing, and are recorded in *log*: verified
    files are not fetched again.
    """

    def __init__(
        self,
        client: FileSource,
        order_id: int,
        directory: Place,
        log: FileLog,
        options: DownloadOptions,
    ) -> None:
        self.order_id = order_id
        self._client = client
        self._directory = directory
        self._options = options
        self.records = OrderRecords(
            log,
            order_id,
            directory,
            check=options.check,
            again=options.again,
            originals=options.originals,
        )
        #: Files that the server goes on listing although they were downloaded and released.
        self._never_released: set[int] = set()
        #: Texts on files that were in the way and are kept.
        self.notes: list[str] = []
        #: Files that could not be downloaded; not tried again before :meth:`retry_failed`.
        self._failed: set[int] = set()
        #: Failed files that REGARDS must prepare anew before another request can help.
        self._refused: set[int] = set()
        #: Files that an earlier download could not get.
        self._failed_before = {
            file_id
            for file_id, record in self.records.known.items()
            if record.state is FileState.FAILED
        }

    def retry_failed(self) -> bool:
        """Let the next increment try the failed files again; return whether there are any."""
        any_failed = bool(self._failed)
        self._failed.clear()
        return any_failed

    def fetch(self) -> list[FileRecord]:
        """Fetch all files of the order that are available now, and verify them.

        Return those that are in place now and were not before. Raises as `download_order` does.
        """
        options = self._options
        with watched(options.last_byte), ended_by(options.stop):
            counter = ProgressCounter(self.order_id, options.on_progress, options.last_byte)
            counter.enter("manifest")
            plan = self._plan()
            if not any(plan):
                return []
            placed_here = len(plan.zipped) + len(plan.to_gather)
            counter.expect(files=len(plan.missing) + placed_here, size_bytes=plan.bytes_total)
            with open_workspace(
                self._directory, self.order_id, durable=options.durable, stop=options.stop
            ) as workspace:
                sizes = [record.size_bytes or 0 for record in plan.missing]
                # A kept zip is one file.
                workspace.require_space(sizes if options.extract else [sum(sizes)])
                context = self._context(plan, workspace, counter)
                outcome: ZipOutcome | None = None
                problems: dict[int, Failure] = {}
                with self._publishing(context.publisher):
                    if takes_zip(plan.wanted, options.way if options.extract else "zip"):
                        counter.enter("zip")
                        outcome = fetch_zip(context)
                    problems, unreleased = _fetch_rest(plan, context, outcome)
                    self._never_released |= unreleased
            counter.enter("done")
            self._note_renamed(context.publisher.renamed)
            return self._result(plan, problems)

    def _note_renamed(self, renamed: Mapping[str, str]) -> None:
        """Keep a text for each file that was in the way and is not touched."""
        for name, instead in renamed.items():
            text = (
                f"order {self.order_id}: {clean(name)} has other content and is kept; the file of "
                f"the archive is {clean(instead)} beside it"
            )
            _log.warning("%s", text)
            self.notes.append(text)

    def _plan(self) -> Plan:
        """Read the manifest, again while the server may still be saving its own state."""
        for _ in looks():
            rows = self._client.iter_available_files(self.order_id)
            try:
                self.records.relist(row for row in rows if row.file_id not in self._never_released)
            except ServiceUnreachableError:
                if is_stopped():
                    raise self._stopped() from None
                raise
            plan = make_plan(self.records, self._options, given_up=self._failed)
            if not plan.unreleased:
                break
        return plan

    def _context(
        self, plan: Plan, workspace: Workspace, counter: ProgressCounter
    ) -> DownloadContext:
        missing = plan.missing
        manifest = Manifest([*missing, *plan.unreleased])
        manifest.close(plan.unreleased)
        zipped = {record.file_id for record in plan.zipped}
        stay = [
            record
            for record in self.records.in_place
            if record.file_id not in zipped and not self.records.is_in_other_place(record)
        ]
        names = FinalNames(
            ((record.file_id, record.name) for record in sorted([*missing, *plan.zipped], key=_id)),
            (path.name for path in paths_of(stay)),
        )
        return DownloadContext(
            client=self._client,
            order_id=self.order_id,
            options=self._options,
            records=self.records,
            manifest=manifest,
            workspace=workspace,
            names=names,
            publisher=Publisher(workspace, self.records, names, counter),
            counter=counter,
        )

    @contextmanager
    def _publishing(self, publisher: Publisher) -> Iterator[None]:
        """Give all verified files their final names at the end of the block, also after errors."""
        try:
            with suppress(PublisherFailedError):  # finish() raises the reason
                yield
            publisher.finish()
        except StoppedError:
            publisher.finish_early()
            publisher.raise_failure()
            raise self._stopped() from None
        except BaseException:
            # Ctrl-C, too: verified files still get their names
            publisher.finish_early()
            raise

    def _stopped(self) -> DownloadError:
        return DownloadError(
            f"the download of order {self.order_id} was stopped; the next one goes on after the "
            f"{counted(len(self.records.placed), 'file')} in place"
        )

    def _result(self, plan: Plan, problems: Mapping[int, Failure]) -> list[FileRecord]:
        """Record what failed, and raise it or return the new files."""
        planned = {record.file_id for record in (*plan.missing, *plan.zipped, *plan.to_gather)}
        if not planned <= self.records.placed:
            # another download of the same order may have fetched them
            self.records.read()
        lost = [record for record in self.records.of(planned) if not record.in_place]
        self.records.placed |= planned - {record.file_id for record in lost}
        placed = self.records.of(self.records.placed)
        if lost:
            self._failed.update(record.file_id for record in lost)
            reasons = {file_id: failure.reason for file_id, failure in problems.items()}
            self._refused.update(
                file_id for file_id, failure in problems.items() if failure.is_refused
            )
            failed = [
                record._replace(
                    path=None, state=FileState.FAILED, error=reasons.get(record.file_id)
                )
                for record in lost
            ]
            self.records.save(failed)
            raise self.incomplete(failed, paths_of(placed))
        return placed

    def incomplete(
        self, failed: Sequence[FileRecord], paths: Sequence[Path]
    ) -> IncompleteDownloadError:
        """Return the error that names the missing files, and until when REGARDS keeps the order."""
        names = Counter(record.name for record in failed)
        missing = {
            record.name if names[record.name] == 1 else f"{record.name} (file {record.file_id})": (
                record.error or "unknown"
            )
            for record in failed
        }
        # Files of earlier calls count, too: the view counts the files of the order.
        n_saved = len(self.records.in_place)
        names_of: dict[str, list[str]] = {}
        for name, why in missing.items():
            names_of.setdefault(why, []).append(clean(name))
        told = list(names_of.items())[:_MAX_SHOWN]
        reasons = [f"{listed(names, most=_MAX_SHOWN)}: {why}" for why, names in told]
        if hidden := len(missing) - sum(len(names) for _, names in told):
            reasons.append(f"and {hidden} more")
        return IncompleteDownloadError(
            f"order {self.order_id}: {not_downloaded(len(failed), n_saved, self._directory)}. "
            f"{'; '.join(reasons)}. {self._advice(failed)}",
            paths=paths,
            missing=missing,
        )

    def _advice(self, failed: Sequence[FileRecord]) -> str:
        """Return what can be done about missing files, and until when REGARDS keeps the order."""
        from regards_nb.orders import GONE  # imported here: it imports msgspec (30 ms)

        n_refused = sum(record.file_id in self._refused for record in failed)
        others = [record for record in failed if record.file_id not in self._refused]
        again = _retry_advice(others, self._failed_before) if others else ""
        try:
            order = self._client.order(self.order_id)
        except ServiceError:
            return again or "They come with a new order: submit()"
        if order.status in GONE:
            return f"REGARDS has deleted them: the order is {order.status}. Submit a new one"
        advice = [again] if again else []
        if n_refused:
            refused = "it" if n_refused == 1 else "them"
            advice.append(
                f"For what the archive refused, retry() has REGARDS prepare {refused} again"
                if "retry" in order.actions
                else "What the archive refused comes with a new order: restart() or submit()"
            )
        if order.expires_at is not None:
            advice.append(f"REGARDS keeps the order until {order.expires_at:%Y-%m-%d %H:%M} UTC")
        return "; ".join(advice)


def not_downloaded(n_missing: int, n_saved: int, folder: Place) -> str:
    """Return how many files are missing, and where the others are if there are any."""
    text = f"{n_missing} of {counted(n_missing + n_saved, 'file')} could not be downloaded"
    if not n_saved:
        return text
    others = f"the other {n_saved} are" if n_saved > 1 else "the other one is"
    return f"{text}; {others} saved in {folder}"


def _retry_advice(failed: Sequence[FileRecord], failed_before: Container[int]) -> str:
    """Return the advice to download again, and whom to tell of what failed before, too."""
    them, they = ("this file", "it") if len(failed) == 1 else ("these files", "they")
    text = f"Call download again to retry {them}"
    if all(record.file_id in failed_before for record in failed):
        text += f"; {they} failed in an earlier download, too: tell the administrator"
    return text


def _fetch_rest(
    plan: Plan, context: DownloadContext, zip_outcome: ZipOutcome | None
) -> tuple[dict[int, Failure], frozenset[int]]:
    """Fetch what the zip did not hold, or everything where there was none.

    Return why files could not be downloaded, by file id, and the ids of files that the server goes
    on listing although they were downloaded and released.
    """
    outcome = zip_outcome or ZipOutcome()
    is_released = not plan.unreleased and not any(map(is_external, plan.wanted))
    if zip_outcome is not None:
        identify(outcome.unlisted_entries, context)
        missing = context.manifest.missing
        # After a complete zip the server knows of each file whether it was sent. A zip that lacks
        # files without a notice was broken off by the server, which then marks no file as
        # downloaded (protocol.md 1.0, 2).
        is_released = outcome.failure is None and (not missing or bool(outcome.notice))
        if missing and not outcome.notice:
            reason = outcome.failure or "it is complete but does not hold them all"
            _log.warning(
                "order %d: fetching %s of the zip one by one: %s",
                context.order_id,
                counted(len(missing), "file"),
                reason,
            )
    if plan.zipped:
        extract_kept_zips(context, plan.zipped)
    if plan.to_gather:
        gather(context, plan.to_gather)
    problems = fetch_missing(context, outcome)
    unreleased = frozenset[int]()
    if not is_released:
        sent = {record.file_id for record in (*plan.wanted, *plan.unreleased)}
        unreleased = release(context, sent - problems.keys())
    return problems, unreleased


def make_plan(
    records: OrderRecords, options: DownloadOptions, *, given_up: Container[int] = ()
) -> Plan:
    """Compare the manifest with the records; files of *given_up* ids are not fetched again."""
    plan = Plan([], [], [], [], [])
    for record in records.of(records.known):
        is_listed = record.file_id in records.listed
        if record.in_place:
            if is_listed:
                plan.unreleased.append(record)
            if options.extract and is_in_zip(record):
                plan.zipped.append(record)
            elif options.gather and records.is_in_other_place(record):
                plan.to_gather.append(record)
        elif is_listed:
            plan.wanted.append(record)
        elif record.file_id not in given_up:
            plan.no_longer_listed.append(record)
    return plan


def takes_zip(records: Sequence[FileRecord], way: Way) -> bool:
    """Return whether these files of a manifest are fetched as a zip."""
    if not records:
        return False
    if way != "auto":
        return way == "zip"
    if any(map(is_external, records)):
        return True
    sizes = [record.size_bytes or 0 for record in records]
    if max(sizes) > _MAX_ZIP_FILE_BYTES:
        return False
    return len(sizes) > _FEW_FILES or sum(sizes) < _LARGE_BYTES * len(sizes)
