"""Requests and responses as values: what is sent, a response, a page of a list, an order, a file.

Both spellings of a field are read, the one of the code and the one of the documentation
(protocol.md 1.7). Nothing here sends or decides anything.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.errors import UnexpectedAnswerError
from regards_nb.files import FileRecord
from regards_nb.text import clean, replace_surrogates

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Mapping

#: The longest excerpt of a response in an error text.
MAX_EXCERPT_CHARS = 200
NOT_REGARDS = "A proxy or a login portal answered, not REGARDS: check base_url and the proxy"

#: How much of a page is searched for its title.
_PAGE_CHARS = 8192
_PAGE = re.compile(r"\s*<(!doctype html|html)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_INVISIBLE = re.compile(
    r"<(style|script|head)\b.*?(</\1>|\Z)|<[^>]*(>|\Z)", re.IGNORECASE | re.DOTALL
)

_MD5 = re.compile(r"[0-9a-fA-F]{32}")

#: Statuses after which the server prepares no more files.
_FINISHED = frozenset({"DONE", "DONE_WITH_WARNING", "FAILED", "EXPIRED", "DELETED", "ERROR"})
_ACTIONS = frozenset({"download", "pause", "resume", "delete", "remove", "restart", "retry"})


class Retry(Enum):
    """The conditions under which a request may be sent again."""

    #: An action. After an error the server may have done it.
    NEVER = auto()
    #: A zip. Only if the server surely made nothing of it.
    IF_NOT_STARTED = auto()
    #: A request that only reads.
    IF_TEMPORARY = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """A request to REGARDS. The transport may send it several times."""

    path: str
    method: str = "GET"
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    #: A body of a web form, instead of JSON.
    form: Mapping[str, str] | None = field(default=None, repr=False)
    retry: Retry = Retry.IF_TEMPORARY
    #: Error statuses that are returned as a response instead of raised.
    accepted_statuses: frozenset[int] = frozenset()
    #: Set when the response is no longer needed.
    stop: threading.Event | None = None
    #: The end of all attempts together, on the monotonic clock; the transport sets it.
    ends_at_s: float = math.inf

    def __str__(self) -> str:
        """Return the request for error texts, without host and query."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response whose body has been read."""

    #: ``GET /path``: the request for error texts, without host and query.
    request: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    #: What the sender of the request knows about the reason of an error.
    advice: str = ""
    #: From the end of the request to that of the header.
    elapsed_s: float = 0.0

    @cached_property
    def _parsed(self) -> Any:
        """The parsed body, or the error of the parser."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as exc:
            return exc

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON. Only a part of JSON is not."""
        return not isinstance(self._parsed, Exception)

    @cached_property
    def is_page(self) -> bool:
        """Whether the body is HTML: a proxy or a login portal sent it. REGARDS sends JSON."""
        kind = self.headers.get("Content-Type", "").lower()
        return kind.startswith(("text/html", "application/xhtml")) or bool(
            _PAGE.match(self._text()[:100])
        )

    @property
    def messages(self) -> tuple[str, ...]:
        """The texts of ``{"messages": [...]}``, the form in which REGARDS reports errors."""
        found = self._parsed.get("messages") if isinstance(self._parsed, dict) else None
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def error_texts(self) -> tuple[str, ...]:
        """The messages, or a plain text body: the storage service reports quotas that way."""
        if self.messages or not self.body:
            return self.messages
        is_plain = self.headers.get("Content-Type", "").startswith("text/plain")
        return (self._excerpt(),) if is_plain else ()

    @property
    def retry_after_s(self) -> float | None:
        """The pause that the server asks for, in seconds or until a date."""
        header = self.headers.get("Retry-After", "").strip()
        if header.isdecimal():
            return float(header)
        at = _http_date(header)
        return None if at is None else max((at - datetime.now(UTC)).total_seconds(), 0.0)

    @property
    def clock_skew_s(self) -> float | None:
        """By how many whole seconds our clock is ahead of the server's."""
        at = _http_date(self.headers.get("Date", ""))
        return None if at is None else round((datetime.now(UTC) - at).total_seconds())

    @cached_property
    def asked_at(self) -> datetime | None:
        """When the request was sent, or earlier, by the server's clock; None if it sends no date.

        The server, or a proxy before it, takes the date after it has found the answer.
        """
        at = _http_date(self.headers.get("Date", ""))
        return None if at is None else at - timedelta(seconds=self.elapsed_s)

    def json(self) -> Any:
        """Return the parsed body; UnexpectedAnswerError if it is no JSON but a page of a proxy."""
        if self.is_json:
            return self._parsed
        raise UnexpectedAnswerError(f"{self.describe()}. {NOT_REGARDS}", status_code=self.status)

    @property
    def reason(self) -> str:
        """The status and the first message, for a line on a request that is repeated."""
        return ", ".join((f"HTTP {self.status}", *map(clean, self.messages[:1])))

    def describe(self) -> str:
        """Return request, status and the server's words in one line that is safe to print."""
        said = clean(", ".join(self.messages), MAX_EXCERPT_CHARS)
        if not said and self.is_page:
            said = self._page()
        elif not said and self.body:
            said = f"{self.headers.get('Content-Type', 'no content type')}: {self._excerpt()}"
        text = f"{self.request}: HTTP {self.status}"
        if said:
            text += f" ({clean(said, MAX_EXCERPT_CHARS)})"
        # The gateway of REGARDS numbers each request; administrators find it in their logs.
        number = self.headers.get("correlation-id")
        return f"{text}, HTTP request {clean(number, MAX_EXCERPT_CHARS)}" if number else text

    def _page(self) -> str:
        """Return the title of a page, or its visible text, and the name of the program."""
        from html import unescape  # imported here: most responses are no page

        text = self._text()[:_PAGE_CHARS]
        title = _TITLE.search(text)
        shown = unescape(title[1] if title else _INVISIBLE.sub(" ", text))
        # Squid and Varnish add Via; nginx, Apache and Varnish name themselves in Server.
        program = self.headers.get("Server") or self.headers.get("Via") or ""
        said = f'page "{clean(shown, MAX_EXCERPT_CHARS // 2)}"'
        return f"{said} of {clean(program, MAX_EXCERPT_CHARS // 4)}" if program else said

    def _excerpt(self) -> str:
        return clean(self._text(), MAX_EXCERPT_CHARS)

    def _text(self) -> str:
        return self.body[: 4 * _PAGE_CHARS].decode("utf-8", "replace")


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
    #: Sums over the data sets of the order, as far as the server knows them.
    files_total: int | None = None
    bytes_total: int | None = None
    dataset_ids: tuple[int, ...] = ()
    #: What the server would accept now: download, pause, resume, delete, restart, retry.
    actions: frozenset[str] = frozenset()
    #: By the server's clock: what happened before is in this answer. None if it sends no date.
    asked_at: datetime | None = field(default=None, compare=False)

    @property
    def finished(self) -> bool:
        """Whether the server prepares no more files."""
        return self.status in _FINISHED


class ApplyResponse(NamedTuple):
    """The server's response to a request for an order: GRANTED, DENIED or FAILED."""

    status: str
    order_id: int | None = None
    correlation_id: str | None = None
    message: str | None = None
    error_type: str | None = None


class Page(NamedTuple):
    """One page of a list."""

    response: Response
    items: list[Any]
    #: How many items all pages have together, as the server says; None if it does not say.
    total: int | None
    pages: int | None


def read_page(response: Response) -> Page:
    """Read a page (protocol.md 1.4)."""
    value = response.json()
    if not isinstance(value, dict) or not isinstance(value.get("content"), list):
        raise UnexpectedAnswerError(f"{response.request}: the response is not a list")
    # The code of REGARDS has "metadata"; its OpenAPI, which is Spring's, has "page".
    metadata = _dict(value.get("metadata", value.get("page")))
    return Page(
        response,
        value["content"],
        whole_number(metadata.get("totalElements")),
        whole_number(metadata.get("totalPages")),
    )


def remote_order(value: Any, response: Response) -> RemoteOrder:
    """Read an ``OrderDto`` of a response, wrapped with its links or not."""
    content = _content(value)
    order_id = whole_number(content.get("id"))
    if order_id is None:
        raise UnexpectedAnswerError(f"{response.request}: the response is not an order")
    tasks = [task for task in _list(content.get("datasetTasks")) if isinstance(task, dict)]
    links = _list(_dict(value).get("links"))
    rels = {str(link.get("rel")) for link in links if isinstance(link, dict)}
    return RemoteOrder(
        order_id=order_id,
        status=_text(content.get("status")) or "",
        owner=_text(content.get("owner")),
        label=_text(content.get("label")),
        created_at=_date(content.get("creationDate")),
        expires_at=_date(content.get("expirationDate")),
        status_at=_date(content.get("statusDate")),
        percent_completed=whole_number(content.get("percentCompleted")),
        files_in_error=whole_number(content.get("filesInErrorCount")),
        available_files=whole_number(content.get("availableFilesCount")),
        waiting_for_user=content.get("waitingForUser") is True,
        files_total=_sum(whole_number(task.get("filesCount")) for task in tasks),
        bytes_total=_sum(whole_number(task.get("filesSize")) for task in tasks),
        dataset_ids=tuple(i for task in tasks if (i := whole_number(task.get("id"))) is not None),
        actions=frozenset(rels & _ACTIONS),
        asked_at=response.asked_at,
    )


def file_record(value: Any, order_id: int, request: str) -> FileRecord:
    """Read one file of a manifest or of a data set."""
    content = _content(value)
    file_id = whole_number(content.get("id"))
    if file_id is None:
        raise UnexpectedAnswerError(f"{request}: a file without an id")
    return FileRecord(
        order_id=order_id,
        file_id=file_id,
        name=_text(content.get("filename")) or "",
        size_bytes=whole_number(content.get("filesize", content.get("fileSize"))),
        md5=_md5(content.get("checksum")),
        product_id=_text(content.get("productId")),
    )


def apply_response(value: Any) -> ApplyResponse | None:
    """Read the response to a request for an order; None if it has no status."""
    content = _content(value)
    status = _text(content.get("status"))
    if status is None:
        return None
    return ApplyResponse(
        status=status,
        order_id=whole_number(content.get("orderId")),
        correlation_id=_text(content.get("correlationId")),
        message=_text(content.get("message")),
        error_type=_text(content.get("errorType", content.get("errorCode"))),
    )


def _content(value: Any) -> dict[str, Any]:
    return _dict(_dict(value).get("content", value))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def whole_number(value: Any) -> int | None:
    """Return *value* if it is a whole number that a database can hold."""
    # type(): true and false are instances of int
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _text(value: Any) -> str | None:
    """Return *value* if it is a text, in a form that any database can hold."""
    return replace_surrogates(value) if isinstance(value, str) else None


def _md5(checksum: Any) -> str | None:
    """Return a checksum if it is an MD5: not all lists name the digest (protocol.md 1.4)."""
    is_md5 = isinstance(checksum, str) and _MD5.fullmatch(checksum)
    return checksum.lower() if is_md5 else None


def _date(value: Any) -> datetime | None:
    try:
        return _in_utc(datetime.fromisoformat(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _in_utc(time: datetime) -> datetime:
    """Return *time* with a zone; REGARDS and HTTP mean UTC where they name none."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _http_date(header: str) -> datetime | None:
    try:
        return _in_utc(parsedate_to_datetime(header))
    except ValueError:
        return None


# -- the catalogue


class CatalogueDataset(NamedTuple):
    """A data set of the catalogue."""

    urn: str
    provider_id: str
    label: str
    model: str | None = None
    description: str | None = None


class Attribute(NamedTuple):
    """An attribute of the products of a project."""

    name: str
    #: The type as REGARDS names it: INTEGER, DOUBLE, DATE_ISO8601, STRING, ...
    type: str
    label: str | None = None
    description: str | None = None
    unit: str | None = None


class CatalogueFile(NamedTuple):
    """A file of a product."""

    name: str
    checksum: str | None
    size_bytes: int | None = None
    md5: str | None = None
    online: bool = True


class Product(NamedTuple):
    """A product of the catalogue."""

    urn: str
    provider_id: str
    label: str
    dataset_urn: str | None
    version: int | None
    files: tuple[CatalogueFile, ...]
    attributes: Mapping[str, Any]


class SummaryRow(NamedTuple):
    """The numbers of a selection, for one data set and one type of file."""

    dataset_urn: str
    dataset_label: str | None
    data_type: str | None
    products: int | None
    files: int | None
    size_bytes: int | None


def catalogue_dataset(value: Any, request: str) -> CatalogueDataset:
    """Read a data set of a search."""
    content = _content(value)
    urn = _text(content.get("id"))
    if urn is None:
        raise UnexpectedAnswerError(f"{request}: a data set without a URN")
    return CatalogueDataset(
        urn=urn,
        provider_id=_text(content.get("providerId")) or urn,
        label=_text(content.get("label")) or urn,
        model=_text(content.get("model")),
        description=_text(_dict(content.get("properties")).get("description")),
    )


def attribute_model(value: Any) -> Attribute:
    """Read an attribute; its name is that of queries, with its fragment."""
    content = _content(value)
    path = _text(content.get("jsonPath")) or _text(content.get("name")) or ""
    return Attribute(
        name=path.removeprefix("properties."),
        type=_text(content.get("type")) or "STRING",
        label=_text(content.get("label")),
        description=_text(content.get("description")),
        unit=_text(content.get("unit")),
    )


def product(value: Any, request: str) -> Product:
    """Read a product of a search; its files are those of type RAWDATA."""
    content = _content(value)
    urn = _text(content.get("id"))
    if urn is None:
        raise UnexpectedAnswerError(f"{request}: a product without a URN")
    raw = _list(_dict(content.get("files")).get("RAWDATA"))
    tags = [tag for tag in _list(content.get("tags")) if isinstance(tag, str)]
    return Product(
        urn=urn,
        provider_id=_text(content.get("providerId")) or urn,
        label=_text(content.get("label")) or "",
        dataset_urn=next((tag for tag in tags if ":DATASET:" in tag), None),
        version=whole_number(content.get("version")),
        files=tuple(_catalogue_file(file) for file in raw if isinstance(file, dict)),
        attributes=dict(_flat(_dict(content.get("properties")))),
    )


def _catalogue_file(content: dict[str, Any]) -> CatalogueFile:
    return CatalogueFile(
        name=_text(content.get("filename")) or "",
        checksum=_text(content.get("checksum")),
        size_bytes=whole_number(content.get("filesize")),
        md5=_md5(content.get("checksum")),
        online=content.get("online") is True,
    )


def _flat(properties: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the attributes, those of a fragment as ``fragment.attribute``."""
    for name, each in properties.items():
        # Two levels: an attribute in a fragment. What is deeper is a value of type JSON.
        if isinstance(each, dict) and not prefix and not {"lowerBound", "upperBound"} & set(each):
            yield from _flat(each, f"{name}.")
        else:
            yield prefix + name, replace_surrogates(each) if isinstance(each, str) else each


def summary_rows(value: Any, request: str) -> list[SummaryRow]:
    """Read a ``DocFilesSummary``: a row for each data set and type of file."""
    parts = _dict(value).get("subSummariesMap")
    if not isinstance(parts, dict):
        raise UnexpectedAnswerError(f"{request}: the response is not a summary")
    return [
        SummaryRow(
            str(urn),
            None,
            str(data_type),
            whole_number(part.get("documentsCount")),
            whole_number(_dict(counts).get("filesCount")),
            whole_number(_dict(counts).get("filesSize")),
        )
        for urn, part in ((urn, _dict(part)) for urn, part in parts.items())
        for data_type, counts in _dict(part.get("fileTypesSummaryMap")).items()
    ]


def cart_rows(value: Any) -> list[SummaryRow]:
    """Read a ``BasketDto``: a row for each data set."""
    selections = _list(_content(value).get("datasetSelections"))
    return [
        SummaryRow(
            _text(each.get("datasetIpid")) or "",
            _text(each.get("datasetLabel")),
            None,
            whole_number(each.get("objectsCount")),
            whole_number(each.get("filesCount")),
            whole_number(each.get("filesSize")),
        )
        for each in selections
        if isinstance(each, dict)
    ]
