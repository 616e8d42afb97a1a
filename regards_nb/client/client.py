"""``RegardsClient``: REGARDS over REST, a method for each request (protocol.md 1.1 to 1.5)."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from regards_nb.arguments import check_counts
from regards_nb.client.auth import (
    LOGIN_MISSING,
    PasswordLogin,
    Secret,
    Token,
    TokenProvider,
    is_header_value,
    login_missing,
    user_of,
)
from regards_nb.client.catalogue import Catalogue, file_path
from regards_nb.client.errors import error_for
from regards_nb.client.models import RequestSpec, Retry, apply_response, read_page, remote_order
from regards_nb.client.origin import DownloadLink, Origin, check_certificates
from regards_nb.client.transport import BearerAuth, Transport, iter_manifest, iter_pages
from regards_nb.errors import NotAllowedError, SettingsError, UnexpectedAnswerError
from regards_nb.queries import check, selection
from regards_nb.queries import fields as write_fields
from regards_nb.waits import STOPPED_EARLY, reads_only, stopped_by_user, user_call

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    import pandas as pd

    from regards_nb.client.models import ApplyResponse, RemoteOrder, Response
    from regards_nb.client.streaming import Body
    from regards_nb.files import FileRecord

_ORDERS = "/api/v1/rs-order/user/orders"
_FILES = "/api/v1/rs-order/orders"

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Headers that the client itself sets, or never sends.
_OWN_HEADERS = frozenset(
    {"accept-encoding", "authorization", "content-length", "cookie", "host", "scope"}
)


class RegardsClient:
    """A project of REGARDS over REST. The first method that is called sends the first request.

    Parameters
    ----------
    base_url : str
        ``https://host[:port][/path]``. The token is sent to this address only.
    tenant : str
        Name of the project.
    username, password : str, optional
        The login; the client logs in again before the token ends.
    token : str or callable, optional
        A token instead of a login. A function is asked for a token at the first request, and for a
        new one when that ends.
    headers : mapping of str to str, optional
        Sent with every request, and as secret as the token: ``{"X-API-Key": ...}`` for a portal.
    client_id, client_secret : str
        The application that REGARDS knows; the defaults are those of REGARDS.
    ca_bundle : str, optional
        File of certificates to trust, instead of those of REQUESTS_CA_BUNDLE or certifi. A tracker
        with this client trusts them for RabbitMQ, too, besides those of the system.
    connect_timeout_s, read_timeout_s : float
        How long to wait for a connection, and for the next bytes of a response.
    backoff_s : float
        Upper limit of the first random wait before a request is repeated; it doubles each time.

    Raises
    ------
    SettingsError
        A parameter is not acceptable.

    Examples
    --------
    >>> RegardsClient("https://regards.example", tenant="swot", username="john", password="s")
    <RegardsClient https://regards.example tenant='swot' username='john'>

    Notes
    -----
    Without a login and a token, only the public parts of a catalogue can be searched. Thread-safe.
    Not picklable, because it holds a password.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tenant: str,
        username: str | None = None,
        password: str | Secret | None = None,
        token: str | Secret | Callable[[], str | Secret] | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        client_id: str = "client",
        client_secret: str | Secret = "secret",  # noqa: S107 - REGARDS' own default, no secret
        ca_bundle: str | Path | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 120.0,
        backoff_s: float = 1.0,
    ) -> None:
        # Before anything can fail: tracebacks may show the variables of this frame.
        password = None if password is None else Secret.of(password)
        token = Secret(token, source="given as token=") if isinstance(token, str) else token
        hidden = {name: Secret.of(value) for name, value in (headers or {}).items()}
        headers = None
        client_secret = Secret.of(client_secret)
        if not tenant or not isinstance(tenant, str):
            raise SettingsError(
                f"RegardsClient needs tenant=..., the name of the project, not {tenant!r}"
            )
        if not tenant.isascii() or not tenant.isprintable():
            raise SettingsError(f"tenant={tenant!r}: the name of a project is plain ASCII")
        if token is None and bool(username) != (password is not None):
            raise SettingsError("RegardsClient needs username=... and password=..., or token=...")
        _check_headers(hidden)
        if ca_bundle is not None:
            check_certificates(Path(ca_bundle))
        self.tenant = tenant
        self.username = username
        self._origin = Origin.parse(base_url)
        #: The file of certificates to trust.
        self.ca_bundle = None if ca_bundle is None else str(ca_bundle)
        self.uses_token = password is None
        #: The user, as far as it is known before a login.
        self.account = username or (user_of(token) if isinstance(token, Secret) else None)
        #: Where the password or the token came from, for error texts.
        self.secret_source: str = getattr(
            password or token, "source", "returned by the function given as token="
        )
        self._transport = Transport(
            self._origin,
            tenant=tenant,
            headers=hidden,
            ca_bundle=self.ca_bundle,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            backoff_s=backoff_s,
        )
        self._password_login: PasswordLogin | None = None
        self._tokens: TokenProvider | None = None
        if callable(token):
            self._tokens = TokenProvider(self.base_url, partial(Token.from_function, token))
        elif username and password is not None:
            self._password_login = PasswordLogin(
                exchange=self._transport.exchange,
                address=self.base_url,
                tenant=tenant,
                username=username,
                password=password,
                client_id=client_id,
                client_secret=client_secret,
            )
            given = None if token is None else Token.given(token)
            self._tokens = TokenProvider(self.base_url, self._password_login.token, given)
        elif token is not None:
            self._tokens = TokenProvider(self.base_url, None, Token.given(token))
        self._catalogue = Catalogue(self._exchange_public)

    def __repr__(self) -> str:
        user = f" username={self.username!r}" if self.username else ""
        return f"<RegardsClient {self._origin} tenant={self.tenant!r}{user}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RegardsClient is not pickled, it holds a password: make a new one there")

    @property
    def base_url(self) -> str:
        """The address of REGARDS."""
        return str(self._origin)

    @property
    def token_ends_at(self) -> datetime | None:
        """The end of the token, None if unknown. The client renews its own before."""
        return None if self._tokens is None else self._tokens.ends_at

    @property
    def is_login_refused(self) -> bool:
        """Whether REGARDS refused the last login, which then :meth:`login` alone repeats soon."""
        return self._tokens is not None and self._tokens.is_refused

    @property
    def n_accepted(self) -> int:
        """Number of logins and of other requests that REGARDS accepted from this user so far."""
        return 0 if self._tokens is None else self._tokens.n_accepted

    @property
    def login_form(self) -> str | None:
        """The body of a login: ``json`` since REGARDS 2.0, ``form`` before; None: not known."""
        return None if self._password_login is None else self._password_login.form

    def close(self, reason: str = "this RegardsClient is closed: make a new one") -> None:
        """Close the connections. Later calls are refused with a SettingsError, the *reason*."""
        self._transport.close(reason)

    @user_call()
    def login(self) -> None:
        """Get a token now, instead of with the first request.

        Raises
        ------
        ServiceLoginError
            The server refused user name, password, tenant or application.
        ServiceUnreachableError
            No response.
        """
        self._login.current()

    @reads_only
    def order(self, order_id: int) -> RemoteOrder:
        """Return one order as the server sees it.

        Raises
        ------
        OrderNotFoundError
            The server has no order with that id.
        NotAllowedError
            The order belongs to another user.
        """
        response = self._exchange(RequestSpec(path=f"{_ORDERS}/{_number(order_id)}"))
        return remote_order(response.json(), response)

    @reads_only
    def orders(self, *, limit: int | None = None) -> pd.DataFrame:
        """Return all orders of the user as the server sees them, also those made elsewhere.

        Parameters
        ----------
        limit : int, optional
            Return at most this number of orders, the newest ones.

        Returns
        -------
        pandas.DataFrame
            Index ``order_id``, newest first, without deleted orders. Filter it as in
            ``client.orders().query("status == 'PAUSED'")``.
        """
        from regards_nb.frames import orders_frame

        check_counts(limit=limit)
        return orders_frame(islice(self.iter_orders(), limit))

    def iter_orders(self, *, page_size: int = 100) -> Iterator[RemoteOrder]:
        """Yield all orders of the user, newest first. Pages are requested as needed."""
        seen: set[int] = set()
        request = RequestSpec(path=_ORDERS)
        for page in iter_pages(self._exchange, request, page_size, what="the list of orders"):
            for item in page.items:
                order = remote_order(item, page.response)
                # A new order moves the others to the next page: some come twice.
                if order.order_id not in seen:
                    seen.add(order.order_id)
                    yield order

    @reads_only
    def clock_skew_s(self) -> float | None:
        """Return how many seconds our clock is ahead of the server's; None if it sends no date."""
        response = self._exchange(RequestSpec(path=_ORDERS, params={"page": 0, "size": 1}))
        read_page(response)  # raises if a proxy answered
        return response.clock_skew_s

    @reads_only
    def available_files(
        self, order_id: int, *, sub_order_id: int | None = None, stop: threading.Event | None = None
    ) -> list[FileRecord]:
        """Return the manifest: all files that can be fetched now, by file id (protocol.md 1.4).

        Files that were downloaded are no longer in it. With *sub_order_id*, which a SUBORDER_DONE
        event names, it has only the files of one sub-order. Set *stop* to end waits between
        repetitions.
        """
        files = self.iter_available_files(order_id, sub_order_id=sub_order_id, stop=stop)
        return sorted(files, key=attrgetter("file_id"))

    def iter_available_files(
        self, order_id: int, *, sub_order_id: int | None = None, stop: threading.Event | None = None
    ) -> Iterator[FileRecord]:
        """Yield the files of the manifest. Pages are requested as needed."""
        sub_order = "" if sub_order_id is None else f"filesTask/{_number(sub_order_id)}/"
        return self._iter_files(order_id, f"{sub_order}files/available", stop)

    @reads_only
    def dataset_files(
        self, order_id: int, dataset_id: int, *, stop: threading.Event | None = None
    ) -> list[FileRecord]:
        """Return all files of one data set of an order, in any state on the server."""
        files = self.iter_dataset_files(order_id, dataset_id, stop=stop)
        return sorted(files, key=attrgetter("file_id"))

    def iter_dataset_files(
        self, order_id: int, dataset_id: int, *, stop: threading.Event | None = None
    ) -> Iterator[FileRecord]:
        """Yield all files of one data set of an order. Pages are requested as needed."""
        return self._iter_files(order_id, f"dataset/{dataset_id}/files", stop)

    @user_call()
    def apply(
        self,
        queries: Sequence[str],
        *,
        data_types: Sequence[str] | None = None,
        filename_regexp: str | None = None,
        correlation_id: str | None = None,
    ) -> ApplyResponse:
        """Request an order.

        Parameters
        ----------
        queries : sequence of str
            Queries of the catalogue (OpenSearch).
        data_types : sequence of str, optional
            ``RAWDATA``, ``QUICKLOOK``; by default the server chooses.
        filename_regexp : str, optional
            Order only files whose whole name matches.
        correlation_id : str, optional
            The client's own name for the order, at most 255 characters.

        Returns
        -------
        ApplyResponse
            GRANTED with an order id; or DENIED or FAILED with the reason.

        Raises
        ------
        SettingsError
            REGARDS would misunderstand a query (:func:`regards_nb.queries.check`).
        ServiceError
            The request is not valid, or there is no response. The request is never repeated:
            without a response the server may have made the order.
        """
        from regards_nb.events import order_filters  # imported here: it imports msgspec (30 ms)

        queries = list(queries)
        for query in queries:
            check(query)
        filters = order_filters(data_types, filename_regexp)
        body = {
            "queries": queries,
            **({"filters": filters} if filters else {}),
            **({"correlationId": correlation_id} if correlation_id else {}),
        }
        request = RequestSpec(
            method="POST",
            path=f"{_ORDERS}/apply",
            json=body,
            retry=Retry.NEVER,
            accepted_statuses=frozenset({422}),
        )
        response = self._exchange(request)
        outcome = apply_response(response.json())
        if outcome is not None:
            return outcome
        if response.status == 422:
            raise error_for(response)
        raise UnexpectedAnswerError(
            f"{response.describe()}. That is no response to a request for an order"
        )

    @contextmanager
    def open_zip(
        self, order_id: int, *, stop: threading.Event | None = None
    ) -> Iterator[Body | None]:
        """Open the zip of all files that are available now; None if there are none.

        Each call spends quota. After the last byte the server marks the files as downloaded and
        prepares the next ones (protocol.md 0.3). The client never repeats this request after the
        server has begun to work on it.
        """
        path = f"{_ORDERS}/{_number(order_id)}/download"
        request = RequestSpec(path=path, retry=Retry.IF_NOT_STARTED, stop=stop)
        with self._transport.stream(request, self._login) as body:
            body.refuse_page(but_attachments=False)
            yield None if body.status_code == 204 else body

    @contextmanager
    def open_file(self, file_id: int, *, stop: threading.Event | None = None) -> Iterator[Body]:
        """Open one file by its id in the manifest. This works after its download, too.

        Raises
        ------
        NotAllowedError
            Status 202: the file is not ready yet.
        QuotaError
            Too many downloads, today or at the same time.
        ServiceError
            With the status of the storage service: 404, 410, 422 and so on.
        """
        request = RequestSpec(path=f"{_FILES}/files/{file_id}", stop=stop)
        with self._transport.stream(request, self._login) as body:
            yield _checked(body, request, "the file is not ready yet")

    @reads_only
    def datasets(self) -> pd.DataFrame:
        """Return the data sets of the catalogue; index ``urn``.

        Works without a login where the project is public, as :meth:`attributes` and
        :meth:`search` do.
        """
        from regards_nb.frames import datasets_frame

        return datasets_frame(self._catalogue.datasets())

    @reads_only
    def attributes(self, dataset: str | None = None) -> pd.DataFrame:
        """Return the attributes of products: name, type, label, unit; index ``name``.

        *dataset* limits them to those of a data set, by its label, provider id or URN.
        """
        from regards_nb.frames import attributes_frame

        return attributes_frame(self._catalogue.attributes(dataset))

    @reads_only
    def search(
        self,
        query: str | None = None,
        *,
        dataset: str | None = None,
        limit: int | None = None,
        **fields: Any,
    ) -> pd.DataFrame:
        """Find products.

        Parameters
        ----------
        query : str, optional
            A query; :mod:`regards_nb.queries` writes them.
        dataset : str, optional
            Only products of this data set: its label, provider id or URN.
        limit : int, optional
            Return at most this number of products.
        **fields
            Values of fields, as :func:`regards_nb.queries.fields` takes them: ``cycle=7``,
            ``instrument=["KaRIn", "Poseidon"]``, ``date_obs=(date(2026, 1, 1), None)``.

        Returns
        -------
        pandas.DataFrame
            One row per product, index ``urn``: ``provider_id``, ``label``, ``dataset``,
            ``version``, ``files``, ``bytes``, ``online`` (False: comes from tape), then the
            attributes with their types. An attribute that is called like one of these columns has
            ``properties.`` before its name.

        Raises
        ------
        SettingsError
            There is no such data set, or REGARDS would misunderstand the query.
        ServiceError
            The catalogue refuses the query; the text has the fields that exist.
        """
        from regards_nb.frames import products_frame

        check_counts(limit=limit)
        written = write_fields(**fields) if fields else ""
        found = self._catalogue.iter_products(query or "", written, dataset=dataset)
        products = list(islice(found, limit))
        return products_frame(products, self._catalogue.attributes(), self._labels())

    @reads_only
    def estimate(
        self, products: object, *, data_types: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Return the numbers of files and bytes of products before you order them.

        Parameters
        ----------
        products : DataFrame, str or iterable of str
            Rows of :meth:`search`, URNs, provider ids, or queries.
        data_types : sequence of str, optional
            Only these types of files, such as ``RAWDATA``.

        Returns
        -------
        pandas.DataFrame
            One row per data set and type of file: ``dataset``, ``data_type``, ``products``,
            ``files``, ``bytes``.
        """
        from regards_nb.frames import summary_frame

        rows = self._catalogue.summary(selection(products), data_types)
        return summary_frame(rows, self._labels())

    @reads_only
    def quota(self) -> pd.DataFrame:
        """Return used and allowed downloads, in total and at the same time; index ``kind``."""
        from regards_nb.frames import quota_frame

        return quota_frame(self._catalogue.quota())

    @reads_only
    def cart(self) -> pd.DataFrame:
        """Return what lies in your cart on the web page; an order takes all of that along.

        It is one row per data set, as in :meth:`estimate`; no row if the cart is empty.
        """
        from regards_nb.frames import summary_frame

        return summary_frame(self._catalogue.cart(), {})

    @stopped_by_user(STOPPED_EARLY, keeps_inner=True)
    def download_products(
        self,
        products: object,
        directory: str | Path,
        *,
        accept_licence: bool = False,
        restore: bool = False,
        timeout_s: float = 3600.0,
        poll_s: float = 10.0,
        **options: Any,
    ) -> list[Path]:
        """Download the files of products without an order, verified like those of an order.

        Parameters
        ----------
        products : DataFrame, str or iterable of str
            Rows of :meth:`search`, URNs, provider ids, or queries.
        directory : str or Path
            Where the files go, also ``s3://bucket/prefix``. Nothing in it is overwritten.
        accept_licence : bool
            Accept the licence of the data sets that have one.
        restore : bool
            Let REGARDS restore files from tape, and wait for them.
        timeout_s, poll_s : float
            How long to wait for files from tape, and how often to ask.
        **options
            Those of :func:`regards_nb.download.download_products`.

        Returns
        -------
        list of pathlib.Path
            The files of type RAWDATA.

        Raises
        ------
        NotAllowedError
            Files are on tape, or a licence is not accepted.
        IncompleteDownloadError
            Some files could not be downloaded; the others are saved.
        """
        from regards_nb.download import download_products

        found = self._catalogue.online_products(
            products, restore=restore, timeout_s=timeout_s, poll_s=poll_s
        )
        return download_products(self, found, directory, accept_licence=accept_licence, **options)

    @contextmanager
    def open_product_file(
        self,
        urn: str,
        checksum: str,
        *,
        accept_licence: bool = False,
        stop: threading.Event | None = None,
    ) -> Iterator[Body]:
        """Open one file of a product of the catalogue.

        Raises
        ------
        NotAllowedError
            Status 202: the file is on tape. Status 423: the licence is not accepted.
        """
        request = RequestSpec(
            path=file_path(urn, checksum),
            params={"acceptLicense": "true"} if accept_licence else {},
            stop=stop,
        )
        with (
            login_missing(self._tokens),
            self._transport.stream(request, self._tokens or BearerAuth()) as body,
        ):
            yield _checked(body, request, "the file is on tape")

    def _labels(self) -> dict[str, str]:
        """Return the labels of the data sets by URN."""
        return {dataset.urn: dataset.label for dataset in self._catalogue.datasets()}

    def _exchange_public(self, request: RequestSpec) -> Response:
        """Send a request that the server may answer without a login."""
        with login_missing(self._tokens):
            return self._transport.exchange(request, self._tokens or BearerAuth())

    def pause(self, order_id: int) -> None:
        """Pause an order that is pending or running."""
        self._act("PUT", f"{_ORDERS}/pause/{_number(order_id)}")

    def resume(self, order_id: int) -> None:
        """Resume a paused order."""
        self._act("PUT", f"{_ORDERS}/resume/{_number(order_id)}")

    def retry(self, order_id: int) -> None:
        """Request the files again that the server failed to deliver, in an order that has ended."""
        self._act("PUT", f"{_ORDERS}/{_number(order_id)}/retry")

    def restart(
        self, order_id: int, *, label: str | None = None, on_success_url: str | None = None
    ) -> RemoteOrder:
        """Order the same again; return the new order."""
        body = {"label": label, "onSuccessUrl": on_success_url}
        body = {name: value for name, value in body.items() if value is not None}
        response = self._act("POST", f"{_ORDERS}/{_number(order_id)}/restart", body)
        return remote_order(response.json(), response)

    def delete(self, order_id: int) -> None:
        """Delete an order that has ended or is paused, with its files on the server."""
        self._act("DELETE", f"{_ORDERS}/{_number(order_id)}")

    def read_link(self, link: str | None) -> DownloadLink:
        """Read the download link of a message: the order id, and the host if it is another one."""
        return self._origin.read_link(link)

    def download_order(self, order_id: int, directory: str | Path, **options: Any) -> list[Path]:
        """Download all files of an order, also those that REGARDS is still preparing.

        The options are those of :func:`regards_nb.download.download_order`.
        """
        from regards_nb.download import download_order

        return download_order(self, _number(order_id), directory, **options)

    @user_call()
    def _act(self, method: str, path: str, body: Any = None) -> Response:
        spec = RequestSpec(method=method, path=path, json=body, retry=Retry.NEVER)
        if (response := self._exchange(spec)).body:
            response.json()  # a page with status 200 says nothing of the order
        return response

    def _exchange(self, request: RequestSpec) -> Response:
        return self._transport.exchange(request, self._login)

    @property
    def _login(self) -> TokenProvider:
        if self._tokens is None:
            raise SettingsError(LOGIN_MISSING)
        return self._tokens

    def _iter_files(
        self, order_id: int, which: str, stop: threading.Event | None
    ) -> Iterator[FileRecord]:
        request = RequestSpec(path=f"{_FILES}/{_number(order_id)}/{which}", stop=stop)
        return iter_manifest(self._exchange, request, order_id=int(order_id))


def _checked(body: Body, request: RequestSpec, why_not: str) -> Body:
    """Return the body of a file; raise if it is a page, or if the server has no file now."""
    body.refuse_page(but_attachments=True)
    if (status := body.status_code) != 200:
        raise NotAllowedError(f"{request}: HTTP {status}, {why_not}", status_code=status)
    return body


def _check_headers(headers: Mapping[str, Secret]) -> None:
    """Refuse headers that cannot be sent, or that have a parameter of their own."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise SettingsError(f"headers={{{name!r}: ...}} is not a header that can be added")
        if not is_header_value(value):
            raise SettingsError(f"headers={{{name!r}: ...}} has a value that cannot be sent")


def _number(order_id: int) -> int:
    """Return an order id as a plain int: it becomes part of a path. NumPy's integers are taken."""
    if not str(order_id).isdecimal():
        raise SettingsError(f"order_id must be the number that REGARDS gave, not {order_id!r}")
    return int(order_id)
