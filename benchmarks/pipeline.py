"""The whole road from RabbitMQ to the DataFrame: how fast, how late, and what grows.

::

    python benchmarks/pipeline.py --write docs/performance.md   # some 20 minutes
    python benchmarks/pipeline.py --quick                       # a minute: ratios beside the stored

Needs rabbitmq-server, and librabbitmq-dev with a C compiler for the C client, which is left out
without them. Each client runs in a process of its own, in turn with the others; a run counts only
when every message has come. What is judged are ratios of medians. Nothing here fails because a
machine is slow: what is missed is printed as missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drain
import latency
import startup
from drain import AIO_PIKA, KOMBU, NAIVE, OURS, PIKA, RABBITMQ_C, Run, median_rate

from regards_nb.simulator import PrivateBroker

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
STORED = HERE / "pipeline.json"
NAIVE_MESSAGES = 8000
#: Where it goes, from profiles, by the first words of a goal; shown where that is missed.
WHY = {
    "messages/s from a replaying server": "one thread at a time runs Python, so the rate is one "
    "over the processor time. Of that, some six tenths are pika's decoding of frames and "
    "properties, which the bare loop does as well; the rest is what is kept of each message: its "
    "properties as text, the journal, the body read, the fold, and the columns.",
    "processor time a message": "the same.",
    "median latency": "a bare callback has the message when pika has it. A row is there when it "
    "is journalled (1.1 ms here, half of it until the commit is on the disk), read and folded "
    "(0.5 ms), and in the frame (0.9 ms): at 10/s, when the processor has forgotten all of it in "
    "between. At 1,000/s each takes a third to a half of that, in turn with the thread that "
    "receives.",
    "`start()`": "RabbitMQ tells what is no stream queue by closing a channel.",
    "opening the journal": "opening alone is done in some milliseconds, and reading waits for the "
    "first question. Then two fifths are the fold; the rest is what Parquet has in columns "
    "already: the messages are unpacked, their JSON is read, and columns are made of them.",
}


@dataclass(frozen=True)
class Goal:
    """A ratio, and what it should be."""

    what: str
    ratio: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is what it should be."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def line(self) -> str:
        """Return a row of the table of goals."""
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.is_met else "**missed**"
        return f"| {self.what} | {sign} {self.limit:g} | {self.ratio:.3g} | {verdict} |"


@dataclass
class Report:
    """What was measured: goals, and the tables behind them."""

    goals: list[Goal] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    #: messages per second, by where they came from and by client
    rates: dict[str, dict[str, float]] = field(default_factory=dict)

    def text(self) -> str:
        """Return the page."""
        parts = [
            "# How fast the road is",
            (
                "Made by `python benchmarks/pipeline.py --write docs/performance.md`, on "
                f"{platform.system()} with {os.cpu_count()} cores and Python "
                f"{platform.python_version()}, RabbitMQ beside the clients. Each client runs in a "
                "process of its own, in turn with the others, and a run counts only when every "
                "message has come. regards_nb decodes, journals on the disk before it "
                "acknowledges, folds, and builds the frame; the others decode and keep a list, "
                "and the C client keeps nothing."
            ),
            "## The goals",
            "| what | goal | found | |\n|---|---:|---:|---|\n"
            + "\n".join(goal.line() for goal in self.goals),
        ]
        names = [goal.what for goal in self.goals if not goal.is_met]
        why = {n: text for n, text in WHY.items() if any(name.startswith(n) for name in names)}
        if why:
            parts += ["Where the rest goes:", "\n".join(f"- {n}: {t}" for n, t in why.items())]
        for title, table in self.tables.items():
            parts += [f"## {title}", table]
        return "\n\n".join(parts) + "\n"


def emptying(
    broker: PrivateBroker, report: Report, *, count: int, runs: int, program: Path | None
) -> None:
    """Empty queues of the broker, then of the replaying server."""
    clients = [OURS, PIKA, AIO_PIKA, KOMBU, *([RABBITMQ_C] if program else [])]
    found = drain.from_broker(broker, clients, count=count, runs=runs, program=program)
    note_rates(report, "RabbitMQ", found, count)
    for peer, limit in ((PIKA, 0.9), (AIO_PIKA, 1.6)):
        report.goals.append(faster(found, peer, f"messages/s from RabbitMQ, over {peer}", limit))
    found = drain.from_replay(clients, count=count, runs=runs, program=program)
    note_rates(report, "a replaying server", found, count)
    for peer, limit in ((PIKA, 0.75), (AIO_PIKA, 3.0)):
        what = f"messages/s from a replaying server, over {peer}"
        report.goals.append(faster(found, peer, what, limit))
    ours, theirs = (cpu_us(found[name], count) for name in (OURS, PIKA))
    what = "processor time a message, the least of the runs, over pika's"
    report.goals.append(Goal(what, ours / theirs, 20 / 15))


def faster(found: dict[str, list[Run]], peer: str, what: str, limit: float) -> Goal:
    """Compare the rates of regards_nb and another client."""
    ratio = median_rate(found[OURS], 1) / median_rate(found[peer], 1)
    return Goal(what, ratio, limit, at_least=True)


def cpu_us(runs: Sequence[Run], count: int) -> float:
    """Return the least processor time of a message: what else ran on the machine adds to it."""
    return min(run.cpu_s for run in runs) / count * 1e6


def note_rates(report: Report, source: str, found: dict[str, list[Run]], count: int) -> None:
    """Keep a table, and the rates for the plot."""
    runs = len(found[OURS])
    title = f"{count:,} messages from {source}, {runs} runs"
    report.tables[title] = drain.table(found, count)
    report.rates[source] = {name: median_rate(rows, count) for name, rows in found.items()}


def naive(broker: PrivateBroker, report: Report) -> None:
    """Empty a queue as notebooks do it, once."""
    clients = [OURS, NAIVE]
    found = drain.from_broker(broker, clients, count=NAIVE_MESSAGES, runs=1, program=None)
    what = f"{NAIVE_MESSAGES} messages, over the naive recipe (pd.concat for each)"
    report.goals.append(faster(found, NAIVE, what, 200))


def lateness(broker: PrivateBroker, report: Report, rates: dict[int, int]) -> None:
    """Compare how late messages are, at some rates, each with so many messages."""
    lines = [
        (
            "| messages/s | in a bare pika callback, ms: median, p99 "
            "| as a row of `tracker.events`, ms: median, p99 |"
        ),
        "|---:|---:|---:|",
    ]
    for rate, count in rates.items():
        theirs = latency.measured(broker.admin_url, PIKA, rate, count)
        ours = latency.measured(broker.admin_url, OURS, rate, count)
        lines.append(
            f"| {rate:,} | {theirs.median_ms:.1f}, {theirs.p99_ms:.1f} "
            f"| {ours.median_ms:.1f}, {ours.p99_ms:.1f} |"
        )
        what = f"median latency at {rate:,}/s, over a pika callback"
        report.goals.append(Goal(what, ours.median_ms / theirs.median_ms, 3))
        if rate == 1000:
            report.goals.append(Goal("p99 latency at 1,000/s, ms", ours.p99_ms, 120))
    report.tables["From publishing to the row"] = "\n".join(lines)


def growth(report: Report, lengths: dict[int, int]) -> None:
    """See what frames cost with so many events of so many orders."""
    rows = [_grown(events, orders) for events, orders in lengths.items()]
    lines = [
        (
            "| events | orders | `events` after 100 new, ms | `orders`, ms | events from dicts, ms "
            "| orders from dicts, ms | first `events`, s | bytes an event beyond the frame |"
        ),
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['events']:,} | {row['orders']:,} | {row['events_s'] * 1e3:.1f} "
        f"| {row['orders_s'] * 1e3:.1f} | {row['rebuild_s'] * 1e3:,.0f} "
        f"| {row['rebuild_orders_s'] * 1e3:,.0f} | {row['first_s']:.1f} "
        f"| {row['beyond_frame_bytes']:.0f} |"
        for row in rows
    ]
    report.tables["A long journal"] = "\n".join(lines)
    short, long = rows[0], rows[-1]
    for name, rebuild in (("events", "rebuild_s"), ("orders", "rebuild_orders_s")):
        times = f"{name}_s"
        there = f"{long[name]:,}"
        new = f"`tracker.{name}` after 100 new events"
        report.goals += [
            Goal(
                f"rebuilding it from dicts, over {new}, {there} there",
                long[rebuild] / long[times],
                50,
                at_least=True,
            ),
            Goal(f"{new}, {there} there, over {short[name]:,}", long[times] / short[times], 3),
        ]
    read_s = long["parquet_s"] + long["fold_s"]
    report.goals += [
        Goal(
            "opening the journal and reading it, over Parquet and fold",
            (long["open_s"] + long["first_s"]) / read_s,
            2,
        ),
        Goal("bytes an event beyond the frame", long["beyond_frame_bytes"], 250),
    ]


def _grown(events: int, orders: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "growth.py"), str(events), str(orders)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def beginning(broker: PrivateBroker, report: Report, runs: int) -> None:
    """Compare imports and starts."""
    report.goals += [
        Goal("`import regards_nb`, over `import pandas`", startup.imports(runs).ratio, 1.1),
        Goal(
            "`start()` until CONSUMING, over a bare pika consumer",
            startup.starts(broker.admin_url, runs).ratio,
            1.5,
        ),
    ]


def plot(rates: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the rates."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    # the C client would leave no room for the others
    shown = {
        source: {n: r for n, r in found.items() if n != RABBITMQ_C}
        for source, found in rates.items()
    }
    figure, axes = plt.subplots(1, len(shown), figsize=(9, 3), layout="constrained")
    for axis, (source, found) in zip(axes, shown.items(), strict=True):
        colours = ["#1b7837" if name == OURS else "#9aa0a6" for name in found]
        axis.barh(list(found)[::-1], list(found.values())[::-1], color=colours[::-1])
        axis.set_title(f"from {source}", fontsize=10)
        axis.set_xlabel("messages a second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def quick(report: Report) -> None:
    """Measure little, and show it beside what is stored."""
    with PrivateBroker() as broker:
        emptying(broker, report, count=10_000, runs=1, program=None)
        lateness(broker, report, {1000: 1000})
        beginning(broker, report, 5)
    growth(report, {5_000: 500, 50_000: 5_000})
    stored = {goal["what"]: goal["ratio"] for goal in json.loads(STORED.read_text())}
    print(f"{'now':>9} {'stored':>9}")
    for goal in report.goals:
        known = f"{stored[goal.what]:9.3g}" if goal.what in stored else f"{'':9}"
        print(f"{goal.ratio:9.3g} {known}  {goal.what}")


def main() -> None:
    """Measure all, or a little."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the page here, and the plot beside it")
    asked = parser.parse_args()
    report = Report()
    if asked.quick:
        quick(report)
        return
    with drain.scratch() as folder, PrivateBroker() as broker:
        steps: list[Callable[[], None]] = [
            lambda: emptying(
                broker,
                report,
                count=asked.messages,
                runs=asked.runs,
                program=drain.compiled(folder),
            ),
            lambda: lateness(broker, report, {10: 100, 1000: 10_000, 10_000: 50_000}),
            lambda: beginning(broker, report, 15),
            lambda: growth(report, {10_000: 10_000, 100_000: 100_000, 1_000_000: 100_000}),
            lambda: naive(broker, report),
        ]
        for step in steps:
            known = len(report.goals)
            step()
            print("\n".join(goal.line() for goal in report.goals[known:]), flush=True)
    if asked.write:
        picture = asked.write.with_suffix(".svg")
        plot(report.rates, picture)
        report.tables = {"Messages a second": f"![rates]({picture.name})", **report.tables}
        asked.write.write_text(report.text(), encoding="utf-8")
        STORED.write_text(json.dumps([asdict(goal) for goal in report.goals], indent=1) + "\n")
    else:
        print(report.text())


if __name__ == "__main__":
    main()
