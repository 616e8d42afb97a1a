"""The query language of the catalogue, as strict as REGARDS.

REGARDS parses queries with Lucene's flexible standard parser and gives them a meaning of its own:

- Text in quotes is compared exactly; text without quotes is searched in the value. ``*`` and
  ``?`` are wildcards, ``/.../`` is a regular expression, ``~`` (fuzzy) is refused.
- A range needs a number or a date. A date is an ISO date-time; without a zone it is UTC.
- A query that has both AND and OR on one level is a single OR of all its terms.
- Two terms need a word between them.
- A term without a field is compared with the words of all text fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NoReturn


class FieldType(Enum):
    """The types of the fields, as REGARDS names them."""

    STRING = "STRING"
    STRING_ARRAY = "STRING_ARRAY"
    INTEGER = "INTEGER"
    DOUBLE = "DOUBLE"
    DATE = "DATE_ISO8601"
    BOOLEAN = "BOOLEAN"


class QueryError(ValueError):
    """The catalogue refuses the query; the text is that of REGARDS where it is known."""

    query = ""


Values = Mapping[str, Any]
Criterion = Callable[[Values], bool]

_TEXT_TYPES = (FieldType.STRING, FieldType.STRING_ARRAY)
_NUMBER_TYPES = {FieldType.INTEGER: int, FieldType.DOUBLE: float}
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_WILDCARD = re.compile(r"(?<!\\)[*?]")

_QUOTED = r'"(?:\\.|[^"\\])*"'
_TOKEN = re.compile(
    rf"""\s*(?:
        (?P<range>[\[{{]\s*(?P<low>{_QUOTED}|[^\s\]}}"]+)\s+TO\s+
            (?P<high>{_QUOTED}|[^\s\]}}"]+)\s*[\]}}])
      | (?P<quoted>{_QUOTED})
      | (?P<regexp>/(?:\\.|[^/\\])*/)
      | (?P<word>(?:AND|OR|NOT)(?![^\s()]) | && | \|\| )
      | (?P<sign>[-+!])
      | (?P<bracket>[()])
      | (?P<field>(?:\\.|[^\s:()\[\]{{}}"/\\^~=<>+!-])(?:\\.|[^\s:()\[\]{{}}"/\\^~=<>!])*)\s*:
      | (?P<term>(?:\\.|[^\s:()\[\]{{}}"/\\^~=<>+!-])(?:\\.|[^\s:()\[\]{{}}"/\\^~=<>!])*)
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"&&": "AND", "||": "OR"}


def criterion(text: str, fields: Mapping[str, FieldType], *, tenant: str) -> Criterion:
    """Parse a query; return a function that says whether the values of a product match.

    *fields* are those that the catalogue knows; attributes also match with ``properties.`` before.
    QueryError: REGARDS refuses the query.
    """
    try:
        return _Parser(text, fields, tenant).query()
    except QueryError as exc:
        exc.query = text
        raise


class _Parser:
    """Reads one query from left to right."""

    def __init__(self, text: str, fields: Mapping[str, FieldType], tenant: str) -> None:
        self._text = text
        self._fields = fields
        self._tenant = tenant
        self._at = 0
        self._texts = [name for name, kind in fields.items() if kind in _TEXT_TYPES]

    def query(self) -> Criterion:
        if not self._text.strip():
            return lambda _values: True
        found = self._level(None)
        if self._at < len(self._text.rstrip()):
            self._refuse()
        return found

    def _refuse(self) -> NoReturn:
        rest = self._text[self._at : self._at + 30].strip() or "the end"
        raise QueryError(f"Syntax Error, cannot parse {self._text}: encountered {rest}")

    def _peek(self) -> re.Match[str] | None:
        return _TOKEN.match(self._text, self._at)

    def _level(self, field: str | None) -> Criterion:
        """Read the terms between two parentheses."""
        terms = [self._signed(field)]
        words = set()
        while (token := self._peek()) and token["bracket"] != ")":
            if not token["word"] or token["word"] == "NOT":
                # The documentation of REGARDS promises OR here; the server refuses.
                raise QueryError(f"two terms without AND or OR between them: {self._text}")
            words.add(_WORDS.get(token["word"], token["word"]))
            self._at = token.end()
            terms.append(self._signed(field))
        if words == {"AND"} or not words:
            return lambda values: all(term(values) for term in terms)
        return lambda values: any(term(values) for term in terms)

    def _signed(self, field: str | None) -> Criterion:
        token = self._peek()
        if token and (token["sign"] or token["word"] == "NOT"):
            self._at = token.end()
            term = self._signed(field)
            return term if token["sign"] == "+" else lambda values: not term(values)
        return self._term(field)

    def _term(self, field: str | None) -> Criterion:
        token = self._peek()
        if token is None or token["word"]:
            self._refuse()
        self._at = token.end()
        if token["bracket"] == "(":
            inner = self._level(field)
            closing = self._peek()
            if closing is None or closing["bracket"] != ")":
                self._refuse()
            self._at = closing.end()
            return inner
        if token["field"]:
            if field is not None:
                self._refuse()
            return self._term(self._known(_unescaped(token["field"])))
        return self._value(field, token)

    def _value(self, field: str | None, token: re.Match[str]) -> Criterion:
        """Return the comparison with a range, a text in quotes, a pattern or a bare term."""
        if self._text[self._at : self._at + 1] == "~":
            raise QueryError("fuzzy search is not supported")
        if token["range"]:
            return self._range(field, token)
        if token["quoted"]:
            return self._exact(field, _unescaped(token["quoted"][1:-1]))
        if token["regexp"]:
            return self._pattern(field, token["regexp"][1:-1])
        if not token["term"]:
            self._refuse()
        return self._bare(field, token["term"])

    def _known(self, name: str) -> str:
        short = name.removeprefix("properties.")
        if short not in self._fields:
            raise QueryError(f"Unknown parameter {name} for tenant {self._tenant}")
        return short

    # -- one comparison each

    def _exact(self, field: str | None, value: str) -> Criterion:
        if field is None:
            return self._any_word(value)
        kind = self._fields[field]
        if kind is FieldType.STRING_ARRAY:
            return lambda values: value in values.get(field, ())
        wanted = value if kind is FieldType.STRING else _converted(field, kind, value)
        return lambda values: values.get(field) == wanted

    def _bare(self, field: str | None, text: str) -> Criterion:
        if _WILDCARD.search(text):
            pieces = re.split(r"(?<!\\)([*?])", text)
            regexp = "".join(
                {"*": ".*", "?": "."}.get(piece, re.escape(_unescaped(piece))) for piece in pieces
            )
            return self._pattern(field, regexp)
        value = _unescaped(text)
        if field is None or self._fields[field] not in _TEXT_TYPES:
            return self._exact(field, value)
        return lambda values: any(value in each for each in _texts(values.get(field)))

    def _pattern(self, field: str | None, regexp: str) -> Criterion:
        try:
            pattern = re.compile(regexp)
        except re.error as exc:
            raise QueryError(f"no regular expression: {regexp}") from exc
        if field is None:
            return lambda values: any(pattern.fullmatch(each) for each in self._words(values))
        if self._fields[field] not in _TEXT_TYPES:
            if regexp == ".*":
                return lambda values: values.get(field) is not None
            raise QueryError(f"a wildcard needs a text, {field} is {self._fields[field].value}")
        return lambda values: any(pattern.fullmatch(each) for each in _texts(values.get(field)))

    def _any_word(self, value: str) -> Criterion:
        wanted = set(re.findall(r"[^\W_]+", value.lower()))
        return lambda values: any(
            wanted <= set(re.findall(r"[^\W_]+", each.lower())) for each in self._words(values)
        )

    def _words(self, values: Values) -> Iterator[str]:
        return (each for name in self._texts for each in _texts(values.get(name)))

    def _range(self, field: str | None, token: re.Match[str]) -> Criterion:
        if field is None:
            raise QueryError("a range needs a field")
        kind = self._fields[field]
        if kind not in (*_NUMBER_TYPES, FieldType.DATE):
            raise QueryError(f"a range needs a number or a date, {field} is {kind.value}")
        low, high = (
            None if end == "*" else _converted(field, kind, _unescaped(end))
            for end in (token["low"].strip('"'), token["high"].strip('"'))
        )
        low_included, high_included = token["range"][0] == "[", token["range"][-1] == "]"

        def matches(values: Values) -> bool:
            value = values.get(field)
            if value is None:
                return False
            above = low is None or value > low or (low_included and value == low)
            below = high is None or value < high or (high_included and value == high)
            return above and below

        return matches


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _converted(field: str, kind: FieldType, text: str) -> Any:
    """Convert a value of a query to the type of its field."""
    if kind is FieldType.BOOLEAN and text in ("true", "false"):
        return text == "true"
    try:
        if number := _NUMBER_TYPES.get(kind):
            return number(text)
        if kind is FieldType.DATE and _DATE_TIME.fullmatch(text):
            at = datetime.fromisoformat(text)
            return at if at.tzinfo else at.replace(tzinfo=UTC)
    except ValueError:
        pass
    raise QueryError(f"{text} is no {kind.value}, which {field} needs")
