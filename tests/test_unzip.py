"""A zip is read forward only, and nothing in it is believed (download.unzip)."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zip_kit import (
    by_hand,
    central_line,
    deflated,
    end_record,
    in_steps,
    local_entry,
    regards_zip,
    regards_zip_blocks,
)

from regards_nb.download import MAX_PIECE_BYTES, read_zip
from regards_nb.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DATA = Path(__file__).parent / "data"
CONTENT = b"longitude,latitude\n1.5,43.6\n" * 40


def entries_of(blocks: Iterable[bytes]) -> list[tuple[str, bytes, str | None]]:
    """Read a whole zip: name, content and damage of each entry."""
    found = []
    data = b""
    for piece in read_zip(blocks):
        data += piece.data
        if piece.last:
            found.append((piece.name, data, piece.damage))
            data = b""
    return found


def names_and_content(blocks: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Read a whole zip that has nothing wrong."""
    entries = entries_of(blocks)
    assert all(damage is None for _, _, damage in entries)
    return [(name, data) for name, data, _ in entries]


@pytest.mark.parametrize("step", [1, 13, 4096, 1 << 20])
@pytest.mark.parametrize("name", ["dups.zip", "unicode.zip", "empty_entry.zip", "noticename.zip"])
def test_zips_of_a_real_server_library_are_read_whatever_the_blocks(name: str, step: int) -> None:
    """The content is what zipfile finds, with each entry once and in order."""
    raw = (DATA / name).read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        content = [archive.read(info) for info in archive.infolist()]
    assert [data for _, data in names_and_content(in_steps(raw, step))] == content


def test_names_come_from_the_unicode_field() -> None:
    """Field 0x7075 is read, and a name that only looks escaped is left alone."""
    raw = (DATA / "unicode.zip").read_bytes()
    assert [name for name, _ in names_and_content([raw])] == [
        "ascii.txt",
        "été_données.nc",
        "日本語.tif",
        "emoji_🛰.bin",
        "naïve%U00E9.txt",
        "plain%U00E9.txt",
        "e\u0301te.txt",
        "éte.txt",
    ]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=3000)), max_size=5),
    st.integers(1, 500),
)
def test_any_files_survive_the_way_through_a_zip(files: list[tuple[str, bytes]], step: int) -> None:
    """Names and content come out as they went in, whatever they are."""
    files = [(n.encode("utf-8", "replace").decode().replace("\\", "/"), d) for n, d in files]
    assert names_and_content(in_steps(regards_zip(files), step)) == files


def test_a_cut_anywhere_is_noticed() -> None:
    """Ending the stream after any byte but the last is an ArchiveError."""
    raw = regards_zip([("a.nc", CONTENT), ("é.nc", b""), ("c.nc", b"x" * 70)])
    for end in range(len(raw)):
        with pytest.raises(ArchiveError):
            entries_of([raw[:end]])
    assert len(entries_of([raw])) == 3


def test_no_changed_bit_leads_to_wrong_content() -> None:
    """Flip any bit: an error, a damaged entry, or exactly what was there."""
    raw = regards_zip([("a.nc", CONTENT[:90]), ("é.nc", b"y")])
    good = entries_of([raw])
    survived = 0
    for bit in range(8 * len(raw)):
        bad = bytearray(raw)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            found = entries_of([bytes(bad)])
        except ArchiveError:
            continue
        whole = [entry for entry in found if entry[2] is None]
        assert all(entry in good for entry in whole)
        survived += 1
    # times, versions, attributes and the empty sizes of local headers say nothing about content
    assert survived < 8 * len(raw) // 2


def test_something_after_the_end_is_refused() -> None:
    """A zip that goes on after its end is not what the server would send."""
    with pytest.raises(ArchiveError, match="behind the end of the zip"):
        entries_of([regards_zip([("a", b"1")]), b"more"])


@pytest.mark.parametrize("body", [b"", b"PK", b"<!DOCTYPE html><html>", b'{"messages":["no"]}'])
def test_what_is_no_zip_is_said_to_be_none(body: bytes) -> None:
    """An empty answer, a page or JSON instead of a zip is named as such."""
    with pytest.raises(ArchiveError, match="not a zip"):
        entries_of([body] if body else [])


def test_an_empty_zip_is_a_zip() -> None:
    """No entries at all is legal."""
    assert entries_of([regards_zip([])]) == []


def test_stored_entries_of_known_size_are_read() -> None:
    """Other servers pack in other ways that are as safe."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("stored.nc", CONTENT)
        archive.writestr("packed.nc", CONTENT, zipfile.ZIP_DEFLATED)
        archive.writestr("empty.nc", b"")
    assert [data for _, data in names_and_content([buffer.getvalue()])] == [CONTENT, CONTENT, b""]


@pytest.mark.parametrize("content", [CONTENT, b""])
def test_a_stored_entry_may_have_a_descriptor_too(content: bytes) -> None:
    """Info-ZIP (``-fd``) and libarchive write one although the header has the sizes."""
    entry = bytearray(local_entry(b"a", content))
    struct.pack_into("<H", entry, 6, 8)
    entry += struct.pack("<4s3I", b"PK\7\x08", zlib.crc32(content), len(content), len(content))
    line = central_line(b"a", content, 0, flags=8)
    assert names_and_content([by_hand([bytes(entry)], [line])]) == [("a", content)]


def test_a_small_zip_may_be_written_with_zip64_everywhere() -> None:
    """Info-ZIP (``-fz``): all values are in Zip64 fields, and the others are all ones."""
    ones = 0xFFFFFFFF
    entry = bytearray(local_entry(b"a", b"12", extra=struct.pack("<2H2Q", 1, 16, 2, 2)))
    struct.pack_into("<2I", entry, 18, ones, ones)
    line = bytearray(central_line(b"a", b"12", 0, extra=struct.pack("<2H3Q", 1, 24, 2, 2, 0)))
    struct.pack_into("<2I", line, 20, ones, ones)
    struct.pack_into("<I", line, 42, ones)
    start, end = len(entry), len(entry) + len(line)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(line), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    for last in (end_record(0xFFFF, ones, ones), end_record(1, len(line), start)):
        raw = bytes(entry + line) + record + locator + last
        assert names_and_content([raw]) == [("a", b"12")]
    with pytest.raises(ArchiveError, match="end record"):
        entries_of([bytes(entry + line) + record + locator + end_record(2, ones, ones)])


DESCRIPTORS = {
    "32 bits": ("<4s3I", True),
    "64 bits": ("<4sI2Q", True),
    "32 bits without mark": ("<3I", False),
    "64 bits without mark": ("<I2Q", False),
}


@pytest.mark.parametrize("content", [CONTENT, b""])
@pytest.mark.parametrize("form", DESCRIPTORS)
def test_all_forms_of_a_descriptor_are_understood(form: str, content: bytes) -> None:
    """With and without mark, sizes of 32 and of 64 bits, also for an empty entry."""
    layout, marked = DESCRIPTORS[form]
    packed = deflated(content)
    values = (zlib.crc32(content), len(packed), len(content))
    descriptor = struct.pack(layout, *((b"PK\7\x08",) if marked else ()), *values)
    entry = local_entry(b"a", content, flags=8, method=8, packed=packed, descriptor=descriptor)
    line = central_line(b"a", content, 0, flags=8, method=8, packed_bytes=len(packed))
    assert names_and_content([by_hand([entry], [line])]) == [("a", content)]


def test_a_wrong_crc_damages_one_entry_and_no_more() -> None:
    """The entries after it are still read."""
    good = local_entry(b"b", b"right")
    bad = local_entry(b"a", b"wrong", crc=1)
    lines = [central_line(b"b", b"right", len(bad))]
    raw = by_hand([bad, good], lines)
    pieces = read_zip([raw])
    first, second = next(pieces), next(pieces)
    assert first.damage is not None
    assert "CRC-32" in first.damage
    assert (second.damage, second.data) == (None, b"right")


HOSTILE = {
    "a symbolic link": (
        [local_entry(b"a", b"/etc/passwd")],
        [central_line(b"a", b"/etc/passwd", 0, made_by=3 << 8, attributes=0o120777 << 16)],
        "no plain file",
    ),
    "a device": (
        [local_entry(b"a", b"")],
        [central_line(b"a", b"", 0, made_by=3 << 8, attributes=0o060666 << 16)],
        "no plain file",
    ),
    "an entry listed twice": (
        [local_entry(b"a", b"1"), local_entry(b"b", b"1")],
        [central_line(b"a", b"1", 0), central_line(b"a", b"1", 0)],
        "twice",
    ),
    "entries that overlap": (
        [local_entry(b"a", local_entry(b"b", b"1"))],
        [central_line(b"b", b"1", 31)],
        "no entry starts there",
    ),
    "an entry that is not listed": (
        [local_entry(b"a", b"1"), local_entry(b"b", b"1")],
        [central_line(b"a", b"1", 0)],
        "lists 1",
    ),
    "two names for one entry": (
        [local_entry(b"a.nc", b"1")],
        [central_line(b"b.sh", b"1", 0)],
        "another name",
    ),
    "two Unicode names for one entry": (
        [
            local_entry(
                b"a", b"1", extra=struct.pack("<2HBI", 0x7075, 6, 1, zlib.crc32(b"a")) + b"x"
            )
        ],
        [central_line(b"a", b"1", 0)],
        "another name",
    ),
    "two sizes for one entry": (
        [local_entry(b"a", b"12")],
        [central_line(b"a", b"1", 0)],
        "another CRC-32 or size",
    ),
    "encryption": ([local_entry(b"a", b"1", flags=1)], [], "encrypted"),
    "another packing": ([local_entry(b"a", b"1", method=12)], [], "method 12"),
    "a stored entry of unknown size": (
        [local_entry(b"a", b"1", flags=8, descriptor=b"PK\7\x08" + bytes(12))],
        [],
        "size that follows it",
    ),
    "a false end": (
        [local_entry(b"a", b"1"), b"PK\5\6" + bytes(18)],
        [],
        "lists 0",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_zip_is_refused_in_one_sentence(case: str) -> None:
    """What two readers could see differently, or what is no plain file, is an ArchiveError."""
    entries, lines, reason = HOSTILE[case]
    with pytest.raises(ArchiveError, match=reason):
        entries_of([by_hand(entries, lines)])


def test_seventy_thousand_entries_are_read() -> None:
    """More than 16 bits can count: the Zip64 end is understood."""
    files = ((f"f{number}.txt", b"%020d" % number) for number in range(70_000))
    count = sum(piece.last for piece in read_zip(regards_zip_blocks(files)))
    assert count == 70_000


FOUR_GIB_MORE = (4 << 30) + (64 << 20)


def zeros_zip(*, size_known: bool) -> Iterator[bytes]:
    """Make a zip of more than 4 GiB of zeros, without deflating 4 GiB."""
    mebibytes = FOUR_GIB_MORE >> 20
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    # after a full flush the next block needs nothing of the one before: it can be repeated
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = deflated(b"")
    crc = 0
    for _ in range(mebibytes):
        crc = zlib.crc32(bytes(1 << 20), crc)
    packed_bytes = len(block) * mebibytes + len(end)
    zip64 = struct.pack("<2H2Q", 1, 16, 0, 0) if size_known else b""
    in_header = 0xFFFFFFFF if size_known else 0
    head = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 45, 8, 8, 0, 0, 0, in_header, in_header, 4, len(zip64)
    )
    yield head + b"a.nc" + zip64
    yield from repeat(block, mebibytes)
    low = (packed_bytes & 0xFFFFFFFF, FOUR_GIB_MORE & 0xFFFFFFFF)
    if size_known:
        descriptor = struct.pack("<4sI2Q", b"PK\7\x08", crc, packed_bytes, FOUR_GIB_MORE)
    else:
        descriptor = struct.pack("<4s3I", b"PK\7\x08", crc, *low)
    start = len(head) + 4 + len(zip64) + packed_bytes + len(descriptor)
    extra = struct.pack("<2HQ", 1, 8, FOUR_GIB_MORE) if size_known else b""
    sizes = (packed_bytes, 0xFFFFFFFF) if size_known else low
    line = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 45, 45, 8, 8, 0, 0, crc, *sizes, 4, len(extra), 0, 0, 0, 0, 0
    )
    line += b"a.nc" + extra
    yield end + descriptor + line
    yield struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(line), start, 0)


@pytest.mark.parametrize("size_known", [True, False], ids=["declared", "undeclared"])
def test_an_entry_beyond_4_gib_is_read_in_little_memory(*, size_known: bool) -> None:
    """Sizes of 64 bits, and those that only have their low 32 bits, are both understood."""
    tracemalloc.start()
    try:
        sizes = [
            (len(piece.data), piece.damage) for piece in read_zip(zeros_zip(size_known=size_known))
        ]
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(size for size, _ in sizes) == FOUR_GIB_MORE
    assert max(size for size, _ in sizes) <= MAX_PIECE_BYTES
    assert {damage for _, damage in sizes} == {None}
    # how much of it is in use at a time depends on the inflate library; the promise is this
    assert peak_bytes < 64 << 20


def test_a_bomb_is_handed_out_in_small_pieces() -> None:
    """One block of input that inflates a thousandfold never becomes one piece of output."""
    raw = regards_zip([("zeros", bytes(64 << 20))])
    assert len(raw) < 100_000
    tracemalloc.start()
    try:
        pieces = sum(1 for piece in read_zip([raw]) if len(piece.data) <= MAX_PIECE_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pieces >= 64
    assert peak_bytes < 8 << 20


def test_many_small_entries_in_one_block_are_not_copied_again_and_again() -> None:
    """The cost of an entry does not grow with what lies behind it in the block."""
    raw = regards_zip((f"f{number}", b"x") for number in range(20_000))
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_zip([raw]))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    # the directory index, and one more copy of the block at most
    assert peak_bytes < 2 * len(raw) + (4 << 20)


def test_what_the_inflater_read_ahead_may_be_of_an_earlier_block() -> None:
    """An entry that fills a piece just before a block ends is read, wherever that block ends."""
    files = [("a.nc", bytes(MAX_PIECE_BYTES + 100)), ("b.nc", CONTENT)]
    raw = regards_zip(files)
    for step in range(290, 330):
        assert names_and_content(in_steps(raw, step)) == files, step


def test_blocks_may_be_empty() -> None:
    """A block without bytes is not the end."""
    raw = regards_zip([("a", CONTENT)])
    blocks = chain.from_iterable(zip(in_steps(raw, 7), repeat(b""), strict=False))
    assert names_and_content(blocks) == [("a", CONTENT)]
