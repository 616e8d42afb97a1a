"""When files came in, for the plots.

A file gets its name when it is complete and verified, and is not written to afterwards: the time of
its last change is the time of its arrival. The journal need not keep it a second time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Arrival(NamedTuple):
    """One file that is in place."""

    when: datetime
    order_id: int
    size_bytes: int


def arrivals(files: Any) -> list[Arrival]:
    """Return the files that are in place, the earliest first.

    Parameters
    ----------
    files : pandas.DataFrame
        ``tracker.files``, or some rows of it. Files that were moved away or removed are left out.
    """
    return sorted(_arrivals(files))


def _arrivals(files: Any) -> Iterator[Arrival]:
    known = files[files["path"].notna() & files["order"].notna()]
    for order_id, path in zip(known["order"], known["path"], strict=True):
        try:
            found = Path(path).stat()
        except OSError:
            continue
        yield Arrival(datetime.fromtimestamp(found.st_mtime, UTC), int(order_id), found.st_size)
