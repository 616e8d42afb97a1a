"""One zip, read in one pass while it arrives: network | inflate and CRC-32 | MD5 and write.

Three threads, because each of these releases Python's lock for most of its time. The middle one is
the caller's own: that is where Ctrl-C arrives and where progress is reported. Of very many tiny
files nearly all the time is Python's: there the caller's thread does the writing as well.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.belt import Belt, BeltStopped
from regards_nb.download.extract import Extractor
from regards_nb.download.plan import are_tiny
from regards_nb.download.tools import StoppedError
from regards_nb.download.zipcopy import ZipCopy
from regards_nb.download.zipstream import read_zip
from regards_nb.errors import ArchiveError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regards_nb.client import Body
    from regards_nb.download.tools import Tools
    from regards_nb.download.wholes import Whole
    from regards_nb.download.zipstream import Piece

#: What may wait between the threads.
_ARRIVED_BYTES, _INFLATED_BYTES = 1 << 20, 2 << 20
#: Small pieces change threads together: up to so many bytes, or so many pieces.
_BATCH_BYTES, _BATCH_PIECES = 1 << 18, 256
#: What a piece takes besides its data.
_PIECE_BYTES = 300
#: How long a thread that reads from a dead connection is waited for.
_JOIN_S = 5.0


class ZipOutcome(NamedTuple):
    """What one zip brought besides files."""

    #: Why it is not proven to be complete; None if it is.
    failure: ArchiveError | ServiceError | None
    #: What the server says of files that it could not send, by name.
    notice: dict[str, str]
    #: Entries that the manifest does not list.
    unknown: list[Whole]
    #: Why entries were not what the manifest says, by file id.
    wrong: dict[int, str]


def fetch_zip(tools: Tools) -> ZipOutcome:
    """Fetch what is available as one zip; checked files go to the publisher.

    A zip that is cut or cannot be trusted is no error here: what was checked before stays, and
    the outcome says what happened.

    Raises
    ------
    ServiceError
        There was no zip at all.
    WorkspaceError
        It cannot be written.
    StoppedError
        ``tools.stop`` was set.
    """
    alone = are_tiny(tools.manifest.open)
    publisher = tools.publisher
    extractor = Extractor(
        tools.manifest,
        tools.workspace,
        publisher.add_here if alone else publisher.add,
        tools.counter,
        keeps_files=tools.extract,
    )
    with tools.client.open_zip(tools.order_id, stop=tools.stop) as body:
        if body is None:  # nothing is available any more: another download was faster
            return ZipOutcome(None, {}, [], {})
        copy = None if tools.extract else ZipCopy(tools.workspace)
        try:
            run = _Pass(body, extractor, tools, copy)
            failure = run.in_two_threads() if alone else run.in_three_threads()
            notice = extractor.finish(proven=failure is None)
            publisher.publish_here()
        finally:
            extractor.close()
            if copy is not None:
                copy.close()
    if copy is not None and extractor.packed:
        if failure is None:
            publisher.add([copy.checked(tools.order_id, extractor.packed)])
        else:
            tools.manifest.reopen(extractor.packed)
    return ZipOutcome(failure, notice, extractor.unknown, extractor.wrong)


class _Pass:
    """The three threads of one zip."""

    def __init__(
        self, body: Body, extractor: Extractor, tools: Tools, copy: ZipCopy | None
    ) -> None:
        self._body = body
        self._copy = copy
        self._extractor = extractor
        self._tools = tools
        self._blocks: Belt[bytes] = Belt(_ARRIVED_BYTES)
        self._pieces: Belt[Sequence[Piece]] = Belt(_INFLATED_BYTES)
        self._read_failure: BaseException | None = None
        self._write_failure: BaseException | None = None

    def in_three_threads(self) -> ArchiveError | ServiceError | None:
        """Return when everything that arrived was extracted; say why that is not all."""
        writer = _start("writer", self._write)

        def hand_over(pieces: Sequence[Piece], size_bytes: int) -> None:
            self._pieces.put(pieces, size_bytes)

        try:
            failure = self.in_two_threads(hand_over)
        finally:
            # Also after Ctrl-C: what is inflated is still checked and kept.
            self._pieces.end()
            writer.join()
        if self._write_failure is None:
            return failure
        if isinstance(self._write_failure, ArchiveError):
            return self._write_failure
        raise self._write_failure

    def in_two_threads(
        self, hand_over: Callable[[Sequence[Piece], int], None] | None = None
    ) -> ArchiveError | ServiceError | None:
        """Do the same with the writer's work done here too, unless there is *hand_over*."""
        reader = _start("reader", self._read)
        failure: ArchiveError | None = None
        try:
            self._inflate(hand_over or (lambda pieces, _: self._extractor.take(pieces)))
        except ArchiveError as exc:
            failure = exc
        except BeltStopped:
            pass  # the writer has ended, and knows why
        finally:
            self._blocks.stop()
            if reader.is_alive():
                self._body.abort()
            reader.join(_JOIN_S)
        if failure is None or self._read_failure is None:
            return failure
        # the zip is cut because the connection broke
        if isinstance(self._read_failure, ServiceError):
            return self._read_failure
        raise self._read_failure

    def _read(self) -> None:
        """Take the bytes from the network; runs in the reader."""
        try:
            for block in self._body.blocks():
                self._blocks.put(block, len(block))
        except BeltStopped:
            pass  # the zip is not read further
        except BaseException as exc:  # noqa: BLE001 - not swallowed: run() judges it
            self._read_failure = exc
        self._blocks.end()

    def _write(self) -> None:
        """Hand the pieces to the extractor; runs in the writer."""
        try:
            for pieces in self._pieces:
                self._extractor.take(pieces)
        except BaseException as exc:  # noqa: BLE001 - not swallowed: run() judges it
            self._write_failure = exc
            self._pieces.stop()

    def _inflate(self, take: Callable[[Sequence[Piece], int], None]) -> None:
        """Turn blocks into pieces; runs in the caller's thread."""
        batch: list[Piece] = []
        batch_bytes = 0

        def hand_over() -> None:
            nonlocal batch, batch_bytes
            if batch:
                pieces, size_bytes = batch, batch_bytes + _PIECE_BYTES * len(batch)
                batch, batch_bytes = [], 0
                take(pieces, size_bytes)

        blocks = self._arriving(hand_over)
        for piece in read_zip(self._copy.passing(blocks) if self._copy else blocks):
            batch.append(piece)
            batch_bytes += len(piece.data)
            if batch_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_PIECES:
                hand_over()
        hand_over()

    def _arriving(self, before_waiting: Callable[[], None]) -> Iterator[bytes]:
        """Yield the blocks; while none comes, nothing is held back."""
        stop, counter = self._tools.stop, self._tools.counter
        while True:
            if stop.is_set():
                raise StoppedError("stopped before its end")
            counter.report()
            if self._blocks.is_empty:
                before_waiting()
            try:
                block = self._blocks.take()
            except BeltStopped:
                return
            if block is not None:
                yield block


def _start(role: str, target: Callable[[], None]) -> threading.Thread:
    # daemons: a kernel that is restarted does not wait for the network
    thread = threading.Thread(target=target, name=f"regards-nb-zip-{role}", daemon=True)
    thread.start()
    return thread
