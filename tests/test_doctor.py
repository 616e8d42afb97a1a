"""The doctor finds each broken set-up by name, and says what to ask of whom."""

from __future__ import annotations

import base64
import json
import re
import socket
import sqlite3
import ssl
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pika
import pytest
from conftest import client_of, environment_of, until
from tcp_proxy import TcpProxy

from regards_nb import OrderTracker
from regards_nb.consumer import HealthState
from regards_nb.doctor import CheckResult, Report
from regards_nb.journal import Journal
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
    return [f.check for f in report.findings if f.verdict is CheckResult.FAILED]


def test_all_is_well(simulator: Simulator, tmp_path: Path) -> None:
    """Each check is ok, on a line of its own; nothing is left behind."""
    report = doctor(simulator, tmp_path)
    assert report.ok, report
    assert [f.check for f in report.findings] == [
        "broker DNS", "broker port", "broker TLS", "broker login", "virtual host", "queue",
        "right to read", "queue depth", "other consumers", "REST DNS", "REST port", "REST login",
        "clock", "journal", "workspace", "disk",
    ]  # fmt: skip
    assert repr(report).count("\n") == 16
    assert report.as_dicts()[0]["verdict"] == "ok"
    assert not (tmp_path / "orders").exists()
    password = simulator.amqp_url.split(":")[2].split("@")[0]
    assert password not in repr(report)


def test_a_tracker_that_reads_is_no_other_consumer(simulator: Simulator, tmp_path: Path) -> None:
    """Examined while it runs, neither its own consumer is one, nor one with the same journal."""
    journal = tmp_path / "j.sqlite"
    with OrderTracker(simulator.amqp_url, simulator.queue, journal=journal) as tracker:
        report = tracker.doctor()
        assert report["other consumers"].text == "none"
        with OrderTracker(simulator.amqp_url, simulator.queue, journal=journal):
            until(lambda: tracker.doctor()["other consumers"].text == "1, with this journal")
    assert report["other consumers"].verdict is CheckResult.OK
    assert report["REST"].verdict is CheckResult.SKIPPED


def test_a_tracker_that_gets_no_events_says_why(simulator: Simulator, tmp_path: Path) -> None:
    """The checks may all pass by now; what keeps the tracker from receiving comes first."""
    port = urlsplit(simulator.amqp_url).port
    assert port is not None
    with TcpProxy(("127.0.0.1", port)) as proxy:
        url = proxy.url(simulator.amqp_url)
        tracker = OrderTracker(url, simulator.queue, journal=tmp_path / "j.sqlite").start()
    until(lambda: tracker.health.state is HealthState.RECONNECTING)
    first = tracker.doctor().findings[0]
    assert (first.check, first.verdict) == ("events", CheckResult.FAILED)
    assert "no event has arrived since" in first.text
    tracker.stop()


@pytest.mark.parametrize(
    ("set_up", "check", "advice"),
    [
        ({"scheme": "amqps", "where": "no-such-broker.invalid:5672"}, "broker DNS", "VPN"),
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
    """Another consumer takes a part of the messages; an exclusive one takes all.

    The doctor moves no message, and RabbitMQ tells the two apart only when one is to be moved.
    """
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
    assert report["other consumers"].verdict is CheckResult.WARNING
    assert "reads exclusively" in report["other consumers"].text


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
    assert "the port speaks http without TLS" in report["REST TLS"].text


def test_something_else_answers(simulator: Simulator, tmp_path: Path) -> None:
    """The page of a portal is not REGARDS."""
    simulator.faults.add(html_page(Route.ORDERS))
    report = doctor(simulator, tmp_path)
    assert failed(report) == ["REST answer"], report
    assert "check base_url and the proxy" in report["REST answer"].text


def test_a_journal_that_another_program_holds(simulator: Simulator, tmp_path: Path) -> None:
    """A tracker could write no message to it, and one that only reads it does not mind."""
    journal = tmp_path / "journal.sqlite"
    Journal(journal).close()
    with closing(sqlite3.connect(journal, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        report = doctor(simulator, tmp_path)
        assert failed(report) == ["journal"]
        assert "cannot write the journal" in report["journal"].text
        assert "Another program holds it: close that program" in report["journal"].text
        assert OrderTracker.reader(journal).doctor()["journal"].text == "readable, no damage"
        other.execute("ROLLBACK")
    assert doctor(simulator, tmp_path)["journal"].text == "readable and writable, no damage"


def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    """Hours away from the server's: said with the number of seconds."""
    from regards_nb.doctor import _clock

    assert _clock(3600.0).verdict is CheckResult.WARNING
    assert "3600 s ahead" in _clock(3600.0).text
    assert "7200 s behind" in _clock(-7200.0).text
    assert _clock(None).verdict is CheckResult.SKIPPED


def test_a_workspace_that_is_a_file(simulator: Simulator, tmp_path: Path) -> None:
    """What cannot be written to is said before the first download."""
    (tmp_path / "taken").write_text("a file")
    report = doctor(simulator, tmp_path, workspace=tmp_path / "taken")
    assert failed(report) == ["workspace"], report


def test_a_broker_without_tls_elsewhere_is_a_warning() -> None:
    """On another machine the password crosses the network in clear."""
    from regards_nb.doctor import _broker_tls

    parameters = pika.ConnectionParameters(host="broker.example")
    assert _broker_tls(parameters).verdict is CheckResult.WARNING


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """A broker whose certificate authority is not known."""
    from regards_nb.doctor import _broker_tls

    port = free_port()
    parameters = pika.ConnectionParameters(
        host="127.0.0.1", port=port, ssl_options=pika.SSLOptions(ssl.create_default_context())
    )
    finding = _broker_tls(parameters)
    assert finding.verdict is CheckResult.FAILED
    assert "certificate authority" in finding.text


def jwt(expires_at: datetime) -> str:
    """Return a token in the form of REGARDS' own, with this date and no valid signature."""
    parts = ({"alg": "HS512"}, {"exp": int(expires_at.timestamp()), "sub": "john"})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(part.rstrip("=") for part in encoded), "c2lnbmF0dXJl"])


def test_an_expired_token_is_named_with_its_date(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding has the variable, the date and the way out; the server's own text comes last."""
    expired = jwt(datetime(2026, 3, 1, 12, 30, tzinfo=UTC))
    for name, value in environment_of(simulator, tmp_path, token=expired).items():
        monkeypatch.setenv(name, value)
    finding = OrderTracker.from_env().doctor()["REST login"]
    assert finding.verdict is CheckResult.FAILED
    assert "the token in REGARDS_TOKEN expired on 2026-03-01 12:30 UTC" in finding.text
    assert "Get a new token" in finding.text
    assert finding.text.index("Get a new token") < finding.text.index("The server answered: ")
    assert expired not in finding.text


def test_a_refused_password_says_where_it_came_from(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For REST and for RabbitMQ alike: the environment, or an argument; never the password."""
    wrong = changed(simulator.amqp_url, login="john:hunter2")
    for name, value in environment_of(simulator, tmp_path, password="hunter3", amqp=wrong).items():
        monkeypatch.setenv(name, value)
    report = OrderTracker.from_env().doctor()
    assert "password in REGARDS_PASSWORD" in report["REST login"].text
    assert "The server answered: " in report["REST login"].text
    assert "password in REGARDS_AMQP" in report["broker login"].text
    assert not {"hunter2", "hunter3"} & set(re.findall(r"hunter\d", repr(report)))
    monkeypatch.setenv("REGARDS_AMQP", wrong.replace(":hunter2@", "@"))
    monkeypatch.setenv("REGARDS_AMQP_PASSWORD", "hunter4")
    report = OrderTracker.from_env(password="hunter5").doctor()
    assert "password in REGARDS_AMQP_PASSWORD" in report["broker login"].text
    assert "password given as an argument" in report["REST login"].text


def test_the_report_is_a_table_and_sums_up(simulator: Simulator, tmp_path: Path) -> None:
    """A notebook shows a row per check; the last line says how many failed and where to begin."""
    report = doctor(simulator, tmp_path, queue="<b>nobody</b>")
    page = report._repr_html_()
    assert page.count("<tr") == len(report.findings)
    assert "&lt;b&gt;nobody&lt;/b&gt;" in page
    assert "<b>nobody" not in page
    summary = "1 of 13 checks failed: queue. Fix that first."
    assert repr(report).splitlines()[-1] == summary
    assert page.count(summary) == 1
    good = doctor(simulator, tmp_path)
    assert repr(good).splitlines()[-1] == "All 16 checks passed."
