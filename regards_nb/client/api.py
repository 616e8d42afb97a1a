"""``RegardsClient``: what one asks REGARDS over REST, method by method (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn, Self

from requests.auth import HTTPBasicAuth

from regards_nb.client.answers import error_for
from regards_nb.client.listing import manifest, pages
from regards_nb.client.login import Token, Tokens
from regards_nb.client.origin import DownloadLink, Origin
from regards_nb.client.rows import apply_answer, read_page, remote_order
from regards_nb.client.secret import Secret
from regards_nb.client.transport import Call, Repeat, Transport
from regards_nb.errors import (
    NotAllowedError,
    ServiceLoginError,
    SettingsError,
    UnexpectedAnswerError,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import pandas as pd

    from regards_nb.client.answers import Answer
    from regards_nb.client.body import Body
    from regards_nb.client.rows import ApplyResponse, RemoteOrder
    from regards_nb.files import FileRecord

_TOKEN = "/api/v1/rs-authentication/oauth/token"  # noqa: S105 - a path
_ORDERS = "/api/v1/rs-order/user/orders"
_FILES = "/api/v1/rs-order/orders"

#: Where a login does not say how long its token lives.
_DEFAULT_LIFE_S = 300.0
#: What proxies and login portals answer with.
_PAGES = ("text/html", "application/json", "application/xhtml")


class RegardsClient:
    """A REGARDS project over REST. Nothing is sent before the first method is called.

    Parameters
    ----------
    base_url : str
        ``https://host[:port][/path]``. The token is sent there and nowhere else.
    tenant : str
        Name of the project.
    username, password : str, optional
        The login; used again when the token ends.
    token : str, optional
        A token instead of a login; when it ends, a new client is needed.
    client_id, client_secret : str
        The application, as REGARDS knows it.
    ca_bundle : str, optional
        File of certificates to trust, instead of REQUESTS_CA_BUNDLE or certifi's.
    connect_timeout_s, read_timeout_s : float
        How long to wait for a connection, and for the next bytes of an answer.
    backoff_s : float
        Unit of the random waits before a request is repeated.

    Raises
    ------
    SettingsError
        ``base_url`` is not acceptable, or there is neither a login nor a token.

    Examples
    --------
    >>> RegardsClient("https://regards.example", tenant="swot", username="john", password="s")
    <RegardsClient https://regards.example tenant='swot' username='john'>

    Notes
    -----
    Safe to use from several threads. Not picklable: it holds a password.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tenant: str,
        username: str | None = None,
        password: str | Secret | None = None,
        token: str | Secret | None = None,
        client_id: str = "client",
        client_secret: str | Secret = "secret",  # noqa: S107 - REGARDS' own default, no secret
        ca_bundle: str | Path | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 120.0,
        backoff_s: float = 1.0,
    ) -> None:
        # Hidden before anything can fail: tracebacks may show the variables of this frame.
        password, token = _hidden(password), _hidden(token)
        client_secret = Secret.of(client_secret)
        if not tenant or not isinstance(tenant, str):
            raise SettingsError(f"RegardsClient needs tenant=..., the project, not {tenant!r}")
        if token is None and (not username or password is None):
            raise SettingsError("RegardsClient needs username=... and password=..., or token=...")
        self.tenant = tenant
        self.username = username
        self._origin = Origin.parse(base_url)
        self._password = password
        self._client_id, self._client_secret = client_id, client_secret
        self._transport = Transport(
            self._origin,
            ca_bundle=None if ca_bundle is None else str(ca_bundle),
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            backoff_s=backoff_s,
        )
        given = None if token is None else Token(token, math.inf, math.inf)
        self._tokens = Tokens(None if password is None else self._log_in, given)

    def __repr__(self) -> str:
        user = f" username={self.username!r}" if self.username else ""
        return f"<RegardsClient {self._origin} tenant={self.tenant!r}{user}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RegardsClient is not pickled: it holds a password. Make one where needed"
        )

    @property
    def base_url(self) -> str:
        """Where REGARDS is, as it is contacted."""
        return str(self._origin)

    @property
    def token_ends_at(self) -> datetime | None:
        """When the login ends, which is renewed before; None before the first request."""
        return self._tokens.ends_at

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._transport.close()

    def login(self) -> None:
        """Get a token now, instead of at the first request.

        Raises
        ------
        ServiceLoginError
            User name, password, tenant or application refused.
        ServiceUnreachableError
            No answer.
        """
        self._tokens.current()

    def order(self, order_id: int) -> RemoteOrder:
        """Return what the server knows of one order.

        Raises
        ------
        OrderNotFoundError
            There is none of that number.
        NotAllowedError
            It belongs to somebody else.
        """
        answer = self._ask(Call(path=f"{_ORDERS}/{_number(order_id)}"))
        return remote_order(answer.json(), answer.asked)

    def orders(self, *, limit: int | None = None) -> pd.DataFrame:
        """Return the user's orders as the server sees them, wherever they were made.

        Parameters
        ----------
        limit : int, optional
            Only the newest.

        Returns
        -------
        pandas.DataFrame
            Newest first, index ``order_id``, without the deleted ones; to be filtered, as in
            ``client.orders().query("status == 'PAUSED'")``.
        """
        from regards_nb.frames import orders_frame

        return orders_frame(islice(self.iter_orders(), limit))

    def iter_orders(self, *, page_size: int = 100) -> Iterator[RemoteOrder]:
        """Yield all orders of the user, newest first, page by page as they are taken."""
        seen: set[int] = set()
        for page in pages(self._ask, lambda query: Call(path=_ORDERS, params=query), page_size):
            known = len(seen)
            for value in page.items:
                order = remote_order(value, page.asked)
                # the pages shift when an order is added meanwhile
                if order.order_id not in seen:
                    seen.add(order.order_id)
                    yield order
            if len(seen) == known:
                return  # a server that repeats itself would do so for ever

    def clock_skew_s(self) -> float | None:
        """Return by how much our clock is ahead of the server's; None where it does not say."""
        answer = self._ask(Call(path=_ORDERS, params={"page": 0, "size": 1}))
        read_page(answer.json(), answer.asked)  # the clock of a proxy is of no interest
        return answer.clock_skew_s

    def available_files(
        self, order_id: int, *, stop: threading.Event | None = None
    ) -> list[FileRecord]:
        """Return the manifest: all files that can be fetched now, by file id (protocol.md 1.4).

        Files that were downloaded are not in it any more.
        """
        return _by_id(self.iter_available_files(order_id, stop=stop))

    def iter_available_files(
        self, order_id: int, *, stop: threading.Event | None = None
    ) -> Iterator[FileRecord]:
        """Yield the manifest, page by page as it is taken: there may be very many files."""
        return self._files(order_id, "files/available", stop)

    def dataset_files(
        self, order_id: int, dataset_id: int, *, stop: threading.Event | None = None
    ) -> list[FileRecord]:
        """Return all files of one data set of an order, whatever their state on the server."""
        return _by_id(self.iter_dataset_files(order_id, dataset_id, stop=stop))

    def iter_dataset_files(
        self, order_id: int, dataset_id: int, *, stop: threading.Event | None = None
    ) -> Iterator[FileRecord]:
        """Yield the same, page by page as it is taken."""
        return self._files(order_id, f"dataset/{dataset_id}/files", stop)

    def apply(
        self,
        queries: Sequence[str],
        *,
        data_types: Sequence[str] | None = None,
        filename_regexp: str | None = None,
        correlation_id: str | None = None,
    ) -> ApplyResponse:
        """Ask for an order.

        Parameters
        ----------
        queries : sequence of str
            Queries of the catalogue (OpenSearch).
        data_types : sequence of str, optional
            ``RAWDATA``, ``QUICKLOOK``; by default what the server chooses.
        filename_regexp : str, optional
            Only files whose whole name matches.
        correlation_id : str, optional
            The client's own name for the order, at most 255 characters.

        Returns
        -------
        ApplyResponse
            GRANTED with an order id; or DENIED, FAILED with the reason.

        Raises
        ------
        ServiceError
            The request itself is not valid, or there is no answer. It is not sent twice: without
            an answer nobody knows whether there is an order now.
        """
        filters = {"dataTypes": list(data_types or ()), "filenameRegExp": filename_regexp}
        filters = {name: value for name, value in filters.items() if value}
        body = {
            "queries": list(queries),
            **({"filters": filters} if filters else {}),
            **({"correlationId": correlation_id} if correlation_id else {}),
        }
        call = Call(
            method="POST",
            path=f"{_ORDERS}/apply",
            json=body,
            repeat=Repeat.NEVER,
            welcome=frozenset({422}),
        )
        answer = self._ask(call)
        read = apply_answer(answer.json())
        if read is not None:
            return read
        if answer.status == 422:
            raise error_for(answer)
        raise UnexpectedAnswerError(f"{answer.described()}. That is no answer to a request")

    @contextmanager
    def open_zip(
        self, order_id: int, *, stop: threading.Event | None = None
    ) -> Iterator[Body | None]:
        """Open the zip of all files that are available now, or None if there is none.

        Every call spends quota. Once its end was received, the server counts the files as
        downloaded and prepares the next (protocol.md 0.3). It is never sent again by itself once
        an answer has begun.
        """
        path = f"{_ORDERS}/{_number(order_id)}/download"
        call = Call(path=path, repeat=Repeat.UNANSWERED, stop=stop)
        with self._transport.stream(call, self._tokens) as body:
            body.refuse_page(_PAGES)
            yield None if body.status_code == 204 else body

    @contextmanager
    def open_file(self, file_id: int, *, stop: threading.Event | None = None) -> Iterator[Body]:
        """Open one file by the id that the manifest gave, also after it was downloaded.

        Raises
        ------
        NotAllowedError
            Status 202: not ready yet.
        QuotaError
            Too many downloads, today or at once.
        ServiceError
            With the status of the storage: 404, 410, 422 and so on.
        """
        call = Call(path=f"{_FILES}/files/{file_id}", stop=stop)
        with self._transport.stream(call, self._tokens) as body:
            body.refuse_page(() if body.is_attachment else _PAGES)
            if body.status_code != 200:
                raise NotAllowedError(
                    f"{call.asked}: HTTP {body.status_code}, not ready yet",
                    status_code=body.status_code,
                )
            yield body

    def pause(self, order_id: int) -> None:
        """Pause an order that is pending or running."""
        self._act("PUT", f"{_ORDERS}/pause/{_number(order_id)}")

    def resume(self, order_id: int) -> None:
        """Resume a paused order."""
        self._act("PUT", f"{_ORDERS}/resume/{_number(order_id)}")

    def retry(self, order_id: int) -> None:
        """Try the files again that the server could not bring, in an order that has ended."""
        self._act("PUT", f"{_ORDERS}/{_number(order_id)}/retry")

    def restart(
        self, order_id: int, *, label: str | None = None, on_success_url: str | None = None
    ) -> RemoteOrder:
        """Order the same again; return the new order."""
        body = {"label": label, "onSuccessUrl": on_success_url}
        body = {name: value for name, value in body.items() if value is not None}
        answer = self._act("POST", f"{_ORDERS}/{_number(order_id)}/restart", body)
        return remote_order(answer.json(), answer.asked)

    def delete(self, order_id: int) -> None:
        """Delete an order that has ended or is paused, with its files on the server."""
        self._act("DELETE", f"{_ORDERS}/{_number(order_id)}")

    def read_link(self, link: str | None) -> DownloadLink:
        """Read the download link of a message: the order's id, and its host if a foreign one."""
        return self._origin.read_link(link)

    def download_order(self, order_id: int, directory: str | Path, **options: Any) -> list[Path]:
        """Fetch all files of an order, also those that REGARDS is still preparing.

        The options are those of :func:`regards_nb.download.download_order`.
        """
        from regards_nb.download import download_order

        return download_order(self, _number(order_id), directory, **options)

    def _act(self, method: str, path: str, body: Any = None) -> Answer:
        return self._ask(Call(method=method, path=path, json=body, repeat=Repeat.NEVER))

    def _ask(self, call: Call) -> Answer:
        return self._transport.exchange(call, self._tokens)

    def _files(
        self, order_id: int, which: str, stop: threading.Event | None
    ) -> Iterator[FileRecord]:
        number = _number(order_id)
        path = f"{_FILES}/{number}/{which}"

        def page_call(query: dict[str, Any]) -> Call:
            return Call(path=path, params=query, stop=stop)

        return manifest(self._ask, page_call, order_id=number)

    def _log_in(self) -> Token:
        """Ask for a new token."""
        assert self._password is not None  # noqa: S101 - Tokens is told so
        call = Call(
            method="POST",
            path=_TOKEN,
            params={"scope": self.tenant},
            json={
                "grant_type": "password",
                "username": self.username,
                "password": self._password.reveal(),
                "scope": self.tenant,
            },
            welcome=frozenset({400, 401, 403}),
        )
        basic = HTTPBasicAuth(self._client_id, self._client_secret.reveal())
        answer = self._transport.exchange(call, basic)
        if answer.status != 200:
            raise ServiceLoginError(
                f"{self._origin} refused the login of {self.username!r} to tenant "
                f"{self.tenant!r}: {answer.described()}",
                status_code=answer.status,
                messages=answer.messages,
            )
        return _token(answer)


def _number(order_id: int) -> int:
    """Return the number of an order, which becomes part of a path; it may be one of NumPy's."""
    if not str(order_id).isdecimal():
        raise SettingsError(f"order_id must be the number that REGARDS gave, not {order_id!r}")
    return int(order_id)


def _by_id(files: Iterable[FileRecord]) -> list[FileRecord]:
    return sorted(files, key=attrgetter("file_id"))


def _token(answer: Answer) -> Token:
    grant = answer.json()
    grant = grant if isinstance(grant, dict) else {}
    token, life_s = grant.get("access_token"), grant.get("expires_in")
    if not isinstance(token, str) or not token.isprintable():
        raise UnexpectedAnswerError(f"{answer.asked}: no token in the answer to a login")
    if not isinstance(life_s, int | float) or life_s <= 0:
        life_s = _DEFAULT_LIFE_S
    return Token.lasting(Secret(token), life_s)


def _hidden(text: str | Secret | None) -> Secret | None:
    return None if text is None else Secret.of(text)
