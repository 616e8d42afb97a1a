r"""NOTICE.txt: where the server says, inside of a valid zip, which files it could not send. Pure.

It is the last entry of a zip that lacks files or holds cut ones (protocol.md 1.3). A file of the
order may have the same name; the text tells them apart.
"""

from __future__ import annotations

import re

NOTICE_NAME = "NOTICE.txt"
#: A notice names at most the files of an order; what is larger is data.
MAX_NOTICE_BYTES = 1 << 20

_LINE = re.compile(r"Failed to download file \((.*)\): (.*?)\.?", re.DOTALL)
_START = re.compile(r"^(?=Failed to download file \()", re.MULTILINE)


def parse_notice(content: bytes) -> dict[str, str] | None:
    r"""Return what the notice says of each file; None where the content is no notice.

    Parameters
    ----------
    content : bytes
        Content of the last entry of a zip, if that is called NOTICE.txt.

    Examples
    --------
    >>> parse_notice(b"Failed to download file (a.nc): Server returned no content.\n")
    {'a.nc': 'Server returned no content'}
    >>> parse_notice(b"This product was made in 2026.") is None
    True
    """
    if len(content) > MAX_NOTICE_BYTES:
        return None
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").strip()
    # A name may hold a line end: a line lasts until the next one starts.
    lines = [line.strip() for line in _START.split(text) if line.strip()]
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        return None
    return {match[1]: match[2] for match in found if match}
