"""Python programs in processes of their own, forked from one that has imported the package.

An import of the package takes 0.9 s of processor, a fork of a process that has done it 0.03 s. A
fork has no connection, journal or thread of its parent. Tests of imports, of Ctrl-C and of the end
of the interpreter start Python anew.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from regards_nb import waits

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_LIMIT_S = 120.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["regards_nb.tracker", "regards_nb.cli", "sqlalchemy.dialects.sqlite", "psycopg"]
)


def _become(
    code: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    pipes: list[Connection],
    said_after_s: float,
) -> None:
    """Run a program in this process, which was just forked."""
    waits.SAID_AFTER_S = said_after_s
    os.environ.clear()
    os.environ.update(environment)
    # what the parent found in its own environment
    tempfile.tempdir = None
    for number, pipe in enumerate(pipes):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.argv[:] = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})  # noqa: S102 - code of the tests


class Child:
    """A program in another process, with its standard streams as text."""

    def __init__(self, code: str, *arguments: object) -> None:
        (theirs_in, ours_in), *outputs = (_FORKS.Pipe(duplex=False) for _ in range(3))
        theirs = [theirs_in, *(writer for _, writer in outputs)]
        words = tuple(map(str, arguments))
        given = (code, words, dict(os.environ), theirs, waits.SAID_AFTER_S)
        # a daemon: it ends with the tests also where one of them has failed
        self._process = _FORKS.Process(target=_become, args=given, daemon=True)
        # the server's socket has a path of at most 107 bytes, and outlives the folder of a test
        folder, tempfile.tempdir = tempfile.tempdir, "/tmp"  # noqa: S108
        try:
            self._process.start()
        finally:
            tempfile.tempdir = folder
        for pipe in theirs:
            pipe.close()
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(os.dup(pipe.fileno()), mode, encoding="utf-8")
            for pipe, mode in ((ours_in, "w"), (outputs[0][0], "r"), (outputs[1][0], "r"))
        )
        for pipe in (ours_in, outputs[0][0], outputs[1][0]):
            pipe.close()
        self.pid: int = self._process.pid or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.wait()
        self.stdout.close()
        self.stderr.close()

    def output(self) -> str:
        """Return what it writes until its end, which must be one without an error."""
        self.stdin.close()
        written, told = self.stdout.read(), self.stderr.read()
        assert self.wait() == 0, told
        return written

    def tell(self, line: str = "") -> None:
        """Write a line to its standard input."""
        self.stdin.write(f"{line}\n")
        self.stdin.flush()

    def kill(self) -> None:
        """End it with kill -9."""
        self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = _LIMIT_S) -> int:
        """Wait for its end, and return its exit code."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("a child", timeout_s)
        return self._process.exitcode
