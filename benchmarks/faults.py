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
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import three_nodes
from erlang import evaluate
from fault_world import TICK, PrivatePostgreSQL, World
from small_disk import own_mounts
from tcp_proxy import TcpProxy

from regards_nb import OrderTracker
from regards_nb.errors import RegardsError
from regards_nb.journal import repair
from regards_nb.simulator import QUEUE_ARGUMENTS, PrivateBroker


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


# -- the faults; each returns when the broker is usable again --


def kill_broker(world: World) -> None:
    """The node is killed with -9 and started again."""
    world.broker.kill()
    world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    world.broker.restart()


def close_connections(world: World) -> None:
    """`rabbitmqctl close_all_connections --global`."""
    world.broker.rabbitmqctl("close_all_connections", "--global", "maintenance")


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
     end || Pid <- rabbit_channel:list()]
    """
    evaluate(world.broker, close)


def freeze_broker(world: World) -> None:
    """The broker is stopped (SIGSTOP) until heartbeats are missed; the connection is half-open."""
    world.broker.freeze()
    try:
        world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    finally:
        world.broker.thaw()


def memory_alarm(world: World) -> None:
    """The broker's memory alarm blocks publishers for a while."""
    limit = "vm_memory_monitor:set_vm_memory_high_watermark({})"
    evaluate(world.broker, limit.format("{absolute, 1000}"))
    rows = len(world.publisher.confirmed)
    world.wait(lambda: len(world.tracker.events) >= rows, "drain")
    evaluate(world.broker, limit.format("0.4"))


def consumer_timeout(world: World) -> None:
    """The journal is locked for so long that the broker's consumer timeout closes the channel."""
    minutes = "application:set_env(rabbit, consumer_timeout, {}), "
    tick = "application:set_env(rabbit, channel_tick_interval, {})"
    evaluate(world.broker, minutes.format(2000) + tick.format(500))
    evaluate(world.broker, 'rabbit_networking:close_all_connections("new settings")')
    world.wait_for_rows(1)
    with contextlib.closing(sqlite3.connect(world.folder / "journal.sqlite")) as lock:
        lock.execute("BEGIN IMMEDIATE")
        world.flow(15)
    evaluate(world.broker, minutes.format(1800000) + tick.format(60000))


def unwritable_journal(world: World) -> None:
    """The journal is locked past seven consumer timeouts; the queue allows two returns."""
    consumer_timeout(world)


def cut_connection(world: World) -> None:
    """A proxy cuts the connection after N bytes, N from 1 kB to 1 MB."""
    for exponent in range(10, 21):
        # the shortest cuts come before start() is through
        with world.through(2**exponent), contextlib.suppress(RegardsError):
            world.tracker.start(timeout_s=5)
            world.flow(0.5)


def cut_line(world: World) -> None:
    """A proxy ends each connection after 60 kB; RabbitMQ drops a message after 20 returns."""
    with world.through(60_000):
        world.tracker.start()
        world.wait(world.publisher.finished.is_set, "publisher")
        world.drain()


def sorted_headers(world: World) -> None:
    """A quorum queue delivers again, with sorted headers: the connection is cut ten times."""
    with world.through() as proxy:
        world.tracker.start()
        for _ in range(10):
            world.flow(0.2)
            proxy.cut()
            world.wait(lambda: str(world.tracker.health.state) == "CONSUMING", "again")


KERNEL = """
import sys
from regards_nb import OrderTracker
# a tracker that nothing holds would be collected, and its thread would end
tracker = OrderTracker(sys.argv[1], sys.argv[2], journal=sys.argv[3]).start()
print("consuming", flush=True)
sys.stdin.read()
"""


def kill_client(world: World, times: int = 50) -> None:
    """Our own process is killed with -9 at some moment, fifty times."""
    world.tracker.stop()
    command = [sys.executable, "-c", KERNEL, world.url, world.queue, world.journal]
    for number in range(times):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            process.stdout.readline()
            TICK.wait(0.002 * number)
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
        world.flow(0.3)


def replace_journal(world: World) -> None:
    """A backup is moved over the journal while the tracker writes, three times."""
    journal = world.folder / "journal.sqlite"
    for number in range(3):
        backup = world.tracker.backup(world.folder / f"backup-{number}.sqlite")
        world.flow(0.3)
        backup.replace(journal)


def overwrite_journal(world: World) -> None:
    """A backup is copied over the open journal while the tracker writes, three times."""
    for number in range(3):
        backup = world.tracker.backup(world.folder / f"backup-{number}.sqlite")
        shutil.copyfile(backup, world.journal)
        world.flow(0.3)


def damage_journal(world: World) -> None:
    """The open journal is emptied and a backup put there; bytes are changed, `repair` saves all."""
    world.pause()
    backup = world.tracker.backup(world.folder / "backup.sqlite")
    Path(world.journal).write_bytes(b"")
    world.publisher.paused.clear()
    world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
    backup.replace(world.journal)
    world.drain()
    world.stop()
    with contextlib.closing(sqlite3.connect(world.journal)) as connection, connection:
        query = "SELECT last_id, messages FROM batches ORDER BY last_id DESC LIMIT 1"
        newest, messages = connection.execute(query).fetchone()
        # the checksum of a row
        connection.execute(
            "UPDATE batches SET messages = ? WHERE last_id = ?",
            (messages[:1] + b"????" + messages[5:], newest),
        )
    if repair(world.journal).is_sound:
        raise RuntimeError("the damage was not found")
    world.tracker = OrderTracker(world.url, world.queue, journal=world.journal).start()


@contextlib.contextmanager
def second_kernel(world: World, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run another process that reads the queue into the same journal."""
    command = [sys.executable, "-c", KERNEL, url, world.queue, world.journal]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


def suspend_kernel(world: World) -> None:
    """Two kernels share queue and journal; one is suspended behind a proxy for two heartbeats."""
    target = ("127.0.0.1", world.broker.amqp_port)
    with TcpProxy(target) as proxy:
        url = proxy.url(world.url).replace("heartbeat=4", "heartbeat=2")
        with second_kernel(world, url) as process:
            world.publisher.paused.clear()
            world.flow(0.5)
            # a process that is stopped inside of a transaction keeps SQLite's write lock
            world.pause()
            process.send_signal(signal.SIGSTOP)
            world.publisher.paused.clear()
            world.flow(6)  # RabbitMQ ends the connection after two heartbeats
            process.send_signal(signal.SIGCONT)
            world.wait(lambda: proxy.connections > 1, "reconnect")


def kill_in_commit(world: World) -> None:
    """One of two kernels is killed with -9 while it commits to PostgreSQL, ten times."""
    for number in range(10):
        with second_kernel(world, world.url) as process:
            world.flow(0.05 * number)
            process.kill()


def kill_team(world: World) -> None:
    """Three kernels share a journal in PostgreSQL: one kernel and the database are killed."""
    command = [sys.executable, "-c", KERNEL, world.url, world.queue, world.journal]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        for kernel in (one, two):
            kernel.stdout.readline()
        rows = world.rows()
        world.publisher.paused.clear()
        world.wait(lambda: world.rows() > rows + world.events // 10, "events for all three")
        one.kill()
        world.wait(lambda: world.rows() > rows + world.events // 5, "events for the other two")
        world.postgresql.kill()
        world.wait(lambda: str(world.tracker.health.state) == "RECONNECTING", "notice")
        world.postgresql.start()
        world.wait(lambda: str(world.tracker.health.state) == "CONSUMING", "all of it again")
        two.stdin.close()


def kill_postgresql(world: World) -> None:
    """The PostgreSQL server with the journal is killed with -9 and started again, three times."""
    for _ in range(3):
        world.flow(0.2)
        world.postgresql.kill()
        world.flow(0.5)
        world.postgresql.start()


def break_cluster(world: World) -> None:
    """Of three nodes the leader loses its links for a moment, and is killed some events later."""
    leader = world.cluster.leader(world.queue)
    world.publisher.paused.clear()
    world.cluster.break_links(leader)
    world.flow(0.5)
    killed = world.cluster.leader(world.queue)
    world.broker = next(node for node in world.cluster.nodes if node is not killed)
    killed.kill()


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
    world.stop()  # and close the journal: its -wal would be copied, which has room for 256 KiB
    disk = world.folder / "disk"
    disk.mkdir()
    # Room for all once the ballast is gone. At first for the -shm (32 KiB) and the start, and not
    # for a thousand events, which take 124 kB if a slow kernel commits all of them at once.
    size_bytes = 10_000_000 + 1_000 * world.events
    journal_bytes = sum(path.stat().st_size for path in world.folder.glob("journal*"))
    ballast_bytes = size_bytes - journal_bytes - 100_000
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
        overwrite_journal,
        damage_journal,
        sorted_headers,
        cut_line,
        unwritable_journal,
        suspend_kernel,
        kill_in_commit,
        kill_postgresql,
        kill_team,
        break_cluster,
    )
}


#: These let the publisher go on by themselves.
BEGIN_PAUSED = {
    "break_cluster",
    "damage_journal",
    "delete_queue",
    "full_disk",
    "remake_stream",
    "suspend_kernel",
    "kill_team",
}

STREAM = {"x-queue-type": "stream"}
#: RabbitMQ 4 has this limit without any argument.
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 20}
ARGUMENTS = {
    "remake_stream": STREAM,
    "sorted_headers": QUORUM,
    "cut_line": QUORUM,
    "unwritable_journal": QUORUM | {"x-delivery-limit": 2},
    "break_cluster": QUORUM,
    # A classic queue does not count deliveries: what two kernels in turn return without writing it
    # can be counted again (docs/exactly-once.md).
    "kill_team": QUORUM,
}
ON_POSTGRESQL = {"kill_in_commit", "kill_postgresql", "kill_team"}
ON_A_CLUSTER = {"break_cluster"}


def run(fault: str, broker: PrivateBroker, events: int) -> Outcome:
    """Let events flow, break something in the middle, and count."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = dict(ARGUMENTS.get(fault, QUEUE_ARGUMENTS))
        cluster = stack.enter_context(three_nodes()) if fault in ON_A_CLUSTER else None
        node = cluster.nodes[0] if cluster else broker
        world = World(node, folder, events, arguments, cluster=cluster)
        if fault in ON_POSTGRESQL:
            world.use(stack.enter_context(PrivatePostgreSQL()))
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
    world.wait(lambda: world.rows() > len(published), "all events")

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


def row(outcome: Outcome) -> str:
    """Return an outcome as a row of a Markdown table."""
    what = " ".join((FAULTS[outcome.fault].__doc__ or "").split())
    recovered = "" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f}"
    return (
        f"| {outcome.fault} | {what} | {outcome.published} | {outcome.in_frame} "
        f"| {outcome.lost} | {outcome.twice} | {recovered} |"
    )


def table(rows: Iterable[str]) -> str:
    """Return the rows with their header."""
    header = [
        "| fault | what happens | published | in the frame | lost | twice | s to first new event |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*header, *rows])


def write_page(page: Path, outcomes: list[Outcome]) -> None:
    """Write the table; rows of faults that were not run now are kept."""
    rows = {}
    if page.exists():
        lines = page.read_text(encoding="utf-8").splitlines()
        rows = {line.split()[1]: line for line in lines if line.startswith("| ")}
    rows |= {outcome.fault: row(outcome) for outcome in outcomes}
    page.write_text(
        "# What survives what\n\n"
        "Made by `python benchmarks/faults.py --write docs/faults.md`, on a real RabbitMQ, on "
        f"{platform.system()} with {os.cpu_count()} cores and Python "
        f"{platform.python_version()}; `--events` and `--only` choose how many events and which "
        "faults. An event in the frame that is not counted as "
        "published was taken by RabbitMQ just before the fault, without its answer reaching "
        f"the publisher.\n\n{table(rows[fault] for fault in FAULTS if fault in rows)}\n",
        encoding="utf-8",
    )


def main() -> int:
    """Run the matrix and print the table; 1 where an event was lost or came twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--write", type=Path, help="write the rows into this page")
    options = parser.parse_args()
    outcomes = []
    with PrivateBroker() as broker:
        for fault in options.only:
            outcomes.append(run(fault, broker, options.events))
            print(outcomes[-1], flush=True)
            if options.write:
                write_page(options.write, outcomes[-1:])
    print(table(map(row, outcomes)))
    return 0 if all(outcome.exact for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
