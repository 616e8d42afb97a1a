"""Three private RabbitMQ nodes that form a cluster, and what breaks in one."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from erlang import evaluate

from regards_nb.events import VHOST
from regards_nb.simulator import PrivateBroker

if TYPE_CHECKING:
    from collections.abc import Iterator


class Cluster(NamedTuple):
    """Running nodes."""

    nodes: list[PrivateBroker]

    @property
    def urls(self) -> list[str]:
        """The administrator's URL of each node."""
        return [node.admin_url for node in self.nodes]

    def leader(self, queue: str) -> PrivateBroker:
        """Return the node of the leader of a quorum queue."""
        resource = f'rabbit_misc:r(<<"{VHOST}">>, queue, <<"{queue}">>)'
        leader = (
            f"{{ok, Q}} = rabbit_amqqueue:lookup({resource}), rabbit_quorum_queue:info(Q, [leader])"
        )
        found = evaluate(self.nodes[0], leader)
        return next(node for node in self.nodes if f"'{node.name}'" in found)

    def break_links(self, node: PrivateBroker) -> None:
        """Break the connections of a node to the others; the nodes connect again by themselves."""
        others = ", ".join(f"'{each.name}'" for each in self.nodes if each is not node)
        evaluate(node, f"[erlang:disconnect_node(N) || N <- [{others}]]")


@contextlib.contextmanager
def three_nodes() -> Iterator[Cluster]:
    """Start a cluster; stop it at the end."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        first = stack.enter_context(PrivateBroker())
        others = [PrivateBroker(joins=first) for _ in range(2)]
        for node in others:
            stack.callback(node.stop)
        list(pool.map(PrivateBroker.start, others))
        yield Cluster([first, *others])
