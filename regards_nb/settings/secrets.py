"""Passwords and tokens: from the environment, the keyring of the system, or a prompt."""

from __future__ import annotations

import getpass
import importlib
import os
import sys
from typing import Any

from regards_nb.client import Secret
from regards_nb.errors import SettingsError
from regards_nb.settings.fields import variable


def secret(name: str, *, service: str, user: str) -> Secret:
    """Return a secret that is needed.

    Parameters
    ----------
    name : str
        ``password`` or ``amqp_password``.
    service : str
        Whose it is, without any secret in it: the name in the keyring, and in the prompt.
    user : str

    Raises
    ------
    SettingsError
        It is nowhere, and nobody can be asked.
    """
    found = from_environment(name) or _from_keyring(service, user)
    if found is not None:
        return found
    if not can_ask():
        raise SettingsError(
            f"no password for {user} at {service}, and nobody to ask. Set {variable(name)}, or "
            f"keep it in the keyring of your system:  keyring set {service} {user}"
        )
    return _asked(f"Password of {user} at {service}: ")


def from_environment(name: str) -> Secret | None:
    """Return a secret of the environment."""
    text = os.environ.get(variable(name))
    return Secret(text) if text else None


def can_ask() -> bool:
    """Tell whether somebody could answer a prompt: a terminal, or a notebook."""
    kernel: Any = sys.modules.get("ipykernel")
    if kernel is not None:
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        return getattr(shell, "kernel", None) is not None
    return sys.stdin is not None and sys.stdin.isatty()


def _from_keyring(service: str, user: str) -> Secret | None:
    try:
        text = importlib.import_module("keyring").get_password(service, user)
    except Exception:  # noqa: BLE001 - not installed, locked, or none on this system: ask
        return None
    return Secret(text) if text else None


def _asked(prompt: str) -> Secret:
    try:
        text = getpass.getpass(prompt)
    except (EOFError, OSError, RuntimeError, NotImplementedError) as exc:
        # a notebook that runs without anybody there
        raise SettingsError(f"nobody answered {prompt!r} ({type(exc).__name__})") from None
    if not text:
        raise SettingsError(f"no answer to {prompt!r}")
    return Secret(text)
