"""The benchmark of the pipeline, small: it measures every client and writes its page."""

from __future__ import annotations

import gc
import math

import pipeline
import pytest

from regards_nb.simulator import PrivateBroker


# the bare loops of the comparison leave their sockets to the collector
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_pipeline_is_measured(broker: PrivateBroker) -> None:
    """Every client takes every message; each goal is a number, and the page lists them all."""
    report = pipeline.Report()
    pipeline.drain_rates(broker, report, count=300, runs=1, program=None)
    pipeline.latencies(broker, report, {1000: 100})
    pipeline.startup_times(broker, report, 1)
    pipeline.growth(report, {500: 50, 1000: 100})
    assert len(report.goals) > 10
    assert all(math.isfinite(goal.ratio) and goal.ratio > 0 for goal in report.goals)
    gc.collect()
    page = report.text()
    assert all(goal.line() in page for goal in report.goals)
