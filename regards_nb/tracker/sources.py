"""Where a tracker learns what happens: a broker, the REST side, or both."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING

from regards_nb.consumer import Consumer, describe, parameters_from
from regards_nb.consumer.publishing import publish_request
from regards_nb.errors import SettingsError
from regards_nb.tracker.asking import Asking
from regards_nb.tracker.catchup import CatchUp, Poller
from regards_nb.tracker.steering import Steering
from regards_nb.tracker.submission import Submission

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters, Health
    from regards_nb.tracker.works import Works


def check_sources(
    amqp: str | AmqpParameters | None, queue: str | None, client: RegardsClient | None
) -> None:
    """Refuse a tracker that could learn nothing.

    Raises
    ------
    SettingsError
        Neither broker nor client, or a broker without a queue.
    """
    if amqp is None and client is None:
        raise SettingsError(
            "a tracker needs a broker (amqp=... and queue=...), a client=RegardsClient(...), or "
            "both. Without an account for RabbitMQ, the client alone is enough"
        )
    if (amqp is None) != (not queue):
        missing = "amqp=..., its broker" if amqp is None else "queue=..."
        raise SettingsError(
            f"{missing} is missing: queue must be the name of the queue your administrator made"
        )


def _publish(parameters: AmqpParameters, body: bytes, tenant: str, correlation_id: str) -> None:
    publish_request(parameters, body, tenant=tenant, correlation_id=correlation_id)


class Sources:
    """The threads that bring news, and what they share with who orders and steers.

    Parameters
    ----------
    works : Works
    amqp, queue, client, tenant, silence_s, poll_s
        As `OrderTracker` takes them.
    """

    def __init__(
        self,
        works: Works,
        amqp: str | AmqpParameters | None,
        queue: str | None,
        client: RegardsClient | None,
        tenant: str | None,
        *,
        silence_s: float,
        poll_s: float,
    ) -> None:
        self._works = works
        self._silence_s = silence_s
        self.queue = queue
        self.parameters: AmqpParameters | None = None
        self.asking = None if client is None else Asking(works, client, tenant)
        self.steering = Steering(works, self.asking)
        self._catch_up: CatchUp | None = None
        self.consumer: Consumer | Poller
        publish: Callable[[bytes, str, str], None] | None = None
        if amqp is not None and queue:
            parameters = self.parameters = parameters_from(amqp)
            self.where = describe(parameters)
            self.consumer = Consumer(parameters, queue, works.journal, works.bell.ring)
            publish = partial(_publish, parameters)
        else:
            assert self.asking is not None  # noqa: S101 - check_sources() saw to it
            self.where = self.asking.client.base_url
            self.consumer = Poller(self.asking, works.problems, works.bell.ring, poll_s=poll_s)
        self.submission = Submission(works, self.asking, publish, tenant)

    @property
    def health(self) -> Health:
        """What is being done to learn what happens."""
        return self.consumer.health

    def start(self, timeout_s: float) -> None:
        """Connect, and begin to catch up."""
        self.consumer.start(timeout_s)
        if self._catch_up is None and self.asking is not None and not self._is_polling:
            consumer = weakref.ref(self.consumer)
            self._catch_up = CatchUp(
                self.asking,
                self._works.problems,
                lambda: None if (alive := consumer()) is None else alive.health,
                silence_s=self._silence_s,
            )

    @property
    def _is_polling(self) -> bool:
        return isinstance(self.consumer, Poller)

    def stop(self, timeout_s: float) -> None:
        """End the threads."""
        catch_up, self._catch_up = self._catch_up, None
        if catch_up is not None:
            catch_up.stop(timeout_s)
        self.steering.stop(timeout_s)
        self.consumer.stop(timeout_s)
