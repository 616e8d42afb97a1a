"""Names and archives that mean harm, all the way from the server to the folder."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from download_kit import files_named, world
from zip_kit import by_hand, central_line, deflated, local_entry, regards_zip

from regards_nb.download import read_zip
from regards_nb.errors import IncompleteDownloadError
from regards_nb.files import FileState
from regards_nb.simulator import (
    FileSpec,
    OrderPlan,
    RawZip,
    Reply,
    Route,
    StorageRefuses,
    TruncatedEntry,
    WrongCrc,
)

if TYPE_CHECKING:
    from download_kit import World

DATA = Path(__file__).parent / "data"

EVIL = [
    "../outside.nc",
    "../../outside.nc",
    "/tmp/outside.nc",  # noqa: S108 - never opened
    "..\\outside.nc",
    "C:\\Windows\\outside.nc",
    "C:outside.nc",
    "//server/share/outside.nc",
    "a/b/c.nc",
    "a\0b.nc",
    "a\nb.nc",
    "nul",
    "COM1.nc",
    "aux.tar.gz",
    "trailing. .",
    ".bashrc",
    ".ipynb_checkpoints/x.ipynb",
    "-rf",
    "~root",
    "x" * 300 + ".nc",
    "é" * 150 + ".nc",
    "Case.nc",
    "case.nc",
    "été.nc",
    "e\u0301te\u0301.nc",
    "\u202egnp.exe",
    "<img src=x onerror=alert(1)>.nc",
    "same.nc",
    "same.nc",
    "same (1).nc",
    "NOTICE.txt",
    "..",
    ".",
    " ",
    "",
    "nl\u2028sep.nc",
    "\ud83d\udef0.bin",
]


def evil_plan(*, reference: bool = False) -> OrderPlan:
    """Return an order of all evil names."""
    files = files_named(*EVIL, size_bytes=700, reference=reference)
    return OrderPlan(files=files, files_per_suborder=len(files))


def contents(plan: OrderPlan) -> list[bytes]:
    """Return the content of all files of a plan, in some order."""
    return sorted(b"".join(spec.source.chunks()) for spec in plan.files)


@pytest.mark.parametrize("way", ["zip", "files"])
@pytest.mark.parametrize("reference", [False, True], ids=["listed", "external"])
def test_no_name_leaves_the_folder_and_no_file_is_lost(
    way: str, tmp_path: Path, *, reference: bool
) -> None:
    """Every file is there once, as a plain visible file of the folder, whatever its name was."""
    plan = evil_plan(reference=reference)
    with world(tmp_path, plan) as here:
        here.fetch(way=way)
        assert sorted(here.found.values()) == contents(plan)
        below = {path.name for path in here.folder.iterdir()}
        assert below == set(here.found)
        assert all((here.folder / name).is_file() for name in below)
        assert {path.name for path in tmp_path.iterdir()} <= {
            "files",
            "journal.sqlite",
            "journal.sqlite-wal",
            "journal.sqlite-shm",
        }
        folded = {name.lower() for name in below}
        assert len(folded) == len(below)
        wanted = FileState.UNVERIFIED if reference else FileState.VERIFIED
        assert {record.state for record in here.log.files(here.order_id)} == {wanted}


def test_both_ways_choose_the_same_final_names(tmp_path: Path) -> None:
    """Final names follow from the manifest: zip or one by one makes no difference."""
    names = []
    for way in ("zip", "files"):
        folder = tmp_path / way
        folder.mkdir()
        with world(folder, evil_plan()) as here:
            here.fetch(way=way)
            names.append({name: data[:20] for name, data in here.found.items()})
    assert names[0] == names[1]


@pytest.mark.parametrize("durable", [True, False])
def test_files_of_the_user_are_never_replaced(tmp_path: Path, *, durable: bool) -> None:
    """Other content under the same name, a link, a folder: each keeps its name and content."""
    with world(tmp_path, OrderPlan(files=files_named("a.nc", "b.nc", "c.nc", "d.nc"))) as here:
        here.simulator.wait_available(here.order_id, files=4)
        folder, expected = here.folder, here.expected
        folder.mkdir()
        (folder / "a.nc").write_bytes(b"my own notes")
        (tmp_path / "elsewhere").write_bytes(expected["b.nc"])
        (folder / "b.nc").symlink_to(tmp_path / "elsewhere")
        (folder / "c.nc").mkdir()
        (folder / "d.nc").write_bytes(expected["d.nc"])
        before = (folder / "d.nc").stat().st_mtime_ns
        here.fetch(durable=durable)
        assert (folder / "a.nc").read_bytes() == b"my own notes"
        assert (folder / "b.nc").is_symlink()
        assert (folder / "c.nc").is_dir()
        for name in ("a", "b", "c"):
            assert (folder / f"{name} (2).nc").read_bytes() == expected[f"{name}.nc"]
        # the same content is the same file
        assert (folder / "d.nc").stat().st_mtime_ns == before
        assert not (folder / "d (2).nc").exists()
        assert here.records["d.nc"].path == str(folder / "d.nc")
        # a cut file of ours is none of the user
        (folder / "d.nc").write_bytes(expected["d.nc"][:100])
        here.fetch(durable=durable, check="size")
        assert (folder / "d.nc").read_bytes() == expected["d.nc"]
        assert not here.leftovers


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    """A dangling link under the final name is no free name."""
    with world(tmp_path, OrderPlan(files=files_named("a.nc"))) as here:
        here.folder.mkdir()
        (here.folder / "a.nc").symlink_to(tmp_path / "trap")
        here.fetch()
        assert not (tmp_path / "trap").exists()
        assert (here.folder / "a (2).nc").read_bytes() == here.expected["a.nc"]


def test_the_same_file_ordered_twice_is_one_file(tmp_path: Path) -> None:
    """Two rows of the same name and content: the server sends one entry, both rows point to it."""
    same = FileSpec(name="a.nc", content=b"content")
    with world(tmp_path, OrderPlan(files=[same, same])) as here:
        fetched = here.fetch()
        assert here.found == {"a.nc": b"content"}
        paths = [record.path for record in here.log.files(here.order_id)]
        assert paths == [str(here.folder / "a.nc")] * 2
        assert len(fetched) == 1
        assert here.singles == 0


def test_external_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """The server puts one of them into the zip and marks both: each is fetched by its id."""
    files = files_named("same.nc", "same.nc", "other.nc", reference=True)
    plan = OrderPlan(files=files, files_per_suborder=3)
    with world(tmp_path, plan) as here:
        fetched = here.fetch()
        assert sorted(here.found.values()) == contents(plan)
        assert len(fetched) == 3
        assert (here.zips, here.singles) == (1, 2)
        assert here.client.order(here.order_id).available_files == 0


@pytest.mark.parametrize("name", ["dups.zip", "unicode.zip", "empty_entry.zip"])
def test_zips_of_a_real_server_library_end_in_the_right_files(name: str, tmp_path: Path) -> None:
    """Equal names, Unicode names and empty files of real zips, checked against their manifest."""
    raw = (DATA / name).read_bytes()
    entries: list[tuple[str, bytes]] = []
    data = b""
    for piece in read_zip([raw]):
        data += piece.data
        if piece.last:
            entries.append((piece.name, data))
            data = b""
    originals = {"a (1).nc": "a.nc", "a (2).nc": "a.nc", "README (1)": "README"}
    files = [
        FileSpec(name=originals.get(entry, entry) if name == "dups.zip" else entry, content=content)
        for entry, content in entries
    ]
    plan = OrderPlan(files=files, files_per_suborder=len(files))
    with world(tmp_path, plan, RawZip(source=raw)) as here:
        here.fetch()
        assert here.singles == 0
        assert sorted(here.found.values()) == sorted(content for _, content in entries)
        assert {record.state for record in here.records.values()} == {FileState.VERIFIED}


def test_a_file_called_notice_is_not_taken_for_the_notice(tmp_path: Path) -> None:
    """noticename.zip: a data file NOTICE.txt, a cut file, and the notice about it."""
    raw = (DATA / "noticename.zip").read_bytes()
    pieces = list(read_zip([raw]))
    files = [
        FileSpec(name="NOTICE.txt", content=pieces[0].data),
        FileSpec(name="short.nc", content=pieces[1].data + b"z" * 100),
    ]
    plan = OrderPlan(files=files, files_per_suborder=2)
    with world(tmp_path, plan, RawZip(source=raw)) as here:
        here.fetch()
        assert here.found == here.expected
        assert here.singles == 1


def symlink_zip(name: str, target: bytes) -> bytes:
    """Return a zip whose directory calls its entry a symbolic link."""
    line = central_line(name.encode(), target, 0, made_by=3 << 8, attributes=0o120777 << 16)
    return by_hand([local_entry(name.encode(), target)], [line])


def quoted_zip() -> bytes:
    """Return a zip with an entry hidden in another."""
    inner = local_entry(b"b.nc", b"1")
    return by_hand([local_entry(b"a.nc", inner)], [central_line(b"b.nc", b"1", 34)])


def bomb_zip(name: bytes, size_bytes: int) -> bytes:
    """Return a zip whose one entry inflates to many zeros."""
    data = bytes(size_bytes)
    packed = deflated(data)
    descriptor = struct.pack("<4s3I", b"PK\7\x08", zlib.crc32(data), len(packed), len(data))
    entry = local_entry(name, b"", flags=8, method=8, packed=packed, descriptor=descriptor)
    line = central_line(name, data, 0, flags=8, method=8, packed_bytes=len(packed))
    return by_hand([entry], [line])


HOSTILE = {
    "a symbolic link": lambda: symlink_zip("a.nc", b"/etc/passwd"),
    "an entry in an entry": quoted_zip,
    "a bomb": lambda: bomb_zip(b"a.nc", 200 << 20),
    "a million entries": lambda: regards_zip((f"f{number}", b"") for number in range(3000)),
    "no zip at all": lambda: os.urandom(5000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_zip_brings_nothing_in(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file comes one by one instead, verified; from the zip there is nothing."""
    files = [FileSpec(name="a.nc", content=b"the right content")]
    with world(tmp_path, OrderPlan(files=files), RawZip(source=HOSTILE[case]())) as here:
        here.fetch()
        assert here.found == {"a.nc": b"the right content"}
        assert not any(path.is_symlink() for path in here.folder.iterdir())
        assert "of the zip one by one" in caplog.text
        assert not here.leftovers


def test_a_hostile_zip_without_a_way_around_is_an_error_that_says_so(tmp_path: Path) -> None:
    """When the file cannot be had alone either, the error names it and nothing is there."""
    files = [FileSpec(name="a.nc", content=b"the right content")]
    raw = RawZip(source=symlink_zip("a.nc", b"/etc/passwd"))
    with world(tmp_path, OrderPlan(files=files), raw, StorageRefuses(times=None)) as here:
        with pytest.raises(IncompleteDownloadError, match="410"):
            here.fetch()
        assert here.found == {}
        assert not here.leftovers


def test_files_that_the_manifest_did_not_list_are_not_lost(tmp_path: Path) -> None:
    """Files that became available between manifest and zip are recognised and kept."""
    files = files_named("a.nc", "b.nc", "c.nc")
    plan = OrderPlan(files=files, files_per_suborder=3)
    with world(tmp_path, plan) as here:
        omit_from_next_manifest(here, "b.nc")
        fetched = here.fetch()
        assert here.found == here.expected
        assert {record.state for record in here.records.values()} == {FileState.VERIFIED}
        assert len(fetched) == 3
        assert here.singles == 0


def omit_from_next_manifest(here: World, *names: str) -> None:
    """Let the next manifest lack files that the zip will hold."""
    files = here.simulator.service.orders[here.order_id].files
    rows = [
        {
            "content": {
                "id": file.file_id,
                "version": 1,
                "downloadUrl": f"https://any/api/v1/rs-order/orders/files/{file.file_id}",
                "mimeType": file.spec.mime_type,
                "checksum": file.spec.source.md5,
                "filesize": file.spec.source.size_bytes,
                "filename": file.spec.name,
            },
            "links": [],
        }
        for file in files
        if file.spec.name not in names
    ]
    page = {"metadata": {"totalElements": len(rows), "totalPages": 1}, "content": rows, "links": []}
    here.simulator.faults.add(
        Reply(route=Route.AVAILABLE, status=200, body=json.dumps(page).encode())
    )


def test_a_damaged_file_that_the_manifest_did_not_list_is_fetched_alone(tmp_path: Path) -> None:
    """Cut, or with a wrong CRC-32: the lists of the data sets say which file it is."""
    plan = OrderPlan(files=files_named("a.nc", "b.nc", "c.nc", "d.nc"), files_per_suborder=4)
    faults = (WrongCrc(name="b.nc"), TruncatedEntry(name="c.nc", announced=False))
    with world(tmp_path, plan, *faults) as here:
        omit_from_next_manifest(here, "b.nc", "c.nc")
        here.fetch()
        assert here.found == here.expected
        assert {record.state for record in here.records.values()} == {FileState.VERIFIED}
        assert here.singles >= 2


def test_entries_that_nobody_knows_are_kept_as_unverified(tmp_path: Path) -> None:
    """An entry that no list of the server names is not thrown away."""
    files = [FileSpec(name="a.nc", content=b"known")]
    raw = regards_zip([("a.nc", b"known"), ("../stranger.nc", b"unknown")])
    with world(tmp_path, OrderPlan(files=files), RawZip(source=raw)) as here:
        here.fetch()
        assert here.found == {"a.nc": b"known", "stranger.nc": b"unknown"}
        record = here.records["../stranger.nc"]
        assert (record.state, record.file_id < 0) == (FileState.UNVERIFIED, True)
        # the same thing at another time is the same record
        assert len(here.log.files(here.order_id)) == 2
