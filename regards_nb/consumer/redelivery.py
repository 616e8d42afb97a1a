"""Decides which of the delivered messages repeat one that is in the journal already.

`RedeliveryMatcher` decides for the messages of a queue, `StreamMatcher` for those of a stream.

**Queues**

RabbitMQ delivers at least once: a message that was not acknowledged when its connection ended is
delivered again, with the flag ``redelivered``. Equal bytes do not prove a repetition: identical
bodies are legal (protocol.md 0.7). There are three cases.

**A flagged message that another session received** (a session is one connection in the journal).
It is in the journal, or that connection ended before the message was received. The order tells
which. A queue delivers the messages of one session again in the order of their first delivery,
from some message on, and the messages that were not received come after those that were. So
flagged messages are compared with the rows of a session as a sequence. The first row of the
sequence is not known, because RabbitMQ may or may not have processed the last acknowledgements:
every row equal to the first message is a candidate start, and the next messages rule candidates
out. If the rows are A B A C and the messages A C, then the first and the third row are candidates,
and C leaves the third. After the last row of a session, an equal message is new.

A quorum queue puts returned messages behind those that were returned before. A connection that ends
soon takes a few of them and returns them to the end: these come after the last row, with a higher
``x-delivery-count``. Where several kernels share a queue, one of them can fail before it writes
what came again: its part goes to another one, behind later rows. So a message that was returned
more than once, or to which REGARDS sends no equal one, is compared with all rows of other sessions
that were not matched, in any place.

**A flagged message that this session received before.** When the link between two nodes of a
cluster breaks, a quorum queue delivers its unacknowledged messages again on the same open channel:
all of them, in their order, from the first one that it does not know as acknowledged. Each return
increments their ``x-delivery-count``. A message with a higher count than an equal message of this
session is that message again, if it can be the first of them or follows one of them, or if REGARDS
sends no equal one: another consumer of the queue may have taken the first ones. Otherwise it is
another message, which another program has taken and put back.

**A message without the flag** is new, unless another session has journalled an equal message with
the flag since this session began: then this process was suspended, RabbitMQ gave its messages to
another kernel, and the message here is the first delivery of the same message.

**Streams**

A stream marks nothing as redelivered. It keeps its messages, and the journal holds the offset at
which to read on: messages before it are known (`unseen_offsets` of the journal leaves them out,
also those that another kernel has written). A stream that was deleted and made anew has the same
name and counts from 0 again: only its messages tell whether the offset is one of this stream. So
each connection first reads the newest journalled message once more. If another message is at its
offset, or none comes, the next connection reads the stream from its first message on: where it
differs from the journal, the new stream begins.

The retention of a stream removes its oldest messages, also while a slow consumer is connected: then
offsets are missing. They are also missing where RabbitMQ has given them to records of its own. The
next connection tells which: it begins at the newest journalled message, if that is still there.
"""

from __future__ import annotations

import hashlib
import json
from bisect import insort
from collections import Counter, defaultdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NoReturn

from regards_nb.errors import BrokerError
from regards_nb.events import OrderStatus, Rejection, decode
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from regards_nb.events import Delivery
    from regards_nb.journal import Journal, Row

#: How many messages of this session can be delivered again on its channel. RabbitMQ returns those
#: that it does not know as acknowledged: at most the prefetch limit, and as many acknowledgements
#: may still be on their way through the cluster.
MAX_REDELIVERABLE_OWN = 8000

#: An order reaches each of these statuses at most once within a second.
_SENT_ONCE = frozenset(OrderStatus) - {OrderStatus.SUBORDER_DONE}


# -- queues


class RedeliveryMatcher:
    """Compares the messages of one session with the rows that RabbitMQ may deliver again.

    A session uses one matcher. For each batch, `revert_uncommitted` comes first, then rows are
    added, then `new` decides; `confirm` says that the decisions are committed.
    """

    def __init__(self) -> None:
        # By session and properties. The properties include the priority, and RabbitMQ keeps the
        # order only among messages of one priority.
        self._sequences: defaultdict[tuple[int, str], _RowSequence] = defaultdict(_RowSequence)
        self._own = _OwnMessages()
        #: flagged messages that other sessions have journalled since this one began
        self._taken_over: Counter[bytes] = Counter()
        #: how to revert each change since `confirm`, and how many there were before each delivery
        self._undo: list[Callable[[], None]] = []
        self._undo_length_before: dict[int, int] = {}

    def revert_uncommitted(self, deliveries: Sequence[Delivery]) -> None:
        """Revert the decisions of an attempt that was not committed.

        After a failed commit the same objects are given again, perhaps without the first ones,
        which were committed after all, and perhaps with more behind them.
        """
        if deliveries:
            length = self._undo_length_before.get(id(deliveries[0]), len(self._undo))
            while len(self._undo) > length:
                self._undo.pop()()

    @property
    def may_be_taken_over(self) -> bool:
        """Whether a message without the flag may be known."""
        return bool(self._taken_over)

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows of other sessions in journal order, each newer than all earlier ones."""
        for row in rows:
            key = (row.session_id, _canonical(row.delivery.properties))
            self._sequences[key].append(row.id, fingerprint(row.delivery))

    def add_own(self, rows: Iterable[Row]) -> None:
        """Add rows of this session. `new` has added those with the flag already."""
        for row in rows:
            if not row.delivery.redelivered:
                self._own.add(fingerprint(row.delivery), 0)

    def add_taken_over(self, rows: Iterable[Row]) -> None:
        """Add rows that other sessions have journalled since this one began."""
        self._taken_over.update(fingerprint(r.delivery) for r in rows if r.delivery.redelivered)

    def new(
        self,
        deliveries: Sequence[Delivery],
        counts: Mapping[int, int] | None = None,
        *,
        unacknowledged: int = 0,
    ) -> list[Delivery]:
        """Return the deliveries that are not in the journal; a row matches at most one of them.

        *deliveries* are in the order of their arrival. *counts* are their headers
        ``x-delivery-count`` by ``id(delivery)``, where RabbitMQ has sent one. *unacknowledged* is
        how many of the messages before these are not acknowledged.
        """
        self._own.set_unacknowledged(unacknowledged)
        found = []
        may_repeat = any(delivery.redelivered for delivery in deliveries)
        for delivery in deliveries:
            self._undo_length_before[id(delivery)] = len(self._undo)
            if delivery.redelivered:
                is_known = self._claim(delivery, (counts or {}).get(id(delivery)))
            else:
                is_known = self.may_be_taken_over and self._claim_taken_over(delivery)
                if not is_known and may_repeat:
                    # a flagged message of this batch may be this one again
                    self._undo.append(self._own.add(fingerprint(delivery), 0))
            if not is_known:
                found.append(delivery)
        return found

    def confirm(self) -> None:
        """Keep the decisions of `new`: they are committed."""
        self._undo.clear()
        self._undo_length_before.clear()

    def _claim(self, delivery: Delivery, count: int | None) -> bool:
        digest = fingerprint(delivery)
        has_no_equal = _has_no_equal(delivery)
        if count is None:
            # a classic queue: it delivers nothing again on the same channel
            count = 1
        elif undo := self._own.repeat(digest, count, in_any_place=has_no_equal):
            self._undo.append(undo)
            return True
        properties = _canonical(delivery.properties)
        sequences = [s for (_, own), s in self._sequences.items() if own == properties]
        before = [(sequence, sequence.next) for sequence in sequences]
        claimed = _claim_row(sequences, digest, in_any_place=count > 1 or has_no_equal)
        self._undo += [partial(setattr, s, "next", old) for s, old in before if s.next is not old]
        if claimed is not None:
            self._undo.append(claimed.mark(digest))
        self._undo.append(self._own.add(digest, count))
        return claimed is not None

    def _claim_taken_over(self, delivery: Delivery) -> bool:
        digest = fingerprint(delivery)
        if not self._taken_over[digest]:
            return False
        if self._taken_over[digest] == 1:
            del self._taken_over[digest]
        else:
            self._taken_over[digest] -= 1
        self._undo.append(lambda: self._taken_over.update([digest]))
        return True


def _has_no_equal(delivery: Delivery) -> bool:
    """Return whether REGARDS sends no other message with these bytes in this second.

    Older servers do not number their sub-orders, and announce two of one order with equal messages
    (protocol.md 0.7).
    """
    event = decode(delivery)
    if isinstance(event, Rejection) or event.timestamp_s is None:
        return False
    return event.sub_order_id is not None or event.status in _SENT_ONCE


def _claim_row(
    sequences: Sequence[_RowSequence], digest: bytes, *, in_any_place: bool
) -> _RowSequence | None:
    """Return the session of which a flagged message is a row; use that row."""
    for sequence in sequences:
        if sequence.match_next(digest):
            return sequence
    for sequence in sequences:
        if sequence.match_later(digest):
            # The queue held the messages of older sessions before those of this one.
            for other in sequences:
                other.end_if_older_than(sequence)
            return sequence
    if in_any_place:
        return next((each for each in sequences if each.has_unmatched(digest)), None)
    return None


class _RowSequence:
    """Rows of one session, in the order in which RabbitMQ delivers them again."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._positions: defaultdict[bytes, list[int]] = defaultdict(list)
        #: how many rows with a digest were matched
        self._matched: Counter[bytes] = Counter()
        #: The position of the next message, for each candidate start; empty before the first.
        #: Replaced as a whole, so that a decision can be reverted.
        self.next: list[int] = []
        self._first_id = self._last_id = 0

    def append(self, row_id: int, digest: bytes) -> None:
        if not self._digests:
            self._first_id = row_id
        self._last_id = row_id
        self._positions[digest].append(len(self._digests))
        self._digests.append(digest)

    def match_next(self, digest: bytes) -> bool:
        """Match the message with the next row of each candidate; drop the other candidates."""
        fitting = [
            n + 1 for n in self.next if n < len(self._digests) and self._digests[n] == digest
        ]
        if fitting:
            self.next = fitting
        return bool(fitting)

    def match_later(self, digest: bytes) -> bool:
        """Match the message with the first row of a sequence, or with a later row.

        RabbitMQ delivered the rows in between to another consumer of the queue. After the last
        row a message is new.
        """
        if any(n >= len(self._digests) for n in self.next):
            return False
        first = min(self.next, default=0)
        fitting = [
            position + 1 for position in self._positions.get(digest, ()) if position >= first
        ]
        if fitting:
            self.next = fitting
        return bool(fitting)

    def has_unmatched(self, digest: bytes) -> bool:
        """Return whether a row was not matched, at any place."""
        return len(self._positions.get(digest, ())) > self._matched[digest]

    def mark(self, digest: bytes) -> Callable[[], None]:
        """Count a row as matched; return a function that reverts it."""
        self._matched[digest] += 1
        return lambda: self._matched.subtract([digest])

    def end_if_older_than(self, other: _RowSequence) -> None:
        """Match nothing any more if all rows are older than those of *other*."""
        if self._last_id < other._first_id:
            self.next = [len(self._digests)]


class _OwnMessages:
    """The newest messages that this session has received, with the numbers of their arrival.

    A message that came again has its new number alone.
    """

    def __init__(self) -> None:
        self._next_number = 0
        #: digest and delivery count
        self._messages: dict[int, tuple[bytes, int]] = {}
        self._numbers: defaultdict[bytes, list[int]] = defaultdict(list)
        #: the first message that is not acknowledged
        self._first_unacknowledged = 0
        #: The first message of the newest return: none before it is returned once more. What is
        #: left there was acknowledged or went to another consumer.
        self._first_returned = 0
        #: the last message that came again
        self._newest_repeat = -1

    def set_unacknowledged(self, count: int) -> None:
        """Store how many of the newest messages are not acknowledged."""
        self._first_unacknowledged = self._next_number - count

    def add(self, digest: bytes, count: int) -> Callable[[], None]:
        """Add a message; return a function that removes it, if none was added after it."""
        number = self._next_number
        self._next_number += 1
        self._messages[number] = digest, count
        self._numbers[digest].append(number)
        self._remove(number - MAX_REDELIVERABLE_OWN)

        def undo() -> None:
            self._remove(number)
            self._next_number = number

        return undo

    def repeat(self, digest: bytes, count: int, *, in_any_place: bool) -> Callable[[], None] | None:
        """Match a message with an equal one of a lower count.

        The result is a function that reverts it; None without such a message.
        """
        before = self._first_returned, self._newest_repeat
        is_next = self._newest_repeat == self._next_number - 1
        # RabbitMQ may not have seen the last acknowledgements. After a message that came again,
        # another consumer may have taken some of the next ones.
        last = max(self._first_unacknowledged, self._first_returned)
        if is_next or in_any_place:
            last = self._next_number
        equal = (number for number in self._numbers.get(digest, ()) if number <= last)
        number = next((each for each in equal if self._messages[each][1] < count), None)
        if number is None:
            return None
        old = self._messages[number][1]
        self._remove(number)
        remove = self.add(digest, count)
        self._newest_repeat = self._next_number - 1
        if not is_next or number >= self._first_returned:
            self._first_returned = self._newest_repeat

        def undo() -> None:
            self._first_returned, self._newest_repeat = before
            remove()
            self._messages[number] = digest, old
            insort(self._numbers[digest], number)

        return undo

    def _remove(self, number: int) -> None:
        if number in self._messages:
            digest, _ = self._messages.pop(number)
            self._numbers[digest].remove(number)
            if not self._numbers[digest]:
                del self._numbers[digest]


@lru_cache(maxsize=1024)
def _canonical(properties: str) -> str:
    """Return properties with sorted names.

    RabbitMQ 3.10 sorts the headers of quorum queues by name when it delivers again.
    """
    return json.dumps(json.loads(properties), sort_keys=True)


def fingerprint(delivery: Delivery) -> bytes:
    """Return a digest of everything that stays the same when a message is delivered again."""
    return _digest(delivery, _canonical(delivery.properties))


def _digest(delivery: Delivery, *more: str) -> bytes:
    """Return a digest of the parts of a message that are alike at each reading of a stream.

    The other properties do not count there: RabbitMQ 4 does not return headers that are lists or
    tables, so an upgrade would make an old message look like another one.
    """
    digest = hashlib.blake2b(delivery.body, digest_size=16)
    values = delivery.timestamp_s, delivery.correlation_id, delivery.tenant, delivery.app_id, *more
    digest.update(repr(values).encode("utf-8", "backslashreplace"))
    return digest.digest()


# -- streams


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
        # Of this connection: the newest message that was journalled before it, the offset after the
        # newest one, the journalled messages that are compared, by offset, and whether one of them
        # was there.
        self._last: Delivery | None = None
        self._next_offset = 0
        self._known: dict[int, bytes] = {}
        self._is_from_first = True
        self._is_continued = False
        #: the offset from which on some were missing, of this or an earlier connection
        self._missing_from: int | None = None
        self._doubt: StreamInDoubtError | None = None

    def start(self) -> int | None:
        """Return the offset at which a consumer begins; None is the first message."""
        self._doubt = None
        self._known = {}
        self._next_offset = self._journal.next_offset(self._queue) or 0
        self._is_continued = self._is_from_first = not self._next_offset
        if not self._next_offset:
            return None
        last = self._last = self._journal.last_of_stream(self._queue)
        if last is None or last.stream_offset is None or self._is_in_doubt:
            self._is_from_first = True
            for delivery in self._journal.of_stream(self._queue):
                self._known[delivery.stream_offset or 0] = _digest(delivery)
            return None
        # another kernel may have written since the offset was read
        self._next_offset = last.stream_offset + 1
        self._known[last.stream_offset] = _digest(last)
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
            if self._known.get(offset) != _digest(delivery):
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
        self._next_offset = (written[-1].stream_offset or 0) + 1
        if self._doubt is not None:
            raise self._doubt

    def _up_to_gap(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the messages before the first missing offset, which is looked at once.

        Each segment of a stream uses one offset for a record of RabbitMQ.
        """
        expected = self._next_offset if self._is_continued else deliveries[0].stream_offset or 0
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
