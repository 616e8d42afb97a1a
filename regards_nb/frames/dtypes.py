"""The columns of each frame and their dtypes, which never change with the number of rows."""

from __future__ import annotations

TIME = "datetime64[us, UTC]"

#: Columns of `Frames.events`. ``status`` is categorical, with the unknown ones added as they come.
EVENT_DTYPES = {
    "received_at": TIME,
    "timestamp": TIME,
    "tenant": "str",
    "correlation_id": "str",
    "order_id": "Int64",
    "status": "category",
    "message": "str",
    "download_link": "str",
    "error_type": "str",
    "errors": "Int64",
    "total_sub_orders": "Int64",
    "sub_order_id": "Int64",
    "app_id": "str",
    "redelivered": "bool",
}
ORDER_DTYPES = {
    "order_id": "Int64",
    "status": "category",
    "finished": "bool",
    "progress": "Float64",
    "suborders_done": "Int64",
    "suborders_total": "Int64",
    "errors": "Int64",
    "error_type": "str",
    "message": "str",
    "download_link": "str",
    "downloaded_files": "Int64",
    "downloaded_bytes": "Int64",
    "label": "str",
    "first_event": TIME,
    "last_event": TIME,
    "waits_for_download": "bool",
    "expires_at": TIME,
}
FILE_DTYPES = {
    "order": "Int64",
    "name": "str",
    "path": "str",
    "size": "Int64",
    "md5": "str",
    "state": "category",
    "error": "str",
}
#: Columns of `RegardsClient.orders`; ``order_id`` is the index.
REMOTE_DTYPES = {
    "order_id": "int64",
    "status": "category",
    "label": "str",
    "owner": "str",
    "percent_completed": "Int64",
    "waiting_for_user": "bool",
    "available_files": "Int64",
    "files_in_error": "Int64",
    "files_total": "Int64",
    "bytes_total": "Int64",
    "created_at": TIME,
    "status_at": TIME,
    "expires_at": TIME,
}
REJECTED_DTYPES = {"body": "object", "reason": "str", "received_at": TIME}
