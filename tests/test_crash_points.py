"""Exactly once, at every crash point, on a scripted broker.

The broker here is a model of a queue that delivers at least once. The code under test is the
consumer's own: `AckBatcher` decides when to journal and to acknowledge, `RedeliveryMatcher` which
redelivered messages are known. `test_consumer.py` does the same on a real RabbitMQ.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace
from strategies import delivery

from regards_nb.consumer import AckBatcher, RedeliveryMatcher
from regards_nb.errors import JournalError
from regards_nb.events import Delivery
from regards_nb.journal import Row

#: A connection begins with few messages and takes more after they were acknowledged. Those of one
#: second fit into the first step.
PREFETCH_STEPS = (20, 80)


class Broker:
    """A queue: hands messages over in order, and again, marked, when a connection ends."""

    #: whether it tells how often a message was returned
    has_counts = False

    def __init__(self) -> None:
        self.ready: deque[tuple[int, Delivery]] = deque()
        self.unacknowledged: dict[int, tuple[int, Delivery]] = {}
        self.in_flight: deque[tuple[int, Delivery, int]] = deque()
        #: acknowledged, in the order in which that was seen; a crash may forget the last ones
        self.gone: list[tuple[int, Delivery]] = []
        #: how often each message was returned: x-delivery-count of a quorum queue
        self.counts: Counter[int] = Counter()
        #: returned messages, which are delivered before those that are ready
        self.returned: deque[tuple[int, Delivery]] = deque()
        self.prefetch = PREFETCH_STEPS[0]
        self._number = 0
        self._tag = 0

    def publish(self, message: Delivery) -> None:
        self._number += 1
        self.ready.append((self._number, message))
        self.send()

    def send(self) -> None:
        """Send what the prefetch allows; it is in flight until the client receives it."""
        while (self.returned or self.ready) and len(self.unacknowledged) < self.prefetch:
            self._tag += 1
            source = self.returned or self.ready
            number, message = self.unacknowledged[self._tag] = source.popleft()
            count = self.counts[number] if self.has_counts else 0
            self.in_flight.append((self._tag, message, count))

    def acknowledge(self, tag: int) -> None:
        for known in [known for known in self.unacknowledged if known <= tag]:
            self.gone.append(self.unacknowledged.pop(known))
        self.send()

    def begin_channel(self, prefetch: int) -> None:
        assert not self.unacknowledged
        self.prefetch, self._tag = prefetch, 0
        self.send()

    def lose_connection(self) -> None:
        """Put back what was not acknowledged, marked."""
        self._put_back(list(self.unacknowledged.values()))
        self.unacknowledged.clear()
        self.in_flight.clear()
        self._tag = 0

    def return_on_channel(self) -> None:
        """Deliver what is not acknowledged again, on the same channel with new tags."""
        returned = list(self.unacknowledged.values())
        self.unacknowledged.clear()
        self._put_back(returned)

    def crash(self, forgotten: int) -> None:
        """Come back with everything marked, having forgotten the last acknowledgements."""
        kept = max(len(self.gone) - forgotten, 0)
        lost, self.gone = self.gone[kept:], self.gone[:kept]
        self.lose_connection()
        self._put_back(lost)
        self.ready = deque((number, replace(m, redelivered=True)) for number, m in self.ready)

    def _put_back(self, messages: list[tuple[int, Delivery]]) -> None:
        self.counts.update(number for number, _ in messages)
        again = {number: replace(message, redelivered=True) for number, message in messages}
        self._insert(again)

    def _insert(self, again: dict[int, Delivery]) -> None:
        """Put messages back to the places that they had: so does a classic queue."""
        self.ready = deque(sorted((dict(self.ready) | again).items()))


class QuorumBroker(Broker):
    """A quorum queue puts returned messages behind those that were returned before."""

    has_counts = True

    def _insert(self, again: dict[int, Delivery]) -> None:
        self.returned.extend(again.items())


class Client:
    """One life of the consumer on one connection."""

    def __init__(self, session_id: int, journal: list[Row], machine: Machine) -> None:
        self._session_id = session_id
        self._journal = journal
        self._matcher = RedeliveryMatcher()
        self._matcher.add([row for row in journal if row.session_id != session_id])
        self._counts: dict[int, int] = {}
        self._own_up_to_id = len(journal)
        self.journal_fails = False
        #: acknowledgements that were sent and not seen by the broker yet
        self.sent: deque[int] = deque()
        self.batcher = AckBatcher(
            self.journal_batch,
            self.sent.append,
            prefetch_steps=PREFETCH_STEPS,
            clock=lambda: machine.now,
        )

    def journal_batch(self, deliveries: Sequence[Delivery], *, unacknowledged: int) -> None:
        self._matcher.revert_uncommitted(deliveries)
        is_redelivery = any(message.redelivered for message in deliveries)
        if is_redelivery:
            self._matcher.add_own(self._journal[self._own_up_to_id :])
            self._own_up_to_id = len(self._journal)
        new = self._matcher.new(deliveries, self._counts, unacknowledged=unacknowledged)
        if self.journal_fails:
            raise JournalError("cannot be written now")
        self._matcher.confirm()
        for message in new:
            self._journal.append(Row(len(self._journal) + 1, self._session_id, message))
        if is_redelivery:
            self._own_up_to_id = len(self._journal)
        self._counts.clear()

    def receive(self, tag: int, message: Delivery, count: int) -> None:
        # an object of its own for each delivery, as in life
        message = replace(message)
        if count:
            self._counts[id(message)] = count
        self.batcher.add(tag, message)


class Machine(RuleBasedStateMachine):
    """Publish, deliver, journal, acknowledge and crash in any order."""

    kind = Broker

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.broker = self.kind()
        self.journal: list[Row] = []
        #: how often each body was published in each second
        self.published: Counter[tuple[bytes, int]] = Counter()
        self.sessions = 0
        self.connect()

    def connect(self) -> None:
        self.sessions += 1
        self.broker.prefetch = PREFETCH_STEPS[0]
        self.client = Client(self.sessions, self.journal, self)

    @rule(name=st.sampled_from("abcdefghij"))
    def publish(self, name: str) -> None:
        body, timestamp_s = name.encode(), int(self.now)
        # At most two alike: the server announces no third part of one order within a second.
        if self.published[body, timestamp_s] < 2:
            self.published[body, timestamp_s] += 1
            self.broker.publish(delivery(body, timestamp_s=timestamp_s))

    @rule()
    def busy_seconds(self) -> None:
        """Publish so much that the connection takes more messages at once."""
        for _ in range(4):
            for name in "abcdefghij" * 2:
                self.publish(name)
            self.time_passes()

    @precondition(lambda self: self.broker.in_flight)
    @rule(count=st.integers(1, 9))
    def receive(self, count: int) -> None:
        for _ in range(min(count, len(self.broker.in_flight))):
            self.client.receive(*self.broker.in_flight.popleft())

    @rule()
    def flush(self) -> None:
        self.client.batcher.flush()

    @rule()
    def journal_fails(self) -> None:
        """Refuse the commit. What was decided for it is decided again with the next one."""
        self.client.journal_fails = True
        with suppress(JournalError):
            self.client.batcher.flush()
        self.client.journal_fails = False

    @precondition(lambda self: self.client.sent)
    @rule()
    def broker_sees_acknowledgement(self) -> None:
        self.broker.acknowledge(self.client.sent.popleft())

    @rule()
    def time_passes(self) -> None:
        """Let a second pass. What can be delivered is, and acknowledgements arrive."""
        self.settle()
        self.now += 1.0
        self.client.batcher.acknowledge_settled(is_drained=not self.broker.ready)
        if self.client.batcher.should_raise_limit():
            self.take_more()

    def take_more(self) -> None:
        """Let a second consumer with a larger limit take over."""
        self.client.batcher.raise_limit()
        self.broker.prefetch = self.client.batcher.prefetch
        self.broker.send()

    def settle(self) -> None:
        while self.broker.in_flight or self.client.sent:
            while self.broker.in_flight:
                self.client.receive(*self.broker.in_flight.popleft())
            self.client.batcher.flush()
            self.client.batcher.acknowledge_settled(is_drained=not self.broker.ready)
            while self.client.sent:
                self.broker.acknowledge(self.client.sent.popleft())
        self.client.batcher.flush()

    @rule()
    def lose_connection(self) -> None:
        """Lose what is in flight both ways. For the journal, kill -9 of the client is the same."""
        self.broker.lose_connection()
        self.connect()
        self.broker.send()

    @invariant()
    def no_row_was_never_published(self) -> None:
        kept = Counter((row.delivery.body, row.delivery.timestamp_s) for row in self.journal)
        assert kept <= self.published

    def teardown(self) -> None:
        """Let everything arrive, and count."""
        while (
            self.broker.returned
            or self.broker.ready
            or self.broker.unacknowledged
            or self.client.sent
        ):
            self.time_passes()
        kept = Counter((row.delivery.body, row.delivery.timestamp_s) for row in self.journal)
        self.compare(kept, self.published)

    def compare(self, kept: Counter[Any], published: Counter[Any]) -> None:
        """Each message has one row."""
        assert kept == published


class ClassicQueue(Machine):
    """A classic queue that crashes: it marks all messages, and can forget acknowledgements."""

    @rule(forgotten=st.integers(0, 9))
    def crash_broker(self, forgotten: int) -> None:
        self.broker.crash(forgotten)
        self.connect()
        self.broker.send()


class QuorumQueue(Machine):
    """A quorum queue on a cluster whose nodes lose the link between them."""

    kind = QuorumBroker

    def take_more(self) -> None:
        """Cancel the consumer, acknowledge all, and begin again with a larger limit."""
        self.broker.prefetch = 0
        self.settle()
        self.client.batcher.acknowledge_all()
        while self.client.sent:
            self.broker.acknowledge(self.client.sent.popleft())
        self.client.batcher.raise_limit_on_new_channel()
        self.broker.begin_channel(self.client.batcher.prefetch)

    @rule()
    def return_on_channel(self) -> None:
        """Deliver what is not acknowledged again; what is on its way still arrives before."""
        self.broker.return_on_channel()
        self.broker.send()

    def compare(self, kept: Counter[Any], published: Counter[Any]) -> None:
        """Each message has one row; of two alike, one may be taken for the other (exactly-once.md).

        Their counts differ if a connection returned only one of them: the second then looks like
        the first one returned on the channel.
        """
        assert kept <= published
        assert kept.keys() == published.keys()


@pytest.mark.parametrize("way", ["stalls", "stops"])
def test_the_second_of_two_alike_may_wait_behind_the_prefetch_limit(way: str) -> None:
    """The first is journalled, then the line stalls or the user stops: both are kept."""
    machine = ClassicQueue()
    for name in "abcdefghijklmnopqrsttuvw":
        machine.publish(name)
    machine.receive(20)
    machine.flush()
    assert len(machine.journal) == 20
    machine.now += 5.0
    if way == "stalls":
        machine.client.batcher.acknowledge_settled(is_drained=False)
    else:
        machine.client.batcher.acknowledge_all(is_drained=False)
    while machine.client.sent:
        machine.broker_sees_acknowledgement()
    assert machine.broker.in_flight
    machine.lose_connection()
    machine.teardown()


def test_the_first_of_two_alike_may_be_acknowledged_when_the_second_comes_again() -> None:
    """The link between two nodes breaks three times; each message is kept once."""
    machine = QuorumQueue()
    for name in "aiafbi":
        machine.publish(name)
    machine.return_on_channel()
    machine.time_passes()
    assert [message.body for _, message in machine.broker.gone] == [b"a"]
    machine.return_on_channel()
    machine.publish("h")
    machine.return_on_channel()
    machine.teardown()
    assert len(machine.journal) == 7


TestClassicQueue = ClassicQueue.TestCase
TestClassicQueue.settings = settings(max_examples=70, stateful_step_count=60, deadline=None)
TestQuorumQueue = QuorumQueue.TestCase
TestQuorumQueue.settings = settings(max_examples=70, stateful_step_count=60, deadline=None)
