"""The Python clients of the download benchmark, each in a process of its own, with imports."""

from __future__ import annotations

import sys


def with_regards_nb(url: str, way: str, *, durable: bool) -> None:
    """Download with regards_nb."""
    from regards_nb import RegardsClient

    with RegardsClient(url, tenant="t", username="u", password="p") as client:
        client.download_order(1, ".", way=way, durable=durable)


def with_zipfile(url: str, manifest: str) -> None:
    """Download with the usual recipe: requests to a file, zipfile, then the MD5 of each file."""
    import hashlib
    import json
    import zipfile
    from pathlib import Path

    import requests

    with requests.get(url, stream=True, timeout=60) as answer, Path("order.zip").open("wb") as file:
        answer.raise_for_status()
        file.writelines(answer.iter_content(1 << 20))
    with zipfile.ZipFile("order.zip") as archive:
        archive.extractall()
    for row in json.loads(Path(manifest).read_bytes()):
        digest = hashlib.md5(usedforsecurity=False)
        with Path(row["filename"]).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != row["checksum"]:
            raise SystemExit(f"the MD5 of {row['filename']} differs")


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "zipfile":
        with_zipfile(*rest)
    else:
        if kind == "regards_nb-zlib":
            sys.modules["isal"] = None  # type: ignore[assignment] # as if it were not installed
        url, way, flush = rest
        with_regards_nb(url, way, durable=flush == "flush")
