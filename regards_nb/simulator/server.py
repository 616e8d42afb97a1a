"""The sockets of the REST side: HTTP/1.1 with keep-alive, chunked bodies, and accidents."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from regards_nb.simulator.answers import Answer, Request
from regards_nb.simulator.faults import CutMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.simulator.faults import Slow

_LOG = logging.getLogger(__name__)
_MAX_BODY_BYTES = 1 << 20
# Jetty's, behind the gateway (protocol.md 1.1)
_IDLE_S = 30
# how finely a slow body trickles
_STEP_S = 0.05
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Seen(NamedTuple):
    """One request that was answered; noted when its status line is sent."""

    method: str
    path: str
    status: int


class Server(ThreadingHTTPServer):
    """Serves *answer* on a free port of 127.0.0.1 until :meth:`stop`.

    Parameters
    ----------
    answer : callable
        Makes the answer to a request.
    stopping : threading.Event
        Set by :meth:`stop`; ends every stall and delay.

    Attributes
    ----------
    seen : list of Seen
        Every request so far, without queries, headers and bodies: it holds no secrets.
    """

    # Daemons, or a forgotten simulator would keep the interpreter from ending; stop() joins them.
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, answer: Callable[[Request], Answer], stopping: threading.Event, *, port: int = 0
    ) -> None:
        self.answer = answer
        self.stopping = stopping
        self.seen: list[Seen] = []
        self.numbers = itertools.count(1)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.05,), name="simulator-http", daemon=True
        )

    @property
    def base_url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and end all threads."""
        self.stopping.set()
        if self._thread.ident is not None:  # started
            self.shutdown()
            self._thread.join()
        self.server_close()
        for thread in self.drop_connections():
            thread.join()

    def drop_connections(self) -> list[threading.Thread]:
        """Close every open connection, as a restart of the gateway does; return their threads."""
        with self._lock:
            for connection in self._open:
                # where the other side was faster, it is closed already
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return list(self._open.values())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection in a thread that stop() knows of."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="simulator-http-connection",
            daemon=True,
        )
        with self._lock:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as above it
        """Keep quiet where the other side went away: that is what tests do."""
        if not isinstance(sys.exc_info()[1], OSError):
            _LOG.exception("a request of %s could not be answered", client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "regards-simulator"
    sys_version = ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True
    # headers and small bodies go out together
    wbufsize = 1 << 16

    def _handle(self) -> None:
        request = self._request()
        if request is None:
            return
        answer = self.server.answer(request)
        if answer.slow and answer.slow.delay_s:
            self.server.stopping.wait(answer.slow.delay_s)
        self.server.seen.append(Seen(self.command, request.path, answer.status))
        self._send_head(answer)
        if answer.stream is None:
            if self.command != "HEAD":
                self.wfile.write(answer.body)
        else:
            self._send_stream(answer, answer.stream)

    # the names are BaseHTTPRequestHandler's
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _request(self) -> Request | None:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            self.send_error(413)
            return None
        parts = urlsplit(self.path)
        return Request(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(length)),
        )

    def _send_head(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value.encode("utf-8", "replace").decode("latin-1"))
        # the gateway's, to find a request again in its log
        self.send_header("correlation-id", f"simulator-{next(self.server.numbers):06}")
        if answer.stream is None:
            if answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
        elif answer.length_bytes is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(answer.length_bytes))
        self.end_headers()

    def _send_stream(self, answer: Answer, stream: Iterator[bytes]) -> None:
        """Send a body piece by piece; only if all of it went, the files count as served."""
        chunked = answer.length_bytes is None
        silent = self.command == "HEAD"
        for piece in _paced(_limited(stream, answer.limit_bytes), answer, self.server.stopping):
            if not silent:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if answer.slow:
                    self.wfile.flush()
        if answer.limit_bytes is not None and answer.ending is not CutMode.CLEAN:
            self._break_off(answer.ending)
            return
        if chunked and not silent:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if answer.limit_bytes is not None:
            self.close_connection = not chunked
        elif answer.served:
            answer.served()

    def _break_off(self, ending: CutMode) -> None:
        self.wfile.flush()
        self.close_connection = True
        if ending is CutMode.RESET:
            # lingering for no time at all makes close() send RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.connection.close()

    def log_message(self, *_args: Any) -> None:
        """Keep quiet: ``seen`` is the log."""


def _limited(stream: Iterator[bytes], limit_bytes: int | None) -> Iterator[bytes]:
    """Cut a stream."""
    if limit_bytes is None:
        yield from stream
        return
    for piece in stream:
        if len(piece) >= limit_bytes:
            if limit_bytes:
                yield piece[:limit_bytes]
            return
        limit_bytes -= len(piece)
        yield piece


def _paced(stream: Iterator[bytes], answer: Answer, stopping: threading.Event) -> Iterator[bytes]:
    """Let a stream out at the pace that a fault wants."""
    slow = answer.slow
    if slow is None:
        yield from stream
        return
    if slow.bytes_per_s is None:
        yield from _stalling(stream, slow, stopping)
        return
    started_s, sent_bytes = monotonic(), 0
    step_bytes = max(int(slow.bytes_per_s * _STEP_S), 1)
    for piece in _stalling(stream, slow, stopping):
        for start in range(0, len(piece), step_bytes):
            step = piece[start : start + step_bytes]
            yield step
            sent_bytes += len(step)
            stopping.wait(max(started_s + sent_bytes / slow.bytes_per_s - monotonic(), 0))


def _stalling(stream: Iterator[bytes], slow: Slow, stopping: threading.Event) -> Iterator[bytes]:
    """Let so many bytes through, then wait once."""
    if slow.stall_after_bytes is None:
        yield from stream
        return
    left_bytes = slow.stall_after_bytes
    for piece in stream:
        if left_bytes >= len(piece):
            left_bytes -= len(piece)
            yield piece
            continue
        if left_bytes:
            yield piece[:left_bytes]
        if stopping.wait(slow.stall_s):
            raise ConnectionAbortedError("the simulator stops")
        yield piece[left_bytes:]
        break
    yield from stream
