"""The plot of orders over time."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scripted_tracker import NOON, ScriptedTracker, order

from regards_nb.display import plot_timeline
from regards_nb.frames import EVENT_DTYPES

mpl.use("agg")
TESTS = Path(__file__).parent


def event(name: str, status: str, minute: float, **known: Any) -> dict[str, Any]:
    """Return one row of events; it arrived when it was sent, but for what is said."""
    when = NOON + timedelta(minutes=minute)
    return {
        **dict.fromkeys(EVENT_DTYPES),
        "received_at": when,
        "timestamp": when.replace(microsecond=0),
        "tenant": "project1",
        "correlation_id": name,
        "status": status,
        "redelivered": False,
        **known,
    }


def frame(*events: dict[str, Any]) -> pd.DataFrame:
    """Return the events with the columns and dtypes that a tracker gives."""
    return pd.DataFrame(list(events), columns=list(EVENT_DTYPES)).astype(EVENT_DTYPES)


def picture(ax: Any) -> dict[str, Any]:
    """Draw the plot, and return its labels and the number of marks of each kind."""
    ax.figure.canvas.draw()
    handles, kinds = ax.get_legend_handles_labels()
    marks = {kind: len(handle.get_offsets()) for handle, kind in zip(handles, kinds, strict=True)}
    lanes = [label.get_text() for label in ax.get_yticklabels()]
    plt.close(ax.figure)
    return {"lanes": lanes, "marks": marks, "times": ax.get_xlabel()}


def test_each_order_has_a_lane_with_its_moments() -> None:
    """Lanes are labelled and sorted by their beginning; each event is a mark of its kind."""
    events = frame(
        event("late", "DENIED", 30),
        event("early", "GRANTED", 1, order_id=7),
        event("early", "SUBORDER_DONE", 2),
        event("early", "SUBORDER_DONE", 2),
        event("early", "DONE", 3, order_id=7, download_link="x"),
        event("partly", "FAILED", 5, order_id=8, download_link="x"),
        event("none", "FAILED", 6, order_id=9),
        event("new", "TELEPORTED", 9),
    )
    assert picture(plot_timeline(events)) == {
        "lanes": ["#7 early", "#8 partly", "#9 none", "new", "late"],
        "marks": {
            "granted": 1,
            "part ready": 2,
            "done": 1,
            "incomplete": 1,
            "failed": 1,
            "denied": 1,
            "other status": 1,
        },
        "times": "UTC",
    }


@pytest.mark.parametrize(("orders", "labels"), [(0, 0), (1, 1), (3, 3), (300, 38), (1000, 40)])
def test_it_is_readable_for_any_number_of_orders(orders: int, labels: int) -> None:
    """The figure stays on a screen, and labels are thinned out rather than overlapping."""
    ax = plot_timeline(frame(*(event(f"o{n}", "GRANTED", n) for n in range(orders))))
    assert ax.figure.get_size_inches()[1] <= 12
    shown = picture(ax)
    assert len(shown["lanes"]) == labels
    assert shown["times"] == ("UTC; 600 older orders not shown" if orders == 1000 else "UTC")


def test_a_message_that_waited_in_the_queue_is_drawn_when_it_was_sent() -> None:
    """The time of arrival counts, unless nobody listened for a while or there is no other."""
    waited = event("a", "DONE", 1, received_at=NOON + timedelta(hours=5))
    untimed = event("b", "DONE", 2, timestamp=None)
    prompt = event("c", "DONE", 3.001)
    ax = plot_timeline(frame(waited, untimed, prompt))
    (handle,), _ = ax.get_legend_handles_labels()
    minutes = [(x % 1 * 24 - 12) * 60 for x, _ in handle.get_offsets()]
    assert minutes == pytest.approx([1, 2, 3.001], abs=1e-4)
    picture(ax)


def test_names_of_orders_are_only_text() -> None:
    """Dollars are no formula, and what the font lacks is no warning."""
    events = frame(event("$\\frac{$ \U0001f6f0 \u202e", "DONE", 1), event("_x^", "DONE", 2))
    assert picture(plot_timeline(events))["lanes"] == ["$\\frac{$ □ �", "_x^"]


def test_a_tracker_gives_labels_and_downloads() -> None:
    """A tracker's own labels name the lanes, and known times of downloads are marked."""

    class WithFrames(ScriptedTracker):
        events = frame(event("first", "GRANTED", 1, order_id=1))
        files = pd.DataFrame(
            {"order": [1, 1, 5], "downloaded_at": [NOON, pd.NaT, NOON]},
        )

    shown = picture(plot_timeline(WithFrames(order("first", 1, label="my swath"))))
    assert shown["lanes"] == ["#1 my swath"]
    assert shown["marks"] == {"granted": 1, "file fetched": 1}


def test_it_draws_into_axes_that_are_given() -> None:
    """A plot can be part of the user's own figure."""
    _, ax = plt.subplots()
    assert plot_timeline(frame(event("a", "DONE", 1)), ax=ax) is ax
    picture(ax)


def test_without_matplotlib_the_error_says_what_to_install() -> None:
    """The message names the extra that brings matplotlib."""
    script = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from regards_nb.display import plot_timeline\n"
        "from regards_nb.errors import SettingsError\n"
        "try:\n"
        "    plot_timeline(None)\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 'pip install "regards_nb[plot]"' in done.stdout
