"""Finds, downloads and compares with sunpy-regards, a client of REGARDS by other authors.

``sunpy_client.py URL USER PASSWORD TENANT FOLDER`` runs in a process with the packages of
`data/sunpy-regards.txt` on its path.
"""

from __future__ import annotations

import sys

import sunpy.net.attrs as a  # type: ignore[import-not-found,unused-ignore]
from sunpy_regards import REGARDSClient  # type: ignore[import-not-found,unused-ignore]
from sunpy_regards.config import (  # type: ignore[import-not-found,unused-ignore]
    RegardsConfig,
)

if __name__ == "__main__":
    url, username, password, tenant, folder = sys.argv[1:]
    client = REGARDSClient(
        RegardsConfig(base_url=url, username=username, password=password, tenant=tenant)
    )
    found = client.search(a.Time("2026-01-22", "2026-01-24"), a.Instrument("KaRIn"))
    client.fetch(found, path=folder + "/{file}", downloader=None)
