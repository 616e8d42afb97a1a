"""Rooms import only rooms above them in docs/architecture.md; one room uses each library."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import regards_nb

PACKAGE = Path(regards_nb.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: From the bottom of the architecture to the top: a room may import what stands before it.
ROOMS = [
    "text",
    "output",
    "computer",
    "errors",
    "waits",
    "arguments",
    "threads",
    "queries",
    "files",
    "events",
    "orders",
    "journal",
    "consumer",
    "client",
    "download",
    "frames",
    "tracker",
    "display",
    "settings",
    "doctor",
    "simulator",
    "demo",
    "cli",
    "__main__",
]
PURE = {"arguments", "errors", "events", "files", "orders", "queries", "text"}
#: The rooms that may import a third-party library.
HOME_OF = {
    "pika": {"consumer", "simulator"},
    "requests": {"client"},
    "sqlalchemy": {"journal"},
    "pandas": {"frames"},
    "numpy": {"frames", "display"},
    "pyarrow": {"frames"},
    "msgspec": {"events", "orders", "journal", "download", "frames"},
    "ipywidgets": {"display"},
    "IPython": {"display"},
    "matplotlib": {"display"},
    "rich": {"display", "download"},
    "isal": {"download"},
    "obstore": {"download"},
    "upath": {"download"},
    "boto3": {"download"},
    "botocore": {"download"},
    "nbformat": {"demo"},
    "nbclient": {"demo"},
    "nbconvert": {"demo"},
    "nest_asyncio2": {"tracker"},
    "platformdirs": {"settings"},
    "keyring": {"settings"},
}


#: The calls against the direction of imports, each imported inside the function that makes it.
UPWARD = {
    ("client", "download.download_order"),
    ("client", "download.download_products"),
    ("client", "frames.attributes_frame"),
    ("client", "frames.datasets_frame"),
    ("client", "frames.orders_frame"),
    ("client", "frames.products_frame"),
    ("client", "frames.quota_frame"),
    ("client", "frames.summary_frame"),
    ("tracker", "demo.demo_tracker"),
    ("tracker", "display.close_views"),
    ("tracker", "display.html"),
    ("tracker", "display.marimo_value"),
    ("tracker", "display.mimebundle"),
    ("tracker", "display.plot_throughput"),
    ("tracker", "display.plot_timeline"),
    ("tracker", "display.show"),
    ("tracker", "display.watching"),
    ("tracker", "display.widget"),
    ("tracker", "doctor.examine"),
    ("tracker", "settings.WorkerSettings"),
    ("tracker", "settings.tracker_from_settings"),
}
#: The same for names that only annotations need.
UPWARD_TYPES = {
    ("tracker", "doctor.Report"),
    ("tracker", "settings.SettingsSource"),
    ("tracker", "settings.WorkerSettings"),
}
#: The only two modules that may name each other.
KNOW_EACH_OTHER = ("tracker.order", "tracker.tracker")


#: Files that are one class of public methods, mostly docstrings.
LONGER = {"tracker/tracker.py": 1300}


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


@dataclass(frozen=True)
class Import:
    """One imported name; names of this package are without ``regards_nb.``."""

    name: str
    is_ours: bool
    for_types_only: bool
    in_function: bool

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


@functools.cache
def imports_of(module: Path) -> list[Import]:
    """Return everything that a file imports, wherever in it the import stands."""
    found: list[Import] = []

    def visit(node: ast.AST, *, for_types_only: bool, in_function: bool) -> None:
        names: list[str] = []
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for_types_only = True
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                in_function = True
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(level=0, module=str(source)):
                names = [f"{source}.{alias.name}" for alias in node.names]
            case ast.ImportFrom():
                pytest.fail(f"{module.name}: a relative import hides where it points")
        for name in names:
            ours = name.removeprefix("regards_nb.")
            if ours != "__version__":
                found.append(Import(ours, ours != name, for_types_only, in_function))
        for child in ast.iter_child_nodes(node):
            visit(child, for_types_only=for_types_only, in_function=in_function)

    visit(ast.parse(module.read_text(encoding="utf-8")), for_types_only=False, in_function=False)
    return found


def is_upward(room: str, each: Import) -> bool:
    return each.is_ours and ROOMS.index(each.room) > ROOMS.index(room)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of nodes that reach each other."""
    reached = {node: reachable(graph, node) for node in graph}
    tied = {
        tuple(sorted(other for other in there if node in reached.get(other, ())))
        for node, there in reached.items()
        if node in there
    }
    return [list(circle) for circle in sorted(tied)]


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead.extend(graph.get(node, ()))
    return seen


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_point_one_way(module: Path) -> None:
    """A room imports only rooms before it in `ROOMS`; the simulator imports only `events`.

    The calls in the other direction are imports inside a function, and `UPWARD` lists them. Names
    that only annotations need follow the same rule; `UPWARD_TYPES` lists the exceptions.
    """
    room = room_of(module)
    if room == "__init__":
        return
    for each in imports_of(module):
        if not each.is_ours:
            continue
        if room == "simulator":
            assert each.room in {"events", "simulator"}, f"the simulator imports {each.name}"
        if not is_upward(room, each):
            continue
        if each.for_types_only:
            assert (room, each.name) in UPWARD_TYPES, f"{room} names {each.name}"
        else:
            assert each.in_function, f"{room} imports {each.name} when it is loaded"
            assert (room, each.name) in UPWARD, f"{room} imports {each.name}"


def test_every_listed_upward_call_is_made() -> None:
    """Each call in the lists exists."""
    made = {
        (room_of(module), each.name, each.for_types_only)
        for module in MODULES
        if room_of(module) != "__init__"
        for each in imports_of(module)
        if is_upward(room_of(module), each)
    }
    assert {(room, name) for room, name, for_types in made if not for_types} == UPWARD
    assert {(room, name) for room, name, for_types in made if for_types} == UPWARD_TYPES


def test_no_two_modules_know_each_other() -> None:
    """There is no circle within a room or between rooms, also not by imports for annotations.

    The two exceptions are `Order` with `OrderTracker`, and the listed calls inside functions.
    """
    names = {
        ".".join(module.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for module in MODULES
    }
    modules: dict[str, set[str]] = {name: set() for name in names}
    rooms: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in MODULES:
        room = room_of(module)
        if room == "__init__":
            continue
        name = ".".join(module.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        for each in imports_of(module):
            if not each.is_ours or (room, each.name) in UPWARD | UPWARD_TYPES:
                continue
            other = each.name if each.name in names else each.name.rpartition(".")[0]
            if {name, other} != set(KNOW_EACH_OTHER):
                modules[name].add(other)
            if each.room != room:
                rooms[room].add(each.room)
    assert circles(rooms) == []
    assert circles(modules) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_each_library_lives_in_its_room(module: Path) -> None:
    """Each third-party library is imported only in the rooms of `HOME_OF`."""
    room = room_of(module)
    for each in imports_of(module):
        library = "" if each.is_ours or each.for_types_only else each.room
        if library in HOME_OF:
            assert room in HOME_OF[library], f"{room} imports {library}"
        if room in PURE:
            assert library not in {"threading", "socket", "time", "os", "pathlib"}, library


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_each_file_has_one_reason(module: Path) -> None:
    """Each file begins with a docstring and is not too long."""
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    most = LONGER.get(str(module.relative_to(PACKAGE)), 700)
    assert len(text.splitlines()) <= most, "split it where a reader would look"
    assert module.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_public_names_are_those_that_are_announced() -> None:
    """Each name of `__all__` can be imported, and `dir()` lists the public names only."""
    for name in regards_nb.__all__:
        assert getattr(regards_nb, name).__name__ == name
    assert set(dir(regards_nb)) == {*regards_nb.__all__, "errors", "queries", "__version__"}
    assert regards_nb.queries.__name__ == "regards_nb.queries"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = regards_nb.nonsense


def test_the_garbage_collector_is_left_as_it_was() -> None:
    """It rests while the package loads, also where a name does not exist, and then no longer."""
    for switch, is_on in ((gc.disable, False), (gc.enable, True)):
        switch()
        with pytest.raises(AttributeError, match="nothing"):
            _ = regards_nb.nothing
        assert gc.isenabled() is is_on


def test_no_garbage_is_looked_for_after_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next collection does not look at all that the package has made."""
    from regards_nb import errors

    made: list[list[object]] = []

    def load(_name: str) -> object:
        made.extend([] for _ in range(10_000))
        return errors

    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)  # conftest has frozen objects
    gc.enable()
    before = gc.get_stats()[0]["collections"]
    assert regards_nb.__getattr__("errors") is errors
    made.append([])
    assert gc.get_stats()[0]["collections"] == before
    gc.freeze()


def test_the_tree_of_errors_is_as_printed() -> None:
    """The docstring of `errors` shows every class, under its parent."""
    from regards_nb import errors

    assert errors.__doc__ is not None
    printed: list[type] = []
    for line in errors.__doc__.splitlines():
        if "Error" in line and not line.startswith("The exceptions"):
            indent, name = len(line) - len(line.lstrip(" │├└─")), line.strip(" │├└─").split()[0]
            cls = getattr(errors, name)
            depth = (indent - 4) // 4
            del printed[depth:]
            if printed:
                assert cls.__bases__[0] is printed[-1], name
            printed.append(cls)
    everything = {n for n, c in vars(errors).items() if isinstance(c, type) and "Error" in n}
    assert all(name in errors.__doc__ for name in everything)


#: Everything outside of the package that imports from it.
USERS = sorted(
    file
    for folder in ("tests", "benchmarks", "docs", "notebooks")
    for file in (PACKAGE.parent / folder).glob("*.*")
    if file.suffix in {".py", ".ipynb"}
)


#: Modules inside rooms that are public, or have the name of the public function in them.
PUBLIC_MODULES = {
    "simulator.faults",
    "display.html",
    "display.show",
}


@pytest.mark.parametrize("user", USERS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_tests_and_benchmarks_import_from_rooms(user: Path) -> None:
    """Code outside of the package imports from rooms, so that files in them can be moved."""
    text = user.read_text(encoding="utf-8")
    inside = {f"{file.parent.name}.{file.stem}" for file in PACKAGE.glob("*/*.py")}
    # also in the code that a test hands to another process
    named = set(re.findall(r"\bregards_nb\.(\w+\.\w+)", text))
    for room, names in re.findall(r"\bfrom regards_nb\.(\w+) import (\([^)]*\)|.*)", text):
        named.update(f"{room}.{name}" for name in re.findall(r"\w+", names))
    assert named & inside <= PUBLIC_MODULES
