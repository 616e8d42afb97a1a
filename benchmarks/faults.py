"""What survives what: every fault on a real RabbitMQ, while events flow.

    python benchmarks/faults.py                     all faults, 20,000 events each
    python benchmarks/faults.py --only kill_broker --events 2000
    python benchmarks/faults.py --write docs/faults.md

After each fault: are all events that RabbitMQ took in the frame, each once, and how long after the
broker was usable again was the first new event there?
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pika
from small_disk import own_mounts

from regards_nb import OrderTracker
from regards_nb.simulator import QUEUE_ARGUMENTS, PrivateBroker

LIMIT_S = 180.0
_TICK = threading.Event()


@dataclass
class Outcome:
    """One line of the table."""

    fault: str
    published: int = 0
    in_frame: int = 0
    lost: int = 0
    twice: int = 0
    recovered_s: float | None = None
    states: str = ""

    @property
    def exact(self) -> bool:
        """Whether the frame holds what was published, each once."""
        return self.lost == 0 and self.twice == 0 and self.in_frame >= self.published


class Publisher(threading.Thread):
    """REGARDS: publishes numbered events, and knows which of them RabbitMQ has taken.

    It pauses by itself after the first *prelude* events, so that a fault always finds some events
    taken and most of them still to come, however slow the machine is.
    """

    def __init__(self, url: str, queue: str, *, count: int, prelude: int) -> None:
        super().__init__(daemon=True)
        self._url, self._queue, self._count, self._prelude = url, queue, count, prelude
        #: confirmed by the broker
        self.confirmed: list[int] = []
        #: sent, but the answer was lost with the connection: may be there or not
        self.uncertain: list[int] = []
        self._next = 0
        self.finished = threading.Event()
        self.paused = threading.Event()

    def run(self) -> None:
        """Publish all, connecting again as often as it takes."""
        while len(self.confirmed) < self._count:
            # Whatever breaks the connection is the fault under test.
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                self._publish()
            _TICK.wait(0.05)
        self.finished.set()

    def _publish(self) -> None:
        parameters = pika.URLParameters(self._url)
        with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while len(self.confirmed) < self._count:
                if self.paused.is_set():
                    connection.process_data_events(0.05)
                    continue
                number, self._next = self._next, self._next + 1
                self.uncertain.append(number)
                with contextlib.suppress(pika.exceptions.UnroutableError):
                    channel.basic_publish(
                        "", self._queue, event(number), properties(), mandatory=True
                    )
                    self.confirmed.append(number)
                    if len(self.confirmed) == self._prelude:
                        self.paused.set()
                self.uncertain.remove(number)


def event(number: int) -> bytes:
    """Return the body of one event; each tenth has a legal twin of an older server beside it."""
    body = {"status": "SUBORDER_DONE", "orderId": number // 10, "correlationId": "c"}
    return json.dumps(body | {"subOrderId": number}).encode()


def properties() -> pika.BasicProperties:
    """Return what REGARDS sends along."""
    return pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        priority=1,
        timestamp=int(time.time()),
        app_id="rs-order",
        headers={"regards.tenant": "t"},
    )


@dataclass
class World:
    """A broker, a queue, a tracker and a publisher, and what is learned from them."""

    broker: PrivateBroker
    folder: Path
    events: int
    arguments: dict[str, object] = field(default_factory=lambda: dict(QUEUE_ARGUMENTS))
    queue: str = field(default_factory=lambda: f"orders.{uuid.uuid4().hex}")
    states: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.make_queue()
        self.publisher = Publisher(
            self.broker.admin_url, self.queue, count=self.events, prelude=self.events // 20
        )
        self.url = f"{self.broker.admin_url}?heartbeat=4"
        self.tracker = OrderTracker(self.url, self.queue, journal=self.folder / "journal.sqlite")

    @contextlib.contextmanager
    def channel(self) -> Iterator[pika.channel.Channel]:
        """Open a channel of the administrator."""
        connection = pika.BlockingConnection(pika.URLParameters(self.broker.admin_url))
        with contextlib.closing(connection):
            yield connection.channel()

    def make_queue(self) -> None:
        """Make the queue, as the administrator does."""
        with self.channel() as channel:
            channel.queue_declare(self.queue, durable=True, arguments=self.arguments)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, noting what health says meanwhile."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            self.note()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: {self.tracker.health}")
            _TICK.wait(0.02)

    def note(self) -> None:
        """Remember the state that health shows."""
        state = str(self.tracker.health.state)
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def wait_for_rows(self, rows: int) -> None:
        """Wait until so many events are in the journal."""
        self.wait(lambda: len(self.tracker.events) >= rows, f"{rows} rows")

    def first_new_event_s(self) -> float:
        """Publish one more event and return how long it takes into the frame."""
        begin = time.monotonic()
        marker = f"marker-{uuid.uuid4().hex}"
        body = json.dumps({"status": "DONE", "correlationId": marker}).encode()

        def published() -> bool:
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                with self.channel() as channel:
                    channel.confirm_delivery()
                    channel.basic_publish("", self.queue, body, properties(), mandatory=True)
                return True
            return False

        self.wait(published, "publish")
        self.wait(lambda: self.tracker._core.frames.key_of(marker) is not None, "marker")  # noqa: SLF001
        return time.monotonic() - begin


# -- the faults; each returns when the broker is usable again --


def kill_broker(world: World) -> None:
    """The node is killed with -9 and started again."""
    world.broker.kill()
    world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    world.broker.restart()


def close_connections(world: World) -> None:
    """`rabbitmqctl close_all_connections`."""
    world.broker.rabbitmqctl("close_all_connections", "maintenance")


def stop_app(world: World) -> None:
    """`rabbitmqctl stop_app`, `start_app`."""
    world.broker.rabbitmqctl("stop_app")
    world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    world.broker.rabbitmqctl("start_app")


def delete_queue(world: World) -> None:
    """The queue is deleted, and made again after a while."""
    # what lies in a queue that is deleted is gone for everybody: let it be read first
    world.wait(lambda: len(world.tracker.events) >= len(world.publisher.confirmed), "drain")
    with world.channel() as channel:
        channel.queue_delete(world.queue)
    world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    world.make_queue()
    world.publisher.paused.clear()


def remake_stream(world: World) -> None:
    """A stream queue is deleted and made anew: its offsets begin at 0 again."""
    delete_queue(world)


def close_channels(world: World) -> None:
    """The broker closes every channel with an error; the connections stay."""
    close = """
    [begin
        [{connection, Reader}, {number, N}] = rabbit_channel:info(Pid, [connection, number]),
        Reader ! {channel_exit, N, {amqp_error, precondition_failed, "maintenance", none}},
        rabbit_channel:shutdown(Pid)
     end || Pid <- rabbit_channel:list()].
    """
    world.broker.rabbitmqctl("eval", close)


def freeze_broker(world: World) -> None:
    """The broker stops in its tracks (SIGSTOP) until heartbeats are missed: half-open."""
    world.broker.freeze()
    try:
        world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    finally:
        world.broker.thaw()


def memory_alarm(world: World) -> None:
    """The broker's memory alarm blocks publishers for a while."""
    world.broker.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1000")
    rows = len(world.publisher.confirmed)
    world.wait(lambda: len(world.tracker.events) >= rows, "drain")
    world.broker.rabbitmqctl("set_vm_memory_high_watermark", "0.4")


def consumer_timeout(world: World) -> None:
    """The journal is locked for so long that the broker's consumer timeout closes the channel."""
    minutes = "application:set_env(rabbit, consumer_timeout, {}), "
    tick = "application:set_env(rabbit, channel_tick_interval, {})."
    world.broker.rabbitmqctl("eval", minutes.format(2000) + tick.format(500))
    world.broker.rabbitmqctl("close_all_connections", "new settings")
    world.wait_for_rows(1)
    with contextlib.closing(sqlite3.connect(world.folder / "journal.sqlite")) as lock:
        lock.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        world.wait(lambda: time.monotonic() - begin > 15, "lock")
    world.broker.rabbitmqctl("eval", minutes.format(1800000) + tick.format(60000))


def cut_connection(world: World) -> None:
    """A proxy cuts the connection after N bytes, N from 1 kB to 1 MB."""
    world.tracker.stop()
    target = ("127.0.0.1", world.broker.amqp_port)
    for exponent in range(10, 21):
        with cutting_proxy(target, 2**exponent) as port:
            url = world.url.replace(f":{world.broker.amqp_port}/", f":{port}/")
            tracker = OrderTracker(url, world.queue, journal=world.folder / "journal.sqlite")
            world.tracker = tracker
            # the shortest cuts come before start() is through
            with contextlib.suppress(Exception):
                tracker.start(timeout_s=5)
            begin = time.monotonic()
            world.wait(lambda begin=begin: time.monotonic() - begin > 0.5, "flow")
            with contextlib.suppress(Exception):
                tracker.stop()
    journal = world.folder / "journal.sqlite"
    world.tracker = OrderTracker(world.url, world.queue, journal=journal).start()


KILLED = """
import sys
from regards_nb import OrderTracker
OrderTracker(sys.argv[1], sys.argv[2], journal=sys.argv[3]).start()
print("consuming", flush=True)
sys.stdin.read()
"""


def kill_client(world: World, times: int = 50) -> None:
    """Our own process is killed with -9 at some moment, fifty times."""
    world.tracker.stop()
    journal = str(world.folder / "journal.sqlite")
    command = [sys.executable, "-c", KILLED, world.url, world.queue, journal]
    for number in range(times):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            process.stdout.readline()
            _TICK.wait(0.002 * number)
            os.kill(process.pid, signal.SIGKILL)
    world.tracker.start()


OPENED_ELSEWHERE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM batches").fetchone()
connection.close()
"""


def copy_journal(world: World) -> None:
    """A cell copies the journal's files while another program opens and closes it, ten times."""
    journal = world.folder / "journal.sqlite"
    for _ in range(10):
        for file in world.folder.glob("journal.sqlite*"):
            file.read_bytes()
        subprocess.run([sys.executable, "-c", OPENED_ELSEWHERE, str(journal)], check=True)


def delete_journal(world: World) -> None:
    """The journal's files are deleted while the tracker writes, five times."""
    for _ in range(5):
        world.wait_for_rows(1)
        for file in world.folder.glob("journal.sqlite*"):
            file.unlink(missing_ok=True)
        begin = time.monotonic()
        world.wait(lambda begin=begin: time.monotonic() - begin > 0.3, "flow")


def replace_journal(world: World) -> None:
    """A backup is moved over the journal while the tracker writes, three times."""
    journal = world.folder / "journal.sqlite"
    for number in range(3):
        backup = world.tracker.backup(world.folder / f"backup-{number}.sqlite")
        begin = time.monotonic()
        world.wait(lambda begin=begin: time.monotonic() - begin > 0.3, "flow")
        backup.replace(journal)


ON_A_SMALL_DISK = """
import sys
from regards_nb import OrderTracker
tracker = OrderTracker(sys.argv[1], sys.argv[2], journal=sys.argv[3] + "/journal.sqlite").start()
for line in sys.stdin:
    if line.strip() == "health":
        print(tracker.health.state, flush=True)
    elif line.strip() == "free":
        import os; os.remove(sys.argv[3] + "/ballast")
        print("freed", flush=True)
    elif line.strip() == "rows":
        print(len(tracker.events), flush=True)
    elif line.strip() == "export":
        import shutil
        tracker.stop()
        for path in __import__("pathlib").Path(sys.argv[3]).glob("journal*"):
            shutil.copy(path, sys.argv[4])
        print("exported", flush=True)
"""


def full_disk(world: World) -> None:
    """The disk with the journal is full, and freed after a while."""
    world.tracker.stop()
    disk = world.folder / "disk"
    disk.mkdir()
    # room for all once the ballast is gone, and at first for the beginning only
    size_bytes = 10_000_000 + 1_000 * world.events
    journal_bytes = sum(path.stat().st_size for path in world.folder.glob("journal*"))
    ballast_bytes = size_bytes - journal_bytes - 150_000
    mount = (
        f'mount -t tmpfs -o size={size_bytes} tmpfs "{disk}" && '
        f'cp "{world.folder}"/journal* "{disk}" && '
        f'head -c {ballast_bytes} /dev/zero > "{disk}/ballast" && exec "$0" "$@"'
    )
    command = [*own_mounts(), "sh", "-ec", mount, sys.executable, "-c"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [*command, ON_A_SMALL_DISK, world.url, world.queue, str(disk), str(world.folder)], **pipes
    ) as process:

        def ask(question: str) -> str:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            if not answer:
                raise RuntimeError(f"the client ended with {process.wait()}")
            return answer

        world.publisher.paused.clear()
        world.wait(lambda: ask("health") == "RECONNECTING", "full")
        world.states.append("RECONNECTING")
        ask("free")
        rows = lambda: int(ask("rows") or 0)  # noqa: E731
        world.wait(lambda: rows() >= len(world.publisher.confirmed) > 0, "after the disk is free")
        ask("export")
    world.tracker.start()


@contextlib.contextmanager
def cutting_proxy(target: tuple[str, int], limit_bytes: int) -> Iterator[int]:
    """Forward connections, each until so many bytes have come from the target; then reset it."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        threads = [threading.Thread(target=_accept, args=(server, target, limit_bytes, over))]
        threads[0].start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            threads[0].join()


def _accept(
    server: socket.socket, target: tuple[str, int], limit_bytes: int, over: threading.Event
) -> None:
    pumps = []
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            client, _ = server.accept()
            upstream = socket.create_connection(target)
            for source, sink, limit in ((client, upstream, None), (upstream, client, limit_bytes)):
                pump = threading.Thread(target=_pump, args=(source, sink, limit, over))
                pump.start()
                pumps.append(pump)
    for pump in pumps:
        pump.join()


def _pump(
    source: socket.socket, sink: socket.socket, limit_bytes: int | None, over: threading.Event
) -> None:
    passed = 0
    source.settimeout(0.1)
    with contextlib.suppress(OSError):
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                data = source.recv(1024)
                passed += len(data)
                if not data or (limit_bytes is not None and passed > limit_bytes):
                    break
                sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


FAULTS: dict[str, Callable[[World], None]] = {
    function.__name__: function
    for function in (
        kill_broker,
        close_connections,
        stop_app,
        delete_queue,
        remake_stream,
        close_channels,
        cut_connection,
        freeze_broker,
        memory_alarm,
        consumer_timeout,
        kill_client,
        full_disk,
        copy_journal,
        delete_journal,
        replace_journal,
    )
}


#: These let the publisher go on by themselves.
BEGIN_PAUSED = {"delete_queue", "full_disk", "remake_stream"}

STREAM = {"x-queue-type": "stream"}


def run(fault: str, broker: PrivateBroker, events: int) -> Outcome:
    """Let events flow, break something in the middle, and count."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = STREAM if fault == "remake_stream" else QUEUE_ARGUMENTS
        world = World(broker, Path(folder), events, dict(arguments))
        try:
            return _run(fault, world)
        finally:
            with contextlib.suppress(Exception):
                world.tracker.stop()
            with contextlib.suppress(Exception), world.channel() as channel:
                channel.queue_delete(world.queue)


def _run(fault: str, world: World) -> Outcome:
    world.tracker.start()
    world.publisher.start()
    world.wait(world.publisher.paused.is_set, "first events")
    if fault not in BEGIN_PAUSED:
        world.publisher.paused.clear()
    FAULTS[fault](world)
    outcome = Outcome(fault)
    outcome.recovered_s = world.first_new_event_s()
    world.wait(world.publisher.finished.is_set, "publisher")
    world.publisher.join()
    published = world.publisher.confirmed
    world.wait(lambda: len(world.tracker.events) > len(published), "all events")

    def drained() -> bool:
        if world.arguments == STREAM:  # it keeps its messages
            return True
        with world.channel() as channel:
            return channel.queue_declare(world.queue, passive=True).method.message_count == 0

    world.wait(drained, "empty queue")
    world.tracker.stop()
    events = world.tracker.events
    numbers = Counter(events["sub_order_id"].dropna().astype(int))
    outcome.published = len(published)
    outcome.in_frame = numbers.total()
    outcome.lost = len(set(published) - numbers.keys())
    outcome.twice = sum(count - 1 for count in numbers.values())
    outcome.states = " → ".join(dict.fromkeys(world.states))
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    lines = [
        "| fault | what happens | published | in the frame | lost | twice | s to first new event |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for outcome in outcomes:
        what = (FAULTS[outcome.fault].__doc__ or "").strip()
        recovered = "" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f}"
        lines.append(
            f"| {outcome.fault} | {what} | {outcome.published} | {outcome.in_frame} "
            f"| {outcome.lost} | {outcome.twice} | {recovered} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the matrix and print the table; 1 where an event was lost or came twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--write", type=Path, help="write the table into this page")
    options = parser.parse_args()
    outcomes = []
    with PrivateBroker() as broker:
        for fault in options.only:
            outcomes.append(run(fault, broker, options.events))
            print(outcomes[-1], flush=True)
    print(table(outcomes))
    if options.write:
        options.write.write_text(
            "# What survives what\n\n"
            "Made by `python benchmarks/faults.py --write docs/faults.md`, on a real RabbitMQ, on "
            f"{platform.system()} with {os.cpu_count()} cores and Python "
            f"{platform.python_version()}. An event in the frame that is not counted as "
            "published was taken by RabbitMQ just before the fault, without its answer reaching "
            f"the publisher.\n\n{table(outcomes)}\n",
            encoding="utf-8",
        )
    return 0 if all(outcome.exact for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
