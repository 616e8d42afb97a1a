"""What start() waits for, what it says meanwhile, and what ends it."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import DEADLINE_S, client_of, tracker_of, until
from tcp_proxy import TcpProxy

from regards_nb import OrderTracker, errors
from regards_nb.client import LastByte
from regards_nb.consumer import HealthState
from regards_nb.simulator import OrderPlan, Reply, Route, Simulator, Slow

pytestmark = pytest.mark.simulator(with_broker=True)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("login", [{"password": "wrong"}, {"token": "wrong"}], ids=str)
def test_a_refused_login_ends_the_start(
    simulator: Simulator, tmp_path: Path, login: dict[str, str]
) -> None:
    """Also where RabbitMQ accepts its own; with the right one the same journal goes on."""
    none = {"username": None, "password": None} if "token" in login else {}
    tracker = tracker_of(simulator, tmp_path, client=client_of(simulator, **none | login))
    with pytest.raises(errors.ServiceLoginError, match="Check user name|token given as token="):
        tracker.start()
    assert tracker.health.state is HealthState.STOPPED
    with tracker_of(simulator, tmp_path) as right:
        assert right.health.state is HealthState.CONSUMING
        assert not right.snapshot().background_errors


def test_an_outage_of_rest_is_a_note(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages arrive without REGARDS, so start() returns, and says what is missing."""
    away = client_of(simulator, base_url="http://127.0.0.1:1")
    with tracker_of(simulator, tmp_path, client=away) as tracker:
        assert "could not be checked, and messages arrive: " in capsys.readouterr().out
        assert "could not be checked" in str(tracker.snapshot().background_errors)
        number = simulator.order(OrderPlan(n_files=1))
        assert list(tracker.wait(number, timeout_s=60)["status"]) == ["DONE"]


def _log_in(tracker: OrderTracker) -> None:
    assert tracker.client
    tracker.client.login()


def _order(tracker: OrderTracker) -> None:
    tracker.submit("URN:1", estimate=False)


@pytest.mark.parametrize("asks", [OrderTracker.wait, OrderTracker.sync, _log_in, _order])
def test_a_note_on_the_login_ends_with_an_answer(
    simulator: Simulator, tmp_path: Path, asks: Callable[[OrderTracker], object]
) -> None:
    """No view shows later what has healed."""
    away = simulator.faults.add(Reply(route=Route.TOKEN, status=503, times=None))
    with tracker_of(simulator, tmp_path) as tracker:
        until(lambda: "could not be checked" in str(tracker.snapshot().background_errors))
        simulator.faults.remove(away)
        if asks == OrderTracker.wait:
            simulator.order(OrderPlan(n_files=1))
            until(lambda: len(tracker.orders))
        asks(tracker)
        until(lambda: not tracker.snapshot().background_errors)


def test_a_login_that_is_not_answered_is_named(
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By start(), and by a wait for a download that needs the login."""
    monkeypatch.setattr(LastByte, "told_after_s", 0.2)
    where = f"REGARDS at {simulator.base_url}"
    simulator.faults.add(Slow(route=Route.TOKEN, delay_s=60))
    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        told = f"{where} has not answered yet: what is new there is not known\n"
        assert told in capsys.readouterr().out
        number = simulator.order(OrderPlan(n_files=1))
        told = rf"no byte of order {number} since [\d:]+ UTC: it waits for the login to {where}"
        until(lambda: re.search(told, tracker._repr_html_()))
        with pytest.raises(errors.WaitTimeoutError, match=told):
            tracker.wait(number, timeout_s=0.01)
        simulator.stop()


def test_a_login_that_fails_and_is_tried_again_is_named(
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By start(), with the reason and what to do: nobody has to wait for the last attempt."""
    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)
    away = client_of(simulator, base_url="http://127.0.0.1:1", backoff_s=50)
    with away, tracker_of(simulator, tmp_path, client=away):
        told = capsys.readouterr().out
    assert "has not answered yet" not in told
    assert re.search(
        r"^the login to REGARDS could not be checked so far, and messages arrive: REGARDS at "
        r"http://127\.0\.0\.1:1: .*Connection refused\. It is tried again\. Check base_url=",
        told,
        re.MULTILINE,
    )


@pytest.mark.usefixtures("_says_at_once")
def test_a_token_that_is_waited_for_is_named(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """REGARDS was not asked, and the function of the user has not returned."""
    told = threading.Event()

    def token() -> str:
        assert told.wait(DEADLINE_S)
        return simulator.foreign_token

    mine = client_of(simulator, username=None, password=None, token=token)
    tracker = tracker_of(simulator, tmp_path, client=mine)
    tracker.start()
    told.set()
    tracker.stop()
    where = f"REGARDS at {simulator.base_url}"
    # RabbitMQ may be told of, too, where the machine is slow.
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "waiting for the function given as token=, at most 2 s",
        f"the function given as token= has not returned yet: what is new at {where} is not known",
    ]


class ClosedGate(TcpProxy):
    """Leaves all connections unanswered until it is opened."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.opened = threading.Event()

    def _accept(self) -> None:
        self.opened.wait()
        super()._accept()


def test_a_login_that_is_refused_later_is_raised_by_the_next_call(
    simulator: Simulator, tmp_path: Path
) -> None:
    """start() does not wait for a slow REGARDS, and its refusal is not lost."""
    port = urlsplit(simulator.base_url).port
    assert port is not None
    with ClosedGate(("127.0.0.1", port)) as gate:
        wrong = client_of(simulator, base_url=f"http://127.0.0.1:{gate.port}", password="wrong")
        tracker = tracker_of(simulator, tmp_path, client=wrong)
        try:
            tracker.start()
        finally:
            gate.opened.set()
        assert tracker.health.state is HealthState.CONSUMING
        until(lambda: "logging in" in "".join(tracker.snapshot().background_errors))
        with pytest.raises(errors.TrackingError, match="logging in to REGARDS: .*Check user name"):
            tracker.wait()
        tracker.stop()


def test_a_refused_password_is_not_sent_again_in_the_background(
    simulator: Simulator, tmp_path: Path
) -> None:
    """A call of the user sends it once, and raises no error that has healed since."""
    refused = Reply(route=Route.TOKEN, status=400, body=b"{}", times=None)

    def logins() -> int:
        return sum(each.path.endswith("/oauth/token") for each in simulator.requests)

    with tracker_of(simulator, tmp_path, auto_download=True) as tracker:
        simulator.faults.add(refused)
        simulator.expire_tokens()
        number = simulator.order(OrderPlan(n_files=3, files_per_suborder=1))
        client = tracker.client
        assert client is not None
        until(lambda: client.is_login_refused)
        assert "refuses the login" in str(tracker.health.reason)
        before = logins()
        with pytest.raises(errors.WaitTimeoutError, match="The background logs in again at"):
            tracker.wait(number, timeout_s=7)
        assert logins() - before == 1, "this call"
        simulator.faults.remove(refused)
        assert list(tracker.wait(number, timeout_s=60)["downloaded_files"]) == [3]
        assert not client.is_login_refused
        assert "refuses the login" not in str(tracker.health.reason)


@pytest.mark.usefixtures("_says_at_once")
def test_a_start_says_what_it_waits_for(
    tmp_path: Path, silent_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a second, where RabbitMQ accepts and does not answer; its error says what to do."""
    url = f"amqp://guest:guest@127.0.0.1:{silent_port}/x"
    tracker = OrderTracker(url, "orders", journal=tmp_path / "journal.sqlite")
    with pytest.raises(errors.BrokerUnreachableError, match="did not confirm.*try again later"):
        tracker.start(timeout_s=1.1)
    told = capsys.readouterr().out
    assert told == f"waiting for RabbitMQ at {url.replace(':guest', '')}, at most 1.1 s\n"


@pytest.mark.usefixtures("_says_at_once")
def test_a_start_with_a_broker_says_that_it_waits_for_the_login(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RabbitMQ has answered, and REGARDS accepts a connection and does not."""
    simulator.faults.add(Slow(route=Route.TOKEN, delay_s=60))
    with tracker_of(simulator, tmp_path):
        told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [
        f"waiting for the login to REGARDS at {simulator.base_url}, at most 2 s",
        f"REGARDS at {simulator.base_url} has not answered yet: what is new there is not known",
    ]


def test_ctrl_c_ends_a_start_in_one_line(tmp_path: Path, silent_port: int) -> None:
    """It says that nothing runs; so does a start soon after one that was given up."""
    url = f"amqp://guest:guest@127.0.0.1:{silent_port}/x"
    tracker = OrderTracker(url, "orders", journal=tmp_path / "journal.sqlite")
    with pytest.raises(errors.BrokerUnreachableError):
        tracker.start(timeout_s=0.1)
    given_up = tracker.health.since

    def interrupt() -> None:
        until(
            lambda: (
                tracker.health.state is HealthState.CONNECTING and tracker.health.since > given_up
            )
        )
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(errors.StoppedWaiting, match=r"start\(\) was stopped.*call start\(\) again"):
        tracker.start()
    until(lambda: tracker.health.state is HealthState.STOPPED)


def test_ctrl_c_at_the_end_of_a_start_stops_the_tracker(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages arrive already: what the line says is true, and a second start goes on."""
    tracker = tracker_of(simulator, tmp_path)
    errors_of = tracker._shared.errors
    monkeypatch.setattr(errors_of, "withdraw", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(errors.StoppedWaiting, match="no event arrives: call start"):
        tracker.start()
    # A consumer that has more to do than the call waits for ends by itself.
    until(lambda: tracker.health.state is HealthState.STOPPED)
    monkeypatch.undo()
    with tracker.start():
        monkeypatch.setattr(errors_of, "withdraw", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(errors.StoppedWaiting, match="events arrive as before"):
            tracker.start()
        assert tracker.health.state is HealthState.CONSUMING


@pytest.mark.usefixtures("_says_at_once")
def test_a_start_without_a_broker_says_that_it_waits_for_regards(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where REGARDS accepts a connection and is slow to answer."""
    simulator.faults.add(Slow(route=Route.TOKEN, delay_s=1.5))
    with OrderTracker(client=client_of(simulator), journal=tmp_path / "journal.sqlite") as tracker:
        assert tracker.health.state is HealthState.POLLING
        line = f"waiting for REGARDS at {simulator.base_url}, at most 30 s\n"
        assert capsys.readouterr().out == line
