"""The benchmarks of the pipeline and of two trees, small: they measure, and write their tables."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import against
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


def test_two_trees_are_compared(tmp_path: Path, broker: PrivateBroker) -> None:
    """A duration is measured for both trees, and the table has its ratio."""
    tree = Path(against.__file__).parent.parent
    comparison = against.Comparison((tree, tree), tmp_path, broker.admin_url, scale=0.01)
    comparison.measure(["start"], runs=1)
    ((what, (before, now)),) = comparison.found.items()
    assert before[0] > 0 < now[0]
    assert f"| {what} |" in comparison.table()
