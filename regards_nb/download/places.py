"""The place of files: a folder, or ``s3://bucket/prefix``, made from what the user gave.

`files_in` chooses between `FolderFiles` and `BucketFiles`, which have the same methods. Nothing
else in this room tells the two apart but `open_workspace`.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import urlsplit

from regards_nb.arguments import url_scheme
from regards_nb.download.bucket import EXTRA, BucketFiles, split_url
from regards_nb.download.disk import STATE_FOLDER, FolderFiles
from regards_nb.download.names import safe_name
from regards_nb.errors import SettingsError
from regards_nb.files import SCHEME, is_url
from regards_nb.text import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upath import UPath

    from regards_nb.files import FileRecord

#: The folder of files on a disk or in a bucket.
Place: TypeAlias = "Path | UPath"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


def as_place(given: str | Path | UPath) -> Place:
    """Return the place that a user, a profile or a variable names.

    It is an absolute path, or the URL of ``s3://bucket/prefix``; `str` of it can be given again,
    also in another process. SettingsError: another kind of URL, or the extra ``s3`` is missing.
    """
    text = str(given)
    scheme = url_scheme(text)
    if scheme is None:
        return Path(text).expanduser().absolute()
    text = scheme.lower() + text[len(scheme) :]
    if not is_url(text):
        raise SettingsError(
            f"{scheme}: files go to a folder or to s3://bucket/prefix, given as text; other "
            "addresses cannot be written to. For another store, mount it as a folder, or use its "
            "S3 interface with AWS_ENDPOINT_URL"
        )
    bucket, prefix = split_url(text)
    prefix = prefix.rstrip("/")
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


def paths_of(records: Iterable[FileRecord]) -> list[Path]:
    """Return the path of each file once: several files may be in one kept zip.

    A URL becomes an `upath.UPath`, which has the same methods.
    """
    return [_path_of(text) for text in dict.fromkeys(each.path for each in records) if text]


def _path_of(text: str) -> Path:
    if not is_url(text):
        return Path(text)
    from upath import UPath

    return cast("Path", UPath(text))


def files_in(folder: str, what: str = "") -> FolderFiles | BucketFiles:
    """Return the files of a folder, or of a URL; *what* they belong to, for error texts."""
    return BucketFiles(folder, what) if is_url(folder) else FolderFiles(folder)


def root_and_name(path: str) -> tuple[str, str]:
    """Return what `files_in` takes, and the name of a file there: a folder, or all of a bucket."""
    if is_url(path):
        bucket, key = split_url(path)
        return SCHEME + bucket, key
    folder, _, name = path.rpartition(os.sep)
    return folder, name


def archive_of(base_url: str, tenant: str) -> str:
    """Return what tells two archives or two tenants apart.

    The port counts for other computers only: a simulator gets another one at each start.
    """
    parts = urlsplit(base_url)
    is_here = is_loopback(parts.hostname or "")
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
    files = files_in(str(workspace), f"order {order_id}")
    name = next(name for name in names if _claim(files, f"{STATE_FOLDER}/{name}.archive", archive))
    return workspace / name


def _claim(files: FolderFiles | BucketFiles, marker: str, archive: str) -> bool:
    """Return whether a folder is this archive's, after claiming it if it has no owner."""
    wanted = archive.encode()
    found = files.read(marker)
    if found is None:
        try:
            if files.create_small(marker, wanted):
                return True
        except OSError:  # the download itself will say what is wrong with the folder
            return True
        found = files.read(marker)
    return found == wanted
