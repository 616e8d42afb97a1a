"""Names from the network, made safe: pure functions, the same on every operating system.

A name in a manifest or in a zip is data and never a path (protocol.md 1.3: it is passed on by the
server as it came). What comes out of here is one plain file name that Linux, macOS and Windows
can all hold, that can be read on a screen, and that never hides another file.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The longest name that ext4, XFS, APFS and NTFS all take, in bytes of UTF-8.
MAX_NAME_BYTES = 255

#: How much of a long name's end is kept as its extension.
_MAX_EXTENSION_BYTES = 40

_SEPARATORS = re.compile(r"[/\\]+")
#: What Windows forbids in a name, ":" included: there it would open a second stream of a file.
_FORBIDDEN = re.compile(r'[<>:"|?*]')
#: Control and format characters (bidirectional overrides among them), line ends, private use,
#: unassigned, and halves of surrogate pairs, which no file system can hold.
_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
#: Most names by far: nothing in them needs a second look but the devices.
_PLAIN = re.compile(r"\w[\w.\-+=@#%&,;()\[\]{}' ]{0,200}\w", re.ASCII)
_NUMBERED = re.compile(r" \((\d+)\)$")


def safe_name(name: str) -> str:
    r"""Return the file name under which *name* can be kept.

    It is one path component of at most 255 bytes, *name* itself where that is one. It is the last
    component of something that looks like a path; never hidden, never an option, never a device of
    Windows.

    >>> safe_name("SWOT_L2_LR_SSH_001.nc")
    'SWOT_L2_LR_SSH_001.nc'
    >>> safe_name("../../.bashrc")
    'bashrc'
    >>> safe_name("C:\\temp\\nul.txt")
    '_nul.txt'
    """
    if _PLAIN.fullmatch(name) and not _DEVICE.match(name):
        return name
    components = [part for part in _SEPARATORS.split(name) if part.strip(". ")]
    text = components[-1] if components else ""
    text = _FORBIDDEN.sub("_", text)
    if not text.isascii() or not text.isprintable():
        text = "".join("_" if unicodedata.category(c) in _UNSHOWABLE else c for c in text)
    # Windows drops trailing dots and spaces; a leading dot hides, "-" and "~" mean other things
    text = text.rstrip(". ").lstrip(".-~ ") or "unnamed"
    if _DEVICE.fullmatch(text.split(".")[0].rstrip()):
        text = f"_{text}"
    if len(text.encode()) <= MAX_NAME_BYTES:
        return text
    return _shortened(text, f"~{hashlib.sha256(text.encode()).hexdigest()[:8]}")


def collision_key(name: str) -> str:
    """Return what two names share when some file system would take them for one.

    >>> collision_key("Été.nc") == collision_key("E\u0301TE\u0301.NC")
    True
    """
    if name.isascii():
        return name.lower()
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", folded)


def numbered(name: str, number: int) -> str:
    """Return the *number*-th choice for *name*: itself, then ``name (2).ext``, ``name (3).ext``.

    >>> numbered("a.nc", 1), numbered("a.nc", 2), numbered("archive.tar.gz", 3)
    ('a.nc', 'a (2).nc', 'archive.tar (3).gz')
    """
    return name if number == 1 else _shortened(name, f" ({number})")


class FinalNames:
    """Gives each file of an order its own final name, the same in every process that asks.

    *files* are id and name of each file, as the server has them, by id: the first of several that
    share a name keeps it. *taken* are the names that other files of the order have already.

    >>> names = FinalNames([(1, "a.nc"), (2, "A.nc"), (3, "a (2).nc")])
    >>> [names.choose(1, "a.nc"), names.choose(2, "A.nc"), names.choose(3, "a (2).nc")]
    ['a.nc', 'A (3).nc', 'a (2).nc']
    >>> names.choose_another("a.nc")
    'a (4).nc'
    """

    def __init__(self, files: Iterable[tuple[int, str]], taken: Iterable[str] = ()) -> None:
        self._taken = {collision_key(name) for name in taken}
        self._last_number: dict[str, int] = {}
        self._chosen: dict[int, str] = {}
        # Those that share a name come last, because a later file may have the name they would get.
        shared = []
        for file_id, name in files:
            safe = safe_name(name)
            if self._take(safe):
                self._chosen[file_id] = safe
            else:
                shared.append((file_id, safe))
        self._chosen.update((file_id, self.choose_another(safe)) for file_id, safe in shared)

    def choose(self, file_id: int, name: str) -> str:
        """Return the final name for a file of the list."""
        return self._chosen.get(file_id) or safe_name(name)

    def choose_new(self, name: str) -> str:
        """Return the final name for a file that is not of the list."""
        safe = safe_name(name)
        return safe if self._take(safe) else self.choose_another(safe)

    def choose_another(self, name: str) -> str:
        """Return a variant of a safe *name* that no file of the order has or will have."""
        base = collision_key(name)
        number = self._last_number.get(base, 1) + 1
        while not self._take(choice := numbered(name, number)):
            number += 1
        self._last_number[base] = number
        return choice

    def _take(self, name: str) -> bool:
        key = collision_key(name)
        if key in self._taken:
            return False
        self._taken.add(key)
        return True


def unnumbered(name: str) -> str:
    """Return *name* without the ``(n)`` of files of the same name (protocol.md 1.3).

    >>> unnumbered("a (1).nc"), unnumbered("README (2)"), unnumbered("a.nc")
    ('a.nc', 'README', 'a.nc')
    """
    if ")" not in name:
        return name
    stem, dot, extension = name.rpartition(".")
    if not dot:
        return _NUMBERED.sub("", name)
    return _NUMBERED.sub("", stem) + dot + extension


def _shortened(name: str, mark: str) -> str:
    """Put *mark* before the extension, and cut the stem where the whole would be too long."""
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > _MAX_EXTENSION_BYTES:
        stem, dot, extension = name, "", ""  # it is too long to be one
    room_bytes = MAX_NAME_BYTES - len((mark + dot + extension).encode())
    # cutting bytes may cut a character: what is left of it is dropped
    stem = stem.encode()[:room_bytes].decode(errors="ignore").rstrip(". ")
    return f"{stem}{mark}{dot}{extension}"
