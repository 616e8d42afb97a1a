"""Each request of `RegardsClient` is one that the services of REGARDS describe (OpenAPI).

The descriptions of REGARDS 2.4 are no part of this repository. They are read from the folder that
``REGARDS_NB_OPENAPI`` names, else from ``../shared/openapi``. Where neither exists, the names and
types of ``data/openapi`` are compared.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from conftest import client_of

from regards_nb.simulator import OrderPlan, Outcome, Simulator

if TYPE_CHECKING:
    import requests

DATA = Path(__file__).parent / "data" / "openapi"
FOLDERS = [
    Path(os.environ.get("REGARDS_NB_OPENAPI", "missing")),
    Path(__file__).parent.parent.parent / "shared" / "openapi",
    DATA,
]
DESCRIPTIONS = next(folder for folder in FOLDERS if folder.is_dir())

#: No description has these services.
UNDESCRIBED = {"rs-storage", "rs-access-project"}
#: The descriptions name the Java objects that REGARDS makes of these parameters.
NAMES_OF = {
    "pageRequest": {"page", "size"},
    "pageable": {"page", "size"},
    # protocol.md 1.4: the pages of a manifest have a size, too
    "page": {"page", "size"},
    "queryParams": {"q"},
}
#: Gateway and login read the tenant from it (protocol.md 1.1).
ANYWHERE = {"scope"}


def description_of(service: str, folder: Path = DESCRIPTIONS) -> dict[str, Any]:
    """Return the description of a service; an unknown property does not fit it."""
    found: dict[str, Any] = json.loads((folder / f"{service}.json").read_text(encoding="utf-8"))
    for schema in found["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return found


def operation_of(description: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """Return the operation of a request; a path without parameters comes first."""
    for template in sorted(description["paths"], key=lambda each: each.count("{")):
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in description["paths"][template]:
            operation: dict[str, Any] = description["paths"][template][method.lower()]
            return operation
    pytest.fail(f"the description has no {method} {path}")


def compare(request: requests.PreparedRequest) -> str | None:
    """Compare a request with the description; return its operation, None without a description."""
    assert request.url is not None
    assert request.method is not None
    address = urlsplit(request.url)
    _, _, _, service, *rest = address.path.split("/")
    if service in UNDESCRIBED:
        return None
    description = description_of(service)
    path = unquote("/" + "/".join(rest))
    operation = operation_of(description, request.method, path)
    declared = {p["name"] for p in operation.get("parameters", ()) if p.get("in") == "query"}
    allowed = set[str]().union(*(NAMES_OF.get(name, {name}) for name in declared)) | ANYWHERE
    assert set(parse_qs(address.query, keep_blank_values=True)) <= allowed, request.url
    content = operation.get("requestBody", {}).get("content", {})
    assert bool(request.body) == bool(content), f"{request.method} {path}: {request.body!r}"
    if request.body:
        from jsonschema import Draft202012Validator

        (media,) = content.values()
        schema = media["schema"] | {"components": description["components"]}
        Draft202012Validator(schema).validate(json.loads(request.body))
    return f"{request.method} {path}"


@pytest.fixture
def sent(simulator: Simulator) -> list[requests.PreparedRequest]:
    """Return all requests of a client whose every method was called."""
    seen: list[requests.PreparedRequest] = []
    with client_of(simulator) as client:

        def keep(response: requests.Response, **_: Any) -> None:
            seen.append(response.request)

        client._transport._session.hooks["response"].append(keep)
        client.login()
        products = client.search(dataset="SWOT_CYCLE_008", limit=2)
        client.attributes("SWOT_CYCLE_008")
        client.estimate(products, data_types=["RAWDATA", "QUICKLOOK"])
        client.quota()
        client.cart()
        urn = products.index[0]
        product = simulator.service.catalogue.product(urn)
        assert product is not None
        md5 = product.files[0].source.md5
        with client.open_product_file(urn, md5, accept_licence=True):
            pass
        client._catalogue.restore([urn], timeout_s=10, poll_s=0.01)
        order = simulator.order(OrderPlan(n_files=4, files_per_suborder=1, outcome=Outcome.PARTIAL))
        client.pause(order)
        client.resume(order)
        simulator.wait_available(order)
        (file, *_) = client.available_files(order)
        sub_order = simulator.service.orders[order].sub_orders[0].sub_order_id
        client.available_files(order, sub_order_id=sub_order)
        with client.open_file(file.file_id or 0):
            pass
        for number in client.order(order).dataset_ids:
            client.dataset_files(order, number)
        client.orders()
        client.clock_skew_s()
        while simulator.service.orders[order].status != "DONE_WITH_WARNING":
            with client.open_zip(order) as zipped:
                if zipped is not None:
                    list(zipped.blocks())
        client.retry(order)
        simulator.wait_for(order, "DONE_WITH_WARNING")
        client.apply(["cycle:8"])
        client.apply(["cycle:8"], filename_regexp=r".*\.csv", correlation_id="c")
        client.apply(["cycle:8"], data_types=["RAWDATA"])
        again = client.restart(order, label="again").order_id
        client.pause(again)
        client.delete(again)
    return seen


def test_each_request_is_one_that_regards_describes(sent: list[requests.PreparedRequest]) -> None:
    """Its path, method, parameters and body; nothing in them is unknown to REGARDS."""
    compared = {compare(request) for request in sent} - {None}
    assert len(compared) >= 20


@pytest.mark.parametrize("service", ["rs-authentication", "rs-catalog", "rs-order"])
def test_the_names_kept_here_are_those_of_the_description(service: str) -> None:
    """Where the descriptions are there, what is compared without them is compared with them."""
    kept, whole = description_of(service, DATA), description_of(service)
    for path, operations in kept["paths"].items():
        for method, operation in operations.items():
            described = whole["paths"][path][method]
            names = {p["name"] for p in described.get("parameters", ()) if p["in"] == "query"}
            assert {p["name"] for p in operation.get("parameters", ())} <= names, path
            assert ("requestBody" in operation) == ("requestBody" in described), path
    for name, schema in kept["components"]["schemas"].items():
        described = whole["components"]["schemas"][name]
        assert set(schema["properties"]) <= set(described["properties"]), name
        assert set(schema.get("required", ())) == set(described.get("required", ())), name
