"""Kill -9, broken lines and refusals during uploads: nothing partial, nothing twice, and go on."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import client_of, interrupted_after, until
from download_kit import DEADLINE_S, World, files_named, result_of, wait_until, worker, world
from s3_kit import ACCOUNT, BUSY, EXPIRED, Link, TestBucket, refusal, s3_server, use_server

from regards_nb import OrderTracker
from regards_nb.client import LastByte
from regards_nb.download import BucketFiles, as_place
from regards_nb.errors import (
    DownloadError,
    RegardsError,
    StoppedWaiting,
    TrackingError,
    WaitTimeoutError,
    WorkspaceError,
)
from regards_nb.simulator import FileSpec, OrderPlan, Simulator, noise

#: Some small files, and one that takes a while.
SMALL = files_named(*(f"{number}.nc" for number in range(8)), size_bytes=100_000)
LARGE = FileSpec(name="large.nc", content=noise(seed="large", size_bytes=9 << 20))
PLAN = OrderPlan(files=[*SMALL, LARGE], files_per_suborder=9)
#: The large file meets this limit, the small ones together do not.
LIMIT_BYTES = 4 << 20


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(BucketFiles, "retries", 1)
    monkeypatch.setattr(BucketFiles, "pauses_s", (0.05, 0.05, 0.1, 0.2))


def in_bucket(here: World, bucket: TestBucket) -> World:
    """Let a world's files go to a bucket."""
    here.folder = as_place(f"{bucket.url}/12")  # type: ignore[assignment]
    return here


def wanted(here: World) -> dict[str, bytes]:
    """Return the objects of a complete download."""
    return {f"12/{name}": data for name, data in here.expected.items()}


def all_but_large(bucket: TestBucket) -> bool:
    return len(bucket.objects()) == len(SMALL)


@pytest.mark.parametrize(
    ("s3_kind", "how", "limits"),
    [
        ("rclone", signal.SIGKILL, []),
        ("moto", signal.SIGKILL, []),
        ("rclone", signal.SIGINT, []),
        ("rclone", signal.SIGKILL, ["in parts"]),
    ],
    ids=["rclone-kill", "moto-kill", "rclone-ctrl-c", "rclone-kill-parts"],
)
def test_a_killed_upload_leaves_no_object_and_the_next_download_completes(
    how: signal.Signals,
    limits: list[str],
    bucket: TestBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kill -9 and Ctrl-C in the middle of a large file: what is there is whole, and stays.

    An upload in parts is left unfinished, and the next download aborts it.
    """
    with world(tmp_path, PLAN) as here, Link(bucket.server) as link:
        in_bucket(here, bucket)
        link.limit_bytes = LIMIT_BYTES
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
        with worker(here, way="zip", limits=limits) as process:
            wait_until(lambda: link.met and all_but_large(bucket), "the upload of the large file")
            (staging,) = Path(tempfile.gettempdir()).glob(".regards-*.part")
            staged = [path.name for path in staging.iterdir() if path.name.isdecimal()]
            assert len(staged) == 1, "what is uploaded takes no room"
            process.send_signal(how)
            if how is signal.SIGINT:
                assert result_of(process)["error"] == "KeyboardInterrupt"
            else:
                process.wait(DEADLINE_S)
        link.cut()
        before = bucket.objects()
        assert before == {name: data for name, data in wanted(here).items() if "large" not in name}
        assert bucket.unfinished() == ["all orders/12/large.nc"] * len(limits)
        written = bucket.modified()
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.url)
        here.fetch()
        assert bucket.objects() == wanted(here)
        assert bucket.unfinished() == []
        assert {name: bucket.modified()[name] for name in written} == written
        assert list(Path(tempfile.gettempdir()).iterdir()) == []
        assert {record.state for record in here.records.values()} == {"VERIFIED"}


@pytest.mark.parametrize("s3_kind", ["rclone"])
def test_a_server_that_is_killed_is_named_and_gets_the_rest_later(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names bucket and order; after a restart only what is missing is fetched."""
    (tmp_path / "s3").mkdir()
    with s3_server("rclone", tmp_path / "s3") as server, Link(server) as link:
        use_server(monkeypatch, link.url, tmp_path)
        bucket = TestBucket(server)
        with world(tmp_path, PLAN) as here:
            in_bucket(here, bucket)
            link.limit_bytes = LIMIT_BYTES
            raised: list[BaseException] = []

            def fetch() -> None:
                with pytest.raises(WorkspaceError) as caught:
                    here.fetch(way="files")
                raised.append(caught.value)

            thread = threading.Thread(target=fetch)
            thread.start()
            wait_until(lambda: link.met and all_but_large(bucket), "the upload of the large file")
            server.kill()
            link.cut()
            thread.join(DEADLINE_S)
            text = str(raised[0])
            assert f"s3://{bucket.name}" in text
            assert f"order {here.order_id}" in text
            assert "does not answer" in text
            assert "download again" in text
            server.start()
            link.limit_bytes = None
            fetched = here.singles
            assert bucket.objects().keys() == wanted(here).keys() - {"12/large.nc"}
            here.fetch(way="files")
            assert bucket.objects() == wanted(here)
            assert here.singles == fetched + 1


def test_a_line_that_breaks_some_times_is_not_noticed(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is repeated; progress counts uploaded files, and none is there twice."""
    seen = []
    with world(tmp_path, PLAN) as here, Link(bucket.server) as link:
        in_bucket(here, bucket)
        link.limit_bytes, link.fault = LIMIT_BYTES, "cut"
        link.times = 3  # obstore makes two attempts
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
        here.fetch(on_progress=seen.append)
        assert link.met == 3
        assert bucket.objects() == wanted(here)
        assert (seen[-1].files_done, seen[-1].verified) == (9, 9)
        assert all(record.fetched_at_us for record in here.records.values())


@pytest.mark.parametrize("s3_kind", ["rclone"])
def test_a_busy_store_is_asked_again_and_an_ended_session_is_named(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 Slow Down costs time and no file; one that lasts, and an expired account, is named."""
    with world(tmp_path) as here, Link(bucket.server) as link:
        in_bucket(here, bucket)
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
        link.busy = 1
        here.fetch()
        assert bucket.objects() == wanted(here)
        link.busy = 1000
        with pytest.raises(WorkspaceError, match="fewer requests.*503 SlowDown.*try later"):
            here.fetch(again=True)
        link.answer = EXPIRED
        with pytest.raises(
            WorkspaceError, match="order 1: .*ended .400 ExpiredToken.*log in again"
        ):
            here.fetch(again=True)
        link.busy = 0
        here.fetch(again=True)
        assert bucket.objects() == wanted(here)


@pytest.mark.parametrize("s3_kind", ["rclone"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal("403 Forbidden", "QuotaExceeded"), "is full .403 QuotaExceeded.: make room"),
        (
            refusal("400 Bad Request", "XMinioAdminBucketQuotaExceeded"),
            "is full .400 XMinioAdminBucketQuotaExceeded.: make room",
        ),
        (refusal("507 Insufficient Storage", "XMinioStorageFull"), "is full .507 XMinioStorage"),
        (
            refusal("500 Internal Server Error", "InternalError"),
            "500 InternalError.*Perhaps .* full",
        ),
        (refusal("403 Forbidden", "SignatureDoesNotMatch"), "AWS_SECRET_ACCESS_KEY is wrong"),
        (refusal("403 Forbidden", "AccessDenied"), "refuses access .*403 AccessDenied.* the right"),
        (BUSY, "fewer requests .503 SlowDown.*try later"),
    ],
    ids=["quota", "minio-quota", "minio-disk", "rclone-disk", "key", "rights", "busy"],
)
def test_a_bucket_that_takes_no_more_is_named_and_gets_the_rest_later(
    answer: bytes, words: str, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three files it refuses: the text says what to do, and the next download goes on."""
    with world(tmp_path, OrderPlan(files=SMALL, files_per_suborder=8)) as here:
        in_bucket(here, bucket)
        with Link(bucket.server) as link:
            link.uploads_left, link.answer = 3, answer
            monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
            with pytest.raises(WorkspaceError, match=f"^order 1: .*{words}.*download again"):
                here.fetch()
        # The first refusal ends the uploads that run beside it.
        n_uploaded = len(bucket.objects())
        assert 0 < n_uploaded <= 3
        assert bucket.objects().items() <= wanted(here).items()
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.url)
        here.fetch()
        assert bucket.objects() == wanted(here)
        # REGARDS lists the files again unless it had sent all of the zip by then
        assert (here.zips, here.singles) in {(1, len(SMALL) - n_uploaded), (2, 0)}


def test_stop_does_not_wait_for_an_upload_that_hangs(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends although nothing passes any more; the rest comes later."""
    with world(tmp_path, PLAN) as here, Link(bucket.server) as link:
        in_bucket(here, bucket)
        link.limit_bytes = LIMIT_BYTES
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
        stop = threading.Event()
        told = (
            rf"no answer of s3://{bucket.name} at {link.url} to an upload of 9\.4 MB since .* UTC; "
        )

        def stop_later(progress: object) -> None:
            if re.search(f"{told}it is given up after 180 s, and tried again", str(progress)):
                stop.set()

        with pytest.raises(
            DownloadError, match="stopped; the next one goes on after the 8 files in place"
        ):
            here.fetch(way="zip", stop=stop, on_progress=stop_later)
        link.cut()
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.url)
        here.fetch()
        assert bucket.objects() == wanted(here)


def test_two_processes_end_with_the_same_objects(bucket: TestBucket, tmp_path: Path) -> None:
    """Both download one order at the same time: one set of objects, each once."""
    plan = OrderPlan(files=files_named(*["same name.nc"] * 3, "other.nc"), files_per_suborder=4)
    with world(tmp_path, plan) as here:
        in_bucket(here, bucket)
        with worker(here) as one, worker(here) as other:
            results = [result_of(one), result_of(other)]
        assert all("error" not in result for result in results), results
        content = sorted(b"".join(spec.source.chunks()) for spec in plan.files)
        assert sorted(bucket.objects().values()) == content


@pytest.mark.parametrize("s3_kind", ["rclone"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bucket": "no-such-bucket"}, "there is no bucket 'no-such-bucket'"),
        ({"AWS_ACCESS_KEY_ID": "SOMEBODYELSE"}, "refuses access to s3://"),
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng/and/secret"}, "refuses access to s3://"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "does not answer"),
        ({"AWS_ENDPOINT_URL": "http://192.0.2.1"}, "is not encrypted"),
    ],
    ids=["bucket", "account", "secret", "server", "http"],
)
def test_refusals_say_what_to_do_before_anything_is_fetched(
    changes: dict[str, str],
    words: str,
    bucket: TestBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text names the bucket and the order, holds no secret, and no quota is spent."""
    with world(tmp_path) as here:
        name = changes.pop("bucket", bucket.name)
        here.folder = as_place(f"s3://{name}/orders")  # type: ignore[assignment]
        for variable, value in changes.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(WorkspaceError) as caught:
            here.fetch()
        text = str(caught.value)
        assert words in text
        assert name in text
        assert f"order {here.order_id}: " in text
        assert here.zips == here.singles == 0
        chain: list[BaseException | None] = [caught.value]
        while chain[-1] is not None:
            chain.append(chain[-1].__cause__)
        for secret in (ACCOUNT["AWS_SECRET_ACCESS_KEY"], "wr0ng/and/secret"):
            assert not any(secret in repr(each) for each in chain)
        assert list(Path(tempfile.gettempdir()).iterdir()) == []


@pytest.fixture
def tracker(simulator: Simulator, bucket: TestBucket, tmp_path: Path) -> Iterator[OrderTracker]:
    """Return a tracker whose workspace is the bucket, and which knows order 1 with two files."""
    simulator.order(OrderPlan(n_files=2, file_bytes=100, files_per_suborder=2))
    with OrderTracker(
        client=client_of(simulator),
        tenant=simulator.tenant,
        journal=tmp_path / "journal.sqlite",
        workspace=bucket.url,
    ) as alone:
        alone.sync()
        yield alone


#: Calls that ask the bucket in the thread of the user, and what Ctrl-C says.
CALLS: list[tuple[Callable[[OrderTracker, str], object], str]] = [
    (lambda t, _: t.verify(), r"verify\(\) was stopped, and has changed nothing"),
    (lambda t, _: t.verify(1, checksum=True), r"verify\(\) was stopped, and has changed nothing"),
    (lambda t, _: t.doctor(), r"doctor\(\) was stopped, and has changed nothing"),
    (lambda t, url: t.client.download_order(1, f"{url}/mine"), "stopped before a file was fetched"),
    (
        lambda t, url: t.client.download_products(t.client.search(limit=1), f"{url}/mine"),
        "stopped before a file was fetched",
    ),
]  # fmt: skip


@pytest.mark.usefixtures("_says_at_once")
@pytest.mark.parametrize("s3_kind", ["rclone"])
@pytest.mark.parametrize(
    ("call", "outcome"), CALLS, ids=["verify", "checksum", "doctor", "order", "products"]
)
def test_ctrl_c_ends_a_call_that_a_bucket_does_not_answer(
    call: Callable[[OrderTracker, str], object],
    outcome: str,
    bucket: TestBucket,
    tracker: OrderTracker,
) -> None:
    """It says what it waits for; Ctrl-C ends it in one line, and the call works afterwards."""
    tracker.download(1)
    line = f"waiting for s3://{bucket.name} at {bucket.server.url}, at most 180 s\n"
    with (
        bucket.server.frozen(),
        interrupted_after(lambda text: line in text, pytest.MonkeyPatch()) as written,
        pytest.raises(StoppedWaiting, match=outcome) as stopped,
    ):
        call(tracker, bucket.url)
    assert written.getvalue().count(line) == 1
    assert "\n" not in str(stopped.value)
    call(tracker, bucket.url)


@pytest.mark.usefixtures("_says_at_once")
@pytest.mark.parametrize("s3_kind", ["rclone"])
def test_ctrl_c_ends_the_reading_of_an_object(bucket: TestBucket) -> None:
    """The store falls silent in the middle of it."""
    bucket.put("large.nc", bytes(64 << 20))
    blocks = BucketFiles(bucket.url).blocks("large.nc")
    next(blocks)
    line = f"waiting for s3://{bucket.name} at {bucket.server.url}, at most 180 s\n"
    with (
        bucket.server.frozen(),
        interrupted_after(lambda text: line in text, pytest.MonkeyPatch()),
        pytest.raises(KeyboardInterrupt),
    ):
        list(blocks)


@pytest.mark.parametrize("s3_kind", ["rclone"])
def test_a_download_that_a_bucket_does_not_answer_names_it(
    bucket: TestBucket,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """View, wait, time limits and text output say since when, and when the request is given up."""
    monkeypatch.setattr(LastByte, "told_after_s", 0.2)
    silent = f"no answer of s3://{bucket.name} at {bucket.server.url}"
    told = rf"{silent} since [\d:]+ UTC; the request is given up after 180 s"
    with bucket.server.frozen():
        with pytest.raises(WaitTimeoutError, match=f"{silent} for 0.5 s"):
            next(tracker[1].iter_parts(timeout_s=0.5))
        tracker.download_soon(1)
        until(lambda: re.search(told, tracker._repr_html_()) is not None)
        with pytest.raises(WaitTimeoutError, match=told):
            tracker.wait(1, download=True, timeout_s=0.3)
        assert re.search(told, capsys.readouterr().out)
        with (
            interrupted_after(lambda text: bool(re.search(told, text)), pytest.MonkeyPatch()),
            pytest.raises(StoppedWaiting, match="no file of order 1 saved"),
        ):
            tracker.download(1)
    assert len(tracker.download(1)) == 2


@pytest.mark.parametrize("s3_kind", ["rclone"])
def test_a_tracker_names_the_order_and_goes_on_when_the_bucket_is_there(
    bucket: TestBucket, tracker: OrderTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong account is told by `download()` and the doctor; with the right one it completes."""
    right = os.environ["AWS_ACCESS_KEY_ID"]
    for _ in range(2):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEBODYELSE")
        refused = f"order 1: .* refuses access to s3://{bucket.name}"
        with pytest.raises(WorkspaceError, match=refused):
            tracker.download(1)
        assert f"refuses access to s3://{bucket.name}" in repr(tracker.doctor())
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", right)
        assert len(tracker.download(1)) == 2


@pytest.mark.parametrize("s3_kind", ["rclone"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "SOMEBODYELSE"}, "refuses access to s3://.*403"),
        ({"AWS_ENDPOINT_URL": "http://192.0.2.1"}, "is not encrypted"),
        ({}, "there is no bucket"),
    ],
    ids=["account", "http", "bucket"],
)
def test_a_wait_ends_where_no_later_attempt_can_help(
    changes: dict[str, str],
    words: str,
    bucket: TestBucket,
    tracker: OrderTracker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends with the error, as for a folder that is not yours."""
    for variable, value in changes.items():
        monkeypatch.setenv(variable, value)
    if not changes:
        bucket.client.delete_bucket(Bucket=bucket.name)
    with pytest.raises(TrackingError, match=f"downloading order 1: .*{words}"):
        tracker.wait(1, download=True, timeout_s=30)


def test_a_profile_is_an_account(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_PROFILE names keys in the file of all AWS programs."""
    keys = {name: os.environ[name] for name in ACCOUNT}
    for name in keys:
        monkeypatch.delenv(name)
    credentials = tmp_path / "credentials"
    lines = "\n".join(f"{name.lower()} = {value}" for name, value in keys.items())
    credentials.write_text(f"[lab]\n{lines}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with world(tmp_path) as here:
        in_bucket(here, bucket)
        here.fetch()
        assert bucket.objects() == wanted(here)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(RegardsError, match="nobody"):
        BucketFiles(bucket.url)
