"""The simulator's catalogue finds, refuses and delivers what REGARDS does."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import requests
from simulator_session import ORDERS_PATH, Session

from regards_nb.simulator import CutFile, LoginForm, Simulator, StorageRefuses

if TYPE_CHECKING:
    pass

CATALOGUE = "/api/v1/rs-catalog"
SEARCH = f"{CATALOGUE}/engines/legacy/dataobjects/search"
PORTAL_SEARCH = "/api/v1/rs-access-project/dataobjects/search"
TOKEN = "/api/v1/rs-authentication/oauth/token"


def found(user: Session, query: str, path: str = SEARCH) -> list[dict[str, Any]]:
    """Return the products of all pages."""
    page = user.get(path, params={"q": query, "size": 2000})
    assert page.status_code == 200, page.text
    return [item["content"] for item in page.json()["content"]]


# -- queries


@pytest.mark.parametrize(
    ("query", "products"),
    [
        ("", 62),
        ("dataset:SWOT_CYCLE_008", 30),
        ('dataset:"SWOT_CYCLE"', 0),  # in quotes: exact
        ("dataset:SWOT_CYCLE", 40),  # bare: contained
        ("dataset:SWOT_*_008", 30),
        ("dataset:/SWOT_CYCLE_00[78]/", 40),
        ("providerId:(SWOT_SSH_008_001 OR SWOT_SSH_008_002)", 2),
        ('properties.instrument:"KaRIn" AND cycle:8', 30),
        ("cycle:8 AND pass:[2 TO 4]", 3),
        ("cycle:8 AND pass:{2 TO 4}", 1),
        ('cycle:8 AND pass:["29" TO *]', 2),
        ("cycle:8 AND NOT pass:[2 TO *]", 1),
        ("cycle:8 AND (pass:1 OR pass:2)", 2),
        # AND and OR on one level are a single OR
        ("cycle:8 AND pass:1 OR pass:2", 30 + 5 + 5),
        ("date_obs:[2026-01-22T00:00:00Z TO 2026-01-23T12:00:00.000+01:00]", 2),
        (r"date_obs:2026-01-22T00\:00\:00Z", 1),
        ("mean_sea_level_m:[0.1 TO *] AND cycle:8", 7),
        ("last:true AND version:1 AND cycle:8", 30),
        ("rawdata:SWOT_SSH_008_001.csv", 1),
        ("karin AND cycle:8", 30),  # no field: a word of any text
    ],
)
def test_a_query_finds_what_regards_finds(user: Session, query: str, products: int) -> None:
    """The number of products is that of the meaning that REGARDS gives to the query."""
    assert len(found(user, query)) == products


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("productId:x", "Unknown parameter productId for tenant demo"),
        ("properties.nothing:x", "Unknown parameter properties.nothing for tenant demo"),
        ("date_obs:[2026-01-01 TO *]", "2026-01-01"),
        ("date_obs:2026", "2026"),
        ("dataset:[a TO b]", "range"),
        ("pass:twelve", "twelve"),
        ("pass:1.5", "1.5"),
        ("dataset:a dataset:b", "without AND or OR"),
        ("dataset:SWOT~", "fuzzy"),
        ("dataset:(a OR", "Syntax Error"),
        ("dataset:a)", "Syntax Error"),
        ("dataset:", "Syntax Error"),
        ("date_obs:2026-01-22T00:00:00Z", "Syntax Error"),
        ("dataset:/(/", "regular expression"),
    ],
)
def test_a_refused_query_is_400_and_no_order(user: Session, query: str, words: str) -> None:
    """The search answers 400 with the reason; an order with that query is FAILED without an id."""
    answer = user.get(SEARCH, params={"q": query})
    assert answer.status_code == 400
    assert words in answer.json()["messages"][0]
    applied = user.apply(query)
    content = applied.json()["content"]
    assert (applied.status_code, content["status"]) == (422, "FAILED")
    assert content["errorType"] == "INTERNAL_ERROR"
    assert content["message"].startswith("CatalogSearchException: ")
    assert words in content["message"]
    assert "orderId" not in content


# -- searching


@pytest.mark.parametrize("path", [SEARCH, PORTAL_SEARCH])
def test_products_are_found_in_pages(user: Session, path: str) -> None:
    """Both endpoints give the same pages: identity, attributes, and each file with its checksum."""
    page = user.get(path, params={"q": "cycle:8", "size": 7, "page": 4}).json()
    assert page["metadata"] == {"size": 7, "totalElements": 30, "totalPages": 5, "number": 4}
    last = page["content"][-1]["content"]
    assert last["providerId"] == "SWOT_SSH_008_030"
    assert last["properties"]["pass"] == 30
    (file,) = last["files"]["RAWDATA"]
    assert file["filename"] == "SWOT_SSH_008_030.csv"
    assert file["online"] is True
    data = user.http.get(file["uri"], timeout=30).content
    assert (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()) == (
        file["filesize"],
        file["checksum"],
    )
    assert found(user, f'id:"{last["id"]}"', path) == [last]


def test_data_sets_and_attributes_are_listed(user: Session) -> None:
    """Each data set has a URN; its products bear it as a tag; attributes have types."""
    page = user.get(f"{CATALOGUE}/engines/legacy/datasets/search").json()
    datasets = {each["content"]["label"]: each["content"] for each in page["content"]}
    assert {"SWOT_PASS_012", "SWOT_CYCLE_008", "TAPE_ARCHIVE", "EMPTY"} < set(datasets)
    urn = datasets["SWOT_CYCLE_008"]["id"]
    inside = found(user, f'tags:"{urn}"')
    assert len(inside) == 30
    models = user.get(f"{SEARCH}/attributes").json()
    types = {each["content"]["name"]: each["content"]["type"] for each in models}
    assert types["pass"] == "INTEGER"
    assert types["date_obs"] == "DATE_ISO8601"
    assert set(types) == set(inside[0]["properties"])


def test_searching_needs_no_login_but_the_project(simulator: Simulator) -> None:
    """Without a token, the header ``scope`` names the project; orders stay closed."""
    url, scope = simulator.base_url, {"scope": simulator.tenant}
    assert requests.get(url + SEARCH, headers=scope, timeout=30).status_code == 200
    assert requests.get(url + SEARCH, timeout=30).status_code == 401
    assert requests.get(url + ORDERS_PATH, headers=scope, timeout=30).status_code == 401


def test_a_summary_counts_before_an_order(user: Session) -> None:
    """Files and bytes by data set and type, of all types or of some."""
    rows = found(user, "dataset:SWOT_PASS_012")
    request = {"engineType": "legacy", "searchParameters": {"q": ["dataset:SWOT_PASS_012"]}}
    path = f"{CATALOGUE}/complex/search/summary"
    counted = user.send("POST", path, json={"requests": [request]}).json()
    assert (counted["documentsCount"], counted["filesCount"]) == (2, 3)
    files = [file for row in rows for kind in row["files"].values() for file in kind]
    assert counted["filesSize"] == sum(file["filesize"] for file in files)
    assert set(counted["fileTypesSummaryMap"]) == {"RAWDATA", "QUICKLOOK_SD"}
    assert set(counted["subSummariesMap"]) == set(rows[0]["tags"])
    asked = {"requests": [request], "dataTypes": ["RAWDATA"]}
    assert user.send("POST", path, json=asked).json()["filesCount"] == 2
    wrong = {"engineType": "legacy", "searchParameters": {"q": ["productId:x"]}}
    assert user.send("POST", path, json={"requests": [wrong]}).status_code == 400


# -- ordering


def test_documents_of_a_data_set_pass_every_filter(user: Session, simulator: Simulator) -> None:
    """An order of one product contains the files of its data set, whatever the filters are."""
    answer = user.apply("providerId:SWOT_SSH_008_001", filters={"dataTypes": ["QUICKLOOK"]})
    order_id = answer.json()["content"]["orderId"]
    simulator.wait_for(order_id, "DONE")
    assert set(user.entries(order_id)) == {"SWOT_SSH_FORMAT.txt"}


def test_a_manifest_names_products_by_their_provider_id(
    user: Session, simulator: Simulator
) -> None:
    """``productId`` is the provider id, not the URN."""
    order_id = user.apply('providerId:"SWOT_SSH_007_012"').json()["content"]["orderId"]
    simulator.wait_for(order_id, "DONE")
    assert {row["productId"] for row in user.available(order_id)} == {"SWOT_SSH_007_012"}


def test_the_web_basket_is_ordered_along(user: Session, simulator: Simulator) -> None:
    """What lies in the basket is part of the next order, and the basket is empty then."""
    path = "/api/v1/rs-order/order/basket"
    assert user.get(path).status_code == 204
    simulator.fill_basket("cycle:8 AND pass:[1 TO 3]")
    (selection,) = user.get(path).json()["content"]["datasetSelections"]
    assert (selection["datasetLabel"], selection["objectsCount"]) == ("SWOT_CYCLE_008", 3)
    user.apply("dataset:SWOT_PASS_012")
    names = {file.spec.name for file in simulator.service.orders[1].files}
    assert {"SWOT_SSH_007_012.csv", "SWOT_SSH_008_003.csv"} < names
    assert user.get(path).status_code == 204


def test_an_order_above_its_size_limit_is_denied(simulator: Simulator, user: Session) -> None:
    """ORDER_LIMIT_REACHED; the selection stays in the basket."""
    result = simulator.service.request_by_query(
        ["cycle:8"], owner=simulator.username, correlation_id="c", size_limit_bytes=1000
    )
    assert result.refusal is not None
    assert result.refusal.error_type == "ORDER_LIMIT_REACHED"
    assert user.get("/api/v1/rs-order/order/basket").status_code == 200


# -- downloads without an order


@pytest.fixture
def tape_file(user: Session) -> str:
    """Return the path of a file on tape."""
    row = found(user, "dataset:TAPE_ARCHIVE AND pass:1")[0]
    return f"{CATALOGUE}/downloads/{row['id']}/files/{row['files']['RAWDATA'][0]['checksum']}"


def test_a_file_on_tape_is_202_until_it_is_restored(user: Session, tape_file: str) -> None:
    """Availability and download follow the restoration; ``online`` stays False."""
    assert user.get(tape_file).status_code == 202
    row = found(user, "dataset:TAPE_ARCHIVE AND pass:1")[0]
    request = {"product_ids": [row["id"]]}

    def is_available() -> bool:
        answer = user.send("POST", f"{CATALOGUE}/availability/files", json=request)
        (product,) = answer.json()["products"]
        assert product["id"] == row["id"]
        return bool(product["files"][0]["available"])

    assert not is_available()
    assert user.send("POST", f"{CATALOGUE}/restore", json=request).status_code == 200
    assert is_available()
    assert user.get(tape_file).status_code == 200
    row = found(user, "dataset:TAPE_ARCHIVE AND pass:1")[0]
    assert row["files"]["RAWDATA"][0]["online"] is False


def test_a_licence_must_be_accepted(user: Session) -> None:
    """423 until the request says ``acceptLicense=true``."""
    file = found(user, "cycle:7 AND pass:1")[0]["files"]["RAWDATA"][0]
    assert user.http.get(file["uri"], timeout=30).status_code == 423
    accepted = user.http.get(file["uri"], params={"acceptLicense": "true"}, timeout=30)
    assert len(accepted.content) == file["filesize"]


def test_faults_apply_to_files_without_an_order(user: Session, simulator: Simulator) -> None:
    """A refusal of storage and a cut body reach the client; downloads are counted."""
    file = found(user, "cycle:8 AND pass:1")[0]["files"]["RAWDATA"][0]
    simulator.faults.add(StorageRefuses(name=file["filename"], status=410))
    assert user.http.get(file["uri"], timeout=30).status_code == 410
    simulator.faults.add(CutFile(name=file["filename"], after_bytes=10))
    with pytest.raises(requests.RequestException):
        _ = user.http.get(file["uri"], timeout=30).content
    assert user.http.get(file["uri"], timeout=30).status_code == 200
    quota = user.get("/api/v1/rs-storage/quota/current").json()
    assert (quota["email"], quota["maxQuota"], quota["currentQuota"]) == (
        simulator.username,
        -1,
        2,
    )
    assert user.get(f"{CATALOGUE}/downloads/URN:AIP:DATA:demo:x:V1/files/00").status_code == 404


# -- logging in


def log_in(simulator: Simulator, **body: Any) -> requests.Response:
    """Send the credentials as JSON or as a form."""
    fields = {
        "grant_type": "password",
        "username": simulator.username,
        "password": simulator.password,
        "scope": simulator.tenant,
    }
    return requests.post(
        simulator.base_url + TOKEN,
        auth=("client", "secret"),
        timeout=30,
        **{how: fields | changes for how, changes in body.items()},
    )


def test_both_bodies_and_both_clients_can_log_in(simulator: Simulator, user: Session) -> None:
    """JSON and form get a token, with REGARDS' default client as with its own."""
    assert log_in(simulator, json={}).status_code == 200
    assert log_in(simulator, data={}).status_code == 200
    assert user.ask_token().status_code == 200


@pytest.mark.simulator(login_form=LoginForm.FORM)
def test_an_old_server_takes_a_form_only(simulator: Simulator) -> None:
    """JSON gets an OAuth error, wrong credentials are ``invalid_grant``."""
    answer = log_in(simulator, json={})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert log_in(simulator, data={}).status_code == 200
    wrong = log_in(simulator, data={"password": "wrong"})
    assert (wrong.status_code, wrong.json()["error"]) == (400, "invalid_grant")


@pytest.mark.simulator(login_form=LoginForm.JSON)
def test_a_new_server_takes_json_only(simulator: Simulator) -> None:
    """A form gets an OAuth error."""
    assert log_in(simulator, json={}).status_code == 200
    assert log_in(simulator, data={}).json()["error"] == "invalid_request"


def test_a_foreign_token_needs_the_scope(simulator: Simulator) -> None:
    """With ``scope`` it is accepted; once refused without it, it stays refused."""
    url = simulator.base_url + ORDERS_PATH
    bearer = {"Authorization": f"Bearer {simulator.foreign_token}"}
    scope = {"scope": simulator.tenant}
    assert requests.get(url, headers=bearer | scope, timeout=30).status_code == 200
    assert requests.get(url, headers=bearer, params=scope, timeout=30).status_code == 200
    assert requests.get(url, headers=bearer, timeout=30).status_code == 401
    assert requests.get(url, headers=bearer | scope, timeout=30).status_code == 401


@pytest.mark.simulator(api_key="portal")
def test_a_portal_wants_its_key_with_every_request(simulator: Simulator) -> None:
    """Without the key there is neither a token nor a search."""
    url, scope = simulator.base_url, {"scope": simulator.tenant}
    assert log_in(simulator, json={}).status_code == 403
    assert requests.get(url + SEARCH, headers=scope, timeout=30).status_code == 403
    key = scope | {"X-API-Key": "portal"}
    assert requests.get(url + SEARCH, headers=key, timeout=30).status_code == 200
