"""The course of one increment: the zip, what it lacked one by one, and the server set free."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from regards_nb.download.plan import has_external, is_external, takes_zip
from regards_nb.download.singly import fetch_singly
from regards_nb.download.strangers import adopt
from regards_nb.download.tools import StoppedError
from regards_nb.download.zippass import ZipOutcome, fetch_zip
from regards_nb.errors import QuotaError, ServiceError, ServiceUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regards_nb.download.plan import Plan, Way
    from regards_nb.download.tools import Tools
    from regards_nb.files import FileRecord

_log = logging.getLogger(__name__)

#: The server saves the state of files after the last byte (protocol.md 1.0, 5): so long, in steps,
#: it is given before a file that it still lists counts as not downloaded.
SETTLING_S = (0.1, 0.2, 0.4, 0.8, 1.6)
#: After a zip that failed it has most likely nothing to save.
_SHORT_SETTLING_S = SETTLING_S[:3]


class Course(NamedTuple):
    """How it went."""

    #: Why files could not be had, by file id.
    problems: dict[int, str]
    #: What went wrong and was made good.
    notes: tuple[str, ...]
    #: Files that the server goes on listing although all was done to show it that they came.
    unreleased: frozenset[int]


def fetch_planned(plan: Plan, tools: Tools, way: Way) -> Course:
    """Fetch what is planned; checked files go to the publisher.

    Raises
    ------
    RegardsError
        It cannot go on at all: no connection, no login, no space, or it was stopped.
    """
    notes: list[str] = []
    said: dict[int, str] = {}
    is_released = not plan.unreleased and not has_external(plan.wanted)
    if takes_zip(plan.wanted, way):
        tools.counter.enter("zip")
        outcome = _try_zip(tools)
        adopt(outcome.unknown, tools)
        missing = tools.manifest.open
        said = _reasons(outcome, missing)
        # After a whole zip the server knows of each file whether it came; a zip that lacks files
        # without a notice was broken off on the other side, and marks nothing (protocol.md 1.0, 2).
        is_released = outcome.failure is None and (not missing or bool(outcome.notice))
        if missing and not outcome.notice:
            notes.append(_note(tools, outcome, len(missing)))
    problems = _fetch_rest(tools, said)
    unreleased = frozenset[int]()
    if not is_released:
        ours = {*plan.wanted.ids, *plan.unreleased.ids}
        unreleased = _release(tools, ours - problems.keys())
    return Course(problems, tuple(notes), unreleased)


def _fetch_rest(tools: Tools, said: dict[int, str]) -> dict[int, str]:
    """Fetch one by one what is still missing; return why that failed.

    *said* is what the zip says of files, by file id. Where it says that the quota is used up, the
    file is not asked for again.
    """
    problems = {file_id: why for file_id, why in said.items() if "Download quota" in why}
    rest = [record for record in tools.manifest.open if record.file_id not in problems]
    if rest:
        tools.counter.enter("files")
        alone = fetch_singly(tools, rest)
        tools.manifest.close(record for record in rest if record.file_id not in alone)
        for file_id, why in alone.items():
            problems[file_id] = f"{said[file_id]}; alone: {why}" if file_id in said else why
    return problems


def _try_zip(tools: Tools) -> ZipOutcome:
    """Fetch the zip; where the server has none to give, its files may still be had singly."""
    try:
        return fetch_zip(tools)
    except ServiceError as exc:
        # exactly these: a refused login or a foreign page is not better file by file
        if type(exc) not in (ServiceError, ServiceUnreachableError, QuotaError):
            raise
        if tools.stop.is_set():
            raise StoppedError("stopped before its end") from None
        return ZipOutcome(exc, {}, [], {})


def _reasons(outcome: ZipOutcome, missing: Iterable[FileRecord]) -> dict[int, str]:
    """Return what the zip itself says of each file that it lacks."""
    reasons = {}
    for record in missing:
        why = outcome.notice.get(record.name) or outcome.wrong.get(record.file_id)
        if why is not None:
            reasons[record.file_id] = why
    return reasons


def _note(tools: Tools, outcome: ZipOutcome, missing: int) -> str:
    why = outcome.failure or "it is whole but does not hold them all"
    note = f"{missing} files of the zip are fetched one by one: {why}"
    _log.warning("order %d: %s", tools.order_id, note)
    return note


def _release(tools: Tools, file_ids: set[int]) -> frozenset[int]:
    """Make the server count files as downloaded that are here: it goes on only then.

    A file is fetched alone once more, and what arrives thrown away. For external files only the
    zip counts (protocol.md 1.5); it now holds nothing else.

    Returns
    -------
    frozenset of int
        What it still lists after that.
    """
    waiting = _still_listed(tools, file_ids)
    if not waiting:
        return frozenset()
    fetch_singly(tools, [row for row in waiting if not is_external(row)], keep=False)
    if any(is_external(row) for row in waiting):
        adopt(_try_zip(tools).unknown, tools)
    left = frozenset(row.file_id for row in _still_listed(tools, file_ids))
    if left:
        _log.warning(
            "order %d: the server still lists %d files that were downloaded; it may not go on",
            tools.order_id,
            len(left),
        )
    return left


def _still_listed(tools: Tools, file_ids: set[int]) -> list[FileRecord]:
    """Return which of these files the server lists, after it had time to save what it sent."""
    rows: list[FileRecord] = []
    for pause_s in (*_SHORT_SETTLING_S, None):
        listed = tools.client.iter_available_files(tools.order_id, stop=tools.stop)
        rows = [row for row in listed if row.file_id in file_ids]
        if not rows or pause_s is None:
            break
        if tools.stop.wait(pause_s):
            raise StoppedError("stopped before its end")
    return rows
