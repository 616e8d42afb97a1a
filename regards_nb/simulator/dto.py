"""The JSON of the REST side, field by field as REGARDS writes it (protocol.md 1.1 to 1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from regards_nb.simulator import lifecycle
from regards_nb.simulator.lifecycle import Action, FileState, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from regards_nb.simulator.lifecycle import Order, OrderFile

Json = dict[str, Any]
_Item = TypeVar("_Item")

#: Spring's limit for one page, whatever is asked for.
MAX_PAGE_SIZE = 2000

_ORDERS = "/api/v1/rs-order/user/orders"
_ACTION_PATHS = {
    Action.PAUSE: f"{_ORDERS}/pause/{{id}}",
    Action.RESUME: f"{_ORDERS}/resume/{{id}}",
    Action.DELETE: f"{_ORDERS}/{{id}}",
    Action.RESTART: f"{_ORDERS}/{{id}}/restart",
    Action.RETRY: f"{_ORDERS}/{{id}}/retry",
}


def download_path(order_id: int) -> str:
    """Return the path of an order's zip."""
    return f"{_ORDERS}/{order_id}/download"


def without_nulls(fields: Json) -> Json:
    """Return the fields that have a value: REGARDS omits the others."""
    return {name: value for name, value in fields.items() if value is not None}


def date(at: datetime) -> str:
    """Write a time as REGARDS does."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def order(item: Order, *, host: str) -> Json:
    """Return an ``OrderDto`` with the links of what is allowed now."""
    files = list(item.files)
    whole_bytes = sum(_size_bytes(file) for file in files)
    staged_bytes = sum(_size_bytes(file) for file in files if file.state is not FileState.PENDING)
    failed = (FileState.ERROR, FileState.DOWNLOAD_ERROR)
    dataset = {
        "id": item.dataset_id,
        "datasetLabel": item.plan.dataset,
        "objectsCount": len({file.spec.product_id or file.spec.name for file in files}),
        "filesCount": len(files),
        "filesSize": whole_bytes,
    }
    content = {
        "id": item.order_id,
        "owner": item.owner,
        "label": item.label,
        "creationDate": date(item.created_at),
        "expirationDate": date(item.expires_at),
        "percentCompleted": 100 * staged_bytes // whole_bytes if whole_bytes else 100,
        "filesInErrorCount": sum(file.state in failed for file in files),
        "availableFilesCount": sum(file.state is FileState.AVAILABLE for file in files),
        "status": item.status.value,
        "statusDate": date(item.status_at),
        "waitingForUser": item.waits_for_user,
        "datasetTasks": [dataset],
    }
    return {"content": content, "links": _links(item, host)}


def _size_bytes(file: OrderFile) -> int:
    return 0 if file.spec.reference else file.spec.source.size_bytes


def _links(item: Order, host: str) -> list[Json]:
    links = {"self": f"{_ORDERS}/{item.order_id}", "list": _ORDERS}
    if item.status is not OrderState.DELETED and item.available():
        links["download"] = download_path(item.order_id)
    for action, path in _ACTION_PATHS.items():
        if lifecycle.refusal(item, action) is None:
            links[action.value] = path.format(id=item.order_id)
    return [{"rel": rel, "href": host + path} for rel, path in links.items()]


def available_file(file: OrderFile, *, host: str, checksum: str | None) -> Json:
    """Return one line of the manifest."""
    spec = file.spec
    content = {
        "id": file.file_id,
        "productId": spec.product_id,
        "version": 1,
        "downloadUrl": f"{host}/api/v1/rs-order/orders/files/{file.file_id}",
        "mimeType": spec.mime_type,
        "checksum": checksum,
        "filesize": None if spec.reference else spec.source.size_bytes,
        "filename": spec.name,
    }
    return {"content": without_nulls(content), "links": []}


def dataset_file(file: OrderFile, *, checksum: str | None) -> Json:
    """Return one file of a data set, whatever its state."""
    spec = file.spec
    content = {
        "id": file.file_id,
        "orderId": file.order_id,
        "reference": spec.reference,
        "state": file.state.value,
        "downloadError": file.error,
        "checksum": checksum,
        "digestAlgorithm": "MD5" if checksum else None,
        "filesize": None if spec.reference else spec.source.size_bytes,
        "filename": spec.name,
        "mimeType": spec.mime_type,
        "dataType": spec.data_type,
        "productId": spec.product_id,
    }
    return {"content": without_nulls(content), "links": []}


def page(items: Sequence[_Item], *, number: int, size: int, show: Callable[[_Item], Json]) -> Json:
    """Return one page of *items*."""
    size = min(max(size, 1), MAX_PAGE_SIZE)
    return {
        "metadata": {
            "size": size,
            "totalElements": len(items),
            "totalPages": -(-len(items) // size),
            "number": number,
        },
        "content": [show(item) for item in items[number * size : (number + 1) * size]],
        "links": [],
    }
