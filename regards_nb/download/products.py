"""Download the files of products of the catalogue, without an order."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from regards_nb.arguments import check_paths
from regards_nb.download.context import DownloadOptions
from regards_nb.download.increment import Downloader, paths_of
from regards_nb.download.places import as_place, open_workspace
from regards_nb.download.progress import ProgressLine
from regards_nb.download.records import state_log
from regards_nb.errors import DownloadError, IncompleteDownloadError, OrderNotFoundError
from regards_nb.files import FileRecord
from regards_nb.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from regards_nb.client import Body, Product, RegardsClient
    from regards_nb.download.places import Place
    from regards_nb.download.progress import Progress

#: Orders have numbers from 1 on.
_NO_ORDER = 0


def download_products(
    client: RegardsClient,
    products: Sequence[Product],
    directory: str | Place,
    *,
    accept_licence: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    show: bool = True,
    stop: threading.Event | None = None,
    durable: bool = True,
    backoff_s: float = 1.0,
) -> list[Path]:
    """Fetch the files of products, several at a time; verified files are not fetched again.

    Parameters
    ----------
    client : RegardsClient
        The REST side.
    products : sequence of Product
        The products.
    directory : str, pathlib.Path or upath.UPath
        Where the files go: a folder, made if it is missing, or ``s3://bucket/prefix``.
    accept_licence : bool
        Accept the licence of the data sets that have one.
    on_progress, show, stop, durable, backoff_s
        As in :func:`download_order`.

    Returns
    -------
    list of pathlib.Path
        All files of the products. In a bucket each is an `upath.UPath`.

    Raises
    ------
    IncompleteDownloadError
        Some files could not be downloaded; the others are in place.
    """
    check_paths(directory=directory)
    folder = as_place(directory)
    source = _ProductFiles(client, products, accept_licence=accept_licence)
    if not source.records:
        raise DownloadError(f"{counted(len(products), 'product')} without any file")
    with open_workspace(folder, _NO_ORDER):
        pass
    line = ProgressLine()
    downloader = Downloader(
        # Of a client, a download of single files uses the methods of _ProductFiles only.
        cast("RegardsClient", source),
        _NO_ORDER,
        folder,
        state_log(folder, _NO_ORDER, durable=durable),
        DownloadOptions(
            on_progress=on_progress or (line if show else None),
            stop=stop or threading.Event(),
            way="files",
            check="size",
            durable=durable,
            backoff_s=backoff_s,
        ),
    )
    # No manifest lists the files: they are fetched as those that a manifest lists no longer.
    downloader.records.expect(source.records)
    downloader.retry_failed()
    try:
        downloader.fetch()
    except IncompleteDownloadError as exc:
        name, reason = next(iter(exc.missing.items()))
        raise IncompleteDownloadError(
            f"{counted(f'{len(exc.missing)} of {len(source.records)}', 'file')} could not be "
            f"downloaded; the others are saved in {folder}. {name}: {reason}",
            paths=exc.paths,
            missing=exc.missing,
        ) from None
    finally:
        line.end()
    wanted = downloader.records.of([record.file_id for record in source.records])
    return list(paths_of(wanted))


class _File(NamedTuple):
    urn: str
    checksum: str


class _ProductFiles:
    """The files of products, with the methods of a client that a download uses."""

    def __init__(
        self, client: RegardsClient, products: Sequence[Product], *, accept_licence: bool
    ) -> None:
        self._client = client
        self._accept_licence = accept_licence
        self._files: dict[int, _File] = {}
        self.records: list[FileRecord] = []
        for product in products:
            for file in product.files:
                if file.checksum is None:
                    raise DownloadError(
                        f"{file.name} has no checksum, and REGARDS gives files of the catalogue by "
                        "checksum only: order the product"
                    )
                key = _File(product.urn, file.checksum)
                # The same number in each call, so that a later call finds what was fetched.
                digest = hashlib.md5("/".join(key).encode(), usedforsecurity=False).digest()
                file_id = int.from_bytes(digest[:7])
                self._files[file_id] = key
                self.records.append(
                    FileRecord(
                        order_id=_NO_ORDER,
                        file_id=file_id,
                        name=file.name,
                        size_bytes=file.size_bytes,
                        md5=file.md5,
                        product_id=product.provider_id,
                    )
                )

    def order(self, _order_id: int) -> NoReturn:
        """Raise: these files belong to no order that could expire."""
        raise OrderNotFoundError("files of the catalogue belong to no order")

    def iter_available_files(
        self, _order_id: int, *, stop: threading.Event | None = None
    ) -> Iterator[FileRecord]:
        """Yield nothing: REGARDS waits for no download of these files."""
        del stop
        return iter(())

    def open_file(
        self, file_id: int, *, stop: threading.Event | None = None
    ) -> AbstractContextManager[Body]:
        """Open one file."""
        urn, checksum = self._files[file_id]
        return self._client.open_product_file(
            urn, checksum, accept_licence=self._accept_licence, stop=stop
        )
