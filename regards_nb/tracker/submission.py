"""Submit a request once: check it, journal it, send it, find its order.

Kernels of one journal submit one after the other, so that each sees the requests and the orders of
the one before. REGARDS has no look-up by correlation id (protocol.md 0.8). So the journal holds the
request and the newest order number before it. After a lost answer, the one newer order that the
journal does not know is the order of the request.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import uuid
import warnings
from collections import Counter, defaultdict
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from regards_nb import queries
from regards_nb.arguments import check_choice, check_numbers, check_texts, in_order
from regards_nb.client import ApplyResponse, RemoteOrder
from regards_nb.consumer import UnconfirmedRequestError, publish_request
from regards_nb.errors import (
    BrokerError,
    JournalError,
    ServiceError,
    ServiceLoginError,
    ServiceUnreachableError,
    SettingsError,
    StoppedWaiting,
    WaitTimeoutError,
)
from regards_nb.events import DATA_TYPES, order_filters
from regards_nb.text import clean, counted
from regards_nb.tracker import estimate as estimates
from regards_nb.tracker.life import refuse_imported_script
from regards_nb.tracker.rest_sync import answer_delivery, journal_answers
from regards_nb.tracker.shared import CLIENT_MISSING, LOOK_S, held
from regards_nb.waits import time_left_s, told, words_first

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from regards_nb.client import RegardsClient
    from regards_nb.consumer import AmqpParameters
    from regards_nb.journal import Holder
    from regards_nb.orders import OrderKey
    from regards_nb.tracker.life import Life
    from regards_nb.tracker.rest_sync import RestSync
    from regards_nb.tracker.shared import Shared

_log = logging.getLogger(__name__)

#: The gateway's answer when a service takes longer than it waits.
_GATEWAY_TIMEOUT = 504

MAX_CORRELATION_ID_CHARS = 255
MAX_USER_CHARS = 128

_CART_UNSEEN = (
    "REGARDS also orders what lies in your cart on its web page, and this tracker cannot look into "
    "it over AMQP. Give it client=RegardsClient(...), which refuses such an order, or accept that "
    'with cart="include"'
)

#: Java's syntax, which REGARDS compiles, where it differs from Python's.
_JAVA_GROUP, _JAVA_CLASS = re.compile(r"\(\?<(?=[A-Za-z])"), re.compile(r"\\[pP]\{\w+\}")


class Details(TypedDict, total=False):
    """The keywords of `OrderTracker.submit` that describe a request."""

    data_types: str | Sequence[str] | None
    filename_regexp: str | None
    correlation_id: str | None
    label: str | None
    user: str | None
    size_limit_bytes: int | None
    cart: Literal["refuse", "include"]
    estimate: bool


class EarlierRequest(NamedTuple):
    """A request as the journal has it."""

    correlation_id: str
    saved: dict[str, Any]
    sent_at_us: int = 0

    @property
    def was_sent(self) -> bool:
        """False if it is sure that REGARDS has not received it, or has refused it."""
        return bool(self.saved.get("sent", True))


class Request(NamedTuple):
    """The content of an order and its name.

    A request over AMQP needs the REGARDS account *user*; REGARDS checks *size_limit_bytes* there
    only. *restarts* is the number of the order that is made again, without queries.
    """

    queries: Sequence[str]
    correlation_id: str
    data_types: Sequence[str] | None = None
    filename_regexp: str | None = None
    label: str | None = None
    user: str | None = None
    size_limit_bytes: int | None = None
    restarts: int | None = None

    @classmethod
    def new(
        cls,
        queries: Sequence[str],
        *,
        data_types: str | Sequence[str] | None,
        correlation_id: str | None = None,
        **more: Any,
    ) -> Request:
        """Return a request with a name that is made up, if none is given."""
        if isinstance(data_types, str):
            data_types = [data_types]
        elif data_types is not None:
            data_types = list(in_order(data_types))
        return cls(
            queries=queries,
            data_types=data_types,
            correlation_id=new_name() if correlation_id is None else correlation_id,
            **more,
        )

    def check(self) -> None:
        """Refuse what REGARDS would deny; the text names all that is wrong."""
        names = ("correlation_id", "label", "user", "filename_regexp")
        check_texts(**{name: getattr(self, name) for name in names})
        check_numbers(size_limit_bytes=self.size_limit_bytes)
        wrong = [*self._wrong_queries(), *self._wrong_filters(), *self._wrong_names()]
        if wrong:
            raise SettingsError("REGARDS would deny this request: " + "; ".join(wrong))

    def _wrong_queries(self) -> list[str]:
        if not self.queries:
            return ["there is no query: the list of queries must not be empty"]
        given: Sequence[object] = self.queries
        if not all(isinstance(query, str) and query.strip() for query in given):
            return ["a query must be a text that is not empty"]
        for query in self.queries:
            queries.check(query)
        repeated = [query for query, count in Counter(self.queries).items() if count > 1]
        return [f"the query {query!r:.100} is there twice" for query in repeated[:3]]

    def _wrong_filters(self) -> list[str]:
        wrong = []
        if self.data_types is not None:
            unknown = [each for each in self.data_types if each not in DATA_TYPES]
            if unknown or not self.data_types:
                wrong.append(f"data_types must be of {DATA_TYPES}, not {list(self.data_types)!r}")
        if self.filename_regexp is not None:
            # what Python cannot compile of Java's, replaced
            regexp = _JAVA_CLASS.sub("x", _JAVA_GROUP.sub("(?P<", self.filename_regexp))
            try:
                re.compile(regexp)
            except re.error as exc:
                wrong.append(f"filename_regexp is no regular expression: {exc}")
        return wrong

    def _wrong_names(self) -> list[str]:
        name, wrong = self.correlation_id, []
        if not name.strip() or len(name) > MAX_CORRELATION_ID_CHARS or not name.isprintable():
            wrong.append(
                f"correlation_id must have 1 to {MAX_CORRELATION_ID_CHARS} printable characters, "
                f"not {len(name)}"
            )
        if name.startswith("#"):
            wrong.append("correlation_id must not begin with '#', which stands before numbers")
        limit_bytes = self.size_limit_bytes
        if limit_bytes is not None and limit_bytes <= 0:
            wrong.append(f"size_limit_bytes must be more than 0, not {limit_bytes!r}")
        if self.user is not None and not 0 < len(self.user) <= MAX_USER_CHARS:
            wrong.append(f"user must have 1 to {MAX_USER_CHARS} characters")
        return wrong

    def body(self) -> dict[str, Any]:
        """Return the request as REGARDS takes it over AMQP (protocol.md 1.6)."""
        fields = {
            "queries": list(self.queries),
            "filters": order_filters(self.data_types, self.filename_regexp),
            "correlationId": self.correlation_id,
            "user": self.user,
            "sizeLimitInBytes": self.size_limit_bytes,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def named(self) -> str:
        """What an error calls the request."""
        if self.restarts is not None:
            return f"the restart of order {self.restarts}"
        return f"request {self.correlation_id!r}"

    @property
    def wanted_for(self) -> str:
        """What an error calls the order that is wanted."""
        return repr(self.label or self.correlation_id) if self.restarts is None else self.named

    @property
    def call(self) -> str:
        """The call that asks REGARDS for the order of a request that was sent."""
        if self.restarts is not None:
            return f"restart({self.restarts})"
        return f"submit(..., correlation_id={self.correlation_id!r})"

    def saved(self, **more: Any) -> str:
        """Return the JSON that the journal keeps."""
        return json.dumps(self._asdict() | more)

    def orders_the_same_as(self, saved: dict[str, Any]) -> bool:
        """Return whether an earlier request under this name asked for the same files."""
        mine = json.loads(self.saved())
        return all(
            mine[name] == saved.get(name) for name in ("queries", "data_types", "filename_regexp")
        )


def new_name() -> str:
    """Return a correlation id that no other request has."""
    return f"nb-{uuid.uuid4()}"


def refuses_cart(cart: str) -> bool:
    """Return whether *cart* (``refuse`` or ``include``) refuses an order with a filled cart."""
    check_choice("cart", cart, "refuse", "include")
    return cart == "refuse"


def _refuse_cart(client: RegardsClient) -> None:
    """Raise if products lie in the web cart of the user (protocol.md 1.2)."""
    try:
        cart = client.cart()
    except ServiceError as exc:
        # REGARDS before 2.0 may refuse the request. A server that does not answer stops the order.
        if isinstance(exc, ServiceUnreachableError | ServiceLoginError):
            raise
        _log.warning("the cart on the web page could not be read: %s", exc)
        return
    if not cart.empty:
        names = ", ".join(clean(str(name)) for name in cart["dataset"])
        products = counted(int(cart["products"].sum()), "product")
        raise SettingsError(
            f"your cart on the web page of REGARDS holds {products} of "
            f"{names}, and REGARDS would order them, too. Nothing was ordered: empty the cart "
            'there, or add cart="include" to this call'
        )


class Submission:
    """Sends requests, each at most once: over REST where there is *sync*.

    *broker* takes them where there is no *sync*. *life* tells whether messages arrive: over AMQP
    the answer is one.
    """

    #: The gateway gives up after 60 s (protocol.md 1.1). A request that has made no order by then
    #: makes none later.
    _in_doubt_s = 60.0
    #: Time limit for the answer of REGARDS over AMQP.
    _answer_s = 60.0

    def __init__(
        self,
        shared: Shared,
        sync: RestSync | None,
        broker: AmqpParameters | None,
        tenant: str | None,
        life: Life,
    ) -> None:
        self._shared = shared
        self._sync = sync
        self._broker = broker
        self._tenant = tenant
        #: One kernel submits at a time.
        self._lease = f"submit {tenant or ''}"
        self._life = life
        #: What REGARDS has answered to requests, by their names, until the journal has it.
        self._answers: dict[str, ApplyResponse | RemoteOrder] = {}
        #: The names of the requests that were sent here, where the journal cannot be read.
        self._sent: set[str] = set()

    def submit(
        self,
        request: Request,
        *,
        refuse_cart: bool,
        estimate: Callable[[str], object] | None,
        rename: Callable[[Request], Request] | None = None,
    ) -> OrderKey:
        """Send the request, unless it was sent under this name already; return its key.

        *refuse_cart*: send nothing if products lie in the web cart of the user, because REGARDS
        makes the order of these products, too. *estimate* gets a text on what will be ordered,
        which only REST can tell; an order of nothing is refused. None: it is not asked. *rename* is
        called once no other kernel submits, and returns the request under its final name. With it,
        a kernel that submits is not waited for: HeldElsewhereError is raised.
        ServiceError and BrokerError say whether there is no order, or whether that is open.
        """
        request.check()
        refuse_imported_script()
        if self._sync is None and self._broker is None:
            raise SettingsError(f"submit() {CLIENT_MISSING}")
        waiting = self._wait_for if rename is None else None
        with (
            # not fate_told(): the request may get another name in the block
            words_first(JournalError, lambda: self._fate(request)),
            held(self._shared.journal, self._lease, waiting),
        ):
            if rename is not None:
                request = rename(request)
            self._submit_alone(request, refuse_cart=refuse_cart, estimate=estimate)
        self._shared.signal.send()
        self._answers.pop(request.correlation_id, None)  # a message may have named the order
        found = self._shared.frames.key_of(request.correlation_id)
        assert found is not None  # noqa: S101 - its answer was journalled
        return found

    def restart(self, order_id: int, *, label: str | None = None) -> int:
        """Have REGARDS order the same again, over REST; return the number of the new order.

        As in `submit`, a request without an answer, or whose order the journal lacks, is not sent
        again before REGARDS was asked for its order.
        """
        assert self._sync is not None  # noqa: S101 - each action needs it
        client = self._sync.client
        request = Request((), f"#{order_id} restart", label=label, restarts=order_id)
        name = request.correlation_id
        try:
            with self.fate_told(request), held(self._shared.journal, self._lease, self._wait_for):
                self._order_over_rest(client, request, self._earlier(request))
                answer = self._answers.pop(name)
                assert isinstance(answer, RemoteOrder)  # noqa: S101 - see _journal_answer
                return answer.order_id
        except KeyboardInterrupt as exc:
            raise StoppedWaiting(in_work=self.was_sent(name)) from exc

    def fate_told(self, request: Request) -> AbstractContextManager[None]:
        """Say in a JournalError of the block what became of a request, which may not be sent."""
        return words_first(JournalError, lambda: self._fate(request))

    def stopped(self, request: Request) -> str:
        """Return what the user is told who stops the call of a request."""
        return f"submit() was stopped: {self._fate(request)}"

    def _fate(self, request: Request) -> str:
        """Return whether there may be an order of a request that was not answered."""
        name, wanted_for = request.correlation_id, request.wanted_for
        if (answer := self._answers.get(name)) is not None and answer.order_id is not None:
            return (
                f"REGARDS has made order {answer.order_id} for {wanted_for}, and the journal lacks "
                f"it. {request.call} writes it there, and orders nothing twice"
            )
        try:
            if (key := self._shared.frames.key_of(name)) is not None:
                return f"{self._shared.state(key).name} was made for {wanted_for}"
            is_open = self.was_sent(name)
        except JournalError:
            is_open = name in self._sent
        if not is_open:
            return _nothing(request)
        return (
            f"it is open whether REGARDS has made an order for {wanted_for}. "
            f"{request.call} asks it, and orders nothing twice"
        )

    def was_sent(self, correlation_id: str) -> bool:
        """Return whether a request under this name was sent: there may be an order then."""
        earlier = self._saved(correlation_id)
        return earlier is not None and earlier.was_sent

    def _wait_for(self, holder: Holder) -> None:
        limit_s = self._shared.journal.leases.duration_s if holder.is_suspended else math.inf
        told(f"waiting for {holder}, which is submitting a request", math.inf, limit_s=limit_s)
        self._shared.signal.wait(self._shared.signal.count, LOOK_S)

    def _submit_alone(
        self, request: Request, *, refuse_cart: bool, estimate: Callable[[str], object] | None
    ) -> None:
        earlier = self._earlier(request)
        if earlier is not None and self._shared.frames.key_of(request.correlation_id) is not None:
            return
        if earlier is None:
            with words_first(ServiceError, _nothing(request)):
                self._look_first(request, refuse_cart=refuse_cart, estimate=estimate)
        if self._sync is not None:
            self._order_over_rest(self._sync.client, request, earlier)
        elif self._broker is not None:
            self._send_over_amqp(self._broker, request, sent_before=earlier is not None)

    def _look_first(
        self, request: Request, *, refuse_cart: bool, estimate: Callable[[str], object] | None
    ) -> None:
        """Check what only REGARDS knows, before a request is sent for the first time."""
        if self._sync is None:
            if request.user is None or self._tenant is None:
                raise SettingsError(
                    "ordering over AMQP needs user=... (your REGARDS account) and the tracker's "
                    "tenant=...; or give the tracker a client=RegardsClient(...) to order over REST"
                )
            if refuse_cart:
                warnings.warn(_CART_UNSEEN, stacklevel=6)  # that of the user
            return
        client, limit_bytes = self._sync.client, request.size_limit_bytes
        if refuse_cart:
            _refuse_cart(client)
        estimates.refuse_empty(client, request.queries)
        if estimate is None and limit_bytes is None:
            return
        found = estimates.ask(
            client, request.queries, request.data_types, is_needed=limit_bytes is not None
        )
        if found is None:
            return
        estimates.refuse_nothing(client, found, request.queries)
        if limit_bytes is not None:
            estimates.check_size(found, limit_bytes, has_filter=bool(request.filename_regexp))
        if estimate is not None:
            text = estimates.described(found, request.queries, request.filename_regexp)
            estimate(f"ordering {text}")

    def _saved(self, correlation_id: str) -> EarlierRequest | None:
        """Return the request that the journal has under a name."""
        row = self._shared.journal.request(self._tenant, correlation_id)
        return None if row is None else EarlierRequest(correlation_id, json.loads(row[0]), row[1])

    def _earlier(self, request: Request) -> EarlierRequest | None:
        """Return the earlier request under this name, if one was sent."""
        earlier = self._saved(request.correlation_id)
        if earlier is None or not earlier.was_sent:
            return None
        if not request.orders_the_same_as(earlier.saved):
            raise SettingsError(
                f"correlation_id {request.correlation_id!r} was used for another request already: "
                f"{earlier.saved.get('queries')!r:.200}. Choose another one, or leave it out"
            )
        return earlier

    def labelled(self, is_wanted: Callable[[str], bool]) -> dict[str, list[EarlierRequest]]:
        """Return the earlier requests under some labels, the oldest first."""
        found = defaultdict(list)
        for (tenant, correlation_id), label in self._shared.journal.labels_after(0).items():
            if tenant != (self._tenant or None) or not is_wanted(label):
                continue
            if (earlier := self._saved(correlation_id)) is not None:
                found[label].append(earlier)
        return {
            label: sorted(requests, key=lambda each: each.sent_at_us)
            for label, requests in found.items()
        }

    def estimate(self, requests: Sequence[Request]) -> str | None:
        """Return what several orders will contain together; None if it cannot be known."""
        if self._sync is None:
            return None
        queries = estimates.merged([query for each in requests for query in each.queries])
        first = requests[0]
        found = estimates.ask(self._sync.client, queries, first.data_types, is_needed=False)
        if found is None:
            return None
        return estimates.described(found, queries, first.filename_regexp)

    def _save(self, request: Request, *, sent: bool, newest_before: int | None = 0) -> None:
        self._shared.journal.save_request(
            self._tenant,
            request.correlation_id,
            label=request.label if request.restarts is None else None,
            body=request.saved(sent=sent, newest_before=newest_before),
        )
        (self._sent.add if sent else self._sent.discard)(request.correlation_id)

    # -- over REST --

    def _order_over_rest(
        self, client: RegardsClient, request: Request, earlier: EarlierRequest | None
    ) -> None:
        """Send a request, unless there is an order of the *earlier* one under its name."""
        if earlier is not None and self._find(client, request, earlier):
            return
        with words_first(ServiceError, _nothing(request)):
            newest_before = self._newest_order_id(client, request)
        # Another kernel may have sent it while this one was suspended.
        now = self._earlier(request)
        if now is not None and now != earlier and self._find(client, request, now):
            return
        self._save(request, sent=True, newest_before=newest_before)
        answer: ApplyResponse | RemoteOrder
        try:
            if request.restarts is not None:
                answer = client.restart(request.restarts, label=request.label)
            else:
                answer = client.apply(
                    request.queries,
                    data_types=request.data_types,
                    filename_regexp=request.filename_regexp,
                    correlation_id=request.correlation_id,
                )
        except StoppedWaiting as exc:
            if not exc.in_work:  # the login was stopped
                self._save(request, sent=False)
            raise
        except ServiceError as exc:
            if _surely_not_ordered(exc):
                self._save(request, sent=False)
                if request.restarts is None:
                    exc.put_first(_nothing(request))
                raise
            unanswered = EarlierRequest(request.correlation_id, {"newest_before": newest_before})
            if self._find(client, request, unanswered):
                return
            labelled = f" (label {request.label!r})" if request.label else ""
            raise ServiceUnreachableError(
                f"no answer to {request.named}{labelled}, so it is open whether REGARDS has made "
                f"an order ({exc}). {request.call} asks REGARDS first, and orders nothing twice",
                status_code=exc.status_code,
            ) from exc
        self._journal_answer(request, answer)

    def _newest_order_id(self, client: RegardsClient, request: Request) -> int | None:
        """Return the number of the newest order, 0 without any; None if the list is broken.

        Where the list of orders takes longer than the gateway waits, orders can be made all the
        same. Only after a lost answer the list would be needed.
        """
        try:
            newest = next(client.iter_orders(page_size=1), None)
        except ServiceUnreachableError as exc:
            if exc.status_code != _GATEWAY_TIMEOUT and not (
                exc.status_code is None and exc.in_work
            ):
                raise
            warnings.warn(
                f"REGARDS does not list your orders ({exc}). The order is made all the same. If "
                f"its answer is lost, {request.call} says so and orders nothing twice",
                stacklevel=8,
            )
            return None
        return 0 if newest is None else newest.order_id

    def _find(self, client: RegardsClient, request: Request, earlier: EarlierRequest) -> bool:
        """Look for the order of a request that had no answer; return whether it was found.

        ServiceError: it is too early to tell, or several orders could be it.
        """
        if self._shared.frames.key_of(request.correlation_id) is not None:
            return True
        if (answer := self._answers.get(request.correlation_id)) is not None:
            self._journal_answer(request, answer)
            return True
        newest_before = earlier.saved.get("newest_before", 0)
        try:
            newer = takewhile(lambda o: o.order_id > (newest_before or 0), client.iter_orders())
            candidates = [each for each in newer if self._may_be_of(request, earlier, each)]
        except ServiceUnreachableError as exc:
            raise ServiceUnreachableError(
                f"{request.named} is not confirmed, and REGARDS does not list your orders ({exc}), "
                "so it is open whether there is an order. Nothing was ordered now. Look for it on "
                "the web page of REGARDS: if it is there with the number N, use tracker.wait(N) "
                f"and tracker.download(N); if not, {request.call} sends it again as soon as "
                "REGARDS lists your orders",
                status_code=exc.status_code,
            ) from exc
        # Without the newest number before the request, an older order could be taken for its own.
        if len(candidates) > 1 or (candidates and newest_before is None):
            numbers = ", ".join(str(order.order_id) for order in candidates)
            raise ServiceError(
                f"{request.named} is not confirmed, and each of the orders {numbers} could be it. "
                "Compare them in client.orders(), and call sync() to track them. If none is it, "
                f"{request.call} sends it once more after that"
            )
        if candidates:
            self._journal_answer(request, candidates[0])
            return True
        age_s = time.time() - earlier.sent_at_us / 1e6
        if 0 <= age_s < self._in_doubt_s:
            raise ServiceUnreachableError(
                f"{request.named} was sent {age_s:.0f} s ago and is not confirmed; REGARDS may "
                "still be making the order. Call "
                f"{request.call} in {self._in_doubt_s - age_s:.0f} s"
            )
        return False

    def _may_be_of(self, request: Request, earlier: EarlierRequest, newer: RemoteOrder) -> bool:
        """Return whether an order that came after a request may be that of the request."""
        key = self._shared.frames.key_of(newer.order_id)
        if key is None or request.restarts is None:
            return key is None
        # A message may have named the new order: REGARDS makes up a correlation id for it.
        if request.label is not None:
            return newer.label == request.label
        made_s = 0.0 if newer.created_at is None else newer.created_at.timestamp()
        is_near = abs(made_s - earlier.sent_at_us / 1e6) < Submission._in_doubt_s
        return is_near and self._saved(key.correlation_id) is None

    def _journal_answer(self, request: Request, answer: ApplyResponse | RemoteOrder) -> None:
        self._answers[request.correlation_id] = answer
        if isinstance(answer, RemoteOrder) and request.restarts is not None:
            assert self._sync is not None  # noqa: S101 - it has sent the request
            key = self._shared.frames.key_of(answer.order_id)
            self._sync.keep_outcome(None if key is None else self._shared.state(key), answer)
            self._save(request, sent=False)  # the next call makes another order
            return  # and restart() takes the answer
        if isinstance(answer, ApplyResponse):
            fields = {
                "status": answer.status,
                "orderId": answer.order_id,
                "message": answer.message,
                "errorType": answer.error_type,
            }
        else:
            fields = {"status": "GRANTED", "orderId": answer.order_id}
        # REGARDS publishes no GRANTED for an order made over REST (protocol.md 1.6). Its answer
        # says the same and is journalled as a message, without a timestamp: the server's clock
        # decides between events, and the clock of this machine may differ.
        delivery = answer_delivery(
            fields | {"correlationId": request.correlation_id}, tenant=self._tenant
        )
        journal_answers(self._shared.journal, [delivery])
        del self._answers[request.correlation_id]

    # -- over AMQP --

    def _send_over_amqp(
        self, broker: AmqpParameters, request: Request, *, sent_before: bool
    ) -> None:
        self._life.require_running()
        if not sent_before:
            assert self._tenant is not None  # noqa: S101 - see _look_first
            try:
                publish_request(
                    broker,
                    json.dumps(request.body()).encode(),
                    tenant=self._tenant,
                    correlation_id=request.correlation_id,
                    begin=lambda: self._save(request, sent=True),
                )
            except UnconfirmedRequestError:
                raise
            except BrokerError as exc:
                self._save(request, sent=False)
                exc.put_first(_nothing(request))
                raise
        self._wait_for_answer(request.correlation_id)

    def _wait_for_answer(self, correlation_id: str) -> None:
        limit_s = min(self._answer_s, max(time_left_s(), 0.0))
        deadline_s = time.monotonic() + limit_s
        seen = -1
        while self._shared.frames.key_of(correlation_id) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeoutError(
                    f"RabbitMQ took request {correlation_id!r}, but REGARDS has not answered "
                    f"within {limit_s:.3g} s. It does not answer at all where the tenant is "
                    "wrong: check it, and ask the administrator. tracker.wait() with this "
                    "correlation id goes on waiting; submitting it again orders nothing twice"
                )
            text = f"waiting for the answer of REGARDS to request {correlation_id!r}"
            told(text, limit_s - left_s, limit_s=limit_s)
            seen = self._shared.signal.wait(seen, min(left_s, 0.5))


def _nothing(request: Request) -> str:
    return f"nothing was ordered for {request.wanted_for}"


def _surely_not_ordered(error: ServiceError) -> bool:
    """Return whether REGARDS refused the request, or never received it."""
    if isinstance(error, ServiceUnreachableError) and error.status_code is None:
        return not error.in_work
    return error.status_code is not None and 400 <= error.status_code < 500
