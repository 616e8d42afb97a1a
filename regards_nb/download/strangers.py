"""Entries of a zip that its manifest does not list: files that became available in between.

The server counts them as downloaded once the zip is sent, so they must not be dropped
(protocol.md 1.0, 5; 1.4).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from regards_nb.download.matching import Manifest, Verdict
from regards_nb.download.publisher import Checked
from regards_nb.download.table import Files, FileTable
from regards_nb.errors import ServiceError
from regards_nb.files import FileRecord, FileState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regards_nb.download.tools import Tools
    from regards_nb.download.wholes import Whole


def adopt(strangers: Sequence[Whole], tools: Tools) -> None:
    """Find out what unlisted entries are, and publish them.

    The lists of the data sets name all files of the order whatever their state. What they do not
    list either is kept as unverified, with an id of its own below zero.
    """
    if not strangers:
        return
    listing = Manifest(Files(FileTable(tools.order_id, _unlisted(tools))))
    checked: list[Checked] = []
    for whole in strangers:
        verdict, records = listing.match(whole.name, whole.size_bytes, whole.md5)
        if verdict is Verdict.WRONG:
            # cut or damaged: it is fetched alone, like any other
            whole.discard()
            tools.records.expect(records)
            tools.manifest.add(Files(tools.records.table, [r.file_id for r in records]))
        if verdict is Verdict.WRONG or not whole.md5:
            continue
        if not records:
            records = [_nameless(whole, tools.order_id)]
        found = FileState.VERIFIED if verdict is Verdict.VERIFIED else FileState.UNVERIFIED
        name = tools.names.choose_new(records[0].name)
        checked.append(Checked(whole, records, found, name))
    tools.publisher.add(checked)


def _unlisted(tools: Tools) -> list[FileRecord]:
    """Return the files of the order that its manifest did not list."""
    client, order_id = tools.client, tools.order_id
    try:
        return [
            record
            for dataset_id in client.order(order_id).dataset_ids
            for record in client.iter_dataset_files(order_id, dataset_id, stop=tools.stop)
            if record not in tools.manifest
        ]
    except ServiceError:
        return []


def _nameless(whole: Whole, order_id: int) -> FileRecord:
    """Return a record for a file that the server does not list, the same at every download."""
    identity = hashlib.sha256(f"{whole.md5}/{whole.name}".encode()).digest()
    return FileRecord(
        order_id=order_id,
        file_id=-int.from_bytes(identity[:7], "big") - 1,
        name=whole.name,
        size_bytes=whole.size_bytes,
    )
