"""A private RabbitMQ: a node of one's own on a free port, gone without a trace when its owner is.

With ``REGARDS_NB_AMQP_URL`` in the environment, :func:`broker_from_environment` uses that broker
instead, as it is.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from regards_nb.simulator import keeper, node
from regards_nb.simulator.installation import find_installation

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

URL_VARIABLE = "REGARDS_NB_AMQP_URL"

_START_LIMIT_S = 60
_STOP_LIMIT_S = 20
_ATTEMPTS = 3
_POLL_S = 0.02
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_LOG_TAIL_LINES = 25


class BrokerStartError(RuntimeError):
    """RabbitMQ is installed but did not start; the text has the end of its log."""


class Access(NamedTuple):
    """What a tracker is given by the administrator of the broker."""

    queue: str
    url: str

    def __repr__(self) -> str:
        """Leave the URL out: the password is in it."""
        return f"Access(queue={self.queue!r}, url=...)"


class Broker(Protocol):
    """Where a simulator publishes."""

    @property
    def admin_url(self) -> str:
        """AMQP URL of a user who may do everything."""

    def access(self) -> Access:
        """Return a queue name and a login for it, never the same twice."""


class ExistingBroker:
    """A broker that runs already. Nothing is created there but by AMQP, with its own login."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def admin_url(self) -> str:
        """The URL it was given."""
        return self._url

    def access(self) -> Access:
        """Return a queue name that nobody else has, and the same login."""
        return Access(f"orders.john-{secrets.token_hex(4)}", self._url)


class PrivateBroker:
    """One RabbitMQ node for us alone; ``with PrivateBroker() as broker`` or ``start``/``stop``.

    The node ends with this process, however that ends: a keeper process sees to it.

    Parameters
    ----------
    user : str
        Name of the first user that may read a queue; the others are ``<user>-2`` and so on.
    users : int
        How many such users there are.
    tls : Tls, optional
        Listen with TLS, too, on ``amqps_port``.

    Raises
    ------
    BrokerMissingError
        By ``start``: RabbitMQ is not installed.
    BrokerStartError
        By ``start``: it is, but does not start.
    """

    def __init__(
        self, *, user: str = "john", users: int = 100, tls: node.Tls | None = None
    ) -> None:
        self._admin = node.Login(name="admin")
        self._readers = node.readers(user, users)
        self._unused = iter(self._readers)
        self._name = f"regards-nb-{secrets.token_hex(6)}@localhost"
        self._keeper: _Keeper | None = None
        self._ports = node.NodePorts(0, 0, 0, 0)
        self._tls = tls
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<PrivateBroker on port {self._ports.amqp}>"

    @property
    def amqp_port(self) -> int:
        """Where it listens, on 127.0.0.1; the same after a restart."""
        return self._ports.amqp

    @property
    def amqps_port(self) -> int:
        """Where it listens with TLS, if it was given certificates."""
        return self._ports.amqps

    @property
    def admin_url(self) -> str:
        """AMQP URL of the administrator."""
        return self._admin.url(self.amqp_port)

    @property
    def folder(self) -> Path:
        """Where the node keeps its data and logs."""
        return self._running.folder

    @property
    def _running(self) -> _Keeper:
        if self._keeper is None:
            raise BrokerStartError("the private RabbitMQ is not running: call start() first")
        return self._keeper

    def access(self) -> Access:
        """Return the next user that may read nothing but his queue."""
        with self._lock:
            login = next(self._unused, None)
        if login is None or login.queue is None:
            raise LookupError("no unused user is left: make the PrivateBroker with more users")
        return Access(login.queue, login.url(self.amqp_port))

    # -- life

    def start(self) -> Self:
        """Start the node; return when it answers AMQP."""
        if self._keeper is not None:
            return self
        self._installation = find_installation()
        for attempt in range(1, _ATTEMPTS + 1):
            self._keeper = _Keeper()
            try:
                self._configure()
                self._start_node()
            except BrokerStartError as exc:
                self.stop()
                # somebody may have taken a port since it was found free
                if attempt == _ATTEMPTS or "eaddrinuse" not in str(exc):
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """End the node and remove its folder. Calling it again does nothing."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        folder, self._ports = self.folder, node.free_ports()
        node.write_files(folder, self._ports, [self._admin, *self._readers], self._tls)
        self._environment = node.environment(
            folder, self._ports, self._installation, name=self._name
        )
        # Our own port mapper, or the node would start one that outlives it.
        epmd = [str(self._installation.epmd), "-address", "127.0.0.1"]
        self._run("epmd", [*epmd, "-port", str(self._ports.epmd)])
        self._wait(lambda: _answers(self._ports.epmd), "epmd")

    def _start_node(self) -> None:
        self._run("node", [str(self._installation.server)])
        self._wait(lambda: _answers(self.amqp_port, _PROTOCOL_HEADER), "node")
        if self._tls is not None:
            # the ports are opened one after the other
            self._wait(lambda: _answers(self.amqps_port), "node")

    def _run(self, name: str, argv: list[str]) -> None:
        self._running.ask(
            "start",
            name,
            argv=argv,
            env=self._environment,
            cwd=str(self.folder),
            log=str(self.folder / f"{name}.out"),
        )

    def _wait(self, ready: Callable[[], bool], name: str) -> None:
        """Wait until a process is ready; give up when it has ended."""
        deadline_s = monotonic() + _START_LIMIT_S
        pause = threading.Event()
        while not ready():
            code = self._running.ask("poll", name)
            if code is not None or monotonic() > deadline_s:
                how = "did not answer" if code is None else f"ended with code {code}"
                raise BrokerStartError(f"RabbitMQ's {name} {how}.\n{self._log_tail()}")
            pause.wait(_POLL_S)

    def _log_tail(self) -> str:
        """Return the end of what the node said."""
        lines: list[str] = []
        for path in (*self.folder.glob("*.out"), *self.folder.glob("log/*.log")):
            said = path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            lines += [f"--- {path.name}", *said]
        return "\n".join(lines)

    # -- accidents, and the administrator's tools

    def kill(self) -> None:
        """Kill the node, like ``kill -9``, and return when its port is closed. Its data stay."""
        self._running.ask("kill", "node")
        # The keeper has waited for the script only; the machine it started dies a moment later.
        deadline_s, pause = monotonic() + _STOP_LIMIT_S, threading.Event()
        while _answers(self.amqp_port) and monotonic() < deadline_s:
            pause.wait(_POLL_S)

    def freeze(self) -> None:
        """Stop the node in its tracks (SIGSTOP): connections stay open, nothing answers."""
        self._running.ask("signal", "node", number=signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        self._running.ask("signal", "node", number=signal.SIGCONT)

    def restart(self) -> None:
        """Start the node again on the same port with the same data, ending it first if it runs."""
        if self._running.ask("poll", "node") is None:
            self.thaw()
            self._running.ask("signal", "node", number=signal.SIGTERM)
            self._running.ask("wait", "node", timeout_s=_STOP_LIMIT_S)
        self.kill()
        self._start_node()

    def rabbitmqctl(self, *arguments: str, timeout_s: float = 60) -> str:
        """Run ``rabbitmqctl`` on the node and return what it wrote.

        Raises
        ------
        subprocess.CalledProcessError
            If it failed; its text is in ``stderr``.
        """
        argv = [str(self._installation.ctl), "--quiet", *arguments]
        return subprocess.run(  # noqa: S603 - the program that find_installation() named
            argv,
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
            timeout=timeout_s,
        ).stdout


def broker_from_environment(*, user: str = "john") -> ExistingBroker | PrivateBroker:
    """Return the broker of ``REGARDS_NB_AMQP_URL``, or else a private one, not started yet."""
    url = os.environ.get(URL_VARIABLE)
    return ExistingBroker(url) if url else PrivateBroker(user=user)


def _answers(port: int, header: bytes = b"") -> bool:
    """Tell whether somebody accepts at *port* and, if asked with *header*, says something."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if not header:
                return True
            connection.sendall(header)
            # a Connection.Start frame begins with 1; a refusal with "AMQP"
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


class _Keeper:
    """Our end of the keeper process (see the module of that name)."""

    def __init__(self) -> None:
        argv = [sys.executable, "-I", str(keeper.__file__), str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise BrokerStartError("no pipes to the keeper")
        self._asking: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        self._lock = threading.Lock()
        # Also at the end of the interpreter, and when nobody holds the broker any more.
        self.close = weakref.finalize(self, _close, self._process)
        self.folder = Path(self._answer())

    def ask(self, do: str, name: str, **more: Any) -> Any:
        """Let the keeper do something; return its answer."""
        line = json.dumps({"do": do, "name": name, **more}).encode() + b"\n"
        with self._lock:
            try:
                self._asking.write(line)
                self._asking.flush()
            except OSError as exc:
                raise BrokerStartError("the keeper of the private RabbitMQ is gone") from exc
            return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise BrokerStartError("the keeper of the private RabbitMQ is gone")
        return json.loads(line)


def _close(process: subprocess.Popen[bytes]) -> None:
    """Let the keeper clean up and end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()
