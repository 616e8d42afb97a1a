"""The addresses of a broker: AMQP URLs as parameters of pika, and as text without the password."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pika

from regards_nb.errors import SettingsError
from regards_nb.text import is_loopback

if TYPE_CHECKING:
    from collections.abc import Sequence

#: ``pika.connection.Parameters``, or a tuple of them. pika has no types, hence ``Any``.
AmqpParameters = Any

HEARTBEAT_S = 30
CONNECT_TIMEOUT_S = 10.0
_NOT_AMQP = (
    "not an AMQP URL ({}). It looks like "
    "amqps://user:password@broker.example:5671/regards.multitenant.manager"
)


def parameters_from(
    amqp: str | AmqpParameters | Sequence[Any], *, ca_bundle: str | None = None
) -> AmqpParameters:
    """Return pika's parameters for a URL, or a tuple of them for the addresses of a cluster.

    The certificates of the file or folder *ca_bundle* are trusted besides those of the system.
    pika's own parameters are returned unchanged. The SettingsError for a URL without TLS, which
    sends its password over the network, does not repeat the URL.
    """
    if isinstance(amqp, (list, tuple)):
        if not amqp:
            raise SettingsError("the list of AMQP addresses is empty")
        return tuple(parameters_from(each, ca_bundle=ca_bundle) for each in amqp)
    if not isinstance(amqp, str):
        if not isinstance(amqp, pika.connection.Parameters):
            raise SettingsError(
                "the first argument must be an AMQP URL or pika.ConnectionParameters, "
                f"not {type(amqp).__name__}"
            )
        return amqp
    if not amqp.startswith(("amqp://", "amqps://")):
        raise SettingsError(_NOT_AMQP.format("it must begin with amqp:// or amqps://"))
    try:
        amqp, insecure = _without_option(amqp, "insecure")
        parameters = pika.URLParameters(amqp)
    except (ValueError, TypeError) as exc:
        # pika's own message can repeat parts of the URL, and with them the password
        raise SettingsError(_NOT_AMQP.format(type(exc).__name__)) from None
    sends_password = urlsplit(amqp).password and not parameters.ssl_options
    if sends_password and not is_loopback(parameters.host) and insecure != "true":
        raise SettingsError(
            f"amqp://{parameters.host} sends the password unencrypted over the network. Use "
            "amqps:// (TLS, often port 5671). Where the network is trusted, add ?insecure=true to "
            "the URL."
        )
    if ca_bundle is not None and parameters.ssl_options:
        kind = "capath" if Path(ca_bundle).is_dir() else "cafile"  # as RegardsClient takes both
        parameters.ssl_options.context.load_verify_locations(**{kind: ca_bundle})
    if "heartbeat=" not in amqp:
        parameters.heartbeat = HEARTBEAT_S
    parameters.socket_timeout = CONNECT_TIMEOUT_S
    parameters.stack_timeout = CONNECT_TIMEOUT_S
    return parameters


def _without_option(url: str, name: str) -> tuple[str, str | None]:
    """Return a URL without one option of its query, and the value of that option."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    value = dict(options).get(name)
    if value is None:
        return url, None
    rest = urlencode([option for option in options if option[0] != name])
    return urlunsplit(parts._replace(query=rest)), value


def addresses_of(parameters: AmqpParameters) -> tuple[AmqpParameters, ...]:
    """Return the addresses of a broker: those of a tuple, or the only one."""
    return parameters if isinstance(parameters, tuple) else (parameters,)


def describe(parameters: AmqpParameters) -> str:
    """Return the address without the password; several are separated by commas."""
    if isinstance(parameters, tuple):
        return ", ".join(describe(each) for each in parameters)
    scheme = "amqps" if parameters.ssl_options else "amqp"
    user = getattr(parameters.credentials, "username", "")
    where = f"{parameters.host}:{parameters.port}/{parameters.virtual_host}"
    return f"{scheme}://{user}@{where}" if user else f"{scheme}://{where}"
