"""The HTTP server of the REST side: HTTP/1.1 with keep-alive, chunked and broken bodies."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from regards_nb.simulator.faults import CutMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from regards_nb.simulator.faults import Slow

_LOG = logging.getLogger(__name__)
# Jetty's idle limit behind the gateway (protocol.md 1.1).
_IDLE_S = 30
# A slow body is sent in steps of this length.
_STEP_S = 0.05
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    query: dict[str, str]
    #: The names are in lower case.
    headers: dict[str, str]
    body: bytes

    def number(self, name: str, default: int) -> int:
        """Return a numeric query parameter; Spring uses the default for anything else."""
        text = self.query.get(name, "")
        return int(text) if text.isdecimal() else default

    def form(self) -> dict[str, str]:
        """Return the fields of a body of a web form."""
        return dict(parse_qsl(self.body.decode("utf-8", "replace")))

    def json(self) -> dict[str, Any]:
        """Return the parsed body; raises HttpError if it is not a JSON object."""
        try:
            fields = json.loads(self.body)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise HttpError(error(400, "JSON parse error"))
        return fields


@dataclass(slots=True, kw_only=True)
class Response:
    """One HTTP response, and how it is sent.

    *stream* is a body that is made while it is sent, chunked without *length_bytes*, and cut after
    *limit_bytes* in the way of *ending*. *served* is called after the last byte of a stream that
    was not cut, *finished* at the end, also after an error.
    """

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    stream: Iterator[bytes] | None = None
    length_bytes: int | None = None
    limit_bytes: int | None = None
    ending: CutMode = CutMode.CLEAN
    served: Callable[[], None] | None = None
    finished: Callable[[], None] | None = None
    slow: Slow | None = None


def json_response(status: int, value: Any) -> Response:
    """Return a JSON response."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Response(status=status, body=body, headers=[("Content-Type", "application/json")])


def error(status: int, *texts: str) -> Response:
    """Return an error of REGARDS, ``{"messages": [...]}``, or an empty body without texts."""
    return json_response(status, {"messages": list(texts)}) if texts else Response(status=status)


def iso_time(at: datetime) -> str:
    """Format a time as REGARDS does."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class HttpError(Exception):
    """A request cannot be served; ``response`` is the response that says why."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"HTTP {response.status}")
        self.response = response


class Seen(NamedTuple):
    """One answered request, recorded when its status line is sent."""

    method: str
    path: str
    status: int


class Server(ThreadingHTTPServer):
    """Serves *answer* on a free port of 127.0.0.1 until `stop`."""

    # Daemon threads: a simulator that nobody stops must not keep the interpreter alive.
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        #: Ends every stall and delay.
        self.stopping = threading.Event()
        #: Every request so far, without query, headers and body, which could contain secrets.
        self.seen: list[Seen] = []
        self.numbers = itertools.count(1)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        # A client can be gone between select() and accept(), which would wait for the next one.
        self.socket.settimeout(0)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="simulator-http", daemon=True
        )

    @property
    def base_url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Start the thread that accepts connections."""
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and join all threads."""
        self.stopping.set()
        if self._thread.ident is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()
        for thread in self.drop_connections():
            thread.join()

    def drop_connections(self) -> list[threading.Thread]:
        """Close every open connection, as a restart of the gateway does; return the threads."""
        with self._lock:
            for connection in self._open:
                # The client may have closed it already.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return list(self._open.values())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection in a thread that stop() joins."""
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
        """Close the connection and drop its thread."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the signature of socketserver
        """Log errors of the handlers; clients that close their connection are no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            _LOG.exception("the request of %s raised an error", client_address)


class _Handler(BaseHTTPRequestHandler):
    """Handles one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "regards-simulator"
    sys_version = ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True
    # Headers and small bodies are sent in one packet.
    wbufsize = 1 << 16

    def _handle(self) -> None:
        request = self._request()
        response = self.server.answer(request)
        try:
            self._send(request, response)
        finally:
            if response.finished:
                response.finished()

    def _send(self, request: Request, response: Response) -> None:
        if response.slow and response.slow.delay_s:
            self.server.stopping.wait(response.slow.delay_s)
        self.server.seen.append(Seen(self.command, request.path, response.status))
        self._send_head(response)
        if response.stream is None:
            if self.command != "HEAD":
                self.wfile.write(response.body)
        else:
            self._send_stream(response, response.stream)

    # BaseHTTPRequestHandler prescribes the names.
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        return Request(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )

    def _send_head(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value.encode("utf-8", "replace").decode("latin-1"))
        # The gateway adds this header, with which a request is found in its log.
        self.send_header("correlation-id", f"simulator-{next(self.server.numbers):06}")
        if response.stream is None:
            if response.status != 204:
                self.send_header("Content-Length", str(len(response.body)))
        elif response.length_bytes is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(response.length_bytes))
        self.end_headers()

    def _send_stream(self, response: Response, stream: Iterator[bytes]) -> None:
        """Send a body piece by piece, and call ``served`` if all of it was sent."""
        chunked = response.length_bytes is None
        silent = self.command == "HEAD"
        if response.limit_bytes is not None:
            stream = limited(stream, response.limit_bytes)
        if response.slow:
            stream = _paced(stream, response.slow, self.server.stopping)
        for piece in stream:
            # A chunk without bytes would end the body.
            if piece and not silent:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if response.slow:
                    self.wfile.flush()
        if response.limit_bytes is not None and response.ending is not CutMode.CLEAN:
            self._break_off(response.ending)
            return
        if chunked and not silent:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if response.limit_bytes is not None:
            self.close_connection = not chunked
        elif response.served:
            response.served()

    def _break_off(self, ending: CutMode) -> None:
        self.wfile.flush()
        self.close_connection = True
        if ending is CutMode.RESET:
            # With a linger time of 0 close() sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.connection.close()

    def log_message(self, *_args: Any) -> None:
        """Write no log: ``seen`` has the requests."""


def limited(stream: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Yield the stream up to the limit."""
    for piece in stream:
        if len(piece) >= limit_bytes:
            yield piece[:limit_bytes]
            return
        limit_bytes -= len(piece)
        yield piece


def _paced(stream: Iterator[bytes], slow: Slow, stopping: threading.Event) -> Iterator[bytes]:
    """Yield the stream with the delays of a fault."""
    started_s, sent_bytes = monotonic(), 0
    rate, stall_at = slow.bytes_per_s, slow.stall_after_bytes
    step_bytes = sys.maxsize if rate is None else max(int(rate * _STEP_S), 1)
    for piece in stream:
        rest = piece
        while rest:
            if sent_bytes == stall_at:
                stall_at = None
                if stopping.wait(slow.stall_s):
                    raise ConnectionAbortedError("the simulator was stopped")
            end = step_bytes if stall_at is None else min(step_bytes, stall_at - sent_bytes)
            yield rest[:end]
            sent_bytes += len(rest[:end])
            rest = rest[end:]
            if rate is not None:
                stopping.wait(max(started_s + sent_bytes / rate - monotonic(), 0))
