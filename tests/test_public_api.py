"""The public names are frozen: `data/public_api.txt` holds each with its parameters and dtypes.

A deliberate change is written with ``python tests/test_public_api.py`` and reviewed as a diff.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import regards_nb
from regards_nb import client, consumer, display, doctor, errors, events, orders, queries, settings
from regards_nb import simulator as simulator_room
from regards_nb.download import download_order
from regards_nb.simulator import faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FROZEN = Path(__file__).parent / "data" / "public_api.txt"

#: What docs/api.md announces beside `regards_nb.__all__`.
CLASSES = [
    regards_nb.OrderTracker,
    regards_nb.Order,
    regards_nb.RegardsClient,
    orders.OrderState,
    consumer.Health,
    consumer.HealthState,
    events.OrderEvent,
    events.OrderStatus,
    client.RemoteOrder,
    doctor.Report,
    simulator_room.Simulator,
    simulator_room.OrderPlan,
    simulator_room.FileSpec,
    simulator_room.Outcome,
]
FUNCTIONS = {
    "download": ["download_order"],
    "display": [
        "show",
        "watching",
        "html",
        "text",
        "plot_timeline",
        "plot_throughput",
        "close_views",
        "widget",
        "use",
    ],
    "settings": ["profile_names", "profiles_path", "read_profile"],
}


def rendered() -> str:
    """Return all public names, a line each."""
    lines = [*regards_nb.__all__, f"plain{parameters(regards_nb.plain)}"]
    for cls in CLASSES:
        lines += class_lines(cls)
    rooms = {"display": display, "settings": settings}
    for room, names in FUNCTIONS.items():
        for name in names:
            function = download_order if room == "download" else getattr(rooms[room], name)
            lines.append(f"{room}.{name}{parameters(function)}")
    for module in (queries, errors, faults):
        lines += module_lines(module)
    lines += frame_lines()
    return "\n".join(lines) + "\n"


def class_lines(cls: type) -> Iterator[str]:
    """Yield the public members of a class."""
    if issubclass(cls, enum.Enum):
        yield f"{cls.__name__}: {', '.join(cls.__members__)}"
        return
    yield f"{cls.__name__}{parameters(cls)}"
    for name in sorted(dir(cls)):
        if name.startswith("_"):
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, (staticmethod, classmethod)):
            yield f"{cls.__name__}.{name}{parameters(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"{cls.__name__}.{name}{parameters(member)}"
        else:
            yield f"{cls.__name__}.{name}"


def module_lines(module: ModuleType) -> Iterator[str]:
    """Yield the public functions and classes that a module defines."""
    room = module.__name__.removeprefix("regards_nb.")
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            bases = ", ".join(base.__name__ for base in value.__bases__)
            fields = ""
            if dataclasses.is_dataclass(value):
                fields = f" {parameters(value)}"
            yield f"{room}.{name}({bases}){fields}"
        elif inspect.isfunction(value):
            yield f"{room}.{name}{parameters(value)}"


def parameters(function: object) -> str:
    """Return the parameters of a callable, without annotations."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def frame_lines() -> Iterator[str]:
    """Yield the columns of each frame with their dtypes."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        tracker = regards_nb.OrderTracker(
            client=regards_nb.RegardsClient(
                "http://127.0.0.1:9", tenant="project1", username="john", password="secret"
            ),
            journal=Path(folder) / "journal.sqlite",
            workspace=folder,
        )
        for name in ("events", "orders", "files", "rejected"):
            frame = getattr(tracker, name)
            yield f"{name} index: {list(frame.index.names)}"
            for column, dtype in frame.dtypes.items():
                yield f"{name}.{column}: {dtype}"
        tracker.stop()


def test_public_names_parameters_and_dtypes_are_those_of_the_frozen_list() -> None:
    """Nothing that a user may have written stops to work without a decision."""
    assert rendered() == FROZEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    FROZEN.write_text(rendered(), encoding="utf-8")
