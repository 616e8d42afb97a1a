"""A private PostgreSQL, which can be killed like any other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psycopg

_DEADLINE_S = 60.0
_USER = "regards"


def _programs() -> Path:
    """Return the folder of the server's programs, which Debian keeps out of the path."""
    found = [Path(found).parent for found in [shutil.which("postgres")] if found]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise FileNotFoundError("these tests need PostgreSQL: sudo apt-get install postgresql")
    return found[-1]


def _lives(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


class PrivatePostgreSQL:
    """A server that is reached over a socket in its own folder, and by nobody else."""

    def __init__(self) -> None:
        self._programs = _programs()
        # a socket's path must be short, and others than root must reach it
        self._folder = Path(tempfile.mkdtemp(prefix="regards-pg-", dir="/tmp"))
        self._data = self._folder / "data"
        # it refuses to run as root
        self._as: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self._folder, **self._as)
        self._databases = 0
        options = ["-A", "trust", "-U", _USER, "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self._data), *options)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(_DEADLINE_S)
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*command, "-k", str(self._folder), "-h", ""],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **self._as,
            )
        glance = threading.Event()
        for _ in range(int(_DEADLINE_S / 0.02)):
            try:
                self._ask("SELECT 1")
            except psycopg.OperationalError:
                assert self._server.poll() is None, (self._folder / "log").read_text()
                glance.wait(0.02)
            else:
                return
        raise TimeoutError((self._folder / "log").read_text())

    def kill(self) -> None:
        """Kill the server and what serves its connections, as when the power goes."""
        self._server.send_signal(signal.SIGSTOP)  # and no new ones from now on
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text()
        self._server.kill()
        self._server.wait(_DEADLINE_S)
        for child in map(int, children.split()):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        # what still dies holds memory that the next server would refuse to share
        glance = threading.Event()
        while any(_lives(child) for child in children.split()):
            glance.wait(0.01)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        self._databases += 1
        name = f"journal_{self._databases}"
        self._ask(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._folder}"

    def _ask(self, command: str) -> None:
        with psycopg.connect(
            host=str(self._folder), user=_USER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(command.encode())

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            check=True,
            capture_output=True,
            **self._as,
        )
