"""The command line, on the simulator: in the process of the tests, and in some of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from children import Child
from conftest import DEADLINE_S, client_of, environment_of, without_waits
from postgresql import PrivatePostgreSQL
from tcp_proxy import TcpProxy

import regards_nb
from regards_nb import OrderTracker, cli
from regards_nb.client import REFUSALS
from regards_nb.simulator import OrderPlan, Outcome, Reply, Route, Simulator, Slow

pytestmark = pytest.mark.simulator(with_broker=True)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _environment(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that lead the command line to the simulator."""
    for name, value in environment_of(simulator, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REGARDS_SETTINGS", str(tmp_path / "none.toml"))
    monkeypatch.delenv("REGARDS_PROFILE", raising=False)


#: a command in a process of its own
COMMAND = "import sys; from regards_nb import cli; sys.exit(cli.main())"


def ended(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command in a process of its own; return what it wrote to each stream."""
    with Child(COMMAND, *arguments) as process:
        out, err = process.stdout.read(), process.stderr.read()
        assert process.wait() == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command in this process and returns what it wrote."""

    def run_here(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(arguments) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return out if not code else out + err

    return run_here


def test_an_order_from_submit_to_the_files(
    simulator: Simulator, command: Callable[..., str]
) -> None:
    """submit, wait, download, orders: the same words as in a notebook, and JSON for scripts."""
    said = json.loads(ended("submit", "dataset:SWOT_PASS_012", "--label", "one", "--json")[0])
    assert (said["status"], said["order_id"]) == ("GRANTED", 1)
    (row,) = json.loads(command("wait", "1", "--timeout-s", "60", "--json"))
    assert (row["status"], row["label"], row["tenant"]) == ("DONE", "one", "demo")
    # stdout has the paths and nothing else, so that it can be piped
    written = [Path(path) for path in ended("download", "1")[0].splitlines()]
    assert len(written) == 3
    assert all(path.is_file() for path in written)
    assert "✓ DONE" in command("orders")
    assert json.loads(command("orders", "--offline", "--json"))[0]["downloaded_files"] == 3


def test_orders_made_elsewhere_and_refusals(
    simulator: Simulator, command: Callable[..., str]
) -> None:
    """orders shows the web page's orders; what ends badly, or not in time, has its exit code."""
    number = simulator.order(OrderPlan(outcome=Outcome.FAILED), over_amqp=False)
    simulator.wait_for(number, "FAILED")
    assert f"#{number}" in command("orders")
    assert cli.main(["wait", str(number), "--json"]) == 1
    simulator.order(OrderPlan(n_files=8, files_per_suborder=1), correlation_id="large")
    assert cli.main(["wait", "large", "--timeout-s", "1"]) == 3
    assert cli.main(["submit", "dataset:FORBIDDEN"]) == 1
    assert cli.main(["submit", " "]) == 1
    assert cli.main(["submit", "a", "--dry-run"]) == 0
    assert cli.main(["download", "nobody"]) == 1


def test_the_time_limit_of_a_wait_is_that_of_the_command(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, command: Callable[..., str]
) -> None:
    """Also where RabbitMQ accepts the connection and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/x"
        monkeypatch.setenv("REGARDS_AMQP", url)
        said = command("wait", "1", "--timeout-s", "0.5", code=3)
    assert re.search(r"after 0.5 s, amqp:\S+ did not answer within 0.5 s", said)


def test_an_output_that_cannot_be_written_is_an_error_of_the_command(simulator: Simulator) -> None:
    """On a full disk, for example: no traceback of Python."""
    simulator.order(OrderPlan(n_files=1))
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "regards_nb", "orders", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = without_waits(done.stderr)
    assert said == "regards-nb: cannot write the output: No space left on device\n"
    assert done.returncode == 1


def test_watch_writes_each_event(simulator: Simulator) -> None:
    """A line for each message, until it is stopped."""
    command = [sys.executable, "-m", "regards_nb", "watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        simulator.order(OrderPlan(n_files=1), correlation_id="c")
        guard = threading.Timer(60, process.kill)
        guard.start()
        seen: list[dict[str, Any]] = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        guard.cancel()
    assert code == 130
    assert [event["status"] for event in seen] == ["GRANTED", "SUBORDER_DONE", "DONE"]
    assert seen[0]["correlation_id"] == "c"


def test_watch_says_where_events_come_from(simulator: Simulator, tmp_path: Path) -> None:
    """Of a queue, of no broker any more, of a journal that no kernel writes."""
    port = urlsplit(simulator.amqp_url).port
    assert port is not None
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        proxy = stack.enter_context(TcpProxy(("127.0.0.1", port)))
        patch.setenv("REGARDS_AMQP", proxy.url(simulator.amqp_url))
        with _watching() as lines:
            assert "listening to queue" in next(lines)
            stack.close()
            assert "no event comes now:" in next(lines)
    with _watching("--journal", str(tmp_path / "journal.sqlite")) as lines:
        assert "no event comes now: no kernel receives the messages" in next(lines)


def test_watch_goes_on_after_an_outage_of_its_journal(
    simulator: Simulator, postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why no event comes, and each event is a line afterwards."""
    monkeypatch.setenv("REGARDS_JOURNAL", postgresql.new_database())
    with _watching() as lines:
        assert "listening to queue" in next(lines)
        postgresql.kill()
        try:
            assert any("no event comes now: cannot read the journal" in line for line in lines)
        finally:
            postgresql.start()
        assert any("listening to queue" in line for line in lines)


def test_watch_says_that_regards_does_not_answer(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a broker, where each event comes from it."""
    monkeypatch.delenv("REGARDS_AMQP")
    monkeypatch.delenv("REGARDS_QUEUE")
    monkeypatch.setenv("REGARDS_POLL_S", "0.2")
    simulator.order(OrderPlan(suborder_pause_s=DEADLINE_S), over_amqp=False)
    OrderTracker.from_env().sync()
    with _watching() as lines:
        assert "listening to REGARDS over REST" in next(lines)
        simulator.faults.add(Slow(route=Route.ORDERS, delay_s=DEADLINE_S, times=None))
        assert any("no byte of the list of orders" in line for line in lines)


@contextmanager
def _watching(*arguments: str) -> Iterator[Iterator[str]]:
    """Run it, and give the lines of its errors."""
    with Child(COMMAND, "watch", *arguments) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        try:
            yield (line for line in process.stderr if line.startswith("regards-nb:"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            guard.cancel()


def test_sigterm_ends_watch_as_ctrl_c_does(simulator: Simulator) -> None:
    """A service manager that stops it gets the exit code of a stop, and no traceback."""
    with Child(COMMAND, "watch") as process:
        simulator.order(OrderPlan(n_files=1), correlation_id="c")
        guard = threading.Timer(60, process.kill)
        guard.start()
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        guard.cancel()
        told = process.stderr.read()
        assert re.fullmatch("regards-nb: listening to queue .*\n", told)
    assert code == 143


def test_sigterm_ends_a_wait_in_words(simulator: Simulator) -> None:
    """The progress ends with a sentence, and without the name of a class."""
    simulator.order(OrderPlan(n_files=1, suborder_pause_s=600), correlation_id="c")
    with Child(COMMAND, "wait", "c") as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        lines = [process.stdout.readline()]
        while "still running" not in lines[-1]:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(30) == 143
        guard.cancel()
    assert "The call was stopped." in rest
    assert "Terminated" not in rest


@pytest.mark.usefixtures("_says_at_once")
def test_a_command_says_what_it_waits_for(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second without a response, below the orders of the journal; a refusal has advice."""
    ended("submit", "dataset:SWOT_PASS_012", "--label", "mine")
    slow = simulator.faults.add(Slow(route=Route.TOKEN, delay_s=1.5))
    shown, said = ended("orders")
    line = f"regards-nb: waiting for REGARDS at {simulator.base_url}, at most 130 s\n"
    known, _, rest = said.partition(line)
    assert "mine" in known
    assert not rest
    assert "mine" in shown
    simulator.faults.remove(slow)
    monkeypatch.setenv("REGARDS_PASSWORD", "wrong")
    assert "Check user name, password and tenant: regards-nb doctor" in ended("orders", code=1)[1]


def test_a_download_says_what_is_not_ready(simulator: Simulator) -> None:
    """An order that two others block: its number, theirs, and the commands that go on."""
    numbers = [simulator.order(OrderPlan(n_files=1)) for _ in range(3)]
    for number in numbers[:2]:
        simulator.wait_for(number, "DONE")
    ended("orders")
    paths, said = ended("download", "3")
    assert paths == ""
    assert "REGARDS has not finished order 3: regards-nb wait 3 --download waits" in said
    assert "orders 1, 2 wait for a download: regards-nb download 1 2" in said


def test_events_files_and_export(
    simulator: Simulator, tmp_path: Path, command: Callable[..., str]
) -> None:
    """The frames of a notebook are lines and JSON here, of all orders or of some."""
    assert ended("events")[1] == "regards-nb: no event came so far\n"
    for name in ("a", "b"):
        simulator.order(OrderPlan(n_files=2), correlation_id=name)
    command("wait", "a", "b", "--timeout-s", "60")
    command("download", "a")
    lines = command("events", "b").splitlines()
    assert [line.split("  ")[3] for line in lines] == ["GRANTED", "SUBORDER_DONE", "DONE"]
    assert len(command("events").splitlines()) == 6
    events = json.loads(command("events", "--json"))
    assert {event["correlation_id"] for event in events} == {"a", "b"}
    listed = json.loads(command("files", "a", "--json"))
    assert [Path(each["path"]).is_file() for each in listed] == [True, True]
    first = command("files").splitlines()[0].split("  ")
    assert first[2] == listed[0]["path"]
    assert command("events", "nobody", code=1).startswith("regards-nb: no order")
    written = command("export", str(tmp_path / "out"), "--kind", "csv").splitlines()
    assert sorted(Path(path).stem for path in written) == [
        "events", "files", "orders", "rejected",
    ]  # fmt: skip


def test_retry_cancel_and_delete(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """They name orders, act on the server, and say what became of them."""
    number = simulator.order(OrderPlan(outcome=Outcome.FAILED), correlation_id="bad")
    simulator.wait_for(number, "FAILED")
    assert cli.main(["wait", "bad"]) == 1
    capsys.readouterr()
    assert cli.main(["retry", "bad"]) == 0
    assert f"order_id: {number}" in capsys.readouterr().out
    simulator.order(OrderPlan(n_files=8, files_per_suborder=1), correlation_id="large")
    assert cli.main(["wait", "large", "--until", "part"]) == 0
    capsys.readouterr()
    assert cli.main(["delete", "large"]) == 1
    assert "does not let you delete order" in capsys.readouterr().err
    assert cli.main(["cancel", "large", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"] == "DELETED"
    simulator.wait_for(number, "FAILED")
    assert cli.main(["delete", "bad", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["order_id"], row["status"]) == (number, "DELETED")
    for wrong in (["cancel"], ["wait", "--queue", "orders.nobody"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(wrong)


def test_doctor(
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: Callable[..., str],
) -> None:
    """ok on each line, and exit code 1 where something failed, settings included."""
    assert "ok       right to read" in command("doctor")
    monkeypatch.setenv("REGARDS_QUEUE", "orders.nobody")
    findings, summary = command("doctor", "--json", code=1).splitlines()
    assert summary == "regards-nb: 1 of 13 checks failed: queue. Fix that first."
    assert [f["check"] for f in json.loads(findings) if f["verdict"] == "FAILED"] == ["queue"]
    monkeypatch.delenv("REGARDS_URL")
    monkeypatch.delenv("REGARDS_AMQP")
    assert f"there is no settings file {tmp_path}" in command("doctor", code=1)


def test_errors_are_one_line(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, command: Callable[..., str]
) -> None:
    """No traceback, no secret."""
    monkeypatch.setenv("REGARDS_PASSWORD", "hunter2")
    said = command("orders", code=1)
    assert said.startswith("regards-nb: ")
    assert "refused the login" in said
    assert "hunter2" not in said
    simulator.stop()
    said = command("orders", code=1)
    assert "REGARDS: No orders" in said
    assert (
        "regards-nb: REGARDS could not be asked: the orders are as the journal knew them\n" in said
    )


def test_orders_are_as_the_journal_knew_them(
    simulator: Simulator, command: Callable[..., str]
) -> None:
    """Where REGARDS answers with an error: what it told before, when, and that it is not new."""
    number = simulator.order(OrderPlan(n_files=1))
    client_of(simulator).download_order(number, os.environ["REGARDS_WORKSPACE"], show=False)
    simulator.wait_for(number, "DONE")
    asked = command("orders", code=0)
    simulator.faults.add(Reply(route=Route.ORDERS, status=503, times=None))
    said = command("orders", code=1)
    offline = command("orders", "--offline", code=0)
    for each in (asked, said, offline):
        assert "already downloaded elsewhere (1 file" in each
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    (known_at,) = re.findall(
        f"not be asked: the orders are as the journal knew them at ({at})", said
    )
    assert f"○ as of {known_at}" in said
    assert f"○ as of {known_at}" in offline


def test_usage_is_said() -> None:
    """Without a command, with --help and with --version."""
    assert "COMMAND" in ended(code=2)[1]
    assert ended("--version")[0] == f"regards-nb {regards_nb.__version__}\n"
    assert {"orders", "queue", "resume"} <= commands()


def commands() -> set[str]:
    """Return the names of all commands, as --help lists them."""
    return set(re.findall(r"^    ([a-z]+) ", cli._parser().format_help(), re.MULTILINE))


def test_the_pages_list_all_commands() -> None:
    """README and the page on settings name each command, and no other."""
    for page in ("README.md", "docs/settings.md"):
        words = (ROOT / page).read_text(encoding="utf-8")
        (listed,) = re.findall(r"(?:command line|methods): ((?:`\w+`,?\s+)+`\w+`)\.", words)
        assert set(re.findall(r"`(\w+)`", listed)) == commands(), page


def test_advice_names_commands(
    simulator: Simulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal is told what to type there, and nothing of Python."""

    def said(*arguments: str, code: int) -> str:
        assert cli.main(arguments) == code
        return "".join(capsys.readouterr())

    assert "If seconds are meant: regards-nb wait --timeout-s 60" in said("wait", "60", code=1)
    for _ in range(2):
        simulator.order(OrderPlan(n_files=1))
    third = str(simulator.order(OrderPlan(n_files=2), correlation_id="third"))
    blocked = said("wait", third, "--timeout-s", "3", code=3)
    assert "regards-nb download 1 2, or regards-nb wait --download" in blocked
    assert "Did you mean 'third'" in said("download", "thrid", code=1)
    assert "regards-nb orders lists all" in said("download", "60", code=1)
    said("wait", third, "--download", "--timeout-s", "60", code=0)
    monkeypatch.setenv("REGARDS_JOURNAL", f"{os.environ['REGARDS_JOURNAL']}.new")
    elsewhere = said("download", third, code=0)
    assert "already downloaded elsewhere (2 files" in elsewhere
    assert "regards-nb download 3 --again" in elsewhere
    assert "Warning" not in elsewhere
    assert len(said("download", third, "--again", code=0).splitlines()) >= 2
    simulator.order(OrderPlan(n_files=8, files_per_suborder=1), correlation_id="large")
    assert cli.main(["wait", "large", "--until", "part"]) == 0
    assert '"PAUSED, by the action pause"' in said("pause", "large", "--json", code=0)
    assert "PAUSED, by the action pause" in said("orders", code=0)
    paused = said("wait", "large", "--timeout-s", "1", code=3)
    assert "regards-nb resume 4" in paused
    assert "status: " in said("resume", "large", code=0)
    listed = said("orders", code=0)
    assert re.search(r"○ as of \d{4}-", listed), "this command never listens"
    said("cancel", "large", code=0)
    deleted = said("wait", "large", code=1)
    assert "regards-nb: order 4 is DELETED" in deleted
    assert "a new order brings its files: regards-nb submit" in deleted
    simulator.order(OrderPlan(outcome=Outcome.FAILED), correlation_id="bad")
    failed = said("wait", "bad", code=1)
    assert re.search(r"regards-nb: order 5 is FAILED \(.*\): regards-nb retry 5 has", failed)
    assert said("restart", "3", "--json", code=0).count('"GRANTED"') == 1
    refusals = cli.in_commands(" ".join(map(" ".join, REFUSALS.values())))
    assert "regards-nb restart" in refusals
    still = "Nothing moves here: the tracker is stopped; tracker.start() continues"
    assert cli.in_commands(still).startswith("regards-nb wait --download follows these orders")
    place = cli.in_commands("choose another place with journal=...")
    assert place == "choose another place with --journal PATH"
    for text in (blocked, elsewhere, paused, failed, deleted, refusals, place, listed):
        assert not re.search(r"\w\(|tracker\.|tracked|tracking|auto_|button|=\.\.\.", text), text


def test_the_journal_is_copied_and_repaired(tmp_path: Path, command: Callable[..., str]) -> None:
    """backup writes one new file; repair leaves a sound journal alone and names a missing one."""
    command("submit", "dataset:SWOT_PASS_012")
    copy = tmp_path / "copy.sqlite"
    assert command("backup", str(copy)).strip() == str(copy)
    assert "exists already" in command("backup", str(copy), code=1)
    assert "is sound" in command("repair", str(copy))
    assert "there is no journal" in command("repair", str(tmp_path / "none"), code=1)
    second = tmp_path / "second.sqlite"
    said = command("backup", str(second), "--journal", str(copy), "--json")
    assert json.loads(said) == [str(second)]


def test_ctrl_c_during_the_imports_is_silent() -> None:
    """The modules of the command take seconds to load, and no traceback through them is written."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'regards_nb.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "runpy.run_module('regards_nb', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
