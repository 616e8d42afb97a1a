"""What the events of orders said, as plain values that outlive the events. Pure.

The journal stores these values for orders whose events were removed (`journal.prune`). Their
fields, the sequence of the fields, and the numbers of statuses in ``when`` are part of its schema:
nothing else can tell them again.
"""

from __future__ import annotations

from array import array
from sys import intern
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.orders import OrderAccumulator, OrderKey, OrderReducer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from regards_nb.events import OrderEvent


class KeptState(NamedTuple):
    """All that an `OrderAccumulator` has folded in."""

    order_id: int | None
    precedence: int
    when: int
    status: str
    error_type: str
    message: str
    errors_when: int
    errors: int
    link_when: int
    link: str
    numbered: list[int]
    unnumbered: list[int]
    over_rest: list[int]
    total: int
    ready_suborder: int
    ready_at_end: int
    first_us: int
    last_us: int
    is_nameless: bool


class KeptOrder(NamedTuple):
    """All that the events of one name say.

    *first_id* is the journal row of the first event, *claims* are all numbers that the events name.
    *states* are that of the newest number, and that of no number, as far as there are any.
    """

    tenant: str | None
    correlation_id: str
    first_id: int
    claims: list[int]
    states: list[KeptState]


def name_of(event: OrderEvent) -> OrderKey:
    """Return the name by which an event calls its order."""
    if event.correlation_id is not None:
        return OrderKey(event.tenant, event.correlation_id)
    return OrderKey(event.tenant, f"#{event.order_id}")


def kept(reducer: OrderReducer, first_ids: Mapping[OrderKey, int]) -> Iterator[KeptOrder]:
    """Yield all that a reducer has folded; *first_ids* as in `KeptOrder`, by `name_of`."""
    for key, parts, claims in reducer.parts():
        yield KeptOrder(*key, first_ids[key], claims, [_kept(part) for part in parts])


def restore(reducer: OrderReducer, orders: Iterable[KeptOrder]) -> None:
    """Fold in what `kept` yielded, in the order of first events.

    The result is that of folding the same events; some of them may be folded as well.
    """
    for order in orders:
        key = OrderKey(order.tenant, order.correlation_id)
        reducer.join(key, [_accumulator(key, state) for state in order.states], order.claims)
    reducer.regroup()


def _kept(accumulator: OrderAccumulator) -> KeptState:
    values = (getattr(accumulator, name) for name in KeptState._fields)
    return KeptState._make(list(v) if isinstance(v, array) else v for v in values)


def _accumulator(key: OrderKey, state: KeptState) -> OrderAccumulator:
    made = OrderAccumulator(key, state.order_id)
    for name, value in state._asdict().items():
        setattr(made, name, array("q", value) if isinstance(value, list) else value)
    made.status, made.error_type = intern(state.status), intern(state.error_type)
    made.message = intern(state.message)
    return made
