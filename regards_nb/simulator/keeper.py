"""A process beside the simulator that ends the RabbitMQ node when its owner is gone.

Run as a script, with nothing but the standard library. It makes the temporary folder, is the
parent of every process of the node, and does what lines of JSON on its standard input ask for,
each answered by one line on its standard output. When that input ends, or the owner's process has
vanished (kill -9 included), it kills the processes and removes the folder.
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

# A copy of the pipe can live on in a forked child of the owner, so the owner is looked for too.
_OWNER_CHECK_S = 0.5


class _Wards:
    """The processes in its care, by name. Each method answers one ``do`` of the owner."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *, argv: list[str], env: dict[str, str], cwd: str, log: str) -> int:
        """Start a process in a group of its own, its output in a file."""
        with Path(log).open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - what the owner asks for
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

    def poll(self, name: str) -> int | None:
        """Tell how the process ended, or None."""
        return self._processes[name].poll()

    def wait(self, name: str, *, timeout_s: float) -> int | None:
        """Wait for the end of the process."""
        try:
            return self._processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, name: str, *, number: int) -> None:
        """Send a signal to the process and to all that it has started."""
        # none of its group is left: nothing to do
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[name].pid, number)

    def kill(self, name: str) -> int:
        """Kill the process, and what lives of its group when it has ended before."""
        self.signal(name, number=signal.SIGKILL)
        return self._processes[name].wait()

    def kill_all(self) -> None:
        """Kill all, the last that was started first."""
        for name in reversed(self._processes):
            self.kill(name)


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


def _say(answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def main(owner: int) -> None:
    """Serve the process of this number until it is gone."""
    # a group of terminals or a session that ends must not end the keeper first
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # RabbitMQ 3.10 asks `df` for the free space with the path in single quotes, and never starts
    # where the path has one of its own.
    place = tempfile.gettempdir() if "'" not in tempfile.gettempdir() else "/tmp"  # noqa: S108
    folder = tempfile.mkdtemp(prefix="regards-nb-", dir=place)
    wards = _Wards()
    try:
        _say(folder)
        for line in _lines(owner):
            what = json.loads(line)
            _say(getattr(wards, what.pop("do"))(**what))
    finally:
        wards.kill_all()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
