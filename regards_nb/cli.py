"""``regards-nb``: the tracker in a terminal, with the names it has in a notebook.

Exit codes: 0 well, 1 an error or an order that did not end well, 2 wrong usage, 3 a time limit
was reached, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from regards_nb import __version__
from regards_nb.display import text
from regards_nb.doctor import as_failure
from regards_nb.errors import JournalError, RegardsError, SettingsError, WaitTimeoutError
from regards_nb.events import OrderStatus
from regards_nb.settings import PROFILE_VARIABLE, profiles_path, variable
from regards_nb.text import clean
from regards_nb.tracker import OrderTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from regards_nb.tracker import Order

_WATCH_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except WaitTimeoutError as exc:
        return _complain(exc, 3)
    except RegardsError as exc:
        return _complain(exc, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader, like `head`, has seen enough; nothing more may be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
    add("watch", _watch, "write each event as it comes, until Ctrl-C")
    wait = add("wait", _wait, "wait for orders; by default for all that are unfinished")
    _add_keys(wait, "*")
    wait.add_argument("--until", choices=("finished", "part"), default="finished")
    wait.add_argument("--timeout-s", type=float)
    download = add("download", _download, "fetch what is ready, verified; by default of all orders")
    _add_keys(download, "*")
    download.add_argument("--directory")
    download.add_argument("--no-extract", action="store_true", help="keep the zips as they came")
    submit = add("submit", _submit, "order files")
    submit.add_argument("queries", nargs="+", metavar="QUERY")
    submit.add_argument("--data-type", action="append", choices=("RAWDATA", "QUICKLOOK"))
    for name in ("filename-regexp", "correlation-id", "label", "user"):
        submit.add_argument(f"--{name}")
    submit.add_argument("--dry-run", action="store_true", help="check the request only")
    add("doctor", _doctor, "check connections, rights and places")
    add("demo", _demo, "a simulated archive: order, wait, download")
    return parser


def _add_keys(parser: argparse.ArgumentParser, nargs: str) -> None:
    parser.add_argument("keys", nargs=nargs, metavar="ORDER", help="order id or correlation id")


# -- commands


def _orders(arguments: argparse.Namespace) -> int:
    tracker = _tracker(arguments)
    if tracker.client is not None and not arguments.offline:
        tracker.sync()
    if arguments.json:
        _write(_rows(tracker.orders))
    else:
        _write(text(tracker.snapshot()))
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    pause = threading.Event()
    tracker = _tracker(arguments)
    # What waited in the queue is news as well.
    seen = len(tracker.events)
    with tracker:
        while True:
            events = tracker.events
            for event in json.loads(_rows(events.iloc[seen:])):
                known = {name: value for name, value in event.items() if value is not None}
                _write(json.dumps(known) if arguments.json else _event_line(known))
            seen = len(events)
            pause.wait(_WATCH_S)


def _event_line(event: dict[str, Any]) -> str:
    """Return one event on one line, without what a terminal would obey."""
    said = [
        event["received_at"],
        f"#{event.get('order_id', '-')}",
        event.get("correlation_id", ""),
        event["status"],
        event.get("message", ""),
    ]
    return "  ".join(clean(word) for word in said if word)


def _wait(arguments: argparse.Namespace) -> int:
    with _tracker(arguments) as tracker:
        with _progress(arguments):
            orders = tracker.wait(
                *_keys(arguments, tracker), until=arguments.until, timeout_s=arguments.timeout_s
            )
        return _conclude(arguments, orders)


def _download(arguments: argparse.Namespace) -> int:
    tracker = _tracker(arguments)
    with _progress(arguments):
        paths = tracker.download(
            *_keys(arguments, tracker),
            directory=arguments.directory,
            extract=not arguments.no_extract,
        )
    found = [str(path) for path in paths]
    _write(json.dumps(found) if arguments.json else "\n".join(found))
    return 0


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
    # Over AMQP the answer comes as a message.
    with tracker if tracker.client is None else contextlib.nullcontext():
        order = tracker.submit(arguments.queries, **options)
    return _report(arguments, order)


def _report(arguments: argparse.Namespace, order: Order) -> int:
    said = {
        "order_id": order.order_id,
        "correlation_id": order.correlation_id,
        "status": order.status,
        "message": order.message,
    }
    shown = [f"{name}: {value}" for name, value in said.items() if value is not None]
    _write(json.dumps(said) if arguments.json else "\n".join(shown))
    return 1 if order.order_id is None else 0


def _doctor(arguments: argparse.Namespace) -> int:
    try:
        report = _tracker(arguments).doctor()
    except JournalError as exc:
        report = as_failure("journal", exc)
    except SettingsError as exc:
        report = as_failure("settings", exc)
    _write(json.dumps(report.as_dicts()) if arguments.json else repr(report))
    return 0 if report.ok else 1


def _demo(arguments: argparse.Namespace) -> int:
    with OrderTracker.demo() as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
        with _progress(arguments):
            order.wait(timeout_s=60)
            order.download()
        return _conclude(arguments, tracker.orders)


# -- what they share


def _tracker(arguments: argparse.Namespace) -> OrderTracker:
    """Make the tracker of a profile where there is one, else of the environment."""
    in_environment = any(os.environ.get(variable(name)) for name in ("url", "amqp"))
    named = arguments.profile or os.environ.get(PROFILE_VARIABLE)
    if named or not in_environment:
        return OrderTracker.from_profile(arguments.profile)
    return OrderTracker.from_env()


def _keys(arguments: argparse.Namespace, tracker: OrderTracker) -> list[str | int]:
    """Return the orders of the command line; unknown ones may have been made elsewhere."""
    keys = [int(key) if key.isdecimal() else key for key in arguments.keys]
    numbers = set(tracker.orders["order_id"].dropna())
    if tracker.client is not None and any(
        isinstance(key, int) and key not in numbers for key in keys
    ):
        tracker.sync()
    return keys


@contextlib.contextmanager
def _progress(arguments: argparse.Namespace) -> Iterator[None]:
    """Show progress on the screen; beside JSON, on the other stream."""
    stream = sys.stderr if arguments.json else sys.stdout
    with contextlib.redirect_stdout(stream):
        yield


def _conclude(arguments: argparse.Namespace, orders: pd.DataFrame) -> int:
    if arguments.json:
        _write(_rows(orders))
    ended = orders[orders["finished"]]
    return 0 if (ended["status"] == OrderStatus.DONE).all() else 1


def _rows(frame: pd.DataFrame) -> str:
    named = frame if frame.index.name is None and frame.index.nlevels == 1 else frame.reset_index()
    return str(named.to_json(orient="records", date_format="iso"))


def _write(shown: str) -> None:
    if shown:
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()


def _complain(error: Exception, code: int) -> int:
    sys.stderr.write(f"regards-nb: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
