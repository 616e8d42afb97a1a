"""The doctor finds each broken set-up by name, and says what to ask of whom."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pika
import pytest
from conftest import client_of

from regards_nb import OrderTracker
from regards_nb.doctor import Report, Verdict
from regards_nb.simulator import PrivateBroker, Route, Simulator, html_page

pytestmark = pytest.mark.simulator(with_broker=True)


def doctor(simulator: Simulator, folder: Path, **changes: Any) -> Report:
    options: dict[str, Any] = {
        "amqp": simulator.amqp_url,
        "queue": simulator.queue,
        "client": client_of(simulator, **changes.pop("rest", {})),
        "journal": folder / "journal.sqlite",
        "workspace": folder / "orders",
    }
    report = OrderTracker(**options | changes).doctor()
    assert isinstance(report, Report)
    return report


def changed(url: str, **parts: str) -> str:
    """Return an AMQP URL with another host, user or path."""
    old = urlsplit(url)
    where = parts.get("where", f"{old.hostname}:{old.port}")
    login = parts.get("login", f"{old.username}:{old.password}")
    return urlunsplit((parts.get("scheme", old.scheme), f"{login}@{where}", old.path, "", ""))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def failed(report: Report) -> list[str]:
    return [f.check for f in report.findings if f.verdict is Verdict.FAILED]


def test_all_is_well(simulator: Simulator, tmp_path: Path) -> None:
    """Each check is ok, on a line of its own; nothing is left behind."""
    report = doctor(simulator, tmp_path)
    assert report.ok, report
    assert [f.check for f in report.findings] == [
        "broker DNS", "broker port", "broker TLS", "broker login", "virtual host", "queue",
        "right to read", "queue depth", "other consumers", "REST DNS", "REST port", "REST login",
        "clock", "journal", "workspace", "disk",
    ]  # fmt: skip
    assert repr(report).count("\n") == 15
    assert report.as_dicts()[0]["verdict"] == "ok"
    assert not (tmp_path / "orders").exists()
    password = simulator.amqp_url.split(":")[2].split("@")[0]
    assert password not in repr(report)


def test_a_tracker_that_reads_is_no_other_consumer(simulator: Simulator, tmp_path: Path) -> None:
    """Examined while it runs, the tracker's own consumer is not held against it."""
    journal = tmp_path / "j.sqlite"
    with OrderTracker(simulator.amqp_url, simulator.queue, journal=journal) as tracker:
        report = tracker.doctor()
    assert report["other consumers"].verdict is Verdict.OK
    assert report["REST"].verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("set_up", "check", "advice"),
    [
        ({"where": "no-such-broker.invalid:5672"}, "broker DNS", "VPN"),
        ({"where": f"127.0.0.1:{free_port()}"}, "broker port", "ask the administrator"),
        ({"scheme": "amqps"}, "broker TLS", "TLS port"),
        ({"login": "john:wrong"}, "broker login", "administrator"),
        ({"vhost": "nowhere"}, "virtual host", "regards.multitenant.manager"),
        ({"queue": "orders.nobody"}, "queue", "administrator makes a queue"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_broken_broker_set_up_has_a_name(
    simulator: Simulator, tmp_path: Path, set_up: dict[str, str], check: str, advice: str
) -> None:
    """DNS, port, TLS, login, virtual host, queue: the first that fails is named."""
    changes: dict[str, Any] = {}
    if queue := set_up.pop("queue", None):
        changes["queue"] = queue
    if vhost := set_up.pop("vhost", None):
        changes["amqp"] = simulator.amqp_url.rpartition("/")[0] + f"/{vhost}"
    elif set_up:
        changes["amqp"] = changed(simulator.amqp_url, **set_up)
    report = doctor(simulator, tmp_path, **changes)
    assert failed(report) == [check], report
    assert advice in report[check].text


def test_a_queue_that_one_may_not_read(
    simulator: Simulator, broker: PrivateBroker, tmp_path: Path
) -> None:
    """The queue is there, but somebody else's."""
    other = broker.access()
    connection = pika.BlockingConnection(pika.URLParameters(broker.admin_url))
    connection.channel().queue_declare(other.queue, durable=True)
    report = doctor(simulator, tmp_path, queue=other.queue)
    connection.channel().queue_delete(other.queue)
    connection.close()
    assert failed(report) == ["right to read"], report
    assert "read permission" in report["right to read"].text


def test_a_queue_that_others_read(simulator: Simulator, tmp_path: Path) -> None:
    """Another consumer takes a part of the messages; an exclusive one takes all."""
    connection = pika.BlockingConnection(pika.URLParameters(simulator.amqp_url))
    channel = connection.channel()
    tag = channel.basic_consume(simulator.queue, lambda *_: None)
    report = doctor(simulator, tmp_path)
    assert report.ok
    assert "1 more read this queue" in report["other consumers"].text
    channel.basic_cancel(tag)
    channel.basic_consume(simulator.queue, lambda *_: None, exclusive=True)
    report = doctor(simulator, tmp_path)
    connection.close()
    assert failed(report) == ["right to read"]
    assert "exclusively" in report["right to read"].text


@pytest.mark.parametrize(
    ("rest", "check", "advice"),
    [
        ({"base_url": "https://no-such-regards.invalid"}, "REST DNS", "VPN"),
        ({"base_url": f"http://127.0.0.1:{free_port()}"}, "REST port", "ask the administrator"),
        ({"password": "wrong"}, "REST login", "refused the login"),
        ({"tenant": "other"}, "REST login", "tenant 'other'"),
        ({"client_secret": "wrong"}, "REST login", "refused the login"),
    ],
    ids=["name", "port", "password", "tenant", "application"],
)
def test_a_broken_rest_set_up_has_a_name(
    simulator: Simulator, tmp_path: Path, rest: dict[str, str], check: str, advice: str
) -> None:
    """DNS, port, login: the broker's checks go on beside it."""
    report = doctor(simulator, tmp_path, rest=rest)
    assert failed(report) == [check], report
    assert advice in report[check].text


def test_rest_without_the_tls_it_promises(simulator: Simulator, tmp_path: Path) -> None:
    """https to a server that speaks http."""
    url = simulator.base_url.replace("http:", "https:")
    report = doctor(simulator, tmp_path, rest={"base_url": url})
    assert failed(report) == ["REST TLS"], report
    assert "certificate authority" in report["REST TLS"].text


def test_something_else_answers(simulator: Simulator, tmp_path: Path) -> None:
    """The page of a portal is not REGARDS."""
    simulator.faults.add(html_page(Route.ORDERS))
    report = doctor(simulator, tmp_path)
    assert failed(report) == ["REST answer"], report
    assert "check base_url and the proxy" in report["REST answer"].text


def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    """Hours away from the server's: said with the number of seconds."""
    from regards_nb.doctor import _clock

    assert _clock(3600.0).verdict is Verdict.WARNING
    assert "3600 s ahead" in _clock(3600.0).text
    assert "7200 s behind" in _clock(-7200.0).text
    assert _clock(None).verdict is Verdict.SKIPPED


def test_a_workspace_that_is_a_file(simulator: Simulator, tmp_path: Path) -> None:
    """What cannot be written to is said before the first download."""
    (tmp_path / "taken").write_text("a file")
    report = doctor(simulator, tmp_path, workspace=tmp_path / "taken")
    assert failed(report) == ["workspace"], report


def test_a_broker_without_tls_elsewhere_is_a_warning() -> None:
    """On another machine the password crosses the network in clear."""
    from regards_nb.doctor import _broker_tls

    parameters = pika.ConnectionParameters(host="broker.example")
    assert _broker_tls(parameters).verdict is Verdict.WARNING


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """A broker whose certificate authority is not known."""
    from regards_nb.doctor import _broker_tls

    port = free_port()
    parameters = pika.ConnectionParameters(
        host="127.0.0.1", port=port, ssl_options=pika.SSLOptions(ssl.create_default_context())
    )
    finding = _broker_tls(parameters)
    assert finding.verdict is Verdict.FAILED
    assert "certificate authority" in finding.text
