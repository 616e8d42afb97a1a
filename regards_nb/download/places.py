"""The place of the files: a folder, or ``s3://bucket/prefix``, made from what the user gave.

`open_workspace` chooses between the two for new files, `records` for recorded ones. Files for a
bucket are staged and verified in a scratch folder of this computer. Each is then created in the
bucket by one conditional request, and its staged file is removed: no object is ever incomplete, and
none is replaced but a cut one of ours.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import urlsplit

from regards_nb.arguments import url_scheme
from regards_nb.download.bucket import EXTRA, SCHEME, Bucket, is_url, split_url
from regards_nb.download.disk import STATE_FOLDER, link_without_replacing, make_state_folder
from regards_nb.download.names import safe_name
from regards_nb.download.workspace import Workspace
from regards_nb.errors import SettingsError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence

    from upath import UPath

    from regards_nb.download.workspace import CheckedFile, Content
    from regards_nb.files import FileRecord

#: The folder of files on a disk or in a bucket.
Place: TypeAlias = "Path | UPath"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")

#: The keys of the objects that a process is uploading in parts, one a line.
_UPLOADS = "uploads"


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


def open_workspace(
    place: Place, order_id: int, *, durable: bool = True, stop: threading.Event | None = None
) -> Workspace:
    """Return the workspace of one download into a place.

    That nothing can be written there is known, as WorkspaceError, before anything is fetched.
    """
    if isinstance(place, Path):
        return Workspace(place, order_id, durable=durable)
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
    with suppress(FileNotFoundError, NotADirectoryError):
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


class BucketWorkspace(Workspace):
    """A prefix of a bucket, for the time of one download into it.

    That the bucket cannot be listed is known, as WorkspaceError, before anything is fetched.
    """

    parallel, batch_files, uploads = 8, 1, True
    #: Maximum size on the scratch disk of staged files that wait or are uploaded, plus one file.
    waiting_bytes = 256 << 20
    #: Small files arrive faster than a store answers, and the network does not wait for them: 32
    #: MiB of them may wait in memory.
    _memory_factor = 8
    other_folder = "name another scratch folder in the variable TMPDIR"

    def __init__(self, url: str, order_id: int, *, stop: threading.Event | None = None) -> None:
        self._url = f"{url}/"
        bucket, self._prefix = split_url(url)
        self._what = f"order {order_id}" if order_id else ""
        self._bucket = Bucket(bucket, self._what, stop)
        # A name that is in use is known without sending the file. It also keeps such names where
        # the server ignores the condition of a creation.
        self._names = set(self._bucket.list(self._prefix))
        self._unfinished: set[str] = set()
        # an object is durable when it is created
        super().__init__(Path(tempfile.gettempdir()), order_id, durable=False)
        for key in self._unfinished:
            self._bucket.abort_uploads(key, is_ours=True)

    def path_of(self, name: str) -> str:
        """Return the URL of a file with this final name."""
        return self._url + name

    def create(self, name: str, content: Content) -> bool:
        """Create an object with a content; return False where the name is in use."""
        return name not in self._names and self._upload(name, content)

    def _upload(self, name: str, content: Content, *, replaces: str | None = None) -> bool:
        key = self._key(name)
        source = content.data if content.path is None else content.path
        if content.size_bytes > self._bucket.largest_put_bytes:
            self._note_upload(key)
            self._bucket.abort_uploads(key, is_ours=False)
        is_done = self._bucket.create(
            key, source, content.size_bytes, content.md5, replaces=replaces
        )
        self._names.add(name)
        if is_done:
            content.discard()
        return is_done

    def has(self, name: str, content: Content, *, is_suspect: bool) -> bool:
        """Return whether the object with this final name has this content."""
        key = self._key(name)
        return self._bucket.has(key, content.size_bytes, content.md5, reads=is_suspect)

    def replace_cut(self, name: str, content: Content) -> bool:
        """Replace an object of ours that holds only the beginning of this content."""
        key = self._key(name)
        found = self._bucket.look(key)
        if found is None or found.size_bytes >= content.size_bytes:
            return False
        if not content.begins_with(self._bucket.blocks(key)):
            return False
        # After a lost answer the object is the new one, and is no more the one to be replaced.
        return self._upload(name, content, replaces=found.e_tag) or self.has(
            name, content, is_suspect=False
        )

    def held_bytes(self, files: Sequence[CheckedFile]) -> int:
        """Return how much these files count while they wait or are uploaded."""
        staged = sum(file.content.size_bytes for file in files if file.content.path is not None)
        return staged + self._memory_factor * super().held_bytes(files)

    def needed_bytes(self, sizes: Sequence[int], *, keeps_zip: bool) -> int:
        """Return how much room files of these sizes need in the scratch folder."""
        # a kept zip is staged as a whole; else one file may wait beyond the limit, and one is
        # being written
        total_bytes = sum(sizes)
        most_bytes = self.waiting_bytes + 2 * max(sizes, default=0)
        return total_bytes if keeps_zip else min(total_bytes, most_bytes)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _note_upload(self, key: str) -> None:
        """Write down which upload a later download is to abort if this process dies."""
        with (self.staging / _UPLOADS).open("a", encoding="utf-8") as file:
            file.write(f"{self._url}\n{key}\n")

    def _remove_orphan(self, folder: Path) -> None:
        """Remove the staging folder of a process that has died while it uploaded to this prefix."""
        with suppress(OSError):
            lines = (folder / _UPLOADS).read_text(encoding="utf-8").splitlines()
            self._unfinished.update(
                key for url, key in zip(lines[::2], lines[1::2], strict=False) if url == self._url
            )
        super()._remove_orphan(folder)
