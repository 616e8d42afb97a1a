"""The one origin that the client contacts, and the comparison of redirects with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from regards_nb.errors import SettingsError
from regards_nb.text import is_loopback

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_DEFAULT_PORTS = {"http": 80, "https": 443}


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
        parts = _split(target)
        if parts is None or parts.username is not None:
            return None
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        return target if (parts.scheme, parts.hostname, port) == self[:3] else None


def _split(url: str) -> SplitResult | None:
    """Split a URL; return None if a part of it, such as the port, is not valid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    return parts
