"""The fault matrix, small: nothing lost, nothing twice, whatever breaks.

The whole of it, with 20,000 events for each fault, is ``make faults``.
"""

from __future__ import annotations

import faults
import pytest

from regards_nb.simulator import PrivateBroker

# kill_broker, close_connections and stop_app are in test_consumer.py
SMALL = ["delete_queue", "close_channels", "cut_connection", "freeze_broker", "memory_alarm"]
SMALL += ["consumer_timeout", "full_disk", "replace_journal", "sorted_headers", "kill_team"]
#: They break something again and again, or fill a disk; the others break something once.
LONG = {"cut_connection", "full_disk", "replace_journal", "sorted_headers"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("fault", SMALL)
def test_every_event_is_in_the_frame_once(broker: PrivateBroker, fault: str) -> None:
    """Hundreds of events flow while something breaks; all of them arrive, each once."""
    outcome = faults.run(fault, broker, 1000 if fault in LONG else 400)
    assert outcome.exact, outcome
