"""The parts of a download that need no server: plan, manifest, notice, publisher, file system."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import until
from hypothesis import given
from hypothesis import strategies as st
from zip_kit import regards_zip

from regards_nb.client import LastByte
from regards_nb.computer import is_alive
from regards_nb.download import (
    MAX_NOTICE_BYTES,
    CheckedFile,
    Content,
    DownloadOptions,
    FinalNames,
    FolderFiles,
    Manifest,
    MatchKind,
    OrderRecords,
    ProgressCounter,
    Publisher,
    PublisherFailedError,
    StateLog,
    Workspace,
    entry_form,
    link_without_replacing,
    lock_if_free,
    make_plan,
    parse_notice,
    takes_zip,
)
from regards_nb.errors import WorkspaceError
from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MD5 = {letter: letter * 32 for letter in "abc"}


def record(file_id: int, name: str = "a.nc", **known: object) -> FileRecord:
    """Return a record of a manifest."""
    made = FileRecord(order_id=1, file_id=file_id, name=name, size_bytes=10, md5=MD5["a"])
    return made._replace(**known)  # type: ignore[arg-type]


def rows(*sizes: int | None) -> list[FileRecord]:
    """Return a manifest of files of these sizes."""
    return [record(at, f"{at}.nc", size_bytes=size) for at, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "zipped"),
    [
        ([100, 100], True),
        ([5_000_000] * 500, True),
        ([300 << 20] * 4, True),
        # only the zip releases what is external
        ([3 << 30, None], True),
        # the server counts sizes in 32 bits
        ([3 << 30, 100], False),
        ([600 << 20] * 3, False),
        ([], False),
    ],
)
def test_the_way_follows_from_the_manifest(sizes: list[int | None], *, zipped: bool) -> None:
    """One zip, unless files are too large for it or so few and large that it does not pay."""
    assert takes_zip(rows(*sizes), "auto") is zipped


def test_a_way_that_is_asked_for_is_taken() -> None:
    """Whatever would suit better."""
    assert takes_zip(rows(3 << 30), "zip")
    assert not takes_zip(rows(100), "files")


def test_a_plan_tells_wanted_unlisted_and_unreleased_apart(tmp_path: Path) -> None:
    """Listed and missing, missing and not listed any more, listed and here."""
    log = StateLog(tmp_path, 1)
    here = record(1, state=FileState.VERIFIED, path="/somewhere/a.nc")
    failed = record(2, state=FileState.FAILED, error="gone")
    log.save([here, failed, record(3, state=FileState.FAILED), record(4)])
    records = OrderRecords(log, 1, tmp_path)
    records.listed = {1, 4}
    plan = make_plan(records, DownloadOptions(), given_up={3})
    assert [entry.file_id for entry in plan.wanted] == [4]
    assert [entry.file_id for entry in plan.no_longer_listed] == [2]
    assert [entry.file_id for entry in plan.unreleased] == [1]
    assert plan.bytes_total == 20


def test_files_of_the_same_name_are_told_apart_by_their_content() -> None:
    """The server's numbers mean nothing: MD5 decides which file an entry is."""
    same_name = record(1, md5=MD5["a"]), record(2, md5=MD5["b"]), record(3, "a (1).nc")
    manifest = Manifest([*same_name])
    found = manifest.match("a (1).nc", 10, MD5["b"])
    assert (found.kind, [r.file_id for r in found.records]) == (MatchKind.VERIFIED, [2])
    found = manifest.match("a (1).nc", 10, MD5["a"])
    # its own name goes before what the server may have made of another one
    assert [r.file_id for r in found.records] == [3]
    assert [r.file_id for r in manifest.match("a.nc", 10, MD5["a"]).records] == [1]
    assert not manifest.missing


def test_other_content_under_a_known_name_is_wrong_and_an_unknown_name_is_unknown() -> None:
    """Cut or damaged entries stay to be fetched."""
    manifest = Manifest([record(1)])
    assert manifest.match("a.nc", 9, MD5["b"]).kind is MatchKind.WRONG
    assert manifest.match("x.nc", 10, MD5["b"]).kind is MatchKind.UNKNOWN
    assert [r.file_id for r in manifest.missing] == [1]
    found, none = manifest.match_contents([MD5["a"], MD5["a"]])
    assert (found, none) == (record(1), None)
    assert manifest.match_contents([MD5["a"]]) == [None]


def test_without_md5_the_size_must_be_right() -> None:
    """It counts if the zip is sound, once per entry, and can be taken back."""
    manifest = Manifest([record(1, md5=None), record(2, md5=None, size_bytes=None)])
    assert manifest.limit_bytes("a.nc") is None
    first = manifest.match("a.nc", 11, MD5["c"])
    assert (first.kind, [r.file_id for r in first.records]) == (MatchKind.SIZE_ONLY, [2])
    second = manifest.match("a (1).nc", 10, MD5["c"])
    assert [r.file_id for r in second.records] == [1]
    assert manifest.match("a (2).nc", 10, MD5["c"]).kind is MatchKind.WRONG
    manifest.reopen(second.records)
    assert [r.file_id for r in manifest.missing] == [1]


def test_an_entry_is_at_most_as_long_as_the_longest_file_of_its_name() -> None:
    """That is what a bomb is measured by."""
    manifest = Manifest([record(1), record(2, size_bytes=500)])
    assert manifest.limit_bytes("a (1).nc") == 500
    assert manifest.limit_bytes("x.nc") is None


@given(st.text())
def test_every_name_has_the_form_that_the_server_gives_it(name: str) -> None:
    """Backslashes become slashes only where there is no slash (protocol.md 1.3)."""
    form = entry_form(name)
    assert len(form) == len(name)
    assert form == name or ("\\" in name and "/" not in name)


@given(st.dictionaries(st.text(min_size=1), st.sampled_from(["Server returned no content", "x"])))
def test_a_notice_is_read_back_whatever_the_names(reasons: dict[str, str]) -> None:
    """Names with brackets, colons and line ends in them."""
    reasons = {name: why for name, why in reasons.items() if "Failed to download" not in name}
    text = "\n".join(f"Failed to download file ({name}): {why}." for name, why in reasons.items())
    if not reasons:
        assert parse_notice(text.encode()) is None
        return
    found = parse_notice(text.encode("utf-8", "replace"))
    assert found is not None
    assert len(found) == len({name.encode("utf-8", "replace") for name in reasons})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"This product is free of charge.",
        b"Failed to download file (a.nc): gone.\nand a line of its own",
        b"\xff\xfe",
        b"Failed to download file (a): b.\n" * (MAX_NOTICE_BYTES // 20),
    ],
)
def test_data_is_not_taken_for_a_notice(content: bytes) -> None:
    """Every line must be one of the server's; a long one is not read at all."""
    found = parse_notice(content)
    assert found is None or content.startswith(b"Failed to download file (a.nc): gone.")


class Gated(Workspace):
    """A workspace that gives no final name before its gate is open."""

    waiting_bytes = 1

    def __init__(self, directory: Path, gate: Callable[[], object]) -> None:
        super().__init__(directory, 1)
        self._gate = gate

    def prepare(self, contents: Sequence[Content]) -> Sequence[Content]:
        """Wait for the gate."""
        self._gate()
        return super().prepare(contents)


@contextmanager
def publishing(folder: Path, gate: Callable[[], object]) -> Iterator[Publisher]:
    """Return a publisher for files ``0``, ``1`` and so on."""
    records = OrderRecords(StateLog(folder, 1), 1, folder)
    files = [record(at, f"{at}") for at in range(9)]
    counter = ProgressCounter(1, None, LastByte())
    with Gated(folder, gate) as workspace:
        names = FinalNames((file.file_id, file.name) for file in files)
        yield Publisher(workspace, records, names, counter)


def verified(file_id: int) -> list[CheckedFile]:
    """Return a file of one byte."""
    content = Content.of(f"{file_id}", b"1")
    return [CheckedFile(content, [record(file_id, f"{file_id}")], FileState.VERIFIED)]


def test_a_file_counts_as_waiting_until_it_has_its_final_name(tmp_path: Path) -> None:
    """The thread that adds waits for the thread that publishes, not only for one that takes."""
    gate = threading.Barrier(2)
    with publishing(tmp_path, lambda: gate.wait(10)) as publisher:
        publisher.add(verified(0))
        adding = threading.Thread(target=publisher.add, args=(verified(1),), daemon=True)
        adding.start()
        adding.join(0.05)
        assert adding.is_alive()
        gate.wait(10)
        adding.join(10)
        gate.wait(10)
        publisher.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", ".regards"}


def test_ctrl_c_waits_for_the_files_that_get_their_names(tmp_path: Path) -> None:
    """Ctrl-C at the end of a download: the last files get their names before it returns."""
    gate, main = threading.Event(), threading.main_thread().ident or 0
    with publishing(tmp_path, lambda: gate.wait(10)) as publisher:
        publisher.add(verified(0))
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            publisher.finish()
        threading.Timer(0.1, gate.set).start()
        publisher.finish_early()
        assert (tmp_path / "0").exists()


def test_a_publisher_that_has_failed_takes_no_more_files(tmp_path: Path) -> None:
    """The thread that adds does not wait for ever, and the end raises the reason."""

    def fail() -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with publishing(tmp_path, fail) as publisher:
        with pytest.raises(PublisherFailedError):  # noqa: PT012 - one is taken before it fails
            while True:
                publisher.add(verified(0))
        with pytest.raises(WorkspaceError, match="the disk is broken"):
            publisher.finish()


def test_a_final_name_never_replaces(tmp_path: Path) -> None:
    """Not a file, not a folder, not a link that leads nowhere."""
    new = str(tmp_path / "new")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        (tmp_path / "new").write_text("new")
        assert link_without_replacing(new, str(tmp_path / name)) is False
        assert (tmp_path / "new").read_text() == "new"
    assert link_without_replacing(new, str(tmp_path / "free"))
    assert (tmp_path / "free").read_text() == "new"
    with pytest.raises(FileNotFoundError):
        link_without_replacing(str(tmp_path / "missing"), str(tmp_path / "free 2"))


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    """That is how a staging folder shows that its owner lives."""
    with (tmp_path / "file").open("w") as one:
        assert lock_if_free(one.fileno())
        with (tmp_path / "file").open("w") as other:
            assert not lock_if_free(other.fileno())
    with (tmp_path / "file").open("w") as other:
        assert lock_if_free(other.fileno())


def test_a_dead_process_is_told_from_a_living_one() -> None:
    """By asking the kernel, whoever owns it."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: not is_alive(process.pid))
    process.wait()
    assert not is_alive(process.pid)
    assert is_alive(os.getpid())
    assert is_alive(1)


def test_without_isal_the_same_zips_are_read(tmp_path: Path) -> None:
    """The fast library is optional, also for files of many pieces that compress well."""
    script = (
        "import sys; sys.modules['isal'] = None; import zlib\n"
        "from pathlib import Path; from regards_nb.download import crc32, read_zip\n"
        "assert crc32 is zlib.crc32\n"
        "for path in sys.argv[1:]:\n"
        "    print(sum(piece.last for piece in read_zip([Path(path).read_bytes()])))"
    )
    large = tmp_path / "large.zip"
    large.write_bytes(regards_zip([(f"{n}.nc", bytes(n << 18)) for n in range(1, 4)]))
    paths = [str(Path(__file__).parent / "data" / "dups.zip"), str(large)]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], check=True, capture_output=True, text=True
    )
    assert done.stdout == "8\n3\n"


def test_a_client_imports_only_what_a_download_needs() -> None:
    """An event loop, XML and C libraries take as long as hundreds of small files."""
    script = (
        "import sys; from regards_nb import RegardsClient; import regards_nb.download\n"
        "print({'asyncio', 'ctypes', 'xml.etree.ElementTree', 'msgspec'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout == "set()\n"


def test_only_a_plain_file_can_have_the_same_content(tmp_path: Path) -> None:
    """A link to the right content is not the right file."""
    content = b"content"
    md5 = "9a0364b9e99bb480dd25e1f0284c8555"
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files = FolderFiles(str(tmp_path))
    assert files.has("file", 7, md5, reads=False)
    others = [
        ("file", 8, md5),
        ("file", 7, MD5["a"]),
        ("link", 7, md5),
        ("", 7, md5),
        ("no", 7, md5),
    ]
    assert not any(files.has(*other, reads=True) for other in others)
