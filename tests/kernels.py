"""Kernels of several versions of ipykernel, driven as a front end drives them, without a browser.

A version is installed once into ``build/kernels``; put first on PYTHONPATH it is what the kernel
imports, and everything else is that of the tests' own environment.
"""

from __future__ import annotations

import importlib.metadata
import os
import queue
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from conftest import DEADLINE_S, installed, without_waits

if TYPE_CHECKING:
    from collections.abc import Callable

TESTS = Path(__file__).parent
STORE = TESTS.parent / "build" / "kernels"
NEWEST = importlib.metadata.version("ipykernel")
WIDGET = "application/vnd.jupyter.widget-view+json"
#: Hidden as long as there are widgets.
FALLBACK = 'class="regards-nb-fallback" style="display:none"'
#: How the state of one widget names another.
MODEL = "IPY_MODEL_"
#: What ipykernel 6.x and 7.0 to 7.2 depend on; the newest brings nest-asyncio2 instead.
PREDECESSOR = "nest-asyncio==1.6.0"


def search_path(version: str) -> str:
    """Return the PYTHONPATH of a kernel of that version."""
    folders = [TESTS.parent, TESTS]
    if version != NEWEST:
        folders.insert(0, installed(STORE / version, f"ipykernel=={version}", PREDECESSOR))
    return os.pathsep.join(map(str, folders))


def mend(ipython_folder: Path) -> None:
    """Have kernels of 7.0 to 7.3 read every message: else each test would fail now and then.

    They answer past the stream that reads the same socket, which then now and then does not notice
    a cell that comes at that moment, whatever is in it: about one of some hundred, and the kernel
    is idle for ever. This is how 7.4 has mended it (ipykernel pull request 1529).
    """
    startup = ipython_folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-mend.py").write_text(
        "_kernel = get_ipython().kernel\n"
        "_thread = getattr(_kernel, 'shell_channel_thread', None)\n"
        "if hasattr(_thread, 'manager') and hasattr(_thread.manager, '_shell_socket'):\n"
        "    _thread.manager._shell_socket = _kernel.shell_stream\n"
    )


def kernelspec(version: str) -> dict[str, Any]:
    """Return what makes that version one of a server's kernels, under the version's name."""
    return {
        "name": version,
        "spec": {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": version,
            "language": "python",
            "env": {"PYTHONPATH": search_path(version)},
        },
    }


@dataclass
class Cell:
    """What the kernel said about one cell."""

    printed: str = ""
    #: What came as an error, as the notebook would show it.
    error: str = ""
    done: bool = False
    shown: list[dict[str, Any]] = field(default_factory=list)


def sockets_in(folder: Path) -> dict[str, str]:
    """Return the options of a KernelManager whose kernel listens on sockets in a folder.

    A TCP port that is chosen for a kernel can be taken by another program before the kernel runs.
    """
    return {"transport": "ipc", "connection_file": str(folder / "kernel.json")}


class Kernel:
    """One kernel, and what a page would know of it: cells, displays and widgets."""

    def __init__(self, version: str, home: Path) -> None:
        self._home = home
        from jupyter_client.manager import KernelManager

        self._manager: Any = KernelManager(**sockets_in(home))
        self._path = search_path(version)
        self.cells: dict[str, Cell] = {}
        self.displays: dict[str, dict[str, Any]] = {}
        self.widgets: dict[str, dict[str, Any]] = {}
        self._subshell: str | None = None

    def __enter__(self) -> Self:
        mend(self._home / "ipython")
        environment = {"PYTHONPATH": self._path, "IPYTHONDIR": str(self._home / "ipython")}
        self._manager.start_kernel(
            env={**os.environ, **environment, "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
            cwd=str(self._home),
            stderr=subprocess.DEVNULL,
        )
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=DEADLINE_S)
        self._subshell = self._new_subshell()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def start(self, code: str) -> Cell:
        """Send a cell to the kernel."""
        cell = Cell()
        # nothing can arrive for it before we read
        self.cells[self._client.execute(code, allow_stdin=False)] = cell
        return cell

    def run(self, code: str) -> Cell:
        """Run a cell to its end, which must be without an error."""
        cell = self.start(code)
        self.until(lambda: cell.done)
        assert cell.error == "", cell.error
        cell.printed = without_waits(cell.printed)
        return cell

    def until(self, condition: Callable[[], Any]) -> Any:
        """Read what the kernel says until that is so."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, re.sub(r"(?s)<style>.*?</style>", "", self.shown())
            self.read(0.2)
        return value

    def read(self, timeout_s: float) -> None:
        """Take in the next thing that the kernel says, if it says something in that time."""
        with suppress(queue.Empty):
            self._take(self._client.get_iopub_msg(timeout=timeout_s))

    def interrupt(self) -> None:
        """Press the stop button."""
        self._manager.interrupt_kernel()

    def parts_done(self) -> int:
        """Return the number of parts out of 1000 that the page shows now; -1 if none."""
        return max(map(int, re.findall(r"\b(\d+)/1000\b", self.shown())), default=-1)

    def shown(self) -> str:
        """Return the HTML of all outputs, of widgets where there are any."""
        return "\n".join(map(self._html, self.displays.values()))

    def _html(self, output: dict[str, Any]) -> str:
        if WIDGET in output:
            return self._html_of(output[WIDGET]["model_id"])
        html = str(output.get("text/html", ""))
        return "" if FALLBACK in html else html

    def _html_of(self, comm_id: str) -> str:
        state = self.widgets.get(comm_id, {})
        children = [self._html_of(each.removeprefix(MODEL)) for each in state.get("children", ())]
        return "\n".join([str(state.get("value") or ""), *children])

    def choose(self, title: str) -> None:
        """Choose from the list of orders."""
        choice = self._model("DropdownModel")
        line = self.widgets[choice]["_options_labels"].index(title)
        self._tell(choice, method="update", state={"index": line})

    def click(self, description: str) -> None:
        """Click the button."""
        button = self._model("ButtonModel", description)
        self._tell(button, method="custom", content={"event": "click"})

    def _model(self, name: str, description: str | None = None) -> str:
        """Return the youngest widget of a kind."""
        return [
            comm_id
            for comm_id, state in self.widgets.items()
            if state.get("_model_name") == name and description in {None, state.get("description")}
        ][-1]

    def _tell(self, comm_id: str, **data: Any) -> None:
        """Send to a widget, through a subshell where there are any, as JupyterLab does."""
        content = {"comm_id": comm_id, "data": {**data, "buffer_paths": []}}
        message = self._client.session.msg("comm_msg", content)
        message["header"]["subshell_id"] = self._subshell
        self._client.shell_channel.send(message)

    def _new_subshell(self) -> str | None:
        answer = self._client.kernel_info(reply=True, timeout=DEADLINE_S)
        if "kernel subshells" not in answer["content"].get("supported_features", ()):
            return None
        request = self._client.session.msg("create_subshell_request")
        self._client.control_channel.send(request)
        answer = self._client.get_control_msg(timeout=DEADLINE_S)
        return str(answer["content"]["subshell_id"])

    def _take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        cell = self.cells.get(message["parent_header"].get("msg_id", ""), Cell())
        if kind == "stream":
            cell.printed += content["text"]
        elif kind == "error":
            cell.error += "\n".join(content["traceback"])
        elif kind == "status":
            cell.done |= content["execution_state"] == "idle"
        elif kind in {"display_data", "execute_result", "update_display_data"}:
            if kind != "update_display_data":
                cell.shown.append(content["data"])
            display_id = content.get("transient", {}).get("display_id", message["msg_id"])
            self.displays[display_id] = content["data"]
        elif kind.startswith("comm_"):
            self._take_comm(kind, content)

    def _take_comm(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "comm_close":
            self.widgets.pop(content["comm_id"], None)
            return
        state = self.widgets.setdefault(content["comm_id"], {})
        state.update(content["data"].get("state", {}))
