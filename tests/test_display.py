"""The board in HTML and in text: pure rendering."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_tracker import NOON, ScriptedSnapshot, order

from regards_nb.consumer import Health, HealthState
from regards_nb.display import (
    MAX_ROWS,
    NAME_CHARS,
    WAITS,
    DownloadRates,
    OrderFacts,
    Severity,
    TableModel,
    html,
    table_model,
    text,
)
from regards_nb.orders import replaced
from regards_nb.text import clean, size

HOSTILE = "<img src=x onerror=\"window.__xss=1\"> </script> & 'quotes' \x1b[31m \u202e\n\x00"

_TAGS = {"style", "div", "span", "i", "table", "thead", "tbody", "tr", "th", "td", "progress"}
_ATTRIBUTES = {
    "class", "style", "role", "scope", "title", "max", "value", "aria-label", "aria-live",
    "aria-hidden",
}  # fmt: skip


class _Page(HTMLParser):
    """What a browser would make of it: elements, attributes and words."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All the words, in order."""
        return " ".join(self.words)


@given(
    name=st.text(),
    label=st.none() | st.text(),
    status=st.text(min_size=1),
    message=st.none() | st.text(),
    error_type=st.none() | st.text(),
    problem=st.text(),
    reason=st.text(),
    note=st.text(),
)
@example(
    name=HOSTILE,
    label=HOSTILE,
    status=HOSTILE,
    message=HOSTILE,
    error_type=HOSTILE,
    problem=HOSTILE,
    reason=HOSTILE,
    note=HOSTILE,
)
def test_no_string_of_others_becomes_markup(
    *,
    name: str,
    label: str | None,
    status: str,
    message: str | None,
    error_type: str | None,
    problem: str,
    reason: str,
    note: str,
) -> None:
    """Whatever the strings hold, the page has our elements and attributes only, well nested."""
    snapshot = ScriptedSnapshot(
        orders=(
            order(name, label=label, status=status, message=message, error_type=error_type),
            order("other", tenant=name),
        ),
        health=Health(state=HealthState.RECONNECTING, since=NOON, reason=reason),
        background_errors=(problem,),
    )
    page = _Page(html(snapshot, note=note))
    assert set(page.tags) <= _TAGS
    assert {attribute for attribute, _ in page.attributes} <= _ATTRIBUTES
    assert page.open == []
    assert page.tags.count("tr") == 3


@pytest.mark.parametrize("address", [None, "amqp://host"])
def test_an_outage_names_the_one_that_is_away(address: str | None) -> None:
    """A tracker without a broker asks REGARDS alone."""
    health = Health(state=HealthState.RECONNECTING, since=NOON, reason="away", address=address)
    text = table_model(ScriptedSnapshot(orders=(), health=health)).health
    assert ("RabbitMQ" in text) == (address is not None)


@given(st.text(), st.integers(1, 200))
@example(HOSTILE, 160)
@example("\ud800 lone", 160)
def test_cleaned_text_is_one_printable_line_within_its_limit(raw: str, limit: int) -> None:
    """Cleaning leaves nothing that moves a cursor, turns the text around or breaks the line."""
    shown = clean(raw, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    assert not set(shown) & {chr(code) for code in (*range(32), *range(127, 160))}
    assert not set(shown) & set(
        "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2069"
    )
    shown.encode()


def test_html_and_text_say_the_same() -> None:
    """Each word of each row, headline, health line, note and problem is in both renderings."""
    snapshot = ScriptedSnapshot(
        orders=(
            order("a", 1, label="swath A & B", message="<b>not bold</b>"),
            order(
                "b",
                2,
                status="SUBORDER_DONE",
                waits_for_download=True,
                suborders_done=3,
                suborders_total=10,
                files_total=40,
                bytes_total=3_400_000_000,
                downloaded_files=12,
                downloaded_bytes=1_200_000_000,
                expires_at=NOON,
            ),
            order("c", None, status="DENIED", error_type="FORBIDDEN", errors=1),
        ),
        background_errors=("callback f on DONE: ValueError: x",),
        rejected=1,
    )
    in_text, in_html = text(snapshot, note="a note"), _Page(html(snapshot, note="a note")).text
    shown = table_model(snapshot)
    words = [shown.headline, shown.health, "a note", *shown.problems]
    words += [counted for _, counted in shown.counts]
    for row in shown.rows:
        words += [row.name, row.number, row.parts, row.status, row.files, *row.remarks]
    for word in words:
        assert word in in_text
        assert word in in_html
    assert WAITS in words
    assert "12/40 files, 1.2 GB of 3.4 GB" in words
    assert "1 message could not be decoded; see tracker.rejected" in words


def test_without_orders_it_says_so() -> None:
    """Zero orders give a sentence and no empty table."""
    assert "No orders" in text(ScriptedSnapshot())
    page = html(ScriptedSnapshot())
    assert "No orders" in page
    assert "<table" not in page


def test_a_problem_that_repeats_itself_is_one_line() -> None:
    """The same problem is said once, with how often; the latest five are shown."""
    problems = (*(f"p{n}" for n in range(9)), "again", "again")
    shown = table_model(ScriptedSnapshot(background_errors=problems)).problems
    assert shown == ("p5", "p6", "p7", "p8", "again (2 times)")


def test_a_single_order_is_not_plural() -> None:
    """One order is "1 order"."""
    assert "0 of 1 order finished" in text(ScriptedSnapshot(orders=(order(),)))


@pytest.mark.parametrize("count", [MAX_ROWS, MAX_ROWS + 1, 1000])
def test_many_orders_are_bounded_and_counted(count: int) -> None:
    """At most fifty rows are shown, the most urgent ones, and a line counts the rest."""
    done = tuple(
        order(f"d{n}", n, status="DONE", last_event=NOON - timedelta(seconds=n))
        for n in range(1, count)
    )
    failed = order("late", count, status="FAILED")
    snapshot = ScriptedSnapshot(orders=(*done, failed))
    page = html(snapshot)
    assert page.count("<tr ") == MAX_ROWS
    assert page.index("late") < page.index(">d1<")
    hidden = count - MAX_ROWS
    assert (f"and {hidden} more order" in page) == (hidden > 0)
    assert len(page) < 60_000
    assert len(text(snapshot).splitlines()) <= MAX_ROWS + 4


def test_rows_come_by_urgency_and_then_by_number() -> None:
    """First what needs the user, then failures, then what runs, then what ended, latest first."""
    snapshot = ScriptedSnapshot(
        orders=(
            order("done", 1, status="DONE"),
            order("done-later", 8, status="DONE", last_event=NOON + timedelta(hours=1)),
            order("runs-2", 9),
            order("new", None),
            order("runs-1", 2),
            order("partly", 3, status="FAILED", download_link="x"),
            order("failed", 4, status="FAILED"),
            order("waits", 5, waits_for_download=True),
        )
    )
    rows = table_model(snapshot).rows
    assert [row.name for row in rows] == [
        "waits", "failed", "partly", "runs-1", "runs-2", "new", "done-later", "done",
    ]  # fmt: skip
    assert [row.severity for row in rows[:4]] == [
        Severity.WAITS, Severity.FAILED, Severity.INCOMPLETE, Severity.RUNNING,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("known", "fraction", "parts"),
    [
        ({}, None, "0/?"),
        ({"suborders_done": 3}, None, "3/?"),
        ({"suborders_done": 3, "suborders_total": 10}, 0.3, "3/10"),
        ({"suborders_done": 12, "suborders_total": 10}, 1.0, "12/10"),
        ({"suborders_total": 0}, None, "0/?"),
        ({"status": "DONE", "suborders_done": 3}, 1.0, ""),
        ({"status": "DONE"}, 1.0, ""),
        ({"status": "DENIED"}, None, ""),
        ({"progress": 0.25}, 0.25, "0/?"),
    ],
)
def test_bars_are_sane_whatever_the_counts(
    known: dict[str, Any], fraction: float | None, parts: str
) -> None:
    """Unknown totals give no bar, zero totals no division, and too many parts a full bar."""
    snapshot = ScriptedSnapshot(orders=(order(**known),))
    (row,) = table_model(snapshot).rows
    assert (row.fraction, row.parts) == (fraction, parts)
    page = html(snapshot)
    assert ('<progress class="rg-parts-bar"' in page) == (fraction is not None)
    if fraction is not None:
        assert f'value="{fraction:.4g}"' in page
    in_text = text(snapshot).splitlines()[-1]
    assert ("█" in in_text or "░" in in_text) == (fraction is not None)


def test_bars_have_names_for_those_who_cannot_see_them() -> None:
    """A progress element says which order it is about, and its value as text."""
    snapshot = ScriptedSnapshot(
        orders=(order("a", 7, label='my "order"', suborders_done=1, suborders_total=2),)
    )
    page = _Page(html(snapshot))
    assert ("aria-label", 'parts of order #7 my "order"') in page.attributes
    assert page.attributes.count(("scope", "col")) == 4
    assert ("scope", "row") in page.attributes
    assert ("role", "status") in page.attributes


def test_a_running_download_has_a_bar_of_its_own() -> None:
    """Below the bar of the parts, one of the bytes, as long as files come in."""
    known = {"suborders_done": 2, "suborders_total": 2, "downloaded_files": 3, "files_total": 4}
    still = order("a", 7, downloaded_bytes=600, bytes_total=800, **known)
    (row,) = table_model(ScriptedSnapshot(orders=(still,))).rows
    assert row.fetched is None
    coming = order("a", 7, downloaded_bytes=600, bytes_total=800, downloading=True, **known)
    page = html(ScriptedSnapshot(orders=(coming,)))
    assert ("aria-label", "bytes of order #7 a") in _Page(page).attributes
    assert 'value="0.75"' in page
    assert "3/4 files, 600 B of 800 B" in page
    (row,) = table_model(ScriptedSnapshot(orders=(replaced(coming, bytes_total=1),))).rows
    assert row.fetched == 1.0


def test_tenants_are_named_only_where_they_differ() -> None:
    """Orders of several tenants carry the tenant beside their number."""
    one = ScriptedSnapshot(orders=(order("a"), order("b", 2)))
    two = ScriptedSnapshot(orders=(order("a"), order("a", 2, tenant="project2")))
    assert "project1" not in text(one)
    assert "#2 project2" in text(two)


@pytest.mark.parametrize("state", list(HealthState))
def test_every_state_of_the_connection_is_said_in_words(state: HealthState) -> None:
    """The line on the connection has a word for each state, and the reason when it is down."""
    health = Health(state=state, since=NOON, reason="the broker <is> away", queue_depth=12)
    shown = table_model(ScriptedSnapshot(health=health))
    assert "since 2026-11-23 12:00 UTC" in shown.health
    assert "12 in the queue" in shown.health
    assert ("the broker <is> away" in shown.health) == (state is not HealthState.CONSUMING)
    assert "the broker <is> away" not in html(ScriptedSnapshot(health=health))


def test_the_last_event_of_another_day_has_its_date() -> None:
    """A time of day alone is given only for the day that stands before it."""
    later = datetime(2026, 11, 25, 8, 30, tzinfo=UTC)
    same = Health(state=HealthState.CONSUMING, since=NOON, last_event=NOON)
    other = Health(state=HealthState.CONSUMING, since=NOON, last_event=later)
    assert "last event 12:00:00 UTC" in table_model(ScriptedSnapshot(health=same)).health
    assert (
        "last event 2026-11-25 08:30:00 UTC" in table_model(ScriptedSnapshot(health=other)).health
    )


def test_long_messages_are_cut_and_kept_for_the_pointer() -> None:
    """A message of 10 kB takes a line of the table and a bounded tool tip."""
    page = html(ScriptedSnapshot(orders=(order(message="word " * 2000),)))
    assert len(page) < 9_000
    (title,) = [
        value
        for name, value in _Page(page).attributes
        if name == "title" and value and "word word" in value
    ]
    assert len(title) == 1000


def test_wide_characters_keep_the_columns_of_the_text_aligned() -> None:
    """Chinese characters fill two cells of a terminal, and are counted so."""
    snapshot = ScriptedSnapshot(orders=(order("中文", 1), order("abcd", 2)))
    first, second = text(snapshot).splitlines()[-2:]
    assert first.index("0/?") == second.index("0/?") - 2


def test_a_filter_limits_the_rows_and_not_the_counts() -> None:
    """All words must be in name, number, status or message; the headline stays about all orders."""
    snapshot = ScriptedSnapshot(
        orders=(
            order("a", 1, label="Swath North", status="DONE"),
            order("b", 2, label="swath south", message="the tape is <b>slow</b>"),
            order("nb-47", 30, label="altimetry", waits_for_download=True),
        )
    )

    def found(only: str) -> list[str]:
        return [row.name for row in table_model(snapshot, only=only).rows]

    assert found("  ") == ["altimetry", "swath south", "Swath North"]
    assert found("SWATH") == ["swath south", "Swath North"]
    assert found("swath done") == ["Swath North"]
    assert found("slow") == ["swath south"]
    assert found("#3") == found("waits") == ["altimetry"]
    assert found("nowhere") == found("nb-4") == []
    assert found("nb-47") == ["altimetry"]
    shown = table_model(snapshot, only="swath")
    assert shown.more == "2 of 3 orders match \u201cswath\u201d"
    assert (Severity.WAITS, "REGARDS waits for you: 1 to download") in shown.counts
    assert shown.headline == "1 of 3 orders finished"
    assert "none of 3 orders match" in table_model(snapshot, only="nowhere").more


@given(
    st.lists(
        st.dictionaries(
            st.integers(1, 5),
            st.sampled_from(["GRANTED", "PAUSED", "FAILED", "DONE", "EXPIRED"]),
        ),
        max_size=5,
    )
)
def test_a_view_shows_what_a_new_one_would(pictures: list[dict[int, str]]) -> None:
    """Orders that come, change, stay and go between repaints: the kept facts change no text."""
    facts = OrderFacts()
    states: dict[tuple[int, str], Any] = {}
    for picture in pictures:
        orders = tuple(
            states.setdefault((n, status), order(f"o{n}", n, status=status, suborders_done=n))
            for n, status in picture.items()
        )
        snapshot = ScriptedSnapshot(orders=orders)
        for only in ("", "done", "o1"):
            seen = table_model(snapshot, only=only, facts=facts, now=after(9))
            assert seen == table_model(snapshot, only=only, now=after(9))


@given(st.text())
@example(HOSTILE)
def test_any_filter_is_only_text(only: str) -> None:
    """Whatever is typed finds rows or none; it is shown cleaned."""
    snapshot = ScriptedSnapshot(orders=(order(only or "x", 1), order("other", 2)))
    shown = table_model(snapshot, only=only)
    assert not only.strip() or clean(only, NAME_CHARS) in shown.more
    assert len(shown.more.splitlines()) <= 1


@pytest.mark.parametrize(
    ("known", "actions"),
    [
        ({"order_id": None, "status": "DENIED"}, set()),
        ({}, {"pause", "cancel"}),
        ({"status": "SUBORDER_DONE", "waits_for_download": True}, {"download", "pause", "cancel"}),
        ({"status": "SUBORDER_DONE", "download_link": "x", "downloading": True},
         {"pause", "cancel"}),
        ({"status": "PAUSED"}, {"resume", "cancel"}),
        ({"status": "FAILED"}, {"retry"}),
        ({"status": "FAILED", "download_link": "x"}, {"retry", "download"}),
        ({"status": "DONE", "download_link": "x"}, {"download"}),
        ({"status": "DELETED", "download_link": "x"}, set()),
        ({"status": "TELEPORTED"}, {"pause", "cancel"}),
    ],
)  # fmt: skip
def test_what_can_be_done_follows_the_status(known: dict[str, Any], actions: set[str]) -> None:
    """As in REGARDS' own table: pause what runs, resume what is paused, retry what failed."""
    (row,) = table_model(ScriptedSnapshot(orders=(order(**known),))).rows
    assert row.actions == actions


@pytest.mark.parametrize("status", ["EXPIRED", "DELETED"])
def test_what_is_gone_is_no_failure(status: str) -> None:
    """An order that was deleted or has expired comes last, and is counted as finished."""
    gone, done = order("gone", 1, status=status), order("done", 2, status="DONE")
    shown = table_model(ScriptedSnapshot(orders=(gone, done)))
    assert [row.name for row in shown.rows] == ["done", "gone"]
    assert shown.rows[1].severity is Severity.GONE
    assert shown.counts == ()


def test_the_connection_is_said_without_the_token_and_a_stop_is_no_warning() -> None:
    """The client renews its token itself; what the user stopped or did not start is not wrong."""
    assert "token" not in text(ScriptedSnapshot())
    stopped = Health(state=HealthState.STOPPED, since=NOON)
    shown = table_model(ScriptedSnapshot(health=stopped))
    assert shown.health_severity is Severity.GONE
    assert shown.health.endswith(" UTC · tracker.start() listens")
    failed = Health(state=HealthState.FAILED, since=NOON, reason="no such queue")
    assert table_model(ScriptedSnapshot(health=failed)).health_severity is Severity.FAILED


def after(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("known", "timing"),
    [
        ({}, "20 min"),
        ({"suborders_done": 1, "suborders_total": 5}, "20 min, about 1 h 20 min left"),
        ({"suborders_done": 5, "suborders_total": 5}, "20 min"),
        ({"suborders_done": 1, "suborders_total": 5, "waits_for_download": True}, "20 min"),
        ({"suborders_done": 1, "suborders_total": 5, "status": "PAUSED"}, "20 min"),
        ({"status": "DONE", "last_event": after(5)}, "took 5 min"),
        ({"status": "DENIED"}, ""),
        ({"first_event": after(30)}, "0 s"),
    ],
)
def test_each_order_says_how_long_it_runs_and_will_run(known: dict[str, Any], timing: str) -> None:
    """Elapsed time always; remaining time only where something moves and the total is known."""
    (row,) = table_model(ScriptedSnapshot(orders=(order(**known),)), now=after(20)).rows
    assert row.timing == timing


def test_a_download_shows_its_rate_and_the_time_that_is_left() -> None:
    """The rate is that of the last seconds, for the order and for all; a stop brings it to 0."""
    rates = DownloadRates()

    def at(second: float, *n_bytes: int) -> TableModel:
        orders = tuple(
            order(
                f"o{n}",
                n,
                status="DONE",
                downloading=True,
                downloaded_files=1,
                downloaded_bytes=each,
                bytes_total=100_000_000,
            )
            for n, each in enumerate(n_bytes, start=1)
        )
        rates.update(orders, second)
        return table_model(ScriptedSnapshot(orders=orders), rates=rates, now=after(2))

    assert "/s" not in at(0, 0, 0).rows[0].files
    shown = at(10, 20_000_000, 50_000_000)
    assert shown.rows[0].files == "1 file, 20.0 MB of 100.0 MB, 2.0 MB/s"
    assert [row.timing for row in shown.rows] == [
        "2 min, about 40 s left",
        "2 min, about 10 s left",
    ]
    assert shown.overall == "2 min · 7.0 MB/s · about 40 s left"
    standing = at(13, 20_000_000, 60_000_000)
    assert [row.files.rpartition(", ")[2] for row in standing.rows] == ["0 B/s", "4.6 MB/s"]
    at(30, 20_000_000, 50_000_000)
    assert at(46, 20_000_000, 50_000_000).rows[0].timing == "2 min"


def test_one_bar_stands_over_all_orders_of_now() -> None:
    """It has the unfinished orders and those that ran beside them, not those of last week."""
    old = order("old", 1, status="DONE", last_event=after(-60), first_event=after(-90))
    beside = order("beside", 2, status="FAILED", last_event=after(5))
    half = order("half", 3, suborders_done=2, suborders_total=4)
    new = order("new", None)
    shown = table_model(ScriptedSnapshot(orders=(old, beside, half, new)), now=after(8))
    assert shown.fraction == pytest.approx(0.5)
    assert shown.overall == "2/4 parts · 8 min · about 8 min left"
    waits = order("waits", 4, suborders_done=2, suborders_total=4, waits_for_download=True)
    shown = table_model(ScriptedSnapshot(orders=(half, waits)), now=after(8))
    assert shown.overall == "4/8 parts · 8 min", "nobody knows when the user downloads"
    assert html(ScriptedSnapshot(orders=(old,))).count("rg-all-bar") == 2  # style and bar
    assert table_model(ScriptedSnapshot(orders=(old,))).fraction == 1.0
    assert table_model(ScriptedSnapshot()).fraction is None


@pytest.mark.parametrize(
    ("orders", "rest", "said"),
    [
        ([{}], {}, ""),
        ([{"status": "DONE", "last_event": after(-99)}], {}, ""),
        ([{"last_event": after(-25)}], {}, "No event from REGARDS for 30 min"),
        ([{"last_event": after(-25), "downloading": True}], {}, ""),
        ([{"status": "PAUSED"}], {}, "Nothing moves: paused order #1; tracker.resume() continues"),
        (
            [{"status": "PAUSED"}],
            {"acting": ("asking REGARDS to cancel order 1",)},
            "asking REGARDS to cancel order 1",
        ),
        (
            [{}],
            {"health": Health(state=HealthState.STOPPED, since=NOON)},
            "Nothing moves here: the tracker is stopped; tracker.start() continues",
        ),
        (
            [{}],
            {"blocking": (order("x", 7, label="June"), order("y", 8))},
            "REGARDS prepares at most two sub-orders per user, and orders 7, 8 wait for a download",
        ),
    ],
)
def test_the_header_says_why_nothing_moves(
    orders: list[dict[str, Any]], rest: dict[str, Any], said: str
) -> None:
    """Blocked by orders that are waited for or not, paused, stopped, quiet: in words, above all."""
    shown = ScriptedSnapshot(orders=tuple(order(**each) for each in orders), **rest)
    model = table_model(shown, now=after(5))
    assert model.standstill.partition(": tracker.download(")[0] == said
    if shown.orders[0].status == "PAUSED":
        assert [words for _, words in model.counts] == ["1 paused"]
    assert said.partition(" for ")[0] in text(shown)


@given(st.integers(0, 10**18))
def test_sizes_have_at_most_one_decimal_and_a_unit(n_bytes: int) -> None:
    """Sizes stay short, and 1000 kB is written as 1.0 MB."""
    number, unit = size(n_bytes).split()
    assert unit in {"B", "kB", "MB", "GB", "TB"}
    assert float(number) < 1000 or unit == "TB"


def test_escaping_is_undone_by_reading() -> None:
    """What the page shows is the cleaned text itself, not its escaped form."""
    snapshot = ScriptedSnapshot(orders=(order(label="a < b & c"),))
    assert "a &lt; b &amp; c" in html(snapshot)
    assert "a < b & c" in unescape(html(snapshot))


def test_a_tracker_without_a_client_names_no_download_for_missing_files() -> None:
    """It cannot download: the row says what to add."""
    lacking = order("a", 1, status="DONE", files_total=3, downloaded_files=1)
    shown = text(ScriptedSnapshot(orders=(lacking,)))
    assert "tracker.download(1) tries the missing files again" in shown
    shown = text(ScriptedSnapshot(orders=(lacking,), can_download=False))
    assert "files are missing: download in a kernel that has a client, or make this" in shown
    assert "tracker.download" not in shown
