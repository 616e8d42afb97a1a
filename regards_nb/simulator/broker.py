"""A private RabbitMQ node on a free port that ends with the process that started it.

The file has three parts: the installed programs, the configuration of a node, and its life. Where
``REGARDS_NB_AMQP_URL`` is set, :func:`broker_from_environment` uses that broker instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote

from regards_nb.events import RESPONSE_EXCHANGE, VHOST
from regards_nb.simulator import watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

URL_VARIABLE = "REGARDS_NB_AMQP_URL"
SERVER_VARIABLE = "REGARDS_NB_RABBITMQ_SERVER"

# -- the installed programs

_PREFIXES = (Path("/usr"), Path("/usr/local"), Path("/opt/homebrew"))
#: Where a prefix may have RabbitMQ's scripts. Debian has wrappers in /usr/sbin, which require root
#: or the user "rabbitmq": its own scripts come first.
_SERVER_FOLDERS = (
    "lib/rabbitmq/bin",
    "lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "lib/rabbitmq*/sbin",
    "sbin",
    "bin",
)
#: The same for Erlang's port mapper, which not every package puts on the PATH.
_EPMD_FOLDERS = (
    "bin",
    "lib/erlang/bin",
    "lib/erlang/erts-*/bin",
    "opt/erlang/lib/erlang/erts-*/bin",
)


class BrokerMissingError(RuntimeError):
    """RabbitMQ is not installed; the text names the command that installs it."""


class Installation(NamedTuple):
    """The programs of one RabbitMQ installation."""

    server: Path
    ctl: Path
    epmd: Path
    #: PATH that contains ``erl``.
    path: str


def find_installation(environment: Mapping[str, str] = os.environ) -> Installation:
    """Find RabbitMQ of conda-forge, Debian or Homebrew, or where ``SERVER_VARIABLE`` says."""
    conda = [Path(prefix)] if (prefix := environment.get("CONDA_PREFIX")) else []
    path = environment.get("PATH", os.defpath)
    program = environment.get(SERVER_VARIABLE, "rabbitmq-server")
    server = _find(program, [*conda, *_PREFIXES], _SERVER_FOLDERS, path)
    if not (ctl := server.with_name("rabbitmqctl")).exists():
        raise BrokerMissingError(_advice("rabbitmqctl"))
    # the folders that may contain this server's Erlang
    prefixes = [server.parent.parent, *_PREFIXES]
    path = os.pathsep.join(map(str, (server.parent, *(each / "bin" for each in prefixes), path)))
    return Installation(server, ctl, _find("epmd", prefixes, _EPMD_FOLDERS, path), path)


def _find(program: str, prefixes: Sequence[Path], folders: Sequence[str], path: str) -> Path:
    """Return a program in one of the *folders* of the prefixes, or on the *path*."""
    places = [place for prefix in prefixes for each in folders for place in prefix.glob(each)]
    found = shutil.which(program, path=os.pathsep.join([*map(str, places), path]))
    if found is None:
        raise BrokerMissingError(_advice(program))
    return Path(found)


def _advice(what: str) -> str:
    return (
        f"{what} not found. Install RabbitMQ with one of\n"
        "    sudo apt-get install rabbitmq-server\n"
        "    brew install rabbitmq\n"
        "    conda install -c conda-forge rabbitmq-server\n"
        f"or name its program in {SERVER_VARIABLE}, "
        "or use a broker that runs already by its URL in REGARDS_NB_AMQP_URL."
    )


# -- the configuration of a node

# Below the range of outgoing connections (32768 and up on Linux): a client that reconnects again
# and again while the node is down could otherwise get the node's port as its own.
_PORTS = range(20_000, 32_000)

# No busy waiting: tests run on two cores, beside the code they test.
_NO_BUSY_WAIT = "+sbwt none +sbwtdcpu none +sbwtdio none"
_ERL_ARGS = f"+S 2:2 {_NO_BUSY_WAIT} -kernel inet_dist_use_interface {{127,0,0,1}}"


# RabbitMQ 4 allows these still and is going to remove them; 3.10 ignores the setting.
_DEPRECATED = ("amqp_address_v1", "global_qos", "queue_master_locator", "transient_nonexcl_queues")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUser:
    """One user of the broker."""

    name: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)
    #: The only queue the user may read; None: the administrator.
    queue: str | None = None

    def url(self, port: int) -> str:
        """Return the AMQP URL of the node with this user's name and password."""
        return f"amqp://{quote(self.name)}:{quote(self.password)}@127.0.0.1:{port}/{quote(VHOST)}"


@dataclass(frozen=True, slots=True)
class NodePorts:
    """The ports of a node on 127.0.0.1."""

    amqp: int
    amqps: int
    distribution: int
    epmd: int


def free_ports() -> NodePorts:
    """Return ports that are free now."""
    # All stay bound until the last is found, so that they differ.
    with ExitStack() as held:
        return NodePorts(*(_bind(held.enter_context(socket.socket())) for _ in range(4)))


def _bind(candidate: socket.socket) -> int:
    while True:
        port = random.choice(_PORTS)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            continue  # in use: try another
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates of a node that also listens with TLS; clients must show one of the same CA."""

    authority: Path
    certificate: Path
    key: Path


def _config(folder: Path, ports: NodePorts, tls: Tls | None, *, joins: str | None) -> str:
    """Return the configuration as Erlang terms: RabbitMQ reads them seconds faster than a .conf."""
    # JSON strings are Erlang strings, except for \\u escapes.
    definitions = json.dumps(str(folder / "definitions.json"), ensure_ascii=False)
    # A node that joins a cluster takes users and exchanges from there.
    origin = (
        f"{{cluster_nodes, {{['{joins}'], disc}}}}"
        if joins
        else f"{{load_definitions, {definitions}}}"
    )
    refused = ", ".join(f"{feature} => false" for feature in _DEPRECATED)
    return (
        "%% -*- coding: utf-8 -*-\n"
        f'[{{rabbit, [{{tcp_listeners, [{{"127.0.0.1", {ports.amqp}}}]}},\n'
        f"           {origin},\n"
        f"{_tls_config(ports, tls) if tls else ''}"
        "           {disk_free_limit, 1000000},\n"
        f"           {{permit_deprecated_features, #{{{refused}}}}},\n"
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


def _definitions(users: Sequence[BrokerUser]) -> dict[str, Any]:
    """Return users, rights, virtual host and exchange in RabbitMQ's import format."""
    exchange = {"name": RESPONSE_EXCHANGE, "vhost": VHOST, "type": "fanout", "durable": True}
    return {
        "vhosts": [{"name": VHOST}],
        "users": [_user(user) for user in users],
        "permissions": [
            {
                "user": user.name,
                "vhost": VHOST,
                "configure": "^$" if user.queue else ".*",
                "write": "^$" if user.queue else ".*",
                "read": f"^{re.escape(user.queue)}$" if user.queue else ".*",
            }
            for user in users
        ],
        "exchanges": [{**exchange, "auto_delete": False, "internal": False, "arguments": {}}],
    }


def _user(user: BrokerUser) -> dict[str, Any]:
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + user.password.encode()).digest()
    return {
        "name": user.name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "" if user.queue else "administrator",
    }


def _code(folder: Path, installation: Installation) -> dict[str, str]:
    """Make two folders of links to code, and return the variables that name them.

    They save a third of the processor of a start. RabbitMQ reads all plugins that it finds, also
    those that are not enabled: it finds the server alone, which lies among them. Erlang before
    version 26 looks for each of a thousand modules in ninety folders, one after the other: it finds
    all in the first.
    """
    plugins, modules = folder / "plugins", folder / "modules"
    plugins.mkdir()
    modules.mkdir()
    home = installation.server.resolve().parents[1]
    found = list(home.glob("plugins/rabbit-*"))
    for server in found:
        (plugins / server.name).symlink_to(server)
    # epmd is in erts-<version>/bin, beside the folder of Erlang's own libraries
    erlang = installation.epmd.resolve().parents[2]
    for module in (*home.glob("plugins/*/ebin/*.beam"), *erlang.glob("lib/*/ebin/*.beam")):
        with suppress(FileExistsError):
            (modules / module.name).symlink_to(module)
    hidden = {"RABBITMQ_PLUGINS_DIR": str(plugins)} if found else {}
    return {**hidden, "RABBITMQ_SERVER_CODE_PATH": str(modules)}


def _environment(
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
        **_code(folder, installation),
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
        # what the tables of a large node take would be set to zero at each start
        "RABBITMQ_MAX_NUMBER_OF_PROCESSES": "65536",
        "RABBITMQ_MAX_NUMBER_OF_ATOMS": "1000000",
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERL_ARGS,
        "RABBITMQ_CTL_ERL_ARGS": _NO_BUSY_WAIT,
    }


# -- the life of a node

_START_LIMIT_S = 60
_STOP_LIMIT_S = 20
_ATTEMPTS = 3
_POLL_S = 0.02
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_LOG_TAIL_LINES = 25


class BrokerStartError(RuntimeError):
    """RabbitMQ is installed but did not start; the text contains the end of its log."""


@dataclass(frozen=True, slots=True)
class Access:
    """What the administrator of the broker gives to a tracker."""

    queue: str
    #: With the password.
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExistingBroker:
    """A broker that runs already. The simulator declares there only by AMQP, with its login."""

    #: With the password.
    admin_url: str = field(repr=False)

    def access(self) -> Access:
        """Return a new queue name and the same login."""
        return Access(f"orders.john-{secrets.token_hex(4)}", self.admin_url)


class PrivateBroker:
    """One RabbitMQ node; ``with PrivateBroker() as broker`` or ``start``/``stop``.

    The node ends with this process, also after kill -9: a watchdog process kills it. *users* may
    each read one queue: *user*, ``<user>-2`` and so on. With *tls* it listens on ``ports.amqps``,
    too. A node that *joins* the cluster of another has the same users, and must be stopped before
    it.
    """

    def __init__(
        self,
        *,
        user: str = "john",
        users: int = 100,
        tls: Tls | None = None,
        joins: PrivateBroker | None = None,
    ) -> None:
        self._joins = joins
        #: the nodes of a cluster share users and the secret by which they know each other
        self.admin: BrokerUser = joins.admin if joins else BrokerUser(name="admin")
        self.cookie: str = joins.cookie if joins else secrets.token_hex(16)
        names = [] if joins else [user, *(f"{user}-{number}" for number in range(2, users + 1))]
        self._readers = [BrokerUser(name=name, queue=f"orders.{name}") for name in names]
        self._unused = iter(self._readers)
        #: the name of the Erlang node
        self.name = f"regards-nb-{secrets.token_hex(6)}@localhost"
        self._watchdog: _Watchdog | None = None
        #: A restart keeps the ports. Clients of the port with TLS must show a certificate.
        self.ports = NodePorts(0, 0, 0, 0)
        self._tls = tls

    def __repr__(self) -> str:
        return f"<PrivateBroker on port {self.ports.amqp}>"

    @property
    def amqp_port(self) -> int:
        """The port on 127.0.0.1; the same after a restart."""
        return self.ports.amqp

    @property
    def admin_url(self) -> str:
        """AMQP URL of the administrator."""
        return self.admin.url(self.amqp_port)

    @property
    def folder(self) -> Path:
        """The folder of the node's data and logs."""
        return self._running.folder

    @property
    def _running(self) -> _Watchdog:
        if self._watchdog is None:
            raise BrokerStartError("the private RabbitMQ is not running: call start() first")
        return self._watchdog

    def access(self) -> Access:
        """Return the queue and login of the next user; he may only read that queue."""
        user = next(self._unused, None)
        if user is None or user.queue is None:
            raise LookupError("no unused user is left: make the PrivateBroker with more users")
        return Access(user.queue, user.url(self.amqp_port))

    # -- start and stop

    def start(self) -> Self:
        """Start the node and return when it answers AMQP."""
        if self._watchdog is not None:
            return self
        self._installation = find_installation()
        for attempt in range(1, _ATTEMPTS + 1):
            self._watchdog = _Watchdog()
            try:
                self._configure()
                self._start_node()
                break
            except BaseException as exc:
                self.stop()
                # Another process may have taken a port after free_ports() found it free.
                if attempt == _ATTEMPTS or "eaddrinuse" not in str(exc):
                    raise
        return self

    def stop(self) -> None:
        """End the node and remove its folder. A second call does nothing."""
        running, self._watchdog = self._watchdog, None
        if running is not None:
            running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        """Write the files that the node reads at its start, and start its port mapper."""
        folder, self.ports, joins = self.folder, free_ports(), self._joins
        if joins is not None:
            self.ports = replace(self.ports, epmd=joins.ports.epmd)
        cookie_file = folder / "home" / ".erlang.cookie"
        cookie_file.parent.mkdir()
        cookie_file.write_text(self.cookie)
        cookie_file.chmod(0o400)
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq-env.conf").write_text("")
        definitions = _definitions([self.admin, *self._readers])
        (folder / "definitions.json").write_text(json.dumps(definitions))
        config = _config(folder, self.ports, self._tls, joins=joins.name if joins else None)
        (folder / "rabbitmq.config").write_text(config, encoding="utf-8")
        self._environment = _environment(folder, self.ports, self._installation, name=self.name)
        if joins is not None:
            return
        # An epmd of our own: one that the node starts itself would outlive the node.
        epmd = [str(self._installation.epmd), "-address", "127.0.0.1"]
        self._run("epmd", [*epmd, "-port", str(self.ports.epmd)])
        self._wait(lambda: _answers(self.ports.epmd), "epmd")

    def _start_node(self) -> None:
        self._run("node", [str(self._installation.server)])
        self._wait(lambda: _answers(self.amqp_port, _PROTOCOL_HEADER), "node")
        if self._tls is not None:
            # RabbitMQ opens the TLS port after the other one.
            self._wait(lambda: _answers(self.ports.amqps), "node")

    def _run(self, name: str, argv: list[str]) -> None:
        """Start a program in a process group of its own, which writes its number first."""
        number = str(self.folder / f"{name}.pid")
        with (self.folder / f"{name}.out").open("ab") as output:
            self._running.processes[name] = subprocess.Popen(  # noqa: S603 - see find_installation()
                ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', number, *argv],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _wait(self, ready: Callable[[], bool], name: str) -> None:
        """Wait until a process is ready; raise if it ends before."""
        deadline_s = monotonic() + _START_LIMIT_S
        pause = threading.Event()
        while not ready():
            code = self._running.processes[name].poll()
            if code is not None or monotonic() > deadline_s:
                how = "did not answer" if code is None else f"ended with code {code}"
                raise BrokerStartError(f"RabbitMQ's {name} {how}.\n{self._log_tail()}")
            pause.wait(_POLL_S)

    def _log_tail(self) -> str:
        """Return the last lines of the node's output and logs."""
        lines: list[str] = []
        for path in (*self.folder.glob("*.out"), *self.folder.glob("log/*.log")):
            tail = path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            lines += [f"--- {path.name}", *tail]
        return "\n".join(lines)

    # -- outages, and the administrator's tool

    def kill(self) -> None:
        """Kill the node, like ``kill -9``, and return when its port is closed. Its data stay."""
        self._end(signal.SIGKILL)
        # That was the start script only; the Erlang machine ends a moment later.
        deadline_s, pause = monotonic() + _STOP_LIMIT_S, threading.Event()
        while _answers(self.amqp_port) and monotonic() < deadline_s:
            pause.wait(_POLL_S)

    def freeze(self) -> None:
        """Stop the node with SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node continue."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """Send a signal to the node and to all that it started."""
        # The whole group may have ended already.
        with suppress(ProcessLookupError):
            os.killpg(self._running.processes["node"].pid, number)

    def _end(self, number: int) -> None:
        """Send a signal, and wait for the end of the node for a while."""
        self._signal(number)
        with suppress(subprocess.TimeoutExpired):
            self._running.processes["node"].wait(_STOP_LIMIT_S)

    def restart(self) -> None:
        """Start the node again on the same port with the same data; end it first if it runs."""
        if self._running.processes["node"].poll() is None:
            self.thaw()
            self._end(signal.SIGTERM)
        self.kill()
        self._start_node()

    def rabbitmqctl(self, *arguments: str, timeout_s: float = 180) -> str:
        """Run ``rabbitmqctl`` on the node and return its output."""
        argv = [str(self._installation.ctl), "--quiet", *arguments]
        return subprocess.run(  # noqa: S603 - the program that find_installation() returned
            argv,
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
            timeout=timeout_s,
        ).stdout


#: A broker that a simulator publishes to.
Broker = ExistingBroker | PrivateBroker


def broker_from_environment(*, user: str) -> Broker:
    """Return the broker of ``REGARDS_NB_AMQP_URL``, or else a private one, not started yet."""
    url = os.environ.get(URL_VARIABLE)
    return ExistingBroker(url) if url else PrivateBroker(user=user)


def _answers(port: int, header: bytes = b"") -> bool:
    """Tell whether *port* accepts a connection and, if *header* is given, answers it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if not header:
                return True
            connection.sendall(header)
            # A Connection.Start frame begins with 1, a refused protocol header with "AMQP".
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


class _Watchdog:
    """The owner's end of the watchdog process (see the module of that name)."""

    def __init__(self) -> None:
        argv = [sys.executable, "-I", str(watchdog.__file__), str(os.getpid())]
        process = subprocess.Popen(  # noqa: S603 - a script of this package
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        #: Those that it kills, by name.
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # Also runs at the end of the interpreter, and when the broker is garbage.
        self.close = weakref.finalize(self, _close, process, self.processes)
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise BrokerStartError("the watchdog of the private RabbitMQ has ended")
        self.folder = Path(os.fsdecode(line.rstrip(b"\n")))


def _close(
    watchdog_process: subprocess.Popen[bytes], processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    """Close the pipes, so that the watchdog cleans up, and wait for all ends."""
    for pipe in (watchdog_process.stdin, watchdog_process.stdout):
        if pipe is not None:
            pipe.close()
    for process in (*processes.values(), watchdog_process):
        process.wait()
