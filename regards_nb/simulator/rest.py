"""The REST side of REGARDS: which request gets which answer (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from regards_nb.simulator import dto
from regards_nb.simulator.answers import Answer, Request, error, json_answer
from regards_nb.simulator.faults import Reply, Route, Slow, WrongChecksum
from regards_nb.simulator.lifecycle import Action
from regards_nb.simulator.login import spring_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from regards_nb.simulator.downloads import Downloads
    from regards_nb.simulator.faults import Faults
    from regards_nb.simulator.lifecycle import Order, OrderFile
    from regards_nb.simulator.login import Login
    from regards_nb.simulator.service import Service

_DATA_TYPES = {"RAWDATA", "QUICKLOOK"}
_MAX_CORRELATION_ID = 255


class _Call(NamedTuple):
    """One request that found its place."""

    request: Request
    user: str
    number: int
    sub_number: int


class Rest:
    """Answers requests.

    Parameters
    ----------
    service : Service
        The orders.
    login : Login
        The tokens.
    downloads : Downloads
        The bodies with files.
    faults : Faults
        What is to go wrong.
    project_host : callable
        Returns the host that links are made with: what an administrator wrote, which may be
        another one than this server's (protocol.md 1.1).
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

    def answer(self, request: Request) -> Answer:
        """Answer one request."""
        place = _find_place(request)
        if place is None:
            return spring_error(404, "Not Found", request.path)
        route, handler, number, sub_number = place
        order_id, name = self._subject(route, number)
        reply = self._faults.take(Reply, order_id=order_id, name=name, route=route)
        if reply is not None:
            answer = _as_told(reply)
        elif route is Route.TOKEN:
            answer = self._login.token(request)
        else:
            answer = self._for_user(request, handler, number, sub_number)
        answer.slow = self._faults.take(Slow, order_id=order_id, name=name, route=route)
        return answer

    def _subject(self, route: Route, number: int) -> tuple[int | None, str | None]:
        """Return order and file that a request is about."""
        if route is Route.FILE:
            file = self._service.find_file(number)
            return (file.order_id, file.spec.name) if file else (None, None)
        return number or None, None

    def _for_user(self, request: Request, handler: str, number: int, sub_number: int) -> Answer:
        user = self._login.user(request)
        if isinstance(user, Answer):
            return user
        answer: Answer = getattr(self, handler)(_Call(request, user, number, sub_number))
        return answer

    # -- orders

    def apply(self, call: _Call) -> Answer:
        """Take an order."""
        try:
            asked = call.request.json()
        except ValueError:
            return error(400, "JSON parse error")
        if problems := _invalid(asked):
            return error(422, *problems)
        filters = asked.get("filters") or {}
        try:
            re.compile(filters.get("filenameRegExp") or "")
        except re.error as exc:
            return error(400, f"PatternSyntaxException: {exc}")
        answer = self._service.request_by_query(
            asked["queries"],
            owner=call.user,
            correlation_id=asked.get("correlationId"),
            data_types=filters.get("dataTypes") or (),
            filename_regexp=filters.get("filenameRegExp"),
        )
        body = {"content": answer.fields, "links": []}
        return json_answer(422 if answer.refusal else 200, body)

    def orders(self, call: _Call) -> Answer:
        """List the user's orders."""
        return self._page(
            call, self._service.orders_of(call.user), default_size=20, show=self._order_dto
        )

    def order(self, call: _Call) -> Answer:
        """Show one order; refusals have no body here."""
        order = self._service.find(call.number)
        if order is None:
            return error(404)
        if order.owner != call.user:
            return error(403)
        with self._service.changing():
            return json_answer(200, self._order_dto(order))

    def _order_dto(self, order: Order) -> dict[str, Any]:
        return dto.order(order, host=self._host())

    # -- actions

    def pause(self, call: _Call) -> Answer:
        """Pause an order."""
        return self._act(call, Action.PAUSE)

    def resume(self, call: _Call) -> Answer:
        """Resume an order."""
        return self._act(call, Action.RESUME)

    def retry(self, call: _Call) -> Answer:
        """Retry what failed in an order."""
        return self._act(call, Action.RETRY)

    def delete(self, call: _Call) -> Answer:
        """Delete an order."""
        return self._act(call, Action.DELETE)

    def restart(self, call: _Call) -> Answer:
        """Order the same again."""
        answer = self._act(call, Action.RESTART)
        order = self._service.find(call.number)
        if answer.status != 200 or order is None:
            return answer
        try:
            label = call.request.json().get("label")
        except (ValueError, AttributeError):
            return error(400, "JSON parse error")
        return json_answer(201, self._order_dto(self._service.restart(order, label))["content"])

    def _act(self, call: _Call, action: Action) -> Answer:
        order = self._service.find(call.number)
        if order is None:
            return error(404, f"Order {call.number} not found")
        if order.owner != call.user:
            return error(401, "USER_NOT_ALLOWED_TO_MANAGE_ORDER")
        code = self._service.act(order, action)
        # Refusals come as 401, like a missing login (protocol.md 1.0, 9).
        return error(401, code) if code else error(200)

    # -- files

    def zip(self, call: _Call) -> Answer:
        """Send what is available, as a zip. Any user may: REGARDS does not check."""
        order = self._service.find(call.number)
        if order is None:
            return error(404, f"Order {call.number} not found")
        return self._downloads.zip(order)

    def available(self, call: _Call) -> Answer:
        """List what is available now, in an order or in one sub-order of it."""
        order = self._service.find(call.number)
        if order is None:
            return error(404)
        if order.owner != call.user:
            return error(403)
        with self._service.changing():
            files = order.available(call.sub_number or None)
        # outside the lock: checksums of large files take their time
        return self._page(call, files, default_size=10, show=self._available_dto)

    def dataset_files(self, call: _Call) -> Answer:
        """List all files of a data set, whatever their state."""
        order = self._service.find(call.number)
        if order is None or order.dataset_id != call.sub_number:
            return error(404)
        files = list(order.files)
        return self._page(call, files, default_size=20, show=self._dataset_dto)

    def file(self, call: _Call) -> Answer:
        """Send one file."""
        file = self._service.find_file(call.number)
        order = self._service.find(file.order_id) if file else None
        if file is None or order is None:
            return error(404, f"Unknown data file {call.number}")
        if order.owner != call.user:
            return error(403)
        return self._downloads.file(file)

    def _available_dto(self, file: OrderFile) -> dict[str, Any]:
        return dto.available_file(file, host=self._host(), checksum=self._checksum(file))

    def _dataset_dto(self, file: OrderFile) -> dict[str, Any]:
        return dto.dataset_file(file, checksum=self._checksum(file))

    def _checksum(self, file: OrderFile) -> str | None:
        if file.spec.reference or not file.spec.has_checksum:
            return None
        wrong = self._faults.take(WrongChecksum, order_id=file.order_id, name=file.spec.name)
        return wrong.md5 if wrong else file.spec.source.md5

    def _page(
        self, call: _Call, items: list[Any], *, default_size: int, show: Callable[[Any], Any]
    ) -> Answer:
        request = call.request
        number, size = request.number("page", 0), request.number("size", default_size)
        return json_answer(200, dto.page(items, number=number, size=size, show=show))


def _as_told(reply: Reply) -> Answer:
    headers = list(reply.headers)
    if reply.content_type:
        headers.append(("Content-Type", reply.content_type))
    return Answer(status=reply.status, body=reply.body, headers=headers)


def _invalid(asked: Any) -> list[str]:
    """Return what bean validation says about a request, which is not much."""
    if not isinstance(asked, dict):
        return ["request should be an object"]
    problems = []
    queries = asked.get("queries")
    if not isinstance(queries, list) or not queries:
        problems.append("list of queries should not be empty")
    filters = asked.get("filters")
    if isinstance(filters, dict):
        types = filters.get("dataTypes")
        if types is not None and not (types and set(types) <= _DATA_TYPES):
            problems.append("data types should be RAWDATA or QUICKLOOK")
    if len(asked.get("correlationId") or "") > _MAX_CORRELATION_ID:
        problems.append("correlationId should not exceed 255 characters")
    return problems


_ORDERS = "/api/v1/rs-order/user/orders"
_FILES = "/api/v1/rs-order/orders"
_ID = r"(\d{1,18})"
# Spring serves HEAD by the handler of GET (protocol.md 1.0, 4).
_GET = ("GET", "HEAD")

_PLACES: list[tuple[tuple[str, ...], re.Pattern[str], Route, str]] = [
    (methods, re.compile(path), route, handler)
    for methods, path, route, handler in (
        (("POST",), "/api/v1/rs-authentication/oauth/token", Route.TOKEN, ""),
        (("POST",), f"{_ORDERS}/apply", Route.APPLY, "apply"),
        (_GET, _ORDERS, Route.ORDERS, "orders"),
        (_GET, f"{_ORDERS}/{_ID}", Route.ORDER, "order"),
        (_GET, f"{_ORDERS}/{_ID}/download", Route.ZIP, "zip"),
        (("PUT",), f"{_ORDERS}/pause/{_ID}", Route.ACTION, "pause"),
        (("PUT",), f"{_ORDERS}/resume/{_ID}", Route.ACTION, "resume"),
        (("PUT",), f"{_ORDERS}/{_ID}/retry", Route.ACTION, "retry"),
        (("POST",), f"{_ORDERS}/{_ID}/restart", Route.ACTION, "restart"),
        (("DELETE",), f"{_ORDERS}/{_ID}", Route.ACTION, "delete"),
        (_GET, f"{_FILES}/{_ID}/files/available", Route.AVAILABLE, "available"),
        (_GET, f"{_FILES}/{_ID}/filesTask/{_ID}/files/available", Route.AVAILABLE, "available"),
        (_GET, f"{_FILES}/{_ID}/dataset/{_ID}/files", Route.DATASET_FILES, "dataset_files"),
        (_GET, f"{_FILES}/files/{_ID}", Route.FILE, "file"),
    )
]


def _find_place(request: Request) -> tuple[Route, str, int, int] | None:
    for methods, pattern, route, handler in _PLACES:
        if request.method in methods and (found := pattern.fullmatch(request.path)):
            number, sub_number, *_ = *map(int, found.groups()), 0, 0
            return route, handler, number, sub_number
    return None
