"""What is recorded of files: in memory, and in the state file beside the files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regards_nb.download import OrderRecords, StateLog
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

MD5 = {letter: letter * 32 for letter in "abc"}

NAMES = st.text(max_size=8)
RECORDS = st.builds(
    FileRecord,
    order_id=st.just(1),
    file_id=st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1),
    name=NAMES,
    size_bytes=st.none() | st.integers(0, 2**63 - 1),
    md5=st.none() | st.binary(min_size=16, max_size=16).map(bytes.hex),
    path=st.none() | st.just("/elsewhere/a.nc"),
    state=st.sampled_from(FileState),
    error=st.none() | NAMES,
    # a state file does not hold these
    product_id=st.none(),
    fetched_at_us=st.none(),
)


def lines_in(folder: Path) -> Path:
    """Return the file that holds the lines of the state."""
    (path,) = (folder / ".regards").glob("*.jsonl")
    return path


def record(file_id: int, name: str = "a.nc", **known: object) -> FileRecord:
    """Return a record of a manifest."""
    made = FileRecord(order_id=1, file_id=file_id, name=name, size_bytes=10, md5=MD5["a"])
    return made._replace(**known)  # type: ignore[arg-type]


@given(st.lists(RECORDS, max_size=20))
def test_a_state_file_gives_back_what_was_saved(saved: list[FileRecord]) -> None:
    """Whatever the values are, in whatever order and however often: the last one counts."""
    with TemporaryDirectory() as folder:
        state = StateLog(Path(folder), 1, durable=False)
        for one in saved:
            state.save([one])
        last = {one.file_id: one for one in saved}
        assert state.files(1) == [last[file_id] for file_id in sorted(last)]


def test_a_state_file_is_read_back_and_survives_a_cut_at_any_byte(tmp_path: Path) -> None:
    """What was written whole is known; what was cut is passed over; more can be added."""
    state = StateLog(tmp_path, 1)
    files = [
        record(2, "é\n.nc", state=FileState.VERIFIED, path=str(tmp_path / "é_.nc")),
        record(1, "b.nc", md5=None, size_bytes=None, error='it\'s "gone"', state=FileState.FAILED),
    ]
    assert not state.files(1)
    state.save(files)
    assert list(state.files(1)) == files[::-1]
    path = lines_in(tmp_path)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert all(found in files for found in state.files(1))
        state.save(files[:1])
        assert files[0] in state.files(1)


def test_a_folder_can_be_moved_with_its_state(tmp_path: Path) -> None:
    """Paths are kept relative to it."""
    (tmp_path / "old").mkdir()
    StateLog(tmp_path / "old", 1).save([record(1, path=str(tmp_path / "old" / "a.nc"))])
    (tmp_path / "old").rename(tmp_path / "new")
    (found,) = StateLog(tmp_path / "new", 1).files(1)
    assert found.path == str(tmp_path / "new" / "a.nc")


def test_the_later_line_about_a_file_counts(tmp_path: Path) -> None:
    """Also when two downloads write to one state file."""
    one, other = StateLog(tmp_path, 1), StateLog(tmp_path, 1)
    one.save([record(1), record(2)])
    other.save([record(1, state=FileState.VERIFIED)])
    assert [found.state for found in one.files(1)] == [FileState.VERIFIED, FileState.LISTED]


def test_a_state_that_cannot_be_written_is_a_workspace_error(tmp_path: Path) -> None:
    """A file stands where the state folder should be."""
    (tmp_path / ".regards").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot write"):
        StateLog(tmp_path, 1).save([record(1)])


def placed(one: FileRecord, folder: Path, name: str | None = None) -> FileRecord:
    """Return a record of a verified file in a folder."""
    path = str(folder / (name or one.name))
    return one._replace(path=path, state=FileState.VERIFIED, error=None)


def test_what_became_of_a_file_is_read_back(tmp_path: Path) -> None:
    """Another name, a size that was not known, an error, and good after it."""
    state = StateLog(tmp_path, 1)
    listed = [record(1, size_bytes=None, md5=None), record(2, "A.nc"), record(3, "b/c.nc")]
    state.save(listed)
    became = [
        placed(listed[0], tmp_path)._replace(size_bytes=7, state=FileState.UNVERIFIED),
        placed(listed[1], tmp_path, "A (2).nc"),
        listed[2]._replace(state=FileState.FAILED, error="gone"),
    ]
    state.save(became)
    assert list(state.files(1)) == became
    became[2] = placed(listed[2], tmp_path, "c.nc")
    state.save(became[2:])
    assert list(state.files(1)) == became


def test_a_change_cut_at_any_byte_is_passed_over(tmp_path: Path) -> None:
    """The file is then as it was listed, and is looked at again."""
    state = StateLog(tmp_path, 1)
    one, other = record(1), record(2, "b.nc")
    state.save([one, other])
    path = lines_in(tmp_path)
    start = path.stat().st_size
    state.save([placed(one, tmp_path, "a (2).nc"), placed(other, tmp_path)])
    whole = path.read_bytes()
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        first, second = state.files(1)
        assert first in {one, placed(one, tmp_path, "a (2).nc")}
        assert second in {other, placed(other, tmp_path)}
        state.save([placed(other, tmp_path)])
        assert state.files(1)[1] == placed(other, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        "{}",
        "null",
        "[[1]]",
        '{"file_id": 1}',
        '[["1", "a.nc", null, null, null, "LISTED", null]]',
        '[[true, "a.nc", null, null, null, "LISTED", null]]',
        '[[1, 2, null, null, null, "LISTED", null]]',
        '[[1, "a.nc", null, null, null, "NEW", null]]',
        '[[1, "a.nc", 1.5, null, null, "LISTED", null]]',
        '[[1, "a.nc", null, null, 5, "LISTED", null]]',
        '[[1, "a.nc", null, null, null, "LISTED", null]',
        "\xff\xfe",
    ],
)
def test_a_line_that_says_something_else_is_passed_over(line: str, tmp_path: Path) -> None:
    """Whatever stands there, the other lines count."""
    state = StateLog(tmp_path, 1)
    state.save([record(7)])
    with lines_in(tmp_path).open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    assert list(state.files(1)) == [record(7)]


def test_what_was_never_listed_is_recorded_whole(tmp_path: Path) -> None:
    """A file that only the zip knew is known again after it was put in place."""
    state = StateLog(tmp_path, 1)
    records = OrderRecords(state, 1, tmp_path)
    assert records.expect([record(1), record(1)]) == 1
    stranger = placed(record(-5, "x.nc"), tmp_path)
    records.save([placed(record(1), tmp_path), stranger])
    assert sorted(records.placed) == [-5, 1]
    assert list(state.files(1)) == [stranger, placed(record(1), tmp_path)]


def test_a_manifest_that_knows_more_is_recorded(tmp_path: Path) -> None:
    """A size that was not known before; of a file that is here, nothing new is believed."""
    state = StateLog(tmp_path, 1)
    records = OrderRecords(state, 1, tmp_path)
    records.relist([record(1, size_bytes=None), record(2, "b.nc")])
    records.save([placed(record(2, "b.nc"), tmp_path)])
    records.relist([record(1), record(2, "b.nc", md5=MD5["c"])])
    assert list(state.files(1)) == [record(1), placed(record(2, "b.nc"), tmp_path)]
    assert records.listed == {1, 2}
    assert not records.placed
