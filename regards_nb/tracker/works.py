"""What a tracker is made of, for the parts that work on it together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.frames import Frames
    from regards_nb.journal import Journal
    from regards_nb.orders import OrderKey, OrderState
    from regards_nb.tracker.bell import Bell
    from regards_nb.tracker.downloads import Downloads
    from regards_nb.tracker.problems import Problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """The journal, what is read from it, and what runs beside it. Knows no tracker."""

    journal: Journal
    frames: Frames
    bell: Bell
    problems: Problems
    downloads: Downloads

    def states(self, keys: Iterable[OrderKey] | None = None) -> list[OrderState]:
        """Return what is known of some orders, or of all, with their running downloads."""
        return [self._with_download(state) for state in self.frames.states(keys)]

    def state(self, key: OrderKey) -> OrderState:
        """Return what is known of one order."""
        (state,) = self.states([key])
        return state

    def paths(self, order_id: int | None) -> list[Path]:
        """Return the files of an order that are in place."""
        records = [] if order_id is None else self.frames.files_of(order_id)
        return [Path(record.path) for record in records if record.path is not None]

    def _with_download(self, state: OrderState) -> OrderState:
        """Add to the state of an order that of its running download."""
        if state.order_id is None or not self.downloads.is_running(state.order_id):
            return state
        progress = self.downloads.progress(state.order_id)
        state = replace(state, downloading=True, waits_for_download=False)
        if progress is None:
            return state
        return replace(
            state,
            downloaded_files=max(state.downloaded_files, progress.files_done),
            downloaded_bytes=max(state.downloaded_bytes, progress.bytes_done),
            bytes_total=progress.bytes_total or state.bytes_total,
        )
