"""What `submit` takes, shows and refuses before anything is ordered."""

from __future__ import annotations

import io
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import client_of, tracker_of

from regards_nb import Order, OrderTracker, errors, queries
from regards_nb.journal import Leases
from regards_nb.simulator import PrivateBroker, Reply, Route, Simulator, html_page


@pytest.fixture
def tracker(simulator: Simulator, tmp_path: Path) -> OrderTracker:
    """Return a tracker that has nothing but REST. It need not be started to order."""
    return OrderTracker(client=client_of(simulator), journal=tmp_path / "journal.sqlite")


def applied(simulator: Simulator) -> int:
    return sum(seen.path.endswith("/apply") for seen in simulator.requests)


def ordered(simulator: Simulator, order_id: int | None) -> set[str | None]:
    """Return the provider ids of the products of an order."""
    assert order_id is not None
    return {file.spec.product_id for file in simulator.service.orders[order_id].files} - {None}


# -- products


@pytest.mark.parametrize(
    "form",
    ["rows", "index", "list of urns", "provider ids", "series", "frame with urn", "mixed", "query"],
)
def test_products_are_ordered_in_any_form(
    form: str, simulator: Simulator, tracker: OrderTracker
) -> None:
    """Each form is the same order of the same products."""
    assert tracker.client is not None
    rows = tracker.client.search(dataset="SWOT_CYCLE_008", **{"pass": (1, 3)})
    forms: dict[str, Any] = {
        "rows": rows,
        "index": rows.index,
        "list of urns": list(rows.index),
        "provider ids": list(rows["provider_id"]),
        "series": rows["provider_id"],
        "frame with urn": pd.DataFrame({"urn": rows.index, "mine": [1, 2, 3]}),
        "mixed": [rows.index[0], *rows["provider_id"][1:]],
        "query": 'dataset:"SWOT_CYCLE_008" AND pass:[1 TO 3]',
    }
    order = tracker.submit(forms[form])
    assert ordered(simulator, order.order_id) == set(rows["provider_id"])


def test_one_name_is_a_product_and_no_search_for_words(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """As a query, the words of the name would find another product, too."""
    assert tracker.client is not None
    assert len(tracker.client.search("SWOT_SSH_008_001")) == 2
    order = tracker.submit("SWOT_SSH_008_001")
    assert ordered(simulator, order.order_id) == {"SWOT_SSH_008_001"}


def test_provider_ids_of_any_text_are_ids(tracker: OrderTracker) -> None:
    """A column of provider ids is not read as queries, whatever is in it."""
    names = pd.Series(["S1A: a b", "x AND y OR z"], name="provider_id")
    request = tracker.submit(names, dry_run=True)
    assert request.queries == ['providerId:("S1A: a b" OR "x AND y OR z")']
    with pytest.raises(errors.SettingsError, match="not empty, not nan"):
        tracker.submit(pd.Series(["a", float("nan")], name="provider_id"), dry_run=True)


@pytest.mark.parametrize("wrong", [None, 5])
def test_what_names_no_product_is_refused(tracker: OrderTracker, wrong: Any) -> None:
    """The text says what submit takes."""
    with pytest.raises(errors.SettingsError, match="rows of client.search.*not (NoneType|int)"):
        tracker.submit(wrong)


def test_a_table_without_products_is_refused(tracker: OrderTracker) -> None:
    """The text has the columns that there are, and those that would do."""
    with pytest.raises(errors.SettingsError, match="column urn or provider_id, not only 'cycle'"):
        tracker.submit(pd.DataFrame({"cycle": [7]}))


def test_thousands_of_products_are_one_order(simulator: Simulator, tracker: OrderTracker) -> None:
    """They become several queries, none longer than Elasticsearch and a gateway take."""
    known = [f"SWOT_SSH_008_{number:03}" for number in range(1, 31)]
    ids = [*known[:15], *(f"NONE_{number}" for number in range(2500)), *known[15:]]
    request = tracker.submit(ids, dry_run=True)
    assert len(request.queries) == 3
    assert all(query.count(" OR ") < queries.MAX_IDS for query in request.queries)
    with pytest.raises(errors.SettingsError, match="no file for the query providerId"):
        tracker.submit(ids)
    assert applied(simulator) == 0
    ids = [*ids[:1000], known[20], *ids[1000:]]
    order = tracker.submit(ids)
    assert ordered(simulator, order.order_id) == set(known)


def test_one_query_without_a_file_would_end_the_order(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """REGARDS refuses all of it, and leaves the other products in the cart; so it is not sent."""
    wanted = ["cycle:8 AND pass:1", "cycle:99"]
    with client_of(simulator) as client:
        assert client.apply(wanted).error_type == "EMPTY_ORDER"
        assert client.cart()["products"].sum() == 1
    simulator.service.baskets.clear()
    with pytest.raises(errors.SettingsError, match="no file for the query cycle:99"):
        tracker.submit(wanted)
    assert applied(simulator) == 1


# -- the estimate


def test_the_estimate_is_shown_before_the_order(
    simulator: Simulator, tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Products, files, bytes, and how many of the products do not exist."""
    tracker.submit(["SWOT_SSH_008_001", "SWOT_SSH_008_002", "TYPO_1"], correlation_id="c")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ordering 2 products, 2 files, ")
    assert line.endswith("kB; the catalogue does not have 1 of the 3 products")
    tracker.submit(["SWOT_SSH_008_001", "SWOT_SSH_008_002", "TYPO_1"], correlation_id="c")
    tracker.submit("dataset:SWOT_CYCLE_007", estimate=False, correlation_id="d")
    assert capsys.readouterr().out == ""
    assert applied(simulator) == 2


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("SWOT_PASS_012", "SWOT_PASS_012 is the name of a data set: dataset:SWOT_PASS_012$"),
        ("dataset:SWOT_PASS_99", "Did you mean 'SWOT_PASS_0"),
        ("cycle:99", "no product for cycle:99$"),
        ("dataset:EMPTY", "no product for dataset:EMPTY$"),
    ],
)
def test_an_order_without_a_product_is_not_made(
    wanted: str, said: str, simulator: Simulator, tracker: OrderTracker
) -> None:
    """The estimate knows; a row of a FAILED order would stay in the table for ever."""
    with pytest.raises(errors.SettingsError, match=f"^nothing was ordered: .*{said}"):
        tracker.submit(wanted)
    assert applied(simulator) == 0
    assert tracker.orders.empty


def test_the_estimate_counts_the_ordered_types(
    tracker: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Products with other files are products of the order; a filter of names is only named."""
    tracker.submit("dataset:SWOT_CYCLE_007", data_types="QUICKLOOK", filename_regexp="zzz.*")
    told = capsys.readouterr().out
    assert told.startswith("ordering 10 products, 10 files, ")
    assert told.endswith(", of which only those that match filename_regexp='zzz.*'\n")


class _OtherOrder(frozenset[str]):
    """A set as another process may list it."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), reverse=True))


@pytest.mark.parametrize("form", [set, _OtherOrder, pd.Series])
def test_types_may_come_in_any_form_of_several(form: Any, tracker: OrderTracker) -> None:
    """The journal keeps them, and a set is the same request in each process."""
    types = ["QUICKLOOK", "RAWDATA"]
    given = form(types)
    order = tracker.submit("dataset:SWOT_PASS_012", data_types=given, correlation_id="a")
    again = tracker.submit("dataset:SWOT_PASS_012", data_types=types, correlation_id="a")
    assert order.key == again.key


def test_a_refused_query_orders_nothing(simulator: Simulator, tracker: OrderTracker) -> None:
    """The error has the words of the catalogue and the fields that exist."""
    with pytest.raises(errors.ServiceError, match="Unknown parameter cycel.*Fields: id, .*cycle"):
        tracker.submit("cycel:8")
    assert applied(simulator) == 0


@pytest.mark.parametrize("status", [403, 404, 500, 501])
def test_a_server_without_estimates_takes_orders(
    status: int, simulator: Simulator, tracker: OrderTracker
) -> None:
    """Only a limit needs the estimate."""
    simulator.faults.add(Reply(route=Route.CATALOGUE, status=status, times=None))
    assert tracker.submit("dataset:SWOT_PASS_012").order_id == 1
    with pytest.raises(
        errors.ServiceError, match="nothing was ordered for .*: size_limit_bytes needs"
    ):
        tracker.submit("dataset:SWOT_PASS_012", size_limit_bytes=10**9)
    assert applied(simulator) == 1


@pytest.mark.parametrize("route", [Route.BASKET, Route.ORDERS])
def test_an_outage_before_the_request_orders_nothing(
    route: Route, simulator: Simulator, tracker: OrderTracker
) -> None:
    """The text says so, and for which label; the number of the HTTP request is not the order's."""
    simulator.faults.add(Reply(route=route, status=503, times=None))
    told = r"^nothing was ordered for 'away': GET .*HTTP 503.*, HTTP request \S+\. REGARDS is down"
    with pytest.raises(errors.ServiceUnreachableError, match=told) as caught:
        tracker.submit("dataset:SWOT_PASS_012", label="away")
    assert "correlation id" not in str(caught.value)
    assert applied(simulator) == 0
    simulator.faults.clear()
    order = tracker.submit("dataset:SWOT_PASS_012", label="away")
    simulator.faults.add(Reply(route=Route.ACTION, status=503, times=None))
    with pytest.raises(errors.ServiceUnreachableError, match=r"^order 1: PUT .*HTTP 503"):
        order.pause()
    simulator.faults.clear()
    simulator.faults.add(html_page(Route.ACTION))
    with pytest.raises(errors.UnexpectedAnswerError, match=r"^order 1: PUT .*HTTP 200 \(page"):
        order.pause()


# -- the limit


def test_a_journal_that_cannot_be_written_orders_nothing(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path
) -> None:
    """A request is sent only after it is in the journal; the error says so."""
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON requests BEGIN "
            "SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
    with pytest.raises(errors.JournalError, match="nothing was ordered for 'x': .*disk is full"):
        tracker.submit("dataset:SWOT_PASS_012", label="x")
    assert not applied(simulator)


def test_an_order_above_the_limit_is_not_made(simulator: Simulator, tracker: OrderTracker) -> None:
    """The text has both figures; the same order below the limit is made."""
    assert tracker.client is not None
    n_bytes = int(tracker.client.estimate("dataset:SWOT_CYCLE_007")["bytes"].sum())
    with pytest.raises(
        errors.SettingsError,
        match=rf"nothing was ordered: 10 products, 20 files, .* size_limit_bytes={n_bytes - 1} \(",
    ):
        tracker.submit("dataset:SWOT_CYCLE_007", size_limit_bytes=n_bytes - 1)
    assert applied(simulator) == 0
    assert tracker.submit("dataset:SWOT_CYCLE_007", size_limit_bytes=n_bytes).order_id == 1
    with pytest.raises(errors.SettingsError, match="size_limit_bytes must be more than 0"):
        tracker.submit("dataset:SWOT_CYCLE_007", size_limit_bytes=0)


# -- a server that does not list the orders


def test_where_the_list_is_broken_an_order_is_made_and_it_is_said(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """With its answer nothing is in doubt."""
    simulator.faults.add(Reply(route=Route.ORDERS, status=504, times=None))
    with pytest.warns(UserWarning, match="does not list your orders.*correlation_id='c'"):
        order = tracker.submit("dataset:SWOT_PASS_012", correlation_id="c")
    assert (order.order_id, order.status) == (1, "GRANTED")


def test_where_the_list_is_broken_a_lost_answer_orders_nothing_twice(
    simulator: Simulator, tracker: OrderTracker
) -> None:
    """It says what to do; when the list is there again, no older order is taken for the new one."""
    simulator.order_by_query("dataset:SWOT_CYCLE_007")
    broken = simulator.faults.add(Reply(route=Route.ORDERS, status=504, times=None))
    simulator.faults.add(Reply(route=Route.APPLY, status=504))
    how_to_go_on = r"web page of REGARDS.*tracker.wait\(N\).*correlation_id='c'\) sends it again"
    with (
        pytest.warns(UserWarning, match="does not list"),
        pytest.raises(errors.ServiceUnreachableError, match=how_to_go_on),
    ):
        tracker.submit("dataset:SWOT_PASS_012", correlation_id="c")
    with pytest.raises(errors.ServiceUnreachableError, match=how_to_go_on):
        tracker.submit("dataset:SWOT_PASS_012", correlation_id="c")
    simulator.faults.remove(broken)
    with pytest.raises(errors.ServiceError, match="each of the orders 1 could be it"):
        tracker.submit("dataset:SWOT_PASS_012", correlation_id="c")
    assert applied(simulator) == 1
    tracker.sync()
    tracker._submission._in_doubt_s = 0
    assert tracker.submit("dataset:SWOT_PASS_012", correlation_id="c").order_id == 2


# -- over AMQP


@pytest.fixture
def over_amqp(broker: PrivateBroker, tmp_path: Path) -> Iterator[OrderTracker]:
    """Yield a started tracker without REST, whose user may publish requests."""
    from test_requests_amqp import let_publish

    with Simulator(broker=broker, amqp_requests=True, suborder_pause_s=0.01) as simulator:
        let_publish(broker, simulator)
        tracker = tracker_of(simulator, tmp_path, client=None)
        tracker.simulator = simulator
        with tracker:
            yield tracker


def test_the_limit_is_sent_over_amqp(
    over_amqp: OrderTracker, capsys: pytest.CaptureFixture[str]
) -> None:
    """REGARDS itself refuses; nothing is shown, because nobody can be asked."""
    user = over_amqp.simulator.username
    order = over_amqp.submit(
        "dataset:SWOT_CYCLE_007", user=user, size_limit_bytes=1000, cart="include"
    )
    assert (order.status, order.error_type) == ("DENIED", "ORDER_LIMIT_REACHED")
    assert capsys.readouterr().out == ""


def test_over_amqp_the_cart_is_not_seen_and_that_is_said(over_amqp: OrderTracker) -> None:
    """A warning, which ``cart="include"`` accepts."""
    user = over_amqp.simulator.username
    with pytest.warns(UserWarning, match="cart on its web page, and this tracker cannot look"):
        over_amqp.submit("dataset:SWOT_PASS_012", user=user)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        over_amqp.submit("dataset:SWOT_PASS_012", user=user, cart="include", label="second")


def test_a_kernel_that_was_suspended_orders_nothing_that_another_ordered_meanwhile(
    simulator: Simulator, tracker: OrderTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a closed laptop: its lease has ended, and another kernel has it."""
    monkeypatch.setattr(Leases, "duration_s", 0.2)
    monkeypatch.setattr(Leases, "renewal_s", 1000.0)  # it renews nothing, as if suspended
    other = OrderTracker(client=client_of(simulator), journal=tmp_path / "journal.sqlite")
    order = {"products": "dataset:SWOT_PASS_012", "correlation_id": "one name"}
    found: list[Order] = []

    class Meanwhile(io.StringIO):
        def write(self, text: str) -> int:
            if "ordering" in text and not found:
                monkeypatch.undo()
                found.append(other.submit(**order, estimate=False))
            return len(text)

    monkeypatch.setattr(sys, "stdout", Meanwhile())
    assert tracker.submit(**order).order_id == found[0].order_id
    assert applied(simulator) == 1
