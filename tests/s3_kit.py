"""Two real S3 servers, a bucket on each, and a link to a server that can be broken.

Each server honours what the other one ignores: moto the condition of a creation, rclone the
account and the checksum of the content. So the tests run on both.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from download_kit import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

ACCOUNT = {"AWS_ACCESS_KEY_ID": "EXAMPLEACCOUNT", "AWS_SECRET_ACCESS_KEY": "s3cr3t/of+the/account"}


def refusal(status: str, code: str) -> bytes:
    """Return an answer of a store that refuses a request."""
    body = f"<Error><Code>{code}</Code><Message>x</Message></Error>"
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()


EXPIRED = refusal("400 Bad Request", "ExpiredToken")
BUSY = refusal("503 Slow Down", "SlowDown")


class S3Server:
    """One server in a process of its own. The objects of rclone outlive it; those of moto do not.

    Parameters
    ----------
    kind : {"rclone", "moto"}
    folder : pathlib.Path
        Where rclone keeps the objects, and both their logs.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, also again after it was killed."""
        (self._folder / "data").mkdir(exist_ok=True)
        programs = Path(sys.executable).parent
        commands = {
            "rclone": [
                shutil.which("rclone", path=str(programs)) or "rclone",
                *("--config", str(self._folder / "none"), "serve", "s3"),
                *("--auth-key", ",".join(ACCOUNT.values())),
                *("--addr", f"127.0.0.1:{self.port}", str(self._folder / "data")),
            ],
            "moto": [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", f"{self.port}"],
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(commands[self.kind], stdout=log, stderr=log)
        wait_until(self._answers, f"{self.kind} to answer; see {self._folder / 'log'}")

    def kill(self) -> None:
        """Kill it, as with kill -9."""
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Accept connections and answer nothing during the block, as after a lost network."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()
        return True


class TestBucket:
    """A new bucket of a server, seen by another client: boto3."""

    __test__ = False

    def __init__(self, server: S3Server) -> None:
        import boto3
        from botocore.config import Config

        self.server = server
        self.name = f"bucket-{uuid.uuid4().hex[:8]}"
        self.client = boto3.client(
            "s3",
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id=ACCOUNT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ACCOUNT["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )
        self.client.create_bucket(Bucket=self.name)

    @property
    def url(self) -> str:
        """The workspace of the tests."""
        return f"s3://{self.name}/all orders"

    def objects(self) -> dict[str, bytes]:
        """Return the content of each object below the workspace, by its name there."""
        prefix = "all orders/"
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        return {
            each["Key"].removeprefix(prefix): self.read(each["Key"])
            for each in found
            if "/.regards/" not in f"/{each['Key']}"
        }

    def read(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def put(self, name: str, data: bytes, **options: Any) -> None:
        """Create an object as another program."""
        self.client.put_object(Bucket=self.name, Key=f"all orders/{name}", Body=data, **options)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"all orders/{name}")

    def metadata(self, name: str) -> dict[str, str]:
        head = self.client.head_object(Bucket=self.name, Key=f"all orders/{name}")
        # rclone returns the names with capitals
        return {name.lower(): value for name, value in head["Metadata"].items()}

    def modified(self) -> dict[str, object]:
        """Return when each object was created, by its key."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {each["Key"]: each["LastModified"] for each in found}

    def unfinished(self) -> list[str]:
        """Return the keys of unfinished uploads."""
        try:
            found = self.client.list_multipart_uploads(Bucket=self.name)
        except self.client.exceptions.NoSuchUpload:  # so rclone says that there was never one
            return []
        return [each["Key"] for each in found.get("Uploads") or []]


class Link:
    """A TCP proxy to a server that can be broken while a file is uploaded.

    Parameters
    ----------
    server : S3Server
    """

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        #: So many bytes go to the server in one connection, then the connection is held or cut.
        self.limit_bytes: int | None = None
        #: "hold": nothing passes any more; "cut": the connection is broken.
        self.fault = "hold"
        #: So many connections that meet the limit suffer; None: all.
        self.times: int | None = None
        #: So many connections get this answer, which by default is "503 Slow Down".
        self.busy, self.answer = 0, BUSY
        #: After so many uploads, each further one gets the answer.
        self.uploads_left: int | None = None
        #: How many connections met the limit.
        self.met = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections now. New ones are accepted."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.busy:
                    self.busy -= 1
                    threading.Thread(target=self._refuse, args=(client,), daemon=True).start()
                    continue
                try:
                    upstream = socket.create_connection(("127.0.0.1", self._server.port))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, upstream]
                for ends in ((client, upstream, True), (upstream, client, False)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _refuse(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.recv(1 << 16)
            _send_answer(client, self.answer)

    def _pump(self, source: socket.socket, sink: socket.socket, is_upload: bool) -> None:  # noqa: FBT001
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                # a client waits for the answer to its last request before it sends another one
                if is_upload and self.uploads_left is not None and data.startswith(b"PUT "):
                    if not self.uploads_left:
                        _send_answer(source, self.answer)
                        break
                    self.uploads_left -= 1
                if is_upload and self.limit_bytes is not None and passed > self.limit_bytes:
                    self.met += 1
                    if self.met == self.times:
                        self.limit_bytes = None
                    if self.fault == "hold":
                        self._over.wait()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _send_answer(client: socket.socket, answer: bytes) -> None:
    """Answer a request, and read the rest of it: else its sender meets a broken line first."""
    client.sendall(answer)
    client.shutdown(socket.SHUT_WR)
    while client.recv(1 << 16):
        pass


@contextlib.contextmanager
def s3_server(kind: str, folder: Path) -> Iterator[S3Server]:
    """Run a server."""
    server = S3Server(kind, folder)
    try:
        yield server
    finally:
        server.kill()


def use_server(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    """Name an S3 server, an account and a scratch folder in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**ACCOUNT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(scratch))
    # it was asked for the folder before
    monkeypatch.setattr(tempfile, "tempdir", None)
