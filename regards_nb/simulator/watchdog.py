"""A helper process that kills the RabbitMQ node when the process that started it is gone.

The simulator runs this file as a script; it uses nothing but the standard library. It makes the
temporary folder, and writes its path to standard output. When standard input ends or the owner's
process has vanished (kill -9 included), it kills the groups of the processes whose numbers are in
the ``*.pid`` files of the folder, and removes the folder.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

# A forked child of the owner can keep the pipe open, so the parent's id is checked, too.
_OWNER_CHECK_S = 0.5
#: Attempts to remove the folder while the last processes end, and the time between two.
_ATTEMPTS, _PAUSE_S = 100, 0.05


def main(owner: int) -> None:
    """Wait until the process with this id is gone, then clean up."""
    # Ctrl-C and a closed terminal reach the whole session; the cleanup must run after them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # RabbitMQ 3.10 passes the path to `df` in single quotes and does not start if it contains one.
    place = tempfile.gettempdir() if "'" not in tempfile.gettempdir() else "/tmp"  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="regards-nb-", dir=place))
    with suppress(BrokenPipeError):  # the owner is gone already
        os.write(1, os.fsencode(f"{folder}\n"))
    while os.getppid() == owner and not select.select([0], [], [], _OWNER_CHECK_S)[0]:
        pass
    # A process that begins at this moment cannot write its number any more, and ends.
    ended = folder.rename(f"{folder}.ended")
    for file in ended.glob("*.pid"):
        # Kills also a group whose first process has ended.
        with suppress(ProcessLookupError, ValueError):
            os.killpg(int(file.read_text()), signal.SIGKILL)
    for _ in range(_ATTEMPTS):
        shutil.rmtree(ended, ignore_errors=True)
        if not ended.exists():
            return
        threading.Event().wait(_PAUSE_S)


if __name__ == "__main__":
    main(int(sys.argv[1]))
