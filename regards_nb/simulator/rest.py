"""The REST side: which request gets which response (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator import lifecycle
from regards_nb.simulator.archive import Archive, corrupted, in_blocks
from regards_nb.simulator.faults import (
    CorruptFile,
    CutFile,
    CutZip,
    LateSave,
    RawZip,
    Reply,
    Route,
    Slow,
    StorageRefuses,
    WrongChecksum,
)
from regards_nb.simulator.lifecycle import Action, FileState, OrderState
from regards_nb.simulator.login import iso_time, spring_error
from regards_nb.simulator.plans import of_bytes, of_path
from regards_nb.simulator.server import Request, Response, error, json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.lifecycle import Order, OrderFile
    from regards_nb.simulator.login import Login
    from regards_nb.simulator.plans import FileSpec
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
    #: Empty for an endpoint that needs no login.
    user: str
    number: int
    sub_number: int


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
        self._login = login
        self._downloads = downloads
        self._faults = faults
        self._host = project_host

    def respond(self, request: Request) -> Response:
        """Respond to one request."""
        endpoint, numbers = _find_endpoint(request)
        if endpoint is None:
            return spring_error(404, "Not Found", request.path)
        route = endpoint.route
        order_id, name = self._subject(route, numbers[0])
        reply = self._faults.take(Reply, order_id=order_id, name=name, route=route)
        if reply is not None:
            response = _given_response(reply)
        else:
            user = "" if endpoint.is_public else self._login.user(request)
            if isinstance(user, Response):
                response = user
            else:
                response = endpoint.respond(self, _Call(request, user, *numbers))
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
        if order.status is not OrderState.DELETED and order.available():
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


class Downloads:
    """Responds to downloads and updates the states of the files.

    Parameters
    ----------
    service : Service
        The orders.
    faults : Faults
        The faults to apply.
    zip_level : int
        Deflate level.
    """

    def __init__(self, service: Service, faults: Faults, *, zip_level: int) -> None:
        self._service = service
        self._faults = faults
        self._zip_level = zip_level

    def zip(self, order: Order) -> Response:
        """Return a zip of all available files, or 204 if there is none."""
        now = datetime.now(UTC).astimezone()
        headers = [
            ("Content-Type", "application/octet-stream"),
            # REGARDS does not quote the name, which contains colons (protocol.md 1.3).
            (
                "Content-Disposition",
                f"attachment;filename=order_{order.order_id}_{now.isoformat()}.zip",
            ),
        ]
        with self._service.changing():
            files = order.available()
        raw = self._faults.take(RawZip, order_id=order.order_id)
        if raw is not None:
            return self._raw_zip(raw, files, order.order_id, headers)
        if not files:
            return Response(status=204, headers=headers)
        archive = Archive(files, self._faults, made_at=now, level=self._zip_level)
        save = self._saving(order.order_id, files, archive.problems)
        response = Response(
            status=200,
            headers=headers,
            stream=in_blocks(archive.pieces()),
            served=save if archive.saves_states else None,
        )
        return self._cut(response, order.order_id, archive.pieces)

    def _raw_zip(
        self, raw: RawZip, files: list[OrderFile], order_id: int, headers: list[tuple[str, str]]
    ) -> Response:
        content = of_path(raw.source) if isinstance(raw.source, Path) else of_bytes(raw.source)
        response = Response(
            status=200,
            headers=headers,
            stream=in_blocks(content.chunks()),
            served=self._saving(order_id, files, {}) if raw.saves_states else None,
        )
        return self._cut(response, order_id, content.chunks)

    def _cut(
        self, response: Response, order_id: int, pieces: Callable[[], Iterator[bytes]]
    ) -> Response:
        fault = self._faults.take(CutZip, order_id=order_id)
        if fault is not None:
            response.ending = fault.ending
            response.limit_bytes = fault.after_bytes
            if fault.after_bytes is None:
                # The zip is made once only to learn its length.
                response.limit_bytes = int(sum(map(len, pieces())) * fault.after_fraction)
        return response

    def _saving(
        self, order_id: int, files: list[OrderFile], problems: dict[int, str]
    ) -> Callable[[], None]:
        """Return a function that saves the states after the last byte (protocol.md 1.0, 5)."""

        def save() -> None:
            late = self._faults.take(LateSave, order_id=order_id)
            self._service.downloaded(files, problems, late_s=late.delay_s if late else 0)

        return save

    def file(self, file: OrderFile) -> Response:
        """Return one file, also after it was downloaded (protocol.md 1.0, 7)."""
        if file.state is FileState.PENDING:
            return error(202, "File not available yet")
        if file.state is FileState.ERROR:
            return error(422, file.error or "File in error")
        order_id, name = file.order_id, file.spec.name
        refusal = self._faults.take(StorageRefuses, order_id=order_id, name=name)
        if refusal is not None:
            self._service.downloaded([file], {file.file_id: f"HTTP {refusal.status}"})
            content_type = [("Content-Type", refusal.content_type)]
            return Response(status=refusal.status, body=refusal.body, headers=content_type)
        return self._whole_file(file)

    def _whole_file(self, file: OrderFile) -> Response:
        spec = file.spec
        chunks = spec.source.chunks()
        if self._faults.take(CorruptFile, order_id=file.order_id, name=spec.name):
            chunks = corrupted(chunks)
        response = file_response(spec, chunks)
        # A single external file never becomes DOWNLOADED (protocol.md 1.5).
        response.served = None if spec.reference else self._saving(file.order_id, [file], {})
        cut = self._faults.take(CutFile, order_id=file.order_id, name=spec.name)
        if cut is not None:
            response.limit_bytes, response.ending = cut.after_bytes, cut.ending
        return response


def file_response(spec: FileSpec, chunks: Iterator[bytes]) -> Response:
    """Return the response with one file."""
    # Without characters that would end the header.
    name = "".join(c if c.isprintable() and c != '"' else "_" for c in spec.name)
    return Response(
        status=200,
        headers=[
            ("Content-Type", spec.mime_type),
            ("Content-Disposition", f'attachment;filename="{name}"'),
        ],
        stream=in_blocks(chunks),
        length_bytes=None if spec.reference else spec.source.size_bytes,
    )


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
        if types is not None and not (types and set(types) <= _DATA_TYPES):
            problems.append("data types should be RAWDATA or QUICKLOOK")
    if len(fields.get("correlationId") or "") > _MAX_CORRELATION_ID:
        problems.append("correlationId should not exceed 255 characters")
    return problems


_ID = r"(\d{1,18})"
# Spring serves HEAD with the handler of GET (protocol.md 1.0, 4).
_GET = ("GET", "HEAD")


def _action(method: str, action: Action) -> _Endpoint:
    path = re.compile(_ACTION_PATHS[action].format(id=_ID))
    return _Endpoint((method,), path, Route.ACTION, lambda rest, call: rest.act(call, action))


_ENDPOINTS = [
    _Endpoint(
        ("POST",),
        re.compile("/api/v1/rs-authentication/oauth/token"),
        Route.TOKEN,
        Rest.token,
        is_public=True,
    ),
    _Endpoint(("POST",), re.compile(f"{_ORDERS}/apply"), Route.APPLY, Rest.apply),
    _Endpoint(_GET, re.compile(_ORDERS), Route.ORDERS, Rest.orders),
    _Endpoint(_GET, re.compile(f"{_ORDERS}/{_ID}"), Route.ORDER, Rest.order),
    _Endpoint(_GET, re.compile(f"{_ORDERS}/{_ID}/download"), Route.ZIP, Rest.zip),
    _action("PUT", Action.PAUSE),
    _action("PUT", Action.RESUME),
    _action("PUT", Action.RETRY),
    _action("DELETE", Action.DELETE),
    _Endpoint(
        ("POST",),
        re.compile(_ACTION_PATHS[Action.RESTART].format(id=_ID)),
        Route.ACTION,
        Rest.restart,
    ),
    _Endpoint(
        _GET,
        re.compile(f"{_FILES}/{_ID}(?:/filesTask/{_ID})?/files/available"),
        Route.AVAILABLE,
        Rest.available,
    ),
    _Endpoint(
        _GET,
        re.compile(f"{_FILES}/{_ID}/dataset/{_ID}/files"),
        Route.DATASET_FILES,
        Rest.dataset_files,
    ),
    _Endpoint(_GET, re.compile(f"{_FILES}/files/{_ID}"), Route.FILE, Rest.file),
]


def _find_endpoint(request: Request) -> tuple[_Endpoint | None, tuple[int, int]]:
    for endpoint in _ENDPOINTS:
        if request.method in endpoint.methods and (found := endpoint.path.fullmatch(request.path)):
            number, sub_number, *_ = *(int(group or 0) for group in found.groups()), 0, 0
            return endpoint, (number, sub_number)
    return None, (0, 0)
