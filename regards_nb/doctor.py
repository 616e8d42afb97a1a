"""Checks everything that a tracker depends on, and says for each failure what to do."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from regards_nb.client import LOGIN_ADVICE
from regards_nb.consumer import HealthState, addresses_of, check_queue
from regards_nb.download import BucketFiles
from regards_nb.errors import (
    BrokerAccessError,
    BrokerLoginError,
    JournalError,
    NotAllowedError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
    WorkspaceError,
)
from regards_nb.settings import source_of
from regards_nb.text import clean, counted, is_loopback
from regards_nb.waits import awaited, limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters, Health
    from regards_nb.download import Place
    from regards_nb.journal import Journal
    from regards_nb.tracker import JournalReader

    #: Checks a queue and yields a finding for each step, as `_queue` does.
    _Look = Callable[[AmqpParameters, str], Iterator["Finding"]]

_CONNECT_TIMEOUT_S = 10.0
#: Maximum time that another program may hold the journal: a commit takes less.
_LOCK_S = 2.0
MAX_SKEW_S = 60.0
#: With less, a download of one sub-order (about 100 MB, protocol.md 1.3) may not fit.
LITTLE_DISK_BYTES = 1_000_000_000
#: With more messages, `start` takes a while.
MANY_MESSAGES = 100_000


_LOGIN_FORMS = {
    "json": ", with a JSON body (REGARDS 2.0 and later)",
    "form": ", with a form body (REGARDS 1.12 to 1.15)",
}


class CheckResult(StrEnum):
    """The result of a check."""

    OK = "ok"
    #: Works, but with a disadvantage, or not for long.
    WARNING = "warning"
    FAILED = "FAILED"
    #: There is nothing to check.
    SKIPPED = "-"


_COLOUR = {
    CheckResult.OK: "#2e8b45",
    CheckResult.WARNING: "#c77700",
    CheckResult.FAILED: "#d9363e",
    CheckResult.SKIPPED: "#777777",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    text: str
    verdict: CheckResult

    def __str__(self) -> str:
        return f"{self.verdict:<8} {self.check:<20} {self.text}"


_ok = partial(Finding, verdict=CheckResult.OK)
_warning = partial(Finding, verdict=CheckResult.WARNING)
_failed = partial(Finding, verdict=CheckResult.FAILED)
_skipped = partial(Finding, verdict=CheckResult.SKIPPED)


@dataclass(frozen=True, slots=True)
class Report:
    """All results: one line per check and a summary; a table in a notebook."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(finding.verdict is not CheckResult.FAILED for finding in self.findings)

    @property
    def summary(self) -> str:
        """The number of failed checks, and the one to begin with."""
        skipped = [f.check for f in self.findings if f.verdict is CheckResult.SKIPPED]
        total = len(self.findings) - len(skipped)
        failed = [f.check for f in self.findings if f.verdict is CheckResult.FAILED]
        warned = [f.check for f in self.findings if f.verdict is CheckResult.WARNING]
        warnings = f" {len(warned)} with a warning: {', '.join(warned)}." if warned else ""
        if not failed:
            noun = "The check" if total == 1 else f"All {total} checks"
            left_out = f" Not checked: {', '.join(skipped)}." if skipped else ""
            return f"{noun} passed.{warnings}{left_out}"
        first = "that" if len(failed) == 1 else failed[0]
        count = counted(f"{len(failed)} of {total}", "check")
        return f"{count} failed: {', '.join(failed)}. Fix {first} first."

    def __getitem__(self, check: str) -> Finding:
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(check)

    def __repr__(self) -> str:
        return "\n".join([*map(str, self.findings), self.summary])

    def _repr_html_(self) -> str:
        left = 'style="text-align:left;vertical-align:top;white-space:nowrap"'
        rows = "".join(
            f'<tr><td {left}><b style="color:{_COLOUR[f.verdict]}">{escape(f.verdict)}</b></td>'
            f'<th scope="row" {left}>{escape(f.check)}</th>'
            f'<td style="text-align:left">{escape(clean(f.text, 1000))}</td></tr>'
            for f in self.findings
        )
        return (
            f'<table aria-label="Checks"><tbody>{rows}</tbody></table><p>{escape(self.summary)}</p>'
        )

    def as_dicts(self) -> list[dict[str, str]]:
        """Return the findings as plain values, for JSON."""
        return [
            {"check": f.check, "verdict": str(f.verdict), "text": f.text} for f in self.findings
        ]


def examine(
    *,
    parameters: AmqpParameters | None,
    queue: str | None,
    health: Health,
    client: RegardsClient | None,
    journal: Journal,
    workspace: Place,
    reader: JournalReader | None,
    unheard: str,
    sharing: Callable[[], int],
) -> Report:
    """Check what a tracker depends on; see ``OrderTracker.doctor``.

    Nothing is changed, ordered, downloaded or deleted. *health*: of the tracker, which may read the
    queue now. With a *reader*, another kernel writes the journal. *unheard* says of which orders
    REST has told and RabbitMQ has not, else it is empty. *sharing* returns how many other consumers
    of the queue have this journal.
    """
    # While it connects again, RabbitMQ counts its former consumer for up to a minute.
    is_read = health.state in {HealthState.CONSUMING, HealthState.RECONNECTING}
    look = partial(_queue, is_read=is_read, sharing=sharing)
    return Report(
        (
            *_tracker(health, unheard),
            *(_reader(health, reader) if reader else _broker(parameters, queue, look)),
            *_service(client),
            *_journal(journal, writes=reader is None),
            *_workspace(workspace),
        )
    )


def as_failure(check: str, error: Any) -> Report:
    """Return the report about a tracker that could not be made."""
    return Report((_failed(check, str(error)),))


def _tracker(health: Health, unheard: str) -> Iterator[Finding]:
    """Tell why no event arrives although the tracker was started."""
    if unheard:
        text = (
            f"{unheard}. If no other consumer is named below, ask the administrator whether the "
            "queue is bound to the exchange of order responses"
        )
        yield _failed("events", text)
    if health.state in {HealthState.RECONNECTING, HealthState.FAILED}:
        text = f"no event has arrived since {health.since:%Y-%m-%d %H:%M} UTC: {health.reason}"
        yield _failed("events", text)


# -- the broker


def _reader(health: Health, reader: JournalReader) -> Iterator[Finding]:
    with suppress(JournalError):  # the check of the journal tells it
        if text := reader.why_not_received():
            yield _failed("events", text)
    text = "the tracker reads the journal, and another kernel must receive the messages"
    if health.last_event:
        text += f"; the last one came at {health.last_event:%Y-%m-%d %H:%M} UTC"
    yield _skipped("broker", text)


def _broker(parameters: AmqpParameters | None, queue: str | None, look: _Look) -> Iterator[Finding]:
    if parameters is None or queue is None:
        yield _skipped(
            "broker",
            "no RabbitMQ account: the tracker polls REGARDS over REST. Ask the REGARDS "
            "administrator for a RabbitMQ account and a queue to get events at once",
        )
        return
    # the name of the node stands before each check of a cluster
    for address in addresses_of(parameters):
        prefix = f"{address.host}:{address.port} " if isinstance(parameters, tuple) else ""
        for finding in _address(address, queue, look):
            yield replace(finding, check=prefix + finding.check)


def _address(parameters: AmqpParameters, queue: str, look: _Look) -> Iterator[Finding]:
    for finding in _reach("broker", parameters.host, parameters.port):
        yield finding
        if finding.verdict is not CheckResult.OK:
            return
    tls = _broker_tls(parameters)
    yield tls
    if tls.verdict is not CheckResult.FAILED:
        yield from look(parameters, queue)


def _broker_tls(parameters: AmqpParameters) -> Finding:
    options = parameters.ssl_options
    check = "broker TLS"
    if options is None:
        if is_loopback(parameters.host):
            return _ok(check, "none; the broker is on this machine")
        return _warning(
            check,
            "none: the password crosses the network unencrypted. Ask the administrator for the "
            "amqps:// address",
        )
    address = (parameters.host, parameters.port)
    name = options.server_hostname or parameters.host
    try:
        with (
            socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S) as plain,
            options.context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            return _ok(check, f"{secured.version()}, certificate of {name} valid")
    except OSError as exc:
        return _failed(
            check,
            f"{exc}. Check that this is the TLS port (often 5671), and ask the administrator "
            "which certificate authority to trust",
        )


def _queue(
    parameters: AmqpParameters, queue: str, *, is_read: bool, sharing: Callable[[], int]
) -> Iterator[Finding]:
    """Log in, look at the queue and begin to read it; yield a finding for each step."""
    waits = f"waiting for RabbitMQ at {parameters.host}:{parameters.port}"
    limit_s = parameters.stack_timeout or math.inf
    seen = awaited(partial(check_queue, parameters, queue), waits, ends_after_s=limit_s)
    steps = ["broker login", "virtual host", "queue", "right to read"]
    # A connection proves two steps: RabbitMQ accepted the login and the virtual host.
    n_passed = {"": 0, "connection": 2, "queue": 3, "read": 4}[seen.reached]
    if isinstance(seen.error, BrokerAccessError) and not n_passed:
        n_passed = 1  # the broker accepted the login itself
    user = getattr(parameters.credentials, "username", "")
    texts = [
        f"as {user!r}",
        parameters.virtual_host,
        queue,
        "this tracker reads it now" if is_read else "granted",
    ]
    for check, text in zip(steps[:n_passed], texts, strict=False):
        yield _ok(check, text)
    if seen.error is not None:
        text = str(seen.error)
        if isinstance(seen.error, BrokerLoginError):
            scheme = "amqp" if parameters.ssl_options is None else "amqps"
            password = source_of(
                "amqp_password",
                getattr(parameters.credentials, "password", ""),
                service=f"regards-nb:{scheme}://{parameters.host}:{parameters.port}",
                user=user,
            )
            text = f"{text} The login was tried as {user!r} with the password {password}."
        is_login = isinstance(seen.error, BrokerLoginError | BrokerAccessError)
        check = "broker protocol" if not n_passed and not is_login else steps[n_passed]
        yield _failed(check, text)
    if n_passed >= steps.index("right to read"):
        if seen.is_stream:
            text = f"a stream: it keeps {counted(seen.messages, 'message')}, for every reader"
            yield _ok("queue depth", text)
        else:
            yield _depth(seen.messages)
            yield _other_consumers(max(seen.consumers - is_read, 0), sharing)


def _depth(messages: int) -> Finding:
    text = counted(messages, "waiting message")
    if messages > MANY_MESSAGES:
        return _warning("queue depth", f"{text}: start() takes a while to read them")
    return _ok("queue depth", text)


def _other_consumers(n_consumers: int, sharing: Callable[[], int]) -> Finding:
    n_foreign = n_consumers
    with suppress(JournalError):  # the check of the journal tells it
        n_foreign -= sharing()
    if n_foreign <= 0:
        return _ok(
            "other consumers", f"{n_consumers}, with this journal" if n_consumers else "none"
        )
    return _warning(
        "other consumers",
        f"{n_foreign} more read this queue with another journal, and RabbitMQ gives each message "
        "to one of them only; where one reads exclusively, start() is refused. Stop them, let them "
        "share one journal, or ask the administrator for a queue of your own",
    )


# -- REST


def _service(client: RegardsClient | None) -> Iterator[Finding]:
    if client is None:
        yield _skipped(
            "REST",
            "no client: the tracker only reads messages. Pass client=RegardsClient(...) to "
            "download, submit, pause, cancel and catch up",
        )
        return
    parts = urlsplit(client.base_url)
    host = parts.hostname or ""
    if not _has_proxy(parts.scheme, host):
        for finding in _reach("REST", host, parts.port or (80 if parts.scheme == "http" else 443)):
            yield finding
            if finding.verdict is not CheckResult.OK:
                return
    yield from _login(client)


def _login(client: RegardsClient) -> Iterator[Finding]:
    check = "REST login"
    try:
        skew_s = client.clock_skew_s()
    except ServiceLoginError as exc:
        yield _failed(check, _refused_login(client, exc))
    except NotAllowedError as exc:
        yield _failed("REST role", f"{exc}. Ask the project administrator for access")
    except ServiceError as exc:
        is_of_tls = any(word in str(exc) for word in ("TLS", "SSL", "certificate"))
        is_unanswered = isinstance(exc, ServiceUnreachableError)
        yield _failed("REST TLS" if is_unanswered and is_of_tls else "REST answer", str(exc))
    else:
        user = "with a token" if client.username is None else f"as {client.username!r}"
        how = _LOGIN_FORMS.get(client.login_form or "", "")
        yield _ok(check, f"{user} to tenant {client.tenant!r}{how}")
        yield _clock(skew_s)


def _refused_login(client: RegardsClient, error: ServiceLoginError) -> str:
    """Say which secret was refused, where it came from, and what to do; the server's text last."""
    if client.uses_token:
        ends_at = client.token_ends_at
        if ends_at is not None and ends_at <= datetime.now(UTC):
            problem = f"expired on {ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        else:
            problem = "was refused"
        text = (
            f"the token {client.secret_source} {problem}. Get a new token, or log in with "
            "username and password"
        )
    else:
        text = (
            f"REGARDS refused the login of {client.username!r} to tenant {client.tenant!r} with "
            f"the password {client.secret_source}. Check user name, password and tenant; ask the "
            "project administrator if unsure"
        )
    said = str(error).removesuffix(LOGIN_ADVICE)
    return f"{text}. The server answered: {clean(said, 300)}"


def _clock(skew_s: float | None) -> Finding:
    if skew_s is None:
        return _skipped("clock", "the server sends no date")
    if abs(skew_s) <= MAX_SKEW_S:
        return _ok("clock", f"within {MAX_SKEW_S:g} s of the server's")
    side = "ahead of" if skew_s > 0 else "behind"
    return _warning(
        "clock",
        f"{abs(skew_s):g} s {side} the server's: times in the frames are wrong by that, and "
        "certificates may seem expired. Set the clock by the network (NTP)",
    )


def _has_proxy(scheme: str, host: str) -> bool:
    """Return whether requests go through a proxy, which then resolves the host name."""
    if is_loopback(host):
        return False
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


def _reach(side: str, host: str, port: int) -> Iterator[Finding]:
    """Resolve a host name and connect to a port."""
    try:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        addresses = awaited(look_up, f"waiting for the address of {host}")
    except (OSError, UnicodeError) as exc:
        yield _failed(
            f"{side} DNS",
            f"no address for {host!r} ({exc}). Check the name, and whether you need a VPN",
        )
        return
    yield _ok(f"{side} DNS", f"{host} is {addresses[0][4][0]}")
    try:
        connect = partial(socket.create_connection, (host, port), timeout=_CONNECT_TIMEOUT_S)
        awaited(connect, f"waiting for {host}:{port}", unwanted=socket.socket.close).close()
    except OSError as exc:
        yield _failed(
            f"{side} port",
            f"{host}:{port} does not answer ({exc}). Check port, firewall and VPN, and ask the "
            "administrator whether the service runs",
        )
    else:
        yield _ok(f"{side} port", f"{port} answers")


# -- files


def _journal(journal: Journal, *, writes: bool) -> Iterator[Finding]:
    try:
        damage = journal.check()
        if writes and not damage:
            with limited(time.monotonic() + _LOCK_S):
                journal.try_to_write()
    except JournalError as exc:
        yield _failed("journal", str(exc))
        return
    if damage:
        text = (
            f"damaged: {clean(damage[0], 200)}. Close the kernels that use it, then save what can "
            "be read with: regards-nb repair PATH"
        )
        yield _failed("journal", text)
    else:
        yield _ok("journal", f"readable{' and writable' if writes else ''}, no damage")
    if journal.is_on_server:
        yield _told_of_commits(journal)


def _told_of_commits(journal: Journal) -> Finding:
    check = "journal, other kernels"
    reason = journal.why_not_told()
    if reason is None:
        return _ok(check, "the server tells of their events (NOTIFY)")
    text = (
        f"their events are looked for every 0.5 to 5 s, because the server tells nothing: {reason}"
    )
    return _warning(check, text)


def _workspace(workspace: Place) -> Iterator[Finding]:
    if isinstance(workspace, Path):
        yield from _disk("workspace", workspace.absolute())
        return
    try:
        BucketFiles(str(workspace)).list()
    except WorkspaceError as exc:
        yield _failed("workspace", str(exc))
    else:
        yield _ok("workspace", f"{workspace} can be listed")
    yield from _disk("scratch folder", Path(tempfile.gettempdir()))


def _disk(check: str, folder: Path) -> Iterator[Finding]:
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    instead = "workspace=..." if check == "workspace" else "the variable TMPDIR"
    try:
        with tempfile.TemporaryFile(dir=existing) as probe_file:
            probe_file.write(b"x")
    except OSError as exc:
        yield _failed(
            check,
            f"{folder} is not writable: {exc.strerror or exc} ({existing}). Choose another "
            f"folder with {instead}",
        )
        return
    yield _ok(check, str(folder))
    free_bytes = shutil.disk_usage(existing).free
    text = f"{free_bytes / 1e9:.1f} GB free"
    if free_bytes < LITTLE_DISK_BYTES:
        advice = f"delete files, or choose another folder with {instead}"
        yield _warning("disk", f"{text}: {advice}")
    else:
        yield _ok("disk", text)
