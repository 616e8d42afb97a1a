"""What there is to set: names, types, and how they are read from a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from regards_nb.errors import SettingsError

_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Field:
    """One setting.

    Attributes
    ----------
    kind : type
        ``str``, ``bool`` or ``float``.
    side : {"client", "tracker", "broker"}
        Whose it is.
    meaning : str
        For the documentation and error texts.
    """

    kind: type
    side: Literal["client", "tracker", "broker"]
    meaning: str


FIELDS: dict[str, Field] = {
    "amqp": Field(str, "broker", "amqps://user@broker:5671/regards.multitenant.manager"),
    "queue": Field(str, "broker", "the queue that the administrator made for you"),
    "url": Field(str, "client", "https://regards.example, where the REST side is"),
    "tenant": Field(str, "client", "the project"),
    "username": Field(str, "client", "your REGARDS account"),
    "client_id": Field(str, "client", "the application, as REGARDS knows it"),
    "ca_bundle": Field(str, "client", "file of certificates to trust"),
    "workspace": Field(str, "tracker", "where files go"),
    "journal": Field(str, "tracker", "where the history is kept: path or database URL"),
    "auto_download": Field(bool, "tracker", "fetch each part when it is announced"),
    "silence_s": Field(float, "tracker", "seconds without a message before REST is asked"),
    "poll_s": Field(float, "tracker", "seconds between two questions where there is no broker"),
}

#: In no file: environment, keyring, prompt.
SECRETS = ("password", "token", "amqp_password", "client_secret")


def variable(name: str) -> str:
    """Return the environment variable of a setting.

    >>> variable("amqp_password")
    'REGARDS_AMQP_PASSWORD'
    """
    return f"REGARDS_{name.upper()}"


def from_text(name: str, text: str) -> Any:
    """Read a setting from the text of an environment variable.

    Raises
    ------
    SettingsError
        It is not of the kind it must be.
    """
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
    """Return why a value of the settings file cannot be, or None."""
    if name in SECRETS:
        return (
            f"{name} does not belong into a file: set {variable(name)}, or keep it in the "
            "keyring of your system"
        )
    field = FIELDS.get(name)
    if field is None:
        return f"{name} is no setting; there are {', '.join(FIELDS)}"
    number = field.kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, field.kind) and not number:
        kind = {str: "a text", bool: "true or false", float: "a number"}[field.kind]
        return f"{name} must be {kind} ({field.meaning}), not {value!r:.60}"
    if name in {"amqp", "url"} and has_password(str(value)):
        return f"{name} holds a password, which does not belong into a file: leave it out there"
    return None


def has_password(url: str) -> bool:
    """Tell whether a URL has a password in it."""
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return "@" in url
