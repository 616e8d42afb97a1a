"""Lists that come in pages and change while they are read (protocol.md 1.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regards_nb.client.models import file_record, read_page
from regards_nb.errors import UnexpectedAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.client.models import Page, Response
    from regards_nb.client.transport import RequestSpec
    from regards_nb.files import FileRecord

    #: Sends a request and returns the response.
    Exchange = Callable[[RequestSpec], Response]

#: With 100 orders on a page nobody has so many; more means a server that counts wrongly.
_MAX_PAGES = 5000
_MANIFEST_PAGE_SIZE = 1000
#: How often a manifest that changed while its pages were read is read again.
_MAX_READINGS = 3


def iter_pages(exchange: Exchange, request: RequestSpec, page_size: int) -> Iterator[Page]:
    """Yield one page after the other; their numbers are added to the query of the request."""
    number = 0
    previous_items: list[Any] = []
    while True:
        params = {**request.params, "page": number, "size": page_size}
        response = exchange(replace(request, params=params))
        if response.status == 204:  # The documentation has 204 for an empty list.
            return
        page = read_page(response.json(), response.request)
        yield page
        number += 1
        if number == _MAX_PAGES:
            raise UnexpectedAnswerError(f"{page.request}: still no end after {number} pages")
        if page.pages is None:
            # The server does not count its pages: a full page may have a next one.
            is_last = len(page.items) < page_size or page.items == previous_items
        else:
            is_last = number >= page.pages
        # An empty page is the last one, even if the server announced more.
        if is_last or not page.items:
            return
        previous_items = page.items


def iter_manifest(
    exchange: Exchange, request: RequestSpec, *, order_id: int
) -> Iterator[FileRecord]:
    """Yield each file of a manifest once, page by page.

    Files that become available or are downloaded meanwhile move others to another page. The
    manifest is read again until as many files were seen as the server announces.
    """
    seen: set[int] = set()
    for _ in range(_MAX_READINGS):
        total: int | None = None
        for page in iter_pages(exchange, request, _MANIFEST_PAGE_SIZE):
            total = page.total
            for item in page.items:
                record = file_record(item, order_id, page.request)
                if record.file_id not in seen:
                    seen.add(record.file_id)
                    yield record
        if total is None or len(seen) >= total:
            return
