"""Complete content that has no final name yet, and how it gets one.

Small files are still in memory: they are written to a file without any name (Linux, O_TMPFILE),
which then gets its final one. That is the cheapest way there is, and nothing can be left behind.
All others are in the staging folder, and are renamed.
"""

# Paths are texts here: for very many files, Path objects are what costs.
# ruff: noqa: PTH108

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from regards_nb.download.syscalls import name_unnamed, rename_without_replacing
from regards_nb.download.wholes import write_all

if TYPE_CHECKING:
    from regards_nb.download.staging import Workspace
    from regards_nb.download.wholes import Whole


class Landing(Protocol):
    """A file just before its final name."""

    def flush(self) -> None:
        """Return when its content is on the disk."""

    def take_name(self, path: str) -> bool:
        """Give it its final name; False where something has that name."""

    def drop(self) -> None:
        """Forget it: it is not needed."""

    def close(self) -> None:
        """End with it, named or not."""


def land(whole: Whole, workspace: Workspace) -> Landing:
    """Return content as a file without its final name."""
    if whole.path is None:
        descriptor = workspace.new_unnamed()
        if descriptor is not None:
            return _Unnamed(descriptor, whole.data)
    return _Staged(whole.staged(workspace))


class _Unnamed:
    """A file that has no name at all; it vanishes when it is closed without one."""

    def __init__(self, descriptor: int, data: bytes) -> None:
        self._descriptor = descriptor
        try:
            write_all(descriptor, data)
        except OSError:
            os.close(descriptor)
            raise

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def take_name(self, path: str) -> bool:
        return name_unnamed(self._descriptor, path)

    def drop(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._descriptor)


class _Staged:
    """A file in the staging folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def flush(self) -> None:
        # to write, because Windows flushes nothing else
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def take_name(self, path: str) -> bool:
        return rename_without_replacing(self._path, path)

    def drop(self) -> None:
        os.unlink(self._path)

    def close(self) -> None:
        pass
