"""The files below a prefix of a bucket: list, look at, read and create objects, say what is wrong.

obstore takes the account, the region and the endpoint from the environment (``AWS_...``). It is
imported when a bucket is used for the first time. A store object of obstore is never pickled and
never shown, because it may hold the secret key.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
import secrets
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from regards_nb.client import asking_again, byte_came, pausing, waiting
from regards_nb.download.disk import md5_of
from regards_nb.errors import DownloadError, WorkspaceError
from regards_nb.files import SCHEME
from regards_nb.text import clean, is_loopback, size
from regards_nb.waits import awaited, is_stopped, time_left_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from obstore import GetResult
    from obstore.store import S3Store

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

EXTRA = "pip install 'regards_nb[s3]'"

#: What is recorded beside the content of an object.
_MD5, _SIZE = "md5", "size-bytes"
#: S3 takes no more in one request, and obstore has conditional creation in one request only.
_LARGEST_PUT_BYTES = 5 << 30
#: A multipart upload has at most 10,000 parts.
_MOST_PARTS = 9_000
#: Requests with a small and with a large body, at 200 kB/s and more.
_SMALL_BYTES, _SMALL_TIMEOUT_S, _LARGE_TIMEOUT_S = 32 << 20, 180.0, 8 * 3600.0
_CONNECT_TIMEOUT_S = 10.0
_RETRY_TIMEOUT_S = 60.0
_SIGNED_FOR = timedelta(minutes=5)
#: An unfinished upload of another computer is aborted when it is so old.
_OLD_UPLOAD_S = 24 * 3600.0
#: From this size on lines go to another object, so that little is written again and few are read.
_LINES_BYTES = 1 << 16

_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
#: S3 has no code for a full store. Ceph sends QuotaExceeded (403), MinIO
#: XMinioAdminBucketQuotaExceeded (400) and XMinioStorageFull (507).
_FULL_CODE, _FULL_STATUS = re.compile(r"Quota|StorageFull"), 507
#: What to do about a refused access: by the code of S3, and in general.
_WRONG_KEY = {
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is wrong",
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID is wrong",
}
_RIGHTS = (
    "The account of AWS_ACCESS_KEY_ID or AWS_PROFILE needs the right to list, read and create "
    "objects there"
)
_NO_ACCOUNT = "169.254.169.254"
_REST_STAYS = "Uploaded files stay: download again, and only the missing files are fetched"


class Found(NamedTuple):
    """What the store tells of an object."""

    size_bytes: int
    #: The MD5 that was recorded when it was created; None for an object of another program.
    md5: str | None
    #: Tells this object from a later one with the same key.
    e_tag: str | None


def split_url(url: str) -> tuple[str, str]:
    """Return the bucket and the key of a URL; it is text, without percent-encoding.

    >>> split_url("s3://bucket/orders/12/a b#1.nc")
    ('bucket', 'orders/12/a b#1.nc')
    """
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    return bucket, key


class BucketFiles:
    """The files of ``s3://bucket/prefix``. Safe in any thread. `FolderFiles` does the same.

    *what* is its purpose, such as ``order 12``, for error texts; *stop* ends the pauses between two
    attempts.
    """

    #: A larger file is uploaded in parts, of at least this size.
    largest_put_bytes, part_bytes = _LARGEST_PUT_BYTES, 16 << 20
    #: obstore repeats what is refused for now (503), in three seconds, but no upload that was cut.
    retries = 4
    #: The pauses before another attempt to create an object: less than a minute together.
    pauses_s: tuple[float, ...] = (1.0, 3.0, 8.0, 15.0)

    def __init__(self, url: str, what: str = "", stop: threading.Event | None = None) -> None:
        self._url = url
        self._bucket, prefix = split_url(url)
        self._start = f"{prefix}/" if prefix else ""
        self._what = f"{what}: " if what else ""
        self._stop = stop or threading.Event()
        #: The names and sizes in each folder.
        self._listed: dict[str, dict[str, int]] = {}
        #: The object that the last lines were added to, and what it holds.
        self._last_lines = ("", b"")
        self._lock = threading.Lock()
        with self._errors():
            self._small = _store(self._bucket, _SMALL_TIMEOUT_S)
            self._large = _store(self._bucket, _LARGE_TIMEOUT_S)
            self._read = _store(self._bucket, _LARGE_TIMEOUT_S, read_timeout_s=_SMALL_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<BucketFiles {self._url!r}>"

    def join(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self._url}/{name}"

    def list(self, folder: str = "") -> dict[str, int]:
        """Return the names of the files, or of those in a folder, and their sizes in bytes."""
        prefix = f"{self._start}{folder}/" if folder else self._start
        with self._errors():
            found = self._answer(lambda: self._small.list_with_delimiter(prefix or None))
        return {each["path"].rpartition("/")[2]: each["size"] for each in found["objects"]}

    def size_of(self, name: str) -> tuple[int | None, bool]:
        """Return the size of a file, None where there is none, and that it is a plain file.

        Each folder is listed once.
        """
        folder, _, last = name.rpartition("/")
        if folder not in self._listed:
            self._listed[folder] = self.list(folder)
        return self._listed[folder].get(last), True

    def look(self, name: str) -> Found | None:
        """Return what the store tells of an object; None where there is none."""
        # a HEAD request; unlike `head` it also returns what was recorded with the object
        found = self._get(name, head=True)
        if found is None:
            return None
        return Found(found.meta["size"], found.attributes.get(_MD5), found.meta["e_tag"])

    def create(
        self,
        name: str,
        source: bytes | str,
        size_bytes: int,
        md5: str,
        *,
        replaces: str | None = None,
    ) -> bool:
        """Create an object in one step; return False, and do nothing, where there is another.

        *source* is its content, or the path of a file with it; *replaces* is the ETag of an object
        that may be there. WorkspaceError: the store refuses it, or does not answer for about a
        minute.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        attributes = {_MD5: md5, _SIZE: str(size_bytes)}
        for pause_s in (*self.pauses_s, None):
            try:
                return self._put(name, source, size_bytes, attributes, replaces)
            except (AlreadyExistsError, PreconditionError):
                # perhaps by this call: the answer to another attempt may have been lost
                return False
            except (BaseError, FileNotFoundError) as exc:
                with pausing(asking_again(pause_s or 0.0, self._reason(exc))):
                    if pause_s is None or not _may_pass(exc) or self._stop.wait(pause_s):
                        error = self._explained(exc)
                        raise error from error.__cause__
        raise AssertionError  # the last attempt returns or raises

    def create_small(self, name: str, data: bytes) -> bool:
        """Create an object with a few bytes; return False, and do nothing, where it exists."""
        return self.create(name, data, len(data), md5_of([data]))

    def _put(
        self, name: str, source: bytes | str, size_bytes: int, attributes: Any, replaces: str | None
    ) -> bool:
        key = self._start + name
        store = self._small if size_bytes <= _SMALL_BYTES else self._large
        mode: Any = "create" if replaces is None else {"e_tag": replaces}
        content: Any = source
        if isinstance(source, bytes) or not size_bytes:
            content = source if isinstance(source, bytes) else b""
        elif size_bytes <= self.largest_put_bytes:
            with open(source, "rb") as file:  # noqa: PTH123 - a string
                # Not closed: an upload that was abandoned may still read it.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content = memoryview(mapped)
        else:
            # There is no conditional upload in parts. Another program could create the object
            # between the look and the end of the upload.
            found = self.look(name)
            if (found and found.e_tag) != replaces:
                return False
            content, mode = Path(source), None
        # of an upload in parts
        part_bytes = max(self.part_bytes, size_bytes // _MOST_PARTS)
        put = partial(
            store.put, key, content, mode=mode, attributes=attributes, chunk_size=part_bytes
        )
        limit_s = _SMALL_TIMEOUT_S if store is self._small else _LARGE_TIMEOUT_S
        told = f"; it is given up after {limit_s:.0f} s, and tried again"
        self._answer(put, limit_s, what=f" to an upload of {size(size_bytes)}", ending=told)
        return True

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of an object."""
        with self._errors():
            found = self._answer(lambda: self._read.get(self._start + name))
            blocks = found.stream(min_chunk_size=1 << 20)
            while (block := self._answer(lambda: next(blocks, None))) is not None:
                yield bytes(block)

    def has(self, name: str, size_bytes: int, md5: str, *, reads: bool) -> bool:
        """Return whether an object has this size and MD5.

        An object is read if *reads* says so, or if it has no MD5 beside it because another program
        created it. Else the MD5 beside it is believed.
        """
        found = self.look(name)
        if found is None or found.size_bytes != size_bytes:
            return False
        if found.md5 is not None and not reads:
            return found.md5 == md5
        return md5_of(self.blocks(name)) == md5

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object; None where there is none."""
        found = self._get(name, head=False)
        with self._errors():
            return None if found is None else bytes(self._answer(found.bytes))

    def _get(self, name: str, *, head: bool) -> GetResult | None:
        with self._errors():
            try:
                return self._answer(
                    lambda: self._small.get(self._start + name, options={"head": head})
                )
            except FileNotFoundError as exc:
                if _code(exc) == "NoSuchBucket":
                    raise
                return None

    # -- lines: nothing can be added to an object, so there is a folder of them

    def lines(self, name: str) -> Sequence[bytes]:
        """Return the lines that were added under a name."""
        objects = sorted(self.list(name))
        texts = (self.read(f"{name}/{each}") or b"" for each in objects)
        return [line for text in texts for line in text.splitlines()]

    def add_lines(self, name: str, lines: bytes, *, durable: bool) -> None:
        """Write the last object once more with these lines, or begin another one.

        Their names sort by time, and no two processes write the same one.
        """
        del durable  # an object is durable when it is created
        with self._lock:
            last, before = self._last_lines
            if last and len(before) > _LINES_BYTES:
                last, before = "", b""
            last = last or f"{name}/{time.time_ns():020}-{secrets.token_hex(4)}.jsonl"
            # After an error or Ctrl-C they go to another object: the store may carry out a request
            # that was given up, and later than the next one.
            self._last_lines = ("", before + lines)
            with self._errors():
                self._answer(lambda: self._small.put(self._start + last, before + lines))
            self._last_lines = (last, before + lines)

    # -- unfinished uploads

    def abort_uploads(self, name: str, *, is_ours: bool) -> None:
        """Abort the unfinished uploads of this file; those of others may be of other programs.

        *is_ours*: a process of this computer was uploading it and has died. Otherwise only uploads
        that are old are aborted.
        """
        from xml.etree import ElementTree as ET  # imported here: only this reads XML

        key = self._start + name
        try:
            answer = self._ask("GET", "", uploads="", prefix=key)
            # of the store that the user chose, which also has the user's files
            for upload in ET.fromstring(answer).iterfind("{*}Upload"):  # noqa: S314
                found, upload_id, began = (
                    upload.findtext(f"{{*}}{tag}", "") for tag in ("Key", "UploadId", "Initiated")
                )
                age_s = (datetime.now(UTC) - datetime.fromisoformat(began)).total_seconds()
                if found == key and (is_ours or age_s > _OLD_UPLOAD_S):
                    self._ask("DELETE", quote(key), uploadId=upload_id)
                    _log.info("aborted an unfinished upload of %s%s/%s", SCHEME, self._bucket, key)
        except (OSError, ET.ParseError, ValueError) as exc:
            # Not every account may list uploads. They are invisible, and cost only storage.
            _log.debug("unfinished uploads were not looked for: %s", type(exc).__name__)

    def _ask(self, method: Any, path: str, **query: str) -> bytes:
        """Make a request for which obstore has no call, signed by obstore.

        `obstore.sign` signs the whole URL of an object, with the query of the endpoint, and puts
        the key behind it. So the query is in the endpoint, and the key is the rest of ``x-id``,
        a parameter that names the request and changes nothing.
        """
        import obstore

        pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        where = _address(self._bucket)
        signer = _store(
            self._bucket,
            _SMALL_TIMEOUT_S,
            endpoint=f"{where}{f'/{path}' if path else ''}?{pairs}&x-id=regards-nb",
            virtual_hosted_style_request=True,
        )
        with self._errors():
            url = obstore.sign(signer, method, "uploads", _SIGNED_FOR)
        import urllib.request

        request = urllib.request.Request(url, method=method)  # noqa: S310 - our own address

        def read() -> bytes:
            with closing(urllib.request.urlopen(request, timeout=_CONNECT_TIMEOUT_S)) as answer:  # noqa: S310
                content: bytes = answer.read()
            return content

        return self._answer(read, _CONNECT_TIMEOUT_S)

    # -- waits and errors

    def _answer(
        self,
        job: Callable[[], _Result],
        limit_s: float = _SMALL_TIMEOUT_S,
        *,
        what: str = "",
        ending: str = "",
    ) -> _Result:
        """Return the answer of the store to one request; each request of this class is made here.

        Meanwhile the progress of a download, and in the main thread a line, say that the store does
        not answer. Ctrl-C, or the stop of a download, ends the wait at once, and not the request.
        """
        where = f"{SCHEME}{self._bucket} at {_endpoint() or 'AWS'}"
        ending = ending or f"; the request is given up after {limit_s:.0f} s"
        try:
            with waiting(store=where + what, ending=ending):
                answer = awaited(job, f"waiting for {where}", ends_after_s=limit_s)
                byte_came()
                return answer
        except TimeoutError:
            if not is_stopped() and time_left_s() > 0:  # of the job itself
                raise
            raise DownloadError(
                f"{self._what}stopped while {where} did not answer. {_REST_STAYS}"
            ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of obstore into a WorkspaceError that says what to do."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as exc:
            error = self._explained(exc)
            raise error from error.__cause__

    def _explained(self, exc: Exception) -> WorkspaceError:
        """Return an error without the one of obstore as its cause, which prints whole requests.

        Where no later attempt can help, the cause is that of a folder without rights.
        """
        stays = "" if _NO_ACCOUNT in str(exc) else f". {_REST_STAYS}"
        error = WorkspaceError(f"{self._what}{self._reason(exc)}{stays}")
        if not (_may_pass(exc) or _is_full(exc)):
            error.__cause__ = PermissionError(errno.EACCES, f"{SCHEME}{self._bucket}")
        return error

    def _reason(self, exc: Exception) -> str:
        place, endpoint = f"{SCHEME}{self._bucket}", _endpoint() or "AWS"
        text = str(exc).partition("\n\nDebug source")[0]
        code, status = _code(exc), _status(exc)
        told = " ".join(str(each) for each in (status, code) if each)
        if code == "NoSuchBucket" or (status == 404 and not code):
            reason = (
                f"there is no bucket {self._bucket!r} at {endpoint}: create it, or name another"
            )
        elif _NO_ACCOUNT in text:
            reason = (
                f"no account for {place} was found: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (needs pip install boto3)"
            )
        elif code == "ExpiredToken":  # AWS sends it with status 400
            reason = (
                f"the session of the account for {place} has ended ({told}): log in again, and set "
                "AWS_SESSION_TOKEN with its keys anew"
            )
        elif _is_full(exc):
            reason = f"{place} at {endpoint} is full ({told}): make room, or ask for a higher quota"
        elif status in {401, 403}:
            advice = _WRONG_KEY.get(code or "", _RIGHTS)
            reason = f"{endpoint} refuses access to {place} ({told}). {advice}"
        elif status in {429, 503}:
            reason = f"{endpoint} asks for fewer requests ({told}) for {place}: try later"
        elif "builder error" in text and endpoint.startswith("http:"):
            reason = (
                f"{endpoint} of {place} is not encrypted: give an https:// address in "
                "AWS_ENDPOINT_URL, or set AWS_ALLOW_HTTP=true if the network is yours"
            )
        elif status is None and "HTTP error" in text:
            reason = f"{endpoint} does not answer for {place}, or the connection broke"
        else:
            reason = f"{place} at {endpoint} cannot be used: {told or clean(text, 200)}"
            if status is not None and status >= 500:
                reason += ". Perhaps its disk is full: try later, or ask its administrator"
        return reason


def _store(
    bucket: str, timeout_s: float, *, read_timeout_s: float | None = None, **options: Any
) -> S3Store:
    from obstore.store import S3Store

    endpoint = _endpoint()
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=timeout_s),
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
    }
    if read_timeout_s is not None:
        # It also counts while a body is sent.
        client["read_timeout"] = timedelta(seconds=read_timeout_s)
    is_here = is_loopback(urlsplit(endpoint or "").hostname or "")
    if is_here:
        client["allow_http"] = True
    return S3Store(
        bucket,
        client_options=client,  # type: ignore[arg-type]
        retry_config={
            "max_retries": BucketFiles.retries,
            "retry_timeout": timedelta(seconds=_RETRY_TIMEOUT_S),
        },
        credential_provider=_profile(),
        # TLS protects the content on its way. A sum of it costs both sides processor time.
        unsigned_payload=is_here or endpoint is None or endpoint.startswith("https:"),
        **options,
    )


def _profile() -> Any:
    """Return the account of ``AWS_PROFILE``; None where the environment has the keys itself."""
    name = os.environ.get("AWS_PROFILE")
    if not name or os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    try:
        # obstore reads no profiles; boto3 reads all kinds of them
        from boto3 import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise WorkspaceError(
            "AWS_PROFILE needs boto3: pip install boto3, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    try:
        return Boto3CredentialProvider(Session(profile_name=name))
    except (BotoCoreError, ValueError) as exc:
        raise WorkspaceError(f"AWS_PROFILE={name} gives no account: {exc}") from None


def _endpoint() -> str | None:
    """Return the address of the store; None for AWS."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next(filter(None, map(os.environ.get, names)), None)


def _address(bucket: str) -> str:
    """Return the address of a bucket."""
    endpoint = _endpoint()
    if endpoint is None:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        return f"https://s3.{region}.amazonaws.com/{bucket}"
    has_bucket = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() == "true"
    return endpoint.rstrip("/") + ("" if has_bucket else f"/{bucket}")


def _code(exc: Exception) -> str | None:
    found = _CODE.search(str(exc))
    return found[1] if found else None


def _status(exc: Exception) -> int | None:
    found = _STATUS.search(str(exc))
    return int(found[1]) if found else None


def _may_pass(exc: Exception) -> bool:
    """Return whether another attempt can help: the connection broke, or the server is busy."""
    status, text = _status(exc), str(exc)
    if status is None:
        return "HTTP error" in text and "builder error" not in text and _NO_ACCOUNT not in text
    return status in {408, 409, 429} or (status >= 500 and status != _FULL_STATUS)


def _is_full(exc: Exception) -> bool:
    return _status(exc) == _FULL_STATUS or _FULL_CODE.search(_code(exc) or "") is not None
