#!/bin/bash
# Where does a deflate stream end? zlib of CPython 3.11.7 and isal_zlib of isal 1.9.1, which has
# the same interface, answer differently when the call before the last had reached max_length.
# zlib gives the bytes behind the stream twice: as unused_data, and again as unconsumed_tail, although
# eof is True. isal gives them once, but unused_data can be longer than the input of the last call: it
# begins with bytes that an earlier call had taken.
# It matters to readers of zips that come as a stream: they find the next record at "length of the
# input less what was not used". Added up for zlib, or cut at the start of the last block for isal, the
# position is wrong, but only for entries that fill their output limit just before their end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check isal==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import zlib

from isal import isal_zlib

BEHIND = b"BEHIND THE STREAM"
packer = zlib.compressobj(9, zlib.DEFLATED, -15)
stream = packer.compress(bytes(1000)) + packer.flush() + BEHIND

found = {}
for name, library in ("zlib", zlib), ("isal", isal_zlib):
    inflater = library.decompressobj(-15)
    n_bytes = len(inflater.decompress(stream, 600))
    last_input = inflater.unconsumed_tail
    n_bytes += len(inflater.decompress(last_input, 600))
    assert inflater.eof and n_bytes == 1000
    found[name] = len(last_input), inflater.unused_data, inflater.unconsumed_tail
    print(
        f"{name}: last input {len(last_input)} bytes; unused_data {inflater.unused_data!r}, "
        f"unconsumed_tail {inflater.unconsumed_tail!r}"
    )

print("Python", sys.version.split()[0])
repeats = found["zlib"][1:] == (BEHIND, BEHIND)
goes_back = found["isal"][1:] == (BEHIND, b"") and found["isal"][0] < len(BEHIND)
sys.exit(0 if repeats and goes_back else 1)
PYTHON
