"""Every word of the failure vocabulary does what it says, and as often as it says."""

from __future__ import annotations

import hashlib
import http.client
import io
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from conftest import until
from simulator_session import FILES_PATH, ORDERS_PATH, Session

from regards_nb.simulator import (
    CorruptEntry,
    CorruptFile,
    CutFile,
    CutMode,
    CutZip,
    ExpiredToken,
    IncompleteZip,
    LateSave,
    MissingEntry,
    OrderPlan,
    RawZip,
    Reply,
    Route,
    Simulator,
    Slow,
    StagingError,
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
    pass

DATA = Path(__file__).parent / "data"
PLAN = OrderPlan(n_files=3, file_bytes=40_000, files_per_suborder=3)
SECOND = "file_00001.bin"


@pytest.fixture
def order_id(simulator: Simulator) -> int:
    """Return an order of three files, all staged."""
    number = simulator.order(PLAN)
    simulator.wait_for(number, "DONE")
    return number


def states(simulator: Simulator, order_id: int) -> list[str]:
    """Return the state of each file, as the server has it."""
    return [file.state.value for file in simulator.service.orders[order_id].files]


def no_connection_is_served() -> bool:
    """Tell whether no thread of the HTTP side is at work for a client."""
    return not [each for each in threading.enumerate() if each.name.endswith("http-connection")]


# -- zips that end early


def test_a_clean_cut_looks_like_success(user: Session, simulator: Simulator, order_id: int) -> None:
    """A zip cut in half with a clean end is 200 for HTTP, no zip, and marks nothing."""
    whole_bytes = simulator.faults.add(CutZip(order_id=order_id, after_bytes=100))
    assert len(user.zip(order_id).content) == whole_bytes.after_bytes
    simulator.faults.add(CutZip(after_fraction=0.5))
    half = user.zip(order_id).content
    assert 55_000 < len(half) < 65_000
    assert not zipfile.is_zipfile(io.BytesIO(half))
    assert states(simulator, order_id) == ["AVAILABLE"] * 3
    assert len(user.entries(order_id)) == 3


@pytest.mark.parametrize("ending", [CutMode.NO_LAST_CHUNK, CutMode.RESET])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_a_hard_cut_is_an_error(
    user: Session, simulator: Simulator, order_id: int, ending: CutMode, fraction: float
) -> None:
    """Without the last chunk, or with a reset, the client notices; nothing is marked."""
    simulator.faults.add(CutZip(after_fraction=fraction, ending=ending))
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        user.zip(order_id)
    assert states(simulator, order_id) == ["AVAILABLE"] * 3
    assert len(user.entries(order_id)) == 3


def test_an_aborted_download_marks_nothing(simulator: Simulator, user: Session) -> None:
    """A client that goes away in the middle leaves the files available."""
    number = simulator.order(OrderPlan(n_files=1, file_bytes=20_000_000))
    simulator.wait_for(number, "DONE")
    with user.http.get(
        f"{simulator.base_url}{ORDERS_PATH}/{number}/download", stream=True, timeout=30
    ) as answer:
        assert answer.raw.read(1000)
    user.http.close()
    until(no_connection_is_served)
    assert states(simulator, number) == ["AVAILABLE"]


# -- zips that are valid and wrong


def test_an_incomplete_zip_is_valid_and_silent(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """Fewer files, no NOTICE.txt, a right central directory; nothing is marked."""
    simulator.faults.add(IncompleteZip(keep_files=2))
    assert list(user.entries(order_id)) == ["file_00000.bin", SECOND]
    assert states(simulator, order_id) == ["AVAILABLE"] * 3


def test_a_truncated_entry_has_a_right_crc_and_a_notice(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """Only NOTICE.txt, the last entry, tells; the file becomes DOWNLOAD_ERROR."""
    simulator.faults.add(TruncatedEntry(name=SECOND, keep_fraction=0.25))
    entries = user.entries(order_id)
    assert len(entries[SECOND]) == 10_000
    assert list(entries)[-1] == "NOTICE.txt"
    assert entries["NOTICE.txt"].decode() == (
        f"Failed to download file ({SECOND}): Cannot completely download data file "
        "from storage, only 10000/40000 bytes."
    )
    expected = ["DOWNLOADED", "DOWNLOAD_ERROR", "DOWNLOADED"]
    simulator.service.wait_until(lambda: states(simulator, order_id) == expected)
    assert user.states(order_id) == expected
    assert len(user.file(2).content) == 40_000


def test_a_truncated_entry_can_be_silent(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """Without an announcement only the manifest's size tells."""
    simulator.faults.add(TruncatedEntry(name=SECOND, announced=False))
    entries = user.entries(order_id)
    assert len(entries[SECOND]) == 20_000
    assert "NOTICE.txt" not in entries


def test_a_missing_entry_is_named(user: Session, simulator: Simulator, order_id: int) -> None:
    """A file without an entry is named with the reason given."""
    reason = "Download quota of 10 exceeded (by 1) for user john@cnes.fr."
    simulator.faults.add(MissingEntry(name=SECOND, reason=reason))
    entries = user.entries(order_id)
    assert SECOND not in entries
    assert entries["NOTICE.txt"].decode() == f"Failed to download file ({SECOND}): {reason}."


def test_a_corrupt_entry_agrees_with_itself(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """CRC and size fit the wrong bytes; only the MD5 of the manifest does not."""
    checksum = user.available(order_id)[1]["checksum"]
    simulator.faults.add(CorruptEntry(name=SECOND))
    data = user.entries(order_id)[SECOND]
    assert len(data) == 40_000
    assert hashlib.md5(data, usedforsecurity=False).hexdigest() != checksum


def test_a_wrong_crc_is_seen_by_any_reader(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """The entry's CRC is not that of its bytes."""
    simulator.faults.add(WrongCrc(name=SECOND))
    with zipfile.ZipFile(io.BytesIO(user.zip(order_id).content)) as archive:
        assert archive.testzip() == SECOND


def test_a_wrong_checksum_is_in_the_manifest_only(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """The manifest lies; the bytes are good."""
    simulator.faults.add(WrongChecksum(name=SECOND))
    assert [row["checksum"] == "0" * 32 for row in user.available(order_id)] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("as_path", [True, False])
def test_any_bytes_can_be_the_zip(
    user: Session, simulator: Simulator, order_id: int, *, as_path: bool
) -> None:
    """A prepared archive is served as it is, and counts as a download."""
    path = DATA / "unicode.zip"
    simulator.faults.add(RawZip(source=path if as_path else path.read_bytes()))
    assert user.zip(order_id).content == path.read_bytes()
    assert simulator.service.wait_until(lambda: states(simulator, order_id) == ["DOWNLOADED"] * 3)


def test_states_can_be_saved_late(user: Session, simulator: Simulator, order_id: int) -> None:
    """Between the last byte and the saving of the states, all still looks available."""
    simulator.faults.add(LateSave(delay_s=600))
    user.zip(order_id)
    assert len(user.available(order_id)) == 3


# -- single files


def test_a_file_can_be_cut_or_corrupt(user: Session, simulator: Simulator, order_id: int) -> None:
    """Content-Length promises all; the bytes are fewer, or other ones."""
    simulator.faults.add(CutFile(name=SECOND, after_bytes=10))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        user.file(2)
    simulator.faults.add(CorruptFile(name=SECOND))
    whole = user.entries(order_id)[SECOND]
    simulator.faults.add(CorruptFile(name=SECOND))
    assert user.file(2).content[1:] == whole[1:]


def test_storage_can_refuse_a_file(user: Session, simulator: Simulator, order_id: int) -> None:
    """Storage's status and text are passed on, and the file leaves the next zip."""
    simulator.faults.add(StorageRefuses(name=SECOND, status=410))
    assert user.file(2).status_code == 410
    assert states(simulator, order_id)[1] == "DOWNLOAD_ERROR"
    for fault, text in ((quota_exceeded(), "Download quota of"), (rate_exceeded(), "rate of")):
        simulator.faults.add(fault)
        answer = user.file(1)
        assert answer.status_code == 429
        assert text in answer.text
        assert answer.headers["Content-Type"] == "text/plain"


def test_a_file_can_fail_in_staging(user: Session, simulator: Simulator) -> None:
    """A file that cannot be staged makes the order a partial success; a retry mends it."""
    number = simulator.order(OrderPlan(n_files=3, faults=[StagingError(name=SECOND)]))
    simulator.wait_for(number, "DONE_WITH_WARNING")
    assert user.states(number) == ["AVAILABLE", "ERROR", "AVAILABLE"]
    assert user.send("PUT", f"{ORDERS_PATH}/{number}/retry").status_code == 200
    simulator.wait_for(number, "DONE")
    assert len(user.available(number)) == 3


# -- answers of all kinds


def test_any_answer_can_be_given(user: Session, simulator: Simulator, order_id: int) -> None:
    """Status, body and headers are those of the fault, on its route only, once."""
    simulator.faults.add(
        Reply(route=Route.ZIP, status=503, body=b"later", headers=(("Retry-After", "7"),))
    )
    assert user.order(order_id)["id"] == order_id
    answer = user.zip(order_id)
    assert (answer.status_code, answer.content) == (503, b"later")
    assert answer.headers["Retry-After"] == "7"
    assert user.zip(order_id).status_code == 200


def test_a_fault_strikes_as_often_as_it_says(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """``skip`` occasions pass, then it strikes ``times`` times, or for ever."""
    simulator.faults.add(business_error(Route.ORDER, 401, "NO"))
    simulator.faults.add(Reply(route=Route.ORDERS, status=502, times=2, skip=1))
    codes = [user.get(ORDERS_PATH).status_code for _ in range(4)]
    assert codes == [200, 502, 502, 200]
    assert user.get(f"{ORDERS_PATH}/{order_id}").json() == {"messages": ["NO"]}
    for_ever = simulator.faults.add(Reply(route=Route.ORDERS, status=504, times=None))
    assert [user.get(ORDERS_PATH).status_code for _ in range(5)] == [504] * 5
    simulator.faults.remove(for_ever)
    assert user.get(ORDERS_PATH).status_code == 200


def test_a_page_or_a_redirect_can_stand_in(
    user: Session, simulator: Simulator, order_id: int
) -> None:
    """A portal's HTML page comes with 200; a redirect points anywhere."""
    simulator.faults.add(html_page(Route.ZIP))
    assert user.zip(order_id).headers["Content-Type"].startswith("text/html")
    simulator.faults.add(redirect(Route.ZIP, "http://evil.example/x"))
    answer = user.get(f"{ORDERS_PATH}/{order_id}/download", allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (302, "http://evil.example/x")


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_expired_token_stays_expired(user: Session, simulator: Simulator, status: int) -> None:
    """The token is refused from then on, with that status; a new one is good."""
    simulator.faults.add(ExpiredToken(status=status))
    assert [user.get(ORDERS_PATH).status_code for _ in range(2)] == [status] * 2
    user.login()
    assert user.get(ORDERS_PATH).status_code == 200


# -- time


def test_a_body_can_stall_until_the_simulator_stops(order_id: int, simulator: Simulator) -> None:
    """So many bytes arrive, then none; stop() ends the wait and all threads."""
    with Session(simulator) as user:
        token = user.http.headers["Authorization"]
        simulator.faults.add(Slow(route=Route.ZIP, stall_after_bytes=1000))
        connection = http.client.HTTPConnection(
            simulator.base_url.removeprefix("http://"), timeout=30
        )
        path = f"{ORDERS_PATH}/{order_id}/download"
        connection.request("GET", path, headers={"Authorization": str(token)})
        answer = connection.getresponse()
        assert len(answer.read(1000)) == 1000
        simulator.stop()
        with pytest.raises((http.client.HTTPException, OSError)):
            answer.read()
        connection.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("simulator")]


def test_an_answer_can_be_late_or_slow(user: Session, simulator: Simulator, order_id: int) -> None:
    """A delayed and a throttled answer are whole and take at least their time."""
    simulator.faults.add(Slow(route=Route.ORDER, delay_s=0.3))
    assert user.get(f"{ORDERS_PATH}/{order_id}").elapsed.total_seconds() >= 0.3
    simulator.faults.add(Slow(route=Route.FILE, bytes_per_s=80_000))
    answer = user.http.get(f"{simulator.base_url}{FILES_PATH}/files/1", stream=True, timeout=30)
    assert len(answer.content) == 40_000


def test_connections_can_be_dropped(user: Session, simulator: Simulator) -> None:
    """An idle keep-alive connection is gone; the next request needs a new one."""
    user.get(ORDERS_PATH)
    simulator.drop_connections()
    until(no_connection_is_served)
    assert user.get(ORDERS_PATH).status_code == 200
