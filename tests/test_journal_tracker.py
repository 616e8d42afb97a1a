"""What a user of a tracker sees when other programs touch the file of the journal."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Admin, until

from regards_nb import OrderTracker
from regards_nb.journal import SqliteFile

if TYPE_CHECKING:
    from regards_nb.events import OrderEvent

OPENS_AND_CLOSES = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM batches").fetchone()
connection.close()
"""


def publish(admin: Admin, begin: int, end: int) -> None:
    admin.publish_all(
        {"status": "SUBORDER_DONE", "orderId": 1, "subOrderId": number}
        for number in range(begin, end)
    )


def found(tracker: OrderTracker) -> list[int]:
    return sorted(tracker.events["sub_order_id"].astype(int))


@pytest.mark.parametrize("locks", ["of the open file", "of the process"])
def test_a_cell_that_copies_the_journal_loses_no_event(
    admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    """With another program that opens it: no event is lost or twice, here and after a restart."""
    monkeypatch.setattr(SqliteFile, "has_open_file_locks", locks == "of the open file")
    path = tmp_path / "journal.sqlite"
    called: list[OrderEvent] = []
    with OrderTracker(admin.url, admin.queue, journal=path) as tracker:
        tracker.on("SUBORDER_DONE", called.append)
        for begin in range(0, 40, 10):
            publish(admin, begin, begin + 10)
            until(lambda begin=begin: found(tracker) == list(range(begin + 10)))
            shutil.copy(path, tmp_path / "copy.sqlite")
            subprocess.run([sys.executable, "-c", OPENS_AND_CLOSES, str(path)], check=True)
        publish(admin, 40, 50)
        until(lambda: found(tracker) == list(range(50)))
        until(lambda: admin.messages_left() == 0)
        until(lambda: len(called) >= 50)
        assert tracker.check_journal() == []
    assert sorted(event.sub_order_id for event in called) == list(range(50))
    again = OrderTracker(admin.url, admin.queue, journal=path)
    assert found(again) == list(range(50))
    again.stop()


def test_a_deleted_journal_is_told_and_loses_no_event(admin: Admin, tmp_path: Path) -> None:
    """The display says what was done; a restarted kernel has all events."""
    path = tmp_path / "folder" / "journal.sqlite"
    with OrderTracker(admin.url, admin.queue, journal=path) as tracker:
        publish(admin, 0, 10)
        until(lambda: found(tracker) == list(range(10)))
        shutil.rmtree(path.parent)
        publish(admin, 10, 30)
        until(lambda: found(tracker) == list(range(30)))
        until(lambda: admin.messages_left() == 0)
        assert any("was deleted" in text for text in tracker.snapshot().background_errors)
    again = OrderTracker(admin.url, admin.queue, journal=path)
    assert found(again) == list(range(30))
    again.stop()


def test_a_backup_put_over_an_open_journal_loses_no_event(admin: Admin, tmp_path: Path) -> None:
    """What came since the backup, acknowledged or not, is in the file afterwards, each once."""
    path = tmp_path / "journal.sqlite"
    with OrderTracker(admin.url, admin.queue, journal=path) as tracker:
        publish(admin, 0, 10)
        until(lambda: found(tracker) == list(range(10)))
        backup = tracker.backup(tmp_path / "backup.sqlite")
        publish(admin, 10, 20)
        until(lambda: found(tracker) == list(range(20)))
        backup.replace(path)
        publish(admin, 20, 30)
        until(lambda: found(tracker) == list(range(30)))
        until(lambda: admin.messages_left() == 0)
    again = OrderTracker(admin.url, admin.queue, journal=path)
    assert found(again) == list(range(30))
    again.stop()
