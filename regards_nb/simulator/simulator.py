"""The class `Simulator`: the REST side and the AMQP side of one small REGARDS."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar

from regards_nb.simulator.amqp import OrderRequests, Publisher, properties
from regards_nb.simulator.broker import PrivateBroker, broker_from_environment
from regards_nb.simulator.downloads import Downloads
from regards_nb.simulator.faults import Faults
from regards_nb.simulator.login import Login, LoginForm
from regards_nb.simulator.rest import Rest
from regards_nb.simulator.server import Server
from regards_nb.simulator.service import Service

if TYPE_CHECKING:
    from regards_nb.simulator.broker import Access, Broker
    from regards_nb.simulator.plans import OrderPlan
    from regards_nb.simulator.server import Seen
    from regards_nb.simulator.service import Message, RequestResult

_Part = TypeVar("_Part")


class Simulator:
    """A small REGARDS order service on 127.0.0.1: real HTTP, and AMQP over a real RabbitMQ.

    ``with Simulator() as sim`` or ``start``/``stop``. Equal seeds give equal ids, files and
    messages for equal orders. Passwords, tokens, ports and times differ, and so does the order
    in which messages of several orders are mixed.

    Parameters
    ----------
    seed : int
        Seed of files and identifiers.
    amqp : str, optional
        ``"auto"``: the broker of ``REGARDS_NB_AMQP_URL``, or else a private one. None: no AMQP;
        messages go to ``transcript`` only.
    broker : Broker, optional
        A started broker that other simulators may use, too.
    tenant, user : str
        The project and its only user.
    suborder_pause_s : float
        Duration of the staging of a sub-order.
    expires_in_s : float
        Lifetime of a token.
    project_host : str, optional
        The host in links, if it differs from this server's.
    suborders_counted : bool
        False: messages have no ``totalSubOrders`` and ``subOrderId``, as before REGARDS 1.14.
    zip_level : int
        Deflate level; REGARDS uses the default.
    amqp_requests : bool
        Whether order requests are read from the broker, too. The user of ``amqp_url`` may not
        publish them unless the test gives him the right.
    login_form : LoginForm
        The bodies that the token endpoint accepts: JSON since REGARDS 2.0, a web form before.
    api_key : str, optional
        A portal in front refuses every request without this ``X-API-Key``.
    parallel_zips : bool
        False: a second zip of an order is refused while one is sent, as since REGARDS 2.1.

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
        login_form: LoginForm = LoginForm.ANY,
        api_key: str | None = None,
        parallel_zips: bool = True,
    ) -> None:
        self.seed, self.tenant, self.username = seed, tenant, user
        self.faults = Faults()
        #: Every message so far, in the order in which they were published.
        self.transcript: list[Message] = []
        self._broker, self._wants_amqp = broker, broker is not None or amqp is not None
        self._project_host = project_host
        self._amqp_requests = amqp_requests
        self._server: Server | None = None
        self._publisher: Publisher | None = None
        self._access: Access | None = None
        self._cleanup = ExitStack()
        #: The orders, for tests that need the state on the server.
        self.service = Service(
            seed=seed,
            tenant=tenant,
            faults=self.faults,
            publish=self._publish,
            host=lambda: self.project_host,
            suborder_pause_s=suborder_pause_s,
            counted=suborders_counted,
        )
        self._login = Login(
            tenant=tenant,
            username=user,
            api_key=api_key,
            form=login_form,
            expires_in_s=expires_in_s,
            faults=self.faults,
        )
        self.client_id = self._login.client_id
        self._rest = Rest(
            service=self.service,
            login=self._login,
            downloads=Downloads(
                service=self.service, zip_level=zip_level, parallel_zips=parallel_zips
            ),
        )

    def __repr__(self) -> str:
        where = self.base_url if self._server else "not started"
        return f"<Simulator of tenant {self.tenant!r}, {where}>"

    # -- start and stop

    def start(self) -> Self:
        """Start both sides and return when they answer.

        Raises
        ------
        BrokerMissingError
            If RabbitMQ is not installed.
        BrokerStartError
            If RabbitMQ is installed but does not start.
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
        """End both sides. A second call does nothing."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_amqp(self) -> None:
        if not self._wants_amqp:
            return
        if self._broker is None:
            self._broker = broker_from_environment(user=self.username.partition("@")[0])
            if isinstance(self._broker, PrivateBroker):
                self._cleanup.callback(self._broker.stop)
                self._broker.start()
        self._access = self._broker.access()
        requests = OrderRequests(self.service, tenant=self.tenant, user=self.username)
        self._publisher = Publisher(
            self._broker.admin_url,
            self._access.queue,
            requests=requests if self._amqp_requests else None,
        )
        self._cleanup.callback(self._publisher.delete_queue)
        self._cleanup.callback(self._publisher.stop)
        self._publisher.start()

    def _start_http(self) -> None:
        self._server = Server(self._rest.respond)
        self._cleanup.callback(self._server.stop)
        self._server.start()
        self._cleanup.callback(self.service.stop)
        self.service.start()

    # -- addresses and credentials

    @property
    def broker(self) -> Broker:
        """The broker that the simulator publishes to."""
        # mypy takes the union as `object`
        return _started(self._broker, "broker")  # type: ignore[return-value]

    @property
    def amqp_url(self) -> str:
        """AMQP URL of a user who may read ``queue`` and nothing else."""
        return _started(self._access, "AMQP").url

    @property
    def admin_amqp_url(self) -> str:
        """AMQP URL of the administrator."""
        return self.broker.admin_url

    @property
    def queue(self) -> str:
        """The queue that the administrator declared for the tracker."""
        return _started(self._access, "AMQP").queue

    @property
    def base_url(self) -> str:
        """URL of the REST side."""
        return _started(self._server, "HTTP").base_url

    @property
    def project_host(self) -> str:
        """The host in links."""
        return self._project_host or self.base_url

    @property
    def password(self) -> str:
        """Password of the user."""
        return self._login.password

    @property
    def client_secret(self) -> str:
        """Secret of the client application."""
        return self._login.client_secret

    @property
    def foreign_token(self) -> str:
        """A token of a single sign-on; the server accepts it only together with ``scope``."""
        return self._login.foreign_token

    def download_link(self, order_id: int) -> str:
        """Return the download link that messages contain."""
        return self.service.download_link(order_id)

    # -- orders

    def order(
        self,
        plan: OrderPlan,
        *,
        correlation_id: str | None = None,
        over_amqp: bool = True,
        owner: str | None = None,
    ) -> int:
        """Start an order and return its id.

        Parameters
        ----------
        plan : OrderPlan
            The files of the order and its outcome.
        correlation_id : str, optional
            The client's id of the request; default: one made by the server.
        over_amqp : bool
            Whether GRANTED is published; REGARDS does not publish it for orders over REST.
        owner : str, optional
            Owner of the order; default: the user who can log in.

        Raises
        ------
        ValueError
            If the outcome is a refusal, which makes no order; see :meth:`apply`.
        """
        result = self.apply(plan, correlation_id=correlation_id, over_amqp=over_amqp, owner=owner)
        if result.order_id is None:
            raise ValueError(f"{plan.outcome} makes no order; use apply()")
        return result.order_id

    def apply(
        self,
        plan: OrderPlan,
        *,
        correlation_id: str | None = None,
        over_amqp: bool = True,
        owner: str | None = None,
    ) -> RequestResult:
        """Request an order like :meth:`order`, and return the result, which can be a refusal."""
        return self.service.request(
            plan, owner=owner or self.username, correlation_id=correlation_id, over_amqp=over_amqp
        )

    def order_by_query(
        self, *queries: str, correlation_id: str | None = None, over_amqp: bool = True
    ) -> RequestResult:
        """Order from the catalogue, as in ``sim.order_by_query("dataset:TAPE_ARCHIVE")``."""
        return self.service.request_by_query(
            queries, owner=self.username, correlation_id=correlation_id, over_amqp=over_amqp
        )

    def fill_basket(self, query: str, *, owner: str | None = None) -> None:
        """Put the products of a query into the web basket of a user."""
        with self.service.changing():
            self.service.baskets.setdefault(owner or self.username, []).append(query)

    def expire(self, order_id: int) -> None:
        """Expire an order now; its files are deleted."""
        self.service.expire(order_id)

    def expire_tokens(self) -> None:
        """Invalidate every token issued so far."""
        self._login.forget_all()

    # -- observing

    @property
    def requests(self) -> list[Seen]:
        """Every answered request so far, as (method, path, status)."""
        return list(_started(self._server, "HTTP").seen)

    def wait_for(self, order_id: int, *statuses: str, timeout_s: float = 30) -> str:
        """Wait until the status of an order is one of *statuses* and return it.

        Raises
        ------
        TimeoutError
            If it is none of them after *timeout_s*.
        """
        order = self.service.orders[order_id]
        if not self.service.wait_until(lambda: order.status in statuses, timeout_s=timeout_s):
            raise TimeoutError(f"order {order_id} is {order.status}, not {' or '.join(statuses)}")
        return order.status.value

    def wait_available(self, order_id: int, *, files: int = 1, timeout_s: float = 30) -> None:
        """Wait until at least *files* files of an order are available.

        Raises
        ------
        TimeoutError
            If there are fewer after *timeout_s*.
        """
        order = self.service.orders[order_id]
        if not self.service.wait_until(
            lambda: len(order.available()) >= files, timeout_s=timeout_s
        ):
            raise TimeoutError(f"order {order_id} has {len(order.available())} files available")

    # -- AMQP

    def publish_raw(self, body: bytes, *, tenant: str | None = None, **properties_: Any) -> None:
        """Publish any body, with the properties of a response except for those given.

        Parameters
        ----------
        body : bytes
            The body, valid or not.
        tenant : str, optional
            The project in the header; default: the simulator's.
        **properties_
            AMQP properties; ``headers`` replaces all headers, None leaves a property out.
        """
        usual = properties(tenant=tenant or self.tenant)
        _started(self._publisher, "AMQP").publish(body, usual | properties_)

    def flush(self, *, timeout_s: float = 30) -> None:
        """Wait until RabbitMQ has confirmed every message.

        Raises
        ------
        TimeoutError
            If it has not after *timeout_s*.
        """
        if not _started(self._publisher, "AMQP").flush(timeout_s=timeout_s):
            raise TimeoutError("RabbitMQ has not confirmed all messages")

    def drop_connections(self) -> None:
        """Close every open HTTP connection."""
        _started(self._server, "HTTP").drop_connections()

    def _publish(self, message: Message) -> None:
        self.transcript.append(message)
        if self._publisher is not None:
            self.publish_raw(
                message.body, correlation_id=message.correlation_id, timestamp=message.timestamp_s
            )


def _started(part: _Part | None, name: str) -> _Part:
    """Return a part of the simulator; raise RuntimeError if it was not started."""
    if part is None:
        raise RuntimeError(f"this simulator has no {name}: it was not started, or without {name}")
    return part
