"""What the tests of all rooms share: servers, simulators, clients, the check for live threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pika
import pytest
from postgresql import PrivatePostgreSQL
from simulator_session import Session

from regards_nb import OrderTracker, errors, waits
from regards_nb.client import RegardsClient
from regards_nb.journal import Journal
from regards_nb.simulator import QUEUE_ARGUMENTS, OrderPlan, PrivateBroker, Simulator

# some tests are small runs of a benchmark
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3_kit import S3Server, TestBucket

DEADLINE_S = 120.0

# jsonschema, which nbformat imports, compiles a grammar of IRIs at its import where this package is
# installed: 1.7 s of processor in each process of the tests. No schema here has a format for IRIs.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
_RUN_MODULE = """
import runpy, sys
sys.modules["rfc3987_syntax"] = None
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
#: The beginning of a command that runs a module of Python, without that grammar.
PYTHON_MODULE = [sys.executable, "-c", _RUN_MODULE]

# What imports and collection make lives as long as the process; see pytest_collection_finish.
gc.disable()

# A program for a process with other packages; pytest would import it to look for examples.
collect_ignore = ["sunpy_client.py"]

# A shell that is not interactive starts background jobs with SIGINT ignored, and every process
# that the tests start would inherit that: tests of Ctrl-C would fail.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# RabbitMQ runs a queue for each priority: to declare one with the 255 of REGARDS takes it 0.4 s of
# processor and up to two seconds. Tests of kinds of queues and of the documentation have all 255.
QUEUE_ARGUMENTS["x-max-priority"] = 10

# A call says what it waits for after a second, which any request may take on a busy machine: tests
# that read the output would fail; so would those of a `Child`, which has this value, too. Tests of
# what is said have the fixture `_says_at_once`.
waits.SAID_AFTER_S = 20.0

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("regards_nb", deadline=None)
hypothesis.settings.load_profile("regards_nb")

# Each notebook is executed once in a run of the tests, by the first test that needs it. The
# processes of pytest-xdist inherit the variable.
os.environ.setdefault("REGARDS_NB_NOTEBOOKS_SINCE", str(time.time()))


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes for ``-n auto``.

    Tests wait for brokers, browsers and servers most of their time.
    """
    return 3 * (os.cpu_count() or 1)


def _needs_server(item: pytest.Item) -> bool:
    """Tell whether a test uses the RabbitMQ or the PostgreSQL of the session."""
    mark, call = item.get_closest_marker("simulator"), getattr(item, "callspec", None)
    named = {each for each in (call.params.values() if call else ()) if isinstance(each, str)}
    named.update(getattr(item, "fixturenames", ()))
    return not named.isdisjoint({"broker", "postgresql", "with_broker"}) or bool(
        mark and mark.kwargs.get("with_broker")
    )


#: Fixtures of a module that take 5 to 15 s of processor to start: the tests that use one stay
#: together, and begin so early that no other process takes some of them over.
_STARTED_ONCE = {"browser", "cluster", "processes"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests for the processes of pytest-xdist.

    At first each process has an equal part of the tests, in their order. Half of the processes
    begin with all tests that need RabbitMQ or PostgreSQL, which take 3 s of processor to start, the
    long ones first; the others begin with the other long tests and those that need a browser or a
    cluster. A long test that began last would let the others wait for it, and too many at once
    would wait for each other.
    """
    processes = int(getattr(config, "workerinput", {}).get("workercount", 1))
    if processes == 1:
        return
    slow: list[pytest.Item] = []
    with_server: list[pytest.Item] = []
    together: dict[str, list[pytest.Item]] = {}
    others: list[pytest.Item] = []
    for item in items:
        if not _STARTED_ONCE.isdisjoint(getattr(item, "fixturenames", ())):
            together.setdefault(item.nodeid.partition("::")[0], []).append(item)
        elif item.get_closest_marker("slow"):
            slow.append(item)
        else:
            (with_server if _needs_server(item) else others).append(item)
    servers, part = processes // 2, -(-len(items) // processes)
    first: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for number, module in enumerate(together.values()):
        first[servers + number % (processes - servers)] += module
    for number, item in enumerate(slow):
        if _needs_server(item):
            first[number % servers].append(item)
        else:
            first[servers + number % (processes - servers)].append(item)
    for number, item in enumerate(with_server):
        first[number * servers // len(with_server)].append(item)
    rest = iter(others)
    items.clear()
    for own in first:
        items += [*own, *itertools.islice(rest, max(0, part - len(own)))]
    items += rest


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what the imports made: it takes 0.1 s each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def _says_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls say after a moment what they wait for."""
    monkeypatch.setattr(waits, "SAID_AFTER_S", 0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the place of the journal."""
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """Return a journal in a file."""
    with Journal(path) as journal:
        yield journal


@pytest.fixture(scope="session")
def broker() -> Iterator[PrivateBroker]:
    """Return one RabbitMQ node for the session. Without RabbitMQ the tests fail."""
    # Each simulator takes a user of its own: one process for all tests needs about 500.
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with PrivateBroker(users=100 + 600 // processes) as node:
        yield node


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    """Return one PostgreSQL server for the session. Without PostgreSQL the tests fail."""
    with PrivatePostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def s3_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Server]]:
    """Return a function that returns a running S3 server by its kind, one for the session."""
    from s3_kit import s3_server

    with contextlib.ExitStack() as stack:

        @functools.cache
        def running(kind: str) -> S3Server:
            return stack.enter_context(s3_server(kind, tmp_path_factory.mktemp(kind)))

        yield running


@pytest.fixture(params=["rclone", "moto"])
def s3_kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of the S3 server: a test runs on both."""
    return str(request.param)


@pytest.fixture
def bucket(
    s3_kind: str,
    s3_servers: Callable[[str], S3Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TestBucket:
    """Return a new bucket; the environment names its server, an account and a scratch folder."""
    from s3_kit import TestBucket, use_server

    server = s3_servers(s3_kind)
    use_server(monkeypatch, server.url, tmp_path)
    return TestBucket(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Return the place of a journal, for each supported database."""
    if request.param == "sqlite":
        return tmp_path / "journal.sqlite"
    server: PrivatePostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    """Every thread of ours that a test started has ended when the test ends."""
    before = set(threading.enumerate())

    def still_alive() -> list[threading.Thread]:
        # Python also lists a thread whose start an exception has prevented
        after = {each for each in threading.enumerate() if each.is_alive()} - before
        return [thread for thread in after if thread.name.startswith("regards-nb")]

    yield
    if still_alive():
        # A dropped tracker ends its threads when it is freed, and one in a reference cycle is
        # freed by the collector alone. A collection costs 0.1 s: only where a thread needs it.
        gc.collect()
    for thread in still_alive():
        thread.join(15.0)
        assert not thread.is_alive(), f"{thread.name} outlives the test"


def throw(error: type[BaseException], thread_name: str) -> None:
    """Raise an exception in a thread, as debuggers and time limits of packages do."""
    for thread in threading.enumerate():
        if thread.name == thread_name and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(error)
            )


def until(condition: Callable[[], Any], *, within_s: float = DEADLINE_S) -> Any:
    """Wait until *condition* is true and return its value; fail when it takes too long."""
    pause = threading.Event()
    for _ in range(int(within_s / 0.02)):
        value = condition()
        if value:
            return value
        pause.wait(0.02)
    pytest.fail(f"not within {within_s} s: {condition}")


def limit_tells(told: str, call: Callable[[float], object]) -> errors.WaitTimeoutError:
    """Return the error of a call that ends at its time limit, which says *told*.

    Where the machine is slow, what the error tells comes later: then the call gets a longer limit.
    """
    for limit_s in (0.5, 2.0, 8.0, DEADLINE_S):
        with pytest.raises(errors.WaitTimeoutError) as caught:
            call(limit_s)
        if re.search(told, str(caught.value)):
            return caught.value
    pytest.fail(f"{told!r} is not in {caught.value}")


@contextlib.contextmanager
def over_rest(
    simulator: Simulator, folder: Path, plans: Iterable[OrderPlan]
) -> Iterator[OrderTracker]:
    """Yield a tracker over REST that knows orders made over REST."""
    alone = OrderTracker(
        client=client_of(simulator),
        journal=folder / "journal.sqlite",
        workspace=folder / "orders",
    )
    with alone:
        for plan in plans:
            simulator.order(plan, over_amqp=False)
        alone.sync()
        yield alone


def without_waits(output: str) -> str:
    """Return an output without the lines that a slow machine adds: what a call waits for."""
    return re.sub(
        r"(?m)^(regards-nb: )?(waiting for|waiting until|stop\(\) waits) .*\n", "", output
    )


@contextlib.contextmanager
def interrupted_after(
    condition: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> Iterator[io.StringIO]:
    """Press Ctrl-C once *condition* is true of what the block has written; yield that."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)

    def interrupt() -> None:
        until(lambda: condition(written.getvalue()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield written
    finally:
        thread.join()
        monkeypatch.undo()


def installed(folder: Path, *requirements: str) -> Path:
    """Return the folder with these packages alone; an error, and no skip, if they cannot be had.

    They are installed once, for all processes and later runs of the tests.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
            where = ["--python", sys.executable, "--target", f"{fresh}/packages"]
            subprocess.run([*uv, *where, *requirements], check=True)
            # another process of the tests may have been faster
            with contextlib.suppress(OSError):
                Path(fresh, "packages").rename(folder)
    return folder


def login_of(simulator: Simulator) -> dict[str, Any]:
    """Return the options of a client that log in at the simulator."""
    return {
        "tenant": simulator.tenant,
        "username": simulator.username,
        "password": simulator.password,
        "client_id": simulator.client_id,
        "client_secret": simulator.client_secret,
    }


def client_of(simulator: Simulator, **options: Any) -> RegardsClient:
    """Return a client with the simulator's login and short waits between attempts."""
    settings = {"base_url": simulator.base_url, **login_of(simulator), "backoff_s": 0.01}
    return RegardsClient(**(settings | options))


def environment_of(simulator: Simulator, folder: Path, **changes: str) -> dict[str, str]:
    """Return the variables that lead a tracker to the simulator, with files in *folder*."""
    settings = {
        "url": simulator.base_url,
        **login_of(simulator),
        "amqp": simulator.amqp_url,
        "queue": simulator.queue,
        "journal": str(folder / "journal.sqlite"),
        "workspace": str(folder / "orders"),
    }
    return {f"REGARDS_{name.upper()}": value for name, value in {**settings, **changes}.items()}


def tracker_of(simulator: Simulator, folder: Path, **options: Any) -> OrderTracker:
    """Return a tracker of a simulator, with journal and workspace in *folder*."""
    settings: dict[str, Any] = {
        "amqp": simulator.amqp_url,
        "queue": simulator.queue,
        "tenant": simulator.tenant,
        "journal": folder / "journal.sqlite",
        "workspace": folder / "orders",
    }
    if "client" not in options:
        settings["client"] = client_of(simulator)
    return OrderTracker(**settings | options)


def purge_queue(simulator: Simulator) -> None:
    """Delete the messages that wait in the queue of a simulator."""
    with pika.BlockingConnection(pika.URLParameters(simulator.admin_amqp_url)) as connection:
        connection.channel().queue_purge(simulator.queue)


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """Return a simulated REGARDS.

    ``pytest.mark.simulator(with_broker=True)`` gives it the RabbitMQ of the session; the other
    options of the mark are those of `Simulator`.
    """
    mark = request.node.get_closest_marker("simulator")
    options: dict[str, Any] = {"suborder_pause_s": 0.01, **(mark.kwargs if mark else {})}
    if options.pop("with_broker", False):
        options["broker"] = request.getfixturevalue("broker")
    else:
        options["amqp"] = None
    with Simulator(**options) as started:
        yield started


@pytest.fixture
def user(simulator: Simulator) -> Iterator[Session]:
    """Return a user of the simulator who is logged in."""
    with Session(simulator) as session:
        yield session


_HEADERS = {"regards.tenant": "tenant", "regards.converter": "GSON"}


def _properties(**more: Any) -> pika.BasicProperties:
    """Return the properties that REGARDS gives to its messages, and some more."""
    return pika.BasicProperties(
        content_type="application/json",
        content_encoding="UTF-8",
        delivery_mode=2,
        priority=1,
        app_id="REGARDS",
        **more,
    )


def _encoded(body: bytes | dict[str, Any]) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


class Admin:
    """The REGARDS administrator, who declares a queue as documented and publishes to it."""

    def __init__(self, broker: PrivateBroker, **arguments: Any) -> None:
        self.queue = f"orders.{uuid.uuid4().hex}"
        self.arguments = arguments or QUEUE_ARGUMENTS
        self.url = broker.admin_url
        self.connect()
        self.make_queue()

    def connect(self) -> None:
        """Connect; also call it after the broker closed the connection."""
        self._connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self._channel = self._connection.channel()
        # publish() returns once the message is safe: what a test says was sent was sent
        self._channel.confirm_delivery()

    def make_queue(self) -> None:
        self._channel.queue_declare(self.queue, durable=True, arguments=self.arguments)
        # RabbitMQ 3.10 may hold the end of a declaration back for two seconds, and knows of no
        # such queue when it is killed in between. The next declaration carries it to the disk.
        self._channel.queue_declare(f"{self.queue}.next", durable=True)
        self._channel.queue_delete(f"{self.queue}.next")

    def delete_queue(self) -> None:
        self._channel.queue_delete(self.queue)

    def publish(
        self,
        body: bytes | dict[str, Any],
        *,
        timestamp: int | None = 1681461977,
        correlation_id: str | None = None,
        tenant: Any = "tenant",
        **more: Any,
    ) -> None:
        properties = _properties(
            timestamp=timestamp,
            correlation_id=correlation_id,
            headers=_HEADERS | {"regards.tenant": tenant},
            **more,
        )
        self.publish_raw(body, properties)

    def publish_raw(self, body: bytes | dict[str, Any], properties: pika.BasicProperties) -> None:
        """Publish with exactly these properties."""
        self._channel.basic_publish("", self.queue, _encoded(body), properties)

    def publish_all(self, bodies: Iterable[bytes | dict[str, Any]]) -> None:
        """Publish many messages in one transaction, which takes a tenth of the time."""
        channel = self._connection.channel()
        channel.tx_select()
        properties = _properties(timestamp=1681461977, headers=_HEADERS)
        for body in bodies:
            channel.basic_publish("", self.queue, _encoded(body), properties)
        channel.tx_commit()
        channel.close()

    def messages_left(self) -> int:
        declared = self._channel.queue_declare(self.queue, passive=True)
        return int(declared.method.message_count)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def admin(broker: PrivateBroker) -> Iterator[Admin]:
    """Return an administrator with a new queue."""
    someone = Admin(broker)
    yield someone
    if not someone._connection.is_open:
        someone.connect()
    someone.delete_queue()
    someone.close()
