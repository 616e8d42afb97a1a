#!/bin/bash
# Binary values of widgets in a notebook that is run without a browser: nbclient 0.11.0 (under
# `jupyter execute`, `nbconvert --execute`, papermill), ipykernel 7.4.0, ipywidgets 8.1.9,
# anywidget 0.11.0. nbclient stores the last state of each widget in the notebook: the values, and
# the bytes beside them, each with the path of its place. A value that is set again replaces the
# bytes at its own paths; no other path is ever removed:
#   a list of three byte strings, then a list of one: the file has one place, and three byte strings
#   a byte string, then None: the file says None, and has the byte string for its place
# Whoever opens the file puts all bytes at their paths, as the format says: the list is three long
# again, the new item and two old ones, and the value that was withdrawn is back. The kernel, asked in
# the last cell (Widget.get_manager_state), tells the right state.
# It matters to widgets that show tables, images or meshes in parts: a published page shows what was
# filtered out as if it belonged to the result, and the notebook looked right in JupyterLab.
set -euo pipefail
folder=$(mktemp -d)
export HOME=$folder
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    nbclient==0.11.0 ipykernel==7.4.0 ipywidgets==8.1.9 anywidget==0.11.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import base64
import json
import sys
from copy import deepcopy

import nbclient
import nbformat

CELLS = [
    """\
import json
import anywidget, traitlets
from ipywidgets import Widget

class Shown(anywidget.AnyWidget):
    _esm = "export default { render({ model, el }) { el.innerText = model.get('parts').length } }"
    parts = traitlets.List().tag(sync=True)
    image = traitlets.Bytes(None, allow_none=True).tag(sync=True)

shown = Shown(parts=[b"one", b"two", b"three"], image=b"picture")
shown""",
    """\
shown.parts = [b"new"]
shown.image = None""",
    """print(json.dumps(Widget.get_manager_state(widgets=[shown])["state"][shown.model_id]))""",
]


def opened(model):
    """Return the binary values of a stored model as an opened file shows them."""
    state = deepcopy(model["state"])
    for buffer in model.get("buffers", []):
        *parents, last = buffer["path"]
        place = state
        for step in parents:
            place = place[step]
        if isinstance(place, list):  # JavaScript makes a list longer where it is written to
            place.extend([None] * (last + 1 - len(place)))
        place[last] = base64.b64decode(buffer["data"])
    return {"parts": state["parts"], "image": state.get("image")}


notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
asked = json.loads(notebook.cells[-1].outputs[0].text)
models = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
(stored,) = (model for model in models.values() if "parts" in model["state"])
found = {"kernel": opened(asked), "file": opened(stored)}
for who, values in found.items():
    print(f"{who}: {values}")
print("paths in the file:", [buffer["path"] for buffer in stored["buffers"]])
assert stored["state"]["parts"] == [None], stored
assert stored["state"]["image"] is None, stored
assert found["kernel"] == {"parts": [b"new"], "image": None}, found
assert found["file"] == {"parts": [b"new", b"two", b"three"], "image": b"picture"}, found
print("as stated: bytes that the widget no longer has are in the stored notebook, at their old paths")
PYTHON
