"""Entries of a zip become checked files, each as soon as it is whole.

A file whose MD5 is that of the manifest is handed on at once: no later damage of the zip can make
it wrong. What the manifest gives no MD5 for waits until the whole zip is proven and its notice
does not name it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regards_nb.download.matching import Verdict
from regards_nb.download.notice import NOTICE_NAME, parse_notice
from regards_nb.download.publisher import Checked
from regards_nb.download.wholes import Growing, Whole, damaged, whole_in_memory
from regards_nb.errors import ArchiveError
from regards_nb.files import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from regards_nb.download.matching import Manifest
    from regards_nb.download.progress import Counter
    from regards_nb.download.staging import Workspace
    from regards_nb.download.zipstream import Piece
    from regards_nb.files import FileRecord

#: A zip may hold so many times the files of the manifest, and so many more.
_MAX_ENTRIES_FACTOR, _MAX_ENTRIES_MORE = 2, 1000


class Extractor:
    """Takes the pieces of one zip, in one thread.

    Parameters
    ----------
    manifest : Manifest
        What is expected.
    workspace : Workspace
        Where it is staged.
    hand_on : callable
        Takes what is checked.
    counter : Counter
        Told of the bytes.
    keeps_files : bool
        False: entries are only checked, because the zip is kept as it is.

    Attributes
    ----------
    unknown : list of Whole
        Entries that the manifest does not list, staged; once the zip is proven.
    packed : list of FileRecord
        Files that are right and stay in the zip.
    wrong : dict of int to str
        Files whose entries were not right, by file id, and why.
    """

    def __init__(
        self,
        manifest: Manifest,
        workspace: Workspace,
        hand_on: Callable[[Sequence[Checked]], None],
        counter: Counter,
        *,
        keeps_files: bool,
    ) -> None:
        self._manifest = manifest
        self._workspace = workspace
        self._take_checked = hand_on
        self._counter = counter
        self._keeps_files = keeps_files
        self._growing: Growing | None = None
        self._arrived_bytes = 0
        self._checked: list[Checked] = []
        self._plausible: list[tuple[Whole, FileRecord]] = []
        self._notice: Whole | None = None
        self._max_entries = _MAX_ENTRIES_FACTOR * len(manifest) + _MAX_ENTRIES_MORE
        self.unknown: list[Whole] = []
        self.packed: list[FileRecord] = []
        self.wrong: dict[int, str] = {}

    def take(self, pieces: Iterable[Piece]) -> None:
        """Take pieces, in the order of the zip.

        Raises
        ------
        ArchiveError
            It holds much more than the manifest says.
        WorkspaceError
            They cannot be written.
        """
        self._arrived_bytes = 0
        with self._workspace.errors():
            for piece in pieces:
                self._take(piece)
        self._counter.add_bytes(self._arrived_bytes)
        self._hand_on()

    def _take(self, piece: Piece) -> None:
        self._arrived_bytes += len(piece.data)
        whole = self._grown(piece)
        if self._notice is not None:
            # not the last entry: so it was a file of that name
            self._judge(self._notice)
            self._notice = None
        if whole is None:
            return
        if whole.name == NOTICE_NAME and whole.path is None:
            self._notice = whole
        else:
            self._judge(whole)

    def _hand_on(self) -> None:
        checked, self._checked = self._checked, []
        self._take_checked(checked)

    def finish(self, *, proven: bool) -> dict[str, str]:
        """Decide what had to wait for the end, and return what the notice says, by file name.

        Parameters
        ----------
        proven : bool
            The zip was read to its end and everything agreed.
        """
        notice = parse_notice(self._notice.data) if proven and self._notice else None
        with self._workspace.errors():
            self._decide(notice or {}, proven=proven, is_notice=notice is not None)
        self._hand_on()
        if not proven or not self._keeps_files:
            # nothing was marked, so they come again; or they are in the zip that is kept
            for whole in self.unknown:
                whole.discard()
            self.unknown.clear()
        return notice or {}

    def _decide(self, notice: dict[str, str], *, proven: bool, is_notice: bool) -> None:
        if self._notice is not None and not is_notice:
            self._judge(self._notice)
        for whole, record in self._plausible:
            if not proven or record.name in notice:
                whole.discard()
                self._manifest.reopen([record])
            else:
                self._accept(whole, [record], FileState.UNVERIFIED)
        self._recognise_unknown()

    def close(self) -> None:
        """Forget an entry that will never be whole."""
        if self._growing is not None:
            self._growing.discard()
            self._growing = None

    def _grown(self, piece: Piece) -> Whole | None:
        """Add a piece to its entry; return the entry when it is whole and undamaged."""
        growing = self._growing
        if growing is None:
            name = piece.entry.name
            if piece.entry.number >= self._max_entries:
                raise ArchiveError("the zip has many more entries than the order has files")
            if piece.last and piece.damage is None:
                return whole_in_memory(name, piece.data)
            workspace = self._workspace if self._keeps_files else None
            growing = Growing(name, self._manifest.limit_bytes(name), workspace)
            self._growing = growing
        growing.add(piece.data)
        if not piece.last:
            return None
        self._growing = None
        if piece.damage is None:
            return growing.end()
        growing.discard()
        meant = self._manifest.named(growing.name)
        self._blame(meant, piece.damage)
        if not meant:
            self.unknown.append(damaged(growing.name))
        return None

    def _judge(self, whole: Whole) -> None:
        """Find out what an entry is, and keep it or not."""
        verdict, records = self._manifest.match(whole.name, whole.size_bytes, whole.md5)
        if verdict is Verdict.VERIFIED and records:
            self._accept(whole, records, FileState.VERIFIED)
        elif verdict is Verdict.PLAUSIBLE:
            self._plausible.append((self._kept(whole), records[0]))
        elif verdict is Verdict.UNKNOWN:
            self.unknown.append(self._kept(whole))
        else:
            # wrong, or there already
            whole.discard()
            self._counter.add_bytes(-whole.size_bytes)
        if verdict is Verdict.WRONG:
            self._blame(records, f"the zip held other content ({whole.size_bytes} bytes)")

    def _recognise_unknown(self) -> None:
        """Match what has a name that nobody knows by its content."""
        candidates, self.unknown = self.unknown, []
        matched = self._manifest.match_contents([whole.md5 for whole in candidates])
        for whole, record in zip(candidates, matched, strict=True):
            if record is None:
                self.unknown.append(whole)
            else:
                self._accept(whole, [record], FileState.VERIFIED)

    def _accept(self, whole: Whole, records: Sequence[FileRecord], state: FileState) -> None:
        """Keep an entry that is right."""
        if not self._keeps_files:
            size_bytes = whole.size_bytes
            self.packed += [replace(r, size_bytes=size_bytes, state=state) for r in records]
            return
        self._checked.append(Checked(whole, records, state))

    def _kept(self, whole: Whole) -> Whole:
        """Move an entry that has to wait out of the memory."""
        if not self._keeps_files:
            return whole._replace(data=b"")
        return whole._replace(data=b"", path=whole.staged(self._workspace))

    def _blame(self, records: Iterable[FileRecord], why: str) -> None:
        self.wrong.update((record.file_id, why) for record in records)
