"""The frames: the content of the journal, with columns and dtypes that never change."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strategies import delivery, histories

from regards_nb.client import RemoteOrder
from regards_nb.errors import JournalError, SettingsError, WorkspaceError
from regards_nb.events import REST_APP_ID, OrderEvent, decode
from regards_nb.files import FileRecord, FileState
from regards_nb.frames import (
    EVENT_DTYPES,
    FILE_DTYPES,
    ORDER_DTYPES,
    REJECTED_DTYPES,
    Answer,
    Frames,
    States,
    plain,
)
from regards_nb.journal import Journal, Position
from regards_nb.orders import OrderKey, OrderReducer, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

# As promised to the users, column by column.
EVENT_COLUMNS = [
    "received_at", "timestamp", "tenant", "correlation_id", "order_id", "status", "message",
    "download_link", "error_type", "errors", "total_sub_orders", "sub_order_id", "app_id",
    "redelivered",
]  # fmt: skip
ORDER_COLUMNS = [
    "label", "order_id", "status", "finished", "progress", "suborders_done", "suborders_total",
    "errors", "error_type", "message", "downloaded_files", "downloaded_bytes", "first_event",
    "last_event", "waits_for_download", "expires_at", "download_link",
]  # fmt: skip
FILE_COLUMNS = [
    "order_id", "correlation_id", "name", "path", "size_bytes", "md5", "state", "error",
    "fetched_at",
]  # fmt: skip


def append(journal: Journal, *bodies: bytes | dict[str, Any], **properties: Any) -> None:
    session_id = journal.open_session("q")
    journal.append(session_id, [delivery(body, **properties) for body in bodies])


GRANTED = {"status": "GRANTED", "orderId": 5, "correlationId": "c"}
PART = {"status": "SUBORDER_DONE", "orderId": 5, "correlationId": "c", "totalSubOrders": 2}
DONE = {"status": "DONE", "orderId": 5, "correlationId": "c", "downloadLink": "https://link"}


def dtypes(frames: Frames) -> list[pd.Series]:
    return [frames.events.dtypes, frames.orders.dtypes, frames.files.dtypes, frames.rejected.dtypes]


def test_columns_and_dtypes_are_as_promised_from_the_first_row_on(journal: Journal) -> None:
    """An empty frame has the dtypes of a full one."""
    frames = Frames(journal, None)
    assert list(frames.events) == EVENT_COLUMNS == list(EVENT_DTYPES)
    assert list(frames.orders) == ORDER_COLUMNS == list(ORDER_DTYPES)
    assert list(frames.files) == FILE_COLUMNS == list(FILE_DTYPES)
    assert list(frames.rejected) == list(REJECTED_DTYPES)
    assert frames.orders.index.names == ["tenant", "correlation_id"]
    empty = dtypes(frames)
    append(journal, GRANTED, PART, DONE, b"poison")
    append(journal, {"status": "DENIED", "correlationId": "d"}, tenant=None, timestamp_s=None)
    journal.file_log("tenant").save([FileRecord(order_id=5, file_id=1, name="a.nc")])
    for before, after in zip(empty, dtypes(frames), strict=True):
        pd.testing.assert_series_equal(before, after)


def test_events_are_in_journal_order_with_their_values(journal: Journal) -> None:
    """Each column holds the value of the message; fields that a message lacks are missing."""
    append(journal, GRANTED, PART | {"subOrderId": 7}, timestamp_s=1681461977)
    events = Frames(journal, None).events
    assert list(events["status"]) == ["GRANTED", "SUBORDER_DONE"]
    row = events.iloc[1]
    assert row["timestamp"] == pd.Timestamp("2023-04-14 08:46:17", tz="UTC")
    assert row["received_at"] == pd.Timestamp("2023-11-14 22:13:20.123456", tz="UTC")
    assert (row["order_id"], row["sub_order_id"], row["total_sub_orders"]) == (5, 7, 2)
    assert row["tenant"] == "tenant"
    assert pd.isna(row["message"])
    assert pd.isna(events["sub_order_id"].iloc[0])


def test_what_is_new_is_added_to_what_was_there(journal: Journal) -> None:
    """A frame grows with the journal, also by rows that another process wrote."""
    frames = Frames(journal, None)
    append(journal, GRANTED)
    before = frames.events
    append(journal, PART, {"status": "ON_TAPE", "orderId": 5})
    assert len(before) == 1
    assert list(frames.events["status"]) == ["GRANTED", "SUBORDER_DONE", "ON_TAPE"]
    append(journal, DONE)
    assert list(frames.events["status"])[3:] == ["DONE"]


def test_a_frame_that_is_changed_does_not_change_the_history(journal: Journal) -> None:
    """A user who writes into a frame changes that frame only."""
    frames = Frames(journal, None)
    append(journal, GRANTED)
    mine = frames.events
    mine["message"] = "mine"
    mine.loc[0, "order_id"] = 99
    assert pd.isna(frames.events.loc[0, "message"])
    assert frames.events.loc[0, "order_id"] == 5


def test_one_row_per_order_with_files_counted(journal: Journal) -> None:
    """The row of an order joins its events and its files."""
    append(journal, GRANTED, PART)
    log = journal.file_log("tenant")
    log.save(
        [
            FileRecord(
                order_id=5, file_id=1, name="a", size_bytes=10, path="/a", state=FileState.VERIFIED
            ),
            FileRecord(order_id=5, file_id=2, name="b", size_bytes=20),
        ]
    )
    journal.save_request("tenant", "c", label="my order", body="{}")
    frames = Frames(journal, "tenant")
    row = frames.orders.loc[("tenant", "c")]
    assert (row["order_id"], row["status"], row["finished"]) == (5, "SUBORDER_DONE", False)
    assert (row["progress"], row["suborders_done"], row["suborders_total"]) == (0.5, 1, 2)
    assert (row["downloaded_files"], row["downloaded_bytes"]) == (1, 10)
    assert row["label"] == "my order"
    (state,) = frames.states()
    assert (state.files_total, state.bytes_total) == (2, 30)


def test_a_part_waits_until_it_is_fetched(journal: Journal) -> None:
    """An order waits from the announcement of a sub-order until that is fetched."""
    frames = Frames(journal, None)
    append(journal, PART)
    (state,) = frames.states()
    assert state.waits_for_download
    journal.save_fetched("tenant", 5, state.ready_row)
    assert not frames.states()[0].waits_for_download
    append(journal, PART)
    assert frames.states()[0].waits_for_download


def test_only_the_tenant_asked_for_is_shown(journal: Journal) -> None:
    """Another tenant's events stay in the journal and out of the frames."""
    append(journal, GRANTED, tenant="mine")
    append(journal, {"status": "DONE", "correlationId": "theirs"}, b"poison", tenant="theirs")
    mine, everything = Frames(journal, "mine"), Frames(journal, None)
    assert list(mine.events["correlation_id"]) == ["c"]
    assert len(mine.rejected) == 0
    assert len(everything.events) == 2
    assert len(everything.rejected) == 1


def test_rejected_messages_keep_their_bytes_and_the_reason(journal: Journal) -> None:
    """A message that cannot be decoded is kept in its own frame, with the reason."""
    big = b'{"status": "DONE", "orderId": 1, "message": "' + b"x" * 20_000_000 + b'"}'
    append(journal, b"", b"\xff", b"[]", GRANTED, big)
    rejected = Frames(journal, None).rejected
    assert list(rejected["body"]) == [b"", b"\xff", b"[]", big]
    assert rejected["reason"].str.len().min() > 0
    assert rejected["received_at"].notna().all()


def test_orders_are_found_by_either_name(journal: Journal) -> None:
    """`key_of` takes a correlation id (str) and an order id (int)."""
    frames = Frames(journal, None)
    append(journal, GRANTED)
    key = OrderKey("tenant", "c")
    assert frames.key_of("c") == frames.key_of(5) == key
    assert frames.key_of("5") is None
    assert frames.key_of(6) is None


NAMELESS = {"status": "FAILED", "orderId": 5}


def test_the_rows_of_an_order_are_found_while_it_gets_its_name(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and names are looked up at one moment, also if an event arrives meanwhile."""
    frames = Frames(journal, None)
    append(journal, NAMELESS)
    assert list(frames.orders.index) == [("tenant", "#5")]
    look = journal.position

    def look_and_receive(**_: Any) -> Position:
        seen = look()
        append(journal, GRANTED)
        return seen

    monkeypatch.setattr(journal, "position", look_and_receive)
    assert list(frames.orders_of([5]).index) == [("tenant", "#5")]
    assert list(frames.orders_of([5, "nobody"]).index) == [("tenant", "c")]
    assert list(frames.orders_of([OrderKey("tenant", "#5")]).index) == [("tenant", "c")]
    assert frames.orders_of([]).empty


def answer(at_s: float, *, waits: bool = False, **told: Any) -> Answer:
    """Return an answer of the server about order 5, at a time of its clock."""
    at = datetime.fromtimestamp(at_s, UTC)
    remote = RemoteOrder(order_id=5, **({"status": "FAILED"} | told), asked_at=at)
    return Answer.of(remote, waits=waits)


def test_what_rest_said_stays_when_an_order_gets_its_name(journal: Journal) -> None:
    """The answer over REST moves to the new name: REST sync asks again only later."""
    frames = Frames(journal, None)
    append(journal, NAMELESS)
    expires_at = datetime(2026, 1, 1, tzinfo=UTC)
    frames.keep_answers({("tenant", 5): answer(1, expires_at=expires_at)})
    append(journal, GRANTED)
    assert [state.expires_at for state in frames.states()] == [expires_at]
    frames.keep_answers({("tenant", 5): answer(2, percent_completed=50)})
    assert [state.progress for state in frames.states()] == [0.5]


TOLD = st.fixed_dictionaries(
    {"status": st.sampled_from(["RUNNING", "DONE", "FAILED", "EXPIRED"])},
    optional={
        "label": st.sampled_from(["one", "two \0 é"]),
        "percent_completed": st.integers(0, 120),
        "available_files": st.integers(0, 1),
        "files_in_error": st.integers(0, 3),
        "files_total": st.integers(0, 9),
        "bytes_total": st.integers(0, 9),
        "expires_at": st.floats(1e9, 2e9).map(lambda s: datetime.fromtimestamp(s, UTC)),
    },
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.floats(1000, 1010), st.booleans(), TOLD)
        | st.tuples(st.none() | st.integers(930, 1011), st.integers(1, 3)),
        max_size=6,
    )
)
@example([(None, 1), (1000.0, False, {"status": "DONE", "files_total": 0})])
def test_a_restarted_kernel_shows_what_rest_has_told(
    tmp_path_factory: pytest.TempPathFactory, told: list[Any]
) -> None:
    """Whatever REGARDS and messages said, the next kernel shows the same without asking.

    A message that may be newer than the last answer makes its order wait, an older one does not,
    and no order does that has ended without a file.
    """
    path = tmp_path_factory.mktemp("j") / "journal.sqlite"
    newest: Answer | None = None
    times: list[int | None] = []
    with Journal(path) as journal:
        frames, others = Frames(journal, None), Frames(journal, None)
        session_id = journal.open_session("q")
        journal.append(session_id, [delivery(GRANTED)])
        for each in told:
            if len(each) == 2:
                timestamp_s, number = each
                times.append(timestamp_s)
                part = PART | {"subOrderId": number}
                journal.append(session_id, [delivery(part, timestamp_s=timestamp_s)])
            else:
                at_s, waits, said = each
                given = answer(at_s, waits=waits, **said)
                frames.keep_answers({("tenant", 5): given})
                newest = given if given.is_new(newest) else newest
            assert [*frames.states()] == [*others.states()]
        (state,) = frames.states()
        newest = newest or answer(0)
        newer = [at is None or at >= newest.downloaded_before_s for at in times]
        has_files = newest.handed_out is None or newest.files_total != 0
        assert state.waits_for_download == (any(newer) and has_files)
        assert (state.label, state.expires_at) == (newest.label, newest.expires_at)
        again = Frames(journal, None)
        assert again.labelled("one") == ([state] if state.label == "one" else [])
        assert [*again.states()] == [state]


def test_an_answer_that_says_nothing_new_or_cannot_be_read_changes_nothing(
    journal: Journal,
) -> None:
    """It is not written again, nor in place of a later one; a damaged one is as none."""
    frames = Frames(journal, None)
    append(journal, PART, timestamp_s=90)
    of_order = ("tenant", 5)
    frames.keep_answers({of_order: answer(100, available_files=0, label="a")})
    position = journal.position()
    for same_or_earlier in (answer(200, available_files=0, label="a"), answer(99, label="b")):
        frames.keep_answers({of_order: same_or_earlier})
    assert journal.position() == position
    assert [(s.label, s.waits_for_download) for s in frames.states()] == [("a", False)]
    journal.save_answers({of_order: b"damaged"})
    assert [(s.label, s.waits_for_download) for s in frames.states()] == [(None, True)]


def test_what_rest_says_is_ready_waits_whatever_answer_came_before(journal: Journal) -> None:
    """Also after an answer in the same second that counted no file, or that comes late."""
    frames = Frames(journal, None)
    append(journal, GRANTED)
    frames.keep_answers({("tenant", 5): answer(100.9, status="RUNNING", available_files=0)})
    append(journal, PART, app_id=REST_APP_ID, timestamp_s=None)
    assert [state.waits_for_download for state in frames.states()] == [True]
    frames.keep_answers({("tenant", 5): answer(100.2, status="RUNNING", label="a")})
    assert [(s.label, s.waits_for_download) for s in frames.states()] == [("a", True)]


#: Of the lines before which Ctrl-C comes: a look runs some hundred.
STEP = 13


@pytest.mark.parametrize("look", ["events", "orders", "files", "rejected"])
def test_ctrl_c_leaves_no_half_of_a_change(journal: Journal, look: str) -> None:
    """In whatever line it comes, the next look shows all, and followers miss no event."""
    frames, line, is_interrupted = Frames(journal, None), 0, True
    followed = frames.follow(journal.last_id())
    while is_interrupted:
        line += STEP
        known = {"status": "DONE", "orderId": line - STEP, "correlationId": f"c{line - STEP}"}
        new = {"status": "GRANTED", "orderId": line, "correlationId": f"c{line}"}
        append(journal, known, new, b"no JSON")
        journal.file_log(None).save([FileRecord(order_id=STEP, file_id=1, name=f"{line}.nc")])
        is_interrupted = interrupted_in_line(line, lambda: getattr(frames, look))
        expected = getattr(Frames(journal, None), look)
        same(getattr(frames, look), expected)
    same(frames.orders, Frames(journal, None).orders)
    ids = {event.order_id for _, events in followed for event in events}
    assert ids == set(range(0, line + STEP, STEP))


def interrupted_in_line(number: int, call: Callable[[], object]) -> bool:
    """Press Ctrl-C before the *number*-th line of the frames that runs; False: there are fewer."""
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if "regards_nb/frames/" not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if event == "line" and not left:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_followers_get_each_event_once(journal: Journal) -> None:
    """A queue receives the events that arrive after `follow`, each once."""
    frames = Frames(journal, None)
    append(journal, GRANTED)
    feed = frames.follow(journal.last_id())
    append(journal, PART)
    frames.refresh()
    frames.refresh()
    assert [event.status for _, events in feed for event in events] == ["SUBORDER_DONE"]
    frames.unfollow(feed)
    append(journal, DONE)
    frames.refresh()
    assert len(feed) == 1


def test_a_journal_that_went_away_is_an_error_of_ours(tmp_path: Path, journal: Journal) -> None:
    """Reading an overwritten journal raises `JournalError` with its path."""
    append(journal, GRANTED)
    journal.close()
    for path in tmp_path.iterdir():
        path.write_bytes(b"no database " * 1000)
    with pytest.raises(JournalError, match="journal.sqlite"):
        _ = Frames(journal, None).events


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_export_can_be_read_elsewhere(tmp_path: Path, journal: Journal, kind: str) -> None:
    """All four frames with their rows, the names of the orders as columns; Parquet keeps dtypes."""
    append(journal, GRANTED, PART, b"poison")
    frames = Frames(journal, None)
    for _ in range(2):  # the second replaces the first
        paths = frames.export(tmp_path / "export", kind)
    assert [path.stem for path in paths] == ["events", "orders", "files", "rejected"]
    assert sorted(tmp_path.joinpath("export").iterdir()) == sorted(paths)
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    assert list(read(paths[0])["status"]) == ["GRANTED", "SUBORDER_DONE"]
    assert list(read(paths[0])) == EVENT_COLUMNS
    assert list(read(paths[1])) == ["tenant", "correlation_id", *ORDER_COLUMNS]
    assert list(read(paths[3])["body"]) == ["poison" if kind == "csv" else b"poison"]
    if kind == "parquet":
        pd.testing.assert_frame_equal(read(paths[0]), frames.events)
        pd.testing.assert_frame_equal(read(paths[1]), frames.orders.reset_index())


#: How many cells get an apostrophe.
SHIELDED = {"events": 12, "orders": 12, "files": 0, "rejected": 1}


def test_a_spreadsheet_runs_nothing_of_an_exported_csv(tmp_path: Path, journal: Journal) -> None:
    """A cell that a spreadsheet takes for a formula begins with an apostrophe."""
    hostile = ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1"]
    for text in hostile:
        append(journal, GRANTED | {"message": text, "correlationId": text, "orderId": 5})
    append(journal, b"=poison")
    paths = Frames(journal, None).export(tmp_path / "export", "csv")
    for path in paths:
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.lstrip()[:1] in set("=+-@")]
        assert len([cell for cell in cells if cell.startswith("'")]) == SHIELDED[path.stem]


SUFFIXES = {"Excel": "xlsx", "HDF5": "h5", "netCDF": "nc", "Stata": "dta", "ORC": "orc"}


def read_netcdf(path: Path) -> pd.DataFrame:
    """Return the frame that xarray wrote."""
    import xarray

    return xarray.load_dataset(path, engine="h5netcdf").to_dataframe()


#: How each program writes a frame and reads it again.
FORMATS: dict[str, tuple[Any, Any]] = {
    "Excel": (lambda f, p: f.to_excel(p, index=False), pd.read_excel),
    "HDF5": (lambda f, p: f.to_hdf(p, key="frame", format="table"), pd.read_hdf),
    "netCDF": (
        lambda f, p: f.to_xarray().to_netcdf(p, engine="h5netcdf"),
        read_netcdf,
    ),
    "Stata": (lambda f, p: f.to_stata(p, write_index=False, version=118), pd.read_stata),
    "ORC": (lambda f, p: f.to_orc(p, index=False), pd.read_orc),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the formats, about names and compression
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the formats' libraries
@pytest.mark.parametrize("program", FORMATS)
def test_other_programs_read_plain_frames(program: str, tmp_path: Path, journal: Journal) -> None:
    """Each of the four frames, full and empty, is written and read back with the same values."""
    frames = Frames(journal, None)
    write, read = FORMATS[program]

    def comparable(column: pd.Series) -> list[object]:
        if pd.api.types.is_datetime64_dtype(column.dtype):
            # Excel and Stata keep milliseconds
            column = column.dt.floor("ms")
        return ["" if pd.isna(value) else value for value in column]

    def round_trip(name: str) -> None:
        frame = plain(getattr(frames, name))
        path = tmp_path / f"{name}{len(frame)}.{SUFFIXES[program]}"
        write(frame, path)
        again = read(path)
        assert len(again) == len(frame)
        for column in set(frame) & set(again):
            assert comparable(again[column]) == comparable(frame[column]), column
        assert set(again) >= set(frame)

    append(journal, GRANTED | {"message": "a\x00b\ud800é"}, PART | {"errors": 0}, b"\xffpoison")
    append(journal, {"status": "DENIED", "correlationId": "d"}, tenant=None, timestamp_s=None)
    log = journal.file_log("tenant")
    log.save([FileRecord(order_id=5, file_id=1, name="a", fetched_at_us=1_700_000_000_000_000)])
    log.save([FileRecord(order_id=5, file_id=2, name="b", size_bytes=20)])
    for name in ("events", "orders", "files", "rejected"):
        round_trip(name)


def test_hvplot_draws_plain_frames(journal: Journal) -> None:
    """A plot by status has one series per status."""
    import hvplot.pandas  # noqa: F401 - it adds the attribute

    append(journal, GRANTED, PART)
    events = plain(Frames(journal, None).events)
    drawn = events.hvplot.scatter(x="received_at", y="order_id", by="status")
    assert set(drawn.keys()) == {"GRANTED", "SUBORDER_DONE"}


def test_a_plain_frame_has_plain_dtypes(journal: Journal) -> None:
    """Times without zone, texts, numbers and bools of NumPy, and a counted index."""
    append(journal, GRANTED, b"poison")
    frames = Frames(journal, None)
    orders = plain(frames.orders)
    assert list(orders)[:2] == ["tenant", "correlation_id"]
    kinds = {str(dtype) for dtype in orders.dtypes}
    assert kinds == {"object", "int64", "float64", "bool", "datetime64[ns]"}
    assert orders["order_id"].dtype == "int64"
    assert orders["progress"].isna().all()
    assert orders["first_event"].iloc[0] == pd.Timestamp("2023-04-14 08:46:17")
    assert list(plain(frames.rejected)["body"]) == ["poison"]
    assert frames.orders["order_id"].dtype == "Int64"


def test_an_export_that_cannot_be_written_is_refused(tmp_path: Path, journal: Journal) -> None:
    """The error lists the possible kinds, or names the folder."""
    frames = Frames(journal, None)
    with pytest.raises(SettingsError, match='"csv" or "parquet"'):
        frames.export(tmp_path, "xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="export to .*file/folder: Not a.* Give the name"):
        frames.export(tmp_path / "file" / "folder", "csv")
    with pytest.raises(JournalError, match="backup .*file/copy: Not a directory. Give the name"):
        journal.backup(tmp_path / "file" / "copy")


@pytest.fixture(params=["python", "pyarrow"])
def _texts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have pandas store texts in Python and in Arrow."""
    with pd.option_context("mode.string_storage", request.param):
        yield


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Compare two frames, without the categories of the status."""
    # Takes a twentieth of the time, but accepts another kind of missing object.
    if (
        one.equals(other)
        and one.index.identical(other.index)
        and one.columns.identical(other.columns)
        and "object" not in one.dtypes.to_numpy()
    ):
        return
    plain = {"status": "str"} if "status" in one else {}
    pd.testing.assert_frame_equal(one.astype(plain), other.astype(plain))


@pytest.mark.usefixtures("_texts")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(histories().map(lambda history: history[:6]), max_size=5))
def test_frames_that_grew_are_those_of_a_fresh_start(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[tuple[int, OrderEvent]]]
) -> None:
    """A frame that grew equals a new one for any history, and no returned frame changes."""
    journal = Journal(tmp_path_factory.mktemp("j") / "journal.sqlite")
    log = journal.file_log("tenant")
    grown = Frames(journal, None)
    handed_out = []
    for number, piece in enumerate(pieces):
        append(journal, *(written(event) for _, event in piece), b"poison %d" % number)
        # a new file, and one that is there already
        for file_id, state in (number, FileState.LISTED), (number // 2, FileState.VERIFIED):
            name = f"{file_id}.nc"
            file = FileRecord(order_id=1 + file_id % 2, file_id=file_id, name=name, state=state)
            log.save([file._replace(size_bytes=number, path=f"/{number}")])
        journal.save_fetched("tenant", 2, journal.last_id())
        journal.save_request("tenant", f"c{number}", label=f"label {number}", body="{}")
        for frame, text in (
            (grown.events, "message"),
            (grown.orders, "message"),
            (grown.files, "path"),
            (grown.rejected, "reason"),
        ):
            numbers_of(grown)
            handed_out.append((frame, frame.copy(deep=True)))
            # somebody writes into what he was given: it stays his
            mine = frame.copy(deep=False)
            mine.loc[:, text] = "mine"
            mine.iloc[:, 0] = None
    fresh = Frames(journal, None)
    same(grown.events, fresh.events)
    same(grown.orders, fresh.orders)
    same(by_file(grown.files), by_file(fresh.files))
    same(grown.rejected, fresh.rejected)
    assert grown.rejections == fresh.rejections == len(pieces)
    assert list(grown.states()) == list(fresh.states())
    assert numbers_of(grown) == numbers_of(fresh)
    book = OrderReducer()
    for row in (row for batch in journal.read() for row in batch.rows()):
        event = decode(row.delivery)
        if isinstance(event, OrderEvent):
            book.add(row.id, event)
    assert [state.key for state in grown.states()] == list(book)
    for state in grown.states():
        assert grown.key_of(state.correlation_id) == fresh.key_of(state.correlation_id)
        if state.order_id is not None:
            files = grown.files_of(state.order_id)
            in_place = [file for file in files if file.state is FileState.VERIFIED]
            assert state.downloaded_files == len(in_place)
            assert state.downloaded_bytes == sum(file.size_bytes or 0 for file in in_place)
            assert (state.files_total or 0) == len(files)
            assert (state.bytes_total or 0) == sum(file.size_bytes or 0 for file in files)
            assert grown.key_of(state.order_id) == fresh.key_of(state.order_id)
    for frame, as_it_was in handed_out:
        pd.testing.assert_frame_equal(frame, as_it_was)
    journal.close()


def numbers_of(frames: Frames) -> list[list[int]]:
    """Return some numbers of the states of all orders, and of those that wait."""
    states = frames.states()
    names = ("order_id", "finished", "suborders_done", "waits_for_download")
    numbers = [states.numbers(name).tolist() for name in names]
    waiting = states.where("waits_for_download").sorted("order_id")
    return [*numbers, *(waiting.numbers(name).tolist() for name in names)]


def test_numbers_of_orders_are_read_of_those_that_changed(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an event of one order, a view that counts all 300 reads the numbers of that one."""
    frames, read = Frames(journal, None), list[OrderKey]()

    def counted(name: str) -> Callable[[OrderState], int]:
        def number(state: OrderState) -> int:
            read.append(state.key)
            return int(getattr(state, name))

        return number

    monkeypatch.setattr(sys.modules[States.__module__], "attrgetter", counted)
    ids = range(1, 301)
    append(journal, *[GRANTED | {"orderId": n, "correlationId": f"c{n}"} for n in ids])
    assert not frames.states().numbers("finished").any()
    assert len(read) == 300
    append(journal, DONE | {"correlationId": "c5"})
    finished = frames.states().where("finished")
    assert [key.correlation_id for key in read[300:]] == ["c5"]
    assert finished.numbers("finished").tolist() == [True]
    assert len(read) == 301


def by_file(files: pd.DataFrame) -> pd.DataFrame:
    """Sort files by name: their rows depend on when each was first listed."""
    return files.sort_values("name").reset_index(drop=True)


def written(event: OrderEvent) -> dict[str, Any]:
    """Return an event as the body of a message."""
    body = {
        "status": event.status,
        "correlationId": event.correlation_id,
        "orderId": event.order_id,
        "message": event.message,
        "downloadLink": event.download_link,
        "subOrderId": event.sub_order_id,
        "totalSubOrders": event.total_sub_orders,
    }
    return {name: value for name, value in body.items() if value is not None}


@pytest.mark.usefixtures("_texts")
def test_a_frame_costs_no_copy_of_what_was_there(journal: Journal) -> None:
    """A frame and the next one share the memory of their common rows."""
    frames = Frames(journal, None)
    append(journal, *[GRANTED | {"correlationId": f"c{n}"} for n in range(300)])
    before = frames.events
    append(journal, PART)
    after = frames.events
    for look in (
        lambda frame: frame["redelivered"].to_numpy(),
        lambda frame: frame["received_at"].array.view("i8"),
    ):
        assert np.shares_memory(look(before), look(after))


def test_a_new_event_copies_no_text_and_changes_no_earlier_frame(journal: Journal) -> None:
    """Frames of all lengths share their texts, and each counts the missing ones of its own rows."""
    frames, session_id = Frames(journal, None), journal.open_session("q")
    texts = [None, "", None, "\u00e4"] * 70
    taken = []
    for text in texts:
        journal.append(session_id, [delivery(PART | {"message": text})])
        taken.append(frames.events["message"])
    arrays = [frame.array.__arrow_array__() for frame in taken]
    for n, (frame, array) in enumerate(zip(taken, arrays, strict=True), start=1):
        assert frame.astype(object).where(frame.notna(), None).tolist() == texts[:n]
        assert array.null_count == n // 2 + n % 2
    chunks = (chunk for array in arrays for chunk in array.chunks)
    assert len({joined.address for c in chunks if (joined := c.buffers()[2]) is not None}) < 20


def test_a_file_carries_the_names_of_its_order_and_the_time_of_its_download(
    journal: Journal,
) -> None:
    """The correlation id is that of the order's row, also when an event tells it later."""
    frames, log = Frames(journal, "tenant"), journal.file_log("tenant")
    file = FileRecord(order_id=5, file_id=1, name="a.nc", state=FileState.VERIFIED)
    log.save([file, file._replace(file_id=2, name="b.nc", fetched_at_us=1_700_000_000_000_000)])
    assert list(frames.files["order_id"]) == [5, 5]
    assert frames.files["correlation_id"].isna().all()
    append(journal, NAMELESS)
    assert list(frames.files["correlation_id"]) == ["#5", "#5"]
    append(journal, GRANTED)
    files = frames.files
    assert list(files["correlation_id"]) == ["c", "c"] == list(frames.orders.index.levels[1]) * 2
    assert list(files["fetched_at"].isna()) == [True, False]
    assert files["fetched_at"].iloc[1] == pd.Timestamp("2023-11-14 22:13:20", tz="UTC")


def test_orders_of_two_tenants_with_one_number_have_their_own_files(journal: Journal) -> None:
    """Each tenant numbers its orders from 1."""
    frames = Frames(journal, None)
    for tenant in ("one", "two"):
        append(journal, GRANTED | {"correlationId": tenant}, tenant=tenant)
        record = FileRecord(5, 1, f"{tenant}.nc", path="/there", state=FileState.VERIFIED)
        journal.file_log(tenant).save([record])
    files = frames.files
    assert list(zip(files["correlation_id"], files["name"], strict=True)) == [
        ("one", "one.nc"), ("two", "two.nc"),
    ]  # fmt: skip
    assert [state.downloaded_files for state in frames.states()] == [1, 1]
    assert [record.name for record in frames.files_of(5)] == ["one.nc", "two.nc"]


@pytest.mark.usefixtures("_texts")
def test_files_cost_what_is_new(journal: Journal) -> None:
    """A new or changed file copies only the columns that change."""
    frames, log = Frames(journal, None), journal.file_log("tenant")
    log.save([FileRecord(order_id=5, file_id=n, name=f"{n}", size_bytes=n) for n in range(100)])
    before = frames.files
    log.save([FileRecord(order_id=5, file_id=100, name="100", size_bytes=100)])
    log.save([FileRecord(order_id=5, file_id=7, name="7", size_bytes=7, path="/7")])
    after = frames.files
    assert list(after["name"]) == [f"{n}" for n in range(101)]
    assert after["path"].dropna().to_dict() == {7: "/7"}
    assert (len(before), before["path"].count()) == (100, 0)
    sizes = [frame["size_bytes"].array._data for frame in (before, after)]
    assert np.shares_memory(*sizes)


def test_files_that_could_not_be_read_are_read_the_next_time(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed read raises an error, and the next call reads the same files."""

    def failing(*_: object, **__: object) -> list[FileRecord]:
        raise JournalError("disk I/O error")

    frames = Frames(journal, None)
    journal.file_log("tenant").save([FileRecord(order_id=5, file_id=1, name="a.nc")])
    with monkeypatch.context() as broken:
        broken.setattr(journal, "files_after", failing)
        with pytest.raises(JournalError, match="disk"):
            _ = frames.files
    assert list(frames.files["name"]) == ["a.nc"]


def test_a_file_that_changes_is_counted_once(journal: Journal) -> None:
    """The sums of an order follow the state of each file, in both directions."""
    frames, log = Frames(journal, "tenant"), journal.file_log("tenant")
    append(journal, GRANTED)
    file = FileRecord(order_id=5, file_id=1, name="a", size_bytes=10)
    there = file._replace(state=FileState.VERIFIED, size_bytes=12, path="/there")
    for record, in_place in ((file, (0, 0)), (there, (1, 12)), (there, (1, 12)), (file, (0, 0))):
        log.save([record])
        (state,) = frames.states()
        assert (state.downloaded_files, state.downloaded_bytes) == in_place
        assert (state.files_total, state.bytes_total) == (1, record.size_bytes)


def test_rejected_messages_are_added_to_those_that_were_there(journal: Journal) -> None:
    """Each body is read from the journal once; the count needs no body."""
    frames = Frames(journal, None)
    append(journal, b"one", GRANTED)
    before = frames.rejected
    append(journal, PART, b"two", b"three")
    frames.refresh()
    assert frames.rejections == 3
    after = frames.rejected
    assert list(before["body"]) == [b"one"]
    assert list(after["body"]) == [b"one", b"two", b"three"]
    assert after["body"].iloc[0] is before["body"].iloc[0]
    assert frames.rejections == 3


def test_an_order_is_found_by_name_in_every_tenant(journal: Journal) -> None:
    """If two tenants use one name, it means the order with the latest first event."""
    frames = Frames(journal, None)
    append(journal, GRANTED, tenant="one")
    assert frames.key_of("c") == frames.key_of(5) == OrderKey("one", "c")
    append(journal, GRANTED, tenant=None)
    assert frames.key_of("c") == frames.key_of(5) == OrderKey(None, "c")
    append(journal, GRANTED | {"orderId": 6}, tenant=None)
    assert frames.key_of(5) == OrderKey("one", "c")
