"""The Python competitors, each the whole of one process: imports count."""

from __future__ import annotations

import sys


def with_regards_nb(url: str, way: str) -> None:
    """Download as a user of regards_nb does."""
    from regards_nb import RegardsClient  # noqa: PLC0415 - the import is part of the run

    with RegardsClient(url, tenant="t", username="u", password="p") as client:  # noqa: S106
        client.download_order(1, ".", way=way)


def with_zipfile(url: str, manifest: str) -> None:
    """Download as a notebook does: requests to a file, zipfile, then MD5 of each file."""
    import hashlib  # noqa: PLC0415
    import json  # noqa: PLC0415
    import zipfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    import requests  # noqa: PLC0415

    with requests.get(url, stream=True, timeout=60) as answer, Path("order.zip").open("wb") as file:
        answer.raise_for_status()
        for block in answer.iter_content(1 << 20):
            file.write(block)
    with zipfile.ZipFile("order.zip") as archive:
        archive.extractall()
    for row in json.loads(Path(manifest).read_bytes()):
        digest = hashlib.md5(usedforsecurity=False)
        with Path(row["filename"]).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != row["checksum"]:
            raise SystemExit(f"{row['filename']} is wrong")


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "zipfile":
        with_zipfile(*rest)
    else:
        if kind == "regards_nb-zlib":
            sys.modules["isal"] = None  # type: ignore[assignment] # as where it is not installed
        with_regards_nb(*rest)
