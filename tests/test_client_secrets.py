"""Where the token goes, and where it never shows: origin, links, proxies, logs, tracebacks."""

from __future__ import annotations

import copy
import logging
import pickle
import socket
import ssl
import subprocess
import threading
import traceback
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from conftest import client_of, login_of
from download_kit import files_named, world

from regards_nb.client import DownloadLink, Origin, RegardsClient, Secret
from regards_nb.errors import (
    RegardsError,
    ServiceLoginError,
    ServiceUnreachableError,
    SettingsError,
)
from regards_nb.simulator import (
    CutMode,
    CutZip,
    ExpiredToken,
    OrderPlan,
    Reply,
    Route,
    Simulator,
    html_page,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "correct-horse-battery"
HERE = Origin.parse("https://regards.example:8443/archive")


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("http://regards.example", "without TLS"),
        ("http://192.168.1.1:9030", "without TLS"),
        ("http://localhost.evil.example", "without TLS"),
        ("https://john:secret@regards.example", "must not hold a user name"),
        ("https://john@regards.example", "must not hold a user name"),
        ("https://regards.example?token=abc", "must not have"),
        ("https://regards.example#x", "must not have"),
        ("ftp://regards.example", "must look like"),
        ("regards.example", "must look like"),
        ("https://", "must look like"),
        ("https://regards.example:notaport", "must look like"),
        ("https://[::1", "must look like"),
        ("", "must look like"),
    ],
)
def test_a_bad_base_url_is_refused_before_anything_is_sent(base_url: str, says: str) -> None:
    """Plain http, user names, queries and nonsense are refused; the error does not show them."""
    with pytest.raises(SettingsError, match=says) as caught:
        RegardsClient(base_url, tenant="t", username="john", password=PASSWORD)
    assert "secret" not in str(caught.value)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "base_url", ["http://localhost:9030", "http://127.0.0.1", "http://[::1]:80/x/", "HTTPS://A.B/"]
)
def test_https_and_this_computer_are_accepted(base_url: str) -> None:
    """Plain http is accepted for this computer only."""
    client = RegardsClient(base_url, tenant="t", username="john", password=PASSWORD)
    assert client.base_url.lower() == base_url.lower().rstrip("/").replace(":80/x", "/x")
    client.close()


def test_a_login_or_a_token_is_needed() -> None:
    """A user name without a password is refused; the error says what to give."""
    with pytest.raises(SettingsError, match="username=.*token="):
        RegardsClient("https://regards.example", tenant="t", username="john")


DOWNLOAD = "/api/v1/rs-order/user/orders/7/download"


@pytest.mark.parametrize(
    ("location", "is_own"),
    [
        (f"https://regards.example:8443/archive{DOWNLOAD}", True),
        (f"https://regards.example:8443{DOWNLOAD}/", True),
        (DOWNLOAD, True),
        ("elsewhere?page=2", True),
        ("", True),
        (f"https://evil.example{DOWNLOAD}", False),
        (f"http://regards.example:8443{DOWNLOAD}", False),
        (f"https://regards.example{DOWNLOAD}", False),
        (f"//evil.example{DOWNLOAD}", False),
        (f"https://regards.example:8443@evil.example{DOWNLOAD}", False),
        (f"https://x@regards.example:8443{DOWNLOAD}", False),
        (f"https://regards.example.:8443{DOWNLOAD}", False),
        (f"https://régards.example:8443{DOWNLOAD}", False),
        (f"https://regards.example:bad{DOWNLOAD}", False),
        ("https://[bad", False),
        ("javascript:alert(1)", False),
    ],
)
def test_a_redirect_is_followed_within_the_origin_only(location: str, *, is_own: bool) -> None:
    """Scheme, host and port must be the same; the token is sent nowhere else."""
    assert (HERE.follow(HERE.url("/x"), location) is not None) == is_own


@pytest.mark.parametrize(
    ("link", "read"),
    [
        (f"https://regards.example:8443/archive{DOWNLOAD}", DownloadLink(7, None)),
        (f"https://regards.example:8443{DOWNLOAD}/", DownloadLink(7, None)),
        (DOWNLOAD, DownloadLink(7, None)),
        (f"https://evil.example{DOWNLOAD}", DownloadLink(7, "evil.example")),
        (f"http://regards.example:8443{DOWNLOAD}", DownloadLink(7, "regards.example")),
        (f"https://regards.example{DOWNLOAD}", DownloadLink(7, "regards.example")),
        (f"//evil.example{DOWNLOAD}", DownloadLink(7, "evil.example")),
        (f"evil.example{DOWNLOAD}", DownloadLink(7, "evil.example")),
        (f"https://regards.example:8443@evil.example{DOWNLOAD}", DownloadLink(7, "evil.example")),
        (f"https://x@regards.example:8443{DOWNLOAD}", DownloadLink(7, "regards.example")),
        (f"https://regards.example.:8443{DOWNLOAD}", DownloadLink(7, "regards.example.")),
        (f"https://régards.example:8443{DOWNLOAD}", DownloadLink(7, "régards.example")),
        ("https://regards.example:8443/x", DownloadLink(None, None)),
        (f"https://regards.example:bad{DOWNLOAD}", DownloadLink(None, "(unreadable)")),
        ("https://[bad", DownloadLink(None, "(unreadable)")),
        ("javascript:alert(1)", DownloadLink(None, "(unreadable)")),
        (f"{DOWNLOAD}?orderToken=x", DownloadLink(7, None)),
        ("/user/orders/99999999999999999999/download", DownloadLink(None, None)),
        ("", DownloadLink(None, None)),
        (None, DownloadLink(None, None)),
    ],
)
def test_a_link_is_read_for_its_number_and_never_followed(
    link: str | None, read: DownloadLink
) -> None:
    """The client reads order id and host of a link, and sends nothing."""
    assert HERE.read_link(link) == read


def test_no_secret_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No secret is in repr, str, format or vars, in logs at DEBUG level, or in a pickle."""
    caplog.set_level(logging.DEBUG)
    with world(tmp_path) as here:
        client = here.client
        here.fetch()
        token = client._tokens.current().secret.reveal()
        secrets = [token, here.simulator.password, here.simulator.client_secret]
        shown = f"{client!r} {client} {vars(client)} {vars(client._transport)} {client._tokens!r}"
        shown += f"{vars(client._tokens)} {Secret(token)!r} {Secret(token)}" + caplog.text
        assert not [secret for secret in secrets if secret in shown]
        for copier in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="not pickled"):
                copier(client)
            with pytest.raises(TypeError, match="not pickled"):
                copier(Secret("x"))
        below = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(below) > 5
        assert not [
            path for path in below for secret in secrets if secret.encode() in path.read_bytes()
        ]


def frames_of(error: BaseException) -> str:
    """Return everything that a debugger or a verbose traceback could show of an error."""
    shown = []
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        exc = waiting.pop()
        if id(exc) in seen:
            continue
        seen.add(id(exc))
        shown.append(f"{exc!r} {vars(exc)}")
        waiting += [link for link in (exc.__cause__, exc.__context__) if link is not None]
        for frame, _ in traceback.walk_tb(exc.__traceback__):
            if frame.f_code.co_filename != __file__:
                shown.append(repr(dict(frame.f_locals)))
    return "\n".join(shown)


@pytest.mark.parametrize("trouble", ["password", "token", "page", "gone", "cut"])
def test_no_traceback_holds_a_secret(trouble: str, tmp_path: Path) -> None:
    """No secret is in the local variables of any frame, which IPython can show."""
    with world(tmp_path, OrderPlan(files=files_named("a.nc"))) as here:
        simulator = here.simulator
        client = client_of(simulator, **({"password": PASSWORD} if trouble == "password" else {}))
        secrets = [simulator.password, simulator.client_secret, PASSWORD]
        if trouble != "password":
            client.login()
            secrets.append(client._tokens.current().secret.reveal())
        if trouble == "token":
            simulator.faults.add(Reply(route=Route.ANY, status=401, times=None))
        if trouble == "page":
            simulator.faults.add(html_page(Route.ORDER))
        if trouble == "gone":
            simulator.stop()
        if trouble == "cut":
            simulator.faults.add(CutZip(ending=CutMode.RESET))
        with client, pytest.raises(RegardsError) as caught:
            read_zip_or_order(client, here.order_id, is_zip=trouble == "cut")
        shown = frames_of(caught.value)
        assert not [secret for secret in secrets if secret in shown]


def read_zip_or_order(client: RegardsClient, order_id: int, *, is_zip: bool) -> None:
    """Read the zip or the order."""
    if not is_zip:
        client.order(order_id)
        return
    with client.open_zip(order_id) as body:
        assert body is not None
        for _ in body.blocks():
            pass


def test_netrc_cannot_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is sent also if ~/.netrc has a password for the host."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password stolen\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with world(tmp_path) as here:
        here.fetch()
        assert here.found == here.expected
        assert all(seen.status == 200 for seen in here.simulator.requests)


@contextmanager
def recording_proxy() -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that records requests and refuses them."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(f"{self.path} {self.headers}")
            self.send_error(502)

        do_GET = do_POST = do_CONNECT  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_proxy_is_used_for_other_computers_and_not_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY is used and gets no password; requests to this computer go directly."""
    with recording_proxy() as (proxy, asked):
        for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        far = RegardsClient(
            "https://regards.invalid", tenant="t", username="u", password=PASSWORD, backoff_s=0
        )
        with far, pytest.raises(ServiceUnreachableError, match="Proxy"):
            far.login()
        assert asked
        assert all(line.startswith("regards.invalid:443") for line in asked)
        assert PASSWORD not in "".join(asked)
        asked.clear()
        with world(tmp_path) as here:
            here.fetch()
        assert not asked


@contextmanager
def tls_in_front_of(simulator: Simulator, folder: Path) -> Iterator[tuple[str, str]]:
    """Serve the simulator by TLS with an unknown certificate; yield URL and file."""
    certificate = folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(certificate), "-out", str(folder / "public.pem")),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "public.pem", certificate)
    host, _, port = simulator.base_url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=forward, args=(raw,), daemon=True).start()

    def forward(raw: socket.socket) -> None:
        try:
            with (
                context.wrap_socket(raw, server_side=True) as outer,
                socket.create_connection((host, int(port))) as inner,
            ):
                back = threading.Thread(target=pump, args=(inner, outer), daemon=True)
                back.start()
                pump(outer, inner)
                back.join()
        except OSError:
            raw.close()

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{listener.getsockname()[1]}", str(folder / "public.pem")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_certificates_are_checked_and_a_bundle_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown certificate is refused, unless REQUESTS_CA_BUNDLE or ``ca_bundle=`` has it."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with (
        Simulator(amqp=None) as simulator,
        tls_in_front_of(simulator, tmp_path) as (url, bundle),
    ):
        login = {**login_of(simulator), "backoff_s": 0.0}
        with (
            RegardsClient(url, **login) as client,
            pytest.raises(ServiceUnreachableError, match="its certificate is not trusted"),
        ):
            client.login()
        with RegardsClient(url, ca_bundle=bundle, **login) as client:
            client.login()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with RegardsClient(url, **login) as client:
            assert list(client.iter_orders()) == []


def test_a_token_that_cannot_be_a_header_is_refused_without_showing_it() -> None:
    """A line end in a token would smuggle a header; the error does not print it."""
    evil = "abc\r\nX-Evil: yes"
    body = b'{"access_token": "abc\\r\\nX-Evil: yes", "expires_in": 60}'
    with Simulator(amqp=None) as simulator, client_of(simulator) as client:
        simulator.faults.add(Reply(route=Route.TOKEN, status=200, body=body))
        with pytest.raises(RegardsError, match="no token") as caught:
            client.login()
        assert evil not in str(caught.value)


def test_a_login_that_says_no_life_is_short(tmp_path: Path) -> None:
    """Without ``expires_in`` the token is used and renewed when it is refused."""
    with world(tmp_path, None, ExpiredToken()) as here:
        here.fetch()
        assert here.found == here.expected
    with Simulator(amqp=None) as simulator, client_of(simulator) as client:
        odd = Reply(route=Route.TOKEN, status=200, body=b'{"access_token": "x"}', times=None)
        simulator.faults.add(odd)
        with pytest.raises(ServiceLoginError):
            list(client.iter_orders())
