"""Queries of the catalogue: written right, and refused where REGARDS would misunderstand them."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from conftest import client_of
from lucene_trees import FILE, GRAMMAR, WRITTEN

from regards_nb import queries
from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.simulator import Simulator

TREES: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))
DAY_END = "2026-01-02T23:59:59.999999Z"
PARIS = timezone(timedelta(hours=1))


@pytest.mark.parametrize("query", [*WRITTEN, *GRAMMAR])
def test_what_is_refused_is_what_lucene_makes_ambiguous(query: str) -> None:
    """A Boolean of several terms has no word between them; an Or with an And in it mixes both."""
    is_ambiguous = any(
        (name == "Boolean" and len(children) > 1) or (name == "Or" and "And" in children)
        for name, children in nodes_of(TREES[query])
    )
    try:
        queries.check(query)
    except SettingsError:
        assert is_ambiguous, TREES[query]
    else:
        assert not is_ambiguous, TREES[query]


def nodes_of(tree: str) -> list[tuple[str, list[str]]]:
    """Return each node of a tree with the names of its children."""
    nodes: list[tuple[str, list[str]]] = []
    opened: list[tuple[str, list[str]]] = []
    for name, bracket in re.findall(r"(\w+)|([()])", tree):
        if name:
            node: tuple[str, list[str]] = (name, [])
            nodes.append(node)
            if opened:
                opened[-1][1].append(name)
        elif bracket == "(":
            opened.append(nodes[-1])
        else:
            opened.pop()
    return nodes


@pytest.mark.parametrize("query", WRITTEN)
def test_what_is_written_is_read_by_lucene(query: str) -> None:
    """Whatever the values hold, the parser of REGARDS reads the query."""
    assert TREES[query] != "error"


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (
            date(2026, 1, 1),
            date(2026, 1, 2),
            "2026-01-01T00:00:00.000Z 2026-01-02T23:59:59.999999Z",
        ),
        ("2026-01-01", "2026-01-02", "2026-01-01T00:00:00.000Z 2026-01-02T23:59:59.999999Z"),
        ("2026-01-01T10:00:00+01:00", None, "2026-01-01T09:00:00.000Z *"),
        (None, datetime(2026, 1, 1, 10, tzinfo=PARIS), "* 2026-01-01T09:00:00.000Z"),
        (datetime(2026, 1, 1), None, "2026-01-01T00:00:00.000Z *"),  # noqa: DTZ001 - UTC is meant
        (pd.Timestamp("2026-01-01 10:00", tz="Europe/Paris"), None, "2026-01-01T09:00:00.000Z *"),
        (np.datetime64("2026-01-01"), None, "2026-01-01T00:00:00.000Z *"),
        (np.datetime64("2026-01-01T00:00:00", "ns"), None, "2026-01-01T00:00:00.000Z *"),
        (np.int64(1), np.float64(1.5), "1 1.5"),
        (-5, 2**40, "-5 1099511627776"),
        ("-1.5e3", "7", "-1500 7"),
        (7.0, np.float64(8), "7 8"),
    ],
)
def test_the_ends_of_a_range_are_numbers_or_date_times(low: Any, high: Any, wanted: str) -> None:
    """A date alone, which REGARDS refuses, becomes the beginning or the end of its day in UTC."""
    ends = ["*" if end == "*" else f'"{end}"' for end in wanted.split()]
    assert queries.between("x", low, high) == f"x:[{ends[0]} TO {ends[1]}]"


@pytest.mark.parametrize(
    "end", ["abc", "", "2026-13-01", True, float("nan"), float("inf"), pd.NaT, object(), b"7"]
)
def test_a_text_has_no_range(end: Any) -> None:
    """REGARDS has ranges of numbers and dates only."""
    with pytest.raises(SettingsError, match="ranges of text|not a"):
        queries.between("x", end, None)


@pytest.mark.parametrize(
    ("low", "high"), [(8, 7), ("2026-01-02", date(2026, 1, 1)), (1.5, "1"), (-1, -2.5)]
)
def test_a_range_that_nothing_can_be_in_is_refused(low: Any, high: Any) -> None:
    """The ends were mixed up; nothing would be found, and nobody would know why."""
    with pytest.raises(SettingsError, match="its low end is above the high one"):
        queries.between("x", low, high)


def test_values_are_written_as_fields_take_them() -> None:
    """A whole number without a point, a date as its day, also in a list."""
    assert queries.fields(cycle=8.0) == 'cycle:"8"'
    assert queries.fields(cycle=[8.0, 7]) == '(cycle:("8" OR "7"))'
    day = 'time:["2026-01-01T00:00:00.000Z" TO "2026-01-01T23:59:59.999999Z"]'
    assert queries.fields(time=[date(2026, 1, 1)]) == f"({day})"
    with pytest.raises(SettingsError, match=r"cycle=\[\] has no value"):
        queries.fields(cycle=[])
    with pytest.raises(SettingsError, match="the catalogue has ranges instead"):
        queries.check("cycle > 7")


def test_a_range_has_an_end() -> None:
    """Two open ends would match everything that has the field."""
    with pytest.raises(SettingsError, match="has no end"):
        queries.between("x", None, None)


def test_a_mixture_is_refused_with_both_readings() -> None:
    """The two ways to write it with parentheses are both accepted."""
    with pytest.raises(SettingsError, match="understands") as caught:
        queries.check("NOT a:1 AND b:2 OR c:3")
    written = re.findall(r'"([^"]+)"', str(caught.value))
    assert written[2:] == ["(NOT a:1 AND b:2) OR c:3", "NOT a:1 AND (b:2 OR c:3)"]
    for query in written[2:]:
        queries.check(query)


def test_combinations_refuse_a_mixture(simulator: Simulator) -> None:
    """Parentheses round a mixture do not help."""
    for combine in (queries.both, queries.either, queries.without):
        with pytest.raises(SettingsError, match="understands"):
            combine("a AND b OR c", "d")
        with pytest.raises(SettingsError):
            combine("", "d")
    with pytest.raises(SettingsError, match="no queries"):
        queries.both()


def test_a_mixture_is_refused_before_anything_is_sent(simulator: Simulator) -> None:
    """No order is made of more than the user meant."""
    with client_of(simulator) as client:
        with pytest.raises(SettingsError, match="understands"):
            client.apply(["cycle:8 AND pass:1 OR pass:2"])
        assert not simulator.requests


def test_products_are_found_by_what_identifies_them(simulator: Simulator) -> None:
    """An order of provider ids, and one of URNs, have the files of those products."""
    (one, two) = simulator.service.catalogue.search("cycle:8 AND pass:[1 TO 2]")
    with client_of(simulator) as client:
        for wanted in (
            queries.provider_ids([one.provider_id, two.provider_id]),
            queries.urns([one.urn, two.urn]),
            [queries.both("cycle:8", queries.between("pass", 1, 2))],
            [queries.both("cycle:8", queries.between("date_obs", *dates(one, two)))],
            [queries.without("cycle:8", queries.between("pass", 3, None))],
        ):
            answer = client.apply(wanted)
            assert answer.order_id is not None, answer
            files = simulator.service.orders[answer.order_id].files
            names = {file.spec.name.partition(".")[0] for file in files}
            # A document of the data set comes with every order.
            assert names == {one.provider_id, two.provider_id, "SWOT_SSH_FORMAT"}


def dates(one: Any, two: Any) -> tuple[date, date]:
    """Return the days of two products."""
    return one.attributes["date_obs"].astimezone(UTC).date(), two.attributes["date_obs"].date()


@pytest.mark.parametrize("form", [np.array, pd.Series])
@pytest.mark.parametrize("values", [[7, 8.5], ["a", "b"], [datetime(2026, 1, 1)]])  # noqa: DTZ001
def test_a_column_holds_alternatives(form: Callable[[object], Any], values: list[object]) -> None:
    """As the list of its values does; each of them may be given alone, too."""
    column = form(values)
    column = column.astype("datetime64[us]") if isinstance(values[0], datetime) else column
    assert queries.fields(a=column) == queries.fields(a=values)
    assert queries.fields(a=next(iter(column))) == queries.fields(a=values[0])


@pytest.mark.parametrize(
    "write",
    [queries.selection, queries.provider_ids, lambda names: queries.fields(instrument=names)],
)
def test_a_set_is_written_in_one_order(write: Callable[[object], object]) -> None:
    """Each process has sets in another order, and a request is compared with an earlier one."""
    names = [chr(code) for code in range(ord("a"), ord("z"))]
    assert write(set(names)) == write(frozenset(names)) == write(names)
