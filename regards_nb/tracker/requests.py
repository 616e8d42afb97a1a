"""What is ordered, under which name; checked for what REGARDS would deny before it does."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA_TYPES = ("RAWDATA", "QUICKLOOK")
MAX_CORRELATION_ID_CHARS = 255
MAX_USER_CHARS = 128


#: What Java, which REGARDS is written in, spells otherwise.
_JAVA_GROUP, _JAVA_CLASS = re.compile(r"\(\?<(?=[A-Za-z])"), re.compile(r"\\[pP]\{\w+\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is ordered, under which name.

    Attributes
    ----------
    queries : sequence of str
    data_types : sequence of str or None
    filename_regexp : str or None
    correlation_id : str
    label : str or None
    user : str or None
        Who orders, where the request goes over AMQP.
    """

    queries: Sequence[str]
    correlation_id: str
    data_types: Sequence[str] | None = None
    filename_regexp: str | None = None
    label: str | None = None
    user: str | None = None

    def check(self) -> None:
        """Say what REGARDS would deny.

        Raises
        ------
        SettingsError
            With all that is wrong.
        """
        wrong = [*self._wrong_queries(), *self._wrong_filters(), *self._wrong_names()]
        if wrong:
            raise SettingsError("REGARDS would deny this request: " + "; ".join(wrong))

    def _wrong_queries(self) -> list[str]:
        if not self.queries:
            return ["there is no query: the list of queries must not be empty"]
        given: Sequence[object] = self.queries
        if not all(isinstance(query, str) and query.strip() for query in given):
            return ["a query must be a text that is not empty"]
        repeated = [query for query, count in Counter(self.queries).items() if count > 1]
        return [f"the query {query!r:.100} is there twice" for query in repeated[:3]]

    def _wrong_filters(self) -> list[str]:
        wrong = []
        if self.data_types is not None:
            unknown = [each for each in self.data_types if each not in DATA_TYPES]
            if unknown or not self.data_types:
                wrong.append(f"data_types must be of {DATA_TYPES}, not {list(self.data_types)!r}")
        if self.filename_regexp is not None:
            try:
                re.compile(_python(self.filename_regexp))
            except re.error as exc:
                wrong.append(f"filename_regexp is no regular expression: {exc}")
        return wrong

    def _wrong_names(self) -> list[str]:
        name, wrong = self.correlation_id, []
        if not name.strip() or len(name) > MAX_CORRELATION_ID_CHARS or not name.isprintable():
            wrong.append(
                f"correlation_id must have 1 to {MAX_CORRELATION_ID_CHARS} printable characters, "
                f"not {len(name)}"
            )
        if name.startswith("#"):
            wrong.append("correlation_id must not begin with '#', which stands before numbers")
        if self.user is not None and not 0 < len(self.user) <= MAX_USER_CHARS:
            wrong.append(f"user must have 1 to {MAX_USER_CHARS} characters")
        return wrong

    def body(self) -> dict[str, Any]:
        """Return the request as REGARDS takes it over AMQP (protocol.md 1.6)."""
        filters = {"dataTypes": self.data_types, "filenameRegExp": self.filename_regexp}
        filters = {name: value for name, value in filters.items() if value}
        fields = {
            "queries": list(self.queries),
            "filters": filters or None,
            "correlationId": self.correlation_id,
            "user": self.user,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def saved(self, **more: Any) -> str:
        """Return what the journal keeps of it."""
        return json.dumps(asdict(self) | more)

    def orders_the_same_as(self, saved: dict[str, Any]) -> bool:
        """Whether an earlier request under this name asked for the same files."""
        mine = json.loads(self.saved())
        return all(
            mine[name] == saved.get(name) for name in ("queries", "data_types", "filename_regexp")
        )


def _python(java_regexp: str) -> str:
    """Return what Python's compiler can check in place of Java's."""
    return _JAVA_CLASS.sub("x", _JAVA_GROUP.sub("(?P<", java_regexp))
