"""Where RabbitMQ is installed: Debian, Homebrew, conda-forge, or where a variable says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SERVER_VARIABLE = "REGARDS_NB_RABBITMQ_SERVER"

#: Debian's own scripts, behind those in /usr/sbin that insist on the user "rabbitmq".
_DEBIAN = Path("/usr/lib/rabbitmq/bin")
_HOMEBREW = (Path("/opt/homebrew/sbin"), Path("/usr/local/sbin"))
_EPMD_PLACES = ("lib/erlang/bin", "lib/erlang/erts-*/bin", "opt/erlang/lib/erlang/erts-*/bin")
_PREFIXES = (Path("/usr"), Path("/usr/local"), Path("/opt/homebrew"))


class BrokerMissingError(RuntimeError):
    """No RabbitMQ is installed here; the text names the command that installs one."""


class Installation(NamedTuple):
    """The programs of one RabbitMQ."""

    server: Path
    ctl: Path
    epmd: Path
    #: PATH on which ``erl`` is found.
    path: str


def find_installation(environment: Mapping[str, str] = os.environ) -> Installation:
    """Find RabbitMQ.

    Parameters
    ----------
    environment : mapping
        Where variables are looked up.

    Returns
    -------
    Installation
        Its programs.

    Raises
    ------
    BrokerMissingError
        If there is none, or one without Erlang beside it.
    """
    for server in _candidates(environment):
        ctl = server.with_name("rabbitmqctl")
        if os.access(server, os.X_OK) and ctl.exists():
            path = _path(server, environment)
            return Installation(server, ctl, _epmd(path, server), path)
    raise BrokerMissingError(_advice("rabbitmq-server"))


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    if named := environment.get(SERVER_VARIABLE):
        yield Path(named)
        return
    prefix = environment.get("CONDA_PREFIX")
    if prefix:
        yield from (Path(prefix) / place / "rabbitmq-server" for place in ("sbin", "bin"))
        yield from Path(prefix).glob("lib/rabbitmq*/sbin/rabbitmq-server")
    yield _DEBIAN / "rabbitmq-server"
    yield from _DEBIAN.parent.glob("lib/rabbitmq_server-*/sbin/rabbitmq-server")
    if found := shutil.which("rabbitmq-server", path=environment.get("PATH")):
        yield Path(found)
    yield from (place / "rabbitmq-server" for place in _HOMEBREW)


def _path(server: Path, environment: Mapping[str, str]) -> str:
    """Return PATH with the places where this server's Erlang may be."""
    near = [server.parent, server.parent.parent / "bin"]
    near += [prefix / "bin" for prefix in _PREFIXES]
    return os.pathsep.join([*map(str, near), environment.get("PATH", os.defpath)])


def _epmd(path: str, server: Path) -> Path:
    """Return Erlang's port mapper, which not every package puts on the PATH."""
    if found := shutil.which("epmd", path=path):
        return Path(found)
    for prefix in (server.parent.parent, *_PREFIXES):
        for place in _EPMD_PLACES:
            for epmd in prefix.glob(f"{place}/epmd"):
                return epmd
    raise BrokerMissingError(_advice("Erlang's epmd"))


def _advice(what: str) -> str:
    return (
        f"{what} not found. Install RabbitMQ with one of\n"
        "    sudo apt-get install rabbitmq-server\n"
        "    brew install rabbitmq\n"
        "    conda install -c conda-forge rabbitmq-server\n"
        f"or name its program in {SERVER_VARIABLE}, "
        "or use a broker that runs already by its URL in REGARDS_NB_AMQP_URL."
    )
