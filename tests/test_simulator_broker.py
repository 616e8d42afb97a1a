"""A private RabbitMQ comes when it is called, and is gone when its owner is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pika
import pika.exceptions
import psutil
import pytest
from conftest import until

from regards_nb.simulator import (
    BrokerMissingError,
    BrokerStartError,
    PrivateBroker,
    find_installation,
    free_ports,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ends as its argument says, after it has said where the node's folder is.
OWNER = """
import os, sys
from regards_nb.simulator import PrivateBroker

broker = PrivateBroker().start()
print(broker.folder, flush=True)
line = sys.stdin.readline()
if line == "raise\\n":
    raise RuntimeError("this owner ends with an exception")
if line == "fork\\n":
    # a child that inherits the pipe to the watchdog and outlives its parent
    if os.fork() == 0:
        sys.stdin.readline()
    os._exit(1)
"""

# Greets as RabbitMQ does, and takes a twentieth of its processor.
GREETER = rf"""#!{sys.executable}
import os, re, socket
config = open(os.environ["RABBITMQ_CONFIG_FILE"]).read()
port = int(re.search(r'"127\.0\.0\.1", (\d+)', config)[1])
with socket.create_server(("127.0.0.1", port)) as server:
    while True:
        with server.accept()[0] as client:
            client.recv(8)
            client.sendall(b"\x01")
"""


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Return a folder for temporary files whose name is not easy to quote."""
    folder = tmp_path / "données (été 2026)"
    folder.mkdir()
    return folder


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that live in a node's folder, port mapper included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(str(folder)):
                found.append(process)
    return found


def is_gone(folder: Path) -> bool:
    """Tell whether nothing is left of a node."""
    return not folder.exists() and not processes_of(folder)


def owners(folder: Path, *, greeter: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """Start processes with a node each, all at the same time: the first one a real RabbitMQ."""
    for number in range(count):
        server = {"REGARDS_NB_RABBITMQ_SERVER": str(greeter)} if number else {}
        yield subprocess.Popen(
            [sys.executable, "-c", OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **server, "TMPDIR": str(folder)},
        )


def programs(folder: Path, server: str) -> Path:
    """Write a program in place of RabbitMQ's, and return its path."""
    for name, text in (("rabbitmq-server", server), ("rabbitmqctl", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder / "rabbitmq-server"


@pytest.mark.slow
def test_a_node_ends_with_its_owner_however_that_ends(odd_folder: Path, tmp_path: Path) -> None:
    """kill -9, SIGTERM, an exception, a plain end and a surviving child: no process, no folder.

    All nodes run at once, in a temporary folder with spaces, brackets and accents.
    """
    greeter = programs(tmp_path, GREETER)
    started = list(owners(odd_folder, greeter=greeter, count=5))
    folders = []
    for owner in started:
        assert owner.stdout is not None
        folders.append(Path(owner.stdout.readline().strip()))
        assert folders[-1].parent == odd_folder
        assert processes_of(folders[-1])
    assert len(set(folders)) == 5
    started[0].kill()
    started[1].send_signal(signal.SIGTERM)
    for owner, line in zip(started[2:], ("raise\n", "\n", "fork\n"), strict=True):
        assert owner.stdin is not None
        owner.stdin.write(line)
        owner.stdin.flush()
    codes = [owner.wait(60) for owner in started]
    assert codes == [-signal.SIGKILL, -signal.SIGTERM, 1, 0, 1]
    for folder in folders:
        until(partial(is_gone, folder))
    for owner in started:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdin.close()
        owner.stdout.close()
    until(lambda: not list(odd_folder.iterdir()))


def connect(url: str) -> pika.BlockingConnection:
    """Open a connection."""
    return pika.BlockingConnection(pika.URLParameters(url))


def greets(node: PrivateBroker) -> bool:
    """Tell whether the node answers within a second to what AMQP clients say first."""
    try:
        with socket.create_connection(("127.0.0.1", node.amqp_port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def test_a_frozen_node_answers_nothing_until_it_is_thawed(broker: PrivateBroker) -> None:
    """Frozen, it accepts and is silent; thawed, it goes on."""
    broker.freeze()
    until(lambda: not greets(broker))  # its threads stop one after the other
    broker.thaw()
    until(lambda: greets(broker))


def test_the_administrators_tool_works(broker: PrivateBroker) -> None:
    """Rabbitmqctl reaches this node: it lists its users and closes its connections."""
    assert "administrator" in broker.rabbitmqctl("list_users")
    connection = connect(broker.admin_url)
    broker.rabbitmqctl("close_all_connections", "--global", "maintenance")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="maintenance"):
        connection.process_data_events(30)
    with pytest.raises(subprocess.CalledProcessError):
        broker.rabbitmqctl("no_such_command")


def test_no_secret_is_shown(broker: PrivateBroker) -> None:
    """Neither repr nor the configuration on disk has a password."""
    passwords = [broker.admin_url.split(":")[2].split("@")[0]]
    shown = repr(broker) + repr(vars(broker))
    shown += "".join(path.read_text() for path in broker.folder.glob("*.*") if path.is_file())
    assert not [each for each in passwords if each in shown]
    assert "amqp://" not in repr(PrivateBroker().access())


def test_users_run_out_with_a_sentence() -> None:
    """Who wants more logins than the node has is told how to get more."""
    broker = PrivateBroker(users=2)
    queues = [broker.access().queue for _ in range(2)]
    assert queues == ["orders.john", "orders.john-2"]
    with pytest.raises(LookupError, match="more users"):
        broker.access()


def test_stopping_twice_is_silent() -> None:
    """A broker that never ran, or has been stopped, can be stopped; asking it says why not."""
    broker = PrivateBroker()
    broker.stop()
    broker.stop()
    with pytest.raises(BrokerStartError, match="start"):
        broker.kill()


def test_a_missing_rabbitmq_is_named_with_its_remedy(tmp_path: Path) -> None:
    """The error names the commands that install RabbitMQ, and the variables."""
    nowhere = {"REGARDS_NB_RABBITMQ_SERVER": str(tmp_path / "rabbitmq-server")}
    with pytest.raises(BrokerMissingError, match="apt-get install rabbitmq-server") as caught:
        find_installation(nowhere)
    for word in ("brew install", "conda install", "REGARDS_NB_AMQP_URL"):
        assert word in str(caught.value)


def test_conda_comes_before_the_system(tmp_path: Path) -> None:
    """An active conda environment's RabbitMQ and Erlang are preferred."""
    for place in ("sbin/rabbitmq-server", "sbin/rabbitmqctl", "bin/epmd"):
        program = tmp_path / place
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    found = find_installation({"CONDA_PREFIX": str(tmp_path), "PATH": os.environ["PATH"]})
    assert found.server == tmp_path / "sbin/rabbitmq-server"
    assert found.epmd == tmp_path / "bin/epmd"


def test_a_node_that_does_not_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the end of what the server said; nothing is left behind."""
    server = programs(tmp_path, "#!/bin/sh\necho no space on the moon; exit 3\n")
    monkeypatch.setenv("REGARDS_NB_RABBITMQ_SERVER", str(server))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(BrokerStartError, match=r"(?s)code 3.*no space on the moon") as caught:
        PrivateBroker().start()
    assert "node.out" in str(caught.value)
    assert not list(tmp_path.glob("regards-nb-*"))


def test_a_forgotten_broker_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog of a garbage-collected broker ends.

    It runs even where TMPDIR has an apostrophe, which RabbitMQ cannot bear.
    """
    folder = tmp_path / "d'été"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    before = threading.active_count()
    broker = PrivateBroker().start()
    folder = broker.folder
    assert folder.exists()
    del broker
    until(lambda: not folder.exists())
    assert threading.active_count() == before


def test_free_ports_differ_and_are_not_the_systems() -> None:
    """Ports differ, and lie below those that systems give to outgoing connections."""
    ports = free_ports()
    numbers = {ports.amqp, ports.distribution, ports.epmd}
    assert len(numbers) == 3
    assert all(20_000 <= number < 32_000 for number in numbers)
