"""The settings file: profiles in TOML, and for what is wrong the line it stands on."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import platformdirs

from regards_nb.errors import SettingsError
from regards_nb.settings.fields import what_is_wrong

PATH_VARIABLE = "REGARDS_SETTINGS"
PROFILE_VARIABLE = "REGARDS_PROFILE"
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")


def profiles_path() -> Path:
    """Return where the settings file is: ``REGARDS_SETTINGS``, else the platform's place for it.

    On Linux that is ``~/.config/regards-nb/profiles.toml``.
    """
    given = os.environ.get(PATH_VARIABLE)
    if given:
        return Path(given).expanduser()
    return platformdirs.user_config_path("regards-nb", appauthor=False) / "profiles.toml"


def profile_names(path: Path | None = None) -> list[str]:
    """Return the names of the profiles; none where there is no file.

    Raises
    ------
    SettingsError
        The file cannot be read.
    """
    path = path or profiles_path()
    return list(_File(path).profiles) if path.exists() else []


def read_profile(name: str | None = None, path: Path | None = None) -> tuple[str, dict[str, Any]]:
    """Return a profile: its name and its settings.

    Parameters
    ----------
    name : str, optional
        By default that of ``REGARDS_PROFILE``, else the only one.
    path : pathlib.Path, optional
        By default `profiles_path`.

    Raises
    ------
    SettingsError
        There is no such file or profile, or something in it is wrong: with file and line.
    """
    path = path or profiles_path()
    file = _File(path)
    name = name or os.environ.get(PROFILE_VARIABLE) or file.only()
    if name not in file.profiles:
        known = ", ".join(file.profiles) or "none"
        raise SettingsError(f"{path} has no profile {name!r}; there are: {known}")
    return name, file.checked(name)


class _File:
    """A settings file, parsed, with its text for finding lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._text = path.read_text(encoding="utf-8")
            self.profiles: dict[str, Any] = tomllib.loads(self._text)
        except FileNotFoundError:
            raise SettingsError(
                f"there is no settings file {path}. Write one, for example:\n{_EXAMPLE}"
            ) from None
        except tomllib.TOMLDecodeError as exc:
            # it says "at line 3, column 5" itself
            raise SettingsError(f"{path} is not TOML: {exc}") from None
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"{path} cannot be read: {exc}") from None

    def only(self) -> str:
        if len(self.profiles) != 1:
            raise SettingsError(
                f"{self._path} has {len(self.profiles)} profiles "
                f"({', '.join(self.profiles)}): say which, or set {PROFILE_VARIABLE}"
            )
        (name,) = self.profiles
        return name

    def checked(self, name: str) -> dict[str, Any]:
        profile = self.profiles[name]
        if not isinstance(profile, dict):
            raise SettingsError(
                f"{self._where(None, name)}: a profile begins with [{name}] and its settings "
                "follow, each on a line"
            )
        for key, value in profile.items():
            if wrong := what_is_wrong(key, value):
                raise SettingsError(f"{self._where(name, key)}: {wrong}")
        return dict(profile)

    def _where(self, profile: str | None, key: str) -> str:
        """Return file and line of a key."""
        table = None
        begins = re.compile(rf'\s*["\']?{re.escape(key)}["\']?\s*=')
        for number, line in enumerate(self._text.splitlines(), start=1):
            if header := _HEADER.match(line):
                table = header[1].strip("\"'")
            elif table == profile and begins.match(line):
                return f"{self._path}, line {number}"
        return str(self._path)


_EXAMPLE = """
[swot]
url = "https://regards.example"
tenant = "project1"
username = "john@example.org"
# with an account for RabbitMQ; without, the orders are followed by asking now and then
amqp = "amqps://john@broker.example:5671/regards.multitenant.manager"
queue = "orders.john"
"""
