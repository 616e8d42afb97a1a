"""Functions that workers of other processes import in tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path


def count(paths: list[Path]) -> tuple[int, int]:
    """Return the number of files and this process."""
    assert all(path.is_file() for path in paths)
    return len(paths), os.getpid()


@dataclass(frozen=True)
class DieOn:
    """Each process dies that is given files of this folder."""

    folder: str

    def __call__(self, paths: list[Path]) -> int:
        if self.folder in str(paths[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(paths)


@dataclass(frozen=True)
class WaitFor:
    """Return once a file exists."""

    path: Path

    def __call__(self, paths: list[Path]) -> int:
        pause = threading.Event()
        while not self.path.exists():
            pause.wait(0.02)
        return len(paths)


class OddError(Exception):
    """Needs two arguments, which pickle does not know."""

    def __init__(self, some: int, all_of_them: int) -> None:
        super().__init__(f"{some} of {all_of_them}")


def fails_oddly(paths: list[Path]) -> None:
    """Raise an error that cannot be pickled."""
    raise OddError(3, 4)


def exits(paths: list[Path]) -> None:
    """Call sys.exit()."""
    sys.exit(2)


def returns_a_lock(paths: list[Path]) -> object:
    """Return what cannot be pickled."""
    return threading.Lock()
