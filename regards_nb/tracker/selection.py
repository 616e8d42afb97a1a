"""What a user may give to say which orders are meant."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from regards_nb.errors import OrderNotFoundError, SettingsError
from regards_nb.orders import OrderKey

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from regards_nb.tracker.order import Order

    #: A correlation id, a number, an order, rows of ``tracker.orders``, or several of these.
    Selection: TypeAlias = str | int | Order | pd.DataFrame | Iterable[str | int | Order]

#: A correlation id, the server's number, or both as an order is kept: the last is never ambiguous.
Name = str | int | OrderKey


def names_in(selection: Any) -> list[Name]:
    """Return what the orders of a selection are called, whether or not they are known.

    Parameters
    ----------
    selection : Selection
        A number may be one of NumPy's; an order may be an `OrderKey`.

    Raises
    ------
    SettingsError
        Something in it names no order.
    """
    if isinstance(selection, str | OrderKey):
        return [selection]
    if isinstance(key := getattr(selection, "key", None), OrderKey):
        return [key]
    index: Any = getattr(selection, "index", selection)
    if list(getattr(index, "names", ())) == list(OrderKey._fields):
        return [OrderKey(t if isinstance(t, str) else None, name) for t, name in index]
    if hasattr(selection, "columns"):
        raise SettingsError("a selection must be rows of tracker.orders, with their index")
    with suppress(TypeError):
        return [operator.index(selection)]
    if isinstance(selection, Iterable) and not isinstance(selection, Mapping | bytes):
        return [name for each in selection for name in names_in(each)]
    raise SettingsError(
        f"{selection!r} names no order: give a correlation id, a number, an order, or rows of "
        "tracker.orders"
    )


def keys_in(selection: Any, find: Callable[[Name], OrderKey | None]) -> list[OrderKey]:
    """Return the orders of a selection, which must be known.

    Raises
    ------
    OrderNotFoundError
        One of them is not.
    SettingsError
        Something in it names no order.
    """
    names = names_in(selection)
    keys = [find(name) for name in names]
    for name, key in zip(names, keys, strict=True):
        if key is None:
            kind = "number" if isinstance(name, int) else "correlation id"
            called = name.correlation_id if isinstance(name, OrderKey) else name
            raise OrderNotFoundError(
                f"no event of an order with the {kind} {called!r} so far; tracker.orders lists all"
            )
    return [key for key in keys if key is not None]
