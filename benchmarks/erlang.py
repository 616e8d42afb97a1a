"""Erlang expressions on a running RabbitMQ node.

``rabbitmqctl eval`` does the same, and takes 0.6 s of processor to start its own virtual machine,
half a minute on a very busy computer.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from regards_nb.simulator import find_installation

if TYPE_CHECKING:
    from regards_nb.simulator import PrivateBroker

LIMIT_S = 180


def evaluate(node: PrivateBroker, expressions: str) -> str:
    """Evaluate expressions on a node, and return the value of the last as text."""
    # each package of Erlang has it beside epmd
    program = find_installation().epmd.resolve().with_name("erl_call")
    done = subprocess.run(
        [str(program), "-sname", node.name, "-c", node.cookie, "-e"],
        env={"ERL_EPMD_PORT": str(node.ports.epmd)},
        input=f"{expressions}.\n",
        capture_output=True,
        check=True,
        text=True,
        timeout=LIMIT_S,
    )
    value = re.fullmatch(r"(?s)\{ok, (.*)\}", done.stdout)
    if value is None:
        raise RuntimeError(f"{expressions}: {done.stdout}{done.stderr}")
    return value[1]
