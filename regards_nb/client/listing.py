"""Lists that come in pages, and move while they are read (protocol.md 1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regards_nb.client.rows import file_record, read_page
from regards_nb.errors import UnexpectedAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from regards_nb.client.answers import Answer
    from regards_nb.client.rows import Page
    from regards_nb.client.transport import Call
    from regards_nb.files import FileRecord

    Ask = Callable[[Call], Answer]

#: With 100 orders each, more than anybody has; a server that claims more is not believed.
_MAX_PAGES = 5000
#: How often a manifest that changed while its pages were read is read again.
_MAX_READINGS = 3


def pages(ask: Ask, make_call: Callable[[dict[str, Any]], Call], page_size: int) -> Iterator[Page]:
    """Yield page after page. *make_call* makes a call from its query."""
    number = 0
    while True:
        answer = ask(make_call({"page": number, "size": page_size}))
        page = read_page(answer.json(), answer.asked)
        yield page
        number += 1
        if number == _MAX_PAGES:
            raise UnexpectedAnswerError(f"{page.asked}: still no end after {number} pages")
        # The server may say what it likes of the number of pages: an empty one is the last.
        if number >= page.pages or not page.items:
            return


def manifest(
    ask: Ask, make_call: Callable[[dict[str, Any]], Call], *, order_id: int, page_size: int = 1000
) -> Iterator[FileRecord]:
    """Yield all files of a list, each once, page by page as they are taken.

    Files that become available or are downloaded meanwhile move the others between the pages:
    the list is read again until none was missed.
    """
    seen: set[int] = set()
    for _ in range(_MAX_READINGS):
        total = 0
        for page in pages(ask, make_call, page_size):
            total = page.total
            for value in page.items:
                record = file_record(value, order_id, page.asked)
                if record.file_id not in seen:
                    seen.add(record.file_id)
                    yield record
        if len(seen) >= total:
            return
