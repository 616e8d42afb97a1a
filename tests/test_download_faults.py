"""The fault table: whatever goes wrong ends in verified files or in an error with a name.

Each row runs against the real HTTP simulator. After each, nothing partial stands under a final
name, nothing unfinished is left behind, and what is recorded is what is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from download_kit import World, files_named, world

from regards_nb.errors import (
    IncompleteDownloadError,
    NotAllowedError,
    OrderNotFoundError,
    RegardsError,
    ServiceLoginError,
    ServiceUnreachableError,
    UnexpectedAnswerError,
)
from regards_nb.files import FileState
from regards_nb.simulator import (
    CorruptEntry,
    CorruptFile,
    CutFile,
    CutMode,
    CutZip,
    ExpiredToken,
    Fault,
    IncompleteZip,
    MissingEntry,
    OrderPlan,
    Reply,
    Route,
    Slow,
    StorageRefuses,
    TruncatedEntry,
    WrongChecksum,
    WrongCrc,
    business_error,
    html_page,
    quota_exceeded,
    rate_exceeded,
    redirect,
)

if TYPE_CHECKING:
    from pathlib import Path

A, B = "file_00001.bin", "file_00003.bin"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    faults: tuple[Fault, ...]
    #: None: all files verified in the end.
    error: type[RegardsError] | None = None
    #: What the error says.
    says: str = ""
    #: Files that cannot be had; all others must be there.
    missing: frozenset[str] = frozenset()
    way: str = "auto"
    #: How often the zip may be asked for.
    zips: int = 1
    #: How often single files are asked for; None: anything.
    singles: int | None = None
    client: tuple[tuple[str, Any], ...] = ()


def always(fault: Fault) -> Fault:
    """Return the same fault, striking each time."""
    return replace(fault, times=None)


def lost(fault: Fault, says: str, *names: str, **known: Any) -> Row:
    """Return a row in which some files cannot be had."""
    return Row((fault,), IncompleteDownloadError, says, frozenset(names or (A,)), **known)


ROWS: dict[str, Row] = {
    "nothing wrong": Row((), singles=0),
    "nothing wrong, one by one": Row((), way="files", zips=0, singles=6),
    **{
        f"zip cut at {round(100 * part)} %, {ending.name}": Row(
            (CutZip(after_fraction=part, ending=ending),)
        )
        for part in (0, 0.5, 0.99)
        for ending in CutMode
    },
    # -- a valid zip that is not right
    "a file left out, NOTICE": Row((MissingEntry(name=A),), singles=1),
    "two files left out, NOTICE": Row((MissingEntry(name=A), MissingEntry(name=B)), singles=2),
    "a cut file, NOTICE": Row((TruncatedEntry(name=A),), singles=1),
    # nothing was marked by the server, or so it seems: the five others are told of as well
    "a cut file, no NOTICE": Row((TruncatedEntry(name=A, announced=False),)),
    "other content, right CRC": Row((CorruptEntry(name=A),)),
    "wrong CRC-32": Row((WrongCrc(name=A),)),
    "a whole zip without half of the files": Row((IncompleteZip(keep_files=3),), singles=6),
    "quota used up inside of the zip": Row(
        (MissingEntry(name=A, reason="Download quota of 10 exceeded (by 1) for user x."),),
        IncompleteDownloadError,
        "Download quota",
        frozenset({A}),
        singles=0,
    ),
    "a checksum nobody can meet": lost(WrongChecksum(name=A, times=None), "MD5"),
    # -- answers instead of the zip
    "zip: token expired, 401": Row((ExpiredToken(status=401, skip=1),), singles=0, zips=2),
    "zip: token expired, 403": Row((ExpiredToken(status=403, skip=1),), singles=0, zips=2),
    # REGARDS 2.1 refuses a second zip while one runs; how, is not documented
    **{
        f"zip: {status} in REGARDS' words": Row(
            (business_error(Route.ZIP, status, "DOWNLOAD_RESTRICTION"),), singles=6
        )
        for status in (401, 409, 423, 429)
    },
    "zip: 401 for ever": Row(
        (always(Reply(route=Route.ZIP, status=401)),), ServiceLoginError, "token", zips=2
    ),
    "zip: 403 without a word": Row(
        (always(Reply(route=Route.ZIP, status=403)),), NotAllowedError, "403", zips=2
    ),
    "zip: 404": Row(
        (business_error(Route.ZIP, 404, "Order not found"),), OrderNotFoundError, "Order not found"
    ),
    "zip: 429 with Retry-After": Row(
        (Reply(route=Route.ZIP, status=429, headers=(("Retry-After", "0"),)),), zips=2, singles=0
    ),
    "zip: 500 without a word": Row((Reply(route=Route.ZIP, status=500),), singles=6),
    "zip: 503 once": Row((Reply(route=Route.ZIP, status=503),), zips=1, singles=6),
    "zip: 504 for ever": Row((always(Reply(route=Route.ZIP, status=504)),), zips=1, singles=6),
    "zip: 204": Row((Reply(route=Route.ZIP, status=204),), singles=6),
    "zip: a page, 200": Row((html_page(Route.ZIP),), UnexpectedAnswerError, "Please log in"),
    "zip: a page that calls itself a file, 200": Row(
        (replace(html_page(Route.ZIP), headers=(("Content-Disposition", "attachment"),)),),
        UnexpectedAnswerError,
        "Please log in",
    ),
    "zip: JSON, 200": Row(
        (business_error(Route.ZIP, 200, "odd"),), UnexpectedAnswerError, "not REGARDS"
    ),
    "zip: damaged gzip": Row(
        (Reply(route=Route.ZIP, status=200, body=b"x", headers=(("Content-Encoding", "gzip"),)),),
        singles=6,
    ),
    "zip: an encoding that cannot be undone": Row(
        (Reply(route=Route.ZIP, status=200, body=b"x", headers=(("Content-Encoding", "br"),)),),
        UnexpectedAnswerError,
        "encoded the body as br",
    ),
    "zip: stalls": Row(
        (Slow(route=Route.ZIP, stall_after_bytes=50_000),), client=(("read_timeout_s", 0.5),)
    ),
    "zip: redirected within": Row(
        (redirect(Route.ZIP, "/api/v1/rs-order/user/orders/1/download"),), zips=2, singles=0
    ),
    "zip: redirected for ever": Row(
        (always(redirect(Route.ZIP, "/api/v1/rs-order/user/orders/1/download")),),
        UnexpectedAnswerError,
        "redirection",
        zips=4,
    ),
    "zip: redirected elsewhere": Row(
        (redirect(Route.ZIP, "https://elsewhere.example/zip"),),
        UnexpectedAnswerError,
        "elsewhere.example",
    ),
    # -- answers instead of the manifest: nothing has been spent yet
    "manifest: a page": Row(
        (html_page(Route.AVAILABLE),), UnexpectedAnswerError, "Please log in", zips=0
    ),
    "manifest: 503 once": Row((Reply(route=Route.AVAILABLE, status=503),), singles=0),
    "manifest: 503 for ever": Row(
        (always(Reply(route=Route.AVAILABLE, status=503)),),
        ServiceUnreachableError,
        "503",
        zips=0,
    ),
    "manifest: broken JSON once": Row(
        (Reply(route=Route.AVAILABLE, status=200, body=b'{"content":['),), singles=0
    ),
    "manifest: broken JSON": Row(
        (always(Reply(route=Route.AVAILABLE, status=200, body=b'{"content":[')),),
        UnexpectedAnswerError,
        "not REGARDS",
        zips=0,
    ),
    "manifest: redirected elsewhere": Row(
        (redirect(Route.AVAILABLE, "http://127.0.0.1:1/"),),
        UnexpectedAnswerError,
        "127.0.0.1:1",
        zips=0,
    ),
    # -- one file at a time
    "file: cut": Row((CutFile(name=A, after_bytes=5000),), way="files", zips=0, singles=7),
    "file: reset": Row(
        (CutFile(name=A, after_bytes=5000, ending=CutMode.RESET),), way="files", zips=0, singles=7
    ),
    "file: cut for ever": lost(
        always(CutFile(name=A, after_bytes=5000)), "connection broke", way="files", zips=0
    ),
    "file: other content once": Row((CorruptFile(name=A),), way="files", zips=0, singles=7),
    "file: other content for ever": lost(always(CorruptFile(name=A)), "MD5", way="files", zips=0),
    "file: 401 once": Row((Reply(route=Route.FILE, status=401, name=A),), way="files", zips=0),
    "file: 401 for ever": Row(
        (always(Reply(route=Route.FILE, status=401)),),
        ServiceLoginError,
        "token",
        way="files",
        zips=0,
    ),
    "file: 401 for ever, the others wait": Row(
        (
            Slow(route=Route.FILE, delay_s=60, times=3),
            always(Reply(route=Route.FILE, status=401, skip=3)),
        ),
        ServiceLoginError,
        "token",
        way="files",
        zips=0,
    ),
    "file: 403": lost(
        always(Reply(route=Route.FILE, status=403, name=A)), "403", way="files", zips=0
    ),
    "file: 404": lost(
        business_error(Route.FILE, 404, "no such file"), "no such file", way="files", zips=0
    ),
    "file: 410, expired": lost(always(StorageRefuses(name=A)), "410", way="files", zips=0),
    "file: 202 once": Row((Reply(route=Route.FILE, status=202, name=A),), way="files", zips=0),
    "file: 429, too many at once": Row(
        (rate_exceeded(A), rate_exceeded(B)), way="files", zips=0, singles=8
    ),
    "file: 500 once": Row((Reply(route=Route.FILE, status=500, name=A),), way="files", zips=0),
    "file: 500 for ever": lost(
        always(Reply(route=Route.FILE, status=500, name=A)), "500", way="files", zips=0
    ),
    "file: a page": lost(
        always(replace(html_page(Route.FILE), name=A)), "Please log in", way="files", zips=0
    ),
    "zip cut, and a file that is gone": Row(
        (CutZip(after_fraction=0), always(StorageRefuses(name=A))),
        IncompleteDownloadError,
        "410",
        frozenset({A}),
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_each_fault_ends_in_verified_files_or_a_named_error(case: str, tmp_path: Path) -> None:
    """All files verified, or an error that says what is missing; never anything in between."""
    row = ROWS[case]
    with world(tmp_path, None, *row.faults, **dict(row.client)) as here:
        if case == "file: 404":
            # a fault of the route strikes whichever file comes first
            here.simulator.faults.clear()
            here.simulator.faults.add(replace(row.faults[0], name=A))
        if row.error is None:
            fetched = here.fetch(way=row.way)
            assert {path.name for path in fetched} == set(here.expected)
        else:
            with pytest.raises(row.error, match=row.says) as caught:
                here.fetch(way=row.way)
            if isinstance(caught.value, IncompleteDownloadError):
                assert set(caught.value.missing) == row.missing
                there = {path.name for path in caught.value.paths}
                assert there == set(here.expected) - row.missing
        check_order(here, row)


def check_order(here: World, row: Row) -> None:
    """What is there is whole, what is recorded is there, and the server was asked politely."""
    expected, found = here.expected, here.found
    assert {name: hashlib.md5(data).hexdigest() for name, data in found.items()} == {
        name: hashlib.md5(expected[name]).hexdigest() for name in found
    }
    if row.error in (None, IncompleteDownloadError):
        assert set(found) == set(expected) - row.missing
        states = {name: record.state for name, record in here.records.items()}
        assert states == {
            name: FileState.FAILED if name in row.missing else FileState.VERIFIED
            for name in expected
        }
        assert {record.path for record in here.records.values() if record.path} == {
            str(here.folder / name) for name in found
        }
    else:
        assert not found
    assert not here.leftovers
    assert here.zips <= row.zips
    assert row.singles in (None, here.singles)
    assert not any(seen.method == "HEAD" for seen in here.simulator.requests)
    secret = here.simulator.password
    assert not any(secret in str(record) for record in here.records.values())


@pytest.mark.parametrize(
    "fault",
    [
        CutZip(after_fraction=0.5),
        CutZip(after_fraction=0.5, ending=CutMode.RESET),
        IncompleteZip(keep_files=3),
        TruncatedEntry(name=A, announced=False),
        TruncatedEntry(name=A),
        MissingEntry(name=A),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_no_fault_of_a_zip_keeps_the_order_waiting(fault: Fault, tmp_path: Path) -> None:
    """After a zip that the server does not count, it is told of each file: the order goes on."""
    plan = OrderPlan(n_files=12, file_bytes=20_000, files_per_suborder=3)
    with world(tmp_path, plan, fault) as here:
        here.simulator.wait_available(here.order_id, files=6)
        here.fetch()
        here.simulator.wait_available(here.order_id, files=6)
        here.fetch()
        assert set(here.found) == set(here.expected)
        assert here.simulator.wait_for(here.order_id, "DONE") == "DONE"
        assert here.client.order(here.order_id).available_files == 0


@pytest.mark.parametrize("ending", CutMode)
def test_external_files_are_released_by_a_second_zip_only_when_needed(
    ending: CutMode, tmp_path: Path
) -> None:
    """A cut zip of external files: each is fetched, and the server stops waiting for them."""
    plan = OrderPlan(files=files_named("a.nc", "b.nc", reference=True), files_per_suborder=2)
    with world(tmp_path, plan, CutZip(after_fraction=0.6, ending=ending)) as here:
        here.fetch()
        assert here.found == here.expected
        assert {record.state for record in here.records.values()} == {FileState.UNVERIFIED}
        assert here.client.order(here.order_id).available_files == 0
        assert here.zips == 2


def test_a_used_up_quota_ends_the_asking(tmp_path: Path) -> None:
    """No further file is asked for, those that came are kept, and all others are named."""
    plan = OrderPlan(n_files=40, file_bytes=2000, files_per_suborder=40)
    with world(tmp_path, plan, always(quota_exceeded(A))) as here:
        with pytest.raises(IncompleteDownloadError, match="Download quota") as caught:
            here.fetch(way="files")
        error = caught.value
        assert str(error).count("Download quota") == 1, "files with one reason are named together"
        there = {path.name for path in error.paths}
        assert A in error.missing
        assert there.isdisjoint(error.missing)
        assert there | set(error.missing) == set(here.expected)
        assert here.singles < 40
        assert here.found.keys() == there


def test_an_expired_token_answered_by_500_is_renewed(tmp_path: Path) -> None:
    """500 without a word may mean an expired token: one new login, and it works."""
    with world(tmp_path, None, ExpiredToken(status=500, body=b" ")) as here:
        here.fetch()
        assert here.found == here.expected
        assert here.requested("/oauth/token") == 2
