"""A journal in a real PostgreSQL: the main road, and what only a server on its own can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import until
from postgresql import PrivatePostgreSQL
from test_consumer import LIMIT_S, nothing, numbers, publish

from regards_nb import OrderTracker
from regards_nb.consumer import Consumer, HealthState, parameters_from
from regards_nb.errors import JournalError
from regards_nb.journal import Journal, database

if TYPE_CHECKING:
    from conftest import Admin

    from regards_nb.simulator import PrivateBroker


def test_an_order_from_the_message_to_the_file(
    broker: PrivateBroker, postgresql: PrivatePostgreSQL, tmp_path: Path
) -> None:
    """What one kernel followed and fetched, the next one shows, with the same frames."""
    url = postgresql.new_database()
    with OrderTracker.demo(
        broker=broker, suborder_pause_s=0.01, journal=url, workspace=tmp_path / "orders"
    ) as tracker:
        order = tracker.submit("dataset:SWOT_PASS_012", label="one pass")
        paths = order.wait(timeout_s=60).download()
        before = [tracker.events, tracker.orders, tracker.files]
    assert len(before[2]) == len(paths) == 3
    again = OrderTracker("amqp://nowhere.invalid", "q", journal=url)
    for old, new in zip(before, [again.events, again.orders, again.files], strict=True):
        pd.testing.assert_frame_equal(old, new)
    again.stop()


def test_nothing_is_lost_or_twice_when_the_database_is_killed(
    admin: Admin, postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 while messages flow, again and again: each message is journalled once."""
    monkeypatch.setattr(database, "RESTART_PATIENCE_S", 0.1)
    with Journal(postgresql.new_database()) as journal:
        consumer = Consumer(parameters_from(admin.url), admin.queue, journal, nothing)
        consumer.start(LIMIT_S)
        for kills in range(1, 4):
            publish(admin, 1000 * (kills - 1), 1000 * kills)
            until(lambda kills=kills: journal.last_id() > 1000 * (kills - 1))
            postgresql.kill()
            until(lambda: not is_there(journal))
            with pytest.raises(JournalError, match="cannot check"):
                journal.check()
            postgresql.start()
        until(lambda: journal.last_id() >= 3000)
        until(lambda: admin.messages_left() == 0)
        assert journal.check() == []
        until(lambda: consumer.health.state is HealthState.CONSUMING)
        consumer.stop(LIMIT_S)
        assert numbers(journal) == list(range(3000))


def is_there(journal: Journal) -> bool:
    try:
        journal.last_id()
    except JournalError:
        return False
    return True


def test_a_server_that_went_away_is_no_sound_journal(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a connection that was made before looks as if it were open."""
    monkeypatch.setattr(database, "RESTART_PATIENCE_S", 0.1)
    with Journal(postgresql.new_database()) as journal:
        assert journal.check() == []
        postgresql.kill()
        try:
            with pytest.raises(JournalError, match="cannot check"):
                journal.check()
        finally:
            postgresql.start()
        assert journal.check() == []


def test_a_server_that_cannot_be_reached_is_named_without_the_password() -> None:
    """The error says what to check."""
    with pytest.raises(JournalError, match="Connection refused.*Check that the server") as caught:
        Journal("postgresql+psycopg://john:geheim@127.0.0.1:1/orders")
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_of_something_else_is_left_alone(postgresql: PrivatePostgreSQL) -> None:
    """It keeps its tables and gets no more; a database that does not exist is not made."""
    url = sa.make_url(postgresql.new_database())
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE invoices (id int)")
    engine.dispose()
    with pytest.raises(JournalError, match="something else.*invoices"):
        Journal(url.render_as_string())
    with pytest.raises(JournalError, match='database "nothing" does not exist'):
        Journal(url.set(database="nothing").render_as_string())
