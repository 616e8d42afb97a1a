"""The archive's catalogue: which data sets there are, and what an order of each would be.

A query is Lucene-like text with the name of a data set in it, as in
``dataset:SWOT_CYCLE_007 AND pass:12``. What else it says is not evaluated.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from regards_nb.simulator.faults import MissingEntry, StagingError, StorageRefuses, TruncatedEntry
from regards_nb.simulator.plans import FileSpec, OrderPlan, Outcome, noise, quicklook, sea_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DATASET = re.compile(r'dataset\s*:\s*"?([\w.-]+)', re.IGNORECASE)
_ROWS_PER_PASS = 3_000


def plan_for(queries: Sequence[str], *, seed: int) -> OrderPlan:
    """Return what the catalogue has for these queries, all together.

    Parameters
    ----------
    queries : sequence of str
        As a request has them.
    seed : int
        Equal seeds give equal files.

    Returns
    -------
    OrderPlan
        Refused (``EMPTY``) where no query names a known data set.
    """
    plans = [_DATASETS[name](seed) for name in _names(queries)]
    if not plans:
        return OrderPlan(outcome=Outcome.EMPTY)
    worst = next((plan for plan in plans if plan.outcome is not Outcome.DONE), plans[0])
    return OrderPlan(
        files=tuple(spec for plan in plans for spec in plan.files),
        files_per_suborder=worst.files_per_suborder,
        outcome=worst.outcome,
        faults=tuple(fault for plan in plans for fault in plan.faults),
        dataset=worst.dataset,
    )


def dataset_names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(_DATASETS)


def _names(queries: Sequence[str]) -> list[str]:
    found = [name.upper() for query in queries for name in _DATASET.findall(query)]
    return [name for name in dict.fromkeys(found) if name in _DATASETS]


def _pass(seed: int, number: int, *, cycle: int, rows: int = _ROWS_PER_PASS) -> FileSpec:
    """Return the table of one pass."""
    name = f"SWOT_SSH_{cycle:03}_{number:03}"
    return FileSpec(
        name=f"{name}.csv",
        content=sea_level(seed=f"{seed}/{name}", rows=rows),
        mime_type="text/csv",
        product_id=f"URN:AIP:DATA:demo:{name}:V1",
    )


def _picture(seed: int, number: int, *, cycle: int) -> FileSpec:
    """Return the quicklook of one pass."""
    name = f"SWOT_SSH_{cycle:03}_{number:03}"
    return FileSpec(
        name=f"{name}_aperçu.png",
        content=quicklook(seed=f"{seed}/{name}"),
        data_type="QUICKLOOK",
        mime_type="image/png",
        product_id=f"URN:AIP:DATA:demo:{name}:V1",
    )


def _swot_pass(seed: int) -> OrderPlan:
    files = (_pass(seed, 12, cycle=7), _picture(seed, 12, cycle=7), _orbit(seed, 12))
    return OrderPlan(files=files, files_per_suborder=len(files), dataset="SWOT_PASS_012")


def _orbit(seed: int, number: int) -> FileSpec:
    name = f"SWOT_ORBIT_{number:03}.bin"
    return FileSpec(name=name, content=noise(seed=f"{seed}/{name}", size_bytes=40_000))


def _swot_cycle(seed: int) -> OrderPlan:
    files = [make(seed, number, cycle=7) for number in range(1, 11) for make in (_pass, _picture)]
    return OrderPlan(files=tuple(files), files_per_suborder=4, dataset="SWOT_CYCLE_007")


def _tape_archive(seed: int) -> OrderPlan:
    """Return an order in which tapes make trouble in each way there is."""
    files = tuple(_pass(seed, number, cycle=1, rows=800) for number in range(1, 9))
    never, cut, gone = (files[index].name for index in (2, 4, 7))
    faults = (
        StagingError(name=never, times=None, reason="Tape not readable"),
        TruncatedEntry(name=cut),
        MissingEntry(name=gone, reason="Server returned HTTP error code 410", times=None),
        StorageRefuses(name=gone, status=410, times=None),
    )
    return OrderPlan(files=files, files_per_suborder=4, faults=faults, dataset="TAPE_ARCHIVE")


def _shaky_tapes(seed: int) -> OrderPlan:
    """Return an order of which two files are brought only at the second try."""
    files = tuple(_pass(seed, number, cycle=3, rows=400) for number in range(1, 7))
    faults = tuple(StagingError(name=files[n].name, reason="Tape drive busy") for n in (1, 4))
    return OrderPlan(files=files, files_per_suborder=6, faults=faults, dataset="SHAKY_TAPES")


def _broken_storage(seed: int) -> OrderPlan:
    files = tuple(_pass(seed, number, cycle=2, rows=100) for number in range(1, 5))
    return OrderPlan(files=files, outcome=Outcome.FAILED, dataset="BROKEN_STORAGE")


def _refused(name: str, outcome: Outcome) -> Callable[[int], OrderPlan]:
    return lambda _seed: OrderPlan(outcome=outcome, dataset=name)


_DATASETS: dict[str, Callable[[int], OrderPlan]] = {
    "SWOT_PASS_012": _swot_pass,
    "SWOT_CYCLE_007": _swot_cycle,
    "TAPE_ARCHIVE": _tape_archive,
    "SHAKY_TAPES": _shaky_tapes,
    "BROKEN_STORAGE": _broken_storage,
    "EMPTY": _refused("EMPTY", Outcome.EMPTY),
    "FORBIDDEN": _refused("FORBIDDEN", Outcome.FORBIDDEN),
    "TOO_BIG": _refused("TOO_BIG", Outcome.TOO_BIG),
}
