"""Checkpoints: frames that begin with one are the frames of the whole journal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import sqlalchemy as sa
from children import Child
from conftest import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import delivery, histories
from test_frames import by_file, same, written

from regards_nb import OrderTracker
from regards_nb.client import RemoteOrder
from regards_nb.display import MAX_ROWS, OrderFacts, table_model
from regards_nb.files import FileRecord, FileState
from regards_nb.frames import Answer, Checkpoints, Frames
from regards_nb.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from postgresql import PrivatePostgreSQL

    from regards_nb.events import OrderEvent

LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def _every_event_is_worth_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write a checkpoint when asked, however few events are new, and not before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "min_events", 1)
        if "background" not in request.node.name:
            patch.setattr(Checkpoints, "_save_soon", lambda _: None)
        yield


@pytest.fixture(params=["python", "pyarrow"])
def _texts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have pandas store texts in Python and in Arrow."""
    with pd.option_context("mode.string_storage", request.param):
        yield


def write(journal: Journal, *bodies: bytes | dict[str, Any], tenant: str | None = "t") -> None:
    """Journal messages as one batch."""
    session_id = journal.open_session("q")
    journal.append(session_id, [delivery(body, tenant=tenant) for body in bodies])


def write_orders(journal: Journal, first: int, count: int = 50) -> None:
    """Journal three messages of each of some orders."""
    bodies: list[dict[str, Any]] = []
    for number in range(first, first + count):
        names = {"orderId": number, "correlationId": f"c{number}"}
        end = "NEW_ONE" if number % 2 else "DONE"
        bodies += [
            names | {"status": "GRANTED", "message": f"order {number} é"},
            names | {"status": "SUBORDER_DONE", "totalSubOrders": 2, "subOrderId": 1},
            names | {"status": end, "downloadLink": "https://l"},
        ]
    write(journal, *bodies)


def save(frames: Frames) -> None:
    """Look, and store a checkpoint."""
    frames.refresh()
    frames.checkpoints.finish(LIMIT_S)


def assert_equal(some: Frames, others: Frames) -> None:
    """Compare all that two objects show."""
    same(some.orders, others.orders)
    assert list(some.states()) == list(others.states())
    same(some.events, others.events)
    same(by_file(some.files), by_file(others.files))
    same(some.rejected, others.rejected)
    assert some.rejections == others.rejections


def without_checkpoint(journal: Journal, tenant: str | None = None) -> Frames:
    """Return frames that were folded from the first row on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "min_events", 1 << 60)
        frames = Frames(journal, tenant)
        frames.refresh()
    return frames


def began_with_checkpoint(journal: Journal, tenant: str | None = None) -> bool:
    """Tell whether new frames read a checkpoint; the rows of the journal cannot be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "read", lambda *_: iter(()))
        return bool(Frames(journal, tenant).states())


@pytest.mark.usefixtures("_texts")
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(histories().map(lambda history: history[:6]), min_size=1, max_size=5),
    st.sampled_from([None, "t"]),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_frames_with_and_without_a_checkpoint_are_equal(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[list[tuple[int, OrderEvent]]],
    tenant: str | None,
    restarts: Sequence[bool],
) -> None:
    """Whatever the history, and whenever checkpoints were stored and read, nothing differs."""
    journal = Journal(tmp_path_factory.mktemp("j") / "journal.sqlite")
    log = journal.file_log("t")
    frames = Frames(journal, tenant)
    for number, (piece, restart) in enumerate(zip(pieces, restarts, strict=False)):
        bodies = [written(event) for _, event in piece]
        write(journal, *bodies, b"poison %d" % number, tenant=["t", None, "other"][number % 3])
        file = FileRecord(order_id=1 + number % 2, file_id=number, name=f"{number}.nc")
        log.save([file._replace(state=FileState.VERIFIED, path=f"/{number}", size_bytes=number)])
        journal.save_fetched("t", 2, journal.last_id())
        journal.save_request("t", f"c{number}", label=f"label {number}", body="{}")
        frames.refresh()
        answers = {(s.tenant, s.order_id): answer(number) for s in frames.states() if s.order_id}
        frames.keep_answers(answers)
        frames.orders  # noqa: B018 - with the answer of the server, which no checkpoint keeps
        if restart:
            save(frames)
            frames = Frames(journal, tenant)
    save(frames)
    fresh = without_checkpoint(journal, tenant)
    again = Frames(journal, tenant)
    assert_equal(again, fresh)
    for state in fresh.states():
        for name in (state.key, state.correlation_id, state.order_id):
            if name is not None:
                assert again.key_of(name) == fresh.key_of(name)
        assert list(again.states([state.key])) == [state]
    states = again.states()
    for flag in ("finished", "to_download", "waits_for_download", "lacks_names"):
        assert list(states.where(flag)) == [each for each in states if getattr(each, flag)]
        assert list(states.without(flag)) == [each for each in states if not getattr(each, flag)]
    assert [*states.where("order_id", [2])] == [each for each in states if each.order_id == 2]
    assert [*states[1:]] == [*states][1:]
    journal.close()


def answer(number: int) -> Answer:
    """Return an answer of the server."""
    at = datetime.fromtimestamp(100 + number, UTC)
    told = {"label": f"remote {number}", "available_files": number % 2}
    return Answer.of(RemoteOrder(order_id=0, status="DONE", asked_at=at, **told), waits=False)


def test_a_checkpoint_is_read_instead_of_the_rows_before_it(tmp_path: Path) -> None:
    """Without any row of the journal, the orders and events of the checkpoint are there."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
        expected = without_checkpoint(journal)
        assert began_with_checkpoint(journal)
        new = Frames(journal, None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "read", lambda *_: iter(()))
            same(new.orders, expected.orders)
            same(new.events, expected.events)


def test_the_columns_of_the_events_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """Orders and states show new events while the stored ones are not read."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
        read = journal.checkpoints.read

        def read_orders(owner: str, *names: str) -> dict[str, list[bytes]]:
            assert names[-1] in {"head", "folds"}, "events were read"
            return read(owner, *names)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal.checkpoints, "read", read_orders)
            frames = Frames(journal, None)
            assert len(frames.orders) == 50
            write_orders(journal, 25)
            assert len(frames.orders) == len(frames.states()) == 75
            save(frames)
        assert_equal(frames, without_checkpoint(journal))


def test_a_view_keeps_no_state_of_an_order_that_it_does_not_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long history takes some bytes an order, and a repaint makes the orders that it draws."""
    path, n_orders = tmp_path / "journal.sqlite", 1500
    with Journal(path) as journal:
        write_orders(journal, 0, n_orders)
    for _ in range(2):  # the first one stores a checkpoint
        tracker = OrderTracker("amqp://nowhere.invalid", "q", journal=path)
        assert len(tracker.orders) == n_orders
        tracker.stop()
    facts = OrderFacts()
    table_model(tracker.snapshot([]), facts=facts)  # the checkpoint is read
    tracemalloc.start()
    try:
        snapshot = tracker.snapshot()
        assert len(table_model(snapshot, facts=facts).rows) == MAX_ROWS
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes / n_orders < 150
    kind: Any = type(snapshot.orders._stored)
    n_made, make = 0, kind.states

    def counted(self: Any, rows: Any) -> Any:
        nonlocal n_made
        n_made += len(rows)
        return make(self, rows)

    monkeypatch.setattr(kind, "states", counted)
    table_model(tracker.snapshot(), facts=facts)
    assert n_made < 2 * MAX_ROWS
    advice = "orders 0, 1, 2, 3, 4 and 1,495 more wait for a download: tracker.download(), or"
    assert advice in tracker._blocking.nothing_to_download(again=False)


def test_events_that_are_stored_no_more_come_from_the_journal(tmp_path: Path) -> None:
    """Another process may replace the stored events after the orders were read."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
        frames = Frames(journal, None)
        assert len(frames.orders) == 50
        (tmp_path / "journal.sqlite.checkpoint").unlink()
        assert_equal(frames, without_checkpoint(journal))


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("damage", ["flipped", "cut", "text"])
def test_a_damaged_checkpoint_is_made_anew(tmp_path: Path, damage: str, where: float) -> None:
    """Nothing is said, nothing is missing, and the next checkpoint is sound."""
    path = tmp_path / "journal.sqlite.checkpoint"
    with Journal(tmp_path / "journal.sqlite") as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
        content = bytearray(path.read_bytes())
        at = int(where * len(content))
        content[at : at + 200] = bytes(255 - byte for byte in content[at : at + 200])
        changed = {"flipped": bytes(content), "cut": bytes(content[:at]), "text": b"not this\n"}
        path.write_bytes(changed[damage])
        expected = without_checkpoint(journal)
        frames = Frames(journal, None)
        assert_equal(frames, expected)
        write_orders(journal, 50)
        save(frames)
        frames = Frames(journal, None)
        assert_equal(frames, without_checkpoint(journal))
        for number in range(2):  # a file that SQLite cannot write is deleted first
            write_orders(journal, 100 + number)
            save(Frames(journal, None))
        assert began_with_checkpoint(journal)


def test_a_checkpoint_of_another_version_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that folds otherwise reads the journal, and replaces the checkpoint."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
        monkeypatch.setattr(Checkpoints, "version", "9.9/1")
        assert not began_with_checkpoint(journal)
        save(Frames(journal, None))
        assert began_with_checkpoint(journal)


def test_a_checkpoint_of_another_journal_is_not_read(tmp_path: Path) -> None:
    """A backup that was put back, and went on otherwise, shows its own messages."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        write_orders(journal, 0, 10)
        journal.backup(tmp_path / "backup.sqlite")
        write_orders(journal, 10, 10)
        save(Frames(journal, None))
    for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        each.unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.sqlite", path)
    with Journal(path) as journal:
        assert not began_with_checkpoint(journal)
        write_orders(journal, 20, 10)
        assert not began_with_checkpoint(journal)
        frames = Frames(journal, None)
        assert_equal(frames, without_checkpoint(journal))
        assert len(frames.orders) == 20


def test_each_tenant_has_its_own_checkpoint(tmp_path: Path) -> None:
    """Frames of one tenant do not begin with the orders of all."""
    with Journal(tmp_path / "journal.sqlite") as journal:
        write(journal, {"status": "GRANTED", "correlationId": "a"}, tenant="one")
        write(journal, {"status": "GRANTED", "correlationId": "b"}, tenant="two")
        for tenant, names in ((None, ["a", "b"]), ("one", ["a"]), ("two", ["b"])):
            save(Frames(journal, tenant))
            assert [state.correlation_id for state in Frames(journal, tenant).states()] == names


def test_two_kernels_store_checkpoints_of_one_journal(tmp_path: Path) -> None:
    """Whoever is behind stores nothing, and whoever is ahead adds the events that are new."""
    with Journal(tmp_path / "journal.sqlite") as one, Journal(tmp_path / "journal.sqlite") as other:
        write_orders(one, 0)
        first, second = Frames(one, None), Frames(other, None)
        save(first)
        second.refresh()
        write_orders(other, 50)
        save(second)
        first.checkpoints.finish(LIMIT_S)
        write_orders(one, 100)
        save(first)
        third = Frames(other, None)
        assert began_with_checkpoint(other)
        expected = without_checkpoint(one)
        assert_equal(third, expected)
        assert_equal(second, expected)


def test_a_follower_misses_no_event_of_a_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that another kernel stored after the start hides no event from callbacks."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal, Journal(path) as other:
        write_orders(journal, 0)
        frames = Frames(journal, None)
        queue = frames.follow(journal.last_id())
        write_orders(other, 50, 2)
        save(Frames(other, None))
        frames.refresh()
        assert sum(len(events) for _, events in queue) == 6


def test_a_reader_without_the_right_to_write_uses_the_checkpoint(tmp_path: Path) -> None:
    """Nothing is written beside a journal that this user can only read."""
    path = tmp_path / "shared" / "journal.sqlite"
    with Journal(path) as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
    with pytest.MonkeyPatch.context() as patch:
        # root may write everywhere
        patch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
        before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
        with Journal(path) as reader:
            assert began_with_checkpoint(reader)
            frames = Frames(reader, None)
            assert len(frames.events) == 150
            save(frames)
        assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_kill_while_a_checkpoint_is_written_harms_nothing(tmp_path: Path) -> None:
    """kill -9 at any moment: the next kernel shows all orders."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        write_orders(journal, 0, 200)
    program = f"""
import pathlib, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from regards_nb.frames import Checkpoints, Frames
from regards_nb.journal import Journal
from test_checkpoints import save, write_orders
Checkpoints.min_events = 1
journal = Journal({str(path)!r})
frames = Frames(journal, None)
for number in range(1000, 100_000):
    write_orders(journal, number, 1)
    save(frames)
    print(number, flush=True)
"""
    for kills in range(2):
        with Child(program) as process:
            for _ in range(1 + kills % 3):
                process.stdout.readline()
            # somewhere in the next write
            process.stdout.read(1) if kills % 2 else None
            process.kill()
        with Journal(path) as journal:
            assert_equal(Frames(journal, None), without_checkpoint(journal))


def test_a_tracker_stores_a_checkpoint_when_it_stops(tmp_path: Path) -> None:
    """The next process begins with it; the tracker was never connected."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        write_orders(journal, 0)
    tracker = OrderTracker("amqp://nowhere.invalid", "q", journal=path)
    assert len(tracker.orders) == 50
    tracker.stop()
    assert (tmp_path / "journal.sqlite.checkpoint").exists()


def test_a_process_that_only_looks_stores_a_checkpoint_at_its_end(tmp_path: Path) -> None:
    """Its frames were folded once, and the next process need not do it again."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        write_orders(journal, 0)
    program = f"""
from regards_nb import OrderTracker
from regards_nb.frames import Checkpoints
Checkpoints.min_events = 1
tracker = OrderTracker("amqp://nowhere.invalid", "q", journal={str(path)!r})
assert len(tracker.orders) == 50
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LIMIT_S)
    assert (tmp_path / "journal.sqlite.checkpoint").exists()


def test_new_events_are_stored_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is killed leaves a checkpoint of the messages before."""
    monkeypatch.setattr(Checkpoints, "delay_s", 0.0)
    with Journal(tmp_path / "journal.sqlite") as journal:
        frames = Frames(journal, None)
        write_orders(journal, 0)
        frames.refresh()
        until(lambda: began_with_checkpoint(journal))
        save(frames)


def test_a_server_stores_checkpoints_in_a_table(
    postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """Another process reads it from PostgreSQL; without the right to read it, from the journal."""
    url = postgresql.new_database()
    with Journal(url) as journal:
        write_orders(journal, 0)
        save(Frames(journal, None))
        write_orders(journal, 50)
        save(Frames(journal, None))
        assert began_with_checkpoint(journal)
        expected = without_checkpoint(journal)
        assert_equal(Frames(journal, None), expected)
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE checkpoints RENAME TO hidden"))
        engine.dispose()
        assert not began_with_checkpoint(journal)
        assert_equal(Frames(journal, None), expected)
    assert not list(tmp_path.iterdir())
