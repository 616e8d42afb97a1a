"""What the cells of the display's tests run: waits for a scripted tracker, ended by a file."""

from __future__ import annotations

#: Put ``FINISH = "path"`` before it: the waits end when that file is there.
SETUP = """
import asyncio, threading
from pathlib import Path
from scripted_tracker import NOON, ScriptedTracker, order
from regards_nb.display import close_views, show, watching
from regards_nb.waits import stopped_by_user

HOSTILE = '<img src=x onerror="window.__xss=1"></script><script>window.__xss=1</script>'
tracker = ScriptedTracker(
    order("first", 1, suborders_total=1000, message=HOSTILE),
    order(HOSTILE, 2, label=HOSTILE, status="SUBORDER_DONE", waits_for_download=True),
)

def is_over():
    return Path(FINISH).exists()

def drive():
    pause = threading.Event()
    done = 0
    while not is_over():
        done += 1
        tracker.tell(order("first", 1, suborders_done=done, suborders_total=1000, message=HOSTILE))
        pause.wait(0.02)
    tracker.tell(order("first", 1, status="DONE", suborders_done=1000, suborders_total=1000))

def drive_once():
    tracker.tell(order("first", 1, suborders_done=77, suborders_total=1000, message=HOSTILE))

def wait():
    threading.Thread(target=drive, daemon=True).start()
    with stopped_by_user(), watching(tracker) as watch:
        while not is_over():
            watch.refresh(note="waiting for 2 orders")
            tracker.wait(timeout_s=0.3)
        while not tracker.snapshot().orders[0].finished:
            tracker.wait(timeout_s=0.3)
    return tracker.asked

async def wait_async():
    threading.Thread(target=drive, daemon=True).start()
    with watching(tracker, blocking=False) as watch:
        while not is_over():
            watch.refresh(note="waiting for 2 orders")
            await asyncio.sleep(0.1)
    return tracker.asked
"""

#: The number of parts that the table shows for the first order.
PARTS_DONE = (
    "() => parseInt([...document.querySelectorAll('.regards-nb .rg-parts')]"
    ".map(e => e.textContent).find(t => t.endsWith('/1000')) ?? '-1')"
)
