"""The client behind real proxies: nginx, Apache, HAProxy, Squid and Varnish."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import requests
from conftest import client_of, until
from download_kit import files_named, world
from proxy_kit import APACHE, FORWARD_SQUID, NGINX, REVERSE_PROXIES, SQUID, running

from regards_nb.client import RegardsClient
from regards_nb.errors import (
    RegardsError,
    ServiceUnreachableError,
    SettingsError,
    UnexpectedAnswerError,
)
from regards_nb.simulator import OrderPlan, Route, Simulator, Slow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EACH_PROXY = pytest.mark.parametrize("name", REVERSE_PROXIES)


@EACH_PROXY
def test_a_zip_that_a_proxy_gave_up_is_not_requested_again(name: str, tmp_path: Path) -> None:
    """502, 503 or 504 to the GET of a zip: one request, then the files one by one."""
    slow = Slow(route=Route.ZIP, delay_s=1.5, times=None)
    with (
        world(tmp_path, None, slow) as here,
        running(REVERSE_PROXIES[name], here.simulator.base_url) as proxy,
        client_of(here.simulator, base_url=proxy.url) as client,
    ):
        replace(here, client=client).fetch()
        assert here.found == here.expected
        until(lambda: here.zips)
        assert here.zips == 1


@EACH_PROXY
def test_the_page_of_a_proxy_is_never_taken_for_regards(name: str) -> None:
    """401, 403 and 404 with HTML: a proxy answered. It says nothing about logins or orders."""
    with (
        Simulator(amqp=None) as simulator,
        running(REVERSE_PROXIES[name], simulator.base_url) as proxy,
    ):
        for path in ("refused", "missing", "login"):
            url = f"{proxy.url}/{path}"
            with (
                client_of(simulator, base_url=url) as client,
                RegardsClient(url, tenant="t", token="a.token", backoff_s=0) as given,
            ):
                for use in (client.login, partial(given.order, 1)):
                    with pytest.raises(UnexpectedAnswerError, match="proxy.*base_url") as caught:
                        use()
                    assert "<" not in str(caught.value)
                    assert "text/html" not in str(caught.value)
                    assert caught.value.status_code in (401, 403, 404)
        assert not simulator.requests


def test_many_products_are_found_behind_a_proxy(tmp_path: Path) -> None:
    """A search by GET names only as many as an address can hold: nginx takes 8 kB."""
    ids = [f"SWOT_SSH_008_{number:03}" for number in range(1, 31)]
    ids += [
        f"A_NAME_THAT_IS_AS_LONG_AS_THOSE_OF_PRODUCTS_OFTEN_ARE_{number:05}"
        for number in range(300)
    ]
    with Simulator(amqp=None) as simulator, running(NGINX, simulator.base_url) as proxy:
        with client_of(simulator, base_url=proxy.url) as client:
            paths = client.download_products(ids, tmp_path / "files", show=False)
        assert len(paths) == 30


def test_a_page_is_named_by_its_title_and_its_server() -> None:
    """The user learns which program answered, and what it said to people."""
    with Simulator(amqp=None) as simulator, running(NGINX, simulator.base_url) as proxy:
        client = client_of(simulator, base_url=f"{proxy.url}/refused")
        with client, pytest.raises(UnexpectedAnswerError, match='page "403 Forbidden" .*nginx/1'):
            client.login()


@pytest.mark.parametrize("path", ["/api/v1", "/archive"])
def test_a_base_url_that_does_not_lead_to_regards_is_said_at_the_login(path: str) -> None:
    """404 to a login is about the address, not about an order."""
    with (
        Simulator(amqp=None) as simulator,
        client_of(simulator, base_url=simulator.base_url + path) as client,
        pytest.raises(UnexpectedAnswerError, match="base_url must end before /api/v1"),
    ):
        client.login()


@pytest.mark.parametrize(
    ("host", "password", "status", "says"),
    [
        ("regards.invalid", None, 407, "HTTPS_PROXY=http://user:password@"),
        ("regards.invalid", "wrong", 407, "percent-encoded"),
        ("refused.example", "right", 403, "NO_PROXY"),
    ],
)
def test_a_proxy_that_refuses_is_asked_once(
    host: str, password: str | None, status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """407 and 403 to CONNECT are final: repeated wrong passwords lock accounts."""
    with running(FORWARD_SQUID) as proxy:
        login = f"john:{password}@" if password else ""
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", f"//{login}"))
        for name in ("NO_PROXY", "no_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        client = RegardsClient(f"https://{host}", tenant="t", token="a.token", backoff_s=0)
        with client, pytest.raises(ServiceUnreachableError, match=says) as caught:
            client.order(1)
        assert str(status) in str(caught.value)
        assert "wrong" not in str(caught.value)
        # Squid writes its log a little later, and in order: this request is the last one.
        requests.get("http://marker.invalid/", proxies={"http": proxy.url}, timeout=30)
        until(lambda: any("marker" in line for line in proxy.log()))
        assert len([line for line in proxy.log() if "CONNECT" in line]) == 1


class DyingOrigin(BaseHTTPRequestHandler):
    """Forwards requests to a simulator, and dies once inside of the header for some of them."""

    simulator: Simulator
    #: Endings of paths for which it dies once.
    fatal: set[str]

    def _handle(self) -> None:
        for ending in [each for each in self.fatal if each in self.path]:
            self.fatal.remove(ending)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: appl")
            return
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        response = requests.request(
            self.command, self.simulator.base_url + self.path, data=sent, headers=headers, timeout=9
        )
        self.send_response(response.status_code)
        self.send_header("Content-Type", response.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(response.content)

    do_GET = do_POST = _handle  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Write no log."""


@contextmanager
def dying_origin(simulator: Simulator, *fatal: str) -> Iterator[str]:
    """Run a `DyingOrigin`; yield its URL."""
    handler = type("Handler", (DyingOrigin,), {"simulator": simulator, "fatal": set(fatal)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_empty_body_that_nobody_announced_is_requested_once_more(tmp_path: Path) -> None:
    """An origin that dies inside of its header becomes 200 with an empty body behind Squid."""
    plan = OrderPlan(files=files_named("a.nc", "b.nc", reference=True))
    with world(tmp_path, plan) as here:
        (first, _) = here.client.available_files(here.order_id)
        fatal = (f"/files/{first.file_id}", "/files/available")
        with (
            dying_origin(here.simulator, *fatal) as origin,
            running(SQUID, origin) as proxy,
            client_of(here.simulator, base_url=proxy.url) as client,
        ):
            replace(here, client=client).fetch(way="files")
            assert here.found == here.expected


def test_a_body_that_a_proxy_compressed_is_inflated(tmp_path: Path) -> None:
    """Apache with force-gzip compresses although identity was requested."""
    with (
        world(tmp_path) as here,
        running(APACHE, here.simulator.base_url) as proxy,
        client_of(here.simulator, base_url=f"{proxy.url}/gzip") as client,
    ):
        through = replace(here, client=client)
        through.fetch(way="zip")
        assert here.found == here.expected
        assert (here.zips, here.singles) == (1, 0)


@EACH_PROXY
def test_a_token_that_is_too_long_for_a_proxy_is_said(name: str) -> None:
    """The proxy calls it a bad request; the user learns that it is the length of the token."""
    with (
        Simulator(amqp=None) as simulator,
        running(REVERSE_PROXIES[name], simulator.base_url) as proxy,
        RegardsClient(proxy.url, tenant="t", token="x" * 70_000, backoff_s=0) as client,
        pytest.raises(RegardsError, match="token has 70000 characters"),
    ):
        client.order(1)


def test_redirects_are_explained() -> None:
    """A portal of another host is named as one; a target on the same host is not called foreign."""
    with Simulator(amqp=None) as simulator, running(NGINX, simulator.base_url) as proxy:
        for path, says in (
            ("portal", "sso.example.*single sign-on"),
            ("moved", "the server redirects a POST to .*/elsewhere"),
        ):
            client = client_of(simulator, base_url=f"{proxy.url}/{path}")
            with client, pytest.raises(UnexpectedAnswerError, match=says):
                client.login()


def test_https_to_a_port_without_tls_is_said() -> None:
    """The text of OpenSSL, "wrong version number", helps nobody."""
    with Simulator(amqp=None) as simulator, running(NGINX, simulator.base_url) as proxy:
        url = proxy.url.replace("http://", "https://")
        client = RegardsClient(url, tenant="t", token="a.token", backoff_s=0)
        with client, pytest.raises(ServiceUnreachableError, match="speaks http without TLS"):
            client.order(1)


def test_an_ended_token_that_was_given_is_said() -> None:
    """The advice is to give a new token: there is no password to check."""
    with (
        Simulator(amqp=None) as simulator,
        RegardsClient(simulator.base_url, tenant="t", token="old") as client,
        pytest.raises(RegardsError, match="token= .*has ended or is not valid"),
    ):
        client.order(1)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("http://u:hidden@127.0.0.1:9", r"proxy 127.0.0.1:9 \(of HTTPS_PROXY\): .*refused"),
        ("htp://127.0.0.1:9", r"of HTTPS_PROXY\): its address must look like http://"),
    ],
)
def test_a_proxy_that_is_wrong_is_named(
    value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variable that it comes from, and without its password."""
    monkeypatch.setenv("HTTPS_PROXY", value)
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    client = RegardsClient("https://regards.invalid", tenant="t", token="a.token", backoff_s=0)
    with client, pytest.raises(ServiceUnreachableError, match=says) as caught:
        client.order(1)
    assert "hidden" not in str(caught.value)


def test_certificates_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first request; those of the environment, when they are read."""
    wrong = tmp_path / "wrong.pem"
    for says in ("cannot be read: No such file", "holds no certificate"):
        with pytest.raises(SettingsError, match=f"ca_bundle='{wrong}' {says}"):
            RegardsClient("https://regards.invalid", tenant="t", token="a", ca_bundle=wrong)
        wrong.write_text("no certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    client = RegardsClient("https://regards.invalid", tenant="t", token="a", backoff_s=0)
    with client, pytest.raises(SettingsError, match="gone.pem.*REQUESTS_CA_BUNDLE"):
        client.order(1)
