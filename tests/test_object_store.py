"""A workspace in a bucket, on two real S3 servers: what is on disks holds there too."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import client_of, until
from download_kit import World, files_named, world
from s3_kit import ACCOUNT, TestBucket
from upath import UPath

from regards_nb import OrderTracker
from regards_nb.download import (
    BucketFiles,
    FolderFiles,
    Progress,
    as_place,
    open_workspace,
)
from regards_nb.errors import SettingsError
from regards_nb.simulator import OrderPlan, Simulator

NAMES = (
    "SWOT_L2_001.nc", "a b (1).nc", "100%25 #1?.nc", "é😀.nc", "nul.txt", "~x+y=z&;,'@.nc", "empty"
)  # fmt: skip


def in_bucket(here: World, bucket: TestBucket, folder: str = "12") -> World:
    """Let a world's files go to a bucket."""
    here.folder = as_place(f"{bucket.url}/{folder}")  # type: ignore[assignment]
    return here


def tracker_in(
    bucket: TestBucket, simulator: Simulator, folder: Path, **options: object
) -> OrderTracker:
    """Return a tracker without a broker whose workspace is a bucket."""
    return OrderTracker(
        client=client_of(simulator),
        tenant=simulator.tenant,
        journal=folder / "journal.sqlite",
        workspace=bucket.url,
        poll_s=0.05,
        **options,  # type: ignore[arg-type]
    )


def scratch() -> list[str]:
    """Return what is in the scratch folder."""
    return [path.name for path in Path(tempfile.gettempdir()).iterdir()]


def requested(simulator: Simulator) -> int:
    """Count the requests for files and zips."""
    paths = [seen.path for seen in simulator.requests]
    return sum(path.endswith("/download") or "/orders/files/" in path for path in paths)


@pytest.mark.parametrize("way", ["zip", "files"])
def test_files_of_an_order_become_objects(way: str, bucket: TestBucket, tmp_path: Path) -> None:
    """Each object is whole, has its MD5 and size beside it and the name that it has on a disk."""
    files = files_named(*NAMES, size_bytes=150_000)
    plan = OrderPlan(files=files, files_per_suborder=len(files))
    with world(tmp_path, plan) as here:
        on_disk = here.fetch(way=way)
        disk = here.found
        in_bucket(here, bucket)
        here.journal = here.journal.__class__(tmp_path / "second.sqlite")
        with here.journal:
            here.order_id = here.simulator.order(plan)
            here.simulator.wait_available(here.order_id, files=len(files))
            result = here.fetch(way=way)
        assert {path.name for path in on_disk} == {path.name for path in result}
        assert bucket.objects() == {f"12/{name}": data for name, data in disk.items()}
        for path in result:
            assert isinstance(path, UPath)
            data = disk[path.name]
            assert str(path) == f"{bucket.url}/12/{path.name}"
            assert bucket.metadata(f"12/{path.name}") == {
                "md5": hashlib.md5(data).hexdigest(),
                "size-bytes": str(len(data)),
            }
        assert scratch() == []


def test_a_tracker_looks_at_its_bucket(
    simulator: Simulator, bucket: TestBucket, tmp_path: Path
) -> None:
    """Removed, cut and changed objects are found and fetched once more; the rest is not.

    A cut object is replaced, as on a disk. Other content stays, whatever MD5 is beside it.
    """
    number = simulator.order(OrderPlan(n_files=6, file_bytes=20_000, files_per_suborder=6))
    with tracker_in(bucket, simulator, tmp_path) as tracker:
        tracker.sync()
        paths = tracker.download(number)
        assert all(isinstance(path, UPath) for path in paths)
        assert list(tracker.files["path"]) == [f"{bucket.url}/{number}/{p.name}" for p in paths]
        content = bucket.objects()
        assert len(content) == 6
        assert tracker.verify(checksum=True).empty
        before = requested(simulator)
        assert tracker.download(number) == paths
        assert requested(simulator) == before

        gone, cut, other, changed, disguised = (f"{number}/{path.name}" for path in paths[:5])
        bucket.delete(gone)
        bucket.put(cut, content[cut][:100])
        bucket.put(other, b"the user's")
        bucket.put(changed, content[changed][::-1])
        bucket.put(disguised, content[disguised][::-1], Metadata=bucket.metadata(disguised))
        found = tracker.verify(number)
        assert list(found["problem"]) == ["missing", "cut", "cut"]
        problems = list(tracker.verify(checksum=True)["problem"])
        assert problems == ["missing", "cut", "cut", "changed", "changed"]
        assert tracker.files["state"].tolist().count("REMOVED") == 1
        again = tracker.download(number, checksum=True)
        assert requested(simulator) == before + 5
        now = bucket.objects()
        assert sorted(now[f"{number}/{path.name}"] for path in again) == sorted(content.values())
        assert now[cut] == content[cut]
        assert now[other] == b"the user's"
        assert now[changed] == content[changed][::-1]
        assert now[disguised] == content[disguised][::-1]
        assert len(now) == 9
        assert (tracker.files["state"] == "VERIFIED").all()
        assert tracker.verify(checksum=True).empty
        assert "can be listed" in repr(tracker.doctor())


def test_a_name_in_use_is_kept_and_the_file_gets_a_number(
    bucket: TestBucket, tmp_path: Path
) -> None:
    """Other content keeps its name; the same content is ours, with or without its MD5 beside it."""
    plan = OrderPlan(files=files_named("a.nc", "b.nc", "c.nc"), files_per_suborder=3)
    with world(tmp_path, plan) as here:
        content = here.expected
        in_bucket(here, bucket)
        bucket.put("12/a.nc", b"the user's")
        bucket.put("12/b.nc", content["b.nc"])
        md5 = hashlib.md5(content["c.nc"]).hexdigest()
        bucket.put("12/c.nc", content["c.nc"], Metadata={"md5": md5})
        names = {path.name for path in here.fetch()}
        assert names == {"a (2).nc", "b.nc", "c.nc"}
        assert bucket.objects() == {
            "12/a.nc": b"the user's",
            **{f"12/{name}": content[name] for name in ("b.nc", "c.nc")},
            "12/a (2).nc": content["a.nc"],
        }


@pytest.mark.parametrize("s3_kind", ["moto"])
@pytest.mark.parametrize("size_bytes", [20_000, 200_000], ids=["in memory", "staged"])
def test_a_name_that_is_taken_meanwhile_is_not_replaced(
    size_bytes: int, bucket: TestBucket, tmp_path: Path
) -> None:
    """The creation is conditional: an object that came after the look is not overwritten."""
    plan = OrderPlan(files=files_named("a.nc", size_bytes=size_bytes), files_per_suborder=1)
    with world(tmp_path, plan) as here:
        in_bucket(here, bucket)

        def put(progress: Progress) -> None:
            if progress.phase == "zip":  # the bucket was listed
                bucket.put("12/a.nc", b"the user's")

        result = here.fetch(on_progress=put)
        assert [path.name for path in result] == ["a (2).nc"]
        assert bucket.objects()["12/a.nc"] == b"the user's"


@pytest.mark.parametrize("s3_kind", ["moto"])  # rclone creates what exists already
def test_a_folder_and_a_bucket_do_the_same(bucket: TestBucket, tmp_path: Path) -> None:
    """What one method of `FolderFiles` or `BucketFiles` writes, the others read, in both alike."""
    name, md5 = ".regards/1.archive", hashlib.md5(b"a").hexdigest()
    for files in (FolderFiles(str(tmp_path)), BucketFiles(bucket.url)):
        assert files.read(name) is None
        assert files.create_small(name, b"a")
        assert not files.create_small(name, b"b")
        assert files.read(name) == b"".join(files.blocks(name)) == b"a"
        assert files.size_of(name) == (1, True)
        assert files.size_of("missing.nc")[0] is None
        assert files.has(name, 1, md5, reads=True)
        assert not files.has(name, 2, md5, reads=False)
        assert list(files.lines(".regards/log")) == []
        for line in (b"1\n", b"2" * 70_000 + b"\n", b"3\n"):
            files.add_lines(".regards/log", line, durable=True)
        assert [line[:1] for line in files.lines(".regards/log") if line] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("s3_kind", ["moto"])
def test_only_the_object_that_was_looked_at_is_replaced(bucket: TestBucket) -> None:
    """A cut object that another program replaces meanwhile is not overwritten."""
    bucket.put("a.nc", b"the beginning")
    here = BucketFiles(bucket.url)
    found = here.look("a.nc")
    assert found is not None
    bucket.put("a.nc", b"the user's")
    assert not here.create("a.nc", b"the beginning and the end", 25, "", replaces=found.e_tag)
    assert bucket.objects() == {"a.nc": b"the user's"}


def test_kept_zips_and_other_folders(
    simulator: Simulator, bucket: TestBucket, tmp_path: Path
) -> None:
    """Zips are kept and extracted later; files go from a bucket to a disk and back, unfetched."""
    number = simulator.order(OrderPlan(n_files=4, file_bytes=80_000, files_per_suborder=4))
    with tracker_in(bucket, simulator, tmp_path) as tracker:
        tracker.sync()
        (zipped,) = tracker.download(number, extract=False)
        assert zipped.name == f"order_{number}.zip"
        before = requested(simulator)
        paths = tracker.download(number)
        assert requested(simulator) == before
        assert len(paths) == 4
        content = {path.name: bucket.read(path.path.partition("/")[2]) for path in paths}  # type: ignore[attr-defined]
        local = tracker.download(number, directory=tmp_path / "local")
        assert {path.name: path.read_bytes() for path in local} == content
        tracker.download(number, directory=f"{bucket.url}/back")
        assert requested(simulator) == before
        back = {name: data for name, data in bucket.objects().items() if name.startswith("back/")}
        assert back == {f"back/{name}": data for name, data in content.items()}
        assert scratch() == []


def test_parts_of_an_order(simulator: Simulator, bucket: TestBucket, tmp_path: Path) -> None:
    """Each sub-order is uploaded when it is ready, also by auto_download."""
    plan = OrderPlan(n_files=6, file_bytes=1000, files_per_suborder=2)
    first, second = simulator.order(plan), simulator.order(plan)
    with tracker_in(bucket, simulator, tmp_path) as tracker:
        tracker.sync()
        parts = list(tracker[first].iter_parts(timeout_s=60))
        assert sum(map(len, parts)) == 6
    with tracker_in(bucket, simulator, tmp_path, auto_download=True) as tracker:
        until(lambda: (tracker[second].files["state"] == "VERIFIED").sum() == 6)
    assert len(bucket.objects()) == 12


def test_a_client_needs_no_tracker(bucket: TestBucket, tmp_path: Path) -> None:
    """`download_order` records in the bucket what it fetched, and fetches nothing twice."""
    quick = {"poll_s": 0.02, "backoff_s": 0.01, "show": False}
    with world(tmp_path) as here:
        number, place = here.order_id, f"{bucket.url}/mine"
        paths = here.client.download_order(number, place, **quick)
        assert {path.name: bucket.objects()[f"mine/{path.name}"] for path in paths} == here.expected
        before = here.zips + here.singles
        assert here.client.download_order(number, place, **quick) == paths
        assert here.zips + here.singles == before
        bucket.delete(f"mine/{paths[0].name}")
        assert here.client.download_order(number, place, **quick) == paths
        assert here.zips + here.singles == before + 1


def test_products_of_the_catalogue(
    simulator: Simulator, bucket: TestBucket, tmp_path: Path
) -> None:
    """Files without an order go to a bucket in the same way."""
    with client_of(simulator) as client:
        products = client.search(limit=2)
        paths = client.download_products(products, f"{bucket.url}/catalogue", show=False)
        assert paths
        assert {f"catalogue/{path.name}" for path in paths} == set(bucket.objects())
        assert client.download_products(products, f"{bucket.url}/catalogue", show=False) == paths


def test_two_archives_share_a_bucket(
    simulator: Simulator, bucket: TestBucket, tmp_path: Path
) -> None:
    """Order 1 of another tenant gets a prefix of its own."""
    plan = OrderPlan(n_files=1, file_bytes=10, files_per_suborder=1)
    with Simulator(amqp=None, tenant="other", suborder_pause_s=0.01) as other:
        numbers = [each.order(plan) for each in (simulator, other)]
        assert numbers[0] == numbers[1]
        for name, each in (("one", simulator), ("two", other)):
            folder = tmp_path / name
            folder.mkdir()
            with tracker_in(bucket, each, folder) as tracker:
                tracker.sync()
                assert len(tracker.download(numbers[0])) == 1
    folders = {name.partition("/")[0] for name in bucket.objects()}
    assert folders == {f"{numbers[0]}", f"{numbers[0]}-other"}


@pytest.mark.parametrize(
    # moto says that each upload is years old
    ("s3_kind", "is_known"),
    [("rclone", True), ("moto", False)],
    ids=["rclone-ours", "moto-old"],
)
def test_large_files_go_in_parts_and_unfinished_uploads_are_aborted(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    """Beyond the size of one request a file goes in parts; what a dead process began is aborted."""
    plan = OrderPlan(files=files_named("large.nc", size_bytes=6 << 20), files_per_suborder=1)
    with world(tmp_path, plan) as here:
        in_bucket(here, bucket)
        key = "all orders/12/large.nc"
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
        others = ["all orders/12/large.nc.bin", "all orders/13/large.nc"]
        for other in others:
            bucket.client.create_multipart_upload(Bucket=bucket.name, Key=other)
        if is_known:
            dead = Path(tempfile.gettempdir()) / ".regards-12-dead.part"
            dead.mkdir()
            owner = {"host": os.uname().nodename, "pid": 1 << 22}
            (dead / "owner.json").write_text(json.dumps(owner))
            (dead / "uploads").write_text(f"{here.folder}/large.nc\n")
        with open_workspace(as_place(f"{bucket.url}/12"), 12):
            assert ("all orders/12/large.nc" in bucket.unfinished()) is not is_known
            monkeypatch.setattr(BucketFiles, "largest_put_bytes", 1 << 20)
            monkeypatch.setattr(BucketFiles, "part_bytes", 5 << 20)
        here.fetch()
        assert bucket.objects() == {f"12/{name}": data for name, data in here.expected.items()}
        assert bucket.metadata("12/large.nc")["size-bytes"] == str(6 << 20)
        assert sorted(bucket.unfinished()) == others
        assert scratch() == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gs://bucket/orders", "gs: files go to a folder or to s3://bucket/prefix"),
        ("https://host/orders", "https: files go to a folder"),
        ("file:///data", "file: files go to a folder"),
        (Path("s3://bucket/orders"), "given as text"),
        ("s3:///orders", "names no bucket"),
        ("s3://", "names no bucket"),
        ("S3://bucket/../orders", "no '..'"),
        ("s3://bucket/../orders", "no '..'"),
        ("s3://key:hidden@bucket/orders", "holds no account"),
    ],
)
def test_other_places_are_refused_before_anything_is_made(
    given: str | Path, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text says what can be given; no folder, no journal is made, and no key is repeated."""
    monkeypatch.chdir(tmp_path)
    with Simulator(amqp=None) as simulator, client_of(simulator) as client:
        with pytest.raises(SettingsError, match="s3") as caught:
            OrderTracker(client=client, workspace=given)
        assert words in str(caught.value)
        assert "hidden" not in str(caught.value)
        with pytest.raises(SettingsError, match="s3"):
            client.download_order(1, given)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_text_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without obstore or universal-pathlib, the error says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'regards_nb\[s3\]'"):
        as_place("s3://bucket/orders")


def test_nothing_of_it_is_imported_before_it_is_used(tmp_path: Path) -> None:
    """A tracker with a folder imports no library of object stores."""
    program = (
        "import sys, regards_nb, regards_nb.cli\n"
        "from regards_nb.download import open_workspace, as_place\n"
        f"open_workspace(as_place({str(tmp_path / 'orders')!r}), 1).__exit__()\n"
        "names = {'obstore', 'upath', 'fsspec', 'boto3', 's3fs'} & set(sys.modules)\n"
        "assert not names, names\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("s3_kind", ["rclone"])
def test_settings_name_a_bucket(
    simulator: Simulator, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable and the profile name it as they name a folder."""
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(f'[one]\nworkspace = "{bucket.url}"\n')
    monkeypatch.setenv("REGARDS_SETTINGS", str(profiles))
    common = {"client": client_of(simulator), "journal": tmp_path / "journal.sqlite"}
    for tracker in (
        OrderTracker.from_profile("one", **common),
        (monkeypatch.setenv("REGARDS_WORKSPACE", bucket.url), OrderTracker.from_env(**common))[1],
    ):
        assert f"{bucket.url} can be listed" in repr(tracker.doctor())
        tracker.stop()


@pytest.mark.parametrize("s3_kind", ["moto"])
def test_a_path_can_be_read(bucket: TestBucket, tmp_path: Path) -> None:
    """After `obstore.fsspec.register("s3")` the returned paths are read as paths on a disk are.

    rclone answers a range by 200 instead of 206, which obstore refuses.
    """
    with world(tmp_path) as here:
        in_bucket(here, bucket)
        here.fetch()
        program = (
            "import sys, obstore.fsspec\n"
            "from upath import UPath\n"
            "obstore.fsspec.register('s3')\n"
            "path = UPath(sys.argv[1])\n"
            "sys.stdout.buffer.write(path.read_bytes())\n"
        )
        name, data = next(iter(here.expected.items()))
        done = subprocess.run(
            [sys.executable, "-c", program, f"{here.folder}/{name}"],
            check=False,
            capture_output=True,
            env={**os.environ, "AWS_ALLOW_HTTP": "true"},
        )
        assert done.stdout == data, done.stderr


def test_no_secret_is_shown(bucket: TestBucket, tmp_path: Path) -> None:
    """The key of the account is in no repr, no record and no error."""
    secret = ACCOUNT["AWS_SECRET_ACCESS_KEY"]
    with world(tmp_path) as here:
        in_bucket(here, bucket)
        with open_workspace(as_place(f"{bucket.url}/12"), 12) as workspace:
            shown = [repr(workspace), repr(vars(workspace)), repr(vars(workspace._bucket))]  # type: ignore[attr-defined]
        here.fetch()
        shown += [repr(here.records), (tmp_path / "journal.sqlite").read_bytes().decode("latin-1")]
        assert not [text for text in shown if secret in text]
