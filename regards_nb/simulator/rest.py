"""The REST side: which request gets which response (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from regards_nb.simulator.catalogue import attribute_models
from regards_nb.simulator.faults import Reply, Route, Slow, WrongChecksum
from regards_nb.simulator.login import spring_error
from regards_nb.simulator.query import QueryError
from regards_nb.simulator.server import HttpError, Response, error, iso_time, json_response
from regards_nb.simulator.service import ORDERS_PATH, Action, FileState, ServerStatus, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.simulator.catalogue import Product
    from regards_nb.simulator.downloads import Downloads
    from regards_nb.simulator.login import Login
    from regards_nb.simulator.server import Request
    from regards_nb.simulator.service import Order, OrderFile, Service

_DATA_TYPES = {"RAWDATA", "QUICKLOOK"}
_MAX_CORRELATION_ID = 255
#: Spring's limit for one page.
_MAX_PAGE_SIZE = 2000

_FILES = "/api/v1/rs-order/orders"
_BASKET = "/api/v1/rs-order/order/basket"
_CATALOGUE = "/api/v1/rs-catalog"
_LEGACY = f"{_CATALOGUE}/engines/legacy"
_SEARCH = f"(?:{_LEGACY}|/api/v1/rs-access-project)"
_ID = r"(?P<id>\d{1,18})"
_SUB_ID = r"(?P<sub_id>\d{1,18})"
_URN = r"(?P<urn>URN:[\w:.-]+)"
# Spring serves HEAD with the handler of GET (protocol.md 1.0, 4).
_GET = ("GET", "HEAD")

_ACTIONS = {
    Action.PAUSE: ("PUT", f"{ORDERS_PATH}/pause/{{id}}"),
    Action.RESUME: ("PUT", f"{ORDERS_PATH}/resume/{{id}}"),
    Action.DELETE: ("DELETE", f"{ORDERS_PATH}/{{id}}"),
    Action.RESTART: ("POST", f"{ORDERS_PATH}/{{id}}/restart"),
    Action.RETRY: ("PUT", f"{ORDERS_PATH}/{{id}}/retry"),
}

Json = dict[str, Any]
_Item = TypeVar("_Item")


class _Call(NamedTuple):
    """One request to one endpoint, with what its path contains."""

    request: Request
    #: Empty for a request without a token to a public endpoint.
    user: str
    #: The ids in the path: an order and a sub-order or data set, or a file.
    number: int
    sub_number: int
    urn: str
    checksum: str

    @property
    def query(self) -> str:
        return self.request.query.get("q", "")


class _Endpoint(NamedTuple):
    """A path, its methods, and the function that responds."""

    methods: tuple[str, ...]
    path: re.Pattern[str]
    route: Route
    respond: Callable[[Rest, _Call], Response]
    is_public: bool


_ENDPOINTS: list[_Endpoint] = []


def _serves(
    path: str, route: Route, *, methods: tuple[str, ...] = _GET, is_public: bool = False
) -> Callable[[Callable[[Rest, _Call], Response]], Callable[[Rest, _Call], Response]]:
    """Let the decorated function respond to the requests of a path."""

    def register(respond: Callable[[Rest, _Call], Response]) -> Callable[[Rest, _Call], Response]:
        _ENDPOINTS.append(_Endpoint(methods, re.compile(path), route, respond, is_public))
        return respond

    return register


@dataclass(slots=True, kw_only=True, eq=False)
class Rest:
    """Responds to requests."""

    service: Service
    login: Login
    downloads: Downloads
    #: URNs of products on tape that were restored.
    restored: set[str] = field(default_factory=set)

    def respond(self, request: Request) -> Response:
        """Respond to one request."""
        if not self.login.passes_portal(request):
            return error(403, "a valid API key is required")
        for endpoint in _ENDPOINTS:
            found = endpoint.path.fullmatch(request.path)
            if found and request.method in endpoint.methods:
                return self._respond_by(endpoint, request, found.groupdict())
        return spring_error(404, "Not Found", request.path)

    def _respond_by(
        self, endpoint: _Endpoint, request: Request, path: dict[str, str | None]
    ) -> Response:
        number, name = int(path.get("id") or 0), None
        order_id: int | None = number or None
        if endpoint.route is Route.FILE:
            file = self.service.files.get(number)
            order_id, name = (file.order_id, file.spec.name) if file else (None, None)
        faults, route = self.service.faults, endpoint.route
        reply = faults.take(Reply, order_id=order_id, name=name, route=route)
        try:
            if reply is not None:
                response = _given_response(reply)
            else:
                user = (
                    ""
                    if route is Route.TOKEN
                    else self.login.user(request, is_public=endpoint.is_public)
                )
                call = _Call(
                    request,
                    user,
                    number,
                    int(path.get("sub_id") or 0),
                    path.get("urn") or "",
                    path.get("checksum") or "",
                )
                response = endpoint.respond(self, call)
        except HttpError as exc:
            response = exc.response
        except QueryError as exc:
            response = error(400, f"q={exc.query}. Cause: {exc}")
        response.slow = faults.take(Slow, order_id=order_id, name=name, route=route)
        return response

    @_serves("/api/v1/rs-authentication/oauth/token", Route.TOKEN, methods=("POST",))
    def token(self, call: _Call) -> Response:
        """Log in."""
        return self.login.token(call.request)

    # -- orders

    def _order(self, call: _Call, *texts: str) -> Order:
        """Return the order of the path, of any user; without one raise a 404 with these texts."""
        order = self.service.orders.get(call.number)
        if order is None:
            raise HttpError(error(404, *texts))
        return order

    def _own_order(self, call: _Call) -> Order:
        """Return the user's order of the path; errors have no body here."""
        order = self._order(call)
        if order.owner != call.user:
            raise HttpError(error(403))
        return order

    @_serves(f"{ORDERS_PATH}/apply", Route.APPLY, methods=("POST",))
    def apply(self, call: _Call) -> Response:
        """Grant or refuse an order."""
        fields = call.request.json()
        if problems := _validation_errors(fields):
            return error(422, *problems)
        filters = fields.get("filters") or {}
        try:
            re.compile(filters.get("filenameRegExp") or "")
        except re.error as exc:
            return error(400, f"PatternSyntaxException: {exc}")
        result = self.service.request_by_query(
            fields["queries"],
            owner=call.user,
            correlation_id=fields.get("correlationId"),
            data_types=filters.get("dataTypes") or (),
            filename_regexp=filters.get("filenameRegExp"),
        )
        return json_response(422 if result.refusal else 200, _resource(result.fields))

    @_serves(ORDERS_PATH, Route.ORDERS)
    def orders(self, call: _Call) -> Response:
        """List the user's orders."""
        orders = self.service.orders_of(call.user)
        return _page(call, orders, default_size=20, show=self._order_dto)

    @_serves(f"{ORDERS_PATH}/{_ID}", Route.ORDER)
    def order(self, call: _Call) -> Response:
        """Show one order."""
        order = self._own_order(call)
        with self.service.changing():
            return json_response(200, self._order_dto(order))

    def act(self, call: _Call, action: Action) -> Response:
        """Execute an action on an order."""
        order = self._order(call, f"Order {call.number} not found")
        if order.owner != call.user:
            return error(401, "USER_NOT_ALLOWED_TO_MANAGE_ORDER")
        if code := self.service.act(order, action):
            # A refused action is 401, like a missing login (protocol.md 1.0, 9).
            return error(401, code)
        if action is not Action.RESTART:
            return Response(status=200)
        again = self.service.restart(order, call.request.json().get("label"))
        return json_response(201, self._order_dto(again)["content"])

    # -- files

    @_serves(f"{ORDERS_PATH}/{_ID}/download", Route.ZIP)
    def zip(self, call: _Call) -> Response:
        """Send the available files as a zip. REGARDS does not check the owner here."""
        return self.downloads.zip(self._order(call, f"Order {call.number} not found"))

    @_serves(f"{_FILES}/{_ID}(?:/filesTask/{_SUB_ID})?/files/available", Route.AVAILABLE)
    def available(self, call: _Call) -> Response:
        """List the available files of an order or of one of its sub-orders."""
        order = self._own_order(call)
        with self.service.changing():
            files = order.available(call.sub_number or None)
        # Outside of the lock: the checksums of large files take time.
        return _page(call, files, default_size=10, show=self._available_dto)

    @_serves(f"{_FILES}/{_ID}/dataset/{_SUB_ID}/files", Route.DATASET_FILES)
    def dataset_files(self, call: _Call) -> Response:
        """List all files of a data set, in any state."""
        order = self._order(call)
        if order.dataset_id != call.sub_number:
            return error(404)
        return _page(call, list(order.files), default_size=20, show=self._dataset_dto)

    @_serves(f"{_FILES}/files/{_ID}", Route.FILE)
    def file(self, call: _Call) -> Response:
        """Send one file."""
        file = self.service.files.get(call.number)
        if file is None:
            return error(404, f"Unknown data file {call.number}")
        if self.service.orders[file.order_id].owner != call.user:
            return error(403)
        return self.downloads.order_file(file)

    # -- the catalogue

    @_serves(f"{_SEARCH}/dataobjects/search", Route.CATALOGUE, is_public=True)
    def search(self, call: _Call) -> Response:
        """Search products."""
        return _page(
            call,
            self.service.catalogue.search(call.query),
            default_size=20,
            show=lambda each: _resource(each.feature(self.service.host())),
        )

    @_serves(f"{_SEARCH}/datasets/search", Route.CATALOGUE, is_public=True)
    def search_datasets(self, call: _Call) -> Response:
        """List the data sets; the simulator has no queries for them."""
        datasets = list(self.service.catalogue.datasets.values())
        return _page(call, datasets, default_size=20, show=lambda each: _resource(each.feature()))

    @_serves(f"{_LEGACY}/dataobjects/search/attributes", Route.CATALOGUE, is_public=True)
    def attributes(self, call: _Call) -> Response:
        """List the attributes of the products that match a query."""
        models = attribute_models() if self.service.catalogue.search(call.query) else []
        return json_response(200, [_resource(each) for each in models])

    @_serves(
        f"{_CATALOGUE}/complex/search/summary", Route.CATALOGUE, methods=("POST",), is_public=True
    )
    def summary(self, call: _Call) -> Response:
        """Return the numbers of files and bytes of a selection."""
        fields = call.request.json()
        products: dict[str, Product] = {}
        for part in fields.get("requests") or ():
            terms = (part.get("searchParameters") or {}).get("q") or ()
            query = " AND ".join(f"({each})" for each in terms if each)
            products.update((each.urn, each) for each in self.service.catalogue.search(query))
        types = fields.get("dataTypes") or ()
        return json_response(200, self.service.catalogue.summary(products.values(), types))

    @_serves(f"{_CATALOGUE}/downloads/{_URN}/files/(?P<checksum>[0-9a-f]+)", Route.CATALOGUE_FILE)
    def catalogue_file(self, call: _Call) -> Response:
        """Send one file of a product that was not ordered."""
        product = self.service.catalogue.product(call.urn)
        files = product.files if product else ()
        file = next((each for each in files if each.source.md5 == call.checksum), None)
        if product is None or file is None:
            return error(404, f"Unknown file {call.checksum} of {call.urn}")
        if product.dataset.licence and call.request.query.get("acceptLicense") != "true":
            return error(423, f"The licence {product.dataset.licence} is not accepted")
        if not self._is_available(product):
            return error(202, "File not available yet")
        return self.downloads.catalogue_file(file)

    def _is_available(self, product: Product) -> bool:
        return product.online or product.urn in self.restored

    @_serves(f"{_CATALOGUE}/availability/files", Route.CATALOGUE, methods=("POST",))
    def availability(self, call: _Call) -> Response:
        """Tell which files of products can be downloaded now."""
        urns = call.request.json().get("product_ids", ())
        rows = [
            {
                "id": product.urn,
                "files": [
                    {"checksum": file.source.md5, "available": self._is_available(product)}
                    for file in product.files
                ],
            }
            for product in filter(None, map(self.service.catalogue.product, urns))
        ]
        return json_response(200, {"products": rows})

    @_serves(f"{_CATALOGUE}/restore", Route.CATALOGUE, methods=("POST",))
    def restore(self, call: _Call) -> Response:
        """Restore the files of products from tape; here they are available at once."""
        self.restored.update(call.request.json().get("product_ids", ()))
        return Response(status=200)

    @_serves("/api/v1/rs-storage/quota/current", Route.QUOTA)
    def quota(self, call: _Call) -> Response:
        """Return the download quota of the user; -1 is no limit."""
        quota = {"maxQuota": -1, "rateLimit": -1, "currentRate": 0}
        used = self.downloads.served_files
        return json_response(200, {"email": call.user, **quota, "currentQuota": used})

    @_serves(_BASKET, Route.BASKET)
    def basket(self, call: _Call) -> Response:
        """Show the web basket of the user; an empty one is 204."""
        with self.service.changing():
            queries = list(self.service.baskets.get(call.user, ()))
        products = {
            each.urn: each for query in queries for each in self.service.catalogue.search(query)
        }
        if not products:
            return Response(status=204)
        labels = {each.dataset.urn: each.dataset.name for each in products.values()}
        counts = self.service.catalogue.summary(products.values(), ())
        selections = [
            {
                "id": number,
                "datasetIpid": urn,
                "datasetLabel": labels[urn],
                "objectsCount": part["documentsCount"],
                "filesCount": part["filesCount"],
                "filesSize": part["filesSize"],
            }
            for number, (urn, part) in enumerate(counts["subSummariesMap"].items(), 1)
        ]
        content = {"id": 1, "owner": call.user, "datasetSelections": selections}
        return json_response(200, _resource(content))

    # -- JSON, field by field as in REGARDS

    def _order_dto(self, order: Order) -> Json:
        files = list(order.files)
        total_bytes = sum(_size_bytes(file) or 0 for file in files)
        staged = [file for file in files if file.state is not FileState.PENDING]
        staged_bytes = sum(_size_bytes(file) or 0 for file in staged)
        failed = (FileState.ERROR, FileState.DOWNLOAD_ERROR)
        dataset = {
            "id": order.dataset_id,
            "datasetLabel": order.plan.dataset,
            "objectsCount": len({file.spec.product_id or file.spec.name for file in files}),
            "filesCount": len(files),
            "filesSize": total_bytes,
        }
        content = {
            "id": order.order_id,
            "owner": order.owner,
            "label": order.label,
            "creationDate": iso_time(order.created_at),
            "expirationDate": iso_time(order.expires_at),
            "percentCompleted": 100 * staged_bytes // total_bytes if total_bytes else 100,
            "filesInErrorCount": sum(file.state in failed for file in files),
            "availableFilesCount": sum(file.state is FileState.AVAILABLE for file in files),
            "status": order.status.value,
            "statusDate": iso_time(order.status_at),
            "waitingForUser": order.waits_for_user,
            "datasetTasks": [dataset],
        }
        return _resource(content, self._links(order))

    def _links(self, order: Order) -> list[Json]:
        """Return the links of an order: one for each action that is allowed now."""
        paths = {"self": f"{ORDERS_PATH}/{order.order_id}", "list": ORDERS_PATH}
        if order.status is not ServerStatus.DELETED and order.available():
            paths["download"] = f"{ORDERS_PATH}/{order.order_id}/download"
        for action, (_, path) in _ACTIONS.items():
            if refusal(order, action) is None:
                paths[action.value] = path.format(id=order.order_id)
        return [{"rel": rel, "href": self.service.host() + path} for rel, path in paths.items()]

    def _available_dto(self, file: OrderFile) -> Json:
        content = {
            "id": file.file_id,
            "productId": file.spec.product_id,
            "version": 1,
            "downloadUrl": f"{self.service.host()}{_FILES}/files/{file.file_id}",
            "mimeType": file.spec.mime_type,
            "checksum": self._checksum(file),
            "filesize": _size_bytes(file),
            "filename": file.spec.name,
        }
        return _resource(_without_nulls(content))

    def _dataset_dto(self, file: OrderFile) -> Json:
        checksum = self._checksum(file)
        content = {
            "id": file.file_id,
            "orderId": file.order_id,
            "reference": file.spec.reference,
            "state": file.state.value,
            "downloadError": file.error,
            "checksum": checksum,
            "digestAlgorithm": "MD5" if checksum else None,
            "filesize": _size_bytes(file),
            "filename": file.spec.name,
            "mimeType": file.spec.mime_type,
            "dataType": file.spec.data_type,
            "productId": file.spec.product_id,
        }
        return _resource(_without_nulls(content))

    def _checksum(self, file: OrderFile) -> str | None:
        if file.spec.reference or not file.spec.has_checksum:
            return None
        wrong = self.service.faults.take(WrongChecksum, order_id=file.order_id, name=file.spec.name)
        return wrong.md5 if wrong else file.spec.source.md5


for _action, (_method, _path) in _ACTIONS.items():
    _serves(_path.format(id=_ID), Route.ACTION, methods=(_method,))(
        partial(Rest.act, action=_action)
    )


def _size_bytes(file: OrderFile) -> int | None:
    return None if file.spec.reference else file.spec.source.size_bytes


def _without_nulls(fields: Json) -> Json:
    """Return the fields that have a value: REGARDS omits nulls."""
    return {name: value for name, value in fields.items() if value is not None}


def _resource(content: Json, links: Sequence[Json] = ()) -> Json:
    """Return the envelope of Spring HATEOAS."""
    return {"content": content, "links": links}


def _page(
    call: _Call, items: Sequence[_Item], *, default_size: int, show: Callable[[_Item], Json]
) -> Response:
    """Return one page of *items*."""
    number = call.request.number("page", 0)
    size = min(max(call.request.number("size", default_size), 1), _MAX_PAGE_SIZE)
    metadata = {
        "size": size,
        "totalElements": len(items),
        "totalPages": -(-len(items) // size),
        "number": number,
    }
    content = [show(item) for item in items[number * size : (number + 1) * size]]
    return json_response(200, {"metadata": metadata, "content": content, "links": []})


def _given_response(reply: Reply) -> Response:
    headers = list(reply.headers)
    if reply.content_type:
        headers.append(("Content-Type", reply.content_type))
    return Response(status=reply.status, body=reply.body, headers=headers)


def _validation_errors(fields: Json) -> list[str]:
    """Return the errors that bean validation finds in a request for an order."""
    problems = []
    queries = fields.get("queries")
    if not isinstance(queries, list) or not queries:
        problems.append("list of queries should not be empty")
    filters = fields.get("filters")
    if isinstance(filters, dict):
        types = filters.get("dataTypes")
        if not (types and set(types) <= _DATA_TYPES):
            problems.append("data types should be RAWDATA or QUICKLOOK")
    if len(fields.get("correlationId") or "") > _MAX_CORRELATION_ID:
        problems.append("correlationId should not exceed 255 characters")
    return problems
