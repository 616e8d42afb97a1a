"""The plot of orders over time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scripted_tracker import NOON, ScriptedTracker, order

from regards_nb.display import plot_throughput, plot_timeline
from regards_nb.errors import SettingsError
from regards_nb.frames import EVENT_DTYPES, FILE_DTYPES

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True, name="plt")
def _plt() -> Iterator[Any]:
    """Return pyplot, which draws without a window; the figures of a test end with it."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("agg")
    yield plt
    plt.close("all")


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


def at(minute: float) -> datetime:
    """Return a time, in minutes after noon."""
    return NOON + timedelta(minutes=minute)


def fetched(*files: tuple[int, float, int]) -> pd.DataFrame:
    """Return files (order id, minute of the download, bytes) as a tracker does.

    Two further files are there and were not fetched: one was found, one is only listed.
    """
    rows = [
        {"order_id": order_id, "path": "/a", "size_bytes": size_bytes, "fetched_at": at(minute)}
        for order_id, minute, size_bytes in files
    ]
    rows.append({"order_id": 1, "path": "/found", "size_bytes": 7, "fetched_at": None})
    rows.append({"order_id": 1, "path": None, "size_bytes": 7, "fetched_at": None})
    return pd.DataFrame(rows).astype({name: FILE_DTYPES[name] for name in rows[0]})


def test_a_tracker_gives_labels_and_downloads() -> None:
    """A tracker's own labels name the lanes; files are marked when they came, once a second."""

    class WithFrames(ScriptedTracker):
        events = frame(event("first", "GRANTED", 1, order_id=1))
        files = fetched((1, 2, 5), (1, 2, 5), (1, 3, 5), (99, 2, 5))

    shown = picture(plot_timeline(WithFrames(order("first", 1, label="my swath"))))
    assert shown["lanes"] == ["#1 my swath"]
    assert shown["marks"] == {"granted": 1, "files fetched": 2}


def test_nothing_is_drawn_before_the_first_event_of_an_order() -> None:
    """A file that is older than its order belongs to an earlier order of the same number."""

    class WithFrames(ScriptedTracker):
        events = frame(event("first", "GRANTED", 10, order_id=1))
        files = fetched((1, 2, 5), (1, 12, 5))

    ax = plot_timeline(WithFrames(order("first", 1)))
    handles, kinds = ax.get_legend_handles_labels()
    (points,) = (h.get_offsets() for h, k in zip(handles, kinds, strict=True) if k != "granted")
    assert len(points) == 1
    assert points[0][0] % 1 * 24 * 60 == pytest.approx(12 * 60 + 12)
    picture(ax)


@pytest.mark.parametrize("plot", [plot_timeline, plot_throughput], ids=["timeline", "throughput"])
def test_plots_are_legible_on_light_and_dark_pages(plot: Any, plt: Any) -> None:
    """The figure is transparent, its texts are of a middle grey, and no plate is laid under it.

    Axes of the user keep their colours.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.text import Text
    from matplotlib_inline import backend_inline

    class WithFrames(ScriptedTracker):
        events = frame(event("first", "GRANTED", 1, order_id=1), event("first", "DONE", 5))
        files = fetched((1, 2, 5), (1, 3, 5))

    tracker = WithFrames(order("first", 1))
    figure = plot(tracker).figure
    figure.canvas.draw()
    assert to_rgba(figure.get_facecolor())[3] == 0
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 5
    for text in texts:
        red, green, blue, _ = to_rgba(text.get_color())
        assert 0.4 < 0.299 * red + 0.587 * green + 0.114 * blue < 0.6, text
    assert backend_inline._fetch_figure_metadata(figure) is None
    _, ax = plt.subplots()
    assert to_rgba(plot(tracker, ax=ax).figure.get_facecolor())[3] == 1
    assert to_rgba(ax.xaxis.label.get_color()) == to_rgba("black")


def heights(ax: Any) -> dict[str, list[float]]:
    """Return the heights of the bars of each order."""
    return {
        container.get_label(): [bar.get_height() for bar in container]
        for container in ax.containers
    }


def test_throughput_is_bytes_over_time_by_order() -> None:
    """Each bar is what came in its span over the span's length, stacked by order."""
    files = fetched((1, 0, 3000), (1, 1.5, 6000), (2, 1.5, 3000))
    ax = plot_throughput(files)
    shown = heights(ax)
    assert ax.get_ylabel() == "kB/s, mean of 2 s"
    assert ax.get_xlabel() == "UTC; 3 files, 12.0 kB"
    assert shown["#1"][0] == pytest.approx(1.5)
    assert shown["#1"][-1] == pytest.approx(3)
    assert shown["#2"][-1] == pytest.approx(1.5)
    assert sum(map(sum, shown.values())) == pytest.approx(6)
    assert {bar.get_y() for bar in ax.containers[1]} == {1.5, 3.0}
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("orders", "minutes", "kinds"),
    [(1, 0, ["#0"]), (3, 90, ["#0", "#1", "#2"]), (300, 60 * 24 * 400, ["300 orders"])],
)
def test_throughput_is_readable_for_any_number_of_orders(
    orders: int, minutes: float, kinds: list[str]
) -> None:
    """At most sixty bars, and no more colours than can be told apart."""
    files = ((n, n * minutes / orders, 10) for n in range(orders))
    ax = plot_throughput(fetched(*files))
    shown = heights(ax)
    assert list(shown) == kinds
    assert all(1 <= len(each) <= 60 for each in shown.values())
    ax.figure.canvas.draw()


def test_throughput_of_a_tracker_has_its_labels() -> None:
    """Labels are text: no formula, nothing the font lacks; without files it says so."""

    class WithFrames(ScriptedTracker):
        files = fetched((1, 2, 5))

    tracker = WithFrames(order("first", 1, label="$x^2$ \U0001f6f0"))
    assert plot_throughput(tracker).get_legend_handles_labels()[1] == ["#1 \\$x^2\\$ □"]
    tracker.files = fetched().iloc[:0]
    ax = plot_throughput(tracker)
    assert ax.texts[0].get_text() == "no files yet"
    ax.figure.canvas.draw()


def test_it_draws_into_axes_that_are_given(plt: Any) -> None:
    """A plot can be part of the user's own figure."""
    _, ax = plt.subplots()
    assert plot_timeline(frame(event("a", "DONE", 1)), ax=ax) is ax
    picture(ax)


@pytest.mark.parametrize("rows", [pd.DataFrame({"status": []}), 5])
def test_rows_of_another_frame_are_refused(rows: object) -> None:
    """The error names the frame that is needed."""
    with pytest.raises(SettingsError, match="rows of tracker.events"):
        plot_timeline(rows)
    with pytest.raises(SettingsError, match="rows of tracker.files"):
        plot_throughput(rows)


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
