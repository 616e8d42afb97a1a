"""Orders live as REGARDS' do, and the same seed gives the same orders (protocol.md 0)."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_session import ORDERS_PATH, Session

from regards_nb.simulator import FileSpec, OrderPlan, Outcome, Simulator, dataset_names, gson

if TYPE_CHECKING:
    pass

SIX_PARTS = OrderPlan(n_files=6, files_per_suborder=1, file_bytes=100)


def told(simulator: Simulator) -> list[dict[str, Any]]:
    """Return the messages so far."""
    return [json.loads(message.body) for message in simulator.transcript]


def statuses(simulator: Simulator, order_id: int) -> list[str]:
    """Return the statuses published about an order."""
    return [each["status"] for each in told(simulator) if each.get("orderId") == order_id]


def fetch(user: Session, order_id: int) -> dict[str, bytes]:
    """Fetch the zip, and wait until the server has noted it (protocol.md 1.0, 5)."""
    service = user.simulator.service
    waiting = service.orders[order_id].available()
    entries = user.entries(order_id)
    assert service.wait_until(lambda: {file.state for file in waiting} == {"DOWNLOADED"})
    return entries


def test_a_large_order_stalls_until_it_is_downloaded(user: Session, simulator: Simulator) -> None:
    """Two sub-orders are staged, then nothing moves until the zip is fetched."""
    order_id = simulator.order(SIX_PARTS)
    for done in (2, 4, 6):
        simulator.wait_available(order_id, files=2)
        assert statuses(simulator, order_id).count("SUBORDER_DONE") == done
        assert user.order(order_id)["waitingForUser"] is True
        assert len(fetch(user, order_id)) == 2
    simulator.wait_for(order_id, "DONE")
    assert statuses(simulator, order_id) == ["GRANTED", *["SUBORDER_DONE"] * 6, "DONE"]


def test_single_files_release_a_sub_order_too(user: Session, simulator: Simulator) -> None:
    """Fetching every file of a sub-order alone makes room for the next."""
    order_id = simulator.order(SIX_PARTS)
    simulator.wait_available(order_id, files=2)
    assert user.file(1).status_code == 200
    assert simulator.service.wait_until(
        lambda: statuses(simulator, order_id).count("SUBORDER_DONE") == 3
    )


def test_one_unfetched_order_starves_the_others(user: Session, simulator: Simulator) -> None:
    """The limit is for the user, over all his orders; other users are not touched."""
    first = simulator.order(SIX_PARTS)
    simulator.wait_available(first, files=2)
    second = simulator.order(SIX_PARTS)
    others = simulator.order(SIX_PARTS, owner="alice@cnes.fr")
    simulator.wait_available(others, files=2)
    assert user.order(second)["status"] == "PENDING"
    for _ in range(3):
        simulator.wait_available(first, files=2)
        fetch(user, first)
    simulator.wait_for(second, "RUNNING")


def test_done_does_not_wait_for_the_last_download(simulator: Simulator) -> None:
    """DONE says that no further file will come, while files still wait to be fetched."""
    order_id = simulator.order(OrderPlan(n_files=2))
    simulator.wait_for(order_id, "DONE")
    assert simulator.service.orders[order_id].waits_for_user


@pytest.mark.parametrize(
    ("outcome", "last", "linked"),
    [
        (Outcome.DONE, "DONE", True),
        (Outcome.PARTIAL, "FAILED", True),
        (Outcome.FAILED, "FAILED", False),
    ],
)
def test_outcomes_are_told_as_on_the_wire(
    simulator: Simulator, outcome: Outcome, last: str, *, linked: bool
) -> None:
    """A partial success is FAILED with a link, a failure is FAILED without one."""
    order_id = simulator.order(OrderPlan(n_files=4, outcome=outcome), correlation_id="mine")
    simulator.wait_for(order_id, "DONE", "DONE_WITH_WARNING", "FAILED")
    end = told(simulator)[-1]
    assert (end["status"], "downloadLink" in end) == (last, linked)
    assert end.get("errorType") == (None if outcome is Outcome.DONE else "INTERNAL_ERROR")
    assert {each["correlationId"] for each in told(simulator)} == {"mine"}
    parts = [each for each in told(simulator) if each["status"] == "SUBORDER_DONE"]
    assert len(parts) == (2 if linked else 0)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.EMPTY, "EMPTY_ORDER"),
        (Outcome.DENIED, "INTERNAL_ERROR"),
        (Outcome.FORBIDDEN, "FORBIDDEN"),
        (Outcome.TOO_BIG, "ORDER_LIMIT_REACHED"),
    ],
)
def test_refusals_have_no_order_id(simulator: Simulator, outcome: Outcome, error: str) -> None:
    """A refused request is answered once, without a number, and makes no order."""
    answer = simulator.apply(OrderPlan(outcome=outcome), correlation_id="mine")
    assert answer.order_id is None
    assert [(each["errorType"], "orderId" in each) for each in told(simulator)] == [(error, False)]
    with pytest.raises(ValueError, match="apply"):
        simulator.order(OrderPlan(outcome=outcome))


def test_orders_over_rest_are_not_granted_over_amqp(user: Session, simulator: Simulator) -> None:
    """The answer to a REST request is in the response; parts and end are published."""
    order_id = user.apply("dataset:SWOT_PASS_012").json()["content"]["orderId"]
    simulator.wait_for(order_id, "DONE")
    assert statuses(simulator, order_id) == ["SUBORDER_DONE", "DONE"]


def test_older_servers_do_not_count_sub_orders() -> None:
    """Without counts, two SUBORDER_DONE of one order are byte-identical."""
    with Simulator(amqp=None, suborder_pause_s=0, suborders_counted=False) as simulator:
        simulator.wait_for(simulator.order(OrderPlan(n_files=4)), "DONE")
        parts = [each.body for each in simulator.transcript if b"SUBORDER_DONE" in each.body]
        assert len(parts) == 2
        assert len(set(parts)) == 1


def test_a_retry_reopens_an_order(user: Session, simulator: Simulator) -> None:
    """After FAILED comes what the retry brings, and DONE."""
    order_id = user.apply("dataset:TAPE_ARCHIVE").json()["content"]["orderId"]
    simulator.wait_for(order_id, "DONE_WITH_WARNING")
    simulator.faults.clear()
    user.send("PUT", f"{ORDERS_PATH}/{order_id}/retry")
    simulator.wait_for(order_id, "DONE")
    assert statuses(simulator, order_id)[-3:] == ["FAILED", "SUBORDER_DONE", "DONE"]


def test_an_expired_order_has_no_files(user: Session, simulator: Simulator) -> None:
    """After its time an order is EXPIRED; neither zip nor single files are left."""
    order_id = simulator.order(OrderPlan(n_files=2))
    simulator.wait_for(order_id, "DONE")
    simulator.expire(order_id)
    assert user.order(order_id)["status"] == "EXPIRED"
    assert user.zip(order_id).status_code == 204
    assert user.file(1).status_code == 422


def test_waiting_in_vain_says_so(simulator: Simulator) -> None:
    """A wait that is not fulfilled in time names what there is instead."""
    order_id = simulator.order(OrderPlan(n_files=2, suborder_pause_s=600))
    with pytest.raises(TimeoutError, match="not DONE"):
        simulator.wait_for(order_id, "DONE", timeout_s=0.01)
    with pytest.raises(TimeoutError, match="0 files"):
        simulator.wait_available(order_id, timeout_s=0.01)


def transcript(seed: int) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Run the same scene; return its messages and manifest, with the port taken out."""
    with (
        Simulator(amqp=None, seed=seed, suborder_pause_s=0) as simulator,
        Session(simulator) as user,
    ):
        for query in ("dataset:TAPE_ARCHIVE", "dataset:EMPTY", "dataset:SWOT_PASS_012"):
            simulator.order_by_query(query)
        simulator.wait_for(1, "DONE_WITH_WARNING")
        rows = user.available(1)
        user.zip(1)
        simulator.wait_for(2, "DONE")
        rows += user.available(2)
        here = simulator.base_url.encode()
        # order by order: how two orders interleave is a matter of time
        messages = sorted(simulator.transcript, key=lambda message: message.correlation_id)
        bodies = [message.body.replace(here, b"") for message in messages]
        for row in rows:
            row["downloadUrl"] = row["downloadUrl"].replace(simulator.base_url, "")
        return bodies, rows


def test_the_same_seed_gives_the_same_transcript() -> None:
    """Ids, messages, names, sizes and checksums follow from the seed; another seed differs."""
    first = transcript(7)
    assert transcript(7) == first
    assert transcript(8) != first


def test_every_data_set_can_be_ordered() -> None:
    """Each query of the catalogue is answered."""
    with Simulator(amqp=None, suborder_pause_s=0) as simulator:
        for name in dataset_names():
            answer = simulator.order_by_query(f'dataset:"{name}" AND pass:[1 TO 12]')
            assert (answer.order_id is None) == (name in {"EMPTY", "FORBIDDEN", "TOO_BIG"})


def test_tables_and_pictures_open_at_once(user: Session, simulator: Simulator) -> None:
    """A pass is a CSV table of numbers with a header, and a PNG."""
    order_id = user.apply("dataset:SWOT_PASS_012").json()["content"]["orderId"]
    simulator.wait_for(order_id, "DONE")
    names = {row["filename"]: row["id"] for row in user.available(order_id)}
    table = list(csv.DictReader(io.StringIO(user.file(names["SWOT_SSH_007_012.csv"]).text)))
    assert len(table) == 3000
    assert all(-90 <= float(row["latitude"]) <= 90 for row in table)
    assert {row["time"][:10] for row in table} == {"2026-01-01"}
    picture = user.file(names["SWOT_SSH_007_012_aperçu.png"]).content
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")


def test_tape_archive_makes_trouble_in_each_way(user: Session, simulator: Simulator) -> None:
    """One file never comes, one is cut in the zip and good alone, one is gone for good."""
    order_id = user.apply("dataset:TAPE_ARCHIVE").json()["content"]["orderId"]
    simulator.wait_for(order_id, "DONE_WITH_WARNING")
    rows = {row["filename"]: row for row in user.available(order_id)}
    entries = user.entries(order_id)
    notice = entries.pop("NOTICE.txt").decode().splitlines()
    assert len(rows) == 7
    assert len(entries) == 6
    short = [name for name, data in entries.items() if len(data) != rows[name]["filesize"]]
    assert len(short) == 1
    assert len(notice) == 2
    assert len(user.file(rows[short[0]]["id"]).content) == rows[short[0]]["filesize"]
    (gone,) = set(rows) - set(entries)
    assert user.file(rows[gone]["id"]).status_code == 410


def test_files_can_be_given_as_bytes(user: Session, simulator: Simulator) -> None:
    """A plan may hold its own files."""
    order_id = simulator.order(OrderPlan(files=[FileSpec(name="été.txt", content=b"abc")]))
    simulator.wait_for(order_id, "DONE")
    row = user.available(order_id)[0]
    assert (row["filename"], row["checksum"]) == ("été.txt", "900150983cd24fb0d6963f7d28e17f72")


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text()))
def test_gson_is_json_without_nulls_safe_in_html(fields: dict[str, Any]) -> None:
    """What Gson writes reads back as it was, but for nulls, and holds no HTML."""
    body = gson(fields)
    assert not set(b"<>&='") & set(body)
    read = json.loads(body.decode())
    expected = {name: value for name, value in fields.items() if value is not None}
    assert read == expected
