"""AMQP over TLS: the broker is verified, and shown who we are, and no secret gets out."""

from __future__ import annotations

import gc
import logging
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from conftest import Admin, until

from regards_nb import OrderTracker, RegardsClient, errors
from regards_nb.simulator import PrivateBroker, Tls


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, a server called localhost, a client, and a stranger's authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "stranger.pem"))
    for name in ("localhost", "john@cnes.fr"):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    return folder


@pytest.fixture(scope="module")
def tls_broker(certificates: Path) -> Iterator[PrivateBroker]:
    tls = Tls(
        authority=certificates / "authority.pem",
        certificate=certificates / "localhost.pem",
        key=certificates / "localhost.key",
    )
    with PrivateBroker(tls=tls, users=1) as broker:
        yield broker


class Place:
    """Where a tracker connects, and with which certificates."""

    def __init__(self, broker: PrivateBroker, certificates: Path, folder: Path) -> None:
        self.admin = Admin(broker)
        self._broker = broker
        self._certificates = certificates
        self._folder = folder
        self.client: RegardsClient | None = None
        self.password = self.admin.url.split(":")[2].split("@")[0]

    def tracker(self, *, host: str = "localhost", **files: str) -> OrderTracker:
        options = {key: str(self._certificates / name) for key, name in files.items()}
        plain = f"127.0.0.1:{self._broker.amqp_port}"
        url = self.admin.url.replace("amqp://", "amqps://")
        url = url.replace(plain, f"{host}:{self._broker.ports.amqps}")
        if options:
            url += f"?ssl_options={quote(str(options))}"
        return OrderTracker(
            url, self.admin.queue, client=self.client, journal=self._folder / "journal.sqlite"
        )


@pytest.fixture
def place(tls_broker: PrivateBroker, certificates: Path, tmp_path: Path) -> Iterator[Place]:
    place = Place(tls_broker, certificates, tmp_path)
    yield place
    place.admin.close()


CLIENT = {"certfile": "john@cnes.fr.pem", "keyfile": "john@cnes.fr.key"}


def test_a_given_authority_and_a_client_certificate_are_used(place: Place) -> None:
    """The broker asks for a certificate, gets it, and messages flow."""
    place.admin.publish({"status": "DONE", "orderId": 1})
    with place.tracker(ca_certs="authority.pem", **CLIENT) as tracker:
        until(lambda: len(tracker.events) == 1)


def test_the_systems_authorities_are_used_by_default(
    place: Place, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that the system does not trust is refused; one that it does gets further."""
    with pytest.raises(errors.BrokerUnreachableError, match="TLS handshake failed"):
        place.tracker().start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "authority.pem"))
    # trusted now; the broker in turn refuses a client without a certificate
    with pytest.raises(errors.BrokerError) as caught:
        place.tracker().start()
    assert "verify failed" not in str(caught.value)


def test_the_certificates_of_the_client_are_trusted_for_the_broker(
    place: Place, certificates: Path
) -> None:
    """One file for both; without it the text says where to put one."""
    with pytest.raises(errors.BrokerUnreachableError, match="ca_bundle=.*SSL_CERT_FILE"):
        place.tracker().start()
    authority = certificates / "authority.pem"
    place.client = RegardsClient(
        "http://127.0.0.1:1", tenant="t", token="a.token", ca_bundle=authority
    )
    # trusted now; the broker in turn refuses a client without a certificate
    with pytest.raises(errors.BrokerError) as caught:
        place.tracker().start()
    assert "verify failed" not in str(caught.value)


def test_a_folder_of_certificates_is_taken_for_the_broker_too(tmp_path: Path) -> None:
    """As it is for REGARDS."""
    client = RegardsClient("http://127.0.0.1:1", tenant="t", token="a", ca_bundle=tmp_path)
    OrderTracker("amqps://u:p@localhost/v", "q", client=client, journal=tmp_path / "j.sqlite")


def test_a_server_of_an_authority_of_ones_own_is_asked_once(certificates: Path) -> None:
    """No repetition helps; the text says where to give the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "localhost.pem", certificates / "localhost.key")
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    accepted.append(server.accept())
                    context.wrap_socket(accepted[-1][0], server_side=True)
                except ssl.SSLError:
                    pass
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://localhost:{server.getsockname()[1]}"
        with (
            RegardsClient(url, tenant="t", token="a.token", backoff_s=0) as client,
            pytest.raises(errors.ServiceUnreachableError, match="not trusted .*ca_bundle="),
        ):
            client.order(1)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(accepted) == 1
    accepted[0][0].close()


def test_a_wrong_host_name_is_refused(place: Place) -> None:
    """The certificate is for localhost; the same machine by its number is somebody else."""
    with pytest.raises(errors.BrokerUnreachableError, match="TLS handshake failed.*mismatch"):
        place.tracker(host="127.0.0.1", ca_certs="authority.pem", **CLIENT).start()


def test_a_strangers_authority_is_refused(place: Place) -> None:
    """A certificate that somebody else has signed proves nothing."""
    with pytest.raises(errors.BrokerUnreachableError, match="TLS handshake failed"):
        place.tracker(ca_certs="stranger.pem", **CLIENT).start()


def test_without_a_client_certificate_the_broker_refuses(place: Place) -> None:
    """It is an error of ours, whatever the broker's way to say no."""
    with pytest.raises(errors.BrokerError):
        place.tracker(ca_certs="authority.pem").start()


def test_the_password_is_in_no_text(
    place: Place, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not in repr, errors, tracebacks with their variables, DEBUG logs, or the journal."""
    caplog.set_level(logging.DEBUG)
    texts = []
    for host in ("localhost", "127.0.0.1", "nowhere.invalid"):
        tracker = place.tracker(host=host, ca_certs="authority.pem", **CLIENT)
        try:
            tracker.start()
            tracker.stop()
        except errors.RegardsError as error:
            shown = traceback.TracebackException.from_exception(error, capture_locals=True)
            texts.append("".join(shown.format()))
        texts += [repr(tracker), str(vars(tracker)), str(tracker.health), tracker._repr_html_()]
    texts += [record.getMessage() for record in caplog.records]
    texts += [record.exc_text or "" for record in caplog.records]
    assert len(texts) > 20
    assert not [text for text in texts if place.password in text]
    assert place.password.encode() not in (tmp_path / "journal.sqlite").read_bytes()
    gc.collect()
