"""Finds the orders that a key means: a correlation id, a number, an order, rows or a list."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from regards_nb.errors import SettingsError
from regards_nb.orders import OrderKey

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


class HasKey(Protocol):
    """An order, such as `Order`."""

    @property
    def key(self) -> OrderKey:
        """The key of the order."""


if TYPE_CHECKING:
    #: A correlation id, a number, an order, rows of ``tracker.orders``, or several of these.
    Selection: TypeAlias = str | int | HasKey | pd.DataFrame | Iterable[str | int | HasKey]
    #: The orders of a view, or what returns those that are known so far; None: all.
    Wanted: TypeAlias = Iterable[OrderKey] | Callable[[], Iterable[OrderKey] | None] | None

#: A correlation id, an order id, or an `OrderKey`, which is never ambiguous.
Name = str | int | OrderKey


def called(name: str | OrderKey) -> str:
    """Return the correlation id or label of a name."""
    return name.correlation_id if isinstance(name, OrderKey) else name


def names_in(selection: Any) -> list[Name]:
    """Return the names of the orders in a selection, whether or not such orders are known.

    A number may be one of NumPy's; an order may be an `OrderKey`.
    """
    if isinstance(selection, str | OrderKey):
        return [selection]
    if str(getattr(selection, "dtype", "")) in {"bool", "boolean"}:
        raise SettingsError(
            "a comparison names no order, it has a row for each: give the rows that it selects, as "
            "in tracker.orders[comparison]"
        )
    if isinstance(key := getattr(selection, "key", None), OrderKey):
        return [key]
    index: Any = getattr(selection, "index", selection)
    if list(getattr(index, "names", ())) == list(OrderKey._fields):
        return [_key(*row) for row in index]
    if hasattr(selection, "columns"):
        return _names_in_rows(selection)
    with suppress(TypeError):
        if not isinstance(selection, bool):  # wait(True) would wait for order 1
            return [operator.index(selection)]
    if isinstance(selection, Iterable) and not isinstance(selection, Mapping | bytes):
        return [name for each in selection for name in names_in(each)]
    raise SettingsError(
        f"{selection!r} names no order: give a correlation id, a number, an order, or rows of "
        "tracker.orders"
    )


def check_keys(keys: Iterable[object]) -> None:
    """Refuse what is no `OrderKey`, such as a name."""
    for key in keys:
        if not isinstance(key, OrderKey):
            raise SettingsError(f"{key!r:.100} is no key of an order: give tracker[...].key")


def wanted_keys(keys: Wanted) -> list[OrderKey] | None:
    """Return the keys of the orders that a view wants, as far as they are known; None: all."""
    keys = keys() if callable(keys) else keys
    if keys is None:
        return None
    known = list(keys)
    check_keys(known)
    return known


def _names_in_rows(frame: Any) -> list[Name]:
    """Return the orders of a frame with columns, of pandas or polars, each once."""
    columns = set(frame.columns)
    if not set(OrderKey._fields) <= columns:
        raise SettingsError(
            "a selection must be rows of tracker.orders with their index, or have the columns "
            "tenant and correlation_id"
        )
    tenants, names = (list(frame[name]) for name in OrderKey._fields)
    # An event may name its order by the order id alone.
    ids = list(frame["order_id"]) if "order_id" in columns else names
    keys = [
        _key(tenant, name if isinstance(name, str) else f"#{order_id}")
        for tenant, name, order_id in zip(tenants, names, ids, strict=True)
    ]
    return list(dict.fromkeys(keys))


def _key(tenant: object, correlation_id: str) -> OrderKey:
    return OrderKey(tenant if isinstance(tenant, str) else None, correlation_id)
