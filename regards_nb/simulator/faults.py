"""Failure as a vocabulary: what the service is to do wrong, for which order, and how often.

Each fault is a frozen description. ``sim.faults.add(CutZip(after_fraction=0.5))`` arms it; it is
used up after ``times`` uses (None: never). Numbers in brackets are sections of protocol.md.
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
    """The places of the REST side where a fault can sit."""

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


class CutMode(Enum):
    """How a body that is cut ends."""

    #: The last chunk ``0`` is sent: for HTTP all is well [1.0.3].
    CLEAN = auto()
    #: The connection is closed without the last chunk.
    NO_LAST_CHUNK = auto()
    #: The connection is reset (RST).
    RESET = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What all faults share.

    Attributes
    ----------
    order_id : int, optional
        Only for this order; None: for any.
    name : str, optional
        Only for the file of this name; None: for any.
    times : int, optional
        How many times it strikes; None: for ever.
    skip : int
        How many occasions pass before it strikes.
    """

    order_id: int | None = None
    name: str | None = None
    times: int | None = 1
    skip: int = 0

    def concerns(self, order_id: int | None, name: str | None) -> bool:
        """Tell whether this occasion is one for the fault."""
        return self.order_id in (None, order_id) and self.name in (None, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingError(Fault):
    """The file cannot be brought to the shop counter: state ERROR, never in a zip."""

    reason: str = "File not available in storage"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutZip(Fault):
    """The zip ends early, after so many bytes or after a fraction of all its bytes."""

    after_bytes: int | None = None
    after_fraction: float = 0.5
    ending: CutMode = CutMode.CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class IncompleteZip(Fault):
    """A valid zip with fewer files and no NOTICE.txt; nothing is marked [1.0.2]."""

    keep_files: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedEntry(Fault):
    """An entry holds a part of its file with a right CRC; NOTICE.txt names it [1.0.1]."""

    keep_fraction: float = 0.5
    announced: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingEntry(Fault):
    """A file has no entry; NOTICE.txt names it, with this reason [1.3]."""

    reason: str = "Error during file download"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptEntry(Fault):
    """The first byte of a file is another one in the zip; CRC and size agree with the wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongCrc(Fault):
    """An entry carries a CRC that is not that of its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongChecksum(Fault):
    """The manifest gives an MD5 that no byte sequence of this order has."""

    md5: str = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RawZip(Fault):
    """These very bytes are served as the zip, from memory or from a file."""

    source: bytes | Path
    #: Whether the files count as DOWNLOADED afterwards, as after a real zip.
    saves_states: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CutFile(Fault):
    """A single file ends early although Content-Length promises all of it."""

    after_bytes: int = 0
    ending: CutMode = CutMode.NO_LAST_CHUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptFile(Fault):
    """A single file arrives with its first byte changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRefuses(Fault):
    """Storage's answer is passed on for a single file, which becomes DOWNLOAD_ERROR [1.5]."""

    status: int = 410
    body: bytes = b""
    content_type: str = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Fault):
    """Any answer at all, instead of the real one. Nothing is marked.

    ``body`` is sent as it is; ``headers`` are added to Content-Length and Content-Type.
    """

    route: Route = Route.ANY
    status: int = 500
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Fault):
    """An answer comes late, or its body slowly, or stops for a while.

    Attributes
    ----------
    delay_s : float
        Before the status line.
    bytes_per_s : float, optional
        Pace of a body.
    stall_after_bytes : int, optional
        Where the body stops ...
    stall_s : float
        ... and for how long. ``sim.stop()`` ends every stall.
    """

    route: Route = Route.ANY
    delay_s: float = 0
    bytes_per_s: float | None = None
    stall_after_bytes: int | None = None
    stall_s: float = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredToken(Fault):
    """The token of the next request is found expired, and stays so [1.0.9]."""

    status: int = 401
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateSave(Fault):
    """The state of the files is saved so long after the body is closed [1.0.5]."""

    delay_s: float = 0.2


_Kind = TypeVar("_Kind", bound=Fault)


class Faults:
    """The faults that are armed. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: dict[Fault, list[_Count]] = {}

    def add(self, fault: _Kind) -> _Kind:
        """Arm a fault; the same one twice strikes twice as often."""
        with self._lock:
            self._armed.setdefault(fault, []).append(_Count(fault))
        return fault

    def remove(self, fault: Fault) -> None:
        """Disarm a fault, if it is still armed."""
        with self._lock:
            self._armed.pop(fault, None)

    def clear(self) -> None:
        """Disarm all."""
        with self._lock:
            self._armed.clear()

    def take(
        self,
        kind: type[_Kind],
        *,
        order_id: int | None = None,
        name: str | None = None,
        route: Route | None = None,
    ) -> _Kind | None:
        """Return the first fault of this kind for this occasion, and use it once."""
        if not self._armed:  # nearly always, and 70,000 times for a large zip
            return None
        with self._lock:
            for fault, counts in self._armed.items():
                if not isinstance(fault, kind) or not _is_for(fault, order_id, name, route):
                    continue
                if counts[0].strikes():
                    self._forget_spent(fault, counts)
                    return fault
        return None

    def _forget_spent(self, fault: Fault, counts: list[_Count]) -> None:
        if counts[0].times_left == 0:
            del counts[0]
            if not counts:
                del self._armed[fault]


class _Count:
    """How often one armed fault still waits, and still strikes."""

    def __init__(self, fault: Fault) -> None:
        self.skips_left = fault.skip
        self.times_left = -1 if fault.times is None else fault.times

    def strikes(self) -> bool:
        if self.skips_left:
            self.skips_left -= 1
            return False
        self.times_left -= 1
        return True


def _is_for(fault: Fault, order_id: int | None, name: str | None, route: Route | None) -> bool:
    place = getattr(fault, "route", Route.ANY)
    return place in (Route.ANY, route) and fault.concerns(order_id, name)


def messages(*texts: str) -> bytes:
    """Return the body of a REGARDS error: ``{"messages": [...]}``."""
    return json.dumps({"messages": list(texts)}).encode()


def business_error(route: Route, status: int, *texts: str) -> Reply:
    """Return an error in REGARDS' own words, like the 401 of a refused action."""
    return Reply(route=route, status=status, body=messages(*texts), content_type="application/json")


def quota_exceeded(name: str | None = None, *, user: str = "john@cnes.fr") -> StorageRefuses:
    """Return the 429 of a used-up download quota: final."""
    text = f"Download quota of 1000 exceeded (by 1) for user {user}."
    return StorageRefuses(name=name, status=429, body=text.encode())


def rate_exceeded(name: str | None = None, *, user: str = "john@cnes.fr") -> StorageRefuses:
    """Return the 429 of too many downloads at once: try again with fewer."""
    text = f"Download rate of 4 exceeded (by 1) for user {user}."
    return StorageRefuses(name=name, status=429, body=text.encode())


def html_page(route: Route, *, status: int = 200) -> Reply:
    """Return the page of a proxy or a login portal where an answer was expected."""
    page = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"
    return Reply(route=route, status=status, body=page, content_type="text/html;charset=UTF-8")


def redirect(route: Route, location: str, *, status: int = 302) -> Reply:
    """Return a redirection to anywhere."""
    return Reply(route=route, status=status, headers=(("Location", location),))
