"""The simulator's zips are those of commons-compress, byte for byte."""

from __future__ import annotations

import datetime as dt
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regards_nb.simulator import ZipWriter, encoded_name, in_blocks

DATA = Path(__file__).parent / "data"
NOON = dt.datetime(2026, 1, 2, 12, 0, 2, tzinfo=dt.UTC)


def real_name(item: zipfile.ZipInfo) -> str:
    """Read extra field 0x7075, which zipfile does not before Python 3.12."""
    return item.extra[9:].decode() if item.extra else item.filename


@pytest.mark.parametrize("name", ["dups", "unicode", "noticename", "empty_entry"])
def test_a_real_archive_is_rebuilt_byte_for_byte(name: str) -> None:
    """What Java wrote with commons-compress 1.26 comes out of ZipWriter identically."""
    original = (DATA / f"{name}.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        items = [(item, archive.read(item)) for item in archive.infolist()]
    writer = ZipWriter(made_at=dt.datetime(*items[0][0].date_time, tzinfo=dt.UTC))
    made = b""
    for item, data in items:
        made += writer.begin(real_name(item), declared_bytes=len(data))
        made += writer.data(data) + writer.end()
    made += b"".join(writer.finish())
    assert made == original


def test_more_entries_than_16_bits_count_need_zip64() -> None:
    """70,000 entries end in a Zip64 record, and every one is found again."""
    writer = ZipWriter(made_at=NOON)
    names = [f"{number:05}" for number in range(70_000)]
    pieces = [
        piece for name in names for piece in (writer.begin(name, declared_bytes=0), writer.end())
    ]
    data = b"".join([*pieces, *writer.finish()])
    assert data[-98:-94] == b"PK\6\6"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == names


def test_a_declared_size_beyond_32_bits_gives_a_long_descriptor() -> None:
    """An entry declared larger than 4 GiB has a Zip64 header and a descriptor of 20 + 4 bytes."""
    writer = ZipWriter(made_at=NOON)
    header = writer.begin("large", declared_bytes=2**33)
    assert header[4:6] == b"\x2d\0"
    assert header[-20:] == b"\1\0\x10\0" + bytes(16)
    body = writer.data(b"abc")
    end = writer.end()
    assert end[-24:-20] == b"PK\7\x08"
    data = header + body + end + b"".join(writer.finish())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("large") == b"abc"


def test_a_short_declaration_gives_a_short_descriptor() -> None:
    """Any other entry has a descriptor of 12 + 4 bytes, and no Zip64 anywhere."""
    writer = ZipWriter(made_at=NOON)
    data = writer.begin("small", declared_bytes=None) + writer.data(b"abc")
    end = writer.end()
    data += end + b"".join(writer.finish())
    assert end[-16:-12] == b"PK\7\x08"
    assert b"PK\6\6" not in data


def test_a_wrong_crc_is_found_by_readers() -> None:
    """A CRC that is a lie is one in both places."""
    writer = ZipWriter(made_at=NOON)
    data = writer.begin("a", declared_bytes=3) + writer.data(b"abc") + writer.end(crc=1)
    data += b"".join(writer.finish())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() == "a"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_name_is_ascii_and_kept_in_the_extra_field(name: str) -> None:
    """The header's name is ASCII whatever the file is called; the extra field has the real one."""
    ascii_name, extra = encoded_name(name)
    assert ascii_name.isascii()
    shown = name if "/" in name else name.replace("\\", "/")
    assert (extra[9:].decode() if extra else ascii_name.decode()) == shown


@given(st.lists(st.binary(max_size=50)), st.integers(1, 100))
def test_blocks_are_the_same_bytes_in_larger_pieces(pieces: list[bytes], size: int) -> None:
    """Gathering changes no byte, and only the last block may be short."""
    blocks = list(in_blocks(pieces, block_bytes=size))
    assert b"".join(blocks) == b"".join(pieces)
    assert all(len(block) >= size for block in blocks[:-1])
    assert all(blocks)
