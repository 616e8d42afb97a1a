"""What an order will contain, asked before it is made."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regards_nb.errors import ServiceError, ServiceLoginError, SettingsError
from regards_nb.events import DATA_TYPES
from regards_nb.queries import named_products
from regards_nb.text import counted, did_you_mean, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.client import RegardsClient

_log = logging.getLogger("regards_nb")

#: How many products a merged query names.
_MERGED_IDS = 300
_DATASET = re.compile(r'\bdataset:"?([\w.-]+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The numbers of products, files and bytes of a selection.

    External files count as 0 bytes, and files of the data set itself are not counted.
    """

    products: int
    files: int
    size_bytes: int

    def __str__(self) -> str:
        products, files = counted(self.products, "product"), counted(self.files, "file")
        return f"{products}, {files}, {size(self.size_bytes)}"


class NothingFoundError(SettingsError):
    """The catalogue has no product for an order, so it was not made."""


def check_size(estimate: Estimate, limit_bytes: int, *, has_filter: bool) -> None:
    """Refuse an order that is larger than the user allows; the text has both figures."""
    if estimate.size_bytes <= limit_bytes:
        return
    filtered = " before filename_regexp, which the estimate does not know," if has_filter else ""
    raise SettingsError(
        f"nothing was ordered: {estimate} are{filtered} more than size_limit_bytes={limit_bytes} "
        f"({size(limit_bytes)}). Choose fewer products, or raise the limit"
    )


def ask(
    client: RegardsClient,
    queries: Sequence[str],
    data_types: Sequence[str] | None,
    *,
    is_needed: bool,
) -> Estimate | None:
    """Ask the catalogue; None if this server cannot tell and it is not *is_needed*.

    A ServiceError is one that the request for the order would get, too. *data_types* leaves out
    files, not products.
    """
    try:
        rows = client.estimate(list(queries), data_types=DATA_TYPES)
    except ServiceError as exc:
        if is_needed:
            exc.put_first("size_limit_bytes needs an estimate")
        # 403 and 404 come from a gateway that does not have the path, or not for this account.
        is_refused = isinstance(exc, ServiceLoginError) or exc.status_code in (400, 422)
        if is_needed or is_refused:
            raise
        _log.warning("there is no estimate of the order: %s", exc)
        return None
    of_type = rows["data_type"].str.startswith(tuple(data_types or DATA_TYPES))
    files = rows[of_type.fillna(False)]  # noqa: FBT003
    return Estimate(
        products=int(rows.groupby("dataset", dropna=False)["products"].max().sum()),
        files=int(files["files"].sum()),
        size_bytes=int(files["bytes"].sum()),
    )


def refuse_empty(client: RegardsClient, queries: Sequence[str]) -> None:
    """Refuse an order of several queries if one of them has no file.

    REGARDS refuses such an order and leaves the products of the queries before it in the cart, from
    where the next order takes them. The text of the SettingsError has the query.
    """
    if len(queries) < 2:
        return
    for query in queries:
        found = ask(client, [query], None, is_needed=False)
        if found is None:
            return
        if not found.files:
            raise SettingsError(
                f"nothing was ordered: the catalogue has no file for the query {query:.200}, and "
                "REGARDS refuses an order if one of its queries finds nothing. Leave it out"
            )


def refuse_nothing(client: RegardsClient, estimate: Estimate, queries: Sequence[str]) -> None:
    """Refuse an order without a product, which REGARDS would end at once as FAILED.

    NothingFoundError: the text has the data set that may be meant.
    """
    if estimate.products or estimate.files:
        return
    wanted = " and ".join(queries)
    text = f"nothing was ordered: the catalogue has no product for {wanted:.200}"
    raise NothingFoundError(text + _meant(client, wanted))


def _meant(client: RegardsClient, query: str) -> str:
    """Return which data set a query may mean; empty where there is none."""
    named = named_products(query)
    values = [value.strip('"') for value in named[1]] if named else _DATASET.findall(query)
    try:
        labels = client.datasets()["label"].dropna().tolist()
    except ServiceError:
        return ""
    for value in values:
        if value in labels:
            return f". {value} is the name of a data set: dataset:{value}" if named else ""
    near = "" if named else next(filter(None, (did_you_mean(v, labels) for v in values)), "")
    return near and f". {near}"


def merged(queries: Sequence[str]) -> list[str]:
    """Return fewer queries for the same products, to estimate many orders in few requests."""
    values: dict[str, list[str]] = {}
    others = []
    for query in queries:
        if named := named_products(query):
            values.setdefault(named[0], []).extend(named[1])
        else:
            others.append(query)
    return list(dict.fromkeys(others)) + [
        f"{field}:({' OR '.join(some[start : start + _MERGED_IDS])})"
        for field, some in values.items()
        for start in range(0, len(some), _MERGED_IDS)
    ]


def described(estimate: Estimate, queries: Sequence[str], filename_regexp: str | None) -> str:
    """Return the estimate in words, with what it does not know."""
    text = str(estimate)
    if filename_regexp:
        text += f", of which only those that match filename_regexp={filename_regexp!r}"
    # None for queries that name no products by URN or provider id
    lists = [named_products(query) for query in queries]
    named = sum(len(each[1]) for each in lists if each)
    if all(lists) and estimate.products < named:
        text += f"; the catalogue does not have {named - estimate.products} of the {named} products"
    return text
