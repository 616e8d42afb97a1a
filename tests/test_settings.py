"""Settings: their precedence, the errors of wrong ones, and that no secret is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from regards_nb import OrderTracker, errors
from regards_nb.settings import (
    FIELDS,
    SECRETS,
    profile_names,
    profiles_path,
    read_profile,
    tracker_from_settings,
    variable,
)

GOOD = """
# my archives
[swot]
url = "https://regards.example"
tenant = "project1"
username = "john@example.org"
amqp = "amqps://john@broker.example:5671/regards.multitenant.manager"
queue = "orders.john"
workspace = "from-profile"

[other]
url = "https://other.example"
tenant = "t"
username = "u"
"""


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a settings file; empty the environment and the keyring."""
    for name in (*FIELDS, *SECRETS, "profile"):
        monkeypatch.delenv(variable(name), raising=False)
    path = tmp_path / "profiles.toml"
    path.write_text(GOOD, encoding="utf-8")
    monkeypatch.setenv("REGARDS_SETTINGS", str(path))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    monkeypatch.chdir(tmp_path)
    return path


def made(**options: Any) -> dict[str, Any]:
    """Return the arguments of the tracker that a profile makes."""

    def make(amqp: str | None, queue: str | None, **more: Any) -> dict[str, Any]:
        return {"amqp": amqp, "queue": queue, **more}

    name = options.pop("profile", "swot")
    return tracker_from_settings(make, name, options, of_profile=True)[0]


def test_a_profile_and_two_passwords_make_a_tracker(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses and names come from the file, passwords from the environment."""
    monkeypatch.setenv("REGARDS_PASSWORD", "hunter2")
    monkeypatch.setenv("REGARDS_AMQP_PASSWORD", "hunter2/amqp")
    tracker = OrderTracker.from_profile("swot")
    assert repr(tracker).startswith("<OrderTracker of 'orders.john' at amqps://john@broker.")
    assert tracker.client is not None
    assert tracker.client.base_url == "https://regards.example"
    assert "hunter2" not in repr(vars(tracker)) + repr(vars(tracker.client))
    assert "hunter2" not in profiles.read_text()
    assert made()["amqp"].startswith("amqps://john:hunter2%2Famqp@broker.example:5671/")


def test_the_precedence_of_the_sources(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument before environment before profile before default."""
    monkeypatch.setenv("REGARDS_PASSWORD", "x")
    monkeypatch.setenv("REGARDS_AMQP_PASSWORD", "x")
    assert "auto_download" not in made()
    assert made()["workspace"] == "from-profile"
    monkeypatch.setenv("REGARDS_WORKSPACE", "from-environment")
    monkeypatch.setenv("REGARDS_AUTO_DOWNLOAD", "yes")
    assert (made()["workspace"], made()["auto_download"]) == ("from-environment", True)
    assert made(workspace="from-argument")["workspace"] == "from-argument"


def test_the_environment_alone_is_enough(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """from_env() reads no file; without a broker it polls."""
    profiles.unlink()
    for name, value in {
        "url": "https://regards.example", "tenant": "t", "username": "u", "password": "p",
        "poll_s": "30",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable(name), value)
    tracker = OrderTracker.from_env()
    assert repr(tracker) == ("<OrderTracker by REST alone at https://regards.example: STOPPED>")


def test_which_profile(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, or of REGARDS_PROFILE, or the only one."""
    assert profile_names() == ["swot", "other"]
    with pytest.raises(errors.SettingsError, match=r"2 profiles \(swot, other\): name one"):
        read_profile()
    monkeypatch.setenv("REGARDS_PROFILE", "other")
    assert read_profile()[0] == "other"
    with pytest.raises(errors.SettingsError, match="has no profile 'smos'; there are: swot, other"):
        read_profile("smos")
    profiles.write_text('[one]\nurl = "https://x"\n')
    monkeypatch.delenv("REGARDS_PROFILE")
    assert read_profile()[0] == "one"


@pytest.mark.parametrize(
    ("line", "number", "why"),
    [
        ('quque = "orders.john"', 5, "there is no setting quque; the settings are amqp, queue"),
        ("tenant = 7", 5, "tenant must be a string"),
        ('auto_download = "yes"', 5, "auto_download must be true or false"),
        ('poll_s = "1 s"', 5, "poll_s must be a number"),
        ('password = "hunter2"', 5, "set REGARDS_PASSWORD, or keep it in the keyring"),
        ('amqp = "amqps://john:hunter2@broker/v"', 5, "amqp contains a password"),
    ],
)
def test_a_wrong_profile_names_file_and_line(
    profiles: Path, line: str, number: int, why: str
) -> None:
    """The line is that of the right profile; a secret in it is not repeated."""
    key = line.partition(" ")[0]
    profiles.write_text(f'# first\n[a]\n{key} = ""\n[swot]\n{line}\n')
    with pytest.raises(errors.SettingsError) as caught:
        read_profile("swot")
    assert f"{profiles}, line {number}: " in str(caught.value)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_settings_file(profiles: Path) -> None:
    """Broken TOML says line and column; a missing file shows what to write."""
    profiles.write_text("[swot]\nurl = nothing\n")
    with pytest.raises(errors.SettingsError, match=r"is not TOML: .*line 2, column"):
        read_profile("swot")
    profiles.write_text('swot = "https://regards.example"\n')
    with pytest.raises(
        errors.SettingsError, match=r"line 1: a profile begins with the line \[swot\]"
    ):
        read_profile("swot")
    profiles.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.SettingsError, match="cannot be read"):
        read_profile("swot")
    profiles.unlink()
    with pytest.raises(errors.SettingsError, match=r"there is no settings file(.|\n)*\[swot\]"):
        read_profile("swot")


def test_what_is_missing_is_named(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a missing address, tenant, user or password names the variable to set."""
    profiles.write_text('[empty]\n[half]\nurl = "https://x"\n[more]\nurl = "https://x"\ntenant="t"')
    with pytest.raises(errors.SettingsError, match="REGARDS_URL"):
        made(profile="empty")
    with pytest.raises(errors.SettingsError, match="REGARDS_TENANT"):
        made(profile="half")
    with pytest.raises(errors.SettingsError, match="REGARDS_USERNAME"):
        made(profile="more")
    profiles.write_text(GOOD)
    with pytest.raises(
        errors.SettingsError, match="no terminal to ask.*REGARDS_PASSWORD.*keyring set"
    ):
        made()
    monkeypatch.setenv("REGARDS_POLL_S", "often")
    with pytest.raises(errors.SettingsError, match="REGARDS_POLL_S must be a number"):
        made()
    profiles.write_text(GOOD.replace("queue = ", "# "))
    monkeypatch.delenv("REGARDS_POLL_S")
    monkeypatch.setenv("REGARDS_PASSWORD", "p")
    with pytest.raises(errors.SettingsError, match="no queue .REGARDS_QUEUE"):
        made()


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["-c", "from regards_nb import OrderTracker; OrderTracker.from_profile('swot')"],
         "stopped at the prompt for a password: call it again"),
        (["-m", "regards_nb", "orders", "--profile", "swot"], "regards-nb: stopped\r\n"),
    ],
)  # fmt: skip
def test_ctrl_c_at_the_prompt_for_a_password_says_so(command: list[str], said: str) -> None:
    """In a terminal, where a person types it."""
    terminal, end = os.openpty()
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,  # else the prompt is written to the terminal of the tests
    ) as process:
        os.close(end)
        shown = b""
        while b"Password of" not in shown:
            shown += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # Linux says so where the other end is closed
            while more := os.read(terminal, 1000):
                shown += more
    os.close(terminal)
    assert said in shown.decode()


@pytest.mark.parametrize("name", ["AUTODOWNLOAD", "PASWORD", "PROFIL"])
def test_a_misspelt_variable_is_named(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As a misspelt key of the file is; variables of other programs are no matter of ours."""
    meant = {"AUTODOWNLOAD": "AUTO_DOWNLOAD", "PASWORD": "PASSWORD", "PROFIL": "PROFILE"}[name]
    monkeypatch.setenv("REGARDS_PASSWORD", "p")
    monkeypatch.setenv("REGARDS_AMQP_PASSWORD", "q")
    monkeypatch.setenv("REGARDS_HOME", "/opt/regards")
    monkeypatch.setenv(f"REGARDS_{name}", "true")
    with pytest.warns(UserWarning, match=f"REGARDS_{name} is not used.*REGARDS_{meant}") as told:
        made()
    assert len(told) == 1


def test_the_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without REGARDS_SETTINGS the file is in the platform's folder for settings."""
    monkeypatch.delenv("REGARDS_SETTINGS", raising=False)
    assert profiles_path().name == "profiles.toml"
    assert profiles_path().parent.name == "regards-nb"
