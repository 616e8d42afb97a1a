"""REGARDS' JSON as values: orders, files of a manifest, the answer to a request. Pure.

Both spellings of the fields are read, the code's and the documentation's (protocol.md 1.7).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.errors import UnexpectedAnswerError
from regards_nb.files import FileRecord
from regards_nb.text import replace_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterable

_MD5 = re.compile(r"[0-9a-fA-F]{32}")

#: Statuses after which the server prepares nothing more.
_FINISHED = frozenset({"DONE", "DONE_WITH_WARNING", "FAILED", "EXPIRED", "DELETED", "ERROR"})
_ACTIONS = frozenset({"download", "pause", "resume", "delete", "remove", "restart", "retry"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOrder:
    """An order as the server sees it (protocol.md 1.2)."""

    order_id: int
    #: PENDING, RUNNING, PAUSED, EXPIRED, FAILED, DONE_WITH_WARNING, DONE, DELETED, ERROR; or new.
    status: str
    owner: str | None = None
    label: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    status_at: datetime | None = None
    percent_completed: int | None = None
    files_in_error: int | None = None
    available_files: int | None = None
    #: The server goes on only after a download.
    waiting_for_user: bool = False
    #: What all its data sets hold together, as far as the server knows.
    files_total: int | None = None
    bytes_total: int | None = None
    dataset_ids: tuple[int, ...] = ()
    #: What the server would accept now: download, pause, resume, delete, restart, retry.
    actions: frozenset[str] = frozenset()

    @property
    def finished(self) -> bool:
        """Whether the server prepares nothing more."""
        return self.status in _FINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyResponse:
    """What the server says to a request for an order: GRANTED, DENIED or FAILED."""

    status: str
    order_id: int | None = None
    correlation_id: str | None = None
    message: str | None = None
    error_type: str | None = None


class Page(NamedTuple):
    """One page of a list."""

    asked: str
    items: list[Any]
    #: How many there are on all pages, by the server's own count.
    total: int
    pages: int


def read_page(value: Any, asked: str) -> Page:
    """Read a page (protocol.md 1.4)."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), list):
        raise UnexpectedAnswerError(f"{asked}: the answer is not a list")
    metadata = value.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    items = value["content"]
    total = _int(metadata.get("totalElements"))
    pages = _int(metadata.get("totalPages"))
    return Page(asked, items, len(items) if total is None else total, 1 if pages is None else pages)


def remote_order(value: Any, asked: str) -> RemoteOrder:
    """Read an ``OrderDto``, wrapped with its links or not."""
    content = _content(value)
    order_id = _int(content.get("id"))
    if order_id is None:
        raise UnexpectedAnswerError(f"{asked}: the answer is not an order")
    tasks = [task for task in _list(content.get("datasetTasks")) if isinstance(task, dict)]
    links = _list(value.get("links")) if isinstance(value, dict) else []
    rels = {str(link.get("rel")) for link in links if isinstance(link, dict)}
    return RemoteOrder(
        order_id=order_id,
        status=_text(content.get("status")) or "",
        owner=_text(content.get("owner")),
        label=_text(content.get("label")),
        created_at=_date(content.get("creationDate")),
        expires_at=_date(content.get("expirationDate")),
        status_at=_date(content.get("statusDate")),
        percent_completed=_int(content.get("percentCompleted")),
        files_in_error=_int(content.get("filesInErrorCount")),
        available_files=_int(content.get("availableFilesCount")),
        waiting_for_user=content.get("waitingForUser") is True,
        files_total=_sum(_int(task.get("filesCount")) for task in tasks),
        bytes_total=_sum(_int(task.get("filesSize")) for task in tasks),
        dataset_ids=tuple(i for task in tasks if (i := _int(task.get("id"))) is not None),
        actions=frozenset(rels & _ACTIONS),
    )


def file_record(value: Any, order_id: int, asked: str) -> FileRecord:
    """Read one file of a manifest or of a data set."""
    content = _content(value)
    file_id = _int(content.get("id"))
    if file_id is None:
        raise UnexpectedAnswerError(f"{asked}: a file without an id")
    size = content.get("filesize", content.get("fileSize"))
    checksum = content.get("checksum")
    # Which digest it is, the manifest does not say: its length does.
    is_md5 = _MD5.fullmatch(checksum) if isinstance(checksum, str) else None
    return FileRecord(
        order_id=order_id,
        file_id=file_id,
        name=_text(content.get("filename")) or "",
        size_bytes=_int(size),
        md5=is_md5[0].lower() if is_md5 else None,
        product_id=_text(content.get("productId")),
    )


def apply_answer(value: Any) -> ApplyResponse | None:
    """Read the answer to a request; None where it is something else."""
    content = _content(value)
    status = _text(content.get("status"))
    if status is None:
        return None
    return ApplyResponse(
        status=status,
        order_id=_int(content.get("orderId")),
        correlation_id=_text(content.get("correlationId")),
        message=_text(content.get("message")),
        error_type=_text(content.get("errorType", content.get("errorCode"))),
    )


def _content(value: Any) -> dict[str, Any]:
    content = value.get("content", value) if isinstance(value, dict) else None
    return content if isinstance(content, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _int(value: Any) -> int | None:
    """Return a whole number that a database can hold."""
    is_int = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if is_int else None


def _text(value: Any) -> str | None:
    """Return a text that any database can hold, or None."""
    return replace_surrogates(value) if isinstance(value, str) else None


def _date(value: Any) -> datetime | None:
    try:
        read = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    # REGARDS writes UTC; where a date says no zone, it means that too
    return read.replace(tzinfo=UTC) if read is not None and read.tzinfo is None else read


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
