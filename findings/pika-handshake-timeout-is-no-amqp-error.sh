#!/bin/bash
# pika 1.4.4, BlockingConnection, a server that accepts TCP and then answers nothing (a stopped
# RabbitMQ process whose port still listens, a proxy without its backend).
# A closed port raises AMQPConnectionError, an AMQPError of pika.exceptions. The silent server
# raises, after stack_timeout, AMQPConnectorStackTimeout of pika.adapters.utils.connection_workflow:
# neither an AMQPError nor an OSError nor a TimeoutError, and no name of pika.exceptions.
# It matters to threads that reconnect in `except pika.exceptions.AMQPError`: they go on while the
# broker is down, and end for good when it is frozen.
set -euo pipefail
folder=$(mktemp -d)
export HOME=$folder
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pika==1.4.4

"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/output"
import logging
import socket

import pika

logging.getLogger("pika").setLevel(logging.CRITICAL)


def connect(port):
    parameters = pika.ConnectionParameters(
        "127.0.0.1", port, socket_timeout=2, stack_timeout=2, connection_attempts=1
    )
    try:
        pika.BlockingConnection(parameters)
    except Exception as error:
        known = [pika.exceptions.AMQPError, OSError, TimeoutError]
        return type(error).__name__, [kind.__name__ for kind in known if isinstance(error, kind)]


with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    print("closed port:", *connect(port))
    silent.listen()
    print("silent server:", *connect(port))
PYTHON

diff "$folder/output" - <<'EXPECTED'
closed port: AMQPConnectionError ['AMQPError']
silent server: AMQPConnectorStackTimeout []
EXPECTED
echo "as described"
