"""Checks everything a tracker depends on, and says for each what to ask of whom."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import urllib.request
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from regards_nb.consumer import check_queue
from regards_nb.errors import (
    BrokerAccessError,
    BrokerLoginError,
    JournalError,
    NotAllowedError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters
    from regards_nb.journal import Journal

_CONNECT_TIMEOUT_S = 10.0
MAX_SKEW_S = 60.0
#: Below this a download of one sub-order (about 100 MB, protocol.md 1.3) may not fit.
LITTLE_DISK_BYTES = 1_000_000_000


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    #: Works, but not as well as it could, or not for long.
    WARNING = "warning"
    FAILED = "FAILED"
    #: Another check has to succeed first, or there is nothing to check.
    SKIPPED = "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<8} {self.check:<20} {self.text}"


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found; prints as one line for each check."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(finding.verdict is not Verdict.FAILED for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(check)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.findings))

    def as_dicts(self) -> list[dict[str, str]]:
        """Return the findings as plain values, for JSON."""
        return [
            {"check": f.check, "verdict": str(f.verdict), "text": f.text} for f in self.findings
        ]


def examine(
    *,
    parameters: AmqpParameters | None,
    queue: str | None,
    is_read: bool,
    client: RegardsClient | None,
    journal: Journal,
    workspace: Path,
) -> Report:
    """Check what a tracker depends on; see ``OrderTracker.doctor``.

    Nothing is changed, ordered, downloaded or deleted.

    Parameters
    ----------
    parameters : pika.connection.Parameters or None
    queue : str or None
    is_read : bool
        Whether the tracker reads the queue at the moment.
    client : RegardsClient or None
    journal : Journal
    workspace : pathlib.Path
    """
    return Report(
        (
            *_broker(parameters, queue, is_read=is_read),
            *_service(client),
            *_journal(journal),
            *_workspace(workspace),
        )
    )


# -- the broker


def _broker(
    parameters: AmqpParameters | None, queue: str | None, *, is_read: bool
) -> Iterator[Finding]:
    if parameters is None or queue is None:
        yield Finding(
            "broker",
            Verdict.SKIPPED,
            "none: orders are followed by asking over REST. Ask the REGARDS administrator for a "
            "RabbitMQ account and a queue to be told at once",
        )
        return
    reachable = True
    for finding in _reach("broker", parameters.host, parameters.port):
        yield finding
        reachable = finding.verdict is Verdict.OK
    if not reachable:
        return
    tls = _broker_tls(parameters)
    yield tls
    if tls.verdict is Verdict.FAILED:
        return
    yield from _queue(parameters, queue, is_read=is_read)


def _broker_tls(parameters: AmqpParameters) -> Finding:
    options = parameters.ssl_options
    check = "broker TLS"
    if options is None:
        return Finding(
            check,
            Verdict.OK if _is_loopback(parameters.host) else Verdict.WARNING,
            "none"
            if _is_loopback(parameters.host)
            else "none: the password crosses the network "
            "in clear. Ask the administrator for the amqps:// address",
        )
    address = (parameters.host, parameters.port)
    name = options.server_hostname or parameters.host
    try:
        with (
            socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S) as plain,
            options.context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            return Finding(check, Verdict.OK, f"{secured.version()}, certificate of {name} valid")
    except OSError as exc:
        return Finding(
            check,
            Verdict.FAILED,
            f"{exc}. Check that this is the TLS port (often 5671), and ask the administrator "
            "which certificate authority to trust",
        )


def _queue(parameters: AmqpParameters, queue: str, *, is_read: bool) -> Iterator[Finding]:
    seen = check_queue(parameters, queue, is_read=is_read)
    steps = ["broker login", "virtual host", "queue", "right to read"]
    passed = {"": 0, "connection": 2, "queue": 3, "read": 4}[seen.reached]
    if isinstance(seen.error, BrokerAccessError) and not passed:
        passed = 1  # the login itself was accepted
    texts = [
        f"as {getattr(parameters.credentials, 'username', '')!r}",
        parameters.virtual_host,
        queue,
        "it is being read now" if is_read else "granted",
    ]
    for check, text in zip(steps[:passed], texts, strict=False):
        yield Finding(check, Verdict.OK, text)
    if seen.error is not None:
        is_login = isinstance(seen.error, BrokerLoginError | BrokerAccessError)
        check = "broker protocol" if not passed and not is_login else steps[passed]
        yield Finding(check, Verdict.FAILED, str(seen.error))
    if passed >= steps.index("right to read"):
        yield _depth(seen.messages)
        yield _others(seen.consumers - is_read)


def _depth(messages: int) -> Finding:
    many = messages > 100_000
    return Finding(
        "queue depth",
        Verdict.WARNING if many else Verdict.OK,
        f"{messages} messages wait" + (": start() takes a while to read them" if many else ""),
    )


def _others(consumers: int) -> Finding:
    if not consumers:
        return Finding("other consumers", Verdict.OK, "none")
    return Finding(
        "other consumers",
        Verdict.WARNING,
        f"{consumers} more read this queue, and RabbitMQ gives each message to one of them only. "
        "Stop them, let them share one journal, or ask the administrator for a queue of your own",
    )


# -- the REST side


def _service(client: RegardsClient | None) -> Iterator[Finding]:
    if client is None:
        yield Finding(
            "REST",
            Verdict.SKIPPED,
            "no client: messages only. Give client=RegardsClient(...) to download, order, steer "
            "and catch up",
        )
        return
    parts = urlsplit(client.base_url)
    host = parts.hostname or ""
    if not _has_proxy(parts.scheme, host):
        for finding in _reach("REST", host, parts.port or {"http": 80}.get(parts.scheme, 443)):
            yield finding
            if finding.verdict is not Verdict.OK:
                return
    yield from _login(client)


def _login(client: RegardsClient) -> Iterator[Finding]:
    check = "REST login"
    try:
        skew_s = client.clock_skew_s()
    except ServiceLoginError as exc:
        yield Finding(check, Verdict.FAILED, f"{exc}. Ask the project administrator if unsure")
    except NotAllowedError as exc:
        yield Finding(
            "REST role", Verdict.FAILED, f"{exc}. Ask the project administrator for access"
        )
    except ServiceUnreachableError as exc:
        if "SSL" in str(exc) or "certificate" in str(exc):
            yield Finding(
                "REST TLS",
                Verdict.FAILED,
                f"{exc}. Ask the administrator which certificate authority to trust, and give it "
                "as ca_bundle=...",
            )
        else:
            yield Finding("REST answer", Verdict.FAILED, str(exc))
    except ServiceError as exc:
        yield Finding("REST answer", Verdict.FAILED, str(exc))
    else:
        yield Finding(check, Verdict.OK, f"as {client.username!r} to tenant {client.tenant!r}")
        yield _clock(skew_s)


def _clock(skew_s: float | None) -> Finding:
    if skew_s is None:
        return Finding("clock", Verdict.SKIPPED, "the server does not tell its time")
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding("clock", Verdict.OK, f"within {MAX_SKEW_S:g} s of the server's")
    side = "ahead of" if skew_s > 0 else "behind"
    return Finding(
        "clock",
        Verdict.WARNING,
        f"{abs(skew_s):g} s {side} the server's: times in the frames will not fit, and "
        "certificates may seem expired. Set your clock by the network (NTP)",
    )


def _has_proxy(scheme: str, host: str) -> bool:
    """Tell whether the way to a host leads through a proxy: then its name need not be known."""
    if _is_loopback(host):
        return False
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def _reach(side: str, host: str, port: int) -> Iterator[Finding]:
    """Find a host and connect to it."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        yield Finding(
            f"{side} DNS",
            Verdict.FAILED,
            f"no address for {host!r} ({exc}). Check the name, and whether you need a VPN",
        )
        return
    yield Finding(f"{side} DNS", Verdict.OK, f"{host} is {addresses[0][4][0]}")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as exc:
        yield Finding(
            f"{side} port",
            Verdict.FAILED,
            f"nobody answers at {host}:{port} ({exc}). Check the port, firewall or VPN, and ask "
            "the administrator whether the service runs",
        )
    else:
        yield Finding(f"{side} port", Verdict.OK, f"{port} answers")


# -- places


def _journal(journal: Journal) -> Iterator[Finding]:
    try:
        damage = journal.check()
    except JournalError as exc:
        yield Finding("journal", Verdict.FAILED, str(exc))
        return
    if damage:
        text = f"damaged: {damage[0]}. Move the file away; tracking then starts a new one"
        yield Finding("journal", Verdict.FAILED, text)
    else:
        yield Finding("journal", Verdict.OK, "can be read, no damage")


def _workspace(workspace: Path) -> Iterator[Finding]:
    place = workspace.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as probe_file:
            probe_file.write(b"x")
    except OSError as exc:
        yield Finding(
            "workspace",
            Verdict.FAILED,
            f"{workspace} cannot be written to: {exc.strerror or exc} ({place}). Give another "
            "place with workspace=...",
        )
        return
    yield Finding("workspace", Verdict.OK, str(workspace.absolute()))
    free_bytes = shutil.disk_usage(place).free
    little = free_bytes < LITTLE_DISK_BYTES
    yield Finding(
        "disk",
        Verdict.WARNING if little else Verdict.OK,
        f"{free_bytes / 1e9:.1f} GB free"
        + (": free some, or give another place with workspace=..." if little else ""),
    )


def as_failure(check: str, error: Any) -> Report:
    """Return the report of a tracker that could not even be made."""
    return Report((Finding(check, Verdict.FAILED, str(error)),))
