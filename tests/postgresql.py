"""A private PostgreSQL with a standby and a connection pooler, which tests may kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psycopg

_DEADLINE_S = 60.0
_USER = "regards"
#: in the name of a socket; nothing listens on it
_PORT = 5432


def _programs() -> Path:
    """Return the folder of the server's programs, which Debian keeps out of the path."""
    found = [Path(found).parent for found in [shutil.which("postgres")] if found]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise FileNotFoundError("these tests need PostgreSQL: sudo apt-get install postgresql")
    return found[-1]


def _pgbouncer() -> str:
    """Return the program of the pooler, which Debian keeps out of the path of most users."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise FileNotFoundError("these tests need PgBouncer: sudo apt-get install pgbouncer")
    return found


def _is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


class PrivatePostgreSQL:
    """A server that only this process reaches, over a socket in its own folder."""

    def __init__(self) -> None:
        self._programs = _programs()
        # the path of a socket must be short, and the user of the server must reach it
        self._folder = Path(tempfile.mkdtemp(prefix="regards-pg-", dir="/tmp"))
        self._data = self._folder / "data"
        # PostgreSQL refuses to run as root
        self._as: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self._folder, **self._as)
        self._databases = 0
        options = ["-A", "trust", "-U", _USER, "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self._data), *options)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(_DEADLINE_S)
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._server = self._start_server(self._data, self._folder)

    def _start_server(self, data: Path, sockets: Path) -> subprocess.Popen[bytes]:
        command = [str(self._programs / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""]
        return self._start(command, sockets)

    def _start(self, command: list[str], sockets: Path) -> subprocess.Popen[bytes]:
        """Start a program, and wait until a database answers at its socket."""
        with (sockets / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=sockets, stdout=log, stderr=log, **self._as)
        pause = threading.Event()
        for _ in range(int(_DEADLINE_S / 0.05)):
            try:
                self.execute("SELECT 1", sockets=sockets)
            except psycopg.OperationalError:
                assert process.poll() is None, (sockets / "log").read_text()
                pause.wait(0.05)
            else:
                return process
        raise TimeoutError((sockets / "log").read_text())

    def restart(self) -> None:
        """Restart the server as an administrator does: it ends all sessions."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(_DEADLINE_S)
        self.start()

    def end_sessions(self) -> None:
        """End all sessions, as idle_session_timeout does to those that wait."""
        self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname LIKE 'journal%' AND pid <> pg_backend_pid()"
        )

    def kill(self) -> None:
        """Kill the server and what serves its connections, as when the power goes."""
        self._server.send_signal(signal.SIGSTOP)  # it accepts no connection from now on
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text()
        self._server.kill()
        self._server.wait(_DEADLINE_S)
        for child in map(int, children.split()):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        # a process that is not dead yet holds memory that the next server refuses to share
        pause = threading.Event()
        while any(_is_alive(child) for child in children.split()):
            pause.wait(0.01)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Have the server answer nothing and end no connection, as when the network is lost."""
        self._server.send_signal(signal.SIGSTOP)  # it starts no process from now on
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text()
        pids = [*map(int, children.split()), self._server.pid]
        try:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        self._databases += 1
        name = f"journal_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def _url(self, name: str, *, user: str = _USER, sockets: Path | None = None) -> str:
        return f"postgresql+psycopg://{user}@/{name}?host={sockets or self._folder}"

    def reader(self, url: str) -> str:
        """Return the URL for a role that may only read what is in a database now."""
        name = url.partition("@/")[2].partition("?")[0]
        role = f"reader_{name}"
        self.execute(
            f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
            database=name,
        )
        return self._url(name, user=role)

    @contextmanager
    def standby(self, url: str) -> Iterator[str]:
        """Run a hot standby of the server; yield its URL of a database."""
        name = url.partition("@/")[2].partition("?")[0]
        sockets = self._folder / "standby"
        sockets.mkdir()
        if self._as:
            shutil.chown(sockets, **self._as)
        source = ["-h", str(self._folder), "-U", _USER]
        self._run("pg_basebackup", *source, "-D", str(sockets / "data"), "-R", "-c", "fast")
        server = self._start_server(sockets / "data", sockets)
        try:
            yield self._url(name, sockets=sockets)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(_DEADLINE_S)
            shutil.rmtree(sockets)

    @contextmanager
    def pgbouncer(self, url: str) -> Iterator[str]:
        """Run PgBouncer in transaction mode before the server; yield its URL of a database."""
        name = url.partition("@/")[2].partition("?")[0]
        sockets = self._folder / "pool"
        sockets.mkdir()
        (sockets / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={self._folder} user={_USER}\n[pgbouncer]\n"
            f"listen_port = {_PORT}\nunix_socket_dir = {sockets}\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 2\n"
        )
        if self._as:
            shutil.chown(sockets, **self._as)
        process = self._start([_pgbouncer(), str(sockets / "pgbouncer.ini")], sockets)
        try:
            yield self._url(name, sockets=sockets)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_DEADLINE_S)
            shutil.rmtree(sockets)

    def execute(
        self, command: str, *, database: str = "postgres", sockets: Path | None = None
    ) -> None:
        """Run SQL as the owner of the server."""
        with psycopg.connect(
            host=str(sockets or self._folder), user=_USER, dbname=database, autocommit=True
        ) as connection:
            connection.execute(command.encode())

    def value(self, query: str) -> Any:
        """Return the one value that a query finds, as the owner of the server."""
        with psycopg.connect(
            host=str(self._folder), user=_USER, dbname="postgres", autocommit=True
        ) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            check=True,
            capture_output=True,
            **self._as,
        )
