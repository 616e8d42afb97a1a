"""The frames of the catalogue: products, data sets, attributes, estimates, quota."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from regards_nb.frames.columns import TIME, ColumnInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from regards_nb.client import Attribute, CatalogueDataset, Product, SummaryRow

#: Columns of `RegardsClient.search`, before the attributes; the index is ``urn``.
PRODUCT_COLUMNS = {
    "provider_id": ColumnInfo("str", "the name that the provider gave to the product"),
    "label": ColumnInfo("str", "the name on the web page of REGARDS"),
    "dataset": ColumnInfo("str", "the label of its data set"),
    "version": ColumnInfo("Int64", "the version of the product"),
    "files": ColumnInfo("Int64", "number of its files of type RAWDATA"),
    "bytes": ColumnInfo("Int64", "their size; missing if one of them has none"),
    "online": ColumnInfo("boolean", "False: a file comes from tape; missing without files"),
}
#: Columns of `RegardsClient.datasets`; the index is ``urn``.
DATASET_COLUMNS = {
    "label": ColumnInfo("str", "the name on the web page of REGARDS"),
    "provider_id": ColumnInfo("str", "the name that the provider gave to the data set"),
    "model": ColumnInfo("str", "the model of its attributes"),
    "description": ColumnInfo("str", "what it contains"),
}
#: Columns of `RegardsClient.attributes`; the index is ``name``.
ATTRIBUTE_COLUMNS = {
    "type": ColumnInfo("str", "INTEGER, DOUBLE, DATE_ISO8601, STRING, ... as REGARDS has it"),
    "label": ColumnInfo("str", "the name on the web page of REGARDS"),
    "unit": ColumnInfo("str", "the unit of its values"),
    "description": ColumnInfo("str", "what it means"),
}
#: Columns of `RegardsClient.estimate` and `RegardsClient.cart`.
SUMMARY_COLUMNS = {
    "dataset": ColumnInfo("str", "the label of the data set"),
    "data_type": ColumnInfo("str", "RAWDATA, QUICKLOOK_SD, ...; missing in a cart"),
    "products": ColumnInfo("Int64", "number of products of the data set"),
    "files": ColumnInfo("Int64", "number of files of the type"),
    "bytes": ColumnInfo("Int64", "their size; external files count as 0"),
}
#: Columns of `RegardsClient.quota`; the index is ``kind``.
QUOTA_COLUMNS = {
    "used": ColumnInfo("Int64", "downloads that were made, or that run"),
    "allowed": ColumnInfo("Int64", "the limit; missing if there is none"),
}

#: The dtypes of attributes by their type in REGARDS; all others are objects.
_ATTRIBUTE_DTYPES = {
    "STRING": "str",
    "URL": "str",
    "INTEGER": "Int64",
    "LONG": "Int64",
    "DOUBLE": "Float64",
    "BOOLEAN": "boolean",
    "DATE_ISO8601": TIME,
}


def products_frame(
    products: Sequence[Product], attributes: Iterable[Attribute], labels: Mapping[str, str]
) -> pd.DataFrame:
    """Return one row per product; index ``urn``.

    Each of the *attributes* is a column. One that is called like another column gets
    ``properties.`` before its name, which queries accept as well. *labels* are those of the data
    sets by URN.
    """
    rows = [
        (
            each.urn,
            each.provider_id,
            each.label,
            labels.get(each.dataset_urn or "", each.dataset_urn),
            each.version,
            len(each.files),
            _sum([file.size_bytes for file in each.files]),
            all(file.online for file in each.files) if each.files else None,
        )
        for each in products
    ]
    frame = _frame(rows, {"urn": ColumnInfo("str", "")} | PRODUCT_COLUMNS).set_index("urn")
    types = {each.name: each.type for each in attributes}
    names = dict.fromkeys([*types, *(name for each in products for name in each.attributes)])
    columns = {
        f"properties.{name}" if name in PRODUCT_COLUMNS else name: _attribute_column(
            [each.attributes.get(name) for each in products], types.get(name, "")
        ).set_axis(frame.index)
        for name in names
    }
    return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis="columns")


def datasets_frame(datasets: Iterable[CatalogueDataset]) -> pd.DataFrame:
    """Return one row per data set; index ``urn``."""
    rows = [(d.urn, d.label, d.provider_id, d.model, d.description) for d in datasets]
    return _frame(rows, {"urn": ColumnInfo("str", "")} | DATASET_COLUMNS).set_index("urn")


def attributes_frame(attributes: Iterable[Attribute]) -> pd.DataFrame:
    """Return one row per attribute; index ``name``."""
    rows = [(a.name, a.type, a.label, a.unit, a.description) for a in attributes]
    return _frame(rows, {"name": ColumnInfo("str", "")} | ATTRIBUTE_COLUMNS).set_index("name")


def summary_frame(rows: Iterable[SummaryRow], labels: Mapping[str, str]) -> pd.DataFrame:
    """Return the numbers of a selection: one row per data set and type of file."""
    values = [
        (
            row.dataset_label or labels.get(row.dataset_urn, row.dataset_urn),
            row.data_type,
            row.products,
            row.files,
            row.size_bytes,
        )
        for row in rows
    ]
    frame = _frame(values, SUMMARY_COLUMNS)
    # A selection of many products is summed up in several requests.
    keys = ["dataset", "data_type"]
    return frame.groupby(keys, dropna=False, sort=False, as_index=False).sum(min_count=1)


def quota_frame(quota: Mapping[str, tuple[int | None, int | None]]) -> pd.DataFrame:
    """Return one row per kind of quota, used and allowed; index ``kind``."""
    rows = [(kind, *each) for kind, each in quota.items()]
    return _frame(rows, {"kind": ColumnInfo("str", "")} | QUOTA_COLUMNS).set_index("kind")


def _frame(rows: Sequence[tuple[Any, ...]], columns: Mapping[str, ColumnInfo]) -> pd.DataFrame:
    frame = pd.DataFrame.from_records(rows, columns=list(columns))
    return frame.astype({name: column.dtype for name, column in columns.items()})


def _attribute_column(values: list[Any], kind: str) -> pd.Series[Any]:
    """Return the values with the dtype of their type, or as they are if they do not fit it."""
    column = pd.Series(values, dtype="object")
    dtype: Any = _ATTRIBUTE_DTYPES.get(kind)
    if dtype is None:
        return column
    try:
        if dtype == TIME:
            column = pd.to_datetime(column, utc=True, format="ISO8601")
        typed: pd.Series[Any] = column.astype(dtype)
    except (ValueError, TypeError):
        return column
    return typed


def _sum(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
