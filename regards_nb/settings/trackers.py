"""From settings to a tracker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from regards_nb.client import RegardsClient
from regards_nb.errors import SettingsError
from regards_nb.settings.fields import FIELDS, from_text, has_password, variable
from regards_nb.settings.profiles import read_profile
from regards_nb.settings.secrets import from_environment, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")

_TRACKER_OPTIONS = ("tenant", *(name for name, f in FIELDS.items() if f.side == "tracker"))


def tracker_from_profile(
    make: Callable[..., _T], name: str | None, options: Mapping[str, Any]
) -> _T:
    """Make a tracker from a profile; see ``OrderTracker.from_profile``."""
    profile, settings = read_profile(name)
    return _tracker(make, settings, dict(options), f"profile {profile!r}")


def tracker_from_env(make: Callable[..., _T], options: Mapping[str, Any]) -> _T:
    """Make a tracker from environment variables; see ``OrderTracker.from_env``."""
    return _tracker(make, {}, dict(options), "the environment")


def _tracker(
    make: Callable[..., _T], settings: dict[str, Any], options: dict[str, Any], source: str
) -> _T:
    settings = {**settings, **_environment()}
    settings.update({name: options.pop(name) for name in FIELDS.keys() & options.keys()})
    client = options.pop("client", None)
    if client is None and settings.get("url"):
        client = _client(settings, options, source)
    amqp = settings.get("amqp")
    if amqp is None and client is None:
        raise SettingsError(
            f"{source} says neither where the REST side is (url, {variable('url')}) nor where the "
            f"broker is (amqp, {variable('amqp')}): at least one is needed"
        )
    kept = {name: settings[name] for name in _TRACKER_OPTIONS if settings.get(name) is not None}
    if isinstance(amqp, str):
        amqp = _with_password(amqp, options.pop("amqp_password", None))
    return make(amqp, settings.get("queue"), client=client, **kept, **options)


def _environment() -> dict[str, Any]:
    """Return the settings of the environment."""
    texts = {name: os.environ.get(variable(name)) for name in FIELDS}
    return {name: from_text(name, text) for name, text in texts.items() if text}


def _client(settings: dict[str, Any], options: dict[str, Any], source: str) -> RegardsClient:
    url, tenant, username = (settings.get(name) for name in ("url", "tenant", "username"))
    if not tenant:
        raise SettingsError(f"{source} has no tenant ({variable('tenant')}): {_meaning('tenant')}")
    token = options.pop("token", None) or from_environment("token")
    password = options.pop("password", None)
    if token is None and password is None:
        if not username:
            raise SettingsError(
                f"{source} has no username ({variable('username')}): {_meaning('username')}"
            )
        password = secret("password", service=f"regards-nb:{url}", user=username)
    given: dict[str, Any] = {
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


def _with_password(amqp: str, given: str | None) -> str:
    """Return the AMQP URL with its password, which a profile leaves out."""
    if has_password(amqp):
        return amqp
    try:
        parts = urlsplit(amqp)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return amqp  # the tracker says what is wrong with it
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


def _meaning(name: str) -> str:
    return FIELDS[name].meaning
