"""Passwords and tokens, from the environment, the keyring of the system or a prompt."""

from __future__ import annotations

import getpass
import importlib
import os
import sys
from typing import Any
from urllib.parse import urlsplit

from regards_nb.client import Secret
from regards_nb.errors import SettingsError

#: Settings that a file must not hold.
SECRETS = ("password", "token", "amqp_password", "client_secret", "api_key")


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
    kernel: Any = sys.modules.get("ipykernel")
    if kernel is not None:
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        return getattr(shell, "kernel", None) is not None
    return sys.stdin is not None and sys.stdin.isatty()


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


def _from_prompt(prompt: str) -> Secret:
    try:
        text = getpass.getpass(prompt)
    except (EOFError, OSError, RuntimeError, NotImplementedError) as exc:
        # A notebook that runs without a front end raises one of these.
        raise SettingsError(f"the prompt {prompt!r} failed ({type(exc).__name__})") from None
    if not text:
        raise SettingsError(f"no answer to {prompt!r}")
    return Secret(text, source="typed at the prompt")
