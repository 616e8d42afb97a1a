"""Queries of the REGARDS catalogue, in the Lucene language, safe for any value.

The fields are the fixed ones of REGARDS (`FIXED_FIELDS`) and the attributes of the project, which
``client.attributes()`` lists.

>>> provider_ids(["A_1", "B 2"])
['providerId:("A_1" OR "B 2")']
>>> both(term("dataset", "SWOT"), between("cycle", 7, 9))
'(dataset:"SWOT") AND (cycle:["7" TO "9"])'
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

from regards_nb.arguments import in_order
from regards_nb.errors import SettingsError

#: Elasticsearch accepts 1024 alternatives in a query; the rest is for other parts of the query.
MAX_IDS = 1000
#: Far below the limit of a gateway for one request.
MAX_QUERY_CHARS = 30_000

#: The fields that every catalogue has (regards-backend, StaticProperties).
FIXED_FIELDS = (
    "id",
    "providerId",
    "label",
    "model",
    "version",
    "last",
    "virtualId",
    "tags",
    "rawdata",
    "_creationDate",
    "_lastUpdate",
)

_URN = "URN:"
#: A text that can be a provider id: in the query language it is a single word.
_WORD = re.compile(r"[\w.,;@#%=+-]+")
_NAMED = re.compile(r"(?P<field>id|providerId):\((?P<values>.*)\)", re.DOTALL)
_VALUE = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)
_FIELD = re.compile(r"[A-Za-z_][\w.-]*")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")
#: Beyond this not every whole number has a float of its own.
_EXACT_INTEGERS = 2**53
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def term(field: str, value: str) -> str:
    r"""Return the query for one exact value.

    >>> term("providerId", 'a "b"')
    'providerId:"a \\"b\\""'
    """
    return f"{_field(field)}:{_quoted(value)}"


def between(field: str, low: object, high: object) -> str:
    """Return the query for a range that includes both ends.

    Parameters
    ----------
    field : str
        A field with numbers or dates. REGARDS has no ranges of text.
    low, high : int, float, date, datetime, pandas.Timestamp, numpy scalar, str or None
        None leaves an end open. A time without a zone is UTC. A date means its whole day: its
        beginning as `low`, its end as `high`. A text must be a number or an ISO date.

    Returns
    -------
    str
        A range in which each date is a date-time with its zone: REGARDS refuses a date alone.

    Raises
    ------
    SettingsError
        An end is neither a number nor a date, or both ends are open.

    Examples
    --------
    >>> from datetime import date
    >>> between("time", date(2026, 1, 1), date(2026, 1, 31))
    'time:["2026-01-01T00:00:00.000Z" TO "2026-01-31T23:59:59.999999Z"]'
    >>> between("cycle", 7, None)
    'cycle:["7" TO *]'
    """
    if low is None and high is None:
        raise SettingsError(f"between({field!r}, None, None) has no end: leave it out of the query")
    begin, end = _range_end(low, time.min), _range_end(high, time.max)
    are_dates = isinstance(begin, datetime), isinstance(end, datetime)
    if begin is not None and end is not None and are_dates[0] == are_dates[1] and begin > end:
        raise SettingsError(
            f"{field}: the range from {low} to {high} is empty, because its low end is above the "
            "high one"
        )
    return f"{_field(field)}:[{_end_text(begin)} TO {_end_text(end)}]"


def both(*queries: str) -> str:
    """Return the query that matches where all of the given queries match.

    >>> both("cycle:7", "pass:1 OR pass:2")
    '(cycle:7) AND (pass:1 OR pass:2)'
    """
    return " AND ".join(_in_parentheses(queries))


def either(*queries: str) -> str:
    """Return the query that matches where one of the given queries matches.

    >>> either("cycle:7", "cycle:8 AND pass:1")
    '(cycle:7) OR (cycle:8 AND pass:1)'
    """
    return " OR ".join(_in_parentheses(queries))


def without(query: str, *excluded: str) -> str:
    """Return the query that matches where `query` matches and none of the others.

    >>> without("cycle:7", "pass:1")
    '(cycle:7) AND NOT (pass:1)'
    """
    return " AND NOT ".join(_in_parentheses((query, *excluded)))


def provider_ids(ids: Iterable[str], *, field: str = "providerId") -> list[str]:
    """Return the queries for a list of products by the ids that their provider gave them.

    Parameters
    ----------
    ids : iterable of str
        Provider ids: the column ``provider_id`` of a search, or the names in your papers.
    field : str
        Another field that identifies products.

    Returns
    -------
    list of str
        Each with at most `MAX_IDS` ids and `MAX_QUERY_CHARS` characters. One order takes all of
        them.

    Raises
    ------
    SettingsError
        There are no ids, or one of them is no text.
    """
    quoted = [_quoted(each) for each in dict.fromkeys(in_order(ids))]
    if not quoted:
        raise SettingsError("no product ids: an order needs at least one")
    chunks: list[list[str]] = [[]]
    chars = 0
    for each in quoted:
        if chunks[-1] and (len(chunks[-1]) == MAX_IDS or chars + len(each) > MAX_QUERY_CHARS):
            chunks.append([])
            chars = 0
        chunks[-1].append(each)
        chars += len(each) + len(" OR ")
    return [f"{_field(field)}:({' OR '.join(chunk)})" for chunk in chunks]


#: The former name.
product_ids = provider_ids


def urns(urns: Iterable[str]) -> list[str]:
    """Return the queries for a list of products by URN, as :func:`provider_ids` does.

    >>> urns(["URN:AIP:DATA:swot:0a1b:V1"])
    ['id:("URN:AIP:DATA:swot:0a1b:V1")']
    """
    return provider_ids(urns, field="id")


def named_products(query: str) -> tuple[str, list[str]] | None:
    """Return the field and the values, in quotes, of a query of `urns` or `provider_ids`.

    None for any other query.

    Examples
    --------
    >>> named_products('providerId:("A_1" OR "B 2")')
    ('providerId', ['"A_1"', '"B 2"'])
    """
    found = _NAMED.fullmatch(query)
    return None if found is None else (found["field"], _VALUE.findall(found["values"]))


def selection(wanted: Any) -> list[str]:
    """Return the queries for products in any of the forms in which a user has them.

    REGARDS makes one order of all of them.

    Parameters
    ----------
    wanted : DataFrame, Series, str or iterable of str
        Rows of ``client.search()``, a table with a column ``urn`` or ``provider_id``, URNs,
        provider ids, one query or several queries. Texts are provider ids if each is a single word
        without a field; a Series that is called ``provider_id`` has them in any case.

    Examples
    --------
    >>> selection(["SWOT_1", "SWOT_2"]), selection("cycle:7"), selection("URN:AIP:DATA:a:1:V1")
    (['providerId:("SWOT_1" OR "SWOT_2")'], ['cycle:7'], ['id:("URN:AIP:DATA:a:1:V1")'])
    >>> selection(" SWOT_1 ")  # as a query it would find every product with these words in it
    ['providerId:("SWOT_1")']
    """
    name = None if isinstance(wanted, str) else getattr(wanted, "name", None)
    texts: list[Any]
    if hasattr(wanted, "columns"):  # a DataFrame, which this room does not import
        texts, name = _identifiers(wanted)
    elif isinstance(wanted, str):
        texts = [wanted]
    elif hasattr(wanted, "index") and str(name).startswith(_URN):
        texts = [str(name)]  # one row of a search
    elif isinstance(wanted, Iterable):
        texts = list(in_order(wanted))
    else:
        raise SettingsError(
            "products must be rows of client.search(), URNs, provider ids or queries, "
            f"not {type(wanted).__name__}"
        )
    if not texts:
        raise SettingsError("no products: the selection is empty")
    # Cells of a spreadsheet often have blanks around their text.
    texts = [each.strip() if isinstance(each, str) else each for each in texts]
    if name == "provider_id":
        return provider_ids(texts)
    by_urn, named = list[Any](), list[Any]()
    for each in texts:
        is_urn = isinstance(each, str) and each.startswith(_URN)
        (by_urn if is_urn else named).append(each)
    if all(isinstance(each, str) and _WORD.fullmatch(each) for each in named):
        return (provider_ids(named) if named else []) + (urns(by_urn) if by_urn else [])
    for each in texts:
        check(each)
    return texts


def _identifiers(table: Any) -> tuple[list[Any], str]:
    """Return what identifies the products of a DataFrame: URNs or provider ids, and which."""
    if table.index.name == "urn":
        return list(table.index), "urn"
    for name in ("urn", "provider_id"):
        if name in table.columns:
            return list(table[name]), name
    raise SettingsError(
        "the table must be rows of client.search(), or have a column urn or provider_id, not only "
        + ", ".join(map(repr, list(table.columns)[:10]))
    )


def fields(**values: Any) -> str:
    """Return the query for values of fields, all of which must match.

    Parameters
    ----------
    **values
        By field: a value, a list or column of alternatives, or a tuple ``(low, high)`` for a
        range. Write ``**{"fragment.attribute": value}`` for a name with a point.

    Examples
    --------
    >>> fields(cycle=7, instrument=["KaRIn", "Poseidon"], height=(None, 1.5))
    '(cycle:"7") AND ((instrument:("KaRIn" OR "Poseidon"))) AND (height:[* TO "1.5"])'
    """
    parts = []
    for name, given in values.items():
        if isinstance(given, tuple):
            if len(given) != 2:
                raise SettingsError(f"{name}={given!r}: a range is (low, high)")
            parts.append(between(name, *given))
        elif isinstance(given, list | set | frozenset) or getattr(given, "ndim", 0) > 0:
            parts.append(_alternatives(name, [_plain(each) for each in in_order(given)]))
        elif isinstance(value := _plain(given), date):
            parts.append(between(name, value, value))
        else:
            parts.append(term(name, _value_text(value)))
    return parts[0] if len(parts) == 1 else both(*parts)


def _alternatives(name: str, values: Iterable[Any]) -> str:
    dates = [value for value in values if isinstance(value, date)]
    others = [_value_text(value) for value in values if not isinstance(value, date)]
    if not dates and not others:
        raise SettingsError(f"{name}=[] has no value: leave the field out of the query")
    parts = [between(name, value, value) for value in dates]
    return either(*parts, *(provider_ids(others, field=name) if others else ()))


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _number_text(value) if isinstance(value, int | float) else value


def _number_text(value: Any) -> str:
    """Return a number as text; a whole number without a point, which fields of integers refuse."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_INTEGERS
    return str(int(value) if is_whole else value)


def check(query: object) -> None:
    """Refuse a query that REGARDS would understand in another way than it reads.

    REGARDS understands ``a AND b OR c`` as ``a OR b OR c``, and refuses two terms without AND or
    OR between them. Everything else is left to the server.

    Raises
    ------
    SettingsError
        The text has the two ways to write the query with parentheses.

    Examples
    --------
    >>> check("cycle:8 AND (pass:1 OR pass:2)")
    >>> check("cycle:8 AND pass:1 OR pass:2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    regards_nb.errors.SettingsError: REGARDS understands "cycle:8 AND pass:1 OR pass:2" as ...
    """
    if not isinstance(query, str) or not query.strip():
        raise SettingsError(f"a query must be a text that is not empty, not {query!r}")
    for terms, words in _levels(query):
        if len(words) >= len(terms):
            return  # a word without a term: the server refuses that
        if "" in words:
            gap = words.index("")
            pair = terms[gap], terms[gap + 1]
            if _COMPARISON.match(pair[1]):
                raise SettingsError(
                    f"{query!r} compares, and the catalogue has ranges instead: "
                    "height:[1.5 TO *] in a query, height=(1.5, None) in search()"
                )
            raise SettingsError(
                f"a word is missing between {pair[0]!r} and {pair[1]!r}, and REGARDS refuses that. "
                f'Write "{pair[0]} AND {pair[1]}" or "{pair[0]} OR {pair[1]}", or put a value with '
                "spaces into quotes"
            )
        if {"AND", "OR"} <= set(words):
            pairs = zip(words, terms[1:], strict=True)
            given = terms[0] + "".join(f" {word} {term}" for word, term in pairs)
            raise SettingsError(
                f'REGARDS understands "{given}" as "{" OR ".join(terms)}". Write '
                f'"{_grouped(terms, words, "AND")}" or "{_grouped(terms, words, "OR")}"'
            )


class _Level(NamedTuple):
    """The terms between two parentheses, and the words between the terms; "" for a missing one."""

    terms: list[str]
    words: list[str]


#: A quoted text, a regular expression, a range, a parenthesis, or anything up to one of those.
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<open>\() | (?P<close>\))
      | (?P<text>(?:
            "(?:\\.|[^"\\])*"
          | (?<![^\s:(])/(?:\\.|[^/\\])*/
          | [\[{][^\]}]*[\]}]
          | \\.
          | [^\s()"\[{\\]
        )+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_COMPARISON = re.compile(r"[<>=]")
_WORDS = {"AND": "AND", "&&": "AND", "OR": "OR", "||": "OR"}
_SIGNS = ("NOT", "!", "+", "-")


def _levels(query: str) -> list[_Level]:
    """Return each level of a query; none if a parenthesis or a quotation mark does not close."""
    levels: list[_Level] = []
    level, outer = _Level([], []), list[tuple[_Level, int]]()
    at = 0
    start = -1  # where the current term begins, with its sign and its field
    while query[at:].strip():
        token = _TOKEN.match(query, at)
        if token is None:
            return []
        text, at = token[0].strip(), token.end()
        if token["close"]:
            if not outer:
                return []
            levels.append(level)
            level, start = outer.pop()
        elif start < 0 and text in _WORDS:
            level.words.append(_WORDS[text])
            continue
        else:
            start = at - len(text) if start < 0 else start
        if token["open"]:
            outer.append((level, start))
            level, start = _Level([], []), -1
        elif text not in _SIGNS and not text.endswith(":"):
            if len(level.words) < len(level.terms):
                level.words.append("")
            level.terms.append(query[start:at])
            start = -1
    return [] if outer else [*levels, level]


def _grouped(terms: list[str], words: list[str], tight: str) -> str:
    """Return the level with parentheses round the terms that the word *tight* joins."""
    groups = [[terms[0]]]
    for word, each in zip(words, terms[1:], strict=True):
        if word == tight:
            groups[-1].append(each)
        else:
            groups.append([each])
    loose = "OR" if tight == "AND" else "AND"
    return f" {loose} ".join(
        f"({f' {tight} '.join(group)})" if len(group) > 1 else group[0] for group in groups
    )


def _range_end(value: Any, time_of_day: time) -> Any:
    """Return one end of a range: a number, a date-time in UTC, or None."""
    if isinstance(value, str):
        value = _read_text(value.strip())
    value = _plain(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time_of_day, UTC)
    # pandas.NaT is a datetime that differs from itself, like NaN.
    if isinstance(value, datetime) and value == value:  # noqa: PLR0124
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and math.isfinite(value)):
        return value
    raise SettingsError(
        f"the end of a range must be a number, a date or None, not {value!r}: REGARDS has no "
        "ranges of text"
    )


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy, which this room does not import, as a value of Python."""
    if not hasattr(value, "dtype"):
        return value
    is_time = getattr(value.dtype, "kind", "") == "M"
    return (value.astype("datetime64[us]") if is_time else value).item()


def _end_text(end: Any) -> str:
    """Write one end of a range, in quotes or as ``*``."""
    if end is None:
        return "*"
    if isinstance(end, datetime):
        text = end.replace(tzinfo=None).isoformat(timespec="microseconds")
        return f'"{text.removesuffix("000")}Z"'
    return f'"{_number_text(end)}"'


def _read_text(text: str) -> object:
    """Return the number or the date that a text holds, or the text itself."""
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
        if _DATE_TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    if _NUMBER.fullmatch(text):
        return float(text) if any(char in text for char in ".eE") else int(text)
    raise SettingsError(
        f"{text!r} is neither a number nor an ISO date: REGARDS has no ranges of text"
    )


def _in_parentheses(queries: tuple[str, ...]) -> list[str]:
    if not queries:
        raise SettingsError("no queries to combine")
    for query in queries:
        check(query)
    return [f"({query})" for query in queries]


def _quoted(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"a value in a query must be a text that is not empty, not {value!r}")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _field(name: str) -> str:
    if not _FIELD.fullmatch(name):
        raise SettingsError(f"{name!r} is no name of a field of the catalogue")
    return name
