"""A TCP proxy that can cut its connections: between a tracker and a real RabbitMQ."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class TcpProxy:
    """Forwards connections of a free local port to *target*; ``with TcpProxy(...) as proxy``.

    Parameters
    ----------
    target : (str, int)
        Host and port.
    limit_bytes : int, optional
        Cut each connection after this many bytes from the target.
    """

    def __init__(self, target: tuple[str, int], limit_bytes: int | None = None) -> None:
        self._target = target
        self._limit_bytes = limit_bytes
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.connections = 0
        #: Whether a connection has ended, at either side.
        self.has_ended = False

    def __enter__(self) -> Self:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.1)
        self._accepting = self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # A client may connect again as soon as it is cut.
        self._accepting.join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in [self._server, *self._sockets]:
            each.close()

    @property
    def port(self) -> int:
        """Where clients connect, on 127.0.0.1."""
        return int(self._server.getsockname()[1])

    def url(self, amqp: str) -> str:
        """Return an AMQP URL of the target with the port of the proxy."""
        return amqp.replace(f":{self._target[1]}/", f":{self.port}/")

    def cut(self) -> None:
        """Cut all connections now. New ones are accepted."""
        for each in list(self._sockets):
            _shut(each)

    def _start(self, function: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._server.accept()
                try:
                    upstream = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                self.connections += 1
                self._sockets += [client, upstream]
                self._start(self._pump, client, upstream, None)
                self._start(self._pump, upstream, client, self._limit_bytes)

    def _pump(self, source: socket.socket, sink: socket.socket, limit_bytes: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1024):
                passed += len(data)
                if limit_bytes is not None and passed > limit_bytes:
                    break
                sink.sendall(data)
        self.has_ended = True
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
