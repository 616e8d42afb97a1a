"""The records of the zip format that matter here: their layouts, names and extra fields."""

from __future__ import annotations

import struct
import zlib
from typing import Final

LOCAL_MARK: Final = b"PK\3\4"
DESCRIPTOR_MARK: Final = b"PK\7\x08"
CENTRAL_MARK: Final = b"PK\1\2"
END_MARK: Final = b"PK\5\6"
END64_MARK: Final = b"PK\6\6"
LOCATOR64_MARK: Final = b"PK\6\7"
#: What may come after an entry: another, the directory, the end of a zip without entries.
NEXT_MARKS: Final = frozenset({LOCAL_MARK, CENTRAL_MARK, END_MARK, END64_MARK})

LOCAL: Final = struct.Struct("<4s5H3I2H")
CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
END: Final = struct.Struct("<4s4H2IH")
END64: Final = struct.Struct("<4sQ2H2I4Q")
LOCATOR64: Final = struct.Struct("<4sIQI")

ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13
HAS_DESCRIPTOR: Final = 1 << 3
STORED, DEFLATED = 0, 8
LIMIT_16: Final = 0xFFFF
LIMIT_32: Final = 0xFFFFFFFF

_UTF8_NAME = 1 << 11
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075


def entry_name(raw_name: bytes, extra: bytes, flags: int) -> str:
    """Return the name of an entry: extra field 0x7075 where there is a valid one.

    Examples
    --------
    >>> entry_name(b"a.nc", b"", 0)
    'a.nc'
    """
    path = unicode_path(extra) if extra else b""
    # version 1, the CRC of the name it stands for, the name in UTF-8
    if path and path[:5] == struct.pack("<BI", 1, zlib.crc32(raw_name)):
        return path[5:].decode("utf-8", "replace")
    if raw_name.isascii():
        return raw_name.decode("ascii")
    if flags & _UTF8_NAME:
        return raw_name.decode("utf-8", "replace")
    try:
        return raw_name.decode("utf-8")
    except UnicodeDecodeError:
        return raw_name.decode("cp437")


def unicode_path(extra: bytes) -> bytes:
    """Return the content of extra field 0x7075, empty where there is none."""
    return _extra_field(extra, _UNICODE_PATH_EXTRA)


def with_zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """Replace each value that is all ones by the next one of the Zip64 extra field.

    Examples
    --------
    >>> with_zip64(b"", 1, 2)
    (1, 2)
    >>> with_zip64(struct.pack("<2HQ", 1, 8, 1 << 40), 0xFFFFFFFF, 2)
    (1099511627776, 2)
    """
    if not extra or LIMIT_32 not in values:
        return values
    field = _extra_field(extra, _ZIP64_EXTRA)
    wide = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
    return tuple(next(wide, value) if value == LIMIT_32 else value for value in values)


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """Return the content of one extra field; empty where it is missing or the fields are broken."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""
