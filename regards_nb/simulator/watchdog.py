"""A helper process that kills the RabbitMQ node when the process that started it is gone.

The simulator runs this file as a script; it uses nothing but the standard library. It makes the
temporary folder, starts every process of the node, and executes commands: one line of JSON on
standard input, one line of JSON as the result on standard output. When standard input ends or the
owner's process has vanished (kill -9 included), it kills the processes and removes the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# A forked child of the owner can keep the pipe open, so the parent's id is checked, too.
_OWNER_CHECK_S = 0.5


class ProcessGroup:
    """The processes of one node, by name. Each public method is one command of the owner."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *, argv: list[str], env: dict[str, str], cwd: str, log: str) -> int:
        """Start a process in a group of its own and write its output to a file."""
        with Path(log).open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - the owner decides what runs
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes[name] = process
        return process.pid

    def wait(self, name: str, *, timeout_s: float) -> int | None:
        """Wait until the process ends; return its exit code, or None if it still runs then."""
        try:
            return self._processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, name: str, *, number: int) -> None:
        """Send a signal to the process and to all that it started."""
        # The whole group may have ended already.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[name].pid, number)

    def kill_all(self) -> None:
        """Kill all groups, the youngest first, also those whose first process has ended."""
        for name, process in reversed(self._processes.items()):
            self.signal(name, number=signal.SIGKILL)
            process.wait()


def _lines(owner: int) -> Any:
    """Yield the lines of standard input until it ends or the owner is gone."""
    held = b""
    while True:
        if select.select([0], [], [], _OWNER_CHECK_S)[0]:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, held = (held + data).split(b"\n")
            yield from lines
        elif os.getppid() != owner:
            return


def _reply(result: Any) -> None:
    os.write(1, json.dumps(result).encode() + b"\n")


def main(owner: int) -> None:
    """Execute the commands of the process with this id until it is gone."""
    # Ctrl-C and a closed terminal reach the whole session; the cleanup must run after them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # RabbitMQ 3.10 passes the path to `df` in single quotes and does not start if it contains one.
    place = tempfile.gettempdir() if "'" not in tempfile.gettempdir() else "/tmp"  # noqa: S108
    folder = tempfile.mkdtemp(prefix="regards-nb-", dir=place)
    processes = ProcessGroup()
    try:
        _reply(folder)
        for line in _lines(owner):
            arguments = json.loads(line)
            _reply(getattr(processes, arguments.pop("command"))(**arguments))
    finally:
        processes.kill_all()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
