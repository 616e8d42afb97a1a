"""What others wrote judges the simulator: the descriptions of REGARDS' services, and a client.

The descriptions (OpenAPI, published with the documentation of REGARDS 2.4) are read from
``../shared/openapi`` and are no part of this repository. Where they are absent, the first test
compares nothing and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import installed
from simulator_session import FILES_PATH, ORDERS_PATH, Session

if TYPE_CHECKING:
    from regards_nb.simulator import Simulator

ROOT = Path(__file__).parent.parent
DESCRIPTIONS = ROOT.parent / "shared" / "openapi"
PACKAGES = Path(__file__).parent / "data" / "sunpy-regards.txt"


def strict(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description that refuses unknown properties."""
    for schema in description["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return description


def validate(service: str, schema: str, value: Any) -> None:
    """Compare a JSON value with a schema of a service."""
    from jsonschema import Draft202012Validator

    description = strict(json.loads((DESCRIPTIONS / f"{service}.json").read_text()))
    wanted = {"$ref": f"#/components/schemas/{schema}", "components": description["components"]}
    Draft202012Validator(wanted).validate(value)


def test_answers_and_requests_are_those_of_the_description(
    user: Session, simulator: Simulator
) -> None:
    """Orders, manifest, basket, attributes, summary and availability have no unknown property."""
    if not DESCRIPTIONS.exists():
        sys.stdout.write(f"{DESCRIPTIONS} is absent: nothing was compared\n")
        return
    request = {"queries": ["dataset:SWOT_PASS_012"], "correlationId": "c"}
    validate("rs-order", "OrderRequestDto", request)
    applied = user.send("POST", f"{ORDERS_PATH}/apply", json=request).json()
    validate("rs-order", "EntityModelOrderResponseDto", applied)
    order_id = applied["content"]["orderId"]
    simulator.wait_for(order_id, "DONE")
    simulator.fill_basket("cycle:8")
    catalogue = "/api/v1/rs-catalog"
    selection = {
        "requests": [{"engineType": "legacy", "searchParameters": {"q": ["cycle:8"]}}],
        "dataTypes": ["RAWDATA"],
    }
    validate("rs-catalog", "ComplexSearchRequest", selection)
    search = f"{catalogue}/engines/legacy/dataobjects/search"
    page = user.get(search, params={"q": "cycle:8", "size": 2}).json()
    urn = page["content"][0]["content"]["id"]
    products = {"product_ids": [urn]}
    for service, schema, answer in (
        ("rs-order", "PagedModelEntityModelOrderDto", user.get(ORDERS_PATH)),
        ("rs-order", "EntityModelOrderDto", user.get(f"{ORDERS_PATH}/{order_id}")),
        (
            "rs-order",
            "PagedModelEntityModelOrderDataFileDTO",
            user.get(f"{FILES_PATH}/{order_id}/files/available"),
        ),
        ("rs-order", "EntityModelBasketDto", user.get("/api/v1/rs-order/order/basket")),
        (
            "rs-catalog",
            "DocFilesSummary",
            user.send("POST", f"{catalogue}/complex/search/summary", json=selection),
        ),
        (
            "rs-catalog",
            "FilesAvailabilityResponseDto",
            user.send("POST", f"{catalogue}/availability/files", json=products),
        ),
    ):
        assert answer.status_code == 200, answer.text
        validate(service, schema, answer.json())
    for model in user.get(f"{search}/attributes").json():
        validate("rs-catalog", "EntityModelAttributeModel", model)
    for item in page["content"]:
        # The description knows neither the attributes of a model nor the types of files.
        feature = {name: value for name, value in item["content"].items() if name != "properties"}
        validate("rs-catalog", "EntityFeature", feature | {"files": {}})
    validate("rs-catalog", "PageMetadata", page["metadata"])


@pytest.mark.slow
def test_a_client_of_other_authors_finds_and_downloads(
    simulator: Simulator, tmp_path: Path
) -> None:
    """sunpy-regards, unchanged, logs in with a form, finds products by time and saves them."""
    sim = simulator
    packages = installed(ROOT / "build" / "sunpy-regards", "-r", str(PACKAGES))
    command = [sys.executable, str(Path(__file__).with_name("sunpy_client.py"))]
    done = subprocess.run(
        [*command, sim.base_url, sim.username, sim.password, sim.tenant, str(tmp_path / "files")],
        env={**os.environ, "PYTHONPATH": str(packages), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved = {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    files = [
        file
        for product in sim.service.catalogue.search("cycle:8 AND pass:[1 TO 3]")
        for file in product.files
    ]
    assert saved == {file.name: b"".join(file.source.chunks()) for file in files}
