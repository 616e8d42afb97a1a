"""A body with files, read as a stream of blocks."""

from __future__ import annotations

import time
from contextlib import suppress
from http.client import IncompleteRead
from typing import TYPE_CHECKING

import urllib3

from regards_nb.client.answers import Answer
from regards_nb.errors import ServiceUnreachableError, UnexpectedAnswerError
from regards_nb.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

#: How much is handed over at a time: large, so that the threads behind seldom change places.
BLOCK_BYTES = 1 << 18
#: At first, and on a slow line, it is less: what a block still lacks is not looked at meanwhile.
_FIRST_BYTES = 1 << 14
_SOON_S, _LATE_S = 0.02, 0.2

_EXCERPT_BYTES = 400


class Body:
    """The body of one answer; it can be read once.

    Attributes
    ----------
    status_code : int
        HTTP status: 200, or 204 where there is nothing (protocol.md 0.3).
    length_bytes : int or None
        What the server announced.
    is_attachment : bool
        The server calls it a file: whatever is in it, it is no error page.
    """

    def __init__(self, response: requests.Response, asked: str) -> None:
        self._response = response
        self._asked = asked
        self.status_code = response.status_code
        self.is_attachment = "Content-Disposition" in response.headers
        length = response.headers.get("Content-Length", "")
        self.length_bytes = int(length) if length.isdecimal() else None

    def __repr__(self) -> str:
        return f"<Body of {self._asked}>"

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive, in blocks of ``BLOCK_BYTES`` or less.

        Raises
        ------
        ServiceUnreachableError
            The connection broke, or nothing came for too long.
        """
        received_bytes = 0
        reason = "it ended too early"
        rest = b""
        try:
            for block in self._read():
                received_bytes += len(block)
                yield block
        except urllib3.exceptions.HTTPError as exc:
            reason = type(exc).__name__
            rest = _unread(exc)
        else:
            # older urllib3 does not compare
            if self.length_bytes in (None, received_bytes):
                return
        if rest:
            received_bytes += len(rest)
            yield rest
        # Outside of the handler: what is raised holds no frames with the token in them.
        raise ServiceUnreachableError(
            f"{self._asked}: the connection broke after {received_bytes} bytes ({reason})",
            status_code=self.status_code,
        )

    def _read(self) -> Iterator[bytes]:
        """Yield blocks that hold many chunks each: ``iter_content`` would hand over every one."""
        read, size_bytes = self._response.raw.read, _FIRST_BYTES
        while True:
            started_s = time.monotonic()
            block: bytes = read(size_bytes, decode_content=False)
            if not block:
                return
            took_s = time.monotonic() - started_s
            yield block
            if took_s < _SOON_S:
                size_bytes = min(size_bytes * 2, BLOCK_BYTES)
            elif took_s > _LATE_S:
                size_bytes = max(size_bytes // 2, _FIRST_BYTES)

    def abort(self) -> None:
        """End the reading in whatever thread it is. Safe to call from any other."""
        shutdown = getattr(self._response.raw, "shutdown", None)
        if shutdown is None:  # urllib3 before 2.3: the reader's own time limit ends it
            return
        with suppress(OSError, ValueError, RuntimeError):  # it was over already
            shutdown()

    def refuse_page(self, kinds: tuple[str, ...]) -> None:
        """Raise where a proxy or a login portal answered instead of REGARDS.

        Raises
        ------
        UnexpectedAnswerError
            The content type is one of *kinds*, or the body is packed once more.
        """
        headers = self._response.headers
        kind = headers.get("Content-Type", "").lower()
        packed = headers.get("Content-Encoding", "identity").lower()
        if packed != "identity":
            raise UnexpectedAnswerError(
                f"{self._asked}: something on the way changed the body (Content-Encoding: "
                f"{clean(packed)})",
                status_code=self.status_code,
            )
        if not kind.startswith(kinds):
            return
        start = next(self._response.iter_content(_EXCERPT_BYTES), b"")
        answer = Answer(self._asked, self.status_code, headers, start)
        raise UnexpectedAnswerError(
            f"{answer.described()}. That is not REGARDS: check base_url and the proxy",
            status_code=self.status_code,
        )


def _unread(error: urllib3.exceptions.HTTPError) -> bytes:
    """Return what had arrived of the block during which the connection broke."""
    cause = error.__cause__
    # urllib3 has an error of the same kind that holds a number instead
    partial: object = cause.partial if isinstance(cause, IncompleteRead) else None
    return partial if isinstance(partial, bytes) else b""
