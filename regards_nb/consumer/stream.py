"""Decides whether a stream queue continues where the journal ends.

A stream keeps its messages, and the journal holds the offset at which to read on. A stream that was
deleted and made anew has the same name and counts from 0 again: only its messages tell whether the
offset is one of this stream. So each connection first reads the newest journalled message once
more. If another message is at its offset, or none comes, the next connection reads the stream from
its first message on: where it differs from the journal, the new stream begins.

The retention of a stream removes its oldest messages, also while a slow consumer is connected: then
offsets are missing. So they are where RabbitMQ has given them to records of its own. The next
connection tells which: it begins at the newest journalled message, if that is still there.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NoReturn

from regards_nb.errors import BrokerError
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.events import Delivery
    from regards_nb.journal import Journal


class StreamInDoubtError(BrokerError):
    """A stream queue does not continue where the journal ends. The connection must end."""


class StreamMatcher:
    """Compares a stream with the journal, connection after connection.

    ``note(kind, text)`` tells the user the result.
    """

    def __init__(
        self, queue: str, journal: Journal, note: Callable[[str, str | None], None]
    ) -> None:
        self._queue = queue
        self._journal = journal
        self._note = note
        #: whether the next connection begins at the first message
        self._is_in_doubt = False
        #: how many messages the retention may have removed before they were read
        self._removed = 0
        # Of this connection: the newest journalled message and the offset after it, the journalled
        # messages that are compared, by offset, and whether one of them was there.
        self._last: Delivery | None = None
        self._next_offset = 0
        self._known: dict[int, bytes] = {}
        self._is_from_first = True
        self._is_continued = False
        #: the offset after the newest journalled message
        self._expected = 0
        #: the offset from which on some were missing, of this or an earlier connection
        self._missing_from: int | None = None
        self._doubt: StreamInDoubtError | None = None

    def start(self) -> int | None:
        """Return the offset at which a consumer begins; None is the first message."""
        self._doubt = None
        self._known = {}
        self._next_offset = self._journal.next_offset(self._queue) or 0
        self._is_continued = self._is_from_first = not self._next_offset
        self._expected = self._next_offset
        if not self._next_offset:
            return None
        last = self._last = self._journal.last_of_stream(self._queue)
        if last is None or last.stream_offset is None or self._is_in_doubt:
            self._is_from_first = True
            for delivery in self._journal.of_stream(self._queue):
                self._known[delivery.stream_offset or 0] = _identity(delivery)
            return None
        # another kernel may have written since the offset was read
        self._next_offset = self._expected = last.stream_offset + 1
        self._known[last.stream_offset] = _identity(last)
        return last.stream_offset

    def check_silence(self) -> None:
        """Raise StreamInDoubtError if the newest journalled message should have come.

        RabbitMQ delivers nothing from an offset beyond the end of the stream.
        """
        if not self._is_from_first:
            self._begin_doubt()

    def new(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the messages that are not in the journal.

        StreamInDoubtError: the stream must be read from its first message on.
        """
        if self._doubt is not None:
            raise self._doubt
        for position, delivery in enumerate(deliveries):
            offset = delivery.stream_offset or 0
            if offset >= self._next_offset:
                return self._up_to_gap(deliveries[position:])
            if self._known.get(offset) != _identity(delivery):
                if not self._is_from_first:
                    self._begin_doubt()
                self._rewind(offset)
                return deliveries[position:]
            self._is_continued = True
            if offset == self._next_offset - 1:
                self._is_in_doubt = False
        return []

    def confirm(self, written: Sequence[Delivery]) -> None:
        """Store that messages are journalled; StreamInDoubtError if later ones are missing."""
        # RabbitMQ also gives offsets to records of its own, one for each segment of a stream
        removed = (written[0].stream_offset or 0) - self._next_offset
        if removed > 0 and not self._is_continued:
            self._removed += removed
            self._note(
                "removed",
                f"the retention of the stream {self._queue!r} has removed up to "
                f"{counted(self._removed, 'message')} before they were read. tracker.sync() asks "
                "REGARDS for the orders; ask the administrator for a longer retention.",
            )
        self._is_continued = True
        self._is_in_doubt = False
        self._known = {}
        self._expected = (written[-1].stream_offset or 0) + 1
        if self._doubt is not None:
            raise self._doubt

    def _up_to_gap(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the messages before the first missing offset, which is looked at once.

        Each segment of a stream uses one offset for a record of RabbitMQ.
        """
        expected = self._expected if self._is_continued else deliveries[0].stream_offset or 0
        for position, delivery in enumerate(deliveries):
            offset = delivery.stream_offset or 0
            if offset > expected + 1 and expected != self._missing_from:
                self._missing_from = expected
                self._doubt = StreamInDoubtError(
                    f"the stream {self._queue!r} has no messages from offset {expected} to "
                    f"{offset - 1}: the next connection tells whether its retention removed them"
                )
                if not position:
                    raise self._doubt
                return deliveries[:position]
            expected = offset + 1
        return deliveries

    def _begin_doubt(self) -> NoReturn:
        self._is_in_doubt = True
        self._doubt = StreamInDoubtError(
            f"the stream {self._queue!r} does not continue where the journal ends: it is read from "
            "its first message and compared with the journal"
        )
        raise self._doubt

    def _rewind(self, offset: int) -> None:
        if not self._journal.rewind_stream(
            self._queue, next_offset=self._next_offset, last=self._last, to=offset
        ):
            # another kernel has done so or has read on: look again
            self._begin_doubt()
        self._next_offset = offset
        self._is_continued = True
        self._note(
            "anew",
            f"the stream {self._queue!r} was made anew, or set back to an earlier state: its "
            f"messages are new from offset {offset} on.",
        )


def _identity(delivery: Delivery) -> bytes:
    """Return a digest of the parts of a message that are alike at each reading of a stream.

    The other properties do not count: RabbitMQ 4 does not return headers that are lists or tables,
    so an upgrade would make an old message look like another one.
    """
    digest = hashlib.blake2b(delivery.body, digest_size=16)
    properties = (delivery.timestamp_s, delivery.correlation_id, delivery.tenant, delivery.app_id)
    digest.update(repr(properties).encode("utf-8", "backslashreplace"))
    return digest.digest()
