"""A real JupyterLab in a real Chromium: what a user would see, and nothing else.

``Lab`` starts a server on a free port with private folders; ``Page`` drives one notebook through
JupyterLab's own commands. No waiting on time: each wait is for something on the page. Requests to
anywhere but this machine are refused and remembered, so that a test can say there were none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from conftest import PYTHON_MODULE, until
from kernels import mend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser as PlaywrightBrowser
    from playwright.sync_api import Locator, Request
    from playwright.sync_api import Page as PlaywrightPage

#: The shell without a window takes a sixth less of the processor than the whole browser.
CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium-headless-shell")
    or shutil.which("chromium")
    or "/usr/bin/chromium"
)
_CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # a page lives for seconds: compilers that optimize take longer than what they save
    "--js-flags=--no-opt --no-maglev",
    # nothing but this machine; a route of Playwright would disable the cache of the browser, too
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
START_TIMEOUT_S = 90
TIMEOUT_MS = 120_000
TESTS = Path(__file__).parent

_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    },
    # Else cells outside the window leave the page.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
#: What is on the page of JupyterLab beside a notebook, its cells and their outputs: a third of the
#: processor that a page takes.
_BESIDE = """
celltags-extension completer-extension console-extension csvviewer-extension debugger-extension
documentsearch-extension extensionmanager-extension fileeditor-extension help-extension
htmlviewer-extension hub-extension imageviewer-extension inspector-extension launcher-extension
logconsole-extension lsp-extension markdownviewer-extension mathjax-extension mermaid-extension
metadataform-extension pdf-extension pluginmanager-extension running-extension
settingeditor-extension shortcuts-extension statusbar-extension terminal-extension
theme-dark-high-contrast-extension toc-extension tooltip-extension workspaces-extension
apputils-extension:kernel-status apputils-extension:running-sessions-status
notebook-extension:active-cell-tool notebook-extension:cell-counter-status
notebook-extension:code-console notebook-extension:completer notebook-extension:export
notebook-extension:kernel-status notebook-extension:language-server
notebook-extension:log-output notebook-extension:metadata-editor
notebook-extension:mode-status notebook-extension:search notebook-extension:toc
notebook-extension:tools notebook-extension:trust-status notebook-extension:update-raw-mimetype
"""
_PAGE = {
    # the server would ask node whether a page must be built
    "buildCheck": False,
    "disabledExtensions": dict.fromkeys(
        [
            *(f"@jupyterlab/{name}" for name in _BESIDE.split()),
            # the picture that moves while the page is loaded, drawn without a graphics processor
            "@jupyterlab/apputils-extension:splash",
            # other hosts, which have tests of their own
            "@pyviz/jupyterlab_pyviz",
            "@voila-dashboards/jupyterlab-preview",
            "jupyter-vue",
            "jupyter-vuetify",
        ],
        True,
    ),
}
#: The server would import these hosts at its start.
_SERVER = {
    "ServerApp": {
        "jpserver_extensions": {
            "panel.io.jupyter_server_extension": False,
            "solara.server.jupyter.server_extension": False,
            "voila.server_extension": False,
        }
    }
}


class Lab:
    """A JupyterLab server of our own; ends with the ``with`` block."""

    def __init__(self, *extra_kernels: dict[str, Any]) -> None:
        self._stack = ExitStack()
        self._home = Path(tempfile.mkdtemp(prefix="regards-nb-lab-"))
        self._stack.callback(shutil.rmtree, self._home, ignore_errors=True)
        self.root = self._folder("root")
        self._shared = ""
        self.url = f"http://127.0.0.1:{_free_port()}"
        for kernel in extra_kernels:
            folder = self._folder("share") / "kernels" / str(kernel["name"])
            folder.mkdir(parents=True)
            (folder / "kernel.json").write_text(json.dumps(kernel["spec"]))
        if extra_kernels:
            mend(self._folder("ipython"))
        (self._folder("config") / "jupyter_server_config.json").write_text(json.dumps(_SERVER))
        labconfig = self._folder("config") / "labconfig"
        labconfig.mkdir()
        (labconfig / "default_setting_overrides.json").write_text(json.dumps(_SETTINGS))
        (labconfig / "page_config.json").write_text(json.dumps(_PAGE))

    def __enter__(self) -> Self:
        log = self._stack.enter_context((self._home / "server.log").open("wb"))
        self._server = subprocess.Popen(
            self._command(),
            env=self._environment(),
            cwd=self.root,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stack.callback(self._end)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def api(self, path: str, method: str = "GET", body: object = None) -> Any:
        """Call the server's REST interface."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.url + path, data, method=method)  # noqa: S310 - own server
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - own server
            body = answer.read()
        return json.loads(body) if body else None

    def notebook(self, name: str, *cells: str, kernel: str = "python3") -> str:
        """Write a notebook and return its name."""
        import nbformat.v4 as books

        spec = {"name": kernel, "display_name": kernel, "language": "python"}
        book = books.new_notebook(
            cells=[books.new_code_cell(cell) for cell in cells], metadata={"kernelspec": spec}
        )
        (self.root / name).write_text(books.writes(book), encoding="utf-8")
        return name

    def share_kernel(self, name: str) -> None:
        """Give a notebook the kernel of the others that share one: its start takes 1.6 s."""
        kernel = {"id": self._shared} if self._shared else {"name": "python3"}
        about = {"name": name, "path": name, "type": "notebook", "kernel": kernel}
        session = self.api("/api/sessions", "POST", about)
        self._shared = session["kernel"]["id"]

    def end_kernel(self, name: str) -> None:
        """End the kernel of a notebook."""
        (session,) = [each for each in self.api("/api/sessions") if each["path"] == name]
        self.api(f"/api/sessions/{session['id']}", method="DELETE")
        assert session["kernel"]["id"] not in {each["id"] for each in self.api("/api/kernels")}

    def saved(self, name: str) -> Any:
        """Return a notebook as it was saved."""
        import nbformat

        return nbformat.read(str(self.root / name), as_version=4)

    def _folder(self, name: str) -> Path:
        folder = self._home / name
        folder.mkdir(exist_ok=True)
        return folder

    def _command(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        return [
            *PYTHON_MODULE,
            "jupyterlab",
            "--LabApp.expose_app_in_browser=True",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.open_browser=False",
            "--IdentityProvider.token=",
            "--ServerApp.password=",
            "--ServerApp.allow_root=True",
            f"--ServerApp.root_dir={self.root}",
            "--ServerApp.disable_check_xsrf=True",
            "--ServerApp.terminals_enabled=False",
            # as in `sockets_in`
            "--KernelManager.transport=ipc",
        ]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self._folder("home")),
            # without node, whose settings of a package manager JupyterLab would read
            "PATH": str(Path(sys.executable).parent),
            "JUPYTER_CONFIG_DIR": str(self._folder("config")),
            "JUPYTER_DATA_DIR": str(self._folder("data")),
            "JUPYTER_RUNTIME_DIR": str(self._folder("runtime")),
            "JUPYTERLAB_SETTINGS_DIR": str(self._folder("settings")),
            "JUPYTERLAB_WORKSPACES_DIR": str(self._folder("workspaces")),
            "JUPYTER_PATH": str(self._folder("share")),
            "IPYTHONDIR": str(self._folder("ipython")),
            "JUPYTER_PLATFORM_DIRS": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        }

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                break
            with suppress(OSError):
                self.api("/api/status")
                return
            threading.Event().wait(0.1)
        log = (self._home / "server.log").read_text(errors="replace")
        raise AssertionError(f"JupyterLab did not start:\n{log[-3000:]}")

    def _end(self) -> None:
        # the server would wait for the end of each kernel
        processes = (self._server, *psutil.Process(self._server.pid).children(recursive=True))
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a helper of a kernel has ended meanwhile
                process.kill()
        self._server.wait()


class Chromium:
    """One browser. ``errors`` and ``refused`` gather what pages complained of and asked for."""

    def __init__(self, browser: PlaywrightBrowser) -> None:
        self._browser = browser
        self.errors: list[str] = []
        self.refused: list[str] = []
        #: a page without a notebook
        self._page: Page | None = None

    @contextmanager
    def page(self, lab: Lab, notebook: str) -> Iterator[Page]:
        """Open a notebook and wait until its kernel is idle.

        The page of the notebook before is used again: JupyterLab takes 6 s of processor on a new
        page, 4 s where it is loaded anew.
        """
        page, self._page = self._page, None
        if page is None:
            page = Page(self._new_page(), lab, notebook)
        else:
            page.turn_to(notebook)
        try:
            yield page
            page.close()
            self._page = page
        finally:
            if self._page is None:
                page.page.context.close()

    @contextmanager
    def bare_page(self) -> Iterator[PlaywrightPage]:
        """Open an empty page that reaches this machine only."""
        page = self._new_page()
        try:
            yield page
        finally:
            page.context.close()

    def _new_page(self) -> PlaywrightPage:
        context = self._browser.new_context(viewport={"width": 1200, "height": 900})
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda said: said.type == "error" and self._complain(said.text))
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("request", self._note)
        return page

    def _complain(self, complaint: str) -> None:
        """Remember it, except for requests of JupyterLab that ended because a notebook closed."""
        if not re.search("Canceled future for (debug|create_subshell)_request", complaint):
            self.errors.append(complaint)

    def _note(self, request: Request) -> None:
        """Remember a request to another machine, which finds no address."""
        if re.match(r"https?://(?!127\.0\.0\.1|localhost)", request.url):
            self.refused.append(request.url)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Start a browser; it ends with the ``with`` block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_CHROMIUM_ARGS)
        try:
            yield Chromium(browser)
        finally:
            browser.close()


class Page:
    """One notebook on the page."""

    def __init__(self, page: PlaywrightPage, lab: Lab, notebook: str) -> None:
        self.page = page
        self._lab = lab
        self._notebook = notebook
        self.open()

    def open(self) -> None:
        """Load the page, anew if it was, and wait until the kernel is idle."""
        url = f"{self._lab.url}/doc/tree/{self._notebook}?reset"
        self.page.goto(url, wait_until="domcontentloaded")
        self._until_idle()

    def turn_to(self, notebook: str) -> None:
        """Open another notebook after `close`, and wait until its kernel is idle."""
        self._notebook = notebook
        self.page.evaluate(
            "async (path) => { await window.jupyterapp.commands.execute("
            "'docmanager:open', {path, factory: 'Notebook'}) }",
            notebook,
        )
        self._until_idle()

    def close(self) -> None:
        """Close the notebook without saving it; its kernel goes on."""
        self.page.evaluate("() => { window.jupyterapp.shell.currentWidget.dispose(); return 0 }")

    def _until_idle(self) -> None:
        self.until(
            "(path) => { const w = window.jupyterapp?.shell?.currentWidget;"
            " return !!w?.content?.model && w.context.path === path"
            " && w.sessionContext?.session?.kernel?.status === 'idle' }",
            self._notebook,
        )

    def until(self, condition: str, arg: Any = None) -> None:
        """Wait for a JavaScript condition."""
        self.page.wait_for_function(condition, arg=arg)

    def start_cell(self, index: int) -> None:
        """Run a cell without waiting for it."""
        self.page.evaluate(
            "(i) => { const a = window.jupyterapp; a.shell.currentWidget.content.activeCellIndex"
            " = i; a.commands.execute('notebook:run-cell'); return 0 }",
            index,
        )

    def run_cell(self, index: int) -> None:
        """Run a cell to its end."""
        self.start_cell(index)
        self.until_done(index)

    def until_done(self, index: int) -> None:
        """Wait for the number of a cell's prompt, which comes when it has ended."""
        self.until(
            "(i) => /\\[\\d+\\]/.test(document.querySelectorAll('.jp-Notebook .jp-Cell')[i]"
            ".querySelector('.jp-InputPrompt').textContent)",
            index,
        )

    def output(self, index: int) -> Locator:
        """Return the output area of a cell."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(index)
        return cell.locator(".jp-Cell-outputArea")

    def until_text(self, index: int, text: str) -> None:
        """Wait until a cell's output says something that can be seen."""
        self.output(index).get_by_text(text).locator("visible=true").first.wait_for()

    def interrupt(self) -> None:
        """Press the stop button."""
        self.page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:interrupt-kernel'); return 0 }"
        )

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate(
            "async () => { await window.jupyterapp.commands.execute('docmanager:save') }"
        )

    def theme(self, name: str) -> None:
        """Change the theme, such as ``JupyterLab Dark``."""
        self.page.evaluate(
            "async (n) => { await window.jupyterapp.commands.execute("
            "'apputils:change-theme', {theme: n}) }",
            name,
        )
        self.until("(n) => document.body.dataset.jpThemeName === n", name)
        self.until("() => !document.querySelector('#jupyterlab-splash')")

    def screenshot(self, path: Path, index: int) -> None:
        """Take a picture with the output of a cell in the middle, for people to look at."""
        path.parent.mkdir(exist_ok=True)
        self.output(index).evaluate("(e) => e.scrollIntoView({block: 'center'})")
        self.page.screenshot(path=str(path))


@contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """Run a server; yield its address. ``{port}`` in the command is a free port."""
    port = _free_port()
    environment = {
        **os.environ,
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PYTHON_MODULE, *(word.format(port=port) for word in command)],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return True
        return False

    try:
        until(answers)
        yield address
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@contextmanager
def opened(browser: Chromium, address: str) -> Iterator[PlaywrightPage]:
    """Open a page of a host; what it asks of other machines is refused."""
    browser.refused.clear()
    with browser.bare_page() as page:
        page.goto(address, wait_until="domcontentloaded")
        yield page


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
