"""What was measured of downloads, judged by its floors and written as a page."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

_MIB = 1 << 20
#: Peak disk over the size of the extracted files.
_MAX_DISK = 1.02


class Run(NamedTuple):
    """What one run cost."""

    wall_s: float
    cpu_s: float
    rss_bytes: int
    #: Peak of what its folder holds; looked at in one run only.
    disk_bytes: int | None
    #: Which share of the machine other work had meanwhile.
    others: float


class Floor(NamedTuple):
    """A ratio that regards_nb must not exceed."""

    #: A competitor; or the line, at its full rate.
    peer: str
    ratio: float
    #: Which of ours is judged, and the same with waiting for the disk, where that was measured.
    ours: str
    flushed: str | None = None


LINE = "bytes / rate of the line"

_HOW = (
    "Made by `python benchmarks/download.py --write docs/download-speed.md`, on {machine}. Every "
    "competitor downloads the same order from the same server (HTTP/1.1 on this machine, chunked, "
    "no Content-Length), in a fresh process and a fresh folder, and verifies each file by MD5; "
    "regards_nb also checks the CRC-32 and the directory of the zip, and gives no file its final "
    "name before. Runs are taken in turn."
)
_RATIO = (
    "The ratio is that of median times, regards_nb over the other: below 1 it is faster; in "
    "brackets, from the best run over the other's worst to the worst over the other's best. "
    "None of the others waits until the files are on the disk; regards_nb does unless it is "
    'told not to (`durable=False`, here "no flush"), so that is what is judged. The floors '
    "were set beforehand, from a prototype."
)
_RUNS = (
    "Peak RSS is that of the largest process. Peak disk is over what the files alone take on the "
    "disk, looked at ten times per second in one run that does not count for the time. The "
    "machine also did other work: a run during which that took more than a tenth of it was made "
    "again, twice at most, and the quietest counts, for a minute of all works; what it took is "
    "in the last column (writing back to the disk is in it)."
)
_HEAD = "| work | what | at most | found | found with flush | |\n|---|---|---:|---:|---:|---|"


@dataclass(frozen=True)
class Result:
    """The runs of one work, by competitor."""

    title: str
    what: str
    runs: dict[str, list[Run]]
    floors: list[Floor]
    #: Names of the competitors that are regards_nb.
    ours: list[str]
    #: What the order's files alone take on the disk.
    stored_bytes: int
    line_s: float | None
    max_rss_bytes: float
    judges_disk: bool

    def save(self, path: Path) -> None:
        """Keep it for the page."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what was kept."""
        kept = json.loads(path.read_text())
        kept["runs"] = {name: [Run(*run) for run in runs] for name, runs in kept["runs"].items()}
        kept["floors"] = [Floor(*floor) for floor in kept["floors"]]
        return cls(**kept)

    @property
    def count(self) -> int:
        """How many runs of each count for the time."""
        return min(len(_timed(runs)) for runs in self.runs.values())

    def table(self) -> str:
        """Return the runs as a Markdown table."""
        lines = [
            "| | s, median (min-max) | CPU s | peak RSS MiB | peak disk | others' CPU |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, runs in self.runs.items():
            timed = _timed(runs)
            wall = [run.wall_s for run in timed]
            lines.append(
                f"| {name.replace('|', chr(92) + '|')} "
                f"| {median(wall):.2f} ({min(wall):.2f}-{max(wall):.2f}) "
                f"| {median(run.cpu_s for run in timed):.2f} | {_rss(runs) / _MIB:.0f} "
                f"| {self._disk(runs):.2f} | {median(run.others for run in timed):.0%} |"
            )
        return "\n".join(lines)

    def verdicts(self) -> list[Verdict]:
        """Judge each floor of this work."""
        found = [
            Verdict(
                self.title,
                f"time against {floor.peer}{', by zlib' if 'zlib' in floor.ours else ''}",
                floor.ratio,
                self._ratio(floor.ours, floor.peer),
                None if floor.flushed is None else self._ratio(floor.flushed, floor.peer),
                "",
                self._range(floor.ours, floor.peer),
            )
            for floor in self.floors
        ]
        rss_mb = max(_rss(self.runs[name]) for name in self.ours) / 1e6
        found.append(Verdict(self.title, "peak RSS", self.max_rss_bytes / 1e6, rss_mb, None, " MB"))
        if self.judges_disk:
            disk = max(self._disk(self.runs[name]) for name in self.ours)
            found.append(
                Verdict(self.title, "peak disk over extracted size", _MAX_DISK, disk, None, "")
            )
        return found

    def _ratio(self, ours: str, peer: str) -> float:
        peer_s = self.line_s if peer == LINE else self._median_s(peer)
        assert peer_s is not None
        return self._median_s(ours) / peer_s

    def _disk(self, runs: list[Run]) -> float:
        """Return the peak over what the files alone take."""
        return max(run.disk_bytes or 0 for run in runs) / self.stored_bytes

    def _range(self, ours: str, peer: str) -> str:
        """Return between what the ratio lies, if each run met each of the other."""
        mine = [run.wall_s for run in _timed(self.runs[ours])]
        peers = _timed(self.runs.get(peer, []))
        theirs = [run.wall_s for run in peers] or [self.line_s or 0.0]
        return f" ({min(mine) / max(theirs):.2f}-{max(mine) / min(theirs):.2f})"

    def _median_s(self, name: str) -> float:
        return median(run.wall_s for run in _timed(self.runs[name]))


class Verdict(NamedTuple):
    """One floor, and what came of it."""

    title: str
    what: str
    floor: float
    found: float
    flushed: float | None
    unit: str
    #: Between what it lies, for a ratio of times.
    range: str = ""

    @property
    def met(self) -> bool:
        """Whether it is kept, as exactly as it is printed."""
        return round(self.found, 2) <= self.floor

    def __str__(self) -> str:
        flushed = "" if self.flushed is None else f"{self.flushed:.2f}"
        digits = 0 if self.unit else 2
        found = f"{self.found:.{digits}f}{self.unit}{self.range}"
        return (
            f"| {self.title} | {self.what.replace('|', chr(92) + '|')} "
            f"| {self.floor:.{digits}f}{self.unit} | {found} "
            f"| {flushed} | {'met' if self.met else '**missed**'} |"
        )


def page(results: list[Result], why: dict[tuple[str, str], str]) -> str:
    """Return the page. *why* says where the time or the space goes, by work and first word."""
    verdicts = [verdict for result in results for verdict in result.verdicts()]
    keys = [(v.title, v.what.removeprefix("peak ").split()[0]) for v in verdicts if not v.met]
    missed = [f"- {key[0]}, {key[1]}: {why[key]}" for key in dict.fromkeys(keys) if key in why]
    parts = [
        "# How fast downloads are",
        _HOW.format(machine=_machine()),
        _RATIO,
        "## The floors",
        "\n".join([_HEAD, *map(str, verdicts)]),
    ]
    if missed:
        parts += ["Where the rest goes:", "\n".join(missed)]
    parts += ["## The runs", _RUNS]
    for result in results:
        parts += [
            f"### {result.title}",
            f"{result.what[0].upper()}{result.what[1:]}; {result.count} runs of each.",
            result.table(),
        ]
    return "\n\n".join(parts) + "\n"


def _machine() -> str:
    """Describe the machine, without its name."""
    text = Path("/proc/cpuinfo").read_text()
    model = text.partition("model name")[2].partition("\n")[0].strip("\t :") or platform.machine()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{platform.system()} with {os.cpu_count()} cores ({model}), "
        f"{memory_bytes / (1 << 30):.0f} GiB and Python {platform.python_version()}"
    )


def _timed(runs: list[Run]) -> list[Run]:
    """Return the runs that count for the time: looking at the disk takes some."""
    return [run for run in runs if run.disk_bytes is None]


def _rss(runs: list[Run]) -> int:
    return max(run.rss_bytes for run in runs)
