"""A stream of blocks, read forward by those who need an exact number of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable


class ByteStream:
    """Blocks of bytes as they arrive, and a place in them that only moves forward.

    ``data`` holds the current block and ``at`` the place in it: readers of many small things look
    there directly, after :meth:`need` has said that enough is there.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._passed_bytes = 0
        self.data = b""
        self.at = 0

    @property
    def position(self) -> int:
        """How many bytes of the whole stream lie behind."""
        return self._passed_bytes + self.at

    def need(self, count: int) -> None:
        """Make sure that *count* bytes lie ahead in ``data``; a stream that ends before is cut."""
        if len(self.data) - self.at < count and not self.has(count):
            missing = count - (len(self.data) - self.at)
            raise ArchiveError(
                f"the zip is cut: it ends after {self.position + count - missing} bytes, inside of "
                "what should follow"
            )

    def has(self, count: int) -> bool:
        """Fetch blocks until *count* bytes lie ahead; tell whether the stream had them."""
        # one block alone is not copied when it is joined
        ahead = [self.data[self.at :]] if self.at < len(self.data) else []
        ahead_bytes = len(self.data) - self.at
        while ahead_bytes < count:
            block = next(self._blocks, None)
            if block is None:
                break
            ahead.append(block)
            ahead_bytes += len(block)
        self._passed_bytes += self.at
        self.data, self.at = b"".join(ahead), 0
        return ahead_bytes >= count

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes and move behind them."""
        self.need(count)
        start = self.at
        self.at = start + count
        return self.data[start : self.at]

    def some(self, limit: int) -> memoryview:
        """Show what lies ahead, at least one byte and at most *limit*, without moving."""
        self.need(1)
        return memoryview(self.data)[self.at : self.at + limit]
