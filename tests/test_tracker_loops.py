"""wait(run_loop=True): the user's tasks go on, and where that would lose work it is refused.

Each case runs in a process of its own: nesting patches asyncio for good.
"""

from __future__ import annotations

from children import Child

TICKING = """
import asyncio, threading, warnings
warnings.simplefilter("error")
from regards_nb.tracker import run_nested

async def work(n_ticks):
    while len(ticks) < n_ticks:
        await asyncio.sleep(0.01)
    return "worked"

async def tick():
    while True:
        ticks.append(1)
        await asyncio.sleep(0.01)

ticks = []
"""


def run(script: str) -> str:
    """Run a script in a new process; return what it printed."""
    with Child(TICKING + script) as process:
        return process.output()


def refusal(script: str) -> str:
    """Return with which words a nested wait is refused, in a loop that *script* prepared."""
    return run(
        "from regards_nb.errors import SettingsError\n"
        f"{script}\n"
        "async def cell():\n"
        "    try:\n"
        "        run_nested(work(1))\n"
        "    except SettingsError as refused:\n"
        "        print(refused)\n"
        "asyncio.run(cell())\n"
    )


def test_the_users_tasks_go_on_during_a_nested_wait() -> None:
    """A task that ticks beside the cell ticks during a call that blocks the cell."""
    said = run(
        """
async def cell():
    user = asyncio.create_task(tick())
    print(run_nested(work(20)), len(ticks) >= 20, user.done())
    user.cancel()

asyncio.run(cell())
"""
    )
    assert said.split() == ["worked", "True", "False"]


def test_without_a_loop_one_is_made() -> None:
    """In a plain script the work runs in a loop of its own."""
    assert run("ticks.append(1); print(run_nested(work(1)))").strip() == "worked"


def test_ctrl_c_ends_the_work_too() -> None:
    """After Ctrl-C nothing goes on behind the cell's back: the work is cancelled."""
    said = run(
        """
import signal

async def endless():
    try:
        await asyncio.sleep(3600)
    finally:
        print("cancelled")

async def cell():
    # as in a kernel, where Ctrl-C interrupts the step of the loop that runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asyncio.get_running_loop().call_later(0.2, signal.raise_signal, signal.SIGINT)
    try:
        run_nested(endless())
    except KeyboardInterrupt:
        print("interrupted")

asyncio.run(cell())
"""
    )
    assert said.split() == ["cancelled", "interrupted"]


def test_the_predecessor_is_refused_where_it_loses_cells() -> None:
    """Patched by nest_asyncio, with ipykernel 7.1 or newer: the text says why and what instead."""
    said = refusal("import ipykernel\nasyncio._nest_patched = True")
    assert "silently loses cells" in said
    assert "await tracker.wait_async()" in said


def test_a_foreign_loop_is_refused() -> None:
    """A loop that cannot be nested, such as uvloop's, is named."""
    said = run(
        """
from regards_nb.errors import SettingsError

class Foreign(asyncio.AbstractEventLoop):
    pass

asyncio._set_running_loop(Foreign())
try:
    run_nested(work(1))
except SettingsError as refused:
    print(refused)
"""
    )
    assert "not __main__.Foreign" in said
    assert "await tracker.wait_async()" in said


def test_nothing_is_patched_by_importing() -> None:
    """Whoever does not ask for a nested loop gets none."""
    assert run("import regards_nb.tracker\nprint(hasattr(asyncio, '_nest_patched'))").strip() == (
        "False"
    )
