"""The pipeline from RabbitMQ to the DataFrame: rate, latency, and growth with the journal.

::

    python benchmarks/pipeline.py --write docs/performance.md   # about 20 minutes
    python benchmarks/pipeline.py --quick                       # one minute: stored ratios beside

Needs rabbitmq-server. The C client also needs librabbitmq-dev and a C compiler; without them it
is omitted. Each client runs in a process of its own, in turn with the others, and a run counts
only if every message arrived. The goals are ratios of medians. A missed goal is printed as missed;
it is no error, because machines differ.
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
import first_look
import latency
import startup
from drain import AIO_PIKA, KOMBU, NAIVE, OURS, PIKA, RABBITMQ_C, Run, median_rate

from regards_nb.simulator import PrivateBroker

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
STORED = HERE / "pipeline.json"
NAIVE_MESSAGES = 8000
#: Where the time goes according to profiles, by the first words of a goal; printed if missed.
WHY = {
    "messages/s from a replaying server": "one thread at a time runs Python, so the rate is "
    "the inverse of the processor time: a third is reading the frames, the rest is the work on "
    "each message: properties as text, journal, parsing of the body, fold, and columns.",
    "processor time a message": "as above.",
    "median latency": "a bare callback has the message as soon as pika has it. A row must first "
    "be journalled (0.9 ms here, half of it for the commit to the disk), read and folded "
    "(0.3 ms), and added to the frame (0.6 ms). These are times at 10/s, with cold processor "
    "caches. At 1,000/s each step takes a third to a half of that, and competes with the "
    "receiving thread.",
    "`start()`": "A commit to the journal and the look for messages of other queues run while "
    "RabbitMQ answers; before that, the journal is read for callbacks.",
    "opening the journal": "opening takes a few milliseconds; the first access to a frame reads "
    "the journal. Of that, the fold takes 40 %. The rest is work that Parquet does not have: "
    "unpacking messages, parsing their JSON, and making columns.",
}


@dataclass(frozen=True)
class Goal:
    """A measured ratio and its limit."""

    what: str
    ratio: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def line(self) -> str:
        """Return the row of the table of goals."""
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.is_met else "**missed**"
        return f"| {self.what} | {sign} {self.limit:g} | {self.ratio:.3g} | {verdict} |"


@dataclass
class Report:
    """The measured goals, and the tables with the details."""

    goals: list[Goal] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    #: Messages per second by source and client.
    rates: dict[str, dict[str, float]] = field(default_factory=dict)

    def text(self) -> str:
        """Return the page as Markdown."""
        parts = [
            "# Performance",
            (
                "Made by `python benchmarks/pipeline.py --write docs/performance.md`, on "
                f"{platform.system()} with {os.cpu_count()} cores and Python "
                f"{platform.python_version()}, RabbitMQ beside the clients. Each client runs in a "
                "process of its own, in turn with the others, and a run counts only if every "
                "message arrived. regards_nb decodes, journals on the disk before it "
                "acknowledges, folds, and builds the frame. The others decode and keep a list; "
                "the C client keeps nothing."
            ),
            "## The goals",
            "| what | goal | found | |\n|---|---:|---:|---|\n"
            + "\n".join(goal.line() for goal in self.goals),
        ]
        names = [goal.what for goal in self.goals if not goal.is_met]
        why = {n: text for n, text in WHY.items() if any(name.startswith(n) for name in names)}
        if why:
            parts += ["Where the time goes:", "\n".join(f"- {n}: {t}" for n, t in why.items())]
        for title, table in self.tables.items():
            parts += [f"## {title}", table]
        return "\n\n".join(parts) + "\n"


def drain_rates(
    broker: PrivateBroker, report: Report, *, count: int, runs: int, program: Path | None
) -> None:
    """Measure the rates from the broker, then from the replaying server."""
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
    """Return the goal for the rate of regards_nb over that of another client."""
    ratio = median_rate(found[OURS], 1) / median_rate(found[peer], 1)
    return Goal(what, ratio, limit, at_least=True)


def cpu_us(runs: Sequence[Run], count: int) -> float:
    """Return the least processor time a message; other load on the machine adds to it."""
    return min(run.cpu_s for run in runs) / count * 1e6


def note_rates(report: Report, source: str, found: dict[str, list[Run]], count: int) -> None:
    """Add a table, and the rates for the plot."""
    runs = len(found[OURS])
    title = f"{count:,} messages from {source}, {runs} runs"
    report.tables[title] = drain.table(found, count)
    report.rates[source] = {name: median_rate(rows, count) for name, rows in found.items()}


def naive(broker: PrivateBroker, report: Report) -> None:
    """Compare with the usual recipe of notebooks, in one run."""
    clients = [OURS, NAIVE]
    found = drain.from_broker(broker, clients, count=NAIVE_MESSAGES, runs=1, program=None)
    what = f"{NAIVE_MESSAGES} messages, over the naive recipe (pd.concat for each)"
    report.goals.append(faster(found, NAIVE, what, 200))


def latencies(broker: PrivateBroker, report: Report, rates: dict[int, int]) -> None:
    """Compare the latency at each rate; *rates* maps it to a number of messages."""
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
    """Measure the cost of the frames; *lengths* maps numbers of events to numbers of orders."""
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
    return dict(json.loads(done.stdout.splitlines()[-1]))


def startup_times(broker: PrivateBroker, report: Report, runs: int) -> None:
    """Compare the times of import and start()."""
    report.goals += [
        Goal("`import regards_nb`, over `import pandas`", startup.imports(runs).ratio, 1.1),
        Goal(
            "`start()` until CONSUMING, over a bare pika consumer",
            startup.starts(broker.admin_url, runs).ratio,
            1.5,
        ),
    ]


def plot(rates: dict[str, dict[str, float]], path: Path) -> None:
    """Plot the rates."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    # The C client is so fast that the other bars would vanish.
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
    """Measure a little and print the ratios beside the stored ones."""
    with PrivateBroker() as broker:
        drain_rates(broker, report, count=10_000, runs=1, program=None)
        latencies(broker, report, {1000: 1000})
        startup_times(broker, report, 5)
    growth(report, {5_000: 500, 50_000: 5_000})
    stored = {goal["what"]: goal["ratio"] for goal in json.loads(STORED.read_text())}
    print(f"{'now':>9} {'stored':>9}")
    for goal in report.goals:
        known = f"{stored[goal.what]:9.3g}" if goal.what in stored else f"{'':9}"
        print(f"{goal.ratio:9.3g} {known}  {goal.what}")


def main() -> None:
    """Measure everything, or a little with ``--quick``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the page here, and the plot beside it")
    args = parser.parse_args()
    report = Report()
    if args.quick:
        quick(report)
        return
    with drain.scratch() as folder, PrivateBroker() as broker:
        steps: list[Callable[[], None]] = [
            lambda: drain_rates(
                broker,
                report,
                count=args.messages,
                runs=args.runs,
                program=drain.compiled(folder),
            ),
            lambda: latencies(broker, report, {10: 100, 1000: 10_000, 10_000: 50_000}),
            lambda: startup_times(broker, report, 15),
            lambda: growth(report, {10_000: 10_000, 100_000: 100_000, 1_000_000: 100_000}),
            lambda: naive(broker, report),
        ]
        for step in steps:
            known = len(report.goals)
            step()
            print("\n".join(goal.line() for goal in report.goals[known:]), flush=True)
    if args.write:
        picture = args.write.with_suffix(".svg")
        plot(report.rates, picture)
        report.tables = {"Messages a second": f"![rates]({picture.name})", **report.tables}
        rest = first_look.section_of(args.write)
        args.write.write_text("\n".join(filter(None, (report.text(), rest))), encoding="utf-8")
        STORED.write_text(json.dumps([asdict(goal) for goal in report.goals], indent=1) + "\n")
    else:
        print(report.text())


if __name__ == "__main__":
    main()
