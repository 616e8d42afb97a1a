"""The demo archive knows what the notebooks teach, and each demo has its own files."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regards_nb import OrderTracker, demo, queries
from regards_nb.errors import SettingsError, StoppedWaiting

if TYPE_CHECKING:
    from regards_nb.simulator import PrivateBroker


def test_products_can_be_ordered_by_name_and_each_demo_has_its_own_files(
    broker: PrivateBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty products are ordered by their ids; a second demo has a workspace of its own."""
    monkeypatch.chdir(tmp_path)
    ids = [f"SWOT_SSH_008_{number:03}" for number in range(1, 31)]
    workspaces = []
    for wanted in (queries.product_ids(ids, field="providerId"), "dataset:SWOT_PASS_012"):
        with OrderTracker.demo(broker=broker, suborder_pause_s=0) as tracker:
            order = tracker.submit(wanted, label="thirty")
            paths = {path for part in order.iter_parts(timeout_s=60) for path in part}
        (workspace,) = {Path(*path.relative_to(tmp_path).parts[:2]) for path in paths}
        workspaces.append((workspace, {path.stem for path in paths if path.suffix == ".csv"}))
    (first, tables), (second, _) = workspaces
    assert tables == set(ids)
    assert first != second
    assert first.parent == second.parent == Path("orders")


def test_an_unknown_option_is_refused_with_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in the name of an option is told before anything starts."""
    with pytest.raises(SettingsError, match=r"demo\(\) has no option 'auto_downlod'.*'auto_down"):
        OrderTracker.demo(auto_downlod=True)
    monkeypatch.setenv("REGARDS_AMQP", "amqp://127.0.0.1:1")
    monkeypatch.setenv("REGARDS_QUEUE", "orders")
    with pytest.raises(SettingsError, match="the environment has no option 'worksapce'.*'workspa"):
        OrderTracker.from_env(worksapce="orders")


def test_ctrl_c_ends_a_demo_that_is_still_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what was stopped, as it does later."""

    class Interrupted:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "regards_nb.demo":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "regards_nb.demo")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(StoppedWaiting, match=r"^demo\(\) was stopped: call it again$"):
        OrderTracker.demo()


def test_the_report_has_the_orders_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `make demo`, the table of the orders is in the terminal, and where the files are."""
    from nbformat import v4

    monkeypatch.chdir(tmp_path)
    file = demo.OUTPUT / "orders" / "demo-1" / "1" / "sea_level.csv"
    file.parent.mkdir(parents=True)
    file.touch()
    output = v4.new_output("execute_result", {"text/plain": "one pass  DONE"})
    cell = v4.new_code_cell(outputs=[output], metadata={"tags": ["orders-table"]})
    demo.report(v4.new_notebook(cells=[cell]))
    printed = capsys.readouterr().out
    assert "one pass  DONE" in printed
    assert f"1 file in {file.parent.parent}, for example {file}" in printed
