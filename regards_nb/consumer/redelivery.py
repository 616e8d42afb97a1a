"""Which redelivered messages are in the journal already. Pure.

RabbitMQ delivers at least once: what was delivered and not acknowledged when a connection ended
comes again, marked ``redelivered``. A message without the mark is always new, even if an equal
one is in the journal: identical bodies are legal (protocol.md 0.7). One with the mark is either
in the journal, or it was still on its way to us when the connection ended.

What tells them apart is the order. A queue hands the messages of one connection (a session of
the journal) over again in the order in which it handed them over first, from some point on, and
what was on its way comes after what had arrived. So the redelivered messages are matched against
the rows of a session as a sequence: where it begins is not known (RabbitMQ may or may not have
seen our last acknowledgements), so each row that looks like the first one is a beginning to be
tried, and the next messages tell which was right. Once the last row has come again, an equal
message is a new one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.events import Delivery
    from regards_nb.journal import Row


class InDoubt:
    """Journalled rows that a new connection may see once more.

    One object serves one connection; the next connection starts with a new one.
    """

    def __init__(self) -> None:
        # By session and properties: among these is the priority, and RabbitMQ keeps the order
        # only among messages of one priority.
        self._lines: dict[tuple[int, str], _Line] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows in journal order, each newer than all before."""
        for row in rows:
            key = (row.session_id, row.delivery.properties)
            self._lines.setdefault(key, _Line()).append(row.id, fingerprint(row.delivery))

    def claim(self, delivery: Delivery) -> bool:
        """Tell whether a redelivered message is in the journal already, and use that row up."""
        mark = fingerprint(delivery)
        lines = [line for (_, kind), line in self._lines.items() if kind == delivery.properties]
        if any(line.goes_on_with(mark) for line in lines):
            return True
        for line in lines:
            if line.jumps_to(mark):
                # What went before this session stood before it in the queue, too.
                for other in lines:
                    other.end_if_before(line)
                return True
        return False


class _Line:
    """Rows of one session that come again in their order, if they do."""

    def __init__(self) -> None:
        self._marks: list[bytes] = []
        self._places: defaultdict[bytes, list[int]] = defaultdict(list)
        #: Where the next message would stand, for each beginning that is still possible; empty
        #: before the first.
        self._next: list[int] = []
        self._first_id: int | None = None
        self._last_id = 0

    def append(self, row_id: int, mark: bytes) -> None:
        if self._first_id is None:
            self._first_id = row_id
        self._last_id = row_id
        self._places[mark].append(len(self._marks))
        self._marks.append(mark)

    def goes_on_with(self, mark: bytes) -> bool:
        """Take the message as the next row, for whichever beginning that fits."""
        fitting = [n + 1 for n in self._next if n < len(self._marks) and self._marks[n] == mark]
        if fitting:
            self._next = fitting
        return bool(fitting)

    def jumps_to(self, mark: bytes) -> bool:
        """Take the message as the first row, or as a later one.

        Rows in between went to another consumer of the queue. When all rows have come, it is new.
        """
        if any(n >= len(self._marks) for n in self._next):
            return False
        first = min(self._next, default=0)
        fitting = [place + 1 for place in self._places.get(mark, ()) if place >= first]
        if fitting:
            self._next = fitting
        return bool(fitting)

    def end_if_before(self, other: _Line) -> None:
        """Expect nothing more, if all rows are older than those of *other*."""
        if other._first_id is not None and self._last_id < other._first_id:
            self._next = [len(self._marks)]


def fingerprint(delivery: Delivery) -> bytes:
    """Digest what does not change when a message is delivered again."""
    digest = hashlib.blake2b(delivery.body, digest_size=16)
    properties = (
        delivery.timestamp_s,
        delivery.correlation_id,
        delivery.tenant,
        delivery.app_id,
        delivery.properties,
    )
    digest.update(repr(properties).encode("utf-8", "backslashreplace"))
    return digest.digest()
