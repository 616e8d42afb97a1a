"""Names from the network become names of files, and nothing else (download.names)."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regards_nb.download import (
    MAX_NAME_BYTES,
    FinalNames,
    collision_key,
    numbered,
    safe_name,
    unnumbered,
)

DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}

#: What names are made of that hurt: separators, dots, devices, Unicode of every kind.
PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["..", "/", "\\", "C:", "\0", "nul", "CON", "com1", ".nc", ".tar.gz", " ", ".", "-", "~"]
    ),
    st.sampled_from(["é", "e\u0301", "\u202e", "\ud800", "🛰", "ß", "İ", "x" * 300, "日" * 100]),
)
NAMES = st.lists(PIECES, max_size=6).map("".join)


@given(NAMES)
@example("")
@example("\ud800")
@example("a" * 254 + "é")
def test_any_text_becomes_one_plain_file_name(name: str) -> None:
    """Whatever comes in: one component, at most 255 bytes, no device, nothing hidden.

    Made safe a second time it is the same.
    """
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= MAX_NAME_BYTES
    assert not set(safe) & set('/\\<>:"|?*\0')
    assert safe.isprintable() or all(unicodedata.category(c) != "Cc" for c in safe)
    assert safe[0] not in ".-~ "
    assert safe[-1] not in ". "
    assert safe.split(".")[0].rstrip().lower() not in DEVICES
    assert safe_name(safe) == safe


@pytest.mark.parametrize(
    "name",
    [
        "SWOT_L2_LR_SSH_Expert_012_345_20260101T000000.nc",
        "S2A_MSIL2A_20260101.SAFE.zip",
        "été_données.nc",
        "日本語.tif",
        "emoji_🛰.bin",
        "plain%U00E9.txt",
        "a (1).nc",
        "with space, comma;and'quote.csv",
        "README",
    ],
)
def test_ordinary_names_are_kept(name: str) -> None:
    """A name that every file system takes stays what it is."""
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\Windows\\win.ini", "win.ini"),
        ("C:evil.nc", "C_evil.nc"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a/..", "a"),
        ("dir/", "dir"),
        (".ipython", "ipython"),
        ("-rf", "rf"),
        ("nul", "_nul"),
        ("COM1.nc", "_COM1.nc"),
        ("a.nc. .", "a.nc"),
        ("a\0b.nc", "a_b.nc"),
        ("line\nend.nc", "line_end.nc"),
        ("\u202ecn.exe", "_cn.exe"),
        ("a\ud800b", "a_b"),
        ("file.nc:stream", "file.nc_stream"),
    ],
)
def test_hostile_names_lose_their_teeth(name: str, safe: str) -> None:
    """What would leave the folder, hide, or mean something else becomes a plain name."""
    assert safe_name(name) == safe


def test_long_names_stay_different_and_keep_their_extension() -> None:
    """Two names that share their first 255 bytes do not become one."""
    one, other = safe_name("x" * 300 + "1.nc"), safe_name("x" * 300 + "2.nc")
    assert one != other
    assert one.endswith(".nc")
    assert other.endswith(".nc")


@given(st.lists(NAMES, max_size=12), st.lists(NAMES.map(safe_name), max_size=3))
def test_no_two_files_share_a_name_on_any_file_system(names: list[str], taken: list[str]) -> None:
    """Case, composed and decomposed letters, equal names: every file gets a name of its own."""
    chooser = FinalNames(enumerate(names), taken)
    chosen = [chooser.choose(number, name) for number, name in enumerate(names)]
    chosen += [chooser.choose_another(name) for name in chosen[:3]]
    keys = [collision_key(name) for name in chosen]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {collision_key(name) for name in taken}
    assert all(len(name.encode()) <= MAX_NAME_BYTES for name in chosen)
    # another process chooses the same: the choice follows from the manifest alone
    other = FinalNames(enumerate(names), taken)
    assert chosen[: len(names)] == [other.choose(number, name) for number, name in enumerate(names)]


def test_a_number_is_put_before_the_extension_and_found_again() -> None:
    """What the server adds to files of the same name can be removed."""
    assert numbered("a.tar.gz", 2) == "a.tar (2).gz"
    assert unnumbered("a.tar (2).gz") == "a.tar.gz"
    assert unnumbered("a (x).nc") == "a (x).nc"


def test_very_many_files_of_the_same_name_are_named_in_linear_time() -> None:
    """5000 files of one name, a whole sub-order of them, are no problem."""
    chooser = FinalNames((number, "a.nc") for number in range(5000))
    assert chooser.choose(4999, "a.nc") == "a (5000).nc"
