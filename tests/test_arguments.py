"""An argument of a wrong type is refused by its name, before anything is done with it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from regards_nb import OrderEvent, OrderTracker, RegardsClient, errors
from regards_nb.arguments import (
    check_choice,
    check_counts,
    check_flags,
    check_numbers,
    check_paths,
)

#: A value that each kind of parameter refuses, by the annotation.
_WRONG: dict[str, object] = {
    "bool": "no",
    "float": "60",
    "float | None": "60",
    "int": "x",
    "int | None": "x",
    "str": 5,
    "str | None": 5,
    "str | Path": 5,
    "str | Path | None": 5,
    "QueueKind": "x",
    "Literal['refuse', 'include']": "yes",
}
#: What a call needs beside the parameter that is tried.
_NEEDED: dict[str, dict[str, object]] = {
    "export": {"folder": "out"},
    "journal_prune": {"before": "2026-01-01"},
    "on": {"callback": print},
    "restart": {"orders": []},
    "submit": {"products": "dataset:SWOT"},
    "submit_each": {"table": pd.DataFrame({"urn": ["URN:AIP:DATA:a"]})},
}
#: For other rooms, not for users.
_INTERNAL = {"ends_with", "parts", "record_background_error"}


class Case(NamedTuple):
    """A parameter of a method, and a value of a wrong type."""

    method: str
    parameter: str
    value: object


def _cases() -> list[Case]:
    """Return all parameters of the tracker that have a plain type."""
    return [
        Case(name, parameter.name, _WRONG[parameter.annotation])
        for name, method in inspect.getmembers(OrderTracker, callable)
        if name == "__init__" or not (name.startswith("_") or name in _INTERNAL)
        for parameter in inspect.signature(method).parameters.values()
        if parameter.annotation in _WRONG
    ]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> OrderTracker:
    """A tracker whose servers nobody needs: nothing is sent."""
    folder = tmp_path_factory.mktemp("arguments")
    return OrderTracker(
        "amqp://guest:guest@127.0.0.1:1/x",
        "orders",
        client=RegardsClient("http://127.0.0.1:1", tenant="x", username="a", password="b"),
        journal=folder / "journal.sqlite",
        workspace=folder,
    )


@pytest.mark.parametrize("case", _cases(), ids=lambda case: f"{case.method}({case.parameter})")
def test_the_error_names_the_argument(
    case: Case, tracker: OrderTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parameter of the tracker with a plain type refuses another one."""
    monkeypatch.chdir(tmp_path)  # no journal is here
    arguments: dict[str, Any] = _NEEDED.get(case.method, {}) | {case.parameter: case.value}
    method = OrderTracker if case.method == "__init__" else getattr(tracker, case.method)
    with pytest.raises(errors.SettingsError, match=rf"\b{case.parameter} must be .*{case.value!r}"):
        _called(method, arguments)


def _called(method: Callable[..., Any], arguments: dict[str, Any]) -> object:
    result = method(**arguments)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def test_what_names_no_order_is_refused(tracker: OrderTracker) -> None:
    """True is not order 1, a comparison not all orders, a name not a key."""
    for use in (tracker.wait, tracker.download, tracker.pause, tracker.__getitem__):
        with pytest.raises(errors.SettingsError, match=r"^True names no order"):
            use(True)  # noqa: FBT003 - it is refused
        with pytest.raises(errors.SettingsError, match=r"tracker\.orders\[comparison\]"):
            use(tracker.orders["status"] == "FAILED")
    with pytest.raises(errors.SettingsError, match=r"^'nope' is no key of an order"):
        tracker.snapshot(["nope"])  # type: ignore[list-item]
    with pytest.raises(errors.SettingsError, match=r"^'nope' is no key of an order"):
        tracker.state("nope")  # type: ignore[arg-type]
    with pytest.raises(errors.OrderNotFoundError, match="the name 'nope'"):
        tracker.download_soon("nope")


@pytest.mark.parametrize("url", ["s3://bucket/out", Path("s3://bucket/out")])
def test_an_export_goes_to_this_computer(
    tracker: OrderTracker, url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is called "s3:" helps nobody; so with a backup."""
    monkeypatch.chdir(tmp_path)
    for write in (tracker.export, tracker.backup):
        with pytest.raises(errors.SettingsError, match="must be a path on this computer"):
            write(url)
    assert not Path("s3:").exists()


def test_a_callback_takes_an_event(tracker: OrderTracker) -> None:
    """A function without an argument, and what is no function, are refused by on()."""
    with pytest.raises(errors.SettingsError, match=r"one argument, the OrderEvent.*too many"):
        tracker.on("DONE", lambda: None)  # type: ignore[arg-type, misc]
    with pytest.raises(errors.SettingsError, match=r"^callback must be a function"):
        tracker.on("DONE", "print")  # type: ignore[arg-type]


def test_a_function_whose_body_would_never_run_is_refused(tracker: OrderTracker) -> None:
    """A call of an async or generator function only makes an object; on() says what to do.

    So does download() of a function given as process=.
    """

    async def asynchronous(_event: OrderEvent) -> None: ...

    def yields(_event: OrderEvent) -> Iterator[int]:
        yield 1

    async def yields_too(_event: OrderEvent) -> AsyncIterator[int]:
        yield 1

    class Caller:
        async def __call__(self, _event: OrderEvent) -> None: ...

    for takes in (partial(tracker.on, None), lambda each: tracker.download(process=each)):
        for function in (asynchronous, partial(asynchronous), Caller()):
            with pytest.raises(errors.SettingsError, match=r"async function.*asyncio\.run\("):
                takes(function)
        for generator in (yields, yields_too):
            with pytest.raises(errors.SettingsError, match=r"generator function.*without yield"):
                takes(generator)


def test_other_types_of_the_same_kind_are_taken() -> None:
    """Those of NumPy and pathlib, and infinity; a number that is none is not."""
    check_flags(a=np.bool_(True), b=False)  # noqa: FBT003
    check_numbers(a=np.float64(2), b=np.int64(3), c=float("inf"), d=None)
    check_paths(a=Path("x"), b="x", c=None)
    check_counts(a=np.int64(3), b=0, c=None)
    refused: list[tuple[Callable[..., None], float]] = [
        (check_numbers, float("nan")),
        (check_numbers, -1),
        (check_numbers, np.float64(-0.5)),
        (check_counts, -1),
        (check_counts, 2.5),
    ]
    for check, value in refused:
        with pytest.raises(errors.SettingsError, match="^limit must be .*, 0 or more, not "):
            check(limit=value)
    with pytest.raises(errors.SettingsError, match='^kind must be "a" or "b", not '):
        check_choice("kind", ["a"], "a", "b")


def test_a_limit_of_the_client_is_a_count() -> None:
    """A slip in limit= is refused before the server is asked."""
    client = RegardsClient("http://127.0.0.1:1", tenant="x", username="a", password="b")
    for call in (client.orders, client.search):
        with pytest.raises(errors.SettingsError, match="^limit must be a whole number"):
            call(limit="x")  # type: ignore[operator]
