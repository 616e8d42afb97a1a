"""Settings of a tracker: arguments, environment, a profile, keyring, prompt.

The value of each setting is the first of:

1. the argument of ``OrderTracker.from_profile(..., name=value)``;
2. the environment variable ``REGARDS_...`` (``REGARDS_TENANT`` for ``tenant``);
3. the profile in the settings file (see `profiles_path`);
4. the default of `OrderTracker` and `RegardsClient`.

The settings file holds no passwords and tokens. They come from the argument, the environment, the
keyring of the system (if the package ``keyring`` is installed) or a prompt (if there is a terminal
or a notebook). regards_nb never writes them anywhere.
"""

from __future__ import annotations

import getpass
import importlib
import os
import re
import sys
import tomllib
import warnings
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import platformdirs

from regards_nb.client import RegardsClient, Secret
from regards_nb.errors import SettingsError
from regards_nb.journal import Journal, location_of
from regards_nb.text import did_you_mean, similar
from regards_nb.waits import in_kernel, stopped_by_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_T = TypeVar("_T")

PATH_VARIABLE = "REGARDS_SETTINGS"
PROFILE_VARIABLE = "REGARDS_PROFILE"
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})

#: Settings that a file must not hold.
SECRETS = ("password", "token", "amqp_password", "client_secret", "api_key")


@dataclass(frozen=True, slots=True)
class Field:
    """One setting: its type, what it is passed to, and one line for documentation and errors."""

    kind: type
    side: Literal["client", "tracker", "broker"]
    meaning: str


FIELDS: dict[str, Field] = {
    "amqp": Field(str, "broker", "amqps://user@broker:5671/regards.multitenant.manager"),
    "queue": Field(str, "broker", "the queue that the administrator made for you"),
    "url": Field(str, "client", "https://regards.example, the address of the REST interface"),
    "tenant": Field(str, "client", "the project"),
    "username": Field(str, "client", "your REGARDS account"),
    "client_id": Field(str, "client", "the name of the application in REGARDS"),
    "ca_bundle": Field(str, "client", "file of certificates to trust, also for RabbitMQ"),
    "workspace": Field(str, "tracker", "folder for downloaded files, or s3://bucket/prefix"),
    "journal": Field(str, "tracker", "the journal: path or database URL"),
    "auto_download": Field(bool, "tracker", "fetch each sub-order when REGARDS announces it"),
    "silence_s": Field(
        float, "tracker", "seconds without a message before REGARDS is asked over REST"
    ),
    "poll_s": Field(float, "tracker", "seconds between two REST requests where there is no broker"),
}

_TRACKER_OPTIONS = ("tenant", *(name for name, f in FIELDS.items() if f.side == "tracker"))

_EXAMPLE = """
[swot]
url = "https://regards.example"
tenant = "project1"
username = "john@example.org"
# only with a RabbitMQ account; without one the tracker polls REGARDS over REST
amqp = "amqps://john@broker.example:5671/regards.multitenant.manager"
queue = "orders.john"
"""


def profiles_path() -> Path:
    """Return the path of the settings file: ``REGARDS_SETTINGS``, else the platform's default.

    On Linux that is ``~/.config/regards-nb/profiles.toml``.
    """
    given = os.environ.get(PATH_VARIABLE)
    if given:
        return Path(given).expanduser()
    return platformdirs.user_config_path("regards-nb", appauthor=False) / "profiles.toml"


def profile_names(path: Path | None = None) -> list[str]:
    """Return the names of the profiles; an empty list if there is no file.

    Raises
    ------
    SettingsError
        The file cannot be read.
    """
    path = path or profiles_path()
    return list(_File(path).profiles) if path.exists() else []


def read_profile(name: str | None = None, path: Path | None = None) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of a profile.

    Parameters
    ----------
    name : str, optional
        Default: the value of ``REGARDS_PROFILE``, else the only profile of the file.
    path : pathlib.Path, optional
        Default: `profiles_path`.

    Raises
    ------
    SettingsError
        The file or the profile is missing, or a setting is wrong; the error names file and line.
    """
    path = path or profiles_path()
    file = _File(path)
    name = name or os.environ.get(PROFILE_VARIABLE) or file.only()
    if name not in file.profiles:
        known = ", ".join(file.profiles) or "none"
        raise SettingsError(f"{path} has no profile {name!r}; there are: {known}")
    return name, file.checked(name)


class _File:
    """A parsed settings file; its text gives the line numbers for error messages."""

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
            # The parser's message ends with "(at line 3, column 5)".
            raise SettingsError(f"{path} is not TOML: {exc}") from None
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"{path} cannot be read: {exc}") from None

    def only(self) -> str:
        if len(self.profiles) != 1:
            raise SettingsError(
                f"{self._path} has {len(self.profiles)} profiles "
                f"({', '.join(self.profiles)}): name one, or set {PROFILE_VARIABLE}"
            )
        (name,) = self.profiles
        return name

    def checked(self, name: str) -> dict[str, Any]:
        profile = self.profiles[name]
        if not isinstance(profile, dict):
            raise SettingsError(
                f"{self._where(None, name)}: a profile begins with the line [{name}]; "
                "its settings follow, one per line"
            )
        for key, value in profile.items():
            if wrong := what_is_wrong(key, value):
                raise SettingsError(f"{self._where(name, key)}: {wrong}")
        return dict(profile)

    def _where(self, profile: str | None, key: str) -> str:
        """Return the file and the line of a key, for an error message."""
        table = None
        begins = re.compile(rf'\s*["\']?{re.escape(key)}["\']?\s*=')
        for number, line in enumerate(self._text.splitlines(), start=1):
            if header := _HEADER.match(line):
                table = header[1].strip("\"'")
            elif table == profile and begins.match(line):
                return f"{self._path}, line {number}"
        return str(self._path)


def from_text(name: str, text: str) -> Any:
    """Return the value of a setting from the text of its environment variable."""
    kind = FIELDS[name].kind
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise SettingsError(f"{variable(name)} must be true or false, not {text!r}")
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise SettingsError(f"{variable(name)} must be a number, not {text!r}") from None
    return text


def what_is_wrong(name: str, value: object) -> str | None:
    """Return the fault of a value in the settings file, or None."""
    if name in SECRETS:
        return (
            f"a file must not hold {name}: set {variable(name)}, or keep it in the "
            "keyring of your system"
        )
    field = FIELDS.get(name)
    if field is None:
        return f"there is no setting {name}; the settings are {', '.join(FIELDS)}"
    is_number = field.kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, field.kind) and not is_number:
        kind = {str: "a string", bool: "true or false", float: "a number"}[field.kind]
        return f"{name} must be {kind} ({field.meaning}), not {value!r:.60}"
    if name in {"amqp", "url"} and has_password(str(value)):
        return f"{name} contains a password, which a file must not hold: remove it from the URL"
    return None


def tracker_from_settings(
    make: Callable[..., _T], name: str | None, options: Mapping[str, Any], *, of_profile: bool
) -> tuple[_T, SettingsSource]:
    """Make a tracker, and return where its settings come from.

    *name* as in `read_profile`; *options* were given in code. Without *of_profile* there is only
    the environment.
    """
    profile, settings = read_profile(name) if of_profile else (None, {})
    settings |= from_environment_variables()
    what = f"profile {profile!r}" if of_profile else "the environment"
    tracker = _tracker(make, dict(settings), dict(options), what)
    only_in_code = set(options) - _CARRIED - _NOT_NEEDED
    if _HIDDEN in location_of(options.get("journal") or ""):
        only_in_code.add("the password in journal")
    workspace = options.get("workspace") or settings.get("workspace") or "orders"
    return tracker, SettingsSource(
        profile=profile, only_in_code=tuple(sorted(only_in_code)), workspace=str(workspace)
    )


def _tracker(
    make: Callable[..., _T], settings: dict[str, Any], options: dict[str, Any], source: str
) -> _T:
    settings.update({name: options.pop(name) for name in FIELDS.keys() & options.keys()})
    client = options.pop("client", None)
    if client is None and settings.get("url"):
        client = client_of(settings, options, source)
    amqp = settings.get("amqp")
    if amqp is None and client is None:
        raise SettingsError(
            f"{source} gives neither the REST address (url, {variable('url')}) nor the RabbitMQ "
            f"address (amqp, {variable('amqp')}): at least one is needed"
        )
    kept = {name: settings[name] for name in _TRACKER_OPTIONS if settings.get(name) is not None}
    if amqp is not None and not settings.get("queue"):
        raise _missing("queue", source)
    if isinstance(amqp, str):
        amqp = _with_password(amqp, options.pop("amqp_password", None))
    check_options(options, signature(make).parameters, f"a tracker of {source}")
    return make(amqp, settings.get("queue"), client=client, **kept, **options)


def check_options(options: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse an option that is not known; the error names it, and those that may be meant."""
    known = sorted(known)
    for option in options:
        if option not in known:
            meant = did_you_mean(option, known) or f"There are {', '.join(known)}"
            raise SettingsError(f"{what} has no option {option!r}. {meant}")


def from_environment_variables() -> dict[str, Any]:
    """Return the settings of the environment; warn of a variable that looks like a misspelt one."""
    known = ("settings", "profile", *FIELDS, *SECRETS)
    for name in os.environ.keys() - set(map(variable, known)):
        # Other programs may have variables that begin with REGARDS, too.
        near = similar(name.removeprefix("REGARDS_").lower(), known)
        if name.startswith("REGARDS_") and near:
            meant = " or ".join(map(variable, near))
            warnings.warn(
                f"the environment variable {name} is not used. Did you mean {meant}?", stacklevel=5
            )
    texts = {name: os.environ.get(variable(name)) for name in FIELDS}
    return {name: from_text(name, text) for name, text in texts.items() if text}


def client_of(settings: dict[str, Any], options: dict[str, Any], source: str) -> RegardsClient:
    """Make the client of some settings, with its secrets; *source* names them in errors."""
    url, tenant, username = (settings.get(name) for name in ("url", "tenant", "username"))
    if not tenant:
        raise _missing("tenant", source)
    token = options.pop("token", None) or from_environment("token")
    password = options.pop("password", None)
    if token is None and password is None:
        if not username:
            raise _missing("username", source)
        password = secret("password", service=f"regards-nb:{url}", user=username)
    api_key = options.pop("api_key", None) or from_environment("api_key")
    given: dict[str, Any] = {
        # The key of a portal in front of REGARDS, such as GEODES.
        "headers": {"X-API-Key": api_key} if api_key else None,
        "client_id": settings.get("client_id"),
        "client_secret": options.pop("client_secret", None) or from_environment("client_secret"),
        "ca_bundle": settings.get("ca_bundle"),
    }
    return RegardsClient(
        str(url),
        tenant=tenant,
        username=username,
        password=password,
        token=token,
        **{name: value for name, value in given.items() if value is not None},
    )


def _missing(name: str, source: str) -> SettingsError:
    return SettingsError(f"{source} has no {name} ({variable(name)}): {FIELDS[name].meaning}")


def _with_password(amqp: str, given: str | None) -> str:
    """Return the AMQP URL with its password added; a profile does not hold it."""
    if has_password(amqp):
        return amqp
    try:
        parts = urlsplit(amqp)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return amqp  # OrderTracker raises an error that says what is wrong with the URL
    if not parts.username or not host:
        return amqp
    where = f"{host}:{port}" if port else host
    password = (
        given
        or secret(
            "amqp_password", service=f"regards-nb:{parts.scheme}://{where}", user=parts.username
        ).reveal()
    )
    location = f"{parts.username}:{quote(password, safe='')}@{where}"
    return urlunsplit(parts._replace(netloc=location))


def variable(name: str) -> str:
    """Return the environment variable of a setting.

    >>> variable("amqp_password")
    'REGARDS_AMQP_PASSWORD'
    """
    return f"REGARDS_{name.upper()}"


def secret(name: str, *, service: str, user: str) -> Secret:
    """Return ``password`` or ``amqp_password`` from the environment, the keyring or a prompt.

    *service* is its name in the keyring and in the prompt, without any secret in it. SettingsError:
    it is in none of the three, or no user is there to answer a prompt.
    """
    found = from_environment(name) or _from_keyring(service, user)
    if found is not None:
        return found
    if not can_ask():
        raise SettingsError(
            f"no password for {user} at {service}, and no terminal to ask for it. "
            f"Set {variable(name)}, or keep it in the keyring of your system:  "
            f"keyring set {service} {user}"
        )
    return _from_prompt(f"Password of {user} at {service}: ")


def from_environment(name: str) -> Secret | None:
    """Return a secret from its environment variable, or None."""
    text = os.environ.get(variable(name))
    return Secret(text, source=f"in {variable(name)}") if text else None


def source_of(name: str, text: str, *, service: str, user: str) -> str:
    """Return where a password in use came from, for an error; *text* is only compared."""
    in_keyring = _from_keyring(service, user)
    sources = {
        f"in {variable(name)}": from_environment(name),
        "from the keyring of your system": in_keyring,
    }
    for source, found in sources.items():
        if found is not None and found.reveal() == text:
            return source
    url = name.removesuffix("_password")
    if url != name and has_password(os.environ.get(variable(url), "")):
        return f"in {variable(url)}"
    return "given as an argument or at the prompt"


def can_ask() -> bool:
    """Tell whether a user can answer a prompt: in a terminal or in a notebook."""
    return in_kernel() or (sys.stdin is not None and sys.stdin.isatty())


def has_password(url: str) -> bool:
    """Tell whether a URL contains a password."""
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return "@" in url


def _from_keyring(service: str, user: str) -> Secret | None:
    try:
        text = importlib.import_module("keyring").get_password(service, user)
    except Exception:  # noqa: BLE001 - keyring is missing or locked: use the prompt
        return None
    return Secret(text, source="from the keyring of your system") if text else None


@stopped_by_user("stopped at the prompt for a password: call it again")
def _from_prompt(prompt: str) -> Secret:
    try:
        text = getpass.getpass(prompt)
    except (EOFError, OSError, RuntimeError, NotImplementedError) as exc:
        # A notebook that runs without a front end raises one of these.
        raise SettingsError(f"the prompt {prompt!r} failed ({type(exc).__name__})") from None
    if not text:
        raise SettingsError(f"no answer to {prompt!r}")
    return Secret(text, source="typed at the prompt")


# -- what a worker in another process gets to make client and journal itself: no secret

#: Options in code that workers get as text, and options that they do not need.
_CARRIED = frozenset({"tenant", "journal", "workspace"})
_NOT_NEEDED = frozenset({"amqp", "queue", "amqp_password", "auto_download", "silence_s", "poll_s"})
#: What stands for a password in the location of a journal.
_HIDDEN = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsSource:
    """Where the settings of a tracker come from: a profile, or (None) the environment alone.

    *only_in_code* are the options that were given in code, and that no worker can find or be given.
    *workspace* is as the user wrote it.
    """

    profile: str | None
    only_in_code: tuple[str, ...]
    workspace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What is sent to a worker. It holds no password, token or key.

    The worker reads *profile* in its own settings file (None: its environment alone), and compares
    *url* with that of the profile. *is_shared*: the worker may be on another machine, where the
    workspace must be there already.
    """

    profile: str | None
    url: str
    tenant: str | None
    journal: str
    workspace: str
    is_shared: bool

    def client(self) -> RegardsClient:
        """Make the client of the profile.

        SettingsError: the worker has no such profile or no password, or it is of another archive.
        """
        settings, source = self._read()
        if self.tenant is not None:
            settings["tenant"] = self.tenant
        if not settings.get("url"):
            raise SettingsError(
                f"{source} on the worker has no url ({variable('url')}), the address of REGARDS"
            )
        client = client_of(settings, {}, source)
        if client.base_url != self.url:
            found = client.base_url
            client.close()
            raise SettingsError(
                f"{source} on the worker has url = {found!r}, and the tracker uses {self.url!r}"
            )
        return client

    def open_journal(self) -> Journal:
        """Open the journal of the tracker.

        SettingsError: it needs a password, and the settings of the worker name another journal.
        """
        settings, source = self._read()
        own = settings.get("journal")
        if own and location_of(own) == self.journal:
            return Journal(own)
        if _HIDDEN in self.journal:
            raise SettingsError(
                f"{source} on the worker does not name the journal {self.journal}: set "
                f"{variable('journal')} there"
            )
        return Journal(self.journal)

    def _read(self) -> tuple[dict[str, Any], str]:
        if self.profile is None:
            return from_environment_variables(), "the environment"
        _, settings = read_profile(self.profile)
        return settings | from_environment_variables(), f"profile {self.profile!r}"
