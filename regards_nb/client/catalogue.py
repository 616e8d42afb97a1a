"""The catalogue: data sets, attributes, products, their numbers of files and bytes, restoring.

The paths below ``rs-catalog`` are those of REGARDS' OpenAPI; the web page of REGARDS searches
below ``rs-access-project``, with the same responses (protocol.md 1.8).
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from regards_nb import queries
from regards_nb.client.models import (
    RequestSpec,
    attribute_model,
    cart_rows,
    catalogue_dataset,
    product,
    summary_rows,
    whole_number,
)
from regards_nb.client.transport import iter_pages
from regards_nb.errors import (
    NotAllowedError,
    ServiceError,
    SettingsError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from regards_nb.text import counted, similar
from regards_nb.waits import pause, progress, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regards_nb.client.models import (
        Attribute,
        CatalogueDataset,
        Page,
        Product,
        Response,
        SummaryRow,
    )

_CATALOGUE = "/api/v1/rs-catalog"
_ENGINE = f"{_CATALOGUE}/engines/legacy"
_PORTAL = "/api/v1/rs-access-project"
_CART = "/api/v1/rs-order/order/basket"
#: REGARDS takes at most 100 searches in a summary, and 1000 products in a request to restore.
_MAX_SEARCHES = 100
_MAX_RESTORED = 500
_URN = "URN:"
#: An order names all quicklooks by one word, the summary each size by its own.
_DATA_TYPES = {"QUICKLOOK": ("QUICKLOOK_SD", "QUICKLOOK_MD", "QUICKLOOK_HD")}
#: A date without a time, which REGARDS does not accept in a query.
_DATE_ALONE = re.compile(r"\b\d{4}-\d\d-\d\d(?![T\d])")
_DATE_HINT = (
    "A date needs a time: give date(2026, 1, 31) or a range (low, high) to search(), or write "
    "queries.between(field, low, high). "
)
#: How many products a search by GET names; a URN has 75 characters, in an address some 100.
_MAX_IN_ADDRESS = 50


class Catalogue:
    """Requests to the catalogue of one project; *exchange* sends them, with the token if any."""

    def __init__(self, exchange: Callable[[RequestSpec], Response]) -> None:
        self._exchange = exchange
        #: How many products are requested at a time.
        self.page_size = 500
        #: Where this server searches: the first of the two paths that it has.
        self._search_base: str | None = None
        self._datasets: list[CatalogueDataset] | None = None
        self._attributes: list[Attribute] | None = None

    def datasets(self) -> list[CatalogueDataset]:
        """Return all data sets; they are requested once."""
        if self._datasets is None:
            self._datasets = [
                catalogue_dataset(item, page.response.request)
                for item, page in self._iter_items("datasets/search", {}, "the list of data sets")
            ]
        return self._datasets

    def dataset_urn(self, name: str) -> str:
        """Return the URN of a data set by its URN, label or provider id.

        The SettingsError for an unknown one has the names that are most like it.
        """
        if name.startswith(_URN):
            return name
        known: dict[str, str] = {}
        for dataset in self.datasets():
            known.setdefault(dataset.label, dataset.urn)
            known.setdefault(dataset.provider_id, dataset.urn)
        if name not in known:
            near = similar(name, known, most=5)
            meant = f"Similar names: {', '.join(near)}; " if near else ""
            raise SettingsError(
                f"there is no data set {name!r}. {meant}client.datasets() lists all"
            )
        return known[name]

    def attributes(self, dataset: str | None = None) -> list[Attribute]:
        """Return the attributes of the products, or of those of one data set."""
        if dataset is None and self._attributes is not None:
            return self._attributes
        params = {} if dataset is None else {"q": queries.term("tags", self.dataset_urn(dataset))}
        spec = RequestSpec(path=f"{_ENGINE}/dataobjects/search/attributes", params=params)
        response = self._exchange(spec)
        found = response.json()
        if not isinstance(found, list):
            raise UnexpectedAnswerError(f"{response.request}: the response is not a list")
        attributes = [attribute_model(each) for each in found]
        if dataset is None:
            self._attributes = attributes
        return attributes

    def iter_products(
        self,
        *wanted: str,
        dataset: str | None = None,
    ) -> Iterator[Product]:
        """Yield the products that match all of the queries, page by page.

        The ServiceError for a refused query has the words of the catalogue and the fields that
        exist.
        """
        parts = [query for query in wanted if query.strip()]
        if dataset is not None:
            parts.append(queries.term("tags", self.dataset_urn(dataset)))
        text = queries.both(*parts) if len(parts) > 1 else "".join(parts)
        if text:
            queries.check(text)
        seen: set[str] = set()
        try:
            for item, page in self._iter_items("dataobjects/search", {"q": text}, "products"):
                found = product(item, page.response.request)
                # Products that are added meanwhile move others to the next page.
                if found.urn not in seen:
                    seen.add(found.urn)
                    yield found
        except ServiceError as exc:
            raise self._explained(exc) from None

    def _iter_items(
        self, path: str, params: dict[str, str], what: str
    ) -> Iterator[tuple[Any, Page]]:
        """Yield the items of a search, with their page; find out where this server searches."""
        bases = [_ENGINE, _PORTAL] if self._search_base is None else [self._search_base]
        for base in bases:
            request = RequestSpec(path=f"{base}/{path}", params=params)
            try:
                for page in iter_pages(self._exchange, request, self.page_size, what=what):
                    self._search_base = base
                    for item in page.items:
                        yield item, page
            except ServiceError as exc:
                # 403 and 404: the gateway of this server does not have the path, or not for us.
                is_missing = exc.status_code in (403, 404) and self._search_base is None
                if not is_missing or base is bases[-1]:
                    raise
            else:
                return

    def _explained(self, error: ServiceError) -> ServiceError:
        """Add the fields that exist to the refusal of a query."""
        if error.status_code not in (400, 422) or not error.messages:
            return error
        names: list[str] = []
        with suppress(ServiceError):
            names = [each.name for each in self.attributes()]
        fields = ", ".join([*queries.FIXED_FIELDS, *names])
        hint = _DATE_HINT if _DATE_ALONE.search(str(error)) else ""
        return type(error)(
            f"the catalogue refuses the query: {error}. {hint}Fields: {fields}",
            status_code=error.status_code,
            messages=error.messages,
        )

    def summary(
        self, searches: Sequence[str], data_types: Sequence[str] | None = None
    ) -> list[SummaryRow]:
        """Return the numbers of files and bytes of a selection, by data set and type of file."""
        rows: list[SummaryRow] = []
        for start in range(0, len(searches), _MAX_SEARCHES):
            body: dict[str, Any] = {
                "requests": [
                    {"engineType": "legacy", "searchParameters": {"q": [each]}}
                    for each in searches[start : start + _MAX_SEARCHES]
                ]
            }
            if data_types:
                body["dataTypes"] = [
                    name for each in data_types for name in _DATA_TYPES.get(each, (each,))
                ]
            spec = RequestSpec(
                method="POST", path=f"{_CATALOGUE}/complex/search/summary", json=body
            )
            try:
                with progress(f"the estimate: {start} of {len(searches)} queries" if start else ""):
                    response = self._exchange(spec)
            except ServiceError as exc:
                raise self._explained(exc) from None
            rows += summary_rows(response.json(), response.request)
        return rows

    def quota(self) -> dict[str, tuple[int | None, int | None]]:
        """Return used and allowed downloads: in total, and at the same time."""
        response = self._exchange(RequestSpec(path="/api/v1/rs-storage/quota/current"))
        found = response.json()
        if not isinstance(found, dict):
            raise UnexpectedAnswerError(f"{response.request}: the response is not a quota")
        # -1 means that there is no limit, and is no `whole_number`.
        used, allowed, current, rate = (
            whole_number(found.get(name))
            for name in ("currentQuota", "maxQuota", "currentRate", "rateLimit")
        )
        return {"downloads": (used, allowed), "simultaneous downloads": (current, rate)}

    def cart(self) -> list[SummaryRow]:
        """Return what lies in the cart of the user on the web page, by data set."""
        response = self._exchange(RequestSpec(path=_CART))
        return [] if response.status == 204 else cart_rows(response.json())

    def online_products(
        self, wanted: object, *, restore: bool, timeout_s: float, poll_s: float
    ) -> list[Product]:
        """Return products whose files can be downloaded; *restore* those that are on tape."""
        products = self._products_of(wanted)
        on_tape = [p.urn for p in products if not all(file.online for file in p.files)]
        if on_tape and not restore:
            kept = counted(f"{len(on_tape)} of {len(products)}", "product")
            raise NotAllowedError(
                f"REGARDS keeps {kept} on tape: tracker.submit(products) orders them, or call "
                "download_products(..., restore=True)",
                status_code=202,
            )
        if on_tape:
            self.restore(on_tape, timeout_s=timeout_s, poll_s=poll_s)
        return products

    def restore(self, urns: Sequence[str], *, timeout_s: float, poll_s: float) -> None:
        """Restore products from tape, and wait until all their files can be downloaded.

        After *timeout_s* it raises WaitTimeoutError; the server goes on.
        """
        chunks = [urns[i : i + _MAX_RESTORED] for i in range(0, len(urns), _MAX_RESTORED)]
        for chunk in chunks:
            body = {"product_ids": list(chunk)}
            self._exchange(RequestSpec(method="POST", path=f"{_CATALOGUE}/restore", json=body))
        ends_at_s = time.monotonic() + timeout_s
        while not all(self._are_available(chunk) for chunk in chunks):
            left_s = ends_at_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeoutError(
                    f"after {timeout_s:g} s REGARDS has not restored the files of "
                    f"{counted(len(urns), 'product')} from tape. It goes on: try again later"
                )
            products = counted(len(urns), "product")
            told(
                f"waiting until REGARDS has restored {products} from tape",
                timeout_s - left_s + poll_s,
                limit_s=timeout_s,
            )
            pause(poll_s)

    def _are_available(self, urns: Sequence[str]) -> bool:
        spec = RequestSpec(
            method="POST", path=f"{_CATALOGUE}/availability/files", json={"product_ids": list(urns)}
        )
        found = self._exchange(spec).json()
        products = found.get("products") if isinstance(found, dict) else None
        files = [file for each in products or () for file in each.get("files") or ()]
        return bool(files) and all(file.get("available") is True for file in files)

    def _products_of(self, wanted: object) -> list[Product]:
        """Return the products of rows of a search, URNs, provider ids or queries."""
        found = {
            each.urn: each
            for query in queries.selection(wanted)
            for short in _short(query)
            for each in self.iter_products(short)
        }
        if not found:
            raise SettingsError("the catalogue has none of these products")
        return list(found.values())


def _short(query: str) -> list[str]:
    """Return queries for the same products that fit into an address: nginx takes 8 kB."""
    named = queries.named_products(query)
    if named is None:
        return [query]
    field, values = named
    some = [values[i : i + _MAX_IN_ADDRESS] for i in range(0, len(values), _MAX_IN_ADDRESS)]
    return [f"{field}:({' OR '.join(each)})" for each in some]


def file_path(urn: str, checksum: str) -> str:
    """Return the path of one file of a product."""
    return f"{_CATALOGUE}/downloads/{quote(urn, safe=':')}/files/{quote(checksum, safe='')}"
