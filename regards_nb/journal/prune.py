"""Remove the events of orders that have ended long ago, and keep the states of the orders.

The first transaction stores the folded state of all orders. The next ones remove events, some rows
of the table at a time: other kernels commit in between. A kernel that meets missing ids folds the
stored states in (`Frames`): a fold may see an event twice, so it does not matter which events are
there as well. A program that is killed in between has lost nothing; the next call goes on.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa

from regards_nb.errors import JournalError, SettingsError
from regards_nb.events import OrderEvent, decode
from regards_nb.journal import schema
from regards_nb.journal.batches import SELECT_BATCHES, Batch, DamagedBatchError, read_batch
from regards_nb.orders import OrderAccumulator, OrderKey, OrderReducer
from regards_nb.text import counted
from regards_nb.waits import said_meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from regards_nb.journal.database import Database
    from regards_nb.journal.processes import Leases

_batches, _sessions, _kept = schema.batches, schema.sessions, schema.pruned_orders

#: A kernel of a queue that wrote within this time of the queue's newest message may have messages
#: that RabbitMQ has not seen acknowledged. RabbitMQ delivers those of earlier kernels again before
#: it delivers newer ones, and ends a connection that is silent for some minutes.
_IN_DOUBT_US = 24 * 3600 * 1_000_000
#: Of messages whose session is not in the table, as in a journal that was repaired.
_UNKNOWN_QUEUE = ""
#: Number of orders that are packed into one row.
_ORDERS_IN_ROW = 1000

_newest_rows = SELECT_BATCHES.order_by(_batches.c.last_id.desc())
_CHECKSUM_BYTES = 4
_LEASE = "prune"


class KeptOrder(NamedTuple):
    """All that the events of one name say.

    *first_id* is the journal row of the first event, *claims* are all numbers that the events name,
    *fold* is `OrderAccumulator.packed`.
    """

    tenant: str | None
    correlation_id: str
    first_id: int
    claims: list[int]
    fold: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[KeptOrder]).decode


def name_of(event: OrderEvent) -> OrderKey:
    """Return the name by which an event calls its order."""
    if event.correlation_id is not None:
        return OrderKey(event.tenant, event.correlation_id)
    return OrderKey(event.tenant, f"#{event.order_id}")


def kept_orders(reducer: OrderReducer, first_ids: Mapping[OrderKey, int]) -> Iterator[KeptOrder]:
    """Yield all that a reducer has folded; *first_ids* as in `KeptOrder`, by `name_of`."""
    for key, found, claims in reducer.folds():
        yield KeptOrder(*key, first_ids[key], claims, found.packed())


def restore(reducer: OrderReducer, orders: Iterable[KeptOrder]) -> None:
    """Fold in what `kept_orders` yielded, in the order of first events.

    The result is that of folding the same events; some of them may be folded as well.
    """
    for order in orders:
        key = OrderKey(order.tenant, order.correlation_id)
        reducer.join(key, OrderAccumulator.unpacked(key, order.fold), order.claims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What `OrderTracker.journal_prune` removed, or would remove.

    Attributes
    ----------
    orders : int
        Orders whose events were removed; their states stay.
    events : int
        Events that were removed.
    kept_for_redelivery : int
        Events of these orders that stay, because RabbitMQ may deliver their messages again.
    size_before_bytes, size_after_bytes : int
        Of the file, or of the tables of messages on a server.
    note : str
        Why the journal did not get smaller; empty if it did.
    """

    orders: int
    events: int
    kept_for_redelivery: int
    size_before_bytes: int
    size_after_bytes: int
    note: str = ""

    def __str__(self) -> str:
        text = (
            f"{counted(self.events, 'event')} of {counted(self.orders, 'order')}, "
            f"{self.size_before_bytes:,} bytes before, {self.size_after_bytes:,} after"
        )
        if self.kept_for_redelivery:
            text += f"; {self.kept_for_redelivery:,} stay, RabbitMQ may deliver them again"
        return f"{text}. {self.note}" if self.note else text


def time_us(given: str | date | datetime) -> int:
    """Return a date or time as microseconds since 1970; UTC where it names no time zone.

    >>> time_us("1970-01-02"), time_us("1970-01-01T00:00:01+00:00")
    (86400000000, 1000000)
    """
    text = given.isoformat() if isinstance(given, date) else given
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise SettingsError(
            f"before={given!r:.60} is no date: give one like '2026-06-01', or a datetime"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1e6)


def _stored(
    connection: sa.Connection, queues: Collection[str] | None
) -> Iterator[tuple[str, list[KeptOrder]]]:
    query = sa.select(_kept.c.queue, _kept.c.orders).order_by(_kept.c.id)
    if queues is not None:
        query = query.where(_kept.c.queue.in_([*queues, _UNKNOWN_QUEUE]))
    for queue, packed in connection.execute(query):
        content = packed[_CHECKSUM_BYTES:]
        if packed[:_CHECKSUM_BYTES] != _checksum(content):
            raise DamagedBatchError("the states of orders whose events were removed are damaged")
        yield queue, _decode(content)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


class _Fold:
    """The fold of all messages, for each queue and for all of them together."""

    def __init__(self, connection: sa.Connection) -> None:
        self.last_id = 0
        self._queues: dict[int, str] = {}
        self._all = OrderReducer()
        self._of_queue: defaultdict[str, OrderReducer] = defaultdict(OrderReducer)
        self._first_ids: defaultdict[str, dict[OrderKey, int]] = defaultdict(dict)
        #: by the names that events use
        self._last_us: defaultdict[OrderKey, int] = defaultdict(int)
        #: the arrival of the newest message of each session
        self.sessions: dict[int, int] = {}
        for queue, orders in _stored(connection, None):
            restore(self._of_queue[queue], orders)
            restore(self._all, orders)
            first_ids = self._first_ids[queue]
            first_ids |= {OrderKey(o.tenant, o.correlation_id): o.first_id for o in orders}
        self.read_on(connection)

    def read_on(self, connection: sa.Connection) -> None:
        """Fold the messages that came since the last call."""
        sessions = sa.select(_sessions.c.id, _sessions.c.queue)
        self._queues = {row.id: row.queue for row in connection.execute(sessions)}
        query = SELECT_BATCHES.where(_batches.c.last_id > self.last_id).order_by(_batches.c.last_id)
        for row in connection.execute(query.execution_options(yield_per=16)):
            self._add(read_batch(row, self.last_id))

    def _queue(self, session_id: int) -> str:
        return self._queues.get(session_id, _UNKNOWN_QUEUE)

    def _add(self, batch: Batch) -> None:
        queue = self._queue(batch.session_id)
        reducer, first_ids = self._of_queue[queue], self._first_ids[queue]
        for row_id, delivery in enumerate(batch.deliveries, batch.first_id):
            event = decode(delivery)
            if isinstance(event, OrderEvent):
                name = name_of(event)
                first_ids.setdefault(name, row_id)
                self._last_us[name] = max(self._last_us[name], event.received_at_us)
                reducer.add(row_id, event)
                self._all.add(row_id, event)
        self.last_id = batch.last_id
        self.sessions[batch.session_id] = batch.deliveries[-1].received_at_us

    def ended(self, before_us: int) -> set[OrderKey]:
        """Return the names of orders that have ended, and of which nothing arrived since."""
        names: defaultdict[OrderKey, list[OrderKey]] = defaultdict(list)
        for name in self._last_us:
            names[self._all.resolved(name)].append(name)
        return {
            name
            for key, of_order in names.items()
            if self._all.state(key).finished
            and all(self._last_us[each] < before_us for each in of_order)
            for name in of_order
        }

    def in_doubt(self) -> set[int]:
        """Return the sessions whose newest messages RabbitMQ may deliver again."""
        newest_us: defaultdict[str, int] = defaultdict(int)
        for number, last_us in self.sessions.items():
            queue = self._queue(number)
            newest_us[queue] = max(newest_us[queue], last_us)
        return {
            number
            for number, last_us in self.sessions.items()
            if last_us > newest_us[self._queue(number)] - _IN_DOUBT_US
        }

    def store(self, connection: sa.Connection) -> None:
        """Replace the stored states by those of this fold."""
        connection.execute(sa.delete(_kept))
        rows = []
        for queue, reducer in self._of_queue.items():
            orders = list(kept_orders(reducer, self._first_ids[queue]))
            for start in range(0, len(orders), _ORDERS_IN_ROW):
                content = _encode(orders[start : start + _ORDERS_IN_ROW])
                rows.append({"queue": queue, "orders": _checksum(content) + content})
        if rows:
            connection.execute(sa.insert(_kept), rows)


class _Choice:
    """Decides for each message whether it stays, from the newest to the oldest."""

    def __init__(self, fold: _Fold, before_us: int, newest_kept: int) -> None:
        self._ended = fold.ended(before_us)
        in_doubt = fold.in_doubt()
        #: how many of its newest messages stay, of each session: at least one, by which the
        #: journal knows how far the session came
        self._left = {number: newest_kept if number in in_doubt else 1 for number in fold.sessions}
        self.names: set[OrderKey] = set()
        self.events = self.kept_for_redelivery = 0

    def of(self, row: Sequence[Any]) -> list[Batch] | None:
        """Return the runs of messages of a row that stay; None if all do."""
        batch = read_batch(row, 0)
        stays = [self._stays(batch, index) for index in reversed(range(len(batch.deliveries)))]
        stays.reverse()
        if all(stays):
            return None
        self.events += stays.count(False)
        runs = []
        for is_kept, places in groupby(range(len(stays)), stays.__getitem__):
            first, *rest = places
            if is_kept:
                run = batch.deliveries[first : first + len(rest) + 1]
                runs.append(Batch(batch.first_id + first, batch.session_id, run))
        return runs

    def _stays(self, batch: Batch, index: int) -> bool:
        left = self._left.get(batch.session_id, 1)
        self._left[batch.session_id] = left - 1
        event = decode(batch.deliveries[index])
        if not isinstance(event, OrderEvent) or name_of(event) not in self._ended:
            return True
        if left > 0:
            self.kept_for_redelivery += 1
            return True
        self.names.add(name_of(event))
        return False


class Pruning:
    """Removes events of a journal, and returns the states that they had led to.

    One process at a time removes events: it takes a lease. *forget* is called after that: the
    journal forgets those in memory.
    """

    #: Number of the newest messages of a session that stay while RabbitMQ may deliver them again:
    #: the consumer takes at most half as many before they are acknowledged.
    newest_kept = 8000
    #: Number of rows, of up to 1 MB each, in one transaction; other kernels commit in between.
    rows_in_transaction = 64

    def __init__(self, database: Database, leases: Leases, forget: Callable[[], object]) -> None:
        self._database = database
        self._leases = leases
        self._forget = forget

    def orders(self, queues: Collection[str] | None = None) -> list[KeptOrder]:
        """Return the states of orders when events were last removed, by their first events.

        Only of the messages of these queues; None: of all.
        """
        found = self._database.read(lambda connection: list(_stored(connection, queues)))
        orders = [order for _, stored in found for order in stored]
        return sorted(orders, key=lambda order: order.first_id)

    def run(self, before_us: int, *, dry_run: bool = False) -> Pruned:
        """Remove the events of orders of which nothing arrived since a time, and that have ended.

        With *dry_run*, change nothing and say what would be removed.
        """
        try:
            with (
                self._leases.released_after(_LEASE),
                said_meanwhile(f"looking for old events in the journal {self._database.location}"),
            ):
                if not dry_run and (holder := self._leases.take(_LEASE)) is not None:
                    raise JournalError(
                        f"{holder} is removing events of the journal {self._database.location}"
                    )
                return self._run(before_us, dry_run=dry_run)
        finally:
            self._forget()

    def _run(self, before_us: int, *, dry_run: bool) -> Pruned:
        database = self._database
        size_before_bytes = _size(database)
        # Most of the work, before other kernels have to wait.
        fold = database.read(_Fold)

        def store(connection: sa.Connection) -> None:
            fold.read_on(connection)
            fold.store(connection)
            schema.renew_id(connection)

        if not dry_run:
            database.write(store, silent=True)
        choice = _Choice(fold, before_us, self.newest_kept)
        up_to_id: int | None = fold.last_id
        while up_to_id is not None:
            query = _newest_rows.where(_batches.c.last_id <= up_to_id).limit(
                self.rows_in_transaction
            )
            up_to_id = _remove_some(database, choice, query, dry_run=dry_run)
        note = _shrink(database) if choice.events and not dry_run else ""
        return Pruned(
            orders=len(choice.names),
            events=choice.events,
            kept_for_redelivery=choice.kept_for_redelivery,
            size_before_bytes=size_before_bytes,
            size_after_bytes=size_before_bytes if dry_run else _size(database),
            note=note,
        )


def _remove_some(
    database: Database, choice: _Choice, query: sa.Select[Any], *, dry_run: bool
) -> int | None:
    """Remove events of some rows, and return where to go on."""
    rows = database.read(lambda connection: connection.execute(query).all())
    changed = [(row, runs) for row in rows if (runs := choice.of(row)) is not None]

    def remove(connection: sa.Connection) -> None:
        for row, runs in changed:
            connection.execute(sa.delete(_batches).where(_batches.c.last_id == row.last_id))
            if runs:
                connection.execute(sa.insert(_batches), [run.stored() for run in runs])
        schema.renew_id(connection)

    if changed and not dry_run:
        database.write(remove, silent=True)
    return rows[-1].first_id - 1 if rows else None


def _size(database: Database) -> int:
    """Return the size of the file, or of the tables of messages and states on a server."""
    if database.path is not None:
        return database.path.stat().st_size
    names = (_batches.name, _kept.name)
    query = sa.select(*(sa.func.pg_total_relation_size(name) for name in names))
    return sum(database.read(lambda connection: tuple(connection.execute(query).one())))


def _shrink(database: Database) -> str:
    """Give the space back; return why that was not possible, else an empty text."""
    if database.path is None:
        return _shrink_server(database)
    try:
        with database.driver_connection("prune") as connection:
            connection.execute("VACUUM")
            (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except JournalError as exc:
        return f"The events are removed, and the file keeps its size: {exc}"
    if is_busy:
        return (
            "Another kernel reads the journal at this moment: its file gets smaller when that "
            "has ended, with the next messages"
        )
    return ""


def _shrink_server(database: Database) -> str:
    def vacuum(connection: sa.Connection) -> str:
        try:
            # VACUUM FULL waits for everybody who uses the table, and all others wait behind it.
            connection.execute(
                sa.text(f"LOCK TABLE {_batches.name} IN ACCESS EXCLUSIVE MODE NOWAIT")
            )
            is_free = True
        except sa.exc.OperationalError:
            is_free = False
        connection.rollback()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.text(f"VACUUM {'FULL ' if is_free else ''}{_batches.name}"))
        if is_free:
            return ""
        return (
            "Another kernel uses the table at this moment: PostgreSQL uses the space for new "
            f"messages, and gives it back with VACUUM FULL {_batches.name}"
        )

    return database.read(vacuum, "prune")
