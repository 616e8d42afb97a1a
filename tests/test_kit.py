"""The tests do not depend on how they were started."""

from __future__ import annotations

import signal
import subprocess
import sys


def test_ctrl_c_reaches_a_child() -> None:
    """A process that a test starts is interrupted by SIGINT."""
    code = "import threading; print(flush=True); threading.Event().wait(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == -signal.SIGINT


def test_ctrl_c_reaches_a_child_of_a_background_job() -> None:
    """The same is true where the shell that started the tests ignores SIGINT."""
    test = f"{__file__}::{test_ctrl_c_reaches_a_child.__name__}"
    command = f"trap '' INT; exec {sys.executable} -m pytest -q -p no:cacheprovider {test}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
