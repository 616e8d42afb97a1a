#!/bin/bash
# ipywidgets on a page of Panel whose session ends: panel 1.9.4, bokeh 3.9.2, ipywidgets_bokeh 1.8.0,
# ipywidgets 8.1.9. When the visitor has left and the server ends the session, nothing closes the
# widgets: `widget.comm` is still there (elsewhere it becomes None, and updates are then dropped),
# ipywidgets keeps the widget, and each later update raises
#   AttributeError: 'DocumentCallbackManager' object has no attribute '_change_callbacks'
# The document tells that it has ended: `document.session_context` is None from then on.
# It matters to libraries with live widgets that a thread updates: on other hosts `comm is None` is the
# sign of a page that is gone. Here the thread fails for every visitor who has left, and with
# `panel serve --warm` before the first one comes, because the server ends a session of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    panel==1.9.4 bokeh==3.9.2 ipywidgets_bokeh==1.8.0 ipywidgets==8.1.9 ipykernel==7.4.0
cat >"$folder/watching.py" <<'PYTHON'
import os
import time


def update(widget, text):
    try:
        widget.value = text
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return "sent"


def watch(document, widget):
    lines = [f"during the session: {update(widget, '1')}"]
    while document.session_context is not None:
        time.sleep(0.1)
    time.sleep(1)  # the end of the session is complete
    lines.append(f"session_context: {document.session_context}")
    lines.append(f"comm is None: {widget.comm is None}")
    lines.append(f"after the session: {update(widget, '2')}")
    with open(os.environ["FOUND"] + ".part", "w") as file:
        file.write("\n".join(lines) + "\n")
    os.rename(os.environ["FOUND"] + ".part", os.environ["FOUND"])
PYTHON
cat >"$folder/app.py" <<'PYTHON'
import threading

import ipywidgets
import panel as pn
import watching

pn.extension("ipywidgets")
shown = ipywidgets.HTML("0")
pn.pane.IPyWidget(shown).servable()
# from another module: the server empties this one when the session ends
threading.Thread(target=watching.watch, args=(pn.state.curdoc, shown), daemon=True).start()
PYTHON
port=$("$folder/venv/bin/python" -c '
import socket
print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
FOUND="$folder/found" PYTHONPATH="$folder" "$folder/venv/bin/panel" serve "$folder/app.py" --port "$port" \
    --unused-session-lifetime 1000 --check-unused-sessions 200 >"$folder/log" 2>&1 &
FOUND="$folder/found" "$folder/venv/bin/python" - "$port" <<'PYTHON'
import os
import sys
import time

import ipywidgets_bokeh  # with panel: the models of the page
import panel
from bokeh.client import pull_session


def wait(condition, what):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    sys.exit(f"no {what}")


def visited():
    """Visit the page as a browser does, and leave it."""
    try:
        session = pull_session(url=f"http://127.0.0.1:{sys.argv[1]}/app")
    except OSError:
        return False
    session.close()
    return True


wait(visited, "server")
wait(lambda: os.path.exists(os.environ["FOUND"]), "end of the session")
found = open(os.environ["FOUND"]).read()
print(found, end="")
expected = """\
during the session: sent
session_context: None
comm is None: False
after the session: AttributeError: 'DocumentCallbackManager' object has no attribute '_change_callbacks'
"""
sys.exit(None if found == expected else "this has changed")
PYTHON
