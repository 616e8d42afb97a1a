"""What the computer tells: of its processes, and of the file system of a place."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return whether a process runs or is suspended, also one of another user."""
    if sys.platform == "win32":
        return True  # os.kill would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _has_ended(_stat(pid))


def is_suspended(pid: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger; False where not known."""
    return _stat(pid)[:1] in (["T"], ["t"])


def identity(pid: int) -> str:
    """Return what tells a process from an earlier one with its pid; Linux only, else empty."""
    machine = _machine()
    if machine == "unknown":
        return ""
    stat = _stat(pid)
    # the time of the start
    return machine if not stat or _has_ended(stat) else f"{machine}{stat[19]}"


def has_ended(pid: int, process: str) -> bool:
    """Return whether the process with this pid and `identity` ran on this machine and has ended.

    False where that is not known.
    """
    return bool(process) and process.startswith(_machine()) and identity(pid) != process


def _stat(pid: int) -> list[str]:
    """Return what Linux tells of a process, from its state on; empty elsewhere, or without one."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    return []


def _has_ended(stat: list[str]) -> bool:
    """Return whether a process has ended, and its parent has not asked for that so far."""
    return stat[:1] in (["Z"], ["X"])


def _machine() -> str:
    """Return what tells this boot of this machine, and this container, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} "
    except OSError:
        return "unknown"


def file_system_of(place: Path, mounts: Path) -> str:
    """Return the kind of file system of a place; empty where the system has no list of mounts."""
    try:
        fields = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    path = place.resolve()
    # the innermost mount point above the path, and there the last mount; a space is \\040
    points = ((Path(field[1].replace("\\040", " ")), field[2]) for field in fields)
    above = [(len(point.parts), at, kind) for at, (point, kind) in enumerate(points)
             if path.is_relative_to(point)]  # fmt: skip
    return max(above)[2] if above else ""
