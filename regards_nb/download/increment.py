"""One increment of an order: everything that is available now, and what earlier ones lacked.

Manifest first, recorded; then the zip in one pass or the files one by one; then, one by one, what
the zip lacked; and at the end the server must know that it may go on.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.download.belt import BeltStopped
from regards_nb.download.course import SETTLING_S, Course, fetch_planned
from regards_nb.download.matching import Manifest
from regards_nb.download.names import FinalNames
from regards_nb.download.plan import make_plan
from regards_nb.download.progress import Counter
from regards_nb.download.publisher import Publisher
from regards_nb.download.records import Records
from regards_nb.download.staging import Workspace
from regards_nb.download.table import Mark
from regards_nb.download.tools import StoppedError, Tools
from regards_nb.errors import DownloadError, IncompleteDownloadError
from regards_nb.files import FileState
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from regards_nb.client import RegardsClient
    from regards_nb.download.plan import Plan, Way
    from regards_nb.download.progress import Progress
    from regards_nb.download.records import FileLog
    from regards_nb.files import FileRecord

#: How many missing files an error names; it holds all of them.
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadResult:
    """What one increment brought."""

    order_id: int
    #: Files that are in place now and were not before.
    records: Sequence[FileRecord]
    #: The server had nothing that was not here already.
    nothing_new: bool
    #: What went wrong on the way and was made good.
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where these files are."""
        return paths_of(self.records)


def paths_of(records: Iterable[FileRecord]) -> tuple[Path, ...]:
    """Return the path of each file once, in the order of the records."""
    return tuple(Path(path) for path in dict.fromkeys(record.path for record in records) if path)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """How files are downloaded.

    Parameters
    ----------
    on_progress : callable, optional
        Called with a :class:`Progress` a few times per second, in the thread of the caller.
    stop : threading.Event
        Set it to end the download; verified files stay.
    extract : bool
        False: keep the zip as one file instead of the files in it.
    way : {"auto", "zip", "files"}
        One zip, the files one by one, or whichever suits these files.
    restore_removed : bool
        Also fetch files again that were verified earlier and are not in the directory any more.
    durable : bool
        False: do not wait for the disk. Files are then complete also after the program is killed,
        but not necessarily after a power cut.
    backoff_s : float
        Unit of the random waits before something is tried again.
    """

    on_progress: Callable[[Progress], object] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    extract: bool = True
    way: Way = "auto"
    restore_removed: bool = False
    durable: bool = True
    backoff_s: float = 1.0


class Downloader:
    """Fetches what is available of one order, as often as it is asked to.

    Parameters
    ----------
    client : RegardsClient
        The REST side.
    order_id : int
        The order.
    directory : str or pathlib.Path
        Where the files go, under their own names; made if it is missing.
    log : FileLog
        Where the files are recorded; what it calls verified is not fetched again.
    options : DownloadOptions, optional
        How.
    """

    def __init__(
        self,
        client: RegardsClient,
        order_id: int,
        directory: str | Path,
        log: FileLog,
        options: DownloadOptions | None = None,
    ) -> None:
        options = options or DownloadOptions()
        self._client = client
        self.order_id = order_id
        self._directory = Path(directory).expanduser().absolute()
        self._on_progress = options.on_progress
        self._stop = options.stop
        self._extract = options.extract
        self._way: Way = options.way if options.extract else "zip"
        self._durable = options.durable
        self._backoff_s = options.backoff_s
        self.records = Records(
            log, order_id, self._directory, restore_removed=options.restore_removed
        )
        #: Files that the server goes on listing although all was done to show it that they came.
        self._hopeless: set[int] = set()
        #: Files that could not be had; not tried again before :meth:`forgive`.
        self._failed: set[int] = set()

    def forgive(self) -> bool:
        """Try at the next increment again what could not be had so far, if there is anything."""
        any_failed = bool(self._failed)
        self._failed.clear()
        return any_failed

    def fetch(self) -> DownloadResult:
        """Fetch all files of the order that are available now, and verify them.

        Returns
        -------
        DownloadResult
            The files, all verified where the manifest gives an MD5.

        Raises
        ------
        IncompleteDownloadError
            Some files could not be had; the others are in place.
        WorkspaceError
            The directory is full or cannot be written to.
        ServiceError
            The REST side does not answer, or refuses.
        DownloadError
            It was stopped.
        """
        counter = Counter(self.order_id, self._on_progress)
        counter.enter("manifest")
        plan = self._plan()
        if not plan.missing and not plan.unreleased:
            return DownloadResult(order_id=self.order_id, records=(), nothing_new=True)
        counter.expect(files=len(plan.missing), size_bytes=plan.bytes_total)
        with Workspace(self._directory, self.order_id, durable=self._durable) as workspace:
            workspace.require_space(plan.known_bytes)
            course = self._carry_out(plan, self._tools(plan, workspace, counter))
        counter.enter("done")
        self._hopeless |= course.unreleased
        return self._concluded(plan, course)

    def _carry_out(self, plan: Plan, tools: Tools) -> Course:
        course = Course({}, (), frozenset())
        try:
            course = fetch_planned(plan, tools, self._way)
        except BeltStopped:
            pass  # the publisher has failed: finish() raises why
        except StoppedError:
            tools.publisher.finish()
            raise DownloadError(
                f"the download of order {self.order_id} was stopped; "
                f"{len(self.records.came)} files are in place, and the next download goes on "
                "from there"
            ) from None
        except BaseException:
            # Ctrl-C among them: what is verified still gets its name
            tools.publisher.give_up()
            raise
        tools.publisher.finish()
        return course

    def _plan(self) -> Plan:
        """Read the manifest, again while the server may still be saving what it has sent."""
        for pause_s in (*SETTLING_S, None):
            rows = self._client.iter_available_files(self.order_id, stop=self._stop)
            self.records.relist(row for row in rows if row.file_id not in self._hopeless)
            plan = make_plan(self.records.table, given_up=self._failed)
            if not plan.unreleased or pause_s is None or self._stop.wait(pause_s):
                break
        return plan

    def _tools(self, plan: Plan, workspace: Workspace, counter: Counter) -> Tools:
        missing = plan.missing
        manifest = Manifest(missing)
        manifest.add(plan.unreleased)
        manifest.close(plan.unreleased)
        taken = self.records.files.in_place.final_names
        names = FinalNames(zip(missing.ids, missing.names, strict=True), taken)
        return Tools(
            client=self._client,
            order_id=self.order_id,
            records=self.records,
            manifest=manifest,
            workspace=workspace,
            names=names,
            publisher=Publisher(workspace, self.records, names, counter),
            counter=counter,
            stop=self._stop,
            extract=self._extract,
            backoff_s=self._backoff_s,
        )

    def _concluded(self, plan: Plan, course: Course) -> DownloadResult:
        """Record what failed, and say how it went."""
        lost = plan.missing.missing
        if lost:
            # another download of the same order may have got them
            self.records.read()
            self.records.table.mark(Mark.CAME, lost.in_place.ids)
            lost = lost.missing
        placed = self.records.came
        if lost:
            self._failed.update(lost.ids)
            whys = course.problems
            failed = [
                replace(record, path=None, state=FileState.FAILED, error=whys.get(record.file_id))
                for record in lost
            ]
            self.records.save(failed)
            raise incomplete(self.order_id, paths_of(placed), failed)
        return DownloadResult(
            order_id=self.order_id, records=placed, nothing_new=not placed, notes=course.notes
        )


def incomplete(
    order_id: int, paths: Sequence[Path], failed: Sequence[FileRecord]
) -> IncompleteDownloadError:
    """Return the error that names what is missing."""
    names = Tally(record.name for record in failed)
    missing = {
        record.name if names[record.name] == 1 else f"{record.name} (file {record.file_id})": (
            record.error or "unknown"
        )
        for record in failed
    }
    others = "the others are in place. " if paths else ""
    shown = [f"{clean(name)}: {why}" for name, why in list(missing.items())[:_MAX_SHOWN]]
    more = len(missing) - len(shown)
    total = len(failed) + len(paths)
    return IncompleteDownloadError(
        f"order {order_id}: {len(failed)} of {total} files could not be had; {others}"
        f"{'; '.join(shown)}{f'; and {more} more' if more else ''}. Download again to try "
        "these once more",
        paths=paths,
        missing=missing,
    )
