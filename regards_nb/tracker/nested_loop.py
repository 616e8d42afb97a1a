"""Run a wait inside the event loop that already runs: the only place with nested loops.

asyncio refuses to run a running loop again. nest-asyncio2 patches it; `run_nested` applies the
patch on request, and no import does. The predecessor nest_asyncio, which is no longer maintained,
silently loses cells queued during the wait with ipykernel 7.1 and later on Python 3.11 and later:
`run_nested` refuses that pair.
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

#: nest-asyncio2 1.7.2 still loses queued cells.
_OLDEST_SAFE = (1, 7, 3)
_INSTEAD = "Use `await tracker.wait_async()`, which nests nothing, or wait() without run_loop"


def run_nested(work: Coroutine[Any, Any, _T]) -> _T:
    """Run *work* to its end, inside the running loop if there is one.

    SettingsError: a nested loop is not possible here, or would lose cells.
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
        # Ctrl-C ends the step of the loop and not the task, which would run on after the cell.
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
    """Return the name of the package that must nest loops here."""
    installed = {name: _version(name) for name in ("nest-asyncio2", "nest-asyncio")}
    successor = installed["nest-asyncio2"]
    if _is_patched_by_predecessor() or (successor is None and installed["nest-asyncio"]):
        # A loop that one package has patched must not be patched by the other.
        _refuse_predecessor_that_loses_cells()
        return "nest_asyncio"
    if successor is None or successor < _OLDEST_SAFE:
        raise SettingsError(
            f'run_loop=True needs another package: pip install "nest-asyncio2>=1.7.3". {_INSTEAD}'
        )
    return "nest_asyncio2"


def _is_patched_by_predecessor() -> bool:
    return hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2")


def _refuse_predecessor_that_loses_cells() -> None:
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
