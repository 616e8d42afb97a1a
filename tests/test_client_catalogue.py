"""The catalogue: search, data sets, attributes, estimates, quota, cart, files without an order."""

from __future__ import annotations

import hashlib
from datetime import date
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from conftest import client_of

from regards_nb import queries
from regards_nb.client import RegardsClient
from regards_nb.errors import (
    IncompleteDownloadError,
    NotAllowedError,
    ServiceError,
    ServiceLoginError,
    SettingsError,
)
from regards_nb.frames import PRODUCT_COLUMNS
from regards_nb.simulator import CutFile, Reply, Route, Simulator, StorageRefuses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def client(simulator: Simulator) -> Iterator[RegardsClient]:
    """Return a client with a login."""
    with client_of(simulator) as made:
        yield made


def test_products_are_rows_with_typed_attributes(client: RegardsClient) -> None:
    """Index URN; the fixed columns, then the attributes with the types of the model."""
    found = client.search(dataset="SWOT_CYCLE_008", cycle=8, **{"pass": (2, 4)})
    assert list(found.columns[: len(PRODUCT_COLUMNS)]) == list(PRODUCT_COLUMNS)
    assert found.index.name == "urn"
    assert sorted(found["provider_id"]) == [f"SWOT_SSH_008_00{number}" for number in (2, 3, 4)]
    assert set(found["dataset"]) == {"SWOT_CYCLE_008"}
    assert found["files"].tolist() == [1, 1, 1]
    assert (found["bytes"] > 1000).all()
    assert found["online"].all()
    assert found["pass"].dtype == "Int64"
    assert found["mean_sea_level_m"].dtype == "Float64"
    assert str(found["date_obs"].dtype) == "datetime64[us, UTC]"
    assert found["properties.dataset"].tolist() == ["SWOT_CYCLE_008"] * 3


def test_a_frame_without_products_has_the_same_columns(client: RegardsClient) -> None:
    """Dtypes do not change with the number of rows, zero included."""
    none, some = client.search("cycle:99"), client.search("cycle:8", limit=2)
    assert (len(none), len(some)) == (0, 2)
    pd.testing.assert_series_equal(none.dtypes, some.dtypes)


def test_dates_queries_and_fields_go_together(client: RegardsClient) -> None:
    """All conditions must match; a query with OR keeps its meaning."""
    assert len(client.search()) == 62
    days = (date(2026, 1, 22), date(2026, 1, 24))
    by_date = client.search(dataset="SWOT_CYCLE_008", date_obs=days)
    assert sorted(by_date["pass"]) == [1, 2, 3]
    assert len(client.search("pass:1 OR pass:2", dataset="SWOT_CYCLE_008")) == 2
    assert len(client.search("pass:1 OR pass:2", cycle=[7, 8], instrument="KaRIn")) >= 2


def test_pages_are_fetched_as_needed(simulator: Simulator, client: RegardsClient) -> None:
    """A limit ends the requests; without one, all pages come."""
    client._catalogue.page_size = 10
    client.search(limit=15)
    searches = [each for each in simulator.requests if each.path.endswith("dataobjects/search")]
    assert len(searches) == 2
    assert len(client.search()) == 62


def test_a_public_project_needs_no_login(simulator: Simulator) -> None:
    """Search, data sets, attributes and files; an order needs one."""
    with RegardsClient(simulator.base_url, tenant=simulator.tenant) as public:
        assert len(public.search(dataset="SWOT_CYCLE_008", limit=3)) == 3
        assert "SWOT_CYCLE_008" in set(public.datasets()["label"])
        assert public.attributes("SWOT_CYCLE_008").loc["pass", "type"] == "INTEGER"
        with pytest.raises(SettingsError, match="needs a login"):
            public.orders()
        with pytest.raises(ServiceLoginError, match="needs a login: .*HTTP 401"):
            public.quota()


@pytest.mark.parametrize("status", [403, 404])
def test_a_server_that_searches_elsewhere_is_found(
    status: int, simulator: Simulator, client: RegardsClient
) -> None:
    """Where rs-catalog does not answer, rs-access-project does."""
    # After a 403 the client tries a new token, once.
    fault = Reply(route=Route.CATALOGUE, status=status, times=2 if status == 403 else 1)
    simulator.faults.add(fault)
    assert len(client.search("cycle:8", limit=3)) == 3
    paths = [each.path for each in simulator.requests]
    assert "/api/v1/rs-access-project/dataobjects/search" in paths


def test_a_refused_query_is_told_with_the_fields_that_exist(client: RegardsClient) -> None:
    """The server's words, the fixed fields and the attributes."""
    with pytest.raises(ServiceError, match="Unknown parameter productId") as caught:
        client.search("productId:x")
    assert "Fields: id, providerId, label" in str(caught.value)
    assert "mean_sea_level_m" in str(caught.value)
    with pytest.raises(ServiceError, match="Fields: id"):
        client.estimate("nothing:x")


def test_a_date_alone_is_refused_with_what_to_give(client: RegardsClient) -> None:
    """The attribute may be a text, so the catalogue decides."""
    with pytest.raises(ServiceError, match=r"A date needs a time: give date\(2026, 1, 31\)"):
        client.search(date_obs="2026-01-22")


def test_an_unknown_data_set_is_told_with_similar_names(client: RegardsClient) -> None:
    """Nothing is searched."""
    with pytest.raises(SettingsError, match="no data set 'SWOT_CYCLE_8'.*SWOT_CYCLE_008"):
        client.search(dataset="SWOT_CYCLE_8")


@pytest.mark.parametrize("form", ["rows", "urns", "ids", "query", "one row"])
def test_an_estimate_counts_files_and_bytes(form: str, client: RegardsClient) -> None:
    """By data set and type of file, for every form in which a user has products."""
    found = client.search(dataset="SWOT_CYCLE_008", **{"pass": (1, 2)})
    wanted: Any = {
        "rows": found,
        "urns": list(found.index),
        "ids": list(found["provider_id"]),
        "query": queries.both('dataset:"SWOT_CYCLE_008"', queries.between("pass", 1, 2)),
        "one row": found.iloc[0],
    }[form]
    assert client.estimate(found, data_types=["QUICKLOOK"]).empty
    n_products = 1 if form == "one row" else 2
    (row,) = client.estimate(wanted, data_types=["RAWDATA"]).to_dict("records")
    assert (row["dataset"], row["data_type"]) == ("SWOT_CYCLE_008", "RAWDATA")
    assert (row["products"], row["files"]) == (n_products, n_products)
    assert row["bytes"] == found["bytes"][:n_products].sum()


def test_the_quota_is_shown(client: RegardsClient) -> None:
    """Missing means that there is no limit."""
    quota = client.quota()
    assert quota.loc["downloads", "used"] == 0
    assert quota["allowed"].isna().all()


def test_the_cart_is_shown(simulator: Simulator, client: RegardsClient) -> None:
    """An empty one has no rows."""
    assert client.cart().empty
    simulator.fill_basket("cycle:8 AND pass:1")
    (row,) = client.cart().to_dict("records")
    assert (row["dataset"], row["products"]) == ("SWOT_CYCLE_008", 1)


def test_products_are_downloaded_without_an_order(
    simulator: Simulator, client: RegardsClient, tmp_path: Path
) -> None:
    """Verified, under their names, without an order; a second call fetches nothing."""
    found = client.search(dataset="SWOT_CYCLE_008", **{"pass": (1, 3)})
    paths = client.download_products(found, tmp_path / "files", show=False)
    assert sorted(path.name for path in paths) == [f"{i}.csv" for i in sorted(found["provider_id"])]
    digests = {hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
    products = simulator.service.catalogue.search("cycle:8 AND pass:[1 TO 3]")
    assert digests == {product.files[0].source.md5 for product in products}
    downloads = sum("/downloads/" in each.path for each in simulator.requests)
    assert client.download_products(found, tmp_path / "files", show=False) == paths
    assert sum("/downloads/" in each.path for each in simulator.requests) == downloads == 3


def test_a_cut_file_is_fetched_again_and_a_missing_one_is_named(
    simulator: Simulator, client: RegardsClient, tmp_path: Path
) -> None:
    """Nothing incomplete gets a final name."""
    found = client.search(dataset="SWOT_CYCLE_008", **{"pass": (1, 2)})
    one, two = sorted(f"{each}.csv" for each in found["provider_id"])
    simulator.faults.add(CutFile(name=one, after_bytes=10))
    simulator.faults.add(StorageRefuses(name=two, times=None))
    with pytest.raises(IncompleteDownloadError, match="1 of 2 files") as caught:
        client.download_products(found, tmp_path / "files", show=False, backoff_s=0.01)
    assert [path.name for path in caught.value.paths] == [one]
    assert set(caught.value.missing) == {two}


def test_what_is_on_tape_is_said_or_restored(client: RegardsClient, tmp_path: Path) -> None:
    """Without ``restore`` nothing is fetched; with it, REGARDS restores the files first."""
    found = client.search(dataset="TAPE_ARCHIVE", limit=2)
    assert not found["online"].any()
    with pytest.raises(NotAllowedError, match="2 of 2 products on tape: "):
        client.download_products(found, tmp_path / "files", show=False)
    paths = client.download_products(
        found, tmp_path / "files", show=False, restore=True, poll_s=0.01
    )
    assert len(paths) == 2


def test_a_licence_is_accepted_by_the_user_only(
    simulator: Simulator, client: RegardsClient, tmp_path: Path
) -> None:
    """The error says how."""
    for dataset in simulator.service.catalogue.datasets.values():
        dataset.licence = "the licence"
    found = client.search(dataset="SWOT_CYCLE_008", limit=1)
    with pytest.raises(IncompleteDownloadError, match="accept_licence=True") as refused:
        client.download_products(found, tmp_path / "files", show=False)
    assert str(refused.value).startswith("1 of 1 file could not be downloaded. ")
    paths = client.download_products(found, tmp_path / "files", show=False, accept_licence=True)
    assert len(paths) == 1


def test_a_wrong_login_is_no_reason_to_search_elsewhere(simulator: Simulator) -> None:
    """The login's own error comes out."""
    with client_of(simulator, password="wrong") as client, pytest.raises(ServiceLoginError):
        client.search()
