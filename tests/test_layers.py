"""The direction of imports: each room knows only those before it, and has its own library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import regards_nb

PACKAGE = Path(regards_nb.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: From the bottom of the architecture to the top: a room may import what stands before it.
ROOMS = [
    "errors",
    "text",
    "wiring",
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
]
PURE = {"errors", "events", "files", "orders", "queries", "text"}
#: The rooms that may import a third-party library.
HOME_OF = {
    "pika": {"consumer", "simulator"},
    "requests": {"client"},
    "sqlalchemy": {"journal"},
    "pandas": {"frames"},
    "numpy": {"frames"},
    "pyarrow": {"frames"},
    "msgspec": {"events", "journal"},
    "ipywidgets": {"display"},
    "IPython": {"display"},
    "matplotlib": {"display"},
    "isal": {"download"},
    "nbformat": {"demo"},
    "nbclient": {"demo"},
    "nbconvert": {"demo"},
    "nest_asyncio2": {"tracker"},
    "platformdirs": {"settings"},
    "keyring": {"settings"},
}


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(module: Path) -> set[str]:
    """Return every module that a file imports at run time, wherever in it the import stands."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(source)):
                names.update(f"{source}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                pytest.fail(f"{module.name}: a relative import hides where it points")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(module.read_text(encoding="utf-8")))
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_point_one_way(module: Path) -> None:
    """A room imports only rooms that stand before it; the simulator knows the wire alone.

    The version is nobody's.
    """
    room = room_of(module)
    if room == "__init__":
        return
    for name in imported(module):
        if name.startswith("regards_nb.") and name != "regards_nb.__version__":
            other = name.split(".")[1]
            assert ROOMS.index(other) <= ROOMS.index(room), f"{room} imports {other}"
            if room == "simulator":
                assert other in {"events", "simulator"}, f"the simulator imports {other}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_each_library_lives_in_its_room(module: Path) -> None:
    """Third-party imports are where the architecture says, and nowhere else."""
    room = room_of(module)
    for name in imported(module):
        library = name.split(".")[0]
        if library in HOME_OF:
            assert room in HOME_OF[library], f"{room} imports {library}"
        if room in PURE:
            assert library not in {"threading", "socket", "time", "os", "pathlib"}, library


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_each_file_has_one_reason(module: Path) -> None:
    """Each file says what it is for, and is short enough to be it."""
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 700, "split it where a reader would look"
    assert module.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_public_names_are_those_that_are_announced() -> None:
    """`__all__` and what can be imported agree."""
    for name in regards_nb.__all__:
        assert getattr(regards_nb, name).__name__ == name
    assert set(regards_nb.__all__) <= set(dir(regards_nb))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = regards_nb.nonsense


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
