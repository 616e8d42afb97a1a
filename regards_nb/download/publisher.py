"""The step to a final name: on the disk first, then renamed, and nothing is ever replaced.

One thread of its own, so that waiting for the disk holds up neither the network nor the checks.
"""

# Paths are texts here: for very many files, Path objects are what costs.
from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.belt import Belt, BeltStopped
from regards_nb.download.landing import land
from regards_nb.download.syscalls import flush_directory, flush_filesystem
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.download.landing import Landing
    from regards_nb.download.names import FinalNames
    from regards_nb.download.progress import Counter
    from regards_nb.download.records import Records
    from regards_nb.download.staging import Workspace
    from regards_nb.download.wholes import Whole
    from regards_nb.files import FileRecord

#: From so many files on, flushing the whole file system costs less than flushing each.
_MANY_FILES = 32
#: Files that are ready within this time are published together: each flush has its price.
_GATHER_S = 0.25
#: So many files together are enough: they are held in memory meanwhile.
_MAX_BATCH = 1000
#: How much may wait, and what a file takes besides its content.
_WAITING_BYTES, _FILE_BYTES = 2 << 20, 1000
#: How many files without a name are open at a time.
_MAX_OPEN = 256
_READ_BYTES = 1 << 18


class Checked(NamedTuple):
    """Content that was found right."""

    whole: Whole
    #: Which files of the order it is, or holds.
    records: Sequence[FileRecord]
    #: Their state; None where the records say it themselves.
    state: FileState | None
    #: Its final name, where that is not the one of its first record.
    name: str | None = None


class Publisher:
    """Gives checked files their final names and records them.

    Parameters
    ----------
    workspace : Workspace
        Where they are and go.
    records : Records
        Where they are recorded, after they are in place.
    names : FinalNames
        The final names.
    counter : Counter
        Told of each file in place.
    """

    def __init__(
        self, workspace: Workspace, records: Records, names: FinalNames, counter: Counter
    ) -> None:
        self._workspace = workspace
        self._folder = f"{workspace.directory}{os.sep}"
        self._records = records
        self._names = names
        self._counter = counter
        self._failure: BaseException | None = None
        #: Files that :meth:`add_here` gathers.
        self._here: list[Checked] = []
        self._here_since_s = 0.0
        self._belt: Belt[Sequence[Checked]] = Belt(_WAITING_BYTES)
        # A daemon: a kernel that is restarted does not wait for a disk.
        self._thread = threading.Thread(target=self._run, name="regards-nb-publisher", daemon=True)
        self._thread.start()

    def add(self, files: Sequence[Checked]) -> None:
        """Hand over checked files, from any thread.

        Raises
        ------
        BeltStopped
            Publishing has failed; :meth:`finish` says why.
        """
        if files:
            held_bytes = sum(len(file.whole.data) for file in files)
            self._belt.put(files, held_bytes + _FILE_BYTES * len(files))

    def add_here(self, files: Sequence[Checked]) -> None:
        """Take checked files and publish them in this thread, some at a time.

        For very many small files: what is done in Python for each cannot run beside other Python,
        and changing threads for each costs more than it gains.
        """
        if not self._here:
            self._here_since_s = time.monotonic()
        self._here += files
        is_old = time.monotonic() > self._here_since_s + _GATHER_S
        if len(self._here) >= _MAX_BATCH or is_old:
            self.publish_here()

    def publish_here(self) -> None:
        """Publish what was gathered in this thread."""
        batch, self._here = self._here, []
        if batch:
            self._publish_together(batch)

    def finish(self) -> None:
        """Return when all is in place and recorded, or raise why it cannot be."""
        self._belt.end()
        self._thread.join()
        self.publish_here()
        if self._failure is not None:
            raise self._failure

    def give_up(self) -> None:
        """Let what was handed over get into place, after something else went wrong."""
        with suppress(Exception):
            self.finish()

    def _run(self) -> None:
        try:
            for first in self._belt:
                self._publish_together(self._gather(first))
        except BaseException as exc:  # noqa: BLE001 - not swallowed: finish() raises it
            self._failure = exc
            self._belt.stop()

    def _gather(self, first: Sequence[Checked]) -> list[Checked]:
        """Add what else is ready in a moment."""
        batch = list(first)
        until_s = time.monotonic() + _GATHER_S
        try:
            while len(batch) < _MAX_BATCH and (left_s := until_s - time.monotonic()) > 0:
                batch += self._belt.take(left_s) or ()
        except BeltStopped:
            pass
        return batch

    def _publish_together(self, batch: Sequence[Checked]) -> None:
        placed: list[FileRecord] = []
        try:
            with self._workspace.errors():
                for start in range(0, len(batch), _MAX_OPEN):
                    self._publish_group(batch[start : start + _MAX_OPEN], placed)
                if self._workspace.durable:
                    flush_directory(str(self._workspace.directory))
        finally:
            # also when one failed: the others have their names now
            self._records.save(placed)
            verified = sum(record.state is FileState.VERIFIED for record in placed)
            self._counter.add_files(len(placed), verified=verified)

    def _publish_group(self, group: Sequence[Checked], placed: list[FileRecord]) -> None:
        landings: list[Landing] = []
        try:
            landings += (land(file.whole, self._workspace) for file in group)
            if self._workspace.durable:
                self._flush(landings)
            for file, landing in zip(group, landings, strict=True):
                placed += self._publish(file, landing)
        finally:
            for landing in landings:
                landing.close()

    def _flush(self, landings: Sequence[Landing]) -> None:
        """Make sure the content is on the disk: after a power cut a name must not be empty."""
        if len(landings) >= _MANY_FILES and _flush_all(str(self._workspace.staging)):
            return
        for landing in landings:
            landing.flush()

    def _publish(self, file: Checked, landing: Landing) -> list[FileRecord]:
        first, whole = file.records[0], file.whole
        name = file.name or self._names.choose(first.file_id, first.name)
        while not landing.take_name(path := self._folder + name):
            # Another download may have put the same there, or the user something else.
            if has_content(path, whole.size_bytes, whole.md5):
                landing.drop()
                break
            name = self._names.choose_another(name)
        if file.state is None:
            return [replace(record, path=path, error=None) for record in file.records]
        return [
            replace(record, path=path, size_bytes=whole.size_bytes, state=file.state, error=None)
            for record in file.records
        ]


def _flush_all(directory: str) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return flush_filesystem(descriptor)
    finally:
        os.close(descriptor)


def has_content(path: str, size_bytes: int, md5: str) -> bool:
    """Whether a plain file has this size and MD5; a link to one does not count."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        descriptor = os.open(path, flags)
    except OSError:
        return False
    digest = hashlib.md5(usedforsecurity=False)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if os.fstat(descriptor).st_size != size_bytes:
            return False
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest() == md5
