"""The usual queries of the REGARDS catalogue: Lucene text, safe whatever the values hold.

>>> product_ids(["A_1", "B 2"])
['productId:("A_1" OR "B 2")']
>>> both(term("dataset", "SWOT"), between("time", "2026-01-01", None))
'(dataset:"SWOT") AND (time:["2026-01-01" TO *])'
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A search engine takes 1024 alternatives in one query; the rest is for what else a query says.
MAX_IDS = 1000
#: Far below what a gateway lets through in one request.
MAX_QUERY_CHARS = 30_000

_FIELD = re.compile(r"[A-Za-z_][\w.-]*")


def term(field: str, value: str) -> str:
    r"""Return the query for one exact value.

    >>> term("productId", 'a "b"')
    'productId:"a \\"b\\""'
    """
    return f"{_field(field)}:{_quoted(value)}"


def between(field: str, lowest: str | None, highest: str | None) -> str:
    """Return the query for a range, both ends included; None leaves an end open.

    >>> between("cycle", "7", "9")
    'cycle:["7" TO "9"]'
    """
    low, high = ("*" if end is None else _quoted(end) for end in (lowest, highest))
    return f"{_field(field)}:[{low} TO {high}]"


def both(*queries: str) -> str:
    """Return the query that all of these must fit."""
    return " AND ".join(f"({query})" for query in queries)


def product_ids(ids: Iterable[str], *, field: str = "productId") -> list[str]:
    """Return the queries for a list of products, as many as it takes.

    Parameters
    ----------
    ids : iterable of str
        Repeated ones are asked for once.
    field : str
        Where the catalogue keeps them.

    Returns
    -------
    list of str
        Each with at most `MAX_IDS` ids and `MAX_QUERY_CHARS` characters; all go into one order.

    Raises
    ------
    SettingsError
        There are none, or one of them is no text.
    """
    quoted = [_quoted(each) for each in dict.fromkeys(ids)]
    if not quoted:
        raise SettingsError("no product ids: an order needs at least one")
    pieces: list[list[str]] = [[]]
    chars = 0
    for each in quoted:
        if pieces[-1] and (len(pieces[-1]) == MAX_IDS or chars + len(each) > MAX_QUERY_CHARS):
            pieces.append([])
            chars = 0
        pieces[-1].append(each)
        chars += len(each) + len(" OR ")
    return [f"{_field(field)}:({' OR '.join(piece)})" for piece in pieces]


def _quoted(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"a value in a query must be a text that is not empty, not {value!r}")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _field(name: str) -> str:
    if not _FIELD.fullmatch(name):
        raise SettingsError(f"{name!r} is no name of a field of the catalogue")
    return name
