"""The faults of the simulator: what goes wrong, for which order, and how often.

Each fault is a frozen description. ``sim.faults.add(CutZip(after_fraction=0.5))`` arms it, and it
is disarmed after it has been applied ``times`` times (None: never). Numbers in brackets are
sections of protocol.md.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path


class Route(StrEnum):
    """The parts of the REST side that a fault can apply to."""

    ANY = auto()
    TOKEN = auto()
    APPLY = auto()
    ORDERS = auto()
    ORDER = auto()
    AVAILABLE = auto()
    DATASET_FILES = auto()
    ZIP = auto()
    FILE = auto()
    ACTION = auto()
    BASKET = auto()
    CATALOGUE = auto()
    CATALOGUE_FILE = auto()
    QUOTA = auto()


class CutMode(Enum):
    """How a cut body ends."""

    #: The last chunk ``0`` is sent, so the body is complete for HTTP [1.0.3].
    CLEAN = auto()
    #: The connection is closed without the last chunk.
    NO_LAST_CHUNK = auto()
    #: The connection is reset (RST).
    RESET = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The fields of all faults.

    Attributes
    ----------
    order_id : int, optional
        Applies to this order only; None: to any.
    name : str, optional
        Applies to the file of this name only; None: to any.
    times : int, optional
        How often it is applied; None: without limit.
    skip : int
        How many matching requests or files are left alone first.
    """

    order_id: int | None = None
    name: str | None = None
    times: int | None = 1
    skip: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingError(Fault):
    """The file cannot be staged: its state is ERROR, and no zip contains it."""

    reason: str = "File not available in storage"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutZip(Fault):
    """The zip ends early, after a number or a fraction of its bytes."""

    after_bytes: int | None = None
    after_fraction: float = 0.5
    ending: CutMode = CutMode.CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class IncompleteZip(Fault):
    """A valid zip with fewer files and no NOTICE.txt; no state is saved [1.0.2]."""

    keep_files: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedEntry(Fault):
    """A zip entry is cut and has a correct CRC; NOTICE.txt names the file [1.0.1]."""

    keep_fraction: float = 0.5
    announced: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingEntry(Fault):
    """A file has no zip entry; NOTICE.txt names it with this reason [1.3]."""

    reason: str = "Error during file download"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptEntry(Fault):
    """The first byte of a file differs in the zip; the CRC is that of the wrong bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongCrc(Fault):
    """The CRC of a zip entry is not that of its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongChecksum(Fault):
    """The manifest contains a wrong MD5."""

    md5: str = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RawZip(Fault):
    """The server sends *source*, bytes or a file, as the zip."""

    source: bytes | Path
    #: Whether the files become DOWNLOADED, as after a real zip.
    saves_states: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CutFile(Fault):
    """A single file ends early, before Content-Length."""

    after_bytes: int = 0
    ending: CutMode = CutMode.NO_LAST_CHUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptFile(Fault):
    """The first byte of a single file differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRefuses(Fault):
    """A single file gets an error of storage and becomes DOWNLOAD_ERROR [1.5]."""

    status: int = 410
    body: bytes = b""
    content_type: str = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Fault):
    """A given response replaces the real one. No state is saved.

    ``body`` is sent unchanged; ``headers`` are added to Content-Length and Content-Type.
    """

    route: Route = Route.ANY
    status: int = 500
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Fault):
    """A response is late, or its body is slow or stalls.

    Attributes
    ----------
    delay_s : float
        Delay before the status line.
    bytes_per_s : float, optional
        Rate of the body.
    stall_after_bytes : int, optional
        The body stalls after this number of bytes.
    stall_s : float
        Duration of the stall. ``sim.stop()`` ends every stall.
    """

    route: Route = Route.ANY
    delay_s: float = 0
    bytes_per_s: float | None = None
    stall_after_bytes: int | None = None
    stall_s: float = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredToken(Fault):
    """The token of the next request is refused as expired from then on [1.0.9]."""

    status: int = 401
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateSave(Fault):
    """The states of the files are saved with a delay after the end of the body [1.0.5]."""

    delay_s: float = 0.2


_Kind = TypeVar("_Kind", bound=Fault)


class _Armed:
    """One armed fault, and how often it is still skipped and applied."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.skips_left = fault.skip
        self.times_left = fault.times


class Faults:
    """The armed faults. Every method is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []

    def add(self, fault: _Kind) -> _Kind:
        """Arm a fault; an equal fault that is added twice is applied twice as often."""
        with self._lock:
            self._armed.append(_Armed(fault))
        return fault

    def remove(self, fault: Fault) -> None:
        """Disarm a fault, if it is armed."""
        with self._lock:
            self._armed = [armed for armed in self._armed if armed.fault != fault]

    def is_armed(self, fault: Fault) -> bool:
        """Return whether a fault will be applied, or is applied without limit."""
        with self._lock:
            return any(armed.fault == fault for armed in self._armed)

    def clear(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._armed = []

    def take(
        self,
        kind: type[_Kind],
        *,
        order_id: int | None = None,
        name: str | None = None,
        route: Route | None = None,
    ) -> _Kind | None:
        """Return the first armed fault of this kind that applies, and count it as applied."""
        # Usually true; called four times for each file of a zip.
        if not self._armed:
            return None
        with self._lock:
            for armed in self._armed:
                fault = armed.fault
                fault_route = getattr(fault, "route", Route.ANY)
                if (
                    not isinstance(fault, kind)
                    or fault_route not in (Route.ANY, route)
                    or fault.order_id not in (None, order_id)
                    or fault.name not in (None, name)
                ):
                    continue
                if armed.skips_left:
                    armed.skips_left -= 1
                    continue
                if armed.times_left is not None:
                    armed.times_left -= 1
                    if not armed.times_left:
                        self._armed.remove(armed)
                return fault
        return None


def messages(*texts: str) -> bytes:
    """Return the body of a REGARDS error: ``{"messages": [...]}``."""
    return json.dumps({"messages": list(texts)}).encode()


def business_error(route: Route, status: int, *texts: str) -> Reply:
    """Return an error of REGARDS itself, like the 401 of a refused action."""
    return Reply(route=route, status=status, body=messages(*texts), content_type="application/json")


def quota_exceeded(name: str | None = None, *, user: str = "john@cnes.fr") -> StorageRefuses:
    """Return the 429 of an exhausted download quota, which is final."""
    text = f"Download quota of 1000 exceeded (by 1) for user {user}."
    return StorageRefuses(name=name, status=429, body=text.encode())


def rate_exceeded(name: str | None = None, *, user: str = "john@cnes.fr") -> StorageRefuses:
    """Return the 429 of too many parallel downloads, which is temporary."""
    text = f"Download rate of 4 exceeded (by 1) for user {user}."
    return StorageRefuses(name=name, status=429, body=text.encode())


def html_page(route: Route, *, status: int = 200) -> Reply:
    """Return the HTML page of a proxy or a login portal instead of the response."""
    page = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"
    return Reply(route=route, status=status, body=page, content_type="text/html;charset=UTF-8")


def redirect(route: Route, location: str, *, status: int = 302) -> Reply:
    """Return a redirect to any location."""
    return Reply(route=route, status=status, headers=(("Location", location),))
