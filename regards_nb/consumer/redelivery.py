"""Which redelivered messages are in the journal already. Pure.

RabbitMQ delivers at least once: what was delivered and not acknowledged when a connection ended
comes again, marked ``redelivered``. A message without the mark is always new, even if an equal
one is in the journal: identical bodies are legal (protocol.md 0.7). One with the mark is either
in the journal, written just before the end, or it was still on its way to us. Three facts tell:

* it must be the same message: same body, same properties, among them the second of publication;
* each journalled row comes again at most once on one connection;
* a queue hands a session's messages over again in the order in which it handed them over first.
  So once a later row of a session has come, its earlier rows do not come any more, and an equal
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
        #: fingerprint → (row id, session id), oldest first
        self._rows: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
        #: session → the newest of its rows that came again
        self._came_again: dict[int, int] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows in journal order, each newer than all before."""
        for row in rows:
            self._rows[fingerprint(row.delivery)].append((row.id, row.session_id))

    def claim(self, delivery: Delivery) -> bool:
        """Tell whether a redelivered message is in the journal already, and use that row up."""
        candidates = self._rows[fingerprint(delivery)]
        for place, (row_id, session_id) in enumerate(candidates):
            if row_id > self._came_again.get(session_id, 0):
                del candidates[place]
                self._came_again[session_id] = row_id
                return True
        return False


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
