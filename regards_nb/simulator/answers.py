"""What goes over HTTP, as values: a request, and an answer with its way of being sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator.faults import CutMode, Slow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Request(NamedTuple):
    """One request, as its handler sees it."""

    method: str
    path: str
    query: dict[str, str]
    #: Names in lower case.
    headers: dict[str, str]
    body: bytes

    def number(self, name: str, default: int) -> int:
        """Return a query parameter that is a number; Spring takes nonsense for the default."""
        text = self.query.get(name, "")
        return int(text) if text.isdecimal() else default

    def json(self) -> Any:
        """Return the parsed body; ValueError where it is not JSON."""
        return json.loads(self.body)


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer.

    Attributes
    ----------
    stream : iterator of bytes, optional
        The body where it is made while it is sent.
    length_bytes : int, optional
        Content-Length of a stream; None: it is chunked.
    limit_bytes : int, optional
        Where a stream is cut, and ``ending`` how.
    served : callable, optional
        Called after the last byte of a stream that was not cut.
    slow : Slow, optional
        The pace.
    """

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    stream: Iterator[bytes] | None = None
    length_bytes: int | None = None
    limit_bytes: int | None = None
    ending: CutMode = CutMode.CLEAN
    served: Callable[[], None] | None = None
    slow: Slow | None = None


def json_answer(status: int, value: Any) -> Answer:
    """Return JSON."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Answer(status=status, body=body, headers=[("Content-Type", "application/json")])


def error(status: int, *texts: str) -> Answer:
    """Return REGARDS' own error, ``{"messages": [...]}``; without texts: an empty body."""
    return json_answer(status, {"messages": list(texts)}) if texts else Answer(status=status)
