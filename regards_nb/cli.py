"""``regards-nb``: the tracker in a terminal, with the names that it has in a notebook.

Results go to stdout; the progress of a download, and errors, go to stderr.

Exit codes: 0 success, 1 an error or an order that did not end well, 2 wrong usage, 3 a time limit
was reached, 130 stopped with Ctrl-C, 143 stopped with SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from regards_nb import __version__, errors
from regards_nb.consumer import HealthState
from regards_nb.display import text
from regards_nb.doctor import as_failure
from regards_nb.events import OrderStatus
from regards_nb.journal import DEFAULT_PATH, Journal, repair
from regards_nb.output import rewording
from regards_nb.settings import PROFILE_VARIABLE, profiles_path, variable
from regards_nb.text import clean
from regards_nb.tracker import NEW_ORDER, OrderTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    import pandas as pd

    from regards_nb.consumer import Health
    from regards_nb.tracker import Order

_WATCH_INTERVAL_S = 0.5
#: Where an event may come at any moment, from RabbitMQ or from REGARDS.
_LISTENS = {HealthState.CONSUMING, HealthState.POLLING}
#: Maximum time until messages arrive.
_START_S = 30.0

_ACTIONS = {
    "pause": "have REGARDS prepare no more files of orders",
    "resume": "have REGARDS continue paused orders",
    "retry": "have REGARDS prepare the failed files of ended orders again",
    "restart": "order the same again",
    "cancel": "stop orders and delete them on the server; files stay",
    "delete": "delete orders on the server that have ended or are paused; files stay",
}

#: The commands for the methods of a tracker that texts name.
_COMMAND_OF = {name: name for name in ("wait", "download", "submit", "doctor", *_ACTIONS)}
_COMMAND_OF["sync"] = "orders"
#: A call in a text: tracker.download(1, 2), order.download(again=True), submit().
_CALL = re.compile(r"(?<![.\w])(?:tracker\.|order\.)?(\w+)\(([^()]*)\)")
#: Other words of a notebook, and those of a terminal. These commands show what REGARDS or the
#: journal has told, and track nothing when they have ended.
_PHRASES = {
    " or auto_download=True": "",
    "journal=...": "--journal PATH",
    "see tracker.rejected": "regards-nb export writes them",
    "tracker.orders": "regards-nb orders",
    "after tracker.start(), ": "",
    "start() was stopped, and no event arrives: call start() again": "stopped",
    "no tracker was made: call it again": "stopped",
    "stopped at the prompt for a password: call it again": "stopped",
    "stop() was stopped: what still runs ends by itself": "stopped",
    "Nothing moves here: the tracker is stopped; tracker.start() continues": (
        "regards-nb wait --download follows these orders, and fetches what is ready"
    ),
    "not listening since": "as of",
    " · tracker.start() listens": "",
    "; tracking continues in the background": "; the orders stay at REGARDS",
    "; tracking continues": "; the orders stay at REGARDS",
    "Tracking continues:": "The orders stay at REGARDS:",
}

#: What to do about an order that ended in another status than DONE; {} is its number.
_NEXT_STEPS = {
    OrderStatus.DENIED: NEW_ORDER,
    OrderStatus.FAILED: "tracker.retry({}) has REGARDS prepare what is missing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "queue", None) and arguments.journal is None:
        parser.error("--queue needs --journal: the queue of a profile is its setting")
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        with _sigterm_exits(), rewording(in_commands, _complain), warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: _complain(message)
            return command(arguments)
    except (errors.RegardsError, ExceptionGroup) as exc:
        for each in getattr(exc, "exceptions", (exc,)):
            _complain(each)
        return 3 if isinstance(exc, errors.WaitTimeoutError) else 1
    except KeyboardInterrupt as exc:
        if str(exc):
            _complain(exc)
        return 130
    except OSError as exc:
        if exc.filename is not None:  # of no output
            raise
        # Nothing more may be written, also at exit: what is left would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):  # the reader, such as `head`, has closed the pipe
            return 0
        _complain(f"cannot write the output: {exc.strerror}")
        return 1


def in_commands(words: str) -> str:
    """Return a text of the tracker with the commands of a terminal in place of Python.

    >>> in_commands("order 1 waits for a download: tracker.download(1, 2), or wait(download=True)")
    'order 1 waits for a download: regards-nb download 1 2, or regards-nb wait --download'
    """
    for phrase, command in _PHRASES.items():
        words = words.replace(phrase, command)
    return _CALL.sub(_command, words)


def _command(call: re.Match[str]) -> str:
    """Return the command for a call: its orders as words, its keywords as options."""
    if call[1] not in _COMMAND_OF:
        return call[0]
    words = ["regards-nb", _COMMAND_OF[call[1]]]
    for argument in re.findall(r"[^\s,[\]]+", call[2]):
        name, _, value = argument.rpartition("=")
        words += [f"--{name.replace('_', '-')}"] if name else []
        words += [] if value == "True" else [value.strip("'")]
    return " ".join(words)


def _complain(text: object) -> None:
    sys.stderr.write(f"regards-nb: {in_commands(str(text))}\n")


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """End a command on SIGTERM by an exception, as on Ctrl-C: threads end, connections close."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", help=f"of the settings file ({profiles_path()})")
    common.add_argument("--json", action="store_true", help="write JSON instead of text")
    parser = argparse.ArgumentParser(
        prog="regards-nb", description="Follow the orders of a REGARDS archive."
    )
    parser.add_argument("--version", action="version", version=f"regards-nb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[..., int], words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=words, description=words)
        added.set_defaults(command=command)
        return added

    orders = add("orders", _orders, "list the orders, brought up to date over REST")
    orders.add_argument("--offline", action="store_true", help="only what the journal says")
    events = add("events", _events, "list the events in the journal; by default of all orders")
    _add_keys(events, "*")
    files = add("files", _files, "list the downloaded files; by default of all orders")
    _add_keys(files, "*")
    export = add("export", _export, "write events, orders, files and rejected to a folder")
    export.add_argument("folder")
    export.add_argument("--kind", choices=("parquet", "csv"), default="parquet")
    for reading in (orders, events, files, export):
        _add_journal(reading)
    _add_journal_commands(add)
    watch = add("watch", _watch, "write each event when it arrives, until Ctrl-C or SIGTERM")
    _add_journal(watch)
    wait = add("wait", _wait, "wait for orders; by default for all that are unfinished")
    _add_keys(wait, "*")
    wait.add_argument("--until", choices=("finished", "part"), default="finished")
    wait.add_argument("--timeout-s", type=float)
    wait.add_argument(
        "--download", action="store_true", help="also download them, and what blocks them"
    )
    _add_journal(wait)
    download = add("download", _download, "fetch what is ready, verified; by default of all orders")
    _add_keys(download, "*")
    download.add_argument("--directory")
    download.add_argument("--again", action="store_true", help="fetch all files once more")
    download.add_argument("--no-extract", action="store_true", help="keep the zips as they came")
    submit = add("submit", _submit, "order files")
    submit.add_argument("queries", nargs="+", metavar="QUERY")
    submit.add_argument("--data-type", action="append", choices=("RAWDATA", "QUICKLOOK"))
    for name in ("filename-regexp", "correlation-id", "label", "user"):
        submit.add_argument(f"--{name}")
    submit.add_argument("--dry-run", action="store_true", help="check the request only")
    for name, words in _ACTIONS.items():
        action = add(name, _act, words)
        action.set_defaults(action=name)
        _add_keys(action, "+")
    queue = add("queue", _queue, "create a queue and bind it, where your account may do so")
    queue.add_argument("action", choices=("create",))
    queue.add_argument("name", nargs="?", help="by default that of the profile")
    queue.add_argument("--kind", choices=("quorum", "stream", "classic"), default="quorum")
    add("doctor", _doctor, "check connections, rights and folders")
    add("demo", _demo, "order, wait and download from a simulated archive")
    return parser


def _add_journal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--journal",
        metavar="PLACE",
        help="read this file or URL, which another kernel writes; no account is needed",
    )
    parser.add_argument("--queue", help="with --journal, if it has messages of several queues")


def _add_journal_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    backup = add("backup", _backup, "copy the journal to one new file, also while it is in use")
    backup.add_argument("path", metavar="NEW_FILE")
    backup.add_argument("--journal", metavar="FILE", help="by default that of the profile")
    repair = add("repair", _repair, "save what can be read of a damaged journal")
    repair.add_argument("journal", nargs="?", metavar="FILE", help=f"by default {DEFAULT_PATH}")
    prune = add("journal", _prune, "remove the events of orders that have ended long ago")
    prune.add_argument("action", choices=("prune",))
    prune.add_argument("--before", required=True, metavar="DATE", help="as 2026-06-01 (UTC)")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _add_keys(parser: argparse.ArgumentParser, nargs: str) -> None:
    parser.add_argument("keys", nargs=nargs, metavar="ORDER", help="order id or correlation id")


# -- what the journal holds


def _orders(arguments: argparse.Namespace) -> int:
    tracker = _tracker(arguments)
    asks = tracker.client is not None and not arguments.offline
    if asks:
        _sync(tracker)
    known_at = None if asks else _known_at(tracker)
    _write(_as_json(tracker.orders) if arguments.json else _table(tracker, known_at))
    return 0


def _sync(tracker: OrderTracker) -> None:
    """Ask REGARDS; where it answers late or not, write the orders of the journal to stderr."""
    show = cache(lambda: sys.stderr.write(f"{_table(tracker, _known_at(tracker))}\n"))

    def say_below(words: str) -> None:
        show()
        _complain(words)

    try:
        with rewording(in_commands, say_below):
            tracker.sync()
    except errors.ServiceLoginError:
        raise
    except (errors.ServiceError, KeyboardInterrupt) as exc:
        show()
        known_at = _known_at(tracker)
        at = "" if known_at is None else f" at {known_at:%Y-%m-%d %H:%M} UTC"
        known = f"the orders are as the journal knew them{at}"
        if isinstance(exc, KeyboardInterrupt):
            raise errors.StoppedWaiting(f"stopped: {known}") from None
        _complain(f"REGARDS could not be asked: {known}")
        raise


def _known_at(tracker: OrderTracker) -> datetime | None:
    """Return when the journal got its newest message, or answer of REGARDS."""
    arrivals = tracker.events["received_at"]
    return None if arrivals.empty else arrivals.iloc[-1].to_pydatetime()


def _table(tracker: OrderTracker, known_at: datetime | None) -> str:
    """Return the orders, as of a time, by default now."""
    snapshot = tracker.snapshot()
    if known_at is not None:
        snapshot = replace(snapshot, health=replace(snapshot.health, since=known_at))
    return in_commands(text(snapshot))


def _events(arguments: argparse.Namespace) -> int:
    return _list(arguments, "events", _event_line, "no event came so far")


def _files(arguments: argparse.Namespace) -> int:
    return _list(arguments, "files", _file_line, "no files were listed so far")


def _list(
    arguments: argparse.Namespace, name: str, line: Callable[[dict[str, Any]], str], nothing: str
) -> int:
    """Write the rows of a frame, of all orders or of each named order."""
    tracker, keys = _tracker(arguments), _keys(arguments)
    frames = [getattr(tracker[key], name) for key in keys] if keys else [getattr(tracker, name)]
    if arguments.json:
        _write(json.dumps([row for frame in frames for row in json.loads(_as_json(frame))]))
        return 0
    for frame in frames:
        if frame.empty:
            _complain(nothing)
        for row in _records(frame):
            _write(line(row))
    return 0


def _file_line(file: dict[str, Any]) -> str:
    words = (f"#{file['order_id']}", file["state"], file.get("path") or file["name"])
    return "  ".join(clean(word, 1000) for word in words)


def _backup(arguments: argparse.Namespace) -> int:
    if arguments.journal is None:
        path = _tracker(arguments).backup(arguments.path)
    else:
        with Journal(arguments.journal) as journal:
            path = journal.backup(arguments.path)
    return _write_paths(arguments, [path])


def _prune(arguments: argparse.Namespace) -> int:
    pruned = _tracker(arguments).journal_prune(before=arguments.before, dry_run=arguments.dry_run)
    verb = "would be removed" if arguments.dry_run else "removed"
    return _answer(arguments, asdict(pruned), f"{verb}: {pruned}")


def _repair(arguments: argparse.Namespace) -> int:
    report = repair(arguments.journal)
    return _answer(arguments, str(report).splitlines(), str(report), ok=report.is_sound)


def _export(arguments: argparse.Namespace) -> int:
    return _write_paths(
        arguments, _tracker(arguments).export(arguments.folder, kind=arguments.kind)
    )


# -- follow, wait, download


def _watch(arguments: argparse.Namespace) -> int:
    pause = threading.Event()
    tracker = _tracker(arguments)
    # Messages that waited in the queue are new, too.
    events = tracker.events
    n_written = len(events)
    with tracker:
        told: object = None
        while True:
            health = tracker.health
            # The reason changes while it reconnects.
            now: object = (
                health.state,
                health.state in {*_LISTENS, HealthState.READING} and health.reason,
            )
            text = _watched(tracker, health)
            try:
                events = tracker.events
            except errors.JournalError as exc:  # its server may restart, as RabbitMQ may
                now, text = errors.JournalError, f"no event comes now: {exc}"
            if now != told:
                told = now
                _complain(text)
            for event in _records(events.iloc[n_written:]):
                _write(json.dumps(event) if arguments.json else _event_line(event))
            n_written = len(events)
            pause.wait(_WATCH_INTERVAL_S)


def _watched(tracker: OrderTracker, health: Health) -> str:
    """Return where events come from, or why none comes."""
    if health.state is HealthState.READING and not health.reason:
        return "reading the journal; an event is a line once the kernel that writes it gets it"
    if health.state in _LISTENS:
        source = f"queue {tracker.queue!r}" if tracker.queue else "REGARDS over REST"
        text = f"listening to {source}; each event is a line, and Ctrl-C ends it"
        return "; ".join(filter(None, (text, health.reason)))
    return f"no event comes now: {health.reason or health.state}"


def _event_line(event: dict[str, Any]) -> str:
    """Return one event on one line, without control characters."""
    words = [
        event["received_at"],
        f"#{event.get('order_id', '-')}",
        event.get("correlation_id", ""),
        event["status"],
        event.get("message", ""),
    ]
    return "  ".join(clean(word) for word in words if word)


def _wait(arguments: argparse.Namespace) -> int:
    limit_s, began_s = arguments.timeout_s, time.monotonic()
    tracker = _tracker(arguments)
    try:
        tracker.start(timeout_s=_START_S if limit_s is None else min(limit_s, _START_S))
    except (errors.BrokerUnreachableError, errors.JournalError) as exc:
        if limit_s is None or time.monotonic() - began_s < limit_s:
            raise
        raise errors.WaitTimeoutError(f"after {limit_s:g} s, {exc}") from exc
    with tracker:
        with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
            orders = tracker.wait(
                *_keys(arguments),
                until=arguments.until,
                timeout_s=limit_s and max(round(limit_s - (time.monotonic() - began_s), 1), 0.0),
                download=arguments.download,
            )
        return _conclude(arguments, orders)


def _download(arguments: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):
        paths = _tracker(arguments).download(
            *_keys(arguments),
            directory=arguments.directory,
            extract=not arguments.no_extract,
            again=arguments.again,
        )
    return _write_paths(arguments, paths)


# -- act


def _submit(arguments: argparse.Namespace) -> int:
    options = {
        "data_types": arguments.data_type,
        "filename_regexp": arguments.filename_regexp,
        "correlation_id": arguments.correlation_id,
        "label": arguments.label,
        "user": arguments.user,
    }
    tracker = _tracker(arguments)
    if arguments.dry_run:
        _write(json.dumps(tracker.submit(arguments.queries, **options, dry_run=True).body()))
        return 0
    # Without a client, the order is sent over AMQP, and its answer is a message.
    started = tracker if tracker.client is None else contextlib.nullcontext()
    with started, contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        order = tracker.submit(arguments.queries, **options)
    described = _described(order)
    if order.order_id is None:
        _complain(f"there is no order: {order.status}. {NEW_ORDER}")
    return _answer(arguments, described, _as_lines(described), ok=order.order_id is not None)


def _act(arguments: argparse.Namespace) -> int:
    act: Callable[[list[str | int]], list[Order]] = getattr(_tracker(arguments), arguments.action)
    described = [_described(order) for order in act(_keys(arguments))]
    return _answer(arguments, described, "\n\n".join(map(_as_lines, described)))


def _queue(arguments: argparse.Namespace) -> int:
    name = _tracker(arguments).create_queue(arguments.name, kind=arguments.kind)
    return _answer(arguments, {"queue": name}, f"{name} receives order responses now")


def _doctor(arguments: argparse.Namespace) -> int:
    try:
        report = _tracker(arguments).doctor()
    except errors.JournalError as exc:
        report = as_failure("journal", exc)
    except errors.SettingsError as exc:
        report = as_failure("settings", exc)
    if arguments.json and not report.ok:
        _complain(report.summary)
    return _answer(arguments, report.as_dicts(), repr(report), ok=report.ok)


def _demo(arguments: argparse.Namespace) -> int:
    with OrderTracker.demo() as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
        with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
            order.wait(timeout_s=60)
            order.download()
        return _conclude(arguments, tracker.orders)


# -- shared


def _tracker(arguments: argparse.Namespace) -> OrderTracker:
    """Make the tracker of a profile where there is one, else of the environment.

    With ``--journal`` and without ``--profile`` the journal is read, and nothing is connected.
    """
    journal = getattr(arguments, "journal", None)
    if journal is not None and arguments.profile is None:
        return OrderTracker.reader(journal, queue=arguments.queue)
    in_environment = any(os.environ.get(variable(name)) for name in ("url", "amqp"))
    profile = arguments.profile or os.environ.get(PROFILE_VARIABLE)
    if profile or not in_environment:
        options = {} if journal is None else {"journal": journal}
        return OrderTracker.from_profile(arguments.profile, **options)
    return OrderTracker.from_env()


def _keys(arguments: argparse.Namespace) -> list[str | int]:
    """Return the orders of the command line."""
    return [int(key) if key.isdecimal() else key for key in arguments.keys]


def _conclude(arguments: argparse.Namespace, orders: pd.DataFrame) -> int:
    if arguments.json:
        _write(_as_json(orders))
    bad = orders[orders["finished"] & (orders["status"] != OrderStatus.DONE)]
    for order in _records(bad):
        name = order.get("order_id", order["correlation_id"])
        message = f" ({clean(order['message'])})" if "message" in order else ""
        advice = _NEXT_STEPS.get(order["status"], "a new order brings its files: submit()")
        _complain(f"order {name} is {order['status']}{message}: {advice.format(name)}")
    return 1 if len(bad) else 0


def _write_paths(arguments: argparse.Namespace, paths: Sequence[object]) -> int:
    names = list(map(str, paths))
    return _answer(arguments, names, "\n".join(names))


def _described(order: Order) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "correlation_id": order.correlation_id,
        "status": order.status,
        "message": order.message,
    }


def _as_lines(described: dict[str, Any]) -> str:
    return "\n".join(
        f"{name}: {clean(str(value))}" for name, value in described.items() if value is not None
    )


def _as_json(frame: pd.DataFrame) -> str:
    has_names = frame.index.name is not None or frame.index.nlevels > 1
    rows = frame.reset_index() if has_names else frame
    return str(rows.to_json(orient="records", date_format="iso"))


def _records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows as dicts without missing values."""
    for row in json.loads(_as_json(frame)):
        yield {name: value for name, value in row.items() if value is not None}


def _answer(arguments: argparse.Namespace, value: object, words: str, *, ok: bool = True) -> int:
    """Write a result as JSON or as text; return the exit code."""
    _write(json.dumps(value) if arguments.json else words)
    return 0 if ok else 1


def _write(words: str) -> None:
    if words:
        sys.stdout.write(f"{words}\n")
        sys.stdout.flush()
