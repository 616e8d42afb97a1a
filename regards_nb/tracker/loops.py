"""Waiting in a cell while the user's own asyncio tasks go on: the one place with nested loops.

asyncio does not let a loop that runs be run again. nest-asyncio2 patches it so that it may; that
is done when somebody asks for it, and never at import. Its predecessor nest_asyncio, which is no
longer maintained, loses cells that are queued during the wait, silently, with ipykernel 7.1 and
later on Python 3.11 and later: that pair is refused.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")

#: 1.7.2 still drops queued cells.
_SOUND = (1, 7, 3)
_INSTEAD = "Use `await tracker.wait_async()`, which nests nothing, or wait() without run_loop"


def run_nested(work: Coroutine[Any, Any, _T]) -> _T:
    """Run *work* to its end, in the loop that runs already if there is one.

    Raises
    ------
    SettingsError
        A nested loop is not possible here, or would lose work; says what to do instead.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    try:
        _make_reentrant(loop)
    except BaseException:
        work.close()
        raise
    task = loop.create_task(work)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        # Ctrl-C ends the loop's step and not the task, which would go on behind the cell's back.
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        raise


def _make_reentrant(loop: asyncio.AbstractEventLoop) -> None:
    if not isinstance(loop, asyncio.BaseEventLoop):
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise SettingsError(f"run_loop=True needs asyncio's own event loop, not {kind}. {_INSTEAD}")
    importlib.import_module(_package()).apply(loop)


def _package() -> str:
    """Choose the package that nests loops here."""
    installed = {name: _version(name) for name in ("nest-asyncio2", "nest-asyncio")}
    successor = installed["nest-asyncio2"]
    if _is_patched_by_predecessor() or (successor is None and installed["nest-asyncio"]):
        # What one has patched, the other must not patch again.
        _refuse_predecessor_where_it_loses_cells()
        return "nest_asyncio"
    if successor is None or successor < _SOUND:
        raise SettingsError(
            f'run_loop=True needs another package: pip install "nest-asyncio2>=1.7.3". {_INSTEAD}'
        )
    return "nest_asyncio2"


def _is_patched_by_predecessor() -> bool:
    return hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2")


def _refuse_predecessor_where_it_loses_cells() -> None:
    kernel = str(getattr(sys.modules.get("ipykernel"), "__version__", "0"))
    if _numbers(kernel) >= (7, 1) and sys.version_info >= (3, 11):
        raise SettingsError(
            f"with nest_asyncio, ipykernel {kernel} silently loses cells that are queued during "
            'the wait. Restart the kernel with "nest-asyncio2>=1.7.3" instead: pip install '
            f"nest-asyncio2, and import no nest_asyncio. {_INSTEAD}"
        )


def _version(distribution: str) -> tuple[int, ...] | None:
    try:
        return _numbers(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
