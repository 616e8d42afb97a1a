"""Logging in: REGARDS since 2.0, REGARDS 1.12 to 1.15, single sign-on, portals with an API key."""

from __future__ import annotations

import io
import re
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from conftest import client_of, until

from regards_nb import OrderTracker
from regards_nb.client import RegardsClient
from regards_nb.errors import RegardsError, ServiceLoginError, SettingsError
from regards_nb.simulator import LoginForm, Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def logins(simulator: Simulator) -> int:
    """Count the requests for a token."""
    return sum(seen.path.endswith("/oauth/token") for seen in simulator.requests)


@pytest.mark.parametrize(
    ("form", "requests"), [(LoginForm.JSON, 1), (LoginForm.ANY, 1), (LoginForm.FORM, 2)]
)
def test_each_regards_is_logged_in_to(form: LoginForm, requests: int) -> None:
    """JSON first; a server that did not find its fields gets a form, from then on at once."""
    with Simulator(amqp=None, login_form=form) as simulator, client_of(simulator) as client:
        assert list(client.iter_orders()) == []
        assert logins(simulator) == requests
        simulator.expire_tokens()
        assert list(client.iter_orders()) == []
        assert logins(simulator) == requests + 1
        assert client.login_form == ("form" if form is LoginForm.FORM else "json")


@pytest.mark.parametrize(("form", "requests"), [(LoginForm.JSON, 1), (LoginForm.FORM, 2)])
def test_a_refused_password_is_sent_in_one_form_only(form: LoginForm, requests: int) -> None:
    """Never a second attempt after a refusal: accounts get locked."""
    with (
        Simulator(amqp=None, login_form=form) as simulator,
        client_of(simulator, password="wrong") as client,
    ):
        with pytest.raises(ServiceLoginError, match="Bad credentials"):
            client.login()
        # the first of two found no fields, so the server did not check a password
        assert logins(simulator) == requests
        with pytest.raises(ServiceLoginError, match="Bad credentials"):
            client.login()
        assert logins(simulator) == requests + 1


@pytest.mark.parametrize(
    ("form", "says"), [(LoginForm.JSON, "JSON body .REGARDS 2.0"), (LoginForm.FORM, "1.12 to 1.15")]
)
def test_the_doctor_says_how_a_server_takes_a_login(
    form: LoginForm, says: str, tmp_path: Path
) -> None:
    """The finding on the login names the body and the versions of REGARDS that take it."""
    with (
        Simulator(amqp=None, login_form=form) as simulator,
        client_of(simulator) as client,
    ):
        tracker = OrderTracker(client=client, journal=tmp_path / "j.sqlite")
        assert re.search(says, tracker.doctor()["REST login"].text)


def test_a_token_of_single_sign_on_is_accepted() -> None:
    """The gateway accepts a foreign token only with the project in the header ``scope``."""
    with Simulator(amqp=None) as simulator:
        token = simulator.foreign_token
        with RegardsClient(simulator.base_url, tenant=simulator.tenant, token=token) as client:
            assert list(client.iter_orders()) == []


def test_a_function_is_asked_for_a_token_when_the_last_one_ends() -> None:
    """``token=`` takes a function; each new token is used until REGARDS refuses it."""
    with Simulator(amqp=None) as simulator:
        asked: list[str] = []

        def token() -> str:
            with client_of(simulator) as helper:
                helper.login()
                asked.append(helper._tokens.current().secret.reveal())
            return asked[-1]

        with RegardsClient(simulator.base_url, tenant=simulator.tenant, token=token) as client:
            assert asked == []
            for _ in range(2):
                assert list(client.iter_orders()) == []
            assert len(asked) == 1
            simulator.expire_tokens()
            assert list(client.iter_orders()) == []
            assert len(asked) == 2


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


@pytest.mark.usefixtures("_says_at_once")
def test_a_slow_function_is_waited_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in the thread of its caller, and may have written a prompt that is waited at."""
    written = Terminal()
    monkeypatch.setattr(sys, "stdout", written)

    def token() -> str:
        assert threading.current_thread() is threading.main_thread()
        written.write("Code: ")
        until(lambda: "waiting" in written.getvalue())
        return "unknown"

    with (
        Simulator(amqp=None) as simulator,
        RegardsClient(simulator.base_url, tenant="demo", token=token) as client,
    ):
        client.login()
    assert written.getvalue() == "Code: \nwaiting for the function given as token=\n"


def test_a_refused_token_of_a_function_is_named_as_such() -> None:
    """Its user gave no name and no password that he could check."""
    with (
        Simulator(amqp=None) as simulator,
        RegardsClient(simulator.base_url, tenant="demo", token=lambda: "unknown") as client,
        pytest.raises(ServiceLoginError, match="returned by the function given as token= has"),
    ):
        next(client.iter_orders())


@pytest.mark.parametrize("answer", [None, "", "two\nlines", 5])
def test_a_function_that_gives_no_token_is_an_error(answer: Any) -> None:
    """The error does not show what it gave."""
    client = RegardsClient("http://127.0.0.1:1", tenant="t", token=lambda: answer)
    with client, pytest.raises(ServiceLoginError, match="token= returned no token") as caught:
        client.order(1)
    assert "lines" not in str(caught.value)


def test_a_function_that_fails_keeps_its_error() -> None:
    """The user sees the reason."""

    def fail() -> str:
        raise RuntimeError("the portal is closed")

    client = RegardsClient("http://127.0.0.1:1", tenant="t", token=fail)
    told = r"token= raised RuntimeError \(.*test_client_login.py, line \d+\)\. .* not shown"
    with client, pytest.raises(ServiceLoginError, match=told) as caught:
        client.order(1)
    assert "the portal is closed" in str(caught.value.__cause__)
    assert "the portal is closed" not in str(caught.value)


KEY = "key-of-a-portal"


@pytest.fixture
def portal() -> Iterator[Simulator]:
    """Return a REGARDS behind a portal with an API key."""
    with Simulator(amqp=None, api_key=KEY) as simulator:
        yield simulator


def test_a_portal_gets_its_key_with_every_request(portal: Simulator) -> None:
    """Also with the login; and it is printed nowhere."""
    with client_of(portal, headers={"X-API-Key": KEY}) as client:
        assert list(client.iter_orders()) == []
        held = f"{vars(client)} {vars(client._transport)} {vars(client._transport._session)}"
        assert KEY not in held
    with (
        client_of(portal, headers={"X-API-Key": KEY}, password="wrong") as client,
        pytest.raises(RegardsError) as caught,
    ):
        client.login()
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    assert KEY not in shown.replace(f"KEY = {KEY!r}", "")


def test_without_its_key_a_portal_is_named(portal: Simulator) -> None:
    """The error says which parameter takes the key."""
    with client_of(portal) as client, pytest.raises(RegardsError, match="headers=.*X-API-Key"):
        client.login()


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "x"}, {"X Key": "x"}, {"X-Key": "a\r\nb"}, {"X-Key": ""}, {"Cookie": "x"}],
)
def test_headers_that_cannot_be_sent_are_refused_at_once(headers: dict[str, str]) -> None:
    """A line end would smuggle a header; the token and cookies have their own ways."""
    with pytest.raises(SettingsError, match="headers="):
        RegardsClient("https://regards.example", tenant="t", token="t", headers=headers)


def test_without_a_login_what_needs_one_says_so() -> None:
    """Nothing is sent."""
    with (
        Simulator(amqp=None) as simulator,
        RegardsClient(simulator.base_url, tenant=simulator.tenant) as client,
    ):
        with pytest.raises(SettingsError, match="needs a login"):
            client.order(1)
        with pytest.raises(SettingsError, match="needs a login"):
            client.login()
        assert simulator.requests == []


def test_the_key_of_a_portal_comes_from_the_environment(
    portal: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGARDS_API_KEY goes with the other settings."""
    for name, value in {
        "URL": portal.base_url,
        "TENANT": portal.tenant,
        "USERNAME": portal.username,
        "PASSWORD": portal.password,
        "API_KEY": KEY,
    }.items():
        monkeypatch.setenv(f"REGARDS_{name}", value)
    tracker = OrderTracker.from_env(journal=tmp_path / "j.sqlite")
    assert tracker.client is not None
    assert list(tracker.client.iter_orders()) == []
