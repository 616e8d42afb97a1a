"""The orders that a user's table asks for: one for each row or group, with a label."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from regards_nb import queries
from regards_nb.errors import SettingsError
from regards_nb.frames.columns import ORDER_COLUMNS
from regards_nb.text import counted, raised_at
from regards_nb.waits import said_meanwhile, users_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Names that the frame of orders has, too: it could not be joined with such columns.
_TAKEN = {*ORDER_COLUMNS, "tenant", "correlation_id"}
_PREFIX = "table_"


class TableOrder(NamedTuple):
    """What one order of a table asks for."""

    label: str
    queries: list[str]


def read_table(
    table: Any,
    *,
    by: str | Sequence[str] | None,
    products: str | Callable[[Any], Any] | None,
    label: str | None,
) -> tuple[list[TableOrder], pd.DataFrame]:
    """Return the orders of a table in its order, and the user's columns with the labels as index.

    The parameters are those of `OrderTracker.submit_each`. Groups come by their values; their frame
    has the columns of *by* and ``rows``, the number of rows. ``table_`` stands before a name that
    the orders have, too.
    """
    if not hasattr(table, "columns") or not hasattr(table, "groupby"):
        raise SettingsError(f"table must be a DataFrame, not {type(table).__name__}")
    if by is None:
        parts = [table.iloc[[place]] for place in range(len(table))]
        has_own_index = table.index.nlevels > 1 or table.index.name is not None
        own = table.reset_index(drop=not has_own_index)
        default = _row_labels(table) if label is None else None
    else:
        names = [by] if isinstance(by, str) else list(by)
        groups = list(_groups(table, names))
        parts = [rows for _, rows in groups]
        own = pd.DataFrame([values for values, _ in groups], columns=names)
        own["rows"] = [len(rows) for rows in parts]
        default = [
            ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            for values, _ in groups
        ]
    rows: list[dict[Any, Any]] = [] if label is None else own.to_dict("records")
    labels = default if label is None else [_formatted(label, row) for row in rows]
    labels = _unique(labels or [])
    runs = f"products= runs, for {counted(len(labels), 'order')} of the table"
    with said_meanwhile(runs if callable(products) else ""):
        orders = [
            TableOrder(text, _queries_of(text, rows, products, is_row=by is None))
            for text, rows in zip(labels, parts, strict=True)
        ]
    own.columns = pd.Index([f"{_PREFIX}{name}" if name in _TAKEN else name for name in own.columns])
    return orders, own.set_axis(_label_index(labels), axis="index")


def with_orders(
    own: pd.DataFrame, labels: Sequence[str], correlation_ids: Sequence[str]
) -> pd.DataFrame:
    """Return the user's columns with the labels and names of the orders that were made."""
    return own.set_axis(_label_index(labels), axis="index").assign(correlation_id=correlation_ids)


def _label_index(labels: Sequence[str]) -> pd.Index[str]:
    return pd.Index(list(labels), name="label").astype("str")


def _groups(
    table: pd.DataFrame, names: list[str]
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the values and the rows of each group, by values."""
    known = [*table.columns, *table.index.names]
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(
            f"by={names!r}: the table has no column {unknown[0]!r}, only "
            + ", ".join(map(repr, table.columns))
        )
    grouped = table.groupby(names, dropna=False, observed=True)
    for found, rows in grouped:
        values: tuple[Any, ...] = tuple(found)
        if any(pd.isna(value) for value in values):
            raise SettingsError(
                f"by={names!r}: no order gets {counted(len(rows), 'row')} without a value there. "
                f"Leave out what has none: table.dropna(subset={names!r})"
            )
        yield values, rows


def _row_labels(table: pd.DataFrame) -> list[str]:
    """Return the names of the products, or else the values of the index."""
    for name in ("provider_id", "urn"):
        if name in table.columns:
            return [str(value) for value in table[name]]
    if isinstance(table.index, pd.RangeIndex) and len(table):
        raise SettingsError(
            "each order needs a label that it keeps when the table grows: give label=..., with "
            'names of columns: label="cycle {cycle}"'
        )
    prefix = "" if table.index.name in (None, "urn") else f"{table.index.name} "
    return [f"{prefix}{value}" for value in table.index]


def _formatted(label: str, row: dict[Any, Any]) -> str:
    try:
        return label.format(**{str(name): value for name, value in row.items()})
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as exc:
        raise SettingsError(
            f"label={label!r} does not fit the table: {type(exc).__name__} {exc}. Names in it are "
            f"those of columns: {', '.join(map(str, row))}"
        ) from None


def _unique(labels: list[str]) -> list[str]:
    repeated = [text for text, count in Counter(labels).items() if count > 1]
    if repeated:
        others = f" and {counted(len(repeated) - 1, 'other')}" if len(repeated) > 1 else ""
        raise SettingsError(
            f"the label {repeated[0]!r}{others} would stand for several orders. Give "
            "label=... with a column that tells them apart, or group the rows with by=..."
        )
    return labels


def _queries_of(
    label: str, rows: pd.DataFrame, products: str | Callable[[Any], Any] | None, *, is_row: bool
) -> list[str]:
    """Return the queries of one order, the same for the same products in any order."""
    wanted: Any
    if callable(products):
        try:
            # As objects: a row of numbers of several types would have only floats.
            with users_code():
                wanted = products(rows.astype("object").iloc[0] if is_row else rows)
        except Exception as exc:
            raise SettingsError(
                f"nothing was ordered: products= raised {type(exc).__name__}: {exc} "
                f"{raised_at(exc)} for the order {label!r} of the table"
            ) from exc
    elif products is not None:
        if products not in rows.columns:
            raise SettingsError(
                f"products={products!r}: the table has no such column, only "
                + ", ".join(map(repr, rows.columns))
            )
        wanted = sorted(set(rows[products]), key=str)
    elif rows.index.name == "urn":
        wanted = rows.sort_index()
    else:
        names = [name for name in ("urn", "provider_id") if name in rows.columns]
        wanted = rows.sort_values(names[0]) if names else rows
    try:
        return queries.selection(wanted)
    except SettingsError as exc:
        raise SettingsError(
            f"nothing was ordered: the order {label!r} of the table: {exc}"
        ) from exc
