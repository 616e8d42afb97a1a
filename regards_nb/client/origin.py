"""The one origin that the client contacts, its certificates, and the links of messages."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from regards_nb.errors import SettingsError
from regards_nb.text import is_loopback

if TYPE_CHECKING:
    from pathlib import Path
    from urllib.parse import SplitResult

_DEFAULT_PORTS = {"http": 80, "https": 443}
_DOWNLOAD_PATH = re.compile(r"/user/orders/(\d{1,18})/download/?$")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class DownloadLink(NamedTuple):
    """The content of a download link in a message. The client never follows such a link."""

    #: The order id, if the link has the form of a download link.
    order_id: int | None
    #: The host, if it is not the configured one. It is shown, never contacted.
    foreign_host: str | None


class Origin(NamedTuple):
    """Scheme, host, port, and the path below which REGARDS is served."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, base_url: str) -> Origin:
        """Read a base URL, ``https://host[:port][/path]`` without user name and password.

        ``http`` is accepted for this computer only: elsewhere the password could be read on the
        way.

        >>> Origin.parse("https://regards.example/archive/").url("/api")
        'https://regards.example/archive/api'
        """
        parts = _split(base_url)
        if parts is None or parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise SettingsError("base_url must look like https://regards.example")
        if parts.username is not None or parts.password is not None:
            raise SettingsError(
                "base_url must not hold a user name or password: they would get into logs. "
                "Give username=... and password=..."
            )
        if parts.query or parts.fragment:
            raise SettingsError("base_url must not have a '?' or '#' part")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise SettingsError(
                f"base_url is http://{parts.hostname}: without TLS the password could be read on "
                "the network. Use https://"
            )
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Whether REGARDS runs on this computer."""
        return is_loopback(self.host)

    def url(self, path: str) -> str:
        """Return the URL of *path*, which starts with a slash."""
        return f"{self}{path}"

    def follow(self, url: str, location: str) -> str | None:
        """Return the target of a redirect from *url*; None if it is another origin."""
        try:
            target = urljoin(url, location)
        except ValueError:
            return None  # not the address of any server
        return target if self._foreign_host(target) is None else None

    def read_link(self, link: str | None) -> DownloadLink:
        """Read the download link of a message (protocol.md 1.3, 1.6).

        >>> origin = Origin.parse("https://regards.example")
        >>> origin.read_link("https://evil.example/api/v1/rs-order/user/orders/7/download")
        DownloadLink(order_id=7, foreign_host='evil.example')
        """
        if not link:
            return DownloadLink(None, None)
        # Some administrators enter the host of the project without a scheme (protocol.md 1.1).
        url = link if _SCHEME.match(link) or link.startswith("/") else f"//{link}"
        parts = _split(url)
        if parts is None:
            return DownloadLink(None, "(unreadable)")
        found = _DOWNLOAD_PATH.search(parts.path)
        return DownloadLink(int(found[1]) if found else None, self._foreign_host(url))

    def _foreign_host(self, url: str) -> str | None:
        parts = _split(url)
        if parts is None:
            return "(unreadable)"
        scheme = parts.scheme or self.scheme
        if not parts.hostname:
            return None if not parts.scheme and not parts.netloc else "(none)"
        port = parts.port or _DEFAULT_PORTS.get(scheme)
        if (scheme, parts.hostname, port) == self[:3] and parts.username is None:
            return None
        return parts.hostname


def _split(url: str) -> SplitResult | None:
    """Split a URL; return None if a part of it, such as the port, is not valid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    return parts


def check_certificates(path: Path) -> None:
    """Refuse a file or a folder of certificates that OpenSSL cannot read."""
    try:
        file, folder = (None, path) if path.is_dir() else (path, None)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file, folder)
    except ssl.SSLError:
        raise SettingsError(f"ca_bundle={str(path)!r} holds no certificate in PEM format") from None
    except OSError as exc:
        raise SettingsError(f"ca_bundle={str(path)!r} cannot be read: {exc.strerror}") from None
