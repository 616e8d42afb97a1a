#!/bin/sh
# Make the virtual environment .venv with the package and one of its extras.
# usage: venv.sh PYTHON EXTRA
set -eu
python=$1 extra=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "regards_nb needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1)." >&2
    echo "Say which one to use, for example: make demo PYTHON=python3.12" >&2
    exit 1
}
if [ ! -x .venv/bin/python ]; then
    # Debian keeps what makes a virtual environment in a package of its own
    "$python" -c 'import ensurepip' 2>/dev/null || sh "$(dirname "$0")/need.sh" python3-venv
    "$python" -m venv .venv
fi
echo "Installing regards-nb[$extra] into .venv (a minute or two the first time) ..."
pip="-m pip install --quiet --disable-pip-version-check"
# uv installs in a third of the time, but reads neither the mirrors nor the certificates of pip's configuration
# shellcheck disable=SC2086 # words of a command
{ .venv/bin/python $pip uv && .venv/bin/python -m uv pip install --quiet --python .venv/bin/python -e ".[$extra]"; } ||
    .venv/bin/python $pip -e ".[$extra]"
