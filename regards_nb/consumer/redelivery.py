"""Decides which redelivered messages are in the journal already. Pure.

RabbitMQ delivers at least once: a message that was not acknowledged when its connection ended is
delivered again, with the flag ``redelivered``. A message without the flag is always new, even if
an equal one is in the journal: identical bodies are legal (protocol.md 0.7). A message with the
flag is either in the journal, or the earlier connection ended before we received it.

The order of the messages tells which. A queue delivers the messages of one connection (a session
of the journal) again in the order of their first delivery, from some message on, and the messages
that we had not received come after those that we had. So redelivered messages are compared with
the rows of a session as a sequence. The first row of the sequence is not known, because RabbitMQ
may or may not have processed our last acknowledgements: every row equal to the first redelivered
message is a candidate start, and the next messages rule candidates out. After the last row of a
session, an equal message is new.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.events import Delivery
    from regards_nb.journal import Row


class RedeliveryMatcher:
    """Compares redelivered messages with journalled rows that RabbitMQ may deliver again.

    Each connection uses a new matcher.
    """

    def __init__(self) -> None:
        # By session and properties. The properties include the priority, and RabbitMQ keeps the
        # order only among messages of one priority.
        self._sequences: dict[tuple[int, str], _RowSequence] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows in journal order, each newer than all earlier ones."""
        for row in rows:
            key = (row.session_id, row.delivery.properties)
            sequence = self._sequences.setdefault(key, _RowSequence())
            sequence.append(row.id, fingerprint(row.delivery))

    def claim(self, delivery: Delivery) -> bool:
        """Return whether a redelivered message is in the journal; each row is used once."""
        mark = fingerprint(delivery)
        sequences = [
            sequence
            for (_, properties), sequence in self._sequences.items()
            if properties == delivery.properties
        ]
        if any(sequence.continues_with(mark) for sequence in sequences):
            return True
        for sequence in sequences:
            if sequence.jumps_to(mark):
                # The queue held the messages of older sessions before those of this one.
                for other in sequences:
                    other.end_if_older_than(sequence)
                return True
        return False


class _RowSequence:
    """Rows of one session, in the order in which RabbitMQ delivers them again."""

    def __init__(self) -> None:
        self._marks: list[bytes] = []
        self._positions: defaultdict[bytes, list[int]] = defaultdict(list)
        #: The position of the next message, for each candidate start; empty before the first.
        self._next: list[int] = []
        self._first_id: int | None = None
        self._last_id = 0

    def append(self, row_id: int, mark: bytes) -> None:
        if self._first_id is None:
            self._first_id = row_id
        self._last_id = row_id
        self._positions[mark].append(len(self._marks))
        self._marks.append(mark)

    def continues_with(self, mark: bytes) -> bool:
        """Match the message with the next row of each candidate; drop the other candidates."""
        fitting = [n + 1 for n in self._next if n < len(self._marks) and self._marks[n] == mark]
        if fitting:
            self._next = fitting
        return bool(fitting)

    def jumps_to(self, mark: bytes) -> bool:
        """Match the message with the first row of a sequence, or with a later row.

        RabbitMQ delivered the rows in between to another consumer of the queue. After the last
        row a message is new.
        """
        if any(n >= len(self._marks) for n in self._next):
            return False
        first = min(self._next, default=0)
        fitting = [position + 1 for position in self._positions.get(mark, ()) if position >= first]
        if fitting:
            self._next = fitting
        return bool(fitting)

    def end_if_older_than(self, other: _RowSequence) -> None:
        """Match nothing any more if all rows are older than those of *other*."""
        if other._first_id is not None and self._last_id < other._first_id:
            self._next = [len(self._marks)]


def fingerprint(delivery: Delivery) -> bytes:
    """Return a digest of everything that stays the same when a message is delivered again."""
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
