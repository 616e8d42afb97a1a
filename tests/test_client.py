"""The REST client against the simulator: login, orders, manifest, actions, errors."""

from __future__ import annotations

import json
import socket
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import requests
from conftest import client_of, until
from download_kit import files_named, world

from regards_nb.client import LastByte, RegardsClient, watched
from regards_nb.errors import (
    NotAllowedError,
    OrderNotFoundError,
    QuotaError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
    SettingsError,
    UnexpectedAnswerError,
)
from regards_nb.simulator import (
    ExpiredToken,
    OrderPlan,
    Reply,
    Route,
    Simulator,
    business_error,
    dataset_names,
    html_page,
    quota_exceeded,
    redirect,
)
from regards_nb.waits import ended_by, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def client(simulator: Simulator) -> Iterator[RegardsClient]:
    """Return a client with the simulator's login."""
    with client_of(simulator) as made:
        yield made


def logins(simulator: Simulator) -> int:
    """Count the logins."""
    return sum(seen.path.endswith("/oauth/token") for seen in simulator.requests)


def test_nothing_is_sent_before_the_first_call(simulator: Simulator, client: RegardsClient) -> None:
    """Making a client sends nothing; the first call logs in, the second uses its token."""
    assert simulator.requests == []
    assert list(client.iter_orders()) == []
    assert list(client.iter_orders()) == []
    assert logins(simulator) == 1


def test_login_can_be_asked_for(simulator: Simulator, client: RegardsClient) -> None:
    """``login()`` raises at once if password, application or tenant are wrong."""
    client.login()
    assert logins(simulator) == 1
    for wrong, says in (
        ({"password": "wrong"}, "refused the login of 'john@cnes.fr'"),
        ({"client_secret": "wrong"}, "401"),
        ({"tenant": "other"}, "tenant 'other'"),
    ):
        with (
            client_of(simulator, **wrong) as stranger,
            pytest.raises(ServiceLoginError, match=says),
        ):
            stranger.login()


def test_one_thread_logs_in_for_all(simulator: Simulator, client: RegardsClient) -> None:
    """Twenty threads that need a token at the same time cause one login."""
    barrier = threading.Barrier(20)
    failures: list[BaseException] = []

    def ask() -> None:
        barrier.wait()
        try:
            list(client.iter_orders())
        except BaseException as exc:  # noqa: BLE001 - shown below
            failures.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert logins(simulator) == 1
    simulator.expire_tokens()
    barrier.reset()
    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert logins(simulator) == 2


def test_a_token_is_renewed_before_it_ends() -> None:
    """After 80 % of its lifetime the next call logs in again; no request is refused."""
    with Simulator(amqp=None, expires_in_s=4) as simulator, client_of(simulator) as client:

        def has_logged_in_again() -> bool:
            list(client.iter_orders())
            return logins(simulator) >= 2

        until(has_logged_in_again)
        assert all(seen.status == 200 for seen in simulator.requests)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refused_token_is_renewed_once(
    status: int, simulator: Simulator, client: RegardsClient
) -> None:
    """An expired token can cause 401, 403 or 500: one new login, then the request again."""
    client.login()
    simulator.faults.add(ExpiredToken(status=status))
    assert list(client.iter_orders()) == []
    assert logins(simulator) == 2


def test_a_refusal_in_the_servers_own_words_is_no_reason_to_log_in(
    simulator: Simulator, client: RegardsClient
) -> None:
    """401 with messages is about the order, not about the token (protocol.md 1.0, 9)."""
    order_id = simulator.order(OrderPlan(n_files=1))
    simulator.wait_for(order_id, "DONE")
    with pytest.raises(NotAllowedError, match="ORDER_MUST_BE_PENDING_OR_RUNNING") as caught:
        client.pause(order_id)
    assert caught.value.messages == ("ORDER_MUST_BE_PENDING_OR_RUNNING",)
    assert caught.value.status_code == 401
    assert logins(simulator) == 1


def test_a_useless_login_is_not_repeated_for_a_while(
    simulator: Simulator, client: RegardsClient
) -> None:
    """After a 403 for the order of another user, the client logs in once more, and only once."""
    order_id = simulator.order(OrderPlan(n_files=1), owner="jane@cnes.fr")
    for _ in range(5):
        with pytest.raises(NotAllowedError, match="another user"):
            client.order(order_id)
    assert logins(simulator) == 2


def test_a_given_token_is_used_and_cannot_be_renewed(
    simulator: Simulator, client: RegardsClient
) -> None:
    """With ``token=`` the client never logs in; a refused token is an error."""
    client.login()
    token = client._tokens.current().secret
    with RegardsClient(simulator.base_url, tenant=simulator.tenant, token=token) as given:
        assert list(given.iter_orders()) == []
        assert logins(simulator) == 1
        simulator.expire_tokens()
        with pytest.raises(ServiceLoginError, match="has ended or is not valid"):
            list(given.iter_orders())
        assert logins(simulator) == 1


def test_a_given_token_is_replaced_by_a_login_when_it_ends(
    simulator: Simulator, client: RegardsClient
) -> None:
    """With ``token=`` and a password, the token is used first."""
    client.login()
    assert client._tokens is not None
    token = client._tokens.current().secret
    with client_of(simulator, token=token) as both:
        assert list(both.iter_orders()) == []
        assert logins(simulator) == 1
        simulator.expire_tokens()
        assert list(both.iter_orders()) == []
        assert logins(simulator) == 2


def test_an_order_is_read_with_what_in_work_with_it(
    simulator: Simulator, client: RegardsClient
) -> None:
    """An order has status, dates, totals, and the actions that the server would accept now."""
    order_id = simulator.order(OrderPlan(n_files=4, file_bytes=100, label="my order"))
    simulator.wait_for(order_id, "DONE")
    order = client.order(order_id)
    assert (order.order_id, order.status, order.finished) == (order_id, "DONE", True)
    assert (order.label, order.files_total, order.bytes_total) == ("my order", 4, 400)
    assert order.waiting_for_user
    assert order.actions == {"download", "delete", "restart"}
    assert order.created_at is not None
    assert order.created_at.tzinfo is not None
    assert order.expires_at is not None
    assert order.expires_at > datetime.now(UTC)
    assert client.iter_orders().__next__() == order


def test_all_orders_are_listed_newest_first(simulator: Simulator, client: RegardsClient) -> None:
    """All pages are read, and each order comes once."""
    ids = [simulator.order(OrderPlan(n_files=1, file_bytes=1)) for _ in range(7)]
    assert [order.order_id for order in client.iter_orders(page_size=3)] == ids[::-1]


def test_the_manifest_is_read_to_its_last_page(tmp_path: Path) -> None:
    """2500 files come in two pages, sorted, with name, size and MD5."""
    plan = OrderPlan(n_files=2500, file_bytes=10, files_per_suborder=2500)
    with world(tmp_path, plan) as here:
        rows = here.client.available_files(here.order_id)
        assert len(rows) == 2500
        assert [row.file_id for row in rows] == sorted(row.file_id for row in rows)
        assert here.requested("/files/available") == 2
        assert {row.size_bytes for row in rows} == {10}
        assert all(row.md5 and len(row.md5) == 32 for row in rows)
        assert here.client.dataset_files(here.order_id, 1) == rows


def test_a_manifest_that_moves_while_it_is_read_is_read_again(
    simulator: Simulator, client: RegardsClient
) -> None:
    """If the pages hold fewer files than announced, they are read again."""
    order_id = simulator.order(OrderPlan(n_files=3, file_bytes=1, files_per_suborder=3))
    simulator.wait_available(order_id, files=3)
    row = {"content": {"id": 1, "filename": "a"}, "links": []}
    page = {"metadata": {"totalElements": 3, "totalPages": 1}, "content": [row], "links": []}
    simulator.faults.add(Reply(route=Route.AVAILABLE, status=200, body=json.dumps(page).encode()))
    assert len(client.available_files(order_id)) == 3


def test_a_server_that_counts_its_pages_wrongly_does_not_keep_us(
    simulator: Simulator, client: RegardsClient
) -> None:
    """An empty page is the last one, even if the server announces 10^9 pages."""
    order_id = simulator.order(OrderPlan(n_files=1, file_bytes=1))
    row = {"content": {"id": 1, "fileSize": 5, "uri": "x", "checksum": "not MD5"}}
    page = {"metadata": {"totalPages": 10**9}, "content": [row]}
    empty = {"metadata": {"totalPages": 10**9}, "content": []}
    for body in (page, empty):
        simulator.faults.add(
            Reply(route=Route.AVAILABLE, status=200, body=json.dumps(body).encode())
        )
    (found,) = client.available_files(order_id)
    assert (found.name, found.size_bytes, found.md5) == ("", 5, None)


def page_of(*ids: int, **counts: Any) -> bytes:
    """Return a page of a manifest."""
    rows = [{"content": {"id": number, "filename": f"{number}.nc"}} for number in ids]
    return json.dumps({"content": rows, **counts}).encode()


def test_the_statuses_and_names_of_the_documentation_are_read(
    simulator: Simulator, client: RegardsClient
) -> None:
    """204 is an empty manifest, 206 is like 200, and ``page`` is like ``metadata``."""
    for status, body in (
        (204, b""),
        (206, page_of(1, page={"totalElements": 2, "totalPages": 2})),
        (200, page_of(2, page={"totalElements": 2, "totalPages": 2})),
    ):
        simulator.faults.add(Reply(route=Route.AVAILABLE, status=status, body=body))
    assert client.available_files(1) == []
    assert [file.file_id for file in client.available_files(1)] == [1, 2]


def test_a_full_page_without_a_count_may_have_a_next_one(
    simulator: Simulator, client: RegardsClient
) -> None:
    """Pages are requested until one is not full, or until the server repeats itself."""
    for body in (page_of(*range(1, 2001)), page_of(2001)):
        simulator.faults.add(Reply(route=Route.AVAILABLE, status=200, body=body))
    assert len(client.available_files(1)) == 2001
    same = Reply(route=Route.AVAILABLE, status=200, body=page_of(*range(1, 2001)), times=None)
    simulator.faults.add(same)
    assert len(client.available_files(1)) == 2000


def test_the_manifest_of_one_sub_order(simulator: Simulator, client: RegardsClient) -> None:
    """The files that one SUBORDER_DONE announced, and no others."""
    order_id = simulator.order(OrderPlan(n_files=4, file_bytes=1, files_per_suborder=2))
    simulator.wait_available(order_id, files=4)
    every = client.available_files(order_id)
    sub_orders = [client.available_files(order_id, sub_order_id=number) for number in (1, 2)]
    assert [len(files) for files in sub_orders] == [2, 2]
    assert [*sub_orders[0], *sub_orders[1]] == every


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'{"content": 5}', b'{"content": [{}]}', b'{"content":[{"content":[]}]}', b"0"],
)
def test_a_manifest_of_another_shape_is_an_error(
    body: bytes, simulator: Simulator, client: RegardsClient
) -> None:
    """JSON that is no manifest raises an error and is not an empty manifest."""
    simulator.faults.add(Reply(route=Route.AVAILABLE, status=200, body=body))
    with pytest.raises(UnexpectedAnswerError):
        client.available_files(1)


def test_an_endless_answer_is_cut_off(simulator: Simulator, client: RegardsClient) -> None:
    """A response of more than 16 MB raises an error before it is in memory."""
    simulator.faults.add(Reply(route=Route.ORDER, status=200, body=b" " * (17 << 20)))
    with pytest.raises(UnexpectedAnswerError, match="more than"):
        client.order(1)


def test_an_order_can_be_asked_for(simulator: Simulator, client: RegardsClient) -> None:
    """GRANTED comes with an order id; DENIED is returned and not raised."""
    answer = client.apply([f"dataset:{dataset_names()[0]}"], correlation_id="mine")
    assert (answer.status, answer.correlation_id) == ("GRANTED", "mine")
    assert answer.order_id is not None
    assert client.order(answer.order_id).order_id == answer.order_id
    denied = Reply(
        route=Route.APPLY,
        status=422,
        body=b'{"content":{"status":"DENIED","message":"no","errorType":"FORBIDDEN"},"links":[]}',
    )
    simulator.faults.add(denied)
    answer = client.apply(["x"])
    assert (answer.status, answer.message, answer.error_type) == ("DENIED", "no", "FORBIDDEN")


def test_a_request_that_is_not_valid_is_an_error(
    simulator: Simulator, client: RegardsClient
) -> None:
    """A 422 with ``messages`` raises an error with the server's words."""
    with pytest.raises(ServiceError, match="list of queries should not be empty"):
        client.apply([])
    with pytest.raises(ServiceError, match="data types"):
        client.apply(["x"], data_types=["NONSENSE"], filename_regexp=".*nc")
    assert logins(simulator) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_what_acts_is_never_sent_twice(
    status: int, simulator: Simulator, client: RegardsClient
) -> None:
    """After an error the server may have made the order, so the request is not repeated."""
    simulator.faults.add(Reply(route=Route.APPLY, status=status))
    with pytest.raises(ServiceError):
        client.apply(["x"])
    assert sum(seen.path.endswith("/apply") for seen in simulator.requests) == 1


def test_orders_are_paused_resumed_restarted_and_deleted(
    simulator: Simulator, client: RegardsClient
) -> None:
    """Each action changes the order on the server."""
    order_id = simulator.order(OrderPlan(n_files=6, file_bytes=1, files_per_suborder=1))
    simulator.wait_for(order_id, "RUNNING")
    client.pause(order_id)
    assert client.order(order_id).status == "PAUSED"
    client.resume(order_id)
    assert client.order(order_id).status == "RUNNING"
    other = simulator.order(OrderPlan(n_files=1, file_bytes=1))
    client.pause(order_id)
    client.delete(order_id)
    simulator.wait_for(other, "DONE")
    again = client.restart(other, label="once more")
    assert (again.label, again.order_id != other) == ("once more", True)
    with pytest.raises(NotAllowedError, match="ORDER_MUST_BE_DONE_WITH_WARNING_OR_FAILED"):
        client.retry(other)


def test_an_order_that_does_not_exist_is_said_so(client: RegardsClient) -> None:
    """A 404 with or without a body raises OrderNotFoundError."""
    with pytest.raises(OrderNotFoundError, match="Check the order id"):
        client.order(4711)
    with pytest.raises(OrderNotFoundError, match="Order 4711 not found"):
        client.pause(4711)


@pytest.mark.parametrize("wrong", ["mine", "../admin", 1.5, -1, None, True])
def test_what_is_no_number_of_an_order_is_not_sent(
    simulator: Simulator, client: RegardsClient, wrong: Any, tmp_path: Path
) -> None:
    """An order id that is no number is refused, because it becomes a part of the path."""
    for use in (client.order, client.pause, client.available_files, client.delete):
        with pytest.raises(SettingsError, match="must be the number that REGARDS gave"):
            use(wrong)
    with pytest.raises(SettingsError, match="must be the number that REGARDS gave"):
        client.download_order(wrong, tmp_path / "files")
    assert not simulator.requests
    assert not (tmp_path / "files").exists()


def test_numbers_of_a_frame_are_numbers(simulator: Simulator, client: RegardsClient) -> None:
    """An integer of NumPy is accepted as an order id."""
    number = simulator.order(OrderPlan(n_files=1))
    (of_numpy,) = pd.Series([number]).to_numpy()
    assert client.order(of_numpy).order_id == number


@pytest.mark.parametrize("tenant", ["", None])
def test_a_client_has_a_tenant(tenant: Any) -> None:
    """A client without a tenant is refused when it is made."""
    with pytest.raises(SettingsError, match="tenant=..., the name of the project"):
        RegardsClient("https://regards.example", tenant=tenant, username="john", password="s")


def test_trouble_that_passes_is_waited_out(simulator: Simulator, client: RegardsClient) -> None:
    """After a 5xx of a gateway or a 429 with Retry-After, the request is repeated."""
    simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=2))
    simulator.faults.add(
        Reply(route=Route.ORDERS, status=429, headers=(("Retry-After", "0"),), skip=2)
    )
    assert list(client.iter_orders()) == []


@pytest.mark.parametrize("value", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_who_asks_to_wait_too_long_is_not_waited_for(
    value: str, simulator: Simulator, client: RegardsClient
) -> None:
    """If Retry-After is more than two minutes, the error says how long."""
    fault = Reply(route=Route.ORDERS, status=503, headers=(("Retry-After", value),), times=None)
    simulator.faults.add(fault)
    with pytest.raises(ServiceUnreachableError, match="asks to wait"):
        list(client.iter_orders())
    assert len(simulator.requests) == 2


def test_nonsense_in_retry_after_is_passed_over(
    simulator: Simulator, client: RegardsClient
) -> None:
    """A Retry-After that is neither a number nor a date is ignored."""
    fault = Reply(route=Route.ORDERS, status=503, headers=(("Retry-After", "soon"),))
    simulator.faults.add(fault)
    assert list(client.iter_orders()) == []


def test_a_quota_is_said_in_the_servers_words(tmp_path: Path) -> None:
    """A 429 of the storage service has its plain text, and is not repeated."""
    with world(tmp_path, OrderPlan(files=files_named("a.nc")), quota_exceeded()) as here:
        said = "Download quota of 1000 exceeded (by 1) for user john@cnes.fr."
        with pytest.raises(QuotaError, match="Download quota"), here.client.open_file(1):
            pass
        here.simulator.faults.add(quota_exceeded())
        with pytest.raises(QuotaError) as caught, here.client.open_file(1):
            pass
        assert caught.value.messages == (said,)
        assert here.singles == 2


def test_a_page_instead_of_an_answer_is_recognised(
    simulator: Simulator, client: RegardsClient
) -> None:
    """A 200 with HTML raises an error with the text of the page and advice."""
    simulator.faults.add(html_page(Route.ORDERS))
    with pytest.raises(UnexpectedAnswerError, match="Please log in.*check base_url"):
        list(client.iter_orders())


def test_what_the_server_says_cannot_move_the_terminal(
    simulator: Simulator, client: RegardsClient
) -> None:
    """Escape sequences and line ends of a server are replaced in an error, and its text is cut."""
    evil = "\x1b[2J\u202e<script>" + "x" * 1000
    simulator.faults.add(business_error(Route.ORDERS, 400, evil))
    with pytest.raises(ServiceError) as caught:
        list(client.iter_orders())
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 400
    # the words themselves are there for who wants them
    assert caught.value.messages == (evil,)


def test_redirections_are_followed_within_the_origin_only(
    simulator: Simulator, client: RegardsClient
) -> None:
    """A redirect within the origin is followed; another target is named and not contacted."""
    simulator.faults.add(redirect(Route.ORDERS, "/api/v1/rs-order/user/orders?page=0"))
    assert list(client.iter_orders()) == []
    for target in (
        "https://evil.example/x",
        "//evil.example/x",
        simulator.base_url.replace("http:", "https:"),
        "http://127.0.0.1:1/",
        simulator.base_url.replace("127.0.0.1", "localhost"),
        simulator.base_url.replace("//", "//user@"),
    ):
        simulator.faults.add(redirect(Route.ORDERS, target, status=307))
        with pytest.raises(UnexpectedAnswerError, match="redirected to"):
            list(client.iter_orders())
    simulator.faults.add(redirect(Route.APPLY, "/api/v1/rs-order/user/orders", status=308))
    with pytest.raises(UnexpectedAnswerError, match="redirects a POST"):
        client.apply(["x"])
    simulator.faults.add(redirect(Route.ORDERS, ""))
    with pytest.raises(UnexpectedAnswerError, match="nowhere"):
        list(client.iter_orders())


def test_a_response_that_is_not_read_any_more_is_closed(
    simulator: Simulator, client: RegardsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between the header and the body of a response leaves no connection open."""
    order_id = simulator.order(OrderPlan(), over_amqp=False)
    client.login()
    stop, came = threading.Event(), []
    send = requests.Session.request

    def send_and_stop(*args: Any, **options: Any) -> requests.Response:
        came.append(send(*args, **options))
        stop.set()
        return came[-1]

    monkeypatch.setattr(requests.Session, "request", send_and_stop)
    with pytest.raises(ServiceUnreachableError, match="stopped"):
        client.available_files(order_id, stop=stop)
    (response,) = came
    assert response.raw.closed


def test_a_closed_client_says_so(simulator: Simulator) -> None:
    """A client can be closed twice; a later call raises an error that says so."""
    client = client_of(simulator)
    client.close()
    client.close()
    with pytest.raises(SettingsError, match="closed"):
        client.login()


def test_nobody_there_is_said_with_the_address(simulator: Simulator) -> None:
    """After several refused connections the error names the address."""
    address = simulator.base_url
    client = client_of(simulator)
    simulator.stop()
    with (
        client,
        pytest.raises(ServiceUnreachableError, match=f"no response from {address}: .*refused"),
    ):
        client.login()


def test_each_byte_ends_a_silence() -> None:
    """A body of which a byte comes now and then is slow and not silent, before a block is full."""
    last = LastByte()

    def heard_at_s() -> float:
        return time.monotonic() - last.age_s

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        client = RegardsClient(url, tenant="t", token="x")
        blocks: list[bytes] = []

        def read() -> None:
            with watched(last), client.open_file(1) as body:
                blocks.extend(body.blocks())

        reader = threading.Thread(target=read)
        reader.start()
        connection, _ = server.accept()
        until(lambda: last.age_s > 0)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n")
        for _ in range(2):
            last_s = heard_at_s()
            until(lambda last_s=last_s: time.monotonic() > last_s + 0.1)
            connection.sendall(b"x")
            until(lambda last_s=last_s: heard_at_s() > last_s + 0.05)
        assert not blocks
        connection.sendall(bytes(19_998))
        reader.join()
        connection.close()
    assert (sum(map(len, blocks)), last.age_s) == (20_000, 0)


def test_a_list_that_stalls_is_silent() -> None:
    """Its body is read in another thread, because the call can be stopped; the header has come."""
    last = LastByte()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        client = RegardsClient(url, tenant="t", token="x")

        def read() -> int:
            with watched(last), ended_by(threading.Event()):
                return len(list(client.iter_orders()))

        reader = in_thread(read)
        connection, _ = server.accept()
        with connection:
            body = b'{"content": [], "metadata": {"totalElements": 0}}'
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body[:9]))
            until(lambda: reader.done() or last.age_s > 0.5)
            connection.sendall(body[9:])
            assert reader.result(60) == 0
    assert last.age_s == 0
