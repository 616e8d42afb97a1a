"""What a private RabbitMQ node is configured with: ports, users, environment."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import secrets
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from regards_nb.events import RESPONSE_EXCHANGE, VHOST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from regards_nb.simulator.installation import Installation

# Below the range that systems take ports for outgoing connections from (32768 and up on Linux):
# a client that keeps knocking while the node is down could otherwise take the port itself.
_PORTS = range(20_000, 32_000)

# no busy waiting: tests run on two cores, beside the code they test
_ERL_ARGS = (
    "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """One user of the broker."""

    name: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)
    #: The one queue he may read; None: the administrator.
    queue: str | None = None

    def url(self, port: int) -> str:
        """Return the AMQP URL of the node with this user's name and password."""
        return f"amqp://{quote(self.name)}:{quote(self.password)}@127.0.0.1:{port}/{quote(VHOST)}"


def readers(name: str, count: int) -> list[Login]:
    """Return *count* users that may do nothing but read a queue of their own."""
    names = [name, *(f"{name}-{number}" for number in range(2, count + 1))]
    return [Login(name=each, queue=f"orders.{each}") for each in names]


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Where a node listens, all on 127.0.0.1."""

    amqp: int
    amqps: int
    distribution: int
    epmd: int


def free_ports() -> NodePorts:
    """Return ports that are free now."""
    # all are held until the last is found, so that they differ
    with ExitStack() as held:
        return NodePorts(*(_bind(held.enter_context(socket.socket())) for _ in range(4)))


def _bind(candidate: socket.socket) -> int:
    while True:
        port = random.choice(_PORTS)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            continue  # taken: try another
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates of a node that also listens with TLS; clients must show one of the same CA."""

    authority: Path
    certificate: Path
    key: Path


def write_files(folder: Path, ports: NodePorts, logins: Sequence[Login], tls: Tls | None) -> None:
    """Write all that the node reads at its start."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    cookie = home / ".erlang.cookie"
    cookie.unlink(missing_ok=True)
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    (folder / "enabled_plugins").write_text("[].\n")
    (folder / "rabbitmq-env.conf").write_text("")
    (folder / "definitions.json").write_text(json.dumps(_definitions(logins)))
    (folder / "rabbitmq.config").write_text(_config(folder, ports, tls), encoding="utf-8")


def _config(folder: Path, ports: NodePorts, tls: Tls | None) -> str:
    """Return the configuration in Erlang's own terms: they are read seconds faster than a .conf."""
    # JSON's strings are Erlang's, but for what it would write as \\u
    definitions = json.dumps(str(folder / "definitions.json"), ensure_ascii=False)
    return (
        "%% -*- coding: utf-8 -*-\n"
        f'[{{rabbit, [{{tcp_listeners, [{{"127.0.0.1", {ports.amqp}}}]}},\n'
        f"           {{load_definitions, {definitions}}},\n"
        f"{_tls_config(ports, tls) if tls else ''}"
        "           {disk_free_limit, 1000000},\n"
        "           {log, [{console, [{enabled, false}]}]}]}].\n"
    )


def _tls_config(ports: NodePorts, tls: Tls) -> str:
    files = {"cacertfile": tls.authority, "certfile": tls.certificate, "keyfile": tls.key}
    options = ", ".join(
        f"{{{name}, {json.dumps(str(path), ensure_ascii=False)}}}" for name, path in files.items()
    )
    return (
        f'           {{ssl_listeners, [{{"127.0.0.1", {ports.amqps}}}]}},\n'
        f"           {{ssl_options, [{options}, {{verify, verify_peer}}, "
        "{fail_if_no_peer_cert, true}]},\n"
    )


def _definitions(logins: Sequence[Login]) -> dict[str, Any]:
    """Return users, rights, virtual host and exchange, as RabbitMQ imports them."""
    exchange = {"name": RESPONSE_EXCHANGE, "vhost": VHOST, "type": "fanout", "durable": True}
    return {
        "vhosts": [{"name": VHOST}],
        "users": [_user(login) for login in logins],
        "permissions": [_permission(login) for login in logins],
        "exchanges": [{**exchange, "auto_delete": False, "internal": False, "arguments": {}}],
    }


def _user(login: Login) -> dict[str, Any]:
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + login.password.encode()).digest()
    return {
        "name": login.name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "" if login.queue else "administrator",
    }


def _permission(login: Login) -> dict[str, str]:
    permission = {"user": login.name, "vhost": VHOST}
    if login.queue is None:
        return permission | {"configure": ".*", "write": ".*", "read": ".*"}
    exactly = f"^{re.escape(login.queue)}$"
    return permission | {"configure": "^$", "write": "^$", "read": exactly}


def environment(
    folder: Path, ports: NodePorts, installation: Installation, *, name: str
) -> dict[str, str]:
    """Return the environment of all programs of the node."""
    kept = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith(("RABBITMQ_", "ERL_")) and variable != "NOTIFY_SOCKET"
    }
    return {
        "LC_ALL": "C.UTF-8",
        **kept,
        "PATH": installation.path,
        "HOME": str(folder / "home"),
        "ERL_EPMD_PORT": str(ports.epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.config"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERL_ARGS,
    }
