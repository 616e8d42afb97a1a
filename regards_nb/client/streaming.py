"""The body of a response that holds files, read in blocks while it arrives."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse, IncompleteRead
from io import BufferedReader, RawIOBase
from itertools import chain
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from regards_nb.client.last_byte import byte_came, waiting
from regards_nb.client.models import NOT_REGARDS, Response
from regards_nb.errors import ServiceUnreachableError, UnexpectedAnswerError
from regards_nb.text import clean

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    import requests
    from _typeshed import WriteableBuffer

#: The largest block. Large blocks mean few switches between the threads of a download.
BLOCK_BYTES = 1 << 20
#: What is read from the network at once. Each connection has one buffer of this size.
_BUFFER_BYTES = 1 << 18
#: The first block, and blocks on a slow line, are smaller: a block is processed once it is full.
_FIRST_BYTES = 1 << 14
_FAST_S, _SLOW_S = 0.02, 0.2
#: The content types of pages of proxies and login portals.
_PAGE_TYPES = ("text/html", "application/json", "application/xhtml")


class _NotedReads(RawIOBase):
    """The bytes of a socket; a block may take long to fill, and each of its bytes counts."""

    def __init__(self, raw: socket.SocketIO) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        count = self._raw.readinto(buffer)
        byte_came()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """A response that is read with a large buffer.

    By default, http.client reads with a buffer of 8 KiB: two to three system calls for each HTTP
    chunk of 32 KiB, and at each of them the thread hands over Python's lock.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = BufferedReader(_NotedReads(sock.makefile("rb", buffering=0)), _BUFFER_BYTES)


class HttpConnection(HTTPConnection):
    """A connection that reads large blocks."""

    response_class = _Response


class HttpsConnection(HTTPSConnection):
    """A connection with TLS that reads large blocks."""

    response_class = _Response


class Body:
    """The body of one response. It can be read once.

    *status_code* is 200, or 204 if there is nothing to fetch (protocol.md 0.3).
    """

    def __init__(self, response: requests.Response, request: str) -> None:
        self._response = response
        self._request = request
        self.status_code = response.status_code
        self._encoding = response.headers.get("Content-Encoding", "identity").lower()
        self._largest_bytes = BLOCK_BYTES
        self._blocks: Iterator[bytes] = self._read()
        length = response.headers.get("Content-Length", "")
        is_known = length.isdecimal() and self._encoding != "gzip"
        self.length_bytes = int(length) if is_known else None

    def __repr__(self) -> str:
        return f"<Body of {self._request}>"

    def blocks(self, *, largest_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """Yield the bytes as they arrive, in blocks of at most *largest_bytes*.

        ServiceUnreachableError: the connection broke, or no byte came within the time limit.
        """
        self._largest_bytes = largest_bytes
        received_bytes = 0
        try:
            for block in self._blocks:
                received_bytes += len(block)
                yield block
        except urllib3.exceptions.HTTPError as exc:
            reason, rest = type(exc).__name__, _unread(exc)
        else:
            return
        if rest:
            received_bytes += len(rest)
            yield rest
        # Raised outside of the handler: the frames of the caught exception hold the token.
        raise ServiceUnreachableError(
            f"{self._request}: the connection broke after {received_bytes} bytes ({reason})",
            status_code=self.status_code,
        )

    def _read(self) -> Iterator[bytes]:
        """Yield large blocks; ``iter_content`` would yield each HTTP chunk by itself."""
        # Apache's force-gzip compresses although the client requests identity.
        read = partial(self._response.raw.read, decode_content=self._encoding == "gzip")
        size_bytes = _FIRST_BYTES
        while True:
            started_s = time.monotonic()
            with waiting():
                block: bytes = read(size_bytes)
            if not block:
                return
            took_s = time.monotonic() - started_s
            yield block
            if took_s < _FAST_S:
                size_bytes = min(size_bytes * 2, self._largest_bytes)
            elif took_s > _SLOW_S:
                size_bytes = max(size_bytes // 2, _FIRST_BYTES)

    def first_block(self) -> bytes:
        """Wait for the first block and return it; :meth:`blocks` yields it still.

        It is empty if the body ends or breaks before its first byte.
        """
        try:
            first = next(self._blocks, b"")
        except urllib3.exceptions.HTTPError:
            return b""
        if first:
            self._blocks = chain((first,), self._blocks)
        return first

    def close(self) -> None:
        """Close the connection, or give it back if the whole body was read."""
        self._response.close()

    def abort(self) -> None:
        """End the reading, from any thread."""
        with suppress(OSError, ValueError, RuntimeError):  # the reading has ended already
            self._response.raw.shutdown()

    def refuse_page(self, *, but_attachments: bool) -> None:
        """Raise UnexpectedAnswerError if a proxy or a login portal answered instead of REGARDS.

        The content type is then that of a page, or the client cannot undo the encoding. A file of
        the archive may be a page itself: *but_attachments* accepts what the server calls a file.
        """
        headers = self._response.headers
        if self._encoding not in ("identity", "gzip"):
            raise UnexpectedAnswerError(
                f"{self._request}: a proxy encoded the body as {clean(self._encoding)}, although "
                "the client accepts identity only. Ask its administrator to switch that off for "
                "REGARDS",
                status_code=self.status_code,
            )
        kind = headers.get("Content-Type", "").lower()
        is_accepted = but_attachments and "Content-Disposition" in headers
        if is_accepted or not kind.startswith(_PAGE_TYPES):
            return
        response = Response(
            request=self._request, status=self.status_code, headers=headers, body=self.first_block()
        )
        raise UnexpectedAnswerError(
            f"{response.describe()}. {NOT_REGARDS}", status_code=self.status_code
        )


def _unread(error: urllib3.exceptions.HTTPError) -> bytes:
    """Return the bytes of the block during which the connection broke."""
    cause = error.__cause__
    # urllib3 has an error of the same name whose `partial` is a number.
    found: object = cause.partial if isinstance(cause, IncompleteRead) else None
    return found if isinstance(found, bytes) else b""
