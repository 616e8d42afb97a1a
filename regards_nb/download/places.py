"""The place of the files: a folder, or ``s3://bucket/prefix``, made from what the user gave.

This is the one file that chooses between the two.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import urlsplit

from regards_nb.download.bucket import EXTRA, SCHEME, Bucket, is_url, split_url
from regards_nb.download.bucket_workspace import BucketWorkspace
from regards_nb.download.disk import STATE_FOLDER, link_without_replacing, make_state_folder
from regards_nb.download.names import safe_name
from regards_nb.download.workspace import FolderWorkspace
from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    import threading

    from upath import UPath

    from regards_nb.download.workspace import Workspace

#: The folder of files on a disk or in a bucket.
Place: TypeAlias = "Path | UPath"

#: One letter is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def as_place(given: str | Path | UPath) -> Place:
    """Return the place that a user, a profile or a variable names.

    It is an absolute path, or the URL of ``s3://bucket/prefix``; `str` of it can be given again,
    also in another process. SettingsError: another kind of URL, or the extra ``s3`` is missing.
    """
    text = str(given)
    scheme = _URL.match(text)
    if scheme is None:
        return Path(text).expanduser().absolute()
    if not is_url(text):
        raise SettingsError(
            f"{scheme[1]}: files go to a folder or to s3://bucket/prefix, given as text; other "
            "addresses cannot be written to. For another store, mount it as a folder, or use its "
            "S3 interface with AWS_ENDPOINT_URL"
        )
    bucket, prefix = split_url(text.rstrip("/"))
    if "@" in bucket or ":" in bucket:
        # The text is not repeated: it may hold a key.
        raise SettingsError(
            "s3://bucket/prefix holds no account and no port: set AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    if not _BUCKET.fullmatch(bucket):
        raise SettingsError(f"{text!r} names no bucket: give s3://bucket/prefix")
    if {"", ".", ".."} & set(prefix.split("/")) and prefix:
        raise SettingsError(f"{text!r}: a prefix has no empty part, no '.' and no '..'")
    if not all(importlib.util.find_spec(name) for name in ("obstore", "upath")):
        raise SettingsError(f"{SCHEME}{bucket} needs an extra: {EXTRA}")
    from upath import UPath

    return UPath(f"{SCHEME}{bucket}/{prefix}" if prefix else f"{SCHEME}{bucket}")


def path_of(text: str) -> Path:
    """Return a recorded path, or a URL as an `upath.UPath`, which has the same methods."""
    if not is_url(text):
        return Path(text)
    from upath import UPath

    return cast("Path", UPath(text))


def open_workspace(
    place: Place,
    order_id: int,
    *,
    durable: bool = True,
    stop: threading.Event | None = None,
) -> Workspace:
    """Return the workspace of one download into a place.

    That nothing can be written there is known, as WorkspaceError, before anything is fetched.
    """
    if isinstance(place, Path):
        return FolderWorkspace(place, order_id, durable=durable)
    return BucketWorkspace(str(place), order_id, stop=stop)


def list_place(place: Place) -> None:
    """List the objects of a bucket below a prefix; raise WorkspaceError where that is refused."""
    bucket, prefix = split_url(str(place))
    Bucket(bucket).list(prefix)


def archive_of(base_url: str, tenant: str) -> str:
    """Return what tells two archives or two tenants apart.

    The port counts for other computers only: a simulator gets another one at each start.
    """
    parts = urlsplit(base_url)
    is_here = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    return f"{parts.hostname if is_here else parts.netloc}{parts.path.rstrip('/')} {tenant}"


def order_folder(workspace: Place, order_id: int, archive: str) -> Place:
    """Return the folder of an order in a workspace that several archives may share.

    It is ``<workspace>/<order id>``, or ``<workspace>/<order id>-<tenant>`` if that folder has the
    order of another archive. A small file in ``<workspace>/.regards`` says whose each folder is.
    """
    tenant = safe_name(archive.rpartition(" ")[2])
    names = itertools.chain(
        [f"{order_id}", f"{order_id}-{tenant}"],
        (f"{order_id}-{tenant}-{number}" for number in itertools.count(2)),
    )
    for name in names:
        marker = f"{name}.archive"
        if isinstance(workspace, Path):
            is_ours = _claim(workspace, marker, archive)
        else:
            is_ours = _claim_in_bucket(str(workspace), marker, archive, order_id)
        if is_ours:
            return workspace / name
    raise AssertionError  # the names never end


def _claim(workspace: Path, name: str, archive: str) -> bool:
    """Return whether a folder is this archive's, after claiming it if it has no owner."""
    marker = workspace / STATE_FOLDER / name
    with suppress(FileNotFoundError):
        return marker.read_text(encoding="utf-8") == archive
    with suppress(OSError):  # the download itself will say what is wrong with the folder
        make_state_folder(workspace)
        draft = marker.with_name(f"{name}.{secrets.token_hex(6)}")
        draft.write_text(archive, encoding="utf-8")
        if not link_without_replacing(str(draft), str(marker)):
            draft.unlink()
            return _claim(workspace, name, archive)
    return True


def _claim_in_bucket(workspace: str, name: str, archive: str, order_id: int) -> bool:
    """Do the same in a bucket."""
    bucket_name, prefix = split_url(workspace)
    bucket = Bucket(bucket_name, f"order {order_id}")
    key = "/".join(filter(None, (prefix, STATE_FOLDER, name)))
    wanted = archive.encode()
    found = bucket.read(key)
    if found is None and bucket.create_small(key, wanted):
        return True
    return (bucket.read(key) if found is None else found) == wanted
