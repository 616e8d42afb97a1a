"""The REST side: which request gets which response (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator import lifecycle
from regards_nb.simulator.catalogue import attribute_models
from regards_nb.simulator.faults import Reply, Route, Slow, WrongChecksum
from regards_nb.simulator.lifecycle import Action, FileState, ServerStatus
from regards_nb.simulator.login import spring_error
from regards_nb.simulator.query import QueryError
from regards_nb.simulator.server import Request, Response, error, iso_time, json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regards_nb.simulator.catalogue import Product
    from regards_nb.simulator.downloads import Downloads
    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.lifecycle import Order, OrderFile
    from regards_nb.simulator.login import Login
    from regards_nb.simulator.service import Service

_DATA_TYPES = {"RAWDATA", "QUICKLOOK"}
_MAX_CORRELATION_ID = 255
#: Spring's limit for one page.
_MAX_PAGE_SIZE = 2000

_ORDERS = "/api/v1/rs-order/user/orders"
_FILES = "/api/v1/rs-order/orders"
_ACTION_PATHS = {
    Action.PAUSE: f"{_ORDERS}/pause/{{id}}",
    Action.RESUME: f"{_ORDERS}/resume/{{id}}",
    Action.DELETE: f"{_ORDERS}/{{id}}",
    Action.RESTART: f"{_ORDERS}/{{id}}/restart",
    Action.RETRY: f"{_ORDERS}/{{id}}/retry",
}

Json = dict[str, Any]


class _Call(NamedTuple):
    """One request to one endpoint, with the numbers in its path."""

    request: Request
    #: Empty for a request without a token to a public endpoint.
    user: str
    #: The ids in the path: an order and a sub-order or data set, or a file.
    number: int
    sub_number: int
    #: The URN and the checksum in the path.
    urn: str = ""
    checksum: str = ""


class _Endpoint(NamedTuple):
    """A path, its methods, and the function that responds."""

    methods: tuple[str, ...]
    path: re.Pattern[str]
    route: Route
    respond: Callable[[Rest, _Call], Response]
    is_public: bool = False


class Rest:
    """Responds to requests.

    Parameters
    ----------
    service : Service
        The orders.
    login : Login
        The tokens.
    downloads : Downloads
        The bodies with files.
    faults : Faults
        The faults to apply.
    project_host : callable
        Returns the host of links, which an administrator configures and which can differ from
        the host of this server (protocol.md 1.1).
    """

    def __init__(
        self,
        *,
        service: Service,
        login: Login,
        downloads: Downloads,
        faults: Faults,
        project_host: Callable[[], str],
    ) -> None:
        self._service = service
        self._catalogue = service.catalogue
        #: URNs of products on tape that were restored.
        self._restored: set[str] = set()
        self._login = login
        self._downloads = downloads
        self._faults = faults
        self._host = project_host

    def respond(self, request: Request) -> Response:
        """Respond to one request."""
        if not self._login.passes_portal(request):
            return error(403, "a valid API key is required")
        endpoint, found = _find_endpoint(request)
        if endpoint is None or found is None:
            return spring_error(404, "Not Found", request.path)
        route, path = endpoint.route, found.groupdict()
        number, sub_number = int(path.get("id") or 0), int(path.get("sub_id") or 0)
        order_id, name = self._subject(route, number)
        reply = self._faults.take(Reply, order_id=order_id, name=name, route=route)
        if reply is not None:
            response = _given_response(reply)
        else:
            user = (
                ""
                if route is Route.TOKEN
                else self._login.user(request, is_public=endpoint.is_public)
            )
            if isinstance(user, Response):
                response = user
            else:
                urn, checksum = path.get("urn") or "", path.get("checksum") or ""
                call = _Call(request, user, number, sub_number, urn, checksum)
                response = endpoint.respond(self, call)
        response.slow = self._faults.take(Slow, order_id=order_id, name=name, route=route)
        return response

    def _subject(self, route: Route, number: int) -> tuple[int | None, str | None]:
        """Return the order id and the file name that a request concerns."""
        if route is Route.FILE:
            file = self._service.find_file(number)
            return (file.order_id, file.spec.name) if file else (None, None)
        return number or None, None

    def token(self, call: _Call) -> Response:
        """Log in."""
        return self._login.token(call.request)

    # -- orders

    def apply(self, call: _Call) -> Response:
        """Grant or refuse an order."""
        try:
            fields = call.request.json()
        except ValueError:
            return error(400, "JSON parse error")
        if problems := _validation_errors(fields):
            return error(422, *problems)
        filters = fields.get("filters") or {}
        try:
            re.compile(filters.get("filenameRegExp") or "")
        except re.error as exc:
            return error(400, f"PatternSyntaxException: {exc}")
        result = self._service.request_by_query(
            fields["queries"],
            owner=call.user,
            correlation_id=fields.get("correlationId"),
            data_types=filters.get("dataTypes") or (),
            filename_regexp=filters.get("filenameRegExp"),
        )
        body = {"content": result.fields, "links": []}
        return json_response(422 if result.refusal else 200, body)

    def orders(self, call: _Call) -> Response:
        """List the user's orders."""
        orders = self._service.orders_of(call.user)
        return _page(call.request, orders, default_size=20, show=self._order_dto)

    def order(self, call: _Call) -> Response:
        """Show one order; errors of this endpoint have no body."""
        order = self._service.find(call.number)
        if order is None:
            return error(404)
        if order.owner != call.user:
            return error(403)
        with self._service.changing():
            return json_response(200, self._order_dto(order))

    # -- actions

    def restart(self, call: _Call) -> Response:
        """Make a new order of the same files."""
        response = self.act(call, Action.RESTART)
        order = self._service.find(call.number)
        if response.status != 200 or order is None:
            return response
        try:
            label = call.request.json().get("label")
        except (ValueError, AttributeError):
            return error(400, "JSON parse error")
        return json_response(201, self._order_dto(self._service.restart(order, label))["content"])

    def act(self, call: _Call, action: Action) -> Response:
        """Pause, resume, retry or delete an order."""
        order = self._service.find(call.number)
        if order is None:
            return error(404, f"Order {call.number} not found")
        if order.owner != call.user:
            return error(401, "USER_NOT_ALLOWED_TO_MANAGE_ORDER")
        code = self._service.act(order, action)
        # A refused action is 401, like a missing login (protocol.md 1.0, 9).
        return error(401, code) if code else error(200)

    # -- files

    def zip(self, call: _Call) -> Response:
        """Send the available files as a zip. REGARDS does not check the owner here."""
        order = self._service.find(call.number)
        if order is None:
            return error(404, f"Order {call.number} not found")
        return self._downloads.zip(order)

    def available(self, call: _Call) -> Response:
        """List the available files of an order or of one of its sub-orders."""
        order = self._service.find(call.number)
        if order is None:
            return error(404)
        if order.owner != call.user:
            return error(403)
        with self._service.changing():
            files = order.available(call.sub_number or None)
        # Outside of the lock: the checksums of large files take time.
        return _page(call.request, files, default_size=10, show=self._available_dto)

    def dataset_files(self, call: _Call) -> Response:
        """List all files of a data set, in any state."""
        order = self._service.find(call.number)
        if order is None or order.dataset_id != call.sub_number:
            return error(404)
        return _page(call.request, list(order.files), default_size=20, show=self._dataset_dto)

    def file(self, call: _Call) -> Response:
        """Send one file."""
        file = self._service.find_file(call.number)
        order = self._service.find(file.order_id) if file else None
        if file is None or order is None:
            return error(404, f"Unknown data file {call.number}")
        if order.owner != call.user:
            return error(403)
        return self._downloads.file(file)

    # -- the catalogue

    def search(self, call: _Call) -> Response:
        """Search products."""
        query = call.request.query.get("q", "")
        try:
            products = self._catalogue.search(query, dataset_urn=call.urn or None)
        except QueryError as exc:
            return _refused_query(query, exc)
        return _page(call.request, products, default_size=20, show=self._feature)

    def search_datasets(self, call: _Call) -> Response:
        """Search data sets."""
        query = call.request.query.get("q", "")
        try:
            datasets = self._catalogue.search_datasets(query)
        except QueryError as exc:
            return _refused_query(query, exc)
        return _page(
            call.request,
            datasets,
            default_size=20,
            show=lambda each: {"content": each.feature(), "links": []},
        )

    def attributes(self, call: _Call) -> Response:
        """List the attributes of the products that match a query."""
        query = call.request.query.get("q", "")
        try:
            products = self._catalogue.search(query, dataset_urn=call.urn or None)
        except QueryError as exc:
            return _refused_query(query, exc)
        return json_response(200, attribute_models() if products else [])

    def summary(self, call: _Call) -> Response:
        """Return the numbers of files and bytes of a selection."""
        try:
            fields = call.request.json()
        except ValueError:
            return error(400, "JSON parse error")
        products: dict[str, Product] = {}
        for part in fields.get("requests") or ():
            query = " AND ".join(
                f"({each})" for each in (part.get("searchParameters") or {}).get("q") or () if each
            )
            try:
                found = self._catalogue.search(query, dataset_urn=part.get("datasetUrn"))
            except QueryError as exc:
                return _refused_query(query, exc)
            included = set(part.get("entityIdsToInclude") or ())
            excluded = set(part.get("entityIdsToExclude") or ())
            products.update(
                (each.urn, each)
                for each in found
                if each.urn not in excluded and (not included or each.urn in included)
            )
        types = fields.get("dataTypes") or ()
        return json_response(200, self._catalogue.summary(products.values(), types))

    def catalogue_file(self, call: _Call) -> Response:
        """Send one file of a product that was not ordered."""
        product = self._catalogue.product(call.urn)
        file = (
            next((each for each in product.files if each.source.md5 == call.checksum), None)
            if product
            else None
        )
        if product is None or file is None:
            return error(404, f"Unknown file {call.checksum} of {call.urn}")
        if product.dataset.licence and call.request.query.get("acceptLicense") != "true":
            return error(423, f"The licence {product.dataset.licence} is not accepted")
        if not product.online and product.urn not in self._restored:
            return error(202, "File not available yet")
        return self._downloads.catalogue_file(file)

    def availability(self, call: _Call) -> Response:
        """Tell which files of products can be downloaded now."""
        products = [self._catalogue.product(urn) for urn in _product_ids(call)]
        rows = [
            {
                "id": each.urn,
                "files": [
                    {
                        "checksum": file.source.md5,
                        "available": each.online or each.urn in self._restored,
                    }
                    for file in each.files
                ],
            }
            for each in products
            if each is not None
        ]
        return json_response(200, {"products": rows})

    def restore(self, call: _Call) -> Response:
        """Restore the files of products from tape; here they are available at once."""
        urns = [call.urn] if call.urn else _product_ids(call)
        if call.urn and self._catalogue.product(call.urn) is None:
            return error(404)
        self._restored.update(urns)
        return error(200)

    def quota(self, call: _Call) -> Response:
        """Return the download quota of the user; -1 is no limit."""
        return json_response(
            200,
            {
                "email": call.user,
                "maxQuota": -1,
                "rateLimit": -1,
                "currentQuota": self._downloads.served_files,
                "currentRate": 0,
            },
        )

    def basket(self, call: _Call) -> Response:
        """Show the web basket of the user; an empty one is 204."""
        with self._service.changing():
            queries = list(self._service.baskets.get(call.user, ()))
        products = {each.urn: each for query in queries for each in self._catalogue.search(query)}
        if not products:
            return error(204)
        selections = []
        for number, dataset in enumerate(
            dict.fromkeys(each.dataset for each in products.values()), 1
        ):
            part = [each for each in products.values() if each.dataset is dataset]
            summary = self._catalogue.summary(part, ())
            counts = {
                "objectsCount": len(part),
                "filesCount": summary["filesCount"],
                "filesSize": summary["filesSize"],
                "quota": summary["filesCount"],
            }
            selections.append(
                {
                    "id": number,
                    "datasetIpid": dataset.urn,
                    "datasetLabel": dataset.name,
                    **counts,
                    "itemsSelections": [],
                }
            )
        content = {
            "id": 1,
            "owner": call.user,
            "quota": sum(each["quota"] for each in selections),
            "datasetSelections": selections,
        }
        return json_response(200, {"content": content, "links": []})

    def empty_basket(self, call: _Call) -> Response:
        """Empty the web basket of the user."""
        with self._service.changing():
            self._service.baskets.pop(call.user, None)
        return error(200)

    def _feature(self, product: Product) -> Json:
        return {"content": product.feature(self._host()), "links": []}

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
        return {"content": content, "links": self._links(order)}

    def _links(self, order: Order) -> list[Json]:
        """Return the links of an order: one for each action that is allowed now."""
        links = {"self": f"{_ORDERS}/{order.order_id}", "list": _ORDERS}
        if order.status is not ServerStatus.DELETED and order.available():
            links["download"] = download_path(order.order_id)
        for action, path in _ACTION_PATHS.items():
            if lifecycle.refusal(order, action) is None:
                links[action.value] = path.format(id=order.order_id)
        return [{"rel": rel, "href": self._host() + path} for rel, path in links.items()]

    def _available_dto(self, file: OrderFile) -> Json:
        content = {
            "id": file.file_id,
            "productId": file.spec.product_id,
            "version": 1,
            "downloadUrl": f"{self._host()}{_FILES}/files/{file.file_id}",
            "mimeType": file.spec.mime_type,
            "checksum": self._checksum(file),
            "filesize": _size_bytes(file),
            "filename": file.spec.name,
        }
        return {"content": _without_nulls(content), "links": []}

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
        return {"content": _without_nulls(content), "links": []}

    def _checksum(self, file: OrderFile) -> str | None:
        if file.spec.reference or not file.spec.has_checksum:
            return None
        wrong = self._faults.take(WrongChecksum, order_id=file.order_id, name=file.spec.name)
        return wrong.md5 if wrong else file.spec.source.md5


def download_path(order_id: int) -> str:
    """Return the path of an order's zip."""
    return f"{_ORDERS}/{order_id}/download"


def _size_bytes(file: OrderFile) -> int | None:
    return None if file.spec.reference else file.spec.source.size_bytes


def _without_nulls(fields: Json) -> Json:
    """Return the fields that have a value: REGARDS omits nulls."""
    return {name: value for name, value in fields.items() if value is not None}


def _page(
    request: Request, items: Sequence[Any], *, default_size: int, show: Callable[[Any], Json]
) -> Response:
    """Return one page of *items*."""
    number, size = request.number("page", 0), request.number("size", default_size)
    size = min(max(size, 1), _MAX_PAGE_SIZE)
    metadata = {
        "size": size,
        "totalElements": len(items),
        "totalPages": -(-len(items) // size),
        "number": number,
    }
    content = [show(item) for item in items[number * size : (number + 1) * size]]
    return json_response(200, {"metadata": metadata, "content": content, "links": []})


def _refused_query(query: str, exc: QueryError) -> Response:
    return error(400, f"q={query}. Cause: {exc}")


def _product_ids(call: _Call) -> list[str]:
    try:
        return list(call.request.json()["product_ids"])
    except (ValueError, KeyError, TypeError):
        return []


def _given_response(reply: Reply) -> Response:
    headers = list(reply.headers)
    if reply.content_type:
        headers.append(("Content-Type", reply.content_type))
    return Response(status=reply.status, body=reply.body, headers=headers)


def _validation_errors(fields: Any) -> list[str]:
    """Return the errors that bean validation finds in a request for an order."""
    if not isinstance(fields, dict):
        return ["request should be an object"]
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


_ID = r"(?P<id>\d{1,18})"
_SUB_ID = r"(?P<sub_id>\d{1,18})"
_URN = r"(?P<urn>URN:[\w:.-]+)"
_LEGACY = "/api/v1/rs-catalog/engines/legacy"
_CATALOGUE = "/api/v1/rs-catalog"
# Spring serves HEAD with the handler of GET (protocol.md 1.0, 4).
_GET = ("GET", "HEAD")


def _endpoint(
    methods: tuple[str, ...],
    path: str,
    route: Route,
    respond: Callable[[Rest, _Call], Response],
    *,
    is_public: bool = False,
) -> _Endpoint:
    return _Endpoint(methods, re.compile(path), route, respond, is_public)


def _action(method: str, action: Action) -> _Endpoint:
    path = _ACTION_PATHS[action].format(id=_ID)
    return _endpoint((method,), path, Route.ACTION, lambda rest, call: rest.act(call, action))


_ENDPOINTS = [
    _endpoint(("POST",), "/api/v1/rs-authentication/oauth/token", Route.TOKEN, Rest.token),
    _endpoint(("POST",), f"{_ORDERS}/apply", Route.APPLY, Rest.apply),
    _endpoint(_GET, _ORDERS, Route.ORDERS, Rest.orders),
    _endpoint(_GET, f"{_ORDERS}/{_ID}", Route.ORDER, Rest.order),
    _endpoint(_GET, f"{_ORDERS}/{_ID}/download", Route.ZIP, Rest.zip),
    _action("PUT", Action.PAUSE),
    _action("PUT", Action.RESUME),
    _action("PUT", Action.RETRY),
    _action("DELETE", Action.DELETE),
    _endpoint(("POST",), f"{_ORDERS}/{_ID}/restart", Route.ACTION, Rest.restart),
    _endpoint(
        _GET,
        f"{_FILES}/{_ID}(?:/filesTask/{_SUB_ID})?/files/available",
        Route.AVAILABLE,
        Rest.available,
    ),
    _endpoint(
        _GET, f"{_FILES}/{_ID}/dataset/{_SUB_ID}/files", Route.DATASET_FILES, Rest.dataset_files
    ),
    _endpoint(_GET, f"{_FILES}/files/{_ID}", Route.FILE, Rest.file),
    _endpoint(_GET, "/api/v1/rs-order/order/basket", Route.BASKET, Rest.basket),
    _endpoint(("DELETE",), "/api/v1/rs-order/order/basket", Route.BASKET, Rest.empty_basket),
    _endpoint(
        _GET,
        f"(?:{_LEGACY}|/api/v1/rs-access-project)(?:/datasets/{_URN})?/dataobjects/search",
        Route.CATALOGUE,
        Rest.search,
        is_public=True,
    ),
    _endpoint(
        _GET,
        f"(?:{_LEGACY}|/api/v1/rs-access-project)/datasets/search",
        Route.CATALOGUE,
        Rest.search_datasets,
        is_public=True,
    ),
    _endpoint(
        _GET,
        f"{_LEGACY}(?:/datasets/{_URN})?/dataobjects/search/attributes",
        Route.CATALOGUE,
        Rest.attributes,
        is_public=True,
    ),
    _endpoint(
        ("POST",),
        f"{_CATALOGUE}/complex/search/summary",
        Route.CATALOGUE,
        Rest.summary,
        is_public=True,
    ),
    _endpoint(
        _GET,
        f"{_CATALOGUE}/downloads/{_URN}/files/(?P<checksum>[0-9a-f]+)",
        Route.CATALOGUE_FILE,
        Rest.catalogue_file,
    ),
    _endpoint(("POST",), f"{_CATALOGUE}/availability/files", Route.CATALOGUE, Rest.availability),
    _endpoint(("POST",), f"{_CATALOGUE}/restore", Route.CATALOGUE, Rest.restore),
    _endpoint(_GET, f"{_CATALOGUE}/restore/{_URN}", Route.CATALOGUE, Rest.restore),
    _endpoint(_GET, "/api/v1/rs-storage/quota/current", Route.QUOTA, Rest.quota),
]


def _find_endpoint(request: Request) -> tuple[_Endpoint | None, re.Match[str] | None]:
    for endpoint in _ENDPOINTS:
        if request.method in endpoint.methods and (found := endpoint.path.fullmatch(request.path)):
            return endpoint, found
    return None, None
