"""A process that downloads one order: what it is to do comes as JSON, what happened goes out."""

from __future__ import annotations

import json
import resource
import sys

from regards_nb.client import RegardsClient
from regards_nb.download import BucketFiles, Downloader, DownloadOptions, as_place
from regards_nb.errors import RegardsError
from regards_nb.journal import Journal


def main() -> None:
    """Download once."""
    asked = json.load(sys.stdin)
    with (
        RegardsClient(asked["base_url"], **asked["client"]) as client,
        Journal(asked["journal"]) as journal,
    ):
        log = journal.file_log(asked["client"]["tenant"])
        if "small files only" in asked["limits"]:
            # what a full disk says, without filling one: no file gets longer than 200 kB
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        if "in parts" in asked["limits"]:
            BucketFiles.largest_put_bytes, BucketFiles.part_bytes = 1 << 20, 5 << 20
        result: dict[str, object]
        try:
            fetched = Downloader(
                client,
                asked["order_id"],
                as_place(asked["folder"]),
                log,
                DownloadOptions(backoff_s=0.01, **asked["options"]),
            ).fetch()
        except RegardsError as exc:
            result = {"error": type(exc).__name__, "text": str(exc)}
        except KeyboardInterrupt:
            result = {"error": "KeyboardInterrupt"}
        else:
            result = {"paths": [record.path for record in fetched]}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
