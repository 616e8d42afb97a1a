"""What is kept of very many files: the table in memory, and the state file beside the files."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regards_nb.download.records import Records
from regards_nb.download.statefile import StateFile
from regards_nb.download.table import Files, FileTable, Mark
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

MD5 = {letter: letter * 32 for letter in "abc"}

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PATHS = st.none() | NAMES.map("/orders/{}".format) | st.just("/elsewhere/a.nc")
RECORDS = st.builds(
    FileRecord,
    order_id=st.just(1),
    file_id=st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1),
    name=NAMES,
    size_bytes=st.none() | st.integers(0, 2**63 - 1),
    md5=st.none() | st.binary(min_size=16, max_size=16).map(bytes.hex),
    product_id=st.none() | NAMES,
    path=PATHS,
    state=st.sampled_from(FileState),
    error=st.none() | NAMES,
)


def record(file_id: int, name: str = "a.nc", **known: object) -> FileRecord:
    """Return a record of a manifest."""
    return replace(
        FileRecord(order_id=1, file_id=file_id, name=name, size_bytes=10, md5=MD5["a"]),
        **known,  # type: ignore[arg-type]
    )


@given(st.lists(RECORDS, max_size=20), st.integers(-3, 12))
def test_a_table_says_the_same_as_a_dictionary(records: list[FileRecord], other: int) -> None:
    """Whatever is put into it, in whatever order and however often."""
    plain: dict[int, FileRecord] = {}
    table = FileTable(1, folder="/orders")
    for one in records:
        assert table.put(one) is (one.file_id not in plain)
        plain[one.file_id] = one
    ids = sorted(plain)
    assert list(table) == ids
    assert dict(table) == plain
    assert (other in table) is (other in plain)
    assert table.get(other) == plain.get(other)
    files = Files(table)
    assert list(files) == [plain[file_id] for file_id in ids]
    assert files.names == [plain[file_id].name for file_id in ids]
    assert files.sizes == [plain[file_id].size_bytes for file_id in ids]
    assert list(files.in_place) == [one for one in files if one.in_place]
    assert list(files.missing) == [one for one in files if not one.in_place]
    assert files.in_place.final_names == [
        str(one.path).rpartition("/")[2] for one in files if one.in_place
    ]


@given(st.lists(RECORDS, max_size=12), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_marks_are_as_sets_of_files(
    records: list[FileRecord], marked: set[int], unmarked: set[int]
) -> None:
    """Other marks, and what is recorded of a file later, change nothing about them."""
    table = FileTable(1, records, folder="/orders")
    ids = table.ids
    with_it = {ids[place] for place in marked if place < len(ids)}
    without = {ids[place] for place in unmarked if place < len(ids)}
    table.mark(Mark.OPEN, array("q", with_it))
    table.mark(Mark.CAME, ids)
    for one in records:
        table.put(one)
    assert set(table.marked(Mark.OPEN)) == with_it
    assert table.marked(Mark.CAME) == ids
    assert [table.take_mark(Mark.OPEN, file_id) for file_id in without] == [
        file_id in with_it for file_id in without
    ]
    assert set(table.marked(Mark.OPEN)) == with_it - without
    table.unmark(Mark.OPEN, ids)
    assert not table.marked(Mark.OPEN)
    assert dict(table) == {one.file_id: one for one in records}


def test_what_no_table_can_hold_is_refused() -> None:
    """Instead of kept as something else."""
    with pytest.raises(ValueError, match="no MD5"):
        FileTable(1).put(record(1, md5="ab"))
    with pytest.raises(KeyError):
        FileTable(1)[5]


def test_some_files_are_a_sequence() -> None:
    """Taken by place, cut, compared, counted."""
    files = Files(FileTable(1, [record(1, "a"), record(2, "b"), record(5, "c")]))
    assert [one.name for one in files[1:]] == ["b", "c"]
    assert files[-1].file_id == 5
    assert record(2, "b") in files
    assert files[:2] == Files(FileTable(1, [record(2, "b"), record(1, "a")]))
    assert files[:2] != files
    assert files != [1]
    assert repr(files) == "<3 files>"


def test_very_many_files_take_little_memory() -> None:
    """20,000 files in place take less than 75 bytes each besides their names."""
    script = (
        "import tracemalloc\n"
        "from regards_nb.download.table import FileTable\n"
        "from regards_nb.files import FileRecord, FileState\n"
        "names = [f'station_{number:05}.csv' for number in range(20_000)]\n"
        "tracemalloc.start()\n"
        "table = FileTable(1, folder='/orders')\n"
        "for file_id, name in enumerate(names):\n"
        "    known = {'order_id': 1, 'file_id': file_id, 'name': name, 'md5': f'{file_id:032x}'}\n"
        "    table.put(FileRecord(**known, size_bytes=file_id))\n"
        "    placed = {'path': f'/orders/{name}', 'state': FileState.VERIFIED}\n"
        "    table.put(FileRecord(**known, **placed, size_bytes=file_id))\n"
        "print(tracemalloc.get_traced_memory()[0] / len(table))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 75


def test_a_state_file_is_read_back_and_survives_a_cut_at_any_byte(tmp_path: Path) -> None:
    """What was written whole is known; what was cut is passed over; more can be added."""
    state = StateFile(tmp_path, 1)
    files = [
        record(2, "é\n.nc", state=FileState.VERIFIED, path=str(tmp_path / "é_.nc")),
        record(1, "b.nc", md5=None, size_bytes=None, error='it\'s "gone"', state=FileState.FAILED),
    ]
    assert not state.files(1)
    state.save(files)
    assert list(state.files(1)) == files[::-1]
    assert not state.files(2)
    whole = state.path.read_bytes()
    for end in range(len(whole)):
        state.path.write_bytes(whole[:end])
        assert all(found in files for found in state.files(1))
        state.save(files[:1])
        assert files[0] in state.files(1)


def test_a_folder_can_be_moved_with_its_state(tmp_path: Path) -> None:
    """Paths are kept relative to it."""
    (tmp_path / "old").mkdir()
    StateFile(tmp_path / "old", 1).save([record(1, path=str(tmp_path / "old" / "a.nc"))])
    (tmp_path / "old").rename(tmp_path / "new")
    (found,) = StateFile(tmp_path / "new", 1).files(1)
    assert found.path == str(tmp_path / "new" / "a.nc")


def test_the_later_line_about_a_file_counts(tmp_path: Path) -> None:
    """Also when two downloads write to one state file."""
    one, other = StateFile(tmp_path, 1), StateFile(tmp_path, 1)
    one.save([record(1), record(2)])
    other.save([record(1, state=FileState.VERIFIED)])
    assert [found.state for found in one.files(1)] == [FileState.VERIFIED, FileState.LISTED]


def test_a_state_that_cannot_be_written_is_a_workspace_error(tmp_path: Path) -> None:
    """A file stands where the state folder should be."""
    (tmp_path / ".regards").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot write"):
        StateFile(tmp_path, 1).save([record(1)])


def placed(one: FileRecord, folder: Path, name: str | None = None) -> FileRecord:
    """Return a record of a verified file in a folder."""
    path = str(folder / (name or one.name))
    return replace(one, path=path, state=FileState.VERIFIED, error=None)


def test_a_state_file_takes_few_bytes_for_each_file(tmp_path: Path) -> None:
    """Tiny files take one block of the disk: what is said of each is a fiftieth of that."""
    state = StateFile(tmp_path, 1, durable=False)
    listed = [
        record(number, f"station_{number:05}.csv", size_bytes=20, md5=f"{number:032x}")
        for number in range(10_000, 12_000)
    ]
    state.save(listed)
    assert list(state.files(1)) == listed
    here = [placed(one, tmp_path) for one in listed]
    state.update(here)
    assert list(state.files(1)) == here
    assert state.path.stat().st_size < len(here) * 4096 / 50


def test_what_became_of_a_file_is_read_back(tmp_path: Path) -> None:
    """Another name, a size that was not known, an error, and good after it."""
    state = StateFile(tmp_path, 1)
    listed = [record(1, size_bytes=None, md5=None), record(2, "A.nc"), record(3, "b/c.nc")]
    state.save(listed)
    became = [
        replace(placed(listed[0], tmp_path), size_bytes=7, state=FileState.UNVERIFIED),
        placed(listed[1], tmp_path, "A (2).nc"),
        replace(listed[2], state=FileState.FAILED, error="gone"),
    ]
    state.update(became)
    assert list(state.files(1)) == became
    became[2] = placed(listed[2], tmp_path, "c.nc")
    state.update(became[2:])
    assert list(state.files(1)) == became


def test_a_change_cut_at_any_byte_is_passed_over(tmp_path: Path) -> None:
    """The file is then as it was listed, and is looked at again."""
    state = StateFile(tmp_path, 1)
    one, other = record(1), record(2, "b.nc")
    state.save([one, other])
    start = state.path.stat().st_size
    state.update([placed(one, tmp_path, "a (2).nc"), placed(other, tmp_path)])
    whole = state.path.read_bytes()
    for end in range(start, len(whole)):
        state.path.write_bytes(whole[:end])
        first, second = state.files(1)
        assert first in {one, placed(one, tmp_path, "a (2).nc")}
        assert second in {other, placed(other, tmp_path)}
        state.update([placed(other, tmp_path)])
        assert state.files(1)[1] == placed(other, tmp_path)


def test_a_change_of_a_file_that_nothing_is_known_of_is_passed_over(tmp_path: Path) -> None:
    """Its first line was mixed up by two writers: the server names it again."""
    state = StateFile(tmp_path, 1)
    state.update([placed(record(1), tmp_path)])
    assert not state.files(1)


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        "{}",
        "[1]",
        '["V"]',
        '["V",1,2,3,4,5]',
        '["X",1]',
        '["V",[]]',
        '[1,"a.nc","x"]',
        '[1,"a.nc",1,"short"]',
        f"[{2**70}]",
        f'[{2**70},"a.nc"]',
        f'[1,"a.nc",{2**70}]',
        '[1,"a.nc",1,null,"X"]',
        '[1,"a.nc",1,2,3,4,5,6,7]',
        '[1,"a.nc",1,"bad",null,null,"VERIFIED",null]',
        "\xff\xfe",
    ],
)
def test_a_line_that_says_something_else_is_passed_over(line: str, tmp_path: Path) -> None:
    """Whatever stands there, the other lines count."""
    state = StateFile(tmp_path, 1)
    state.save([record(7)])
    with state.path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    assert list(state.files(1)) == [record(7)]


def test_lines_of_the_former_form_are_read(tmp_path: Path) -> None:
    """What an earlier version has verified is not fetched again."""
    state = StateFile(tmp_path, 1)
    state.path.parent.mkdir()
    former = [
        [1, "a.nc", 10, MD5["a"], "URN:1", None, "LISTED", None],
        [2, "b.nc", 10, MD5["b"], None, None, "FAILED", "gone"],
        [1, "a.nc", 10, MD5["a"], "URN:1", "a (2).nc", "VERIFIED", None],
        [3, "c.nc", None, None, None, "c.nc", "UNVERIFIED", None],
    ]
    state.path.write_text("\n" + "".join(f"{json.dumps(values)}\n" for values in former))
    assert list(state.files(1)) == [
        record(1, path=str(tmp_path / "a (2).nc"), state=FileState.VERIFIED),
        record(2, "b.nc", md5=MD5["b"], state=FileState.FAILED, error="gone"),
        record(
            3,
            "c.nc",
            size_bytes=None,
            md5=None,
            path=str(tmp_path / "c.nc"),
            state=FileState.UNVERIFIED,
        ),
    ]
    state.update([placed(record(2, "b.nc", md5=MD5["b"]), tmp_path)])
    assert state.files(1)[1].state is FileState.VERIFIED


def test_what_was_never_listed_is_recorded_whole(tmp_path: Path) -> None:
    """A file that only the zip knew is known again after it was put in place."""
    state = StateFile(tmp_path, 1)
    records = Records(state, 1, tmp_path, restore_removed=False)
    assert records.expect([record(1), record(1)]) == 1
    stranger = placed(record(-5, "x.nc"), tmp_path)
    records.save([placed(record(1), tmp_path), stranger])
    assert [one.file_id for one in records.came] == [-5, 1]
    assert list(state.files(1)) == [stranger, placed(record(1), tmp_path)]


def test_a_manifest_that_knows_more_is_recorded(tmp_path: Path) -> None:
    """A size that was not known before; of a file that is here, nothing new is believed."""
    state = StateFile(tmp_path, 1)
    records = Records(state, 1, tmp_path, restore_removed=False)
    records.relist([record(1, size_bytes=None), record(2, "b.nc")])
    records.save([placed(record(2, "b.nc"), tmp_path)])
    records.relist([record(1), record(2, "b.nc", md5=MD5["c"])])
    assert list(state.files(1)) == [record(1), placed(record(2, "b.nc"), tmp_path)]
    assert list(records.table.marked(Mark.LISTED)) == [1, 2]
    assert not records.came
