"""One order on a real HTTP simulator, a client for it, and a folder for its files."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from children import Child
from conftest import client_of, login_of

from regards_nb.download import Downloader, DownloadOptions, paths_of
from regards_nb.journal import Journal
from regards_nb.simulator import FileSpec, OrderPlan, Simulator, noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regards_nb.client import RegardsClient
    from regards_nb.files import FileRecord
    from regards_nb.journal import TenantFiles
    from regards_nb.simulator import Fault

DEADLINE_S = 60.0
_WORKER = Path(__file__).with_name("download_worker.py")


def files_named(*names: str, size_bytes: int = 20_000, **known: Any) -> list[FileSpec]:
    """Return files with these names, each with other content."""
    return [
        FileSpec(name=name, content=noise(seed=f"{place}", size_bytes=size_bytes), **known)
        for place, name in enumerate(names)
    ]


@dataclass
class World:
    """An order whose files are available, and where they are to go."""

    simulator: Simulator
    client: RegardsClient
    order_id: int
    folder: Path
    journal: Journal

    @property
    def log(self) -> TenantFiles:
        """Where the files are recorded."""
        return self.journal.file_log(self.simulator.tenant)

    @property
    def records(self) -> dict[str, FileRecord]:
        """What is recorded, by name."""
        return {record.name: record for record in self.log.files(self.order_id)}

    def fetch(self, **options: Any) -> list[Path]:
        """Fetch what is available; return the paths of the new files."""
        chosen = DownloadOptions(**{"backoff_s": 0.01, **options})
        downloader = Downloader(self.client, self.order_id, self.folder, self.log, chosen)
        return paths_of(downloader.fetch())

    @property
    def expected(self) -> dict[str, bytes]:
        """Content of every file of the order, by the name it has on the server."""
        files = self.simulator.service.orders[self.order_id].files
        return {file.spec.name: b"".join(file.spec.source.chunks()) for file in files}

    @property
    def found(self) -> dict[str, bytes]:
        """What stands under final names."""
        if not self.folder.exists():
            return {}
        return {
            path.name: path.read_bytes() for path in self.folder.iterdir() if path.name[0] != "."
        }

    @property
    def leftovers(self) -> list[str]:
        """Unfinished things."""
        return [path.name for path in self.folder.glob(".regards-*.part")]

    def requested(self, ending: str) -> int:
        """Count the requests whose path ends so, or goes on with a number."""
        paths = [seen.path for seen in self.simulator.requests]
        return sum(path.endswith(ending) or f"{ending}/" in path for path in paths)

    @property
    def zips(self) -> int:
        """How often the zip was asked for."""
        return self.requested("/download")

    @property
    def singles(self) -> int:
        """How often single files were asked for."""
        return self.requested("/orders/files")


@contextmanager
def world(
    tmp_path: Path,
    plan: OrderPlan | None = None,
    *faults: Fault,
    simulator_options: dict[str, Any] | None = None,
    **client_options: Any,
) -> Iterator[World]:
    """Start a simulator with one order whose first sub-orders are available."""
    plan = plan or OrderPlan(n_files=6, file_bytes=20_000, files_per_suborder=6)
    options: dict[str, Any] = {"amqp": None, "suborder_pause_s": 0.0} | (simulator_options or {})
    with (
        Simulator(**options) as simulator,
        client_of(simulator, **client_options) as client,
        Journal(tmp_path / "journal.sqlite") as journal,
    ):
        order_id = simulator.order(plan)
        available = len(plan.with_files(seed="any").suborders()[0])
        simulator.wait_available(order_id, files=available)
        for fault in faults:
            simulator.faults.add(fault)
        yield World(simulator, client, order_id, tmp_path / "files", journal)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until something outside of this process is so."""
    glance = threading.Event()
    ends_at_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at_s, f"waited {DEADLINE_S} s for {what}"
        glance.wait(0.01)


@contextmanager
def worker(here: World, *, limits: Sequence[str] = (), **options: Any) -> Iterator[Child]:
    """Start another Python process that downloads the order to the same folder."""
    simulator = here.simulator
    asked = {
        "base_url": simulator.base_url,
        "client": {**login_of(simulator), "backoff_s": 0.01},
        "order_id": here.order_id,
        "folder": str(here.folder),
        "journal": here.journal.location.removeprefix("sqlite:///"),
        "options": options,
        "limits": list(limits),
    }
    with Child(_WORKER.read_text()) as process:
        process.tell(json.dumps(asked))
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


def result_of(process: Child) -> dict[str, Any]:
    """Wait for a worker and return what it says."""
    result: dict[str, Any] = json.loads(process.output())
    return result
