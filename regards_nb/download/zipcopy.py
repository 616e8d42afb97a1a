"""The zip itself, kept as a file while it is read: for ``extract=False``."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from regards_nb.download.publisher import Checked
from regards_nb.download.wholes import Whole, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from regards_nb.download.staging import Workspace
    from regards_nb.files import FileRecord


def archive_name(order_id: int) -> str:
    """Return the name of an order's zip; the server's own is illegal on Windows."""
    return f"order_{order_id}.zip"


class ZipCopy:
    """Writes down what passes by."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        with workspace.errors():
            self._descriptor, self._path = workspace.new_staged()
        self._digest = hashlib.md5(usedforsecurity=False)
        self._size_bytes = 0

    def passing(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the blocks after having written them."""
        for block in blocks:
            with self._workspace.errors():
                write_all(self._descriptor, block)
            self._digest.update(block)
            self._size_bytes += len(block)
            yield block

    def close(self) -> None:
        """End the writing."""
        os.close(self._descriptor)

    def checked(self, order_id: int, records: Sequence[FileRecord]) -> Checked:
        """Return the zip as a checked file that holds these files."""
        name = archive_name(order_id)
        whole = Whole(name, self._size_bytes, self._digest.hexdigest(), b"", self._path)
        return Checked(whole, records, None, name)
