"""Fetching orders while somebody watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regards_nb.tracker.waiting import Wait, stopped_by_user
from regards_nb.tracker.watch import POLL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from regards_nb.orders import OrderState
    from regards_nb.tracker.works import Works


def fetch(
    works: Works,
    view: Any,
    states: Sequence[OrderState],
    *,
    directory: str | Path | None = None,
    extract: bool = True,
) -> list[Path]:
    """Fetch what is ready of some orders in an open view; return all their files."""
    seen = -1
    with works.downloads.together(states, directory=directory, extract=extract) as begun:
        while not begun.done():
            view.refresh(note="downloading")
            seen = works.bell.wait(seen, POLL_S)
    for order_id, error in begun.errors()[1:]:
        works.problems.record(f"downloading order {order_id}", error)
    for _, error in begun.errors()[:1]:
        raise error
    return [path for state in states for path in works.paths(state.order_id)]


def parts(works: Works, watched: Any, new_wait: Callable[[], Wait]) -> Iterator[list[Path]]:
    """Yield the new files of each part of one order, under one view.

    Parameters
    ----------
    works : Works
    watched : OrderTracker
        Whose display is shown.
    new_wait : callable
        Makes the wait for the next part.
    """
    from regards_nb.display import watching

    seen: set[Path] = set()
    with stopped_by_user(), watching(watched, new_wait().found) as view:
        while True:
            (state,) = new_wait().sit_out(view)
            if not state.waits_for_download:
                return
            new = [path for path in fetch(works, view, [state]) if path not in seen]
            seen.update(new)
            if new:
                yield new
