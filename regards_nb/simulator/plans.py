"""What an order is to contain and how it is to end: plain data, written down before it is run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from regards_nb.simulator.content import Content, noise, of_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.simulator.faults import Fault


class Outcome(Enum):
    """How an order ends, as its owner sees it."""

    #: Every file can be had.
    DONE = "DONE"
    #: The last file of the order cannot be staged: FAILED with a link (protocol.md 1.6).
    PARTIAL = "PARTIAL"
    #: No file can be staged: FAILED without a link.
    FAILED = "FAILED"
    #: The selection holds no file: FAILED, EMPTY_ORDER, no order id.
    EMPTY = "EMPTY"
    #: The request is not valid: DENIED.
    DENIED = "DENIED"
    #: The user is not known: DENIED, FORBIDDEN.
    FORBIDDEN = "FORBIDDEN"
    #: More than one order may hold: DENIED, ORDER_LIMIT_REACHED.
    TOO_BIG = "TOO_BIG"


#: Outcomes that come before there is an order, hence without a number.
REFUSED = frozenset({Outcome.EMPTY, Outcome.DENIED, Outcome.FORBIDDEN, Outcome.TOO_BIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """One file of an order.

    Attributes
    ----------
    name : str
        As the catalogue has it: anything, also what no file system takes.
    content : Content or bytes
        What is in it.
    data_type : str
        ``RAWDATA`` or ``QUICKLOOK``.
    reference : bool
        An external file: the server knows neither size nor checksum, and fetching it alone does
        not make it DOWNLOADED (protocol.md 1.5).
    has_checksum : bool
        Whether the manifest gives the MD5.
    """

    name: str
    content: Content | bytes
    data_type: str = "RAWDATA"
    mime_type: str = "application/octet-stream"
    product_id: str | None = None
    reference: bool = False
    has_checksum: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.content, bytes):
            # made once, so that size and MD5 are found once
            object.__setattr__(self, "content", of_bytes(self.content))

    @property
    def source(self) -> Content:
        """The content, as something to read."""
        return self.content if isinstance(self.content, Content) else of_bytes(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPlan:
    """One order: its files, how they are cut into sub-orders, and how it ends.

    Attributes
    ----------
    files : sequence of FileSpec
        The files. Empty: ``n_files`` files of ``file_bytes`` bytes that cannot be compressed.
    files_per_suborder : int
        Where the order is cut.
    outcome : Outcome
        How it ends.
    faults : sequence of Fault
        Faults of this order only.
    suborder_pause_s : float, optional
        How long the staging of one sub-order takes; default: the simulator's.
    """

    files: Sequence[FileSpec] = ()
    n_files: int = 4
    file_bytes: int = 10_000
    files_per_suborder: int = 2
    outcome: Outcome = Outcome.DONE
    faults: Sequence[Fault] = field(default=())
    suborder_pause_s: float | None = None
    dataset: str = "PLANNED"
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.files and self.n_files < 1:
            raise ValueError("an order has at least one file; for none there is Outcome.EMPTY")
        if self.files_per_suborder < 1:
            raise ValueError("a sub-order has at least one file")

    def with_files(self, *, seed: str) -> OrderPlan:
        """Return the plan with its files written out."""
        if self.files:
            return self
        made = tuple(
            FileSpec(
                name=f"file_{index:05}.bin",
                content=noise(seed=f"{seed}/{index}", size_bytes=self.file_bytes),
            )
            for index in range(self.n_files)
        )
        return replace(self, files=made)

    def suborders(self) -> list[Sequence[FileSpec]]:
        """Return the files, cut into sub-orders."""
        step = self.files_per_suborder
        return [self.files[start : start + step] for start in range(0, len(self.files), step)]
