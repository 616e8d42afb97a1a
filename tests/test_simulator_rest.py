"""The REST side answers as REGARDS does (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile

import pytest
from conftest import until
from simulator_session import FILES_PATH, ORDERS_PATH, Session

from regards_nb.simulator import FileSpec, OrderPlan, Outcome, Route, Simulator, Slow

#: REGARDS wants the types of files beside a pattern for their names.
RAW = {"dataTypes": ["RAWDATA"]}


def ready(simulator: Simulator, plan: OrderPlan) -> int:
    """Start an order and wait until all of it is staged."""
    order_id = simulator.order(plan)
    simulator.wait_for(order_id, "DONE", "DONE_WITH_WARNING", "FAILED")
    return order_id


# -- login


def test_a_token_says_how_long_it_lives(user: Session) -> None:
    """The token answer has the fields of protocol.md 1.1 and must not be cached."""
    answer = user.ask_token()
    assert answer.headers["Cache-Control"] == "no-store"
    token = answer.json()
    assert token["token_type"] == "bearer"
    assert token["expires_in"] == 7200
    assert token["scope"] == token["tenant"] == user.simulator.tenant


@pytest.mark.parametrize("wrong", ["username", "password", "grant_type", "scope"])
def test_wrong_credentials_are_400_without_messages(user: Session, wrong: str) -> None:
    """A bad login is 400 and has no ``messages``."""
    answer = user.ask_token(**{wrong: "wrong"})
    assert answer.status_code == 400
    assert "messages" not in answer.json()


def test_a_wrong_client_secret_is_401(user: Session) -> None:
    """Basic authentication is checked before the body."""
    assert user.ask_token(client_secret="wrong").status_code == 401


def test_without_a_valid_token_nothing_is_answered(user: Session) -> None:
    """No token, an unknown one, and one that was made invalid are all refused."""
    user.simulator.expire_tokens()
    assert user.get(ORDERS_PATH).status_code == 401
    del user.http.headers["Authorization"]
    answer = user.get(ORDERS_PATH)
    assert answer.status_code == 401
    assert answer.json().keys() == {"timestamp", "status", "error", "path"}


def test_a_token_ends_by_the_clock() -> None:
    """A token that lives no time is refused at once."""
    with Simulator(amqp=None, expires_in_s=0) as simulator, Session(simulator) as user:
        assert user.get(ORDERS_PATH).status_code == 401


# -- ordering


def test_apply_is_200_and_wrapped(user: Session) -> None:
    """A granted request is 200 with the answer in ``content``."""
    answer = user.apply("dataset:SWOT_PASS_012", correlationId="mine")
    assert answer.status_code == 200
    granted = {"status": "GRANTED", "orderId": 1, "correlationId": "mine"}
    assert answer.json() == {"content": granted, "links": []}


@pytest.mark.parametrize(
    ("query", "status", "error"),
    [
        ("dataset:EMPTY", "FAILED", "EMPTY_ORDER"),
        ("dataset:NOBODY_KNOWS", "FAILED", "EMPTY_ORDER"),
        ("dataset:FORBIDDEN", "DENIED", "FORBIDDEN"),
        ("dataset:TOO_BIG", "DENIED", "ORDER_LIMIT_REACHED"),
    ],
)
def test_what_is_not_granted_is_422(user: Session, query: str, status: str, error: str) -> None:
    """Every refusal is 422 with status and reason, and without an order id."""
    answer = user.apply(query, correlationId="mine")
    content = answer.json()["content"]
    assert (answer.status_code, content["status"], content["errorType"]) == (422, status, error)
    assert content["correlationId"] == "mine"
    assert "orderId" not in content


def test_an_invalid_request_is_422_with_messages(user: Session) -> None:
    """Bean validation answers before any order is thought of."""
    assert user.apply().json() == {"messages": ["list of queries should not be empty"]}
    assert user.apply("dataset:X", filters={"dataTypes": ["NOISE"]}).status_code == 422
    assert user.apply("dataset:X", correlationId="x" * 256).status_code == 422
    assert user.send("POST", f"{ORDERS_PATH}/apply", data=b"{").status_code == 400
    assert user.apply("dataset:X", filters={**RAW, "filenameRegExp": "("}).status_code == 400


def test_without_a_correlation_id_the_server_makes_one(user: Session) -> None:
    """The server's own id begins as REGARDS' does."""
    content = user.apply("dataset:SWOT_PASS_012").json()["content"]
    assert re.fullmatch(r"auto-correlation-id-[0-9a-f-]{36}", content["correlationId"])


def test_filters_choose_files(user: Session, simulator: Simulator) -> None:
    """Only files of the given type and name are ordered."""
    pictures = user.apply("dataset:SWOT_CYCLE_007", filters={"dataTypes": ["QUICKLOOK"]})
    order_id = pictures.json()["content"]["orderId"]
    simulator.wait_available(order_id, files=8)
    assert all(row["filename"].endswith(".png") for row in user.available(order_id))
    user.zip(order_id)
    named = user.apply("dataset:SWOT_PASS_012", filters={**RAW, "filenameRegExp": ".*bin"})
    order_id = named.json()["content"]["orderId"]
    simulator.wait_available(order_id, files=1)
    assert [row["filename"] for row in user.available(order_id)] == ["SWOT_ORBIT_012.bin"]


def test_filters_that_exclude_every_file_fail_after_granted(
    user: Session, simulator: Simulator
) -> None:
    """The order is GRANTED, then FAILED with a link, but without files and a count of errors."""
    answer = user.apply("dataset:SWOT_CYCLE_007", filters={**RAW, "filenameRegExp": "x"})
    granted = answer.json()["content"]
    assert (answer.status_code, granted["status"]) == (200, "GRANTED")
    simulator.wait_for(granted["orderId"], "FAILED")
    end = json.loads(simulator.transcript[-1].body)
    assert (end["status"], end["errorType"], end["totalSubOrders"]) == (
        "FAILED",
        "INTERNAL_ERROR",
        0,
    )
    assert "downloadLink" in end
    assert "errors" not in end
    assert user.available(granted["orderId"]) == []
    assert user.zip(granted["orderId"]).status_code == 204


def test_the_second_of_two_external_files_of_one_name_is_lost(
    user: Session, simulator: Simulator
) -> None:
    """The zip contains the first, NOTICE.txt names none, and both become DOWNLOADED."""
    specs = [FileSpec(name="a.nc", content=text, reference=True) for text in (b"one", b"two")]
    order_id = ready(simulator, OrderPlan(files=specs))
    assert user.entries(order_id) == {"a.nc": b"one"}
    states = simulator.service.orders[order_id].files
    assert simulator.service.wait_until(lambda: {file.state for file in states} <= {"DOWNLOADED"})
    assert user.states(order_id) == ["DOWNLOADED", "DOWNLOADED"]


@pytest.mark.simulator(parallel_zips=False)
def test_a_second_zip_is_refused_while_one_is_sent(user: Session, simulator: Simulator) -> None:
    """The second request gets 409; after the end of the first, a zip is sent again."""
    order_id = ready(simulator, OrderPlan(n_files=2, file_bytes=200_000))
    simulator.faults.add(Slow(route=Route.ZIP, stall_after_bytes=1000, stall_s=0.5))
    path = f"{ORDERS_PATH}/{order_id}/download"
    with user.get(path, stream=True) as first:
        assert len(next(first.iter_content(1000))) == 1000
        assert user.zip(order_id).status_code == 409
    until(lambda: user.zip(order_id).status_code == 200)


# -- orders and actions


def test_an_order_shows_its_state_and_what_is_allowed(user: Session, simulator: Simulator) -> None:
    """The OrderDto has the fields of protocol.md 1.2 and a link for each allowed action."""
    order_id = ready(simulator, OrderPlan(n_files=3, file_bytes=100, outcome=Outcome.PARTIAL))
    order = user.order(order_id)
    assert order["status"] == "DONE_WITH_WARNING"
    assert (order["availableFilesCount"], order["filesInErrorCount"]) == (2, 1)
    assert order["percentCompleted"] == 100
    assert order["waitingForUser"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", order["creationDate"])
    assert order["datasetTasks"][0]["filesCount"] == 3
    expected = {"self", "list", "download", "delete", "restart", "retry"}
    assert user.actions(order_id) == expected


def test_orders_are_listed_newest_first_in_pages(user: Session, simulator: Simulator) -> None:
    """The list is paged and leaves out what was deleted."""
    ids = [ready(simulator, OrderPlan(outcome=Outcome.FAILED)) for _ in range(3)]
    assert user.send("DELETE", f"{ORDERS_PATH}/{ids[1]}").status_code == 200
    page = user.get(ORDERS_PATH, params={"size": 1, "page": 1}).json()
    assert page["metadata"] == {"size": 1, "totalElements": 2, "totalPages": 2, "number": 1}
    assert page["content"][0]["content"]["id"] == ids[0]
    assert user.order(ids[1])["status"] == "DELETED"


def test_refused_actions_are_401_with_a_code(user: Session, simulator: Simulator) -> None:
    """What the state forbids is refused with 401 and REGARDS' code for it."""
    order_id = ready(simulator, OrderPlan())
    for verb, path, code in (
        ("PUT", f"pause/{order_id}", "ORDER_MUST_BE_PENDING_OR_RUNNING"),
        ("PUT", f"resume/{order_id}", "ORDER_MUST_BE_PAUSED"),
        ("PUT", f"{order_id}/retry", "ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED"),
    ):
        answer = user.send(verb, f"{ORDERS_PATH}/{path}")
        assert (answer.status_code, answer.json()) == (401, {"messages": [code]})


def test_pause_resume_and_delete(user: Session, simulator: Simulator) -> None:
    """A paused order stands still and can be resumed; a running one cannot be deleted."""
    order_id = simulator.order(OrderPlan(n_files=2, suborder_pause_s=600))
    simulator.wait_for(order_id, "RUNNING")
    refused = user.send("DELETE", f"{ORDERS_PATH}/{order_id}")
    assert refused.status_code == 401
    paused = user.send("PUT", f"{ORDERS_PATH}/pause/{order_id}")
    assert (paused.status_code, paused.content) == (200, b"")
    assert user.order(order_id)["status"] == "PAUSED"
    assert {"resume", "delete"} <= user.actions(order_id)
    assert user.send("PUT", f"{ORDERS_PATH}/resume/{order_id}").status_code == 200
    assert user.order(order_id)["status"] == "RUNNING"
    user.send("PUT", f"{ORDERS_PATH}/pause/{order_id}")
    assert user.send("DELETE", f"{ORDERS_PATH}/{order_id}").status_code == 200


def test_a_restart_is_a_new_order(user: Session, simulator: Simulator) -> None:
    """Restart answers 201 with the new order, unwrapped."""
    order_id = ready(simulator, OrderPlan())
    answer = user.send("POST", f"{ORDERS_PATH}/{order_id}/restart", json={"label": "again"})
    assert answer.status_code == 201
    assert answer.json()["label"] == "again"
    assert answer.json()["id"] == order_id + 1


def test_the_orders_of_others_are_closed(user: Session, simulator: Simulator) -> None:
    """403 without a body to look, 401 with a code to act; but the zip is not checked."""
    order_id = simulator.order(OrderPlan(n_files=2), owner="alice@cnes.fr")
    simulator.wait_available(order_id, files=2)
    looked = user.get(f"{ORDERS_PATH}/{order_id}")
    assert (looked.status_code, looked.content) == (403, b"")
    acted = user.send("PUT", f"{ORDERS_PATH}/pause/{order_id}")
    assert acted.json() == {"messages": ["USER_NOT_ALLOWED_TO_MANAGE_ORDER"]}
    assert user.get(f"{FILES_PATH}/{order_id}/files/available").status_code == 403
    assert user.file(1).status_code == 403
    assert user.zip(order_id).status_code == 200


def test_unknown_orders_and_files_are_404(user: Session) -> None:
    """404 with messages for zip, action and file; with an empty body elsewhere."""
    for path in (f"{ORDERS_PATH}/99/download", f"{FILES_PATH}/files/99"):
        answer = user.get(path)
        assert answer.status_code == 404
        assert "messages" in answer.json()
    assert user.send("PUT", f"{ORDERS_PATH}/pause/99").json()["messages"]
    assert user.get(f"{ORDERS_PATH}/99").content == b""
    assert user.get("/api/v1/rs-order/nowhere").status_code == 404


def test_links_carry_the_project_host() -> None:
    """Links are made with what an administrator wrote, not with where the server is."""
    foreign = "https://regards.example"
    with (
        Simulator(amqp=None, suborder_pause_s=0, project_host=foreign) as simulator,
        Session(simulator) as user,
    ):
        order_id = ready(simulator, OrderPlan())
        assert user.available(order_id)[0]["downloadUrl"].startswith(foreign)
        assert foreign.encode() in simulator.transcript[-1].body


# -- files


def test_the_manifest_is_paged_and_true(user: Session, simulator: Simulator) -> None:
    """All pages together list each available file once, with its size and MD5."""
    order_id = ready(simulator, OrderPlan(n_files=25, file_bytes=1234, files_per_suborder=25))
    first = user.get(f"{FILES_PATH}/{order_id}/files/available").json()
    assert first["metadata"] == {"size": 10, "totalElements": 25, "totalPages": 3, "number": 0}
    rows = [row for page in range(3) for row in user.available(order_id, size=10, page=page)]
    assert [row["id"] for row in rows] == list(range(1, 26))
    entries = user.entries(order_id)
    assert {row["filename"]: row["checksum"] for row in rows} == {
        name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in entries.items()
    }
    assert {row["filesize"] for row in rows} == {1234}


def test_a_sub_order_has_a_manifest_of_its_own(user: Session, simulator: Simulator) -> None:
    """filesTask/{id} lists the files of one sub-order."""
    order_id = ready(simulator, OrderPlan(n_files=4, files_per_suborder=2))
    answer = user.get(f"{FILES_PATH}/{order_id}/filesTask/2/files/available")
    assert [item["content"]["id"] for item in answer.json()["content"]] == [3, 4]


def test_the_zip_is_consumed(user: Session, simulator: Simulator) -> None:
    """A zip is chunked, has the illegal name, and holds what is new; then comes 204."""
    order_id = ready(simulator, OrderPlan(n_files=2))
    answer = user.zip(order_id)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in answer.headers
    name = answer.headers["Content-Disposition"]
    assert re.fullmatch(rf"attachment;filename=order_{order_id}_[\d-]+T[\d:.]+\+[\d:]+\.zip", name)
    simulator.service.wait_until(lambda: not simulator.service.orders[order_id].available())
    again = user.zip(order_id)
    assert (again.status_code, again.content) == (204, b"")
    assert "Content-Disposition" in again.headers
    assert user.states(order_id) == ["DOWNLOADED", "DOWNLOADED"]


def test_head_consumes_the_zip_like_get(user: Session, simulator: Simulator) -> None:
    """Spring serves HEAD by GET's handler: the files are gone, and the log shows who did it."""
    order_id = ready(simulator, OrderPlan(n_files=2))
    path = f"{ORDERS_PATH}/{order_id}/download"
    assert user.send("HEAD", path).status_code == 200
    simulator.service.wait_until(lambda: not simulator.service.orders[order_id].available())
    assert user.zip(order_id).status_code == 204
    assert ("HEAD", path, 200) in simulator.requests


def test_a_downloaded_file_can_still_be_fetched_alone(user: Session, simulator: Simulator) -> None:
    """Single files are served whatever was downloaded, with length and name."""
    order_id = ready(simulator, OrderPlan(n_files=1, file_bytes=5000))
    whole = user.entries(order_id)["file_00000.bin"]
    answer = user.file(1)
    assert answer.content == whole
    assert answer.headers["Content-Length"] == "5000"


def test_a_file_not_there_is_202_or_422(user: Session, simulator: Simulator) -> None:
    """Not yet staged is 202; failed is 422."""
    simulator.order(OrderPlan(n_files=1, suborder_pause_s=600))
    assert user.file(1).status_code == 202
    failed = ready(simulator, OrderPlan(n_files=1, outcome=Outcome.FAILED))
    assert user.file(2).status_code == 422
    assert user.states(failed) == ["ERROR"]


def test_an_external_file_is_released_by_the_zip_only(user: Session, simulator: Simulator) -> None:
    """A reference has neither size nor checksum; fetched alone it stays available."""
    spec = FileSpec(name="elsewhere.nc", content=b"far away", reference=True)
    order_id = ready(simulator, OrderPlan(files=[spec]))
    row = user.available(order_id)[0]
    assert row.keys().isdisjoint({"filesize", "checksum"})
    assert user.file(row["id"]).content == b"far away"
    assert len(user.available(order_id)) == 1
    assert user.entries(order_id) == {"elsewhere.nc": b"far away"}
    assert simulator.service.wait_until(lambda: not simulator.service.orders[order_id].available())


def test_files_of_one_name_are_numbered_and_can_collide(
    user: Session, simulator: Simulator
) -> None:
    """The n-th file of a name becomes ``name (n).ext``, even where a file is called so."""
    names = ["a.nc", "a (1).nc", "a.nc", "README", "README", "b.tar.gz", "b.tar.gz"]
    files = [FileSpec(name=name, content=bytes([n])) for n, name in enumerate(names)]
    twice = FileSpec(name="same", content=b"same")
    order_id = ready(simulator, OrderPlan(files=[*files, twice, twice], files_per_suborder=9))
    with zipfile.ZipFile(io.BytesIO(user.zip(order_id).content)) as archive:
        assert archive.namelist() == [
            "a.nc",
            "a (1).nc",
            "a (1).nc",
            "README",
            "README (1)",
            "b.tar.gz",
            "b.tar (1).gz",
            "same",
        ]


def test_the_log_holds_no_secret(user: Session, simulator: Simulator) -> None:
    """Neither the log of requests nor the simulator's repr shows a password or a token."""
    user.get(ORDERS_PATH, params={"token": "secret-token"})
    shown = repr(simulator) + repr(simulator.requests) + repr(vars(simulator))
    assert "secret-token" not in shown
    assert simulator.password not in shown
    assert simulator.client_secret not in shown


def test_names_no_header_can_hold_are_served(user: Session, simulator: Simulator) -> None:
    """A file name with line ends, quotes or emoji breaks no answer."""
    hostile = ['a"b\r\nX-Injected: 1', "été 🛰.nc", "../../etc/passwd", "C:\\evil.txt", "x" * 300]
    files = [FileSpec(name=name, content=name.encode()) for name in hostile]
    order_id = ready(simulator, OrderPlan(files=files, files_per_suborder=9))
    rows = user.available(order_id)
    assert [row["filename"] for row in rows] == hostile
    assert len(user.entries(order_id)) == len(hostile)
    for row in rows:
        answer = user.file(row["id"])
        assert answer.content == row["filename"].encode()
        assert "X-Injected" not in answer.headers
