"""A server that costs next to nothing: one order, its zip and its files, sent from the disk.

The zip lies on the disk already cut into chunks of 32 KiB, as Jetty sends them, without
Content-Length; ``sendfile`` does the rest. So what is measured is the client.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHUNK_BYTES = 1 << 15
_PACE_BYTES = 1 << 20
_EMPTY_PAGE = b'{"metadata":{"totalElements":0,"totalPages":0},"content":[]}'


def framed(source: Path, target: Path) -> None:
    """Write a body as the chunks that HTTP/1.1 sends."""
    with source.open("rb") as plain, target.open("wb") as chunked:
        while block := plain.read(CHUNK_BYTES):
            chunked.write(b"%x\r\n%b\r\n" % (len(block), block))
        chunked.write(b"0\r\n\r\n")


class OrderServer(ThreadingHTTPServer):
    """Serves the order in *folder*: ``manifest.json``, ``zip.chunked``, ``files/<id>``."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, *, bytes_per_s: float | None, latency_s: float) -> None:
        self.folder = folder
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.rows: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text())
        self.pages: dict[tuple[int, int], bytes] = {}
        self.waiting = threading.Event()  # never set: for waiting only
        self.downloaded: set[int] = set()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: OrderServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_POST(self) -> None:
        """Give a token."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._json({"access_token": "x", "expires_in": 7200})

    def do_GET(self) -> None:
        """Send the order, its manifest, its zip or one of its files."""
        parts = urlsplit(self.path)
        *_, before, last = parts.path.rsplit("/", 2)
        if last == "download" or last.endswith(".zip"):
            self._zip()
        elif last == "available":
            query = parse_qs(parts.query)
            self._page(int(query["page"][0]), int(query["size"][0]))
        elif before == "files":
            self._file(last)
        elif last == "reset":
            self.server.downloaded.clear()
            self._json({})
        else:
            content = {"id": 1, "status": "DONE", "datasetTasks": [self._task()]}
            self._json({"content": content, "links": []})

    def _task(self) -> dict[str, int]:
        return {"id": 1, "filesCount": len(self.server.rows)}

    def _page(self, number: int, size: int) -> None:
        if len(self.server.downloaded) == len(self.server.rows):
            self._send_json(_EMPTY_PAGE)
            return
        pages = self.server.pages
        if (number, size) not in pages:
            rows = self.server.rows
            metadata = {"totalElements": len(rows), "totalPages": -(-len(rows) // size)}
            part = rows[number * size : (number + 1) * size]
            content = [{"content": row, "links": []} for row in part]
            page = {"metadata": metadata, "content": content}
            pages[number, size] = json.dumps(page).encode()
        self._send_json(pages[number, size])

    def _json(self, value: Any) -> None:
        self._send_json(json.dumps(value).encode())

    def _send_json(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _zip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self._send(self.server.folder / "zip.chunked")
        self.server.downloaded.update(row["id"] for row in self.server.rows)

    def _file(self, name: str) -> None:
        path = self.server.folder / "files" / name
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", "attachment")
        self.send_header("Content-Length", str(path.stat().st_size))
        self._send(path)
        self.server.downloaded.add(int(name))

    def _send(self, path: Path) -> None:
        if self.server.latency_s:
            self.server.waiting.wait(self.server.latency_s)
        self.end_headers()
        self.wfile.flush()
        with path.open("rb") as file:
            _send_file(self.connection, file.fileno(), self.server)

    def log_message(self, *_args: Any) -> None:
        """Keep quiet."""


def _send_file(connection: socket.socket, descriptor: int, server: OrderServer) -> None:
    size, sent, started_s = os.fstat(descriptor).st_size, 0, monotonic()
    while sent < size:
        step = _PACE_BYTES if server.bytes_per_s else size - sent
        sent += os.sendfile(connection.fileno(), descriptor, sent, min(step, size - sent))
        if server.bytes_per_s:
            due_s = started_s + sent / server.bytes_per_s
            server.waiting.wait(max(due_s - monotonic(), 0))


def main() -> None:
    """Serve until the standard input is closed; say the port first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes-per-s", type=float)
    parser.add_argument("--latency-s", type=float, default=0.0)
    asked = parser.parse_args()
    server = OrderServer(asked.folder, bytes_per_s=asked.bytes_per_s, latency_s=asked.latency_s)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    os.read(0, 1)


if __name__ == "__main__":
    main()
