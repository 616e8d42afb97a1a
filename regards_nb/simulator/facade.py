"""The simulator as its user holds it: one object for both sides of a small REGARDS."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from regards_nb.simulator import dto
from regards_nb.simulator.broker import PrivateBroker, broker_from_environment
from regards_nb.simulator.downloads import Downloads
from regards_nb.simulator.faults import Faults
from regards_nb.simulator.login import Account, Login
from regards_nb.simulator.publisher import Publisher, properties
from regards_nb.simulator.requests import RequestReader
from regards_nb.simulator.rest import Rest
from regards_nb.simulator.server import Server
from regards_nb.simulator.service import Service

if TYPE_CHECKING:
    from regards_nb.simulator.broker import Access, Broker
    from regards_nb.simulator.messages import Message
    from regards_nb.simulator.plans import OrderPlan
    from regards_nb.simulator.server import Seen
    from regards_nb.simulator.service import Answer

_Part = TypeVar("_Part")


class Simulator:
    """A small REGARDS order service on 127.0.0.1: real HTTP, and AMQP over a real RabbitMQ.

    ``with Simulator() as sim`` or ``start``/``stop``. Equal seeds give equal numbers, files and
    messages for equal orders; passwords, tokens, ports and times differ, and with them how the
    messages of several orders mix.

    Parameters
    ----------
    seed : int
        What files and identifiers are made from.
    amqp : str, optional
        ``"auto"``: the broker of ``REGARDS_NB_AMQP_URL``, else a private one of its own. None:
        no AMQP; messages only go to ``transcript``.
    broker : Broker, optional
        A started broker to share with others, instead.
    tenant, user : str
        The project, and the one user there is.
    suborder_pause_s : float
        How long the staging of a sub-order takes.
    expires_in_s : float
        How long a token lives.
    project_host : str, optional
        The host in links, where it is not this server: an administrator's choice.
    suborders_counted : bool
        False: messages lack ``totalSubOrders`` and ``subOrderId``, as older servers' do.
    zip_level : int
        Deflate level; REGARDS' is the default.
    amqp_requests : bool
        Whether order requests are read from the broker, too. Who may publish them there is for
        the administrator of the broker to say.

    Examples
    --------
    >>> from regards_nb.simulator import OrderPlan
    >>> with Simulator(amqp=None, suborder_pause_s=0) as sim:
    ...     number = sim.order(OrderPlan(n_files=2))
    ...     sim.wait_for(number, "DONE")
    'DONE'
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        amqp: str | None = "auto",
        broker: Broker | None = None,
        tenant: str = "demo",
        user: str = "john@cnes.fr",
        suborder_pause_s: float = 0.2,
        expires_in_s: float = 7200,
        project_host: str | None = None,
        suborders_counted: bool = True,
        zip_level: int = -1,
        amqp_requests: bool = False,
    ) -> None:
        self._amqp_requests = amqp_requests
        self.seed, self.tenant, self.username = seed, tenant, user
        self.client_id = "regards-nb"
        self.faults = Faults()
        #: Every message so far, in the order of publishing.
        self.transcript: list[Message] = []
        self._broker, self._wants_amqp = broker, broker is not None or amqp is not None
        self._account = Account(tenant=tenant, username=user, client_id=self.client_id)
        self._project_host = project_host
        self._zip_level = zip_level
        self._server: Server | None = None
        self._publisher: Publisher | None = None
        self._access: Access | None = None
        self._stopping = threading.Event()
        self._cleanup = ExitStack()
        #: The orders; for tests that look behind the counter.
        self.service = Service(
            seed=seed,
            faults=self.faults,
            publish=self._publish,
            order_link=self.download_link,
            suborder_pause_s=suborder_pause_s,
            counted=suborders_counted,
        )
        self._login = Login(self._account, expires_in_s=expires_in_s, faults=self.faults)

    def __repr__(self) -> str:
        where = self.base_url if self._server else "not started"
        return f"<Simulator of tenant {self.tenant!r}, {where}>"

    # -- life

    def start(self) -> Self:
        """Start both sides; return when they answer.

        Raises
        ------
        BrokerMissingError
            If RabbitMQ is not installed.
        BrokerStartError
            If it is, but does not start.
        """
        if self._server is not None:
            return self
        try:
            self._start_amqp()
            self._start_http()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything that was started here. Calling it again does nothing."""
        self._stopping.set()
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_amqp(self) -> None:
        if not self._wants_amqp:
            return
        own = self._broker is None
        if self._broker is None:
            self._broker = broker_from_environment(user=self.username.partition("@")[0])
        if own and isinstance(self._broker, PrivateBroker):
            self._cleanup.callback(self._broker.stop)
            self._broker.start()
        self._access = self._broker.access()
        self._publisher = Publisher(self._broker.admin_url, self._access.queue)
        if not (own and isinstance(self._broker, PrivateBroker)):
            self._cleanup.callback(self._publisher.delete_queue)
        self._cleanup.callback(self._publisher.stop)
        self._publisher.start()
        if self._amqp_requests:
            reader = RequestReader(
                self._broker.admin_url, self.service, tenant=self.tenant, user=self.username
            )
            self._cleanup.callback(reader.stop)
            reader.start()

    def _start_http(self) -> None:
        downloads = Downloads(self.service, self.faults, zip_level=self._zip_level)
        rest = Rest(
            service=self.service,
            login=self._login,
            downloads=downloads,
            faults=self.faults,
            project_host=lambda: self.project_host,
        )
        self._server = Server(rest.answer, self._stopping)
        self._cleanup.callback(self._server.stop)
        self._server.start()
        self._cleanup.callback(self.service.stop)
        self.service.start()

    # -- where it is, and who may come in

    @property
    def broker(self) -> Broker:
        """The RabbitMQ it publishes to."""
        return _there(self._broker, "broker")

    @property
    def amqp_url(self) -> str:
        """AMQP URL with which a tracker may read ``queue``, and do nothing else."""
        return _there(self._access, "AMQP").url

    @property
    def admin_amqp_url(self) -> str:
        """AMQP URL of the administrator."""
        return self.broker.admin_url

    @property
    def queue(self) -> str:
        """The queue that the administrator has made for the tracker."""
        return _there(self._access, "AMQP").queue

    @property
    def base_url(self) -> str:
        """Where the REST side is."""
        return _there(self._server, "HTTP").base_url

    @property
    def project_host(self) -> str:
        """The host that links are made with."""
        return self._project_host or self.base_url

    @property
    def password(self) -> str:
        """The user's password."""
        return self._account.password

    @property
    def client_secret(self) -> str:
        """The secret of the application he logs in with."""
        return self._account.client_secret

    def download_link(self, order_id: int) -> str:
        """Return the link that messages carry."""
        return self.project_host + dto.download_path(order_id)

    # -- orders

    def order(
        self,
        plan: OrderPlan,
        *,
        correlation_id: str | None = None,
        over_amqp: bool = True,
        owner: str | None = None,
    ) -> int:
        """Start an order and return its number.

        Parameters
        ----------
        plan : OrderPlan
            What is ordered and how it ends.
        correlation_id : str, optional
            The client's name for it; default: one made by the server.
        over_amqp : bool
            Whether GRANTED is published; it is not for orders that come over REST.
        owner : str, optional
            Whose it is; default: the one user who can log in.

        Raises
        ------
        ValueError
            If the plan's outcome is a refusal: there is no order then, see :meth:`apply`.
        """
        answer = self.apply(plan, correlation_id=correlation_id, over_amqp=over_amqp, owner=owner)
        if answer.order_id is None:
            raise ValueError(f"{plan.outcome} makes no order; use apply()")
        return answer.order_id

    def apply(
        self,
        plan: OrderPlan,
        *,
        correlation_id: str | None = None,
        over_amqp: bool = True,
        owner: str | None = None,
    ) -> Answer:
        """Ask for an order as :meth:`order` does, and return the answer, be it a refusal."""
        return self.service.request(
            plan,
            owner=owner or self.username,
            correlation_id=correlation_id,
            over_amqp=over_amqp,
        )

    def order_by_query(
        self, *queries: str, correlation_id: str | None = None, over_amqp: bool = True
    ) -> Answer:
        """Ask for what the catalogue has, as in ``sim.order_by_query("dataset:TAPE_ARCHIVE")``."""
        return self.service.request_by_query(
            queries, owner=self.username, correlation_id=correlation_id, over_amqp=over_amqp
        )

    def expire(self, order_id: int) -> None:
        """Let the time run out for which the files of an order are kept."""
        self.service.expire(order_id)

    def expire_tokens(self) -> None:
        """Make every token given so far invalid."""
        self._login.forget_all()

    # -- looking on

    @property
    def requests(self) -> list[Seen]:
        """Every request that was answered so far, as (method, path, status)."""
        return list(_there(self._server, "HTTP").seen)

    def wait_for(self, order_id: int, *statuses: str, timeout_s: float = 30) -> str:
        """Wait until the server's status of an order is one of these; return it.

        Raises
        ------
        TimeoutError
            If it does not become one of them in time.
        """
        order = self.service.known(order_id)
        if not self.service.wait_until(lambda: order.status in statuses, timeout_s=timeout_s):
            raise TimeoutError(f"order {order_id} is {order.status}, not {' or '.join(statuses)}")
        return order.status.value

    def wait_available(self, order_id: int, *, files: int = 1, timeout_s: float = 30) -> None:
        """Wait until at least so many files of an order can be downloaded.

        Raises
        ------
        TimeoutError
            If there are fewer in time.
        """
        order = self.service.known(order_id)
        if not self.service.wait_until(
            lambda: len(order.available()) >= files, timeout_s=timeout_s
        ):
            raise TimeoutError(f"order {order_id} has {len(order.available())} files available")

    # -- AMQP

    def publish_raw(self, body: bytes, *, tenant: str | None = None, **properties_: Any) -> None:
        """Publish anything, with the properties of a good message but for those given.

        Parameters
        ----------
        body : bytes
            Whatever.
        tenant : str, optional
            Another project's name.
        **properties_
            AMQP properties; ``headers`` replaces all headers, None leaves a property out.
        """
        usual = properties(
            tenant=tenant or self.tenant,
            correlation_id=None,
            timestamp_s=int(datetime.now(UTC).timestamp()),
        )
        _there(self._publisher, "AMQP").publish(body, usual | properties_)

    def flush(self, *, timeout_s: float = 30) -> None:
        """Wait until RabbitMQ has confirmed every message.

        Raises
        ------
        TimeoutError
            If it has not in time.
        """
        if not _there(self._publisher, "AMQP").flush(timeout_s=timeout_s):
            raise TimeoutError("RabbitMQ has not confirmed all messages")

    def drop_connections(self) -> None:
        """Close every HTTP connection that is open now."""
        _there(self._server, "HTTP").drop_connections()

    def _publish(self, message: Message) -> None:
        self.transcript.append(message)
        if self._publisher is not None:
            usual = properties(
                tenant=self.tenant,
                correlation_id=message.correlation_id,
                timestamp_s=message.timestamp_s,
            )
            self._publisher.publish(message.body, usual)


def _there(part: _Part | None, name: str) -> _Part:
    """Return a part of the simulator, or say that it is not there."""
    if part is None:
        raise RuntimeError(f"this simulator has no {name}: not started, or started without")
    return part
